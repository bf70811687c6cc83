"""Which lines and branches of csrc/ the tests run: the native ones over the normal and the tiny build together, and
with --python those of pytest too, against an extension built the same way.

Assertions are not compiled (GB_DEBUG is 0), so their failing sides are no branches. What no test can reach is named
where it stands, and that is checked: a line with the comment "unreachable: why" must not run, and of one with
"one way: why" just one branch must never be taken. gb_broken never returns true, so behind an "or" it has one
way too. Everything else must be taken, if --least is 100.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "proof"))
import said

ROOT = Path(__file__).resolve().parent.parent.parent
NATIVE = ROOT / "tests" / "native"
MEASURED = ["--coverage", "-O0", "-frandom-seed=1"]
ATOMIC = ["-fprofile-update=atomic"]  # where there are threads, and for five times the time
FLAGS = ["-std=c11", "-g", *MEASURED, "-Wno-unused-function"]
INCLUDE = [f"-I{ROOT / 'csrc'}", f"-I{NATIVE}"]
ALONE = ["--ignore-glob=tests/test_valkey*", "--ignore-glob=tests/test_tier_*", "--ignore=tests/test_lru_cache.py",
         "--ignore=tests/test_native.py", "--ignore=tests/test_architecture.py"]  # fmt: skip
UNREACHABLE = "/* unreachable: "
WAYS = ("/* one way: ", "||gb_broken(")


class Seen:
    """Of each file: how often a line ran, and each of its branches was taken. The builds compile some lines into
    different branches: those are told apart by how many there are, and the most are what counts."""

    def __init__(self) -> None:
        self.lines: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self.branches: dict[str, dict[int, dict[int, list[int]]]] = defaultdict(
            lambda: defaultdict(dict)
        )

    def add(self, notes: Path, where: Path) -> None:
        """What gcov says of an object."""
        ran = subprocess.run(["gcov", "--json-format", "--stdout", "--branch-probabilities", str(notes)], cwd=where,
                             check=True, capture_output=True)  # fmt: skip
        for report in ran.stdout.splitlines():
            for file in json.loads(report)["files"]:
                path = Path(os.path.normpath(where / file["file"]))
                if path.parent.name not in ("csrc", "gbcache") or path.suffix not in (".c", ".h"):
                    continue
                for line in file["lines"]:
                    self.line(f"{path.parent.name}/{path.name}", line["line_number"], line["count"],
                              [b["count"] for b in line["branches"] if not b["throw"]])  # fmt: skip

    def line(self, file: str, number: int, count: int, taken: list[int]) -> None:
        self.lines[file][number] += count
        if taken:
            before = self.branches[file][number].get(len(taken), [0] * len(taken))
            self.branches[file][number][len(taken)] = [
                a + b for a, b in zip(before, taken, strict=True)
            ]

    def merge(self, other: Seen) -> None:
        for file, lines in other.lines.items():
            for number, count in lines.items():
                self.line(file, number, count, [])
                for taken in other.branches[file].get(number, {}).values():
                    self.line(file, number, 0, taken)

    def taken(self, file: str, number: int) -> list[int]:
        shapes = self.branches[file].get(number)
        return shapes[max(shapes)] if shapes else []


def native(source: Path, tiny: bool, where: Path, seed: str) -> Seen:
    """Builds and runs one test."""
    here = where / f"{source.stem}_{'tiny' if tiny else 'normal'}"
    here.mkdir()
    program = here / "test"
    threads = ATOMIC if "pthread_create" in source.read_text() else []
    flags = [*FLAGS, *threads, *(["-DGB_TINY"] if tiny else []), *INCLUDE]
    subprocess.run(
        ["gcc", *flags, str(source), "-lpthread", "-o", str(program)], check=True, cwd=here
    )
    ran = subprocess.run([str(program), seed], cwd=here, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{here.name} failed:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    seen = Seen()
    seen.add(next(here.glob("*.gcno")), here)
    return seen


def killed(tiny: bool, where: Path, seed: str) -> Seen:
    """The same of kill_stores.c, whose operations end before each of their stores, and are mended. A kill is a longjmp
    out of the middle of a function, and what gcov infers of the other way is not so then: the copy of the core that
    is killed is not counted, and one that mends what it left behind, and comes to its end, is."""
    here = where / f"kill_{'tiny' if tiny else 'normal'}"
    here.mkdir()
    gcc = [
        "gcc",
        "-std=c11",
        "-g",
        "-O0",
        "-Wno-unused-function",
        *(["-DGB_TINY"] if tiny else []),
        *INCLUDE,
    ]
    name = "gb_mend_counted"

    def call(*command: str) -> None:
        subprocess.run(command, check=True, cwd=here)

    call(*gcc, "-fsanitize=thread", "-c", str(NATIVE / "kill_core.c"), "-o", "core.o")
    call(*gcc, f"-DKILL_MENDS={name}", "-c", str(NATIVE / "kill_stores.c"), "-o", "stores.o")
    call(*gcc, *MEASURED, f"-Dgb_mend={name}", "-c", str(ROOT / "csrc" / "gb.c"), "-o", "counted.o")
    call("objcopy", f"--keep-global-symbol={name}", "counted.o")
    call("gcc", "--coverage", "core.o", "stores.o", "counted.o", "-lpthread", "-o", "test")
    ran = subprocess.run(["./test", seed, "1"], cwd=here, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{here.name} failed:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    seen = Seen()
    seen.add(here / "counted.gcno", here)
    return seen


def python(tiny: bool, where: Path, seed: str) -> Seen:
    """Builds the extension in a copy of the tree, and runs the Python tests there."""
    tree = where / f"python_{'tiny' if tiny else 'normal'}"
    shutil.copytree(
        ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv*", "build", "*.so", ".hypothesis")
    )
    env = os.environ | {"GB_CFLAGS": " ".join(MEASURED + ATOMIC), "GB_LDFLAGS": "--coverage",
                        "GB_TINY": "1" if tiny else "0", "GB_SLICE": "short", "SEED": seed,
                        "PYTHONPATH": str(tree), "GB_EXPECT": ""}  # fmt: skip
    build = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--inplace",
        "--build-temp",
        "build/temp",
    ]
    subprocess.run(build, cwd=tree, env=env, check=True, capture_output=True)
    pytest = [
        sys.executable,
        str(Path(sys.executable).with_name("pytest")),
        "-q",
        "-p",
        "no:cacheprovider",
        "tests",
    ]
    ran = subprocess.run([*pytest, *ALONE], cwd=tree, env=env, capture_output=True, text=True)
    print(
        f"pytest, {'tiny' if tiny else 'normal'}: {ran.stdout.strip().splitlines()[-1]}", flush=True
    )
    if ran.returncode:
        raise SystemExit(ran.stdout[-4000:])
    seen = Seen()
    for notes in (tree / "build" / "temp").rglob("*.gcno"):
        seen.add(notes, tree)
    return seen


class Told:
    """Of one file: figures, and what is to be said of lines."""

    def __init__(self, seen: Seen, file: str) -> None:
        self.lines = self.lines_run = self.branches = self.branches_taken = self.named = 0
        self.missed: list[str] = []
        self.wrong: list[str] = []
        text = (ROOT / file).read_text().splitlines()
        for number in sorted(seen.lines[file]):
            ran, taken, line = seen.lines[file][number], seen.taken(file, number), text[number - 1]
            if UNREACHABLE in line:
                self.named += 1
                if ran:
                    self.wrong.append(
                        f"{file}:{number}: is run, and says it is not: {line.strip()}"
                    )
                continue
            self.lines += 1
            self.lines_run += ran > 0
            # An `or` and the report behind it may stand on two lines.
            says = line.replace("|| ", "||") + (text[number].strip() if line.endswith("||") else "")
            never, shut = taken.count(0), sum(way in says for way in WAYS)
            self.named += shut
            if ran and never < shut:
                self.wrong.append(
                    f"{file}:{number}: is gone every way, and says it is not: {line.strip()}"
                )
            self.branches += len(taken) - shut
            self.branches_taken += len(taken) - max(never, shut)
            if not ran:
                self.missed.append(f"{number:5}: never run:    {line}")
            elif never > shut:
                ways = "".join("x" if n else "-" for n in taken)
                self.missed.append(f"{number:5}: {ways:12}: {line}")

    def figure(self) -> str:
        def part(n: int, of: int) -> str:
            return f"{n:5} of {of:5} ({100 * n / max(1, of):5.1f} %)"

        return f"lines {part(self.lines_run, self.lines)}, branches {part(self.branches_taken, self.branches)}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--least", type=float, default=0.0, help="percent of csrc/'s lines")
    parser.add_argument(
        "--least-branches", type=float, default=0.0, help="percent of csrc/'s branches"
    )
    parser.add_argument("--show", action="store_true", help="list what never ran")
    parser.add_argument(
        "--python", action="store_true", help="the Python tests too, and gbcache/'s own C"
    )
    parser.add_argument("--seed", default=os.environ.get("SEED", "1"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    total = Seen()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(args.workers) as workers:
        where = Path(name)
        jobs = [workers.submit(native, source, tiny, where, args.seed)
                for source in sorted(NATIVE.glob("test_*.c")) for tiny in (False, True)]  # fmt: skip
        jobs += [workers.submit(killed, tiny, where, args.seed) for tiny in (False, True)]
        if args.python:
            jobs += [workers.submit(python, tiny, where, args.seed) for tiny in (False, True)]
        for job in jobs:
            total.merge(job.result())
    return tell(total, args)


def tell(total: Seen, args: argparse.Namespace) -> int:
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    wrong: list[str] = []
    for file in sorted(total.lines):
        path = ROOT / file
        if not path.exists() or any(path.with_suffix(s).exists() for s in (".pyx", ".py")):
            continue  # Cython's
        told = Told(total, file)
        print(f"{file:24} {told.figure()}" + (f", {told.named} named" if told.named else ""))
        if args.show and file.startswith("csrc/"):
            print(*told.missed, sep="\n", end="\n" if told.missed else "")
        wrong += told.wrong
        parts = (told.lines_run, told.lines, told.branches_taken, told.branches, told.named)
        of = sums[file.partition("/")[0]]
        of[:] = [a + b for a, b in zip(of, parts, strict=True)]
    print(*wrong, sep="\n", end="\n" if wrong else "")
    for room, (run, lines, taken, branches, named) in sums.items():
        print(f"{room:24} lines {run} of {lines} ({100 * run / lines:.2f} %), branches {taken} of {branches} "
              f"({100 * taken / branches:.2f} %), {named} named unreachable")  # fmt: skip
    run, lines, taken, branches, named = sums["csrc"]
    short = 100 * run / lines < args.least or 100 * taken / branches < args.least_branches
    if short:
        print(f"below {args.least} % of lines, or {args.least_branches} % of branches")
    said.row(
        f"lines and branches of csrc/ that the C tests{' and those of Python' if args.python else ''} run",
        f"{run} of {lines}, {taken} of {branches}; {named} named unreachable, {len(wrong)} wrongly; seed {args.seed}",
        not wrong and not short,
    )
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
