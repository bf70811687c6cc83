"""What a cache tells: which event for which change, with what, to whom, and how much was lost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Clock
from heard import both, over, packed, pairs, told, until

import gbcache
from gbcache import OMITTED, Cache, Event, Kind, ObjectCache
from gbcache._packed import BUILD

usual = pytest.mark.skipif(
    BUILD["tiny"], reason="there a window, and so a record, is a quarter as long"
)

Act = Callable[[Any], Any]
EXPIRED = [("expire", "due"), ("set", "due")]

# --- one change, one event -----------------------------------------------------------------------

# In a cache that holds k=1, n=5 and "due", which is past its deadline and was not seen since.
CHANGES: dict[str, tuple[Act, list[tuple[str, Any]]]] = {
    "set": (lambda c: c.set("a", 1), [("set", "a")]),
    "[] =": (lambda c: c.__setitem__("a", 1), [("set", "a")]),
    "set over": (lambda c: c.set("k", 2), [("replace", "k")]),
    "set the same": (lambda c: c.set("k", 1), [("replace", "k")]),
    "set over due": (lambda c: c.set("due", 2), EXPIRED),
    "add": (lambda c: c.add("a", 1), [("set", "a")]),
    "add there": (lambda c: c.add("k", 2), []),
    "add over due": (lambda c: c.add("due", 2), EXPIRED),
    "setdefault": (lambda c: c.setdefault("a", 1), [("set", "a")]),
    "setdefault there": (lambda c: c.setdefault("k", 2), []),
    "setdefault over due": (lambda c: c.setdefault("due", 2), EXPIRED),
    "update": (lambda c: c.update({"a": 1, "k": 2}, b=3), [("set", "a"), ("replace", "k"), ("set", "b")]),
    "set_many": (lambda c: c.set_many([("a", 1), ("a", 2)], ttl=9), [("set", "a"), ("replace", "a")]),
    "set_many over due": (lambda c: c.set_many({"due": 1}), EXPIRED),
    "incr": (lambda c: c.incr("n"), [("replace", "n")]),
    "incr new": (lambda c: c.incr("a"), [("set", "a")]),
    "incr over due": (lambda c: c.incr("due"), EXPIRED),
    "incr by 0": (lambda c: c.incr("n", 0), [("replace", "n")]),
    "touch": (lambda c: c.touch("k"), [("touch", "k")]),
    "touch ttl": (lambda c: c.touch("k", ttl=30), [("touch", "k")]),
    "touch absent": (lambda c: c.touch("a"), []),
    "touch due": (lambda c: c.touch("due"), [("expire", "due")]),
    "del": (lambda c: c.__delitem__("k"), [("delete", "k")]),
    "del absent": (lambda c: c.pop("a", 0), []),
    "pop": (lambda c: c.pop("k"), [("delete", "k")]),
    "pop due": (lambda c: c.pop("due", 0), [("expire", "due")]),
    "popitem": (lambda c: c.popitem(), [("delete", "k")]),
    "delete_many": (lambda c: c.delete_many(["k", "a", "n", "k"]), [("delete", "k"), ("delete", "n")]),
    "delete_many due": (lambda c: c.delete_many(["due"]), [("expire", "due")]),
    "get": (lambda c: (c.get("k"), c["k"], c.get("a")), []),
    "get due": (lambda c: c.get("due"), [("expire", "due")]),
    "get_many due": (lambda c: c.get_many(["k", "due"]), [("expire", "due")]),
    "only looking": (lambda c: ("due" in c, c.peek("due"), list(c.items()), c.stats(), len(c)), []),
    "expire": (lambda c: c.expire(), [("expire", "due")]),
    "clear": (lambda c: c.clear(), [("clear", None)]),
    "get_or_set": (lambda c: c.get_or_set("a", lambda: 1), [("set", "a")]),
    "get_or_set there": (lambda c: c.get_or_set("k", lambda: 1), []),
    "get_or_set over due": (lambda c: c.get_or_set("due", lambda: 1), EXPIRED),
    "get_or_set voided": (lambda c: c.get_or_set("a", lambda: c.set("a", 7) or 1), [("set", "a")]),
    "get_or_set fails": (lambda c: gbcache_raises(lambda: c.get_or_set("a", lambda: 1 / 0)), []),
    "a bad value": (lambda c: gbcache_raises(lambda: c.set("a", 1, ttl=-1)), []),
}  # fmt: skip


def gbcache_raises(call: Callable[[], Any]) -> None:
    with pytest.raises((ZeroDivisionError, ValueError)):
        call()


def furnished(make: Any, clock: Clock, **options: Any) -> Any:
    cache = make(clock=clock, **options)
    cache["k"], cache["n"] = 1, 5
    cache.set("due", 0, ttl=5)
    clock.pass_(10)
    return cache


@both
@pytest.mark.parametrize("change", CHANGES)
def test_one_change_is_one_event(make: Any, change: str, clock: Clock) -> None:
    do, want = CHANGES[change]
    cache = furnished(make, clock)
    with cache.watch() as watch:
        do(cache)
        events = told(watch)
        assert pairs(events) == want
        assert [e.seq for e in events] == list(range(1, len(want) + 1))
        assert all(type(e) is Event and type(e.kind) is Kind and e.at == clock.now for e in events)


@both
def test_a_clear_says_how_many(make: Any) -> None:
    cache = make()
    cache.update((i, i) for i in range(77))
    with cache.watch(kinds="clear", prefix="x") as watch:
        cache.clear()
        cache.clear()
        assert [(e.key, e.value, e.old) for e in told(watch)] == [(None, 77, None), (None, 0, None)]


@both
def test_max_entries_evicts_the_oldest_first(make: Any) -> None:
    cache = make(max_entries=3)
    cache.update((i, i) for i in range(3))
    cache.get(0)
    with cache.watch() as watch:
        cache[3], cache[4] = 3, 4
        got = pairs(told(watch))
    assert [p for p in got if p[0] == "evict"] == [("evict", 1), ("evict", 2)]
    assert [p for p in got if p[0] == "set"] == [("set", 3), ("set", 4)] and len(got) == 4


@both
def test_a_smaller_bound_tells_of_each_it_evicts(make: Any) -> None:
    cache = make(max_entries=10)
    cache.update((i, i) for i in range(10))
    with cache.watch() as watch:
        cache.resize(**({"max_bytes": "1MB"} if make is packed else {}), max_entries=4)
        assert pairs(told(watch)) == [("evict", i) for i in range(6)]


def test_a_smaller_budget_tells_of_each_it_evicts() -> None:
    with Cache("4MB", events="2MiB") as cache, cache.watch(kinds="evict") as watch:
        cache.update((i, b"x" * 1000) for i in range(1500))
        cache.resize("2500kB")
        cache.check()
        gone = [e.key for e in told(watch)]
        assert gone == sorted(gone) and set(gone) | set(cache) == set(range(1500))
        assert len(gone) + len(cache) == 1500


def test_a_full_budget_tells_of_each_it_evicts() -> None:
    with Cache("400kB", events="100kB") as cache, cache.watch() as watch:
        for i in range(400):
            cache[i] = b"x" * 2000
        events = told(watch)
        gone = [e.key for e in events if e.kind == "evict"]
        assert len(gone) == len(set(gone)) == cache.stats().evictions > 200
        assert set(gone).isdisjoint(cache) and len(gone) + len(cache) == 400


def test_a_value_that_can_never_fit_is_rejected() -> None:
    with Cache("100kB") as cache, cache.watch(values=True) as watch:
        cache["k"] = "old"
        assert over(lambda: cache.set("k", b"x" * 200_000))
        assert pairs(told(watch)) == [("set", "k"), ("reject", "k")] and cache["k"] == "old"


@pytest.mark.skipif(not hasattr(ObjectCache, "_cursor"), reason="not yet")
def test_a_weight_that_can_never_fit_is_rejected() -> None:
    with ObjectCache(max_weight=5, weigh=lambda k, v: v) as cache, cache.watch() as watch:
        cache["k"] = 2
        assert over(lambda: cache.set("k", 6))
        assert pairs(told(watch)) == [("set", "k"), ("reject", "k")] and cache["k"] == 2


@both
def test_the_housekeeper_tells_without_traffic(make: Any) -> None:
    cache = make(size="4MB", room=8000)
    with cache.watch(kinds="expire") as watch:
        cache.set_many({i: i for i in range(2000)}, ttl=0.03)
        got: list[Event] = []
        assert until(lambda: got.extend(watch.read(timeout=0.2)) or len(got) >= 2000)
        assert sorted(e.key for e in got) == list(range(2000))


@both
def test_a_stale_value_expires_at_its_hard_end_only(make: Any, clock: Clock) -> None:
    cache = make(clock=clock)
    with cache.watch(values=True) as watch:
        cache.get_or_set("k", lambda: 1, ttl=5, stale=10)
        clock.pass_(7)
        assert cache.get("k") is None
        cache.expire()
        assert cache.get_or_set("k", lambda: 2, ttl=5, stale=10) == 2
        clock.pass_(16)
        cache.expire()
        got = [(str(e.kind), e.value, e.old) for e in told(watch)]
    assert got == [("set", 1, None), ("replace", 2, 1), ("expire", None, 2)]


@both
def test_memoized_results_are_changes_too(make: Any) -> None:
    cache = make()
    with cache.watch(values=True) as watch:
        double = gbcache.memoize(cache=cache)(lambda n: n * 2)
        assert [double(1), double(1), double(2)] == [2, 2, 4]
        assert [(str(e.kind), e.value) for e in told(watch)] == [("set", 2), ("set", 4)]


@both
def test_idle_entries_expire_by_event(make: Any, clock: Clock) -> None:
    cache = make(clock=clock, idle=10)
    with cache.watch() as watch:
        cache["k"] = 1
        clock.pass_(9)
        cache.get("k")
        clock.pass_(9)
        assert cache.expire() == 0
        clock.pass_(2)
        cache.expire()
        assert pairs(told(watch)) == [("set", "k"), ("expire", "k")]


# --- what an event carries -----------------------------------------------------------------------


@both
def test_values_come_on_request_alone(make: Any, clock: Clock) -> None:
    cache = make(clock=clock, max_entries=2)
    with cache.watch(values=True) as full, cache.watch() as bare:
        cache["k"] = [1, "two"]
        cache["k"] = 2.5
        cache.touch("k")
        cache["j"], cache["i"] = None, b"i"
        del cache["j"]
        cache.set("i", True, ttl=1)
        clock.pass_(2)
        cache.expire()
        got = {(str(e.kind), e.key): (e.value, e.old) for e in told(full)}
        assert all(e.value is None is e.old for e in told(bare))
    assert got == {
        ("set", "k"): ([1, "two"], None), ("replace", "k"): (2.5, [1, "two"]), ("touch", "k"): (None, None),
        ("set", "j"): (None, None), ("evict", "k"): (None, 2.5), ("set", "i"): (b"i", None),
        ("delete", "j"): (None, None), ("replace", "i"): (True, b"i"), ("expire", "i"): (None, True),
    }  # fmt: skip
    assert got["expire", "i"][1] is True


@usual
def test_a_value_above_8_kB_is_omitted_a_chained_one_below_comes() -> None:
    with Cache("4MB", events="1MiB") as cache, cache.watch(values=True) as watch:
        values = ["a" * 8_000, b"b" * 4_000, "c" * 8_200, list(range(2000)), b"d" * 300_000, "e"]
        for value in values:
            cache["k"] = value
        del cache["k"]
        short = [OMITTED if len(v) in (8_200, 300_000) else v for v in values]
        want = [(new, old) for old, new in itertools.pairwise([None, *short, None])]
        assert [(e.value, e.old) for e in told(watch)] == want
        assert repr(OMITTED) == "gbcache.OMITTED"


@usual
def test_of_two_values_too_long_for_one_event_the_new_one_comes() -> None:
    with Cache("4MB", events="1MiB") as cache, cache.watch(values=True) as watch:
        cache["k"], cache["k"] = "a" * 8_000, "b" * 8_000
        assert [(e.value, e.old) for e in told(watch)][1] == ("b" * 8_000, OMITTED)


@usual
def test_what_is_evicted_is_told_whole() -> None:
    with Cache("400kB", events="128KiB") as cache, cache.watch(kinds="evict", values=True) as watch:
        old: dict[Any, Any] = {}
        for i in range(100):
            cache[i] = bytes([i]) * (7_000 + i)
            old.update((e.key, e.old) for e in told(watch))
        assert old == {i: bytes([i]) * (7_000 + i) for i in range(100) if i not in cache}
        assert len(old) > 50


KEYS = [
    "user:1",
    "user",
    "us",
    b"user:1",
    b"user:2",
    "",
    b"",
    5,
    2.5,
    None,
    ("user:1", 2),
    "\udcff",
]


@both
def test_any_key_comes_back_as_it_is(make: Any) -> None:
    cache = make()
    with cache.watch() as watch:
        cache.update((k, 1) for k in KEYS)
        assert [(type(e.key), e.key) for e in told(watch)] == [(type(k), k) for k in KEYS]


@both
@pytest.mark.parametrize(
    "prefix", ["user", "user:1", "", b"user", b"user:2", b"", "\udcff", "nobody"]
)
def test_a_prefix_is_of_its_own_type(make: Any, prefix: Any) -> None:
    cache = make()
    with cache.watch(prefix=prefix) as watch:
        cache.update((k, 1) for k in KEYS)
        want = [k for k in KEYS if type(k) is type(prefix) and k.startswith(prefix)]
        assert [e.key for e in told(watch)] == want


@both
def test_kinds_are_kinds_or_words(make: Any) -> None:
    cache = make()
    for kinds in (Kind.SET, "set", ["set"], (Kind.SET,), {"set", "lost"}, iter(["set"])):
        with cache.watch(kinds=kinds) as watch:
            cache.pop("k", None)
            cache["k"] = 1
            cache["k"] = 2
            assert pairs(told(watch)) == [("set", "k")]


@both
@pytest.mark.parametrize("way", ["watch", "subscribe", "changes"])
def test_what_is_asked_wrongly_is_refused_by_name(make: Any, way: str) -> None:
    cache = make()
    ask = {"subscribe": lambda **o: cache.subscribe(print, **o)}.get(way) or getattr(cache, way)
    for kinds in ("sett", ["set", "sett"], [7]):
        with pytest.raises(ValueError, match=r"sett|7"):
            ask(kinds=kinds)
    for kinds in ([], "lost"):
        with pytest.raises(ValueError, match="kinds"):
            ask(kinds=kinds)
    for prefix in (5, ("a",), bytearray(b"a")):
        with pytest.raises(TypeError, match="prefix"):
            ask(prefix=prefix)
    if way == "subscribe":
        with pytest.raises(TypeError, match="callable"):
            cache.subscribe(5)
        with pytest.raises(ValueError, match="delivery"):
            cache.subscribe(print, delivery="pigeon")
        with pytest.raises(RuntimeError):
            cache.subscribe(print, delivery="asyncio")  # no loop is running
    if way == "watch":
        with cache.watch() as watch, pytest.raises(ValueError, match="most"):
            watch.read(0)
    cache["k"] = 1
    assert cache._seq() == 0, "who was refused is not recorded for"


@both
def test_at_is_wall_time(make: Any) -> None:
    cache = make()
    with cache.watch() as watch:
        before = time.time()
        cache["k"] = 1
        assert before - 0.05 <= told(watch)[0].at <= time.time() + 0.05


@both
def test_at_is_the_clocks_time(make: Any, clock: Clock) -> None:
    cache = make(clock=clock, room=1000)
    for _ in range(5):
        cache.set("k", 1, ttl=50)
        clock.pass_(1.5)
    assert [e.at for e in cache.changes()] == [1000.0, 1001.5, 1003.0, 1004.5, 1006.0]
