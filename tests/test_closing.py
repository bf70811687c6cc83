"""A cache that is closed while it is filled, or that closes while a signal comes; a live file cut short."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from children import isolated, run

from gbcache import Cache, ClosedError, ImageError, files, snapshot


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Longer than what a load takes huge pages for."""
    with Cache("64MB") as cache:
        for i in range(40_000):
            cache[i] = b"x" * 200
        cache.save(tmp_path / "a.gbs")
    return tmp_path / "a.gbs"


class Known(Cache):
    """One that others can reach before it is there."""

    made: Known

    def __init__(self, *args: Any, **how: Any) -> None:
        Known.made = self
        super().__init__(*args, **how)


def in_a_thread(cache: Cache) -> None:
    thread = threading.Thread(target=cache.close)
    thread.start()
    thread.join()


@pytest.mark.parametrize("close", [Cache.close, in_a_thread])
def test_closed_while_it_is_filled(saved: Path, close: Callable[[Cache], None]) -> None:
    @isolated
    def test() -> None:
        with pytest.raises(ClosedError):
            Known.open(saved, progress=lambda done, total: close(Known.made))
        with pytest.raises(ZeroDivisionError):
            Known.open(saved, progress=lambda done, total: close(Known.made) or 1 // 0)
        assert Known.made.closed

    test()


@isolated
def test_closed_just_before_it_is_filled(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = snapshot.load

    def late(store: Any, *args: Any) -> int:
        store.close()
        return load(store, *args)

    monkeypatch.setattr(snapshot, "load", late)
    with pytest.raises(ClosedError):
        Cache.open(saved)


@isolated
@pytest.mark.parametrize("step", ["fill", "_after_checkpoint", "_opened"])
def test_closed_while_a_live_file_is_made(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """By a signal's handler, say, between any two of its steps."""
    path = tmp_path / "a.gbc"
    os.rename(saved, f"{path}.checkpoint")
    where: Any = snapshot if step == "fill" else Cache
    call = getattr(where, step)

    def late(cache: Cache, *args: Any) -> Any:
        cache.close()
        return call(cache, *args)

    monkeypatch.setattr(where, step, late)
    with pytest.raises(ClosedError):
        Cache("64MB", path=path)
    monkeypatch.undo()
    with Cache("64MB", path=path) as cache:
        assert cache.recovery is not None and cache.recovery.how == "checkpoint"
        assert len(cache) == 40_000


@isolated
def test_closed_by_another_thread_while_it_is_filled(saved: Path) -> None:
    """It waits for a turn's end: what is filled is not taken away beneath it."""
    for i in range(30):
        thread = threading.Timer(0.0005 * i, lambda: Known.made.close())
        thread.start()
        with contextlib.suppress(ClosedError):
            Known.open(saved).close()
        thread.join()


@isolated
def test_a_fork_while_another_thread_fills_a_cache(tmp_path: Path) -> None:
    """The child has the lists of blocks as they were between two turns."""
    with Cache("64MB") as cache:
        for i in range(6):
            cache[i] = b"x" * 9_000_000
        cache.save(tmp_path / "long.gbs")
    over = list[int]()

    def fills() -> None:
        while not over:
            Cache.open(tmp_path / "long.gbs").close()

    thread = threading.Thread(target=fills)
    thread.start()
    for _ in range(40):
        pid = os.fork()
        if not pid:
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    over.append(1)
    thread.join()


@pytest.mark.parametrize("on_error", ["raise", "empty"])
def test_a_live_file_shorter_than_it_says(tmp_path: Path, on_error: str) -> None:
    path = tmp_path / "a.gbc"
    code = """
cache = gbcache.Cache("1MB", path=sys.argv[1])
cache["k"] = 1
cache.sync()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(code, path).returncode == -signal.SIGKILL
    os.truncate(path, 500_000)
    with Cache("1MB", path=path, on_error=on_error) as cache:  # from its checkpoint
        assert cache.recovery is not None and cache["k"] == 1
    assert run(code, path).returncode == -signal.SIGKILL
    os.truncate(path, 500_000)
    os.remove(f"{path}.checkpoint")
    if on_error == "raise":
        with pytest.raises(ImageError):
            Cache("1MB", path=path)
    else:
        with Cache("1MB", path=path, on_error="empty") as cache:
            assert len(cache) == 0 and cache.recovery is not None


class Told(Exception):
    pass


def tell(*_: object) -> None:
    raise Told


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="an exception may come between any two lines"
)
@isolated
def test_a_signal_while_a_close_waits(tmp_path: Path) -> None:
    """It is closed nonetheless, and sealed: nobody could come back to it."""
    path, big, told = tmp_path / "a.gbc", b"x" * 60_000_000, 0
    signal.signal(signal.SIGALRM, tell)
    for i in range(1, 200):
        cache = Cache("150MB", path=path)
        thread = threading.Thread(target=lambda c=cache: c.set("k", big))  # type: ignore[misc]
        thread.start()
        time.sleep(0.005)
        signal.setitimer(signal.ITIMER_REAL, 0.0002 * (1 + i % 10))
        try:
            cache.close()
            time.sleep(0.01)
        except Told:
            told += cache.closed
            cache.close()
        with contextlib.suppress(ClosedError):
            thread.join()
        del cache
        with Cache("150MB", path=path) as again:
            assert again.recovery is not None and again.recovery.how == "clean"
        if told > 3:
            break
    assert told, "no signal came while it waited"


def test_a_live_file_is_anothers_only_once_it_is_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who closes a cache that another thread is closing comes before that: the file is still mapped."""
    sealing, go = threading.Event(), threading.Event()

    class Slow(mmap.mmap):
        def flush(self, *at: int) -> None:
            super().flush(*at)
            if not at:  # the whole of it
                sealing.set()
                assert go.wait(20)

    monkeypatch.setattr(mmap, "mmap", Slow)
    cache = Cache("1MB", path=tmp_path / "a.gbc")
    monkeypatch.undo()
    cache["k"] = 1
    first = threading.Thread(target=cache.close)
    first.start()
    assert sealing.wait(20)
    cache.close()
    with pytest.raises(BlockingIOError):
        Cache("1MB", path=tmp_path / "a.gbc")
    go.set()
    first.join(20)
    with Cache("1MB", path=tmp_path / "a.gbc") as after:
        assert after["k"] == 1 and after.recovery.how == "clean"


@pytest.mark.parametrize(("of", "name"), [(files, "extend"), (os, "dup")])
def test_a_live_file_that_is_closed_as_it_grows_lengthens_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: Any, name: str
) -> None:
    """The number of its descriptor is the next file's that is opened."""
    cache = Cache("2MB", path=tmp_path / "a.gbc")
    others: list[int] = []
    call = getattr(of, name)

    def closed_first(*args: int) -> Any:
        closes = threading.Thread(target=cache.close)
        closes.start()
        closes.join(20)
        others.extend(
            os.open(tmp_path / f"other{i}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC) for i in range(4)
        )
        return call(*args)

    monkeypatch.setattr(of, name, closed_first)
    was = set(os.listdir("/dev/fd"))
    with pytest.raises(ClosedError):
        cache.resize("4MB")
    assert [os.fstat(fd).st_size for fd in others] == [0] * 4
    for fd in others:
        os.close(fd)
    assert set(os.listdir("/dev/fd")) <= was, "a descriptor is left"
    with Cache("2MB", path=tmp_path / "a.gbc") as cache:
        assert cache.recovery is not None and cache.recovery.how == "clean"
