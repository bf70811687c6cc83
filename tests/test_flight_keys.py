"""Keys of a packed cache while they are loaded: what has an equality of its own, and what is too long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fars import Full
from test_flight import until

from gbcache import Cache, KeyLengthError, Tiered, memoize
from gbcache._packed import KEY_MAX


class Caseless(str):
    """Equals what differs by case; the cache goes by its characters."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.lower()) ^ 1


class Sevens(int):
    def __eq__(self, other: object) -> bool:
        return int(self) % 7 == int(other) % 7  # type: ignore[call-overload,no-any-return]

    def __hash__(self) -> int:
        return int(self) % 7


def pair(x: Any) -> tuple[Any, ...]:
    return ("in", (x, None, 1.5, True, b""))


PAIRS: dict[str, tuple[Any, Any, Any, Any]] = {  # two that are equal, and as the cache has them
    "str": (Caseless("A"), Caseless("a"), "A", "a"),
    "int": (Sevens(1), Sevens(8), 1, 8),
    "within tuples": (pair(Caseless("A")), pair(Caseless("a")), pair("A"), pair("a")),
}
odd = pytest.mark.parametrize("keys", PAIRS.values(), ids=PAIRS)


@odd
def test_two_entries_are_two_flights(keys: tuple[Any, Any, Any, Any]) -> None:
    both, (one, other, name, other_name) = threading.Barrier(2), keys

    def load(x: str) -> str:
        both.wait(10)  # nobody waits for the other
        return x

    with Cache("1MB") as cache, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(cache.get_or_set, k, lambda k=k: load(repr(k))) for k in (one, other)]
        assert [call.result(20) for call in asked] == [repr(one), repr(other)]
        assert dict(cache.items()) == {name: repr(one), other_name: repr(other)}
        assert not cache._flights


@odd
def test_one_entry_is_one_flight(keys: tuple[Any, Any, Any, Any]) -> None:
    """Whatever it is called."""
    one, _, name, _ = keys
    loads: list[int] = []

    def load() -> str:
        loads.append(1)
        (flight,) = cache._flights.values()
        until(lambda: flight.waiters is not None and len(flight.waiters.all) == 2)
        return "value"

    async def aload() -> str:
        return "its own"

    with Cache("1MB") as cache, ThreadPoolExecutor(3) as pool:
        led = pool.submit(cache.get_or_set, one, load)
        until(lambda: loads)
        rest = [
            pool.submit(cache.get_or_set, name, lambda: "its own"),
            pool.submit(lambda: asyncio.run(cache.aget_or_set(one, aload))),
        ]
        assert [call.result(20) for call in (led, *rest)] == ["value"] * 3 and loads == [1]


CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "delete": lambda c, k: c.pop(k, None),
    "delete_many": lambda c, k: c.delete_many([k]),
    "set and delete": lambda c, k: (c.set(k, 1), c.__delitem__(k)),
    "incr and delete": lambda c, k: (c.incr(k), c.__delitem__(k)),
    "of elsewhere": lambda c, k: c._invalidate(k),
    "void": lambda c, k: c._void(k),
}


@odd
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_by_any_name_voids_the_load(change: Any, keys: tuple[Any, Any, Any, Any]) -> None:
    for loaded, changed, stays in (
        (keys[0], keys[2], False),
        (keys[2], keys[0], False),
        (keys[0], keys[0], False),
        (keys[0], keys[3], True),  # another entry
        (keys[0], keys[1], True),
    ):
        with Cache("1MB") as cache:

            def load(cache: Any = cache, changed: Any = changed) -> str:
                change(cache, changed)
                return "old"

            assert cache.get_or_set(loaded, load) == "old"
            assert (keys[2] in cache) == stays, (loaded, changed)


def test_keys_that_cannot_be_while_something_is_loaded() -> None:
    deep: Any = Caseless("x")
    for _ in range(100):
        deep = (deep,)
    with Cache("1MB") as cache:

        def load() -> str:
            for key, error in (([], TypeError), (deep, ValueError), ((object(),), TypeError)):
                for call in (cache.__setitem__, cache.setdefault):
                    with pytest.raises(error):
                        call(key, 1)
                with pytest.raises(error):
                    cache.pop(key)
            return "value"

        assert cache.get_or_set("k", load) == "value" == cache["k"]


# --- too long ----------------------------------------------------------------------------------------


LONG = {
    "str": "k" * 5000,
    "bytes": b"k" * 5000,
    "tuple": ("k" * 5000,),
    "own": Caseless("k" * 5000),
}


@pytest.mark.parametrize("key", LONG.values(), ids=LONG)
def test_a_key_that_is_too_long_is_refused_before_anything_is_loaded(key: Any) -> None:
    """As `set` refuses it; else each call would load, and throw away what it loaded."""
    loads: list[int] = []

    async def aload() -> None:
        loads.append(1)

    with Cache("1MB") as cache:
        with pytest.raises(KeyLengthError, match="a key may have"):
            cache.get_or_set(key, lambda: loads.append(1))
        with pytest.raises(KeyLengthError, match="a key may have"):
            asyncio.run(cache.aget_or_set(key, aload, stale=1))
        assert not loads and not cache._flights and cache.stats().loads == 0
        assert cache.get_or_set("k" * KEY_MAX, lambda: "fits") == "fits" == cache["k" * KEY_MAX]


def test_a_call_with_an_argument_that_is_too_long() -> None:
    """Of a memoized function, over a cache that was given: what it cannot hold it says first."""
    with Cache("1MB") as cache:
        calls: list[str] = []
        f = memoize(cache=cache)(calls.append)
        with pytest.raises(KeyLengthError):
            f("k" * 5000)
        assert not calls


def test_a_tier_reads_past_a_memory_that_cannot_hold_the_key() -> None:
    far = Full()
    far.data["k" * 5000] = ("value", None)
    with Tiered(Cache("1MB"), far) as tier:
        assert tier["k" * 5000] == "value"
        assert tier.get_or_set("l" * 5000, lambda: "loaded") == "loaded"
        assert far.data["l" * 5000][0] == "loaded" and not len(tier.near)
