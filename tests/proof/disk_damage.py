"""Damaged Disks: each is refused, or all of it is right. Never a wrong value, a missing entry, or a signal.

    python tests/proof/disk_damage.py [--stores N] [--seed S]

Two stores are made, one closed and one whose process was killed. Each of N copies is damaged in one way (bits flipped,
a page smashed, zeroed, or replaced by another, a file cut off, lengthened or removed) and opened in a child, which
reads every entry and scans, then writes, removes, closes, opens again and looks at all once more. With ``--plant`` the
check of the data file is left out of the child: then wrong values or signals must be found.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import said

from gbcache import lmdbstore
from gbcache.disk import Disk
from gbcache.errors import ClosedError, FarError, ImageError

REFUSED, HARMLESS, WRONG, ODD = 0, 10, 20, 30
NAMES = {REFUSED: "refused", HARMLESS: "harmless", WRONG: "WRONG", ODD: "ODD"}
PATIENCE = 60


def content(dice: random.Random) -> dict[Any, Any]:
    """Keys and values of many kinds: leaves, branches, long values, long keys."""
    made: dict[Any, Any] = {}
    for i in range(1500):
        made[dice.choice([f"key{i}", i, (i, "t"), f"k{i}" * 30])] = dice.randbytes(
            dice.randrange(300)
        )
    for i in range(20):
        made[f"long{i}" * 150] = [i, "x" * i]
        made[f"big{i}"] = dice.randbytes(dice.randrange(3000, 40_000))
    return made


def make(root: Path, seed: int, killed: bool) -> dict[Any, Any]:
    """A store with history: free pages, deadlines, and where `killed` a journal that was not taken over."""
    dice = random.Random(seed)
    entries = content(dice)
    pid = os.fork()
    if not pid:
        disk = Disk(root, sync="interval")
        for part in range(0, 900, 100):
            disk.put_many([(f"gone{part + i}", b"x" * 200, None) for i in range(100)])
        disk._engine.flush()
        items = [(k, v, 1e6 if n % 3 == 0 else None) for n, (k, v) in enumerate(entries.items())]
        for at in range(0, len(items), 50):
            disk.put_many(items[at : at + 50])
            if at % 500 == 0:
                disk._engine.flush()
                disk.delete_many([f"gone{at + i}" for i in range(300)])
        disk.delete_many([f"gone{i}" for i in range(900)])
        if not killed:
            disk.close()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    return entries


def flip(data: bytearray, dice: random.Random) -> str:
    for _ in range(dice.choice([1, 1, 1, 2, 8])):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return "flip"


def flip_head(data: bytearray, dice: random.Random) -> str:
    """In what steers: a page's first bytes, or the two heads."""
    page = dice.choice([0, 1, dice.randrange(max(1, len(data) // 4096))])
    at = min(page * 4096 + dice.randrange(200), len(data) - 1)
    data[at] ^= 1 << dice.randrange(8)
    return "flip of a head"


def smash(data: bytearray, dice: random.Random) -> str:
    at, n = dice.randrange(max(1, len(data) // 512)) * 512, dice.choice([8, 512, 4096])
    data[at : at + n] = dice.choice([dice.randbytes(n), bytes(n)])[: len(data) - at]
    return "smashed"


def swap(data: bytearray, dice: random.Random) -> str:
    pages = max(1, len(data) // 4096)
    a, b = dice.randrange(pages) * 4096, dice.randrange(pages) * 4096
    data[a : a + 4096] = data[b : b + 4096]
    return "another page"


def cut(data: bytearray, dice: random.Random) -> str:
    del data[
        dice.choice([0, dice.randrange(len(data)), dice.randrange(len(data)) // 4096 * 4096]) :
    ]
    return "cut"


def lengthen(data: bytearray, dice: random.Random) -> str:
    data += dice.choice([bytes(4096), dice.randbytes(777)])
    return "lengthened"


def damage(folder: Path, dice: random.Random) -> str:
    files = sorted(p for p in folder.iterdir() if p.is_file())
    data_file = folder / "data.mdb"
    path = data_file if dice.random() < 0.7 else dice.choice(files)
    if path.stat().st_size == 0 or dice.random() < 0.01:
        path.unlink()
        return f"{path.name.partition('.')[0]} removed"
    before = path.read_bytes()
    data = bytearray(before)
    while data == before:  # zeros over zeros, a bit flipped twice: no damage
        how = dice.choice([flip, flip, flip_head, flip_head, smash, swap, cut, cut, lengthen])(
            data, dice
        )
    path.write_bytes(data)
    return f"{path.name.partition('.')[0]} {how}"


def compare(disk: Disk, entries: dict[Any, Any]) -> str:
    found = disk.get_many(list(entries))
    for key, value in entries.items():
        if key not in found:
            return f"{key!r:.40} is missing"
        if found[key][0] != value:
            return f"{key!r:.40} is {found[key][0]!r:.40}"
    keys, cursor = disk.scan()
    while cursor is not None:
        more, cursor = disk.scan(cursor)
        keys += more
    if set(keys) != set(entries) or len(keys) != len(entries) or disk.count() != len(entries):
        return f"{len(keys)} keys, count {disk.count()}: {set(keys) ^ set(entries)!r:.90}"
    return ""


def look(folder: Path, entries: dict[Any, Any], again: bool = True) -> tuple[int, str]:
    """In the child: what comes of it."""
    try:
        disk = Disk(folder)
    except ImageError as error:
        return REFUSED, error.rule.partition(":")[0]
    wrong = compare(disk, entries)
    if not again:
        return (WRONG, wrong) if wrong else (HARMLESS, "")
    new = {f"new{i}": b"n" * i for i in range(300)}
    disk.put_many([(key, value, None) for key, value in new.items()])
    gone = list(entries)[::3]
    there = disk.delete_many(gone)
    disk.close()
    kept = {key: value for key, value in entries.items() if key not in set(gone)} | new
    with Disk(folder) as disk:
        wrong = wrong or ("" if all(there) else "not all could be removed") or compare(disk, kept)
    return (WRONG, wrong) if wrong else (HARMLESS, "")


def trial(folder: Path, entries: dict[Any, Any], known: Any = None) -> tuple[int, str]:
    """(outcome, what was said); an outcome below 0 is the signal that the child died of. `known`: what the check of
    the sound file said, in the place of a check."""
    reads, writes = os.pipe()
    pid = os.fork()
    if not pid:
        code = ODD
        signal.alarm(PATIENCE)
        try:
            os.close(reads)
            if known:
                lmdbstore.check_file = lambda file, path: known
            code, said = look(folder, entries, again=not known)
            os.write(writes, said.encode()[:500])
        except (ImageError, FarError, ClosedError) as error:
            code = ODD  # once it is open, nothing is damaged
            os.write(writes, f"{type(error).__name__}: {error}".encode()[:500])
        except BaseException as error:
            os.write(writes, f"{type(error).__name__}: {error}".encode()[:500])
        finally:
            os._exit(code)
    os.close(writes)
    with open(reads, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    return (-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)), said


def campaign(stores: int, seed: int, plant: bool = False) -> tuple[Counter[str], list[str]]:
    """Outcomes, and what was wrong."""
    outcomes: Counter[str] = Counter()
    problems = []
    ram = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=ram) as made:
        root = Path(made)
        sound = []
        for killed in (False, True):
            folder = root / ("killed" if killed else "closed")
            sound.append((folder, make(folder, seed, killed)))
        for n in range(stores + 2):  # the first two are not damaged, and must be well
            dice = random.Random(f"{seed}:{n}")
            source, entries = sound[n % 2]
            folder = root / "damaged"
            shutil.copytree(source, folder)
            how = damage(folder, dice) if n >= 2 else "none"
            known = lmdbstore.check_file((source / "data.mdb").read_bytes(), "") if plant else None
            code, said = trial(folder, entries, known)
            name = NAMES.get(code, f"SIGNAL {-code}")
            outcomes[name] += 1
            outcomes[f"  {how}: {name}"] += 1
            if code not in (REFUSED, HARMLESS) or (n < 2 and code != HARMLESS):
                problems.append(f"store {n} ({source.name}, {how}): {name}: {said}")
            shutil.rmtree(folder)
    return outcomes, problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", action="store_true")
    args = parser.parse_args()
    outcomes, problems = campaign(args.stores, args.seed, args.plant)
    for name, n in sorted(outcomes.items(), key=lambda pair: pair[0].startswith(" ")):
        print(f"{name}: {n}")
    print("\n".join(problems[:20]))
    print(
        f"seed {args.seed}: {args.stores} damaged stores, {len(problems)} with a wrong value or a signal"
    )
    if args.plant:
        return int(not problems)
    refused, harmless = outcomes[NAMES[REFUSED]], outcomes[NAMES[HARMLESS]] - 2
    said.row(
        "a damaged Disk is refused, or all of it is right",
        f"{args.stores:,} damaged stores: {refused:,} refused, {harmless:,} unharmed, {len(problems)} wrong",
        not problems and refused > 0,
    )
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
