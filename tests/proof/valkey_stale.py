"""No copy outlives a change by more than is stated, whatever becomes of the channel; and no thread its time-out.

`python tests/proof/valkey_stale.py --writes 1000000 --cuts 100 --down 10 --seed 1`, with a redis-server of its own.

watch   One process writes, this one reads through a `Tiered`. Of every write the writer
        notes when it was acknowledged; of every read that shows an older value, it is known how long since.
cuts    The same through a proxy that resets all connections, lets nothing through on all of them or only on those
        that listen, or the server kills the listening one. Within 2 x heartbeat + max_staleness no copy is left.
down    The server stands still, then it is killed and started again, under eight threads: how long a call takes,
        and that all is well again by itself.

Exits with 1 if anything is not as stated. What a busy machine adds, a thread that waits for its turn, is measured
alongside (Metronome) and allowed for: twice, since the server waits too.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent.parent.parent)]

import said  # noqa: E402
from proxy import Proxy  # noqa: E402
from servers import Server  # noqa: E402

from gbcache import FarError, ObjectCache, Tiered  # noqa: E402
from gbcache.valkey import Valkey  # noqa: E402

KEYS, CALLERS = 1000, 8
LIMIT = 0.050
"""Seconds: of a channel that is whole, no copy is older than that."""
HEARTBEAT, NOTICED = 0.1, 3.0
"""Seconds; and after how many, at most, a channel that was cut must have begun anew."""
NAMES = [f"key{i}" for i in range(KEYS)]


class Deaf:
    """A listener that is planted: as if changes were not told."""

    def __init__(self, listener: Any) -> None:
        self.lost, self.restored = listener.lost, listener.restored

    def changed(self, keys: Any) -> None:
        pass


class Told:
    """A listener that counts how often the channel began anew."""

    def __init__(self, listener: Any) -> None:
        self.lost, self.changed = listener.lost, listener.changed
        self._restored, self.begun = listener.restored, 0

    def restored(self) -> None:
        self.begun += 1
        self._restored()


class Counted(Valkey):
    told: Told

    def feed(self, listener: Any) -> Any:
        self.told = Told(listener)
        return super().feed(self.told)


class Planted(Valkey):
    def feed(self, listener: Any) -> Any:
        return super().feed(Deaf(listener))


class Ledger:
    """Of each write, by its number, the monotonic time of its acknowledgement. Shared by two processes. Write n sets
    key n % KEYS to n, so the next write of the same key is n + KEYS."""

    def __init__(self, path: Path, writes: int) -> None:
        size = (writes + KEYS) * 8
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        self.at = memoryview(self._map).cast("d")
        self.writes = writes

    def age(self, value: int | None, key: int, began: float) -> float:
        """Seconds that a read begun at `began` is behind; 0 if it is not."""
        later = key if value is None else value + KEYS
        acked = self.at[later] if later < self.writes else 0.0
        return began - acked if 0.0 < acked < began else 0.0


def writer(url: str, path: Path, writes: int, pause: float, seed: int) -> None:
    """The other process."""
    ledger, rng = Ledger(path, writes), random.Random(seed)
    far = Valkey(url, timeout=10)
    n = 0
    while n < writes:
        batch = range(n, min(writes, n + rng.randint(1, 20)))
        far.put_many([(NAMES[i % KEYS], i, None) for i in batch])
        now = time.monotonic()
        for i in batch:
            ledger.at[i] = now
        n = batch.stop
        if pause:
            time.sleep(pause * rng.random())
    far.close()


def start_writer(
    url: str, path: Path, writes: int, pause: float, seed: int
) -> subprocess.Popen[bytes]:
    words = [
        "--writer",
        url,
        str(path),
        "--writes",
        str(writes),
        "--pause",
        str(pause),
        "--seed",
        str(seed),
    ]
    return subprocess.Popen([sys.executable, str(HERE), *words])


class Noted(threading.Thread):
    """A thread that notes in `died` what ended it before it was told to end."""

    def __init__(self, call: Any, died: list[str], *args: Any) -> None:
        super().__init__(daemon=True)
        self.call, self.died, self.args = call, died, args

    def run(self) -> None:
        try:
            self.call(*self.args)
        except BaseException as error:
            self.died.append(f"a thread died of {error!r}")


class Metronome(threading.Thread):
    """Wakes up each millisecond; `late`: by how much too late at most, as any thread here may be."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.late, self.over = 0.0, False
        self.start()

    def run(self) -> None:
        while not self.over:
            due = time.monotonic() + 0.001
            time.sleep(0.001)
            self.late = max(self.late, time.monotonic() - due)

    def end(self) -> float:
        self.over = True
        self.join(10)
        return self.late


