# cython: freethreading_compatible=True
"""Those who are told of a cache's events: in a thread or at once, or on an asyncio loop. `notify` has them all."""

from __future__ import annotations

import _thread
import asyncio
import inspect
import sys
import weakref
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

from ._packed import report
from .events import Event, Kind
from .locks import SHORT
from .watch import Cursor, Wake

__all__ = ["OnLoop", "Subscription"]

TURN = 256
"""Events one subscriber is given before the next one's turn."""
PATIENCE = 50
"""Times they are taken again where memory is short. Then one that does not decode is passed over."""
PAUSE = 0.05
"""Seconds until a task that was cancelled, or lacked memory, is followed by another."""


class Subscription:
    """A function that is told of a cache's events. Made by `cache.subscribe`; a context manager."""

    def __init__(self, hub: Any, fn: Callable[[Event], Any], cursor: Cursor, kinds: int, values: bool,
                 delivery: str | asyncio.AbstractEventLoop, weak: bool) -> None:  # fmt: skip
        self._hub, self._cursor = hub, cursor
        self.kinds, self.values, self.delivery = kinds, values, delivery
        self.closed = False
        """Whether it is told nothing more."""
        self._batch: Sequence[Event] = ()
        self._at = self._again = 0  # of the batch; times in a row that memory was short for it
        self._taken: Sequence[Event] = ()  # of those, what is given now, and how many of them were
        self._given = 0
        self.delivered = self.lost = self.errors = 0
        """Events given to the function; events lost; times it raised."""
        self._fn: Callable[[], Callable[[Event], Any] | None]
        if not weak:
            self._fn = lambda: fn
        elif isinstance(fn, MethodType):
            self._fn = weakref.WeakMethod(fn)
        else:
            self._fn = weakref.ref(fn)

    def close(self) -> None:
        """Tells it nothing more. The call under way, if any, goes on."""
        if not self.closed:
            self.closed = True
            self._hub.leave(self)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def end(self) -> None:
        """The cache is about to be closed: what is left is still delivered."""
        self._cursor.finish()

    def orphan(self) -> None:
        """In a forked child: it is the parent's."""
        self.closed = True

    def pending(self) -> bool:
        return not self.closed and (
            self._given < len(self._taken) or self._at < len(self._batch) or self._cursor.pending()
        )

    def turn(self) -> bool:
        """Delivers some events; whether there were any."""
        fn: Any = self._fn()  # first: held weakly, it may go while a value is decoded
        events = self.take()
        while self._given < len(events) and not self.closed:
            self._given += 1
            try:
                fn(events[self._given - 1])
            except BaseException as error:
                self._failed(error)
        self._taken, self._given = (), 0
        return len(events) > 0 or self.pending()

    def take(self) -> Sequence[Event]:
        """The next events, counted as delivered; none if it is closed, or its function is gone. The same again, until
        all are given: what gives them may end in the middle."""
        if self._fn() is None:
            self.close()
        if self.closed:
            return []
        if self._given < len(self._taken):
            return self._taken
        if self._at >= len(self._batch):
            self._batch = self._cursor.pull(TURN)
            self._at = 0
        at, events = self._at, []
        try:
            while self._at < len(self._batch):
                try:
                    events.append(self._batch[self._at])
                except BaseException as error:  # a value that does not decode: it is passed over
                    if (
                        isinstance(error, MemoryError)
                        and self._again < PATIENCE
                        and self.delivery == "thread"
                    ):
                        raise
                    self._failed(error)
                self._at += 1
            missed = events[0].value if events and events[0].kind is Kind.LOST else 0
            delivered, lost = self.delivered + len(events) - bool(missed), self.lost + missed
        except MemoryError:  # none of them was given: all are taken again
            self._at = at
            self._again += 1
            raise
        self.delivered, self.lost, self._again = delivered, lost, 0
        self._batch, self._at = (), 0
        self._taken, self._given = events, 0
        return events

    def _failed(self, error: BaseException) -> None:
        self.errors += 1
        counting = self._hub.counting
        counting.acquire()
        try:
            self._hub.errors += 1
        finally:
            counting.release()
        if isinstance(error, KeyboardInterrupt):  # meant for the program, not for the subscriber
            if self.delivery == "inline":
                self._hub.interrupted = True  # C sees to it, once the operation is over
            else:
                _thread.interrupt_main()
        report(error, self._fn())

    def __repr__(self) -> str:
        return f"<Subscription{' closed' if self.closed else ''} of {self._hub.name!r}>"


