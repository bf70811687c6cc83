"""The bounds of a cache, in bytes and in entries: of one that resizes, of a live file that is found again; and that no
save takes a live file from its writer."""

from __future__ import annotations

import errno
import io
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from children import run

from gbcache import Cache, ImageError, files
from gbcache.__main__ import main

MAX_BYTES = 128
"""Where a live file's head has it."""


def entries_of(cache: Cache) -> tuple[int, int | None, int]:
    stats = cache.stats()
    return stats.max_bytes or 0, stats.max_entries, stats.entries


# --- a ring of events ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [2**35 + 100_000, 2**36 + 65_536, 2**64, 10**30, "64GB"])
def test_a_ring_that_no_image_holds(room: int | str) -> None:
    with pytest.raises(ValueError, match="does not fit this cache"):
        Cache("8MB", events=room)


# --- a save, and a live file -----------------------------------------------------------------------------------


@pytest.fixture
def lives(tmp_path: Path) -> Path:
    path = tmp_path / "a.gbc"
    with Cache("1MB", path=path) as cache:
        cache["paid"] = 1
    return path


@pytest.mark.parametrize("wait", [True, False])
def test_a_save_does_not_replace_a_live_file(lives: Path, wait: bool) -> None:
    with Cache("1MB", path=lives) as cache, Cache("1MB") as other:
        for each in (cache, other):
            with pytest.raises(ImageError, match="give another path, or remove it"):
                each.save(lives) if wait else each.save(lives, wait=False).wait(20)
        cache["paid"] = 2
    was = lives.read_bytes()
    with Cache("1MB") as other, pytest.raises(ImageError):
        other.save(lives)  # nor where nobody has it open
    assert lives.read_bytes() == was and list(lives.parent.iterdir()) == [lives]
    with Cache("1MB", path=lives) as cache:
        assert cache["paid"] == 2


def test_nor_one_that_was_made_meanwhile(tmp_path: Path) -> None:
    path, made = tmp_path / "a.gbc", list[Cache]()

    def progress(done: int, total: int) -> None:
        if not made:
            made.append(Cache("1MB", path=path))

    with Cache("1MB") as cache, pytest.raises(ImageError, match="live file"):
        cache.save(path, progress=progress)
    with made[0] as live:
        live["k"] = 1
    with Cache("1MB", path=path) as live:
        assert live["k"] == 1


def test_load_replaces_one_that_nobody_has_open(
    lives: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*more: str) -> int:
        monkeypatch.setattr(sys, "stdin", io.StringIO('{"key": "k", "value": 1}\n'))
        return main(["load", str(lives), *more])

    with Cache("1MB", path=lives) as cache:
        assert load("--force") == 2
        assert "has it open" in capsys.readouterr().err
        cache["paid"] = 2
    assert load() == 2
    with Cache("1MB", path=lives) as cache:
        assert cache["paid"] == 2
    assert load("--force") == 0
    with Cache.open(lives) as found:
        assert dict(found) == {"k": 1}
    assert load("--force") == 0  # over a snapshot, as before


def test_nobody_opens_it_meanwhile(
    lives: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def replacing(*args: Any, **options: Any) -> Any:
        with pytest.raises(BlockingIOError):
            Cache("1MB", path=lives)
        return was(*args, **options)

    was = files.replacing
    monkeypatch.setattr(files, "replacing", replacing)
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"key": "k", "value": 1}\n'))
    assert main(["load", str(lives), "--force"]) == 0, capsys.readouterr()
    with Cache.open(lives) as found:
        assert found["k"] == 1
