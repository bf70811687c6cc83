"""Power cuts, replayed: what save, sync and a live file's life write is recorded, and cut off wherever it may be.

    python tests/proof/power.py [--states N] [--seed S] [--plant NAME]

A child does the work behind tests/fault/shim.c, which records each call and each page of a mapping that changed. Here
that is played to a disk which promises as little as it may: what was not synced is there or not, each write, page,
length and name on its own, in any order, the last ones in part. After every call such disks are drawn, and each
different one is opened:

- a snapshot's path holds the old version or the new one, to the byte; after `save` returned, the new one;
- a live file, opened in another boot, holds a checkpoint (the old or the new one during `sync`), or what it held when
  it was closed: never what lies in its torn pages. Where there is no checkpoint yet, it is empty, or an ImageError.

``--plant`` leaves out of the recording what makes it so, and the bad states must be found. A bad state is kept.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import said
from power_child import SIZE, THIRD, content

import gbcache
from gbcache import Cache, ImageError, files

SHIM = Path(__file__).resolve().parent.parent / "fault" / "shim.c"
CHILD = Path(__file__).resolve().parent / "power_child.py"
Files = dict[str, bytes]


# --- recordings --------------------------------------------------------------------------------------------------


class Event(NamedTuple):
    what: str
    inode: int
    path: str
    other: str
    at: int
    count: int
    data: bytes


def parsed(line: str, root: Path) -> Event:
    what, inode, path, other, at, count, data = line.rstrip("\n").split(" ")
    prefix = f"{root}/"
    return Event(
        what,
        int(inode),
        path.removeprefix(prefix),
        other.removeprefix(prefix),
        int(at),
        int(count),
        bytes.fromhex(data),
    )


class Recording(NamedTuple):
    before: dict[str, tuple[int, bytes]]  # name: inode and content
    events: list[Event]
    versions: dict[str, bytes]  # of a snapshot, "o" and "n"


def record(library: Path, root: Path, work: str, *more: str) -> Recording:
    before = {str(p.relative_to(root)): (p.stat().st_ino, p.read_bytes())
              for p in root.rglob("*") if p.is_file()}  # fmt: skip
    log = root.parent / "log"
    preload = f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()
    package = str(Path(gbcache.__file__).parent.parent)
    env = {**os.environ, "LD_PRELOAD": preload, "PYTHONPATH": package}
    call = [sys.executable, str(CHILD), work, str(root), str(log), *more]
    subprocess.run(call, env=env, cwd="/", check=True)
    versions = {}
    if work == "save":
        versions = {"o": before.get("a.gbs", (0, b""))[1], "n": (root / "a.gbs").read_bytes()}
    with open(log) as lines:
        return Recording(before, [parsed(line, root) for line in lines], versions)


def record_saves(library: Path, root: Path, dice: random.Random, sizes: int) -> list[Recording]:
    """Snapshots, each over the one before; beside some lies what a killed process had begun."""
    record(library, root, "save", "o", "10")
    made = []
    for turn in range(sizes):
        scale = 20 << turn
        if turn % 2:
            (root / "a.gbs.saving").write_bytes(b"begun " * 999)
            (root / "a.gbs.saving").chmod(0o600)
        made.append(record(library, root, "save", dice.choice("abcdef"), str(scale)))
        assert sum(e.what == "pwrite" for e in made[-1].events) >= 3, "the save was not recorded"
        with Cache.open(root / "a.gbs") as saved:
            assert saved.keys() == content("n", scale).keys()
    return made


def record_lives(library: Path, root: Path) -> list[Recording]:
    for old in root.iterdir():
        old.unlink()
    made = [record(library, root, "first"), record(library, root, "second")]
    pages = [sum(e.what == "page" for e in r.events) for r in made]
    assert min(pages) > 20, f"too few pages were recorded: {pages}"
    return made


def build(folder: Path) -> Path:
    made = folder / "shim.so"
    libraries = ["-ldl", "-lpthread"]
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", str(SHIM), "-o", str(made), *libraries], check=True
    )
    return made


# --- the disk ----------------------------------------------------------------------------------------------------


class Inode:
    """What is on disk for certain, and what may be."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.pending: list[tuple[int, bytes | None]] = []  # a write at a place; None: the length

    def sync(self, low: int = 0, high: int = 1 << 62) -> None:
        """Of a mapping that is flushed, the pages of that range; lengths are needed to find them."""
        left = []
        for at, data in self.pending:
            if data is None or low <= at < high:
                put(self.data, at, data)
            else:
                left.append((at, data))
        self.pending = left