def until(met: Any, seconds: float = 20.0) -> float:
    began = time.monotonic()
    while not met():
        assert time.monotonic() < began + seconds, "it did not happen"
        time.sleep(0.002)
    return time.monotonic() - began


# --- watch ---------------------------------------------------------------------------------------


def watch(place: Path, writes: int, seed: int, plant: bool) -> list[str]:
    server = Server()
    ledger, rng = Ledger(place / "watch", writes), random.Random(seed)
    far = (Planted if plant else Valkey)(server.url, timeout=10, heartbeat=2.0)
    tier = Tiered(ObjectCache(10 * KEYS), far)
    until(lambda: tier.trusts)
    process = start_writer(server.url, place / "watch", writes, 0.0, seed)
    metronome = Metronome()
    reads, late, worst, behind = 0, 0, 0.0, 0
    while process.poll() is None:
        for _ in range(1000):
            key = int(rng.random() ** 2 * KEYS)
            began = time.monotonic()
            age = ledger.age(tier.get(NAMES[key]), key, began)
            if age:
                behind += 1
                worst = max(worst, age)
                late += age > LIMIT
            reads += 1
    machine = metronome.end()
    time.sleep(0.5)
    told, hits = tier.stats().invalidations, tier.near.stats().hits
    wrong = sum(tier.get(NAMES[i % KEYS]) != i for i in range(max(0, writes - KEYS), writes))
    print(
        f"watch: {writes} writes, {told} told, {reads} reads, {hits} of copies; behind an acknowledged "
        f"write {behind}, by {worst * 1000:.2f} ms at most, over {LIMIT * 1000:.0f} ms {late}; wrong at the "
        f"end {wrong}; the machine itself {machine * 1000:.1f} ms late",
        flush=True,
    )
    tier.close()
    server.close()
    faults = []
    if process.returncode or not hits or reads < 1000:
        faults.append("watch: nothing was proved")
    if worst > LIMIT + 2 * machine or wrong:
        faults.append(f"watch: {late} reads were stale, {wrong} copies in the end")
    said.row(
        f"a copy is behind its server by {LIMIT * 1000:.0f} ms at most",
        f"{writes:,} writes, {reads:,} reads, {worst * 1000:.1f} ms (the machine itself {machine * 1000:.1f} ms late)",
        not faults,
    )
    return faults


# --- cuts ----------------------------------------------------------------------------------------


def do_fault(kind: str, proxy: Proxy, server: Server, rng: random.Random) -> None:
    if kind == "reset":
        proxy.cut()
    elif kind == "killed":
        import redis

        with redis.Redis(port=server.port) as client:
            for each in client.client_list():
                if "t" in each["flags"] or "B" in each["flags"]:
                    client.client_kill_filter(_id=each["id"])
    else:
        proxy.hold("all" if kind == "silent" else "listen")
        time.sleep(rng.uniform(0.3, 0.8))
        proxy.let()


