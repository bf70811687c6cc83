"""Signals whose handlers raise, at the worst moments: what was taken is given back, what was begun is ended."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

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
    from gbcache import forks

    calls: list[int] = []

    def cut() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # told, as it would have been
        forks._insist(cut)
    assert len(calls) == 3

    def never() -> Any:
        calls.append(1)
        raise OSError

    with pytest.raises(OSError):
        forks._insist(never)
    assert len(calls) < 1000
