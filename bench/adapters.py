"""One adapter class per rival: how it is made, and its bound methods for tight loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gbcache

__all__ = [
    "PEERS",
    "Adapter",
    "CacheBox",
    "CacheTools",
    "Dict",
    "GbCache",
    "LruDict",
    "MokaPy",
    "Theine",
]


class Adapter:
    """`get(key)` and `set(key, value)` are what the loops call: no wrapper stands between."""

    name = ""
    package = ""
    get: Callable[[Any], Any]
    set: Callable[[Any, Any], Any]

    def __init__(self, entries: int, max_bytes: int) -> None:
        raise NotImplementedError


class Dict(Adapter):
    name, package = "dict", ""

    def __init__(self, entries: int, max_bytes: int) -> None:
        self.held: dict[Any, Any] = {}
        self.get, self.set = self.held.get, self.held.__setitem__


class GbCache(Adapter):
    name, package = "gbcache.Cache", ""

    def __init__(self, entries: int, max_bytes: int, **options: Any) -> None:
        self.held = gbcache.Cache(max_bytes, max_entries=entries, **options)
        self.get, self.set = self.held.get, self.held.set


class CacheBox(Adapter):
    name, package = "cachebox.LRUCache", "cachebox"

    def __init__(self, entries: int, max_bytes: int) -> None:
        import cachebox

        self.held = cachebox.LRUCache(entries)
        self.get, self.set = self.held.get, self.held.__setitem__


class LruDict(Adapter):
    name, package = "lru-dict LRU", "lru-dict"

    def __init__(self, entries: int, max_bytes: int) -> None:
        import lru

        self.held = lru.LRU(entries)
        self.get, self.set = self.held.get, self.held.__setitem__


class CacheTools(Adapter):
    name, package = "cachetools.LRUCache", "cachetools"

    def __init__(self, entries: int, max_bytes: int) -> None:
        import cachetools

        self.held = cachetools.LRUCache(entries)
        self.get, self.set = self.held.get, self.held.__setitem__


class Theine(Adapter):
    name, package = "theine Cache", "theine"

    def __init__(self, entries: int, max_bytes: int) -> None:
        import theine

        self.held = theine.Cache(entries)
        self.get, self.set = self.held.get, self.held.set


class MokaPy(Adapter):
    name, package = "moka-py Moka", "moka-py"

    def __init__(self, entries: int, max_bytes: int) -> None:
        import moka_py

        self.held = moka_py.Moka(entries)
        self.get, self.set = self.held.get, self.held.set


PEERS: list[type[Adapter]] = [CacheBox, LruDict, CacheTools, Theine, MokaPy]


def installed(peers: list[type[Adapter]]) -> list[type[Adapter]]:
    """Those of `peers` that can be made here."""
    found = []
    for peer in peers:
        try:
            peer(10, 1 << 20)
        except ImportError:
            continue
        found.append(peer)
    return found
