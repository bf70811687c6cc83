"""Fuzzes each fuzz_*.c, normal and tiny: clang's libFuzzer where there is one, else gcc and driver.c.

    python tests/fuzz/run.py [--seconds N | --runs N] [--only load --only mend] [--variant tiny] [--seed S] [--jobs J]

`--seconds` are shared by all of it, `--runs` are of each target in each variant. Each run begins with the committed
inputs (corpus_*) alone, in a directory of its own: what an earlier run came across would make the same seed another
run. The input that shows a failure is kept in build/proof, and the program that replays it is named.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "proof"))
import said  # noqa: E402

HERE = ROOT / "tests" / "fuzz"
OUT = ROOT / "build" / "fuzz"
TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.c"))
VARIANTS = ["normal", "tiny"]
INCLUDE = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'native'}"]
FLAGS = ["-std=c11", "-O2", "-g1", "-DGB_DEBUG=2", "-fno-sanitize-recover=undefined"]
# What is compared is not traced where the harness itself knows the words that matter: twice as many runs.
UNTRACED = {"load": ["-fno-sanitize-coverage=trace-cmp"]}
LONGEST = {"load": 1024}
PLAIN = {"load": ["-entropic=0"]}  # to weigh the corpus by what is rare took a quarter of the time
STUCK = 100
"""Seconds after which an input does not come to an end."""


@dataclass
class Limit:
    seconds: int
    runs: int


def build(target: str, variant: str, clang: str | None) -> Path:
    program = OUT / f"fuzz_{target}_{variant}"
    tiny = ["-DGB_TINY"] if variant == "tiny" else []
    if clang:
        command = [clang, "-fsanitize=fuzzer,address,undefined", *UNTRACED.get(target, [])]
        sources = [HERE / f"fuzz_{target}.c"]
    else:
        command = ["gcc", "-fsanitize=address,undefined"]
        sources = [HERE / f"fuzz_{target}.c", HERE / "driver.c"]
    files = [str(source) for source in sources]
    made = program.with_name(f"{program.name}.{os.getpid()}")  # another may be running
    subprocess.run(
        [*command, *FLAGS, *tiny, *INCLUDE, *files, "-lpthread", "-o", str(made)], check=True
    )
    return made.replace(program)


def command_of(
    program: Path, clang: bool, target: str, limit: Limit, seed: int, case: Path, corpus: str
) -> list[str]:
    if not clang:
        much = ["--runs", str(limit.runs)] if limit.runs else ["--seconds", str(limit.seconds)]
        return [str(program), *much, "--seed", str(seed), "--case", str(case)]
    much = [f"-runs={limit.runs}"] if limit.runs else [f"-max_total_time={limit.seconds}"]
    limits = [
        *much,
        *PLAIN.get(target, []),
        f"-seed={seed}",
        f"-max_len={LONGEST.get(target, 4096)}",
        f"-timeout={STUCK}",
        "-reload=0",  # else it looks each second for what others put there, as the clock has it
    ]
    kept = [str(HERE / f"corpus_{target}")] if (HERE / f"corpus_{target}").is_dir() else []
    said_ = ["-print_final_stats=1", f"-exact_artifact_path={case}"]
    return [str(program), *limits, *said_, corpus, *kept]


def run(target: str, variant: str, clang: str | None, limit: Limit, seed: int) -> tuple[int, float]:
    """One target in one variant: how many inputs ran, in how many seconds; -1: something was found."""
    program = build(target, variant, clang)
    case = said.kept(f"fuzz-{target}-{variant}-{seed}")
    begun, stuck = time.monotonic(), None if limit.runs else limit.seconds + 120
    with tempfile.TemporaryDirectory(dir=OUT, prefix=f"corpus_{program.name}_") as corpus:
        command = command_of(program, clang is not None, target, limit, seed, case, corpus)
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=stuck)
            text, failed = ran.stdout + ran.stderr, ran.returncode != 0
        except subprocess.TimeoutExpired:
            text, failed = "an input does not come to an end", True
    found = re.search(r"number_of_executed_units:\s*(\d+)", text) or re.search(
        r"(\d+) runs, ", text
    )
    if not failed and found and int(found.group(1)) >= limit.runs:  # fewer: it was interrupted
        runs, seconds = int(found.group(1)), time.monotonic() - begun
        print(
            f"{target}, {variant}: {runs:,} runs, {runs / seconds:,.0f} runs/s, nothing found",
            flush=True,
        )
        return runs, seconds
    print(text[-6000:])
    print(f"{target}, {variant}: failed with seed {seed}; the input is {case}")
    print(f"replay: {program} {case}", flush=True)
    return -1, 0.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="for all of it together")
    parser.add_argument("--runs", type=int, default=0, help="of each target in each variant")
    parser.add_argument("--only", choices=TARGETS, action="append", help="these targets alone")
    parser.add_argument("--variant", choices=VARIANTS, action="append", help="this one alone")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="so many beside each other")
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    clang = shutil.which("clang")
    targets = args.only or TARGETS
    what = [(target, variant) for target in targets for variant in args.variant or VARIANTS]
    limit = Limit(max(1, args.seconds * args.jobs // len(what)), args.runs)
    driver = "clang's libFuzzer" if clang else "gcc and driver.c"
    print(f"{driver}; seed {args.seed}", flush=True)
    with ThreadPoolExecutor(args.jobs) as jobs:
        runs = list(jobs.map(lambda one: run(*one, clang, limit, args.seed), what))
    for target in targets:
        ran = [of for (name, _), of in zip(what, runs, strict=True) if name == target]
        good, total = all(n > 0 for n, _ in ran), sum(n for n, _ in ran if n > 0)
        rate = total / max(1e-9, sum(seconds for _, seconds in ran))
        found = "nothing found" if good else f"FOUND, in build/proof, seed {args.seed}"
        said.row(
            f"fuzz {target}, under ASan and UBSan: nothing is found",
            f"{total:,} runs by {driver}, {rate:,.0f}/s: {found}",
            good,
        )
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
