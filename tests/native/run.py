"""Builds and runs C tests, and leaves what each said in a file: beside pytest, so that a second core has work.

python tests/native/run.py OUT WORKERS NAME...      NAME: test_ring-tiny, kill-fast ...
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
NATIVE = ROOT / "tests" / "native"
INCLUDE = [f"-I{ROOT / 'csrc'}", f"-I{NATIVE}"]
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Werror"]
SANITIZED = ["-O1", "-g", "-DGB_DEBUG=2", "-Wno-unused-function", "-fsanitize=address,undefined",
             "-fno-sanitize-recover=undefined"]  # fmt: skip
KILL = {
    "normal": ["-O1", "-DGB_DEBUG=2"],
    "tiny": ["-O1", "-DGB_DEBUG=2", "-DGB_TINY"],
    "fast": ["-O3"],
}
SEED = os.environ.get("SEED", "1")


class Failed(Exception):
    pass


def call(command: list[str], seconds: int = 240) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    if ran.returncode:
        raise Failed(
            f"{command[0]}: exit {ran.returncode}\n{ran.stdout[-2000:]}{ran.stderr[-4000:]}"
        )
    return ran.stdout


def built(build: str, *what: str) -> None:
    tiny = ["-DGB_TINY"] if build == "tiny" else []
    call(["gcc", "-std=c11", *SANITIZED, *WARNINGS, *tiny, *INCLUDE, *what])


def core(build: str, out: Path) -> str:
    """The core, once for all its tests: with it each would take four times as long. What was wrong, or nothing."""
    try:
        built(build, "-c", str(ROOT / "csrc" / "gb.c"), "-o", str(out / f"core-{build}.o"))
    except (Failed, OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ""


def native(name: str, build: str, out: Path) -> str:
    """A dumb model and a main, beside the core or around one of its own, under sanitizers."""
    program, source = str(out / f"{name}-{build}"), NATIVE / f"{name}.c"
    apart = ["-DGB_APART", str(out / f"core-{build}.o")]
    own = '#include "gb.c"' in source.read_text()
    built(build, *([] if own else apart), str(source), "-lpthread", "-o", program)
    return call([program, SEED])


def kill(build: str, out: Path) -> str:
    """Each store of the core is announced (by the calls of gcc's thread sanitizer), and killed at."""
    objects = []
    for name, more in (
        ("kill_core", ["-fsanitize=thread"]),
        ("kill_stores", ["-Wall", "-Wextra", "-Werror"]),
    ):
        made = str(out / f"{name}-{build}.o")
        source = str(NATIVE / f"{name}.c")
        call(["gcc", "-std=c11", "-g", *KILL[build], *INCLUDE, *more, "-c", source, "-o", made])
        objects.append(made)
    program = str(out / f"kill-{build}")
    call(["gcc", *objects, "-lpthread", "-o", program])
    return call([program, SEED, os.environ.get("KILL_ROUNDS", "3")], 600)


def one(what: str, out: Path, wrong: str) -> None:
    name, build = what.split("-")
    try:
        if wrong:
            raise Failed(wrong)
        said, passed = kill(build, out) if name == "kill" else native(name, build, out), True
    except (Failed, OSError, subprocess.TimeoutExpired) as error:
        said, passed = str(error), False
    (out / f"{what}.part").write_text(json.dumps({"passed": passed, "said": said}))
    (out / f"{what}.part").rename(out / f"{what}.json")


def main() -> None:
    out, workers, wanted = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    builds = sorted({what.split("-")[1] for what in wanted if not what.startswith("kill")})
    with ThreadPoolExecutor(workers) as pool:
        wrong = dict(zip(builds, pool.map(lambda build: core(build, out), builds), strict=True))
        jobs = [
            (what, "" if what.startswith("kill") else wrong[what.split("-")[1]]) for what in wanted
        ]
        for _ in pool.map(lambda job: one(job[0], out, job[1]), jobs):
            pass


if __name__ == "__main__":
    main()
