"""More operations of `starve.py`: what is built on a cache, and codecs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fars
from starving import ABSENT, CASES, Work

import gbcache
from gbcache import Cache, ObjectCache, Tiered
from gbcache.codec import TypedCodec, decode_key, encode_key


class OnMemo(Work):
    """A memoized function: whatever failed, it answers right."""

    def __init__(self, root: Path, act: Callable[[Any], Any], **options: Any) -> None:
        super().__init__(root)
        calls = self.calls = []  # type: ignore[var-annotated]

        @gbcache.memoize(**options)
        def double(x: Any, *more: Any, by: int = 2) -> Any:
            calls.append(x)
            return x * by

        class Owner:
            @gbcache.memoize
            def name(self, n: int) -> int:
                return n + 1

        self.fn, self.owner, self._act = double, Owner(), act
        double(1), double(1, by=3), double("x"), self.owner.name(1)

    def act(self) -> None:
        self._act(self)

    def look(self, failed: bool) -> None:
        self.fn.cache.check()
        assert (
            self.fn(1) == 2 and self.fn(7) == 14 and self.fn("x") == "xx" and self.fn(1, by=3) == 3
        )
        assert self.owner.name(1) == 2 and self.owner.name(9) == 10
        info = self.fn.cache_info()
        assert info.currsize == len(self.fn.cache) and not self.fn.cache._flights
        self._act(self)

    def over(self) -> None:
        self.fn.cache.close()
        self.fn = self.owner = self._act = None


def memo(name: str, act: Callable[[Any], Any], **options: Any) -> None:
    CASES[f"memoize: {name}"] = lambda root: OnMemo(root, act, **options)


def memos() -> None:
    memo("hit", lambda w: w.fn(1))
    memo("miss", lambda w: w.fn(7), maxsize=3)
    memo("miss with names", lambda w: w.fn(7, 8, by=5), ttl=5, typed=True)
    memo("method", lambda w: (w.owner.name(1), w.owner.name(2)))
    memo("first call of an instance", lambda w: type(w.owner)().name(3))
    memo(
        "info",
        lambda w: (w.fn.cache_info(), w.fn.cache_parameters(), w.fn.cache_key(1), repr(w.fn)),
    )
    memo("invalidate", lambda w: w.fn.cache_invalidate(1))
    memo("clear", lambda w: w.fn.cache_clear())
    memo("decorate", lambda w: gbcache.memoize(lambda x: x)(5))
    memo("unhashable", lambda w: _type_error(w.fn))


def _type_error(fn: Any) -> None:
    try:
        fn([])
    except TypeError:
        return
    raise AssertionError("it took a list")


class Making(Work):
    """What makes something of nothing, and lets go of it."""

    allowed = (MemoryError, OSError, RuntimeError)  # ENOMEM; no lock, no thread to be had

    def __init__(self, root: Path, make: Callable[[Path], Any]) -> None:
        super().__init__(root)
        self.make, self.made = make, None

    def act(self) -> None:
        self.made = self.make(self.root)

    def look(self, failed: bool) -> None:
        if failed:
            assert self.made is None
            self.made = self.make(self.root)
        self.made.set("a", 1)
        assert self.made["a"] == 1
        self.made.check()

    def over(self) -> None:
        if self.made is not None:
            self.made.close()


def making(name: str, make: Callable[[Path], Any]) -> None:
    CASES[f"make: {name}"] = lambda root: Making(root, make)


def makings() -> None:
    making("Cache", lambda root: Cache("100kB", ttl=5, max_entries=9))
    making("Cache that records", lambda root: Cache("100kB", events="20kB", housekeeping=False))
    making("ObjectCache", lambda root: ObjectCache(100, ttl=5))
    making("ObjectCache that records", lambda root: ObjectCache(events=100))
    making("Cache, used and dropped", lambda root: (Cache("100kB").set("x", 1), Cache("100kB"))[1])


class Far(Work):
    """A `Tiered` before a dict: whatever failed, what it says is what the far side has."""

    allowed = (MemoryError, RuntimeError, gbcache.FarError)  # no thread; the far side's own failure

    def __init__(self, root: Path, act: Callable[[Any], Any], packed: bool, **options: Any) -> None:
        super().__init__(root)
        self.far, self.cut = fars.Telling(), False
        near: Any = (
            Cache("100kB", housekeeping=False) if packed else ObjectCache(100, housekeeping=False)
        )
        self.tier = Tiered(near, self.far, **options)
        side = self.tier._side
        if side.absent is not None:  # threading waits for ever for one that had no memory to begin
            side.absent.close()
            side.absent = ObjectCache(100, ttl=options["negative_ttl"], housekeeping=False)
        self.far.listener.restored()
        self._act, self.load = act, options.get("load")
        self.tier.update({"a": 1, "b": [2], "n": 5})
        self.tier.sync()
        self.far.put_many([("far", "there", None), ("also", 1, 50)])

    def act(self) -> None:
        self._act(self)

    def look(self, failed: bool) -> None:
        t = self.tier
        if self.cut:
            self.far.listener.lost()
            self.far.listener.restored()
        t.sync()
        t.near.check()
        assert not t.near._flights and not t._side._writing
        for key in ("a", "b", "n", "far", "also", "new", "new2"):
            far = self.far.data.get(key, (ABSENT,))[0]
            near = t.get(key, ABSENT)
            if self.load is not None and far is ABSENT:
                far = self.far.data.get(key, (ABSENT,))[0]
            assert near == far or near is far, (key, near, far)
        t["again"] = 1
        t.sync()
        assert t["again"] == 1 and self.far.data["again"][0] == 1
        self._act(self)

    def over(self) -> None:
        self.tier.close()
        assert self.far.closed


def far(name: str, act: Callable[[Any], Any], kinds: str = "po", **options: Any) -> None:
    for kind in kinds:
        title = f"Tiered {'Cache' if kind == 'p' else 'ObjectCache'}: {name}"
        CASES[title] = lambda root, kind=kind: Far(root, act, kind == "p", **options)  # type: ignore[misc]


KEYS, PAIR = ["a"], (77, None)
"""Made beforehand: what the far side itself lacks memory for is not told."""


def _changed(w: Any) -> None:
    """What a far side does that cannot even call: the channel is lost, and restored once there is memory."""
    w.far.data["a"] = PAIR
    w.cut = True
    w.far.listener.changed(KEYS)
    w.cut = False


def tiers() -> None:
    behind: dict[str, Any] = {"write": "behind", "behind_seconds": 0.01}
    far("get, near", lambda w: (w.tier.get("a"), w.tier["b"]))
    far("get, far", lambda w: (w.tier.get("far"), w.tier.get("none")))
    far(
        "get, absent remembered", lambda w: (w.tier.get("none"), w.tier.get("none")), negative_ttl=5
    )
    far("get, loaded", lambda w: w.tier.get("new"), load=lambda key: 8)
    far("set", lambda w: w.tier.set("new", [1], ttl=50))
    far("set over", lambda w: w.tier.set("a", 2))
    far("set_many", lambda w: w.tier.set_many({"new": 1, "a": 2, "new2": 3}))
    far("get_many", lambda w: w.tier.get_many(["a", "far", "none", "also"]))
    far("delete_many", lambda w: w.tier.delete_many(["a", "far", "none"]))
    far("pop", lambda w: (w.tier.pop("a", None), w.tier.pop("far", None)))
    far(
        "add, incr, touch",
        lambda w: (w.tier.add("new", 1), w.tier.incr("n"), w.tier.touch("b", ttl=9)),
    )
    far("setdefault", lambda w: w.tier.setdefault("new", 1))
    far("get_or_set", lambda w: w.tier.get_or_set("new", lambda: 4))
    far("iterate", lambda w: (list(w.tier), list(w.tier.items()), len(w.tier), "a" in w.tier))
    far("clear", lambda w: w.tier.clear())
    far("told", _changed)
    far("told of all", lambda w: (w.far.listener.lost(), w.far.listener.restored()))
    far("stats", lambda w: (w.tier.stats(), repr(w.tier)))
    far("set behind", lambda w: w.tier.set("new", 1), **behind)
    far("set_many behind", lambda w: w.tier.set_many({"new": [1], "a": 2, "new2": 3}), **behind)
    far("set and sync behind", lambda w: (w.tier.set("new", 1), w.tier.sync()), **behind)
    far("discard behind", lambda w: w.tier.discard("a"), **behind)
    far(
        "get behind",
        lambda w: (w.tier.set("new", 1), w.tier.near.clear(), w.tier.get("new")),
        **behind,
    )


VALUES: list[Any] = [
    b"b",
    "s",
    1,
    -(2**70),
    1.5,
    None,
    True,
    [1, [2]],
    (1, ("x",)),
    {"a": {1: (2,)}},
    {1, 2},
    frozenset("ab"),
]


class Coding(Work):
    def __init__(self, root: Path, value: Any, key: bool) -> None:
        super().__init__(root)
        self.value, self.key, self.codec, self.got = value, key, TypedCodec(), ABSENT

    def act(self) -> None:
        if self.key:
            self.got = decode_key(*encode_key(self.value))
        else:
            self.got = self.codec.decode(self.codec.encode(self.value))

    def look(self, failed: bool) -> None:
        if not failed:
            assert self.got == self.value
        self.act()
        assert self.got == self.value
        assert self.key or type(self.got) is type(self.value)


def codecs() -> None:
    from datetime import date, datetime, time, timedelta, timezone
    from decimal import Decimal
    from uuid import UUID

    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    standard = [
        now,
        date(2026, 1, 2),
        time(1, 2),
        timedelta(1, 2),
        Decimal("1.5"),
        UUID(int=5),
        bytearray(b"x"),
    ]
    for i, value in enumerate([*VALUES[7:], VALUES[3], *standard]):
        CASES[f"codec: {i} {type(value).__name__}"] = lambda root, value=value: Coding(
            root, value, False
        )  # type: ignore[misc]
    for i, value in enumerate([*VALUES[:7], VALUES[8], "\xfc\u20ac", (None, (1.5, b"x"))]):
        CASES[f"key: {i} {type(value).__name__}"] = lambda root, value=value: Coding(
            root, value, True
        )  # type: ignore[misc]


memos()
makings()
tiers()
codecs()
