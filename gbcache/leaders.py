"""Threads in which a far side is asked for tasks that lead a load.

Not asyncio's own: all of those may wait for what the leader is to store, in one of them.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from time import sleep
from typing import Any, TypeVar

from .locks import SHORT, Lock, endure

__all__ = ["MOST", "Threads"]

T = TypeVar("T")
MOST = 32
"""Threads of a tier, where what they do waits for nobody's load."""
_PAUSE = 0.05


class _Call:
    """A call, and the task that awaits what comes of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call, self.loop = call, asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()
        self.value: Any = None
        self.error: BaseException | None = None

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


class Threads:
    """Each ends when there is nothing to do. Not daemons: what was begun comes to its end before the process does."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._calls: deque[_Call] = deque()
        self._threads: set[threading.Thread] = set()

    async def call(self, alone: bool, fn: Callable[..., T], *args: Any) -> T:
        """``fn(*args)`` in a thread, in this context. `alone`: it may wait for another's load, hence for no thread.
        Cancelled, it goes on if it was begun. RuntimeError where there is no thread to be had."""
        call = _Call(partial(copy_context().run, fn, *args))
        try:
            self._begin(call, alone)
        except BaseException:
            call.future.cancel()  # nobody begins it
            raise
        await call.future
        try:
            if call.error is not None:
                raise call.error
            value: T = call.value
            return value
        finally:
            del call  # it has the error, which has this frame

    def _begin(self, call: _Call, alone: bool) -> None:
        thread = threading.Thread(target=endure, args=(self._work,), name="gbcache-far")
        thread.daemon = False  # whatever the one that makes it is
        with self._lock:
            self._calls.append(call)
            if len(self._threads) >= MOST and not alone:
                self._threads = {one for one in self._threads if one.is_alive()}
                if len(self._threads) >= MOST:
                    return
            self._threads.add(thread)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            with self._lock:
                self._threads.discard(thread)
                if call not in self._calls or (self._threads and not alone):
                    return  # another one does it
                self._calls.remove(call)
            raise RuntimeError(f"no thread to ask the far side in: {error}") from error

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._threads.discard(threading.current_thread())
                    return
                call = self._calls.popleft()
            while True:
                try:
                    call.run()
                    break
                except SHORT:  # before it began
                    sleep(_PAUSE)
            del call
