"""A snapshot that is damaged is refused, whatever the damage: every bit of it flipped, every length it can be cut to.

    python tests/proof/corrupt.py [--seed S] [--bytes N] [--plant]

The file is of the seed, to the last byte: its entries, and what the library draws and reads from clocks (the hash's
seed, the file's id, the moment), which are given here. Its digest is in the row: the same command damages the same
file. In both modes, `copy` (read into a cache) and `r` (mapped). A read of another content, another exception than
ImageError, or a signal (this runs in a child) is a failure. With `--plant` a frame's sum is not compared: a changed
byte is read as if it were right, and that must be found. Under another build: PYTHONPATH (see `make proof-corrupt`).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import said

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import test_files_corrupt as corrupt

from gbcache import Cache, _packed, snapshot
from gbcache._packed import BUILD

BYTES = 65_536
MOMENT = 1_700_000_000_000
"""Of the wall clock, in milliseconds."""
SANITIZED = b"__asan_init" in Path(_packed.__file__).read_bytes()
"""Of the build itself: its library may be loaded beside any."""


def make(path: Path, n: int, seed: int) -> None:
    """All kinds of records; the same n and seed make the same bytes."""
    draw = random.Random(seed)
    with (
        patch.object(os, "urandom", draw.randbytes),
        patch.object(snapshot, "_wall", lambda: MOMENT),
        Cache("300kB", clock=lambda: 1000.0) as cache,
    ):
        cache["long"] = draw.randbytes(draw.randrange(2500, 3500)).hex()
        for i in range(n):
            kind, size = draw.randrange(3), draw.randrange(60)
            cache[f"key {i}"] = (draw.getrandbits(50), f"v{i}", draw.randbytes(size))[kind]
        cache.update({1: 2.5, None: None, ("a", 2): [1, {"b": 2}], b"raw": "ü", "yes": True})
        cache.set("ttl", "value", ttl=10_000)
        cache.save(path)


def just_under(most: int, path: Path, seed: int) -> bytes:
    """A file as long as that at most, or less by ten entries."""
    n, following = 10, path.with_suffix(".next")
    while True:
        make(following, n, seed)
        if following.stat().st_size > most:
            assert path.exists(), f"{most} bytes are too few for a file of all kinds"
            following.unlink()
            return path.read_bytes()
        following.rename(path)
        n += 10


def cut_all(path: Path, data: bytes, mode: str) -> int:
    path.write_bytes(data)
    for length in range(len(data) - 1, -1, -1):
        os.truncate(path, length)
        corrupt.refused(path, mode)
    return len(data)


def all_of(folder: Path, mode: str, args: argparse.Namespace) -> tuple[int, str]:
    """In the child: how many damaged files were refused, and the sound one's digest."""
    path = folder / f"{mode}.gbs"
    data = just_under(args.bytes, path, args.seed)
    os.chmod(path, 0o600)
    if args.plant:
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
    return flips + cut_all(path, data, mode), hashlib.sha256(data).hexdigest()[:16]


def begin(folder: Path, mode: str, args: argparse.Namespace) -> tuple[int, int]:
    """A child, which may die of what it reads, and the pipe it tells through."""
    reads, writes = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(reads)
            told = "{} {}".format(*all_of(folder, mode, args))
            status = 0
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writes, told.encode()[:1000])
        os._exit(status)
    os.close(writes)
    return pid, reads


def end(folder: Path, mode: str, pid: int, reads: int) -> tuple[int, str, str]:
    """Refused files, the digest of the sound one, and what was wrong."""
    with open(reads, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    if not status:
        refused, digest = told.split()
        return int(refused), digest, ""
    what, damaged = f"{mode}: {told or f'signal {os.WTERMSIG(status)}'}", folder / f"{mode}.gbs"
    if damaged.exists():
        case = said.kept(f"corrupt-{mode}.gbs")
        case.write_bytes(damaged.read_bytes())
        what += f"; kept: {case}"
    return 0, "", what


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bytes", type=int, default=BYTES, help="of the file, at most")
    parser.add_argument("--plant", action="store_true")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    if "ASAN_OPTIONS" in os.environ and not SANITIZED:
        parser.error(f"{_packed.__file__} is not built with ASan")
    ram = "/dev/shm" if os.path.isdir("/dev/shm") else None
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=ram) as made:
        children = [(mode, *begin(Path(made), mode, args)) for mode in corrupt.MODES]
        told = [end(Path(made), *each) for each in children]
    wrong = [what for _, _, what in told if what]
    digests = sorted({digest for _, digest, _ in told if digest})
    if len(digests) > 1:
        wrong.append(f"one seed made two files: {', '.join(digests)}")
    print("\n".join(wrong), f"{time.monotonic() - begun:.0f} s", BUILD)
    if args.plant:
        return int(not wrong)
    total = sum(n for n, _, _ in told)
    said.row(
        f"a snapshot of {args.bytes / 1024:g} KiB: every bit flipped, every truncation, read and mapped: refused",
        f"{total:,} files, each refused{', under ASan and UBSan' if SANITIZED else ''}; seed "
        f"{args.seed}, the sound file's digest {digests[0]}"
        if not wrong
        else f"{len(wrong)} modes WRONG: {wrong[0]}; seed {args.seed}",
        not wrong and total > len(corrupt.MODES) * 8 * args.bytes,
    )
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
