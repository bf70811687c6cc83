"""Threads, forks, the housekeeper: what happens when more than one is at it."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from children import survives

import gbcache
from gbcache import housekeeper

SHORT = os.environ.get("GB_SLICE") == "short"


def together(*jobs: Any) -> None:
    """Runs the jobs at once; the first exception of any is raised here."""
    errors: list[BaseException] = []

    def guarded(job: Any) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


@pytest.fixture(autouse=True)
def switch_often() -> Any:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_incr_loses_nothing() -> None:
    with gbcache.Cache("1MB") as cache:
        together(*[lambda: [cache.incr("n") for _ in range(5000)]] * 4)
        assert cache["n"] == 20_000
        cache.check()


def test_add_has_one_winner() -> None:
    with gbcache.Cache("1MB") as cache:
        wins: list[int] = []
        together(*[lambda: wins.extend(i for i in range(3000) if cache.add(i, 1))] * 4)
        assert sorted(wins) == list(range(3000))


def test_everything_at_once_with_long_values() -> None:
    """Values say what they are, so a torn or foreign one shows."""
    with gbcache.Cache("3MB", ttl=0.5) as cache:

        def value(key: int, size: int) -> bytes:
            return key.to_bytes(4, "little") * (size // 4)

        def work(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(150 if SHORT else 600):
                key = rng.randrange(40)
                size = rng.choice((40, 400, 5000, 80_000, 400_000))
                what = rng.random()
                if what < 0.5:
                    cache.set(key, value(key, size), ttl=rng.choice((None, 0.01, 5)))
                elif what < 0.9:
                    got = cache.get(key)
                    assert got is None or got == value(key, len(got))
                elif what < 0.93:
                    cache.pop(key, None)
                elif what < 0.95:
                    got = cache.get_many(range(40))
                    assert all(v == value(k, len(v)) for k, v in got.items())
                elif what < 0.97:
                    assert all(v == value(k, len(v)) for k, v in cache.items())
                elif what < 0.98:
                    cache.resize(rng.choice(("2MB", "3MB", "4MB")))
                elif what < 0.985:
                    cache.clear()
                else:
                    cache.expire()

        together(*[lambda s=s: work(s) for s in range(4)])
        cache.check()


def test_resizes_of_several_threads() -> None:
    """One after the other: a mapping cut by one while another has grown the image would crash."""
    with gbcache.Cache("4MB") as cache:

        def work(seed: int) -> None:
            rng = random.Random(seed)
            for i in range(20 if SHORT else 100):
                cache.resize(rng.choice(("1MB", "2MB", "4MB", "8MB")))
                for k in range(50):
                    cache[seed, i, k] = b"x" * rng.choice((50, 20_000))

        together(*[lambda s=s: work(s) for s in range(4)])
        cache.check()
        assert cache.memory().total == cache.max_bytes


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_resize_within_resize() -> None:
    """A signal handler that resizes in the middle of a resize gets an error, not a deadlock."""
    seen: list[BaseException] = []
    with gbcache.Cache("64MB") as cache:
        cache.set_many((i, b"x" * 1000) for i in range(50_000))

        def handler(*_: object) -> None:
            try:
                cache.resize("32MB")
            except RuntimeError as error:
                seen.append(error)

        before = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        try:
            for _ in range(200):
                cache.resize("16MB")
                cache.resize("64MB")
                cache.set_many((i, b"x" * 1000) for i in range(20_000))
                if seen:
                    break
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert seen and "within resize" in str(seen[0])
        cache.check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_resize_is_given_up() -> None:
    """Ctrl-C in the middle of a shrink: the budget stays, and all of it can be used."""
    with gbcache.Cache("64MB") as cache:
        cache.set_many((i, b"x" * 1000) for i in range(50_000))

        def handler(*_: object) -> None:
            raise InterruptedError("enough")

        before = signal.signal(signal.SIGALRM, handler)
        raised = 0
        try:
            for _ in range(200):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.002)
                    cache.resize("8MB")
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except InterruptedError:
                    raised = cache.memory().total > 8_000_000
                    if raised:
                        break
                cache.resize("64MB")
                cache.set_many((i, b"x" * 1000) for i in range(50_000))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert raised and cache.max_bytes == 64_000_000
        cache.check()
        cache["long"] = b"y" * 60_000_000
        assert len(cache["long"]) == 60_000_000
        cache.check()


def test_close_while_others_read() -> None:
    for _ in range(10 if SHORT else 40):
        cache = gbcache.Cache("2MB", ttl=1)
        big = os.urandom(300_000)
        cache["big"] = big

        def read(cache: Any = cache, big: bytes = big) -> None:
            try:
                while True:
                    assert cache["big"] == big
                    cache["small"] = 1
            except gbcache.ClosedError:
                pass

        together(read, read, lambda cache=cache: (time.sleep(0.002), cache.close()))


# --- housekeeping --------------------------------------------------------------------------------


def until(true: Any, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.005)
    return False


def test_expired_bytes_come_back_without_traffic() -> None:
    with gbcache.Cache("4MB") as cache:
        free = cache.memory().parts["free"]
        for i in range(5000):
            cache.set(i, b"x" * 100, ttl=0.05)
        cache["stays"] = 1
        assert until(lambda: len(cache) == 1), "nobody cleaned up"
        assert cache.stats().expirations == 5000
        assert cache.memory().parts["free"] > free - 300_000
        cache.check()


def test_housekeeping_can_be_switched_off() -> None:
    with gbcache.Cache("1MB", ttl=0.02, housekeeping=False) as cache:
        cache["k"] = 1
        time.sleep(0.2)
        assert len(cache) == 1 and cache.get("k") is None and len(cache) == 0


def test_the_thread_starts_late_and_ends() -> None:
    code = """
