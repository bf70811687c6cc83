"""The locks, where memory is short and where signals come; and the threads that have to outlive both."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from children import skip_without_lmdb

import gbcache
from gbcache import forks, locks
from gbcache.locks import Latch, Lock, Monitor, endure
from gbcache.writes import Writes

needs_nomemory = pytest.mark.skipif(
    not importlib.util.find_spec("_testcapi") or "LD_PRELOAD" in os.environ,
    reason="needs _testcapi.set_nomemory, and no sanitizer's allocator",
)


def ran(code: str, *more: str) -> str:
    """What a process of its own says, which may lack memory."""
    env = {**os.environ, "PYTHONPATH": str(Path(gbcache.__file__).parent.parent)}
    call = [sys.executable, "-c", code, *more]
    for _ in range(5):
        done = subprocess.run(call, env=env, capture_output=True, text=True, timeout=120)
        if "Cannot recover from stack overflow" not in done.stderr:  # 3.10 gives up without memory
            break
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout


# Of each kind of lock: at how many places it is held after, though nobody has it.
PLACES = """
import _testcapi, threading
from gbcache.locks import Lock, Monitor

def use(lock):
    with lock:
        pass

def wait(lock):
    with lock, lock:
        lock.wait(0.0)

def free(lock):
    got = []
    thread = threading.Thread(target=lambda: got.append(lock.acquire(False) if made is threading.RLock
                                                        else lock.acquire(0.0)))
    thread.start()
    thread.join()
    return got[0]

for made, act in (threading.RLock, use), (Lock, use), (Monitor, use), (Monitor, wait):
    kept, failed, odd = [], 0, 0
    for on in 0, 1:
        for place in range(25):
            lock = made()
            kept.append([(i, i, i) for i in range(3000)])  # none is left of those that had been given back
            _testcapi.set_nomemory(place, place + 1 if on else 0)
            try:
                act(lock)
            except MemoryError:
                failed += 1
            except RuntimeError as error:  # the interpreter has its own way to say it
                odd += "allocate lock" not in str(error)
            _testcapi.remove_mem_hooks()
            odd += not free(lock)
    print(failed, odd)

failed = odd = 0
for waiters in range(1, 12):
    monitor = Monitor()
    waiting = lambda: (monitor.acquire(), monitor.wait(), monitor.release())
    threads = [threading.Thread(target=waiting) for _ in range(waiters)]
    for thread in threads:
        thread.start()
    while len(monitor._waiting) < waiters:
        pass
    with monitor:
        _testcapi.set_nomemory(0, 0)
        try:
            monitor.tell()
        except MemoryError:
            failed += 1
        _testcapi.remove_mem_hooks()
    for thread in threads:
        thread.join(5)
        odd += thread.is_alive()
