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


WAITS = """
said, other = [], None

def stuck(call):
    "Begun within the fork, by another thread: it waits for what the fork holds, and is over with it."
    global other
    other = threading.Thread(target=call, daemon=True)
    other.start()
    time.sleep(0.1)

def within(first, act):
    def hook():
        stuck(first)
        try:
            said.append(act())
        except RuntimeError as error:
            said.append("registered after gbcache was imported" in str(error))

    acts["before"] = hook
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    del acts["before"]
    other.join()
    assert os.waitpid(pid, 0)[1] == 0

make = {"Cache": "gbcache.Cache('1MB', housekeeping=False)", "ObjectCache": "gbcache.ObjectCache(100)"}
c = eval(make[sys.argv[1]])
"""
READ = {
    "watch": "c.watch()",
    "subscribe": "c.subscribe(id)",
    "inline": "c.subscribe(id, delivery='inline')",
}


@pytest.mark.parametrize("act", READ.values(), ids=READ)
def test_who_would_read_within_a_fork_waits_for_nobody(act: str) -> None:
    code = f"""
within(c.watch, lambda: {act})
assert said == [True] or said[0].close() is None, said  # refused, or it had to wait for nobody
read = {act}
c["k"] = 1
read.close()
"""
    fine(WAITS + code, "Cache")


@pytest.mark.parametrize("act", READ.values(), ids=READ)
def test_a_reader_that_is_closed_within_a_fork_is_gone_once_it_is_over(act: str) -> None:
    code = f"""
read = {act}
within(c.watch, read.close)
assert said == [None] and read.closed and read not in c._hub._readers(), said
"""
    fine(WAITS + code, "Cache")


@pytest.mark.parametrize("title", ["Cache", "ObjectCache"])
@pytest.mark.parametrize("act", ["c.get_or_set('k', int)", "asyncio.run(c.aget_or_set('k', zero))"])
def test_who_would_follow_a_flight_within_a_fork_computes(act: str, title: str) -> None:
    code = f"""
import asyncio
over, led = threading.Event(), threading.Event()

async def zero():
    return 0

def load():
    led.set()
    over.wait()
    return 1

first = threading.Thread(target=lambda: c.get_or_set("k", load))
first.start()
led.wait()
within(lambda: None, lambda: {act})
over.set()
first.join()
assert (said, c["k"]) == ([0], 1), said
"""
    fine(WAITS + code, title)


def test_a_save_that_is_waited_for_within_a_fork() -> None:
    code = """
import tempfile
with tempfile.TemporaryDirectory() as folder:
    save = []
    within(lambda: save.append(c.save(os.path.join(folder, "a"), wait=False)), lambda: save[0].wait())
    assert said == [True] and save[0].wait() > 0, said
"""
    fine(WAITS + code, "Cache")


FAR = """
class Far:
    stored = {}
    def get_many(self, keys): return {k: (self.stored[k], None) for k in keys if k in self.stored}
    def put_many(self, items):
        for key, value, ttl in items:
            if key == "bad":
                at_it.set()
                until.wait()
                raise TypeError("never")
            self.stored[key] = value
    def delete_many(self, keys): return [self.stored.pop(k, None) is not None for k in keys]
    def scan(self, after=None, limit=1000): return []
    def sync(self): pass
    def close(self): pass

at_it, until = threading.Event(), threading.Event()
tier = gbcache.Tiered(c, Far(), write="behind", behind_seconds=60)
tier["good"] = tier["bad"] = 1
"""


@pytest.mark.parametrize("act", ["close", "sync"])
def test_a_tier_whose_buffer_is_emptied_as_it_is_closed_within_a_fork(act: str) -> None:
    """Its thread tells memory what was refused: it waits for the fork."""
    code = f"""
threading.Thread(target=tier.sync, daemon=True).start()
at_it.wait()
within(until.set, tier.{act})
assert said == [{act} == "sync" or None], said
tier.{act}()
assert Far.stored == {{"good": 1}} and tier._closed == ({act} == "close"), Far.stored
"""
    fine(WAITS + FAR + code.replace(f"{act} ==", f"'{act}' =="), "Cache")


@pytest.mark.parametrize("act", ["disk.close()", "disk.put_many([('k', 3, None)])"])
def test_a_disk_is_the_parents_from_the_childs_first_hook_on(act: str, tmp_path: Path) -> None:
    """Nothing that the child does to it changes the parent's files."""
    skip_without_lmdb()
    code = """
said = []
does = sys.argv[2]
if (pid := os.fork()) == 0:
    disk = gbcache.Disk(sys.argv[1])
    disk.put_many([("k", 1, None)])

    def hook():
        try:
            said.append(eval(does))
        except gbcache.ClosedError:
            said.append("closed")

    acts["after_in_child"] = hook
    if (child := os.fork()) == 0:
        os._exit(0 if said == [None if "close" in does else "closed"] else 1)
    code = os.waitpid(child, 0)[1]
    disk.put_many([("l", 2, None)])
    disk.sync()
    os._exit(1 if code else 0)  # as if killed
assert os.waitpid(pid, 0)[1] == 0
found = gbcache.Disk(sys.argv[1]).get_many(["k", "l"])
assert {key: value for key, (value, _) in found.items()} == {"k": 1, "l": 2}, found
"""
    fine(code, tmp_path / "disk", act)
