"""ObjectCache: identity, weights, cycles, threads."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
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
        value = Thing()
        weakref.finalize(value, gone.set)
        cache.set("k", value, ttl=0.02)
        del value
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
