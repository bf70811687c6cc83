"""Snapshots: a cache's content of one moment in a file, and files read back."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from . import files, memory
from ._packed import Saver, SealedImage, load, read_head, smallest
from .codec import Codec, name_of, resolve
from .errors import ImageError
from .locks import Latch

if TYPE_CHECKING:
    from .persistent import Persistent

__all__ = ["Progress", "Save", "Sealed", "SnapshotInfo", "fill", "info", "save"]

Progress = Callable[[int, int], Any]
"""Called with bytes done and bytes in all, some twenty times a second."""
_TURN = 50
"""Milliseconds of work between two looks at signals, and calls of the progress function."""


class SnapshotInfo(NamedTuple):
    """What the head of a snapshot says."""

    path: str
    version: int
    entries: int
    """At the moment it was saved; some may have expired since."""
    saved_at: datetime
    file_bytes: int
    max_bytes: int
    """Of the cache it was saved from."""
    max_entries: int | None
    codec: str
    seq: int
    """The number of the last event before it."""
    counters: Mapping[str, int]
    id: str


def _wall() -> int:
    return time.time_ns() // 1_000_000


def write(
    cache: Persistent,
    path: str,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    over_live: bool = False,
) -> int:
    """Writes `cache` to `path`; the file's bytes. The work of `Cache.save`."""

    def go_on() -> None:
        if cancelled is not None and cancelled():
            raise InterruptedError("the save was cancelled")

    with cache._alone("save"), files.replacing(path, over_live) as fd:
        name = name_of(cache._codec).encode()
        saver = Saver(
            cache, fd, max_bytes=cache.max_bytes, at=_wall(), id=os.urandom(16), codec=name
        )
        try:
            memory = cache.memory()
            total = memory.key_bytes + memory.value_bytes + 18 * memory.entries + 4096
            while not saver.run(_TURN):
                go_on()
                if progress is not None:
                    progress(min(saver.written, total), total)
            saver.finish()
        finally:
            saver.end()
        size = os.fstat(fd).st_size
        if progress is not None:  # may still say no, by an exception
            progress(size, size)
        go_on()
    return size


class Save:
    """A save under way in a thread of its own. `wait` for it; what went wrong is raised there."""

    def __init__(self, cache: Persistent, path: str, progress: Progress | None) -> None:
        self.path, self._process = path, os.getpid()
        self._done, self._stop = Latch(), False
        self._bytes = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(cache, progress), name="gbcache-save", daemon=False
        )
        self._thread.start()

    def _run(self, cache: Persistent, progress: Progress | None) -> None:
        try:
            self._bytes = write(cache, self.path, progress, lambda: self._stop)
        except BaseException as error:
            self._error = error
        finally:
            del cache
            self._done.open()

    @property
    def done(self) -> bool:
        """Whether it has come to its end, well or not."""
        return self._done.opened

    def cancel(self) -> None:
        """Gives it up: the old file stays, `wait` raises InterruptedError. Nothing if it is done."""
        self._stop = True

    def wait(self, timeout: float | None = None) -> int:
        """Waits, at most `timeout` seconds (TimeoutError), and returns the file's bytes; raises what went wrong.
        RuntimeError in a forked child: its thread is the parent's."""
        if not self.done and os.getpid() != self._process:
            raise RuntimeError(f"the save to {self.path} is the parent process's")
        if not self._done.wait(-1.0 if timeout is None else max(0.0, timeout)):
            raise TimeoutError(f"the save to {self.path} is not done after {timeout} s")
        if self._error is not None:
            raise self._error
        return self._bytes


def save(cache: Persistent, path: files.Path, wait: bool, progress: Progress | None) -> int | Save:
    where = files.place_of(path)
    return write(cache, where, progress) if wait else Save(cache, where, progress)


def info(path: files.Path) -> SnapshotInfo:
    """What the head of a snapshot says; its head is checked, nothing else is read. ImageError, OSError."""
    where = files.path_of(path)
    fd = files.open_file(where, own=False)
    try:
        return _info(where, read_head(fd, os.fstat(fd).st_size, where))
    finally:
        os.close(fd)


def _info(path: str, head: dict[str, Any]) -> SnapshotInfo:
    when = datetime.fromtimestamp(head["saved_at"], timezone.utc)
    return SnapshotInfo(
        path, head["version"], head["entries"], when, head["length"], head["max_bytes"],
        head["max_entries"], head["codec"], head["seq"], head["counters"], head["id"].hex(),
    )  # fmt: skip


class OtherCodec(ImageError):
    """Nothing is wrong with the file."""


