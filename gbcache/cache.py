"""`Cache`: the mapping people use."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, ItemsView, Iterator, KeysView, MutableMapping, ValuesView
from datetime import timedelta
from typing import Any, NoReturn

from . import housekeeper, memory
from ._packed import PackedStore, smallest
from .codec import Codec, resolve
from .stats import Memory, Stats
from .units import bytes_of, seconds_of

__all__ = ["Cache"]

_LARGEST = 8 * (2**32 - 1)


def _limit(max_bytes: int | str) -> int:
    """The image's length for a budget: at most the budget, in whole granules of 8 bytes."""
    size, least = bytes_of(max_bytes), smallest()
    if size < least:
        raise ValueError(
            f"max_bytes={max_bytes!r} is too small: the smallest that works is {least}"
        )
    if size > _LARGEST:
        raise ValueError(f"max_bytes={max_bytes!r} is too large: an image reaches {_LARGEST} bytes")
    return size // 8 * 8


def _count(max_entries: int | None) -> int:
    if max_entries is None:
        return 0
    if isinstance(max_entries, bool) or not isinstance(max_entries, int):
        raise TypeError(f"max_entries={max_entries!r} is not an int, or None for no bound")
    if not 0 < max_entries < 2**32:
        raise ValueError(f"max_entries={max_entries!r} is not in 1..{2**32 - 1}; None for no bound")
    return max_entries


class _Keys(KeysView[Any]):
    _mapping: Cache

    def __iter__(self) -> Iterator[Any]:
        return self._mapping._walk(0)


class _Values(ValuesView[Any]):
    _mapping: Cache

    def __iter__(self) -> Iterator[Any]:
        return self._mapping._walk(1)

    def __contains__(self, value: object) -> bool:
        return any(value is held or value == held for held in self)


class _Items(ItemsView[Any, Any]):
    _mapping: Cache

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping._walk(2)

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        absent = object()
        held = self._mapping.peek(item[0], absent)
        return held is not absent and (held is item[1] or held == item[1])


