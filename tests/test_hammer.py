"""Four threads at one object, each value saying what it is: with the GIL, and on an interpreter without one.

``make free`` runs these where threads really run at once, ``make proof-threads`` under ThreadSanitizer, and in a
build in which what keeps threads apart is left out: there they must fail (GB_HAMMER=seconds for each test).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from fars import Dict
from hammering import CACHES, FREE, KEYS, SECONDS, THREADS, Key, every_verb, hammer, value_of

import gbcache


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("make", CACHES)
def test_every_verb(make: str) -> None:
    with CACHES[make]() as cache:
        hammer(*[every_verb(cache, lambda n: f"key{n}", lambda k: int(k[3:]))] * THREADS)
        cache.check()
        assert not cache._flights


@pytest.mark.parametrize("make", ["ObjectCache", "bounded ObjectCache", "weighed ObjectCache"])
def test_keys_that_run_python(make: str) -> None:
    with CACHES[make]() as cache:
        hammer(*[every_verb(cache, Key, lambda k: k.number)] * THREADS)
        cache.check()
        assert not cache._flights


def test_numbers_are_counted_once() -> None:
    for make in CACHES:
        if make.startswith("weighed"):
            continue
        with CACHES[make]() as cache:
            sums = [0] * THREADS

            def count(draw: random.Random, me: int, cache: Any = cache, sums: Any = sums) -> None:
                cache.incr("n", 3)
                sums[me] += 3

            hammer(*[lambda d, i=i: count(d, i) for i in range(THREADS)], seconds=SECONDS / 2)
            assert cache["n"] == sum(sums)


def test_what_leaves_comes_back() -> None:
    """Destructors that write to the cache they leave."""
    cache = gbcache.ObjectCache(20)

    class Value:
        def __init__(self, number: int) -> None:
            self.number = number

        def __del__(self) -> None:
            if self.number % 7 == 0 and not cache.closed:
                cache.get(self.number + 1)
                cache.set(-self.number, None)

    def job(draw: random.Random) -> None:
        n = draw.randrange(KEYS)
        cache[n] = Value(n)
        held = cache.get(draw.randrange(KEYS))
        assert held is None or held.number in range(KEYS)

    hammer(*[job] * THREADS)
    cache.check()
    cache.close()


@pytest.mark.parametrize("make", ["Cache", "ObjectCache"])
def test_an_iterator_that_is_shared(make: str) -> None:
    with CACHES[make]() as cache:
        for i in range(500):
            cache[i] = i
        for _ in range(3):
            walk, seen = iter(cache), [[] for _ in range(THREADS)]
            ready = threading.Barrier(THREADS)

            def work(mine: list[int], walk: Any = walk, ready: Any = ready) -> None:
                ready.wait()
                mine.extend(walk)

            threads = [threading.Thread(target=work, args=(mine,)) for mine in seen]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert sorted(i for mine in seen for i in mine) == list(range(500))


@pytest.mark.parametrize("make", ["Cache", "ObjectCache"])
def test_bounds_that_change(make: str) -> None:
    with CACHES[make]() as cache:
        small, large = (("300KB", "3MB"), (30, 5000))[make == "ObjectCache"]

        def resize(draw: random.Random) -> None:
            cache.resize(draw.choice((small, large)))

        hammer(resize, *[every_verb(cache, lambda n: f"key{n}", lambda k: int(k[3:]))] * 3)
        cache.check()


@pytest.mark.parametrize("make", ["Cache", "ObjectCache"])
def test_closed_in_the_middle(make: str) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        cache = CACHES[make]()
        ready = threading.Barrier(THREADS)

        def work(cache: Any = cache, ready: Any = ready) -> None:
            ready.wait()
            n = 0
            try:
                while True:
                    n += 1
                    cache[n % 50] = "v" * (n % 90)
                    cache.get((n * 7) % 50)
                    if n % 16 == 0:
                        list(cache.items())
                        len(cache)
            except gbcache.ClosedError:
                pass

        def close(cache: Any = cache, ready: Any = ready) -> None:
            ready.wait()
            time.sleep(0.002)
            cache.close()

        threads = [threading.Thread(target=work) for _ in range(3)] + [
            threading.Thread(target=close)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert cache.closed


@pytest.mark.parametrize("make", ["Cache", "ObjectCache"])
def test_forks(make: str) -> None:
    """A child has the cache as its own, whoever was at it when it was forked."""
    with CACHES[make]() as cache:

        def fork(draw: random.Random) -> None:
            child = os.fork()
            if not child:
                try:
                    signal.alarm(60)
                    cache["key1"] = value_of(1, 3)
                    fine = (
                        cache["key1"] == value_of(1, 3)
                        and cache.get_or_set("key99", lambda: 9) == 9
                    )
                    os._exit(0 if fine else 1)
                finally:
                    os._exit(2)
            assert os.waitpid(child, 0)[1] == 0

        hammer(fork, *[every_verb(cache, lambda n: f"key{n}", lambda k: int(k[3:]))] * 3)
        cache.check()


# --- loads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["Cache", "ObjectCache"])
def test_what_is_deleted_is_not_served(make: str) -> None:
    """Each thread changes the truth of its own keys, then deletes them: what was loaded before must not come."""
    with CACHES[make]() as cache:
        truth: dict[Any, int] = defaultdict(int)

        def look(key: Any) -> int:
            return cache.get_or_set(key, lambda: truth[key])  # type: ignore[no-any-return]

        def job(draw: random.Random, me: int) -> None:
            key = ("truth", me, draw.randrange(3))
            truth[key] += 1
            cache.pop(key, None)
            assert look(key) == truth[key]
            for _ in range(4):
                look(("truth", draw.randrange(THREADS), draw.randrange(3)))

        hammer(*[lambda d, i=i: job(d, i) for i in range(THREADS)])
        cache.check()
        assert not cache._flights


def test_a_memo() -> None:
    calls: list[int] = []

    @gbcache.memoize(maxsize=30)
    def square(n: int) -> int:
        calls.append(n)
        return n * n

    class Shape:
        def __init__(self, side: int) -> None:
            self.side = side

        @gbcache.memoize(maxsize=10)
        def times(self, n: int) -> int:
            return self.side * n

    shapes = [Shape(i) for i in range(5)]

    def job(draw: random.Random) -> None:
        for _ in range(20):
            n, shape = draw.randrange(KEYS), draw.choice(shapes)
            assert square(n) == n * n
            assert shape.times(n % 20) == shape.side * (n % 20)
            assert Shape.times(shape, n % 7) == shape.side * (n % 7)
        if draw.random() < 0.01:
            square.cache_clear()
        if draw.random() < 0.02:
            shapes[draw.randrange(5)] = Shape(draw.randrange(9))

    hammer(*[job] * THREADS)
    assert square.cache_info().currsize <= 30 and calls


def test_one_call_for_a_key() -> None:
    calls: list[int] = []
    ready = threading.Barrier(THREADS)

    @gbcache.memoize()
    def slowly(n: int) -> int:
        calls.append(n)
        time.sleep(0.0005)
        return -n

    def work() -> None:
        ready.wait()
        for n in range(200):
            assert slowly(n) == -n

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(calls) == list(range(200))


# --- events ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["Cache", "ObjectCache"])
@pytest.mark.parametrize("delivery", ["thread", "inline"])
def test_no_event_is_missed(make: str, delivery: str) -> None:
    """What three threads write, a watch and a subscriber hear: all of it, each thread's in its order."""
    with gbcache.Cache("8MB", events="4MB") if make == "Cache" else gbcache.ObjectCache() as cache:
        written = [0] * 3
        heard: list[Any] = []
        read: list[Any] = []
        sub = cache.subscribe(heard.append, kinds=["set", "replace"], delivery=delivery)
        watch = cache.watch(kinds=["set", "replace"])

        def write(draw: random.Random, me: int) -> None:
            written[me] += 1
            cache[me] = written[me]
            if (
                written[me] % 200 == 0
            ):  # so that nothing is lost; not for ever, the listener may have ended
                for _ in range(1000):
                    if min(len(heard), len(read)) + 3000 >= sum(written):
                        break
                    time.sleep(0.001)

        def listen(draw: random.Random) -> None:
            read.extend(watch.read(timeout=0.01))

        hammer(listen, *[lambda d, i=i: write(d, i) for i in range(3)])
        until = time.monotonic() + 30
        while len(read) < sum(written):
            listen(random.Random())
            assert time.monotonic() < until, (len(read), sum(written))
        while len(heard) < sum(written):
            time.sleep(0.001)
            assert time.monotonic() < until, (len(heard), sum(written))
        for events in (read, heard):
            assert all(event.kind != "lost" for event in events)
            for me in range(3):
                assert sum(event.key == me for event in events) == written[me]
        seqs = [event.seq for event in read]
        assert seqs == sorted(set(seqs))
        sub.close()
        watch.close()
        cache.check()