import gbcache, threading, time, gc
def running():
    return any(t.name == "gbcache-housekeeper" for t in threading.enumerate())
cache = gbcache.Cache("1MB")
cache["k"] = 1
assert not running(), "started without a TTL"
cache.set("k", 1, ttl=100)
assert running()
cache.close()
end = time.monotonic() + 5
while running() and time.monotonic() < end:
    time.sleep(0.01)
assert not running(), "outlived its last cache"
other = gbcache.Cache("1MB", ttl=0.01)
other["k"] = 1
while len(other) and time.monotonic() < end:
    time.sleep(0.01)
assert len(other) == 0, "did not come back"
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "fine\n", done.stderr


def test_exit_with_a_live_cache_and_threads() -> None:
    code = """
import gbcache, threading
cache = gbcache.Cache("4MB", ttl=0.001)
def work():
    while True:
        cache["k"] = bytes(200_000)
        cache.get("k")
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
import time; time.sleep(0.05)
"""
    for _ in range(3 if SHORT else 10):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr


def test_a_forgotten_cache_is_freed() -> None:
    cache = gbcache.Cache("1MB", ttl=60)
    cache["k"] = 1
    key = id(cache)
    assert key in housekeeper._kept
    del cache
    gc.collect()
    assert until(lambda: key not in housekeeper._kept and key not in gbcache.forks._stores)


def test_a_cache_that_goes_while_the_housekeeper_looks() -> None:
    """A collection may end one cache's life between the looks at two others."""
    code = """
import gbcache
from gbcache import housekeeper
caches = [gbcache.Cache("1MB", ttl=60) for _ in range(3)]
for cache in caches:
    cache["k"] = 1
del cache
assert len(housekeeper._kept) == 3
housekeeper._kept[id(caches[0])] = lambda: caches.clear()  # in place of the reference to the first
housekeeper._round()
assert list(housekeeper._kept) == [], "all are gone"
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "fine\n", done.stderr


# --- forks ---------------------------------------------------------------------------------------

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@forks
def test_a_childs_cache_is_its_own() -> None:
    with gbcache.Cache("1MB") as cache:
        cache["k"] = "parent"

        def child() -> None:
            cache["k"] = "child"
            cache["new"] = 1
            assert cache["k"] == "child"
            cache.check()

        survives(child)
        assert cache["k"] == "parent" and "new" not in cache


@forks
def test_the_housekeeper_goes_on_in_a_child() -> None:
    with gbcache.Cache("1MB") as cache:
        cache.set("k", 1, ttl=0.3)

        def child() -> None:
            assert until(lambda: len(cache) == 0, 8)

        survives(child)


@forks
def test_fork_under_load() -> None:
    with gbcache.Cache("3MB", ttl=0.01) as cache:
        stop = threading.Event()

        def load() -> None:
            i = 0
            while not stop.is_set():
                i += 1
                cache[i % 50] = b"v" * (i % 5 * 60_000)
                cache.get(i % 31)

        def fork() -> None:
            try:
                for _ in range(5 if SHORT else 25):
                    survives(
                        lambda: (
                            cache.check(),
                            cache.set("c", b"x" * 100_000, ttl=None),
                            cache["c"],
                        )
                    )
            finally:
                stop.set()

        together(load, load, fork)
        cache.check()


@forks
def test_a_child_is_not_held_up_by_what_the_parents_threads_read() -> None:
    """A read under way keeps a clear waiting: in the child there is nobody to end it."""
    with gbcache.Cache("12MB") as cache:
        cache["k"] = bytes(10 << 20)
        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                assert len(cache["k"]) == 10 << 20

        def fork() -> None:
            try:
                for _ in range(5 if SHORT else 20):
                    survives(cache.clear)
            finally:
                stop.set()

        together(read, fork)


@forks
def test_the_cache_works_in_fork_hooks() -> None:
    code = """
import os, gbcache
cache = gbcache.Cache("1MB")
os.register_at_fork(before=lambda: cache.incr("before"), after_in_child=lambda: cache.incr("child"),
                    after_in_parent=lambda: cache.incr("parent"))
pid = os.fork()
if pid == 0:
    os._exit(0 if cache["child"] == 1 and cache["before"] == 1 else 1)
assert os.waitpid(pid, 0)[1] == 0
assert cache["parent"] == 1 and cache["before"] == 1 and "child" not in cache
cache.set("big", bytes(200_000))
cache.check()
print("fine")
"""
    for order in ("import gbcache", "import os"):
        done = subprocess.run(
            [sys.executable, "-c", order + code], capture_output=True, text=True, timeout=60
        )
        assert done.stdout == "fine\n", done.stderr


def test_a_signal_handler_may_use_the_cache() -> None:
    with gbcache.Cache("2MB", ttl=5) as cache:
        rang: list[int] = []

        def ring(*_: Any) -> None:
            rang.append(cache.incr("rings"))

        old = signal.signal(signal.SIGALRM, ring)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                cache["big"] = bytes(200_000)
                assert len(cache["big"]) == 200_000
                cache.get_many(range(100))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        assert cache["rings"] == len(rang) > 0
        cache.check()


def test_of_long_values_added_at_once_one_is_there() -> None:
    """Each is written without the lock; those that come too late give back what they wrote."""
    with gbcache.Cache("40MB") as cache, ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            ready = threading.Barrier(4)
            values = [bytes([i]) * 2_000_000 for i in range(4)]
            waits = [ready.wait] * 4
            added = list(pool.map(lambda wait, v: (wait(20), cache.add("k", v))[1], waits, values))
            assert sum(added) == 1 and cache["k"] == values[added.index(True)]
            assert cache.memory().parts["pending"] == 0
            del cache["k"]