class Peeks(Noted):
    """Looks at copies all the time, and at nothing else: a miss would wait for the server."""

    def __init__(self, tier: Tiered, ledger: Ledger, seed: int, died: list[str]) -> None:
        super().__init__(self.look, died)
        self.tier, self.ledger, self.rng = tier, ledger, random.Random(seed)
        self.over, self.seen, self.worst = False, 0, 0.0

    def look(self) -> None:
        tier, age = self.tier, self.ledger.age
        while not self.over:
            for _ in range(200):
                key = int(self.rng.random() * KEYS)
                began = time.monotonic()
                if not tier.trusts:
                    continue
                value = tier.near.peek(NAMES[key], self)
                if value is not self:
                    self.seen += 1
                    self.worst = max(self.worst, age(value, key, began))
            time.sleep(0.0005)


def cuts(place: Path, count: int, seed: int, max_staleness: float, plant: bool) -> list[str]:
    server = Server()
    proxy = Proxy(server.port)
    writes = count * 40_000 + 200_000
    path = place / f"cuts{max_staleness}"
    ledger, rng = Ledger(path, writes), random.Random(seed)
    far = Counted(
        proxy.url, timeout=0.3, heartbeat=60 if plant else HEARTBEAT, max_staleness=max_staleness
    )
    tier = Tiered(ObjectCache(10 * KEYS), far)
    until(lambda: tier.trusts)
    process = start_writer(server.url, path, writes, 0.001, seed)
    died: list[str] = []
    peeks = Peeks(tier, ledger, seed, died)
    peeks.start()
    stop = threading.Event()

    def fill() -> None:
        while not stop.is_set():
            with contextlib.suppress(FarError):
                tier.get(NAMES[int(rng.random() * KEYS)])

    filler = Noted(fill, died)
    filler.start()
    metronome = Metronome()
    kinds: Counter[str] = Counter()
    slowest, unseen = 0.0, 0
    turns = rng.sample(["reset", "killed", "silent", "deaf"], 4)
    for n in range(10 * count):
        if n >= count and peeks.seen >= count * 10:  # on a busy machine few copies are seen
            break
        time.sleep(rng.uniform(0.05, 0.3))
        kind = turns[n % 4]
        kinds[kind] += 1
        before = far.told.begun
        do_fault(kind, proxy, server, rng)
        try:
            until(lambda was=before: far.told.begun > was, NOTICED)
        except AssertionError:  # nobody was cut off: it shows nothing
            unseen += 1
            if unseen == 3:
                break
        slowest = max(slowest, until(lambda: tier.trusts, 10))
    machine = metronome.end()
    lived = filler.is_alive() and peeks.is_alive()
    stop.set()
    peeks.over = True
    running = process.poll() is None
    process.kill()
    process.wait()
    for thread in (filler, peeks):
        thread.join(10)
        if thread.is_alive():
            died.append("a thread is stuck")
    bound = 2 * HEARTBEAT + max_staleness
    print(
        f"cuts: {dict(kinds)}, max_staleness {max_staleness}: {peeks.seen} looks at copies, the oldest "
        f"{peeks.worst * 1000:.1f} ms behind, bound {bound * 1000:.0f} ms; "
        f"back after {slowest * 1000:.0f} ms at most; the machine itself {machine * 1000:.1f} ms late",
        flush=True,
    )
    tier.close()
    proxy.close()
    server.close()
    faults = [f"cuts: {what}" for what in died]
    if unseen:
        faults.append(f"cuts: {unseen} of {kinds.total()} were not noticed")
    if not lived or not running or peeks.seen < count * 10:
        faults.append("cuts: nothing was proved")
    if peeks.worst > bound + 2 * machine:
        faults.append(f"cuts: a copy was {peeks.worst:.3f} s behind, the bound is {bound} s")
    said.row(
        f"the channel is cut: a copy is behind by two heartbeats + {max_staleness} s at most",
        f"{kinds.total()} cuts, {unseen} not noticed, {peeks.seen:,} looks, "
        f"{peeks.worst * 1000:.0f} ms of {bound * 1000:.0f} ms",
        not faults,
    )
    return faults


# --- down ----------------------------------------------------------------------------------------


