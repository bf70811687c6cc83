"""`Cache`: the contract, its bytes, its bad input."""

from __future__ import annotations

import datetime
import enum
import gc
import os
import sys
import weakref
from typing import Any

import pytest
from contract import MappingContract
from hypothesis import given
from hypothesis import strategies as st

import gbcache
from gbcache._packed import BUILD, KEY_MAX, smallest


class TestContract(MappingContract):
    def make(self, **options: Any) -> gbcache.Cache:
        return gbcache.Cache("1MB", **options)

    def options(self) -> dict[str, Any]:
        return {"max_bytes": "1MB"}


@pytest.fixture
def cache() -> Any:
    cache = gbcache.Cache("1MB")
    yield cache
    if not cache.closed:
        cache.check()
        cache.close()


ATOMS = [
    b"", b"x" * 300, "", "plain", "grün", "\ud800 alone", "x" * 5000, "ü" * 5000, 0, -1, 2**63 - 1,
    -(2**63), 2**63, -(10**40), 0.0, 1.5, float("inf"), True, False, None, b"y" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("value", ATOMS, ids=lambda v: repr(v)[:20])
def test_atoms_come_back_as_they_were(cache: gbcache.Cache, value: object) -> None:
    cache["k"] = value
    back = cache["k"]
    assert back == value and type(back) is type(value)
    assert cache.get_many(["k"]) == {"k": value} and cache.peek("k") == value
    assert list(cache.values()) == [value] and cache.pop("k") == value


def test_negative_zero_and_nan_are_kept(cache: gbcache.Cache) -> None:
    cache["k"] = -0.0
    assert str(cache["k"]) == "-0.0"
    cache["k"] = float("nan")
    assert cache["k"] != cache["k"]


def test_containers_are_fresh_copies(cache: gbcache.Cache) -> None:
    value = {"a": [1, (2, 3)], "when": datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)}
    cache["k"] = value
    value["a"].append(4)
    first = cache["k"]
    assert first == {"a": [1, (2, 3)], "when": value["when"]} and type(first["a"][1]) is tuple
    first["a"].append(5)
    assert cache["k"]["a"] == [1, (2, 3)]


KEYS = ["k", "", "ü" * 50, "\ud800", b"k", b"", 1, -1, 2**63, -(2**70), 1.5, None, (), (1, "a", (b"x", None)),
        float("inf"), "x" * 254, "x" * 255, "x" * 256, b"y" * 700]  # fmt: skip


def test_keys_of_all_types_at_once(cache: gbcache.Cache) -> None:
    for i, key in enumerate(KEYS):
        cache[key] = i
    assert len(cache) == len(KEYS)
    assert list(cache) == KEYS and [type(k) for k in cache] == [type(k) for k in KEYS]
    assert [cache[k] for k in KEYS] == list(range(len(KEYS)))
    assert cache.get_many(KEYS) == {k: i for i, k in enumerate(KEYS)}
    cache.check()


def test_key_equality_is_pythons(cache: gbcache.Cache) -> None:
    class Colour(str, enum.Enum):
        RED = "red"

    cache[1] = "one"
    assert cache[1.0] == cache[True] == "one" and len(cache) == 1 and type(next(iter(cache))) is int
    cache[1, 2.0] = "pair"
    assert cache[1.0, 2] == "pair" and "1" not in cache and b"1" not in cache
    cache[Colour.RED] = 3
    assert cache["red"] == 3 and type(list(cache)[-1]) is str


@given(st.dictionaries(
    st.one_of(st.text(), st.binary(), st.integers(), st.booleans(), st.none(),
              st.floats(allow_nan=False), st.tuples(st.integers(), st.text())),
    st.one_of(st.text(), st.binary(), st.integers(), st.floats(allow_nan=False), st.none()),
    max_size=40,
))  # fmt: skip
def test_any_dict_fits_as_it_is(content: dict[Any, Any]) -> None:
    with gbcache.Cache("1MB") as cache:
        cache.update(content)
        assert cache == content and len(cache) == len(content)
        cache.check()


