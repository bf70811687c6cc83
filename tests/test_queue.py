"""What an ObjectStore records of its changes, and what its cursors make of it."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import random
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest

import gbcache
from gbcache import ObjectCache
from gbcache._object import ObjectStore, smallest
from gbcache.events import Event, Kind

RECORDED: list[Kind] = [
    kind for kind in Kind if kind is not Kind.LOST
]  # in the order of enum gb_event
ALL = (1 << len(RECORDED)) - 1
SHORT = os.environ.get("GB_SLICE") == "short"
Told = list[tuple[str, Any, Any, Any]]


def bits(*kinds: str) -> int:
    return sum(1 << RECORDED.index(Kind(kind)) for kind in kinds)


def told(cursor: Any, most: int = 1_000_000) -> Told:
    return [(str(e.kind), e.key, e.value, e.old) for e in cursor.pull(most)]


def listened(*args: Any, values: bool = True, room: int = 1000, **options: Any) -> Any:
    cache = ObjectCache(*args, **options)
    cache._listen(ALL, values, room)
    return cache, cache._cursor(None, ALL, None, True)


def empty(cache: Any) -> None:
    with pytest.raises(KeyError):
        cache.popitem()


class Thing:
    """Can be referred to weakly, and refer to anything."""

    def __init__(self, other: Any = None) -> None:
        self.other = other


# --- what each verb tells ------------------------------------------------------------------------


def _add(c: Any) -> None:
    assert not c.add("a", 9)
    assert c.add("n", 9)


VERBS: dict[str, tuple[Callable[[Any], Any], Told]] = {
    "set": (lambda c: c.set("n", 1), [("set", "n", 1, None)]),
    "[]=": (lambda c: c.__setitem__("n", None), [("set", "n", None, None)]),
    "replace": (lambda c: c.set("a", 9, ttl=5), [("replace", "a", 9, 1)]),
    "the same": (lambda c: c.set("a", 1), [("replace", "a", 1, 1)]),
    "add": (_add, [("set", "n", 9, None)]),
    "set_many": (
        lambda c: c.set_many({"a": 7, "n": 8}),
        [("replace", "a", 7, 1), ("set", "n", 8, None)],
    ),
    "update": (lambda c: c.update(n=1, b=2), [("set", "n", 1, None), ("replace", "b", 2, 2)]),
    "setdefault": (lambda c: (c.setdefault("a", 5), c.setdefault("n")), [("set", "n", None, None)]),
    "incr": (lambda c: c.incr("a", 4), [("replace", "a", 5, 1)]),
    "incr new": (lambda c: c.incr("n", 4, 3), [("set", "n", 7, None)]),
    "touch": (lambda c: c.touch("b", ttl=3), [("touch", "b", None, None)]),
    "touch again": (
        lambda c: (c.touch("a"), c.touch("a", ttl=9), c.touch("a", ttl=8), c.touch("n")),
        [("touch", "a", None, None)] * 3,
    ),
    "del": (lambda c: c.__delitem__("a"), [("delete", "a", None, 1)]),
    "delete_many": (
        lambda c: c.delete_many(["b", "n", "a"]),
        [("delete", "b", None, 2), ("delete", "a", None, 1)],
    ),
    "pop": (lambda c: (c.pop("b"), c.pop("n", 0)), [("delete", "b", None, 2)]),
    "popitem": (lambda c: c.popitem(), [("delete", "a", None, 1)]),
    "clear": (lambda c: c.clear(), [("clear", None, 2, None)]),
    "clear twice": (
        lambda c: (c.clear(), c.clear()),
        [("clear", None, 2, None), ("clear", None, 0, None)],
    ),
    "evict": (
        lambda c: c.update(m=3, n=4, o=5),
        [
            ("set", "m", 3, None),
            ("evict", "a", None, 1),
            ("set", "n", 4, None),
            ("evict", "b", None, 2),
            ("set", "o", 5, None),
        ],
    ),
    "resize": (
        lambda c: (c.get("a"), c.resize(1), c.resize(99)),
        [("evict", "b", None, 2)],
    ),
    "get_or_set": (
        lambda c: (c.get_or_set("n", lambda: 6), c.get_or_set("n", lambda: 7)),
        [("set", "n", 6, None)],
    ),
    "reads": (
        lambda c: (c["a"], c.get("n"), c.peek("a"), "a" in c, c.get_many("abn"), list(c.items()),
                   len(c), c.ttl("a"), c.entry("a"), c.expire(), c.resize(50), c.check(),
                   c.stats(), c.memory(), c.delete_many(["x"]), repr(c)),
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb(verb: str, values: bool) -> None:
    with ObjectCache(3) as cache:
        cache.update(a=1, b=2)
        cache._listen(ALL, values, 100)
        cursor = cache._cursor(None, ALL, None, True)
        call, want = VERBS[verb]
        call(cache)
        events = cursor.pull(100)
        got = [(str(e.kind), e.key, e.value, e.old) for e in events]
        if not values:
            want = [(k, key, v if k == "clear" else None, None) for k, key, v, _ in want]
        assert got == want
        assert [e.seq for e in events] == list(range(1, len(want) + 1))
        assert cache._seq() == len(want) and not cursor.pending()
        assert all(type(e) is Event and type(e.kind) is Kind for e in events)
        cache.check()


def test_reject() -> None:
    cache, cursor = listened(max_weight=10, weigh=lambda k, v: v)
    cache["k"] = 3
    with pytest.raises(gbcache.BudgetError):
        cache["k"] = 11
    cache["j"] = 9
    cache["j"] = 10
    assert told(cursor) == [
        ("set", "k", 3, None),
        ("reject", "k", 11, None),
        ("evict", "k", None, 3),
        ("set", "j", 9, None),
        ("replace", "j", 10, 9),
    ]


def test_the_key_told_is_the_key_held() -> None:
    cache, cursor = listened()
    cache[1] = "one"
    cache[1.0] = "uno"
    cache.touch(True)
    cache.pop(1.0)
    assert [type(e.key) for e in cursor.pull(9)] == [int] * 4


def test_expiry(clock: Any) -> None:
    cache, cursor = listened(10, clock=clock)

    def dead(*keys: str) -> None:
        cache.clear()
        for key in keys:
            cache.set(key, key.upper(), ttl=5)
        clock.pass_(6)
        told(cursor)

    gone = ("expire", "k", None, "K")
    see: dict[str, tuple[Callable[[], Any], Told]] = {
        "get": (lambda: cache.get("k"), [gone]),
        "get_many": (lambda: cache.get_many(["k"]), [gone]),
        "pop": (lambda: cache.pop("k", 0), [gone]),
        "delete": (lambda: cache.delete_many(["k"]), [gone]),
        "expire": (lambda: cache.expire(), [gone]),
        "set": (lambda: cache.set("k", 1), [gone, ("set", "k", 1, None)]),
        "add": (lambda: cache.add("k", 1), [gone, ("set", "k", 1, None)]),
        "incr": (lambda: cache.incr("k"), [gone, ("set", "k", 1, None)]),
        "popitem": (lambda: empty(cache), [gone]),
        "setdefault": (lambda: cache.setdefault("k", 1), [gone, ("set", "k", 1, None)]),
        "peek": (lambda: cache.peek("k"), []),
        "touch": (lambda: cache.touch("k"), [gone]),
        "clear": (lambda: cache.clear(), [("clear", None, 1, None)]),
    }
    for name, (call, want) in see.items():
        dead("k")
        call()
        assert told(cursor) == want, name
    dead(*"abcdefghij")
    assert cache.expire() == 10
    assert sorted(told(cursor)) == [("expire", k, None, k.upper()) for k in "abcdefghij"]
    cache.check()


def test_kept_beyond_its_deadline(clock: Any) -> None:
    cache, cursor = listened(10, clock=clock)

    def stale() -> None:
        cache.clear()
        assert cache._land("k", "old", 5, bytearray(1), 60_000)
        clock.pass_(6)
        assert cache.get("k") is None and cache._stale("k", None, True) == "old"
        assert told(cursor)[-1] == ("set", "k", "old", None)

    gone = ("expire", "k", None, "old")
    see: dict[str, tuple[Callable[[], Any], Told]] = {
        "set": (lambda: cache.set("k", "new"), [("replace", "k", "new", "old")]),
        "add": (lambda: cache.add("k", "new"), [("replace", "k", "new", "old")]),
        "incr": (lambda: cache.incr("k"), [("replace", "k", 1, "old")]),
        "delete": (lambda: cache.delete_many(["k"]), [gone]),
        "pop": (lambda: cache.pop("k", 0), [gone]),
        "popitem": (lambda: empty(cache), [gone]),
        "touch": (lambda: cache.touch("k"), []),
        "expire": (lambda: cache.expire(), []),
        "the hard end": (lambda: (clock.pass_(60), cache.expire()), [gone]),
    }
    for name, (call, want) in see.items():
        stale()
        call()
        assert told(cursor) == want, name


def test_the_housekeeper_tells() -> None:
    cache, cursor = listened()
    cache.set("k", 1, ttl=0.02)
    until = time.monotonic() + 5
    while cache._seq() < 2 and time.monotonic() < until:
        time.sleep(0.005)
    assert told(cursor) == [("set", "k", 1, None), ("expire", "k", None, 1)]


def test_when(clock: Any) -> None:
    cache, cursor = listened()
    before = time.time()
    cache["k"] = 1
    (event,) = cursor.pull(9)
    assert before - 0.1 < event.at < time.time() + 0.1
    cache, cursor = listened(clock=clock)
    cache["k"] = 1
    clock.pass_(2.5)
    cache["k"] = 2
    assert [e.at for e in cursor.pull(9)] == [1000.0, 1002.5]


# --- against a dumb model ------------------------------------------------------------------------


class Model:
    """An LRU of some entries, and everything it ever told."""

    def __init__(self, most: int) -> None:
        self.most, self.held, self.log = most, OrderedDict[Any, Any](), Told()

    def tell(self, *what: Any) -> None:
        self.log.append(what)

    def set(self, key: Any, value: Any) -> None:
        if key in self.held:
            self.tell("replace", key, value, self.held[key])
        else:
            self.shrink(self.most - 1)
            self.tell("set", key, value, None)
        self.held[key] = value
        self.held.move_to_end(key)

    def shrink(self, most: int) -> None:
        while len(self.held) > most:
            key, value = self.held.popitem(last=False)
            self.tell("evict", key, None, value)

    def delete(self, key: Any) -> None:
        if key in self.held:
            self.tell("delete", key, None, self.held.pop(key))


class Reader:
    """A cursor, and what it should say of the model's log."""

    def __init__(
        self, cache: Any, model: Model, since: int | None, kinds: int, prefix: Any
    ) -> None:
        self.cursor = cache._cursor(since, kinds, prefix, True)
        self.model, self.kinds, self.prefix = model, kinds, prefix
        self.at = len(model.log) if since is None else since
        self.seen = self.lost = self.passed = 0

    def passes(self, kind: str, key: Any) -> bool:
        if not self.kinds >> RECORDED.index(Kind(kind)) & 1:
            return False
        if self.prefix is None or kind == "clear":
            return True
        return type(key) is type(self.prefix) and key.startswith(self.prefix)

    def pull(self, most: int, room: int) -> None:
        log, want = self.model.log, []
        assert self.cursor.pending() == (self.at < len(log))
        while len(want) < most and self.at < len(log):
            first = max(0, len(log) - room)
            if self.at < first:
                want.append((first, "lost", None, first - self.at, None))
                self.lost += first - self.at
                self.at = first
                continue
            kind, key, value, old = log[self.at]
            self.at += 1
            if self.passes(kind, key):
                want.append((self.at, kind, key, value, old))
                self.seen += 1
            else:
                self.passed += 1
        got = [(e.seq, str(e.kind), e.key, e.value, e.old) for e in self.cursor.pull(most)]
        assert got == want


