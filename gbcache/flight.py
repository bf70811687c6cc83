"""One flight per key: whoever misses first loads, the others wait for what comes.

A flight belongs to one cache and one key. Its leader runs the user's function with no lock held; followers
wait in their thread or their task, on any loop. A follower whose waiting would close a cycle computes for
itself instead. Whatever changes the key meanwhile voids the flight: those who wait get what was loaded, it
is not stored, and who comes later starts anew.

After singleflight (Go, golang.org/x/sync), made safe for re-entrance, loops and cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import ContextVar
from datetime import timedelta
from inspect import isawaitable
from typing import Any, Protocol

from .errors import BudgetError, ClosedError

__all__ = ["Flight", "aload", "load"]

_MISS = object()
_AGAIN = object()
"""What followers are told when the leader was cancelled or interrupted: one of them leads now."""


class Loadable(Protocol):
    """What a flight needs of a cache."""

    _flights: dict[Any, Flight]

    def get(self, key: Any, default: Any = None) -> Any: ...
    def _land(self, key: Any, value: Any, ttl: Any, flight: bytearray) -> bool: ...
    def _leave(self, key: Any, flight: bytearray) -> None: ...
    def _arrived(self, key: Any, value: Any) -> Any: ...


class Flight(bytearray):
    """One load under way. Its only byte is set by whoever changes the key (C does): then it is void."""

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        super().__init__(1)
        self.loop = loop
        self.process = os.getpid()
        self.result: Future[Any] = Future()
        self.waits: list[Flight] = []
        """What its leader, or tasks of its leader, wait for."""
        self.successors: list[Flight] = []
        """Where it was voided: the first of these is the flight of those who came later."""


_leading: ContextVar[tuple[Flight, ...]] = ContextVar("gbcache_leading", default=())
"""The flights this thread, task, or a task it comes from, is loading for."""
_graph = threading.RLock()
"""Guards who waits for whom. Held for a few steps over flights, never while user code runs."""


def _in_child() -> None:
    global _graph
    _graph = threading.RLock()  # whoever held it is not here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _join(cache: Loadable, key: Any, mine: Flight) -> Flight:
    """The flight of the key: `mine`, which then is ours to lead, or another's. Runs ``__eq__``."""
    flight = cache._flights.setdefault(key, mine)
    if flight.process != mine.process:  # its leader did not come along when we were forked
        flight[0] = 1
    while flight is not mine and flight[0]:
        flight.successors.append(mine)  # atomic: the first to append leads
        flight = flight.successors[0]
    if flight is mine:
        cache._flights[key] = mine
    return flight


def _wait_for(flight: Flight, blocking: bool) -> bool:
    """Notes that the flights we lead wait for `flight`; False if that would close a cycle."""
    ours = _leading.get()
    loop = _running_loop() if blocking else None
    with _graph:
        open_, seen = [flight], set()
        while open_:
            at = open_.pop()
            if at in ours or (loop is not None and at.loop is loop):
                return False
            if at not in seen:
                seen.add(at)
                open_ += at.waits
        for one in ours:
            one.waits.append(flight)
    return True


def _waited(flight: Flight) -> None:
    with _graph:
        for one in _leading.get():
            if flight in one.waits:
                one.waits.remove(flight)


def _landed(cache: Loadable, key: Any, flight: Flight, value: Any, ttl: Any) -> None:
    """The leader's last step but one: the value to the cache, then to those who wait."""
    try:
        with contextlib.suppress(BudgetError, ClosedError):
            # Counted as a reject, or nobody's any more; what was asked for is there.
            cache._land(key, value, ttl, flight)
    finally:
        cache._leave(key, flight)
    flight.result.set_result(value)


def _failed(cache: Loadable, key: Any, flight: Flight, error: BaseException) -> None:
    if flight.result.done():
        return
    cache._leave(key, flight)
    if isinstance(error, Exception):
        flight.result.set_exception(error)
    else:
        flight.result.set_result(_AGAIN)  # cancelled, interrupted: that is the leader's own affair


def load(
    cache: Loadable, key: Any, fn: Callable[[], Any], ttl: float | timedelta | object | None
) -> Any:
    """`cache.get_or_set`."""
    while True:
        value = cache.get(key, _MISS)
        if value is not _MISS:
            return value
        mine = Flight(_running_loop())
        token = _leading.set((*_leading.get(), mine))
        try:  # an interrupt may come anywhere from here on
            flight = _join(cache, key, mine)
            if flight is mine:
                value = fn()
                _landed(cache, key, mine, value, ttl)
                return value
        except BaseException as error:
            _failed(cache, key, mine, error)
            raise
        finally:
            _leading.reset(token)
        if not _wait_for(flight, blocking=True):
            return fn()
        try:
            value = flight.result.result()
        finally:
            _waited(flight)
        if value is not _AGAIN:
            return cache._arrived(key, value)


async def aload(
    cache: Loadable,
    key: Any,
    fn: Callable[[], Awaitable[Any]],
    ttl: float | timedelta | object | None,
) -> Any:
    """`cache.aget_or_set`."""
    while True:
        value = cache.get(key, _MISS)
        if value is not _MISS:
            return value
        mine = Flight(asyncio.get_running_loop())
        token = _leading.set((*_leading.get(), mine))
        try:
            flight = _join(cache, key, mine)
            if flight is mine:
                value = await _awaited(fn())
                _landed(cache, key, mine, value, ttl)
                return value
        except BaseException as error:
            _failed(cache, key, mine, error)
            raise
        finally:
            _leading.reset(token)
        if not _wait_for(flight, blocking=False):
            return await _awaited(fn())
        try:
            # Shielded: a follower that is cancelled cancels nobody else's result.
            value = await asyncio.shield(asyncio.wrap_future(flight.result))
        finally:
            _waited(flight)
        if value is not _AGAIN:
            return cache._arrived(key, value)


async def _awaited(value: Any) -> Any:
    return await value if isawaitable(value) else value
