"""Reading through: memory, what is on its way, then the far side, once for all who ask."""

from __future__ import annotations

import time
from collections.abc import (
    Awaitable,
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    ValuesView,
)
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from inspect import iscoroutine
from itertools import islice
from typing import Any

from . import flight
from ._packed import UNSET, Front
from .behind import Behind
from .errors import ClosedError, FarError
from .far import Far
from .flight import MISS
from .near import ABSENT, Found, NearSide
from .pending import REMOVED, Pending, TierStats, are_plain, plain, value_of
from .units import seconds_of

__all__ = ["ReadThrough", "TierStats", "needs"]

BATCH = 1000
"""Keys the far side is asked for at once, where all are wanted."""


def needs(far: Far, verb: str, what: str) -> None:
    if not callable(getattr(far, verb, None)):
        raise TypeError(f"{what} needs a far side with {verb}(), which {type(far).__name__} lacks")


def _ours() -> frozenset[flight.Flight]:
    """The flights this thread or task is loading for."""
    found, at = [], flight._leading.get()
    while at is not None:
        found.append(at[0])
        at = at[1]
    return frozenset(found)


class _Values(ValuesView[Any]):
    _mapping: Any

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self._mapping._pairs())

    def __contains__(self, value: object) -> bool:
        return any(value is held or value == held for held in self)


class _Items(ItemsView[Any, Any]):
    _mapping: Any

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        pairs: Iterator[tuple[Any, Any]] = self._mapping._pairs()
        return pairs