# --- bytes ---------------------------------------------------------------------------------------


def test_the_budget_is_never_exceeded() -> None:
    limit = 400_000
    with gbcache.Cache(limit) as cache:
        for i in range(4000):
            cache[f"key-{i}"] = bytes(i * 7919 % 3000)
            if i % 50 == 0:
                memory = cache.memory()
                assert sum(memory.parts.values()) == memory.total <= limit
                assert cache.used_bytes <= limit
                cache.check()
        stats = cache.stats()
        assert stats.evictions > 0 and stats.entries == len(cache)
        assert all(steps <= BUILD["steps_max"] for steps in stats.max_steps.values()), stats


def test_long_values_flow_through(cache: gbcache.Cache) -> None:
    for i in range(60):
        value = os.urandom(1) * (70_000 + 1009 * i)
        cache[i % 13] = value
        assert cache[i % 13] == value
        cache.check()
    text = "y" * 150_000
    cache["text"] = text
    assert cache["text"] == text
    cache["list"] = list(range(30_000))
    assert cache["list"] == list(range(30_000))


def test_a_value_that_can_never_fit(cache: gbcache.Cache) -> None:
    cache["k"] = "old"
    for value in (b"x" * 1_000_001, "x" * 2_000_000, "ü" * 600_000, b"x" * 995_000):
        with pytest.raises(gbcache.BudgetError, match="never fit"):
            cache["k"] = value
        assert cache["k"] == "old"
    assert cache.stats().rejects == 4


def test_one_value_may_take_nearly_everything(cache: gbcache.Cache) -> None:
    for i in range(100):
        cache[i] = bytes(1000)
    big = bytes(range(256)) * 3600
    cache["big"] = big
    assert cache["big"] == big
    cache["big"] = big[::-1]
    assert cache["big"] == big[::-1]


def test_max_entries() -> None:
    with gbcache.Cache("1MB", max_entries=3) as cache:
        for i in range(10):
            cache[i] = i
            cache.check()
        assert list(cache) == [7, 8, 9] and cache.stats().evictions == 7
        cache[7], cache.__setitem__(8, 80)
        cache[10] = 10
        assert list(cache) == [7, 8, 10]
        cache.resize("1MB", max_entries=2)
        assert list(cache) == [8, 10] and cache.max_entries == 2


def test_resize_keeps_the_most_recent() -> None:
    with gbcache.Cache("2MB") as cache:
        for i in range(3000):
            cache[i] = bytes(500)
        held = list(cache)
        cache.resize("500kB")
        cache.check()
        kept = list(cache)
        assert kept == held[-len(kept) :] and len(kept) > 500 and cache.memory().total == 500_000
        cache.resize("8MiB")
        cache.check()
        assert list(cache) == kept and cache.max_bytes == 8 * 2**20
        for i in range(10_000):
            cache[i] = bytes(600)
        assert len(cache) > 9_000
        for size in (smallest(), "1MB", smallest() + 8, "3MB"):
            cache.resize(size)
            cache.check()
            cache["x"] = 1
            assert cache["x"] == 1


def test_the_smallest_image_works() -> None:
    with gbcache.Cache(smallest()) as cache:
        for i in range(3000):
            cache[i % 700] = bytes(i % 300)
        cache.check()
        assert len(cache) > 5


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, "1kB", -5, "", "x", "12 parsecs", "-1MB", 2**60])
def test_bad_sizes(size: Any) -> None:
    with pytest.raises(ValueError, match="max_bytes") as caught:
        gbcache.Cache(size)
    if size in (0, 1, 1000, "1kB"):
        assert str(smallest()) in str(caught.value)


