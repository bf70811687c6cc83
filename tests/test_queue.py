"""ObjectStore's events: what each verb tells, and all of it against a dumb model."""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from queued import ALL, RECORDED, SHORT, Told, empty, listened, told

import gbcache
from gbcache import ObjectCache
from gbcache.events import Event, Kind

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
