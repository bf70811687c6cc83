"""ThreadSanitizer over the core, over a load by two threads, and over the extension without the GIL.

The core's own program (``threads.c``) is also built with faults planted, each of which must be reported. The extension
runs the tests of ``tests/test_hammer.py`` on an interpreter that is instrumented too: else its critical sections, which
keep our threads apart, would be unseen. Races of the interpreter alone (no frame of ours in either access), and what
else has none in any stack, are counted, and not judged. Each of its threads looks whether the GIL is off (GB_EXPECT).
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import said

import gbcache

ROOT = Path(__file__).resolve().parent.parent.parent
NATIVE = ROOT / "tests" / "native"
ENTRIES = 60_000
OURS = re.compile(rf"{said.OURS.pattern}|/csrc/\w+\.[ch]")


class Plant(NamedTuple):
    """A fault: `old`, which is there once, becomes `new`; a run of `mode` must report it."""

    what: str
    file: str
    old: str
    new: str
    mode: str


PLANTS = [
    Plant("the lock is taken without acquiring", "csrc/lock.h", "memory_order_acquire,\n", "memory_order_relaxed,\n",
          "store"),
    Plant("a part is indexed without the image's lock", "gbcache/_pair.c",
          "        gb_lock_wait(&p->putting);\n        w->done", "        w->done", "load"),
    Plant("a part is indexed out of its turn", "gbcache/_pair.c",
          "    if (!my_turn(p, w)) return false;\n", "    (void)my_turn;\n", "load"),
]  # fmt: skip


def compiled(into: Path, tree: Path) -> Path:
    program = into / "threads"
    subprocess.run(
        ["gcc", "-std=c11", "-g", "-O1", "-fsanitize=thread", "-Wno-unused-function", f"-I{tree / 'csrc'}",
         f"-I{tree / 'gbcache'}", f"-I{NATIVE}", str(ROOT / "tests/proof/threads.c"), str(tree / "gbcache/_load.c"),
         str(tree / "gbcache/_pair.c"), "-lpthread", "-o", str(program)],
        check=True,
    )  # fmt: skip
    return program


def snapshots(into: Path, seed: int) -> tuple[Path, Path]:
    """One that is whole and long enough for two threads, with a long value in it; and one with a wrong byte."""
    draw = random.Random(seed)
    whole, damaged = into / "whole.gbs", into / "damaged.gbs"
    with gbcache.Cache("64MB") as cache:
        for i in range(ENTRIES):
            size = 300_000 if i == ENTRIES // 2 else draw.randrange(240)
            cache.set(f"key{i}", draw.randbytes(size), ttl=1e6 if i % 3 == 0 else None)
        cache.save(whole)
    data = bytearray(whole.read_bytes())
    data[len(data) // 3 + draw.randrange(len(data) // 3)] ^= 1 << draw.randrange(8)
    damaged.write_bytes(data)
    return whole, damaged


def reports(text: str) -> list[str]:
    return [part for part in text.split("==================") if "WARNING: ThreadSanitizer" in part]


def core(seed: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        at = Path(name)
        whole, damaged = snapshots(at, seed)
        modes = {
            "store": [str(rounds), "store"],
            "load": [str(max(4, rounds // 2000)), "load", str(whole), str(ENTRIES)],
            "damaged": [str(max(4, rounds // 4000)), "damaged", str(damaged), str(ENTRIES)],
        }
        program, found, says = compiled(at, ROOT), 0, []
        for arguments in modes.values():
            ran = subprocess.run(
                [str(program), str(seed), *arguments], capture_output=True, text=True, timeout=3000
            )
            bad = reports(ran.stderr)
            found += len(bad) + (ran.returncode != 0 and not bad)
            says.append(ran.stdout.split("\n")[1])
            if ran.returncode:
                said.kept("threads-core").write_text(ran.stdout + ran.stderr)
        said.row("R8 threads: the core, its saver and a load of two threads under ThreadSanitizer",
                 f"{found} reports; {'; '.join(says)}", not found)  # fmt: skip
        caught = 0
        for i, plant in enumerate(PLANTS):
            tree = at / str(i)
            for room in ("csrc", "gbcache"):
                shutil.copytree(
                    ROOT / room, tree / room, ignore=shutil.ignore_patterns("*.so", "*.pyc")
                )
            text = (tree / plant.file).read_text()
            assert text.count(plant.old) == 1, plant
            (tree / plant.file).write_text(text.replace(plant.old, plant.new))
            command = [str(compiled(tree, tree)), str(seed), *modes[plant.mode]]
            command[2] = "4" if plant.mode == "load" else "3000"
            ran = subprocess.run(command, capture_output=True, text=True, timeout=3000)
            caught += bool(reports(ran.stderr))
            print(f"planted: {plant.what}: {len(reports(ran.stderr))} reports")
        said.row("R8 threads: faults planted in the core that are reported", f"{caught} of {len(PLANTS)}",
                 caught == len(PLANTS))  # fmt: skip


def accesses(report: str) -> str:
    """The stacks of the two accesses, without those of where memory and threads were made."""
    return re.split(r"\n\s+(?:Location|As if|Mutex|Thread) ", report)[0]


def optimistic(report: str) -> bool:
    """Whether 3.13 only looks at the reference count of what it found without a lock, while the memory becomes another
    object's: `new_reference` writes it as if nobody could. Whoever called has no part in it."""
    first, _, second = accesses(report).partition("Previous ")
    tops = [
        [line for line in part.splitlines() if re.match(r"\s+#[0-4] ", line)]
        for part in (first, second)
    ]
    made = [bool(top) and " new_reference " in top[0] for top in tops]
    looked = [any(" _Py_TryIncref" in line for line in top) for top in tops]
    return (made[0] and looked[1]) or (made[1] and looked[0])


