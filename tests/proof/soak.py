"""A long run: mixed work of eight threads, with saves, TTLs and subscribers, and a child that is killed each minute.

    python tests/proof/soak.py [--minutes M] [--seed S]

Nothing may raise, the process that works may not grow (its resident bytes, the least of each window, as a file that is
open for a moment counts too: a line through the second half, with the error of its slope), and the last part of the run
may not be slower than the first (medians, over windows, of each window's median and p99.9, as multiples of those of a
dict's operations that are timed beside them: the machine is shared). Whoever measures is another process, which was
forked from: what it keeps is in build/proof/soak-*, and the two share the words that are counted in. A third one writes
to a live file and acknowledges in a side file; it is killed, started again, and what it acknowledged must be there.
With `--plant leak` a thread keeps what it reads, with `--plant slow` each read waits longer and longer, with
`--plant mute` the child acknowledges nothing: all must be found.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import said

from gbcache import Cache, ObjectCache

THREADS, KEYS, SAMPLE = 8, 40_000, 4000
ROUND, PERIOD = 50, 0.004
"""Operations, and the seconds in which each thread does so many of them, however fast the machine is: what threads
hold at one moment is of one size then, and a busy neighbour is not taken for growth (100,000 operations a second)."""
PATIENCE = 30.0
"""Seconds a child has to open its file and to acknowledge, beyond those until it is killed."""
FILL = 200_000
"""Entries that are set before anything is measured: six times what the byte budget holds, and more."""
PAGE = os.sysconf("SC_PAGE_SIZE")
SLOPE = 0.1
"""Per cent of growth an hour that is allowed."""
GROWN = 1.0
"""Per cent in all that the second half of a short run may grow by: of two minutes no rate an hour can be told."""
SLOWER, SLOWER_SHORT = (1.2, 1.2), (1.5, 3.0)
"""Times the first third's median and p99.9, which the last third's may be; a short run has few windows."""


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def parts(pid: int) -> dict[str, int]:
    """Where its resident bytes lie: a step in their sum is to be told from a leak."""
    told: dict[str, int] = {}
    where = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
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


class Words:
    """What both processes see: counters, and of each thread the last of what it measured, of one size for ever."""

    OVER, SAVES, HEARD, OPS = 0, 1, 2, 4
    RINGS = OPS + THREADS
    RING = 1 + SAMPLE

    def __init__(self) -> None:
        length = 8 * (self.RINGS + 2 * THREADS * self.RING)
        self.words = memoryview(mmap.mmap(-1, length)).cast("q")

    def ring(self, n: int) -> memoryview:
        """Of thread n, and of the dict's operations beside it: how many there were, and the last of them."""
        begin = self.RINGS + n * self.RING
        return self.words[begin : begin + self.RING]

    def emptied(self, rings: list[memoryview]) -> list[int]:
        """What they held, sorted; they are empty then, but for what comes at this moment."""
        held: list[int] = []
        for ring in rings:
            n, ring[0] = ring[0], 0
            held += ring[1 : 1 + min(n, SAMPLE)].tolist()
        return sorted(held)


def add(ring: memoryview, x: int) -> None:
    n = ring[0]
    ring[1 + n % SAMPLE] = x
    ring[0] = n + 1


# --- the child -------------------------------------------------------------------------------------------------


def acknowledged_in(root: Path) -> int:
    path = root / "acknowledged"
    return int(path.read_bytes() or b"0") if path.exists() else 0


def child(root: Path, how: str) -> None:
    """Counts up in a live file, and acknowledges each number in a side file once it is there. `how`: "look", that all
    is there, and no more; "mute", a fault: it acknowledges nothing."""
    with Cache("2MB", path=root / "live") as cache:
        acknowledged = os.open(root / "acknowledged", os.O_CREAT | os.O_RDWR, 0o600)
        n = acknowledged_in(root)
        for key in range(max(0, n - 99), n + 1):
            found = cache.get(key % 100)
            if n and (found is None or found < key):
                print(f"key {key % 100} is {found}, {key} was acknowledged", flush=True)
                os._exit(3)
        if how == "look":
            return
        while True:
            n += 1
            cache[n % 100] = n
            if how != "mute":
                os.pwrite(acknowledged, b"%020d" % n, 0)
            if not n % ROUND:  # at a pace, too: it is not to be a load beside what is timed
                time.sleep(PERIOD)


