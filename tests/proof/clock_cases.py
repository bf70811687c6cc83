"""The cases of `proof-clock`, by name: each in a process of its own, by a clock that says what the case wants."""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import random
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gbcache import Cache, ObjectCache
from gbcache.disk import Disk

DAY, YEAR = 86400.0, 365.25 * 86400.0
TICK = 0.008
WORST = 0.005
Made = Callable[..., Any]


class Given:
    """The library's `clock=`."""

    least = 0

    def __init__(self) -> None:
        self.now = 0.0
        self.options: dict[str, Any] = {"clock": lambda: 5000.0 + self.now}

    def set(self, now: float, wall: float = 0.0) -> None:
        self.now = now


class Machine:
    """The machine's own clocks, which stand still, and are where `set` puts them."""

    least = -999

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None)
        self.libc.clock_shift.argtypes = [ctypes.c_int64] * 2
        self.options: dict[str, Any] = {}
        self.libc.clock_stop(1)
        self.now = 0.0

    def set(self, now: float, wall: float = 0.0) -> None:
        self.now = now
        self.libc.clock_shift(round(wall * 1e3) * 1_000_000, round(now * 1e3) * 1_000_000)


def made_of(kind: str, **options: Any) -> Any:
    return Cache("8MB", **options) if kind == "Cache" else ObjectCache(None, **options)


