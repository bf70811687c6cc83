"""The C tests: each file is the core, a dumb model and a main, built and run twice under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "tests" / "native").glob("test_*.c"))
FLAGS = [
    *[
        "-std=c11",
        "-O1",
        "-g",
        "-DGB_DEBUG=2",
        "-Wall",
        "-Wextra",
        "-Wconversion",
        "-Wshadow",
        "-Wstrict-prototypes",
    ],
    *["-Werror", "-Wno-unused-function", "-fsanitize=address,undefined"],
    "-fno-sanitize-recover=undefined",
]


@pytest.mark.parametrize("build", ["normal", "tiny"])
@pytest.mark.parametrize("source", FILES, ids=lambda path: path.stem)
def test_native(source: Path, build: str, tmp_path: Path) -> None:
    assert shutil.which("gcc"), "the native tests need gcc"
    program = tmp_path / source.stem
    tiny = ["-DGB_TINY"] if build == "tiny" else []
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'native'}"]
    built = subprocess.run(
        ["gcc", *FLAGS, *tiny, *include, str(source), "-lpthread", "-o", str(program)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    seed = os.environ.get("SEED", "1")
    ran = subprocess.run([str(program), seed], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    assert "checks" in ran.stdout


def test_there_are_native_tests() -> None:
    assert len(FILES) >= 1
