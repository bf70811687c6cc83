"""Which lines of csrc/ the native tests run, over the normal and the tiny build together."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
NATIVE = ROOT / "tests" / "native"
FLAGS = ["-std=c11", "-O0", "-g", "--coverage", "-Wno-unused-function"]
INCLUDE = [f"-I{ROOT / 'csrc'}", f"-I{NATIVE}"]

Lines = dict[str, dict[int, int]]  # file -> line -> times run


def measure(source: Path, tiny: bool, where: Path, seed: str) -> Lines:
    """Builds and runs one test, and reads what gcov saw of csrc/."""
    here = where / f"{source.stem}_{'tiny' if tiny else 'normal'}"
    here.mkdir()
    program = here / "test"
    flags = [*FLAGS, *(["-DGB_TINY"] if tiny else []), *INCLUDE]
    subprocess.run(
        ["gcc", *flags, str(source), "-lpthread", "-o", str(program)], check=True, cwd=here
    )
    ran = subprocess.run([str(program), seed], cwd=here, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{here.name} failed:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    notes = next(here.glob("*.gcno"))
    subprocess.run(["gcov", "--json-format", notes.name], cwd=here, check=True, capture_output=True)
    lines: Lines = defaultdict(lambda: defaultdict(int))
    for report in here.glob("*.gcov.json.gz"):
        for file in json.loads(gzip.decompress(report.read_bytes()))["files"]:
            path = Path(os.path.normpath(here / file["file"]))
            if path.parent != ROOT / "csrc":
                continue
            for line in file["lines"]:
                lines[path.name][line["line_number"]] += line["count"]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--least", type=float, default=0.0, help="percent, in total")
    parser.add_argument("--show", action="store_true", help="list the lines that never ran")
    args = parser.parse_args()
    total: Lines = defaultdict(lambda: defaultdict(int))
    sources = sorted(NATIVE.glob("test_*.c"))
    seed = os.environ.get("SEED", "1")
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as workers:
        jobs = [
            workers.submit(measure, source, tiny, Path(name), seed)
            for source in sources
            for tiny in (False, True)
        ]
        for job in jobs:
            for file, counts in job.result().items():
                for number, count in counts.items():
                    total[file][number] += count
    all_lines = all_run = 0
    for file in sorted(total):
        counts = total[file]
        run = sum(1 for count in counts.values() if count)
        all_lines += len(counts)
        all_run += run
        print(f"{file:12} {run:5} of {len(counts):5} lines  {100 * run / len(counts):6.1f} %")
        missed = sorted(number for number, count in counts.items() if not count)
        if args.show and missed:
            text = (ROOT / "csrc" / file).read_text().splitlines()
            for number in missed:
                print(f"    {number:4}: {text[number - 1]}")
    percent = 100 * all_run / max(1, all_lines)
    print(f"{'total':12} {all_run:5} of {all_lines:5} lines  {percent:6.1f} %")
    if percent < args.least:
        print(f"below {args.least} %")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
