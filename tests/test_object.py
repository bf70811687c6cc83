"""ObjectCache: identity, weights, cycles, and keys and values that misbehave."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from children import survives
from contract import MappingContract

import gbcache
from gbcache import ObjectCache


class TestContract(MappingContract):
    def make(self, **options: Any) -> ObjectCache:
        return ObjectCache(**options)

    def options(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def cache() -> Any:
    cache = ObjectCache(100)
    yield cache
    if not cache.closed:
        cache.check()
    cache.close()


def test_values_are_the_very_objects(cache: ObjectCache) -> None:
    value: list[int] = []
    cache["k"] = value
    assert cache["k"] is value and cache.peek("k") is value and next(iter(cache.values())) is value
    assert cache.get_many(["k"])["k"] is value and cache.pop("k") is value


def test_keys_are_found_by_identity_then_equality(cache: ObjectCache) -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            return False

        __hash__ = object.__hash__

    odd, nan = Odd(), float("nan")
    cache[odd], cache[nan], cache[1] = "odd", "nan", "one"
    assert cache[odd] == "odd" and cache[nan] == "nan" and float("nan") not in cache
    assert cache[True] == cache[1.0] == "one"
    cache[1.0] = "uno"
    assert type(list(cache)[-1]) is int, "the first key stays, as in a dict"


def test_the_bound_is_exact() -> None:
    with ObjectCache(3) as cache:
        for i in range(10):
            cache[i] = i
            assert len(cache) == min(i + 1, 3)
        cache[7]
        cache[10] = 10
        assert list(cache) == [9, 7, 10] and cache.stats().evictions == 8
        cache.resize(2)
        assert list(cache) == [7, 10] and cache.max_entries == 2
        cache.resize(1000)
        cache.update((i, i) for i in range(5000))
        assert len(cache) == 1000
        cache.resize()
        cache.update((i, i) for i in range(5000))
        assert len(cache) == 5000 and cache.max_entries is None
        cache.check()


def test_weights() -> None:
    with ObjectCache(max_weight=100, weigh=lambda k, v: len(v)) as cache:
        cache.update(dict.fromkeys(range(3), "x" * 30))
        assert len(cache) == 3 and cache.stats().weight == 90 and cache.entry(1).weight == 30
        cache[3] = "y" * 40
        assert list(cache) == [1, 2, 3] and cache.stats().weight == 100
        cache[1] = "z"
        assert cache.stats().weight == 71
        with pytest.raises(gbcache.BudgetError, match="101 can never fit max_weight=100"):
            cache[1] = "w" * 101
        assert cache[1] == "z" and cache.stats().rejects == 1
        cache[1] = "w" * 100
        assert list(cache) == [1]
        cache.touch(1, ttl=5)
        cache.resize(max_weight=99)
        assert len(cache) == 0 and cache.stats().weight == 0
        cache.check()
    for said, error in ((-1, ValueError), (1.5, TypeError), ("1", TypeError), (2**63, ValueError)):
        with ObjectCache(max_weight=9, weigh=lambda k, v, s=said: s) as cache:
            with pytest.raises(error, match="weigh returned"):
                cache["k"] = 1
            assert len(cache) == 0


def test_a_heavy_entry_evicts_many_in_slices() -> None:
    with ObjectCache(max_weight=1000, weigh=lambda k, v: v) as cache:
        cache.update((i, 1) for i in range(1000))
        cache["heavy"] = 990
        assert list(cache)[:2] == [990, 991] and cache.stats().weight == 1000
        assert max(cache.stats().max_steps.values()) <= 64
        cache.check()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_entries": 0}, ValueError),
        ({"max_entries": -1}, ValueError),
        ({"max_entries": 1.5}, TypeError),
        ({"max_entries": True}, TypeError),
        ({"max_weight": 5}, TypeError),
        ({"max_weight": 0, "weigh": len}, ValueError),
        ({"weigh": 5}, TypeError),
        ({"ttl": 0}, ValueError),
        ({"jitter": 2}, ValueError),
        ({"clock": 5}, TypeError),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        ObjectCache(**options)


def test_unhashable_keys(cache: ObjectCache) -> None:
    for call in (cache.get, cache.peek, cache.pop, cache.ttl, cache.touch, cache.__getitem__):
        with pytest.raises(TypeError, match="unhashable"):
            call([])  # type: ignore[operator]
    with pytest.raises(TypeError, match="unhashable"):
        cache[{}] = 1
    assert len(cache) == 0


def test_closed_is_closed() -> None:
    cache = ObjectCache()
    cache["k"] = 1
    walk = iter(cache)
    cache.close()
    cache.close()
    calls: list[Callable[[], Any]] = [
        lambda: cache["k"], lambda: cache.get("k"), lambda: cache.set("k", 1), lambda: len(cache),
        lambda: "k" in cache, lambda: list(cache), lambda: next(walk), cache.clear, cache.popitem,
        lambda: cache.pop("k"), lambda: cache.setdefault("k"), lambda: cache.touch("k"), cache.check,
        lambda: cache.get_many(["k"]), lambda: cache.incr("k"), cache.expire, cache.stats, cache.memory,
        lambda: cache.resize(5), lambda: cache.add("k", 1), lambda: cache.delete_many(["k"]),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(gbcache.ClosedError, match="is closed"):
            call()
    assert "closed" in repr(cache)


def test_never_initialised() -> None:
    class Forgetful(ObjectCache):
        def __init__(self) -> None:
            pass

    for made in (Forgetful(), ObjectCache.__new__(ObjectCache)):
        for call in (ObjectCache.popitem, ObjectCache.check, len, list, ObjectCache.clear):
            with pytest.raises(gbcache.ClosedError, match="never initialised"):
                call(made)  # type: ignore[operator]
        for verb in (made.get, made.pop, made.set, made.add):
            with pytest.raises(gbcache.ClosedError, match="never initialised"):
                verb("k", 1)  # type: ignore[operator]
        made.close()
        gc.collect()
    with ObjectCache() as cache, pytest.raises(RuntimeError, match="may run once"):
        cache.__init__()  # type: ignore[misc]


# --- memory and cycles ---------------------------------------------------------------------------


class Thing:
    """Can be referred to weakly, and refer to anything."""

    def __init__(self, other: Any = None) -> None:
        self.other = other


def test_cycles_through_the_cache_are_collected() -> None:
    cache = ObjectCache()
    seen = [weakref.ref(cache)]
    for i in range(100):
        thing = Thing(cache)
        cache[i] = thing
        cache[Thing(thing)] = i
        seen.append(weakref.ref(thing))
    walk = iter(cache.items())
    next(walk)
    cache["walk"] = walk
    del cache, thing, walk
    gc.collect()
    assert [ref() for ref in seen] == [None] * 101


def test_what_leaves_is_let_go(cache: ObjectCache) -> None:
    def held() -> tuple[Thing, weakref.ref[Thing]]:
        thing = Thing()
        return thing, weakref.ref(thing)

    leave: list[Callable[[], Any]] = [
        lambda: cache.pop("k"), lambda: cache.set("k", 1), lambda: cache.delete_many(["k"]), cache.clear,
        cache.popitem, lambda: cache.update((i, i) for i in range(100)), lambda: cache.__delitem__("k"),
    ]  # fmt: skip
    for way in leave:
        cache.clear()
        thing, ref = held()
        cache["k"] = thing
        del thing
        assert ref() is not None
        way()
        assert ref() is None


def test_references_do_not_drift() -> None:
    """Every verb, its misses and its errors, a thousand times: nobody's count moves."""
    key, value, other = Thing(), Thing(), Thing()

    class Bad:
        def __hash__(self) -> int:
            raise ZeroDivisionError

    def rounds(cache: ObjectCache) -> None:
        cache[key] = value
        cache.set(key, value, ttl=5)
        cache.set(key, value, ttl=None)
        cache.add(key, other), cache.add(other, value), cache.get(key), cache.get(7, other)
        cache.peek(key), cache.ttl(key), cache.entry(key), cache.touch(key, ttl=3)
        list(cache), list(cache.items()), list(cache.values()), cache.get_many([key, other, 5])
        cache.setdefault(key, other), cache.setdefault(other, value), cache.pop(other)
        cache.set_many([(key, value), (other, value)]), cache.delete_many([other, 99])
        cache.incr("n"), key in cache, len(cache), cache.expire()
        cache.set(other, 1), cache.popitem(), cache.popitem(), cache.popitem()
        for wrong in (
            lambda: cache[Bad()], lambda: cache.set(key, value, ttl=-1), lambda: cache.incr(key, 1.5),
            lambda: cache.set(Bad(), value), lambda: cache.pop("none"), lambda: cache.set_many([(key,)]),
            lambda: cache.popitem(), lambda: cache.get(), lambda: cache.set(key, value, tll=5),
        ):  # fmt: skip
            with pytest.raises((ZeroDivisionError, ValueError, TypeError, KeyError)):
                wrong()
        cache[key] = value
        cache.clear()

    cache = ObjectCache(50)
    rounds(cache)
    gc.collect()
    before = [sys.getrefcount(x) for x in (key, value, other, None, cache)]
    for _ in range(200):
        rounds(cache)
    gc.collect()
    after = [sys.getrefcount(x) for x in (key, value, other, None, cache)]
    assert before[:3] == after[:3] and before[4] == after[4] and abs(before[3] - after[3]) < 50
    cache.close()


