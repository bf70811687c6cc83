"""Where an image's memory comes from."""

from __future__ import annotations

import contextlib
import mmap
import sys

__all__ = ["copy_needed", "private"]

HUGE = 8 << 20
"""Bytes from which huge pages are asked for."""


def private(length: int) -> mmap.mmap:
    """`length` bytes of zeroes, this process's own. Pages cost memory once they are touched.

    Python's default is a shared mapping, in which a forked child would write into its parent.
    """
    if sys.platform == "win32":
        raise OSError("gbcache needs mmap with private anonymous mappings: Linux or macOS")
    try:
        span = mmap.mmap(
            -1,
            length,
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
    except (OSError, OverflowError) as error:
        raise MemoryError(f"the system has no {length} bytes of address space: {error}") from error
    if length >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        # A wish, not a need: a cold look-up walks fewer page tables (10-20 % at a million entries).
        with contextlib.suppress(OSError):
            span.madvise(mmap.MADV_HUGEPAGE)
    return span


def copy_needed(length: int) -> mmap.mmap | None:
    """Where a mapping cannot change its length in place, the new one to copy into; else None."""
    return None if sys.platform.startswith("linux") else private(length)
