"""Locks that give themselves back: a `with` that ends where memory is short, or a signal's handler raises.

The end of a `with` calls ``__exit__`` with three arguments, and those of `threading` want a tuple made of them. Without
memory for it the lock is held for ever, and by nobody; so it is with what an Event or a Condition holds inside (any
CPython, 3.10 to 3.13). By ``acquire`` and ``try`` instead, Python would run a signal's handler between the two. Here
it does not, as this is compiled, and no step that gives a lock back makes an object. And threads that last: `endure`.
"""

from __future__ import annotations

import threading
from _thread import allocate_lock
from collections.abc import Callable
from time import sleep
from typing import Any

__all__ = ["Latch", "Lock", "Monitor", "endure"]

_EVER = -1.0
"""What `lock.acquire` takes for no limit."""
_SHORT = 0.05
"""Seconds until a thread that lacked memory goes on."""


def endure(run: Callable[..., None], *args: Any) -> None:
    """The target of a thread that has to last: `run`, and again where memory was short. What it did then is over."""
    while True:
        try:
            run(*args)
            return
        except (MemoryError, SystemError):  # the second is what some interpreters make of the first
            pass
        sleep(_SHORT)  # no longer with what the error held


class Lock:
    """Reentrant, for `with`: a signal's handler or a ``__del__`` may come back to where its thread is."""

    __slots__ = ("_depth", "_held")

    def __init__(self) -> None:
        self._held = threading.RLock()
        self._depth = 0

    def __enter__(self) -> None:
        self._held.acquire()
        self._depth += 1

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._depth -= 1
        self._held.release()

    def acquire(self, seconds: float = _EVER) -> bool:
        """False: it was not to be had in time."""
        if seconds < 0:
            self._held.acquire()  # makes no object
        elif not self._held.acquire(True, seconds):
            return False
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        self._held.release()


class Monitor(Lock):
    """A lock, and what may change while it is held: who holds it waits for that, or tells that it has."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        Lock.__init__(self)
        self._waiting: list[threading.Lock] = []

    def wait(self, seconds: float = _EVER) -> None:
        """Gives the lock up, however often it is held, until somebody tells of a change or the time is over. Whatever
        it raises, the lock is held again."""
        gate = allocate_lock()
        gate.acquire()
        self._waiting.append(gate)
        depth = left = self._depth
        self._depth = 0
        while left:
            left -= 1
            self._held.release()
        try:
            gate.acquire(True, seconds)
        finally:
            again: BaseException | None = None
            while left < depth:
                try:
                    self._held.acquire()
                    left += 1
                except BaseException as error:  # of a signal's handler
                    again = error
            self._depth = depth
            if gate in self._waiting:
                self._waiting.remove(gate)
            if again is not None:
                raise again

    def tell(self) -> None:
        """Wakes all that wait."""
        while self._waiting:
            self._waiting.pop().release()


class Latch:
    """Closed, and then open: an Event. Any thread opens it, and any number wait for that."""

    __slots__ = ("_gate", "_open")

    def __init__(self) -> None:
        self._gate, self._open = allocate_lock(), False
        self._gate.acquire()

    @property
    def opened(self) -> bool:
        return self._open

    def open(self) -> None:
        self._open = True
        self._give()

    def close(self) -> None:
        self._open = False
        self._gate.acquire(False)

    def wait(self, seconds: float = _EVER) -> bool:
        """Whether it was opened in time. Where memory is short this raises, or finds it closed."""
        if not self._open:
            if not self._gate.acquire(True, seconds):
                return False
            self._give()  # to the next who waits
        return True

    def _give(self) -> None:
        if self._gate.locked():
            try:  # noqa: SIM105, `suppress` asks for memory
                self._gate.release()
            except (RuntimeError, MemoryError):  # another was first
                pass
