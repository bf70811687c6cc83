"""Signals whose handlers raise, at the worst moments: what was taken is given back, what was begun is ended."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fars import Full
from interrupted import exact, interrupted

from gbcache import Cache, ObjectCache, Tiered, forks
from gbcache.pending import value_of

# One that raises in a callback of the collector is printed, and lost.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


# What trips the signal is C: its handler runs where the next Python code does, in a hook or at the end of `os.fork`.
FORK = """
import _thread, os, signal, sys, threading
from functools import partial

class Interrupt(BaseException):
    pass

def ring(*_):
    rang.append(1)
    raise Interrupt

rang = []
sys.unraisablehook = lambda hook: None
signal.signal(signal.SIGUSR1, ring)
when, first = sys.argv[1:]
if first == "first":
    os.register_at_fork(**{when: partial(_thread.interrupt_main, signal.SIGUSR1)})
import gbcache
from fars import Full
if first != "first":
    os.register_at_fork(**{when: partial(_thread.interrupt_main, signal.SIGUSR1)})

caches = [gbcache.Cache("100kB") for _ in range(5)]
tier = gbcache.Tiered(gbcache.ObjectCache(10), Full(), write="behind", behind_seconds=30)
tier["k"] = "the parent's"
over, held = threading.Event(), threading.Event()

def hold():  # as a thread that is not there in the child
    with tier._behind._change:
        held.set()
        over.wait(30)

def use():
    for cache in caches:
        cache["k"] = 1
    fine.append(tier.stats().at_risk.entries == (1 if os.getpid() == parent else 0))
    if os.getpid() != parent:
        tier["k"] = 1
        tier.sync()

def usable():
    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    thread.join(10)
    return fine == [True]

fine, parent = [], os.getpid()
threading.Thread(target=hold).start()
held.wait()
try:
    os.fork()
except Interrupt:
    pass
if os.getpid() != parent:
    os._exit(0 if usable() else 1)
over.set()
child = os.waitstatus_to_exitcode(os.wait()[1])
print(usable(), child, len(rang))
os._exit(0)
"""


@forking
@pytest.mark.parametrize("first", ["first", "last"])
@pytest.mark.parametrize("when", ["before", "after_in_parent", "after_in_child"])
def test_a_fork_while_a_signal_arrives_leaves_every_cache_usable(when: str, first: str) -> None:
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", FORK, when, first],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )
    rang = when != "after_in_child"
    assert done.stdout == f"True 0 {rang:d}\n", done.stdout + done.stderr


def test_what_a_child_begins_anew_is_done_though_it_is_cut_off() -> None:
    calls: list[int] = []

    def cut() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # told, as it would have been
        forks.insist(cut)
    assert len(calls) == 3

    def never() -> Any:
        calls.append(1)
        raise OSError

    with pytest.raises(OSError):
        forks.insist(never)
    assert len(calls) < 1000


# --- writes of a tier --------------------------------------------------------------------------------


class Interrupt(BaseException):
    pass


@contextmanager
def handling(handler: Any) -> Iterator[None]:
    old = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


VERBS = {
    "put_many": lambda tier: tier.set("k", 2),
    "add": lambda tier: tier.add("k", 2),
    "incr": lambda tier: tier.incr("k"),
    "touch": lambda tier: tier.touch("k", 60),
    "delete_many": lambda tier: tier.discard("k"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_write_that_is_cut_off_again_and_again_is_over(verb: str) -> None:
    """A signal comes within the far side, and another a moment after its handler raised."""
    for more in range(40):
        left = [1e-6 * (more % 20 + 1), 1e-6]
        tier = Tiered(ObjectCache(10), Full(), negative_ttl=5)
        far: Any = tier.far
        tier["k"] = 1

        def ring(*_: Any, left: list[float] = left) -> None:
            if left:
                signal.setitimer(signal.ITIMER_REAL, left.pop())
            raise Interrupt

        with handling(ring):
            far.hook = lambda *_: signal.raise_signal(signal.SIGALRM)
            with suppress(Interrupt):
                with suppress(Interrupt):
                    with suppress(Interrupt):
                        VERBS[verb](tier)
                        pytest.fail("it was not cut off")
                    time.sleep(0.001)  # what is still to come comes here
                time.sleep(0.001)
        far.hook = lambda *_: None
        assert not tier._side._writing and (tier._side.doubted or tier.near.peek("k") is None)
        tier["k"] = 3
        assert tier.near.peek("k") == 3, "a write that nobody overlaps is kept"


def test_writes_that_signals_cut_off_anywhere_are_over() -> None:
    def ring(*_: Any) -> None:
        raise Interrupt

    far: Any = Full()
    tier, i = Tiered(Cache("1MB"), far), 0
    cut, end = 0, time.monotonic() + 30
    with handling(ring):
        while cut < 300 and time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, random.random() * 0.0003 + 1e-5)
                for _ in range(1000):
                    i += 1
                    tier[i % 100] = i
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                cut += 1
    assert cut == 300 and not tier._side._writing
    for key, value in [(key, tier.near.peek(key)) for key in range(100)]:
        assert tier._side.doubted or value is None or value == far.data[key][0]
    for key in range(100):
        tier[key] = "kept"
    assert [tier.near.peek(key) for key in range(100)] == ["kept"] * 100


@exact
@pytest.mark.parametrize("many", [False, True])
def test_a_write_behind_that_is_cut_off_leaves_no_old_copy(many: bool) -> None:
    """Queued or not: what is read is what the far side will have."""
    tier, n = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=30), 0
    behind: Any = tier._behind

    def write() -> None:
        if many:
            tier.set_many({"k": n, "l": n})
        else:
            tier["k"] = n

    while True:
        n += 1
        tier["k"] = -n
        if not (where := interrupted(write, n)):
            break
        near, queued = tier.near.peek("k"), value_of(behind.codec, behind.last("k"))
        assert tier._side.doubted or near in (None, queued), (where, near, queued)
    assert n > 10 and tier["k"] == n


def test_a_save_that_is_cut_off_holds_up_no_other(tmp_path: Path, monkeypatch: Any) -> None:
    """After any of the calls that say who saves: the lock of what it writes to goes with it."""
    cache, path, cut = Cache("1MB"), tmp_path / "a.gbc", 0
    real = os.getpid
    for n in range(20):
        left = [n]

        def getpid(left: list[int] = left) -> int:
            left[0] -= 1
            if left[0] == -1:
                raise Interrupt
            return real()

        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", getpid)
            try:
                cache.save(path)
            except Interrupt:
                cut += 1
        cache.save(path)
        assert not os.path.exists(f"{path}.saving")
    assert 2 <= cut < 20
