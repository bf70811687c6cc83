"""Runs the parts of the proof, and makes one table of their rows.

    python tests/proof/table.py [--long] [--seed S] [--only kill --only power] [--paste]

Each part is a target of the Makefile, `proof-NAME`, which prints rows (said.py). A part that ends in an error, or that
ends without a row, is a row that says NO. Parts that only count share the machine's two cores; those that look at a
clock, or want both cores, have the machine to themselves, afterwards. A part that takes far longer than it should is
interrupted, then killed with all of its group, and is a row that says NO. The table is printed at the end, and kept in
build/proof/table.md (of --only: some.md) with what each part said beside it. Exits with 1 if a row says NO or none yes.
Where a tool is missing that a part cannot do without, nothing is run: all that are missing are named.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, NoReturn, TextIO

import pythons
import said

ROOT = Path(__file__).resolve().parent.parent.parent


SHOWN = ("<!-- begin: what make proof printed -->", "<!-- end: what make proof printed -->")


class Part(NamedTuple):
    """`short` and `long`: variables of the Makefile. `minutes` the short form took on a slow machine; None: a part
    of the long form alone. `counts`: it needs one core, and looks at no clock. Of `threads`: once its two interpreters
    are there; to build them, `first`, took 9 and 14 minutes on one busy core."""

    name: str
    minutes: float | None
    short: str = ""
    long: str = ""
    counts: bool = False
    first: float = 0

    def limit(self, is_long: bool) -> float:
        """Seconds after which it hangs. Of the long form it is not known how long each takes: a day."""
        minutes = 24 * 60 if is_long else 10 + 3 * ((self.minutes or 20) + self.first)
        return 60 * minutes


PARTS = [
    Part("kill", 2, "KILLS=600 KILL_ROUNDS=5", "KILLS=10000 KILL_ROUNDS=40"),
    Part("power", 4, "STATES=40000", "STATES=1000000", counts=True),
    Part("corrupt", 11, counts=True),
    Part("disk", 1, "KILLS=300 STORES=300", "KILLS=5000 STORES=5000"),
    Part("oom", 6, "STEP=140", "STEP=1", counts=True),
    Part("io", 0.5, "STRIDE=12", "STRIDE=1", counts=True),
    Part("model", 2, "EXAMPLES=400", "EXAMPLES=10000", counts=True),
    Part("budget", 1, "STEPS=200000", "STEPS=2000000", counts=True),
    Part("events", 0.5, "OPS=1000000", "OPS=20000000"),
    Part("fork", 3.5),
    Part("clock", 1, "", "STOPPED=90"),
    Part("fuzz", 4, "FUZZ_SECONDS=80", "FUZZ_RUNS=10000000", counts=True),
    Part("threads", 3, first=25),
    Part("leak", 4, "OPERATIONS=2500000", "OPERATIONS=10000000", counts=True),
    Part("soak", 2.2, "MINUTES=2", "MINUTES=120"),
    Part("hostile", 2),
    Part("mutants", 5, "MUTANTS=--quick=40"),
    Part("stale", 1.5, "WRITES=200000 CUTS=30 DOWN=3", "WRITES=1000000 CUTS=100 DOWN=10"),
    Part("suites", None),
    Part("coverage", None),
    Part("mcdc", None),
    Part("valgrind", 7, "VALGRIND=--jobs=1", "VALGRIND=--all", counts=True),
]
LANES = 2
GRACE = 10
"""Seconds that a part has to say where it was when it is interrupted."""
RUNNING: set[int] = set()
"""The groups of the parts that run: the terminal does not reach them."""
ENDING = threading.Event()
BUILDS = ["build/asan/.made", "build/tiny/.made"]


class Row(NamedTuple):
    goal: str
    figure: str
    good: str
    command: str
    seconds: float


def known_targets() -> set[str]:
    return set(re.findall(r"^proof-([a-z]+):", (ROOT / "Makefile").read_text(), re.M))


def wanting(parts: list[Part]) -> list[str]:
    """What these parts cannot do without, and is not here; and how it is had."""
    names, out = {part.name for part in parts}, []
    if "valgrind" in names and not shutil.which("valgrind"):
        out.append("valgrind (make gate-tools)")
    if "stale" in names and not (shutil.which("redis-server") or shutil.which("valkey-server")):
        out.append("redis-server or valkey-server (make servers)")
    there = pythons.found() if names & {"oom", "hostile"} else {"3.11": "", "3.12": "", "3.13": ""}
    absent = [version for version in ("3.11", "3.12", "3.13") if version not in there]
    if absent:
        out.append(f"CPython {', '.join(absent)}, on PATH or under pyenv")
    return out


def command_of(part: Part, is_long: bool, seed: int) -> list[str]:
    given = part.long if is_long else part.short
    return ["make", "--no-print-directory", f"proof-{part.name}", *given.split(), f"SEED={seed}"]


def rows_of(
    part: Part, text: str, status: int, hung: bool, command: str, seconds: float
) -> list[Row]:
    """Its rows; and what it did not say itself, as one that says NO."""
    lines = [line.split("|") for line in text.splitlines() if line.startswith(said.MARK)]
    rows = [Row(*line[1:4], command, seconds) for line in lines if len(line) == 4]
    if hung:
        ended = f"it was killed after {seconds / 60:.0f} minutes"
        rows.append(Row(f"{part.name}: comes to its end", ended, "NO", command, seconds))
    elif not rows:
        rows = [
            Row(f"{part.name}: all of it", f"no row; exit status {status}", "NO", command, seconds)
        ]
    elif status and all(row.good != "NO" for row in rows):
        rows.append(Row(f"{part.name}: ends well", f"exit status {status}", "NO", command, seconds))
    return rows


def environment() -> dict[str, str]:
    """Ours, without what a make above told its own."""
    return {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}


def signalled(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def stopped(number: int, _: object) -> NoReturn:
    """We are to end: so are the parts."""
    ENDING.set()
    for group in list(RUNNING):
        signalled(group, signal.SIGKILL)
    raise KeyboardInterrupt(number)


def run(part: Part, is_long: bool, seed: int) -> list[Row]:
    """One part. What it says goes to a file beside the table, and its rows to the terminal as they come."""
    if ENDING.is_set():
        raise KeyboardInterrupt
    command, begun = command_of(part, is_long, seed), time.monotonic()
    print(f"--- {' '.join(command)}", flush=True)
    path = said.KEPT / f"{part.name}.txt"
    # not a pipe: what a killed part leaves behind might hold that open for ever
    with path.open("w") as kept, path.open(errors="replace") as told:
        ran = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            stdout=kept,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        RUNNING.add(ran.pid)
        try:
            text, hung = followed(ran, told, begun + part.limit(is_long))
        finally:
            signalled(ran.pid, signal.SIGKILL)
            RUNNING.discard(ran.pid)
    seconds = time.monotonic() - begun
    status = ran.wait()
    rows = rows_of(part, text, status, hung, " ".join(["make", *command[2:]]), seconds)
    if any(row.good == "NO" for row in rows):
        print("\n".join(text.splitlines()[-40:]), flush=True)
    print(f"    {part.name}: {seconds:.0f} s, status {status}", flush=True)
    return rows


def followed(ran: subprocess.Popen[bytes], told: TextIO, until: float) -> tuple[str, bool]:
    """What a part says until it ends, and whether it had to be ended."""
    text, shown, hung = "", 0, False
    while True:
        status = ran.poll()
        text += told.read()
        whole = text.rfind("\n") + 1
        for line in text[shown:whole].splitlines():
            if line.startswith(said.MARK):
                print(line, flush=True)
        shown = whole
        if status is not None:
            return text, hung
        if time.monotonic() > until:
            signalled(ran.pid, signal.SIGKILL if hung else signal.SIGINT)
            hung, until = True, time.monotonic() + GRACE
        time.sleep(0.1)


def run_all(parts: list[Part], known: set[str], is_long: bool, seed: int) -> dict[str, list[Row]]:
    """The rows of each part: those that count two at a time, the longest first, then each of the others alone."""
    absent = "the Makefile has no such target"
    told = {
        part.name: [Row(f"{part.name}: all of it", absent, "NO", f"make proof-{part.name}", 0)]
        for part in parts
        if part.name not in known
    }
    there = [part for part in parts if part.name in known]
    counting = sorted((p for p in there if p.counts), key=lambda p: -(p.minutes or 0))
    if len(counting) > 1:  # two that build the same would be in each other's way
        made = ["make", "build", *BUILDS]
        subprocess.run(made, cwd=ROOT, env=environment(), check=True, stdout=subprocess.DEVNULL)
    with ThreadPoolExecutor(LANES) as lanes:
        for part, rows in zip(
            counting, lanes.map(lambda p: run(p, is_long, seed), counting), strict=True
        ):
            told[part.name] = rows
    for part in there:
        if not part.counts:
            told[part.name] = run(part, is_long, seed)
    return told


def table(rows: list[Row], seconds: float) -> str:
    head = ["| goal | figure reached | | command | s |", "|---|---|---|---|---:|"]
    body = [f"| {r.goal} | {r.figure} | {r.good} | `{r.command}` | {r.seconds:.0f} |" for r in rows]
    bad, skipped = (sum(row.good == what for row in rows) for what in ("NO", "skipped"))
    last = f"{len(rows)} rows, {bad} that say NO, {skipped} skipped; {seconds / 60:.1f} minutes"
    return "\n".join([*head, *body, "", last, ""])


def paste() -> int:
    """The whole table as it was printed last, into the README."""
    readme, text = ROOT / "README.md", (said.KEPT / "table.md").read_text()
    before, begin, rest = readme.read_text().partition(SHOWN[0])
    _, end, after = rest.partition(SHOWN[1])
    if not begin or not end:
        raise SystemExit(f"README.md has no {SHOWN[0]} ... {SHOWN[1]}")
    readme.write_text(f"{before}{begin}\n\n{text.rstrip()}\n\n{end}{after}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--long", action="store_true", help="hours")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", choices=[part.name for part in PARTS])
    parser.add_argument("--paste", action="store_true", help="the last whole table, into README.md")
    args = parser.parse_args()
    if args.paste:
        return paste()
    known, begun = known_targets(), time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stopped)
    said.KEPT.mkdir(parents=True, exist_ok=True)
    left = [part.name for part in PARTS if part.minutes is None and not args.long]
    chosen = [p for p in PARTS if (p.name in args.only if args.only else p.name not in left)]
    if missing := wanting(chosen):
        raise SystemExit(f"proof: missing: {'; '.join(missing)}")
    told = run_all(chosen, known, args.long, args.seed)
    rows = [row for part in chosen for row in told[part.name]]
    for name in sorted(known - {part.name for part in PARTS} - {"long"}):
        rows.append(
            Row(
                f"{name}: all of it",
                "the table's list has no such part",
                "NO",
                f"make proof-{name}",
                0,
            )
        )
    text = table(rows, time.monotonic() - begun)
    if left and not args.only:
        text += f"Of the long form alone (make proof-long): {', '.join(left)}\n"
    (said.KEPT / ("some.md" if args.only else "table.md")).write_text(text)
    print(f"\n{text}", end="")
    told = {row.good for row in rows}
    return int("NO" in told or "yes" not in told)


if __name__ == "__main__":
    sys.exit(main())