print(failed, odd)
"""


@needs_nomemory
def test_a_lock_is_given_back_where_memory_is_short() -> None:
    python, lock, monitor, waits, tells = (
        [int(n) for n in line.split()] for line in ran(PLACES).splitlines()
    )
    assert python[1] > 0, "threading's does so too now: is ours needed still?"
    assert lock[0] > 0 and monitor[0] > 0 and waits[0] > 4
    assert lock[1] == monitor[1] == waits[1] == 0 and tells == [0, 0]


def free(lock: Lock) -> bool:
    """Whether another thread may have it."""
    got: list[bool] = []
    thread = threading.Thread(target=lambda: got.append(lock.acquire(1.0)))
    thread.start()
    thread.join()
    return got[0]


class Interrupt(Exception):
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lock_is_given_back_where_a_signal_raises() -> None:
    lock, seen, until = Monitor(), 0, time.monotonic() + 1.0

    def raising(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, raising)
    try:
        while time.monotonic() < until:
            try:
                signal.setitimer(signal.ITIMER_REAL, 3e-5)
                for n in range(200):
                    with lock:
                        if not n % 50:
                            lock.wait(1e-5)
            except Interrupt:
                seen += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert not lock._depth and not lock._waiting
            assert free(lock)
            lock = Monitor()
    except Interrupt:  # the last one, late
        pass
    finally:
        signal.signal(signal.SIGALRM, before)
    assert seen > 50


def test_a_lock_is_reentrant_and_its_owners_alone() -> None:
    lock, got = Lock(), []
    with lock, lock:
        assert lock.acquire()
        other = threading.Thread(target=lambda: got.append(lock.acquire(0.01)))
        other.start()
        other.join()
        lock.release()
    with pytest.raises(RuntimeError):
        lock.release()
    assert got == [False] and Lock().acquire(0.0)


def test_a_monitor_is_given_up_by_who_waits_however_often_it_is_held() -> None:
    monitor, order = Monitor(), []

    def waits(name: str) -> None:
        with monitor, monitor:
            order.append(f"{name} waits")
            monitor.wait()
            assert monitor._depth == 2
            order.append(f"{name} goes on")

    threads = [threading.Thread(target=waits, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    while len(order) < 3:
        time.sleep(0.001)
    with monitor:
        monitor.tell()
        order.append("told")
    for thread in threads:
        thread.join(5)
    assert order[3] == "told" and sorted(order[4:]) == ["a goes on", "b goes on", "c goes on"]
    with monitor:
        begun = time.monotonic()
        monitor.wait(0.02)
        assert time.monotonic() - begun >= 0.015 and not monitor._waiting
        monitor.tell()  # nobody waits


def test_a_latch() -> None:
    latch = Latch()
    assert not latch.opened and not latch.wait(0.0) and not latch.wait(0.01)
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append(latch.wait(5))) for _ in range(4)]
    for thread in threads:
        thread.start()
    latch.open()
    latch.open()
    for thread in threads:
        thread.join()
    assert found == [True] * 4 and latch.opened and latch.wait() and latch.wait(0.0)
    latch.close()
    assert not latch.opened and not latch.wait(0.0)
    latch.open()
    assert latch.wait()


def test_a_latch_opened_and_closed_by_many() -> None:
    """What was opened last stays open, in whatever order others did what."""
    for _ in range(200):
        latch = Latch()
        threads = [threading.Thread(target=call) for call in (latch.open, latch.close, latch.open)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        latch.open()
        assert latch.opened and latch.wait(1.0)
        latch.close()
        assert not latch.opened and not latch.wait(0.0)


def test_a_thread_that_lasts_goes_on() -> None:
    tries = []

    def run(most: int) -> None:
        tries.append(1)
        if len(tries) < most:
            raise MemoryError if len(tries) % 2 else SystemError

    begun = time.monotonic()
    endure(run, 4)
    assert len(tries) == 4 and time.monotonic() - begun >= 0.1
    with pytest.raises(ZeroDivisionError):
        endure(lambda: 1 // 0)


def test_a_forked_child_has_it_free_unless_it_is_its_own() -> None:
    theirs, own, held = Monitor(), Lock(), threading.Event()

    def hold() -> None:
        with theirs:
            held.set()
            over.wait()

    over = Latch()
    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    held.wait()
    with own:
        pid = os.fork()
        if pid == 0:
            good = own.mine and not theirs.mine and theirs.acquire(1.0)
            own.release()
            os._exit(0 if good and own.acquire(1.0) and free(Lock()) else 1)
        status = os.waitpid(pid, 0)[1]
    over.open()
    thread.join()
    assert status == 0


def test_writes_that_overlap_are_under_way_until_the_last_has_ended() -> None:
    writes = Writes()
    first, second = writes.begin(["a", "b"]), writes.begin(["a"])
    assert first[0] is second[0] and first[0][0] == 1 and first[1][0] == 0
    writes.end(["a", "b"], first)
    assert len(writes) == 1 and writes.begin(["a"]) == second
    writes.end(["a"], second)
    writes.end(["a"], second)
    third = writes.begin(["a"])
    assert third[0] is not second[0] and third[0][0] == 0
    writes.void(None)
    assert third[0][0] == 1
    with pytest.raises(TypeError):
        writes.begin(["c", []])
    writes.end(["a"], third)
    assert not len(writes)


BEGINS = """
import _testcapi
from gbcache.writes import Writes

failed = odd = 0
for on in 0, 1:
    for place in range(60):
        writes, keys = Writes(), ["key%d" % i for i in range(9)]
        began = None
        _testcapi.set_nomemory(place, place + 1 if on else 0)
        try:
            began = writes.begin(keys)
        except MemoryError:
            failed += 1
        except BaseException:
            odd += 1
        _testcapi.remove_mem_hooks()
        if began is not None:
            writes.end(keys, began)
        odd += len(writes)
print(failed, odd)
"""


@needs_nomemory
def test_writes_that_could_not_begin_are_not_under_way() -> None:
    """CPython 3.13's `dict.setdefault` counts an entry that it had no memory for, and goes on with its error set."""
    failed, odd = (int(n) for n in ran(BEGINS).split())
    assert failed > 20 and odd == 0


