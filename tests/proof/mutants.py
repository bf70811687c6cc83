"""Planted faults: does the suite see them?

    python tests/proof/mutants.py [--only NAME ...] [--list] [--seed S] [--workers N] [--files FILE ...]

`mutants.txt` lists them: one line of the core, or of the code of the binding that keeps what is promised, changed into
one that is wrong. Each is planted alone in a scratch copy of the tree, built there, and the suite is to fail: the C
tests of that room first, then the tests named for it, then all C tests, all Python tests, and those in the tiny build.
A failure, a sanitizer's report, a signal and a hang are all the same here. Whatever failed is also run over the tree
as it is, where it must pass. A mutant whose line is not there exactly once, or that draws a warning, is an error of
the list: the code moved, and the list is to follow.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import said

ROOT = Path(__file__).resolve().parent.parent.parent
LIST = Path(__file__).with_suffix(".txt")
WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Wshadow",
    "-Wstrict-prototypes",
    "-Wno-unused-function",
    "-Werror",
]
LEAST = 95  # percent
# What is likely to see a fault of a room; a mutant may name what is likelier still.
ROOMS = {
    "list": "test_small test_index", "digest": "test_small", "intent": "kill-tiny test_mend", "lock": "test_small",
    "arena": "test_arena", "arena_check": "test_arena", "table": "test_table test_pour", "wheel": "test_wheel",
    "ring": "test_ring test_chain", "index": "test_index test_store", "head": "test_store test_chain",
    "tell": "test_store test_chain", "keep": "test_snap", "room": "test_store test_chain test_rules",
    "room_check": "test_chain test_check test_rules", "chain": "test_chain",
    "store": "test_store test_chain test_snap test_rules",
    "mend": "test_mend kill-tiny kill-normal test_check", "snap": "test_snap test_records", "pour": "test_pour",
    "image": "test_mend test_check test_persist_live.py",
    "_door": "test_cache.py test_threads.py", "_hot": "test_cache.py test_stale.py test_events.py",
    "_save": "test_persist.py test_files_faults.py test_files_frames.py test_golden.py",
    "_load": "test_files_corrupt.py test_files_frames.py test_persist.py",
    "_pair": "test_pair.py test_persist.py", "_sealed": "test_files_corrupt.py test_files_frames.py test_persist.py",
    "_refs": "test_object.py test_object_misbehaving.py test_hostile.py", "_put": "test_object.py test_queue.py",
    "_queue": "test_queue.py test_queue_readers.py test_queue_refs.py",
    "files": "test_files_faults.py test_power.py", "snapshot": "test_persist.py test_files_corrupt.py",
    "live": "test_persist_live.py test_files_faults.py test_power.py", "locks": "test_locks.py",
    "writes": "test_tier_races.py test_tier.py", "subscribers": "test_events_reentry.py test_events.py",
    "forks": "test_interrupts.py test_threads.py",
    "tracking": "test_valkey_feed_lines.py test_valkey_feed.py",
    "lmdbstore": "test_disk.py test_disk_faults.py test_disk_torn.py",
    "engine": "test_disk_faults.py test_disk_torn.py test_disk.py test_disk_opening.py",
}  # fmt: skip
NATIVE = sorted(path.stem for path in (ROOT / "tests" / "native").glob("test_*.c"))
KILLS = ["kill-tiny", "kill-normal", "kill-fast"]
PYTHON = ["pytest", "tiny pytest"]  # the suite, in the normal and in the tiny build
APART = ["test_native.py", "test_architecture.py", "test_bench.py"]
"""Run by other means, or sees no fault of this kind."""


class Mutant(NamedTuple):
    name: str
    path: str
    why: str
    old: str
    new: str
    killers: tuple[str, ...]
    same: str  # why nothing can see it; empty: something must


class WrongList(Exception):
    pass


def read_list(text: str) -> list[Mutant]:
    """Blocks of `[name] path`, `? why`, `- old`, `+ new`, and perhaps `! tests that see it`, `= why nothing can`."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.strip().splitlines() if not line.startswith("#")]
        if not lines:
            continue
        head = re.fullmatch(r"\[([\w-]+)\] (\S+)", lines[0])
        parts = {line[0]: line[1:].strip().replace("\\n", "\n") for line in lines[1:]}
        if not head or not {"?", "-", "+"} <= set(parts) or len(parts) != len(lines) - 1:
            raise WrongList(f"not a mutant: {lines[0]}")
        killers = tuple(parts.get("!", "").split())
        told = (parts["?"], parts["-"], parts["+"], killers, parts.get("=", ""))
        found.append(Mutant(head[1], head[2], *told))
    names = [m.name for m in found]
    if len(set(names)) != len(names):
        raise WrongList(f"names twice: {sorted(n for n in names if names.count(n) > 1)}")
    return found


