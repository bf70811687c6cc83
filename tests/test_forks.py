"""What a fork's hooks may do to caches whose locks their thread holds, and children that no hook of ours made ready.

A hook that was registered before gbcache was imported runs within ours: those `before` after ours, the others first.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from children import run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
beside_threads = pytest.mark.skipif(
    os.environ.get("GB_EXPECT") == "asan", reason="a fork beside threads may wait for gcc's ASan"
)
WHEN = ["before", "after_in_parent", "after_in_child"]
MAKERS = {
    "Cache": "gbcache.Cache('40MB', housekeeping=False)",
    "live": "gbcache.Cache('40MB', path=sys.argv[4], housekeeping=False)",
    "ObjectCache": "gbcache.ObjectCache(1000)",
}
HOOK = """
when, act, make = sys.argv[1:4]
c, said = None, []

def hook():
    signal.alarm(25)  # a child has none of its parent's
    try:
        said.append(eval(act))
    except Exception as error:
        said.append(type(error).__name__)

os.register_at_fork(**{when: hook})
"""
FORK = """
import threading, time
signal.alarm(25)
c = eval(make)
c["k"] = 1
ours = lambda child: when == "before" or child == (when == "after_in_child")

def forked(well):
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            code = 0 if well(True) else 2
        finally:
            os._exit(code)
    assert well(False), said
    assert os.waitpid(pid, 0)[1] == 0, "the child"
"""


def within(code: str, when: str, act: str, title: str, path: object = "") -> None:
    """The code: `forked(well)` forks, has `act` done in a hook within ours, and asks ``well(child)`` in both processes;
    ``ours(child)``: whether it was done there."""
    done = run(FORK + code + "\nprint('fine')", when, act, MAKERS[title], path, first=HOOK)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr[-2000:]


@pytest.mark.parametrize("title", MAKERS)
@pytest.mark.parametrize("when", WHEN)
def test_close_within_a_fork(title: str, when: str, tmp_path: Path) -> None:
    """It is closed when the hooks are over, and what was recorded before is delivered."""
    code = """
told = []
c.subscribe(lambda event: told.append(event.key))
c["k"] = 2

def well(child):
    if ours(child):
        assert c.closed and c.close() is None
        until = time.monotonic() + 9
        while not child and not told and time.monotonic() < until:
            time.sleep(0.001)
        return child or told == ["k"]
    live = child and "path" in make  # the parent's
    return c.closed if live else c["k"] == 2 and not c.close() and c.closed

forked(well)
if "path" in make:
    c = eval(make)
    assert c["k"] == 2 and c.recovery.how == "clean", c.recovery
"""
    within(code, when, "c.close()", title, tmp_path / "a.gbc")


@beside_threads
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("act", ["c.close()", "c.clear()", "c.expire()", "len(list(c))"])
def test_a_verb_within_a_fork_while_others_read_and_save(
    when: str, act: str, tmp_path: Path
) -> None:
    """They cannot go on before the fork is over, so nobody may wait for them."""
    code = """
path = sys.argv[4]
for turn in range(3 if os.environ.get("GB_SLICE") == "short" else 8):
    c = eval(make)
    c["k"] = bytes(10 << 20)
    c.update((i, bytes(100)) for i in range(2000))

    def read():
        try:
            while True:
                c.get("k")
        except gbcache.ClosedError:
            pass

    def save():
        try:
            while True:
                c.save(path)
        except (gbcache.ClosedError, RuntimeError):
            pass

    threads = [threading.Thread(target=do) for do in (read, read, save)]
    for thread in threads:
        thread.start()
    time.sleep(0.001 * turn)

    def well(child):
        if ours(child) and "close" in act:
            return c.closed
        c["new"] = 1
        return c["new"] == 1 and c.check() is None

    forked(well)
    c.close()
    for thread in threads:
        thread.join()
"""
    within(code, when, act, "Cache", tmp_path / "a.gbs")


@pytest.mark.parametrize("when", WHEN)
def test_expire_within_a_fork(when: str) -> None:
    code = """
for i in range(3000):
    c.set(i, i, ttl=0.01)
time.sleep(0.05)
forked(lambda child: said == ([3000] if ours(child) else []) and c["k"] == 1 and c.expire() in (0, 3000))
"""
    within(code, when, "c.expire()", "Cache")


@pytest.mark.parametrize("act", ["c.save(sys.argv[4])", "c.resize('20MB')"])
@pytest.mark.parametrize("when", WHEN)
def test_what_waits_for_others_is_refused_within_a_fork(
    when: str, act: str, tmp_path: Path
) -> None:
    code = """
forked(lambda child: said == (["RuntimeError"] if ours(child) else []) and (child or eval(act) is not NotImplemented))
assert c["k"] == 1
"""
    within(code, when, act, "Cache", tmp_path / "a.gbs")


def test_a_live_file_is_the_parents_from_the_childs_first_hook_on(tmp_path: Path) -> None:
    code = """
