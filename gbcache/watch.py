# cython: freethreading_compatible=True, annotation_typing=False
"""`Watch`: a cache's events as an iterator, and the descriptor on which a reader sleeps.

Compiled: no signal's handler runs between a pull and where what it gave is kept.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from ._packed import Bell
from .events import Event, Kind
from .locks import Lock

if TYPE_CHECKING:
    from .notify import Hub

__all__ = ["Cursor", "Wake", "Watch"]


class Cursor(Protocol):
    """A place in a store's events."""

    def pull(self, most: int) -> Sequence[Event]: ...
    def pending(self) -> bool: ...
    def finish(self) -> None: ...


def _set(rung: asyncio.Future[None]) -> None:
    if not rung.done():
        rung.set_result(None)


class Wake:
    """A descriptor that news makes readable: an eventfd where there is one, else a pipe."""

    def __init__(self) -> None:
        self.fd = (
            self._write
        ) = -1  # so that nothing is made between a descriptor and its place here
        if hasattr(os, "eventfd"):
            self.fd = self._write = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self.fd, self._write = os.pipe()
            os.set_blocking(self.fd, False)
            os.set_blocking(self._write, False)
        self.bell = Bell(self._write)
        self.address = self.bell.address
        """The bell's, known beforehand: who takes it away makes no object, where memory is short."""

    def ring(self) -> None:
        """Wakes whoever sleeps, news or not."""
        try:  # noqa: SIM105, a `with`
            os.write(self._write, (1).to_bytes(8, "little"))
        except OSError:  # full: it is rung already
            pass

    def drain(self) -> None:
        """Makes the descriptor unreadable again."""
        try:  # noqa: SIM105, a `with`
            os.read(self.fd, 4096)
        except BlockingIOError:
            pass

    def sleep(self, timeout: float | None) -> None:
        """Until it is rung, `timeout` seconds at most."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.poll(None if timeout is None else max(0, int(timeout * 1000.0 + 0.999)))
        self.drain()

    def close(self, shut: Callable[[int], None] = os.close) -> None:
        """`shut` is held here: at the interpreter's end the module's names may be gone before its last objects."""
        fd, write = self.fd, self._write  # nothing is made here: memory may be short
        self.fd = self._write = -1
        if write not in (fd, -1):
            shut(write)
        if fd != -1:
            shut(fd)

    def __del__(self) -> None:
        if hasattr(self, "_write"):
            self.close()


class Watch:
    """A cache's events, from now on (or from a number on), in order. Made by `cache.watch`.

    An iterator that waits for the next one, an async iterator that does so on the running loop, and `read`
    and `aread` for many at a time. One reader at a time. It ends once it, or the cache, is closed and what
    was recorded before has been read. A context manager; dropping it closes it too.
    """

    def __init__(self, hub: Hub, cursor: Cursor, kinds: int, values: bool) -> None:
        self._hub, self._cursor, self._cache = hub, cursor, hub._cache()
        self.kinds, self.values = kinds, values
        self._batch: Sequence[Event] = ()  # the one that is being iterated over
        self._at = self._sound = 0  # its next; how many the next read may take of it, if not all
        self._cut = -1  # where it was that an interrupt came
        self._ended = False  # the cache is closed: what is left can be read
        self._closed = False  # it is: nothing can
        self._wake = Wake()
        self._closing = Lock()
        try:
            hub.join(self, self._wake)
        except BaseException:
            self._wake.close()  # first: it makes nothing
            hub.silence(self._wake)
            raise

    @property
    def closed(self) -> bool:
        """Whether nothing more is recorded for it."""
        return self._ended or self._closed

    def close(self) -> None:
        """Ends it: what was not read is dropped, who waits is woken."""
        self._closing.acquire()
        try:
            closed, self._closed = self._closed, True
        finally:
            self._closing.release()
        self._batch, self._at = (), 0
        if not closed:
            self._hub.leave(self, self._wake)
        self._wake.ring()

    def end(self) -> None:
        """The cache is about to be closed: what is left can still be read."""
        self._hub.silence(self._wake)
        self._cursor.finish()
        self._ended = True
        self._wake.ring()

    def orphan(self) -> None:
        """In a forked child: it is the parent's."""
        self._hub.silence(self._wake)
        self._batch, self._at, self._closed = (), 0, True

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Watch:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_wake") and self._cache is not None:
            # Itself: the hub's reference may be cleared already.
            self._cache._bells(self._wake.address, False)
            self._closed = True  # its cycle may come back

    def _asleep(self) -> bool:
        """Arms the bell; False if there is news already, or nothing to wait for."""
        self._wake.bell.arm()
        if self.closed or self._cursor.pending():
            self._wake.bell.disarm()
            return False
        return True

    def _take(self, most: int) -> Sequence[Event]:
        """What an iteration has not come to, else the next."""
        if self._closed:
            return ()
        begun, batch = self._at, self._batch
        rest: list[Event] = []
        most, self._sound = min(most, self._sound or most), 0
        for at in range(begun, min(begun + most, len(batch))):
            if self._batch is not batch:  # closed meanwhile
                return ()
            self._at = at + 1  # first: one that does not decode is passed over
            try:
                rest.append(batch[at])
            except Exception:
                if not rest:
                    raise
                self._at = at  # the next read begins with it
                break
            except BaseException as error:  # at once; the next read ends before it
                if rest:
                    self._at, self._sound = begun, len(rest)
                elif isinstance(error, KeyboardInterrupt):
                    self._interrupted(at)
                raise
        return rest or self._cursor.pull(most)

    def read(self, most: int = 10000, timeout: float | None = None) -> Sequence[Event]:
        """The next events, at most `most`, often fewer; waits for the first, `timeout` seconds at most.
        Empty after that time, and once the watch has ended.

        Of a `Cache`, a Batch: a sequence that makes each Event when it is looked at (0.1 us; until then an
        event costs 0.01 us), whose ``keys()`` gives the keys alone.
        """
        _check(most)
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            events = self._take(most)
            if events or self.closed:
                return events or self._take(most)
            if self._asleep():
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    self._wake.bell.disarm()
                    return events
                self._wake.sleep(left)
            elif until is not None and time.monotonic() >= until:
                return events
            else:  # a filter takes none of what comes: handlers have their turn
                time.sleep(0)

    async def aread(self, most: int = 10000) -> Sequence[Event]:
        """`read` for coroutines: waits on the running loop."""
        _check(most)
        while True:
            events = self._take(most)
            if events or self.closed:
                return events or self._take(most)
            if self._asleep():
                await self._asleep_on(asyncio.get_running_loop())
            else:  # what the filter rejects is not waited for: others' turn
                await asyncio.sleep(0)

    async def _asleep_on(self, loop: asyncio.AbstractEventLoop) -> None:
        rung: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._wake.fd, _set, rung)
        try:
            await rung
        finally:
            loop.remove_reader(self._wake.fd)
            self._wake.drain()

    def __iter__(self) -> Iterator[Event]:
        return self

    def _next(self) -> Event | None:
        """Of the batch; None: it is at its end. Another thread may close it between any two steps."""
        batch, at = self._batch, self._at
        if at >= len(batch):
            return None
        self._at = at + 1  # first: one that does not decode is passed over
        try:
            return batch[at]
        except KeyboardInterrupt:
            self._interrupted(at)
            raise

    def _interrupted(self, at: int) -> None:
        """The event is given again, once: a codec may raise that each time."""
        if self._cut != at:
            self._cut = self._at = at

    def _goes_on(self, batch: Sequence[Event]) -> bool:
        self._batch, self._at, self._cut = batch, 0, -1
        if self._closed:  # meanwhile: what was not read is dropped
            self._batch = ()
        return len(self._batch) > 0

    def __next__(self) -> Event:
        while (event := self._next()) is None:
            if not self._goes_on(self.read()):
                raise StopIteration
        return event

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Event:
        while (event := self._next()) is None:
            if not self._goes_on(await self.aread()):
                raise StopAsyncIteration
        return event

    def __repr__(self) -> str:
        return f"<Watch{' closed' if self.closed else ''} of {self._hub.name!r}>"


def _check(most: int) -> None:
    if most < 2:  # a `lost` must never be all that ever fits
        raise ValueError(f"most={most!r} is not above 1")


def drain(cursor: Cursor, last: int) -> Iterator[Event]:
    """The events of a cursor up to the one with the number `last`."""
    seq = -1
    while seq < last:
        events = cursor.pull(1000)
        if not events:
            return
        for event in events:
            seq = event.seq
            if seq > last:
                beyond = seq - last
                if event.kind is Kind.LOST and event.value > beyond:  # of those up to `last`, too
                    yield event._replace(seq=last, value=event.value - beyond)
                return
            yield event