def test_a_gate_is_open_again_where_one_could_not_be_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_lmdb()
    from gbcache._disk import Gate

    gate = Gate()
    seat = gate.enter()

    def none() -> threading.Lock:
        raise MemoryError

    monkeypatch.setattr(locks, "gate", none)
    with pytest.raises(MemoryError), gate.alone():
        pass
    monkeypatch.undo()
    thread = threading.Thread(target=lambda: gate.leave(gate.enter()))
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    gate.leave(seat)
    with gate.alone():
        pass


def test_a_fork_that_could_not_be_made_ready_for_is_not_taken_back() -> None:
    forks._in_parent()
    assert forks._depth == 0
    if (pid := os.fork()) == 0:
        os._exit(forks._depth)
    assert os.waitpid(pid, 0)[1] == 0 and forks._depth == 0 and not forks._held


# Thread.start fails at first: before the thread runs, and after. Then all is as if it had not been tried.
START = """
import sys, threading, time, warnings
from gbcache import Cache, ObjectCache, Tiered
start, late, error = threading.Thread.start, sys.argv[1] == "late", eval(sys.argv[2])
def fails(thread):
    if late:
        start(thread)
    raise error
def until(met):
    end = time.monotonic() + 10
    while not met():
        assert time.monotonic() < end, [t.name for t in threading.enumerate()]
        time.sleep(0.005)
class Far(dict):
    def get_many(self, keys): return {k: (self[k], None) for k in keys if k in self}
    def put_many(self, items): self.update((k, v) for k, v, _ in items)
    def delete_many(self, keys): return [self.pop(k, None) is not None for k in keys]
    def scan(self, *a, **k): return iter(list(self))
    def count(self): return len(self)
    def sync(self): pass
    def close(self): pass
warnings.simplefilter("ignore")
cache, tier, heard = ObjectCache(100), Tiered(ObjectCache(100), far := Far(), write="behind"), []
threading.Thread.start = fails
for act in (lambda: cache.set("a", 1, ttl=0.05), lambda: cache.subscribe(heard.append), lambda: tier.set("t", 1)):
    try:
        act()
    except (MemoryError, RuntimeError):
        pass
threading.Thread.start = start
cache.set("b", 1, ttl=0.05)
sub = cache.subscribe(heard.append)
cache["c"] = 1
tier["t"] = 2
tier.sync()
assert dict(far) == {"t": 2}
until(lambda: any(e.key == "c" for e in heard))
names = ["gbcache-behind", "gbcache-events"]
if isinstance(error, MemoryError):  # of the other one it is warned, and entries expire on sight
    until(lambda: any(e.kind == "expire" for e in heard))
    names.append("gbcache-housekeeper")
until(lambda: sorted(t.name for t in threading.enumerate() if "gbcache" in t.name) == names)
"""


@pytest.mark.parametrize("error", ["MemoryError()", 'RuntimeError("can\'t start new thread")'])
@pytest.mark.parametrize("when", ["early", "late"])
def test_a_thread_that_could_not_start_is_started_later(when: str, error: str) -> None:
    ran(START, when, error)


# Nothing is to be had for a third of a second, while the threads of ours have work to do. After it they do it.
SHORTAGE = """
import _testcapi, os, sys, time
from gbcache import Cache, Disk, ObjectCache
root = sys.argv[1]
named = ObjectCache(1000)
expiring = Cache("1MB")
heard = []
sub = named.subscribe(heard.append)
live = Cache("1MB", path=root + "/live", sync_interval=0.02)
disk = Disk(root + "/disk", sync="interval", interval=0.02)
def work(n):
    expiring.set("e", n, ttl=0.05)
    named[n] = n
    live[n] = n
    disk.put_many([(n, n, None)])
for n in range(3):
    work(n)
time.sleep(0.1)
rest = 0.35
until = time.monotonic() + 30
for n in range(3, 6):
    work(n)
    _testcapi.set_nomemory(0, 3000)  # 3.11 goes round for ever where it lacks memory to find a handler
    time.sleep(rest)
    _testcapi.remove_mem_hooks()
def wait(what, done):
    while not done():
        assert time.monotonic() < until, (what, len(heard), disk.stats())
        time.sleep(0.01)
    print(what)
work(6)
was = os.stat(root + "/live.checkpoint").st_mtime_ns
wait("expired", lambda: not expiring._figures()[2]["entries"])
wait("heard", lambda: any(event.key == 6 for event in heard))
wait("synced", lambda: os.stat(root + "/live.checkpoint").st_mtime_ns != was)
wait("disk", lambda: disk._engine.synced == disk._engine.seq)
"""


@needs_nomemory
def test_threads_outlive_a_shortage(tmp_path: Path) -> None:
    assert ran(SHORTAGE, str(tmp_path)).split() == ["expired", "heard", "synced", "disk"]