forked(lambda child: said == ["ClosedError"] and c.closed if child else not said)
assert c["k"] == 1
"""
    within(code, "after_in_child", "c.set('k', 2)", "live", tmp_path / "a.gbc")


unheard = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="CPython 3.13 itself lives through no fork of C's"
)
by_c = pytest.param("C", marks=unheard)


@pytest.mark.parametrize("way", [by_c, "no memory"])
def test_a_fork_that_was_not_made_ready_for(way: str, tmp_path: Path) -> None:
    """A live file is the parent's, however its child came to be; other caches are the child's own."""
    code = """
import ctypes
signal.alarm(25)
live, own, objects = gbcache.Cache("1MB", path=sys.argv[2]), gbcache.Cache("1MB"), gbcache.ObjectCache()
for c in (live, own, objects):
    c["k"] = "parent"
C, hooks = sys.argv[1] == "C", ctypes.pythonapi
sys.setswitchinterval(1000)  # CPython cannot let go of the GIL between the two calls

class Stores(dict):
    left = [1]

    def copy(self):
        if self.left:
            self.left.pop()
            raise MemoryError
        return super().copy()

if not C:
    gbcache.forks._stores = Stores(gbcache.forks._stores)
pid = ctypes.PyDLL(None).fork() if C else os.fork()
if pid == 0:
    if C:
        hooks.PyOS_AfterFork_Child()
    for c in (own, objects):
        c["k"] = "child"
        c.check()
    try:
        live["k"] = "child"
    except gbcache.ClosedError as error:
        os._exit(7 if "parent" in str(error) else 1)
    os._exit(2)
status = os.waitpid(pid, 0)[1]
assert live["k"] == own["k"] == objects["k"] == "parent"
live.check()
assert os.waitstatus_to_exitcode(status) == 7, status
print("fine")
"""
    done = run(code, way, tmp_path / "a.gbc")
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr[-2000:]


@beside_threads
@pytest.mark.skipif(
    os.environ.get("GB_EXPECT") == "free", reason="the GIL has to keep the other thread still"
)
@unheard
def test_a_cache_that_another_thread_was_within_as_it_forked_unheard() -> None:
    """In C, say: what the thread had begun nobody ends, and nobody waits for that."""
    code = """
import ctypes, threading, time
signal.alarm(25)
sys.setswitchinterval(1000)  # CPython cannot let go of the GIL between the two calls
c = gbcache.Cache("40MB", housekeeping=False)
over, ends = [], set()

def work():
    while not over:
        for i in range(5000):
            c.set(i, i, ttl=0.001)
        time.sleep(0.002)
        c.expire()

thread = threading.Thread(target=work)
thread.start()
for turn in range(200):
    time.sleep(0.0003)
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        signal.alarm(20)
        ctypes.pythonapi.PyOS_AfterFork_Child()
        try:
            c["k"] = 1
            c.check()
        except gbcache.ClosedError:
            os._exit(7)
        os._exit(0)
    ends.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
over.append(1)
thread.join()
assert ends <= {0, 7}, ends
print("fine")
"""
    done = run(code)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr[-2000:]


CLOSED_WITHIN = """
import threading, time
child, closing, within = None, False, False

def handler(*_):
    global child, within
    within = closing
    child = os.fork()

signal.signal(signal.SIGALRM, handler)

def read():
    try:
        c.get("k")
    except gbcache.ClosedError:  # it began too late
        sys.exit()

def comes():
    while not c.closed:
        time.sleep(0.0001)
    os.kill(os.getpid(), signal.SIGALRM)

for n in range(120):  # until it comes while the close waits for who reads
    c = gbcache.Cache("100MB", housekeeping=False, **{"path": f"{sys.argv[2]}{n}"} if sys.argv[1] == "live" else {})
    c["k"], begun, shut = bytes(64 << 20), threading.Event(), []
    reader = threading.Thread(target=lambda: (begun.set(), read(), shut.append(c.closed)))
    reader.start()
    comer = threading.Thread(target=comes)
    comer.start()
    begun.wait()
    time.sleep(n % 8 * 0.001)
    closing = True
    c.close()
    closing = False
    assert c.closed
    comer.join()
    if child == 0:
        os._exit(0)
    reader.join()
    if child is not None:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        if within and shut == [True]:
            sys.exit(0)
        child = None
sys.exit("it never came while the close waited")
"""


@beside_threads
@pytest.mark.parametrize("kind", ["Cache", "live"])
def test_a_handler_that_forks_as_a_cache_is_closed(kind: str, tmp_path: Path) -> None:
    """The child has let go of it; what its close goes on with is gone."""
    ran = run(CLOSED_WITHIN, kind, tmp_path / "live.gbc")
    assert ran.returncode == 0, ran.stderr
