"""A Disk: reads beside bare LMDB's and diskcache's, acknowledged writes beside a loop of fdatasync, opening."""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import diskcache
import lmdb

from bench.report import Report
from gbcache.disk import Disk

__all__ = ["run"]

VALUE = b"v" * 100


def best(rounds: int, n: int, *works: Callable[[], object]) -> list[float]:
    """Nanoseconds of one of the n things each does; in turns, the best of each."""
    found = [float("inf")] * len(works)
    for _ in range(rounds):
        for i, work in enumerate(works):
            begun = time.perf_counter()
            work()
            found[i] = min(found[i], (time.perf_counter() - begun) / n * 1e9)
    return found


def reading(report: Report, folder: Path, entries: int, rounds: int) -> None:
    keys = [f"key{i:09d}" for i in range(entries)]
    disk = Disk(folder / "gb", sync="never")
    for at in range(0, entries, 1000):
        disk.put_many([(key, VALUE, None) for key in keys[at : at + 1000]])
    disk.scan(count=1)  # all of it is in LMDB
    env = lmdb.open(str(folder / "bare"), map_size=1 << 32)
    with env.begin(write=True) as txn:
        for key in keys:
            txn.put(key.encode(), VALUE)
    peer = diskcache.Cache(str(folder / "peer"), eviction_policy="none")
    some = random.Random(1).sample(keys, min(entries, 20_000))
    with peer.transact():
        for key in some:
            peer.set(key, VALUE)
    raw, many = (
        [key.encode() for key in some],
        [some[i : i + 100] for i in range(0, len(some), 100)],
    )

    def bare() -> None:
        with env.begin() as txn:
            get = txn.get
            for key in raw:
                get(key)

    def bare_each() -> None:
        for key in raw:
            with env.begin() as txn:
                txn.get(key)

    def hundred() -> None:
        for group in many:
            disk.get_many(group)

    def single() -> None:
        for key in some:
            disk.get_many((key,))

    def peers() -> None:
        for key in some:
            peer.get(key)

    b, be, h, s, p = best(rounds, len(some), bare, bare_each, hundred, single, peers)
    report.row(
        "get_many of 100, to bare LMDB in one transaction", h / b, "x", at_most=2, ns=h, lmdb_ns=b
    )
    report.row("get_many of 1, to bare LMDB in one transaction", s / b, "x", at_most=2, ns=s)
    report.row(
        "get_many of 1, to bare LMDB, a transaction each", s / be, "x", at_most=2, lmdb_ns=be
    )
    report.row("get_many of 1, to diskcache", s / p, "x", at_most=0.4, diskcache_ns=p)
    report.row("get_many of 100, to diskcache", h / p, "x", at_most=0.4)
    size = disk.info().data_bytes
    disk.close()
    env.close()
    peer.close()
    begun = time.perf_counter()
    Disk(folder / "gb").close()
    seconds = time.perf_counter() - begun
    report.row("open, all checked", seconds / size * 1e9, "s/GB", MB=size / 1e6, seconds=seconds)


def rate(seconds: float, work: Callable[[int], object]) -> float:
    n, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        work(n)
        n += 1
    return n / (time.perf_counter() - begun)


def grouped(disk: Disk, threads: int, seconds: float, turn: int) -> float:
    done, end = [0] * threads, time.perf_counter() + seconds

    def work(t: int) -> None:
        while time.perf_counter() < end:
            disk.put_many([(f"{turn}:{t}:{done[t]}", VALUE, None)])
            done[t] += 1

    workers = [threading.Thread(target=work, args=(t,)) for t in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done) / seconds


def writing(report: Report, folder: Path, seconds: float, rounds: int) -> None:
    fd = os.open(folder / "loop", os.O_RDWR | os.O_CREAT)

    def loop(n: int) -> None:
        os.write(fd, VALUE + bytes(80))
        os.fdatasync(fd)

    rows = []
    with Disk(folder / "always") as disk, Disk(folder / "interval", sync="interval") as relaxed:
        for turn in range(rounds):  # in turns: the disk's own pace changes by the minute
            before = rate(seconds, loop)
            one = rate(seconds, lambda n, t=turn: disk.put_many([(f"one{t}:{n}", VALUE, None)]))
            sixteen = grouped(disk, 16, seconds, turn)
            bare = (before + rate(seconds, loop)) / 2
            fast = rate(
                seconds / 2, lambda n, t=turn: relaxed.put_many([(f"one{t}:{n}", VALUE, None)])
            )
            rows.append((one / bare, sixteen / bare, bare, one, sixteen, fast))
        info = disk.info()
    one, sixteen, bare, one_rate, rate16, fast = (
        statistics.median(column) for column in zip(*rows, strict=True)
    )
    report.row(
        "always, one writer, to a loop of fdatasync",
        one,
        "x",
        at_least=0.8,
        per_s=one_rate,
        loop_per_s=bare,
        loop_us=1e6 / bare,
    )
    report.row("always, 16 writers, to a loop of fdatasync", sixteen, "x", at_least=8, per_s=rate16,
               group=info.grouped / info.groups)  # fmt: skip
    report.row("interval, one writer", fast, "/s", us=1e6 / fast)
    os.close(fd)


def run(quick: bool) -> Report:
    report = Report("far", quick)
    with tempfile.TemporaryDirectory(dir=".") as made:
        folder = Path(made)
        reading(report, folder, 50_000 if quick else 500_000, 3 if quick else 5)
        writing(report, folder, 0.5 if quick else 2.0, 3 if quick else 5)
    return report
