"""Write-behind: what is on its way to the far side, in a bounded buffer, for a bounded time."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from . import ends, pending
from .codec import Codec
from .errors import ClosedError, FarError
from .far import Far
from .housekeeper import join
from .locks import SHORT, Lock, Monitor, endure
from .pending import AtRisk, Pending

__all__ = ["Behind"]

_BATCH = 10_000
"""Writes given to the far side at once, at most."""
_FEW = 2
"""Writes that fail and are alone may do so by their own fault: another is let by, which shows."""
_NEVER = float("inf")


class Behind:
    """A buffer in front of a far side, emptied by one thread.

    Writes lie in generations, in the order they came; within one, a later write to a key takes the place of the one
    before. So those of one key keep their order. `put` waits while the buffer is full or its oldest write is older than
    0.7 `interval`; it raises the far side's error only if that keeps failing too. Nothing is dropped but what cannot be
    stored (a TypeError, say), which is reported and counted; and `word` is told, which is also told when the far side
    took something. What it has no room for, or refuses, or fails of while it takes others, steps aside, and is tried
    again beside the rest.
    """

    def __init__(
        self, far: Far, codec: Codec | None, max_bytes: int, interval: float, word: Any
    ) -> None:
        self.far, self.codec, self.max_bytes, self.interval = far, codec, max_bytes, interval
        self._word = word  # `refused` and `answered`
        self._ample = max_bytes // 2  # up to so many bytes there is room, and no hurry
        self._late = interval * 0.7
        """Seconds: the oldest write is that old, and writers wait. What is being written has the rest."""
        self.refused = self.errors = 0  # writes refused for good; times the far side failed
        self.error: FarError | None = None
        """Why the last attempt failed, if it did."""
        self._failed = self._row = 0  # attempts, ever; of them, since the last that did not
        self._newest: dict[Any, Pending] = {}
        """The last of the generations: who reads it without the lock finds one or the other, and no row in between."""
        self._generations = deque([self._newest])
        self._mark = bytearray(1)
        """What was put may land in memory while this is not set."""
        self._since = _NEVER
        """When the oldest write came."""
        self._bytes = self._hurried = self._starter = 0  # who waits for it to empty; who starts it
        self.aside, self._tried = pending.Aside(), False
        """What has no room, none of it in `_since`; and whether it was tried last."""
        self._over = False
        """No write is taken any more. It is empty then, or `close` waits for that."""
        self._closing, self._change = Lock(), Monitor()
        self._thread: threading.Thread | None = None
        self._begun: threading.Thread | None = None  # the same, from its first turn on
        ends.buffers.add(self)

    # --- writers ---------------------------------------------------------------------------------

    def put(self, key: Any, write: Pending) -> bytearray | None:
        """Queues a write, once there is room; FarError: the far side fails. None: it is too long for the buffer. Else
        a byte that is set once memory may not get it: a later one came, somebody else wrote, the far side may have it.
        There is one for all, so that none is made for each: who is between two steps then loses a copy, no more."""
        size = write[4]
        if size * 2 > self.max_bytes:
            return None
        if self._thread is None and not self._over:
            self._start()
        with self._change:
            if (
                self._since + self._late < write[3]
                or self._bytes + size > self._ample
                or self._thread is None
                or self._over
            ):
                self._make_room(size, write[3], (key,), write[0] is pending.REMOVED)
            self._add(key, write)
            return self._mark

    def put_many(self, writes: Mapping[Any, Pending]) -> bytearray | None:
        """`put` for some at once; None: they are too long together, and nothing was done."""
        size = sum([write[4] for write in writes.values()])
        if size * 2 > self.max_bytes:
            return None
        if self._thread is None and not self._over:
            self._start()
        with self._change:
            self._make_room(size, time.monotonic(), writes)
            for key, write in writes.items():
                self._add(key, write)
            return self._mark

    def _make_room(self, size: int, now: float, keys: Iterable[Any], gone: bool = False) -> None:
        if self.aside.writes:  # what it takes the place of goes
            size -= self.aside.size_of(keys)
        if self._is_crowded(size, now, gone):
            self._wait_for_room(size, gone)
        if self._over:
            raise ClosedError("the tier is closed")
        if self._thread is None:
            self._start()
        elif self._bytes - self.aside.bytes > self._ample:
            self._change.tell()

    def _add(self, key: Any, write: Pending) -> None:
        newest = self._newest = self._generations[-1]  # a handler may have cut off who began it
        aside = self.aside.writes
        old, total = newest.get(key), self._bytes + write[4]
        if old is not None or (
            (aside or len(self._generations) > 1) and self.last(key) is not None
        ):
            fresh = bytearray(1)
            self._mark[0], self._mark = 1, fresh
        if old is not None:  # its place in the row is the older one's, and so is its age
            write = (*write[:3], old[3], write[4])
            total -= old[4]
        elif len(newest) >= _BATCH:
            newest = {}
            self._generations.append(newest)
            self._newest = newest
        if self._since == _NEVER:
            ends.waiting.add(self)
            self._change.tell()  # the thread waits for a first one
            self._since = write[3]
        self._bytes = total
        newest[key] = write  # last: if that is cut off, a generation without it is as good
        if aside:
            self._bytes -= self.aside.pop(key)

    def void(self) -> None:
        """Nothing that was put so far lands in memory any more, if it has not yet."""
        with self._change:
            fresh = bytearray(1)
            self._mark[0], self._mark = 1, fresh

    def _most(self, gone: bool) -> int:
        """Bytes. A removal makes room: what has none (up to so much again) does not keep it out."""
        return self.max_bytes + (min(self.aside.bytes, self.max_bytes) if gone else 0)

    def _is_crowded(self, size: int, now: float, gone: bool) -> bool:
        few = self._row > 1 and sum(map(len, self._generations)) <= _FEW
        return self._bytes + size > self._most(gone) or (now > self._since + self._late and not few)

    @property
    def _own(self) -> bool:
        """Whether this is the thread: the collector may run a ``__del__`` in it."""
        return self._thread is threading.current_thread()

    @property
    def _nested(self) -> bool:
        """Whether this thread was interrupted as it put something: to wait would give the lock up beneath it, and what
        it has in its hand would go into a generation that was written meanwhile. Or as it emptied the far side, whose
        locks it may hold; or as it starts the thread that all wait for."""
        inside = self._change._depth > 1 or self._starter == threading.get_ident()
        return inside or self.aside.sparing.mine

    def _wait_for_room(self, size: int, gone: bool) -> None:
        self._hurried += 1
        failed, aside = self._failed, self.aside
        tried, aside.again = aside.tried, 0.0
        try:
            while self._is_crowded(size, time.monotonic(), gone):
                if self._over or self._own or self._nested:  # a little too much, rather
                    return
                error = self.error if self._failed > failed else None
                if aside.tried > tried and aside.bytes + size > self._most(gone):
                    error = aside.error
                if error is not None:
                    pending.again(error, "the write-behind buffer is full")
                self._wake()
                self._change.wait(0.1)
        finally:
            self._hurried -= 1

    def _wake(self) -> None:
        if self._thread is None:
            self._start()
        self._change.tell()

    def last(self, key: Any) -> Pending | None:
        """The write of the key that is on its way, if one is."""
        while True:
            with self._change:
                generations, newest = (self.aside.writes, *self._generations), self._newest
            found: Pending | None = None
            for generation in generations:  # the newest last: there it is before it leaves `aside`
                found = generation.get(key, found)
            if found is not None or self._newest is newest:  # else one that began since
                return found

    def has_any(self, keys: Iterable[Any]) -> bool:
        """Whether a write of one of them is on its way."""
        while True:  # as in `last`
            with self._change:
                if self._since == _NEVER and not self.aside.writes:
                    return False
                generations, newest = (self.aside.writes, *self._generations), self._newest
            if not all([writes.keys().isdisjoint(keys) for writes in generations]):
                return True
            if self._newest is newest:
                return False

    def at_risk(self) -> AtRisk:
        with self._change:
            age = max(0.0, time.monotonic() - min(self._since, self.aside.since()))
            return AtRisk(self._count(), self._bytes, age)

    def _count(self) -> int:
        return sum(map(len, self._generations)) + len(self.aside.writes)

    def drain(self, keys: Collection[Any] | None = None) -> None:
        """When it returns, all that was put before is with the far side; but what it has no room for is tried only if
        it is of `keys` (None: any). Raises its error if an attempt fails."""
        with self._change:
            self._drain(keys)

    def _drain(self, keys: Collection[Any] | None = None) -> None:
        mark, failed = time.monotonic(), self._failed
        if (self._own or self._nested) and (self._since <= mark or self.aside.writes):
            raise FarError(pending.ITSELF if self._own else pending.MIDST)
        self._hurried += 1
        try:
            while self._since <= mark:
                self._wait_on(failed)
            attempt = self.aside.begun + 1  # it begins when all else is there
            while (left := self.aside.of(keys)) and self.aside.tried < attempt:
                self.aside.again = 0.0
                self._wait_on(failed)
        finally:
            self._hurried -= 1
        if left:
            raise self.aside.told(left) from self.aside.error

    def _wait_on(self, failed: int) -> None:
        if self._failed > failed and self.error is not None:
            pending.again(self.error, f"{self._count():,} writes wait for the far side")
        self._wake()
        self._change.wait(0.1)

    def remove_aside(self, keys: Iterable[Any]) -> set[Any]:
        """Of those that have no room at the far side a removal takes the place; which were there."""
        gone = set()
        with self._change:
            for key in keys if self.aside.writes else ():
                write = self.aside.writes.get(key)
                if write is not None and write[0] is not pending.REMOVED:
                    self._add(key, pending.frozen(None, key, pending.REMOVED, None))
                    if write[2] is None or write[2] > time.monotonic():
                        gone.add(key)
        return gone

    def forget_aside(self, writes: dict[Any, Pending]) -> None:
        """These are no longer to be written: all was removed at the far side since."""
        with self._change:
            self.aside.forget(writes)
            self._weigh()

    def _weigh(self) -> None:
        """Anew: a handler may put something between two steps of a put."""
        self._bytes = sum(map(pending.size_of, self._generations)) + self.aside.bytes
        first = next(filter(None, self._generations), None)
        self._since = next(iter(first.values()))[3] if first else _NEVER
        if not first and not self.aside.writes:
            ends.waiting.discard(self)

    def close(self) -> None:
        """Writes all, and ends the thread. FarError if that fails: nothing is lost yet, close again."""
        if self._own:  # who is closing it already waits for this thread
            raise FarError(pending.ITSELF)
        with self._closing:
            if self._over and self._since == _NEVER and not self.aside.writes:
                return
            self.drain()  # most of it, while others may write
            with self._change:
                thread = self._thread
                try:
                    self._over = True
                    self._drain()  # what they wrote meanwhile
                except BaseException:
                    self._over = False
                    raise
                self._change.tell()
            if thread is not None:
                join(thread)
            ends.buffers.discard(self)

    # --- the thread ------------------------------------------------------------------------------

    def _start(self) -> None:
        """Without the lock where it can be: this waits for the thread, and a ``__del__`` in that may write here."""
        ends.watch(self.far)
        thread = threading.Thread(
            target=endure, args=(_run, weakref.ref(self)), name="gbcache-behind", daemon=True
        )
        try:
            with self._change:
                if self._thread is not None:
                    return
                self._thread, self._starter = thread, threading.get_ident()
            thread.start()
        except BaseException as error:
            with self._change:  # it has its first turn behind it, or is to write nothing
                if self._thread is thread is not self._begun:
                    self._thread = None
            if self._since != _NEVER and not isinstance(error, RuntimeError):
                self._start()  # for what others put meanwhile
            raise
        finally:
            self._starter = 0

    def _turn(self) -> bool | None:
        """One wait, or one generation. True: there may be more; False: nothing is pending; None: it is over."""
        with self._change:
            if not self._own:
                return None  # `start` failed, and yet this runs
            self._begun = self._thread
            waiting = self._since != _NEVER
            batch = None if self._tried and waiting else self.aside.begin()
            # By turns: what is aside may fail for another reason, and for long.
            self._tried = batch is not None
            if batch is None:
                rest = self.aside.rest()
                if not waiting:
                    if self._over and not self.aside.writes:
                        self._thread = None  # if it is not over after all, another starts
                        return None
                    self._change.wait(rest)
                    return False
                rest = min(rest, self._since + self.interval / 2 - time.monotonic())
                full = len(self._generations) > 1 or self._bytes - self.aside.bytes > self._ample
                if rest > 0 and not full and not self._hurried and not self._over:
                    self._change.wait(rest)
                    return True
                while len(self._generations) > 1 and not self._generations[0]:
                    self._generations.popleft()
                beside = self._row > 1 and len(self._generations[0]) < _BATCH
                if len(self._generations) <= 1 + beside:
                    newest: dict[Any, Pending] = {}
                    self._generations.append(newest)  # nobody adds to what is being written
                    self._newest = newest
                if beside and len(self._generations) > 2:
                    pending.merge(self._generations)  # may be one's fault: has others beside it
                    self._weigh()
                generation = self._generations[0]
        try:
            error = self._write(generation) if batch is None else self._write(batch, True)
        finally:
            if batch is not None:
                self.aside.sparing.release()
        if error is not None:
            self._rest(error)
        return True

    def _write(self, batch: dict[Any, Pending], again: bool = False) -> FarError | None:
        """Why it failed, and all is as it was."""
        failed = False
        try:
            left = self._send(batch, self.aside.failed if again else self._row > 1)
            if again and len(left) == len(batch) > 1:  # the smallest has none; another each time
                left = dict(batch)
                first = next(iter(left))
                left.update(self._send({first: left.pop(first)}))
        except MemoryError:
            return pending.SHORT
        except FarError as error:
            if not again:
                return error
            self.aside.error, left, failed = error, dict(batch), True
            self.errors += 1
        self.void()  # from here on others may be over it there, and nothing here tells
        with self._change:
            if again:
                self.aside.end(batch, left, failed)
            else:
                self.error, self._row = None, 0
                if left or self.aside.writes:
                    self.aside.join(batch, left, list(self._generations)[1:])
                self._generations.popleft()
            self._weigh()
            self._change.tell()
        if len(left) < len(batch):
            self._word.answered()
        return None

    def _rest(self, error: FarError) -> None:
        """It failed: tells who waits, and gives the far side a while."""
        with self._change:
            self.error = error
            self._failed += 1
            self.errors += error is not pending.SHORT
            self._row += 1
            self._change.tell()
            until = time.monotonic() + min(pending.FIRST * 2 ** min(self._row, 10), pending.LONGEST)
            while not self._over and (rest := until - time.monotonic()) > 0:
                self._change.wait(rest)

    def _send(self, batch: dict[Any, Pending], apart: bool = False) -> dict[Any, Pending]:
        """Those that the far side does not take, as yet."""
        left, why, never = pending.give(self.far, self.codec, batch, apart)
        if why is not None:
            self.aside.error = why
            self.errors += 1
        for key, error in never.items():
            self._refuse(key, error)
        return left

    def _refuse(self, key: Any, error: BaseException) -> None:
        self.refused += 1
        self.void()  # it is not to land after it was told of
        self._word.refused(key)
        pending.tell(error, Behind)

    def _in_child(self) -> None:
        """A forked child's writes are its own: what was pending is the parent's to write."""
        self._change = Monitor()
        self._newest, self.aside, self._thread = {}, pending.Aside(), None
        self._generations, self._bytes, self._hurried = deque([self._newest]), 0, 0
        self._since, self._over = _NEVER, False  # who was closing it is not here


def _run(ref: weakref.ref[Behind]) -> None:
    while (behind := ref()) is not None:
        more: bool | None = True
        while more:  # held, as long as anything is pending
            try:
                more = behind._turn()
            except BaseException as error:  # all is as it was, and nobody else writes it
                if not isinstance(error, SHORT):
                    pending.tell(error, Behind)
                time.sleep(pending.FIRST)
        if more is None:
            return
        del behind
