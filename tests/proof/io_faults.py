"""Each call that touches a file fails, at each of its turns, in every way; and disks that are really full.

    python tests/proof/io_faults.py [--stride N]

EIO, ENOSPC, EINTR, half of what was asked for, and a failure that stays: in every work of tests/file_works.py
(save, sync, open in all modes, create, close, resize of a live file) and in the life of a Disk
(tests/test_disk_faults.py; of its turns each N-th, as a life takes long). The disk that is full is a tmpfs of 2 MB,
mounted where this runs as root.

It takes no seed, as nothing of it is drawn: the works and the lives are the same each time, and all their turns (of a
life each N-th) are tried in order. What is bad is named by work, call, error, way and turn, and the same command tries
it again; of a life alone: test_disk_faults.fail(folder, shim, ["CALL:TURN:ERRNO:WAY"]). Where a thread of the library
works beside (SaveInThread, a Disk's), the turn may be another call's than last time.
"""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import said

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import test_disk_faults as disks
import test_files_faults as files
from file_works import MUST, WORKS
from shimmed import build_shim

from gbcache import Cache
from gbcache.disk import Disk
from gbcache.errors import FarError

ROOM = 2_000_000
DISK_CALLS = (
    "open",
    "fstat",
    "flock",
    "ftruncate",
    "mmap",
    "pread",
    "pwrite",
    "writev",
    "fsync",
    "fdatasync",
    "rename",
    "unlink",
    "close",
)
"""What a Disk and its LMDB call in a life that begins with no file: no write, read, link, msync or fallocate."""
TURNS = 199
"""The last turn test_files_faults.py tries."""
MOST = 400
"""The last turn, nearly, that is tried of a call in a Disk's life."""


def of_files(shim: Path) -> None:
    """All faults of a cache's files."""
    files.SHORT = False
    tried, points, bad = 0, 0, list[str]()
    for work in WORKS:
        ram = "/dev/shm" if os.path.isdir("/dev/shm") else None
        with tempfile.TemporaryDirectory(dir=ram) as root:
            told = files.run_child(shim, work, Path(root))
        missing = [call for call in MUST[work].split() if not told["turns"][call]]
        tried += told["tried"]
        points += sum(told["turns"].values())
        bad += [f"{work}: {what}" for what in told["bad"]]
        bad += [f"{work}: {call} never failed: nothing was proved" for call in missing]
        more = [call for call, turns in told["turns"].items() if turns >= TURNS]
        bad += [f"{work}: {call} has {TURNS} turns or more: not all failed" for call in more]
        print(f"{work}: {told['tried']} faults, {len(told['bad'])} bad", flush=True)
    print("\n".join(bad[:20]), end="\n" if bad else "")
    said.row(
        "save, sync, load, live file: each call fails in each way: old or new, an error, nothing left, it goes on",
        f"{tried:,} faults at {points:,} calls of {len(WORKS)} works, {len(bad)} bad",
        not bad and tried > 1000,
    )


def faults_of(call: str, turns: range) -> list[str]:
    kinds = [(errno.EIO, files.FAIL), (errno.ENOSPC, files.FAIL), (errno.EIO, files.FAIL_ON)]
    if call in (*files.PIECEMEAL, "writev"):
        kinds += [(0, files.HALF), (errno.EINTR, files.FAIL)]
    return [f"{call}:{turn}:{code}:{how}" for turn in turns for code, how in kinds]


def of_disk(shim: Path, stride: int) -> None:
    """All faults of a Disk's life, some turns of one call in a process."""
    tried, reached, cut, bad = 0, list[str](), list[str](), list[str]()
    for call in DISK_CALLS:
        last, struck_here = 1, 0
        while last < MOST:
            turns = range(last, last + 4 * stride, stride)
            with tempfile.TemporaryDirectory() as root:
                try:
                    struck, _ = disks.fail(Path(root), shim, faults_of(call, turns))
                except AssertionError as error:
                    bad.append(f"{call}, turns {turns}: {str(error)[-600:]}")
                    break
            struck_here += struck
            last += 4 * stride
            if not struck:
                break
        else:
            cut.append(call)
        tried += struck_here
        reached += [call] if struck_here else []
        print(f"a Disk's {call}: {struck_here} faults", flush=True)
    print("\n".join(bad[:10]), end="\n" if bad else "")
    which = "each of its turns" if stride == 1 else f"1 of {stride} of its turns"
    said.row(
        f"a Disk: each call fails in each way, at {which}: memory and disk agree, what was acknowledged is there",
        f"{tried:,} faults at {', '.join(reached)}; {len(bad)} bad"
        + (f"; no turn after some {MOST} was tried of {', '.join(cut)}" if cut else ""),
        not bad and set(reached) == set(DISK_CALLS),
    )


