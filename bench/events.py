"""Events: what recording costs, how many get through, how late they are, and that every loss is counted."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gbcache
from bench.gate import LAYOUTS
from bench.latency import best_of
from bench.report import Report

__all__ = ["run"]

ROOT = Path(__file__).resolve().parent.parent
VALUE = b"v" * 100


def keys_of(n: int) -> list[str]:
    keys = [f"key{i:09d}" for i in range(n)]
    random.Random(1).shuffle(keys)
    return keys


def write(cache: Any, keys: list[str], n: int) -> float:
    """ns a set."""
    put, left = cache.set, n
    start = time.perf_counter()
    while left > 0:
        for k in keys[:left]:
            put(k, VALUE)
        left -= len(keys)
    return (time.perf_counter() - start) / n * 1e9


def instructions(build: Path, n: int, layout: str) -> int:
    """Of a process that sets `n` keys."""
    code = f"import gbcache\nc = gbcache.Cache('10MB')\nfor i in range({n}): c.set('key', b'value')"
    env = {**os.environ, "PYTHONPATH": f"{build}{layout}", "PYTHONHASHSEED": "0"}
    ran = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-c", code],
        capture_output=True, text=True, env=env, cwd=build,
    )  # fmt: skip
    found = re.search(r"Collected : (\d+)", ran.stderr)
    if not found:
        raise RuntimeError(ran.stderr[-2000:])
    return int(found.group(1))


def silent_cost(report: Report) -> None:
    """Instructions of a set when nobody listens, to a build without events; the middle of some layouts."""
    silent = ROOT / "build" / "silent"
    if not shutil.which("valgrind") or not silent.exists():
        print("set when nobody listens: needs valgrind and `make build/silent/.made`; left out")
        return
    a, b = 10_000, 60_000
    per = {
        name: statistics.median(
            (instructions(build, b, layout) - instructions(build, a, layout)) / (b - a)
            for layout in LAYOUTS
        )
        for name, build in (("silent", silent), ("normal", ROOT))
    }
    report.row("instructions of a set, nobody listening, to a build without events",
               per["normal"] / per["silent"], "x", at_most=1.01, **per)  # fmt: skip


def reading(cache: Any, keys: list[str], n: int, look: Callable[[Any], Any]) -> dict[str, float]:
    """One writer and one batch reader: until all is delivered."""
    got = lost = 0
    watch = cache.watch()

    def read() -> None:
        nonlocal got, lost
        while got + lost < n:
            batch = watch.read()
            if batch and batch[0].kind == "lost":
                lost += batch[0].value
                got -= 1
            got += len(batch)
            look(batch)

    reader = threading.Thread(target=read)
    start = time.perf_counter()
    reader.start()
    ns = write(cache, keys, n)
    reader.join()
    rate = got / (time.perf_counter() - start)
    watch.close()
    return {"ns": ns, "rate": rate, "lost": lost}


def calling(cache: Any, keys: list[str], n: int) -> dict[str, float]:
    """One writer and one Python call an event."""
    calls = 0

    def fn(event: Any) -> None:
        nonlocal calls
        calls += 1

    with cache.subscribe(fn) as sub:
        start = time.perf_counter()
        ns = write(cache, keys, n)
        while sub.pending():
            time.sleep(0.001)
        rate = calls / (time.perf_counter() - start)
        assert sub.delivered + sub.lost == n
        return {"ns": ns, "rate": rate, "lost": sub.lost}


def each_event(batch: Any) -> None:
    for event in batch:
        event.key  # noqa: B018


def throughput(report: Report, n: int, rounds: int) -> None:
    keys = keys_of(n // 10)
    quiet, loud = gbcache.Cache("400MB"), gbcache.Cache("400MB", events="8MiB")
    looks = {"batches, their keys": lambda b: b.keys(), "batches, every Event": each_event}
    tasks: dict[str, Callable[[], dict[str, float]]] = {
        "none": lambda: {"ns": write(quiet, keys, n), "rate": 0.0, "lost": 0},
        "recorded": lambda: {"ns": write(loud, keys, n), "rate": 0.0, "lost": 0},
        **{name: lambda f=f: reading(loud, keys, n, f) for name, f in looks.items()},  # type: ignore[misc]
        "a call an event": lambda: calling(loud, keys, n),
    }
    write(quiet, keys, n), write(loud, keys, n)
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for name, task in tasks.items():
            got = task()
            if name not in best or got["ns"] < best[name]["ns"]:
                best[name] = got
    none = best["none"]["ns"]
    report.row("events a second to one batch reader, every Event made", best["batches, every Event"]["rate"], "/s",
               at_least=2e6, lost=best["batches, every Event"]["lost"])  # fmt: skip
    for name, aim in (("recorded", None), ("batches, their keys", 0.8), ("batches, every Event", None),
                      ("a call an event", 0.5)):  # fmt: skip
        row = best[name]
        report.row(f"set throughput, {name}, to none listening", none / row["ns"], "x", at_least=aim,
                   ns=row["ns"], none_ns=none, rate=row["rate"], lost=row["lost"])  # fmt: skip


def lateness(short: int, long: int) -> dict[str, float]:
    """ms from a deadline to its `expire` event's arrival, with no traffic."""
    cache = gbcache.Cache(long * 200 + (64 << 20), events="16MiB")
    for i in range(long):
        cache.set(f"long{i:09d}", b"v", ttl=3600)
    came: dict[str, float] = {}
    done = threading.Event()

    def fn(event: Any) -> None:
        came[event.key] = time.monotonic()
        if len(came) == short:
            done.set()

    cache.subscribe(fn, kinds="expire")
    due, roll = {}, random.Random(2)
    for i in range(short):
        ttl = 0.5 + roll.random() * 2
        due[f"short{i:09d}"] = time.monotonic() + ttl  # its own clock is read after this one
        cache.set(f"short{i:09d}", b"v", ttl=ttl)
    done.wait(30)
    late = sorted((came[k] - due[k]) * 1000 for k in came)
    at = lambda share: late[min(len(late) - 1, int(len(late) * share))]  # noqa: E731
    return {
        "delivered": len(came),
        "p50": at(0.5),
        "p99": at(0.99),
        "max": late[-1],
        "min": late[0],
    }


