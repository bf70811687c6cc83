"""Where an image's memory comes from."""

from __future__ import annotations

import errno
import mmap
import sys

__all__ = ["FREE", "MOST", "copy_needed", "private", "refused", "reservation", "reserve", "shared"]

MOST = (1 << 35) - 4096  # what 32-bit refs of 8-byte granules reach
FREE = "t" in getattr(sys, "abiflags", "")
"""Whether the interpreter can be without the GIL."""
_NORESERVE = {"linux": 0x4000, "darwin": 0x40}.get(sys.platform, 0)  # not in `mmap` before 3.13


def private(length: int) -> mmap.mmap:
    """`length` bytes of zeroes, this process's own. Pages cost memory once they are touched.

    Python's default is a shared mapping, in which a forked child would write into its parent. Huge
    pages are not asked for: look-ups among a million entries would gain 10 %, but the kernel makes
    room for them within the touch that needs one, and that took up to 7 ms (`make bench-latency`).
    Only a load asks for them, and takes that back at its end (_pair).
    """
    if sys.platform == "win32":
        raise OSError("gbcache needs mmap with private anonymous mappings: Linux or macOS")
    return _map(length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def shared(fd: int, length: int) -> mmap.mmap:
    """The first `length` bytes of a file: what is stored there is the file's at once, whoever is killed."""
    return mmap.mmap(fd, length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _map(length: int, flags: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, length, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"the system has no {length} bytes of address space: {error}") from error


def reserve(entries: int) -> mmap.mmap:
    """Address space for so many pairs of references (0: for a million, it grows); touched as it fills."""
    return _map(reservation(entries), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)


def reservation(entries: int) -> int:
    """The bytes of address space `reserve` asks for: 160 an entry are more than any takes.

    Without a bound 64 MiB: every such cache in a process has as much, and address space is 128 TiB.
    """
    return min(MOST, 160 * entries + (1 << 18)) if entries else 1 << 26


def refused(error: OSError, length: int) -> Exception:
    """What to raise where a mapping could not be made so long, and is as it was.

    Made afterwards: while a mapping moves no Python code may run, not even a function around mmap.resize.
    """
    if error.errno != errno.ENOMEM:
        return error
    return MemoryError(f"the system has no {length} bytes of address space: {error}")


def copy_needed(length: int) -> mmap.mmap | None:
    """Where a mapping cannot change its length in place, the new one to copy into; else None.

    Without the GIL somebody may be looking while it moves: there it is copied, too.
    """
    if sys.platform.startswith("linux") and not FREE:
        return None
    return _map(length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
