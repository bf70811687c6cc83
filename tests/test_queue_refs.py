"""ObjectStore's events and references: nothing leaks, nothing dies too early."""

from __future__ import annotations

import gc
import random
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from queued import ALL, Thing, listened

import gbcache
from gbcache import ObjectCache
from gbcache.events import Kind

# --- references ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["value", "key", "old", "tuple", "hear", "cursor", "closed"])
def test_cycles_are_collected(way: str) -> None:
    def caches() -> int:
        return sum(isinstance(o, ObjectCache) for o in gc.get_objects())

    gc.collect()
    before = caches()
    cache, cursor = listened()
    thing = Thing(cache)
    refs = [weakref.ref(cache), weakref.ref(thing)]
    if way == "value":
        cache["k"] = thing
    elif way == "key":
        cache[thing] = 1
    elif way == "old":
        cache._listen(0, False, 0)
        cache["k"] = thing
        cache._listen(ALL, True, 0)
        cache.pop("k")
    elif way == "tuple":  # nobody but the queue can be cleared
        refs.pop()
        cache["k"] = (cache,)
        cache.clear()
    elif way == "hear":
        cache._hear(thing.__init__)
    else:
        thing.other = cursor
        cache["k"] = thing
    if way == "closed":
        cache.close()
    gc.collect()
    assert refs[0]() is not None
    assert gc.is_tracked(cursor)
    del cache, thing, cursor
    gc.collect()
    assert not any(ref() for ref in refs)
    assert caches() == before, "weak references go first, so they do not tell"


def test_a_finalizer_reads_in_the_middle_of_a_collection() -> None:
    class Last:
        def __init__(self, cursor: Any) -> None:
            self.cursor = cursor

        def __del__(self) -> None:
            seen.append([e.key for e in self.cursor.pull(9)])

    seen: list[list[Any]] = []
    cache, cursor = listened()
    cache["a"] = Last(cursor)
    cache["b"] = cache
    del cache, cursor
    gc.collect()
    assert seen == [["a", "b"]]


def test_references_are_exact() -> None:
    key, value, other = Thing(), Thing(), Thing()
    cache, cursor = listened(4, room=7)
    ahead = cache._cursor(None, ALL, "none", True)

    def rounds() -> None:
        cache[key] = value
        cache[key] = other
        cache.set(key, value, ttl=60)
        cache.touch(key), cache.pop(key), cache.add(other, value), cache.clear()
        cache.update((i, value) for i in range(6))
        cache[key] = value
        cache.popitem(), cache.delete_many([key, 9]), cache.resize(2), cache.resize(4)
        cursor.pull(3), ahead.pull(50)

    def count() -> list[int]:
        gc.collect()
        return [sys.getrefcount(x) for x in (key, value, other, cache, cursor)]

    rounds()
    before = count()
    for _ in range(300):
        rounds()
    assert count() == before
    cache._listen(ALL, False, 7)
    for _ in range(300):
        rounds()
    cache.clear()
    cache._listen(ALL, True, 7)
    for i in range(7):
        cache.set(0, i)
    cache.clear()
    counts = [sys.getrefcount(x) for x in (key, value, other, Thing())]
    assert counts == [counts[3] + 1] * 3 + [counts[3]], "no record and no entry holds them"


def test_no_more_is_held_than_the_records() -> None:
    cache, _ = listened(room=3)
    things = [Thing() for _ in range(10)]
    refs = [weakref.ref(thing) for thing in things]
    for thing in things:
        cache["k"] = thing
    del things, thing
    assert [ref() is not None for ref in refs] == [False] * 6 + [True] * 4
    cache.close()
    del cache, _
    assert not any(ref() for ref in refs)


@pytest.mark.parametrize("act", ["set", "clear", "close", "many", "pull", "collect", "listen"])
@pytest.mark.parametrize("hear", [False, True])
def test_destructors_of_what_records_held(act: str, hear: bool) -> None:
    class Grenade:
        def __del__(self) -> None:
            if left and not cache.closed:
                left.pop()
                acts[act]()

    cache, cursor = listened(5, room=4)
    acts: dict[str, Callable[[], Any]] = {
        "set": lambda: cache.set(random.random(), Grenade()),
        "clear": cache.clear,
        "close": cache.close,
        "many": lambda: cache.update((i, Grenade()) for i in range(9)),
        "pull": lambda: cursor.pull(99),
        "collect": gc.collect,
        "listen": lambda: cache._listen(ALL, len(left) % 2 == 0, 0),
    }
    left = [0] * 25
    if hear:
        cache._hear(lambda: cursor.pull(99))
    try:
        for n in range(200):
            cache[n % 7] = Grenade()
            if n % 5 == 0:
                cache.pop(n % 3, None)
            if n % 9 == 0:
                cache.touch(n % 7)
            if n % 31 == 0:
                cache.resize(2 + n % 5)
            cache.check()
    except gbcache.ClosedError:
        assert act == "close"
    assert len(left) < 25
    cursor.pull(99)
    left.clear()


def test_the_collector_comes_while_events_are_made() -> None:
    cache, cursor = listened(10, room=50)
    busy: list[int] = []

    def interrupt(phase: str, info: Any) -> None:
        if phase == "start" and not busy:
            busy.append(1)
            cache[len(seen) % 30] = Thing(cache)
            busy.clear()

    seen: list[int] = []
    total = 0
    before = gc.get_threshold()
    gc.callbacks.append(interrupt)
    gc.set_threshold(3)
    try:
        for n in range(2000):
            cache[n % 30] = n
            if n % 10 == 0:
                events = cursor.pull(40)
                assert all(e.kind is not Kind.LOST for e in events[1:])
                for e in events:
                    total += e.value if e.kind is Kind.LOST else 1
                    assert e.seq == total
                    seen.append(e.seq)
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(interrupt)
    for e in cursor.pull(10_000):
        total += e.value if e.kind is Kind.LOST else 1
    assert total == cache._seq()