class ReadThrough(Front):
    """The half of a `Tiered` that reads."""

    far: Far
    """What has everything."""
    load: Callable[[Any], Any] | None
    default_ttl: float | None
    """Seconds an entry lives where a write does not say."""
    _side: NearSide
    _behind: Behind | None
    _on_error: str
    _astray = False
    """Memory has what the far side did not get."""
    _closed = _ended = False
    """Whether it is of use no more, and whether both sides are closed."""

    def _count_from_zero(self) -> None:
        self._counts = dict.fromkeys(TierStats._fields[:7], 0)

    # --- what the far side says, and what it does not -------------------------------------------------

    def _count(self, what: str, n: int = 1) -> None:
        with self._side.lock:
            self._counts[what] += n

    def _believe(self, trusted: bool) -> None:
        self._side.told = trusted
        self._side.believe()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Around every call of the far side."""
        if self._closed:
            raise ClosedError("the tier is closed")
        self._side.settle()
        try:
            yield
        except FarError:
            self._count("far_errors")
            raise
        self._answered()

    def _answered(self) -> None:
        """The far side did: what it did not get is gone."""
        if self._astray:
            try:
                self._astray = False  # before: what comes meanwhile is another's to tell of
                self._side.clear()
            except BaseException:
                self._astray = True
                raise

    def _seconds(self, ttl: Any) -> float | None:
        if ttl is UNSET:
            return self.default_ttl
        return None if ttl is None else seconds_of(ttl)

    def _drained(self, keys: list[Any]) -> None:
        """Before the far side does more with keys than store them, and afterwards: what is on its way is there."""
        if self._behind is not None and self._behind.has_any(keys):
            self._behind.drain(keys)

    def _on_its_way(self, key: Any) -> Pending | None:
        return None if self._behind is None else self._behind.last(key)

    def _ask(self, keys: list[Any], given: dict[Any, Any]) -> dict[Any, Found]:
        """What there is of keys that memory does not have, or `load` makes, of each as it was `given`. Runs within
        their flights."""
        found = self._asked(keys)
        if (load := self.load) is not None:
            for key in [key for key in keys if found[key].value is ABSENT]:
                value = self._loaded(given[key], load)
                if value is not ABSENT:
                    found[key] = self._stored(key, value, self.default_ttl, _ours())
        return found

    def _asked(self, keys: list[Any]) -> dict[Any, Found]:
        """The same without `load`: it waits for nobody's."""
        found, asked = {}, []
        for key in keys:
            write = self._on_its_way(key)
            if write is None:
                asked.append(key)
            else:
                found[key] = self._of_pending(write)._replace(
                    until=0.0
                )  # memory's only by its writer
        if asked:
            begun = time.monotonic()  # a copy ends no later than what it is of
            with self._asking():
                got = self.far.get_many(asked)
            for key in asked:
                value, left = got.get(key, (ABSENT, None))
                found[key] = Found(value, None if left is None else begun + left)
        absent = sum(one.value is ABSENT for one in found.values())
        self._count("far_hits", len(found) - absent)
        if self.load is None:
            self._count("far_misses", absent)
        return found

    def _of_pending(self, write: Pending) -> Found:
        assert self._behind is not None
        value, until = write[0], write[2]
        if value is REMOVED or (until is not None and until <= time.monotonic()):
            return Found(ABSENT)
        return Found(value_of(self._behind.codec, write), until)

    def _loaded(self, key: Any, load: Callable[[Any], Any]) -> Any:
        try:
            value = load(key)
        except KeyError:
            self._count("far_misses")
            return ABSENT
        self._count("loads")
        return value

    def _stored(
        self, key: Any, value: Any, ttl: float | None, ours: frozenset[flight.Flight]
    ) -> Found:
        """A value that was made because there was none; unless somebody was faster, whose value it is then. `ours`:
        flights this runs within."""
        self._drained([key])  # a delete, say
        begun = time.monotonic()
        with self._asking():
            try:
                added = self.far.add(key, value, ttl)  # type: ignore[attr-defined]
            finally:  # here: whoever awaits it may have been cancelled
                self._side.made(key, ours)
            got = {} if added else self.far.get_many([key])
        self._drained([key])
        if added:
            return Found(value, None if ttl is None else begun + ttl)
        theirs, left = got.get(key, (value, 0.0))  # gone again: ours is as good, and not kept
        return Found(theirs, None if left is None else begun + left)

    # --- reading ----------------------------------------------------------------------------------

    def _missed(self, key: Any, default: Any) -> Any:
        """`Front` did not find it in memory; `default` UNSET: KeyError."""
        found = self._find(plain(key), key)
        if found.value is not ABSENT:
            return found.value
        if default is UNSET:
            raise KeyError(key)
        return default

    def _find(self, key: Any, given: Any) -> Found:
        write = self._on_its_way(key)
        if write is not None:
            found = self._of_pending(write)
            if found.value is not ABSENT or self.load is None:
                return found
        if self._side.known_absent(key):
            self._count("negative_hits")
            return Found(ABSENT)
        try:
            led: Found = flight.fill(
                self._side, key, lambda: self._ask([key], {key: given})[key], None, 0
            )
            return led
        except FarError:
            value = self._fallback(key)
            if value is MISS:
                raise
            return Found(value)

    def _fallback(self, key: Any, serve: bool = True) -> Any:
        """What memory has where the far side fails; MISS: that is no answer. `serve`: it is counted."""
        if self._on_error == "raise":
            return MISS
        value = self._side.cache._stale(key, MISS, serve)
        if value is not MISS:
            if serve:
                self._count("stale_served")
            return value
        return ABSENT if self._on_error == "near_only" else MISS

    def get_many(self, keys: Iterable[Any]) -> dict[Any, Any]:
        """A dict of those keys that are there: memory first, the rest in one call of the far side.

        One flight per key. Raises FarError if the far side fails, and memory lacks one.
        """
        wanted = dict.fromkeys(keys)
        found = self._in_memory(wanted) if self.trusts else {}
        missing: dict[Any, Any] = {}
        """As they are stored: as they were given."""
        for key in wanted:
            if key not in found:
                name = plain(key)
                write = self._on_its_way(name)
                one = None if write is None else self._of_pending(write)
                if one is not None and one.value is not ABSENT:
                    found[key] = one.value
                elif one is not None and self.load is None:
                    pass
                elif self._side.known_absent(name):
                    self._count("negative_hits")
                else:
                    missing[name] = key
        if missing:
            got = self._find_many(missing)
            for key in wanted:
                if key not in found and (name := plain(key)) in got:
                    found[key] = got[name]
        return found

    def _in_memory(self, wanted: dict[Any, Any]) -> dict[Any, Any]:
        """What memory has of these, as they were given; it goes by their base values."""
        if are_plain(wanted):
            got: dict[Any, Any] = self.near.get_many(wanted)
            return got
        names = {key: plain(key) for key in wanted}
        got = self.near.get_many(names.values())
        return {key: got[name] for key, name in names.items() if name in got}

    def _find_many(self, given: dict[Any, Any]) -> dict[Any, Any]:
        keys = list(given)
        try:
            got = flight.fill_many(self._side, keys, partial(self._ask, given=given))
        except FarError:
            values = {key: self._fallback(key, False) for key in keys}
            if MISS in values.values():
                raise
            for key in keys:
                self._fallback(key)
            got = {key: Found(value) for key, value in values.items()}
        return {key: one.value for key, one in got.items() if one.value is not ABSENT}

    def peek(self, key: Any, default: Any = None) -> Any:
        """The value of `key`, or `default`; leaves memory, its order and all stats as they are."""
        key = plain(key)
        value = self._side.peek(key, MISS)
        if value is MISS:
            write = self._on_its_way(key)
            if write is not None:
                value = self._of_pending(write)
            else:
                with self._asking():
                    value = Found(*self.far.get_many([key]).get(key, (ABSENT,))[:1])
        return default if value.value is ABSENT else value.value

    def __contains__(self, key: object) -> bool:
        return self.peek(key, MISS) is not MISS

    def ttl(self, key: Any) -> float | None:
        """Seconds until `key` expires, None if it never does. KeyError if it is absent. Asks the far side."""
        key = plain(key)
        write = self._on_its_way(key)
        if write is not None:
            found = self._of_pending(write)
            if found.value is ABSENT:
                raise KeyError(key)
            return None if found.until is None else found.until - time.monotonic()
        with self._asking():
            got = self.far.get_many([key])
        if key not in got:
            raise KeyError(key)
        return got[key][1]

    def get_or_set(
        self,
        key: Any,
        fn: Callable[[], Any],
        ttl: float | timedelta | object | None = UNSET,
    ) -> Any:
        """The value of `key`; if it is on neither side, ``fn()``, stored with `ttl` on both.

        One flight per key in this process. If somebody else stores the key meanwhile, theirs is returned. Needs a
        far side with `add`. The rest is as `Cache.get_or_set` has it.
        """
        needs(self.far, "add", "get_or_set")
        given, key, seconds = key, plain(key), self._seconds(ttl)
        value = self._side.get(key, MISS)
        if value is not MISS:
            return value.value

        def made() -> Found:
            found = self._ask([key], {key: given})[key]
            if found.value is not ABSENT:
                return found
            value = fn()
            if iscoroutine(value):
                value.close()
                raise TypeError(f"{fn!r} returned a coroutine: await aget_or_set")
            self._count("loads")
            return self._stored(key, value, seconds, _ours())

        while True:  # who joined a mere read's flight was told of nothing: it leads the next
            found = flight.fill(self._side, key, made, None, 0)
            if found.value is not ABSENT:
                return found.value

    async def aget_or_set(
        self,
        key: Any,
        fn: Callable[[], Awaitable[Any]],
        ttl: float | timedelta | object | None = UNSET,
    ) -> Any:
        """`get_or_set` for coroutines: ``await fn()``. The far side is asked in a thread: the loop goes on."""
        needs(self.far, "add", "aget_or_set")
        given, key, seconds = key, plain(key), self._seconds(ttl)
        value = self._side.get(key, MISS)
        if value is not MISS:
            return value.value

        call = self._side.threads.call

        async def made() -> Found:
            found, keep = (await call(False, self._asked, [key]))[key], self.default_ttl
            if found.value is not ABSENT:
                return found
            value = ABSENT
            if (load := self.load) is not None:
                value = await call(True, self._loaded, given, load)
            if value is ABSENT:
                value, keep = await flight._awaited(fn()), seconds
                self._count("loads")
            return await call(False, self._stored, key, value, keep, _ours())

        while True:
            found = await flight.afill(self._side, key, made, None, 0)
            if found.value is not ABSENT:
                return found.value

    # --- all of it --------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        """Keys of the far side, in its order, each once; no use of memory. What comes or goes meanwhile may show.

        Where the far side may give a key twice (a `Valkey`), those given are remembered: memory in proportion."""
        cursor, seen = None, self._drain_for_all()
        while True:
            with self._asking():
                keys, cursor = self.far.scan(cursor, BATCH)
            yield from keys if seen is None else (k for k in keys if not (k in seen or seen.add(k)))
            if cursor is None:
                return

    def _drain_for_all(self) -> Any:
        """None: the far side's scan gives no key twice; else a set for those given."""
        if self._behind is not None:
            self._behind.drain()
        return None if getattr(self.far, "scans_once", False) else set()

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        keys = iter(self)
        while batch := list(islice(keys, BATCH)):
            with self._asking():
                got = self.far.get_many(batch)
            for key in batch:
                if key in got:
                    yield key, got[key][0]

    def items(self) -> Any:
        """A view of the pairs of the far side; iterating it reads them in batches, and is no use of memory."""
        return _Items(self)

    def values(self) -> Any:
        """A view of the values of the far side."""
        return _Values(self)

    def __len__(self) -> int:
        """How many the far side has. Cost: its own `count`, or a scan."""
        if not hasattr(self.far, "count"):
            return sum(1 for _ in self)
        if self._behind is not None:
            self._behind.drain()
        with self._asking():
            count: int = self.far.count()
        return count
