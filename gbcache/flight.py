# cython: freethreading_compatible=True
"""One flight per key: whoever misses first loads, the others wait for what comes.

A flight belongs to one cache and one key. Its leader runs the user's function with no lock held; followers
wait in their thread or their task, on any loop. A follower whose waiting would close a cycle computes for itself
instead; so does one that finds the leader's loop not run, as it may be his to run. Whatever changes the key meanwhile
voids the flight: those who wait get what was loaded, it is not stored, and who comes later starts anew.

After singleflight (Go, golang.org/x/sync), made safe for re-entrance, loops and cancellation.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar, Token
from inspect import isawaitable
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from . import forks
from .errors import BudgetError, ClosedError
from .locks import gate, tell_all, told

if TYPE_CHECKING:
    from .mapping import Loadable

__all__ = ["MISS", "Flight", "afill", "aload", "fill", "fill_many", "load"]

Loader = Callable[[], Awaitable[Any]]
MISS = object()
_AGAIN = object()
"""What followers are told when the leader was cancelled, interrupted or left by its loop: one of them leads now."""
_LOOK = 0.1
"""Seconds between two looks at a leader's loop, by who waits elsewhere."""


class Waiters:
    """Who is told at a flight's end, and what: theirs alone, as a context may keep the flight for long."""

    __slots__ = ("all", "error", "value")

    all: dict[Any, asyncio.AbstractEventLoop | None]
    """A future for each task, with its loop; a held lock for each thread; in order."""
    value: Any
    """What came of it: MISS while it is under way, or where it raised."""
    error: Exception | None


class Flight(bytearray):
    """One load under way. Its only byte is set by whoever changes the key (C does): then it is void."""

    __slots__ = ("ended", "key", "led", "loop", "next", "place", "process", "seen",
                 "waiters", "waits")  # fmt: skip
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__

    place: int | None
    """The key's hash, by which it is listed (_board.pxi); None: it is not, and has no key or next."""
    key: Any
    next: Flight | None
    """The one listed before it by the same hash."""
    loop: asyncio.AbstractEventLoop | None
    """What its leader runs on, until the end."""
    process: int
    ended: bool
    waiters: Waiters | None
    """None: nobody waits yet, or it is over."""
    waits: list[Flight]
    """What its leader, or tasks of its leader, wait for."""
    seen: int
    """The last walk over the graph that came here."""
    led: int
    """The last walk by somebody who leads this one."""


_leading: ContextVar[Any] = ContextVar("gbcache_leading", default=None)
"""The flights this thread, task, or a task it comes from, is loading for: (flight, the rest), or None."""
_graph = threading.RLock()
"""Guards who waits for whom, and how a flight ended. Held for a few steps, in which nothing is made that the collector
counts: it could run user code. Without `with`: where a traceback has no memory, Cython's passes NULL on. By a local
name: of what a global one calls Cython makes an object, and without memory for that it would be held for ever."""
_walks = 0
_open: list[Flight] = []
_stuck: dict[int, list[Flight]] = {}
"""What calls on an event loop wait for that block it, by its id: all that is led there waits for that, too."""
_process = os.getpid()


def _in_child() -> None:
    global _graph, _process
    _graph, _process = threading.RLock(), os.getpid()  # whoever held it is not here
    _stuck.clear()


forks.in_child(_in_child)


def _start() -> tuple[Flight, Token[Any]]:
    """A flight that this thread or task leads, if the key has none."""
    mine = Flight(1)
    mine.loop, mine.process = asyncio._get_running_loop(), _process
    mine.place = None
    mine.ended, mine.waiters, mine.waits, mine.seen, mine.led = False, None, [], 0, 0
    before = _leading.get()
    while before is not None and before[0].ended:  # left there where memory was short
        before = before[1]
    try:
        return mine, _leading.set((mine, before))
    except MemoryError:
        mine.ended = True  # the token failed, and yet it may be set
        _leading.set(before)
        raise


def _is_left(flight: Flight) -> bool:
    """Whether its leader's loop is not run: by nobody any more, which ends it, or perhaps by whoever asks."""
    loop = flight.loop
    if loop is None or loop.is_running():
        return False
    if loop.is_closed():
        flight[0] = 1  # nobody tells it of changes from here on
        _settle(flight, _AGAIN)
    return True


def _over(flight: Flight) -> bool:
    """Whether a flight is nothing to join: voided, or ended and not taken off the list because its key
    raised or changed; or its leader did not come along when we were forked, or its loop was closed."""
    gone = bool(flight[0]) or flight.ended or flight.process != _process
    return gone or (_is_left(flight) and flight.ended)


def _join(cache: Loadable, key: Any, mine: Flight) -> Flight:
    """The flight of the key: `mine`, which then is ours to lead, or another's. Runs ``__eq__``."""
    flight: Flight = cache._board(key, mine, None)
    while flight is not mine and _over(flight):
        flight = cache._board(key, mine, flight)
    return flight


