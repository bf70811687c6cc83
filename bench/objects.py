"""ObjectCache: ratios to dict and to the peers that hold references, memory by RSS, the slowest call."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from array import array
from collections.abc import Callable
from typing import Any

import gbcache
from bench.adapters import (
    Adapter,
    CacheBox,
    CacheTools,
    Dict,
    LruDict,
    MokaPy,
    Theine,
    installed,
)
from bench.latency import best_of, quantiles
from bench.ops import RANDOM, each, each_pair, interleaved, key, value, zipf
from bench.report import Report
from bench.space import rss

__all__ = ["run"]

OURS = "gbcache.ObjectCache"
PEERS: list[type[Adapter]] = [CacheBox, LruDict, CacheTools, Theine, MokaPy]


class Objects(Adapter):
    name = OURS

    def __init__(self, entries: int, max_bytes: int) -> None:
        self.held = gbcache.ObjectCache(entries)
        self.get, self.set = self.held.get, self.held.set


def filled(kind: type[Adapter], n: int) -> Any:
    cache = kind(n, 0)
    order = list(range(n))
    RANDOM.shuffle(order)
    for i in order:
        cache.set(key(i), value(i))
    return cache


def items(held: Any, keys: list[str]) -> float:
    start = time.perf_counter()
    for k in keys:
        held[k]
    return (time.perf_counter() - start) / len(keys) * 1e9


def ratios(report: Report, what: str, best: dict[str, float], aim: float | None) -> None:
    floor = best["dict"]
    report.row(f"{what} / dict", best[OURS] / floor, "x", at_most=aim, ns=best[OURS], dict_ns=floor)
    for name in best:
        if name not in ("dict", OURS):
            report.row(f"    {name}", best[name] / floor, "x", ns=best[name])


def reads(
    report: Report, label: str, n: int, draws: list[int], get: float, item: float | None
) -> None:
    caches = {kind.name: filled(kind, n) for kind in (Dict, Objects, *installed(PEERS))}
    keys = [key(i) for i in draws]
    absent = [f"not{i:09d}" for i in range(len(draws))]
    tasks = lambda keys: {name: lambda c=c: each(c.get, keys) for name, c in caches.items()}  # noqa: E731
    ratios(report, f"get, {label}", interleaved(tasks(keys)), get)
    if item:
        both = {name: lambda c=c: items(c.held, keys) for name, c in list(caches.items())[:2]}
        ratios(report, f"c[k], {label}", interleaved(both), item)
    ratios(report, f"miss, {label}", interleaved(tasks(absent)), 0.5)


def bulk(report: Report, n: int, draws: list[int]) -> None:
    ours, floor = filled(Objects, n), filled(Dict, n)
    batches = [[key(i) for i in draws[j : j + 256]] for j in range(0, len(draws) - 255, 256)]
    get = floor.get

    def loop() -> float:
        start = time.perf_counter()
        for batch in batches:
            [get(k) for k in batch]
        return (time.perf_counter() - start) / len(batches) / 256 * 1e9

    best = interleaved({"dict": loop, OURS: lambda: each(ours.held.get_many, batches) / 256})  # type: ignore[arg-type]
    ratios(report, "get_many of 256, 1M uniform, a loop over d.get", best, 0.15)


def insert_dict(held: dict[str, Any], pairs: list[tuple[str, bytes]]) -> float:
    """What an LRU of insertions is to a dict: set, and delete the oldest."""
    oldest = iter(list(itertools.islice(held, len(pairs))))
    start = time.perf_counter()
    for k, v in pairs:
        held[k] = v
        del held[next(oldest)]
    return (time.perf_counter() - start) / len(pairs) * 1e9


def writes(report: Report, n: int) -> None:
    over = [(key(RANDOM.randrange(n)), value(i)) for i in range(n)]
    caches = {kind.name: filled(kind, n) for kind in (Dict, Objects, *installed(PEERS))}
    best = interleaved({name: lambda c=c: each_pair(c.set, over) for name, c in caches.items()}, 5)
    ratios(report, "overwrite", best, 1.35)
    turns: dict[str, float] = {}
    fresh = itertools.count(n)
    gc.disable()
    for _ in range(5):
        pairs = [(key(i), value(i)) for i in itertools.islice(fresh, n)]
        for name, c in caches.items():
            ns = insert_dict(c.held, pairs) if name == "dict" else each_pair(c.set, pairs)
            turns[name] = min(turns.get(name, 1e18), ns)
    gc.enable()
    ratios(report, "insert + evict, objects that come and go", turns, None)
    ratios(report, "insert + evict, set + del of the oldest", circle(n), 0.55)


def circle(n: int) -> dict[str, float]:
    """The same where keys and values live on elsewhere: the caches' own work, not the allocator's."""
    keys, one = [key(i) for i in range(2 * n)], value(0)
    RANDOM.shuffle(keys)
    caches = {kind.name: kind(n, 0) for kind in (Dict, Objects, *installed(PEERS))}
    for cache in caches.values():
        for k in keys[:n]:
            cache.set(k, one)
    turns: dict[str, float] = {}
    gc.disable()
    for i in range(8):
        pairs = [(k, one) for k in keys[(i + 1) % 2 * n :][:n]]
        for name, c in caches.items():
            ns = insert_dict(c.held, pairs) if name == "dict" else each_pair(c.set, pairs)
            turns[name] = min(turns.get(name, 1e18), ns)
    gc.enable()
    return turns


def timed(report: Report, n: int) -> None:
    held: dict[str, Any] = {}
    mortal = gbcache.ObjectCache(ttl=3600)
    pairs = [(key(i), value(i)) for i in range(n)]
    RANDOM.shuffle(pairs)
    best = interleaved({"dict": lambda: each_pair(held.__setitem__, pairs),
                        OURS: lambda: each_pair(mortal.set, pairs)})  # fmt: skip
    ratios(report, f"set with a TTL, {n:,}", best, 1.6)
    keys = [k for k, _ in pairs]
    RANDOM.shuffle(keys)
    best = interleaved({"dict": lambda: each(held.get, keys), OURS: lambda: each(mortal.get, keys)})
    ratios(report, f"get with a TTL, {n:,}", best, 1.3)
    mortal.close()


def mixed(report: Report, n: int, capacity: int, draws: list[int]) -> None:
    """90 % reads with a load on a miss, 10 % writes, over a zipf; the dict keeps everything."""
    keys = [(key(i), RANDOM.random() < 0.1) for i in draws]
    blank = b"x"

    def run(make: Callable[[], Any]) -> Callable[[], float]:
        def task() -> float:
            held = make()
            get, put = held.get, held.__setitem__
            for k, write in keys[: len(keys) // 2]:  # warm
                if write or get(k) is None:
                    put(k, blank)
            start = time.perf_counter()
            for k, write in keys[len(keys) // 2 :]:
                if write or get(k) is None:
                    put(k, blank)
            return (time.perf_counter() - start) / len(keys) * 2e9

        return task

    best = interleaved({"dict": run(dict), OURS: run(lambda: gbcache.ObjectCache(capacity))}, 5)
    ratios(report, f"mixed 90/10, zipf over {n:,}, capacity {capacity:,}; an unbounded", best, 1.15)


def scaling(report: Report, n: int, draws: list[int]) -> None:
    """What two threads get done in the time one needs, to what dict's two threads do."""
    keys = [key(i) for i in draws]

    def rate(get: Callable[[Any], Any], threads: int) -> float:
        jobs = [threading.Thread(target=each, args=(get, keys)) for _ in range(threads)]
        start = time.perf_counter()
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        return (time.perf_counter() - start) / threads

    share = {}
    for kind in (Dict, Objects):
        get = filled(kind, n).get
        best = interleaved({"1": lambda g=get: rate(g, 1), "2": lambda g=get: rate(g, 2)}, 7)
        share[kind.name] = best["1"] / best["2"]
    report.row("two threads' throughput to one's, to dict's", share[OURS] / share["dict"], "x",
               at_least=0.95, ours=share[OURS], dict=share["dict"])  # fmt: skip


