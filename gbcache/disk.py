"""The far side that is a directory on disk: every entry, of any size, there after a kill and after a power cut."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

from . import files, units
from .codec import Codec, encode_key, resolve, unpack_value
from .engine import Engine
from .errors import ImageError
from .far import close_at_exit
from .lmdbstore import LMDBError
from .verbs import (
    PAGE,
    SHORT,
    Add,
    AddBig,
    Clear,
    Delete,
    Find,
    Incr,
    IncrBig,
    Put,
    PutBig,
    Touch,
    TouchBig,
    bytes_of,
)

__all__ = ["Disk", "DiskInfo"]

VALUE_MOST = (1 << 30) + 64
BIG = 1 << 20
"""Bytes of one call from which on they go to LMDB at once, and not through the journal."""
LEAST = 4 << 20
SYNCS = ("always", "interval", "never")


class DiskInfo(NamedTuple):
    """What a Disk says of itself; sizes in bytes."""

    entries: int
    """Those that are over count until they are removed, up to some seconds later."""
    data_bytes: int
    """The data file; it does not shrink, but what is free in it is used again."""
    used_bytes: int
    """Of it, what is in use."""
    waiting_bytes: int
    """In the journal and in memory, on their way to the data file."""
    map_bytes: int
    commits: int
    """Transactions of LMDB's since it was opened."""
    groups: int
    """Groups of writes since it was opened, one append to the journal (and one sync) each."""
    grouped: int
    """Calls that wrote; `grouped / groups` of them shared one sync."""
    expired: int
    """Entries removed because they were over."""


def _too_long(record: bytes) -> ValueError:
    return ValueError(f"a value of {len(record)} bytes is longer than 1 GiB")