def _look(flight: Flight, waiter: asyncio.Future[None], loop: asyncio.AbstractEventLoop) -> None:
    """Wakes a task that waits for one of another loop's, if that is not run: now, or found so later."""
    try:
        if waiter.done() or flight.loop is None or flight.loop is loop:
            return
        if not _is_left(flight):
            loop.call_later(_LOOK, _look, flight, waiter, loop)
            return
    except MemoryError:  # nobody would look again: it computes
        pass
    told(waiter)


def _settle(flight: Flight, value: Any, error: Exception | None = None) -> None:
    """The leader's last word; only the first counts."""
    graph = _graph
    graph.acquire()
    try:
        if flight.ended:
            return
        flight.ended = True
        waiters, flight.waiters = flight.waiters, None  # from here on they are ours alone
        if waiters is not None:
            waiters.value, waiters.error = value, error
    finally:
        graph.release()
    flight.loop = None  # not above: where it is the last, a __del__ runs
    if waiters is not None:
        tell_all(waiters.all)


def _follow(flight: Flight, waiter: Any, loop: asyncio.AbstractEventLoop | None) -> Waiters:
    """Has a follower told, and notes that the flights we lead wait for `flight`. Nobody in it: that would close a
    cycle, as within a fork any waiting may, or it is over. Each has a waiter of its own, so that to give up takes
    nothing from others. No `wrap_future`, no `shield`: they make functions, whose code CPython 3.12 and 3.13 let go of
    twice where memory is short."""
    global _walks
    told, ours, stuck = Waiters(), _leading.get(), [flight]
    told.all, told.value, told.error = {}, MISS, None
    if forks.within():
        return told
    blocked = asyncio._get_running_loop() if loop is None else None
    graph = _graph
    left: list[Flight] = _open  # so that Cython calls no method of it, which would be an object
    graph.acquire()
    try:
        if flight.ended:
            told.value = _AGAIN
            return told
        _walks += 1
        up = ours
        while up is not None:
            up[0].led = _walks
            up = up[1]
        left.append(flight)
        while left:
            at = left.pop()
            if at.led == _walks or (blocked is not None and at.loop is blocked):
                return told
            if at.seen != _walks:
                at.seen = _walks
                left.extend(at.waits)
                left.extend(_stuck.get(id(at.loop), ()))
        if blocked is not None and _stuck.setdefault(id(blocked), stuck) is not stuck:
            _stuck[id(blocked)].append(flight)  # a signal's handler came, and waits too
        while ours is not None:
            ours[0].waits.append(flight)
            ours = ours[1]
        if flight.waiters is None:
            flight.waiters = told
        flight.waiters.all[waiter] = loop
        return flight.waiters
    except MemoryError:
        _waited(flight, waiter, blocked)
        raise
    finally:  # what is returned would be lost, were this to raise
        left.clear()
        graph.release()


def _waited(flight: Flight, waiter: Any, blocked: asyncio.AbstractEventLoop | None) -> None:
    ours, stuck = _leading.get(), _stuck.get(id(blocked))  # a list only this thread changes
    graph = _graph
    graph.acquire()
    try:
        if stuck is not None and flight in stuck:
            stuck.remove(flight)
            if not stuck:
                del _stuck[id(blocked)]
        if flight.waiters is not None:
            flight.waiters.all.pop(waiter, None)
        while ours is not None:
            if flight in ours[0].waits:
                ours[0].waits.remove(flight)
            ours = ours[1]
    finally:
        graph.release()


def _ended(mine: Flight, token: Token[Any]) -> None:
    mine.ended = True  # where it stays in the context for want of memory, the next one drops it
    try:  # noqa: SIM105
        _leading.reset(token)
    except ValueError:  # a coroutine that is closed in another context than it began in
        pass


def _landed(cache: Loadable, key: Any, flight: Flight, value: Any, ttl: Any, stale: int) -> None:
    """The leader's last step but one: the value to the cache, then, whatever happens, to those who wait."""
    try:
        cache._land(key, value, ttl, flight, stale)
    except (BudgetError, ClosedError):
        pass  # counted as a reject, or nobody's any more; what was asked for is there
    finally:
        try:
            cache._leave(flight, True, False)
        finally:
            _settle(flight, value)


def _failed(cache: Loadable, flight: Flight, error: Any, loaded: bool) -> None:
    """The leader raised, or was cancelled or interrupted, which is its own affair: another leads then.

    No error: an interpreter that lacks memory can lose that of a function it ran, so that no handler of ours runs."""
    said = error if isinstance(error, Exception) else None
    try:
        cache._leave(flight, False, said is not None and not loaded)
    finally:
        _settle(flight, _AGAIN if said is None else MISS, said)


def load(cache: Loadable, key: Any, fn: Callable[[], Any], ttl: Any, stale: int) -> Any:
    """`cache.get_or_set`; `stale` in ms."""
    value = cache.get(key, MISS)
    return value if value is not MISS else fill(cache, key, fn, ttl, stale)


