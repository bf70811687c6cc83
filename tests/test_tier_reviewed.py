"""What a reader of `Tiered`'s write-behind showed to go wrong."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from fars import Full, settle

from gbcache import Cache, FarError, Tiered, ends
from gbcache.behind import Behind
from gbcache.codec import TypedCodec


def behind(far: Any, **more: Any) -> Any:
    return Tiered(Cache("4MB"), far, **{"write": "behind", "behind_seconds": 0.02, **more})


class Coded(Full):
    codec = TypedCodec()


def no_room(verb: str, keys: list[Any]) -> None:
    if verb == "put":
        raise FarError(errno.ENOSPC, "full")


def test_who_waited_for_room_comes_young() -> None:
    """One slow call, and everybody waits: what they put then is not late at once, or each would be written alone."""
    far, sizes, over = Full(), list[int](), threading.Event()

    def slow(verb: str, keys: list[Any]) -> None:
        sizes.append(len(keys))
        time.sleep(0.3 if len(sizes) == 10 else 0.03)

    far.hook = slow
    tier = behind(far, behind_seconds=0.1)

    def write(n: int) -> None:
        i = 0
        while not over.is_set():
            tier[n, i % 1000] = i = i + 1

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    settle(lambda: len(sizes) > 35)
    over.set()
    for thread in threads:
        thread.join()
    tier.close()
    assert sum(size <= 8 for size in sizes[10:35]) < 4, sizes


def test_what_is_decoded_at_once_is_bounded() -> None:
    """A value may take many times its encoded bytes."""
    far = Coded()
    tier = behind(far, behind_seconds=60, behind_bytes="16MB")
    for i in range(300):
        tier[i] = ["x" * 99] * 100
    tier.sync()
    puts = [len(keys) for verb, keys in far.calls if verb == "put"]
    assert sum(puts) == 300 and max(puts) < 110 and len(puts) < 9


def test_a_slow_far_side_without_room_is_not_asked_for_all_for_ever() -> None:
    """An attempt whose time is over as the first call fails tries one alone, all the same."""
    far = Full()
    tier = behind(far)

    def slow(verb: str, keys: list[Any]) -> None:
        if len(keys) > 1:
            time.sleep(0.3)
        no_room(verb, keys)

    far.hook = slow
    tier.set_many(dict.fromkeys(range(20), "y"))
    with pytest.raises(FarError, match="found no room"):
        tier.sync()
    far.hook = lambda verb, keys: None
    tier.close()
    assert len(far.data) == 20


def test_no_good_write_is_told_of_bad_ones() -> None:
    """The far side takes the good, slowly: an attempt that was cut off took some."""
    far = Full()

    def hook(verb: str, keys: list[Any]) -> None:
        time.sleep(0.02)
        if any(key % 20 == 0 for key in keys):
            raise FarError("this slot is down")

    far.hook = hook
    tier, end, n = behind(far, behind_seconds=0.1), time.monotonic() + 3, 0
    while time.monotonic() < end:
        n += 1
        if n % 20 and n > 20:
            tier[n] = n
        elif n % 400 in (0, 20):
            tier[n % 40] = n
        time.sleep(0.0005)
    far.hook = lambda verb, keys: None
    tier.close()


def test_many_that_fail_hold_no_other_back_for_long() -> None:
    far = Full()

    def hook(verb: str, keys: list[Any]) -> None:
        if any(key < 400 for key in keys):
            raise FarError("that shard is down")

    far.hook = hook
    tier = behind(far, behind_seconds=60)
    tier.set_many(dict.fromkeys(range(500), 1))
    tier._behind._hurried = 1  # as if somebody waited
    with tier._behind._change:
        tier._behind._change.tell()
    settle(lambda: len(far.data) == 100)  # 400 / 9 attempts took half a minute
    tier._behind._hurried = 0
    far.hook = lambda verb, keys: None
    tier.close()
    assert len(far.data) == 500


def test_an_error_keeps_nothing_that_was_given() -> None:
    far, value = Coded(), [[] for _ in range(321)]
    far.hook = no_room
    tier = behind(far)
    tier.set_many(dict.fromkeys(range(50), value))
    with pytest.raises(FarError):
        tier.sync()
    far.hook = lambda verb, keys: None
    tier.sync()
    far.data.clear()
    tier.near.clear()
    assert tier._behind.aside.error is not None

    def alive() -> int:
        gc.collect()
        return sum(type(one) is list and len(one) == 321 for one in gc.get_objects())

    settle(lambda: alive() == 1)
    tier.close()


def test_what_is_over_makes_room_though_it_stands_aside() -> None:
    far = Full()
    far.hook = no_room
    tier = behind(far)
    tier.set_many(dict.fromkeys(range(300), "y"))
    tier.set_many(dict.fromkeys(range(300, 450), "y" * 2000), ttl=0.3)
    with pytest.raises(FarError):
        tier.sync()
    time.sleep(0.35)
    settle(lambda: tier.stats().at_risk.entries == 300)
    far.hook = lambda verb, keys: None
    tier.close()


def test_who_comes_second_to_start_leaves_the_first_its_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A handler that syncs before the thread is begun would wait for ever."""
    tier, real, told = behind(Full()), threading.Thread.start, list[str]()

    def start(self: threading.Thread) -> None:
        if self.name == "gbcache-behind" and not told:
            told.append("")
            other = threading.Thread(target=tier._behind._start)
            real(other)
            other.join()
            with tier._behind._change:
                tier._behind._since = 0.0
            try:
                tier.sync()
            except FarError as error:
                told.append(str(error))
            tier._behind._since = float("inf")
        real(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    tier["a"] = 1
    tier.close()
    assert "handler" in told[1]


def test_who_is_cut_off_as_he_waits_hurries_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    far, real = Full(), Behind._most
    tier = behind(far, behind_bytes="1MB", behind_seconds=60)
    far.hook = lambda verb, keys: time.sleep(0.05)

    def most(self: Any, gone: bool) -> int:
        if sys._getframe(1).f_code.co_name == "_wait_for_room":
            raise KeyboardInterrupt
        return real(self, gone)

    monkeypatch.setattr(Behind, "_most", most)
    with pytest.raises(KeyboardInterrupt):
        for i in range(50):
            tier[i] = bytes(200_000)
    monkeypatch.undo()
    assert tier._behind._hurried == 0
    tier.close()


@pytest.mark.parametrize("verb", ["pop", "incr"])
def test_a_verb_is_not_told_of_what_another_queued_meanwhile(verb: str) -> None:
    """It is done: who put the other one, and syncs, is told."""
    far = Full()
    tier = behind(far)
    tier["k"] = 1
    tier.sync()

    def denied(at: str, keys: list[Any]) -> None:
        if at == "put":
            raise FarError(errno.EACCES, "not allowed")

    name = "delete_many" if verb == "pop" else "incr"
    real: Any = getattr(far, name)

    def meanwhile(*args: Any) -> Any:
        done = real(*args)
        thread = threading.Thread(target=tier.set, args=("k", "another's"))
        thread.start()
        thread.join()
        return done

    far.hook = denied
    setattr(far, name, meanwhile)
    assert tier.pop("k") == 1 if verb == "pop" else tier.incr("k") == 2
    assert tier["k"] == "another's"
    with pytest.raises(FarError, match="'k'"):
        tier.sync()
    far.hook = lambda verb, keys: None
    tier.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_handler_that_forks_in_the_midst_of_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both go on: the child's own write is the child's."""
    far, pids = Full(), list[int]()
    tier, buffer = behind(far), ends.waiting

    class Forks(set[Any]):
        def add(self, one: Any) -> None:
            super().add(one)
            if not pids:
                pids.append(os.fork())
                if not pids[0]:
                    signal.alarm(20)

    monkeypatch.setattr(ends, "waiting", Forks(buffer))
    tier["k"] = 2
    if not pids[0]:
        code = 1
        try:
            tier.sync()
            code = 0 if far.data["k"][0] == 2 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
    tier.sync()
    assert far.data["k"][0] == 2
    tier.close()


def test_a_failure_that_passes_loses_nothing_at_the_end() -> None:
    code = """
import threading, time
from fars import Full
from gbcache import Cache, Tiered
far = Full()
tier = Tiered(Cache("1MB"), far, write="behind", behind_seconds=60)
tier.set_many(dict.fromkeys(range(100), 1))
far.failing = True
def pass_():
    time.sleep(0.3)
    far.failing = False
threading.Thread(target=pass_, daemon=True).start()
import atexit, gbcache.ends
atexit.unregister(gbcache.ends._at_exit)
gbcache.ends._at_exit()
print(len(far.data))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (ran.stdout, ran.stderr) == ("100\n", "")