class Kills(threading.Thread):
    def __init__(self, root: Path, every: float, plant: str) -> None:
        super().__init__(daemon=True)
        self.root, self.every, self.over = root, every, threading.Event()
        self.kills, self.wrong = 0, list[str]()
        self.how = "mute" if plant == "mute" else "count"

    def begin(self, how: str) -> subprocess.Popen[str]:
        call = [sys.executable, __file__, "--child", str(self.root), how]
        return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self) -> None:
        while not self.over.is_set() and not self.wrong:
            self.once()
        if not self.wrong:  # what the last one acknowledged is there
            made = self.begin("look")
            out, _ = made.communicate()
            if made.returncode:
                self.wrong.append(f"after the last kill: {made.returncode}: {out[-400:]}")

    def once(self) -> None:
        """A kill counts of a child that opened the file and went on in it; a busy machine is given time."""
        before, made = acknowledged_in(self.root), self.begin(self.how)
        self.over.wait(self.every)
        until = time.monotonic() + PATIENCE
        while acknowledged_in(self.root) == before and made.poll() is None:
            if self.over.wait(0.05) or time.monotonic() > until:
                break
        over, went_on = self.over.is_set(), acknowledged_in(self.root) > before
        if made.poll() is None:
            os.kill(made.pid, signal.SIGKILL)
        out, _ = made.communicate()
        if made.returncode != -signal.SIGKILL:
            self.wrong.append(f"the child ended with {made.returncode}: {out[-400:]}")
        elif went_on:
            self.kills += 1
        elif not over:
            self.wrong.append("the child acknowledged nothing before it was killed")


# --- the work --------------------------------------------------------------------------------------------------


class Soak:
    """The work, in a process that keeps nothing of it."""

    def __init__(self, words: Words, seed: int, root: Path, plant: str, timed: float) -> None:
        self.seed, self.root, self.plant, self.timed = seed, root, plant, timed
        self.caches: list[Any] = [
            Cache("6MB", ttl=60, jitter=0.2, events="1MiB"),
            ObjectCache(10_000, ttl=60),
        ]
        self.over, self.begun = threading.Event(), time.monotonic()
        self.wrong: list[str] = []
        self.shared, self.counts = words, words.words[: Words.RINGS]
        self.kept: list[Any] = []
        self.fill()

    def fill(self) -> None:
        """To the last page: what a budget reserved and has not touched yet is not to be taken for growth."""
        dice = random.Random(self.seed)
        for _ in range(FILL):
            for cache in self.caches:
                key = f"k{int(dice.random() ** 2 * KEYS)}"
                cache.set(key, "v" * int(10 ** dice.uniform(0.5, 3)), ttl=dice.choice([5, 60]))

    def work(self, thread: int) -> None:
        dice = random.Random(f"{self.seed}:{thread}")
        cache, clock = self.caches[thread % 2], time.perf_counter_ns
        counts, plain, at = self.counts, dict[str, str](), Words.OPS + thread
        mine, beside = self.shared.ring(thread), self.shared.ring(THREADS + thread)
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
                    add(mine, ended - begun)
                    few, begun = key[-2:], clock()
                    plain[few] = plain.pop(few, "") and "v" * 300
                    add(beside, clock() - begun)
                counts[at] += 1
            due = max(due + PERIOD, time.monotonic())  # rounds that are late are not made up for
            time.sleep(max(0.0, due - time.monotonic()))

    def save(self) -> None:
        while not self.over.is_set():
            self.caches[0].save(self.root / "saved")
            with Cache.open(self.root / "saved", "r") as found:
                for _, key in zip(range(100), found, strict=False):
                    found.get(key)
            self.counts[Words.SAVES] += 1
            for cache in self.caches:
                cache.check()
            self.over.wait(3)

    def guarded(self, job: Any, *args: Any) -> None:
        try:
            job(*args)
        except BaseException as error:
            self.wrong.append(f"{job.__name__}: {type(error).__name__}: {error}")

    def hear(self, which: int) -> None:
        self.counts[Words.HEARD + which] += 1

    def run(self) -> list[str]:
        """Until the word OVER is set; what was wrong."""
        subs = [
            self.caches[0].subscribe(lambda event: self.hear(0)),
            self.caches[1].subscribe(lambda event: self.hear(1), kinds={"expire", "evict"}),
        ]
        threads = [
            threading.Thread(target=self.guarded, args=(self.work, n)) for n in range(THREADS)
        ]
        threads.append(threading.Thread(target=self.guarded, args=(self.save,)))
        for each in threads:
            each.start()
        while not self.counts[Words.OVER] and not self.wrong:
            time.sleep(0.1)
        self.over.set()
        for each in threads:
            each.join(60)
            if each.is_alive():
                self.wrong.append("a thread hangs")
        self.wrong += [f"a subscriber's errors: {s.errors}" for s in subs if s.errors]
        for cache in self.caches:
            cache.check()
            cache.close()
        return self.wrong


def works(words: Words, args: argparse.Namespace, root: Path, timed: float) -> int:
    """Forks; the process that works. What was wrong is in a file when it ends."""
    pid = os.fork()
    if not pid:
        wrong = ["it did not end"]
        try:
            wrong = Soak(words, args.seed, root, args.plant, timed).run()
        except BaseException as error:
            wrong = [f"{type(error).__name__}: {error}"]
        finally:
            (root / "wrong").write_text(json.dumps(wrong))
            os._exit(0)
    return pid


