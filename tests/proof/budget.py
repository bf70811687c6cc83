"""The budget: what is accounted never passes it, and what the process grows by is the budget and 2 % more.

    python tests/proof/budget.py [--steps N] [--seed S] [--accounts]

The accounts are compared after each of N random operations: `used` and the sum of all parts within `max_bytes`, and an
entry that cannot fit refused, with nothing evicted. The growth is that of a child's private dirty memory, in five
patterns of sizes (one of them flips from small to large values and back), for a private cache, for a live file (its
pages are the file's, and count), and during a save. `--accounts` leaves the growth out: for another build. With
`--plant` the budget that is compared with is a hundredth less.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import said

from gbcache import BudgetError, Cache
from gbcache._packed import BUILD, smallest

MIB = 1 << 20
BUDGET = 64_000_000


# --- the accounts ----------------------------------------------------------------------------------------------


def over(cache: Any, budget: int) -> str:
    told = cache.memory()
    parts = {name: getattr(told, name) for name in dir(told) if not name.startswith("_")}
    total = parts["total"]
    if total > budget or cache.stats().used_bytes > budget:
        return f"{cache.stats().used_bytes} used, {total} in all of {budget}"
    return ""


def refused(cache: Any, key: str, size: int) -> str:
    """A value that can never fit: an error, the old value as it was, and nothing evicted for it."""
    before, old = cache.stats(), cache.peek(key, None)
    try:
        cache[key] = b"x" * size
    except BudgetError:
        after = cache.stats()
        same = before.evictions == after.evictions and before.entries == after.entries
        return (
            ""
            if same and cache.peek(key, None) == old
            else f"{size} bytes: refused, but {before} became {after}"
        )
    return f"{size} bytes were taken into {cache.max_bytes}"


def step(cache: Any, dice: random.Random, budget: int) -> str:
    roll, key = dice.random(), f"k{int(dice.random() ** 2 * 5000)}"
    size = int(dice.choice([10, 100, 1000, 5000, budget // 8, budget]) * dice.random() * 0.5)
    if roll < 0.6:
        try:
            cache.set(key, b"v" * size, ttl=dice.choice([None, None, 0.05, 100]))
        except BudgetError:
            if size < budget // 8:
                return f"{size} bytes were refused by {budget}"
    elif roll < 0.8:
        cache.get(key)
    elif roll < 0.9:
        cache.delete_many([key, f"k{dice.randrange(5000)}"])
    elif roll < 0.93:
        cache.incr(f"n{dice.randrange(9)}")
    elif roll < 0.95:
        cache.set_many({f"m{i}": "m" * dice.randrange(300) for i in range(20)})
    elif roll < 0.97:
        cache.touch(key, ttl=1)
    elif roll < 0.98:
        return refused(cache, key, budget + dice.randrange(1000))
    elif roll < 0.985:
        cache.expire()
    elif roll < 0.9852:
        cache.clear()
    return ""


def accounts(steps: int, seed: int, plant: bool) -> tuple[int, str]:
    """Looks, and what was wrong."""
    looks = 0
    for n, budget in enumerate((smallest() + 20_000, 300_000, 4_000_000)):
        dice = random.Random(f"{seed}:{n}")
        events = "16kB" if n == 1 and budget > smallest() + 50_000 else None
        with Cache(budget, events=events) as cache:
            cache["n0"] = 1
            most = budget
            for i in range(steps // 3):
                what = step(cache, dice, most) or over(cache, most * 99 // 100 if plant else most)
                looks += 1
                if i % 20_000 == 19_999:
                    most = dice.randrange(max(smallest() + 50_000, budget // 2), budget * 2)
                    cache.resize(most)
                    cache.check()
                if what:
                    return looks, f"budget {most}, operation {i}: {what}"
            cache.check()
    return looks, ""


# --- the growth, in a child ------------------------------------------------------------------------------------


def grown() -> int:
    """Bytes of this process that are its own: private, or of a file that it maps and wrote."""
    total = 0
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Private_Dirty", "Private_Clean", "Shared_Dirty"):
            total += int(rest.split()[0]) * 1024
    return total


def sizes(pattern: str, dice: random.Random) -> Iterator[int]:
    """Sizes of values, about three budgets of them."""
    left = 3 * BUDGET
    while left > 0:
        if pattern == "one":
            size = 100
        elif pattern == "mixed":
            size = int(10 ** dice.uniform(0.5, 4))
        elif pattern == "large":
            size = dice.randrange(100_000, 4_000_000)
        elif pattern == "growing":
            size = 20 + (3 * BUDGET - left) * 3000 // (3 * BUDGET)
        else:  # flip: small, then large, then small
            size = 60 if left > 2 * BUDGET or left < BUDGET else 3000
        left -= size + 40
        yield size


PATTERNS = ["one", "mixed", "large", "growing", "flip"]


def child(pattern: str, how: str, seed: int, folder: str) -> dict[str, Any]:
    dice, value = random.Random(seed), b"x" * 4_000_000
    path = os.path.join(folder, "live") if how == "live" else None
    for warm in range(2):  # what the interpreter itself takes once
        with Cache(200_000) as small:
            small.update(dict.fromkeys(range(100), value[:10]))
            small.save(os.path.join(folder, f"warm{warm}"))
    gc.collect()
    before, peak = grown(), 0
    cache = Cache(BUDGET, path=path)
    saving = None
    for n, size in enumerate(sizes(pattern, dice)):
        cache[n] = value[:size]
        if n % 20_000 == 0 or size > 100_000:
            peak = max(peak, grown())
        if how == "save" and n % 50_000 == 49_999 and (saving is None or saving.done):
            saving = cache.save(os.path.join(folder, "save"), wait=False)
    peak = max(peak, grown())
    if how == "save":
        over_ = threading.Event()

        def look() -> None:
            nonlocal peak
            while not over_.is_set():
                peak = max(peak, grown())
                time.sleep(0.002)

        if saving is not None:
            saving.wait()
        thread = threading.Thread(target=look)
        thread.start()
        saving = cache.save(os.path.join(folder, "save"), wait=False)
        for n in range(20_000):
            cache[n] = value[:200]
        saving.wait()
        over_.set()
        thread.join()
    cache.check()
    entries = len(cache)
    cache.close()
    return {"peak": peak - before, "entries": entries}


def growth(seed: int, plant: bool) -> None:
    ram = "/dev/shm" if os.path.isdir("/dev/shm") else None
    budget = BUDGET * (0.8 if plant else 1)
    for how, more, name in (
        ("private", 4 * MIB, "the process grows by the budget + 2 % + 4 MiB at most"),
        ("live", 32 * MIB, "a live file: by the budget + 2 % + 32 MiB at most"),
        ("save", 32 * MIB, "during a save: by the budget + 2 % + 32 MiB at most"),
    ):
        allowed, worst = budget * 1.02 + more, 0.0
        for pattern in PATTERNS:
            with tempfile.TemporaryDirectory(dir=ram) as folder:
                call = [
                    sys.executable,
                    __file__,
                    "--child",
                    pattern,
                    how,
                    folder,
                    "--seed",
                    str(seed),
                ]
                ran = subprocess.run(call, capture_output=True, text=True, timeout=600)
            if ran.returncode:
                print(ran.stderr[-3000:])
                said.row(name, f"{pattern}: exit status {ran.returncode}", False)
                return
            told = json.loads(ran.stdout)
            print(
                f"{how}, {pattern}: {told['peak']:,} bytes more, {told['entries']:,} entries",
                flush=True,
            )
            worst = max(worst, told["peak"])
        said.row(
            name,
            f"{worst / 1e6:.1f} MB of {allowed / 1e6:.1f}, {len(PATTERNS)} patterns",
            0.5 * budget < worst <= allowed,
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--accounts", action="store_true", help="the accounts alone")
    parser.add_argument("--plant", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child[0], args.child[1], args.seed, args.child[2])))
        return 0
    build = "tiny" if BUILD["tiny"] else "normal"
    looks, wrong = accounts(args.steps, args.seed, args.plant)
    print(f"seed {args.seed}, the {build} build: {looks:,} looks. {wrong}", flush=True)
    said.row(
        f"accounted bytes within the budget after each operation, {build} build; too large: refused, nothing evicted",
        f"{looks:,} operations, {wrong or '0 wrong'}",
        not wrong and looks > 0,
    )
    if not args.accounts:
        growth(args.seed, args.plant)
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
