"""Forks under load: a child is usable or says why not, never hangs; its parent is unharmed; exec inherits nothing.

Four threads hammer a Cache, an ObjectCache, a memoized function, a live file and a Tiered over a Disk, with
subscribers, while the main thread forks. A child has ten seconds, by its own alarm and by its parent's clock. Where
the parent itself hangs, all its threads are printed and it ends.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import said

from gbcache import Cache, ClosedError, Disk, ObjectCache, Tiered, memoize

LIMIT, GRACE, HUNG = 10, 5, 3
"""A child's seconds; how many more until its parent kills it; after so many that hang no more are forked."""
LEAST = 20
"""Signals handled in a second of the storm, of 1,400 sent: a busy machine, which runs us in turns, gives fewer."""
GIVEN = {
    os.readlink(f"/proc/self/fd/{n}") for n in range(256) if os.path.islink(f"/proc/self/fd/{n}")
}
"""What we were started with."""


class World:
    """One of each, in use."""

    def __init__(self, root: Path, seed: int) -> None:
        self.seed, self.over = seed, False
        self.errors: list[BaseException] = []
        self.plain, self.objects = Cache("2MB", ttl=5), ObjectCache(500, ttl=5)
        self.live = Cache("1MB", path=root / "live.gbc")
        self.tier = Tiered(Cache("1MB"), Disk(root / "disk", sync="never"), write="behind")
        self.fn = memoize(maxsize=100)(lambda key: key * 2)
        self.heard = 0
        for cache in (self.plain, self.objects, self.live):
            cache.subscribe(self.hear)
            cache.subscribe(self.hear, delivery="inline", kinds="evict")
        self.watch = self.plain.watch()
        self.threads = [threading.Thread(target=self.hammer, args=(i,)) for i in range(4)]
        for thread in self.threads:
            thread.start()

    def hear(self, event: Any) -> None:
        self.heard += 1

    def hammer(self, number: int) -> None:
        rng = random.Random(self.seed * 10 + number)
        try:
            while not self.over:
                self.step(rng)
        except BaseException as error:
            self.errors.append(error)

    def step(self, rng: random.Random) -> None:
        key = f"key:{rng.randrange(800)}"
        for cache in (self.plain, self.objects, self.live, self.tier):
            cache[key] = key
            assert cache.get(key, key) == key
        self.plain.set("long", b"l" * 100_000)
        assert self.plain.get_or_set(f"load:{key}", lambda: key) == key
        assert self.fn(key) == key * 2

    def end(self) -> None:
        self.over = True
        for thread in self.threads:
            thread.join(30)
            if thread.is_alive():
                self.errors.append(TimeoutError("a thread hangs"))

    def check(self) -> None:
        for cache in (self.plain, self.objects, self.live, self.tier.near):
            cache.check()
        self.tier.sync()
        assert self.tier.far.count() == len(set(self.tier))


def child(w: World, planted: bool) -> None:
    """What a child does; the exit status says what was wrong."""
    if planted:
        w.stuck.acquire()  # type: ignore[attr-defined]
    for cache in (w.plain, w.objects):
        cache.check()
        cache["child"] = "here"
        assert cache["child"] == "here" and cache.get_or_set("made", lambda: 5) == 5
    assert w.fn("child") == "childchild"
    told: list[Any] = []
    with w.plain.subscribe(told.append, delivery="inline"):
        w.plain["told"] = 1
    assert told and w.watch.closed
    for closed in (
        lambda: w.live["key:1"],
        lambda: w.tier.sync(),
        lambda: w.tier.far.get_many(["key:1"]),
    ):
        try:
            closed()
        except ClosedError:
            continue
        raise AssertionError("the parent's file was used")
    w.plain.close()
    w.objects.close()