KEYS = ["a", "ab", "abc", "b", "\xe9t\xe9", "\u20ac", b"a", b"ab", 1, 2, ("a",), None]


@pytest.mark.parametrize("room", [1, 7, 64, 3000])
@pytest.mark.parametrize("seed", range(2 if SHORT else 5))
def test_random_operations(seed: int, room: int) -> None:
    dice = random.Random(seed)
    cache, model = ObjectCache(5), Model(5)
    cache._listen(ALL, True, room)
    readers: list[Reader] = []
    for n in range(800 if SHORT else 3000):
        key, value = dice.choice(KEYS), n
        act = dice.randrange(16)
        if act < 6:
            cache[key] = value
            model.set(key, value)
        elif act == 6:
            assert cache.add(key, value) == (key not in model.held)
            if key not in model.held:
                model.set(key, value)
        elif act == 7:
            cache.delete_many([key])
            model.delete(key)
        elif act == 8:
            assert cache.pop(key, None) == model.held.get(key)
            model.delete(key)
        elif act == 9:
            assert cache.incr(key) == model.held.get(key, 0) + 1
            model.set(key, model.held.get(key, 0) + 1)
        elif act == 10:
            if cache.touch(key, ttl=dice.choice([None, 1000, 10**7])):
                model.held.move_to_end(key)
                model.tell("touch", key, None, None)
        elif act == 11:
            assert cache.get(key) == model.held.get(key)
            if key in model.held:
                model.held.move_to_end(key)
        elif act == 12:
            many = {dice.choice(KEYS): n + i for i in range(3)}
            cache.set_many(many)
            for k, v in many.items():
                model.set(k, v)
        elif act == 13 and dice.random() < 0.2:
            model.tell("clear", None, len(model.held), None)
            model.held.clear()
            cache.clear()
        elif act == 14 and dice.random() < 0.3:
            model.most = dice.choice([2, 5, 9])
            cache.resize(model.most)
            model.shrink(model.most)
        elif act == 15 and model.held:
            assert cache.popitem() == next(iter(model.held.items()))
            model.delete(next(iter(model.held)))
        assert cache._seq() == len(model.log) and list(cache) == list(model.held)
        if len(readers) < 6 and dice.random() < 0.05:
            since = dice.choice([None, 0, dice.randrange(len(model.log) + 1)])
            kinds = dice.choice([ALL, ALL, dice.randrange(ALL + 1)])
            prefix = dice.choice([None, "", "a", "ab", "\xe9", "\u20ac", b"", b"a"])
            readers.append(Reader(cache, model, since, kinds, prefix))
        for reader in readers:
            if dice.random() < 0.1:
                reader.pull(dice.choice([0, 1, 3, 1000]), room)
        if readers and dice.random() < 0.01:
            readers.pop(dice.randrange(len(readers)))
        if n % 50 == 0:
            cache.check()
    cache.close()
    for reader in readers:
        start = reader.at - reader.seen - reader.lost - reader.passed
        reader.pull(10**6, room)
        reader.pull(10**6, room)
        assert start + reader.seen + reader.lost + reader.passed == len(model.log)


