"""What happens as the thread that calls subscribers is started, caches that come back from a dead cycle, and interrupts
in the midst of an event."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest
from children import run

from gbcache import Cache

STARTS = """
import signal, threading, time
import gbcache
from gbcache import Cache, ObjectCache
signal.alarm(20)
got, done, ident, start = [], [], threading.Thread._set_ident, threading.Thread.start
def until(true):
    end = time.monotonic() + 15
    while not true():
        assert time.monotonic() < end, (got, threading.enumerate())
        time.sleep(0.002)
def serving(): return sum(thread.name == "gbcache-events" for thread in threading.enumerate())
"""
FIRST = (
    STARTS
    + """
def first(thread):  # before whoever starts it goes on: the collector may run a __del__ there
    if thread.name == "gbcache-events" and not done:
        done.append(1)
        within()
    ident(thread)
threading.Thread._set_ident = first
"""
)


@pytest.mark.parametrize("make", ["Cache('1MB')", "ObjectCache()"])
@pytest.mark.parametrize(
    "within",
    [
        "inline.close()",
        "watch.close()",
        "later.append(other.subscribe(got.append))",
        "cache.close()",
    ],
)
def test_a_reader_that_comes_or_goes_as_the_thread_starts_is_not_waited_for(
    make: str, within: str
) -> None:
    program = f"""
cache, other, later = {make}, {make}, []
inline, watch = cache.subscribe(print, delivery="inline"), cache.watch()
def within(): {within}
sub = cache.subscribe(got.append)
assert done
if not cache.closed:
    cache["k"] = 1
    until(lambda: len(got) == 1)
other["o"] = 1
until(lambda: len(got) == (not cache.closed) + len(later))
sub.close()
for one in later: one.close()
until(lambda: not serving())
"""
    ran = run(FIRST + program, "")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", ["KeyboardInterrupt", "RuntimeError", "MemoryError"])
def test_a_start_that_fails_leaves_nobody_behind(when: str, error: str) -> None:
    """Neither who asked for it, nor who came meanwhile; whether the thread runs, or not."""
    program = f"""
cache, other, late = Cache("1MB"), Cache("1MB"), []
def fails(thread):
    if thread.name != "gbcache-events" or done:
        return start(thread)
    done.append(1)
    if {when == "after"}: start(thread)
    late.append(other.subscribe(got.append))
    raise {error}("cut off")
threading.Thread.start = fails
try:
    cache.subscribe(got.append)
    raise SystemExit("it was not cut off")
except {error} as raised:
    assert raised.args == ("cut off",)
cache["k"] = 1
assert cache.last_seq == 0, "it is recorded for nobody"
other["o"] = 1
until(lambda: [event.key for event in got] == ["o"])
with cache.subscribe(got.append):
    cache["k"] = 2
    until(lambda: len(got) == 2)
    until(lambda: serving() == 1)
late.pop().close()
until(lambda: not serving())
"""
    ran = run(STARTS + program, "")
    assert ran.returncode == 0, ran.stderr


def test_who_joins_as_the_thread_ends_is_told() -> None:
    program = """
cache = Cache("1MB")
for i in range(500):
    with cache.subscribe(got.append):
        cache["k"] = i
        until(lambda: len(got) == i + 1)
until(lambda: not serving())
"""
    ran = run(STARTS + program, "")
    assert ran.returncode == 0, ran.stderr


def test_the_end_waits_for_what_the_thread_has_not_begun_to_tell(tmp_path: Path) -> None:
    program = """
run = threading.Thread.run
def late(thread):
    time.sleep(0.1)
    run(thread)
threading.Thread.run = late
cache = Cache("1MB")
cache.subscribe(lambda event: open(sys.argv[1], "a").write(event.key))
cache["k"] = 1
"""
    told = tmp_path / "told"
    ran = run(STARTS + program, told)
    assert ran.returncode == 0 and told.read_text() == "k", ran.stderr


# --- caches that come back -----------------------------------------------------------------------


@pytest.mark.parametrize("make", ["Cache('1MB')", "ObjectCache()"])
def test_a_cache_that_comes_back_from_a_dead_cycle_can_be_watched(make: str) -> None:
    """Before 3.14 weak references to it are cleared first: its hub did not know it any more."""
    program = f"""
