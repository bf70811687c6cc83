"""The inputs fuzzing kept, once more, under sanitizers: each reaches something no other does, or once failed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "fuzz"
CSRC = HERE.parent.parent / "csrc"
KEPT = sorted((HERE / "corpus_load").glob("*.bin"))
FLAGS = ["-std=c11", "-O1", "-g", "-DGB_DEBUG=2", "-DCHECKED=1u", "-fsanitize=address,undefined"]


def build(program: Path, *more: str) -> None:
    sources = [str(HERE / "fuzz_load.c"), str(HERE / "driver.c")]
    include = [f"-I{CSRC}", f"-I{HERE.parent / 'native'}"]
    strict = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Werror"]
    call = ["gcc", *FLAGS, "-fno-sanitize-recover=undefined", *strict, "-Wno-unused-function"]
    built = subprocess.run(
        [*call, *more, *include, *sources, "-lpthread", "-o", str(program)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr


@pytest.mark.parametrize("variant", ["normal", "tiny"])
def test_kept_inputs(variant: str, tmp_path: Path) -> None:
    assert shutil.which("gcc"), "the native tests need gcc"
    program = tmp_path / "load"
    build(program, *(["-DGB_TINY"] if variant == "tiny" else []))
    ran = subprocess.run(
        [str(program), *map(str, KEPT)], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stdout[-500:] + ran.stderr[-4000:]
    assert ran.stdout.count("replay ") == len(KEPT)


def test_there_are_kept_inputs() -> None:
    assert len(KEPT) >= 20
    assert sum(path.stat().st_size for path in KEPT) < 60_000
