# cython: freethreading_compatible=True
"""Group commit: of many threads that write at once one leads, and commits for all that wait.

Compiled: no signal's handler runs between an `acquire` and its `try`; and they, unlike `with`, make no object.
"""

from __future__ import annotations

import errno
import time
from _thread import allocate_lock, get_ident
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .errors import ClosedError, FarError
from .locks import aside, gate

__all__ = ["CLOSED", "COME_BACK", "Groups", "Request"]

_INTERRUPTED = FarError(errno.EINTR, "the thread that wrote for this one was interrupted")
CLOSED = "the Disk is closed"
COME_BACK = (
    "this thread is within a call of this Disk: a signal's handler or a __del__ may not write to "
    "it, flush it or close it from there"
)
PATIENCE = 0.5
"""Of the time the last commit took: how long a leader waits for others."""


class Request:
    """What one thread wants done. Its result, or its own error, is filled in by who leads."""

    __slots__ = ("done", "error", "gate", "promoted", "result", "size", "thread", "told", "wrote")
    alone = False
    """It is done by itself, between two groups, by `run`; else with others, by `do`."""
    grows = True
    """It takes room, and may be refused where there is none."""

    def __init__(self, size: int = 0) -> None:
        self.gate, self.thread = gate(), get_ident()
        self.done = self.promoted = self.wrote = False
        self.told = False  # whether what it is to be told stands, if its leader is interrupted
        self.error: BaseException | None = None
        self.result: Any = None
        self.size = size

    def do(self, view: Any) -> Any:
        """Reads and changes `view`; raises before it changes anything."""
        raise NotImplementedError

    def run(self, engine: Any) -> Any:
        """What `alone` ones do."""
        raise NotImplementedError

    def answer(self, engine: Any) -> None:
        """Does one that is alone: what comes of it is known then, whatever comes to its leader. Raises its error."""
        try:
            engine.check_open()
            self.result = self.run(engine)
        except Exception as error:
            self.error = error
            self.error = engine.refused(error)
            raise self.error  # noqa: B904, it has its cause
        finally:
            self.told = True


def _refuse(batch: Sequence[Request]) -> None:
    for request in batch:
        request.error = ClosedError(CLOSED)


