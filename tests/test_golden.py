"""Files of this format's version 1, kept: what is written today is the same to the byte, and they still open.

`python tests/test_golden.py` writes them anew, after a change of format that was meant (and its new number).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from pathlib import Path

import pytest

import gbcache
from gbcache import Cache, snapshot
from gbcache._packed import BUILD

GOLDEN = Path(__file__).parent / "golden"
SNAPSHOT, LIVE = GOLDEN / "snapshot-1.gbs", GOLDEN / "live-1.gbc"
MOMENT = 1_790_000_000_000


def content(cache: Cache) -> Cache:
    for i in range(300):
        cache[f"key {i}"] = {"n": i, "half": i / 2, "who": ("a", None, True)}
    cache.update(
        {1: -(2**40), 2**70: 0.5, b"raw": b"\0\xff", None: None, ("t", 3): "ü", "empty": ""}
    )
    cache.set("for a while", "value", ttl=3600)
    cache["long"] = "0123456789" * 900
    cache.get("key 7")
    return cache


def steady(patch: pytest.MonkeyPatch) -> None:
    """Nothing random, no time that goes on."""
    count = itertools.count()
    patch.setattr(os, "urandom", lambda n: hashlib.sha256(b"%d" % next(count)).digest()[:n])
    patch.setattr(snapshot, "_wall", lambda: MOMENT)


def write_snapshot(path: Path, patch: pytest.MonkeyPatch) -> None:
    steady(patch)
    content(Cache("200kB", clock=lambda: 0.0)).save(path)


@pytest.mark.skipif(BUILD["tiny"], reason="its blocks, and so its long values, are shorter")
def test_a_snapshot_is_the_same_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_snapshot(tmp_path / "now.gbs", monkeypatch)
    assert (tmp_path / "now.gbs").read_bytes() == SNAPSHOT.read_bytes()


@pytest.mark.parametrize("mode", ["copy", "r"])
def test_the_kept_snapshot_opens(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady(monkeypatch)
    shutil.copy(SNAPSHOT, tmp_path / "kept.gbs")
    os.chmod(tmp_path / "kept.gbs", 0o600)
    with Cache.open(tmp_path / "kept.gbs", mode) as found:
        expected = dict(content(Cache("200kB")).items())
        got = dict(found.items())
        if mode == "r":  # its hour may be over
            expected.pop("for a while"), got.pop("for a while", None)
        assert got == expected
        assert [type(v) for v in got.values()] == [type(expected[k]) for k in got]


@pytest.mark.skipif(BUILD["tiny"], reason="an image of another layout")
def test_the_kept_live_file_opens(tmp_path: Path) -> None:
    shutil.copy(LIVE, tmp_path / "kept.gbc")
    os.chmod(tmp_path / "kept.gbc", 0o600)
    with Cache.open(tmp_path / "kept.gbc", "r+") as cache:
        assert cache.recovery is not None and cache.recovery.how == "clean"
        expected = dict(content(Cache("200kB")).items())
        expected.pop("for a while"), cache.pop("for a while", None)
        assert dict(cache.items()) == expected
        cache.check()


@pytest.mark.skipif(not BUILD["tiny"], reason="for a build whose image has another layout")
def test_a_live_file_of_another_layout_is_refused(tmp_path: Path) -> None:
    shutil.copy(LIVE, tmp_path / "kept.gbc")
    os.chmod(tmp_path / "kept.gbc", 0o600)
    with pytest.raises(gbcache.ImageError, match="layout"):
        Cache.open(tmp_path / "kept.gbc", "r+")


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as context:
        write_snapshot(SNAPSHOT, context)
    LIVE.unlink(missing_ok=True)
    content(Cache("64kB", path=LIVE)).close()
