"""A near cache, empty at first, and a `Disk` serve one `Tiered`: else one would give the other's values, or old ones.
And what a tier acknowledged is there before the next one of its far side begins."""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from children import run, skip_without_lmdb, survives
from fars import Full, Telling
from servers import shared_server

from gbcache import Cache, ClosedError, FarError, ObjectCache, Tiered, ends


def test_one_tier_for_a_near_cache_and_a_disk(tmp_path: Path) -> None:
    skip_without_lmdb(here=True)
    from gbcache import Disk

    near, disk, other = Cache("1MB"), Disk(tmp_path / "a"), Disk(tmp_path / "b")
    tier = Tiered(near, disk)
    tier["k"] = 1
    with pytest.raises(ValueError, match=r"far=.*belongs to another Tiered"):
        Tiered(ObjectCache(10), disk)
    with pytest.raises(ValueError, match=r"near=.*belongs to another Tiered"):
        Tiered(near, other)
    assert tier["k"] == 1
    free = Cache("1MB")
    try:
        Tiered(free, other, write="behind", behind_bytes=1)
        raise AssertionError("it was made")
    except ValueError:  # one that was not made has none, while its exception is there, too
        assert Tiered(free, other).get("k") is None
    gc.collect()
    del tier
    gc.collect()
    with Tiered(ObjectCache(10), disk) as again:  # whose tier is gone may have another
        assert again["k"] == 1
    with Tiered(Cache("1MB"), other) as last:
        assert last.get("k") is None


# --- what an earlier tier was to write ---------------------------------------------------------------


def _fars(path: Path, kind: str) -> tuple[Any, Callable[[], Any]]:
    """A far side, and another that has what it has."""
    if kind == "disk":
        skip_without_lmdb(here=True)
        from gbcache import Disk

        return Disk(path), lambda: Disk(path)
    if kind == "valkey":
        pytest.importorskip("redis")
        from gbcache import Valkey

        url, prefix = shared_server().url, f"claims{time.monotonic_ns()}:"
        return Valkey(url, prefix=prefix), lambda: Valkey(url, prefix=prefix)
    far = Full()
    return far, lambda: far


@pytest.mark.parametrize("write", ["through", "behind"])
@pytest.mark.parametrize("kind", ["disk", "valkey", "custom"])
def test_a_dropped_tiers_writes_are_there_before_the_next_ones(
    tmp_path: Path, kind: str, write: str
) -> None:
    far, again = _fars(tmp_path / "d", kind)
    dropped = Tiered(Cache("1MB"), far, write="behind", behind_seconds=60)
    dropped.update({"k": "old", "l": "kept"})
    del dropped
    tier = Tiered(Cache("1MB"), far, write=write, behind_seconds=60)
    assert tier.get_many(["k", "l"]) == {"k": "old", "l": "kept"}
    tier["k"] = "new"
    assert not ends.waiting or write == "behind"
    tier.near.clear()
    assert tier["k"] == "new"
    tier.close()
    with Tiered(Cache("1MB"), again()) as last:
        assert last["k"] == "new" and last["l"] == "kept"


def test_a_tier_is_not_made_while_an_earlier_ones_writes_fail() -> None:
    far, near = Full(), Cache("1MB")
    dropped = Tiered(Cache("1MB"), far, write="behind", behind_seconds=60)
    dropped["k"] = "old"
    far.failing = True
    with pytest.raises(FarError, match="out of order"):
        dropped.close()
    del dropped
    with pytest.raises(FarError, match=r"an earlier Tiered's writes .*close this far side"):
        Tiered(near, far)
    with Tiered(near, Full()):  # it is free, and so is another far side
        pass
    far.failing = False
    with Tiered(Cache("1MB"), far) as tier:
        assert tier["k"] == "old"
        tier["k"] = "new"
    assert far.data["k"][0] == "new"


def test_the_ways_out_of_writes_that_found_no_room(tmp_path: Path) -> None:
    skip_without_lmdb(here=True)
    from gbcache import Disk

    value = os.urandom(100_000)
    disk = Disk(tmp_path / "d", max_bytes="4MiB", sync="never")
    dropped = Tiered(Cache("1MB"), disk, write="behind", behind_seconds=60)
    with pytest.raises(FarError) as told:
        for i in range(100):
            dropped[f"k{i}"] = value
            dropped.sync()
    assert told.value.errno == errno.ENOSPC
    dropped.update(dict.fromkeys(["a", "b"], value))
    last, told = f"k{i}", None  # type: ignore[assignment]
    del dropped
    gc.collect()  # the error had it
    with pytest.raises(FarError, match="no room") as full:
        Tiered(Cache("1MB"), disk)
    assert full.value.errno == errno.ENOSPC
    disk.delete_many([f"k{i}" for i in range(6)])
    del full
    with Tiered(Cache("1MB"), disk) as tier:
        assert tier.get_many(["a", "b", last]).keys() == {"a", "b", last}