def down(seconds: float, seed: int) -> list[str]:
    server = Server()
    timeout = 0.5
    far = Valkey(server.url, timeout=timeout, heartbeat=HEARTBEAT)
    tier = Tiered(ObjectCache(10 * KEYS), far)
    until(lambda: tier.trusts)
    stop = threading.Event()
    metronome = Metronome()
    longest: list[float] = []
    done: Counter[str] = Counter()
    died: list[str] = []

    def work(n: int) -> None:
        rng, mine = random.Random(seed + n), 0.0
        while not stop.is_set():
            key = rng.randrange(100)
            began = time.monotonic()
            try:
                [
                    lambda k=key: tier.get(k),
                    lambda k=key: tier.set(k, "x" * 1000),
                    lambda: tier.incr(f"n{n}"),
                    lambda k=key: tier.delete_many([k]),
                    lambda: far.scan(),
                ][rng.randrange(5)]()  # fmt: skip
                done["good"] += 1
            except FarError:
                done["failed"] += 1
            mine = max(mine, time.monotonic() - began)
        longest.append(mine)

    threads = [Noted(work, died, n) for n in range(CALLERS)]
    for thread in threads:
        thread.start()
    back, idle = [], []
    for how in ("stop", "kill"):
        time.sleep(0.3)
        failed = done["failed"]
        server.stop() if how == "stop" else server.kill()
        time.sleep(seconds)
        if done["failed"] == failed:
            idle.append(f"no call failed after the server's {how}")
        server.go_on() if how == "stop" else server.start()
        before = done["good"]
        back.append(until(lambda b=before: tier.trusts and done["good"] > b + 100))
    machine = metronome.end()
    stop.set()
    for thread in threads:
        thread.join(10)
    stuck = sum(thread.is_alive() for thread in threads)
    most = max(longest, default=0.0)
    print(
        f"down: {seconds} s stopped, {seconds} s killed: {dict(done)}; the longest call "
        f"{most * 1000:.0f} ms of {timeout * 1000:.0f} ms; well again after "
        f"{back[0] * 1000:.0f} and {back[1] * 1000:.0f} ms; "
        f"the machine itself {machine * 1000:.1f} ms late",
        flush=True,
    )
    tier.close()
    server.close()
    own = 0.05  # what a call does beside waiting, and how late the machine wakes it
    faults = [f"down: {what}" for what in [*died, *idle]]
    if stuck or most > timeout + own + 2 * machine:
        faults.append(f"down: a call took {most:.3f} s, {stuck} threads are stuck")
    if len(longest) != CALLERS:
        faults.append(f"down: {len(longest)} threads of {CALLERS} came to their end")
    said.row(
        "no server: no call takes longer than its timeout and 50 ms, and it is well again after",
        f"{seconds:g} s stopped, {seconds:g} s killed: {most * 1000:.0f} ms of "
        f"{(timeout + own) * 1000:.0f} ms (the machine itself {machine * 1000:.1f} ms late)",
        not faults,
    )
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--writes", type=int, default=1_000_000)
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--down", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--plant", choices=["deaf", "heartless"], help="a fault that has to be found"
    )
    parser.add_argument("--writer", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--pause", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.writer:
        writer(args.writer[0], Path(args.writer[1]), args.writes, args.pause, args.seed)
        return 0
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gbcache-stale-") as name:
        place = Path(name)
        if args.writes:
            faults += watch(place, args.writes, args.seed, args.plant == "deaf")
        if args.cuts:
            half = args.cuts // 2
            faults += cuts(place, args.cuts - half, args.seed, 0.0, args.plant == "heartless")
            faults += (
                cuts(place, half, args.seed + 1, 0.3, args.plant == "heartless") if half else []
            )
        if args.down:
            faults += down(args.down, args.seed)
    print("\n".join(faults) or "all as stated")
    return int(bool(faults) or said.verdict())


if __name__ == "__main__":
    raise SystemExit(main())