# --- keys and values that misbehave --------------------------------------------------------------


class Key:
    """All in one bucket; `act` runs in every comparison."""

    act: Callable[[], Any] = staticmethod(lambda: None)

    def __init__(self, n: int) -> None:
        self.n = n

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        Key.act()
        return isinstance(other, Key) and self.n == other.n


class Grenade:
    """Runs `act` when it dies."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def __del__(self) -> None:
        self.act()


def fork_and_wait() -> None:
    survives(int)


def in_a_thread(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


ACTS: dict[str, Callable[[ObjectCache], Any]] = {
    "clear": lambda c: c.clear(),
    "close": lambda c: c.close(),
    "set another": lambda c: c.set(object(), 1),
    "set the same": lambda c: c.set("k", object()),
    "delete all": lambda c: c.delete_many(list(c)),
    "pop the oldest": lambda c: c.pop(next(iter(c), None), None),
    "grow": lambda c: c.update((object(), i) for i in range(300)),
    "shrink": lambda c: c.resize(1),
    "resize": lambda c: c.resize(1_000_000),
    "iterate": lambda c: list(c.items()),
    "collect": lambda c: gc.collect(),
    "retime": lambda c: [c.touch(k, ttl=50) for k in list(c)[:5]],
    "fork": lambda c: fork_and_wait(),
    "join a thread that uses it": lambda c: in_a_thread(lambda: c.set(object(), 1)),
    "raise": lambda c: 1 / 0,
}
CALLS: dict[str, Callable[[ObjectCache], Any]] = {
    "get": lambda c: c.get(Key(3)),
    "item": lambda c: c[Key(3)],
    "set": lambda c: c.set(Key(3), 1),
    "set new": lambda c: c.set(Key(99), 1),
    "set ttl": lambda c: c.set(Key(3), 1, ttl=100),
    "add": lambda c: c.add(Key(77), 1),
    "pop": lambda c: c.pop(Key(3), None),
    "delete": lambda c: c.delete_many([Key(3)]),
    "touch": lambda c: c.touch(Key(3), ttl=5),
    "incr": lambda c: c.incr(Key(3)),
    "in": lambda c: Key(3) in c,
    "ttl": lambda c: c.ttl(Key(3)),
    "get_many": lambda c: c.get_many([Key(1), Key(3), "x"]),
    "setdefault": lambda c: c.setdefault(Key(5), 2),
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("call", CALLS)
def test_comparisons_that_misbehave(call: str, act: str) -> None:
    """Whatever `==` does to the cache in the middle of a call: no crash, and a sound cache after."""
    if act == "fork" and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    cache = ObjectCache(50)
    cache.update((Key(i), i) for i in range(6))
    cache.update((i, i) for i in range(20))
    left = [2]

    def once() -> None:
        if left[0]:
            left[0] -= 1
            ACTS[act](cache)

    Key.act = staticmethod(once)
    try:
        CALLS[call](cache)
    except (ZeroDivisionError, gbcache.ClosedError, KeyError):
        pass
    finally:
        Key.act = staticmethod(lambda: None)
    assert left[0] < 2, "it was compared"
    if not cache.closed:
        cache.check()
        cache[Key(3)] = "after"
        assert cache[Key(3)] == "after"
        cache.check()
    cache.close()


@pytest.mark.parametrize("act", [name for name in ACTS if name != "raise"])
@pytest.mark.parametrize(
    "way", ["replace", "evict", "delete", "pop", "clear", "close", "expire", "resize"]
)
def test_destructors_that_misbehave(way: str, act: str, clock: Any) -> None:
    """The last reference goes in the middle of a call, and its destructor comes back."""
    cache = ObjectCache(20, clock=clock)

    def explode() -> None:
        if not cache.closed:
            ACTS[act](cache)

    for i in range(20):
        cache.set(i, Grenade(explode) if i % 4 == 0 else i, ttl=5)
    ways: dict[str, Callable[[], Any]] = {
        "replace": lambda: cache.set(0, 1),
        "evict": lambda: cache.update((object(), i) for i in range(10)),
        "delete": lambda: cache.delete_many(range(20)),
        "pop": lambda: [cache.pop(i, None) for i in range(20)],
        "clear": cache.clear,
        "close": cache.close,
        "expire": lambda: (clock.pass_(6), cache.expire()),
        "resize": lambda: cache.resize(3),
    }
    try:
        ways[way]()
    except gbcache.ClosedError:
        assert act == "close"
    if not cache.closed:
        cache.check()
        cache["k"] = "after"
        assert cache["k"] == "after"
    cache.close()


@pytest.mark.parametrize(
    "verb", ["get", "peek", "pop", "touch", "ttl", "__contains__", "__getitem__"]
)
def test_a_hash_that_closes_the_cache(verb: str) -> None:
    cache = ObjectCache()

    class Closing:
        def __hash__(self) -> int:
            cache.close()
            return 1

    with pytest.raises(gbcache.ClosedError):
        getattr(cache, verb)(Closing())


def test_a_clock_a_ttl_and_a_weight_that_come_back(clock: Any) -> None:
    class Slow:
        def __float__(self) -> float:
            cache.clear()
            return 5.0

    def weigh(key: Any, value: Any) -> int:
        cache["weighed"] = 1 if key != "weighed" else 0
        return 1

    cache = ObjectCache(50, clock=clock)
    cache["a"] = 1
    cache.set("k", 1, ttl=Slow())  # type: ignore[arg-type]
    assert list(cache) == ["k"] and cache.ttl("k") == 5
    cache.close()
    deep = [0]

    def counting(key: Any, value: Any) -> int:
        if deep[0] < 5:
            deep[0] += 1
            cache[key] = deep[0]
        return 1

    cache = ObjectCache(max_weight=3, weigh=counting)
    cache["k"] = "outer"
    assert cache["k"] == "outer" and cache.stats().weight == 1
    cache.check()
    cache.close()

    class Ticking:
        def __call__(self) -> float:
            if not busy:
                busy.append(1)
                cache.set("tick", 1)
                busy.clear()
            return 1000.0

    busy: list[int] = [1]
    cache = ObjectCache(2, clock=Ticking())
    busy.clear()
    cache["a"] = 1
    cache["b"] = 2
    assert cache["b"] == 2
    cache.check()
    cache.close()


def test_threads() -> None:
    cache = ObjectCache(500, ttl=5)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(20_000):
                k = (i * 7919 + seed) % 1500
                if i % 3:
                    got = cache.get((k, "key"))
                    assert got is None or got == [k]
                else:
                    cache.set((k, "key"), [k], ttl=0.01 if i % 9 == 0 else None)
                if i % 5000 == 0:
                    cache.clear()
                    list(cache.items())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    cache.check()
    cache.close()


def test_the_housekeeper_lets_go_without_traffic() -> None:
    gone = threading.Event()
    with ObjectCache() as cache:
        cache.set("k", Grenade(gone.set), ttl=0.02)
        # In small steps: without the GIL the thread that made an object frees it, once it runs Python again.
        end = time.monotonic() + 2.0
        while not gone.is_set():
            assert time.monotonic() < end
            time.sleep(0.005)
        time.sleep(0.05)
        assert len(cache) == 0 and cache.stats().expirations == 1
        cache.check()


def test_a_reservation_that_is_copied(monkeypatch: Any) -> None:
    """Where a mapping cannot grow in place (macOS), or somebody may look at it meanwhile (no GIL)."""
    monkeypatch.setattr(gbcache.memory, "copy_needed", gbcache.memory.private)
    with ObjectCache(100) as cache:
        for i in range(150):
            cache[i] = i
        cache.resize(50_000)
        for i in range(50_100):
            cache[i] = i
        cache.check()
        assert list(cache.items()) == [(i, i) for i in range(100, 50_100)]


def test_what_is_written_over_is_not_evicted_for_itself() -> None:
    with ObjectCache(max_weight=10, weigh=lambda key, value: value) as cache:
        cache["old"] = cache["young"] = 4
        cache["old"] = 7  # it makes room as the youngest, not as the oldest
        assert dict(cache) == {"old": 7} and cache.stats().evictions == 1
