"""MC/DC of csrc/: how many conditions were shown to decide their decision alone, over all native tests.

    python tests/proof/mcdc.py [--seed S] [--show]

Needs clang 18 or newer (Debian: `apt-get install clang-19 llvm-19 libclang-rt-19-dev`), whose coverage counts it;
gcc 12's does not. Each native test is built in the normal and the tiny build; a condition counts as shown if one of
the programs showed it alone. A figure, not a gate: without a clang it says that it was skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import said

ROOT = Path(__file__).resolve().parent.parent.parent
NATIVE = ROOT / "tests" / "native"
FLAGS = ["-std=c11", "-O0", "-g", "-fprofile-instr-generate", "-fcoverage-mapping", "-fcoverage-mcdc",
         "-fprofile-update=atomic", f"-I{ROOT / 'csrc'}", f"-I{NATIVE}"]  # fmt: skip
GOAL = "MC/DC of csrc/, over the native tests"

Decision = tuple[str, int, int, int]  # file, line, column, conditions
Shown = dict[Decision, list[bool]]


def tools() -> tuple[str, str, str] | None:
    """clang, llvm-profdata and llvm-cov of one release that counts it."""
    for release in range(25, 17, -1):
        found = [
            shutil.which(f"{name}-{release}") for name in ("clang", "llvm-profdata", "llvm-cov")
        ]
        if all(found):
            return str(found[0]), str(found[1]), str(found[2])
    return None


def measure(
    source: Path, tiny: bool, where: Path, seed: str, with_tools: tuple[str, str, str]
) -> tuple[Shown, set[str]]:
    """Builds and runs one test; what of each decision it showed, and where clang cannot count one."""
    clang, profdata, cov = with_tools
    here = where / f"{source.stem}_{'tiny' if tiny else 'normal'}"
    here.mkdir()
    program, raw, merged = here / "test", here / "raw", here / "merged"
    flags = [*FLAGS, *(["-DGB_TINY"] if tiny else [])]
    built = subprocess.run(
        [clang, *flags, str(source), "-lpthread", "-o", str(program)],
        capture_output=True,
        text=True,
    )
    if built.returncode:
        raise SystemExit(built.stderr[-2000:])
    cannot = set(re.findall(r"csrc/(\w+\.[ch]:\d+):\d+: warning: unsupported MC/DC", built.stderr))
    ran = subprocess.run(
        [str(program), seed], env=os.environ | {"LLVM_PROFILE_FILE": str(raw)}, capture_output=True
    )
    if ran.returncode:
        raise SystemExit(f"{here.name} failed: {ran.stdout[-2000:].decode(errors='replace')}")
    subprocess.run([profdata, "merge", "-sparse", str(raw), "-o", str(merged)], check=True)
    told = subprocess.run(
        [cov, "export", str(program), f"-instr-profile={merged}"], check=True, capture_output=True
    )
    shown: Shown = {}
    for function in json.loads(told.stdout)["data"][0]["functions"]:
        files = [Path(os.path.normpath(name)) for name in function["filenames"]]
        for record in function.get("mcdc_records", []):
            add(shown, files, record)
    return shown, cannot


def add(shown: Shown, files: list[Path], record: list[Any]) -> None:
    """`record`: line, column, end, end, [...], file, expanded file, kind, and last a bool for each condition."""
    conditions = next(part for part in reversed(record) if isinstance(part, list))
    numbers = [part for part in record if not isinstance(part, list)]
    file = files[numbers[-3]] if len(numbers) >= 7 else files[0]
    if file.parent != ROOT / "csrc" or len(conditions) < 2:
        return
    key = (file.name, int(numbers[0]), int(numbers[1]), len(conditions))
    before = shown.get(key, [False] * len(conditions))
    shown[key] = [a or bool(b) for a, b in zip(before, conditions, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", default=os.environ.get("SEED", "1"))
    parser.add_argument("--show", action="store_true", help="list what was not shown")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    found = tools()
    if not found:
        said.skipped(
            GOAL, "no clang that counts it: apt-get install clang-19 llvm-19 libclang-rt-19-dev"
        )
        return said.verdict()
    total: Shown = {}
    cannot: set[str] = set()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(args.workers) as workers:
        jobs = [workers.submit(measure, source, tiny, Path(name), args.seed, found)
                for source in sorted(NATIVE.glob("test_*.c")) for tiny in (False, True)]  # fmt: skip
        for job in jobs:
            shown, without = job.result()
            cannot |= without
            for key, conditions in shown.items():
                before = total.get(key, [False] * len(conditions))
                total[key] = [a or b for a, b in zip(before, conditions, strict=True)]
    return tell(total, cannot, args.show)


def tell(total: Shown, cannot: set[str], show: bool) -> int:
    files: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for (file, line, _, _), conditions in sorted(total.items()):
        files[file][0] += sum(conditions)
        files[file][1] += len(conditions)
        if show and not all(conditions):
            text = (ROOT / "csrc" / file).read_text().splitlines()[line - 1].strip()
            print(f"  {file}:{line}: {''.join('x' if c else '-' for c in conditions)}  {text}")
    for file, (n, of) in files.items():
        print(f"{file:16} {n:4} of {of:4} conditions  {100 * n / of:6.1f} %")
    n, of = (sum(part[i] for part in files.values()) for i in (0, 1))
    print("clang cannot count (a condition within an operation):", *sorted(cannot))
    said.row(
        GOAL,
        f"{n} of {of} conditions ({100 * n / max(1, of):.1f} %) in {len(total)} decisions; "
        f"{len(cannot)} more clang cannot count",
        of > 0,
    )
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
