"""One thread for the process, which gives expired bytes back where nobody calls.

It starts when a cache that has a TTL registers, looks at every such cache each `PERIOD`, and works in
slices without the GIL. It holds no cache alive, ends when no cache is left, and does not outlive the
interpreter. In a forked child it starts anew on the first need.
"""

from __future__ import annotations

import atexit
import threading
import warnings
import weakref
from functools import partial
from time import sleep
from typing import TYPE_CHECKING

from . import forks
from .locks import Latch, Lock, endure

if TYPE_CHECKING:
    from ._packed import PackedStore

__all__ = ["PERIOD", "join", "keep"]

PERIOD = 0.04
"""Seconds between two rounds: expired bytes begin to come back within 100 ms."""
EAGER = 0.004
"""The same where somebody is to be told of what expires: within 20 ms."""
SLICES = 2000
"""Slices of one cache in one round, before the next cache's turn: about 20 ms of work."""

# By id, not in a WeakSet: a cache is unhashable, as every mapping is.
_kept: dict[int, weakref.ref[PackedStore]] = {}
_wake = Latch()
_starting = Lock()  # a signal handler or __del__ may write a TTL in the middle of it
_over = False
_thread: threading.Thread | None = None


def keep(store: PackedStore) -> None:
    """Has the housekeeper look after `store` from now on: it has got its first TTL. Idempotent."""
    key = id(store)
    with _starting:
        _kept[key] = weakref.ref(store, partial(_kept.pop, key))
    _start()


def _start() -> None:
    """Without the lock: this waits for the thread, and a ``__del__`` in that may write a TTL."""
    global _thread
    if _thread is not None or _over:
        return
    thread = threading.Thread(target=endure, args=(_run,), name="gbcache-housekeeper", daemon=True)
    try:
        with _starting:
            if _thread is not None or _over:
                return
            _thread = thread
        thread.start()
    except BaseException as error:
        with _starting:
            if _thread is thread:
                _thread = None
        if not isinstance(error, RuntimeError):
            if _kept:
                _start()  # for who came meanwhile, and saw one
            raise
        # no thread to be had; entries expire on sight all the same
        if "shutdown" not in str(error):  # from 3.12 on none is begun as the interpreter ends
            warnings.warn(f"gbcache: no housekeeper thread: {error}", RuntimeWarning, stacklevel=2)


def _round() -> float:
    """One look at every cache; seconds until the next."""
    rest = PERIOD
    for key, ref in _kept.copy().items():  # a collection may take out of it
        store = ref()
        if store is None or store.closed:
            with _starting:  # another store may be where this one was
                if _kept.get(key) is ref:
                    del _kept[key]
        elif store._timed():
            rest = min(rest, 0.0005 if store._work(SLICES) else EAGER if store._eager() else PERIOD)
    return rest


def _run() -> None:
    global _thread
    rest = PERIOD
    while True:
        with _starting:
            if _thread is not threading.current_thread():  # `start` failed, and yet this runs
                return
            if not _kept:
                _thread = None
                return
        if _wake.wait(rest):
            return
        rest = _round()


def _stop() -> None:
    global _over
    _over = True
    _wake.open()
    if _starting.acquire(5.0):  # from here on none is begun
        _starting.release()
    thread = _thread
    if thread is not None and thread is not threading.current_thread():
        join(thread, 5.0)


def join(thread: threading.Thread, seconds: float | None = None) -> None:
    """Until it has ended; one that somebody is about to start can be joined once it was."""
    for _ in range(5000):
        try:
            thread.join(seconds)
            return
        except RuntimeError:
            if thread.is_alive():  # a handler's
                raise
            sleep(0.001)


def _in_child() -> None:
    global _thread, _starting, _wake
    _thread, _starting, _wake = None, Lock(), Latch()
    if _kept:
        _start()


atexit.register(_stop)
forks.in_child(_in_child)
