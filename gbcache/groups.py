"""Group commit: of many threads that write at once one leads, and commits for all that wait."""

from __future__ import annotations

import errno
from _thread import allocate_lock
from collections.abc import Callable
from typing import Any

from .errors import FarError

__all__ = ["Groups", "Request"]


class Request:
    """What one thread wants done. Its result, or its own error, is filled in by who leads."""

    __slots__ = ("done", "error", "gate", "promoted", "result", "size", "wrote")
    alone = False
    """It is done by itself, between two groups, by `run`; else with others, by `do`."""
    grows = True
    """It takes room, and may be refused where there is none."""

    def __init__(self, size: int = 0) -> None:
        self.gate = allocate_lock()
        self.gate.acquire()
        self.done = self.promoted = self.wrote = False
        self.error: BaseException | None = None
        self.result: Any = None
        self.size = size

    def do(self, view: Any) -> Any:
        """Reads and changes `view`; raises before it changes anything."""
        raise NotImplementedError

    def run(self, engine: Any) -> Any:
        """What `alone` ones do."""
        raise NotImplementedError


class Groups:
    """The queue, and who leads. Cost of a request: two locks; of waiting: one wake-up."""

    def __init__(self, commit: Callable[[list[Request]], None]) -> None:
        self._commit = commit
        self._lock = allocate_lock()
        self._waiting: list[Request] = []
        self._led = False

    def run(self, request: Request) -> Any:
        """Has it done, here or by another thread; returns its result or raises its error."""
        with self._lock:
            self._waiting.append(request)
            follows, self._led = self._led, True
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

    def _lead(self, own: Request | None) -> None:
        with self._lock:
            batch, self._waiting = self._waiting, []
        try:
            self._commit(batch)
        except BaseException as error:  # an interrupt of the thread that leads
            for request in batch:
                if request is not own and request.error is None:
                    request.error = FarError(errno.EINTR, "the thread that wrote for this one was interrupted")
                    request.error.__cause__ = error
            raise
        finally:
            for request in batch:
                request.done = True
            self._hand_over()
            for request in batch:
                if request is not own:
                    request.gate.release()

    def _hand_over(self) -> None:
        """First of all: while the followers wake up, the next group is on its way."""
        with self._lock:
            self._led = bool(self._waiting)
            if self._led:
                self._waiting[0].promoted = True
                self._waiting[0].gate.release()

    def _abandon(self, request: Request) -> None:
        """Whoever waited is gone; if it was to lead, it still does."""
        with self._lock:
            if request.promoted:
                leads = request in self._waiting
            else:
                leads = False
                if request in self._waiting:
                    self._waiting.remove(request)
        if leads:
            self._lead(request)
