"""One entry at a time, beside what holds it on disk or behind a socket: LMDB, diskcache, Redis or Valkey, memcached."""

from __future__ import annotations

from bench.adapters import OUTSIDE, GbCache
from bench.ops import RANDOM, each, each_pair, interleaved, key, value
from bench.report import Report

__all__ = ["run"]


def run(quick: bool) -> Report:
    """1000 hot keys, values of 100 bytes; each server its own, on a unix socket."""
    report = Report("outside", quick)
    rivals = []
    for kind in OUTSIDE:
        try:
            rivals.append(kind(1000, 1 << 24))
        except ImportError as error:
            print(f"no {kind.name}: {error}")
    ours = GbCache(1000, 1 << 24)
    pairs = [(key(i), value(i)) for i in range(1000)]
    for cache in (ours, *rivals):
        for k, v in pairs:
            cache.set(k, v)
        if cache.get(pairs[0][0]) != pairs[0][1]:
            raise RuntimeError(f"{cache.name} does not give back what it was given")
    RANDOM.shuffle(pairs)
    pairs = pairs[:200] if quick else pairs * 5
    keys = [k for k, _ in pairs]
    try:
        for what in ("get hit", "set, overwriting"):
            best = interleaved({
                c.name: (lambda c=c: each(c.get, keys)) if what == "get hit" else (lambda c=c: each_pair(c.set, pairs))
                for c in (ours, *rivals)
            })  # fmt: skip
            report.row(f"{what}, 1000 keys, one at a time", best[ours.name], "ns")
            for rival in rivals:
                ratio = best[rival.name] / best[ours.name]
                report.row(f"    {rival.name}", ratio, "x", us=best[rival.name] / 1e3)
    finally:
        for rival in rivals:
            rival.close()
    return report
