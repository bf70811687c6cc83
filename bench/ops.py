"""Operations: ratios to dict and to the peers, interleaved in one run.

Distinct 100-byte values, 12-byte str keys, popularity permuted. A figure is the ratio of minima over the
rounds; the loop's own cost is in both.
"""

from __future__ import annotations

import bisect
import gc
import itertools
import random
import time
from collections.abc import Callable
from typing import Any

import gbcache
from bench.adapters import PEERS, Adapter, CacheBox, Dict, GbCache, installed
from bench.report import Report

__all__ = ["run"]

ROUNDS = 9
RANDOM = random.Random(20261124)


def key(i: int) -> str:
    return f"key{i:09d}"


def value(i: int) -> bytes:
    return str(i).encode().ljust(100, b".")


def each(call: Callable[[Any], Any], keys: list[str]) -> float:
    """ns a call, loop and all."""
    start = time.perf_counter()
    for k in keys:
        call(k)
    return (time.perf_counter() - start) / len(keys) * 1e9


def each_pair(call: Callable[[Any, Any], Any], pairs: list[tuple[str, bytes]]) -> float:
    start = time.perf_counter()
    for k, v in pairs:
        call(k, v)
    return (time.perf_counter() - start) / len(pairs) * 1e9


def interleaved(tasks: dict[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, float]:
    """The least of each task, A B C A B C ..."""
    best: dict[str, float] = {}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, task in tasks.items():
                best[name] = min(task(), best.get(name, 1e18))
    finally:
        gc.enable()
    return best


def filled(kind: type[Adapter], n: int) -> Adapter:
    cache = kind(n, n * 200 + (8 << 20))
    order = list(range(n))
    random.Random(7).shuffle(order)
    for i in order:
        cache.set(key(i), value(i))
    return cache


def zipf(n: int, draws: int) -> list[int]:
    weights = list(itertools.accumulate(1 / (i + 1) for i in range(n)))
    ranks = [bisect.bisect_left(weights, RANDOM.random() * weights[-1]) for _ in range(draws)]
    names = list(range(n))
    RANDOM.shuffle(names)
    return [names[min(r, n - 1)] for r in ranks]


def gets(report: Report, label: str, n: int, draws: list[int], aim: float, peers: bool) -> None:
    kinds: list[type[Adapter]] = [Dict, GbCache, *(installed(PEERS) if peers else [])]
    caches = {kind.name: filled(kind, n) for kind in kinds}
    keys = [key(i) for i in draws]
    best = interleaved({name: lambda c=c: each(c.get, keys) for name, c in caches.items()})
    floor = best["dict"]
    report.row(f"get hit, {label} / d.get", best["gbcache.Cache"] / floor, "x", at_most=aim,
               ns=best["gbcache.Cache"], dict_ns=floor)  # fmt: skip
    for name in list(best)[2:]:
        report.row(f"    {name}", best[name] / floor, "x", ns=best[name])
    absent = [f"not{i:09d}" for i in range(len(draws))]
    miss = interleaved(
        {name: lambda c=c: each(c.get, absent) for name, c in list(caches.items())[:2]}
    )
    report.row(f"miss, {label} / d.get miss", miss["gbcache.Cache"] / miss["dict"], "x", at_most=0.6,
               ns=miss["gbcache.Cache"], dict_ns=miss["dict"])  # fmt: skip


def bulk(report: Report, n: int, draws: list[int]) -> None:
    ours, floor = filled(GbCache, n), filled(Dict, n)
    batches = [[key(i) for i in draws[j : j + 256]] for j in range(0, len(draws) - 255, 256)]
    get, many = floor.get, ours.held.get_many  # type: ignore[attr-defined]

    def comprehension() -> float:
        start = time.perf_counter()
        for batch in batches:
            [get(k) for k in batch]
        return (time.perf_counter() - start) / len(batches) / 256 * 1e9

    best = interleaved({"dict": comprehension, "ours": lambda: each(many, batches) / 256})  # type: ignore[arg-type]
    report.row("get_many of 256, 1M uniform / list comprehension", best["ours"] / best["dict"], "x",
               at_most=0.35, ns=best["ours"], dict_ns=best["dict"])  # fmt: skip


def writes(report: Report, n: int) -> None:
    kinds = [GbCache, *installed(PEERS)]
    fresh = itertools.count(n)
    order = [RANDOM.randrange(n) for _ in range(n)]
    over = [(key(i), value(i + 1)) for i in order]
    caches = {kind.name: filled(kind, n) for kind in kinds}

    def overwrite(c: Adapter) -> float:
        return each_pair(c.set, over)

    best = interleaved({name: lambda c=c: overwrite(c) for name, c in caches.items()}, 5)
    box = best.get(CacheBox.name)
    if box:
        report.row("overwrite / cachebox.LRU", best["gbcache.Cache"] / box, "x", at_most=0.9,
                   ns=best["gbcache.Cache"], cachebox_ns=box)  # fmt: skip
    for name in list(best)[1:]:
        report.row(f"    {name}", best[name], "ns")

    turns: dict[str, float] = {}
    gc.disable()
    for _ in range(5):
        pairs = [(key(i), value(i)) for i in itertools.islice(fresh, n)]
        for name, cache in caches.items():
            turns[name] = min(turns.get(name, 1e18), each_pair(cache.set, pairs))
    gc.enable()
    box = turns.get(CacheBox.name)
    if box:
        report.row("insert + evict / cachebox.LRU", turns["gbcache.Cache"] / box, "x", at_most=0.6,
                   ns=turns["gbcache.Cache"], cachebox_ns=box)  # fmt: skip
    for name in list(turns)[1:]:
        report.row(f"    {name}", turns[name], "ns")


def timed(report: Report, n: int) -> None:
    plain = gbcache.Cache(n * 220 + (8 << 20))
    mortal = gbcache.Cache(n * 220 + (8 << 20), ttl=3600)
    pairs = [(key(i), value(i)) for i in range(n)]
    RANDOM.shuffle(pairs)
    keys = [k for k, _ in pairs]
    RANDOM.shuffle(keys)
    best = interleaved({"plain": lambda: each_pair(plain.set, pairs),
                        "mortal": lambda: each_pair(mortal.set, pairs)})  # fmt: skip
    report.row("set with a TTL / without", best["mortal"] / best["plain"], "x", at_most=1.3,
               ns=best["mortal"], without_ns=best["plain"])  # fmt: skip
    best = interleaved(
        {"plain": lambda: each(plain.get, keys), "mortal": lambda: each(mortal.get, keys)}
    )
    report.row("get of an entry with a TTL / without", best["mortal"] / best["plain"], "x", at_most=1.2,
               ns=best["mortal"], without_ns=best["plain"])  # fmt: skip
    plain.close()
    mortal.close()


def run(quick: bool) -> Report:
    report = Report("ops", quick)
    hot, mid, big = (1000, 20_000, 50_000) if quick else (1000, 100_000, 1_000_000)
    draws = 50_000 if quick else 300_000
    gets(report, "1000 hot keys", hot, [RANDOM.randrange(hot) for _ in range(draws)], 2.0, True)
    gets(report, f"{mid:,} zipf(1.0)", mid, zipf(mid, draws), 1.5, True)
    uniform = [RANDOM.randrange(big) for _ in range(draws)]
    gets(report, f"{big:,} uniform", big, uniform, 1.2, False)
    bulk(report, big, uniform)
    writes(report, mid)
    timed(report, mid)
    return report
