"""What `test_hammer.py` strikes with: caches of each kind, threads, and work in which each value says what it is."""

from __future__ import annotations

import os
import random
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from typing import Any

import gbcache

SECONDS = float(os.environ.get("GB_HAMMER", "0.25"))
SEED = int(os.environ.get("SEED", "1"))
FREE = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
NO_GIL = FREE or os.environ.get("GB_EXPECT") in ("free", "tsan")
THREADS = 4
KEYS = 60

CACHES: dict[str, Callable[[], Any]] = {
    "Cache": lambda: gbcache.Cache("1MB", ttl=5),
    "bounded Cache": lambda: gbcache.Cache("1MB", max_entries=40, events="64KiB"),
    "ObjectCache": lambda: gbcache.ObjectCache(ttl=5),
    "bounded ObjectCache": lambda: gbcache.ObjectCache(40),
    "weighed ObjectCache": lambda: gbcache.ObjectCache(
        max_weight=4000, weigh=lambda k, v: len(v), ttl=0.05
    ),
}


def hammer(*jobs: Callable[[random.Random], None], seconds: float = SECONDS) -> None:
    """Each job again and again in a thread of its own, once at least, until the time is over; the first exception is
    raised. The time begins when all threads are there: on a busy machine it was over before one of them was."""
    errors: list[BaseException] = []
    ready = threading.Barrier(len(jobs))

    def work(job: Callable[[random.Random], None], seed: int) -> None:
        draw = random.Random(seed)
        try:
            ready.wait()
            until = time.monotonic() + seconds
            job(draw)
            while time.monotonic() < until and not errors:
                job(draw)
            if NO_GIL:  # a module that asks for it switches it on for all: nothing would be shown
                assert not getattr(sys, "_is_gil_enabled", lambda: True)(), "the GIL is on"
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=(job, SEED * 100 + i), daemon=True)
        for i, job in enumerate(jobs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60 + 4 * seconds)
        assert not thread.is_alive(), f"a thread hangs (SEED={SEED})"
    if errors:
        raise errors[0]


class Key:
    """A key whose hash and == are Python's."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __hash__(self) -> int:
        return hash(self.number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and other.number == self.number


def value_of(number: int, length: int) -> str:
    return f"{number:03}" * length


def right(number: int, value: Any) -> None:
    assert value is None or value == f"{number:03}" * (len(value) // 3), (number, value[:40])


def every_verb(cache: Any, key: Callable[[int], Any], number: Callable[[Any], int]) -> Any:
    def job(draw: random.Random) -> None:
        for _ in range(50):
            n, what = draw.randrange(KEYS), draw.random()
            if what < 0.3:
                cache.set(
                    key(n), value_of(n, draw.choice((1, 5, 40))), draw.choice((None, 0.002, 3))
                )
            elif what < 0.6:
                right(n, cache.get(key(n)))
            elif what < 0.66:
                right(n, cache.pop(key(n), None))
            elif what < 0.72:
                right(n, cache.setdefault(key(n), value_of(n, 3)))
            elif what < 0.76:
                cache.touch(key(n), 1)
            elif what < 0.80:
                for k, v in cache.get_many([key(i) for i in range(n, n + 20)]).items():
                    right(number(k), v)
            elif what < 0.84:
                cache.set_many({key(i): value_of(i, 2) for i in range(n, n + 4)})
            elif what < 0.88:
                right(n, cache.get_or_set(key(n), lambda n=n: value_of(n, 7)))
            elif what < 0.92:
                for k, v in list(cache.items()):
                    right(number(k), v)
            elif what < 0.94:
                cache.delete_many([key(n), key(n + 1)])
            elif what < 0.96:
                try:
                    k, v = cache.popitem()
                    right(number(k), v)
                except KeyError:
                    pass
            elif what < 0.98:
                cache.expire()
            elif what < 0.99:
                assert cache.stats().entries >= 0 and len(cache) >= 0
            else:
                cache.clear()

    return job