class Groups:
    """The queue, and who leads. Cost of a request: two locks; of waiting: one wake-up."""

    def __init__(self, commit: Callable[[Sequence[Request]], None], reading: Any = None) -> None:
        self._commit, self._reading = commit, reading
        self._lock = allocate_lock()
        self._waiting: list[Request] = []
        self._led = self._gathers = False
        self._leader = self._stands_in = 0
        self._expected, self._took = 1, 0.0
        self._gathered = gate()

    def run(self, request: Request) -> Any:
        """Has it done, here or by another thread; returns its result or raises its error. RuntimeError where this
        thread came back out of a request of its own (a signal's handler, a ``__del__``): it would wait for itself."""
        follows = False
        self._lock.acquire()
        try:
            inside = self._inside(request.thread)
            if not inside:
                self._waiting.append(request)
                follows, self._led = self._led, True
                if not follows:
                    self._leader = request.thread
                if len(self._waiting) == self._expected and self._gathers:
                    self._gathers = False
                    self._gathered.release()
        finally:
            self._lock.release()
        if inside:
            raise RuntimeError(COME_BACK)
        if follows:
            try:
                request.gate.acquire()
            except BaseException:  # an interrupt
                self._abandon(request)
                raise
        if not request.done:
            self._lead(request)
        if request.error is not None:
            raise request.error
        return request.result

    def insist(self, make: Callable[[], Request]) -> Any:
        """`run` of what is `alone`; again where who led was interrupted before it came to that."""
        while True:
            request = make()
            try:
                return self.run(request)
            except FarError:
                if request.told:
                    raise

    def aside(self, call: Callable[[], None]) -> None:
        """For the leader, and where no signal's handler runs; whatever runs in that thread may not come back either."""
        aside(partial(self._stand_in, call))

    def _stand_in(self, call: Callable[[], None]) -> None:
        before, self._stands_in = self._stands_in, get_ident()
        try:
            call()
        finally:
            self._stands_in = before

    def end(self) -> None:
        """What comes after this batch is refused. And whoever commits is let go of: with a way back from us, he would
        stay until the collector comes."""
        self._commit = _refuse

    def check(self) -> None:
        """RuntimeError where `run` would raise it."""
        self._lock.acquire()
        try:
            inside = self._inside(get_ident())
        finally:
            self._lock.release()
        if inside:
            raise RuntimeError(COME_BACK)

    def _inside(self, thread: int) -> bool:
        """Whether that thread is within a call already. Makes no object, as `_lock` is held: an exception might bring
        the collector, and with it a ``__del__`` that comes back."""
        inside, at = self._leader == thread or self._stands_in == thread, 0
        while at < len(self._waiting):
            inside = inside or self._waiting[at].thread == thread
            at += 1
        return inside

    def _gather(self) -> None:
        """Those who were told together that they are done come back together: to go without them would be a sync for
        one, and another for the rest. Waits for as many as there were, for a part of what a commit takes."""
        gathers = came = False
        self._lock.acquire()
        try:
            self._gathered.acquire(False)
            gathers = self._gathers = len(self._waiting) < self._expected
        finally:
            self._lock.release()
        try:
            came = gathers and self._gathered.acquire(timeout=min(self._took * PATIENCE, 0.001))
        finally:
            if gathers and not came:  # also where a signal's handler cut it off
                self._lock.acquire()
                try:
                    self._gathers = False
                    self._gathered.acquire(False)  # one came at the last moment
                finally:
                    self._lock.release()

    def _lead(self, own: Request) -> None:
        batch: Sequence[Request] = ()
        try:
            fresh: list[Request] = []
            if self._expected > 1:
                self._gather()
            self._lock.acquire()
            try:
                batch, self._waiting = self._waiting, fresh
            finally:
                self._lock.release()
            if self._reading is not None:  # what a `with` left that had no memory to end
                self._reading.close()
            begun = time.perf_counter()
            self._commit(batch)
            self._took = time.perf_counter() - begun
        except BaseException as error:  # an interrupt of the thread that leads, or no memory
            self._give_up(batch, own, error)
            if self._reading is not None:  # here no handler cuts that off: else it would stay
                self._reading.close()
            raise
        finally:
            self._hand_over(own)
            self._end(batch, own)

    # What ends a lead makes no object where memory is short: else those who wait would do so for ever.

    def _give_up(self, batch: Sequence[Request], own: Request, error: BaseException) -> None:
        at = 0
        while at < len(batch):
            if batch[at] is not own and batch[at].error is None and not batch[at].told:
                batch[at].error = _INTERRUPTED
            at += 1
        try:
            for request in batch:
                if request.error is _INTERRUPTED:
                    request.error = FarError(errno.EINTR, _INTERRUPTED.strerror)
                    request.error.__cause__ = error
        except MemoryError:  # they have the one made beforehand
            pass

    def _hand_over(self, own: Request) -> None:
        self._lock.acquire()
        try:
            if own in self._waiting:  # it failed before it took what waited
                self._waiting.remove(own)
            self._led = bool(self._waiting)
            self._leader = self._waiting[0].thread if self._led else 0
            if self._led:
                self._waiting[0].promoted = True
                self._waiting[0].gate.release()
        finally:
            self._lock.release()

    def _end(self, batch: Sequence[Request], own: Request) -> None:
        self._expected, at = len(batch) or 1, 0
        while at < len(batch):
            batch[at].done = True
            if batch[at] is not own:
                batch[at].gate.release()
            at += 1

    def _abandon(self, request: Request) -> None:
        """Whoever waited is gone; if it was to lead, it still does; if another has begun to do it, it stays until that
        is over: what it wrote is not to land behind the back of one who was told that it was interrupted."""
        self._lock.acquire()
        try:
            waits = request in self._waiting
            if waits and not request.promoted:
                self._waiting.remove(request)
        finally:
            self._lock.release()
        if not waits:
            self._outlast(request)
        elif request.promoted:
            self._lead(request)

    def _outlast(self, request: Request) -> None:
        while True:
            try:
                request.gate.acquire()
                return
            except BaseException:  # one more interrupt: the first one is raised
                pass
