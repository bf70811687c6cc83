"""Within a fork nobody waits for other threads; what a child makes is its own; a lock its parent gave up is free.

A hook that was registered before gbcache was imported runs within ours: see test_forks.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from children import run, skip_without_lmdb

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

FIRST = """
acts = {}

def act(when):
    signal.alarm(25)  # a child has none of its parent's
    if when in acts:
        acts[when]()

for name in ("before", "after_in_parent", "after_in_child"):
    os.register_at_fork(**{name: lambda name=name: act(name)})
"""


def fine(code: str, *args: object) -> None:
    done = run(
        f"import threading, time\nsignal.alarm(25)\n{code}\nprint('fine')", *args, first=FIRST
    )
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr[-2000:]


CHILD_MAKES = """
made = []
acts["after_in_child"] = lambda: made.append({make})
if (pid := os.fork()) == 0:
    code = 1
    try:
        c = made[0]
        c["k"] = 1
        assert c["k"] == 1
        del acts["after_in_child"]
        if (child := os.fork()) == 0:  # which is a parent, too
            try:
                c["k"] = 2
            except gbcache.ClosedError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0 and c["k"] == 1
        c.close()
        code = 0
    finally:
        os._exit(code)
assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_live_file_that_a_child_opens_in_a_hook_is_its_own(tmp_path: Path) -> None:
    code = CHILD_MAKES.format(make="gbcache.Cache('1MB', path=sys.argv[1])")
    look = "c = gbcache.Cache('1MB', path=sys.argv[1])\nassert c.recovery.how == 'clean' and c['k'] == 1"
    fine(code + look, tmp_path / "a.gbc")


def test_a_disk_that_a_child_opens_in_a_hook_is_its_own(tmp_path: Path) -> None:
    skip_without_lmdb()
    code = """
Disk = gbcache.Disk  # its hooks are there from here on

def use(disk, value):
    disk.put_many([("k", value, None)])
    return disk.get_many(["k"])["k"][0]

made = []
acts["after_in_child"] = lambda: made.append(Disk(sys.argv[1]))
if (pid := os.fork()) == 0:
    code = 1
    try:
        assert use(made[0], 1) == 1
        made[0].close()
        code = 0
    finally:
        os._exit(code)
assert os.waitpid(pid, 0)[1] == 0
assert Disk(sys.argv[1]).get_many(["k"])["k"][0] == 1
"""
    fine(code, tmp_path / "disk")
