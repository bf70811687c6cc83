"""The slowest operation: growth, a million deadlines at one instant, expiry without traffic."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from array import array

import gbcache
from bench.adapters import Adapter, CacheBox, CacheTools, Dict, LruDict
from bench.report import Report

__all__ = ["best_of", "quantiles", "run", "run_expire"]


def quantiles(ns: array[int]) -> dict[str, float]:
    ordered = sorted(ns)
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1000  # noqa: E731
    return {"p50": at(0.5), "p99": at(0.99), "p9999": at(0.9999), "max": ordered[-1] / 1000}


def grow(name: str, entries: int, touched: bool = False) -> dict[str, float]:
    """us an insert, from empty to `entries`; in memory that was `touched` before, or fresh from the system."""
    kinds: dict[str, type[Adapter]] = {"dict": Dict, "cachebox": CacheBox, "lru-dict": LruDict,
                                       "cachetools": CacheTools}  # fmt: skip
    steps = 0
    if name == "gbcache":
        cache = gbcache.Cache(entries * 160 + (8 << 20))
        put = cache.set
        if touched:
            for i in range(entries):
                put(f"old{i:09d}", b"v" * 100)
            cache.clear()
    else:
        put = kinds[name](entries, 0).set
    value = b"v" * 100
    spent = array("q", bytes(8 * entries))
    clock = time.perf_counter_ns
    gc.collect()
    gc.disable()
    for i in range(entries):
        key = f"key{i:09d}"
        began = clock()
        put(key, value)
        spent[i] = clock() - began
    if name == "gbcache":
        assert len(cache) == entries
        steps = max(cache.stats().max_steps.values())
    return {**quantiles(spent), "steps": steps}


def control(entries: int) -> dict[str, float]:
    """us of an operation that touches nothing and takes about as long as an insert: what the machine's own
    interruptions look like from here."""
    spent = array("q", bytes(8 * entries))
    clock, few = time.perf_counter_ns, range(40)
    gc.disable()
    for i in range(entries):
        began = clock()
        for _ in few:
            pass
        spent[i] = clock() - began
    return {**quantiles(spent), "steps": 0}


def due_at_once(entries: int) -> dict[str, float]:
    """us an operation while `entries` deadlines fall due at one instant, housekeeping off: calls do it."""
    now = [0.0]
    cache = gbcache.Cache(entries * 160 + (8 << 20), clock=lambda: now[0])
    for i in range(entries):
        cache.set(f"key{i:09d}", b"v" * 100, ttl=60)
    now[0] = 61.0
    spent = array("q", bytes(8 * entries))
    clock = time.perf_counter_ns
    gc.disable()
    for i in range(entries):
        key = f"new{i:09d}"
        began = clock()
        cache.set(key, b"v" * 100)
        spent[i] = clock() - began
    return {**quantiles(spent), "steps": max(cache.stats().max_steps.values())}


def idle_expiry(entries: int) -> dict[str, float]:
    """Seconds from the deadline to the first and the last byte given back, without a call to that cache
    but `stats`; the longest call of another thread on the same cache meanwhile."""
    cache = gbcache.Cache(entries * 170 + (8 << 20))
    began = time.monotonic()
    life = 3.0 + entries * 4e-6
    for i in range(entries):
        cache.set(f"key{i:09d}", b"v" * 20, ttl=began + life - time.monotonic())
    cache["stays"] = 1
    deadline = began + life
    worst, stop = [0.0], threading.Event()

    def other() -> None:
        get, clock = cache.get, time.perf_counter
        while not stop.is_set():
            before = clock()
            get("stays")
            worst[0] = max(worst[0], clock() - before)
            time.sleep(0.0002)

    assert len(cache) == entries + 1
    thread = threading.Thread(target=other)
    thread.start()
    first = last = 0.0
    while not last:
        left = cache.stats().entries
        now = time.monotonic() - deadline
        if left <= entries and not first:
            first = now
        if left == 1:
            last = now
        time.sleep(0.001)
    stop.set()
    thread.join()
    return {"first": first, "last": last, "worst": worst[0]}


def apart(call: str, module: str) -> dict[str, float]:
    code = f"import json, {module} as b; print(json.dumps(b.{call}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def best_of(call: str, times: int, module: str = "bench.latency") -> dict[str, float]:
    runs = [apart(call, module) for _ in range(times)]
    return {name: min(run[name] for run in runs) if name != "steps" else max(run[name] for run in runs)
            for name in runs[0]}  # fmt: skip


def run(quick: bool) -> Report:
    report = Report("latency", quick)
    many, due, times = (200_000, 100_000, 2) if quick else (5_000_000, 1_000_000, 5)
    for label, call in (
        (f"growth to {many:,}", f"grow('gbcache', {many})"),
        (f"growth to {many:,}, touched memory", f"grow('gbcache', {many}, True)"),
        (f"{due:,} due at one instant", f"due_at_once({due})"),
    ):
        got = best_of(call, times)
        report.row(f"{label}: max_steps of a lock hold", got["steps"], "steps", at_most=64)
        report.row(
            f"{label}: p99.99", got["p9999"], "us", at_most=20, p50=got["p50"], p99=got["p99"]
        )
        report.row(f"{label}: max, best of {times}", got["max"], "us", at_most=1000)
    got = best_of(f"control({many})", times)
    report.row(
        "    control, an empty operation as long: p99.99",
        got["p9999"],
        "us",
        p50=got["p50"],
        max=got["max"],
    )
    for peer in ("dict", "cachebox", "lru-dict", "cachetools"):
        try:
            got = best_of(f"grow({peer!r}, {many})", 1 if quick else 2)
        except RuntimeError:
            continue
        report.row(f"    {peer}: growth to {many:,}: max", got["max"], "us", p9999=got["p9999"])
    return report


def run_expire(quick: bool) -> Report:
    report = Report("expire", quick)
    many = 100_000 if quick else 1_000_000
    got = best_of(f"idle_expiry({many})", 2 if quick else 5)
    report.row(
        f"{many:,} due, no traffic: first bytes back", got["first"] * 1000, "ms", at_most=100
    )
    report.row(f"{many:,} due, no traffic: all back", got["last"] * 1000, "ms", at_most=1000)
    report.row("    the longest call of another thread", got["worst"] * 1000, "ms", at_most=1)
    return report