def interned(report: str) -> bool:
    """Whether both accesses are 3.13's, on its way through the table of interned strings: it makes one immortal with a
    plain write while another thread compares with it. Whoever made a code object, or an attribute's name, led there."""
    told = [
        part for part in accesses(report).split("Previous ") if "[failed to restore" not in part
    ]
    ways = [part.splitlines() for part in told]
    tops = ["".join(way[: _first_of_ours(way)]) for way in ways]
    return bool(tops) and all(" intern_common " in top for top in tops)


def _first_of_ours(way: list[str]) -> int:
    return next((n for n, line in enumerate(way) if OURS.search(line)), len(way))


def ours(report: str) -> bool:
    """Of a race it is who had access that counts, of anything else whoever had a part: locks, threads, a free."""
    if ": data race" not in report:
        return OURS.search(report) is not None
    return bool(OURS.search(accesses(report))) and not (optimistic(report) or interned(report))


def extension(
    python: str, build: str, packages: str, seed: int, seconds: float
) -> tuple[int, int, str, bool]:
    """Reports of ours, of the interpreter's alone, how the tests ended, and whether some passed and none failed."""
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "tsan"
        env = {
            **os.environ,
            "PYTHONPATH": f"{ROOT / build}:{ROOT / packages}",
            "PYTHONSAFEPATH": "1",  # or children would have the normal build
            "GB_HAMMER": str(seconds),
            "SEED": str(seed),
            "TSAN_OPTIONS": f"log_path={log} exitcode=0 history_size=7 die_after_fork=0",
        }
        env["GB_EXPECT"] = Path(build).name
        ran = subprocess.run([python, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_hammer.py"],
                             cwd=ROOT, env=env, capture_output=True, text=True, timeout=7200)  # fmt: skip
        found = [
            report for path in Path(name).glob("tsan*") for report in reports(path.read_text())
        ]
        mine = [report for report in found if ours(report)]
        if mine or ran.returncode:
            at = said.kept("threads-extension")
            at.write_text(ran.stdout[-4000:] + ran.stderr[-4000:] + "\n".join(mine))
            print(f"kept in {at}")
        theirs = [report for report in found if report not in mine]
        if theirs:  # to be looked at
            said.kept("threads-interpreter").write_text("\n".join(theirs))
        ended = (
            ran.stdout.strip().split("\n")[-1] if ran.stdout.strip() else f"exit {ran.returncode}"
        )
        passed = re.search(r"\b(\d+) passed", ended)
        well = ran.returncode == 0 and passed is not None and int(passed[1]) > 0
        return len(mine), len(theirs), ended, well


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument(
        "--python", help="an instrumented interpreter without the GIL; none: the core alone"
    )
    parser.add_argument("--build", default="build/tsan", help="where the instrumented extension is")
    parser.add_argument("--packages", default="", help="where pytest is")
    given = parser.parse_args()
    print(f"seed {given.seed}")
    core(given.seed, given.rounds)
    if given.python:
        mine, theirs, ended, well = extension(
            given.python, given.build, given.packages, given.seed, given.seconds
        )
        said.row("R8 threads: the extension without the GIL under ThreadSanitizer, four threads at each object",
                 f"{mine} reports of ours, {theirs} of the interpreter's alone; {ended}",
                 well and not mine)  # fmt: skip
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