@pytest.mark.parametrize("seed", range(2 if SHORT else 5))
def test_a_mirror_with_deadlines(seed: int, clock: Any) -> None:
    """Replaying the events gives the cache's state after each step, whatever expires when."""
    dice = random.Random(seed)
    cache, cursor = listened(20, clock=clock, room=100)
    mirror: dict[Any, Any] = {}
    ends: dict[Any, float] = {}
    for n in range(1000 if SHORT else 4000):
        key, ttl = dice.randrange(40), dice.choice([None, 0.5, 2, 2, 30])
        kept = 0.0
        act = dice.randrange(12)
        if act < 4:
            cache.set(key, n, ttl=ttl)
        elif act == 4:
            cache.add(key, n)
        elif act == 5:
            kept = dice.choice([0.0, 1.0, 5.0])
            cache._land(key, n, ttl, bytearray(1), int(kept * 1000))
        elif act == 6:
            cache.pop(key, None)
        elif act == 7:
            cache.incr(key)
        elif act == 8:
            cache.get(key)
        elif act == 9:
            clock.pass_(dice.choice([0.01, 0.3, 1]))
        elif act == 10 and dice.random() < 0.2:
            cache.expire()
        elif act == 11 and dice.random() < 0.02:
            cache.clear()
        for e in cursor.pull(1000):
            if e.kind is Kind.SET:
                assert e.key not in mirror
                mirror[e.key] = e.value
            elif e.kind is Kind.REPLACE:
                assert mirror[e.key] == e.old
                mirror[e.key] = e.value
            elif e.kind is Kind.CLEAR:
                assert e.value == len(mirror)
                mirror.clear()
            else:
                assert e.kind in (Kind.EXPIRE, Kind.DELETE, Kind.EVICT)
                assert mirror.pop(e.key) == e.old
                assert (e.kind is Kind.EXPIRE) <= (e.key in ends)
            if e.kind in (Kind.SET, Kind.REPLACE) and act < 6:
                ends.pop(e.key, None)
                if ttl is not None and act != 4:
                    ends[e.key] = clock.now + ttl
            if e.kind is Kind.EXPIRE:
                assert ends[e.key] <= clock.now + 0.001 and ends.pop(e.key)
        assert len(cache) == len(mirror)
        for k, v in cache.items():
            assert mirror[k] == v
    cache.check()