@pytest.mark.parametrize("size", [None, 1.5, True, [], b"1MB"])
def test_sizes_of_a_wrong_type(size: Any) -> None:
    with pytest.raises(TypeError, match="max_bytes"):
        gbcache.Cache(size)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_entries": 0}, ValueError),
        ({"max_entries": -1}, ValueError),
        ({"max_entries": 1.5}, TypeError),
        ({"max_entries": True}, TypeError),
        ({"jitter": 2}, ValueError),
        ({"jitter": -0.1}, ValueError),
        ({"jitter": float("nan")}, ValueError),
        ({"jitter": "x"}, TypeError),
        ({"idle": 0}, ValueError),
        ({"idle": 2**33}, ValueError),
        ({"codec": "json"}, ValueError),
        ({"codec": 5}, TypeError),
        ({"clock": 5}, TypeError),
        ({"frobnicate": 5}, TypeError),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        gbcache.Cache("1MB", **options)


class Odd:
    pass


@pytest.mark.parametrize("key", [[], {}, set(), Odd(), bytearray(b"x"), (1, []), 1j])
def test_unsupported_keys(cache: gbcache.Cache, key: Any) -> None:
    for use in (cache.get, cache.__getitem__, cache.__delitem__, cache.__contains__, cache.peek,
                cache.pop, cache.ttl, cache.touch, cache.incr, cache.entry,
                lambda k: cache.set(k, 1), lambda k: cache.get_many([k]),
                lambda k: cache.delete_many([k])):  # fmt: skip
        with pytest.raises(TypeError, match="key cannot be a"):
            use(key)


def test_nan_is_no_key(cache: gbcache.Cache) -> None:
    for key in (float("nan"), (1, float("nan"))):
        with pytest.raises(ValueError, match="NaN"):
            cache[key] = 1


def test_keys_that_are_too_long(cache: gbcache.Cache) -> None:
    cache["x" * KEY_MAX] = 1
    assert cache["x" * KEY_MAX] == 1
    with pytest.raises(ValueError, match=str(KEY_MAX)):
        cache["x" * (KEY_MAX + 1)] = 1
    with pytest.raises(ValueError, match=str(KEY_MAX)):
        cache.incr(b"x" * 100_000)
    for absent in ("x" * (KEY_MAX + 1), b"y" * 10**6):
        assert cache.get(absent) is None and absent not in cache and cache.pop(absent, 7) == 7
        assert cache.get_many([absent, "a"]) == {} and cache.delete_many([absent]) == 0
        assert cache.touch(absent) is False


def test_unsupported_values_leave_the_old(cache: gbcache.Cache) -> None:
    cache["k"] = 1
    for value in (Odd(), [1, Odd()], {"a": {Odd()}}, enum.IntEnum("E", "A").A, lambda: 0):
        with pytest.raises(TypeError, match="pickle"):
            cache["k"] = value
        assert cache["k"] == 1


# --- life ----------------------------------------------------------------------------------------


def test_closed_is_closed() -> None:
    cache = gbcache.Cache("1MB")
    cache["k"] = 1
    cache.close()
    cache.close()
    assert cache.closed and "closed" in repr(cache)
    for use in (lambda: cache["k"], lambda: cache.get("k"), lambda: cache.set("k", 1), lambda: len(cache),
                lambda: "k" in cache, lambda: list(cache), lambda: cache.clear(), cache.stats,
                cache.memory, cache.check, cache.expire, lambda: cache.get_many(["k"]),
                lambda: cache.get_many([]), lambda: cache.delete_many(["k"]), cache.popitem,
                lambda: cache.incr("k"), lambda: cache.touch("k"), lambda: cache.ttl("k"),
                lambda: cache.resize("2MB"), lambda: cache.setdefault("k"), lambda: cache.peek("k"),
                lambda: cache.set("k", b"x" * 10**6), lambda: cache.used_bytes):  # fmt: skip
        with pytest.raises(gbcache.ClosedError, match="closed"):
            use()