class OnLoop(Subscription):
    """One that is told on an asyncio loop; a coroutine function is awaited before the next event.

    Its task ends where there is no news, and the next begins once the bell is rung. The loop has the descriptor, and us
    only weakly: it outlives the caches.
    """

    def start(self, loop: asyncio.AbstractEventLoop, cache: Any) -> None:
        self._loop, self._cache = loop, cache
        self._task: asyncio.Task[None] | None = None
        self._reads = self._ended = False
        self._wake = Wake()
        try:
            self._hub.join(self, self._wake)
            loop.call_soon_threadsafe(_heard, weakref.ref(self), self._wake)
        except BaseException:
            self.closed = True
            self._hub.leave(self, self._wake)
            self._wake.close()
            raise

    def rung(self) -> None:
        """There may be news. On the loop, as all that follows."""
        if self.closed or not (self._task is None or self._task.done()):
            return
        try:
            if not self._reads:
                self._loop.add_reader(self._wake.fd, _heard, weakref.ref(self), self._wake)
                self._reads = True
            self._task = _task(self._loop, self._run())
            self._task.add_done_callback(self._over)
        except SHORT:
            self._later()
            raise

    async def _run(self) -> None:
        task: Any = asyncio.current_task()
        while not self.closed:
            fn: Any = self._fn()
            events = self.take()
            while self._given < len(events) and not self.closed:
                self._given += 1
                try:
                    said = fn(events[self._given - 1])
                    if inspect.isawaitable(said):
                        await said
                except GeneratorExit:
                    raise
                except BaseException as error:
                    if isinstance(error, asyncio.CancelledError) and task.cancelling():
                        raise  # it is we who were cancelled
                    self._failed(error)
            self._taken, self._given = (), 0
            if not events:
                self._wake.bell.arm()
                if not self.pending():
                    if self._ended:
                        self.closed = True
                        _take_off(self._loop, self._wake)
                    return
                self._wake.bell.disarm()  # and of what the filter rejects, so much
            fn = None
            await asyncio.sleep(0)  # others' turn

    def _over(self, task: asyncio.Task[None]) -> None:
        """If the task did not end of itself, another goes on: later, for the loop may be about to end."""
        if self.closed:
            return
        if task.cancelled():
            self._later()
        elif (error := task.exception()) is not None:
            self._later()
            report(error, self._fn())

    def _later(self) -> None:
        try:
            self._loop.call_later(PAUSE, _heard, weakref.ref(self), self._wake)
        except SHORT:
            self._wake.bell.arm()  # with the next news, then

    def _call(self, fn: Callable[..., None], *args: Any) -> None:
        """From any thread, also the collector's: on the loop, if it is not over."""
        try:
            self._loop.call_soon_threadsafe(fn, *args)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            self._wake.close()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._hub.leave(self, self._wake)
            self._call(_take_off, self._loop, self._wake)

    def orphan(self) -> None:
        super().orphan()
        self._hub.silence(self._wake)

    def end(self) -> None:
        self._hub.silence(self._wake)
        super().end()
        self._ended = True
        self._call(_heard, weakref.ref(self), self._wake)

    def __del__(self) -> None:
        """Nobody has the cache any more. Not through the hub, whose weak reference to it is gone already."""
        if not self.closed and hasattr(self, "_wake"):
            self.closed = True  # its cycle may come back
            self._cache._bells(self._wake.address, False)
            self._call(_take_off, self._loop, self._wake)


def _heard(ref: weakref.ref[OnLoop], wake: Wake) -> None:
    if wake.fd != -1:
        wake.drain()
    sub = ref()
    if sub is not None:
        sub.rung()


def _take_off(loop: asyncio.AbstractEventLoop, wake: Wake) -> None:
    """On the loop, or else another descriptor of this number would be taken for it."""
    if wake.fd != -1:
        loop.remove_reader(wake.fd)
        wake.close()


if sys.version_info >= (3, 11):

    def _task(loop: asyncio.AbstractEventLoop, run: Any) -> asyncio.Task[None]:
        return loop.create_task(run)

else:

    class _Task(asyncio.Task[None]):
        """Knows whether it was cancelled itself, or awaited what was."""

        asked = 0

        def cancel(self, msg: Any = None) -> bool:
            self.asked += 1
            return super().cancel(msg)

        def cancelling(self) -> int:
            return self.asked

    def _task(loop: asyncio.AbstractEventLoop, run: Any) -> asyncio.Task[None]:
        return _Task(run, loop=loop)