def measured(
    words: Words, pid: int, root: Path, seconds: float, every: float, plant: str
) -> dict[str, Any]:
    """Looks at the process from outside, for so long; then it is to end."""
    kills, begun = Kills(root, every, plant), time.monotonic()
    kills.start()
    rings = [words.ring(n) for n in range(2 * THREADS)]
    samples, windows, lie = [], [], []
    step, ended = max(1.0, min(60.0, seconds / 40)), 0
    while time.monotonic() - begun < seconds and not kills.wrong and not ended:
        until, least = time.monotonic() + step, resident(pid)
        while time.monotonic() < until and not ended:
            time.sleep(0.5)
            ended = os.waitpid(pid, os.WNOHANG)[0]
            least = min(least, resident(pid) if not ended else least)
        if ended:
            break
        samples.append((time.monotonic() - begun, least))
        lie.append(parts(pid))
        taken, plain = words.emptied(rings[:THREADS]), words.emptied(rings[THREADS:])
        if min(len(taken), len(plain)) > 100:
            ranks = [
                (each[len(each) // 2], each[len(each) * 999 // 1000]) for each in (taken, plain)
            ]
            windows.append((ranks[0][0] / ranks[1][0], ranks[0][1] / ranks[1][1], *ranks[0]))
    words.words[Words.OVER] = 1
    kills.over.set()
    kills.join(60)
    until = time.monotonic() + 100
    while not ended and time.monotonic() < until:
        ended = os.waitpid(pid, os.WNOHANG)[0]
        time.sleep(0.05)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    left = root / "wrong"
    wrong = json.loads(left.read_text()) if left.exists() else ["the process was ended"]
    told = {"samples": samples, "windows": windows, "kills": kills.kills, "parts": lie}
    counts = words.words[: Words.RINGS].tolist()
    told |= {"ops": sum(counts[Words.OPS :]), "saves": counts[Words.SAVES]}
    wrong += kills.wrong + (["the thread that kills hangs"] if kills.is_alive() else [])
    return told | {"heard": counts[Words.HEARD : Words.OPS], "wrong": wrong}


def judge(told: dict[str, Any], minutes: float) -> None:
    samples, windows, heard = told["samples"], told["windows"], told["heard"]
    said.row(
        "a long run of eight threads, saves, TTLs, subscribers, a child killed again and again: no error",
        f"{minutes:g} minutes, {told['ops']:,} operations, {told['saves']} saves, {sum(heard):,} events, "
        f"{told['kills']} kills, {len(told['wrong'])} wrong",
        not told["wrong"] and told["kills"] > 0 and told["saves"] > 0 and all(heard),
    )
    if len(samples) < 8 or not windows:  # it ended early: why is said above
        said.row("a long run's growth and speed", f"{len(samples)} samples, not enough", False)
        return
    slope, error = slope_of(samples[len(samples) // 2 :])
    grown = slope * minutes / 2 / 60  # per cent, over what was looked at
    short = minutes < 60
    rate = f"{slope:+.2f} % an hour +- {error:.2f}, {samples[-1][1] / 1e6:.0f} MB"
    if short:  # its rate is mostly noise: the row is not to promise one
        said.row(
            f"a short run: resident bytes grow by less than {GROWN:g} % in all, in its second half",
            f"{grown:+.2f} % in {minutes / 2:g} minutes; no rate is bounded: {rate}",
            grown < GROWN,
        )
    else:
        said.row(
            f"resident bytes grow by less than {SLOPE} % an hour",
            f"{rate}; over {minutes / 2:g} minutes",
            slope < SLOPE,
        )
    third = max(1, len(windows) // 3)
    first, last = windows[: third + 1][1:] or windows[:1], windows[-third:]
    ratios = [
        statistics.median(w[i] for w in last) / statistics.median(w[i] for w in first)
        for i in (0, 1)
    ]
    most = SLOWER_SHORT if short else SLOWER
    said.row(
        ("a short run: " if short else "")
        + "the last third beside the first, to a dict's operations: "
        + f"median at most {most[0]:g} times, p99.9 at most {most[1]:g}",
        f"median {ratios[0]:.2f}, p99.9 {ratios[1]:.2f} times ({len(windows)} windows)",
        ratios[0] <= most[0] and ratios[1] <= most[1],
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", choices=["leak", "slow", "mute"], default="")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(Path(args.child[0]), args.child[1])
        return 0
    seconds, words = args.minutes * 60, Words()
    with tempfile.TemporaryDirectory() as root:
        pid = works(words, args, Path(root), 0.05 if seconds < 600 else 0.005)
        every = min(60.0, max(3.0, seconds / 12))
        told = measured(words, pid, Path(root), seconds, every, args.plant)
    for what in told["wrong"][:10]:
        print(what, flush=True)
    case = said.kept("soak")
    case.write_text(json.dumps({"seed": args.seed, "told": told}))
    if told["wrong"]:
        print(f"kept: {case}")
    judge(told, args.minutes)
    if args.plant:
        return int(said.verdict() == 0)
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
