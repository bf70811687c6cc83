"""The C tests: each file is the core, a dumb model and a main, built and run twice under sanitizers (native/run.py).
They are begun when the tests have been collected (conftest.py), beside the others."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from conftest import NATIVE

FILES = sorted(path.stem for path in (Path(__file__).parent / "native").glob("test_*.c"))


def outcome(request: pytest.FixtureRequest, what: str) -> str:
    """What it said; fails if it failed."""
    out, begun = request.config.stash[NATIVE], time.monotonic()
    while not (out / f"{what}.json").exists():
        ended = (out / "ended").exists() or time.monotonic() - begun > 900
        assert not ended or (out / f"{what}.json").exists(), "native/run.py ended without it"
        time.sleep(0.02)
    told = json.loads((out / f"{what}.json").read_text())
    assert told["passed"], told["said"]
    return str(told["said"])


@pytest.mark.parametrize("build", ["normal", "tiny"])
@pytest.mark.parametrize("source", FILES)
def test_native(source: str, build: str, request: pytest.FixtureRequest) -> None:
    assert "checks" in outcome(request, f"{source}-{build}")


def test_there_are_native_tests() -> None:
    assert len(FILES) >= 10


@pytest.mark.parametrize("build", ["normal", "tiny", "fast"])
def test_a_kill_before_any_store(build: str, request: pytest.FixtureRequest) -> None:
    assert "kills" in outcome(request, f"kill-{build}")


@pytest.mark.parametrize("build", ["normal", "tiny"])
def test_inputs_that_fuzzing_kept(build: str, request: pytest.FixtureRequest) -> None:
    assert "inputs" in outcome(request, f"kept-{build}")
    kept = list((Path(__file__).parent / "fuzz" / "corpus_load").glob("*.bin"))
    assert sum(path.stat().st_size for path in kept) < 60_000
