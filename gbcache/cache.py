"""`Cache` and `ObjectCache`: the mappings people use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

from . import forks, memory
from ._object import ObjectStore
from ._packed import smallest, too_small
from .codec import Codec, name_of, resolve
from .errors import ClosedError
from .files import Path
from .live import LiveFile
from .locks import Lock, Turn
from .mapping import Common
from .notify import Hub
from .persistent import Persistent, check_path
from .stats import Memory, Stats
from .units import bytes_of, seconds_of

__all__ = ["Cache", "ObjectCache"]

_LARGEST = 8 * (2**32 - 1)


def _limit(max_bytes: int | str | None) -> int:
    """The image's length for a budget: at most the budget, in whole granules of 8 bytes."""
    if max_bytes is None:
        raise TypeError("max_bytes=None: give the budget in bytes, or text as in '256MB'")
    size, least = bytes_of(max_bytes), smallest()
    if size < least:
        raise ValueError(
            f"max_bytes={max_bytes!r} is too small: the smallest that works is {least}"
        )
    if size > _LARGEST:
        raise ValueError(f"max_bytes={max_bytes!r} is too large: an image reaches {_LARGEST} bytes")
    return size // 8 * 8


def _count(bound: int | None, what: str = "max_entries", most: int = 2**32 - 1) -> int:
    if bound is None:
        return 0
    if isinstance(bound, bool) or not isinstance(bound, int):
        raise TypeError(f"{what}={bound!r} is not an int, or None for no bound")
    if not 0 < bound <= most:
        raise ValueError(f"{what}={bound!r} is not in 1..{most}; None for no bound")
    return bound


def _check_times(
    jitter: float, idle: float | timedelta | None, clock: Callable[[], float] | None
) -> None:
    if isinstance(jitter, bool) or not isinstance(jitter, (int, float)):
        raise TypeError(f"jitter={jitter!r} is not a number from 0 to 1")
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter={jitter!r} is not from 0 to 1: it is a share of the TTL")
    if idle is not None and int(seconds_of(idle, "idle") * 1000.0 + 0.5) >= 2**32:
        raise ValueError(f"idle={idle!r} is longer than {2**32 // 1000} s: use ttl for that")
    if clock is not None and not callable(clock):
        raise TypeError(f"clock={clock!r} is not callable")


