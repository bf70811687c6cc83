"""The thread that calls subscribers: one for the process."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from ._packed import report
from .locks import SHORT, Lock, endure, is_short
from .watch import Wake

__all__ = ["Dispatcher", "reborn", "the"]


class Served(Protocol):
    """What the dispatcher needs of a cache's hub."""

    def turn(self) -> bool: ...
    def pending(self, delivery: str) -> bool: ...
    def silence(self, wake: Wake) -> None: ...
    def over(self, delivery: str) -> None: ...


class Dispatcher:
    """The one thread that calls subscribers. Starts with the first, ends with the last."""

    def __init__(self) -> None:
        self._hubs: dict[int, weakref.ref[Served]] = {}
        self._lock = Lock()
        self._thread: threading.Thread | None = None
        self._wake: Wake | None = None
        self._over = False
        self._ending: list[Served] = []

    def serve(self, hub: Served, cache: Any) -> None:
        with self._lock:
            if self._wake is None:
                self._wake = Wake()
            if id(hub) not in self._hubs:
                key = id(hub)
                cache._bells(self._wake.address, True)
                self._hubs[key] = weakref.ref(hub, partial(self._gone, key))
            self._wake.ring()

    def begin(self) -> None:
        """Once there is somebody to serve, and without a lock: this waits for the thread, and a ``__del__`` in that may
        come here. Whoever finds none has one begun, and is told if it cannot be; the first that runs stays."""
        if self._hubs and not self._over and not self._has_thread():
            threading.Thread(
                target=endure, args=(self._run,), name="gbcache-events", daemon=True
            ).start()

    def _has_thread(self) -> bool:
        thread = self._thread
        return thread is not None and thread.is_alive()

    def _gone(self, key: int, _: object) -> None:
        self._hubs.pop(key, None)
        self.ring()

    def forget(self, hub: Served, cache: Any) -> None:
        with self._lock:
            if self._hubs.pop(id(hub), None) is not None and self._wake is not None:
                cache._bells(self._wake.address, False)
                self._wake.ring()  # it may have been the last

    def finish(self, hub: Served) -> None:
        """Keeps the hub of a closed cache until all is delivered."""
        with self._lock:
            if self._wake is not None:
                hub.silence(self._wake)
            if id(hub) in self._hubs:
                self._ending.append(hub)
        self.ring()

    def ring(self) -> None:
        if self._wake is not None:
            self._wake.ring()

    def _all(self) -> list[Served]:
        return [hub for ref in list(self._hubs.values()) if (hub := ref()) is not None]

    def _asked(self, ask: Callable[..., bool], hub: Served, *args: Any) -> bool:
        """What the hub says. One that fails is left out from now on: the thread is everybody's."""
        try:
            return ask(*args)
        except SHORT:
            raise
        except BaseException as error:
            if is_short(error):
                raise
            report(error, ask)
            with self._lock:  # else one that joins now would have no bell
                self._hubs.pop(id(hub), None)
                if self._wake is not None:
                    hub.silence(self._wake)
                hub.over("thread")
            return False

    def _round(self) -> bool:
        more = sum([self._asked(hub.turn, hub) for hub in self._all()]) > 0
        for hub in [h for h in self._ending if not self._asked(h.pending, h, "thread")]:
            self._ending.remove(hub)
            self._hubs.pop(id(hub), None)
            hub.over("thread")
        return more

    def _quiet(self) -> bool:
        return not any([self._asked(hub.pending, hub, "thread") for hub in self._all()])

    def _run(self) -> None:
        wake = self._wake
        assert wake is not None
        me = threading.current_thread()
        with self._lock:
            if not self._has_thread():
                self._thread = me
            if self._thread is not me:
                return
        while not self._over:
            if self._round():
                continue
            with self._lock:
                if not self._hubs:
                    self._thread = None
                    return
            wake.bell.arm()
            if self._quiet() and not self._over:
                wake.sleep(None)
            wake.bell.disarm()

    def stop(self) -> None:
        """At exit: what is pending has half a second."""
        until = time.monotonic() + 0.5
        if self._thread is threading.current_thread():
            return
        while not self._quiet() and time.monotonic() < until:
            time.sleep(0.005)
        self._over = True
        self.ring()
        thread = self._thread
        if thread is not None:
            thread.join(max(0.1, until - time.monotonic()))


_one = Dispatcher()


def the() -> Dispatcher:
    """The process's dispatcher."""
    return _one


def reborn() -> Wake | None:
    """In a forked child: a new one. The old one's descriptor, which is the parent's: its thread, if it is the one that
    forked, ends once the subscriber returns, and never sleeps on it."""
    global _one
    old, _one = _one, Dispatcher()
    old._over = True
    return old._wake


def _at_exit() -> None:
    the().stop()


atexit.register(_at_exit)
