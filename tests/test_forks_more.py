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


HELD = """
def forked():
    "A child that stays, and whose hooks are done."
    up = os.pipe()
    if (pid := os.fork()) == 0:
        signal.alarm(25)
        os.write(up[1], b"1")
        signal.pause()
    os.read(up[0], 1)
    children.append(pid)

def aside(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()

def end():
    for pid in children:
        os.kill(pid, signal.SIGKILL)  # not before: it was there until now

children, path = [], sys.argv[1]
"""


@pytest.mark.parametrize("how", ["new", "clean", "mended"])
def test_a_live_file_opened_as_another_thread_forked_is_free_once_it_is_closed(
    how: str, tmp_path: Path
) -> None:
    """The child has its descriptors; its hooks know of none of them yet."""
    code = """
from gbcache import live, memory
how = sys.argv[2]
if how != "new":
    gbcache.Cache("1MB", path=path).close()
if how == "mended":
    if (pid := os.fork()) == 0:
        c = gbcache.Cache("1MB", path=path)
        os._exit(0)
    os.waitpid(pid, 0)
map_it = memory.shared

def shared(fd, length):
    mapped = map_it(fd, length)
    aside(forked)
    return mapped

memory.shared = shared
c = gbcache.Cache("1MB", path=path)
memory.shared = map_it
c["k"] = 1
c.close()
try:
    c = gbcache.Cache("1MB", path=path)
    assert c["k"] == 1 and len(children) == 1
finally:
    end()
"""
    fine(HELD + code, tmp_path / "a.gbc", how)


def test_an_opening_that_fails_as_another_thread_forked_leaves_it_free(tmp_path: Path) -> None:
    code = """
from gbcache import memory
gbcache.Cache("1MB", path=path).close()
map_it = memory.shared

def shared(fd, length):
    mapped = map_it(fd, length)
    aside(forked)
    raise OSError("no room")

memory.shared = shared
try:
    gbcache.Cache("1MB", path=path)
except OSError:
    pass
memory.shared = map_it
try:
    gbcache.Cache("1MB", path=path).close()
finally:
    end()
"""
    fine(HELD + code, tmp_path / "a.gbc")


def test_what_a_killed_process_was_saving_is_not_its_childs(tmp_path: Path) -> None:
    """The child lasts longer; another process takes the save up all the same."""
    code = """
said = os.pipe()
if (parent := os.fork()) == 0:
    signal.alarm(25)
    c = gbcache.Cache("1MB")
    c["k"] = 1

    def fork():
        forked()
        os.write(said[1], b"%d" % children[0])
        os.kill(os.getpid(), signal.SIGKILL)

    c.save(path, progress=lambda *_: aside(fork))
os.waitpid(parent, 0)
children.append(int(os.read(said[0], 20)))
c = gbcache.Cache("1MB")
c["k"] = 2
try:
    assert c.save(path) == os.stat(path).st_size
finally:
    end()
"""
    fine(HELD + code, tmp_path / "a.gbs")


def test_what_a_killed_process_was_filling_is_not_its_childs(tmp_path: Path) -> None:
    code = """
from gbcache import live
said = os.pipe()
if (parent := os.fork()) == 0:
    signal.alarm(25)
    with gbcache.Cache("1MB", path=path) as c:
        c["k"] = 1
        c.sync()
    os.unlink(path)
    fill = live.snapshot.fill
    live.snapshot.fill = lambda *args: (aside(forked), fill(*args))
    c = gbcache.Cache("1MB", path=path)
    os.write(said[1], b"%d" % children[0])
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(parent, 0)
children.append(int(os.read(said[0], 20)))
try:
    c = gbcache.Cache("1MB", path=path)
    assert c.recovery.how == "mended" and c["k"] == 1
finally:
    end()
"""
    fine(HELD + code, tmp_path / "a.gbc")
