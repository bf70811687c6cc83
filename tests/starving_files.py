"""More operations of `starve.py`: files. Whatever failed, a file is the old one or the new one, and alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starving import CASES, Work

import gbcache
from gbcache import Cache, ImageError, Tiered
from gbcache.snapshot import info

SHORT = (MemoryError, OSError, RuntimeError)
"""ENOMEM from a call of the system; no lock, no thread to be had."""
OLD = {"a": 1, "b": "x" * 30, "long": b"l" * 9000, (1, "t"): [1, (2,)]}
NEW = {**OLD, "a": 2, "new": [3]}


def same(mapping: Any, wanted: dict[Any, Any]) -> None:
    assert dict(mapping.items()) == wanted, (dict(mapping.items()), wanted)


class OnSnapshot(Work):
    """There is a snapshot of OLD at `path`, and a cache with NEW."""

    allowed = SHORT

    def __init__(self, root: Path, act: Callable[[Any], Any]) -> None:
        super().__init__(root)
        self._act, self.path, self.made = act, root / "cache.gbs", None
        self.cache: Any = Cache("100kB", housekeeping=False)
        self.cache.update(OLD)
        self.cache.save(self.path)
        self.cache.update(NEW)

    def act(self) -> None:
        self.made = self._act(self)

    def look(self, failed: bool) -> None:
        assert os.listdir(self.root) == [self.path.name]
        if self.made is not None:
            same(self.made, OLD)
            self.made.close()
            self.made = None
        with Cache.open(self.path, "r") as found:
            assert dict(found.items()) in (OLD, NEW)
        same(self.cache, NEW)
        self.cache.check()
        self.cache.save(self.path)  # another is not under way
        with Cache.open(self.path) as copy:
            copy.check()
            same(copy, NEW)

    def over(self) -> None:
        if self.made is not None:
            self.made.close()
        self.cache.close()


def snapshot(name: str, act: Callable[[Any], Any]) -> None:
    CASES[f"file: {name}"] = lambda root: OnSnapshot(root, act)


def _gone(act: Callable[[Any], Any]) -> Callable[[Any], None]:
    """An operation of which nothing is kept."""

    def do(work: Any) -> None:
        act(work)

    return do


def snapshots() -> None:
    """Not a save in a thread: `threading` waits for ever for one that had no memory to begin."""
    snapshot("save", _gone(lambda w: w.cache.save(w.path)))
    snapshot("save, told how far", _gone(lambda w: w.cache.save(w.path, progress=lambda *_: None)))
    snapshot("open a copy", lambda w: Cache.open(w.path, housekeeping=False))
    snapshot("open a smaller copy", _gone(lambda w: Cache.open(w.path, max_bytes="90kB").close()))
    snapshot("open to read", lambda w: Cache.open(w.path, "r"))
    snapshot("info", _gone(lambda w: info(w.path)))


class OnSealed(Work):
    """A snapshot that is mapped: reading it changes nothing."""

    def __init__(self, root: Path, act: Callable[[Any], Any]) -> None:
        super().__init__(root)
        self._act, path = act, root / "cache.gbs"
        with Cache("100kB", housekeeping=False) as cache:
            cache.update(OLD)
            cache.set("timed", 5, ttl=1e6)
            cache.save(path)
        self.sealed = Cache.open(path, "r")

    def act(self) -> None:
        self._act(self.sealed)

    def look(self, failed: bool) -> None:
        same(self.sealed, {**OLD, "timed": 5})
        assert self.sealed["a"] == 1 and self.sealed.get("none", 3) == 3

    def over(self) -> None:
        self.sealed.close()


def sealed() -> None:
    for name, act in {
        "get": lambda s: (s["a"], s.get("long"), s[1, "t"], s.get("none")),
        "iterate": lambda s: (list(s), list(s.values()), list(s.items()), list(s.entries())),
        "figures": lambda s: (len(s), "a" in s, s.ttl("timed"), s.info, repr(s)),
        "get_many, refresh": lambda s: (s.get_many(["a", "none", "b"]), s.refresh()),
    }.items():
        CASES[f"Sealed: {name}"] = lambda root, act=act: OnSealed(root, act)  # type: ignore[misc]


class OnLive(Work):
    """A live file that is open, or was closed with OLD in it."""

    allowed = SHORT

    def __init__(self, root: Path, act: Callable[[Any], Any], opened: bool) -> None:
        super().__init__(root)
        self._act, self.path, self.made = act, root / "live.gbc", None
        self.live: Any = Cache("100kB", path=self.path, housekeeping=False)
        self.live.update(OLD)
        self.live.sync()
        if not opened:
            self.live.close()
            self.live = None

    def open(self) -> Any:
        return Cache("100kB", path=self.path, housekeeping=False)

    def act(self) -> None:
        self.made = self._act(self)

    def look(self, failed: bool) -> None:
        if self.live is not None and self.live.closed:
            self.live = None
        live = next((x for x in (self.made, self.live) if x is not None), None)
        live = self.open() if live is None else live
        found = dict(live.items())
        assert all(found.get(key) in (OLD.get(key), NEW.get(key)) for key in NEW), found
        assert found.keys() <= NEW.keys()
        live.check()
        live.update(NEW)
        live.sync()
        live.close()
        self.made = self.live = None
        with self.open() as again:  # nobody else has it, and it was closed as it should be
            assert again.recovery.how == "clean", again.recovery
            same(again, NEW)

    def over(self) -> None:
        for one in (self.made, self.live):
            if one is not None:
                one.close()


def live(name: str, act: Callable[[Any], Any], opened: bool = True) -> None:
    CASES[f"live: {name}"] = lambda root: OnLive(root, act, opened)


def lives() -> None:
    live("set", _gone(lambda w: w.live.set("a", 2)))
    live("set a new one", _gone(lambda w: w.live.set("new", [3])))
    live("set_many", _gone(lambda w: w.live.set_many(NEW)))
    live("sync", _gone(lambda w: w.live.sync()))
    live("close", _gone(lambda w: w.live.close()))
    live("resize", _gone(lambda w: w.live.resize("120kB")))
    live("open", lambda w: w.open(), opened=False)
    live("open by r+", lambda w: Cache.open(w.path, "r+", housekeeping=False), opened=False)


class OnMade(Work):
    """A live file that is not there yet: nothing is, or an empty one."""

    allowed = (*SHORT, ImageError)

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.path, self.made = root / "live.gbc", None

    def act(self) -> None:
        self.made = Cache("100kB", path=self.path, housekeeping=False)  # type: ignore[assignment]

    def look(self, failed: bool) -> None:
        if self.made is None:
            self.act()
        made: Any = self.made
        assert len(made) == 0
        made["a"] = 1
        made.check()

    def over(self) -> None:
        if self.made is not None:
            self.made.close()


class OnDisk(Work):
    """A `Disk`, and what Python's allocators give it: what LMDB itself asks for never fails here."""

    allowed = (MemoryError, RuntimeError, gbcache.FarError)

    def __init__(self, root: Path, act: Callable[[Any], Any], deleted: str = "") -> None:
        super().__init__(root)
        self.deleted = deleted
        self._act, self.path = act, root / "store"
        self.disk: Any = gbcache.Disk(self.path, sync="interval", interval=60)
        self.disk.put_many([(key, value, None) for key, value in OLD.items()])

    def act(self) -> None:
        self._act(self)

    def look(self, failed: bool) -> None:
        found = {key: one[0] for key, one in self.disk.get_many(list(NEW)).items()}
        for key in NEW:
            right = (OLD.get(key), NEW.get(key), *([None] if key == self.deleted else []))
            assert found.get(key) in right, (key, found.get(key))
        self.disk.put_many([(key, value, None) for key, value in NEW.items()])
        self.disk.sync()
        assert len(self.disk.get_many(list(NEW))) == len(NEW)

    def over(self) -> None:
        self.disk.close()


