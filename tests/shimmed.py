"""A libc whose calls fail when told: the library that is preloaded for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = Path(__file__).parent / "fault" / "shim.c"

needs_shim = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("gcc"),
    reason="the calls are made to fail by a preloaded library: Linux, and gcc (Debian: apt-get install gcc)",
)


def build_shim(library: Path) -> Path:
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", str(SHIM), "-o", str(library), "-ldl"], check=True
    )
    return library
