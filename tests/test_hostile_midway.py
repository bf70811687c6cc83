"""Called back in the midst of its own long write, save or load: no hang, no crash, and the file is whole.

Each runs in a forked child with an alarm: before it was mended, most of them hung or crashed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from children import isolated

import gbcache
from gbcache import Cache, ClosedError, ObjectCache, snapshot

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
BIG = 300_000


def full(**options: Any) -> Cache:
    cache = Cache("1MB", **options)
    for i in range(1200):
        cache[i] = b"x" * 1000
    return cache


def crowded(entries: int = 60_000) -> Cache:
    """Takes several turns to save, and has long values at its end."""
    cache = Cache("64MB")
    for i in range(entries // 100):
        cache[-1 - i] = b"y" * 20_000
    for i in range(entries):
        cache[i] = b"x" * 100
    return cache


# --- of a long write ------------------------------------------------------------------------------

ACTS: dict[str, Callable[[Cache], Any]] = {
    "clear": lambda c: c.clear(),
    "resize": lambda c: c.resize("200kB"),
    "long": lambda c: c.set("other", b"z" * 800_000),
}


@pytest.mark.parametrize("act", ACTS)
@isolated
def test_a_subscriber_within_a_long_write(act: str) -> None:
    cache, said = full(), list[type]()

    def hostile(event: gbcache.Event) -> None:
        if not said:
            said.append(type(None))
            try:
                ACTS[act](cache)
            except (RuntimeError, ValueError) as error:
                said[0] = type(error)

    cache.subscribe(hostile, kinds="evict", delivery="inline")
    cache["big"] = b"y" * BIG
    assert said and (act == "long" or said == [RuntimeError])
    assert cache["big"] == b"y" * BIG
    cache.check()
    cache.clear()
    cache.resize("300kB")
    cache.check()


@isolated
def test_a_close_within_a_long_write() -> None:
    cache = full()
    cache.subscribe(lambda event: cache.close(), kinds="evict", delivery="inline")
    with pytest.raises(ClosedError):
        cache["big"] = b"y" * BIG


@isolated
def test_a_fork_within_a_long_write() -> None:
    cache, pids = full(), list[int]()

    def forks(event: gbcache.Event) -> None:
        if not pids:
            pids.append(os.fork())
            if not pids[0]:
                signal.alarm(20)

    cache.subscribe(forks, kinds="evict", delivery="inline")
    try:
        cache["big"] = b"y" * BIG
    except RuntimeError:
        if pids[0]:
            raise
    cache.check()
    if not pids[0]:
        sound = "big" not in cache
        cache["big"] = b"y" * BIG
        cache.check()
        os._exit(0 if sound else 1)
    assert cache["big"] == b"y" * BIG
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0


def forked_as_room_is_made() -> int:
    """Of a write whose first eviction forks: how the child ended. 2: it was told that its write was of the parent's."""
    cache, pids, key, full = Cache("1MB"), list[int](), "k" * 900, False

    def forks(event: gbcache.Event) -> None:
        if full and not pids:
            pids.append(os.fork())
            if not pids[0]:
                signal.alarm(20)

    cache.subscribe(forks, kinds="evict", delivery="inline")  # its log makes room: filled after it
    for i in range(40_000):
        cache[i] = i
    full = True
    try:
        cache[key] = b"y" * BIG
    except RuntimeError:
        if pids[0]:
            raise
        os._exit(2)
    sound = cache[key] == b"y" * BIG
    cache.clear()
    cache.check()
    if not pids[0]:
        os._exit(0 if sound else 1)
    assert sound
    return os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1])


@isolated
def test_a_fork_before_a_long_write_has_its_block() -> None:
    """As room is made for its key: nothing of it was given up, and it goes on in the child, too.

    One layout of sixty (they are of the hash's seed) has room for the key, and evicts for the value: the test above.
    """
    ends = [forked_as_room_is_made() for _ in range(6)]
    assert set(ends) <= {0, 2} and ends.count(0) >= 3, ends


