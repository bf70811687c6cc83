# cython: freethreading_compatible=True
"""Who is told of a cache's changes: subscribers in the dispatcher's thread, at once, or on a loop.

Events are recorded under the cache's lock (`csrc/ring.h`, `_queue.h`) and delivered after it. Each reader has
its own cursor, so that a slow one loses events, and is told so, and never blocks anybody.
"""

from __future__ import annotations

import _thread
import asyncio
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from . import dispatch, forks
from .errors import ClosedError
from .events import ALL, Event, bits_of, check_prefix
from .subscribers import OnLoop, Subscription
from .watch import Cursor, Wake, Watch, drain

__all__ = ["Hub", "Subscription"]


class Hub:
    """All who read one cache's events. Belongs to the cache."""

    def __init__(self, cache: Any, room: int, reserved: bool) -> None:
        self._cache = weakref.ref(cache)
        self.name, self._room = cache.name, room
        self._reserved = ALL if reserved else 0
        self.errors = 0
        """Times a subscriber raised."""
        self.counting = threading.RLock()  # several threads deliver
        self.interrupted = False
        """Whether one that is called inline was interrupted."""
        self._changing = threading.RLock()
        self._draining = threading.Lock()
        self._ending = self._ended = False
        """Whether the cache is being closed, and whether all who read it have been told."""
        self._watches: dict[int, weakref.ref[Watch]] = {}
        """By id: a dict can be gone through while the collector takes out of it."""
        self._subscribers: tuple[
            Subscription, ...
        ] = ()  # another one for each change: it is gone through without a lock
        _hubs.add(self)
        if reserved:
            cache._listen(ALL, False, room)

    def own(self, cache: Any) -> None:
        """It was in a dead cycle, from which a ``__del__`` brought it back: weak references were cleared (all of them,
        before CPython 3.14). Its watches, and those on loops, ended there."""
        changing = self._changing
        changing.acquire()
        try:
            self._subscribers = tuple(sub for sub in self._subscribers if not sub.closed)
            self._cache = weakref.ref(cache)
            _hubs.add(self)
        finally:
            changing.release()

    # --- who reads ---------------------------------------------------------------------------

    def subscribe(self, fn: Callable[[Event], Any], kinds: Any, prefix: Any, values: bool,
                  delivery: Any, weak: bool) -> Subscription:  # fmt: skip
        if not callable(fn):
            raise TypeError(f"subscribe: {fn!r} is not callable")
        loop = asyncio.get_running_loop() if delivery == "asyncio" else delivery
        if inspect.iscoroutinefunction(fn) and isinstance(loop, str):
            raise TypeError(
                f"subscribe: {fn!r} is a coroutine function: it needs delivery='asyncio'"
            )
        if not isinstance(loop, asyncio.AbstractEventLoop) and loop not in ("thread", "inline"):
            raise ValueError(
                f"delivery={delivery!r} is not 'thread', 'inline', 'asyncio' or a loop"
            )
        mask = bits_of(kinds)
        cursor = self._open(None, mask, prefix, values)
        if isinstance(loop, asyncio.AbstractEventLoop):
            sub = OnLoop(self, fn, cursor, mask, values, loop, weak)
            sub.start(loop, self._cache())
            return sub
        one = Subscription(self, fn, cursor, mask, values, loop, weak)
        try:
            self.join(one, None)
            dispatch.the().begin()
        except BaseException:
            one.close()
            raise
        return one

    def watch(self, kinds: Any, prefix: Any, values: bool, since: int | None) -> Watch:
        mask = bits_of(kinds)
        return Watch(self, self._open(since, mask, prefix, values), mask, values)

    def changes(self, since: int, kinds: Any, prefix: Any) -> Iterator[Event]:
        cache = self._cache()
        assert cache is not None
        check_prefix(prefix)
        self._check_since(since)
        return drain(cache._cursor(since, bits_of(kinds), prefix, True), cache._seq())

    def _check_since(self, since: int | None) -> None:
        last = self._cache()._seq()  # type: ignore[union-attr]
        if since is not None and not 0 <= since <= last:
            raise ValueError(f"since={since!r} is not from 0 to {last}, the number of the last event: each "
                             "cache numbers its own from 1")  # fmt: skip

    def _open(self, since: int | None, mask: int, prefix: Any, values: bool) -> Cursor:
        cache = self._cache()
        assert cache is not None
        check_prefix(prefix)
        if since is not None:
            self._check_since(since)
        if mask:  # who holds the lock is not to wait for others: they may want it
            cache._ring(self._room)
        changing = self._changing  # another one in a forked child
        forks.take(changing)
        try:  # the ring first: a cursor belongs to one
            self._still_open()
            self._listen(mask, values)
            cursor: Cursor = cache._cursor(since, mask, prefix, bool(values))
        finally:
            changing.release()
        return cursor

    def _still_open(self) -> None:
        """Who came later would never be told of its end."""
        cache = self._cache()
        if self._ending or cache is None or cache.closed:
            raise ClosedError("the cache is closed")

    def _readers(self) -> list[Watch | Subscription]:
        alive = [watch for ref in list(self._watches.values()) if (watch := ref()) is not None]
        return [*alive, *self._subscribers]

    def _listen(self, mask: int = 0, values: bool = False) -> None:
        """Has recorded what anybody wants: those who read, and who is about to with `mask`."""
        cache = self._cache()
        if cache is None or cache.closed:
            return
        for reader in self._readers():
            mask |= reader.kinds
            values = values or reader.values
        try:
            cache._listen(mask | self._reserved, bool(values), self._room)
        except ClosedError:  # meanwhile
            return

    def join(self, reader: Watch | Subscription, wake: Wake | None) -> None:
        """Where this fails, the reader leaves again."""
        cache = self._cache()
        changing = self._changing  # another one in a forked child
        forks.take(changing)
        try:
            self._still_open()
            self._drop_stranded()
            if wake is not None and cache is not None:
                cache._bells(wake.address, True)
            if isinstance(reader, Watch):
                key, watches = id(reader), self._watches
                watches[key] = weakref.ref(reader, lambda _: watches.pop(key, None))
            else:
                self._subscribers = (*self._subscribers, reader)
                self._hear()
            self._listen()
        finally:
            changing.release()

    def _drop_stranded(self) -> None:
        """Those whose loop is closed: nobody can be told there any more, and each has a descriptor."""
        for sub in self._subscribers:
            loop = sub.delivery
            if isinstance(loop, asyncio.AbstractEventLoop) and loop.is_closed():
                sub.close()

    def silence(self, wake: Wake) -> None:
        """Nobody rings it any more. Takes no lock: the collector may call it anywhere."""
        cache = self._cache()
        if cache is not None:
            cache._bells(wake.address, False)

    def leave(self, reader: Watch | Subscription, wake: Wake | None = None) -> None:
        if forks.put_off(partial(self.leave, reader, wake)):
            return
        cache = self._cache()
        changing = self._changing  # another one in a forked child
        forks.take(changing)
        try:
            if wake is not None and cache is not None:
                cache._bells(wake.address, False)
            if isinstance(reader, Watch):
                self._watches.pop(id(reader), None)
            elif reader in self._subscribers:
                self._without(reader)
                self._hear()
            self._listen()
        finally:
            changing.release()

    def _without(self, reader: Subscription) -> None:
        self._subscribers = tuple(sub for sub in self._subscribers if sub is not reader)

    def _hear(self) -> None:
        """Inline and thread delivery as they are needed now."""
        cache = self._cache()
        if cache is None:
            return
        how = {sub.delivery for sub in self._subscribers}
        cache._hear(self.inline if "inline" in how else None)
        if "thread" in how:
            dispatch.the().serve(self, cache)
        else:
            dispatch.the().forget(self, cache)

    # --- delivery ------------------------------------------------------------------------------

    def inline(self) -> bool:
        """After an operation, in its thread. One thread drains at a time; what a subscriber changes is
        delivered by the one that drains already. Whether a subscriber was interrupted."""
        draining = self._draining  # another one in a forked child
        while draining.acquire(blocking=False):
            try:
                while self._turn("inline"):
                    pass
            finally:
                draining.release()
            if not self.pending("inline"):
                break
        interrupted, self.interrupted = self.interrupted, False
        return interrupted

    def _turn(self, delivery: str) -> bool:
        subs = [sub for sub in self._subscribers if sub.delivery == delivery]
        return sum(sub.turn() for sub in subs) > 0  # each has its turn

    def pending(self, delivery: str) -> bool:
        return any(sub.delivery == delivery and sub.pending() for sub in self._subscribers)

    def turn(self) -> bool:
        """The dispatcher's: some events to each; whether there were any."""
        return self._turn("thread")

    def closing(self) -> None:
        """The cache is about to be closed: what was recorded can still be read, and is delivered. Again, where that was
        cut off."""
        if self._ended:
            return
        changing = self._changing  # another one in a forked child
        forks.take(changing)
        try:
            self._ending = True
            for reader in self._readers():
                reader.end()
        finally:
            changing.release()
        if self.inline():
            _thread.interrupt_main()
        draining = self._draining
        if draining.acquire(blocking=False):  # else another thread is at it
            self.over("inline")
            draining.release()
        dispatch.the().finish(self)
        self._ended = True

    def over(self, delivery: str) -> None:
        """All is delivered of a closed cache."""
        for sub in self._subscribers:
            if sub.delivery == delivery:
                sub.closed = True

    def orphan(self, dead: Wake | None) -> None:
        """In a forked child: readers, and the dispatcher's bell, are the parent's."""
        self._changing, self._draining = threading.RLock(), threading.Lock()
        self.counting = threading.RLock()
        self._ending = self._ended = False
        cache = self._cache()
        if dead is not None:
            self.silence(dead)
        for reader in self._readers():
            reader.orphan()
        self._watches.clear()
        self._subscribers = ()
        if cache is not None and not cache.closed:
            cache._hear(None)
            self._listen()


_hubs: weakref.WeakSet[Hub] = weakref.WeakSet()
_dead: Wake | None = None


def _in_child() -> None:
    global _dead
    _dead = dispatch.reborn() or _dead  # of the first call, if this is another
    for hub in list(_hubs):
        hub.orphan(_dead)
    _dead = None


forks.in_child(_in_child)
