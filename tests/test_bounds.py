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


