"""What a reader found in a Disk: values copied to list keys, strangers' values in torn journals, names not on disk."""

from __future__ import annotations

import os
import shutil
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmdb", reason="a Disk needs lmdb: pip install gbcache[disk]")

from far_contract import scanned, until

from gbcache import engine, files, journal
from gbcache._disk import checksum
from gbcache.disk import Disk
from gbcache.errors import ImageError

# --- keys are listed ---------------------------------------------------------------------------------------------


def test_a_scan_keeps_no_values(tmp_path: Path) -> None:
    keys = [*range(20), *(f"{i}" * 600 for i in range(10, 20))]
    with Disk(tmp_path / "d") as disk:
        for key in keys:
            disk.put_many([(key, bytes(500_000), 3600.0 if key == 3 else None)])
        disk.scan()  # all of it is in LMDB
        tracemalloc.start()
        try:
            found = scanned(disk)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert sorted(map(str, found)) == sorted(map(str, keys))
    assert most < 400_000, f"{most} bytes to list {len(keys)} keys"


@pytest.mark.parametrize("key", ["k", "k" * 600])
def test_a_scan_sees_damage(tmp_path: Path, key: str) -> None:
    with Disk(tmp_path / "d") as disk:
        disk.put_many([(key, b"needle" * 5, None)])
        disk.scan()
        data = (tmp_path / "d" / "data.mdb").read_bytes()
        with open(tmp_path / "d" / "data.mdb", "r+b") as file:
            file.seek(data.find(b"needleneedle"))
            file.write(b"x")
        with pytest.raises(ImageError, match="checksum"):
            disk.scan()
        if key == "k":  # a long one is looked for by what its record says
            disk.put_many([(key, 1, None)])
            assert disk.scan(b"\0", 10) == ([key], None), "what waits stands for what is damaged"


def test_a_scan_and_what_waits(tmp_path: Path) -> None:
    """From a second page on nothing is written first: what waits stands for what LMDB has."""
    with Disk(tmp_path / "d") as disk:
        engine_ = disk._engine
        disk.put_many([(i, "old", None) for i in range(8)])
        page, cursor = disk.scan(count=4)
        assert page == [0, 1, 2, 3]
        disk.delete_many([5])
        disk.put_many([(6, "new", 60.0), (7, "new", 3600.0)])
        engine_._offset += 100
        assert disk.scan(cursor) == ([4, 7], None)


# --- journals ----------------------------------------------------------------------------------------------------


def left_by(disk: Disk, folder: Path) -> Path:
    """A copy of its directory as a kill in this moment leaves it; its journal."""
    shutil.copytree(disk.path, folder)
    (found,) = folder.glob("journal.*")
    return found


def a_strangers(length: int) -> bytes:
    """As much of a frame's head as may be made without knowing the store."""
    body = struct.pack("<QQQQQ", 0x656D617246427B5B, length, 1, 0, 0)
    return body + checksum(body, len(body)).to_bytes(8, "little")


def test_strangers_values_cost_a_torn_journal_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What looks like heads of frames, in the last one's content: none of it is summed beyond the head."""
    with Disk(tmp_path / "d") as disk:
        disk.put_many([("before", 1, None)])
        disk.put_many([("k", a_strangers(40_000) * 1500, None)])
        torn = left_by(disk, tmp_path / "e")
    os.truncate(torn, size := torn.stat().st_size - 100)
    monkeypatch.setattr(files, "boot_id", lambda: b"another machine.")
    summed = [0]

    def counted(data: Any, about: int) -> int:
        summed[0] += len(data)
        return checksum(data, about)

    monkeypatch.setattr(journal, "checksum", counted)
    with Disk(tmp_path / "e") as disk:
        assert disk.get_many(["before", "k"]) == {"before": (1, None)}
    assert summed[0] < 4 * size, f"{summed[0]} bytes summed of {size}"


def test_a_frame_before_the_last_is_never_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Disk(tmp_path / "d") as disk:
        for i in range(3):
            disk.put_many([(i, a_strangers(100) * 9, None)])
        hurt = left_by(disk, tmp_path / "e")
    data = bytearray(hurt.read_bytes())
    data[len(data) // 2] ^= 1  # in the second
    hurt.write_bytes(data)
    monkeypatch.setattr(files, "boot_id", lambda: b"another machine.")
    with pytest.raises(ImageError, match="frame 2, which was synced"):
        Disk(tmp_path / "e")


def test_a_journal_in_another_format(tmp_path: Path) -> None:
    with Disk(tmp_path / "d") as disk:
        disk.put_many([("k", 1, None)])
        other = left_by(disk, tmp_path / "e")
    data = other.read_bytes()
    head = journal._HEAD.unpack(data[: journal._HEAD.size])
    other.write_bytes(journal._sealed(journal._HEAD, b"GBjrnl01", *head[1:-1]) + data[56:])
    with pytest.raises(ImageError, match="another release"):
        Disk(tmp_path / "e")


# --- names on disk -----------------------------------------------------------------------------------------------


def synced_by(monkeypatch: pytest.MonkeyPatch, path: Path) -> set[tuple[int, int]]:
    """What was synced before there was a store at `path`, by device and inode."""
    real, seen = os.fsync, set()

    def fsync(fd: int) -> None:
        found = os.fstat(fd)
        if not (path / "data.mdb").exists():
            seen.add((found.st_dev, found.st_ino))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    Disk(path).close()
    return seen


@pytest.mark.parametrize("there", ["", "a", "a/b", "a/b/users.disk"])
def test_the_names_that_lead_to_a_new_store_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    """A power cut after an acknowledgement would leave no store at all."""
    (tmp_path / there).mkdir(0o700, parents=True, exist_ok=True)
    path = tmp_path / "a" / "b" / "users.disk"
    synced = synced_by(monkeypatch, path)
    for above in (path.parent, path.parent.parent, tmp_path):
        found = above.stat()
        assert (found.st_dev, found.st_ino) in synced, f"{above} was not synced"


def test_a_directory_above_that_nobody_may_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /home is on some machines: that makes no store less good."""
    real = os.open

    def only_below(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_DIRECTORY and os.fspath(path) == str(tmp_path):
            raise PermissionError(13, "Permission denied", path)
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", only_below)
    with Disk(tmp_path / "d") as disk:
        disk.put_many([("k", 1, None)])
        assert scanned(disk) == ["k"]


# --- the background ----------------------------------------------------------------------------------------------


def test_what_is_over_goes_though_a_sync_fails_amid_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that removes it is the one that mends the journal."""
    monkeypatch.setattr(engine, "BATCH", 10)
    with Disk(tmp_path / "d", sync="interval", interval=3600) as disk:
        running: Any = disk._engine
        disk.put_many([(i, i, 3600.0) for i in range(35)])
        disk.scan()
        real, once = running.rotate, [1]

        def rotate() -> None:
            if once and running.layers[0]:  # here the thread of the interval comes, and fails
                once.clear()
                running.journal.doubtful = True
            real()

        running.rotate = rotate
        running._offset += 7200
        until(lambda: not disk.count() and not running.suspect, 20)
        assert not once
