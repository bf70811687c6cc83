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


@pytest.mark.parametrize("build", ["normal", "tiny", "fast"])
def test_a_kill_before_any_store(build: str, tmp_path: Path) -> None:
    """Each store of the core is announced (by the calls of gcc's thread sanitizer), and killed at."""
    rounds = os.environ.get("KILL_ROUNDS", "3")
    flags = {
        "normal": ["-O1", "-DGB_DEBUG=2"],
        "tiny": ["-O1", "-DGB_DEBUG=2", "-DGB_TINY"],
        "fast": ["-O3"],
    }[build]
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'native'}"]
    for name, more in (
        ("kill_core", ["-fsanitize=thread"]),
        ("kill_stores", ["-Wall", "-Wextra", "-Werror"]),
    ):
        source, made = ROOT / "tests" / "native" / f"{name}.c", tmp_path / f"{name}.o"
        call = [
            "gcc",
            "-std=c11",
            "-g",
            *flags,
            *include,
            *more,
            "-c",
            str(source),
            "-o",
            str(made),
        ]
        built = subprocess.run(call, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
    program = tmp_path / "kill"
    subprocess.run(
        ["gcc", *map(str, tmp_path.glob("kill_*.o")), "-lpthread", "-o", str(program)], check=True
    )
    call = [str(program), os.environ.get("SEED", "1"), rounds]
    ran = subprocess.run(call, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    assert "kills" in ran.stdout
