"""Every call that touches a file fails, at each of its turns: the old file or the new one, an error with its number,
nothing left beside it, no descriptor lost, and a cache that goes on.

The calls fail in a child, whose libc is behind tests/fault/shim.c; it runs `main` below, all turns in one process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import gbcache
from gbcache import Cache, ImageError, live
from gbcache._packed import FILE_ID_AT

SHIM = Path(__file__).parent / "fault" / "shim.c"
SHORT = os.environ.get("GB_SLICE") == "short"
CALLS = (
    "open", "fstat", "flock", "fchmod", "ftruncate", "fallocate", "mmap", "msync", "pread", "read", "pwrite",
    "write", "fsync", "fdatasync", "rename", "link", "unlink", "close",
)  # fmt: skip
PIECEMEAL = ("pwrite", "write", "pread", "read")  # these may do a part, and are called again
TOLD = (
    "pwrite",
    "write",
    "writev",
    "ftruncate",
    "fallocate",
    "msync",
    "fsync",
    "fdatasync",
    "rename",
    "link",
)
"""Where one of these fails, whoever asked is told: the file may look right now, and not be on disk."""
FAIL, FAIL_ON, HALF = range(3)
KEYS, SIZE = 300, "400kB"


def content(letter: str) -> dict[Any, Any]:
    return {**{i: letter * (i % 50) for i in range(KEYS)}, "long": letter * 9000}


def same(cache: Any, wanted: dict[Any, Any]) -> bool:
    return dict(cache.items()) == wanted


OLD, NEW = content("o"), content("n")


# --- what is done, and what must be true after it failed or not ------------------------------------------------


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


# --- the child -------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    call: str
    error: int
    how: int


def faults(short: bool) -> Iterator[Fault]:
    for call in CALLS:
        yield Fault(call, errno.ENOSPC if call in ("pwrite", "fallocate") else errno.EIO, FAIL)
        if call in PIECEMEAL:
            yield Fault(call, 0, HALF)
            yield Fault(call, errno.EINTR, FAIL)
        if short:
            continue
        yield Fault(call, errno.EIO if call in ("pwrite", "fallocate") else errno.ENOSPC, FAIL)
        yield Fault(call, errno.EIO, FAIL_ON)
        if call not in PIECEMEAL:
            yield Fault(call, errno.EINTR, FAIL)


def refuses(error: int, how: int) -> bool:
    """Not where a part is done, nor where the call was interrupted: both go on."""
    return how != HALF and error != errno.EINTR


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Child:
    """Tries every fault at every turn of one work; tells what was wrong."""

    def __init__(self, work: str, root: Path) -> None:
        self.shim, self.root = ctypes.CDLL(None), root
        self.made: Any = None
        self.unraisable: list[str] = []
        scratch = root / "scratch"
        with Cache(SIZE, path=scratch) as cache:
            cache.update(OLD)
            cache.save(root / "old")
            opened = scratch.read_bytes()
        self.work = WORKS[work](root, (root / "old").read_bytes(), scratch.read_bytes(), opened)
        self.shim.shim_root(os.fsencode(root))

    def attempt(self, fault: Fault, turn: int) -> tuple[int, BaseException | None]:
        """How many such calls there were, and what was raised."""
        self.made, raised = None, None
        self.shim.shim_arm(fault.call.encode(), turn, fault.error, fault.how)
        try:
            self.made = self.work.act()
        except (OSError, ImageError) as error:
            raised = error
            while error is not None:  # or the frames would keep what they had open
                error = error.with_traceback(None).__context__
        finally:
            count = self.shim.shim_disarm()
        return count, raised

    def wrong(self, fault: Fault, raised: BaseException | None, struck: bool) -> str:
        """What does not hold after it; empty if all does."""
        if struck and raised is None and fault.call in TOLD and refuses(fault.error, fault.how):
            return "raised nothing"
        left = sorted(p.name for p in self.root.iterdir() if p.name.endswith((".saving", ".new")))
        if left and not (fault.call == "unlink" and fault.how == FAIL_ON):
            return f"left {left}"
        if raised is not None and getattr(raised, "errno", None) != fault.error:
            return f"raised {raised!r}"
        if raised is not None and fault.call in PIECEMEAL and fault.error in (0, errno.EINTR):
            return f"raised {raised!r}, but was to go on"
        try:
            if not self.work.good(self.made, raised is not None):
                return f"content, after {raised!r}"
        except (OSError, ImageError, AssertionError) as error:
            return f"{error!r}, after {raised!r}"
        self.made = None
        return self.lost()

    def lost(self) -> str:
        """Descriptors that nobody has any more, and errors that nobody could be told."""
        here = self.open - 2 * isinstance(self.work, Close)  # whose file and mapping are closed now
        if descriptors() != here:
            gc.collect()
        more = descriptors() - here
        return f"{more} descriptors more" if more else ", ".join(self.unraisable)

    def clean(self) -> None:
        self.made, self.unraisable = None, []
        for path in self.root.iterdir():
            if path.name != "l.gbc" or not isinstance(self.work, Sync):
                path.unlink()

    def run(self, short: bool) -> dict[str, Any]:
        tried, turns, bad = 0, dict.fromkeys(CALLS, 0), []
        sys.unraisablehook = lambda told: self.unraisable.append(repr(told.exc_value))
        for fault in faults(short):
            for turn in range(1, 200):
                self.clean()
                self.work.prepare()
                self.open = descriptors()
                count, raised = self.attempt(fault, turn)
                turns[fault.call] = max(turns[fault.call], count)
                what = self.wrong(fault, raised, count >= turn)
                if what:
                    bad.append(f"{fault} turn {turn}: {what}")
                if count < turn:
                    break
                tried += 1
        sys.unraisablehook = sys.__unraisablehook__
        return {"tried": tried, "turns": turns, "bad": bad}


def careless(name: str) -> None:
    """A fault to be found: from here on nobody hears that this call failed."""
    real = getattr(os, name)

    def call(*args: Any) -> None:
        with contextlib.suppress(OSError):
            real(*args)

    setattr(os, name, call)


def main(work: str, root: str, short: str, *planted: str) -> None:
    for name in planted:
        careless(name)
    print(json.dumps(Child(work, Path(root)).run(bool(int(short)))))


# --- the tests -------------------------------------------------------------------------------------------------

needs_shim = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("gcc"),
    reason="the calls are made to fail by a preloaded library: Linux, and gcc (Debian: apt-get install gcc)",
)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", str(SHIM), "-o", str(made), "-ldl"], check=True
    )
    return made


def run_child(shim: Path, work: str, root: Path, *planted: str) -> dict[str, Any]:
    before = os.environ.get("LD_PRELOAD", "")
    package = str(Path(gbcache.__file__).parent.parent)
    env = {**os.environ, "LD_PRELOAD": f"{before} {shim}".strip(), "PYTHONPATH": package}
    call = [sys.executable, __file__, work, str(root), str(int(SHORT)), *planted]
    ran = subprocess.run(call, env=env, cwd="/", capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return dict(json.loads(ran.stdout))


@needs_shim
@pytest.mark.parametrize("work", WORKS)
def test_each_call_fails(work: str, shim: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as root:
        told = run_child(shim, work, Path(root))
    assert not told["bad"], "\n".join(told["bad"][:20])
    assert told["tried"] and all(told["turns"][call] for call in MUST[work].split()), told


@needs_shim
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_an_error_that_is_swallowed_is_found(call: str, shim: Path, tmp_path: Path) -> None:
    told = run_child(shim, "SaveOver", tmp_path, call)
    assert any(f"'{call}'" in what and "raised nothing" in what for what in told["bad"]), told


if __name__ == "__main__":
    main(*sys.argv[1:])
