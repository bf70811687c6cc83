"""`Valkey` beside bare redis-py, one server on loopback; and how long a change takes to be told."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.latency import quantiles
from bench.report import Report

__all__ = ["possible", "run"]

TESTS = Path(__file__).parent.parent / "tests"
VALUE = b"v" * 100

# The key is the instant at which it was written.
WRITER = """
import sys, time
from gbcache.valkey import Valkey
far = Valkey(sys.argv[1], timeout=5)
far.get_many([0])
for i in range(int(sys.argv[2])):
    time.sleep(0.001)
    far.put_many([(time.monotonic_ns(), 0, 1)])
"""

FLOOD = """
import sys
from gbcache.valkey import Valkey
far = Valkey(sys.argv[1], timeout=10)
for n in range(0, int(sys.argv[2]), 1000):
    far.put_many([(f"key{i:09d}", 1, None) for i in range(n, n + 1000)])
"""


def possible() -> bool:
    return bool(shutil.which("valkey-server") or shutil.which("redis-server"))


def by_turns(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int
) -> tuple[float, float]:
    """us a call, of each: the minimum over interleaved rounds."""
    best = [float("inf"), float("inf")]
    for _ in range(9):
        for i, call in enumerate((ours, theirs)):
            begun = time.perf_counter()
            for _ in range(rounds):
                call()
            best[i] = min(best[i], (time.perf_counter() - begun) / rounds * 1e6)
    return best[0], best[1]


def batches(report: Report, url: str, rounds: int) -> None:
    import redis

    from gbcache.valkey import Valkey

    far = Valkey(url, timeout=10)
    bare = redis.Redis.from_url(url)
    names = [f"key{i}" for i in range(100)]
    raw = [f"gb:s{name}" for name in names]
    far.put_many([(name, VALUE, 600) for name in names])

    def both(keys: list[str]) -> list[Any]:
        with bare.pipeline(transaction=True) as pipe:
            for key in keys:
                pipe.get(key)
                pipe.pttl(key)
            return pipe.execute()

    def put(keys: list[str]) -> list[Any]:
        with bare.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.set(key, b"b" + VALUE, px=600_000)
            return pipe.execute()

    rows: list[tuple[str, Callable[[], object], Callable[[], object], int]] = [
        ("get_many of 1 to GET", lambda: far.get_many(names[:1]), lambda: bare.get(raw[0]), rounds),
        ("get_many of 1 to MULTI GET PTTL EXEC", lambda: far.get_many(names[:1]), lambda: both(raw[:1]), rounds),
        ("get_many of 100 to MGET", lambda: far.get_many(names), lambda: bare.mget(raw), rounds // 10),
        ("get_many of 100 to MULTI GET PTTL EXEC", lambda: far.get_many(names), lambda: both(raw), rounds // 10),
        ("put_many of 1 to SET PX", lambda: far.put_many([(names[0], VALUE, 600)]),
         lambda: bare.set(raw[0], VALUE, px=600_000), rounds),
        ("put_many of 100 to a pipeline of SET PX", lambda: far.put_many([(name, VALUE, 600) for name in names]),
         lambda: put(raw), rounds // 10),
    ]  # fmt: skip
    put(raw)
    for what, ours, theirs, n in rows:
        mine, other = by_turns(ours, theirs, n)
        report.row(what, mine / other, "x", us=mine, redis_py_us=other)
    far.close()
    bare.close()


class Clocked:
    """Notes how long ago what is told was written."""

    def __init__(self) -> None:
        self.ns = array("q")
        self.stands = False

    def changed(self, keys: Sequence[Any] | None) -> None:
        now = time.monotonic_ns()
        self.ns.extend(
            now - key for key in keys or () if now - key < 900_000_000
        )  # not: it expired

    def lost(self) -> None:
        raise AssertionError("the channel broke")

    def restored(self) -> None:
        self.stands = True


def told(report: Report, url: str, writes: int) -> None:
    from gbcache.valkey import Valkey

    far, heard = Valkey(url, timeout=10, heartbeat=30), Clocked()
    far.feed(heard)
    while not heard.stands:
        time.sleep(0.01)
    subprocess.run([sys.executable, "-c", WRITER, url, str(writes)], check=True)
    time.sleep(0.1)
    at = quantiles(heard.ns)
    report.row(
        "a change to another process's changed(), median", at["p50"], "us", writes=len(heard.ns)
    )
    report.row("the same, p99", at["p99"], "us", max=at["max"])
    far.close()


def absorbed(report: Report, url: str, writes: int) -> None:
    """What one process can be told: CPU time of a Tiered that hears of others' writes at full speed."""
    from gbcache import Cache, Tiered
    from gbcache.valkey import Valkey

    tier = Tiered(Cache("64MB"), Valkey(url, timeout=10, heartbeat=30))
    while not tier.trusts:
        time.sleep(0.01)
    for i in range(writes):  # each change takes a copy out
        tier.near[f"key{i:09d}"] = 1
    before = time.process_time()
    subprocess.run([sys.executable, "-c", FLOOD, url, str(writes)], check=True)
    while tier.stats().invalidations < writes:
        time.sleep(0.001)
    spent = time.process_time() - before
    report.row(
        "changes a process can hear of, of one core",
        writes / spent / 1e3,
        "k/s",
        us=spent / writes * 1e6,
    )
    tier.close()


def run(quick: bool) -> Report:
    sys.path.insert(0, str(TESTS))
    from servers import Server, server_program

    report = Report("valkey", quick)
    server = Server()
    version = subprocess.run(
        [str(server_program()), "--version"], capture_output=True, text=True
    ).stdout
    print(f"redis-py {importlib.metadata.version('redis')}; {version.strip()}")
    batches(report, server.url, 300 if quick else 2000)
    told(report, server.url, 500 if quick else 10_000)
    absorbed(report, server.url, 20_000 if quick else 300_000)
    server.close()
    return report
