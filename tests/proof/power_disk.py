"""Power cuts of a Disk, replayed: what its journal, LMDB and their files leave wherever it may be cut off.

    python tests/proof/power_disk.py [--states N] [--seed S] [--plant NAME]

Children use a Disk through four lives (made and closed; killed; killed again; in another boot) behind
tests/fault/shim.c; power.py plays what it did to a disk that promises as little as it may, but for one thing that LMDB
rests on: a sector is written whole or not at all. Each different state is opened in a further boot. It must open, and
hold what was there after some number of operations, all of them whole: with sync="always" no fewer than had returned;
else no fewer than had been synced, with `sync()` or by its closing.

``--plant`` leaves out of the recording the syncs of one kind of file, and bad states must be found.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import power
import said
from power_child import FIRST, SECOND, THIRD, Recorder

import gbcache
from gbcache import disk, engine, files

PLANTS = {"journal": "journal", "data": "data.mdb", "names": "", "above": ""}
KEYS = 24
LONG = "k" * 600
LIFE, LIVES = 30, 4
"""Operations of a life."""


# --- what is done, in the child and again in mind ----------------------------------------------------------------


class Work:
    """Operations drawn from a seed, and what is there after each."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.there: dict[Any, Any] = {}

    def next(self) -> tuple[str, Any]:
        """One operation, done to `there`."""
        d = self.dice
        name = d.choices(("put", "big", "delete", "incr", "add", "clear"), (50, 4, 14, 16, 15, 1))[
            0
        ]
        keys = [
            d.choice((i, f"key{i}", LONG + str(i))) for i in d.sample(range(KEYS), d.randint(1, 5))
        ]
        given: Any = keys
        if name in ("put", "big"):
            size = 40_000 if name == "big" else d.choice((3, 100, 3000))
            given = [(key, d.randbytes(size), d.choice((None, 86_400.0))) for key in keys]
            self.there.update((key, value) for key, value, _ in given)
        elif name == "delete":
            for key in keys:
                self.there.pop(key, None)
        elif name == "incr":
            given = "n"
            self.there["n"] = self.there.get("n", 0) + 1
        elif name == "add":
            given = (keys[0], d.randbytes(9))
            self.there.setdefault(*given)
        else:
            self.there.clear()
        return name, given

    def states(self) -> list[dict[Any, Any]]:
        made: list[dict[Any, Any]] = [{}]
        for _ in range(LIVES * LIFE):
            self.next()
            made.append(dict(self.there))
        return made


def do(store: gbcache.Disk, name: str, given: Any) -> None:
    if name in ("put", "big"):
        store.put_many(given)
    elif name == "delete":
        store.delete_many(given)
    elif name == "incr":
        store.incr(given)
    elif name == "add":
        store.add(*given)
    else:
        store.clear()


def live(r: Recorder, sync: str, seed: str, life: str, kept: str) -> None:
    """One life. A mark says how many operations must be there, and how many may."""
    engine.LAYER, disk.BIG, engine.IDLE = 16 << 10, 64 << 10, 1e9  # so that all happens often
    work, dice, done, safe = Work(int(seed)), random.Random(seed + life), 0, int(kept)
    while done < int(life) * LIFE:
        work.next()
        done += 1

    def mark(may: int) -> None:
        r.may(f"{done if sync == 'always' else safe}-{may}")

    mark(done)
    files.boot_id = lambda: SECOND if life == "3" else FIRST
    store = gbcache.Disk(r.root / "s", sync=sync, interval=3600)
    safe = done  # what was found is in LMDB
    for _ in range(LIFE):
        mark(done + 1)
        do(store, *work.next())
        done += 1
        mark(done)
        if dice.random() < 0.1:
            store.sync()
            safe = done
            mark(done)
        if dice.random() < 0.15:
            store._engine._settle_behind()
    if life == "0":
        store.close()
        safe = done
        mark(done)
    r.shim.shim_log(None)
    os._exit(0)


def record(library: Path, root: Path, sync: str, seed: int) -> power.Recording:
    """Four lives, one after the other: made and closed; killed; killed again; in another boot."""
    events: list[power.Event] = []
    kept = "0"
    for life in range(LIVES):
        made = power.record(library, root, "disk", sync, str(seed), str(life), kept)
        events += made.events
        kept = [e.path for e in made.events if e.what == "mark"][-1].partition("-")[0]
    assert sum(e.what == "pwrite" for e in events) > LIVES * LIFE, "it was not recorded"
    return power.Recording({}, events, {})


# --- the verdicts ------------------------------------------------------------------------------------------------


def is_above(e: power.Event) -> bool:
    """Of the directory in which the store's is made; all others are named from it."""
    return os.path.isabs(e.path)


