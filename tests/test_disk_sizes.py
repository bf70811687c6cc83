"""What a call brings to a `Disk` is what counts, by whatever verb: against `max_bytes`, and for the way it takes."""

from __future__ import annotations

import errno
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmdb")
from gbcache import Disk, FarError, verbs
from gbcache import disk as disk_module

MOST = 16 << 20


def quiet(disk: Disk) -> Disk:
    """Its background does nothing by itself."""
    disk._engine._tend = lambda: None  # type: ignore[method-assign]
    return disk


def on_disk(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def test_a_touch_counts_what_it_writes(tmp_path: Path) -> None:
    """Refused as the same `put_many` would be; and what it touched is as it was."""
    with quiet(Disk(tmp_path / "d", sync="never", max_bytes=MOST)) as disk:
        disk.put_many([("big", bytes(6_000_000), None), ("small", 1, None)])
        for _ in range(3):
            with pytest.raises(FarError, match="max_bytes") as failed:
                disk.touch("big", 50)
            assert failed.value.errno == errno.ENOSPC and on_disk(tmp_path / "d") <= MOST
        assert disk.touch("small", 50) and disk.get_many(["big"])["big"][1] is None


@pytest.mark.parametrize("size", [100, 4000, 5000, 100_000, 300_000, 3_000_000])
def test_touch_by_size(tmp_path: Path, size: int) -> None:
    """Short ones with others, through the journal; from `BIG` on to LMDB at once, as the docstring says."""
    with quiet(Disk(tmp_path / "d", sync="never")) as disk:
        disk.put_many([("key", bytes(size), None)])
        groups, commits = disk._engine.groups_done, disk._engine.store.commits
        assert disk.touch("key", 50) and not disk.touch("none", 50)
        assert not size or 49 < (disk.get_many(["key"])["key"][1] or 0) <= 50
        big = size >= disk_module.BIG
        assert disk._engine.groups_done - groups == (not big)
        assert disk._engine.store.commits - commits == big
        assert disk.get_many(["key"])["key"][0] == bytes(size)


def test_it_grows_between_a_touch_and_its_second_try(tmp_path: Path) -> None:
    """Another writes a longer value meanwhile: that one is touched, and counted."""
    sizes: list[int] = []
    with quiet(Disk(tmp_path / "d", sync="never")) as disk:
        run = disk._engine.run

        def runs(request: Any) -> Any:
            result = run(request)
            if isinstance(request, verbs.Touch):
                sizes.append(request.size)
                if len(sizes) < 3:
                    disk.put_many([("key", bytes(10_000_000 * len(sizes)), None)])
            return result

        disk._engine.run = runs  # type: ignore[method-assign]
        disk.put_many([("key", bytes(10_000), None)])
        assert disk.touch("key", 50)
        found = disk.get_many(["key"])["key"]
        assert len(found[0]) == 20_000_000 and found[1] is not None
        assert len(sizes) == 4 and sizes == sorted(sizes)


def test_add_of_a_mib_goes_to_lmdb_at_once(tmp_path: Path) -> None:
    with quiet(Disk(tmp_path / "d", sync="never")) as disk:
        commits = disk._engine.store.commits
        assert disk.add("key", bytes(2 << 20), 50) and not disk.add("key", bytes(3 << 20))
        info = disk.info()
        assert not info.waiting_bytes and not info.groups
        assert disk._engine.store.commits == commits + 1  # what is not stored takes none
        assert len(disk.get_many(["key"])["key"][0]) == 2 << 20


def test_incr_by_a_long_key(tmp_path: Path) -> None:
    """Its record has the key in it."""
    key = "k" * (2 << 20)
    with quiet(Disk(tmp_path / "d", sync="never")) as disk:
        assert [disk.incr(key), disk.incr(key, 5)] == [1, 6]
        assert not disk.info().waiting_bytes and disk.count() == 1
        with pytest.raises(OverflowError, match="64 bits"):
            disk.incr(key, 2**63 - 1)
        assert disk.get_many([key])[key] == (6, None)


def test_a_value_too_long_is_refused_by_any_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is with others: what is beyond a frame's field came up in the midst of a group, as the error of all."""
    monkeypatch.setattr(disk_module, "VALUE_MOST", 1000)
    with quiet(Disk(tmp_path / "d")) as disk:
        calls: list[Callable[[], object]] = [
            lambda: disk.add("a", bytes(1000)),
            lambda: disk.put_many([("a", bytes(1000), None)]),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="longer than 1 GiB"):
                call()
        assert disk.add("a", bytes(900)) and disk.count() == 1


@pytest.mark.parametrize("verb", ["put_many", "add"])
def test_what_never_fits_is_told_from_what_does_not_now(tmp_path: Path, verb: str) -> None:
    with quiet(Disk(tmp_path / "d", sync="never", max_bytes=MOST)) as disk:

        def call(size: int) -> int | None:
            try:
                if verb == "add":
                    disk.add("key", bytes(size))
                else:
                    disk.put_many([("key", bytes(size), None)])
            except FarError as error:
                assert "max_bytes" in str(error) and "remove entries" in str(error)
                return error.errno
            return None

        most = max(
            size for size in range(0, MOST, 1000) if not disk._engine.store.beyond(size + 30)
        )
        assert call(most + 1000) == call(MOST) == call(100 << 20) == errno.EFBIG
        assert call(most) is None
        disk.delete_many(["key"])
        disk.put_many([("other", bytes(1 << 20), None)])
        assert call(most) == errno.ENOSPC and call(most + 1000) == errno.EFBIG
        disk.clear()
        assert call(most) is None


def test_many_small_ones_at_once_are_no_one_that_never_fits(tmp_path: Path) -> None:
    """A group is larger than an empty Disk takes: each of its calls is not."""
    told: set[int | None] = set()
    with quiet(Disk(tmp_path / "d", sync="never", max_bytes="4MiB")) as disk:
        held = threading.Lock()
        held.acquire()
        commit = disk._engine.groups._commit

        def later(batch: Any) -> None:
            held.acquire()
            held.release()
            commit(batch)

        disk._engine.groups._commit = later

        def put(at: int) -> None:
            try:
                disk.put_many([(at, os.urandom(60_000), None)])
            except FarError as error:
                told.add(error.errno)

        threads = [threading.Thread(target=put, args=(at,)) for at in range(60)]
        for thread in threads:
            thread.start()
        while len(disk._engine.groups._waiting) < len(threads) - 1:
            time.sleep(0.001)
        held.release()
        for thread in threads:
            thread.join()
        assert told == {errno.ENOSPC} and 0 < disk.count() < 60


def test_a_long_write_that_lacks_memory_leaves_no_old_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever leads next would read what was there then, and a close would wait for its reader."""
    with quiet(Disk(tmp_path / "d", sync="never")) as disk:
        disk.incr("n", 1)
        assert disk.incr("n", 1) == 2
        with monkeypatch.context() as patch:

            def close(self: Any) -> None:
                raise MemoryError

            patch.setattr(verbs.View, "close", close)
            with pytest.raises(MemoryError):
                disk.add("m", bytes(2 << 20))
        disk._engine._settle_behind()  # as the thread that tends it does
        assert disk.incr("n", 1) == 3


def test_an_error_of_a_full_disk_is_the_same_elsewhere(tmp_path: Path) -> None:
    with quiet(Disk(tmp_path / "d", sync="never", max_bytes=MOST)) as disk:
        with pytest.raises(FarError) as failed:
            disk.put_many([("big", bytes(14_000_000), None)])
        again = pickle.loads(pickle.dumps(failed.value))
        assert failed.value.errno == again.errno == errno.EFBIG
