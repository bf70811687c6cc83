"""An ObjectCache whose keys, values, clock or weight run Python in a call: no crash, a sound cache after."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from children import survives

import gbcache
from gbcache import ObjectCache


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