import gc
kept, inline = [], []
class Owner:
    def __init__(self):
        self.cache, self.me = {make}, self
        self.cache.subscribe(got.append)
        self.cache.subscribe(inline.append, delivery="inline")
        self.watch = self.cache.watch()
    def __del__(self): kept.append((self.cache, self.watch))
Owner()
gc.collect()
cache, old = kept.pop()
cache["a"] = 1
assert not old.read(timeout=0) and old.closed and not list(old), "it waits for what it is never told"
watch = cache.watch()
cache["b"] = 2
assert [event.key for event in watch.read(timeout=0)] == ["b"]
more = []
with cache.subscribe(more.append):
    cache["c"] = 3
    until(lambda: len(more) == 1 and got and got[-1].key == "c")
assert [event.key for event in inline] == ["a", "b", "c"]
assert [event.key for event in cache.changes(0)] == ["a", "b", "c"]
watch.close()
cache.close()
until(lambda: not serving())
"""
    ran = run(STARTS + program, "")
    assert ran.returncode == 0, ran.stderr


def test_a_task_that_comes_back_from_a_dead_cycle_is_told_nothing_more() -> None:
    program = """
import asyncio, gc
kept = []
class Owner:
    def __del__(self): kept.append((self.cache, self.sub))
async def main():
    owner = Owner()
    owner.me, owner.cache = owner, Cache("1MB")
    owner.sub = owner.cache.subscribe(got.append, delivery="asyncio")
    while owner.sub._task is None or not owner.sub._task.done(): await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)  # and nothing of the loop's has it
    del owner
    gc.collect()
    cache, sub = kept.pop()
    assert sub.closed
    with cache.subscribe(got.append, delivery="asyncio"):
        assert cache._hub._subscribers[0] is not sub
        cache["k"] = 1
        while not got: await asyncio.sleep(0.01)
    cache.close()
    assert len(got) == 1
asyncio.run(main())
"""
    ran = run(STARTS + program, "")
    assert ran.returncode == 0, ran.stderr


# --- interrupts ----------------------------------------------------------------------------------


class Cut:
    """A codec that is cut off as it decodes, so many times."""

    def __init__(self, error: type[BaseException], times: int) -> None:
        self.error, self.times = error, times

    def encode(self, value: Any) -> bytes:
        return pickle.dumps(value)

    def decode(self, data: bytes) -> Any:
        value = pickle.loads(data)
        if value == [2] and self.times:
            self.times -= 1
            raise self.error("cut off")
        return value


@pytest.mark.parametrize("after", ["next", "read", "aread"])
@pytest.mark.parametrize("error, times, costs", [
    (KeyboardInterrupt, 1, 0), (KeyboardInterrupt, 9, 1),
    (SystemExit, 1, 1), (ValueError, 1, 1),  # it does not decode: it is passed over
])  # fmt: skip
def test_an_interrupt_as_a_value_is_decoded_costs_no_event(
    error: type[BaseException], times: int, costs: int, after: str
) -> None:
    with Cache("1MB", codec=Cut(error, times)) as cache, cache.watch(values=True) as watch:
        for i in range(5):
            cache[i] = [i]
        got = [next(watch).key, next(watch).key]
        cut = 0
        while not got or got[-1] != 4:
            try:
                if after == "next":
                    got.append(next(watch).key)
                elif after == "read":
                    got += [event.key for event in watch.read(2)]
                else:
                    got += [event.key for event in asyncio.run(watch.aread(2))]
            except error:
                cut += 1
        assert got == [0, 1, *([] if costs else [2]), 3, 4]
        assert cut == min(times, 2)
