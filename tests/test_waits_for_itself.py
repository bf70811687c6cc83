"""A thread that is called back in the midst of its own work, by a subscriber or a signal's handler, and would wait for
another one that waits for that work: a RuntimeError, whatever the other one does."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from children import isolated, survives
from heard import in_thread, joined, until

from gbcache import Cache, ClosedError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

SAYS = "wait for this thread itself"


def filled(**options: Any) -> Any:
    cache = Cache("4MB", **options)
    cache.update((i, b"x" * 60) for i in range(30_000))
    return cache


def held(lock: Any) -> bool:
    """Whether another thread has it."""
    got = lock.acquire(False)  # or, of a Lock, within 0 s
    if got:
        lock.release()
    return not got


def resizing(cache: Any) -> bool:
    return held(cache._resizing)


# --- in the midst of its own long write, while another thread resizes ----------------------------


def interrupted_write(cache: Any, call: Callable[[], object]) -> Any:
    """What `call` raised in an inline subscriber of a long write, for which another thread's resize waits."""
    came: list[Any] = []

    def shrink() -> None:
        try:
            cache.resize("1MB")
        except ClosedError as error:
            came.append(error)

    def told(event: object) -> None:
        if came:
            return
        came.append(None)
        came.append(in_thread(shrink))
        assert until(lambda: resizing(cache))
        try:
            call()
        except BaseException as error:
            came[0] = error

    sub = cache.subscribe(told, kinds="evict", delivery="inline")
    try:
        cache["long"] = b"y" * 2_000_000
    except ClosedError:
        assert cache.closed
    joined(came[1])
    assert not sub.errors
    return came[0]


@isolated
def test_a_save_in_a_long_write_while_another_thread_resizes(tmp_path: Path) -> None:
    cache = filled()
    error = interrupted_write(cache, lambda: cache.save(tmp_path / "s"))
    assert isinstance(error, RuntimeError) and SAYS in str(error)
    assert cache.max_bytes == 1_000_000 and cache.save(tmp_path / "s")
    cache.check()


@isolated
def test_a_sync_in_a_long_write_while_another_thread_resizes(tmp_path: Path) -> None:
    cache = filled(path=tmp_path / "live")
    error = interrupted_write(cache, cache.sync)
    assert isinstance(error, RuntimeError) and SAYS in str(error)
    assert cache.max_bytes == 1_000_000 and cache.sync()
    cache.check()


@isolated
def test_a_save_in_a_long_write_while_nobody_resizes(tmp_path: Path) -> None:
    cache, saved = filled(), []

    def told(event: object) -> None:
        if not saved:
            saved.append(cache.save(tmp_path / "s"))

    sub = cache.subscribe(told, kinds="evict", delivery="inline")
    cache["long"] = b"y" * 2_000_000
    assert saved[0] and not sub.errors
    cache.check()


@isolated
def test_a_live_file_is_closed_in_a_long_write_while_another_thread_resizes(tmp_path: Path) -> None:
    """The thread that syncs waits for who resizes, who waits for the write."""
    cache = filled(path=tmp_path / "live", sync_interval=0.01)
    there, go, goes, sync = threading.Event(), threading.Event(), threading.Event(), cache.sync

    def syncs() -> None:
        there.set()
        go.wait(20)
        goes.set()
        sync()

    def close() -> None:
        go.set()
        assert goes.wait(20)
        cache.close()

    cache.sync = syncs
    assert there.wait(20)
    assert interrupted_write(cache, close) is None
    assert cache.closed
    joined(cache._file._syncing)
    Cache(None, path=tmp_path / "live").check()


@isolated
def test_who_waits_for_another_ones_resize_can_be_interrupted(tmp_path: Path) -> None:
    cache, over = filled(), threading.Event()

    def hold() -> None:
        with cache._alone("resize"):
            over.wait(20)

    def handler(*args: object) -> None:
        raise InterruptedError

    thread = in_thread(hold)
    assert until(lambda: resizing(cache))
    signal.signal(signal.SIGUSR1, handler)
    main = threading.get_ident()
    timer = threading.Timer(0.05, lambda: signal.pthread_kill(main, signal.SIGUSR1))
    with pytest.raises(InterruptedError):
        timer.start()
        cache.save(tmp_path / "s")
    over.set()
    joined(thread)
    assert cache.save(tmp_path / "s")


