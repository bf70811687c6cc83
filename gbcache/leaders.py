"""Threads for tasks that lead a load: in some a far side is asked, in others `load` is called.

Not asyncio's own: all of those may wait for what the leader is to store, in one of them.
Asking a far side waits for nobody's load: `MOST` threads do, and the rest queues. A `load` may wait for what another
leader makes, and that one may be queued behind it: so `MANY` is a bound only while they come to an end.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from time import monotonic, sleep
from typing import Any, TypeVar

from .locks import SHORT, Lock, endure

__all__ = ["MANY", "MOST", "Threads"]

T = TypeVar("T")
MOST = 32
"""Threads of a tier that ask the far side."""
MANY = 256
"""Threads of a tier in `load`."""
_STALL = 1.0
"""Seconds in which no load came to its end: they may wait for one that is queued. Then one more thread is begun; after
as long again two, and so on, until some end. Where all are slow, that is few more in the time they take."""
_GIVE_UP = 10
"""So often in a row; then it is an error that there is no thread to be had."""
_PAUSE = 0.05


class _Call:
    """A call, and the task that awaits what comes of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call, self.loop = call, asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()
        self.value: Any = None
        self.error: BaseException | None = None
        self.queued = True
        self.timer: asyncio.TimerHandle | None = None

    def run(self) -> None:
        try:
            if not self.future.cancelled():
                self.value = self.call()
        except BaseException as error:
            self.error = error
        while not self.loop.is_closed():  # else nobody waits
            try:
                self.loop.call_soon_threadsafe(self.told)
                return
            except (RuntimeError, *SHORT):  # it was closed meanwhile, or memory is short
                sleep(_PAUSE)

    def told(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class _Pool:
    """Each ends when there is nothing to do. Not daemons: what was begun comes to its end before the process does."""

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._lock = Lock()
        self._calls: deque[_Call] = deque()
        self._threads: set[threading.Thread] = set()
        self._ended, self._stalls = 0.0, 0  # when the last call did, or it was said that none does

    def begin(self, call: _Call) -> None:
        with self._lock:
            self._calls.append(call)
            if len(self._threads) >= self._most:
                self._threads = {one for one in self._threads if one.is_alive()}
                if len(self._threads) >= self._most:
                    return
        self._start(call)

    def _start(self, call: _Call, patient: bool = True) -> None:
        """One more thread, for this call or one before it."""
        thread = threading.Thread(target=endure, args=(self._work,), name=self._name)
        thread.daemon = False  # whatever the one that makes it is
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            with self._lock:
                self._threads.discard(thread)
                alive = any(one.is_alive() for one in self._threads)
                if call not in self._calls or (alive and patient):
                    return  # another one does it
                self._calls.remove(call)
            raise RuntimeError(f"no thread to ask the far side in: {error}") from error

    def watch(self, call: _Call) -> None:
        """In the loop of who awaits it: looks from time to time whether it is queued for ever."""
        call.timer = call.loop.call_later(_STALL, self._look, call)

    def _look(self, call: _Call) -> None:
        if not call.queued or call.future.done():
            return
        self.watch(call)
        with self._lock:
            if monotonic() < self._ended + _STALL:
                return
            self._ended, more = monotonic(), min(2**self._stalls, len(self._calls))
            self._stalls += 1
        try:
            for _ in range(more):
                self._start(call, self._stalls <= _GIVE_UP)
        except RuntimeError as error:
            call.error = error
            call.told()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._threads.discard(threading.current_thread())
                    return
                call = self._calls.popleft()
                call.queued = False
            while True:
                try:
                    call.run()
                    break
                except SHORT:  # before it began
                    sleep(_PAUSE)
            self._ended, self._stalls = monotonic(), 0
            del call


class Threads(_Pool):
    """Those of a tier."""

    def __init__(self) -> None:
        super().__init__(MOST, "gbcache-far")
        self.loads = _Pool(MANY, "gbcache-load")

    async def call(self, loads: bool, fn: Callable[..., T], *args: Any) -> T:
        """``fn(*args)`` in a thread, in this context. `loads`: it may wait for another's load. Cancelled, it goes on if
        it was begun. RuntimeError where there is no thread to be had."""
        call = _Call(partial(copy_context().run, fn, *args))
        try:
            if loads:
                self.loads.watch(call)
                self.loads.begin(call)
            else:
                self.begin(call)
        except BaseException:
            call.future.cancel()  # nobody begins it
            raise
        try:
            await call.future
            if call.error is not None:
                raise call.error
            value: T = call.value
            return value
        finally:
            if call.timer is not None:
                call.timer.cancel()
            del call  # it has the error, which has this frame
