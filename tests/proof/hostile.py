"""Hostility of the interpreter: it comes back, ends, imports again, and is one of several.

The named cases are those of pytest; every other case is a program in a process of its own, which must end by
itself, with status 0, and say nothing on stderr. A case that does not is named, and its program kept.
"""

# ruff: noqa: E501
from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hostile_cases
import pythons
import said

ROOT = Path(__file__).resolve().parent.parent.parent
NAMED = [
    ("re-entrancy", ["test_hostile.py", "test_hostile_ends.py", "test_events_reentry.py", "test_events_hostile.py"], 25),
    ("R17 what is read is data: no code of it is run, no type is made that was not asked for",
     ["test_codec.py", "test_persist.py::test_pickle_is_not_used_unasked"], 20),
    ("R18 files: who may read them, no link or pipe is followed, none but a whole one is believed",
     ["test_files_corrupt.py", "test_files_frames.py"], 15),
]  # fmt: skip
"""What each row asks, the tests that show it, and how many of them there are to be at least."""
LIMIT = 60
PLANTED = {"a crash": "import ctypes; ctypes.string_at(0)", "a word at the end": "import atexit, sys; atexit.register(sys.stderr.write, 'x')",
           "a hang": "import time; time.sleep(99)", "an exit status": "import os; os._exit(3)"}  # fmt: skip


def named_cases(title: str, names: list[str], asked: int) -> None:
    """Named cases, in a pytest of their own."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.xml"
        files = [str(ROOT / "tests" / name) for name in names]
        ran = subprocess.run(
            [sys.executable, str(Path(sys.executable).parent / "pytest"), "-q", "-p", "no:cacheprovider", f"--junitxml={told}", *files],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        cases = list(ElementTree.parse(told).iter("testcase")) if told.exists() else []
    bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    named = {f"{c.get('classname')}.{c.get('name', '').split('[')[0]}" for c in cases} - {
        f"{c.get('classname')}.{c.get('name', '').split('[')[0]}" for c in [*bad, *skipped]
    }
    if bad or ran.returncode:
        case = said.kept(f"hostile-{title.split(':')[0]}".replace(" ", "_"))
        case.write_text(ran.stdout + ran.stderr)
        print(f"kept in {case}:", *(f"{c.get('classname')}: {c.get('name')}" for c in bad), sep="\n  ")  # fmt: skip
    figure = f"{len(named)} named cases ({asked} asked), {len(cases)} with their parameters, {len(bad)} failed"
    said.row(title, f"{figure}, {time.monotonic() - begun:.0f} s",
             len(named) >= asked and not bad and ran.returncode == 0)  # fmt: skip


def ended(
    python: str, site: str, code: str, *, more: str = "", limit: float = LIMIT
) -> tuple[str, str]:
    """What a program printed, and how it ended: empty, if as it should."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "PYTHONPATH": site, "PYTHONFAULTHANDLER": "1"}
        try:
            ran = subprocess.run([python, "-c", code, folder, more], env=env, cwd=folder,
                                 capture_output=True, text=True, timeout=limit, check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            return "", f"it hangs: {limit:.0f} s"
    good = ran.returncode == 0 and not ran.stderr
    return ran.stdout, "" if good else f"exit status {ran.returncode}: {ran.stderr}"


def programs(
    title: str, cases: dict[str, str], options: argparse.Namespace, python: str, site: str,
    more: str = "",
) -> None:  # fmt: skip
    """Runs them in an order of the seed, and makes a row."""
    begun, wrong = time.monotonic(), 0
    names = [name for name in cases if options.only in name]
    if options.only and not names:  # main() saw that some case has that name
        return
    random.Random(options.seed).shuffle(names)
    answers: Counter[str] = Counter()
    with ThreadPoolExecutor(options.jobs) as pool:
        ways = pool.map(lambda name: ended(python, site, cases[name], more=more), names)
        for name, (printed, what) in zip(names, ways, strict=True):
            answers["refused" if "refused" in printed else "worked"] += 1
            if what:
                wrong += 1
                case = said.kept(f"hostile-{title}-{name}".replace(" ", "_").replace("/", "_"))
                case.write_text(cases[name])
                print(f"{title}: {name} {more}\n{what}\nkept in {case}; seed {options.seed}")
    figure = f"{len(names)} cases, {dict(answers)}, {wrong} ended badly"
    said.row(title, f"{figure}, {time.monotonic() - begun:.0f} s, seed {options.seed}",
             not wrong and bool(names))  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="programs whose name has this")
    parser.add_argument("--versions", default="3.11,3.12,3.13", help="for sub-interpreters")
    options = parser.parse_args()
    all_of_them = [*hostile_cases.ends(), *hostile_cases.again(), *hostile_cases.subs()]
    if not any(options.only in name for name in all_of_them):
        parser.error(f"no case has {options.only!r} in its name")
    seen = [name for name, code in PLANTED.items() if ended(sys.executable, str(ROOT), code, limit=2)[1]]  # fmt: skip
    said.row("planted crash, hang, word, status", f"{len(seen)} of {len(PLANTED)} seen", len(seen) == len(PLANTED))  # fmt: skip
    if not options.only:
        for title, names, asked in NAMED:
            named_cases(title, names, asked)
    programs("caches left when Python ends", hostile_cases.ends(), options, sys.executable, str(ROOT))  # fmt: skip
    programs("imported again", hostile_cases.again(), options, sys.executable, str(ROOT))
    there = pythons.found()
    for version in options.versions.split(","):
        titles = {kind: f"sub-interpreters, {version}, {kind}" for kind in ("legacy", "isolated")}
        if version not in there:
            for title in titles.values():
                said.skipped(title, f"no Python {version} on PATH or under pyenv")
            continue
        python, site = pythons.built(version, there[version])
        for kind, title in titles.items():
            programs(title, hostile_cases.subs(), options, python, site, kind)
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
