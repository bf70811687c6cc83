"""Where an image's memory comes from."""

from __future__ import annotations

import mmap
import sys

__all__ = ["copy_needed", "private"]


def private(length: int) -> mmap.mmap:
    """`length` bytes of zeroes, this process's own. Pages cost memory once they are touched.

    Python's default is a shared mapping, in which a forked child would write into its parent. Huge
    pages are not asked for: look-ups among a million entries would gain 10 %, but the kernel makes
    room for them within the touch that needs one, and that took up to 7 ms (`make bench-latency`).
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
    return span


def copy_needed(length: int) -> mmap.mmap | None:
    """Where a mapping cannot change its length in place, the new one to copy into; else None."""
    return None if sys.platform.startswith("linux") else private(length)
