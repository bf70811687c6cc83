"""`Tiered`: a fast cache before a slow authority. Memory is the window, the far side has everything."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import (
    Callable,
    Iterable,
    Mapping,
    MutableMapping,
)
from datetime import timedelta
from itertools import islice
from typing import Any

from . import forks
from ._object import FRONT
from ._packed import UNSET
from .behind import Behind
from .cache import Cache, ObjectCache
from .ends import settle
from .errors import FarError
from .far import Far, Feed
from .flight import MISS
from .mapping import stale_ms
from .near import ABSENT, Found, NearSide, Word, claim
from .pending import REMOVED, AtRisk, TierStats, are_plain, check, frozen, plain
from .readthrough import BATCH, ReadThrough, needs
from .units import bytes_of, seconds_of

__all__ = ["TierStats", "Tiered"]

_ERRORS = ("raise", "serve_stale", "near_only")
_QUEUED = 200
"""Of many writes behind, those that are queued in one go."""
_VERBS = ("get_many", "put_many", "delete_many", "scan", "sync", "close")


class Tiered(ReadThrough, MutableMapping[Any, Any]):
    """A mapping of which memory holds the part in use, and a far side all.

    An entry evicted from memory is still there. `len`, `in`, iteration and `clear` speak of the far side;
    ``tiered.near.clear()`` empties memory. Both sides are closed with it.

    Parameters
    ----------
    near : Cache or ObjectCache
        Memory, empty. Its own `ttl`, `idle` and bounds say how long a copy stays; never longer than the entry lives.
        It is the tier's: do not write to it. Its `subscribe` tells what happens in memory, ``invalidate`` among it.
    far : Far
        `Disk`, `Valkey`, or what has the methods of `Far`.
    write : "through" or "behind"
        Through: a write returns once the far side has it. Behind: it is on its way, and is there within
        `behind_seconds` if the far side keeps up; where it does not, writers wait. What a killed process would
        lose is in ``stats().at_risk``. Writes to one key keep their order. What the far side has no room for (FarError
        with ENOSPC), refuses (EACCES) or fails of while it takes others keeps nothing else out: it is tried again, for
        longer than `behind_seconds`, and `sync` and `close` name it. What never fits (EFBIG) is dropped, reported to
        `sys.unraisablehook` and counted.
    ttl : float or timedelta, optional
        Seconds an entry lives where a write does not say; None: for ever. While the machine is suspended memory's
        clock stands still (a Disk's does not): a copy may outlive its entry by that.
    negative_ttl : float or timedelta, optional
        Seconds for which it is remembered that the far side has no such key (65,536 keys at most).
    load : callable, optional
        ``load(key)``, called for what is on neither side; KeyError: there is none. The value is stored.
    behind_bytes, behind_seconds : int or str, float
        Bounds of what is on its way.
    on_far_error : "raise", "serve_stale" or "near_only"
        Where the far side fails. ``"serve_stale"``: `get`, ``[]`` and `get_many` give what memory has, also past its
        TTL by `stale` seconds. ``"near_only"``: the same, and what memory lacks is a miss; `set`, ``[] =``, `set_many`
        and `update` stay in memory until the far side answers again, and are gone then. All else raises FarError.
    stale : float or timedelta
        Seconds that memory keeps an entry past its TTL, for the above: whatever others have written since. (Not where
        `near` has a `ttl` of its own: then what the far side tells of takes out also what is over.)

    Raises TypeError, ValueError for arguments that are none of these, ValueError where `near`, or a `Disk`, belongs to
    another Tiered, or `near` holds anything (the far side has the truth: ``near.clear()``). What an earlier Tiered has
    on its way to this `far` is written first: FarError where that fails. Cost of a hit: the near side's, and 2 to 5 ns.
    Coherence: a read gives what a write left that ended before it began, or a later one. That holds within a process;
    with a far side that others write to, as far as it tells of that (`Valkey`).
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        near: Cache | ObjectCache,
        far: Far,
        *,
        write: str = "through",
        ttl: float | timedelta | None = None,
        negative_ttl: float | timedelta | None = None,
        load: Callable[[Any], Any] | None = None,
        behind_bytes: int | str = "16MB",
        behind_seconds: float | timedelta = 0.1,
        on_far_error: str = "raise",
        stale: float | timedelta = 0,
    ) -> None:
        if not isinstance(near, (Cache, ObjectCache)):
            raise TypeError(f"near={near!r} is not a Cache or an ObjectCache")
        if not isinstance(far, Far):
            lacks = [verb for verb in _VERBS if not callable(getattr(far, verb, None))]
            raise TypeError(f"far={far!r} is no Far: it lacks {', '.join(lacks)}")
        if write not in ("through", "behind"):
            raise ValueError(f"write={write!r} is not 'through' or 'behind'")
        if on_far_error not in _ERRORS:
            raise ValueError(f"on_far_error={on_far_error!r} is not one of {', '.join(_ERRORS)}")
        if load is not None and not callable(load):
            raise TypeError(f"load={load!r} is not callable")
        if load is not None:
            needs(far, "add", "load=")
        self.far, self.load, self._on_error = far, load, on_far_error
        self.default_ttl = None if ttl is None else seconds_of(ttl)
        absent = None if negative_ttl is None else seconds_of(negative_ttl, "negative_ttl")
        self._side = NearSide(near, absent, stale_ms(stale), self)
        self._count_from_zero()
        self._behind = None
        if write == "behind":
            seconds = seconds_of(behind_seconds, "behind_seconds")
            size = bytes_of(behind_bytes, "behind_bytes")
            if size < 65536:
                raise ValueError(f"behind_bytes={behind_bytes!r} is less than 65536")
            self._behind = self._side.behind = Behind(
                far, getattr(far, "codec", None), size, seconds, Word(self)
            )
        claim(self, near, **{"far": far} if hasattr(far, "_tier") else {})
        try:
            settle(far)
            self._face(near, FRONT if isinstance(near, ObjectCache) else None)
            if isinstance(far, Feed):
                self._side.fed = True
                self._believe(False)
                word = Word(self)
                word.hush = far.feed(word)
        except BaseException:
            self._closed = True  # one that was not made has none, while its exception is there, too
            raise

    # --- writing ----------------------------------------------------------------------------------

    def set(self, key: Any, value: Any, ttl: float | timedelta | object | None = UNSET) -> None:
        """Writes a value: to the far side, then to memory. `ttl`: seconds, a timedelta, None for never; not given: the
        tier's own. FarError: it may be there or not, and memory does not have it."""
        seconds = self.default_ttl if ttl is UNSET else self._seconds(ttl)
        if type(key) is not str:
            key = plain(key)
        if self._behind is None:
            self._put([key], [value], seconds)
        else:
            self._queue(key, value, seconds)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.set(key, value)

    def set_many(
        self,
        items: Mapping[Any, Any] | Iterable[tuple[Any, Any]],
        ttl: float | timedelta | object | None = UNSET,
    ) -> None:
        """Writes a mapping, or pairs, in one call of the far side."""
        given, seconds = dict(items), self._seconds(ttl)
        if not are_plain(given):
            given = {plain(key): value for key, value in given.items()}
        if self._behind is None:
            self._put(list(given), list(given.values()), seconds)
        else:
            if len(given) > _QUEUED:  # all or none, where one is refused
                check(self._behind.codec, given)
            pairs = iter(given.items())
            while some := dict(islice(pairs, _QUEUED)):
                self._queue_many(some, seconds)

    def update(self, *args: Any, **more: Any) -> None:
        """As a dict's; in one call of the far side, as `set_many`."""
        self.set_many(dict(*args, **more))

    def _put(self, keys: list[Any], values: list[Any], ttl: float | None) -> None:
        until = None if ttl is None else time.monotonic() + ttl
        items = [(key, value, ttl) for key, value in zip(keys, values, strict=True)]
        landed = [Found(value, until) for value in values]
        try:
            self._side.write(keys, landed, self._told, keys, self.far.put_many, items)
        except FarError:
            if not self._stray(zip(keys, values, strict=True), until):
                raise

    def _stray(self, items: Iterable[tuple[Any, Any]], until: float | None) -> bool:
        """The far side failed, whose error is being handled: memory alone has these, if it may. Whether it can."""
        if self._on_error != "near_only":
            raise
        kept = True
        try:
            self._astray = True
            for key, value in items:
                kept = self._side.keep(key, value, until, bytearray(1)) and kept
        finally:
            self._astray = True  # anew: it may have answered another thread since
        return kept

    def _queue(self, key: Any, value: Any, ttl: float | None) -> None:
        """A write behind. Memory changes after the buffer has it, as rule 2 of near.py wants."""
        behind, side = self._behind, self._side
        assert behind is not None
        until = None if ttl is None else time.monotonic() + ttl
        write = frozen(
            behind.codec, key, value, until
        )  # what this raises is a refusal: nothing changed
        sound = False
        try:
            mark = behind.put(key, write)
            if mark is not None:
                if side.under_way:
                    side.void([key])
                side.keep(key, ABSENT if value is REMOVED else value, until, mark)
            else:  # too long for it
                behind.drain((key,))
                if value is REMOVED:
                    self._delete([key])
                else:
                    self._put([key], [value], ttl)
            sound = True
        except FarError:
            if value is REMOVED:
                raise
            kept = self._stray([(key, value)], until)
            sound = True
            if not kept:
                raise
        finally:
            if not sound:
                side.drop([key])

    def _queue_many(self, items: dict[Any, Any], ttl: float | None) -> None:
        """`_queue` for some at once, or else for one after the other."""
        behind, side = self._behind, self._side
        assert behind is not None
        until = None if ttl is None else time.monotonic() + ttl
        writes = {key: frozen(behind.codec, key, value, until) for key, value in items.items()}
        sound = False
        try:
            mark = behind.put_many(writes)
            if mark is not None:
                if side.under_way:
                    side.void(items)
                side.keep_many(items, until, mark)
            else:
                for key, value in items.items():
                    self._queue(key, value, ttl)
            sound = True
        except FarError:
            kept = self._stray(items.items(), until)
            sound = True
            if not kept:
                raise
        finally:
            if not sound:
                side.drop(items)

    def add(self, key: Any, value: Any, ttl: float | timedelta | object | None = UNSET) -> bool:
        """Writes a value only if `key` is absent; True if it was written. Atomic at the far side, which must have
        `add` (TypeError)."""
        needs(self.far, "add", "add")
        key = plain(key)
        seconds = self._seconds(ttl)
        found = [Found(value, None if seconds is None else time.monotonic() + seconds)]
        add = self.far.add  # type: ignore[attr-defined]
        done: bool = self._side.write(
            [key], found, self._told, [key], lambda: bool(add(key, value, seconds))
        )
        return done

    def incr(self, key: Any, delta: int = 1, initial: int = 0) -> int:
        """Adds `delta` to the int at `key` and returns the sum; an absent key counts from `initial`. Atomic at the far
        side, which must have `incr` (TypeError). Keeps the TTL; a new one gets the tier's own."""
        needs(self.far, "incr", "incr")
        key = plain(key)
        for name, number in (("delta", delta), ("initial", initial)):
            if type(number) is not int:
                raise TypeError(f"incr: {name}={number!r} is not an int")
        verb, ttl = self.far.incr, self.default_ttl  # type: ignore[attr-defined]
        total: int = self._side.write([key], (), self._told, [key], verb, key, delta, initial, ttl)
        return total

    def touch(self, key: Any, ttl: float | timedelta | object | None = UNSET) -> bool:
        """Gives `key` the tier's own TTL again, or `ttl`; False if it is absent. The far side must have `touch`."""
        needs(self.far, "touch", "touch")
        key = plain(key)
        seconds = self._seconds(ttl)
        verb = self.far.touch  # type: ignore[attr-defined]
        done: bool = self._side.write([key], (), self._told, [key], verb, key, seconds)
        return done

    def _told(self, keys: list[Any], verb: Callable[..., Any], *args: Any) -> Any:
        """Within `NearSide.write`. What is queued from when that began voids it; what came before, or the far side may
        have had before or after this, is there when it ends."""
        self._drained(keys)
        with self._asking():
            done = verb(*args)
        # What it did is done. That another's write is not taken is told to who syncs.
        with contextlib.suppress(FarError):
            self._drained(keys)
        return done

    def delete_many(self, keys: Iterable[Any]) -> int:
        """Removes keys from both sides; how many were there."""
        return sum(self._delete(list(dict.fromkeys(map(plain, keys)))))

    def _delete(self, keys: list[Any]) -> list[bool]:
        gone: list[bool] = self._side.write(keys, (), self._gone, keys)
        return gone

    def _gone(self, keys: list[Any]) -> list[bool]:
        behind, aside = self._behind, set[Any]()
        if behind is not None and behind.has_any(keys):
            behind.drain(())
            aside = behind.remove_aside(keys)  # none of it waits for room
        gone = self._told(keys, self.far.delete_many, keys)
        return (
            [there or key in aside for key, there in zip(keys, gone, strict=True)]
            if aside
            else gone
        )

    def __delitem__(self, key: Any) -> None:
        if not self._delete([plain(key)])[0]:
            raise KeyError(key)

    def discard(self, key: Any) -> None:
        """Removes `key` if it is there. With ``write="behind"`` it does not wait for the far side."""
        if self._behind is None:
            self._delete([plain(key)])
        else:
            self._queue(plain(key), REMOVED, None)

    def pop(self, key: Any, default: Any = UNSET) -> Any:
        """Removes `key` and returns its value; `default`, or KeyError, if it is absent. Of those who pop a key at
        once, one gets it; a write between reading and removing is removed unread."""
        value = self.get(key, MISS)
        if value is not MISS and self._delete([plain(key)])[0]:
            return value
        if default is UNSET:
            raise KeyError(key)
        return default

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of `key`; if it is absent, writes `default` and returns it."""
        while (value := self.get(key, MISS)) is MISS:
            if self.add(key, default):
                return default
        return value

    # --- all of it --------------------------------------------------------------------------------

    def clear(self) -> None:
        """Removes everything from both sides. Cost: in proportion to what the far side holds, in batches. What is on
        its way is written first, but what finds no room: where this fails, nothing that was acknowledged is lost."""
        behind = self._behind
        if behind is not None:
            behind.drain(())
        try:
            if behind is None:
                self._clear_far()
            else:
                with behind.aside.sparing:
                    aside = dict(behind.aside.writes)
                    self._clear_far()
                    behind.forget_aside(aside)
                behind.drain(())  # what it may have had before
        finally:
            self._side.changed(None)

    def _clear_far(self) -> None:
        with self._asking():
            if hasattr(self.far, "clear"):
                self.far.clear()
            else:
                cursor, more = None, True
                while more:
                    keys, cursor = self.far.scan(cursor, BATCH)
                    self.far.delete_many(keys)
                    more = cursor is not None

    def sync(self) -> None:
        """When it returns, all that was written before survives a power cut, as far as the far side can do that. What
        was written behind and is not taken there is named by a FarError (ENOSPC: no room; EACCES); the rest is safe."""
        full = None
        if self._behind is not None:
            try:
                self._behind.drain()
            except FarError as error:
                if error.errno not in (errno.ENOSPC, errno.EACCES):
                    raise
                full = error  # what was taken survives
        with self._asking():
            self.far.sync()
        if full is not None:
            raise full

    def stats(self) -> TierStats:
        """What it has done. Cost: constant; in proportion to the writes that find no room, where there are some."""
        behind = self._behind
        risk = AtRisk(0, 0, 0.0) if behind is None else behind.at_risk()
        refused = 0 if behind is None else behind.refused
        counts = self._counts.copy()
        if behind is not None:
            counts["far_errors"] += behind.errors
        return TierStats(**counts, at_risk=risk, behind_errors=refused)

    def close(self) -> None:
        """Writes what is on its way, and closes both sides. FarError if that fails, or some has no room: nothing is
        lost yet, and closing again tries again. In a fork's hook: as a `Cache`."""
        if self._ended or forks.put_off(self.close):
            return
        if self._behind is not None:
            self._behind.close()
        self._closed = True
        try:
            self.far.close()
        finally:
            self._side.close()
        self._ended = True

    def __enter__(self) -> Tiered:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Tiered {self.near!r} before {self.far!r}>"