class Cache(PackedStore, MutableMapping[Any, Any]):
    """A mapping in a fixed number of bytes: least recently used out, a TTL for every key.

    Keys: str, bytes, int, float, bool, None, and tuples of these. Values: these atoms as they are; lists,
    dicts, datetimes and the like through the codec, equal and of the same type when they come back. A
    value read is a fresh copy. All methods may be called from any thread.

    Parameters
    ----------
    max_bytes : int or str
        The budget: the length of the one mapping in which everything lies, keys, values, index and
        fragmentation. ``"256MB"`` is 256 * 10**6 bytes, ``"256MiB"`` 256 * 2**20.
    max_entries : int, optional
        A bound on the count beside the bytes.
    ttl : float or timedelta, optional
        Seconds an entry lives where a write does not say; None: for ever.
    jitter : float
        The largest share of a TTL, 0 to 1, that is taken off at random, so that what was written
        together does not expire together. An entry never lives longer than its TTL.
    idle : float or timedelta, optional
        Seconds after the last use (read, write, touch) at which an entry expires.
    codec : "typed", "pickle" or a Codec
        How values that are no atoms become bytes.
    name : str
        For you to tell caches apart.
    housekeeping : bool
        Whether the process's housekeeper thread gives expired bytes back without traffic. Where it is
        off, calls do the work.
    clock : callable, optional
        Seconds, for tests; read before the lock. Switches the housekeeper off.

    Raises
    ------
    ValueError
        A budget too small to hold an image (naming the smallest that works), a ttl that is not above 0.
    TypeError
        Arguments of the wrong type.

    Costs: `get`, `set` and the other verbs of one key are bounded whatever the cache holds; memory is
    reserved at once, and touched as it is used.
    """

    def __init__(
        self,
        max_bytes: int | str,
        *,
        max_entries: int | None = None,
        ttl: float | timedelta | None = None,
        jitter: float = 0,
        idle: float | timedelta | None = None,
        codec: str | Codec = "typed",
        name: str = "",
        housekeeping: bool = True,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if isinstance(jitter, bool) or not isinstance(jitter, (int, float)):
            raise TypeError(f"jitter={jitter!r} is not a number from 0 to 1")
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter={jitter!r} is not from 0 to 1: it is a share of the TTL")
        if idle is not None and seconds_of(idle, "idle") >= 2**32 / 1000:
            raise ValueError(f"idle={idle!r} is longer than {2**32 // 1000} s: use ttl for that")
        if clock is not None and not callable(clock):
            raise TypeError(f"clock={clock!r} is not callable")
        length, count = _limit(max_bytes), _count(max_entries)
        self.name = name
        self._max_bytes = bytes_of(max_bytes)
        self._resizing, self._in_resize = threading.RLock(), False
        self._attach(
            memory.private(length),
            seed=os.urandom(16),
            clock=clock,
            ttl=ttl,
            idle=idle,
            jitter=float(jitter),
            max_entries=count,
            codec=resolve(codec),
            housekeeping=bool(housekeeping) and clock is None,
        )
        housekeeper.register(self)

    __hash__ = None  # type: ignore[assignment]

    def keys(self) -> KeysView[Any]:
        """A view of the keys; iterating it is least recently used first, and no use."""
        return _Keys(self)

    def values(self) -> ValuesView[Any]:
        """A view of the values; iterating it is least recently used first, and no use."""
        return _Values(self)

    def items(self) -> ItemsView[Any, Any]:
        """A view of the pairs; iterating it is least recently used first, and no use."""
        return _Items(self)

    @property
    def max_bytes(self) -> int:
        """The budget in bytes, as it was given."""
        return self._max_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of the image that are not free blocks. Never above `max_bytes`."""
        _, parts, sizes, _ = self._figures()
        return sizes["total"] - parts["free"]

    @property
    def max_entries(self) -> int | None:
        """The bound on the count, None if there is none."""
        return self._figures()[2]["max_entries"] or None

    def resize(self, max_bytes: int | str, *, max_entries: int | None = None) -> None:
        """Changes the budget while the cache is in use; evicts the least recently used to shrink.

        Shrinking moves what lies above the new end, in slices; growing maps the image longer. Cost: in
        proportion to the bytes given up. Raises as the constructor does; then nothing has changed.
        `max_entries`, where given, becomes the new bound on the count.
        """
        length = _limit(max_bytes)
        count = None if max_entries is None else _count(max_entries)
        with self._resizing:
            if self._in_resize:  # of this thread: the lock is an RLock
                raise RuntimeError("resize() within resize(): called by a signal handler?")
            self._in_resize = True
            try:
                if count is not None:
                    self._limit(count)
                before = self._figures()[2]["total"]
                if length < before:
                    self._shrink(length)
                if length != before:
                    self._remap(length, memory.copy_needed(length))
                self._max_bytes = bytes_of(max_bytes)
            finally:
                self._in_resize = False

    def _fork_child(self) -> None:
        self._resizing, self._in_resize = threading.RLock(), False  # whoever held it is not here
        super()._fork_child()

    def stats(self) -> Stats:
        """What the cache has done, and how full it is. Cost: constant."""
        counters, parts, sizes, steps = self._figures()
        return Stats(
            misses=counters["misses_absent"] + counters["misses_expired"],
            entries=sizes["entries"],
            max_entries=sizes["max_entries"] or None,
            used_bytes=sizes["total"] - parts["free"],
            max_bytes=self._max_bytes,
            max_steps=steps,
            **counters,
        )

    def memory(self) -> Memory:
        """Where every byte of the image is; the parts sum to its length. Cost: constant."""
        _, parts, sizes, _ = self._figures()
        return Memory(
            sizes["total"], parts, sizes["key_bytes"], sizes["value_bytes"], sizes["entries"]
        )

    def copy(self) -> NoReturn:
        """Refused: a cache is not a value."""
        raise TypeError(
            "a Cache cannot be copied: take dict(cache.items()), or save() it to a file"
        )

    def __copy__(self) -> NoReturn:
        self.copy()

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.copy()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Cache cannot be pickled: save() it to a file and open that")

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = f" {self.name!r}" if getattr(self, "name", "") else ""
        if self.closed:
            return f"<{type(self).__name__}{name} closed>"
        s = self.stats()
        return (
            f"<{type(self).__name__}{name} {s.entries:,} entries, "
            f"{s.used_bytes:,} of {s.max_bytes:,} bytes>"
        )