def fork_once(w: World, planted: bool) -> str:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(LIMIT)
            child(w, planted)
            status = 0
        except BaseException as error:
            print(f"in a child: {error!r}", file=sys.stderr, flush=True)
        os._exit(status)
    status = awaited(pid)
    if status is None:
        return "hung"
    if os.WIFSIGNALED(status):
        return "hung" if os.WTERMSIG(status) == signal.SIGALRM else f"signal {os.WTERMSIG(status)}"
    return "fine" if status == 0 else "wrong"


def awaited(pid: int) -> int | None:
    """A child's wait status; None: it was killed, as its alarm was not even set, or did not end it."""
    end = time.monotonic() + LIMIT + GRACE
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() > end:
            break
        time.sleep(0.002)
    os.kill(pid, signal.SIGUSR1)  # it says where (main)
    time.sleep(1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def fork_often(w: World, forks: int, planted: bool) -> Counter[str]:
    ends = Counter[str]()
    while ends.total() < forks and ends["hung"] < HUNG:
        ends[fork_once(w, planted)] += 1
    return ends


def inherited() -> str:
    """What a program has open that is started while one of each is in use, beside its own three."""
    # the descriptor that lists the others is among them, and closed by now
    code = (
        "import os; all = [f'/proc/self/fd/{n}' for n in os.listdir('/proc/self/fd') if int(n) > 2]; "
        "print([os.readlink(path) for path in all if os.path.islink(path)])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, close_fds=False, check=True
    )
    names = [
        name
        for name in ran.stdout.strip("[]\n").replace("'", "").split(", ")
        if name and name not in GIVEN and "/proc/" not in name
    ]
    return ", ".join(names)


EXITS = {
    "sys.exit": "sys.exit(0)", "the end": "pass", "an exception": "raise KeyError('on purpose')",
    "atexit": "atexit.register(lambda: (c.set('x', 1), o.get('x'), t.get('x')))",
    "a flight": "threading.Thread(target=lambda: o.get_or_set('f', lambda: time.sleep(0.2)), daemon=True).start(); "
                "threading.Thread(target=lambda: o.get_or_set('f', lambda: 1), daemon=True).start()",
    "a save": "c.save(root + '/s', wait=False)",
}  # fmt: skip
SCRIPT = """
import atexit, faulthandler, sys, threading, time
faulthandler.dump_traceback_later(30, exit=True)  # one that hangs says where
from gbcache import Cache, ClosedError, Disk, ObjectCache, Tiered
root = sys.argv[1]
c, o = Cache("1MB", ttl=5), ObjectCache(100, ttl=5)
t = Tiered(Cache("1MB"), Disk(root + "/d", sync="interval"), write="behind")
live = Cache("1MB", path=root + "/l.gbc", sync_interval=0.05)
c.subscribe(lambda e: None); o.subscribe(lambda e: None)
def hammer():
    try:
        while True:
            for i in range(50):
                c[i] = i; o[i] = i; t[i] = i; live[i] = i
    except ClosedError:  # the tier was closed at exit, while we went on: said so
        pass
threading.Thread(target=hammer, daemon=True).start()
time.sleep({delay})
{how}
"""


PURPOSE = re.compile(r"Traceback \(most recent call last\):\n(  .*\n)+KeyError: 'on purpose'\n")


def as_it_should(name: str, status: int, errors: str) -> bool:
    """Nothing is said; or of the exception that was raised on purpose its traceback, and that alone."""
    if name == "an exception":
        return status == 1 and PURPOSE.fullmatch(errors) is not None
    return status == 0 and not errors


def exits(n: int, seed: int) -> Counter[str]:
    """Processes that end with all threads alive: how."""
    rng, ends = random.Random(seed), Counter[str]()
    names = list(EXITS)
    for i in range(n):
        name = names[i % len(names)]
        with tempfile.TemporaryDirectory() as root:
            script = SCRIPT.format(delay=rng.choice([0, 0.001, 0.02, 0.06]), how=EXITS[name])
            ran = subprocess.run(
                [sys.executable, "-c", script, root], capture_output=True, text=True, timeout=60
            )
        good = as_it_should(name, ran.returncode, ran.stderr)
        if not good:
            print(name, ran.returncode, ran.stderr[-1500:], sep="\n")
        ends["fine" if good else f"{name}: {ran.returncode}"] += 1
    return ends


class Told(Exception):
    """Raised by a signal handler."""


def signals(seconds: float, root: Path, seed: int) -> tuple[int, int, float, str]:
    """A storm of SIGALRM whose handler uses the caches and sometimes raises: handled, raised, for how long, what was
    wrong."""
    caches: list[Any] = [
        Cache("300kB", ttl=5),
        ObjectCache(200, ttl=5),
        Cache("300kB", path=root / "signals.gbc"),
    ]
    rng, handled, raised, armed = random.Random(seed), 0, 0, False

    def handler(*_: Any) -> None:
        nonlocal handled, armed
        handled += 1
        for cache in caches:
            cache.set(f"h{handled % 50}", handled)
            cache.get("key:1")
        if handled % 3 == 0 and armed:
            armed = False  # not again before the next is awaited: one outside the `try` would end the storm
            raise Told

    before = signal.signal(signal.SIGALRM, handler)
    begun = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)
        while time.monotonic() < begun + seconds:
            try:
                armed = True
                for cache in caches:
                    key = f"key:{rng.randrange(300)}"
                    cache[key] = "v" * rng.randrange(200)
                    cache.get_or_set(f"l{key}", lambda: 1)
                    cache.set_many({f"m{i}": i for i in range(20)})
                    list(cache.items())
                    cache.delete_many(["m1", "m2"])
                armed = False
            except Told:
                raised += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    took = time.monotonic() - begun
    wrong = []
    for cache in caches:
        try:
            cache.check()
            cache["after"] = 1
            if cache["after"] != 1 or cache._flights:
                wrong.append(f"{cache!r}: {len(cache._flights)} flights are left")
            cache.close()
        except Exception as error:
            wrong.append(repr(error))
    return handled, raised, took, "; ".join(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--forks", type=int, default=1000)
    parser.add_argument("--exits", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=20, help="of signals")
    parser.add_argument(
        "--planted", action="store_true", help="a lock that a thread holds when it forks"
    )
    options = parser.parse_args()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # about twenty times what it takes
    faulthandler.dump_traceback_later(300 + options.forks + 5 * options.seconds, exit=True)
    with tempfile.TemporaryDirectory() as folder:
        root, begun = Path(folder), time.monotonic()
        w = World(root, options.seed)
        if options.planted:
            w.stuck = threading.Lock()  # type: ignore[attr-defined]
            w.stuck.acquire()  # type: ignore[attr-defined]
        ends = fork_often(w, options.forks, options.planted)
        open_in_it = inherited()
        w.end()
        w.check()
        took = f"{time.monotonic() - begun:.0f} s, seed {options.seed}"
        said.row("forks under four threads", f"{dict(ends)}, parent {w.errors or 'unharmed'}, {took}",
                 ends["fine"] == options.forks and not w.errors)  # fmt: skip
        said.row("descriptors after exec", open_in_it or "none", not open_in_it)
        w.tier.close()
        w.live.close()
        handled, raised, stormed, wrong = signals(options.seconds, root, options.seed)
        said.row("signals during operations",
                 f"{handled:,} handled, {raised:,} raised in {stormed:.0f} s, {wrong or 'sound'}",
                 handled >= LEAST * options.seconds and raised * 10 >= handled and stormed >= options.seconds
                 and not wrong)  # fmt: skip
    faulthandler.cancel_dump_traceback_later()  # what follows has its own
    begun = time.monotonic()
    ended = exits(options.exits, options.seed)
    said.row("exits with live threads", f"{dict(ended)}, {time.monotonic() - begun:.0f} s, seed {options.seed}",
             ended["fine"] == options.exits)  # fmt: skip
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
