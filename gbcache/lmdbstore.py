"""A Disk's data file: LMDB, looked at before it is opened, grown when it is full, written in whole transactions."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, TypeVar

try:
    import lmdb
except ImportError:
    raise ImportError("gbcache.Disk needs the package lmdb: pip install gbcache[disk]") from None

from . import files
from ._disk import NAME_MAX, Gate, Reading, check_file, deadline_of, store_record
from .errors import ClosedError, FarError, ImageError
from .journal import Changes

__all__ = ["LMDBError", "Store", "failed"]

LMDBError = lmdb.Error
_T = TypeVar("_T")
_Item = tuple[Any, Any]

MAP_LEAST = 16 << 20
PIECE = 16
"""Changes in one transaction where the file is nearly as large as it may be: what they replace is free again after
the next one."""
STALLS = 3
"""Readers that may stall while one of those is written."""
EMPTY = 4
"""Pages in use of a store without entries."""
READERS = 4096
_STORE = b"gbcache"


def failed(error: BaseException, what: str, full: int = errno.ENOSPC) -> FarError:
    """The FarError of what LMDB or the system raised; `full`: the code of a map that is full."""
    code = getattr(error, "errno", None) or getattr(error, "code", 0) or 0
    if isinstance(error, lmdb.MapFullError):
        code = full
    if not 0 < code < 4096:
        code = errno.EIO
    made = FarError(code, f"{what}: {error}")
    made.__cause__ = error
    return made


def _removals_first(change: tuple[bytes, bytes | None]) -> tuple[bool, bytes]:
    """By name then, so that one transaction's are of few pages."""
    return change[1] is not None, change[0]


def _close_on_exec(path: str) -> None:
    """LMDB leaves its data file open over exec, and its binding does not say which descriptor it is."""
    found = os.stat(path)
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # that of the listing is closed by now
            if os.path.samestat(os.fstat(int(name)), found):
                os.set_inheritable(int(name), False)


def _sync_names(path: str) -> None:
    """The names that lead to `path` are on disk, whoever made them, as far up as its file system goes: else a power cut
    takes the store away with one of them. What nobody may list is passed by: there we could make none."""
    above, system = os.path.dirname(path), os.stat(path).st_dev
    while above != path and os.stat(above).st_dev == system:
        with contextlib.suppress(PermissionError):
            files.sync_directory(path)
        path, above = above, os.path.dirname(above)