# --- in a signal's handler, in the midst of making room ------------------------------------------


def struck(call: Callable[..., object]) -> Any:
    """Finds a signal there as it begins: from C to C, no handler runs before its own first look."""
    strike = partial(ctypes.pythonapi.PyErr_SetInterruptEx, int(signal.SIGUSR1))

    def begun(*args: Any) -> None:
        list(map(partial.__call__, [strike, partial(call, *args)]))

    return begun


class Handler:
    """What a handler does that runs as the cache makes room, and what that raised."""

    def __init__(self, cache: Any, step: str, call: Callable[[], object]) -> None:
        self.call, self.times = call, 0
        self.error: BaseException | None = None
        setattr(cache, step, struck(getattr(cache, step)))
        signal.signal(signal.SIGUSR1, self)

    def __call__(self, *args: object) -> None:
        self.times += 1
        if self.times > 1:
            return
        try:
            self.call()
        except BaseException as error:
            self.error = error

    def refused(self) -> bool:
        return isinstance(self.error, RuntimeError) and SAYS in str(self.error)


@isolated
def test_the_first_reader_in_a_resize() -> None:
    cache = filled()
    handler = Handler(cache, "_shrink", lambda: cache.watch())
    cache.resize("1MB")
    assert handler.refused() and cache.max_bytes == 1_000_000
    with cache.watch() as watch:
        cache["a"] = 1
        assert [event.key for event in watch.read(timeout=0)] == ["a"]
    cache.check()


@isolated
def test_a_resize_in_the_first_watch() -> None:
    cache = filled()
    handler = Handler(cache, "_ring", lambda: cache.resize("1MB"))
    with cache.watch() as watch:
        assert handler.refused() and cache.max_bytes == 4_000_000
        cache["a"] = 1
        assert [event.key for event in watch.read(timeout=0)] == ["a"]
    cache.resize("1MB")
    cache.check()


@isolated
def test_a_resize_that_is_cut_off_leaves_nothing_to_wait_for() -> None:
    cache = filled()

    def handler(*args: object) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        cache.watch()

    cache._shrink = struck(cache._shrink)
    signal.signal(signal.SIGUSR1, handler)
    with pytest.raises(RuntimeError, match=SAYS):
        cache.resize("1MB")
    assert cache.max_bytes == 4_000_000
    cache.watch().close()
    cache.resize("2MB")
    cache.check()


@isolated
def test_a_save_in_the_first_watch_while_another_thread_resizes(tmp_path: Path) -> None:
    cache, threads = filled(), list[threading.Thread]()

    def save() -> None:
        threads.append(in_thread(lambda: cache.resize("1MB")))
        assert until(lambda: resizing(cache))
        cache.save(tmp_path / "s")

    handler = Handler(cache, "_ring", save)
    cache.watch().close()
    joined(*threads)
    assert handler.refused() and cache.max_bytes == 1_000_000
    cache.check()


@isolated
def test_a_child_forked_in_a_resize_has_nothing_to_wait_for() -> None:
    cache = filled()

    def child() -> None:
        cache.watch().close()
        cache.check()

    handler = Handler(cache, "_shrink", lambda: survives(child))
    cache.resize("1MB")
    assert handler.times and handler.error is None and cache.max_bytes == 1_000_000


@isolated
def test_a_child_of_another_thread_has_nothing_to_wait_for() -> None:
    cache, failed = filled(), list[BaseException]()

    def child() -> None:
        cache.watch().close()
        cache.resize("2MB")
        cache.check()

    def fork() -> None:
        try:
            survives(child)
        except BaseException as error:
            failed.append(error)

    handler = Handler(cache, "_shrink", lambda: joined(in_thread(fork)))
    cache.resize("1MB")
    assert handler.times and handler.error is None and not failed


@isolated
def test_the_first_reader_in_a_resize_while_another_thread_is_one() -> None:
    """It waits for who resizes, and holds up all who read."""
    cache, readers = filled(), list[threading.Thread]()

    def watch() -> None:
        hub = cache._events()
        readers.append(in_thread(lambda: cache.watch().close()))
        until(lambda: held(hub._changing), 0.5)
        cache.watch()

    handler = Handler(cache, "_shrink", watch)
    cache.resize("1MB")
    joined(*readers)
    assert handler.refused() and cache.max_bytes == 1_000_000
    cache.watch().close()
    cache.check()
