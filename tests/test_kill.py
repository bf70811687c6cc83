"""A slice of the kill -9 campaign (tests/proof/kill.py), and that it finds what it is there to find."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).parent / "proof" / "kill.py"
SHORT = os.environ.get("GB_SLICE") == "short"

pytestmark = [
    pytest.mark.skipif(SHORT, reason="the campaign counts in seconds"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]


def campaign(*options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: it forks, and no thread of other tests may be there."""
    command = [sys.executable, str(CAMPAIGN), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_forty_kills() -> None:
    ran = campaign("--kills", "40", "--wait", "10", "70")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    kills = re.search(r"(\d+) kills", ran.stdout)
    assert kills and int(kills[1]) >= 40, ran.stdout
    assert "lost 0, resurrected 0, wrong 0, other 0" in ran.stdout


@pytest.mark.parametrize("what", ["lost", "resurrected", "wrong", "stuck"])
def test_a_planted_fault_is_found(what: str) -> None:
    """A child acknowledges a set or a delete that it did not do, sets another value, or its writers stop."""
    ran = campaign("--kills", "60", "--wait", "10", "70", "--seed", "1", "--plant", what)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    # A counter that was not set shows as wrong, or as an error, at the child's next look.
    shown = ("hang",) if what == "stuck" else (what, "wrong", "error")
    assert any(f"\n{kind}: " in ran.stdout for kind in shown), ran.stdout
    shutil.rmtree(ran.stdout.split("kept: ")[1].strip())
