"""Write-behind: what is on its way to the far side, in a bounded buffer, for a bounded time."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from . import ends, pending, trial
from .backlog import BATCH, NEVER, Backlog
from .codec import Codec
from .errors import ClosedError, FarError
from .far import Far
from .housekeeper import join
from .locks import SHORT, Lock, Monitor, endure
from .pending import Pending

__all__ = ["Behind"]

_FEW = 4
"""Writes that failed alone, and nothing else waits: that may be their own fault. Another is let by, which shows."""
_SLICE, _BRIEF, _HURRIED = 0.25, 0.05, 1.0
"""Seconds of an attempt of more than one call: at what waits, at what stands aside, at that while somebody waits."""
_PATIENCE = 8
"""Attempts of which something was taken and something failed, for who waits until all is there."""


class Behind(Backlog):
    """A buffer in front of a far side, emptied by one thread.

    `put` waits while the buffer is full or its oldest write is older than 0.7 `interval`; it raises the far side's
    error only if that keeps failing too. Nothing is dropped but what cannot be stored (a TypeError, say), which is
    reported and counted; and `word` is told, which is also told when the far side took something. What it has no room
    for, or refuses, or fails of while it takes others, steps aside, and is tried again beside the rest.
    """

    def __init__(
        self, far: Far, codec: Codec | None, max_bytes: int, interval: float, word: Any
    ) -> None:
        super().__init__()
        self.far, self.codec, self.max_bytes, self.interval = far, codec, max_bytes, interval
        self._word = word  # `refused` and `answered`
        self._ample = max_bytes // 2  # up to so many bytes there is room, and no hurry
        self._late = interval * 0.7
        """Seconds: the oldest write is that old, and writers wait. What is being written has the rest."""
        self.refused = self.errors = 0  # writes refused for good; times the far side failed
        self.error: FarError | None = None
        """Why the last attempt failed, if it did."""
        self._failed = self._stuck = 0  # attempts; of them, without anything taken
        self._row = 0  # of the failed, since the last that did not
        self._doubted: set[Any] = set()
        self._hurried = self._starter = 0  # who waits for it to empty; who starts it
        self._tried = False  # what is aside, and not what waits, as the last
        self._over = False
        """No write is taken any more. It is empty then, or `close` waits for that."""
        self._closing = Lock()
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
            ) and self._make_room(size, write[3], (key,), write[0] is pending.REMOVED):
                write = pending.young(write)
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
            waited = self._make_room(size, time.monotonic(), writes)
            for key, write in writes.items():
                self._add(key, pending.young(write) if waited else write)
            return self._mark

    def _make_room(self, size: int, now: float, keys: Collection[Any], gone: bool = False) -> bool:
        """Whether it waited: what is put then is young again, or all who wait would find the oldest late anew."""
        if crowded := self._is_crowded(self._more(size, keys), now, gone):
            self._wait_for_room(size, keys, gone)
        if self._over:
            raise ClosedError("the tier is closed")
        if self._thread is None:
            self._start()
        elif self._bytes - self.aside.bytes > self._ample:
            self._change.tell()
        return crowded

    def _more(self, size: int, keys: Iterable[Any]) -> int:
        """Bytes: what it takes the place of goes."""
        return size - self.aside.size_of(keys) if self.aside.writes else size

    def _most(self, gone: bool) -> int:
        """Bytes. A removal makes room: what has none (up to so much again) does not keep it out."""
        return self.max_bytes + (min(self.aside.bytes, self.max_bytes) if gone else 0)

    def _is_crowded(self, size: int, now: float, gone: bool) -> bool:
        doubted = len(self._doubted) if self._row > 1 else 0
        few = sum(map(len, self._generations)) <= min(doubted, _FEW)
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

    def _wait_for_room(self, size: int, keys: Collection[Any], gone: bool) -> None:
        begun, aside = (self._failed, self._stuck), self.aside
        tried = aside.tried
        self._hurried += 1
        try:
            if self._bytes + self._more(size, keys) > self._most(gone):
                aside.again = 0.0
            while self._is_crowded(more := self._more(size, keys), time.monotonic(), gone):
                if self._over or self._own or self._nested:  # a little too much, rather
                    return
                error = self.error if self._fails(begun) else None
                if aside.tried > tried and aside.bytes + more > self._most(gone):
                    error = aside.error
                if error is not None:
                    pending.again(error, "the write-behind buffer is full")
                self._wake()
                self._change.wait(0.1)
        finally:
            self._hurried = max(self._hurried - 1, 0)  # this may be a child of who waited

    def _fails(self, begun: tuple[int, int]) -> bool:
        """Whether the far side took nothing since then, or some failed for long while it took others."""
        return self._stuck > begun[1] or self._failed > begun[0] + _PATIENCE

    def _wake(self) -> None:
        if self._thread is None:
            self._start()
        self._change.tell()

    def drain(self, keys: Collection[Any] | None = None) -> None:
        """When it returns, all that was put before is with the far side; but what stands aside is tried only if it is
        of `keys` (None: any). Raises the far side's error if it takes nothing, or some of it not for too long."""
        with self._change:
            self._drain(keys)

    def _drain(self, keys: Collection[Any] | None = None) -> None:
        mark, begun = time.monotonic(), (self._failed, self._stuck)
        if (self._own or self._nested) and (self._since <= mark or self.aside.writes):
            raise FarError(pending.ITSELF if self._own else pending.MIDST)
        self._hurried += 1
        try:
            self._drain_until(mark, begun)
            attempt = self.aside.begun + 1  # it begins when all else is there
            left = before = self.aside.of(keys)
            while left and self.aside.tried < attempt:
                self.aside.again = 0.0
                self._wait_on(begun)
                left = self.aside.of(keys)
            if before and not left:  # later ones may have taken their place
                self._drain_until(time.monotonic(), begun)
                left = self.aside.of(keys)
        finally:
            self._hurried = max(self._hurried - 1, 0)
        if left:
            raise self.aside.told(left) from self.aside.error

    def _drain_until(self, mark: float, begun: tuple[int, int]) -> None:
        while self._since <= mark:
            self._wait_on(begun)

    def _wait_on(self, begun: tuple[int, int]) -> None:
        if self._fails(begun) and self.error is not None:
            pending.again(self.error, f"{self._count():,} writes wait for the far side")
        self._wake()
        self._change.wait(0.1)

    def close(self) -> None:
        """Writes all, and ends the thread. FarError if that fails: nothing is lost yet, close again."""
        if self._own:  # who is closing it already waits for this thread
            raise FarError(pending.ITSELF)
        with self._closing:
            if self._over and self._since == NEVER and not self.aside.writes:
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

    def empty(self) -> None:
        """`close` where no thread can be begun (from 3.12 on: as a process ends): this one writes."""
        with self._change:
            if self._thread is not None:
                return
            self._thread, self._over = threading.current_thread(), True
            stuck = self._stuck
        while self._turn() and self._stuck == stuck:
            pass
        if left := self._count():
            error = self.aside.error if self.error is None else self.error
            raise FarError(f"{left:,} writes are lost as the process ends") from error

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
            if self._since != NEVER and not isinstance(error, RuntimeError):
                self._start()  # for what others put meanwhile
            raise
        finally:
            if self._starter == threading.get_ident():  # or it is another's, who came first
                self._starter = 0

    def _turn(self) -> bool | None:
        """One wait, or one generation. True: there may be more; False: nothing is pending; None: it is over."""
        with self._change:
            if not self._own:
                return None  # `start` failed, and yet this runs
            self._begun = self._thread
            waiting = self._since != NEVER
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
                beside = self._row > 1 and len(self._generations[0]) < BATCH
                if len(self._generations) <= 1 + beside:
                    newest: dict[Any, Pending] = {}
                    self._generations.append(newest)  # nobody adds to what is being written
                    self._newest = newest
                if beside and len(self._generations) > 2:
                    pending.merge(self._generations)  # may be one's fault: has others beside it
                    self._weigh()
                generation = self._generations[0]
        if batch is None:
            self._write(generation)
            return True
        try:
            short = self._try_again(batch)
        finally:
            self.aside.sparing.release()
        if short:
            self._rest(pending.SHORT)
        return True

    def _write(self, batch: dict[Any, Pending]) -> None:
        """The first of the generations."""
        try:
            given = self._send(batch, self._doubted, self._row, _SLICE)
        except MemoryError:  # all is as it was
            self._rest(pending.SHORT)
            return
        self.void()  # from here on others may be over it there, and nothing here tells
        with self._change:
            if given.left or self.aside.writes:
                self.aside.join(batch, given.left, list(self._generations)[1:])
            self._doubted = given.doubted
            if given.rest:
                self._generations[0] = given.rest
            else:
                self._generations.popleft()
                self.error, self._row = None, 0
            self._weigh()
            self._change.tell()
        if given.taken:
            self._word.answered()
        if given.rest and given.error is not None:
            self._rest(given.error, given.taken)

    def _try_again(self, batch: dict[Any, Pending]) -> bool:
        """What stands aside. Whether memory was short, and all is as it was."""
        began = time.monotonic()
        try:
            aside, seconds = self.aside, _HURRIED if self._hurried else _BRIEF
            given = self._send(batch, aside.doubted, int(aside.failed), seconds)
            left = given.left
            if len(left) == len(batch) > 1:  # the smallest has no room; another each time
                left, first = dict(batch), next(iter(batch))
                one = self._send({first: left.pop(first)}, aside.doubted, 1, 0.0)
                left.update({**one.rest, **one.left})
        except MemoryError:
            return True
        self.void()
        with self._change:
            if given.rest and given.error is not None:
                aside.error = given.error
                self.errors += 1
            aside.doubted = given.doubted
            aside.end(batch, given.rest, left, time.monotonic() - began)
            self._weigh()
            self._change.tell()
        if len(given.rest) + len(left) < len(batch):
            self._word.answered()
        return False

    def _rest(self, error: FarError, taken: bool = False) -> None:
        """It failed: tells who waits, and gives the far side a while, unless it took something."""
        with self._change:
            self.error = error
            self._failed += 1
            self._stuck += not taken
            self.errors += error is not pending.SHORT
            self._row += 1
            self._change.tell()
            pause = 0.0 if taken else min(pending.FIRST * 2 ** min(self._row, 10), pending.LONGEST)
            until = time.monotonic() + pause
            while not self._over and (rest := until - time.monotonic()) > 0:
                self._change.wait(rest)

    def _send(
        self, batch: dict[Any, Pending], doubted: set[Any], failed: int, seconds: float
    ) -> trial.Given:
        given = trial.give(self.far, self.codec, batch, doubted, failed, seconds)
        if given.why is not None:
            self.aside.error = given.why
            self.errors += 1
        for key, error in given.never.items():
            self._refuse(key, error)
        return given

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
        self._since, self._over = NEVER, False  # who was closing it is not here
        self._row, self._doubted, self._starter = 0, set(), 0


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
