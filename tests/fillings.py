"""A cache with something of every kind in it."""

from __future__ import annotations

from gbcache import Cache

__all__ = ["filled"]


def filled(cache: Cache, n: int = 2000) -> Cache:
    for i in range(n):
        cache[f"key{i}"] = b"x" * (i % 90)
    cache.update(
        text="ü" * 9, none=None, yes=True, real=0.5, many=[1, {"a": (2,)}], long="y" * 50_000
    )
    cache[(1, "a")] = 2**70
    cache.set("ttl", "v", ttl=100)
    for i in range(0, n, 7):
        cache.get(f"key{i}")
    return cache