class Cache(Persistent, Common):
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
    events : int or str, optional
        Bytes of the budget in which changes are recorded from the beginning, for `changes` to replay. Not
        given: a sixteenth of the budget (16 kB to 1 MiB) from the first reader on.
    name : str
        For you to tell caches apart.
    path : str or PathLike, optional
        Makes it a live file: the cache is the file. Every write that returned survives the death of the
        process, without a system call; a power cut falls back to the last `sync`. How it was found is in
        `recovery`. One process at a time: BlockingIOError names the other one.
    sync_interval : float or timedelta, optional
        Seconds between two `sync` in the background; for a live file.
    on_error : "raise" or "empty"
        What to do where neither the live file nor its checkpoint is sound: ImageError, or begin empty (which
        a ``recover`` event tells, where ``events=`` is given).
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
        max_bytes: int | str | None,
        *,
        max_entries: int | None = None,
        ttl: float | timedelta | None = None,
        jitter: float = 0,
        idle: float | timedelta | None = None,
        codec: str | Codec = "typed",
        events: int | str | None = None,
        name: str = "",
        path: Path | None = None,
        sync_interval: float | timedelta | None = None,
        on_error: str = "raise",
        housekeeping: bool = True,
        clock: Callable[[], float] | None = None,
    ) -> None:
        _check_times(jitter, idle, clock)
        every = check_path(path, sync_interval, on_error, clock)
        count = _count(max_entries)
        length = _limit(max_bytes) if path is None or max_bytes is not None else None
        ring = None if events is None else bytes_of(events, "events")
        self.name = name
        self._flights, self._generations = {}, {}
        self._codec = resolve(codec)
        self._resizing = Lock()
        attach = partial(
            self._attach,
            seed=os.urandom(16),
            clock=clock,
            ttl=ttl,
            idle=idle,
            jitter=float(jitter),
            max_entries=count,
            codec=self._codec,
            flights=self._flights,
            housekeeping=bool(housekeeping) and clock is None,
            max_bytes=0 if max_bytes is None else bytes_of(max_bytes),
            codec_name=name_of(self._codec).encode(),
        )
        if path is None:
            assert length is not None
            attach(memory.private(length))
        else:
            self._file = LiveFile(path)
            recovery = self._file.open(self, length, attach, on_error)
            self.recovery = recovery
        self._hub = None
        try:
            forks.register(self)
            self._begin(max_bytes, count, ring)
            if every is not None and self._file is not None:
                self._file.keep_synced(self, every)
        except BaseException:
            self.close()  # a live file would be nobody's, and locked
            raise

    def _begin(self, max_bytes: int | str | None, count: int, ring: int | None) -> None:
        if self._file is not None:
            self._found(max_bytes, count)
        total = self._figures()[2]["total"]
        self._events_room = max(16384, min(1 << 20, total // 16))
        self._filled(ring)
        how = self.recovery.how if self.recovery is not None else "new"
        if ring is not None and how not in ("new", "clean"):
            self._tell_recovered()

    def _filled(self, events: int | str | None) -> None:
        """What it begins with is there: from here on changes are recorded, if they are to be."""
        if events is not None:
            self._events_room = bytes_of(events, "events")
            self._hub = Hub(self, self._events_room, True)
        self._look_after()

    def close(self) -> None:
        """Gives the image's memory back. Closing twice is allowed; any other use raises ClosedError.

        Waits for long copies under way in other threads, but not for another's close. What was recorded before is still
        delivered. In a fork's hook that was registered before gbcache was imported it is closed once the fork is over.
        """
        if not forks.put_off(self._close_now):
            self._close_now()

    def _close_now(self) -> None:
        was_open = not self.closed
        try:
            if self._file is not None and was_open:
                self._file.stop(wait=not (self._resizing.mine or self._busy()))
            if was_open and self._hub is not None:
                self._hub.closing()
        finally:  # whatever cuts that off
            try:
                super().close()
            finally:
                if self._file is not None and self._unmapped:
                    self._file.release()
                if was_open and self._hub is not None:
                    self._hub.closing()  # of those who came meanwhile

    @property
    def max_bytes(self) -> int:
        """The budget in bytes, as it was given."""
        return self._asked()

    def _arrived(self, key: Any, value: Any) -> Any:
        """What a follower of a flight gets: a copy of its own, as every reader does."""
        try:
            return self.peek(key, value)
        except ClosedError:  # the load closed it
            return value

    def resize(self, max_bytes: int | str, *, max_entries: int | None = None) -> None:
        """Changes the budget while the cache is in use; evicts the least recently used to shrink.

        Shrinking moves what lies above the new end, in slices; growing maps the image longer. Cost: in
        proportion to the bytes given up. Raises as the constructor does; then nothing has changed, but what had to go
        where a first reader came meanwhile. `max_entries`, where given, becomes the new bound on the count: it comes
        down with the entries, and a kill leaves a live file the one it had come to.
        """
        length = _limit(max_bytes)
        asked = bytes_of(max_bytes)
        count = None if max_entries is None else _count(max_entries)
        with self._alone("resize"):
            ring = self._figures()[1]["ring"]
            if length < smallest() + ring:
                raise too_small(max_bytes, ring)
            before = self._figures()[2]["total"]
            if length < before:
                self._shrink(length)
            if self._file is not None and length > before:
                self._file.extend(length)
            if length != before:
                made = self._file.remapped if self._file else memory.copy_needed
                self._remap(length, made(length))
            self._asked(asked)
            if count is not None:  # last: what could fail is done
                self._limit(count)

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """One resize or save at a time; others wait."""
        if forks.within():
            raise RuntimeError(
                f"{what}() within a fork: its other threads cannot go on until it is over"
            )
        with Turn(self._resizing, self._idle):
            if self._resizing._depth > 1:  # of this thread: the lock is reentrant
                raise RuntimeError(
                    f"{what}() within resize() or save(): called by a signal handler, or by progress=?"
                )
            yield

    def stats(self) -> Stats:
        """What the cache has done, and how full it is. Cost: constant."""
        counters, parts, sizes, steps = self._figures()
        return Stats(
            misses=counters["misses_absent"] + counters["misses_expired"],
            entries=sizes["entries"],
            max_entries=sizes["max_entries"] or None,
            used_bytes=sizes["total"] - parts["free"],
            max_bytes=self.max_bytes,
            max_steps=steps,
            callback_errors=self._hub.errors if self._hub else 0,
            **counters,
        )

    def memory(self) -> Memory:
        """Where every byte of the image is; the parts sum to its length. Cost: constant."""
        _, parts, sizes, _ = self._figures()
        return Memory(
            sizes["total"], parts, sizes["key_bytes"], sizes["value_bytes"], sizes["entries"]
        )

    def __repr__(self) -> str:
        name = f" {self.name!r}" if getattr(self, "name", "") else ""
        if self.closed:
            return f"<{type(self).__name__}{name} closed>"
        s = self.stats()
        return (
            f"<{type(self).__name__}{name} {s.entries:,} entries, "
            f"{s.used_bytes:,} of {s.max_bytes:,} bytes>"
        )


class ObjectCache(ObjectStore, Common):
    """A mapping of any hashable key to any value, by reference: least recently used out, TTLs per key.

    What `functools.lru_cache` and cachetools are used for. A value read is the very object that was
    written. There is no budget in bytes, because the size of a Python object cannot be known: bound the
    entries, or a weight that you declare. Keys may have any ``__eq__`` and ``__hash__``; whatever these
    do, and whatever destructors do, they may do it to the cache too.

    Parameters
    ----------
    max_entries : int, optional
        The most entries; None for no bound.
    max_weight : int, optional
        The most the weights may sum to. Declared, not measured: `weigh` says what an entry weighs.
    weigh : callable, optional
        ``weigh(key, value)``, an int from 0; called once for each write, before it.
    events : int, optional
        How many changes are kept, from the beginning, for `changes` to replay. Not given: 65,536 from the
        first reader on.
    ttl, jitter, idle, name, housekeeping, clock
        As those of `Cache`.

    Raises
    ------
    ValueError, TypeError
        Bad bounds; `max_weight` without `weigh`.

    Costs: bounded for every verb of one key; an entry takes about 42 bytes, 58 with a TTL, beside the
    objects themselves. `clear`, `close` and iteration work in proportion to the entries, as a dict's do.
    """

    def __init__(
        self,
        max_entries: int | None = None,
        *,
        max_weight: int | None = None,
        weigh: Callable[[Any, Any], int] | None = None,
        ttl: float | timedelta | None = None,
        jitter: float = 0,
        idle: float | timedelta | None = None,
        events: int | None = None,
        name: str = "",
        housekeeping: bool = True,
        clock: Callable[[], float] | None = None,
    ) -> None:
        _check_times(jitter, idle, clock)
        queue = _count(events, "events", 2**24) or 65536
        if weigh is not None and not callable(weigh):
            raise TypeError(f"weigh={weigh!r} is not callable")
        if max_weight is not None and weigh is None:
            raise TypeError(f"max_weight={max_weight!r} needs weigh=: a function of key and value")
        count, weight = _count(max_entries), _count(max_weight, "max_weight", 2**63 - 1)
        self.name = name
        self._flights, self._generations = {}, {}
        self._attach(
            memory.reserve(count),
            seed=os.urandom(8),
            clock=clock,
            ttl=ttl,
            idle=idle,
            jitter=float(jitter),
            max_entries=count,
            max_weight=weight,
            weigh=weigh,
            flights=self._flights,
            housekeeping=bool(housekeeping) and clock is None,
        )
        if memory.FREE:
            forks.register(self)
        self._hub, self._events_room = None, queue
        if events is not None:
            self._hub = Hub(self, queue, True)

    def close(self) -> None:
        """Lets go of every key and value, and of the memory. Any other use then raises ClosedError.

        What was recorded before is still delivered. In a fork's hook: as a `Cache`.
        """
        if not forks.put_off(self._close_now):
            self._close_now()

    def _close_now(self) -> None:
        was_open = not self.closed
        try:
            if was_open and self._hub is not None:
                self._hub.closing()
        finally:  # whatever cuts that off
            super().close()
            if was_open and self._hub is not None:
                self._hub.closing()  # of those who came meanwhile

    @property
    def max_weight(self) -> int | None:
        """The bound on the sum of weights, None if there is none."""
        return self._figures()[2]["max_weight"] or None

    def _arrived(self, key: Any, value: Any) -> Any:
        return value

    def clear(self) -> None:
        """Removes everything at once, and gives the index's memory back."""
        self._clear(memory.reserve)

    def resize(self, max_entries: int | None = None, *, max_weight: int | None = None) -> None:
        """Changes the bounds (None: no bound); evicts the least recently used down to them."""
        count, weight = _count(max_entries), _count(max_weight, "max_weight", 2**63 - 1)
        if weight and not self._weighs():
            raise TypeError(f"max_weight={max_weight!r} needs a cache that was made with weigh=")
        length = memory.reservation(count)
        self._reserve(length, memory.copy_needed(length))
        self._limit(count, weight)
        self._reserve(length, memory.copy_needed(length))  # somebody may have cleared it meanwhile

    def stats(self) -> Stats:
        """What the cache has done, and how full it is. Cost: constant."""
        counters, parts, sizes, steps = self._figures()
        return Stats(
            misses=counters["misses_absent"] + counters["misses_expired"],
            entries=sizes["entries"],
            max_entries=sizes["max_entries"] or None,
            used_bytes=sizes["total"] - parts["free"],
            max_bytes=None,
            max_steps=steps,
            weight=sizes["weight"] if self._weighs() else None,
            max_weight=sizes["max_weight"] or None,
            callback_errors=self._hub.errors if self._hub else 0,
            **counters,
        )

    def memory(self) -> Memory:
        """Where every byte of the index is, references and all; not the objects they refer to."""
        _, parts, sizes, _ = self._figures()
        return Memory(sizes["total"], parts, 0, 0, sizes["entries"])

    def __repr__(self) -> str:
        name = f" {self.name!r}" if getattr(self, "name", "") else ""
        if self.closed:
            return f"<{type(self).__name__}{name} closed>"
        bound = f" of {self.max_entries:,}" if self.max_entries else ""
        return f"<{type(self).__name__}{name} {len(self):,}{bound} entries>"
