"""Builds and runs C tests, and leaves what each said in a file: beside pytest, so that a second core has work.

python tests/native/run.py OUT WORKERS NAME...      NAME: test_ring-tiny, kill-fast, kept-normal ...
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
FUZZ = ROOT / "tests" / "fuzz"
INCLUDE = [f"-I{ROOT / 'csrc'}", f"-I{NATIVE}"]
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Werror"]
SANITIZED = ["-O1", "-g1", "-DGB_DEBUG=2", "-Wno-unused-function", "-fsanitize=address,undefined",
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
    own = '#include "gb.c"' in source.read_text()
    built(build, *([] if own else apart(build, out)), str(source), "-lpthread", "-o", program)
    return call([program, SEED])


def kept(_: str, build: str, out: Path) -> str:
    """The inputs that fuzzing of the loader kept, once more: each reaches something no other does, or once failed."""
    program = str(out / f"kept-{build}")
    sources = [str(FUZZ / "fuzz_load.c"), str(FUZZ / "driver.c")]
    built(build, "-DCHECKED=1u", *apart(build, out), *sources, "-lpthread", "-o", program)
    inputs = sorted(map(str, FUZZ.glob("corpus_load/*.bin")))
    replayed = call([program, *inputs]).count("replay ")
    if replayed != len(inputs) or replayed < 20:
        raise Failed(f"{replayed} of {len(inputs)} inputs were run")
    return f"{replayed} inputs"


def apart(build: str, out: Path) -> list[str]:
    return ["-DGB_APART", str(out / f"core-{build}.o")]


def kill(_: str, build: str, out: Path) -> str:
    """Each store of the core is announced (by the calls of gcc's thread sanitizer), and killed at."""
    objects = []
    for name, more in (
        ("kill_core", ["-fsanitize=thread"]),
        ("kill_stores", ["-Wall", "-Wextra", "-Werror"]),
    ):
        made = str(out / f"{name}-{build}.o")
        source = str(NATIVE / f"{name}.c")
        call(["gcc", "-std=c11", "-g1", *KILL[build], *INCLUDE, *more, "-c", source, "-o", made])
        objects.append(made)
    program = str(out / f"kill-{build}")
    call(["gcc", *objects, "-lpthread", "-o", program])
    return call([program, SEED, os.environ.get("KILL_ROUNDS", "2")], 600)


def one(what: str, out: Path, wrong: str) -> None:
    name, build = what.split("-")
    run = {"kill": kill, "kept": kept}.get(name, native)
    try:
        if wrong:
            raise Failed(wrong)
        said, passed = run(name, build, out), True
    except (Failed, OSError, subprocess.TimeoutExpired) as error:
        said, passed = str(error), False
    (out / f"{what}.part").write_text(json.dumps({"passed": passed, "said": said}))
    (out / f"{what}.part").rename(out / f"{what}.json")


def main() -> None:
    out, workers, wanted = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    jobs = [(what, "" if what.startswith("kill") else what.split("-")[1]) for what in wanted]
    builds = sorted({build for _, build in jobs if build})
    try:
        with ThreadPoolExecutor(workers) as pool:
            wrong = dict(zip(builds, pool.map(lambda build: core(build, out), builds), strict=True))
            for _ in pool.map(lambda job: one(job[0], out, wrong.get(job[1], "")), jobs):
                pass
    finally:
        (out / "ended").touch()


if __name__ == "__main__":
    main()