def test_never_initialised() -> None:
    class Forgetful(gbcache.Cache):
        def __init__(self) -> None:
            pass

    for make in (lambda: gbcache.Cache.__new__(gbcache.Cache), Forgetful):
        cache = make()
        for use in (lambda c=cache: c["k"], lambda c=cache: c.set("k", 1), lambda c=cache: len(c),
                    lambda c=cache: c.stats(), lambda c=cache: list(c)):  # fmt: skip
            with pytest.raises(gbcache.ClosedError, match="super"):
                use()
        cache.close()


def test_initialised_twice() -> None:
    cache = gbcache.Cache("1MB")
    cache["k"] = 1
    with pytest.raises(RuntimeError, match="already"):
        cache.__init__("1MB")
    assert cache["k"] == 1
    cache.close()
    with pytest.raises(RuntimeError, match="already"):
        cache.__init__("1MB")


def test_a_failed_init_leaves_nothing() -> None:
    cache = gbcache.Cache.__new__(gbcache.Cache)
    with pytest.raises(ValueError):
        cache.__init__("1MB", ttl=-1)
    with pytest.raises(gbcache.ClosedError):
        cache["k"]
    cache.__init__("1MB")
    cache["k"] = 1
    cache.close()


def test_caches_are_collected() -> None:
    class Own(gbcache.Cache):
        pass

    cache = Own("1MB", ttl=5)
    cache["k"] = 1
    cache.me = cache
    seen = weakref.ref(cache)
    del cache
    gc.collect()
    assert seen() is None


def test_an_iterator_outlives_close(cache: gbcache.Cache) -> None:
    cache.update({1: 1, 2: 2})
    walk = iter(cache.items())
    next(walk)
    cache.close()
    with pytest.raises(gbcache.ClosedError):
        next(walk)


def test_references_do_not_drift(cache: gbcache.Cache) -> None:
    key, value, default = "a key" * 3, b"value" * 9, object()

    def use() -> None:
        for _ in range(50):
            cache[key] = value
            cache.get(key, default), cache.get("none", default), cache[key]
            cache.get_many([key, "none"]), cache.peek(key), key in cache
            cache.set(key, [key], ttl=5), cache.pop(key, default), cache.pop(key, default)
            list(cache.items()), cache.add((1, key), value), cache.setdefault(key, value)
            for bad in (lambda: cache[[]], lambda: cache.set(key, default), lambda: cache["none"]):
                with pytest.raises((TypeError, KeyError)):
                    bad()

    use()
    before = [sys.getrefcount(x) for x in (key, value, default)]
    use()
    assert [sys.getrefcount(x) for x in (key, value, default)] == before


# --- bugs that were found ------------------------------------------------------------------------


def test_a_deadline_right_after_the_start() -> None:
    """The coarse clock lags: before it reached the image's time 0, everything seemed due."""
    for _ in range(200):
        with gbcache.Cache("100kB", ttl=5) as cache:
            cache["k"] = 1
            assert cache.get("k") == 1


def test_colliding_keys_stay_cheap() -> None:
    """Keys made to collide in a table without a seed: low bits equal, high bits equal, long runs."""
    with gbcache.Cache("16MB") as cache:
        for i in range(20_000):
            cache[i << 32] = 1
            cache[f"{i:08d}" + "0" * 40] = 1
            cache[b"\0" * 8 + i.to_bytes(8, "big")] = 1
        for i in range(20_000):
            assert cache[i << 32] == cache[f"{i:08d}" + "0" * 40] == 1
        assert len(cache) == 60_000 and cache.stats().max_steps["get"] <= 16
        cache.check()


def test_the_most_steps_are_kept() -> None:
    with gbcache.Cache("1MB", max_entries=2) as cache:
        cache.update({"a": 1, "b": 2, "c": 3})
        assert 0 < max(cache.stats().max_steps.values()) <= 64
