# cython: freethreading_compatible=True
"""Locks that give themselves back: a `with` that ends where memory is short, or a signal's handler raises.

The end of a `with` calls ``__exit__`` with three arguments, and those of `threading` want a tuple made of them. Without
memory for it the lock is held for ever, and by nobody; so it is with what an Event or a Condition holds inside (any
CPython, 3.10 to 3.13). By ``acquire`` and ``try`` instead, Python would run a signal's handler between the two. Here
it does not, as this is compiled, and no step that gives a lock back makes an object. And threads that last: `endure`.
"""

from __future__ import annotations

import threading
import weakref
from _thread import allocate_lock, get_ident, start_new_thread
from collections.abc import Callable
from time import sleep
from typing import Any

from . import forks

__all__ = [
    "SHORT",
    "Latch",
    "Lock",
    "Monitor",
    "Turn",
    "aside",
    "endure",
    "gate",
    "is_short",
    "tell_all",
    "told",
]

_EVER = -1.0
"""What `lock.acquire` takes for no limit."""
_PAUSE = 0.05
"""Seconds until a thread that lacked memory goes on."""
SHORT = (MemoryError, SystemError)
"""How it is told that memory is short; the second is what some interpreters make of the first."""
_NO_MORE = ("can't start new thread", "can't allocate lock")
"""What `threading` says in a RuntimeError where it should be a MemoryError."""


def endure(run: Callable[..., None], *args: Any) -> None:
    """The target of a thread that has to last: `run`, and again where memory was short. What it did then is over."""
    while True:
        try:
            run(*args)
            return
        except SHORT:
            pass
        except RuntimeError as error:
            if not is_short(error):
                raise
        sleep(_PAUSE)  # no longer with what the error held


def is_short(error: BaseException) -> bool:
    """Whether it says that memory is short, or what a thread takes."""
    return isinstance(error, SHORT) or (isinstance(error, RuntimeError) and str(error) in _NO_MORE)


def gate() -> threading.Lock:
    """A lock that is held, for whoever is to wait until somebody gives it back."""
    try:
        made = allocate_lock()
    except RuntimeError:
        raise MemoryError from None
    made.acquire()
    return made


def tell_all(waiters: dict[Any, Any], patience: int = 2) -> None:
    """What they wait for is over: held locks of threads, futures of tasks with their loops. Whatever comes of one, the
    others are told, and all again: memory was short, or a signal's handler raised. To be told twice is nothing."""
    raised = None
    for waiter, loop in waiters.items():
        try:
            if loop is not None:
                loop.call_soon_threadsafe(told, waiter)
            elif waiter.locked():
                waiter.release()
        except BaseException as error:
            if loop is None or not loop.is_closed():
                raised = error
    if raised is not None:
        if not patience:
            raise raised
        tell_all(waiters, patience - 1)


def told(waiter: Any) -> None:
    if not waiter.done():  # cancelled
        waiter.set_result(None)


class _Step:
    """A call, and what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call, self.over = call, gate()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.call()
        except BaseException as error:
            self.error = error
        finally:
            self.over.release()


def aside(call: Callable[[], Any]) -> Any:
    """What it returns or raises, done where no signal's handler runs: if this is the main thread, in another one. A
    handler that raises meanwhile does so when it is over. Without a thread to be had it is done here."""
    if get_ident() != threading.main_thread().ident:
        return call()
    step, raised, begun = _Step(call), None, False
    try:
        start_new_thread(step.run, ())
        begun = True
    except (
        RuntimeError,
        MemoryError,
    ):  # (a return within it crashes where there is no memory for a traceback)
        pass
    if not begun:
        return call()
    while True:
        try:
            step.over.acquire()
            break
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised
    if step.error is not None:
        raise step.error
    return step.result


class Lock:
    """Reentrant, for `with`: a signal's handler or a ``__del__`` may come back to where its thread is. A forked child
    has it free, unless the thread that forked holds it."""

    __slots__ = ("__weakref__", "_depth", "_held")

    def __init__(self) -> None:
        self._held = threading.RLock()
        self._depth = 0
        _all.add(self)

    def __enter__(self) -> None:
        forks.take(self._held)
        self._depth += 1

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._depth -= 1
        self._held.release()

    def acquire(self, seconds: float = _EVER) -> bool:
        """False: it was not to be had in time."""
        if seconds < 0:
            forks.take(self._held)
        elif not self._held.acquire(True, seconds):
            return False
        self._depth += 1
        return True

    def release(self) -> None:
        if not self.mine:
            raise RuntimeError("this lock is not held by this thread")
        self._depth -= 1
        self._held.release()

    @property
    def mine(self) -> bool:
        """Whether this thread holds it."""
        held: Any = self._held
        return bool(held._is_owned())

    def _in_child(self) -> None:
        if not self.mine:
            self._held, self._depth = threading.RLock(), 0


class Turn:
    """A lock, for `with`. Before it waits for another thread it calls `ask`, which may raise."""

    __slots__ = ("_ask", "_lock")

    def __init__(self, lock: Lock, ask: Callable[[], object]) -> None:
        self._lock, self._ask = lock, ask

    def __enter__(self) -> None:
        if not self._lock.acquire(0.0):
            self._ask()
            self._lock.acquire()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._lock.release()


class Monitor(Lock):
    """A lock, and what may change while it is held: who holds it waits for that, or tells that it has."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        Lock.__init__(self)
        self._waiting: list[threading.Lock] = []

    def wait(self, seconds: float = _EVER) -> None:
        """Gives the lock up, however often it is held, until somebody tells of a change or the time is over. Whatever
        it raises, the lock is held again."""
        if forks.within():
            raise RuntimeError(forks.STUCK)
        mine = gate()
        self._waiting.append(mine)
        depth = left = self._depth
        self._depth = 0
        while left:
            left -= 1
            self._held.release()
        try:
            mine.acquire(True, seconds)
        finally:
            again: BaseException | None = None
            while left < depth:
                try:
                    self._held.acquire()
                    left += 1
                except BaseException as error:  # of a signal's handler
                    again = error
            self._depth = depth
            if mine in self._waiting:
                self._waiting.remove(mine)
            if again is not None:
                raise again

    def tell(self) -> None:
        """Wakes all that wait. Makes no object, and shortens no list: that may fail too."""
        at = 0
        while at < len(self._waiting):
            self._waiting[at].release()
            at += 1
        self._waiting.clear()

    def _in_child(self) -> None:
        if not self.mine:
            self._waiting.clear()
        Lock._in_child(self)


class Latch:
    """Closed, and then open: an Event. Any thread opens it, and any number wait for that; of one that is closed again,
    by who waits for it, alone."""

    __slots__ = ("_gate", "_open")

    def __init__(self) -> None:
        self._gate, self._open = gate(), False

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
        """Whether it was opened in time. Where memory is short this may raise."""
        if not self._open:
            forking = seconds < 0 and forks.within()
            if not self._gate.acquire(True, forks.PATIENCE if forking else seconds):
                if forking:
                    raise RuntimeError(forks.STUCK)
                return False
            self._give()  # to the next who waits
        return True

    def _give(self) -> None:
        if self._gate.locked():
            try:  # noqa: SIM105, `suppress` asks for memory
                self._gate.release()
            except (RuntimeError, MemoryError):  # another was first
                pass


_all: weakref.WeakSet[Lock] = weakref.WeakSet()


def _in_child() -> None:
    for lock in list(_all):
        lock._in_child()


forks.in_child(_in_child)