class Player(power.Disk):
    """With the store's directory itself, which is there for certain when the one above it was synced."""

    certain = False

    def play(self, e: power.Event) -> bool:
        if not is_above(e):
            return super().play(e)
        self.certain |= e.what == "fsync"
        return True

    def after_cut(self, dice: random.Random) -> power.Files:
        return super().after_cut(dice) if self.certain or dice.random() < 0.5 else {}

    def worth(self, each: int) -> int:
        return each if self.pending or any(inode.pending for inode in self.inodes.values()) else 1


class Campaign:
    def __init__(self, seed: int, folder: Path) -> None:
        self.dice, self.folder = random.Random(seed), folder
        self.seen: set[int] = set()
        self.drawn = 0
        self.ends: Counter[str] = Counter()
        self.bad: list[tuple[str, power.Files]] = []

    def cut(
        self, recording: power.Recording, wanted: list[dict[Any, Any]], each: float, plant: str
    ) -> None:
        """After each call, some `each` disks; if that is below one, after so many of the calls one."""
        player = Player(recording, sectors=True)
        for event in recording.events:
            if plant and event.what in ("fsync", "msync") and self.of(event) == plant:
                continue
            if plant and len(self.bad) > 20:
                return
            if not player.play(event):
                continue
            few = each < 1
            for _ in range(self.dice.random() < each if few else player.worth(int(each))):
                self.drawn += 1
                state = player.after_cut(self.dice)
                key = hash((player.may, tuple(sorted(state.items()))))
                if key not in self.seen:
                    self.seen.add(key)
                    self.look(player.may, state, wanted)

    @staticmethod
    def of(event: power.Event) -> str:
        if is_above(event):
            return "above"
        name = os.path.basename(event.path)
        for plant, begins in PLANTS.items():
            if begins and name.startswith(begins):
                return plant
        return "names" if not event.path.endswith("owner") else "owner"

    def look(self, may: str, state: power.Files, wanted: list[dict[Any, Any]]) -> None:
        power.lay(self.folder, state)
        low, high = map(int, may.split("-"))
        try:
            holds = contents(self.folder / "s")
        except Exception as error:
            self.bad.append((f"{may}: {error!r}", state))
            return
        for n in range(high, low - 1, -1):
            if holds == wanted[n]:
                self.ends[
                    "all that was begun"
                    if n == high
                    else "all that must be"
                    if n == low
                    else "some more"
                ] += 1
                return
        older = [n for n in range(len(wanted)) if wanted[n] == holds]
        self.bad.append(
            (f"{may}: {len(holds)} entries, as after {older or 'no number of'} operations", state)
        )


def contents(path: Path) -> dict[Any, Any]:
    with gbcache.Disk(path, sync="never") as store:
        keys, cursor = store.scan()
        while cursor is not None:
            more, cursor = store.scan(cursor)
            keys += more
        return {key: value for key, (value, _) in store.get_many(keys).items()}


class Bench:
    """Recordings, and a place to lay states out; the machine is in a further boot meanwhile."""

    def __init__(self, seed: int, recordings: int = 3) -> None:
        ram = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.made = tempfile.TemporaryDirectory(dir=ram)
        top = Path(self.made.name)
        self.folder, self.seed = top / "cut", seed
        self.folder.mkdir()
        library = power.build(top)
        self.recordings = []
        for i in range(recordings):
            for sync in ("always", "interval"):
                root = top / f"{sync}{i}"
                root.mkdir()
                number = seed * 100 + i
                made = record(library, root, sync, number)
                self.recordings.append((made, Work(number).states()))
        self.kept = files.boot_id
        files.boot_id = lambda: THIRD

    def run(self, states: int, plant: str = "", each: float = 3) -> Campaign:
        campaign = Campaign(self.seed, self.folder)
        while len(campaign.seen) < states and not (campaign.bad and plant):
            for recording, wanted in self.recordings:
                campaign.cut(recording, wanted, each, plant)
        return campaign

    def close(self) -> None:
        files.boot_id = self.kept
        self.made.cleanup()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--states", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", default="", choices=["", *PLANTS])
    args = parser.parse_args()
    bench = Bench(args.seed)
    done = bench.run(args.states, args.plant)
    bench.close()
    states = f"{len(done.seen):,} states, {len(done.bad)} bad"
    print(f"seed {args.seed}: {done.drawn:,} power cuts of a Disk, {states}")
    for end, count in done.ends.most_common():
        print(f"  {count:8,} {end}")
    if done.bad:
        kept = said.kept("power-disk")
        kept.mkdir()
        power.lay(kept, done.bad[0][1])
        print(f"the first bad state is kept in {kept}: {done.bad[0][0]}")
    if args.plant:
        return 0 if done.bad else 1
    goal = "a power cut of a Disk: what was acknowledged (always) or synced (interval) is there"
    said.row(goal, states, not done.bad)
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
