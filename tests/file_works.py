"""What is done to files in `test_files_faults.py`, and what must be true after it failed or not."""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from typing import Any

from gbcache import Cache, live
from gbcache._packed import FILE_ID_AT

KEYS, SIZE = 300, "400kB"


def content(letter: str) -> dict[Any, Any]:
    return {**{i: letter * (i % 50) for i in range(KEYS)}, "long": letter * 9000}


def same(cache: Any, wanted: dict[Any, Any]) -> bool:
    return dict(cache.items()) == wanted


OLD, NEW = content("o"), content("n")


class Work:
    """One thing that touches files: how they are before it, what it does, what holds after it."""

    def __init__(self, root: Path, old: bytes, closed: bytes, opened: bytes) -> None:
        self.root, self.old, self.closed, self.opened = root, old, closed, opened
        self.path, self.live = root / "a.gbs", root / "l.gbc"
        self.checkpoint = root / ("l.gbc" + live.CHECKPOINT)
        self.cache: Cache | None = None

    def put(self, path: Path, data: bytes, owned: bool = False) -> None:
        """A file of its own; `owned`: a live image that says it is this file, as if its process had been killed."""
        path.write_bytes(data)
        path.chmod(0o600)
        if owned:
            with open(path, "r+b") as file:
                file.seek(FILE_ID_AT)
                file.write(struct.pack("<Q", live.LiveFile.id_of(file.fileno())))

    def prepare(self) -> None:
        self.put(self.path, self.old)

    def act(self) -> Any: ...

    def good(self, made: Any, failed: bool) -> bool: ...  # type: ignore[empty-body]

    def open_live(self) -> Cache:
        return Cache(SIZE, path=self.live)

    def finds(self, *wanted: dict[Any, Any], how: tuple[str, ...]) -> bool:
        """The live file, opened with no fault, holds one of those."""
        with self.open_live() as found:
            found.check()
            assert found.recovery is not None
            return found.recovery.how in how and any(same(found, one) for one in wanted)


class SaveOver(Work):
    def prepare(self) -> None:
        super().prepare()
        if self.cache is None:
            self.cache = Cache(SIZE)
            self.cache.update(NEW)

    def act(self) -> Any:
        assert self.cache is not None
        return self.cache.save(self.path)

    def good(self, made: Any, failed: bool) -> bool:
        assert self.cache is not None
        self.cache.check()
        self.cache["goes on"] = 1
        del self.cache["goes on"]
        if failed and self.path.read_bytes() == self.old:
            return same(self.cache, NEW)
        with Cache.open(self.path) as found:
            return self.right(found) and same(self.cache, NEW)

    def right(self, found: Cache) -> bool:
        return same(found, NEW)


class SaveInThread(SaveOver):
    def act(self) -> Any:
        assert self.cache is not None
        return self.cache.save(self.path, wait=False).wait(60)


class SaveFirst(SaveOver):
    def prepare(self) -> None:
        super().prepare()
        self.path.unlink()

    def good(self, made: Any, failed: bool) -> bool:
        return (failed and not self.path.exists()) or super().good(made, failed)


class SaveBusy(SaveOver):
    """Somebody writes meanwhile: late frames, and writers that write them out."""

    def act(self) -> Any:
        cache, stop = self.cache, threading.Event()
        assert cache is not None

        def write() -> None:
            while not stop.is_set():
                for i in range(KEYS):
                    cache[i] = NEW[i]  # the same, but another entry: the old one is late
                    cache[KEYS + i] = "of no moment"
                    del cache[KEYS + i]

        thread = threading.Thread(target=write)
        thread.start()
        try:
            return cache.save(self.path)
        finally:
            stop.set()
            thread.join()

    def right(self, found: Cache) -> bool:
        return {key: found.get(key) for key in NEW} == NEW


class Sync(SaveOver):
    def prepare(self) -> None:
        self.path = self.checkpoint
        self.put(self.checkpoint, self.old)
        if self.cache is None:
            self.put(self.live, self.closed)
            self.cache = self.open_live()
            self.cache.update(NEW)

    def act(self) -> Any:
        assert self.cache is not None
        return self.cache.sync()