def overhead(entries: int, ttl: int) -> dict[str, float]:
    """Bytes an entry over key and value, which exist before."""
    keys, blank = [key(i) for i in range(entries)], b"v"
    cache = gbcache.ObjectCache(ttl=ttl or None, housekeeping=False)
    before = rss()
    for k in keys:
        cache[k] = blank
    return {"rss": (rss() - before) / entries, "ledger": cache.memory().overhead}


def grow(entries: int, due: int) -> dict[str, float]:
    """us an insert up to `entries`; or, with `due`, while so many deadlines fall due at one instant."""
    now = [0.0]
    cache = gbcache.ObjectCache(clock=(lambda: now[0]) if due else None)  # type: ignore[arg-type]
    for i in range(due):
        cache.set(f"due{i:09d}", b"v", ttl=60)
    now[0] = 61.0
    spent = array("q", bytes(8 * entries))
    clock, put, blank = time.perf_counter_ns, cache.set, b"v"
    gc.collect()
    gc.disable()
    for i in range(entries):
        k = f"key{i:09d}"
        began = clock()
        put(k, blank)
        spent[i] = clock() - began
    return {**quantiles(spent), "steps": max(cache.stats().max_steps.values())}


def run(quick: bool) -> Report:
    report = Report("objects", quick)
    mid, big = (20_000, 50_000) if quick else (100_000, 1_000_000)
    draws = 50_000 if quick else 300_000
    uniform = [RANDOM.randrange(big) for _ in range(draws)]
    reads(report, "1000 hot keys", 1000, [RANDOM.randrange(1000) for _ in range(draws)], 1.2, 1.3)
    reads(report, f"{mid:,} zipf(1.0)", mid, zipf(mid, draws), 1.0, None)
    reads(report, f"{big:,} uniform", big, uniform, 0.75, None)
    bulk(report, big, uniform)
    writes(report, mid)
    timed(report, mid)
    mixed(report, big, big // 10, zipf(big, 2 * draws))
    scaling(report, 1000, [RANDOM.randrange(1000) for _ in range(draws)])
    for ttl, aim in ((0, 45), (60, 56)):
        got = best_of(f"overhead({big}, {ttl})", 1, "bench.objects")
        what = f"bytes an entry over key and value, {big:,}{', TTL' if ttl else ''}, by RSS"
        report.row(what, got["rss"], "B", at_most=aim, ledger=got["ledger"])
    for what, call in (
        ("growth to", f"grow({2 * big}, 0)"),
        ("inserts, 1M due at once,", f"grow({big}, {big})"),
    ):
        got = best_of(call, 2 if quick else 5, "bench.objects")
        report.row(f"slowest insert, {what} {2 * big if 'growth' in what else big:,}, best of 5", got["max"],
                   "us", at_most=1000, p9999=got["p9999"], steps=got["steps"])  # fmt: skip
    return report
