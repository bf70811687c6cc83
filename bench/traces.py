"""Hit ratios on real traces, against an exact LRU, request by request, and beside the optimum."""

from __future__ import annotations

import heapq
import lzma
import os
import statistics
from collections import OrderedDict
from pathlib import Path

import gbcache
from bench.report import Report

__all__ = ["optimum", "run"]

HERE = Path(__file__).parent
SHARES = (0.001, 0.01, 0.1, 0.3)
BUDGET_SHARES = (0.01, 0.1, 0.3)


def folder() -> Path:
    return Path(os.environ.get("GB_TRACES", HERE.parent.parent / "shared" / "traces"))


def there() -> list[Path]:
    return sorted(folder().glob("*.txt.xz"))


def rows_of(path: Path, limit: int | None) -> list[list[int]]:
    with lzma.open(path, "rt") as lines:
        next(lines)
        out = []
        for line in lines:
            out.append([int(x) for x in line.split()])
            if limit and len(out) >= limit:
                break
    return out


def differs(keys: list[int], entries: int) -> tuple[int, float]:
    """Requests at which Cache and an exact LRU disagree; the hit ratio."""
    held: OrderedDict[int, None] = OrderedDict()
    cache = gbcache.Cache(entries * 64 + (1 << 20), max_entries=entries)
    get, put, wrong, hits = cache.get, cache.set, 0, 0
    for key in keys:
        found = get(key) is not None
        if found != (key in held):
            wrong += 1
        if key in held:
            hits += 1
            held.move_to_end(key)
        else:
            held[key] = None
            if len(held) > entries:
                held.popitem(last=False)
        if not found:
            put(key, 1)
    cache.close()
    return wrong, hits / len(keys)


def optimum(keys: list[int], entries: int) -> float:
    """The hit ratio of Belady's MIN, which knows what comes: what is needed furthest ahead goes, be it the newcomer."""
    never = len(keys)
    ahead, last = [never] * never, {}
    for at in range(never - 1, -1, -1):
        ahead[at] = last.get(keys[at], never)
        last[keys[at]] = at
    held: dict[int, int] = {}  # key: its next use
    furthest: list[tuple[int, int]] = []
    hits = 0
    for at, key in enumerate(keys):
        hits += key in held
        held[key] = ahead[at]
        heapq.heappush(furthest, (-ahead[at], key))
        while len(held) > entries:
            due, victim = heapq.heappop(furthest)
            if held.get(victim) == -due:  # else it was used since, and stands further down
                del held[victim]
    return hits / never


def ttl_eager(rows: list[list[int]], budget: float, overhead: float) -> float:
    """lru-ttl-eager: an LRU in bytes that forgets an entry at its deadline.

    Every entry is charged its value and `overhead`, so that both sides hold about as many.
    """
    held: OrderedDict[int, tuple[float, float]] = OrderedDict()
    due: list[tuple[float, int]] = []
    used, hits = 0.0, 0
    for key, size, ttl, now in rows:
        while due and due[0][0] <= now:
            at, dead = heapq.heappop(due)
            if dead in held and held[dead][1] == at:
                used -= held.pop(dead)[0]
        if key in held:
            hits += 1
            held.move_to_end(key)
            continue
        charge = size + overhead
        if charge > budget:
            continue
        at = now + ttl if ttl else float("inf")
        held[key] = (charge, at)
        if ttl:
            heapq.heappush(due, (at, key))
        used += charge
        while used > budget:
            used -= held.popitem(last=False)[1][0]
    return hits / len(rows)


def ttl_ours(rows: list[list[int]], max_bytes: int) -> tuple[float, float, float]:
    """Hit ratio in so many bytes, the most its entries were charged, and the overhead of one."""
    now = [0.0]
    cache = gbcache.Cache(max_bytes, clock=lambda: now[0])
    empty, blank, hits = cache.used_bytes, bytes(1 << 17), 0
    seen: list[tuple[int, int, int]] = []
    for i, (key, size, ttl, at) in enumerate(rows, 1):
        if at != now[0]:
            now[0] = at
            cache.expire()
        if cache.get(key) is not None:
            hits += 1
        else:
            cache.set(key, blank[:size], ttl=ttl or None)
        if i % 1000 == 0:
            memory = cache.memory()
            seen.append((memory.value_bytes, memory.entries, cache.used_bytes - empty))
    cache.close()
    overhead = statistics.mean((used - values) / entries for values, entries, used in seen)
    charged = max(values + overhead * entries for values, entries, _ in seen)
    return hits / len(rows), charged, overhead


def run(quick: bool) -> Report:
    report = Report("traces", quick)
    paths = there()
    if not paths:
        print(f"no traces in {folder()}: set GB_TRACES to a folder that has some")
    for path in paths:
        keys = [row[0] for row in rows_of(path, 200_000 if quick else None)]
        footprint = len(set(keys))
        for share in SHARES:
            entries = max(1, int(footprint * share))
            wrong, ratio = differs(keys, entries)
            name = path.name.removesuffix(".txt.xz")
            report.row(f"{name} at {share:.1%}: requests unlike exact LRU", wrong, "", at_most=0,
                       hit_ratio=ratio, optimum=optimum(keys, entries), entries=entries)  # fmt: skip
    path = folder() / "kv-ttl-synthetic.txt.xz"
    if path.exists():
        rows = rows_of(path, 200_000 if quick else None)
        footprint = sum({row[0]: row[1] for row in rows}.values())
        for share in BUDGET_SHARES:
            ours, charged, overhead = ttl_ours(rows, int(footprint * share))
            wanted = ttl_eager(rows, charged, overhead)
            report.row(f"kv-ttl-synthetic, {share:.0%} of bytes: off lru-ttl-eager", abs(ours - wanted), "",
                       at_most=0.005, ours=ours, reference=wanted, overhead=overhead)  # fmt: skip
    return report