class Model:
    """What was written when, to live how long. Only what was past at some moment may be gone."""

    def __init__(self, seed: str, kind: str, world: Any, plant: str) -> None:
        self.dice, self.world = random.Random(seed), world
        self.cache = made_of(kind, **world.options)
        self.due: dict[int, int | None] = {}
        self.now = self.latest = 0
        self.wall = 0.0
        self.off = {"early": 9, "late": -9}.get(plant, 0)
        self.checks, self.wrong = 0, list[str]()

    def move(self, ms: int) -> None:
        """A time before the cache's own is its own (of the machine's clock, a second before)."""
        self.now = max(ms, self.world.least)
        self.latest = max(self.latest, self.now)
        self.world.set(ms / 1000, self.wall)

    def look(self, key: int) -> None:
        """A key is there until its deadline, and from its deadline on it is not."""
        self.checks += 1
        due = self.due.get(key, 0)
        there = self.cache.get(key) is not None
        past = due is not None and due + self.off <= self.now
        maybe = due is not None and due + self.off <= self.latest
        if there == past and not (maybe and not there):
            when = "is there" if there else "is gone"
            self.wrong.append(f"{key} {when}: due {due}, now {self.now}, latest {self.latest}")
        elif not there:
            self.due.pop(key, None)
        elif due is not None and abs(self.cache.ttl(key) * 1000 - (due - self.now)) > 1:
            self.wrong.append(f"{key}: ttl {self.cache.ttl(key)}, due {due}, now {self.now}")

    def write(self, key: int) -> None:
        ms = self.dice.choice([1, 7, 8, 9, 100, 1000, 5000, 60_000, 3_600_000, 10**9, 10**12])
        ms = self.dice.randint(max(1, ms // 2), ms)
        how = self.dice.randrange(8)
        if how == 0:
            self.cache.set(key, key, ttl=None)
        elif how == 1 and self.cache.touch(key, ttl=ms / 1000):
            pass
        else:
            self.cache.set(key, key, ttl=ms / 1000)
        self.due[key] = None if how == 0 else self.now + ms

    def step(self, back: bool) -> None:
        roll = self.dice.random()
        if roll < 0.5:
            self.write(self.dice.randrange(400))
        elif roll < 0.9:
            self.look(self.dice.randrange(400))
        elif roll < 0.98 or not back:
            far = self.dice.random()
            ahead = self.dice.choice([1, 7, 8, 9, 64, 512, 3000])
            if far < 0.02:
                ahead = self.dice.choice(
                    [3_600_000, 864_000_000, int(10 * YEAR * 1000)][: 3 - 2 * back]
                )
            self.wall = self.dice.choice([self.wall, 0.0, 10 * DAY, -10 * DAY])
            self.move(self.now + self.dice.randint(0, ahead))
        else:
            self.move(self.now - self.dice.choice([1, 8, 9, 100, 2000, 20_000, self.now + 5000]))

    def run(self, steps: int, back: bool) -> None:
        for n in range(steps):
            self.step(back)
            if n % 500 == 0:
                if self.dice.random() < 0.5:
                    self.cache.expire()
                self.cache.check()
            if self.wrong:
                break
        for key in list(self.due):
            self.look(key)
        self.cache.close()


def model(given: argparse.Namespace, back: bool) -> dict[str, Any]:
    checks, wrong = 0, list[str]()
    world = Machine() if given.machine else Given()
    for n in range(4):
        world.set(0.0)
        ran = Model(f"{given.seed}:{n}", given.kind, world, given.plant)
        ran.run(20_000, back)
        checks += ran.checks
        wrong += [f"run {n}: {what}" for what in ran.wrong]
    return {"figure": f"{checks:,} looks", "wrong": wrong}


def jumps(given: argparse.Namespace) -> dict[str, Any]:
    return model(given, False)


def backwards(given: argparse.Namespace) -> dict[str, Any]:
    return model(given, True)


def stuck(given: argparse.Namespace) -> dict[str, Any]:
    """No time passes: nothing is due, nobody hangs; then it does, and all of it goes without a call."""
    world, wrong = Machine(), list[str]()
    world.libc.clock_stop(0)
    cache = made_of(given.kind)
    told = list[Any]()
    cache.subscribe(lambda event: told.append(event.kind), kinds={"expire"})
    world.libc.clock_stop(1)
    for i in range(1000):
        cache.set(i, i, ttl=0.05)
    select_for(0.6)
    if sum(cache.get(i) is not None for i in range(1000)) != 1000:
        wrong.append("something expired while no time passed")
    world.libc.clock_stop(0)
    select_for(0.4)
    if len(cache):
        wrong.append(f"{len(cache)} are left 0.35 s after their deadline, without a call")
    if len(told) != 1000:
        wrong.append(f"{len(told)} expiries told of 1,000")
    cache.close()
    return {"figure": "1,000 keys through 0.6 s that did not pass", "wrong": wrong}


def select_for(seconds: float) -> None:
    """Real seconds: a sleep that asks no clock."""
    select.select([], [], [], seconds)


def worst_of(times: int, operate: Callable[[int], None], wrong: list[str]) -> str:
    """Times the operations by the CPU each takes in all, however often it lets go of the lock on its way."""
    clock, worst, slow = time.thread_time_ns, 0, 0
    for n in range(times):
        begun = clock()
        operate(n)
        took = clock() - begun
        slow += took > WORST * 1e9
        worst = max(worst, took)
    if slow:
        wrong.append(f"an operation took {worst / 1e6:.2f} ms of CPU, {slow} took more than 5")
    return f"worst operation {worst / 1e6:.2f} ms of CPU"


def million(given: argparse.Namespace) -> dict[str, Any]:
    """All due in one tick: each that is touched is gone at once, and no operation pays for the others."""
    wrong, count = list[str](), 1_000_000
    world = Machine()
    options = {"housekeeping": False} if given.kind == "Cache" else {}
    cache = Cache("160MB", **options) if given.kind == "Cache" else ObjectCache(None)
    for i in range(count):
        cache.set(i, i, ttl=100)
    for i in range(count, count + 1000):
        cache.set(i, i, ttl=100_000)
    world.set(99.999)
    dice, late = random.Random(given.seed), list[int]()
    if any(cache.get(dice.randrange(count)) is None for _ in range(1000)):
        wrong.append("something was gone a ms too early")
    world.set(100.0)

    def operate(n: int) -> None:
        key = dice.randrange(count)
        if not n % 4:
            cache.set(-key - 1, n, ttl=1000)
        elif cache.get(key) is not None:
            late.append(key)

    figure = worst_of(100_000, operate, wrong)
    if late:
        wrong.append(f"{len(late)} were read after their deadline")
    cache.expire()
    if any(cache.get(i) is None for i in range(count, count + 1000)):
        wrong.append("what was not due went, too")
    if any(key >= 0 and key < count for key in cache):
        wrong.append("expire() left some")
    cache.check()
    cache.close()
    return {"figure": f"10^6 keys, {figure}", "wrong": wrong}


def full(given: argparse.Namespace) -> dict[str, Any]:
    """The same where there is no room: a set pays for the room it needs, not for all that is due."""
    wrong, world = list[str](), Machine()
    cache = Cache("80MB", housekeeping=False) if given.kind == "Cache" else ObjectCache(1_000_000)
    for key in itertools.count():
        cache.set(-key - 1, key, ttl=100)
        if not key % 1000 and cache.stats().evictions:
            break
    count = len(cache)
    world.set(100.0)
    figure = worst_of(20_000, lambda n: cache.set(n, n, ttl=1000), wrong)
    if count < 1_000_000:
        wrong.append(f"{count:,} keys are less than a million")
    cache.check()
    cache.close()
    return {"figure": f"{count:,} keys, {figure}", "wrong": wrong}


def paused(given: argparse.Namespace) -> dict[str, Any]:
    """The process stops for some seconds, by the real clocks."""
    wrong = list[str]()
    cache = made_of(given.kind)
    told = list[Any]()
    cache.subscribe(lambda event: told.append(event.key), kinds={"expire"})
    for i in range(1000):
        cache.set(i, i, ttl=given.stopped / 2 + i * given.stopped / 1000)
    begun = time.monotonic()
    helper = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGSTOP))
    helper.start()
    while time.monotonic() - begun < given.stopped + 0.2:
        time.sleep(0.001)
    for i in range(1000):
        passed = time.monotonic()
        there = cache.get(i) is not None
        due = given.stopped / 2 + i * given.stopped / 1000
        if there and passed - begun > due + TICK:
            wrong.append(f"{i} is there {passed - begun - due:.3f} s after its deadline")
        if not there and time.monotonic() - begun < due - 0.05:
            wrong.append(f"{i} went {due - (passed - begun):.3f} s early")
    time.sleep(given.stopped / 2 + 0.4)
    if len(cache) or len(told) != 1000:
        wrong.append(f"{len(cache)} are left, {len(told)} expiries told of 1,000")
    cache.close()
    return {"figure": f"stopped {given.stopped:g} s", "wrong": wrong}


