"""The whole suite in each build and under each Python that is here, as rows of the proof.

    python tests/proof/suites.py [--only free --only pythons]

Each is a target of the Makefile; pytest's own last lines are what is counted. What the target said is kept. Of Pythons
nox passes over those it does not find: the row is a yes if all of PYTHONS ran, and names those that did not.
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
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SESSION = re.compile(r"^nox > Running session tests-([\d.]+)\s*$", re.M)
OUTCOME = re.compile(r"^nox > Session tests-([\d.]+) (was successful|skipped)", re.M)
LAST = re.compile(r"^=* ?(\d+ [a-z]+.*) in [\d.]+s", re.M)


def counts(text: str) -> tuple[int, Counter[str]]:
    """How many times pytest ended, and what it counted: passed, failed, skipped, ..."""
    ends, told = LAST.findall(text), Counter[str]()
    for end in ends:
        for number, what in re.findall(r"(\d+) (\w+)", end):
            told[what] += int(number)
    return len(ends), told


def by_python(text: str) -> tuple[list[str], list[str], dict[str, int]]:
    """The Pythons that nox did not find, those whose session is neither that nor well, and what passed in each."""
    ends, pieces = dict(OUTCOME.findall(text)), SESSION.split(text)[1:]
    passed = {
        v: counts(said_)[1]["passed"] for v, said_ in zip(pieces[::2], pieces[1::2], strict=True)
    }
    absent = [v for v in PYTHONS if ends.get(v) == "skipped"]
    there = [v for v in PYTHONS if v not in absent]
    wrong = [v for v in there if ends.get(v) != "was successful" or not passed.get(v)]
    return absent, wrong, {v: passed.get(v, 0) for v in there}


def judge(target: str, text: str, status: int, seconds: float) -> bool:
    """Makes its row; whether nothing in it failed."""
    ends, told = counts(text)
    bad = told["failed"] + told["errors"] + told["error"]
    figure = (
        f"{told['passed']:,} passed, {told['skipped']} skipped, {bad} failed, pytest run {ends} times; "
        f"{seconds:.0f} s"
    )
    good = not bad and told["passed"] > 0
    if target == "pythons":
        absent, wrong, passed = by_python(text)
        figure += "; passed " + ", ".join(f"{v}: {n:,}" for v, n in passed.items())
        good = good and not wrong
        if absent and good:  # nox's status is not looked at: `found` fails where few are here
            missing = f"no Python {', '.join(absent)} here"
            said.skipped(WHAT[target], f"{missing}; of the others {figure}")
            return True
        figure += f"; not well: {', '.join(wrong)}" if wrong else ""
    good = good and not status
    said.row(WHAT[target], figure, good)
    return good


def run(target: str) -> None:
    begun, path = time.monotonic(), said.kept(f"suites-{target}")
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    for name in ("PYTHONPATH", "GB_EXPECT", "GB_SLICE"):
        env.pop(name, None)
    with path.open("w") as out:
        ran = subprocess.run(
            ["make", target], cwd=said.KEPT.parent.parent, env=env, stdout=out, stderr=out, check=False
        )  # fmt: skip
    text = path.read_text(errors="replace")
    if judge(target, text, ran.returncode, time.monotonic() - begun):
        path.unlink()
    else:
        print(*text.splitlines()[-40:], f"kept: {path}", sep="\n")


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
