"""Bytes: overhead an entry by RSS, payload held, process growth while a full cache churns.

Each figure comes from a fresh process that has made its inputs before it looks at itself.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import gbcache
from bench.adapters import PEERS, Adapter, Dict, GbCache, installed
from bench.report import Report

__all__ = ["run_budget", "run_memory"]

MB = 10**6


def rss() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return rss()


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def overhead(entries: int, size: int, ttl: int) -> dict[str, float]:
    value = b"v" * size
    cache = gbcache.Cache(
        entries * (size + 12 + 60) + (4 << 20), ttl=ttl or None, housekeeping=False
    )
    cache["warm"] = value
    for i in range(1000):
        f"key{i:09d}"
    before = rss()
    for i in range(entries):
        cache[f"key{i:09d}"] = value
    grown = rss() - before
    memory = cache.memory()
    assert memory.entries == entries + 1
    return {"rss": (grown - entries * (size + 12)) / entries, "ledger": memory.overhead}


def whole(name: str, entries: int) -> dict[str, float]:
    """What an entry takes in all, key and value of 12 and 100 bytes among it: each its own, as from a network."""
    kinds: list[type[Adapter]] = [Dict, GbCache, *PEERS]
    cache = next(kind for kind in kinds if kind.name == name)(entries, entries * 150 + (4 << 20))
    cache.set("warm", b"v")
    before = rss()
    for i in range(entries - 1):
        cache.set(f"key{i:09d}", b"%0100d" % i)
    return {"rss": (rss() - before) / (entries - 1)}


def held(size: int) -> dict[str, float]:
    cache = gbcache.Cache(100 * MB)
    value = os.urandom(size)
    for i in range(250 * MB // (size + 40)):
        cache[f"key{i:09d}"] = value
    memory = cache.memory()
    return {"share": (memory.key_bytes + memory.value_bytes) / (100 * MB)}


def patterns(rng: random.Random, full: int) -> dict[str, list[int]]:
    """Lengths of values, in the order they are written; about three times the budget of each."""

    def lots(size: int) -> list[int]:
        return [size] * min(3 * full // (size + 40), 2_500_000)

    lognormal = []
    total = 0
    while total < 3 * full:
        size = min(max(int(rng.lognormvariate(8.0, 2.2)), 10), MB)
        size -= size % (1 if size < 256 else 1 << (size.bit_length() - 8))  # some thousand lengths
        lognormal.append(size)
        total += size + 40
    return {
        "8 B": lots(8),
        "100 B": lots(100),
        "10 kB": lots(10_000),
        "lognormal 10 B - 1 MB": lognormal,
        "small, large, small, 5 x a fifth": lots(100)
        + lots(10_000)
        + lots(100)
        + [full // 5 + (full // 100)] * 5,
    }


def churn(name: str, full: int) -> dict[str, float]:
    sizes = patterns(random.Random(3), full)[name]
    source = os.urandom(max(sizes))
    cache = gbcache.Cache(full)
    cache["warm"] = source[:10]
    values = {size: source[:size] for size in set(sizes)}
    reset_peak()
    before = rss()
    for i, size in enumerate(sizes):
        cache[f"key{i:09d}"] = values[size]
    return {"growth": peak() - before, "limit": full * 1.02 + (4 << 20)}


def flip(full: int) -> dict[str, float]:
    """Payload after small -> large -> the mix, against a fresh cache of the mix alone."""
    rng = random.Random(5)
    mix = [rng.choice((100, 100, 1000, 10_000)) for _ in range(2 * full // 1500)]
    source = os.urandom(10_000)

    def fill(cache: gbcache.Cache, sizes: list[int], tag: str) -> None:
        for i, size in enumerate(sizes):
            cache[f"{tag}{i:09d}"] = source[:size]

    def payload(cache: gbcache.Cache) -> int:
        memory = cache.memory()
        return memory.key_bytes + memory.value_bytes

    worn, fresh = gbcache.Cache(full), gbcache.Cache(full)
    fill(worn, [100] * (2 * full // 140), "s")
    fill(worn, [10_000] * (2 * full // 10_000), "l")
    fill(worn, mix, "m")
    fill(fresh, mix, "m")
    return {"share": payload(worn) / payload(fresh)}


def apart(call: str) -> dict[str, float]:
    """Runs a call of this module in a fresh process."""
    code = f"import json, bench.space as s; print(json.dumps(s.{call}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def run_memory(quick: bool) -> Report:
    report = Report("memory", quick)
    for entries in (100_000,) if quick else (1_000_000, 5_000_000):
        for size in (8, 100):
            for ttl, aim in ((0, 30), (3600, 42)):
                got = apart(f"overhead({entries}, {size}, {ttl})")
                label = f"overhead, {entries:,} x {size} B{', TTL' if ttl else ''}, by RSS"
                report.row(label, got["rss"], "B", at_most=aim, ledger=got["ledger"])
    many = 100_000 if quick else 1_000_000
    for kind in (GbCache, Dict, *installed(PEERS)):
        got = apart(f"whole({kind.name!r}, {many})")
        report.row(f"an entry in all, 12 + 100 B, {many:,}: {kind.name}", got["rss"], "B")
    for size, aim in ((100, 0.80), (1000, 0.93), (10_000, 0.96)):
        report.row(f"key + value held in 100 MB, {size:,} B", apart(f"held({size})")["share"], "",
                   at_least=aim)  # fmt: skip
    return report


def run_budget(quick: bool) -> Report:
    report = Report("budget", quick)
    full = (10 if quick else 100) * MB
    for name in patterns(random.Random(3), full):
        got = apart(f"churn({name!r}, {full})")
        report.row(f"process growth, {name}", got["growth"] / 1e6, "MB", at_most=got["limit"] / 1e6)
    report.row(
        "payload after a size flip / fresh", apart(f"flip({full})")["share"], "x", at_least=0.95
    )
    return report