# --- over a restart: each step is a process of its own ---------------------------------------------------------

TTL = 1000.0
RESTARTS = [
    (0.0, 0.0),
    (400.0, 400.0),
    (400.0, -3000.0),
    (-10 * DAY, 400.0),
    (10 * DAY, 10 * DAY),
    (999.0, 50.0),
]
"""What passes between two processes: by the wall clock, and by the one from the boot."""
FORMS = ["copy", "sealed", "clean", "killed", "disk"]


def restarted(given: argparse.Namespace) -> dict[str, Any]:
    """In the first process (no `passed`): makes the file. In the second: what is left of a TTL."""
    wall, mono, form, root = given.passed[0], given.passed[1], given.form, Path(given.root)
    world = Machine()
    world.set(mono, wall)
    path = root / form
    if given.making:
        cache = (
            Disk(path)
            if form == "disk"
            else Cache("1MB", path=path if form in ("clean", "killed") else None)
        )
        if isinstance(cache, Disk):
            cache.put_many([("k", 1, TTL)])
        else:
            cache.set("k", 1, ttl=TTL)
            cache.set("for ever", 1)
        if form in ("copy", "sealed"):
            cache.save(path)
        if form == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        cache.close()
        return {"figure": "", "wrong": []}
    return {"left": left_of(path, form)}


def left_of(path: Path, form: str) -> float | None:
    if form == "disk":
        with Disk(path) as disk:
            found = disk.get_many(["k"])
            return found["k"][1] if found else None
    found = Cache.open(path, {"copy": "copy", "sealed": "r"}.get(form, "r+"))
    with found:
        if "for ever" not in found:
            raise AssertionError("an entry without a TTL went")
        return found.ttl("k") if found.get("k") is not None else None


CASES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    case.__name__: case for case in (jumps, backwards, stuck, million, full, paused, restarted)
}
