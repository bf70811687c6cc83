"""What was written behind, as a process ends: by an interrupt, as a child of multiprocessing, as a forked one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from children import run, skip_without_lmdb, survives

from gbcache import Cache, ClosedError, Tiered

FAR = '''
import multiprocessing
from gbcache import Cache, Tiered
class Far:
    """Tells what it has."""
    def __init__(self, path, raises=None): self.path, self.raises = path, raises
    def put_many(self, items):
        with open(self.path, "a") as file: file.write("".join(f"{k}={v};" for k, v, _ in items))
    def close(self):
        if self.raises: raise self.raises
    get_many = delete_many = scan = sync = lambda *_: None
'''


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("where", ["made there", "taken along"])
def test_a_child_of_multiprocessing_writes_what_it_acknowledged(
    tmp_path: Path, method: str, where: str
) -> None:
    if where == "taken along" and method != "fork":
        pytest.skip("nothing is")
    (tmp_path / "child.py").write_text(
        FAR
        + """
def make(path): return Tiered(Cache("1MB"), Far(path), write="behind", behind_seconds=60)
def child(path, tier=None):
    tier = make(path) if tier is None else tier
    tier["child"] = 1
def grand(path, tier=None):
    other = make(path)
    other["grand"] = 1
    process = multiprocessing.get_context("fork").Process(target=child, args=(path, other))
    process.start()
    process.join()
    other["late"] = 2
"""
    )
    program = f"""
import multiprocessing
if __name__ == "__main__":
    sys.path.insert(0, {str(tmp_path)!r})
    import child
    path, context = sys.argv[1], multiprocessing.get_context({method!r})
    tier = child.make(path) if {where == "taken along"} else None
    if tier is not None:
        tier["parent"] = 0
    for target in (child.child, child.grand):
        process = context.Process(target=target, args=(path, tier))
        process.start()
        process.join()
        assert process.exitcode == 0
    del multiprocessing, tier
"""
    path = tmp_path / "told"
    done = run(program, path)
    assert done.returncode == 0, done.stderr
    parent = ["parent=0"] * (where == "taken along")
    told = path.read_text().split(";")[:-1]
    assert sorted(told) == sorted(["child=1", "child=1", "grand=1", "late=2", *parent]), told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_told_that_its_disk_is_closed(tmp_path: Path) -> None:
    """Nothing that it writes behind could ever be written."""
    skip_without_lmdb(here=True)
    from gbcache import Disk

    with Tiered(Cache("1MB"), Disk(tmp_path / "d"), write="behind", behind_seconds=60) as tier:
        tier["k"] = 1

        def child() -> None:
            for write in (
                lambda: tier.set("k", 2),
                lambda: tier.update({"k": 2}),
                lambda: tier.discard("k"),
            ):
                with pytest.raises(ClosedError, match="opened by process"):
                    write()
            assert tier.stats().at_risk.entries == 0

        survives(child)
        tier.near.clear()
        assert tier["k"] == 1


def test_an_interrupt_as_one_is_closed_at_the_end_keeps_no_other_from_it(tmp_path: Path) -> None:
    program = (
        FAR
        + """
kept = [Tiered(Cache("1MB"), Far(sys.argv[1]), write="behind", behind_seconds=60) for _ in range(8)]
for i, tier in enumerate(kept):
    tier["k"] = i
def interrupted(): raise KeyboardInterrupt("at the end")
for i in (0, 3, 7):
    kept[i]._behind.close = interrupted
"""
    )
    done = run(program, tmp_path / "told")
    told = (tmp_path / "told").read_text().split(";")[:-1]
    assert sorted(told) == [f"k={i}" for i in (1, 2, 4, 5, 6)], done.stderr
    assert "at the end" in done.stderr


STARTS = (
    FAR
    + """
import signal, threading
signal.alarm(20)
ident, done = threading.Thread._set_ident, []
def first(thread):  # before whoever starts it goes on: the collector may run a __del__ there
    if thread.name.startswith("gbcache") and thread.name not in done:
        done.append(thread.name)
        within()
    ident(thread)
threading.Thread._set_ident = first
"""
)


def test_what_is_written_as_the_buffers_thread_starts_is_not_waited_for(tmp_path: Path) -> None:
    program = """
