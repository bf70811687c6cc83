"""Snapshots, as their users see them."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from children import run
from fillings import filled
from heard import SHORT

import gbcache
from gbcache import Cache, ImageError, _packed, snapshot


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def test_what_is_saved_is_what_is_opened(folder: Path) -> None:
    cache, path = filled(Cache("2MB")), folder / "a.gbs"
    size = cache.save(path)
    assert path.stat().st_size == size and path.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(folder)) == ["a.gbs"]
    for found in (Cache.open(path), Cache.open(path, "r")):
        assert list(found.items()) == list(cache.items())
        assert 98 < (found.ttl("ttl") or 0) <= 100 and found.ttl("text") is None
        assert (
            found["long"] == "y" * 50_000 and found.get("nobody") is None and "nobody" not in found
        )
        with pytest.raises(KeyError):
            found["nobody"]
        found.close()
        with pytest.raises(gbcache.ClosedError):
            found["text"]


def test_a_copy_goes_on_as_the_one_that_was_saved(folder: Path) -> None:
    cache = filled(Cache("2MB", max_entries=5000, events="64KiB"))
    seq = cache.last_seq
    cache.save(folder / "a.gbs")
    copy = Cache.open(folder / "a.gbs", events="64KiB")
    copy.check()
    assert copy.max_bytes == 2_000_000 and copy.max_entries == 5000
    assert copy.stats().sets == cache.stats().sets and copy.stats().hits == cache.stats().hits
    assert copy.last_seq == seq > 0
    copy["new"] = 1
    assert copy.last_seq == seq + 1


def test_a_smaller_copy_has_the_most_recently_used(folder: Path) -> None:
    cache = Cache("2MB")
    for i in range(5000):
        cache[i] = b"v" * 100
    cache.save(folder / "a.gbs")
    small = Cache.open(folder / "a.gbs", max_bytes="200kB")
    small.check()
    assert 1000 < len(small) < 2000
    assert list(small) == list(range(5000 - len(small), 5000))
    few = Cache.open(folder / "a.gbs", max_entries=10)
    assert list(few) == list(range(4990, 5000))


def test_times_run_on_while_the_file_sleeps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache("1MB")
    cache.set("short", 1, ttl=10)
    cache.set("long", 2, ttl=1000)
    cache.save(folder / "a.gbs")
    wall = snapshot._wall
    monkeypatch.setattr(snapshot, "_wall", lambda: wall() + 500_000)
    later = Cache.open(folder / "a.gbs")
    assert list(later) == ["long"] and 499 < (later.ttl("long") or 0) <= 500
    monkeypatch.setattr(snapshot, "_wall", lambda: wall() - 500_000)  # the clock was set back
    back = Cache.open(folder / "a.gbs")
    assert (back.ttl("long") or 0) <= 1000 and (back.ttl("short") or 0) <= 10


def test_entries_loaded_expire_without_traffic(folder: Path) -> None:
    cache = Cache("1MB")
    cache.set("k", 1, ttl=0.3)
    cache.save(folder / "a.gbs")
    copy = Cache.open(folder / "a.gbs")
    deadline = time.monotonic() + 5
    while len(copy) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(copy) == 0


def test_a_save_is_of_one_moment(folder: Path) -> None:
    """While four threads write, replace, delete and use, the file has exactly what was there when it began."""
    cache = Cache("8MB")
    for i in range(20_000):
        cache[i] = f"v{i}"
    cache["long"] = "z" * 100_000
    stop = threading.Event()

    def disturb(seed: int) -> None:
        n = seed
        while not stop.is_set():
            n = (n * 1103515245 + 12345) % 2**31
            key = n % 20_000
            cache[key] = "changed"
            cache.pop((key * 7) % 20_000, None)
            cache.get((key * 3) % 20_000)
            cache[f"new{n}"] = b"n" * 50
            cache["long"] = "q" * 90_000

    threads = [threading.Thread(target=disturb, args=(i,)) for i in range(4)]
    begun = threading.Event()
    handle = cache.save(folder / "a.gbs", wait=False, progress=lambda done, total: begun.set())
    for thread in threads:
        thread.start()
    assert handle.wait(60) == (folder / "a.gbs").stat().st_size and handle.done
    stop.set()
    for thread in threads:
        thread.join()
    cache.check()
    found = Cache.open(folder / "a.gbs", "r")
    odd = {k: v for k, v in found.items() if isinstance(k, int) and v not in (f"v{k}", "changed")}
    assert not odd and found["long"] in ("z" * 100_000, "q" * 90_000)


def test_progress_errors_and_cancelling_leave_the_old_file(folder: Path) -> None:
    cache, path = filled(Cache("64MB"), 100_000), folder / "a.gbs"
    cache.save(path)
    old = path.read_bytes()
    cache["more"] = 1

    def stop(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.save(path, progress=stop)
    assert path.read_bytes() == old
    handle = cache.save(path, wait=False)
    handle.cancel()
    try:
        handle.wait(30)
    except InterruptedError:
        assert path.read_bytes() == old
    assert os.listdir(folder) == ["a.gbs"]
    cache.check()
    with pytest.raises(FileNotFoundError):
        cache.save(folder / "no" / "a.gbs")
    with pytest.raises(RuntimeError, match="within"):
        cache.save(path, progress=lambda done, total: cache.resize("65MB"))


def test_a_save_that_is_cancelled_before_its_first_turn_is_over(folder: Path) -> None:
    path, cache, stop = folder / "a.gbs", Cache("1MB"), list[int]()
    with pytest.raises(InterruptedError):
        snapshot.write(cache, str(path), None, lambda: True)
    with pytest.raises(InterruptedError):
        snapshot.write(cache, str(path), lambda done, total: stop.append(1), lambda: bool(stop))
    assert not os.listdir(folder)


def test_close_during_a_save(folder: Path) -> None:
    cache = filled(Cache("64MB"), 100_000)
    handle = cache.save(folder / "a.gbs", wait=False)
    cache.close()
    try:
        handle.wait(30)
    except gbcache.ClosedError:
        assert os.listdir(folder) == []


def test_pickle_is_not_used_unasked(folder: Path) -> None:
    cache = Cache("1MB", codec="pickle")
    cache["k"] = {1: object}
    cache.save(folder / "a.gbs")
    for mode in ("copy", "r"):
        with pytest.raises(ImageError, match="pickle"):
            Cache.open(folder / "a.gbs", mode)
        assert Cache.open(folder / "a.gbs", mode, codec="pickle")["k"] == {1: object}


def test_read_only_follows_a_new_generation(folder: Path) -> None:
    cache, path = filled(Cache("1MB"), 10), folder / "a.gbs"
    cache.save(path)
    first = Cache.open(path, "r")
    assert first.refresh() is first and first.info.entries == len(cache)
    cache["later"] = 1
    cache.save(path)
    second = first.refresh()
    assert second is not first and second["later"] == 1 and "later" not in first
    with pytest.raises(TypeError, match="takes no max_bytes"):
        Cache.open(path, "r", max_bytes=1)
    with pytest.raises(ValueError, match="mode='w'"):
        Cache.open(path, "w")  # type: ignore[call-overload]


def test_events_go_on_with_the_next_number(folder: Path) -> None:
    with filled(Cache("2MB", events="64KiB")) as cache:
        cache.save(folder / "a.gbs")
        seq = cache.last_seq
    with Cache.open(folder / "a.gbs", events="64KiB") as again:
        again["one more"] = 1
        assert [event.seq for event in again.changes(since=seq)] == [seq + 1] == [again.last_seq]


def test_a_deadline_of_a_mapped_file_is_exact(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cache("100kB") as cache:
        cache.set("k", 1, ttl=1000)
        cache.save(folder / "a.gbs")
    with Cache.open(folder / "a.gbs", "r") as found:
        due = round(next(found.entries())[2] * 1000)
    for early in (1, 0):
        monkeypatch.setattr(_packed, "time_ns", lambda early=early: (due - early) * 10**6)
        monkeypatch.setattr(_packed, "monotonic_ns", lambda: 10**9)
        with Cache.open(folder / "a.gbs", "r") as found:
            assert found.get("k") == (1 if early else None)
        monkeypatch.undo()


def test_the_index_of_a_file_goes_round(folder: Path) -> None:
    """Its last places are taken, in some of the files (it takes many to be dense): a search goes on at the first."""
    numbers = list(range(60_000))
    for _ in range(3 if SHORT else 12):  # each has a seed of its own
        with Cache("4MB") as cache:
            cache.update(zip(numbers, numbers, strict=True))
            cache.save(folder / "a.gbs")
        with Cache.open(folder / "a.gbs", "r") as found:
            assert [found.get(i) for i in numbers] == numbers


UNDECODABLE = """
class Codec:
    def encode(self, value): return b"x"
    def decode(self, data): raise ZeroDivisionError("not today")
cache = gbcache.Cache("100kB", codec=Codec())
cache["k"] = [1]
cache.save(sys.argv[1])
found = gbcache.Cache.open(sys.argv[1], "r", codec=Codec())
for read in (lambda: found["k"], lambda: found.get("k"), lambda: list(found.items()), lambda: list(found.entries())):
    try:
        read()
    except ZeroDivisionError:
        continue
    raise SystemExit("it did not raise")
"""


def test_a_value_that_cannot_be_decoded_raises(folder: Path) -> None:
    ran = run(UNDECODABLE, folder / "a.gbs")
    assert ran.returncode == 0, (ran.returncode, ran.stderr[-500:])
