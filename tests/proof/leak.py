"""What calls leave behind: references (drift.py, under a debug interpreter), and memory over millions of operations."""

from __future__ import annotations

import argparse
import gc
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import said

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))
LIMIT = 1 << 20
SLOW = {"Tiered over a Disk": 40}
"""Of these, so many times fewer operations."""


def rss() -> int:
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Mixed:
    """A mixed load on one cache: verbs with `keys` keys, some of them an error."""

    def __init__(self, cache: Any, seed: int, planted: list[Any] | None) -> None:
        self.cache, self.random, self.planted = cache, random.Random(seed), planted
        self.keys = [f"key:{i}" for i in range(2000)] + list(range(500))
        self.values = ["v" * n for n in (1, 20, 100, 300)] + [
            7,
            b"x" * 50,
            None,
            1.5,
            [1, (2,)],
            {"a": [1]},
        ]

    def run(self, n: int) -> int:
        """At least `n` operations; how many."""
        c, done = self.cache, 0
        sets, pops = c.set, getattr(c, "discard", None) or (lambda key: c.pop(key, None))
        while done < n:
            keys = self.random.choices(self.keys, k=256)
            values = self.random.choices(self.values, k=64)
            for key, value in zip(keys, values, strict=False):
                sets(key, value)
                c.get(key)
            for key in keys[64:160]:
                c.get(key)
            for key in keys[160:176]:
                sets(key, 1, ttl=0.05)
                c.touch(key, ttl=1)
                pops(key)
            c.get_many(keys[176:240])
            c.set_many(dict(zip(keys[240:], values, strict=False)))
            c.delete_many(keys[:8])
            for bad in ([], {}):
                with suppress(TypeError):
                    c.get(bad)
            with suppress(ValueError):
                sets("k", 1, ttl=-1)
            if self.planted is not None:
                self.planted.append(bytes(2048))
            done += 128 + 96 + 48 + 64 + 16 + 8 + 3
        return done


def makers() -> dict[str, Callable[[], Any]]:
    import fars

    from gbcache import Cache, ObjectCache, Tiered, memoize
    from gbcache.disk import Disk

    class Memo:
        """`memoize` with the verbs of a cache."""

        def __init__(self) -> None:
            self.fn = memoize(maxsize=1000, ttl=5)(lambda key, by=1: (key, by))
            self.get = self.pop = self.fn
            self.touch = lambda key, ttl: self.fn.cache_invalidate(key)
            self.get_many = self.delete_many = lambda keys: [self.fn(k) for k in keys]

        def set(self, key: Any, value: Any, ttl: float = 1) -> None:
            if ttl < 0:
                raise ValueError(ttl)
            self.fn(key, by=2)

        def set_many(self, items: Any) -> None:
            for key in items:
                self.fn(key)

    def tiered(**options: Any) -> Any:
        far = fars.Full()
        far.calls = type("Forget", (list,), {"append": lambda self, call: None})()
        return Tiered(Cache("1MB"), far, **options)

    def on_disk() -> Any:
        folder = tempfile.TemporaryDirectory()
        cache: Any = Tiered(Cache("100kB"), Disk(folder.name, sync="never"))
        cache.folder = folder  # as long as the process
        return cache

    def told(cache: Any) -> Any:
        cache.subscribe(lambda event: None, values=True)
        cache.subscribe(lambda event: None, delivery="inline", kinds="evict")
        return cache

    return {
        "Cache": lambda: Cache("300kB"),
        "Cache, told": lambda: told(Cache("1MB", events="100kB")),
        "ObjectCache": lambda: ObjectCache(1000, ttl=60),
        "ObjectCache, told": lambda: told(ObjectCache(1000, events=1000)),
        "memoize": Memo,
        "Tiered": tiered,
        "Tiered, behind": lambda: tiered(write="behind", behind_seconds=0.01),
        "Tiered over a Disk": on_disk,
    }


def grows(name: str, operations: int, seed: int, planted: bool) -> list[int]:
    """Bytes the process grew by in each of three stretches, the least first, in a child that knows nothing of the
    others."""
    mixed = Mixed(makers()[name](), seed, [] if planted else None)
    mixed.run(operations // 10)
    grown = []
    for _ in range(3):
        before = rss()
        mixed.run(operations // 3)
        grown.append(rss() - before)
    return sorted(grown)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--operations", type=int, default=10_000_000)
    parser.add_argument("--child", default="")
    parser.add_argument(
        "--planted", action="store_true", help="2 KiB are kept of each 363 operations"
    )
    parser.add_argument("--no-drift", action="store_true")
    options = parser.parse_args()
    if options.child:
        print(*grows(options.child, options.operations, options.seed, options.planted))
        return 0
    if not options.no_drift:
        ran = subprocess.run(
            [sys.executable, str(TESTS / "drift.py")], capture_output=True, text=True, check=False
        )
        last = (ran.stdout.strip().splitlines() or [ran.stderr[-300:]])[-1]
        print(ran.stdout, end="")
        figure = re.sub("^drift: ", "", last)
        said.row(
            "references left by a call",
            figure,
            ran.returncode == 0 and figure.endswith("none drift"),
        )
    for name in makers():
        begun, operations = time.monotonic(), options.operations // SLOW.get(name, 1)
        call = [sys.executable, __file__, "--child", name, "--operations", str(operations)]
        call += ["--seed", str(options.seed), *(["--planted"] if options.planted else [])]
        ran = subprocess.run(call, capture_output=True, text=True, check=False)
        grown = [int(n) for n in ran.stdout.split()] if ran.returncode == 0 else []
        print(ran.stderr, end="")
        figure = (
            f"{', '.join(f'{n / 1024:,.0f}' for n in grown) or 'no'} KiB of growth in the thirds"
        )
        said.row(
            f"memory, {name}",
            f"{figure} of {operations:,} operations, {time.monotonic() - begun:.0f} s, seed {options.seed}",
            len(grown) == 3 and grown[1] < LIMIT // 3,  # one alone may hold what is made once
        )
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