def test_closing_the_far_side_gives_them_up(tmp_path: Path) -> None:
    skip_without_lmdb(here=True)
    program = """
import sys
from gbcache import Cache, Disk, FarError, Tiered
disk = Disk(sys.argv[1])
put = disk.put_many
tier = Tiered(Cache("1MB"), disk, write="behind", behind_seconds=60)
def fails(items):
    raise FarError("not now")
disk.put_many = fails
tier["k"] = "old"
del tier
try:
    Tiered(Cache("1MB"), disk)
except FarError as error:
    print(error)
disk.close()
disk.put_many = put
with Tiered(Cache("1MB"), Disk(sys.argv[1])) as tier:
    tier["k"] = "new"
"""
    done = run(program, tmp_path / "d")
    assert done.returncode == 0 and "not now" in done.stdout, done.stderr
    assert "1 writes wait" in done.stderr  # and the end says so
    from gbcache import Disk

    with Tiered(Cache("1MB"), Disk(tmp_path / "d")) as tier:
        assert tier["k"] == "new"


def test_a_tier_that_its_far_side_does_not_tell_has_claimed_nothing() -> None:
    class Deaf(Telling):
        def feed(self, listener: Any) -> None:
            raise FarError("nothing to hear")

    near = Cache("1MB")
    try:
        Tiered(near, Deaf())
        raise AssertionError("it was made")
    except FarError:  # while its exception is there
        with Tiered(near, Full()) as tier:
            assert tier.get("k") is None


# --- memory begins empty -----------------------------------------------------------------------------


@pytest.mark.parametrize("near", [Cache("1MB"), ObjectCache(10)], ids=["Cache", "ObjectCache"])
def test_memory_that_holds_something_is_refused(near: Any) -> None:
    """It may be old, or what the far side never got."""
    far = Full()
    far.put_many([("k", "new", None)])
    near.set("k", "old")
    near.set("l", "old", ttl=0.01)
    with pytest.raises(ValueError, match=r"holds 2 entries.*near\.clear\(\)"):
        Tiered(near, far)
    assert near["k"] == "old"  # nothing is lost
    near.clear()
    tier = Tiered(near, far)
    assert tier["k"] == "new"
    del tier  # its copies are there
    gc.collect()
    with pytest.raises(ValueError, match="holds 1 entries"):
        Tiered(near, far)
    near.clear()
    with Tiered(near, far) as tier:
        assert tier["k"] == "new"
    with pytest.raises(ClosedError):
        Tiered(near, far)


def test_what_expired_is_not_served_stale_by_the_next_tier() -> None:
    near, far = Cache("1MB", housekeeping=False), Full()
    tier = Tiered(near, far, stale=60, on_far_error="serve_stale")
    tier.set("k", "old", ttl=0.01)
    del tier
    time.sleep(0.03)
    assert "k" not in near
    with pytest.raises(ValueError, match="holds 1 entries"):
        Tiered(near, far, stale=60, on_far_error="serve_stale")


def test_a_live_file_or_a_snapshot_is_not_believed(tmp_path: Path) -> None:
    with Cache("1MB", path=tmp_path / "live") as cache:
        cache["k"] = "never sent"
        cache.save(tmp_path / "snap")
    for near in (Cache("1MB", path=tmp_path / "live"), Cache.open(tmp_path / "snap")):
        with near, pytest.raises(ValueError, match="holds 1 entries"):
            Tiered(near, Full())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_childs_memory_begins_empty_too() -> None:
    near, far = Cache("1MB"), Full()
    tiers = [Tiered(near, far)]
    tiers[0]["k"] = 1

    def child() -> None:
        with pytest.raises(ValueError, match="belongs to another"):
            Tiered(near, far)
        tiers.clear()
        with pytest.raises(ValueError, match="holds 1 entries"):
            Tiered(near, far)
        near.clear()
        assert Tiered(near, far)["k"] == 1

    survives(child)
    assert tiers[0]["k"] == 1


def test_of_two_that_claim_at_once_one_does() -> None:
    class Slow(Cache):
        def __len__(self) -> int:
            held = super().__len__()
            time.sleep(0.2)  # the other one is here, too
            return held

    near, made, refused = Slow("1MB"), list[Tiered](), list[str]()

    def make() -> None:
        try:
            made.append(Tiered(near, Full()))
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1 == len(refused) and "belongs to another" in refused[0]
