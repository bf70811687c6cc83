"""memoize: a hit to functools.lru_cache's, and to the peers' decorators; what a miss and an instance cost."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from typing import Any

import gbcache
from bench.ops import interleaved
from bench.report import Report
from bench.space import rss

__all__ = ["run"]

CALLS = 100_000


def inner(x: int) -> int:
    return x


def pair(x: int, y: str) -> int:
    return x


def hits(fn: Callable[..., Any], *args: Any) -> float:
    """ns a call, loop and all."""
    start = time.perf_counter()
    if len(args) == 1:
        (x,) = args
        for _ in range(CALLS):
            fn(x)
    else:
        x, y = args
        for _ in range(CALLS):
            fn(x, y)
    return (time.perf_counter() - start) / CALLS * 1e9


def methods(obj: Any) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        obj.m(1)
    return (time.perf_counter() - start) / CALLS * 1e9


def misses(fn: Callable[..., Any], start: list[int]) -> float:
    first = start[0]
    start[0] += CALLS
    began = time.perf_counter()
    for i in range(first, first + CALLS):
        fn(i)
    return (time.perf_counter() - began) / CALLS * 1e9


def peers() -> dict[str, Callable[..., Any]]:
    """The decorators people use, around `inner`; those that are installed."""
    found: dict[str, Callable[..., Any]] = {}
    try:
        import cachebox

        found["cachebox.cached"] = cachebox.cached(cachebox.LRUCache(128))(inner)
    except ImportError:
        pass
    try:
        import cachetools

        found["cachetools.cached"] = cachetools.cached(cachetools.LRUCache(128))(inner)
    except ImportError:
        pass
    try:
        import theine

        found["theine.Memoize"] = theine.Memoize(128, None)(inner)
    except ImportError:
        pass
    try:
        import moka_py

        found["moka_py.cached"] = moka_py.cached(maxsize=128)(inner)
    except ImportError:
        pass
    return found


def ratios(report: Report, what: str, best: dict[str, float], aim: float | None) -> None:
    floor = best["functools"]
    report.row(f"{what} / functools", best["memoize"] / floor, "x", at_most=aim, ns=best["memoize"],
               functools_ns=floor, more_us=(best["memoize"] - floor) / 1e3)  # fmt: skip
    for name in best:
        if name not in ("functools", "memoize"):
            report.row(f"    {name}", best[name] / floor, "x", ns=best[name])


class Ours:
    @gbcache.memoize
    def m(self, x: int) -> int:
        return x


class Theirs:
    @functools.lru_cache  # noqa: B019
    def m(self, x: int) -> int:
        return x


def run(quick: bool) -> Report:
    report = Report("memo", quick)
    one = {"functools": functools.lru_cache(inner), "memoize": gbcache.memoize(inner),
           "memoize(ttl=60)": gbcache.memoize(ttl=60)(inner),
           "memoize(cache=Cache)": gbcache.memoize(cache=gbcache.Cache("1MB"))(inner), **peers()}  # fmt: skip
    best = interleaved({name: lambda f=f: hits(f, 1) for name, f in one.items()}, 5 if quick else 9)
    ratios(report, "hit, one int", best, 0.65)
    two = {"functools": functools.lru_cache(pair), "memoize": gbcache.memoize(pair)}
    best = interleaved({name: lambda f=f: hits(f, 1, "y") for name, f in two.items()})
    ratios(report, "hit, an int and a str", best, None)
    best = interleaved({"functools": lambda: methods(theirs), "memoize": lambda: methods(ours)})
    ratios(report, "hit, a method", best, None)
    at = [0]
    best = interleaved({"functools": lambda: misses(one["functools"], at),
                        "memoize": lambda: misses(one["memoize"], at)}, 3)  # fmt: skip
    ratios(report, "miss, one flight per key", best, None)
    many = [Ours() for _ in range(1000)]
    gc.collect()
    before = rss()
    for obj in many:
        obj.m(1)
    report.row("bytes an instance with a memoized method", (rss() - before) / len(many), "B")
    return report


ours, theirs = Ours(), Theirs()