def planted(m: Mutant, text: str) -> str:
    if text.count(m.old) != 1 or m.old == m.new:
        raise WrongList(f"{m.name}: {m.path} has {text.count(m.old)} times {m.old!r}")
    return text.replace(m.old, m.new)


def stages(m: Mutant, quick: bool) -> list[str]:
    """What is run, in this order, until something fails."""
    stem = Path(m.path).stem
    likely = [*m.killers, *ROOMS[stem].split()]
    last = [*NATIVE, *KILLS] if m.path.startswith("csrc/") and not quick else []
    last += [] if quick or m.same else PYTHON
    order: list[str] = []
    for what in [*likely, *last]:
        order += [f"{what}-plain", f"{what}-tiny", f"{what}-normal"] if what in NATIVE else [what]
    order.sort(key=lambda stage: not stage.endswith("-plain"))  # the cheapest first
    return list(dict.fromkeys(order))


class Tree:
    """A copy of the tree that is built, changed and built again."""

    def __init__(self, where: Path, seed: int) -> None:
        self.where, self.seed = where, seed
        self.stale: dict[str, set[str]] = {"normal": set(), "tiny": set()}
        self.made: dict[str, list[list[str]]] = {}

    def fill(self) -> None:
        names = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                               check=True, capture_output=True, text=True).stdout.split("\0")  # fmt: skip
        for name in names:
            if name and (ROOT / name).is_file():
                (self.where / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.where / name)

    def copy(self, where: Path) -> Tree:
        shutil.copytree(self.where, where)
        tree = Tree(where, self.seed)
        tree.made = dict(self.made)
        return tree

    def environment(self, build: str) -> dict[str, str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("GB_", "PYTEST"))}
        path = str(self.where if build == "normal" else self.where / "build" / build)
        more = {
            "PYTHONPATH": path,
            "GB_EXPECT": build,
            "SEED": str(self.seed),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return env | more | ({"GB_SLICE": "short"} if build == "tiny" else {})

    def build(self, build: str) -> None:
        """The extension: all of it, or the objects that read a file that changed, and what they are linked into."""
        if build not in self.made:
            env = (
                self.environment(build)
                | {"GB_CFLAGS": "-O1 -MMD"}
                | ({"GB_TINY": "1"} if build == "tiny" else {})
            )
            for room in ("lib", "temp"):
                shutil.rmtree(self.where / "build" / f"{room}-{build}", ignore_errors=True)
            command = [sys.executable, "setup.py", "build_ext", "--force", "--build-temp", f"build/temp-{build}",
                       "--build-lib", f"build/lib-{build}"]  # fmt: skip
            ran = subprocess.run(
                command, cwd=self.where, env=env, check=True, capture_output=True, text=True
            )
            found = [
                line for line in ran.stdout.splitlines() if re.match(r"\S*(gcc|cc|clang)\S* ", line)
            ]
            self.made[build] = [shlex.split(line) for line in found]
            assert any(c[-1].endswith(".so") or ".so" in " ".join(c) for c in self.made[build]), (
                ran.stdout[-2000:]
            )
        elif self.stale[build]:
            fresh: set[str] = set()
            stale = self.stale[build] | self.translated(self.stale[build])
            for command in self.made[build]:
                out = command[command.index("-o") + 1]
                if "-c" in command:
                    notes = (self.where / out).with_suffix(".d")  # Python that is compiled has none
                    reads = notes.read_text().split() if notes.exists() else command
                    if not stale & set(reads):
                        continue
                elif not fresh & set(command):
                    continue
                ran = subprocess.run(command, cwd=self.where, capture_output=True, text=True)
                if ran.returncode:
                    raise WrongList(ran.stderr[-2000:])
                fresh.add(out)
        self.stale[build].clear()
        self.put_in_place(build)

    def translated(self, paths: set[str]) -> set[str]:
        """The C of Python that is compiled, made anew where that changed."""
        found = {path[:-2] + "c" for path in paths if path.endswith(".py")}
        found = {path for path in found if (self.where / path).exists()}
        for path in found:
            command = [sys.executable, "-m", "cython", "-3", path[:-1] + "py"]
            subprocess.run(command, cwd=self.where, check=True, capture_output=True)
        return found

    def put_in_place(self, build: str) -> None:
        to = self.where if build == "normal" else self.where / "build" / build
        if build != "normal":
            shutil.rmtree(to / "gbcache", ignore_errors=True)
            shutil.copytree(
                self.where / "gbcache",
                to / "gbcache",
                ignore=shutil.ignore_patterns("*.so", "*.[ch]"),
            )
        for made in (self.where / "build" / f"lib-{build}" / "gbcache").glob("*.so"):
            shutil.copy(made, to / "gbcache" / made.name)

    def change(self, path: str, text: str) -> None:
        (self.where / path).write_text(text)
        for stale in self.stale.values():
            stale.add(path)

    def plain(self, stage: str) -> list[str]:
        """The tiny build of a C test without sanitizers (as in `make coverage`): a fifth of the time. WrongList where
        a compiler alone would have seen the fault."""
        command = ["gcc", "-std=c11", "-O0", "-g", "-DGB_TINY", "-DGB_DEBUG=2", *WARNINGS, "-Icsrc", "-Itests/native",
                   f"tests/native/{stage.removesuffix('-plain')}.c", "-lpthread", "-o", "out/test"]  # fmt: skip
        ran = subprocess.run(command, cwd=self.where, capture_output=True, text=True)
        if ran.returncode:
            raise WrongList(shortly(ran.stderr))
        return ["out/test", str(self.seed)]

    def command(self, stage: str) -> tuple[list[str], float, str]:
        """How a stage is run, for how long at most, and in which build."""
        if stage.endswith("-plain"):
            return self.plain(stage), 60, "normal"
        if stage.startswith(("test_", "kill-")) and ".py" not in stage:
            return [sys.executable, "tests/native/run.py", "out", "1", stage], 150, "normal"
        script = str(
            Path(sys.executable).with_name("pytest")
        )  # -m would put this directory before the build's
        pytest = [
            sys.executable,
            script,
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "--basetemp",
            "out/tmp",
        ]
        apart = [f"--ignore=tests/{name}" for name in APART]
        if stage == "pytest":
            return [*pytest, "tests", *apart], 1500, "normal"
        if stage == "tiny pytest":
            alone = ["--ignore-glob=tests/test_valkey*", "--ignore-glob=tests/test_tier_*"]
            alone += ["--ignore=tests/test_lru_cache.py", "--ignore=tests/test_power.py"]
            return [*pytest, "tests", *apart, *alone], 1500, "tiny"
        return [*pytest, f"tests/{stage}"], 600, "normal"

    def fails(self, stage: str) -> str:
        """How it failed; empty: it passed."""
        shutil.rmtree(self.where / "out", ignore_errors=True)
        shutil.rmtree(self.where / ".hypothesis", ignore_errors=True)
        (self.where / "out").mkdir()
        command, limit, build = self.command(stage)
        if stage == "pytest" or ".py" in stage or build != "normal":
            self.build(build)
        with open(self.where / "out" / "said", "w+") as file:
            ran = subprocess.Popen(command, cwd=self.where, env=self.environment(build), stdout=file,
                                   stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
            try:
                code = ran.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(ran.pid, signal.SIGKILL)
                ran.wait()
                return f"no end within {limit:.0f} s"
            file.seek(0)
            text = file.read()
        if stage.endswith("-plain"):
            return "" if code == 0 else f"exit {code}: {shortly(text)}"
        if stage == "pytest" or ".py" in stage or build != "normal":
            found = re.findall(r"^(?:FAILED|ERROR) (.*)", text, re.M) or [
                f"exit {code}: " + text[-200:]
            ]
            return "" if code == 0 else str(found[0])
        told = json.loads((self.where / "out" / f"{stage}.json").read_text())
        if told["said"].startswith("gcc: "):  # a compiler alone would have seen it
            raise WrongList(shortly(told["said"]))
        return "" if told["passed"] else shortly(told["said"]).replace(f"{self.where}/", "")


def shortly(text: str) -> str:
    """The line that says it."""
    for pattern in (
        r"ERROR: AddressSanitizer: .*",
        r"runtime error: .*",
        r".*\.[ch]:\d+: .*",
        r"timed out.*",
    ):
        found = re.search(pattern, text)
        if found:
            return found[0]
    return " ".join(text.split())[:160]


class Campaign:
    def __init__(self, where: Path, workers: int, seed: int, quick: bool, build: bool) -> None:
        self.quick = quick
        self.sound: dict[str, str] = {}  # stage -> how it fails over the tree as it is
        self.lock, self.sound_lock = threading.Lock(), threading.Lock()
        self.original = Tree(where / "original", seed)
        self.original.fill()
        if build:
            self.original.build("normal")
        self.trees = [self.original.copy(where / f"tree{i}") for i in range(workers)]

    def passes_as_it_is(self, stage: str) -> None:
        with self.sound_lock:
            if stage not in self.sound:
                self.sound[stage] = self.original.fails(stage) and self.original.fails(stage)
            if self.sound[stage]:
                raise WrongList(f"{stage} fails without any fault: {self.sound[stage]}")

    def killer(self, m: Mutant, tree: Tree) -> tuple[str, str]:
        """What saw it, and what that said; ("", ""): nothing did."""
        before = (tree.where / m.path).read_text()
        tree.change(m.path, planted(m, before))
        try:
            for stage in stages(m, self.quick):
                how = tree.fails(stage)
                if how:
                    self.passes_as_it_is(stage)
                    return stage, how
        finally:
            tree.change(m.path, before)
        return "", ""

    def one(self, m: Mutant) -> tuple[Mutant, str, str]:
        with self.lock:
            tree = self.trees.pop()
        begun = time.monotonic()
        try:
            stage, how = self.killer(m, tree)
        except (WrongList, OSError, subprocess.SubprocessError) as error:
            stage, how = "WRONG", str(error)
        with self.lock:
            self.trees.append(tree)
            seconds = time.monotonic() - begun
            line = f"{seconds:6.1f} s  {m.name:24} {m.path:20} {stage or 'SURVIVES':18} {how}"
            print(" ".join(line.split("\n"))[:220], flush=True)
        return m, stage, how


def tell(done: Sequence[tuple[Mutant, str, str]], listed: int) -> None:
    wrong = [f"{m.name}: {how}" for m, stage, how in done if stage == "WRONG"]
    alive = [m for m, stage, _ in done if not stage]
    killed = [m for m, stage, _ in done if stage and stage != "WRONG"]
    for m in alive:
        print(f"survives: {m.name}: {m.why}; {m.same or 'UNEXPLAINED'}")
    stale = [m.name for m in killed if m.same]
    print(*wrong, *(f"{name} was killed: its explanation is wrong" for name in stale), sep="\n")
    percent = 100 * len(killed) / max(1, len(done))
    files = len({m.path for m, _, _ in done})
    drawn = f", drawn of {listed}" if len(done) < listed else ""
    figure = f"{len(killed)} of {len(done)} ({percent:.1f} %) in {files} files{drawn}"
    names = ", ".join(m.name for m in alive)
    # Of some that were drawn those that have no effect may be more than one in twenty.
    good = (
        (percent >= LEAST or bool(drawn)) and not wrong and not stale and all(m.same for m in alive)
    )
    said.row(
        "planted faults the suite kills (>= 95 %)",
        figure + (f"; equivalent: {names}" if names else ""),
        good,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="*", metavar="NAME")
    parser.add_argument("--files", nargs="*", metavar="FILE", help="those of these files")
    parser.add_argument("--list", action="store_true", help="names and where they are planted")
    parser.add_argument("--quick", nargs="?", type=int, const=sys.maxsize, metavar="N",
                        help="no more than the tests likely to see it; of N faults that the seed draws")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="of the tests, and the order")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    args = parser.parse_args()
    mutants = read_list(LIST.read_text())
    wanted = set(args.only or ())
    unknown = wanted - {m.name for m in mutants}
    if unknown:
        raise SystemExit(f"no such mutants: {sorted(unknown)}")
    mutants = [
        m
        for m in mutants
        if (not wanted or m.name in wanted) and (not args.files or m.path in args.files)
    ]
    for m in mutants:
        planted(m, (ROOT / m.path).read_text())
        if args.list:
            print(f"{m.name:24} {m.path:20} {m.why}")
    if args.list:
        return 0
    listed = len(mutants)
    random.Random(args.seed).shuffle(mutants)
    del mutants[args.quick or listed :]
    pythons = [
        m for m in mutants if not m.path.startswith("csrc/")
    ]  # the extension is built once for all
    print(f"seed {args.seed}: {len(mutants)} of {listed} planted faults", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gbcache-mutants-", ignore_cleanup_errors=True) as name:
        campaign = Campaign(Path(name), args.workers, args.seed, bool(args.quick), bool(pythons))
        with ThreadPoolExecutor(args.workers) as pool:
            done = list(pool.map(campaign.one, mutants))
    print(f"{time.monotonic() - begun:.0f} s")
    tell(done, listed)
    return said.verdict()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WrongList as error:
        sys.exit(f"the list is wrong: {error}")
