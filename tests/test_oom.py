"""A slice of `starve.py`: operations with the first allocation failing, then a later one, until none fails."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from shimmed import build_shim

import gbcache

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(
        not importlib.util.find_spec("_testcapi"), reason="needs _testcapi.set_nomemory"
    ),
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or not shutil.which("gcc"),
        reason="a preloaded library has our own allocations fail: Linux, and gcc",
    ),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer's allocator is there"),
]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shim(tmp_path_factory.mktemp("shim") / "shim.so")


def sweep(shim: Path, *arguments: str) -> list[dict[str, Any]]:
    package = str(Path(gbcache.__file__).parent.parent)
    env = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": package}
    call = [sys.executable, str(HERE / "starve.py"), *arguments]
    ran = subprocess.run(call, env=env, capture_output=True, text=True, timeout=240)
    told = [json.loads(line) for line in ran.stdout.splitlines()]
    assert told and not ran.stderr, ran.stderr[-3000:]
    return told


SHOWED = [
    # Each showed a bug: a mapping taken for a sequence; an exception carried into the next read; a handler that
    # passed NULL on; a descriptor kept; a copy older than the far side; a flight that nobody could end; a live file's
    # lock kept by a mapping that nobody had.
    "Cache: set_many", "Cache: get_many of an iterator", "Cache: iterate",
    "ObjectCache: watch, dropped", "ObjectCache: read",
    "ObjectCache: get_or_set, raises", "Tiered Cache: set over", "Tiered Cache: add, incr", "Tiered Cache: told",
    "Tiered ObjectCache: get_many", "Tiered Disk: get what", "live: open by r+",
]  # fmt: skip


EACH = [
    # Every place of these, as few show it: a walk that lacked a value decoded the key, with the error set; a flight was
    # left where the interpreter lost the error of a function, so that no handler ran; a second close waited for ever.
    "Cache: iterate", "Cache: equality", "Cache: get_or_set, raises", "ObjectCache: get_or_set, raises", "live: close",
]  # fmt: skip


def sound(told: list[dict[str, Any]], cases: list[str]) -> None:
    ours = [one for one in told if one["case"].startswith(tuple(cases))]
    assert len(ours) >= len(cases) and all(one["tried"] for one in ours), told
    assert sum(one["failed"] for one in ours) > 0
    assert not [one for one in ours if one["bad"]], [
        (one["case"], one["bad"][:3]) for one in ours if one["bad"]
    ]


def test_memory_is_short(shim: Path) -> None:
    """In one process with what is planted: half of the time is to learn what the interpreter does to itself."""
    planted = "planted:"
    told = sweep(shim, "python", "--planted", "--step", "29", "--only", "|".join([*SHOWED, *EACH, planted]),
                 "--each", "|".join([*EACH, planted]))  # fmt: skip
    sound(told, SHOWED + EACH)
    it_finds({one["case"]: one["bad"] for one in told if one["case"].startswith(planted)})


def test_memory_of_ours_is_short(shim: Path) -> None:
    cases = ["make: Cache", "Cache: resize", "ObjectCache: resize", "Cache: clear"]
    sound(sweep(shim, "ours", "--only", "|".join(cases)), cases)


def it_finds(found: dict[str, list[str]]) -> None:
    """A half state, leaks and a crash, in operations of their own."""
    assert found["planted: half a state"] and found["planted: a descriptor"], found
    assert any("held by" in what for what in found["planted: an object that is kept"]), found
    assert any("ended in ours with signal 11" in what for what in found["planted: a crash"]), found
    assert not found["planted: nothing"], found
