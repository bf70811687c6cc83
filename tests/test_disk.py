"""A Disk, by the contract of every far side, and what it alone does."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmdb", reason="a Disk needs lmdb: pip install gbcache[disk]")

import lmdb
from far_contract import KEYS, FarContract, in_threads, scanned, until
from heard import SHORT

from gbcache import engine
from gbcache.disk import Disk
from gbcache.errors import ClosedError, FarError, ImageError
from gbcache.lmdbstore import Store


class TestContract(FarContract):
    @pytest.fixture(params=["always", "interval"])
    def far(self, tmp_path: Path, request: Any) -> Iterator[Disk]:
        with Disk(tmp_path / "d", sync=request.param) as disk:
            yield disk


class TestContractWhereDigestsCollide(FarContract):
    """Every long key has the same digest: what tells them apart is the key in the record."""

    @pytest.fixture
    def far(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
        monkeypatch.setattr(engine, "digest_of", lambda data: b"d" * 32)
        with Disk(tmp_path / "d", sync="never") as disk:
            yield disk

    def test_no_gap_where_one_is_removed(self, far: Disk) -> None:
        keys = ["k" * 600 + str(i) for i in range(6)]
        far.put_many([(key, key, None) for key in keys])
        far._engine.flush()
        for gone in (0, 3, 5):
            far.delete_many([keys[gone]])
            left = {key for key in keys if key in far.get_many(keys)}
            assert keys[gone] not in left and far.count() == len(left)
        assert set(far.get_many(keys)) == {keys[1], keys[2], keys[4]} == set(scanned(far))


# --- what stays ----------------------------------------------------------------------------------


def test_reopened(tmp_path: Path) -> None:
    with Disk(tmp_path / "d") as disk:
        disk.put_many([(key, [n], 1000 if n % 2 else None) for n, key in enumerate(KEYS)])
        disk.put_many([("over", 1, 0.01), ("big", b"x" * 3_000_000, None)])
    time.sleep(0.05)  # a disk that is fast opens it within those 10 ms
    with Disk(tmp_path / "d") as disk:
        found = disk.get_many(KEYS)
        assert [found[key][0] for key in KEYS] == [[n] for n in range(len(KEYS))]
        assert all((found[key][1] is None) == (n % 2 == 0) for n, key in enumerate(KEYS))
        assert (
            disk.get_many(["over"]) == {} and disk.get_many(["big"])["big"][0] == b"x" * 3_000_000
        )
        assert disk.clear() >= len(KEYS) + 1
    with Disk(tmp_path / "d") as disk:
        assert disk.count() == 0 and scanned(disk) == []


def test_what_is_over_is_removed_without_traffic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SWEEP", 0.02)
    monkeypatch.setattr(engine, "IDLE", 0.02)
    monkeypatch.setattr(engine, "BATCH", 100)
    with Disk(tmp_path / "d", sync="never") as disk:
        disk.put_many([(i, b"x" * 100, 0.05 if i % 5 else None) for i in range(1000)])
        disk.put_many([("l" * 600 + str(i), b"", 0.05) for i in range(10)])
        until(lambda: disk.count() == 200)
        assert disk.info().expired == 810
        until(lambda: disk.info().waiting_bytes == 0)
        assert sorted(scanned(disk)) == list(range(0, 1000, 5))


def test_the_map_grows_under_readers(tmp_path: Path) -> None:
    with Disk(tmp_path / "d", sync="never") as disk:
        disk.put_many([("k", b"v" * 1000, None)])
        stop = threading.Event()

        def work(t: int) -> None:
            if t == 0:
                for i in range(20):
                    disk.put_many([(i, bytes(2_000_000), None)])
                stop.set()
            while not stop.is_set():
                assert disk.get_many(["k"])["k"][0] == b"v" * 1000

        in_threads(4, work)
        assert disk.info().map_bytes > 40_000_000 and disk.count() == 21


# --- whose it is ---------------------------------------------------------------------------------


def test_one_owner(tmp_path: Path) -> None:
    with Disk(tmp_path / "d") as disk:
        with pytest.raises(BlockingIOError, match="this process"):
            Disk(tmp_path / "d")
        code = f"from gbcache.disk import Disk; Disk({str(tmp_path / 'd')!r})"
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        assert "BlockingIOError" in ran.stderr and f"process {os.getpid()} has it" in ran.stderr
        disk.put_many([("k", 1, None)])
    Disk(tmp_path / "d").close()


def test_a_fork(tmp_path: Path) -> None:
    """The child's is closed, and says so; closing it, or ending, does nothing to the parent's."""
    disk = Disk(tmp_path / "d")
    disk.put_many([("k", 1, None)])
    pid = os.fork()
    if not pid:
        code = 1
        try:
            disk.close()
            with contextlib.suppress(ClosedError):
                disk.get_many(["k"])
                os._exit(2)
            with contextlib.suppress(BlockingIOError):
                Disk(tmp_path / "d")
                os._exit(3)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    disk.put_many([("l", 2, None)])
    disk.close()
    with Disk(tmp_path / "d") as disk:
        assert disk.get_many("kl") == {"k": (1, None), "l": (2, None)}


def test_bad_arguments(tmp_path: Path) -> None:
    for options, error, says in [
        ({"sync": "often"}, ValueError, "'often'"),
        ({"interval": 0}, ValueError, "interval=0"),
        ({"interval": "1"}, TypeError, "interval"),
        ({"max_bytes": 1000}, ValueError, "max_bytes=1000"),
        ({"max_bytes": 1.5}, TypeError, "max_bytes"),
        ({"codec": "json"}, ValueError, "'json'"),
    ]:  # fmt: skip
        with pytest.raises(error, match=says):
            Disk(tmp_path / "d", **options)
    assert not (tmp_path / "d").exists()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageError, match="directory"):
        Disk(tmp_path / "file")


def test_another_codec(tmp_path: Path) -> None:
    Disk(tmp_path / "d").close()
    with pytest.raises(ImageError, match="'typed'"):
        Disk(tmp_path / "d", codec="pickle")
    Disk(tmp_path / "d").close()


# --- room ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [90, 5000, 300_000])
def test_max_bytes(tmp_path: Path, size: int) -> None:
    """Full, it refuses; after removals it goes on, without being opened anew; never more than it may have."""
    most, many = 8_000_000, 20 if size < 1000 else 1
    with Disk(tmp_path / "d", sync="never", max_bytes=most) as disk:
        stored: list[int] = []
        for turn in range(2 if SHORT else 3):
            with pytest.raises(FarError, match="max_bytes") as failed:
                for at in range(turn * 1_000_000, turn * 1_000_000 + 200_000, many):
                    disk.put_many([(i, bytes(size), None) for i in range(at, at + many)])
                    stored += range(at, at + many)
            assert failed.value.errno == errno.ENOSPC
            assert len(stored) * size > most / 8
            assert set(disk.get_many(stored)) == set(stored)
            assert all(disk.delete_many(stored[1:]))
            del stored[1:]
            disk._engine.flush()
            assert (
                sum(p.stat().st_size for p in (tmp_path / "d").iterdir() if p.name != "lock.mdb")
                <= most
            )
        assert (
            disk.get_many(stored) == {i: (bytes(size), None) for i in stored} and len(stored) == 1
        )


@pytest.mark.parametrize("at", [0, 2, 3, 35])
def test_full_of_what_the_last_write_freed(tmp_path: Path, at: int) -> None:
    """LMDB has the pages that a transaction freed for the next but one: removals must not wait for them for ever, nor
    be refused for one that reads while they are written in pieces, from the one of that number on."""
    names, removed, stalled = [b"\2" + i.to_bytes(8, "big") for i in range(6400)], 0, 0
    for many in range(6260, 6340, 20):  # about three of these left no page over
        folder = tmp_path / str(many)
        folder.mkdir()
        store = Store(str(folder), "typed", 2_000_000)
        assert store.make()
        store.put_in_place()
        store.check(store.path)
        store.open()
        reader = Stalls(store, at)
        try:
            for turn in (1, 2):
                record = bytes(8) + bytes([turn]) * 90
                store.write(dict.fromkeys(names[:many], record), turn)
            store._transaction = reader.transaction  # type: ignore[method-assign]
            store.write(dict.fromkeys(names[1:many]), 3)
            assert store.applied == 3
            assert (
                store.page_of(b"", 9, lambda found: [bytes(name) for name, _ in found]) == names[:1]
            )
            removed += 1
        except lmdb.MapFullError:
            assert store.applied < 2, "it is full for ever"
        finally:
            stalled += reader.read()
            store.close()
    assert removed > 1 and bool(stalled) == bool(at)


class Stalls:
    """A thread that reads, from a transaction on, for a while."""

    def __init__(self, store: Store, at: int) -> None:
        self.store, self.at, self.write = store, at, store._transaction
        self.inside = threading.Event()
        self.thread = threading.Thread(target=self.stall)

    def transaction(self, *args: Any) -> None:
        self.at -= 1
        if not self.at:
            self.thread.start()
            self.inside.wait()
        self.write(*args)

    def stall(self) -> None:
        with self.store.reading():
            self.inside.set()
            time.sleep(0.05)

    def read(self) -> bool:
        if began := self.inside.is_set():
            self.thread.join()
        return began


def test_nothing_is_open_over_exec(tmp_path: Path) -> None:
    with Disk(tmp_path / "d") as disk:
        disk.put_many([("k", 1, None)])
        disk.scan()
        code = "import os; print([os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')])"
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            close_fds=False,
            check=True,
        )
    assert str(tmp_path) not in ran.stdout