def put(content: bytearray, at: int, data: bytes | None) -> None:
    if data is None and at < len(content):
        del content[at:]
    end = at if data is None else at + len(data)
    if end > len(content):
        content.extend(bytes(end - len(content)))
    if data is not None:
        content[at:end] = data


def drawn(n: int, dice: random.Random) -> int:
    """Which of n things happened, as bits: all, none, the first ones, all but one, one, or any."""
    kind = dice.randrange(6)
    every, one = (1 << n) - 1, dice.randrange(n) if n else 0
    return (
        every,
        0,
        (1 << one) - 1,
        every & ~(1 << one),
        1 << one if n else 0,
        dice.getrandbits(n) if n else 0,
    )[kind]


def torn(before: bytes, data: bytes, dice: random.Random, sectors: bool) -> tuple[int, bytes]:
    """A part of a write: its first 1, half, all but one bytes, or up to a sector's end; or the rest of it."""
    n = len(data)
    cut = dice.choice((1, n // 2, n - 1, dice.randrange(n), dice.randrange(n) & ~511, -1))
    if sectors:
        cut = dice.randrange(n) & ~511
    if cut < 0:  # within what it changes
        changed = [i for i in range(min(n, len(before), 4096)) if before[i] != data[i]] or [0]
        cut = dice.choice(changed) + dice.randrange(2)
    return (0, data[:cut]) if dice.random() < 0.7 else (cut, data[cut:])


class Disk:
    """`sectors`: a sector of 512 bytes is written whole or not at all; else a write ends at any byte."""

    def __init__(self, recording: Recording, sectors: bool = False) -> None:
        self.sectors = sectors
        self.inodes = {inode: Inode(data) for inode, data in recording.before.values()}
        self.names = {name: self.inodes[inode] for name, (inode, _) in recording.before.items()}
        self.pending: list[
            tuple[str, str, Inode | None]
        ] = []  # name that goes, name that comes, of what
        self.may = ""

    def play(self, e: Event) -> bool:
        """One call; whether the disk may be in another state after it."""
        if e.what == "mark":
            self.may = self.may if e.path == "=" else e.path
            return e.path != "="
        if e.what == "create":
            self.inodes[e.inode] = Inode()
        file = self.inodes.get(e.inode)
        if e.what == "fsync" and file is None:  # the directory
            for change in self.pending:
                rename(self.names, *change)
            self.pending = []
        elif e.what in ("create", "rename", "link", "unlink"):
            comes = {"create": e.path, "unlink": ""}.get(e.what, e.other)
            goes = e.path if e.what in ("rename", "unlink") else ""
            self.pending.append((goes, comes, file))
        else:
            assert file is not None, e
            if e.what in ("pwrite", "page"):
                file.pending.append((e.at, e.data))
            elif e.what == "ftruncate" or e.at > max(
                [len(file.data), *(at for at, d in file.pending if d is None)]
            ):
                file.pending.append((e.at, None))
            if e.what == "fsync":
                file.sync()
            elif e.what == "msync":
                file.sync(e.at, e.at + e.count)
        return True

    def worth(self, each: int) -> int:
        """How many draws: one where nothing is open, many where one version follows another."""
        if not self.pending and not any(inode.pending for inode in self.names.values()):
            return 1
        return each * 8 if len(self.may) > 1 else each

    def after_cut(self, dice: random.Random) -> Files:
        """Files as they may be found."""
        names = dict(self.names)
        happened = drawn(len(self.pending), dice) if dice.random() < 0.5 else -1
        for i, change in enumerate(self.pending):
            if happened >> i & 1:
                rename(names, *change)
        return {name: found(inode, dice, self.sectors) for name, inode in names.items()}


def rename(names: dict[str, Inode], goes: str, comes: str, inode: Inode | None) -> None:
    names.pop(goes, None)
    if comes and inode is not None:
        names[comes] = inode


def found(inode: Inode, dice: random.Random, sectors: bool) -> bytes:
    """The content: what is on disk, and of what may be, what is drawn, some of it in part."""
    content, n = bytearray(inode.data), len(inode.pending)
    happened, hurt = (
        drawn(n, dice),
        {dice.randrange(n) for _ in range(dice.randrange(4))} if n else set(),
    )
    for i, (at, data) in enumerate(inode.pending):
        if i in hurt and data:
            begin, part = torn(bytes(content[at : at + len(data)]), data, dice, sectors)
            put(content, at + begin, part)
        elif happened >> i & 1:
            put(content, at, data)
    return bytes(content)


# --- verdicts ----------------------------------------------------------------------------------------------------


class Bad(Exception):
    pass


def snapshot_right(may: str, state: Files, versions: dict[str, bytes]) -> str:
    """Old or new, to the byte: identical bytes are one of the two versions, which were loaded before."""
    for version in may:
        if state.get("a.gbs") == versions[version]:
            return version
    raise Bad(f"a.gbs is none of {may}")


def lay(folder: Path, state: Files) -> None:
    shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    for name, data in state.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(fd, data)
        os.close(fd)


def live_right(may: str, state: Files, folder: Path) -> str:
    lay(folder, state)
    strict = len(state) % 2 == 0
    try:
        cache = Cache(
            SIZE, path=folder / "l.gbc", on_error="raise" if strict else "empty", housekeeping=False
        )
    except ImageError as error:
        if strict and "-" in may:
            return "refused"
        raise Bad(f"refused: {error}") from None
    with cache as opened:
        try:
            opened.check()
            holds = dict(opened.items())
        except Exception as error:
            raise Bad(f"{opened.recovery}: {error!r}") from error
        left = {p.name for p in folder.iterdir()} - {
            "l.gbc",
            "l.gbc.checkpoint",
            "l.gbc.checkpoint.saving",
        }
        assert opened.recovery is not None
        if opened.recovery.how == "mended" or (left and opened.recovery.how != "clean"):
            raise Bad(f"{opened.recovery}, left {left}")
        for version in may:
            if holds == content(version):
                return f"{opened.recovery.how} {version}"
        raise Bad(f"{opened.recovery}: {len(holds)} entries, none of {may}")


def torn_refused(state: Files, folder: Path, versions: dict[str, bytes]) -> bool:
    """Beside what is proven: a disk that had lied about a sync would leave this, which the reader refuses."""
    data = state.get("a.gbs.saving")
    if data is None or data in versions.values():
        return False
    lay(folder, {"torn": data})
    try:
        Cache.open(folder / "torn").close()
    except ImageError:
        return True
    raise Bad("a torn snapshot was read")


# --- the campaign ------------------------------------------------------------------------------------------------


class Campaign:
    """Draws from recordings until there are so many different states."""

    def __init__(self, seed: int, folder: Path, plant: str = "") -> None:
        self.dice, self.plant, self.folder = random.Random(seed), plant, folder
        self.seen: set[int] = set()
        self.drawn = self.bad = self.refused = 0
        self.ends: dict[str, int] = {}
        self.first: tuple[str, Files] | None = None

    def more(self, states: int, recordings: list[Recording], each: int) -> None:
        """So many states more, or as many as one round gives."""
        goal = len(self.seen) + states
        while True:
            for recording in recordings:
                self.cut(recording, each)
            if len(self.seen) >= goal:
                return

    def cut(self, recording: Recording, each: int) -> None:
        """After each call, some `each` disks."""
        disk = Disk(recording)
        for event in planted(recording.events, self.plant):
            if not disk.play(event):
                continue
            for _ in range(disk.worth(each)):
                self.drawn += 1
                state = disk.after_cut(self.dice)
                key = hash((disk.may, tuple(sorted(state.items()))))
                if key not in self.seen:
                    self.seen.add(key)
                    self.look(disk.may, state, recording.versions)

    def look(self, may: str, state: Files, versions: dict[str, bytes]) -> None:
        try:
            end = (
                snapshot_right(may, state, versions)
                if versions
                else live_right(may, state, self.folder)
            )
            self.ends[end] = self.ends.get(end, 0) + 1
            if versions and len(self.seen) % 8 == 0:
                self.refused += torn_refused(state, self.folder, versions)
        except Bad as error:
            self.bad += 1
            self.first = self.first or (str(error), state)

    def keep(self) -> str:
        """The first bad state, where it can be looked at."""
        if self.first is None:
            return "nothing bad"
        kept = Path(tempfile.mkdtemp(prefix="power-"))
        lay(kept, self.first[1])
        return f"the first bad state is kept in {kept}: {self.first[0]}"


def planted(events: list[Event], plant: str) -> list[Event]:
    """The recording without a step that matters."""
    syncs = [i for i, e in enumerate(events) if e.what == "msync"]
    whole = [i for i in syncs if events[i].count > 16384]
    out: set[int] = set()
    if plant == "sync":  # of the file, before it is renamed
        out = {i for i, e in enumerate(events) if e.what == "fsync" and e.path.endswith(".saving")}
    elif plant == "directory":  # after the rename
        out = {
            i for i, e in enumerate(events) if e.what == "fsync" and not e.path.endswith(".saving")
        }
    elif plant == "close":  # all pages, before the state says closed
        out = set(whole)
    elif plant == "open":  # the state, before anything else changes
        out = {i for i in syncs if i not in whole and events[i].count <= 4096}
    return [e for i, e in enumerate(events) if i not in out]


class Bench:
    """Recordings, and a place to lay states out; the machine is in its third boot meanwhile."""

    def __init__(self, seed: int, sizes: int = 6) -> None:
        ram = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.made = tempfile.TemporaryDirectory(dir=ram)
        top = Path(self.made.name)
        root, self.folder, library = top / "root", top / "cut", build(top)
        root.mkdir()
        self.folder.mkdir()
        self.saves = record_saves(library, root, random.Random(seed), sizes)
        self.lives = record_lives(library, root)
        self.seed, self.kept = seed, files.boot_id
        files.boot_id = lambda: THIRD

    def close(self) -> None:
        files.boot_id = self.kept
        self.made.cleanup()

    def run(self, states: int, plant: str = "", each: int = 60) -> Campaign:
        """Two thirds of the states are a save's, the rest a live file's and its checkpoint's."""
        campaign = Campaign(self.seed, self.folder, plant)
        campaign.more(states * 2 // 3, self.saves, each)
        campaign.more(states // 3, self.lives, max(1, each // 12))
        return campaign


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--states", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", default="", choices=["", "sync", "directory", "close", "open"])
    args = parser.parse_args()
    bench = Bench(args.seed)
    done = bench.run(args.states, args.plant)
    bench.close()
    print(
        f"seed {args.seed}: {done.drawn:,} power cuts, {len(done.seen):,} different states, {done.bad:,} bad; "
        f"{done.refused:,} torn snapshots refused"
    )
    for end in sorted(done.ends):
        print(f"  {done.ends[end]:8,} {end}")
    print(done.keep())
    said.row(
        "power cuts: the old content or the new one, whole, or a file that is refused",
        f"{len(done.seen):,} different states, {done.bad} bad",
        not done.bad,
    )
    return said.verdict() if not args.plant else int(not done.bad)


if __name__ == "__main__":
    sys.exit(main())
