"""A slice of the power cuts of proof/power_disk.py, and the one by which it found that synced writes were lost."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("lmdb", reason="a Disk needs lmdb: pip install gbcache[disk]")

from gbcache import Disk, files

sys.path.insert(0, str(Path(__file__).parent / "proof"))
import power_disk

recorded = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("gcc"),
    reason="what is written is recorded by a preloaded library: Linux, and gcc (Debian: apt-get install gcc)",
)


@pytest.fixture(scope="module")
def bench() -> Iterator[power_disk.Bench]:
    made = power_disk.Bench(int(os.environ.get("SEED", "1")), 1)
    yield made
    made.close()


@recorded
def test_what_was_promised_is_there(bench: power_disk.Bench) -> None:
    done = bench.run(300, each=0.2)
    assert not done.bad, done.bad[0][0]
    assert len(done.ends) == 3


@recorded
@pytest.mark.parametrize("plant", power_disk.PLANTS)
def test_what_is_left_out_is_found(plant: str, bench: power_disk.Bench) -> None:
    """The proof can fail: without a sync that matters there are states that hold less."""
    assert len(bench.run(1000, plant, each=1).bad) > 10


@pytest.mark.parametrize("back", [0, 1, 200, -1])
def test_a_journal_that_a_power_cut_brings_back_in_part(
    back: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it held is in LMDB; its damage says nothing of the journal after it, which was synced."""
    store = tmp_path / "d"
    disk = Disk(store, sync="interval", interval=3600)
    disk.put_many([(i, "before", None) for i in range(9)])
    old = next(store.glob("journal.*"))
    had = old.read_bytes()
    disk._engine._settle_behind()
    assert not old.exists()
    for i in range(9):
        disk.put_many([(i, "after", None)])
    disk.sync()
    cut = tmp_path / "cut"
    shutil.copytree(store, cut)
    disk.close()
    data = (
        had[:56] + bytes(len(had) - 56) if not back else had[:-1] if back < 0 else had[: 56 + back]
    )
    (cut / old.name).write_bytes(data)
    (cut / old.name).chmod(0o600)
    monkeypatch.setattr(files, "boot_id", lambda: b"another boot 123")
    with Disk(cut) as found:
        assert found.get_many(range(9)) == dict.fromkeys(range(9), ("after", None))
