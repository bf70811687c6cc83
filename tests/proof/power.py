"""Power cuts, replayed: what a save wrote is recorded, and cut off at every call, with every way the disk may have it.

    python tests/proof/power.py [--states N] [--seed S]

A write that was not synced may be on disk or not, each on its own, and the last one in part; a rename may be on disk
before its directory is synced, or not. In each such state the snapshot's path must hold the old version or the new one,
to the byte. (The file beside it, in whatever state, is never read.) With ``--plant`` the sync before the rename is left
out of the recording, and the states that are neither must be found.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gbcache

SHIM = Path(__file__).parent.parent / "fault" / "shim.c"
SAVE = """
import sys, gbcache
cache = gbcache.Cache("4MB")
for i in range(int(sys.argv[2])):
    cache[i] = sys.argv[3] * 100
cache["long"] = sys.argv[3] * 70_000
cache.save(sys.argv[1])
"""


class Call(NamedTuple):
    what: str
    path: str
    at: int = 0
    data: bytes = b""


def shim(folder: Path) -> Path:
    made = folder / "shim.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", str(SHIM), "-o", str(made), "-ldl"], check=True
    )
    return made


def record(library: Path, root: Path, entries: int, letter: str) -> list[Call]:
    """The calls of one save to root/a.gbs."""
    log = root.parent / "log"
    env = {**os.environ, "LD_PRELOAD": str(library), "SHIM_ROOT": str(root), "SHIM_LOG": str(log)}
    env["PYTHONPATH"] = str(Path(gbcache.__file__).parent.parent)
    call = [sys.executable, "-c", SAVE, str(root / "a.gbs"), str(entries), letter]
    subprocess.run(call, env=env, cwd="/", check=True, timeout=120)
    calls = []
    for line in log.read_text().splitlines():
        what, path, *rest = line.split(" ")
        if what == "pwrite":
            calls.append(Call(what, path, int(rest[0]), bytes.fromhex(rest[1])))
        elif what == "rename":
            calls.append(Call(what, path, 0, rest[0].encode()))
        else:
            calls.append(Call(what, path, int(rest[0]) if rest and rest[0] else 0))
    return calls


def apply(content: bytearray, call: Call, part: int) -> None:
    """A write, or its first `part` bytes."""
    data = call.data[:part]
    if len(content) < call.at + len(data):
        content.extend(bytes(call.at + len(data) - len(content)))
    content[call.at : call.at + len(data)] = data


def subsets(n: int, most: int, dice: random.Random) -> Iterator[int]:
    """Every set of n writes that may be missing, or `most` of them drawn."""
    if 2**n <= most:
        yield from range(2**n)
        return
    yield 0
    yield 2**n - 1
    for _ in range(most - 2):
        yield dice.getrandbits(n)


def states(
    calls: list[Call], root: Path, old: bytes, most: int, dice: random.Random
) -> Iterator[bytes]:
    """What root/a.gbs may hold after a power cut, at each call."""
    final, folder = str(root / "a.gbs"), str(root)
    synced = bytearray()  # of the new file, beside
    pending: list[Call] = []
    renamed, durable = False, False
    for at in range(len(calls) + 1):
        for on_disk in {durable, renamed}:
            for chosen in subsets(len(pending), most, dice):
                content = bytearray(synced)
                for i, call in enumerate(pending):
                    if chosen >> i & 1:
                        apply(content, call, len(call.data))
                yield bytes(content) if on_disk else old
                if pending and not chosen >> (len(pending) - 1) & 1:
                    last = pending[-1]
                    for part in {1, len(last.data) // 2, len(last.data) - 1}:
                        torn = bytearray(content)
                        apply(torn, last, part)
                        yield bytes(torn) if on_disk else old
        if at == len(calls):
            return
        call = calls[at]
        if call.what == "pwrite":
            pending.append(call)
        elif call.what == "ftruncate":
            synced, pending = bytearray(), []
        elif call.what == "fsync" and call.path != folder:
            for write in pending:
                apply(synced, write, len(write.data))
            pending = []
        elif call.what == "fsync":
            durable = renamed
        elif call.what == "rename" and call.data.decode() == final:
            renamed = True


def campaign(wanted: int, seed: int, plant: bool = False) -> tuple[int, int, int]:
    """(states, different ones, bad ones) of saves of several sizes."""
    dice, seen, bad, count = random.Random(seed), set(), 0, 0
    ram = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=ram) as made:
        root = Path(made) / "root"
        root.mkdir()
        library, final = shim(Path(made)), root / "a.gbs"
        size, most = 40, 256
        record(library, root, 10, "o")
        while count < wanted:
            old = final.read_bytes()
            calls = record(library, root, size, random.Random(size + seed).choice("abcdef"))
            if plant:
                calls = [c for c in calls if c.what != "fsync" or c.path == str(root)]
            new = final.read_bytes()
            assert sum(c.what == "pwrite" for c in calls) >= 3, "the save was not recorded"
            for content in states(calls, root, old, most, dice):
                count += 1
                seen.add(hashlib.blake2b(content, digest_size=16).digest())
                bad += content not in (old, new)
            size = size * 2 if size < 6000 else 50
            most = min(most * 2, 4096)
    return count, len(seen), bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", action="store_true")
    args = parser.parse_args()
    count, different, bad = campaign(args.states, args.seed, args.plant)
    print(
        f"seed {args.seed}: {count:,} states after a power cut, {different:,} contents, {bad:,} neither old nor new"
    )
    return bool(bad) != args.plant


if __name__ == "__main__":
    sys.exit(main())
