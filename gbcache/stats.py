"""Counters, and where every byte is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Entry", "Memory", "ObjectEntry", "Stats"]


class Entry(NamedTuple):
    """What is known of one entry without using it."""

    key_bytes: int
    """Length of the key as it is stored."""
    value_bytes: int
    """Length of the value as it is stored."""
    ttl: float | None
    """Seconds until it expires, None for never."""
    idle: float | None
    """Seconds a use adds, None if uses add nothing."""


class ObjectEntry(NamedTuple):
    """What is known of one entry of an ObjectCache without using it."""

    weight: int | None
    """What `weigh` said of it, None where nothing is weighed."""
    ttl: float | None
    """Seconds until it expires, None for never."""
    idle: float | None
    """Seconds a use adds, None if uses add nothing."""


@dataclass(frozen=True)
class Stats:
    """What a cache has done since it was made, and how full it is."""

    hits: int
    """Reads (`[]`, `get`, `get_many`, `pop`) that found a live entry."""
    misses: int
    """Reads that did not: `misses_absent` + `misses_expired`."""
    misses_absent: int
    misses_expired: int
    sets: int
    """Values written; `replaces` of them over an old one."""
    replaces: int
    deletes: int
    """Entries removed by a caller, or because they changed elsewhere (a `Tiered`'s ``invalidate``)."""
    evictions: int
    """Entries removed to make room."""
    expirations: int
    """Entries removed because they were due."""
    rejects: int
    """Values refused because they can never fit."""
    clears: int
    moves: int
    """Blocks moved to make scattered room one."""
    loads: int
    """Values that `get_or_set` (and `memoize`) loaded; `load_errors`: loads that raised."""
    load_errors: int
    stale_hits: int
    """Times `get_or_set` answered with a value past its deadline."""
    entries: int
    max_entries: int | None
    used_bytes: int
    """Bytes of the image in use: everything but its free blocks."""
    max_bytes: int | None
    """The budget; None for an ObjectCache, which has none in bytes."""
    max_steps: Mapping[str, int]
    """The most steps (entries, blocks, buckets touched) one lock hold has taken, by operation."""
    weight: int | None = None
    """The sum of what `weigh` said; None where nothing is weighed."""
    max_weight: int | None = None
    callback_errors: int = 0
    """Times a subscriber raised."""

    @property
    def hit_ratio(self) -> float:
        """Hits over reads; 0.0 before the first read."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else 0.0


@dataclass(frozen=True)
class Memory:
    """Where every byte of the image is. `sum(parts.values()) == total`, always."""

    total: int
    """The image's length, in bytes."""
    parts: Mapping[str, int]
    """Bytes by what they are for: head entries extents buckets overflow directory ring pending free."""
    key_bytes: int
    value_bytes: int
    entries: int

    @property
    def overhead(self) -> float:
        """Bytes an entry costs beyond its key and value, free blocks and events aside; 0.0 if there are none."""
        if not self.entries:
            return 0.0
        used = self.total - self.parts["free"] - self.parts["head"] - self.parts["ring"]
        return (used - self.key_bytes - self.value_bytes) / self.entries

    def __str__(self) -> str:
        width = 40
        lines = []
        for name, size in self.parts.items():
            share = size / self.total
            bar = "#" * round(share * width)
            lines.append(f"{name:<10}{size:>15,}  {share:6.1%}  {bar}")
        lines.append(f"{'total':<10}{self.total:>15,}  {1:6.1%}")
        return "\n".join(lines)