# --- of a save ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["progress", "signal"])
@pytest.mark.parametrize("live", [False, True])
@isolated
def test_a_close_within_a_save(tmp_path: Path, how: str, live: bool) -> None:
    path = tmp_path / "a.gbc"
    cache = Cache("64MB", path=path) if live else crowded()
    for i in range(60_000 if live else 0):
        cache[i] = b"x" * 100
    save = cache.sync if live else lambda **how: cache.save(tmp_path / "a.gbs", **how)
    snapshot._TURN = 0 if how == "progress" else 50  # type: ignore[misc]
    if how == "signal":
        signal.signal(signal.SIGUSR1, lambda *_: cache.close())
        threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    try:
        save(progress=(lambda done, total: cache.close()) if how == "progress" else None)
    except ClosedError:
        assert cache.closed
    time.sleep(0.02)
    cache.close()
    assert not (tmp_path / "a.gbs.saving").exists()
    if live:
        with Cache.open(path, "r+") as again:
            again.check()
            assert len(again) == 60_000


@isolated
def test_a_close_within_a_save_that_waits_for_dead_long_values(tmp_path: Path) -> None:
    """They are nobody's then: a file that is closed is opened without a walk over its blocks."""
    cache = Cache("8MB", path=tmp_path / "a.gbc")
    for i in range(190):
        cache[i] = b"y" * 20_000
    snapshot._TURN = 0  # type: ignore[misc]

    def progress(done: int, total: int) -> None:
        for i in range(190):
            cache.pop(i, None)
        cache.close()

    with pytest.raises(ClosedError):
        cache.sync(progress=progress)
    with Cache.open(tmp_path / "a.gbc", "r+") as again:
        assert again.recovery.how == "clean" and not len(again)  # type: ignore[union-attr]
        again.check()


@isolated
def test_a_close_within_a_save_that_the_sync_waits_for(tmp_path: Path) -> None:
    cache = Cache("1MB", path=tmp_path / "a.gbc", sync_interval=0.01)
    cache["k"] = 1

    def progress(done: int, total: int) -> None:
        time.sleep(0.1)  # the thread that syncs comes, and waits for this save
        cache.close()

    with contextlib.suppress(ClosedError):
        cache.save(tmp_path / "a.gbs", progress=progress)
    assert cache.closed
    with Cache.open(tmp_path / "a.gbc", "r+") as again:
        assert again["k"] == 1


@isolated
def test_a_clear_and_a_write_within_a_save(tmp_path: Path) -> None:
    cache, said = Cache("4MB"), list[str]()
    for i in range(190):
        cache[i] = b"y" * 20_000

    def fill() -> None:
        for i in range(300):
            cache[-1 - i] = b"z" * 20_000

    def progress(done: int, total: int) -> None:
        for act in (cache.clear, fill) if done < total else ():
            try:
                act()
            except RuntimeError as error:
                said.append(str(error))

    snapshot._TURN = 0  # type: ignore[misc]  # or it were done in one
    cache.save(tmp_path / "a.gbs", progress=progress)
    assert len(said) >= 2 and all("this thread itself" in text for text in said)
    with Cache.open(tmp_path / "a.gbs") as again:
        assert len(again) == 190
    cache.check()
    cache.clear()
    cache.check()


@pytest.mark.parametrize("last", [False, True])
@isolated
def test_a_fork_within_a_save(tmp_path: Path, last: bool) -> None:
    cache, pids = crowded(), list[int]()
    snapshot._TURN = 0  # type: ignore[misc]

    def forks(done: int, total: int) -> None:
        if not pids and (done == total or not last):
            pids.append(os.fork())
            if not pids[0]:
                signal.alarm(20)

    try:
        cache.save(tmp_path / "a.gbs", progress=forks)
    except (ClosedError, RuntimeError):
        if pids[0]:
            raise
        cache.check()
        os._exit(7)
    cache.check()
    assert pids[0], "the child has renamed its parent's file"
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 7
    with Cache.open(tmp_path / "a.gbs") as again:
        assert len(again) == len(cache)