def fill(cache: Loadable, key: Any, fn: Callable[[], Any], ttl: Any, stale: int) -> Any:
    """The value of a key that was just missed."""
    key = cache._once(key)
    while True:
        old = cache._stale(key, MISS, False) if stale else MISS
        mine, token = _start()
        flight = mine
        loaded = over = False
        try:  # an interrupt may come anywhere from here on
            flight = _join(cache, key, mine)
            if flight is mine:
                value = cache.peek(key, MISS)  # another's flight may have landed since
                if value is MISS:
                    value = fn()
                    if value.__class__ is CoroutineType:
                        value.close()
                        raise TypeError(f"{fn!r} returned a coroutine: await aget_or_set")
                    loaded = True
                    _landed(cache, key, mine, value, ttl, stale)
                else:
                    cache._leave(mine, False, False)
                    _settle(mine, value)
                over = True
                return value
        except BaseException as error:
            _failed(cache, mine, error, loaded)
            over = True
            if old is MISS or loaded or not isinstance(error, Exception):
                raise
        finally:
            try:
                if not over and flight is mine:  # its error was lost
                    _failed(cache, mine, None, False)
            finally:
                _ended(mine, token)
        if old is not MISS:
            return cache._stale(key, old, True)
        waiter = gate()
        told = _follow(flight, waiter, None)
        if told.all:
            try:
                while not _is_left(flight):
                    if waiter.acquire(True, -1.0 if flight.loop is None else _LOOK):
                        break
            finally:
                _waited(flight, waiter, asyncio._get_running_loop())
        if told.error is not None:
            raise told.error
        if told.value is MISS:
            return fn()
        if told.value is not _AGAIN:
            return cache._arrived(key, told.value)


def fill_many(
    cache: Loadable, keys: Iterable[Any], fn: Callable[[list[Any]], dict[Any, Any]]
) -> dict[Any, Any]:
    """The values of keys that were just missed. Those that nobody is loading are loaded by one ``fn(keys)``, which
    returns a value for each; the others are waited for after that, so that nobody waits for us meanwhile."""
    led: list[tuple[Any, Flight]] = []
    found: dict[Any, Any] = {}
    others = []
    begun = [Flight()]
    before = _leading.set(_leading.get())  # all led here is let go of at once, in any order
    try:
        for key in keys:
            mine, token = _start()
            begun.append(mine)
            led.append((key, mine))
            if _join(cache, key, mine) is not mine:
                led.pop()
                others.append(key)
                _ended(mine, token)
            elif (value := cache.peek(key, MISS)) is not MISS:
                found[key] = value
                led.pop()
                cache._leave(mine, False, False)
                _settle(mine, value)
        loaded = fn([key for key, _ in led]) if led else {}
        led.reverse()
        while led:
            key, mine = led[-1]
            found[key] = loaded[key]
            led.pop()
            _landed(cache, key, mine, loaded[key], None, 0)
    except BaseException as error:
        _forsaken(cache, led, error)
        raise
    finally:
        _forsaken(cache, led, None)  # where the error was lost
        for mine in begun:
            mine.ended = True
        _ended(mine, before)
    for key in others:
        found[key] = fill(cache, key, lambda key=key: fn([key])[key], None, 0)  # type: ignore[misc]
    return found


def _forsaken(cache: Loadable, led: list[tuple[Any, Flight]], error: BaseException | None) -> None:
    for pair in led:  # nothing is popped: a list that shrinks asks for memory
        try:
            if not pair[1].ended:
                _failed(cache, pair[1], error, False)
        except MemoryError:
            pass


async def aload(cache: Loadable, key: Any, fn: Loader, ttl: Any, stale: int) -> Any:
    """`cache.aget_or_set`; `stale` in ms."""
    value = cache.get(key, MISS)
    return value if value is not MISS else await afill(cache, key, fn, ttl, stale)


async def afill(cache: Loadable, key: Any, fn: Loader, ttl: Any, stale: int) -> Any:
    """`fill` for coroutines."""
    key = cache._once(key)
    while True:
        old = cache._stale(key, MISS, False) if stale else MISS
        mine, token = _start()
        flight = mine
        loaded = over = False
        try:
            flight = _join(cache, key, mine)
            if flight is mine:
                value = cache.peek(key, MISS)
                if value is MISS:
                    value = await _awaited(fn())
                    loaded = True
                    _landed(cache, key, mine, value, ttl, stale)
                else:
                    cache._leave(mine, False, False)
                    _settle(mine, value)
                over = True
                return value
        except BaseException as error:
            _failed(cache, mine, error, loaded)
            over = True
            if old is MISS or loaded or not isinstance(error, Exception):
                raise
        finally:
            try:
                if not over and flight is mine:  # its error was lost
                    _failed(cache, mine, None, False)
            finally:
                _ended(mine, token)
        if old is not MISS:
            return cache._stale(key, old, True)
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        told = _follow(flight, waiter, loop)
        if told.all:
            try:
                _look(flight, waiter, loop)
                await waiter
            finally:
                _waited(flight, waiter, None)
        if told.error is not None:
            raise told.error
        if told.value is MISS:
            return await _awaited(fn())
        if told.value is not _AGAIN:
            return cache._arrived(key, told.value)


async def _awaited(value: Any) -> Any:
    return await value if isawaitable(value) else value
