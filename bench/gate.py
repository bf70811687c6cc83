"""Speed that cannot rot unseen: instructions an operation, counted by callgrind, within 1 % of what is committed.

``python -m bench.gate`` compares, ``--accept`` writes new figures, ``--spread N`` says how far N runs lie apart.

A count depends on the tools: so `results/instructions.json` has figures for each set of them, and where the set
at hand is not in it, the commit that last changed that file is built here, with these tools, and counted too.
Both ways out of the 1 % are an error: what became faster is to be accepted, or it could be lost again unseen.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["count", "main", "moved", "tools"]

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "bench" / "results" / "instructions.json"
TIMES = 2000
LIMIT = 0.01
LAYOUTS = ("", ":/x", ":/a:/bb", ":/xyzzyxyzzy")
"""Put behind the search path, for other addresses: by where things lie a load varies by 3 %, run for run the same."""


def said(*command: str, cwd: Path = ROOT) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd).stdout


def tools() -> dict[str, str]:
    """What the counts depend on beside our own source."""
    return {
        "machine": platform.machine(),
        "gcc": said("gcc", "--version").splitlines()[0],
        "libc": " ".join(platform.libc_ver()),
        "valgrind": said("valgrind", "--version").strip(),
        "python": f"{platform.python_version()}, {platform.python_compiler()}, {platform.python_build()[1]}",
        "Cython": importlib.metadata.version("Cython"),
        "msgpack": importlib.metadata.version("msgpack"),
        "flags": " ".join(os.environ.get(name, "") for name in ("CFLAGS", "GB_CFLAGS")).strip(),
    }


def count(place: Path, layout: str = "") -> dict[str, float]:
    """Instructions an operation, of the gbcache that lies in `place`."""
    with tempfile.TemporaryDirectory(prefix="gbcache-gate-") as folder:
        sums = Path(folder, "sums")
        ran = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={sums}", "--dump-before=getppid",
             sys.executable, "-X", f"pycache_prefix={folder}",  # what was kept of a module is not as it was compiled
             str(ROOT / "bench" / "counted.py"), str(TIMES)],
            capture_output=True, text=True, cwd=folder,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{place}{layout}", "PYTHONHASHSEED": "0", "LC_ALL": "C",
                 "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        if ran.returncode:
            raise SystemExit(f"gate: the operations failed\n{ran.stderr[-3000:]}")
        names, marks = ran.stdout.splitlines(), len(list(Path(folder).glob("sums.*")))
        if marks != 6 * len(names):
            raise SystemExit(
                f"gate: {marks} sums for {len(names)} operations, expected {6 * len(names)}"
            )
        parts = [_sum(Path(f"{sums}.{i}")) for i in range(1, marks + 1)][1::2]
    per = {name: (parts[3 * i + 2] - parts[3 * i + 1]) / TIMES for i, name in enumerate(names)}
    floor = per.pop("loop")
    return {name: round(figure - floor, 2) for name, figure in per.items()}


def usual(place: Path) -> dict[str, float]:
    """Of each operation the middle of its counts over the layouts: one layout alone may be the odd one."""
    counts = [count(place, layout) for layout in LAYOUTS]
    return {name: round(statistics.median(one[name] for one in counts), 2) for name in counts[0]}


def _sum(part: Path) -> int:
    found = re.search(r"^totals: (\d+)", part.read_text(), re.MULTILINE)
    if not found:
        raise SystemExit(f"gate: no sum in {part.name}")
    return int(found[1])


def moved(now: dict[str, float], was: dict[str, float]) -> list[str]:
    """A line for every operation that left the limit, or has nothing to be compared with."""
    out = []
    for name in [*now, *(name for name in was if name not in now)]:
        if name not in was or name not in now:
            out.append(
                f"{name:<44}{was.get(name, '-'):>12}{now.get(name, '-'):>12}   no figure to compare"
            )
            continue
        change = now[name] / was[name] - 1
        if abs(change) > LIMIT:
            out.append(f"{name:<44}{was[name]:>12,.1f}{now[name]:>12,.1f}{change:>+9.2%}")
    return out


def nearest(
    now: dict[str, float], again: dict[str, float], was: dict[str, float]
) -> dict[str, float]:
    """Of two counts of each operation the one that is nearer to what was."""
    return {
        name: min(now[name], again[name], key=lambda n: abs(n - was.get(name, n))) for name in now
    }


def committed() -> list[dict[str, Any]]:
    held: list[dict[str, Any]] = json.loads(FIGURES.read_text())["sets"] if FIGURES.exists() else []
    return held


def accept(now: dict[str, float]) -> None:
    others = [one for one in committed() if one["tools"] != tools()]
    held = {"per": "operation", "sets": [*others, {"tools": tools(), "instructions": now}]}
    FIGURES.write_text(json.dumps(held, indent=1) + "\n")
    print(
        f"gate: {len(now)} figures written to {FIGURES.relative_to(ROOT)}; commit them with what moved them"
    )


def last_accepted() -> str:
    """The commit that last changed the committed figures; nothing where history is not here, or cut."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        return ""
    if said("git", "rev-parse", "--is-shallow-repository").strip() == "true":
        return ""  # the cut looks like the last change
    return said("git", "log", "-1", "--format=%H", "--", str(FIGURES)).strip()