def test_who_hears_changes() -> None:
    """Subscribers come and go while others write."""
    for make in ("Cache", "ObjectCache"):
        with CACHES[make]() as cache:

            def listen(draw: random.Random, cache: Any = cache) -> None:
                heard: list[Any] = []
                how = draw.choice(("inline", "thread"))
                with cache.subscribe(heard.append, delivery=how), cache.watch() as watch:
                    cache["key0"] = value_of(0, 1)
                    watch.read(timeout=0.001)

            verbs = every_verb(cache, lambda n: f"key{n}", lambda k: int(k[3:]))
            hammer(listen, listen, verbs, verbs)
            cache.check()


# --- tiers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("near", ["Cache", "ObjectCache"])
@pytest.mark.parametrize("write", ["through", "behind"])
def test_a_tier(near: str, write: str) -> None:
    """Each thread finds what it wrote last; in the end the far side has it, and memory has nothing else."""
    far = Dict()
    with gbcache.Tiered(CACHES[near](), far, write=write, behind_seconds=0.005) as tier:
        last: list[dict[Any, Any]] = [{} for _ in range(THREADS)]

        def job(draw: random.Random, me: int) -> None:
            key, mine = (me, draw.randrange(10)), last[me]
            if draw.random() < 0.6:
                mine[key] = value_of(draw.randrange(KEYS), 4)
                tier[key] = mine[key]
            elif draw.random() < 0.2:
                mine.pop(key, None)
                tier.pop(key, None)
            assert tier.get(key) == mine.get(key)
            tier.get((draw.randrange(THREADS), draw.randrange(10)))

        hammer(*[lambda d, i=i: job(d, i) for i in range(THREADS)])
        tier.sync()
        want = {key: value for mine in last for key, value in mine.items()}
        assert {key: found[0] for key, found in far.data.items()} == want
        for me in range(THREADS):
            for n in range(10):
                assert tier.get((me, n)) == want.get((me, n))


# --- the interpreter -------------------------------------------------------------------------------------


@pytest.mark.skipif(not FREE, reason="an interpreter with the GIL")
def test_the_gil_stays_off() -> None:
    """No module of ours asks for it: a warning would be an error."""
    names = sorted(
        name[:-3]
        for name in os.listdir(os.path.dirname(gbcache.__file__))
        if name.endswith(".py")
        and name[:-3]
        not in ("__init__", "__main__", "disk", "engine", "lmdbstore", "verbs", "view")
    )  # a Disk is the package lmdb's affair, which asks for the GIL
    code = "import sys, importlib\n" + "".join(
        f"importlib.import_module('gbcache.{n}')\n" for n in names
    )
    code += "importlib.import_module('gbcache._disk')\nassert not sys._is_gil_enabled()"
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHON_GIL", "LD_PRELOAD")}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