class OpenCopy(Work):
    def act(self) -> Any:
        return Cache.open(self.path)

    def good(self, made: Any, failed: bool) -> bool:
        assert self.path.read_bytes() == self.old
        if made is None:
            return failed
        with made:
            return same(made, OLD)


class OpenSealed(OpenCopy):
    def act(self) -> Any:
        return Cache.open(self.path, "r")


class OpenClean(Work):
    how: tuple[str, ...] = ("clean", "mended")

    def prepare(self) -> None:
        self.put(self.live, self.closed)

    def act(self) -> Any:
        return self.open_live()

    def good(self, made: Any, failed: bool) -> bool:
        if made is not None:
            with made:
                made.check()
                if not same(made, OLD):
                    return False
        return self.finds(OLD, how=self.how)


class OpenKilled(OpenClean):
    def prepare(self) -> None:
        self.put(self.live, self.opened, owned=True)


class OpenLost(OpenClean):
    """A copy of an open file is as good as one of another boot: its checkpoint is used."""

    how = ("checkpoint", "clean", "mended")

    def prepare(self) -> None:
        self.put(self.live, self.opened)
        self.put(self.checkpoint, self.old)


class OpenGone(OpenLost):
    def prepare(self) -> None:
        self.put(self.checkpoint, self.old)


class OpenNew(Work):
    def act(self) -> Any:
        return self.open_live()

    def prepare(self) -> None: ...

    def good(self, made: Any, failed: bool) -> bool:
        if made is not None:
            with made:
                made.check()
                made.update(OLD)
        held = self.finds({}, OLD, how=("new", "clean", "mended", "empty"))
        return held and (failed or made is not None)


class OpenEmpty(OpenNew):
    def prepare(self) -> None:
        self.put(self.live, self.opened)

    def open_live(self) -> Cache:
        return Cache(SIZE, path=self.live, on_error="empty")


class Close(OpenClean):
    def prepare(self) -> None:
        super().prepare()
        self.cache = self.open_live()

    def act(self) -> Any:
        assert self.cache is not None
        self.cache.close()

    def good(self, made: Any, failed: bool) -> bool:
        assert self.cache is not None and self.cache.closed
        self.cache.close()
        return self.finds(OLD, how=self.how)


class Grow(Close):
    to = 500_000

    def act(self) -> Any:
        assert self.cache is not None
        self.cache.resize(self.to)

    def good(self, made: Any, failed: bool) -> bool:
        assert self.cache is not None
        self.cache.check()
        held = same(self.cache, OLD) and self.cache.max_bytes == (400_000 if failed else self.to)
        self.cache.update(NEW)
        held = held and same(self.cache, NEW)
        self.cache.close()
        return held and self.finds(NEW, how=self.how)


class Shrink(Grow):
    to = 300_000


WORKS: dict[str, type[Work]] = {
    kind.__name__: kind
    for kind in (SaveOver, SaveInThread, SaveFirst, SaveBusy, Sync, OpenCopy, OpenSealed, OpenClean, OpenKilled,
                 OpenLost, OpenGone, OpenNew, OpenEmpty, Close, Grow, Shrink)
}  # fmt: skip

SAVED = "open ftruncate pwrite fsync rename close"
MADE = "open ftruncate fallocate mmap msync fsync close"
MUST = {  # calls that fail in each, or the shim does not work
    "SaveOver": SAVED, "SaveInThread": SAVED, "SaveFirst": SAVED, "SaveBusy": SAVED, "Sync": SAVED,
    "OpenCopy": "open pread close", "OpenSealed": "open pread mmap close", "OpenClean": "open mmap msync",
    "OpenKilled": "open mmap",
    "OpenLost": MADE + " pread rename", "OpenGone": MADE + " pread link unlink", "OpenNew": MADE + " link unlink",
    "OpenEmpty": MADE + " rename", "Close": "msync close", "Grow": "fallocate ftruncate", "Shrink": "ftruncate",
}  # fmt: skip
