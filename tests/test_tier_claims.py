"""A near cache and a `Disk` serve one `Tiered`: else one would give the other's values, or old ones."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from children import skip_without_lmdb

from gbcache import Cache, ObjectCache, Tiered


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
