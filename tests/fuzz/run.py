"""Fuzzes each fuzz_*.c, normal and tiny: clang's libFuzzer where there is one, else gcc and driver.c."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = ROOT / "tests" / "fuzz"
OUT = ROOT / "build" / "fuzz"
TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.c"))
VARIANTS = ["normal", "tiny"]
INCLUDE = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'native'}"]
FLAGS = ["-std=c11", "-O1", "-g", "-DGB_DEBUG=2", "-fno-sanitize-recover=undefined"]


def build(target: str, variant: str, clang: str | None) -> Path:
    program = OUT / f"fuzz_{target}_{variant}"
    tiny = ["-DGB_TINY"] if variant == "tiny" else []
    if clang:
        command = [clang, "-fsanitize=fuzzer,address,undefined"]
        sources = [HERE / f"fuzz_{target}.c"]
    else:
        command = ["gcc", "-fsanitize=address,undefined"]
        sources = [HERE / f"fuzz_{target}.c", HERE / "driver.c"]
    files = [str(source) for source in sources]
    subprocess.run(
        [*command, *FLAGS, *tiny, *INCLUDE, *files, "-lpthread", "-o", str(program)], check=True
    )
    return program


def command_of(program: Path, libfuzzer: bool, seconds: int, seed: int, case: Path) -> list[str]:
    if not libfuzzer:
        options = ["--seconds", str(seconds), "--seed", str(seed), "--case", str(case)]
        return [str(program), *options]
    corpus = OUT / f"corpus_{program.name}"
    corpus.mkdir(exist_ok=True)
    limits = [f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=4096"]
    return [
        str(program),
        *limits,
        "-print_final_stats=1",
        f"-exact_artifact_path={case}",
        str(corpus),
    ]


def run(target: str, variant: str, clang: str | None, seconds: int, seed: int) -> bool:
    """One target in one variant; whether nothing was found."""
    program = build(target, variant, clang)
    case = OUT / f"case_{target}_{variant}_{seed}.bin"
    case.unlink(missing_ok=True)
    command = command_of(program, clang is not None, seconds, seed, case)
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120)
        text, failed = ran.stdout + ran.stderr, ran.returncode != 0
    except subprocess.TimeoutExpired:
        text, failed = "an input does not come to an end", True
    if not failed:
        found = re.search(r"\d+ runs, \d+ runs/s", text)
        final = re.search(r"average_exec_per_sec:\s*(\d+)", text)
        rate = found.group(0) if found else f"{final.group(1)} runs/s" if final else "done"
        print(f"{target}, {variant}: {rate}, nothing found", flush=True)
        return True
    print(text[-6000:])
    print(f"{target}, {variant}: failed with seed {seed}; the input is {case}")
    print(f"replay: {program} {case}")
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for all of it together")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    clang = shutil.which("clang")
    runs = [(target, variant) for target in TARGETS for variant in VARIANTS]
    share = max(1, args.seconds // len(runs))
    print(f"{'clang, libFuzzer' if clang else 'gcc, driver.c'}; seed {args.seed}", flush=True)
    good = [run(target, variant, clang, share, args.seed) for target, variant in runs]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