class Disk:
    """A `Far` in a directory, on LMDB. Safe from any number of threads; one process at a time, held by a lock.

    `path`: the directory, made if it is not there (mode 0700). `sync` is what an acknowledgement means:

    - ``"always"``: it is on disk. Many threads that write at once share one fdatasync.
    - ``"interval"``: the kernel has it, so a killed process loses nothing; it is on disk at most `interval` seconds
      later, which is what a power cut may cost. Never a part of one call's entries out of order.
    - ``"never"``: the same, but on disk only some time after (within about 5 s of the last write), or by `sync`.

    `max_bytes`: of all its files, from 4 MiB; beyond about two thirds of it writes are refused with FarError: of errno
    ENOSPC until enough is removed; EFBIG, a call that brings more than it takes when it is empty. None: as the disk
    has it. `codec`: as for a `Cache`.

    Opening reads and checks all of the data file, about a second a GB: afterwards damage at rest has been found
    (ImageError), and LMDB is handed a file it can walk. Each value read has its checksum looked at. What changes the
    files while they are open cannot be guarded against. Of a journal's last frame, torn by a power cut, and the same
    frame damaged afterwards, nobody can tell which it is: that frame is dropped; no other is.

    Keys may have any length, values up to 1 GiB; calls that bring a MiB or more are one transaction of LMDB's, and
    synced, whatever `sync` says. Deadlines are by the wall clock, which is not followed while it is open.

    Raises BlockingIOError where another process (or another Disk) has it open, ImageError for what is no sound
    store, FarError where the disk fails: it stays usable, and what failed is not there. After a fork the child's is
    closed.

    A signal's handler, or a ``__del__``, that comes in the midst of a call of the same Disk may read from it, and
    ``sync``. All that writes is a RuntimeError there: also `close`, and a scan's beginning where something waits. They
    would wait for their own thread; so would a handler that waits for another thread which writes. (A collection may
    begin in any thread of a Disk's: what a ``__del__`` has to write is better left to another.) Between two calls,
    as in the body of a loop over keys, it may do anything. A call that is interrupted, as its handler raises, is over
    by then: all of it is there, or nothing.
    """

    _tier: Any = None
    """The Tiered before it, weakly: there is one at most."""

    def __init__(
        self,
        path: files.Path,
        *,
        sync: str = "always",
        interval: float | timedelta = 0.1,
        max_bytes: int | str | None = None,
        codec: str | Codec = "typed",
    ) -> None:
        if sync not in SYNCS:
            raise ValueError(f"sync={sync!r} is none of {', '.join(map(repr, SYNCS))}")
        seconds = units.seconds_of(interval, "interval", False)
        most = None if max_bytes is None else units.bytes_of(max_bytes)
        if most is not None and most < LEAST:
            raise ValueError(
                f"max_bytes={max_bytes!r} is below {LEAST}, the least a Disk can work in"
            )
        self.codec = resolve(codec)
        self.scans_once = True  # by name, so no key comes twice
        self.path = os.path.realpath(files.path_of(path))
        self._engine = Engine(self.path, sync, seconds, most, self.codec)
        try:  # its threads do not let go of it: by now somebody has it who closes it, if only `__del__`
            self._engine.begin()
        except BaseException:
            self._engine.abandon()
            raise
        close_at_exit(self)

    # --- the protocol ------------------------------------------------------------------------

    def get_many(self, keys: Sequence[Any]) -> dict[Any, tuple[Any, float | None]]:
        """Of the keys that are there: the value, and the seconds left (None: it does not expire).

        Raises ImageError where a record is damaged. Cost: about a microsecond a key, two for the first.
        """
        engine = self._engine
        engine.check_open()
        records, store, now = engine.records, engine.store, engine.now()
        keys = tuple(keys)  # a list may be changed by a codec, or another thread
        names = records.names(keys)
        found: dict[Any, tuple[Any, float | None]] = {}
        try:
            others = records.fetch(keys, names, engine.layers, store.gate, store.begin, now, found)
        except LMDBError as error:
            raise ImageError(store.path, None, f"LMDB can read it: {error}") from error
        for at in others or ():
            key = keys[at]
            name, record = engine.run(Find(names[at], encode_key(key)[1]))
            records.read((key,), [name], [record], now, found)
        return found

    def put_many(self, items: Sequence[tuple[Any, Any, float | None]]) -> None:
        """Stores (key, value, TTL) in their order. When it returns, all are acknowledged, in the strength of `sync`.

        If it raises FarError nothing of it is there; with `max_bytes`, some of more than a MiB may be.
        TypeError and ValueError are raised before anything is stored.
        """
        engine = self._engine
        engine.check_open()
        pack, now, size, packed = engine.records.pack, engine.now(), 0, []
        for key, value, ttl in items:
            entry = pack(key, value, 0 if ttl is None else self._deadline(now, ttl))
            size += len(entry[0]) + len(entry[1])
            if len(entry[1]) > VALUE_MOST:
                raise _too_long(entry[1])
            packed.append(entry)
        if packed:
            engine.run((PutBig if self._is_big(size) else Put)(packed, size))

    def delete_many(self, keys: Sequence[Any]) -> list[bool]:
        """Removes; for each, in order, whether it was there."""
        engine = self._engine
        engine.check_open()
        keys = tuple(keys)
        names = [
            (name, bytes_of(name, key))
            for key, name in zip(keys, engine.records.names(keys), strict=True)
        ]
        if not names:
            return []
        result: list[bool] = engine.run(Delete(names))
        return result

    def scan(
        self, cursor: bytes | None = None, count: int = 1000
    ) -> tuple[list[Any], bytes | None]:
        """About `count` keys from a place on, and the place to go on from; None: that was all.

        No transaction stays open between two calls. The first call writes to LMDB what waits. Cost: values are read,
        for their checksums, where they lie; none is kept.
        """
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"count={count!r} is not an int above 0")
        if cursor is not None and (not isinstance(cursor, bytes) or not cursor):
            raise TypeError(f"cursor={cursor!r} is none that scan returned")
        engine = self._engine
        engine.check_open()
        if cursor is None:
            engine.flush()
        count = min(count, sys.maxsize)
        take = partial(engine.records.page, engine.layers, engine.now(), count)
        return engine.store.page_of(cursor or b"", count, take)

    def sync(self) -> None:
        """When it returns, all that was acknowledged before survives a power cut."""
        self._engine.sync()

    def close(self) -> None:
        """Writes what waits, syncs, and gives everything back. Twice is allowed. The end of the process does it too.

        If it raises FarError it is closed all the same; what could not be written to LMDB is in the journal, from
        which it is taken at the next opening. In a fork's hook: as a `Cache`.
        """
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.close()

    # --- what a Tiered uses where it is ------------------------------------------------------

    def incr(self, key: Any, delta: int = 1, initial: int = 0, ttl: float | None = None) -> int:
        """Adds to an int, atomically. An absent one begins at `initial` + `delta`, with `ttl`; another keeps its own.

        Raises TypeError where value, `delta` or `initial` is no int, OverflowError beyond 64 bits.
        """
        for what, number in (("delta", delta), ("initial", initial)):
            if not isinstance(number, int) or isinstance(number, bool):
                raise TypeError(f"{what}={number!r} is a {type(number).__name__}, not an int")
        engine = self._engine
        engine.check_open()
        deadline = 0 if ttl is None else self._deadline(engine.now(), ttl)
        name = engine.records.name(key)
        size = SHORT + len(bytes_of(name, key))
        make = IncrBig if self._is_big(size) else Incr
        result: int | bytes = engine.run(make(key, name, int(delta), int(initial), deadline, size))
        if isinstance(result, bytes):
            kind = type(unpack_value(self.codec, result)).__name__
            raise TypeError(f"incr({key!r}): its value is a {kind}, not an int of 64 bits")
        return result

    def add(self, key: Any, value: Any, ttl: float | None = None) -> bool:
        """Stores if the key is absent, atomically; whether it did."""
        engine = self._engine
        engine.check_open()
        deadline = 0 if ttl is None else self._deadline(engine.now(), ttl)
        name, record = engine.records.pack(key, value, deadline)
        if len(record) > VALUE_MOST:
            raise _too_long(record)
        make = AddBig if self._is_big(len(record)) else Add
        result: bool = engine.run(make(name, bytes_of(name, key), record))
        return result

    def touch(self, key: Any, ttl: float | None) -> bool:
        """Gives an entry that is there another TTL (None: for ever), atomically; whether it was there. Cost: the
        value is written anew, and counts as what a `put_many` brings; above a page the entry is looked up twice."""
        engine = self._engine
        engine.check_open()
        deadline = 0 if ttl is None else self._deadline(engine.now(), ttl)
        name, size = engine.records.name(key), PAGE
        while True:  # it may have grown since
            request = (TouchBig if self._is_big(size) else Touch)(key, name, deadline, size)
            result: bool = engine.run(request)
            if request.needs <= size:
                return result
            size = request.needs

    def count(self) -> int:
        """Entries; those that are over count until they are removed, up to some seconds later.

        Cost: a look-up for each entry that waits to be written to LMDB."""
        return self._engine.count()

    def clear(self) -> int:
        """Removes all; how many there were. One transaction."""
        self._engine.check_open()
        result: int = self._engine.run(Clear())
        return result

    def info(self) -> DiskInfo:
        """Figures of this moment."""
        engine = self._engine
        store = engine.store
        return DiskInfo(
            entries=engine.count(),
            data_bytes=os.path.getsize(store.path),
            used_bytes=store.live,
            waiting_bytes=engine.active_size + engine.frozen_size,
            map_bytes=store.map_size,
            commits=store.commits,
            groups=engine.groups_done,
            grouped=engine.grouped,
            expired=engine.expired,
        )

    def _check_open(self) -> None:
        self._engine.check_open()

    def _is_big(self, size: int) -> bool:
        return size >= min(BIG, self._engine.layer // 4)

    @staticmethod
    def _deadline(now: int, ttl: float) -> int:
        return now + max(1, int(units.seconds_of(ttl) * 1000))

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Disk({self.path!r})"

    def __del__(self) -> None:
        # At the end a thread that is no more may hold a lock; the journal has what was acknowledged.
        # In a thread of its own it may be amid anything.
        engine = getattr(self, "_engine", None)
        if engine is not None and not sys.is_finalizing():
            with contextlib.suppress(Exception):
                engine.close(threading.current_thread() in engine.threads)
