"""A Tiered: a hit beside the near cache's own, writes behind a Disk, and ten times more data than memory."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from itertools import accumulate
from pathlib import Path

from bench.report import Report
from gbcache import Cache, Far, ObjectCache, Tiered
from gbcache.disk import Disk

__all__ = ["run"]

VALUE = b"v" * 100


def hits(report: Report, folder: Path, rounds: int) -> None:
    """1000 hot keys."""
    for name, near in (("Cache", Cache("10MB")), ("ObjectCache", ObjectCache())):
        tier = Tiered(near, Disk(folder / name, sync="never"))
        keys = [f"key{i}" for i in range(1000)]
        tier.set_many(dict.fromkeys(keys, VALUE))
        best = {"near": 1e9, "tier": 1e9}
        for _ in range(rounds):
            for side, get in (("near", near.get), ("tier", tier.get)):
                begun = time.perf_counter()
                for _ in range(20):
                    for key in keys:
                        get(key)
                best[side] = min(best[side], (time.perf_counter() - begun) / 20 / len(keys) * 1e9)
        report.row(f"near hit of a Tiered({name}) / {name}.get", best["tier"] / best["near"], "x",
                   at_most=1.3, ns=best["tier"], near_ns=best["near"])  # fmt: skip
        tier.close()


def behind(report: Report, folder: Path, writes: int) -> None:
    """Different keys, one thread; what is at risk is looked at all the time."""
    for how in ("set", "set_many"):
        tier = Tiered(Cache("256MB"), Disk(folder / how, sync="interval"), write="behind",
                      behind_bytes="64MB", behind_seconds=0.1)  # fmt: skip
        keys = [f"key{i:09d}" for i in range(writes)]
        ages, begun = [], time.perf_counter()
        for at in range(0, writes, 100):
            if how == "set":
                for key in keys[at : at + 100]:
                    tier.set(key, VALUE)
            else:
                tier.set_many(dict.fromkeys(keys[at : at + 100], VALUE))
            ages.append(tier.stats().at_risk.seconds)
        tier.sync()
        rate = writes / (time.perf_counter() - begun)
        report.row(f"write-behind over a Disk, {how}", rate / 1e3, "k/s", at_least=300, us=1e6 / rate,
                   at_risk_ms_most=max(ages) * 1e3, at_risk_ms_median=statistics.median(ages) * 1e3)  # fmt: skip
        assert len(tier) == writes
        tier.close()


def large(report: Report, folder: Path, entries: int, reads: int) -> None:
    """Zipf(0.9) over ten times what memory holds."""
    far: Far = Disk(folder / "large", sync="interval")
    keys = [f"key{i:09d}" for i in range(entries)]
    random.Random(1).shuffle(keys)
    for at in range(0, entries, 5000):
        far.put_many([(key, VALUE, None) for key in keys[at : at + 5000]])
    tier = Tiered(Cache(max(65536, entries * 140 // 10)), far)
    weights = list(accumulate(1 / (i + 1) ** 0.9 for i in range(entries)))
    drawn = random.Random(2).choices(keys, cum_weights=weights, k=reads)
    for key in drawn[: reads // 3]:
        tier[key]
    before, times, missing = tier.near.stats(), [], 0
    for key in drawn[reads // 3 :]:
        asked = tier.stats().far_hits
        begun = time.perf_counter_ns()
        value = tier.get(key)
        taken = time.perf_counter_ns() - begun
        missing += value != VALUE
        if tier.stats().far_hits > asked:
            times.append(taken / 1e3)
    after = tier.near.stats()
    hits_, misses = after.hits - before.hits, after.misses - before.misses
    times.sort()
    report.row(
        "zipf(0.9), 10x more data than memory: hit ratio of memory",
        hits_ / (hits_ + misses) * 100,
        "%",
    )
    report.row("    a far read, median", times[len(times) // 2], "us")
    report.row("    a far read, p99", times[len(times) * 99 // 100], "us")
    report.row("    entries that were missing", missing, "", at_most=0)
    tier.close()


def run(quick: bool) -> Report:
    report = Report("tier", quick)
    with tempfile.TemporaryDirectory(prefix="gbcache-bench-") as name:
        folder = Path(name)
        hits(report, folder, 3 if quick else 9)
        behind(report, folder, 30_000 if quick else 600_000)
        large(report, folder, 20_000 if quick else 500_000, 30_000 if quick else 600_000)
    return report