tier = Tiered(Cache("1MB", housekeeping=False), Far(sys.argv[1]), write="behind", behind_seconds=0.05)
def within(): tier["b"] = 2; tier.update(c=3)
{first}
tier.sync()
assert done == ["gbcache-behind"], done
tier.far.close()
"""
    for i, first in enumerate(('tier["a"] = 1', 'tier.update({"a": 1})', 'tier.discard("a")')):
        path = tmp_path / str(i)
        done = run(STARTS + program.format(first=first), path)
        assert done.returncode == 0, done.stderr
        told = "".join(sorted(path.read_text().split(";")))
        assert told == ("" if i == 2 else "a=1") + "b=2c=3"


def test_what_expires_as_the_housekeeper_starts_is_not_waited_for() -> None:
    program = """
import time
a, b = Cache("1MB"), Cache("1MB")
def within(): b.set("k", 1, ttl=0.05)
a.set("k", 1, ttl=0.05)
assert done == ["gbcache-housekeeper"], done
end = time.monotonic() + 10
while len(a) or len(b): assert time.monotonic() < end
"""
    done = run(STARTS + program, "")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_start_that_is_interrupted_leaves_one_thread_at_most(tmp_path: Path, when: str) -> None:
    """`start` is cut off before the thread took its first turn, or thereafter: then that one goes on."""
    program = """
import time
start, cut = threading.Thread.start, [1]
def within(): pass
def cuts(thread):
    if thread.name == "gbcache-behind" and cut:
        cut.pop()
        if sys.argv[2] == "after":
            start(thread)
            time.sleep(0.2)
        raise KeyboardInterrupt
    start(thread)
threading.Thread.start = cuts
tier = Tiered(Cache("1MB"), Far(sys.argv[1]), write="behind", behind_seconds=0.05)
try:
    tier["a"] = 1
    raise SystemExit("it was not cut off")
except KeyboardInterrupt:
    pass
for i in range(20):
    tier[i] = i
    time.sleep(0.01)
tier.sync()
assert [t.name for t in threading.enumerate()].count("gbcache-behind") == 1
"""
    path = tmp_path / "told"
    done = run(STARTS + program, path, when)
    assert done.returncode == 0, done.stderr
    assert path.read_text().split(";")[:-1] == [f"{i}={i}" for i in range(20)]


@pytest.mark.parametrize("name", ["behind", "housekeeper"])
def test_an_end_waits_for_a_thread_that_is_being_started(tmp_path: Path, name: str) -> None:
    program = """
import time
start, reached = threading.Thread.start, threading.Event()
def within(): pass
def slow(thread):
    if thread.name == f"gbcache-{sys.argv[2]}":
        reached.set()
        time.sleep(0.3)
    start(thread)
threading.Thread.start = slow
cache = Cache("1MB")
tier = Tiered(Cache("1MB", housekeeping=False), Far(sys.argv[1]), write="behind", behind_seconds=0.05)
def write():
    try:
        tier["k"] = 1 if sys.argv[2] == "behind" else cache.set("k", 1, ttl=5)
    except gbcache.ClosedError:
        print("closed")
    except RuntimeError as error:  # 3.12 begins no thread from then on, and nothing was taken
        assert "shutdown" in str(error)
start(threading.Thread(target=write, daemon=True))
assert reached.wait(10)
"""
    done = run(STARTS + program, tmp_path / "told", name)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_what_was_put_while_no_thread_could_be_begun_is_written_at_the_end(tmp_path: Path) -> None:
    """Who begins the thread is told that it cannot be; others who put something meanwhile saw one."""
    program = """
start, reached = threading.Thread.start, threading.Event()
def within(): pass
def none(thread):
    if thread.name != "gbcache-behind":
        return start(thread)
    reached.set()
    while not tier._behind._since < 1e9 and sys.argv[2] == "first": pass
    raise RuntimeError("can't start new thread")
threading.Thread.start = none
tier = Tiered(Cache("1MB"), Far(sys.argv[1]), write="behind", behind_seconds=0.05)
def write():
    try:
        tier["a"] = 1
    except RuntimeError as error:
        print(error)
other = threading.Thread(target=write)
other.start()
assert reached.wait(10)
tier["b"] = 2
other.join()
sys.argv[2] = ""
"""
    done = run(STARTS + program, tmp_path / "told", "first")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout == "can't start new thread\n"
    assert (tmp_path / "told").read_text() == "b=2;"