def waking(n: int) -> dict[str, float]:
    """ms from a set in another thread to its event in an ``async for``, the loop idle before."""
    cache, late = gbcache.Cache("1MB"), []

    def work() -> None:
        for i in range(n):
            time.sleep(0.003)
            cache.set(i, time.perf_counter())

    async def main() -> None:
        with cache.watch(values=True) as events:
            writer = threading.Thread(target=work)
            writer.start()
            async for event in events:
                late.append((time.perf_counter() - event.value) * 1000)
                if len(late) == n:
                    break
            writer.join()

    asyncio.run(main())
    late.sort()
    return {"p50": late[n // 2], "p99": late[n * 99 // 100], "max": late[-1]}


def stalled(n: int) -> dict[str, float]:
    """A subscriber that stalls in its first call, while `n` events happen."""
    keys, rounds = keys_of(n // 20), 5
    free, cache = (gbcache.Cache("100MB", events="1MiB") for _ in range(2))
    write(free, keys, n), write(cache, keys, n)
    go = threading.Event()
    sub = cache.subscribe(lambda event: go.wait(60))
    cache.set("first", 1)
    time.sleep(0.1)
    ns = [(write(free, keys, n), write(cache, keys, n)) for _ in range(rounds)]
    go.set()
    while sub.pending():
        time.sleep(0.01)
    return {
        "sum": sub.delivered + sub.lost,
        "emitted": rounds * n + 1,
        "lost": sub.lost,
        "slower": min(slow for _, slow in ns) / min(quiet for quiet, _ in ns),
    }


def replay(threads: int, each: int, keys: int) -> dict[str, float]:
    """Threads at random on few keys; the events replayed give the final state, each key's in order."""
    cache = gbcache.Cache("400MB", events="128MiB")
    watch = cache.watch(values=True)

    def work(seed: int) -> None:
        roll = random.Random(seed)
        for i in range(each):
            k = f"k{roll.randrange(keys)}"
            if roll.random() < 0.7:
                cache.set(k, seed * each + i)
            else:
                cache.delete_many([k])

    jobs = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    mirror: dict[str, int] = {}
    wrong = born = gone = 0
    for job in jobs:
        job.start()

    def follow(events: Any) -> None:
        nonlocal wrong, born, gone
        for e in events:
            if e.kind == "set":
                wrong += e.key in mirror
                born += 1
            else:
                wrong += mirror.get(e.key) != e.old
                gone += e.kind != "replace"
            if e.kind in ("set", "replace"):
                mirror[e.key] = e.value
            else:
                mirror.pop(e.key, None)

    while any(job.is_alive() for job in jobs):
        follow(watch.read(timeout=0.1))
    while batch := watch.read(timeout=0.01):
        follow(batch)
    assert mirror == dict(cache.items())
    return {"wrong": wrong, "balance": born - gone - len(cache)}


def run(quick: bool) -> Report:
    report = Report("events", quick)
    n = 200_000 if quick else 1_000_000
    if not quick:
        silent_cost(report)
    throughput(report, n, 2 if quick else 5)
    short, long = (2000, 50_000) if quick else (20_000, 1_000_000)
    got = best_of(f"lateness({short}, {long})", 1 if quick else 3, "bench.events")
    report.row(
        f"expire events delivered of {short:,} beside {long:,}",
        got["delivered"],
        "",
        at_least=short,
    )
    report.row(
        "    lateness p99", got["p99"], "ms", at_most=20, p50=got["p50"], earliest=got["min"]
    )
    report.row("    lateness max", got["max"], "ms", at_most=100)
    got = best_of("waking(500)", 1 if quick else 3, "bench.events")
    report.row(
        "async for: from a set to its event, p99",
        got["p99"],
        "ms",
        at_most=1,
        p50=got["p50"],
        max=got["max"],
    )
    got = best_of(f"stalled({2 * n})", 1, "bench.events")
    report.row("stalled subscriber: lost + delivered, to emitted", got["sum"] / got["emitted"], "x",
               lost=got["lost"])  # fmt: skip
    report.row("    events that are neither", abs(got["emitted"] - got["sum"]), "", at_most=0)
    report.row("    writers' time to without it", got["slower"], "x", at_most=1.05)
    got = best_of(f"replay(4, {n // 4}, 16)", 1, "bench.events")
    report.row(
        f"4 threads x {n // 4:,} on 16 keys: events that do not follow", got["wrong"], "", at_most=0
    )
    report.row("    sum(set) - sum(gone) - len", abs(got["balance"]), "", at_most=0)
    return report