def disks() -> None:
    for name, act in {
        "get": lambda w: w.disk.get_many(["a", "long", "none"]),
        "put": lambda w: w.disk.put_many([("a", 2, None), ("new", [3], None)]),
        "delete and put": lambda w: (w.disk.delete_many(["a"]), w.disk.put_many([("a", 2, 1e6)])),
        "scan": lambda w: w.disk.scan(),
        "sync": lambda w: w.disk.sync(),
    }.items():
        CASES[f"Disk: {name}"] = lambda root, act=act, gone="a" * ("delete" in name): OnDisk(  # type: ignore[misc]
            root, act, gone
        )


class OnDiskTier(Work):
    """A `Tiered` over a `Disk`: memory and disk agree."""

    allowed = (MemoryError, RuntimeError, gbcache.FarError)

    def __init__(self, root: Path, act: Callable[[Any], Any]) -> None:
        super().__init__(root)
        self._act = act
        self.disk = gbcache.Disk(root / "store", sync="interval", interval=60)
        self.tier: Any = Tiered(Cache("100kB", housekeeping=False), self.disk)
        self.tier.update(OLD)

    def act(self) -> None:
        self._act(self.tier)

    def look(self, failed: bool) -> None:
        for key in NEW:
            far = self.disk.get_many([key]).get(key)
            assert self.tier.get(key) == (None if far is None else far[0]), key
            assert self.tier.get(key) in (OLD.get(key), NEW.get(key)), key
        self.tier.near.check()
        self.tier.update(NEW)
        same(self.tier, NEW)

    def over(self) -> None:
        self.tier.close()


def disk_tiers() -> None:
    def cold(tier: Any) -> None:
        tier.near.clear()
        assert tier.get("a") == 1

    for name, act in {"set": lambda t: t.set("a", 2), "get what memory lacks": cold}.items():
        CASES[f"Tiered Disk: {name}"] = lambda root, act=act: OnDiskTier(root, act)  # type: ignore[misc]


snapshots()
sealed()
lives()
CASES["live: make"] = OnMade
with contextlib.suppress(ImportError):  # without the package lmdb there is none
    import lmdb  # noqa: F401

    disks()
    disk_tiers()