def test_threads() -> None:
    """Each thread's changes of a key are told in order, and all of them lead to what is there."""
    cache, cursor = listened(50, room=200_000)
    each = 2000 if SHORT else 10_000

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for i in range(each):
            key = dice.randrange(100)
            if i % 3:
                cache[key] = (seed, i)
            else:
                cache.pop(key, None)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    mirror: dict[int, Any] = {}
    last, seq = dict.fromkeys(range(4), -1), 0
    while any(thread.is_alive() for thread in threads) or cursor.pending():
        for e in cursor.pull(500):
            seq += 1
            assert e.seq == seq
            if e.kind in (Kind.SET, Kind.REPLACE):
                assert mirror.get(e.key) == e.old
                mirror[e.key] = e.value
                assert e.value[1] > last[e.value[0]]
                last[e.value[0]] = e.value[1]
            else:
                assert mirror.pop(e.key) == e.old
    assert dict(cache.items()) == mirror and seq == cache._seq()
    cache.check()


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
        bells = [Bell(False, write) for _ in range(33)]
        for one in bells[:32]:
            cache._bells(ctypes.addressof(one), True)
        with pytest.raises(ValueError, match="32"):
            cache._bells(ctypes.addressof(bells[32]), True)
        cache._bells(ctypes.addressof(bells[5]), False)
        cache._bells(ctypes.addressof(bells[32]), True)
        cache.close()
    finally:
        os.close(read), os.close(write)
