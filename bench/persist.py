"""Files: saving, what others feel of it, opening, recovery after a kill, and a set on a live file."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from pathlib import Path

import gbcache
from bench.report import Report

__all__ = ["run"]

VALUE = b"v" * 100


def fill(cache: gbcache.Cache, entries: int) -> None:
    for at in range(0, entries, 1000):
        cache.set_many((f"key{i:09d}", VALUE) for i in range(at, min(entries, at + 1000)))
    assert len(cache) == entries


def room(entries: int) -> int:
    return entries * 150 + (8 << 20)


def resident() -> int:
    """Bytes of this process's own memory (files' pages aside)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("no RssAnon in /proc/self/status")


def saving(report: Report, folder: Path, disk: Path, entries: int, rounds: int) -> None:
    cache = gbcache.Cache(room(entries))
    fill(cache, entries)
    base = resident()
    peak, stop = [base], threading.Event()

    def look() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=look)
    watcher.start()
    rates = []
    for _ in range(rounds):
        begun = time.perf_counter()
        size = cache.save(folder / "bench.gbs")
        rates.append(size / (time.perf_counter() - begun) / 1e6)
    stop.set()
    watcher.join()
    report.row(f"save {entries:,} x 100 B to tmpfs", max(rates), "MB/s", at_least=600, median=statistics.median(rates),
               bytes=size)  # fmt: skip
    bound = cache.max_bytes * 1.02 + (32 << 20)
    report.row("memory during a save, of max_bytes + 2 % + 32 MiB", (peak[0] - base + cache.max_bytes) / bound, "x",
               at_most=1, more_MiB=(peak[0] - base) / 2**20)  # fmt: skip
    ratios = []
    for _ in range(rounds):
        os.sync()
        begun = time.perf_counter()
        with open(folder / "bench.gbs", "rb") as source, open(disk / "copy", "wb") as to:
            shutil.copyfileobj(source, to, 1 << 20)
            os.fsync(to.fileno())
        copied = time.perf_counter() - begun
        os.sync()
        begun = time.perf_counter()
        cache.save(disk / "bench.gbs")
        ratios.append(copied / (time.perf_counter() - begun))
    report.row(
        "save to disk, rate as a share of a copy and fsync",
        statistics.median(ratios),
        "x",
        at_least=0.7,
        best=max(ratios),
    )
    cache.close()


def pauses(report: Report, folder: Path, entries: int, rounds: int) -> None:
    """One thread writes and reads as fast as it can; another saves."""
    cache = gbcache.Cache(room(entries))
    fill(cache, entries)
    clock, n = time.perf_counter_ns, 400_000
    keys = [f"key{(i * 7919) % (entries + entries // 4):09d}" for i in range(n)]

    calls = list[float]()

    def timed(saving: bool) -> tuple[float, float]:
        spent = array("q", bytes(8 * n))
        handle = None
        gc.collect()
        gc.disable()
        at = 0
        for i, key in enumerate(keys):
            if saving and i == 1000:
                began_saving = clock()
                handle = cache.save(folder / "bench.gbs", wait=False)
                calls.append((clock() - began_saving) / 1000)
            if handle is not None and handle.done:
                break
            began = clock()
            if i & 1:
                cache[key] = VALUE
            else:
                cache.get(key)
            if not saving or i > 1100:
                spent[at] = clock() - began
                at += 1
        gc.enable()
        if handle is not None:
            handle.wait()
        ordered = sorted(spent[:at])
        return ordered[int(at * 0.999)] / 1000, ordered[-1] / 1000

    idle = [timed(False) for _ in range(rounds)]
    busy = [timed(True) for _ in range(rounds)]
    report.row("p99.9 of an operation during a save, to idle", min(b[0] for b in busy) / min(i[0] for i in idle), "x",
               at_most=3, us=min(b[0] for b in busy), idle_us=min(i[0] for i in idle))  # fmt: skip
    added = min(b[1] for b in busy) - min(i[1] for i in idle)
    report.row(f"longest pause a save adds, best of {rounds}", added / 1000, "ms", at_most=1,
               during_us=min(b[1] for b in busy),
               idle_us=min(i[1] for i in idle))  # fmt: skip
    report.row(
        f"    the call of save(wait=False) itself, best of {rounds}", min(calls) / 1000, "ms"
    )
    cache.close()


OPEN = """
import sys, time
import gbcache
from gbcache import live, files, snapshot
gbcache.Cache(100_000).close()
a = time.perf_counter()
cache = gbcache.Cache.open(sys.argv[1], "r+")
value = cache["key000000007"]
b = time.perf_counter()
n = len(cache)
assert len(value) == 100
print(b - a, n, cache.recovery.how, cache.recovery.seconds)
"""


