"""Sizes and times as people write them, in bytes and seconds."""

from __future__ import annotations

import math
import re
from datetime import timedelta

__all__ = ["TTL_MAX", "bytes_of", "seconds_of"]

TTL_MAX = 3_155_760_000.0
"""The longest TTL, in seconds: a hundred years."""

_UNITS = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "kib": 2**10,
    "m": 10**6, "mb": 10**6, "mib": 2**20,
    "g": 10**9, "gb": 10**9, "gib": 2**30,
}  # fmt: skip
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def bytes_of(size: int | str, what: str = "max_bytes") -> int:
    """A size in bytes, from an int or text such as ``"256MB"`` (10**6) or ``"256MiB"`` (2**20).

    Raises TypeError for anything else, ValueError for text that is not a size or a negative number.
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(
            f"{what}={size!r} is a {type(size).__name__}: give an int, or text as in '256MB'"
        )
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        unit = match and _UNITS.get(match[2].lower())
        if not match or not unit:
            raise ValueError(f"{what}={size!r} is not a size: write 268435456, '256MB' or '256MiB'")
        number = (float(match[1]) if "." in match[1] else int(match[1])) * unit
        if number == math.inf:
            raise ValueError(f"{what}={size!r} is more than there is")
        return int(number)
    if size < 0:
        raise ValueError(f"{what}={size!r} is negative")
    return size


def seconds_of(ttl: float | timedelta, what: str = "ttl", never: bool = True) -> float:
    """A time to live (or, by `what`, another span) in seconds, from a number or a timedelta.

    Raises TypeError for anything else, ValueError unless it is above 0 and at most a hundred years. `never`: whether
    None, which the caller has seen to, would have been one.
    """
    or_none = ", or None for never" if never else ""
    if isinstance(ttl, timedelta):
        seconds = ttl.total_seconds()
    elif not hasattr(ttl, "__float__") or isinstance(ttl, (bool, str, bytes)):
        raise TypeError(
            f"{what}={ttl!r} is a {type(ttl).__name__}: give seconds or a timedelta{or_none}"
        )
    else:
        try:
            seconds = float(ttl)
        except OverflowError:  # beyond all floats
            seconds = math.inf if ttl > 0 else -math.inf
    if math.isnan(seconds) or seconds <= 0.0:
        raise ValueError(f"{what}={ttl!r} is not above 0: give seconds{or_none}")
    if seconds > TTL_MAX:
        raise ValueError(
            f"{what}={ttl!r} is longer than {TTL_MAX:.0f} s{or_none.replace(', or', ': give')}"
        )
    return seconds
