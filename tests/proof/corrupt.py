"""A snapshot that is damaged is refused, whatever the damage: every bit of it flipped, every length it can be cut to.

    python tests/proof/corrupt.py [--plant]

In both modes, `copy` (read into a cache) and `r` (mapped). A read of another content, another exception than
ImageError, or a signal (this runs in a child) is a failure. With `--plant` a frame's sum is not compared: a changed
byte is read as if it were right, and that must be found. Under another build: PYTHONPATH (see `make proof-corrupt`).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import said

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import test_files_corrupt as corrupt

from gbcache._packed import BUILD

BYTES = 65_536


def of_64_kib(path: Path) -> bytes:
    """A file of just under 64 KiB, of all kinds of records."""
    n = 150
    while True:
        corrupt.make(path.with_suffix(".next"), n)
        if path.with_suffix(".next").stat().st_size > BYTES:
            path.with_suffix(".next").unlink()
            return path.read_bytes()
        path.with_suffix(".next").rename(path)
        n += 25


def cut_all(path: Path, data: bytes, mode: str) -> int:
    path.write_bytes(data)
    for length in range(len(data) - 1, -1, -1):
        os.truncate(path, length)
        corrupt.refused(path, mode)
    return len(data)


def all_of(folder: Path, mode: str, plant: bool) -> int:
    """In the child: how many damaged files were refused."""
    path = folder / f"{mode}.gbs"
    data = of_64_kib(path)
    os.chmod(path, 0o600)
    if plant:
        real = corrupt.read

        def careless(where: Path, how: str) -> dict[Any, Any]:
            bytes_ = where.read_bytes()
            where.write_bytes(corrupt.Forged(bytes_).sealed())
            try:
                return real(where, how)
            finally:
                where.write_bytes(bytes_)

        corrupt.read = careless
    flips = corrupt.flip_all(path, data, mode, lambda at: iter(range(8)))
    return flips + cut_all(path, data, mode)


def begin(folder: Path, mode: str, plant: bool) -> tuple[int, int]:
    """A child, which may die of what it reads, and the pipe it tells through."""
    reads, writes = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(reads)
            told = str(all_of(folder, mode, plant))
            status = 0
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writes, told.encode()[:1000])
        os._exit(status)
    os.close(writes)
    return pid, reads


def end(folder: Path, mode: str, pid: int, reads: int) -> tuple[int, str]:
    """Refused files, and what was wrong."""
    with open(reads, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    if not status:
        return int(told), ""
    case = said.kept(f"corrupt-{mode}.gbs")
    case.write_bytes((folder / f"{mode}.gbs").read_bytes())
    return 0, f"{mode}: {told or f'signal {os.WTERMSIG(status)}'}; kept: {case}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plant", action="store_true")
    args = parser.parse_args()
    ram = "/dev/shm" if os.path.isdir("/dev/shm") else None
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=ram) as made:
        children = [(mode, *begin(Path(made), mode, args.plant)) for mode in corrupt.MODES]
        told = [end(Path(made), *each) for each in children]
    wrong = [what for _, what in told if what]
    print("\n".join(wrong), f"{time.monotonic() - begun:.0f} s", BUILD)
    if args.plant:
        return int(not wrong)
    total = sum(n for n, _ in told)
    said.row(
        "a snapshot of 64 KiB: every bit flipped, every truncation, read and mapped: refused",
        f"{total:,} files, each refused{', under ASan and UBSan' if 'ASAN_OPTIONS' in os.environ else ''}"
        if not wrong
        else f"{len(wrong)} modes WRONG: {wrong[0]}",
        not wrong and total > 8 * BYTES,
    )
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
