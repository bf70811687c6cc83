"""A long run: mixed work of eight threads, with saves, TTLs and subscribers, and a child that is killed each minute.

    python tests/proof/soak.py [--minutes M] [--seed S]

Nothing may raise, the process may not grow (its resident bytes, the least of each window, as a file that is open for a
moment counts too: a line through the second half, with the error of its slope), and the last part of the run may not be
slower than the first (medians, over windows, of each window's median and p99.9, as multiples of those of a dict's
operations that are timed beside them: the machine is shared). A child writes to a live file and acknowledges in a side
file; it is killed, started again, and what it acknowledged must be there. What was sampled is in build/proof/soak-*.
With `--plant leak` a thread keeps what it reads, with `--plant slow` each read waits longer and longer: both must be
found.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from pathlib import Path
from typing import Any

import said

from gbcache import Cache, ObjectCache

THREADS, KEYS, SAMPLE = 8, 40_000, 4000
ROUND, PERIOD = 50, 0.004
"""Operations, and the seconds in which each thread does so many of them, however fast the machine is: what threads
hold at one moment is of one size then, and a busy neighbour is not taken for growth (100,000 operations a second)."""
PAGE = os.sysconf("SC_PAGE_SIZE")
SLOPE = 0.1
"""Per cent of growth an hour that is allowed."""
SLOWER = 1.2


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def parts() -> dict[str, int]:
    """Where the resident bytes lie: a step in their sum is to be told from a leak."""
    told: dict[str, int] = {"blocks": sys.getallocatedblocks()}
    where = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            low, high = (int(x, 16) for x in first.split("-"))
            where = rest[4] if len(rest) > 4 else f"anonymous, {(high - low) >> 10} KiB at {low:x}"
        elif first == "Rss:" and rest[0] != "0":
            told[where] = told.get(where, 0) + int(rest[0]) * 1024
    return told


def slope_of(samples: list[tuple[float, int]]) -> tuple[float, float]:
    """Growth in per cent an hour, and the standard error of it: a line through the points."""
    times, sizes = [t for t, _ in samples], [float(n) for _, n in samples]
    middle, mean, n = statistics.fmean(times), statistics.fmean(sizes), len(samples)
    spread = sum((t - middle) ** 2 for t in times)
    slope = sum((t - middle) * (s - mean) for t, s in samples) / spread
    rest = sum((s - mean - slope * (t - middle)) ** 2 for t, s in samples)
    error = (rest / (n - 2) / spread) ** 0.5
    return slope * 3600 / mean * 100, error * 3600 / mean * 100


class Sample:
    """The last some of what was measured, in as many bytes however fast the machine is: the process is not to grow."""

    def __init__(self) -> None:
        self._kept, self._n = array("q", bytes(8 * SAMPLE)), 0

    def append(self, x: int) -> None:
        self._kept[self._n % SAMPLE] = x
        self._n += 1

    def emptied(self) -> array[int]:
        n, self._n = self._n, 0
        return self._kept[: min(n, SAMPLE)]


def emptied(samples: list[Sample]) -> list[int]:
    """What all of them held, sorted; they are empty then."""
    return sorted(x for each in samples for x in each.emptied())


# --- the child -------------------------------------------------------------------------------------------------


def child(root: Path) -> None:
    """Counts up in a live file, and acknowledges each number in a side file once it is there."""
    with Cache("2MB", path=root / "live") as cache:
        acknowledged = os.open(root / "acknowledged", os.O_CREAT | os.O_RDWR, 0o600)
        n = int(os.pread(acknowledged, 20, 0) or b"0")
        for key in range(max(0, n - 99), n + 1):
            found = cache.get(key % 100)
            if n and (found is None or found < key):
                print(f"key {key % 100} is {found}, {key} was acknowledged", flush=True)
                os._exit(3)
        while True:
            n += 1
            cache[n % 100] = n
            os.pwrite(acknowledged, b"%020d" % n, 0)


class Kills(threading.Thread):
    def __init__(self, root: Path, every: float) -> None:
        super().__init__(daemon=True)
        self.root, self.every, self.over = root, every, threading.Event()
        self.kills, self.wrong = 0, list[str]()

    def run(self) -> None:
        while not self.over.is_set():
            call = [sys.executable, __file__, "--child", str(self.root)]
            made = subprocess.Popen(
                call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            self.over.wait(self.every)
            if made.poll() is None:
                os.kill(made.pid, signal.SIGKILL)
            out, _ = made.communicate()
            if made.returncode != -signal.SIGKILL:
                self.wrong.append(f"the child ended with {made.returncode}: {out[-400:]}")
                return
            self.kills += 1


# --- the work --------------------------------------------------------------------------------------------------


class Soak:
    def __init__(self, seed: int, root: Path, plant: str, timed: float) -> None:
        self.seed, self.root, self.plant, self.timed = seed, root, plant, timed
        self.caches: list[Any] = [
            Cache("6MB", ttl=60, jitter=0.2, events="1MiB"),
            ObjectCache(10_000, ttl=60),
        ]
        self.over, self.begun = threading.Event(), time.monotonic()
        self.wrong: list[str] = []
        self.ops, self.saves = [0] * THREADS, 0
        self.latencies = [Sample() for _ in range(THREADS)]
        self.baseline = [Sample() for _ in range(THREADS)]
        self.heard = [0, 0]
        self.kept: list[Any] = []

    def work(self, thread: int) -> None:
        dice = random.Random(f"{self.seed}:{thread}")
        cache, clock = self.caches[thread % 2], time.perf_counter_ns
        mine, plain, beside = self.latencies[thread], dict[str, str](), self.baseline[thread]
        due = time.monotonic()
        while not self.over.is_set():
            for _ in range(ROUND):
                key, roll = f"k{int(dice.random() ** 2 * KEYS)}", dice.random()
                begun = clock()
                if roll < 0.6:
                    found = cache.get(key)
                elif roll < 0.9:
                    cache.set(
                        key, "v" * int(10 ** dice.uniform(0.5, 3)), ttl=dice.choice([0.05, 5, 60])
                    )
                elif roll < 0.95:
                    cache.delete_many([key])
                elif roll < 0.98:
                    cache.incr(f"n{thread}-{dice.randrange(50)}")
                else:
                    cache.get_or_set(key, lambda: "loaded")
                if self.plant == "slow" and roll < 0.6:
                    time.sleep((time.monotonic() - self.begun) * 2e-5)
                if self.plant == "leak" and roll < 0.6:
                    self.kept.append([found] * 50)
                ended = clock()
                if dice.random() < self.timed:
                    mine.append(ended - begun)
                    few, begun = key[-2:], clock()
                    plain[few] = plain.pop(few, "") and "v" * 300
                    beside.append(clock() - begun)
                self.ops[thread] += 1
            due = max(due + PERIOD, time.monotonic())  # rounds that are late are not made up for
            time.sleep(max(0.0, due - time.monotonic()))

    def save(self) -> None:
        while not self.over.is_set():
            self.caches[0].save(self.root / "saved")
            with Cache.open(self.root / "saved", "r") as found:
                for _, key in zip(range(100), found, strict=False):
                    found.get(key)
            self.saves += 1
            for cache in self.caches:
                cache.check()
            self.over.wait(3)

    def guarded(self, job: Any, *args: Any) -> None:
        try:
            job(*args)
        except BaseException as error:
            self.wrong.append(f"{job.__name__}: {type(error).__name__}: {error}")

    def hear(self, which: int) -> None:
        self.heard[which] += 1

    def run(self, seconds: float, every: float) -> dict[str, Any]:
        subs = [
            self.caches[0].subscribe(lambda event: self.hear(0)),
            self.caches[1].subscribe(lambda event: self.hear(1), kinds={"expire", "evict"}),
        ]
        kills = Kills(self.root, every)
        threads = [
            threading.Thread(target=self.guarded, args=(self.work, n)) for n in range(THREADS)
        ]
        threads.append(threading.Thread(target=self.guarded, args=(self.save,)))
        for each in [kills, *threads]:
            each.start()
        samples, windows, lie = [], [], []
        step = max(1.0, min(60.0, seconds / 40))
        while time.monotonic() - self.begun < seconds and not self.wrong and not kills.wrong:
            until, least = time.monotonic() + step, resident()
            while time.monotonic() < until:
                time.sleep(0.5)
                least = min(least, resident())
            samples.append((time.monotonic() - self.begun, least))
            lie.append(parts())
            taken, plain = emptied(self.latencies), emptied(self.baseline)
            if min(len(taken), len(plain)) > 100:
                ranks = [
                    (each[len(each) // 2], each[len(each) * 999 // 1000]) for each in (taken, plain)
                ]
                windows.append((ranks[0][0] / ranks[1][0], ranks[0][1] / ranks[1][1], *ranks[0]))
        self.over.set()
        kills.over.set()
        for each in [*threads, kills]:
            each.join(60)
            if each.is_alive():
                self.wrong.append("a thread hangs")
        self.wrong += kills.wrong + [f"a subscriber's errors: {s.errors}" for s in subs if s.errors]
        for cache in self.caches:
            cache.check()
            cache.close()
        return {"samples": samples, "windows": windows, "kills": kills.kills, "parts": lie}


def judge(soak: Soak, told: dict[str, Any], minutes: float) -> None:
    samples, windows = told["samples"], told["windows"]
    ops = sum(soak.ops)
    said.row(
        "a long run of eight threads, saves, TTLs, subscribers, a child killed again and again: no error",
        f"{minutes:g} minutes, {ops:,} operations, {soak.saves} saves, {sum(soak.heard):,} events, "
        f"{told['kills']} kills, {len(soak.wrong)} wrong",
        not soak.wrong and told["kills"] > 0 and soak.saves > 0 and all(soak.heard),
    )
    slope, error = slope_of(samples[len(samples) // 2 :])
    grown = slope * minutes / 2 / 60  # per cent, over what was looked at
    short = minutes < 60
    said.row(
        f"resident bytes grow by less than {SLOPE} % an hour",
        f"{slope:+.2f} % +- {error:.2f} ({samples[-1][1] / 1e6:.0f} MB; over {minutes / 2:g} minutes"
        + (f"; a short run: {grown:+.2f} % in all, 1 % is allowed)" if short else ")"),
        grown < 1 if short else slope < SLOPE,
    )
    third = max(1, len(windows) // 3)
    first, last = windows[: third + 1][1:] or windows[:1], windows[-third:]
    ratios = [
        statistics.median(w[i] for w in last) / statistics.median(w[i] for w in first)
        for i in (0, 1)
    ]
    said.row(
        f"the last third is not slower than the first, to a dict's operations: p99.9 at most {SLOWER} times",
        f"median {ratios[0]:.2f}, p99.9 {ratios[1]:.2f} times ({len(windows)} windows)"
        + (", a short run: 1.5 and 3 times are allowed" if short else ""),
        ratios[0] <= (1.5 if short else SLOWER) and ratios[1] <= (3.0 if short else SLOWER),
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", choices=["leak", "slow"], default="")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(Path(args.child))
    seconds = args.minutes * 60
    with tempfile.TemporaryDirectory() as root:
        soak = Soak(args.seed, Path(root), args.plant, 0.05 if seconds < 600 else 0.005)
        told = soak.run(seconds, min(60.0, max(3.0, seconds / 12)))
    for what in soak.wrong[:10]:
        print(what, flush=True)
    case = said.kept("soak")
    case.write_text(json.dumps({"seed": args.seed, "wrong": soak.wrong, "told": told}))
    if soak.wrong:
        print(f"kept: {case}")
    judge(soak, told, args.minutes)
    if args.plant:
        return int(said.verdict() == 0)
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