def opened(path: Path) -> tuple[float, int, str]:
    """Seconds to the first hit in a fresh process, which then ends by SIGKILL or a close."""
    said = subprocess.run(
        [sys.executable, "-c", OPEN + "cache.close()\n", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, count, how, _ = said.stdout.split()
    return float(seconds), int(count), how


def opening(report: Report, folder: Path, entries: int, rounds: int) -> None:
    snap, live = folder / "bench.gbs", folder / "bench.gbc"
    cache = gbcache.Cache(room(entries))
    fill(cache, entries)
    size = cache.save(snap)
    cache.close()
    times = {"copy": [], "r": []}
    for _ in range(rounds + 2):
        for mode in times:
            begun = time.perf_counter()
            found = gbcache.Cache.open(snap, mode)
            times[mode].append(time.perf_counter() - begun)
            assert len(found) == entries
            found.close()
    for mode, seconds in times.items():
        report.row(
            f"open {entries:,}, mode={mode!r}, all verified",
            min(seconds) / size * 1e9,
            "s/GB",
            at_most=0.35,
            seconds=min(seconds),
        )
    snap.unlink()
    cache = gbcache.Cache(room(entries), path=live)
    fill(cache, entries)
    cache.close()
    first = []
    for _ in range(rounds + 2):
        seconds, count, how = opened(live)
        assert (count, how) == (entries, "clean"), (count, how)
        first.append(seconds * 1000)
    report.row(f"open {entries:,} clean, mode='r+', to the first hit", min(first), "ms",
               at_most=0.5 if entries < 5_000_000 else 1,
               median=statistics.median(first))  # fmt: skip
    killed(report, live, entries, rounds)


def killed(report: Report, live: Path, entries: int, rounds: int) -> None:
    seconds = []
    for _ in range(rounds):
        pid = os.fork()
        if not pid:
            try:
                cache = gbcache.Cache.open(live, "r+")
                for i in range(1000):
                    cache[f"key{i:09d}"] = VALUE
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        os.waitpid(pid, 0)
        begun = time.perf_counter()
        cache = gbcache.Cache.open(live, "r+")
        seconds.append(time.perf_counter() - begun)
        assert cache.recovery.how == "mended", cache.recovery
        assert len(cache) == entries, len(cache)
        cache.close()
    report.row(
        f"recovery of {entries:,} after kill -9",
        min(seconds),
        "s",
        at_most=1.5,
        median=statistics.median(seconds),
    )
    live.unlink()


def setting(report: Report, folder: Path, rounds: int) -> None:
    """An overwrite and an insert, on live files and in memory, in turns.

    Three caches of each kind: equal caches differ by a tenth, as their physical pages happen to lie, and the
    ratio of one pair says as much of that as of the file. The medians of three are compared.
    """
    kinds = ("live", "plain")
    caches = [(kind, gbcache.Cache("256MB", path=folder / f"set{i}.gbc" if kind == "live" else None))
              for i in range(3) for kind in kinds]  # fmt: skip
    for _, cache in caches:
        fill(cache, 300_000)
    hot = [f"key{i:09d}" for i in range(1000)] * 100
    far = [f"key{(i * 7919) % 300_000:09d}" for i in range(100_000)]
    for what, keys, new in (
        ("1,000 hot keys", hot, False),
        ("300,000 keys", far, False),
        ("new keys", far, True),
    ):
        best = [1e9] * len(caches)
        for r in range(rounds * 2):
            for i, (_, cache) in enumerate(caches):
                names = [f"{r}-{k}" for k in keys] if new else keys
                put = cache.set
                gc.collect()
                begun = time.perf_counter()
                for key in names:
                    put(key, VALUE)
                best[i] = min(best[i], time.perf_counter() - begun)
        live, plain = (statistics.median(b for b, (kind, _) in zip(best, caches, strict=True) if kind == k)
                       for k in kinds)  # fmt: skip
        report.row(f"set on a live file to set in memory, {what}", live / plain, "x", at_most=1.1,
                   ns=live / len(keys) * 1e9, spread=max(best) / min(best))  # fmt: skip
    for _, cache in caches:
        cache.close()


def run(quick: bool) -> Report:
    report = Report("persist", quick)
    entries, rounds = (200_000, 2) if quick else (5_000_000, 3)
    ram = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=ram) as fast, tempfile.TemporaryDirectory(dir=".") as slow:
        folder, disk = Path(fast), Path(slow)
        setting(report, folder, rounds)
        saving(report, folder, disk, entries, rounds)
        pauses(report, folder, entries // 5, 5)
        if not quick:
            opening(report, folder, 1_000_000, rounds)
        opening(report, folder, entries, rounds)
    return report