def check_codec(path: str, named: str, codec: Codec) -> None:
    """Refuses values of another codec: what a file names is never unpickled unasked."""
    if named != name_of(codec):
        rule = (
            f"its values are of codec={name_of(codec)!r}: they were written with {named!r}; name that "
            "one to open it (pickle runs what the file says: only for files you trust)"
        )
        raise OtherCodec(path, None, rule)


def fill(cache: Persistent, fd: int, path: str, progress: Progress | None) -> int:
    """Loads the snapshot at `fd` into a cache nobody uses yet; how many entries were dropped."""
    length = os.fstat(fd).st_size
    check_codec(path, read_head(fd, length, path)["codec"], cache._codec)
    return load(cache, fd, length, path, _wall(), progress)


def open_copy(
    cls: type[Persistent], path: files.Path, max_bytes: int | str | None, progress: Progress | None,
    options: dict[str, Any],
) -> Persistent:  # fmt: skip
    """A new cache with what a snapshot holds."""
    where = files.path_of(path)
    fd = files.open_file(where, own=False)
    try:
        head = read_head(fd, os.fstat(fd).st_size, where)
        if max_bytes is None and not smallest() <= head["max_bytes"] <= memory.MOST:
            raise ImageError(
                where, None, f"its max_bytes={head['max_bytes']} is possible: give max_bytes="
            )
        if options.get("max_entries") is None:
            options["max_entries"] = head["max_entries"]
        events = options.pop("events", None)
        cache = cls(head["max_bytes"] if max_bytes is None else max_bytes, **options)
        try:
            fill(cache, fd, where, progress)
            cache._filled(events)
        except BaseException:
            cache.close()
            raise
        return cache
    finally:
        os.close(fd)


class _Values(ValuesView[Any]):  # not by a look-up of each key, which may have expired meanwhile
    def __iter__(self) -> Iterator[Any]:
        return self._mapping._pairs(1)  # type: ignore[attr-defined, no-any-return]


class _Items(ItemsView[Any, Any]):
    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping._pairs(2)  # type: ignore[attr-defined, no-any-return]


class Sealed(SealedImage, Mapping[Any, Any]):
    """A snapshot opened read-only: a mapping whose pages all processes share. See `Cache.open`.

    Nothing is written: no order of use, no counters. Entries are there until their TTL ends; `len` counts
    those of the moment it was saved. Iteration is least recently used first. Any thread may read. If
    somebody truncates the file meanwhile, a read of what is gone kills the process (SIGBUS), as with every
    mapped file: `save` never does that, it renames a new one into place.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, path: files.Path, *, codec: str | Codec = "typed") -> None:
        self.path = files.place_of(path)
        self._codec = resolve(codec)
        self._open()

    def _open(self) -> None:
        fd = files.open_file(self.path, own=True)
        try:
            found = os.fstat(fd)
            head = read_head(fd, found.st_size, self.path)  # so long at least, before it is mapped
            check_codec(self.path, head["codec"], self._codec)
            mapped = mmap.mmap(fd, found.st_size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
            try:
                self._attach(fd, mapped, self.path, self._codec)
            except BaseException:
                mapped.close()
                raise
            self._file = (found.st_dev, found.st_ino)
        finally:
            os.close(fd)

    def refresh(self) -> Sealed:
        """This one, or a new one if another snapshot has been renamed into its place: the newest generation.

        Costs a stat where nothing changed. Close the old one when you are done with it.
        """
        there = os.stat(self.path, follow_symlinks=False)
        same = (there.st_dev, there.st_ino) == self._file
        return self if same else type(self)(self.path, codec=self._codec)

    def __iter__(self) -> Iterator[Any]:
        return self._pairs(0)

    def values(self) -> ValuesView[Any]:
        return _Values(self)

    def items(self) -> ItemsView[Any, Any]:
        return _Items(self)

    def get_many(self, keys: Iterable[Any]) -> dict[Any, Any]:
        """A dict of those keys that are there."""
        absent = object()
        found = ((key, self.get(key, absent)) for key in keys)
        return {key: value for key, value in found if value is not absent}

    def entries(self) -> Iterator[tuple[Any, Any, float | None]]:
        """Key, value and deadline (as `time.time()` has it; None: never) of each, least recently used first."""
        return self._pairs(3)

    @property
    def info(self) -> SnapshotInfo:
        """What the head of the file says."""
        return _info(self.path, self._head())

    def __enter__(self) -> Sealed:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Sealed {self.path!r}{' closed' if self.closed else f' {len(self):,} entries'}>"