class Store:
    """The environment. One thread at a time may `write` or `sweep`; any may read, inside `gate`."""

    env: Any = None
    entries_db: Any
    due_db: Any

    def __init__(self, folder: str, codec: str, most: int | None) -> None:
        self.folder, self.codec, self.most = folder, codec.encode(), most
        self.path = os.path.join(folder, "data.mdb")
        self.gate = Gate()
        self.seed, self.applied, self.entries = b"", 0, 0
        self.commits, self.live = 0, 0

    # --- opening -----------------------------------------------------------------------------

    def make(self) -> bool:
        """Makes the data file if there is none, whole or not at all; whether it did."""
        beside = os.path.join(self.folder, "new")
        if os.path.lexists(self.path):
            shutil.rmtree(beside, ignore_errors=True)
            return False
        shutil.rmtree(beside, ignore_errors=True)
        os.mkdir(beside, 0o700)
        env = lmdb.open(beside, map_size=MAP_LEAST, max_dbs=2, mode=0o600)
        try:
            if env.max_key_size() < NAME_MAX + 8:
                raise ImportError(
                    f"this build of lmdb has keys of {env.max_key_size()} bytes at most, not 511"
                )
            for name in (b"entries", b"due"):
                env.open_db(name)
            with env.begin(write=True) as txn:
                txn.put(_STORE, store_record(os.urandom(16), 0, self.codec))
            env.sync(True)
        finally:
            env.close()
        self.check(os.path.join(beside, "data.mdb"))
        return True

    def put_in_place(self) -> None:
        """The last step of a new store: from here on it is one."""
        beside = os.path.join(self.folder, "new")
        _sync_names(self.folder)
        os.rename(os.path.join(beside, "data.mdb"), self.path)
        files.sync_directory(self.path)
        shutil.rmtree(beside, ignore_errors=True)

    def check(self, path: str) -> None:
        """Looks at every page of the file. Raises ImageError; cost: about a second a GB."""
        fd = files.open_file(path, own=True)
        try:
            size, at = os.fstat(fd).st_size, 0
            while at < size:  # an unreadable sector is an error here, and a SIGBUS in a map
                at += len(os.pread(fd, 8 << 20, at)) or size
            if not size:
                raise ImageError(path, 0, "it is as long as LMDB's two heads")
            with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped:
                self.seed, self.applied, codec, self.entries = check_file(mapped, path)
        finally:
            os.close(fd)
        if codec != self.codec:
            rule = (f"its values are of codec={self.codec.decode()!r}: they were written with {codec.decode()!r}; name "
                    "that one to open it (pickle runs what the file says: only for files you trust)")  # fmt: skip
            raise ImageError(path, None, rule)

    def open(self) -> None:
        """Opens the file that was checked. LMDB's lock file is made anew: we are alone, and it may be damaged."""
        lock = os.path.join(self.folder, "lock.mdb")
        if os.path.isdir(lock) and not os.path.islink(lock):
            raise ImageError(lock, None, "it is a file")
        files.remove(lock)
        size = os.path.getsize(self.path)
        room = max(MAP_LEAST, size * 2)
        if self.most is not None:
            room = max(min(room, self.most), size)
        self.env = lmdb.open(self.folder, map_size=room // mmap.PAGESIZE * mmap.PAGESIZE, max_dbs=2, mode=0o600,
                             create=False, max_readers=READERS, max_spare_txns=16)  # fmt: skip
        _close_on_exec(os.path.join(self.folder, "data.mdb"))
        self.map_size = room
        self.entries_db = self.env.open_db(b"entries", create=False)
        self.due_db = self.env.open_db(b"due", create=False)
        with self.env.begin() as txn:
            self.page = self.env.stat()["psize"]
            self._measure(txn)

    def reopen(self) -> None:
        """A new environment, where LMDB says that the old one is lost."""
        with self.gate.alone():
            self.env.close()
            self.open()

    def close(self) -> None:
        with self.gate.alone():
            env, self.env = self.env, None
            if env is not None:
                env.close()

    # --- reading -----------------------------------------------------------------------------

    def reading(self) -> Reading:
        """A transaction whose `get` gives views of LMDB's own bytes; not for longer than one call of ours."""
        return Reading(self.gate, self.begin, lmdb.Error, self.path)

    def begin(self) -> Any:
        """Inside the gate: a transaction on the entries, to be aborted."""
        if self.env is None:
            raise ClosedError("the Disk is closed")
        try:
            return self.env.begin(self.entries_db, buffers=True)
        except lmdb.PanicError:
            raise FarError(
                errno.EIO, f"{self.path}: its last write failed; the next one mends it"
            ) from None
        except lmdb.Error as error:
            raise failed(error, self.path) from error

    def page_of(self, after: bytes, count: int, take: Callable[[Iterable[_Item]], _T]) -> _T:
        """What `take` makes of up to `count` entries behind a name, (name, record): LMDB's own bytes, not to be kept,
        for a page of long values is more than memory may hold."""
        with self.reading() as txn, txn.cursor() as cursor:
            there = cursor.set_range(after + b"\0") if after else cursor.first()
            return take(islice(cursor.iternext(), count) if there else ())

    def count(self, waits: Changes) -> int:
        """What is in LMDB, and what waits and is not in it yet; less what is to go."""
        with self.reading() as txn:
            entries = int(txn.stat(self.entries_db)["entries"])
            for name, record in waits.items():
                entries += (record is not None) - (txn.get(name) is not None)
        return entries

    # --- writing -----------------------------------------------------------------------------

    def beyond(self, more: int, live: int | None = None) -> bool:
        """Whether so many more bytes are too many for `max_bytes`, where `live` are in use (else: now)."""
        there = self.live if live is None else live
        return self.most is not None and there + more * 3 // 2 > self.most - self.most // 8

    def admit(self, more: int, own: int = 0) -> None:
        """Raises FarError where they are: EFBIG, if for `own` of them there is never room, else ENOSPC."""
        if self.beyond(more):
            full = errno.EFBIG if self.beyond(own, EMPTY * self.page) else errno.ENOSPC
            raise failed(lmdb.MapFullError("max_bytes"), f"{self.folder}: {self.live} bytes are in use, and "
                         f"{more} more to come: remove entries, or open it with a larger max_bytes", full)  # fmt: skip

    def write(self, changes: Changes, applied: int, drop: bool = False) -> None:
        """All of it, or an exception and nothing of it (or, beside `most`, some): then it is to be tried again.

        `applied` is the last frame of the journal that is in it.
        """
        try:
            try:
                self._growing(changes, applied, drop)
            except lmdb.PanicError:  # an earlier write of a head failed
                self.reopen()
                self._growing(changes, applied, drop)
        except lmdb.MapFullError:
            self._in_pieces(changes, applied, drop)

    def _growing(self, changes: Changes, applied: int, drop: bool) -> None:
        while True:
            try:
                return self._transaction(changes, applied, drop)
            except lmdb.MapFullError:
                if not self._grow():
                    raise
            except lmdb.MapResizedError:
                with self.gate.alone():
                    self.env.set_mapsize(0)

    def _grow(self) -> bool:
        larger = self.map_size * 2
        if self.most is not None:
            larger = min(larger, self.most // mmap.PAGESIZE * mmap.PAGESIZE)
        if larger <= self.map_size:
            return False
        with self.gate.alone():
            self.env.set_mapsize(larger)
        self.map_size = larger
        return True

    def _in_pieces(self, changes: Changes, applied: int, drop: bool) -> None:
        """Removals first, in transactions so small that what they free is soon used again: what one frees is there for
        the next but one. So an empty one is the first: the last before it may have been large."""
        ordered = sorted(changes.items(), key=_removals_first)
        self._piece({}, self.applied, drop)
        for at in range(0, len(ordered), PIECE):
            self._piece(dict(ordered[at : at + PIECE]), self.applied)
        self._piece({}, applied)

    def _piece(self, changes: Changes, applied: int, drop: bool = False) -> None:
        """Who came to read since the last one keeps all that was freed meanwhile; as this one is given up, they leave:
        what was freed before the last one is there for an empty one, and then that, too."""
        left = STALLS
        while True:
            try:
                return self._transaction(changes, applied, drop)
            except lmdb.MapFullError:
                if not left:
                    raise
            left -= 1
            self._transaction({}, self.applied, False)

    def _transaction(self, changes: Changes, applied: int, drop: bool) -> None:
        txn = self.env.begin(write=True, buffers=False)
        try:
            self._fill(txn, changes, drop)
            txn.put(_STORE, store_record(self.seed, applied, self.codec))
            self._measure(txn)
            txn.commit()
        except BaseException:
            self.gate.abort(txn)
            raise
        self.applied = applied
        self.commits += 1

    def _fill(self, txn: Any, changes: Changes, drop: bool) -> None:
        if drop:
            txn.drop(self.entries_db, delete=False)
            txn.drop(self.due_db, delete=False)
        replace, pop = txn.replace, txn.pop
        for name in sorted(changes):
            record = changes[name]
            if record is None:
                old = pop(name, self.entries_db)
            else:
                old = replace(name, record, self.entries_db)
            self._due(txn, name, old, record)

    def _due(self, txn: Any, name: bytes, old: bytes | None, new: bytes | None) -> None:
        """Keeps the index of deadlines with the entries."""
        before = deadline_of(old) if old is not None else 0
        after = deadline_of(new) if new is not None else 0
        if before == after:
            return
        if before:
            txn.delete(before.to_bytes(8, "big") + name, db=self.due_db)
        if after:
            txn.put(after.to_bytes(8, "big") + name, b"", db=self.due_db)

    def _measure(self, txn: Any) -> None:
        """Pages in use, in bytes, without those that are free."""
        stats = [txn.stat(db) for db in (self.entries_db, self.due_db)]
        pages = sum([s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats])
        self.live = (pages + EMPTY) * self.page

    def due(self, now: int, most: int) -> list[tuple[bytes, bytes]]:
        """Up to `most` (deadline, name) that are over."""
        found: list[tuple[bytes, bytes]] = []
        with self.reading() as txn, txn.cursor(self.due_db) as cursor:
            more = cursor.first()
            while more and len(found) < most:
                key = bytes(cursor.key())
                if int.from_bytes(key[:8], "big") > now:
                    break
                found.append((key[:8], key[8:]))
                more = cursor.next()
        return found
