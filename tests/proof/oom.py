"""No memory, at every allocation of every operation, once and from there on, on three Pythons or more.

Each interpreter sweeps all of `starve.py`'s cases in a process of its own, in both ways. Interpreters that do
something of the kind to themselves have it counted apart: what no line of ours is needed for is not ours. What each
operation showed, theirs too, is in build/proof/oom-*.cases-*.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pythons
import said

VERSIONS = ("3.11", "3.12", "3.13")
"""Not 3.10: there each call of a Python function takes memory, so that no `with` and no `finally` can be relied on."""
MAY_END_AT_ONCE = "interpreter:"
"""Cases that may have tried nothing: an interpreter that crashes at the first places has shown what it does."""
TESTS = Path(__file__).resolve().parent.parent


def shim(folder: Path) -> Path:
    made = folder / "shim.so"
    source = TESTS / "fault" / "shim.c"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", str(source), "-o", str(made), "-ldl"], check=True
    )
    return made


def sweep(
    version: str, python: str, site: str, shim: Path, way: str, options: Any
) -> list[dict[str, Any]]:
    env = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": site}
    start = options.seed % options.step
    call = [
        python,
        str(TESTS / "starve.py"),
        way,
        "--step",
        str(options.step),
        "--start",
        str(start),
        "--end",
    ]
    cases = said.kept(f"oom-{version}-{way}.cases")  # those to come are seen as they end
    with cases.open("w") as out:
        ran = subprocess.run(
            [*call, "--only", options.only], env=env, stdout=out, stderr=subprocess.PIPE, text=True, check=False
        )  # fmt: skip
    return judged(cases.read_text().splitlines(), ran.returncode, ran.stderr)


def judged(lines: list[str], status: int, errors: str) -> list[dict[str, Any]]:
    """The cases that were told, and one more if that was not all, or not as the sweep's end has it."""
    told, odd, end = list[dict[str, Any]](), list[str](), None
    for line in lines:
        try:
            one = json.loads(line)
        except ValueError:
            odd.append(f"a line that is cut off: {line[:200]}")
            continue
        if "end" in one:
            end = one["end"]
        else:
            told.append(one)
    for one in told:
        if not one["tried"] and not one["case"].startswith(MAY_END_AT_ONCE):
            one["bad"].append("no place was tried")
    if end != len(told):
        odd.append(f"{len(told)} cases were told, the end says {end}")
    # a traceback ends with 1 as well
    if status not in (0, 1) or (status == 1 and not any(one["bad"] for one in told)):
        odd.append(f"exit status {status}")
    if odd:
        more = {"tried": 0, "failed": 0, "given up": True, "theirs": []}
        told.append({"case": "the sweep", "bad": [*odd, errors[-2000:]], **more})
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--step", type=int, default=1, help="every so many places; begins at seed %% step"
    )
    parser.add_argument("--only", default="")
    parser.add_argument("--versions", default=",".join(VERSIONS))
    options = parser.parse_args()
    wanted = options.versions.split(",")
    there = {version: path for version, path in pythons.found().items() if version in wanted}
    said.row("interpreters that lack memory", ", ".join(there), len(there) >= min(3, len(wanted)))
    with tempfile.TemporaryDirectory() as folder:
        library = shim(Path(folder))
        for version, path in there.items():
            python, site = pythons.built(version, path)
            for way in ("python", "ours"):
                begun = time.monotonic()
                told = sweep(version, python, site, library, way, options)
                bad = [f"{one['case']}: {what}" for one in told for what in one["bad"]]
                n, failed = (sum(one[k] for one in told) for k in ("tried", "failed"))
                theirs = sum(len(one["theirs"]) for one in told)
                given_up = sum(one["given up"] for one in told)
                if bad:
                    case = said.kept(f"oom-{version}-{way}")
                    case.write_text("\n".join(bad))
                    print(
                        f"{len(bad)} bad, kept in {case}; seed {options.seed}:",
                        *bad[:10],
                        sep="\n  ",
                    )
                whose = (
                    "Python's allocators"
                    if way == "python"
                    else "our own objects' malloc, mmap, threads"
                )
                said.row(
                    f"no memory, {version}, {whose}",
                    f"{len(told)} operations, {n:,} failures tried, {len(bad)} bad, {theirs} the interpreter's own, "
                    f"{given_up} given up, "
                    f"{time.monotonic() - begun:.0f} s, seed {options.seed}",
                    not bad and not given_up and n > 0 and failed > 0,
                )
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