@isolated
def test_a_child_does_not_wait_for_its_parents_save(tmp_path: Path) -> None:
    cache, go = crowded(), threading.Event()
    save = cache.save(
        tmp_path / "a.gbs", wait=False, progress=lambda done, total: go.wait(20) and None
    )
    pid = os.fork()
    if not pid:
        signal.alarm(10)
        with contextlib.suppress(RuntimeError):
            save.wait()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    go.set()
    assert save.wait() > 0


# --- of live files --------------------------------------------------------------------------------


@isolated
def test_a_child_leaves_its_parents_file_alone(tmp_path: Path) -> None:
    """Forked while a thread writes long values: what they are written to is the parent's."""
    cache = Cache("8MB", path=tmp_path / "a.gbc")
    stop, wrong = threading.Event(), list[Any]()

    def write(seed: int) -> None:
        n = 0
        while not stop.is_set():
            n += 1
            value = bytes([seed, n % 251]) * 500_000
            cache[seed] = value
            if cache.get(seed, value) != value:
                wrong.append(n)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(60):
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
    stop.set()
    for thread in threads:
        thread.join()
    cache.check()
    assert not wrong
    cache.close()


@isolated
def test_a_close_leaves_nothing_half_written_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.gbc"
    for _ in range(10):
        cache = Cache("40MB", path=path)
        begun = threading.Event()

        def write(cache: Cache = cache, begun: threading.Event = begun) -> None:
            begun.set()
            with contextlib.suppress(ClosedError):
                for n in range(100):
                    cache[n % 3] = bytes([n]) * 9_000_000

        thread = threading.Thread(target=write)
        thread.start()
        begun.wait()
        time.sleep(0.003)
        cache.close()
        thread.join()
        with Cache("40MB", path=path) as again:
            again.check()


# --- and clocks, and what was never made ----------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda **how: Cache("1MB", **how), lambda **how: ObjectCache(10, **how)]
)
@pytest.mark.parametrize("far", [2.0**43 / 1000, 1e11, 1e300, float("inf"), float("nan")])
@isolated
def test_a_clock_that_is_further_than_a_wheel_tells(make: Any, far: float) -> None:
    now = [0.0]
    cache = make(clock=lambda: now[0])
    cache.set("b", 1, ttl=3_155_760_000)
    now[0] = far
    with pytest.raises(ValueError, match="not a time in seconds"):
        cache.set("a", 1, ttl=5)
    now[0] = 2.0**43 / 1000 - 1
    cache.set("a", 1, ttl=3_155_760_000)
    assert cache["a"] == 1 and "b" not in cache
    cache.check()


@isolated
def test_a_cache_that_was_never_initialised_and_its_codec() -> None:
    class Never(gbcache.Cache):
        def __init__(self) -> None:
            pass

    with pytest.raises(ClosedError, match="never initialised"):
        Never()["a"] = [1]


@isolated
def test_a_cache_that_is_closed_while_it_is_filled(tmp_path: Path) -> None:
    made: list[Cache] = []

    class Published(gbcache.Cache):
        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, **how)
            made.append(self)

    with Cache("1MB") as cache:
        cache["k"] = 1
        cache.save(tmp_path / "a.gbs")
    with pytest.raises(ClosedError):
        Published.open(tmp_path / "a.gbs", progress=lambda done, total: made[0].close())


@isolated
def test_an_interrupt_while_room_is_made_for_a_ring() -> None:
    """What was begun is left: blocks go on being moved together, and nobody is evicted for want of that."""
    cut, inside = 0, False

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        if inside:
            raise Stop

    signal.signal(signal.SIGVTALRM, stop)
    for n in range(40):
        cache = Cache("8MB")  # a ring that is there is not made again
        for i in range(80_000):
            cache[i] = b"x" * 40
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0005 * (1 + n % 10))
        try:
            inside = True
            cache._listen(1, False, 4_000_000)
            inside = False
        except Stop:
            inside, cut = False, cut + 1
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if cut:
            break
    assert cut, "no interrupt came in its midst"
    for i in range(0, 80_000, 2):
        cache.pop(i, None)
    before = cache.stats().evictions
    for i in range(200):
        cache[f"long{i}"] = b"z" * 3000
    assert cache.stats().evictions - before < 400
    cache.check()
