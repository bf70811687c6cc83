"""A slice of the power cuts of proof/power.py; and torn live images, which are never believed after one."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gbcache import Cache, files

sys.path.insert(0, str(Path(__file__).parent / "proof"))
import power

recorded = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("gcc"),
    reason="what is written is recorded by a preloaded library: Linux, and gcc (Debian: apt-get install gcc)",
)


@pytest.fixture(scope="module")
def bench() -> Iterator[power.Bench]:
    made = power.Bench(int(os.environ.get("SEED", "1")), 2)
    yield made
    made.close()


@recorded
def test_old_or_new_and_nothing_else(bench: power.Bench) -> None:
    done = bench.run(300, each=10)
    assert not done.bad, done.keep()
    assert done.refused > 20
    assert {
        "o",
        "n",
        "checkpoint a",
        "checkpoint c",
        "clean b",
        "clean e",
        "empty -",
        "refused",
    } <= done.ends.keys()


@recorded
@pytest.mark.parametrize("plant", ["sync", "directory", "close", "open"])
def test_what_is_left_out_is_found(plant: str, bench: power.Bench) -> None:
    """The proof can fail: without a sync that matters there are states that are neither."""
    assert bench.run(100, plant, each=10).bad > 10


def test_a_torn_live_image_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of two moments, in any mixture, after another boot: the checkpoint, to the entry."""
    path, dice = tmp_path / "a.gbc", random.Random(3)
    cache = Cache("200kB", path=path)
    for i in range(800):
        cache[i] = "old"
    cache.sync()
    first = path.read_bytes()
    for i in range(800):
        cache[i] = "new!" * (i % 9)
    second = path.read_bytes()
    monkeypatch.setattr(files, "boot_id", lambda: b"another boot 123")
    torn = tmp_path / "b.gbc"
    shutil.copy(str(path) + ".checkpoint", str(torn) + ".checkpoint")
    for _ in range(60):
        pages = [dice.choice((first, second))[at : at + 4096] for at in range(0, len(first), 4096)]
        torn.write_bytes(b"".join(pages))
        os.chmod(torn, 0o600)
        with Cache("200kB", path=torn) as found:
            assert found.recovery is not None and found.recovery.how == "checkpoint"
            assert dict(found.items()) == dict.fromkeys(range(800), "old")
    cache.close()
