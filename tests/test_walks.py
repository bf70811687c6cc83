"""Iterations beside others that use, write and remove: each key of the moment once, and none is left out."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gbcache import Cache, ObjectCache

KEYS = 12_000 if os.environ.get("GB_SLICE") == "short" else 60_000


def beside(work: Callable[[], Any], others: list[Callable[[random.Random], Any]]) -> None:
    """Does `work` while each of `others` is called again and again in a thread."""
    stop, errors = threading.Event(), list[BaseException]()

    def run(call: Callable[[random.Random], Any], seed: int) -> None:
        drawn = random.Random(seed)
        try:
            while not stop.is_set():
                call(drawn)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call, n)) for n, call in enumerate(others)]
    for thread in threads:
        thread.start()
    try:
        work()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors


@pytest.mark.parametrize(
    "make", [lambda: Cache("16MB"), lambda: ObjectCache()], ids=["Cache", "ObjectCache"]
)
def test_each_key_once_beside_readers(make: Callable[[], Any], tmp_path: Path) -> None:
    """A save under way has the lock taken, with the GIL, too: others come in between two holds of a walk."""
    cache = make()
    cache.update((n, n) for n in range(KEYS))

    def use(drawn: random.Random) -> None:
        cache.get_many([drawn.randrange(KEYS) for _ in range(64)])

    def save(_: random.Random) -> None:
        cache.save(tmp_path / "s")

    def walk() -> None:
        for _ in range(4):
            times = Counter(iter(cache))
            assert len(times) == KEYS and set(times.values()) == {1}
            assert dict(cache.items()) == dict(zip(range(KEYS), range(KEYS), strict=True))

    beside(walk, [use, use, *([save] if isinstance(cache, Cache) else [])])
    assert cache.stats().evictions == 0


def test_those_that_stay_beside_writers() -> None:
    """Overwritten, moved, inserted, removed: whoever was there before and after is in it, once."""
    cache = Cache("16MB")
    stays = range(0, KEYS // 4, 3)
    cache.update((n, b"v") for n in range(KEYS // 4))

    def write(drawn: random.Random) -> None:
        for _ in range(64):
            n = drawn.randrange(KEYS // 4)
            if n % 3 == 0:
                cache.set(n, bytes(drawn.randrange(40)), ttl=drawn.choice([None, 100]))
            elif drawn.random() < 0.5:
                cache.pop(n, None)
            else:
                cache[n] = b"again"
            cache[f"new {drawn.randrange(1000)}"] = 1

    def walk() -> None:
        for _ in range(20):
            times = Counter(iter(cache))
            assert set(times.values()) == {1}
            assert [n for n in stays if n not in times] == []

    beside(walk, [write, write])
    cache.check()
    assert cache.stats().evictions == 0


def test_what_is_used_meanwhile_comes_last() -> None:
    """And where nobody comes in between, the order is that of use."""
    cache = Cache("1MB")
    cache.update((n, n) for n in range(1000))
    for n in (7, 3, 999):
        cache.get(n)
    order = list(cache)
    assert order[-3:] == [7, 3, 999] and order[:5] == [0, 1, 2, 4, 5]
    cache.clear()
    assert list(cache) == []