def baseline(commit: str) -> dict[str, float]:
    """The figures of that commit, built and counted here."""
    print(f"gate: no figures for these tools; building {commit[:10]} to compare with", flush=True)
    place = ROOT / "build" / "gate"
    source = place / "source"
    shutil.rmtree(place, ignore_errors=True)
    source.mkdir(parents=True)
    archive = subprocess.Popen(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x"], cwd=source, stdin=archive.stdout, check=True)
    if archive.wait():
        raise SystemExit(f"gate: git archive {commit} failed")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--target",
         str(place / "made"), "."], cwd=source, check=True,
    )  # fmt: skip
    return usual(place / "made")


def spread(runs: int) -> int:
    """How far apart the same build's figures lie, run for run."""
    seen = [count(ROOT) for _ in range(runs)]
    worst = 0.0
    for name in seen[0]:
        figures = [one[name] for one in seen]
        apart = max(figures) / min(figures) - 1
        worst = max(worst, apart)
        print(
            f"{name:<44}" + "".join(f"{figure:>12,.2f}" for figure in figures) + f"{apart:>10.4%}"
        )
    print(f"gate: {runs} runs lie at most {worst:.4%} apart")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gate", description=__doc__)
    parser.add_argument("--accept", action="store_true", help="write the figures of now")
    parser.add_argument(
        "--spread", type=int, metavar="N", help="count N times, and compare nothing"
    )
    parser.add_argument(
        "--may-skip", action="store_true", help="no error where tools and history are unknown: CI"
    )
    args = parser.parse_args()
    if not shutil.which("valgrind"):
        raise SystemExit("gate: no valgrind here (make gate-tools): NOTHING WAS COMPARED")
    if args.spread:
        return spread(args.spread)
    if args.accept:
        accept(usual(ROOT))
        return 0
    now = count(ROOT)
    same = [one["instructions"] for one in committed() if one["tools"] == tools()]
    commit = "" if same else last_accepted()
    if not same and not commit:
        print(
            f"gate: no figures for {tools()}, nor history to build them from: NOTHING WAS COMPARED"
        )
        return 0 if args.may_skip else 1
    was = same[0] if same else baseline(commit)
    for layout in LAYOUTS[1:]:
        if moved(now, was):  # what is slower is so in each
            now = nearest(now, count(ROOT, layout), was)
    out = moved(now, was)
    if out:
        print(f"{'instructions an operation':<44}{'committed':>12}{'now':>12}{'moved':>9}")
        print("\n".join(out))
        print(
            f"gate: {len(out)} of {len(now)} moved by more than {LIMIT:.0%}; if that is meant: make gate-accept"
        )
        return 1
    print(f"gate: {len(now)} operations within {LIMIT:.0%} of their committed instructions")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
