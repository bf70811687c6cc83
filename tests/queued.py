"""What the tests of ObjectStore's event queue share."""

from __future__ import annotations

import os
from typing import Any

import pytest

from gbcache import ObjectCache
from gbcache.events import Kind

RECORDED: list[Kind] = [
    kind for kind in Kind if kind is not Kind.LOST
]  # in the order of enum gb_event
ALL = (1 << len(RECORDED)) - 1
SHORT = os.environ.get("GB_SLICE") == "short"
Told = list[tuple[str, Any, Any, Any]]


def bits(*kinds: str) -> int:
    return sum(1 << RECORDED.index(Kind(kind)) for kind in kinds)


def told(cursor: Any, most: int = 1_000_000) -> Told:
    return [(str(e.kind), e.key, e.value, e.old) for e in cursor.pull(most)]


def listened(*args: Any, values: bool = True, room: int = 1000, **options: Any) -> Any:
    cache = ObjectCache(*args, **options)
    cache._listen(ALL, values, room)
    return cache, cache._cursor(None, ALL, None, True)


def empty(cache: Any) -> None:
    with pytest.raises(KeyError):
        cache.popitem()


class Thing:
    """Can be referred to weakly, and refer to anything."""

    def __init__(self, other: Any = None) -> None:
        self.other = other