# --- a disk that is full ---------------------------------------------------------------------------------------


@contextmanager
def small_disk() -> Iterator[Path | None]:
    """A mounted tmpfs; None where that is not allowed."""
    with tempfile.TemporaryDirectory() as made:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", made]
        if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
            yield None
            return
        try:
            yield Path(made)
        finally:
            subprocess.run(["umount", made], check=True)


def fill(folder: Path) -> None:
    """Until nothing more goes in."""
    with (folder / "filler").open("wb", buffering=0) as out, _full():
        while True:
            out.write(b"x" * 4096)


@contextmanager
def _full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def says_full(call: Any) -> str:
    try:
        call()
    except (OSError, FarError) as error:
        return "" if error.errno == errno.ENOSPC else f"raised {error!r}"
    return "raised nothing"


def full_save(folder: Path) -> list[str]:
    cache = Cache("1MB")
    cache.update(dict.fromkeys(range(1000), b"old" * 50))
    cache.save(folder / "saved")
    old = (folder / "saved").read_bytes()
    fill(folder)
    cache.update(dict.fromkeys(range(1000), b"new" * 60))
    wrong = [f"save: {what}" for what in [says_full(lambda: cache.save(folder / "saved"))] if what]
    if (folder / "saved").read_bytes() != old:
        wrong.append("save: the old file is another")
    (folder / "filler").unlink()
    if sorted(p.name for p in folder.iterdir()) != ["saved"]:
        wrong.append(f"save: left {list(folder.iterdir())}")
    cache.save(folder / "saved")
    with Cache.open(folder / "saved") as found:
        if dict(found.items()) != dict(cache.items()):
            wrong.append("save: the next one is not what the cache holds")
    (folder / "saved").unlink()
    return wrong


def full_live(folder: Path) -> list[str]:
    fill(folder)
    wrong = [
        f"live: {what}" for what in [says_full(lambda: Cache("1MB", path=folder / "l"))] if what
    ]
    if sorted(p.name for p in folder.iterdir()) != ["filler"]:
        wrong.append(f"live: left {list(folder.iterdir())}")
    (folder / "filler").unlink()
    with Cache("500kB", path=folder / "l") as cache:
        cache.update({i: i for i in range(500)})
        fill(folder)
        wrong += [
            f"live: resize {what}" for what in [says_full(lambda: cache.resize("900kB"))] if what
        ]
        wrong += [f"live: sync {what}" for what in [says_full(cache.sync)] if what]
        cache.update({i: -i for i in range(500)})  # its own room is reserved: no SIGBUS
        (folder / "filler").unlink()
        cache.sync()
        cache.check()
    with Cache.open(folder / "l", "r+") as cache:
        if dict(cache.items()) != {i: -i for i in range(500)}:
            wrong.append("live: the content is another")
    for path in folder.iterdir():
        path.unlink()
    return wrong


def full_disk(folder: Path) -> list[str]:
    wrong, known = list[str](), dict[int, bytes]()
    with Disk(folder / "d") as disk:
        for i in range(100):
            disk.put_many([(i, b"a" * 100, None)])
            known[i] = b"a" * 100
        fill(folder)
        refused = 0
        for i in range(2000):
            try:
                disk.put_many([(i, b"b" * 500, None)])
                known[i] = b"b" * 500
            except FarError as error:
                refused += 1
                if error.errno != errno.ENOSPC:
                    wrong.append(f"Disk: raised {error!r}")
                    break
        if not refused:
            wrong.append("Disk: a full disk took a megabyte")
        (folder / "filler").unlink()
        disk.put_many([(5000, b"again", None)])
        known[5000] = b"again"
    with Disk(folder / "d") as disk:
        there = {key: value for key, (value, _) in disk.get_many(list(range(5001))).items()}
    if there != known:
        wrong.append(f"Disk: {len(set(there.items()) ^ set(known.items()))} entries differ")
    return wrong


def full() -> None:
    goal = "a disk that is full: an error that says so, the old version whole, and it goes on when there is room"
    with small_disk() as folder:
        if folder is None:
            said.skipped(goal, "needs root, to mount a small tmpfs")
            return
        wrong = [what for job in (full_save, full_live, full_disk) for what in job(folder)]
    print("\n".join(wrong), end="\n" if wrong else "")
    said.row(
        goal,
        f"save, live file, Disk on a tmpfs of {ROOM // 10**6} MB: {len(wrong)} wrong",
        not wrong,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stride", type=int, default=12)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        shim = build_shim(Path(made) / "shim.so")
        of_files(shim)
        of_disk(shim, args.stride)
    full()
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
