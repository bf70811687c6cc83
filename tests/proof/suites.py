"""The whole suite in each build and under each Python that is here, as rows of the proof.

    python tests/proof/suites.py [--only free --only pythons]

Each is a target of the Makefile; pytest's own last lines are what is counted. What the target said is kept.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter

import said

WHAT = {
    "test": "every test, the normal build",
    "tiny": "the tests where every constant is small",
    "asan": "the tests under ASan and UBSan",
    "free": "the tests without the GIL",
    "pythons": "every test, Python by Python",
}
LAST = re.compile(r"^=* ?(\d+ [a-z]+.*) in [\d.]+s", re.M)


def counts(text: str) -> tuple[int, Counter[str]]:
    """How many times pytest ended, and what it counted: passed, failed, skipped, ..."""
    ends, told = LAST.findall(text), Counter[str]()
    for end in ends:
        for number, what in re.findall(r"(\d+) (\w+)", end):
            told[what] += int(number)
    return len(ends), told


def run(target: str) -> None:
    begun, path = time.monotonic(), said.kept(f"suites-{target}")
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    for name in ("PYTHONPATH", "GB_EXPECT", "GB_SLICE"):
        env.pop(name, None)
    with path.open("w") as out:
        ran = subprocess.run(
            ["make", target], cwd=said.KEPT.parent.parent, env=env, stdout=out, stderr=out, check=False
        )  # fmt: skip
    ends, told = counts(path.read_text(errors="replace"))
    bad = told["failed"] + told["errors"] + told["error"]
    said.row(
        WHAT[target],
        f"{told['passed']:,} passed, {told['skipped']} skipped, {bad} failed, pytest run {ends} times; "
        f"{time.monotonic() - begun:.0f} s",
        ran.returncode == 0 and not bad and told["passed"] > 0,
    )
    if ran.returncode or bad:
        print(*path.read_text(errors="replace").splitlines()[-40:], f"kept: {path}", sep="\n")
    else:
        path.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=list(WHAT))
    for target in parser.parse_args().only or WHAT:
        run(target)
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
