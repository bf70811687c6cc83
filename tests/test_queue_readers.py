"""ObjectStore's events: cursors, closing, who hears at once, bells."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import mmap
import os
import sys
import threading
import weakref
from typing import Any

import pytest
from queued import ALL, Thing, Told, bits, listened, told

import gbcache
from gbcache import ObjectCache
from gbcache._object import ObjectStore, smallest
from gbcache.events import Kind

# --- cursors -------------------------------------------------------------------------------------


def test_a_stalled_cursor_is_told_what_it_lost() -> None:
    cache, cursor = listened(room=10)
    late = cache._cursor(0, bits("delete"), None, False)
    cache.update((i, i) for i in range(100))
    first, *rest = cursor.pull(1000)
    assert first[:3] == (90, Kind.LOST, None) and first.value == 90 and first.at == 0.0
    assert [e.seq for e in rest] == list(range(91, 101))
    assert [(e.seq, e.value) for e in late.pull(5)] == [(90, 90)], "its filter does not matter"
    assert late.pull(5) == [] and not late.pending()
    cache.update((i, 0) for i in range(10))
    assert [e.kind for e in late.pull(5)] == [], "none was lost: it had looked at them all"


def test_prefixes() -> None:
    class Sub(str):
        pass

    cache, _ = listened()
    names = ["user:1", "user:2", "user", "us\u20acr", "\u20acuro", b"user:3", Sub("user:4"), 5, ""]
    for name in names:
        cache[name] = 1
    cache.clear()

    def keys(prefix: Any, kinds: int = ALL) -> list[Any]:
        return [e.key for e in cache._cursor(0, kinds, prefix, False).pull(100)]

    assert keys("user:") == ["user:1", "user:2", None]
    assert keys("") == [name for name in names if type(name) is str] + [None]
    assert keys("us\u20ac") == ["us\u20acr", None] and keys("\u20ac") == ["\u20acuro", None]
    assert keys("u", bits("set")) == ["user:1", "user:2", "user", "us\u20acr"]
    assert keys(b"user") == [b"user:3", None] and keys(b"") == [b"user:3", None]
    assert keys("x", bits("set")) == [] and keys(None, bits("clear")) == [None]
    for wrong in (5, Sub("user"), ["user"]):
        with pytest.raises(TypeError, match="prefix"):
            cache._cursor(0, ALL, wrong, False)


def test_a_filter_passes_over_many() -> None:
    cache, _ = listened(room=50_000)
    rare = cache._cursor(None, ALL, "rare", False)
    cache.update((i, i) for i in range(20_000))
    cache["rare"] = 1
    cache.update((i, i) for i in range(20_000))
    (event,) = rare.pull(10)
    assert event.seq == 20_001 and rare.pull(10) == [] and not rare.pending()


def test_since() -> None:
    cache, _ = listened(room=5)
    cache.update((i, i) for i in range(4))
    assert [e.seq for e in cache._cursor(2, ALL, None, False).pull(9)] == [3, 4]
    assert [e.seq for e in cache._cursor(0, ALL, None, False).pull(9)] == [1, 2, 3, 4]
    assert cache._cursor(4, ALL, None, False).pull(9) == []
    ahead = cache._cursor(6, ALL, None, False)
    assert not ahead.pending()
    cache.update((i, i) for i in range(4))
    assert [e.seq for e in ahead.pull(9)] == [7, 8]
    assert [e.value for e in cache._cursor(1, ALL, None, False).pull(1)] == [2], "seq 2 and 3"
    far = cache._cursor(2**64 - 1, ALL, None, False)
    assert not far.pending() and far.pull(9) == []
    with pytest.raises(OverflowError):
        cache._cursor(-1, ALL, None, False)


def test_values_are_for_those_who_ask() -> None:
    cache = ObjectCache()
    value = Thing()
    cache._listen(ALL, False, 10)
    without, asks = (cache._cursor(None, ALL, None, values) for values in (False, True))
    before = sys.getrefcount(value)
    cache["k"] = value
    assert sys.getrefcount(value) == before + 1, "the entry's alone"
    cache._listen(ALL, True, 10)
    cache["k"] = value
    assert sys.getrefcount(value) == before + 3
    cache.clear()
    assert told(without) == [
        ("set", "k", None, None),
        ("replace", "k", None, None),
        ("clear", None, 1, None),
    ]
    assert told(asks) == [
        ("set", "k", None, None),
        ("replace", "k", value, value),
        ("clear", None, 1, None),
    ]


def test_nobody_listens() -> None:
    cache = ObjectCache()
    cache["k"] = 1
    assert cache._seq() == 0 and cache.memory().parts["ring"] == 0
    early = cache._cursor(None, ALL, None, True)
    assert early.pull(5) == [] and not early.pending()
    cache["k"] = 2
    cache._listen(0, False, 0)
    assert cache.memory().parts["ring"] == 0
    with pytest.raises(ValueError, match="room"):
        cache._listen(ALL, False, 0)
    with pytest.raises(MemoryError):
        cache._listen(ALL, False, 2**60)
    cache["k"] = 3
    assert cache._seq() == 0 and early.pull(5) == []
    cache._listen(bits("set", "delete"), True, 10)
    cache["k"] = 4
    cache["j"] = 1
    cache._listen(0, False, 0)
    cache["i"] = 1
    cache._listen(ALL, True, 10)
    cache["k"] = 5
    assert [(e.seq, e.key) for e in early.pull(9)] == [(1, "j"), (2, "k")]


def test_memory_sums() -> None:
    cache = ObjectCache(10)
    before = cache.memory()
    cache._listen(ALL, True, 1000)
    after = cache.memory()
    assert sum(before.parts.values()) == before.total
    assert sum(after.parts.values()) == after.total
    assert after.total - before.total == after.parts["ring"] >= 32_000
    assert cache.stats().used_bytes == after.total - after.parts["free"]
    cache._listen(0, False, 0)
    assert cache.memory().parts["ring"] == after.parts["ring"], "it stays"


# --- close ---------------------------------------------------------------------------------------


def test_close_with_events_pending() -> None:
    cache, cursor = listened()
    other = cache._cursor(None, ALL, None, True)
    value = Thing()
    ref = weakref.ref(value)
    cache["k"] = value
    del value
    cache.close()
    assert ref() is not None and cursor.pending() and cache._seq() == 1
    assert [(e.kind, e.key, e.value) for e in cursor.pull(9)] == [(Kind.SET, "k", ref())]
    assert cursor.pull(9) == []
    del other
    assert ref() is not None
    del cursor
    assert ref() is None, "nobody can read it any more"
    for call in (
        lambda: cache._cursor(None, ALL, None, True), lambda: cache._listen(ALL, True, 9),
        lambda: cache._hear(print), lambda: cache._bells(1, True),
    ):  # fmt: skip
        with pytest.raises(gbcache.ClosedError):
            call()
    cache._listen(0, False, 0), cache._hear(None), cache._bells(1, False)


def test_close_lets_go_of_what_nobody_reads() -> None:
    cache, cursor = listened()
    value = Thing()
    ref = weakref.ref(value)
    cache["k"] = value
    cache._hear(Thing(value).__class__)
    del value, cursor
    cache.pop("k")
    assert ref() is not None
    cache.close()
    assert ref() is None


def test_a_cursor_holds_its_store() -> None:
    cache, cursor = listened()
    ref = weakref.ref(cache)
    cache["k"] = 1
    del cache
    gc.collect()
    assert ref() is not None and len(cursor.pull(9)) == 1
    del cursor
    assert ref() is None


# --- who hears -----------------------------------------------------------------------------------


def test_hear_is_called_after_each_operation() -> None:
    cache, cursor = listened(2)
    heard: list[Told] = []
    cache._hear(lambda: heard.append(told(cursor)))
    cache["a"] = 1
    assert heard == [[("set", "a", 1, None)]]
    cache.get("a"), cache.get("x"), cache.peek("a"), cache.touch("x"), cache.pop("x", 0)
    assert len(heard) == 1, "nothing was recorded"
    cache.touch("a"), cache.incr("a"), cache.update(b=2, c=3), cache.pop("b"), cache.clear()
    assert [[e[0] for e in one] for one in heard[1:]] == [
        ["touch"],
        ["replace"],
        ["set"],
        ["evict", "set"],
        ["delete"],
        ["clear"],
    ]
    cache._hear(None)
    cache["a"] = 1
    assert len(heard) == 7


def test_hear_may_do_anything() -> None:
    cache, cursor = listened(3, room=50)
    depth = [0]

    def hear() -> None:
        for e in cursor.pull(99):
            if depth[0] < 30:
                depth[0] += 1
                cache[depth[0] % 5] = e
                cache.pop(depth[0] % 3, None)
                cache.resize(2 + depth[0] % 3)

    cache._hear(hear)
    for i in range(10):
        cache[i] = i
        cache.check()
    assert depth == [30]
    cache._hear(lambda: cache._hear(None))
    cache["x"] = 1
    cache._hear(cache.clear)
    depth[0] = sys.getrecursionlimit()
    with Unraised() as raised:
        cache["y"] = 1  # clears, which is heard, which clears
    assert {type(e) for e in raised} == {RecursionError}
    cache._hear(cache.close)
    cache["z"] = 1
    assert cache.closed


class Unraised:
    """Collects what goes to sys.unraisablehook."""

    def __enter__(self) -> list[Any]:
        self.before, raised = sys.unraisablehook, []
        sys.unraisablehook = lambda what: raised.append(what.exc_value)
        return raised

    def __exit__(self, *_: Any) -> None:
        sys.unraisablehook = self.before


def test_what_hear_raises_never_reaches_the_caller(clock: Any) -> None:
    cache, cursor = listened(
        max_weight=9, weigh=lambda k, v: 10 if v == "heavy" else 1, clock=clock
    )
    calls = []

    def hear() -> None:
        calls.append(1)
        raise ZeroDivisionError(len(calls))

    cache._hear(hear)
    with Unraised() as raised:
        cache["a"] = 1
        assert cache.incr("n", 5) == 5 and cache.pop("a") == 1 and cache.popitem() == ("n", 5)
        with pytest.raises(gbcache.BudgetError, match="can never fit"):
            cache["a"] = "heavy"
        cache.set("k", 1, ttl=1)
        clock.pass_(2)
        with pytest.raises(KeyError, match="k"):
            del cache["k"]
        assert cache.add("k", 2) and cache.get("k") == 2
    assert [type(e) for e in raised] == [ZeroDivisionError] * 8 and len(calls) == 8
    assert cursor.pull(99)[-1].key == "k"


def test_a_write_that_fails_tells_what_it_evicted() -> None:
    class Small(ObjectStore):
        pass

    store = Small()
    store._attach(
        mmap.mmap(-1, smallest()),
        seed=bytes(8), clock=None, ttl=None, idle=None, jitter=0.0, max_entries=10**6, max_weight=0,
        weigh=None, flights={}, housekeeping=False,
    )  # fmt: skip
    with pytest.raises(MemoryError, match="address space is full"):
        for n in range(10**6):
            store[n] = n
    store._limit(len(store), 0)
    for n in range(0, 10**6, 2):
        if store.get(n) is None:
            break  # neighbours are not to go one after the other
    store._listen(ALL, True, 9)
    cursor, heard = store._cursor(None, ALL, None, True), Told()
    store._hear(lambda: heard.extend(told(cursor)))
    with pytest.raises(MemoryError, match="address space is full"):
        for n in range(10**6):  # a larger block than the one that it evicts for it
            heard.clear()
            store.set(("new", n), 1, ttl=60)
    assert [e[0] for e in heard] == ["evict"]
    store.check()
    store.close()


def test_hear_runs_in_the_thread_that_made_the_change() -> None:
    cache, _ = listened()
    heard = []
    cache._hear(lambda: heard.append(threading.get_ident()))
    thread = threading.Thread(target=cache.set, args=("k", 1))
    thread.start()
    thread.join()
    cache["k"] = 2
    assert heard == [thread.ident, threading.get_ident()]


# --- bells ---------------------------------------------------------------------------------------


class Bell(ctypes.Structure):
    _fields_ = [("armed", ctypes.c_bool), ("fd", ctypes.c_int)]


def test_bells() -> None:
    cache, _ = listened()
    read, write = os.pipe()
    os.set_blocking(read, False)
    try:
        bell = Bell(False, write)
        cache._bells(ctypes.addressof(bell), True)

        def rung() -> bool:
            try:
                return len(os.read(read, 1000)) == 8
            except BlockingIOError:
                return False

        cache["k"] = 1
        assert not rung(), "its reader is awake"
        for change in (
            lambda: cache.set("k", 2), lambda: cache.touch("k"), lambda: cache.pop("k"), cache.clear,
        ):  # fmt: skip
            bell.armed = True
            cache.get("k")
            assert not rung() and bell.armed
            change()
            assert rung() and not bell.armed
            cache["k"] = 1
            assert not rung()
        cache._bells(ctypes.addressof(bell), False)
        bell.armed = True
        cache["k"] = 1
        assert not rung() and bell.armed
        cache.close()
    finally:
        os.close(read), os.close(write)


@pytest.mark.skipif(
    not importlib.util.find_spec("_testcapi"), reason="needs _testcapi.set_nomemory"
)
@pytest.mark.parametrize("make", [lambda: gbcache.Cache("1MB"), ObjectCache])
def test_a_bell_there_is_no_memory_for_is_none(make: Any) -> None:
    testcapi = importlib.import_module("_testcapi")
    cache = make()
    bells = [Bell(False, -1) for _ in range(20)]
    short = 0
    for bell in bells:
        at = ctypes.addressof(bell)
        add = cache._bells
        with contextlib.suppress(MemoryError):
            testcapi.set_nomemory(0, 0)
            try:
                add(at, True)
            finally:
                testcapi.remove_mem_hooks()
            continue
        short += 1
        bell.armed = True
        cache._listen(ALL, False, 1000)
        cache["k"] = 1
        assert bell.armed, "it was not registered"
        add(at, True)
    for bell in bells:
        bell.armed = True
    cache["k"] = 2
    assert short >= 3 and not any(bell.armed for bell in bells)
    for bell in bells:
        cache._bells(ctypes.addressof(bell), False)


@pytest.mark.skipif(
    not importlib.util.find_spec("_testcapi"), reason="needs _testcapi.set_nomemory"
)
def test_an_event_there_was_no_memory_for_comes_with_the_next_pull() -> None:
    """Whichever allocation fails: all events are told, each once, in their order."""
    testcapi = importlib.import_module("_testcapi")
    cache, cursor = listened(room=1000)
    failed = 0
    for nth in range(30):
        cache.update((key, nth) for key in range(3))
        got: list[Any] = []
        testcapi.set_nomemory(nth, nth + 1)
        try:
            got = cursor.pull(10)
        except MemoryError:
            failed += 1
        finally:
            testcapi.remove_mem_hooks()
        seqs = [event.seq for event in [*got, *cursor.pull(10)]]
        assert seqs == [3 * nth + 1, 3 * nth + 2, 3 * nth + 3], nth
    assert failed
