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


# --- what is found after a power cut ---------------------------------------------------------------------------

LEFT = """
cache = gbcache.Cache("1MB", path=sys.argv[1], max_entries=5)
cache.update({i: i for i in range(9)})
cache.sync()
if len(sys.argv) > 2:
    cache.resize("2MB", max_entries=7)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A live file whose machine lost power: of what it was, its checkpoint is to be had."""
    path = tmp_path / "a.gbc"

    def make(*more: str) -> Path:
        assert run(LEFT, path, *more).returncode == -signal.SIGKILL
        monkeypatch.setattr(files, "boot_id", lambda: b"another boot 123")
        return path

    return make


def test_its_bounds_are_there_after_a_power_cut(left: Any, tmp_path: Path) -> None:
    path = left()
    with Cache.open(path, "r+") as cache:
        assert cache.recovery is not None and cache.recovery.how == "checkpoint"
        assert entries_of(cache) == (1_000_000, 5, 5)
        cache["more"] = 1
        assert len(cache) == 5
        cache.save(tmp_path / "s.gbs")
    with Cache.open(path, "r+") as cache, Cache.open(tmp_path / "s.gbs") as copy:
        assert entries_of(cache) == entries_of(copy) == (1_000_000, 5, 5)


def test_they_are_the_later_ones(left: Any) -> None:
    """The file says what they were, its checkpoint what they had been."""
    with Cache.open(left("resized"), "r+") as cache:
        assert cache.recovery is not None and cache.recovery.how == "checkpoint"
        assert entries_of(cache) == (2_000_000, 7, 5) and cache.memory().total == 2_000_000


def test_they_are_the_checkpoints_where_the_file_is_gone(left: Any) -> None:
    path = left("resized")
    path.unlink()
    with Cache(None, path=path) as cache:
        assert entries_of(cache) == (1_000_000, 5, 5)


def test_they_are_the_checkpoints_where_the_file_is_damaged(left: Any) -> None:
    path = left("resized")
    with path.open("r+b") as file:
        file.seek(MAX_BYTES)
        file.write(b"damaged!")
    with Cache.open(path, "r+") as cache:
        assert entries_of(cache) == (1_000_000, 5, 5)


def test_what_is_given_counts(left: Any) -> None:
    path = left()
    with Cache("500kB", path=path, max_entries=3) as cache:
        assert entries_of(cache) == (500_000, 3, 3) and list(cache) == [6, 7, 8]


def test_one_of_them_is_given(left: Any) -> None:
    with Cache("500kB", path=left()) as cache:
        assert entries_of(cache) == (500_000, 5, 5)


# --- what is found after a kill --------------------------------------------------------------------------------

CUT = """
cache = gbcache.Cache("3MB", path=sys.argv[1])
cache.update({i: i for i in range(5000)})
seen = []
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def evicted(event):
    seen.append(event)
    if len(seen) == 500:
        die()
if sys.argv[2] == "bytes":
    gbcache.Cache._asked = die
    cache.resize(sys.argv[3])
cache.subscribe(evicted, kinds=("evict",), delivery="inline")
cache.resize("3MB", max_entries=10)
"""


@pytest.mark.parametrize("size", ["4MB", "2MB"])
def test_a_kill_before_the_new_budget_is_noted(tmp_path: Path, size: str) -> None:
    path = tmp_path / "a.gbc"
    assert run(CUT, path, "bytes", size).returncode == -signal.SIGKILL
    with Cache.open(path, "r+") as cache:
        assert cache.recovery is not None and cache.recovery.how == "mended"
        assert cache.max_bytes == cache.memory().total
    assert run(CUT, path, "bytes", size).returncode == -signal.SIGKILL
    with Cache("3MB", path=path) as cache:
        assert cache.max_bytes == cache.memory().total == 3_000_000
        cache.check()


def test_a_kill_while_entries_are_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is sound, and says so; nobody has to do then what was not done."""
    path = tmp_path / "a.gbc"
    assert run(CUT, path, "entries").returncode == -signal.SIGKILL
    found = json_of(capsys, "check", path)
    assert found["found"] == "mended" and found["entries"] == 4500
    with Cache.open(path, "r+") as cache:
        cache.check()
        cache["one"] = 1
        assert len(cache) == 4500 and cache.stats().evictions == 501
    with Cache("3MB", path=path, max_entries=10) as cache:
        assert entries_of(cache) == (3_000_000, 10, 10)


def json_of(capsys: pytest.CaptureFixture[str], verb: str, path: Path) -> dict[str, Any]:
    assert main([verb, str(path), "--json"]) == 0, capsys.readouterr()
    return dict(json.loads(capsys.readouterr().out))


def test_a_live_file_gets_a_smaller_bound(tmp_path: Path) -> None:
    path = tmp_path / "a.gbc"
    with Cache("1MB", path=path) as cache:
        cache.update({i: i for i in range(1000)})
    with Cache("1MB", path=path, max_entries=10) as cache:
        assert list(cache) == list(range(990, 1000))
        cache.check()
        cache["one"] = 1
        assert len(cache) == 10 and cache.stats().evictions == 991
    with Cache("1MB", path=path) as cache:
        assert entries_of(cache) == (1_000_000, 10, 10)


# --- resize ----------------------------------------------------------------------------------------------------


def test_the_bound_holds_while_it_comes_down() -> None:
    """For who looks meanwhile; and who writes does not do the work."""
    with Cache("1MB") as cache:
        cache.update({i: i for i in range(1000)})
        seen: list[tuple[int, int]] = []

        def evicted(event: object) -> None:
            if not seen:
                cache.check()
                before = len(cache)
                cache["new"] = 1
                seen.append((before, len(cache)))

        cache.subscribe(evicted, kinds=("evict",), delivery="inline")
        cache.resize("1MB", max_entries=10)
        assert seen == [(999, 999)] and entries_of(cache) == (1_000_000, 10, 10)
        assert "new" in cache


def test_nothing_has_changed_where_there_is_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise MemoryError

    with Cache("1MB", max_entries=2000) as cache:
        cache.update({i: i for i in range(1000)})
        before = entries_of(cache)
        with monkeypatch.context() as patched, pytest.raises(MemoryError):
            patched.setattr(Cache, "_remap", none)
            cache.resize("2MB", max_entries=5)
        assert entries_of(cache) == before
        cache.resize("2MB", max_entries=5)
        assert entries_of(cache) == (2_000_000, 5, 5)


def test_nor_where_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with Cache("1MB", path=tmp_path / "a.gbc") as cache:
        cache.update({i: i for i in range(1000)})
        before = entries_of(cache)
        monkeypatch.setattr(files, "extend", full)
        with pytest.raises(OSError, match="full"):
            cache.resize("2MB", max_entries=5)
        assert entries_of(cache) == before


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
