"""Every call that touches a file fails, at each of its turns: the old file or the new one, an error with its number,
nothing left beside it, no descriptor lost, and a cache that goes on.

The calls fail in a child, whose libc is behind tests/fault/shim.c; it runs `main` below, all turns in one process.
What is done there is in `file_works.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from file_works import MUST, OLD, SIZE, WORKS, Close, Sync
from shimmed import build_shim, needs_shim

import gbcache
from gbcache import Cache, ImageError

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


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim") / "shim.so")


def run_child(shim: Path, work: str, root: Path, *planted: str) -> dict[str, Any]:
    before = os.environ.get("LD_PRELOAD", "")
    paths = os.pathsep.join(map(str, [Path(gbcache.__file__).parent.parent, Path(__file__).parent]))
    env = {**os.environ, "LD_PRELOAD": f"{before} {shim}".strip(), "PYTHONPATH": paths}
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
