"""One adapter class per rival: how it is made, and its bound methods for tight loops."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gbcache

__all__ = [
    "OUTSIDE",
    "PEERS",
    "Adapter",
    "CacheBox",
    "CacheTools",
    "Dict",
    "DiskCache",
    "GbCache",
    "Lmdb",
    "LruDict",
    "Memcached",
    "MokaPy",
    "Redis",
    "Theine",
    "installed",
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


class DiskCache(Adapter):
    name, package = "diskcache Cache", "diskcache"

    def __init__(self, entries: int, max_bytes: int) -> None:
        import diskcache

        self.folder = tempfile.TemporaryDirectory(prefix="gbcache-bench-")
        self.held = diskcache.Cache(self.folder.name, size_limit=max_bytes)
        self.get, self.set = self.held.get, self.held.set

    def close(self) -> None:
        self.held.close()
        self.folder.cleanup()


class Lmdb(Adapter):
    """A transaction a call, unsynced, as the others are."""

    name, package = "LMDB", "lmdb"

    def __init__(self, entries: int, max_bytes: int) -> None:
        import lmdb

        self.folder = tempfile.TemporaryDirectory(prefix="gbcache-bench-")
        self.held = lmdb.open(self.folder.name, map_size=4 * max_bytes, sync=False)

    def get(self, key: str) -> bytes | None:
        with self.held.begin() as txn:
            return txn.get(key.encode())

    def set(self, key: str, value: bytes) -> None:
        with self.held.begin(write=True) as txn:
            txn.put(key.encode(), value)

    def close(self) -> None:
        self.held.close()
        self.folder.cleanup()


class Server(Adapter):
    """A server of its own on a unix socket, the quickest way to one; it ends with the adapter."""

    programs: tuple[str, ...] = ()

    def __init__(self, entries: int, max_bytes: int) -> None:
        program = next(filter(None, map(shutil.which, self.programs)), None)
        if program is None:
            raise ImportError(f"no {' or '.join(self.programs)} here: make servers")
        self.folder = tempfile.TemporaryDirectory(prefix="gbcache-bench-")
        self.socket = str(Path(self.folder.name, "socket"))
        said = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        self.server = subprocess.Popen(
            [program, *self.options(max_bytes)], cwd=self.folder.name, **said
        )
        end = time.monotonic() + 20
        while not Path(self.socket).exists():
            if self.server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{program} does not come up")
            time.sleep(0.01)
        self.connect()

    def options(self, max_bytes: int) -> list[str]:
        raise NotImplementedError

    def connect(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.held.close()
        self.server.terminate()
        self.server.wait()
        self.folder.cleanup()


class Redis(Server):
    name, package, programs = "Redis or Valkey", "redis", ("valkey-server", "redis-server")

    def options(self, max_bytes: int) -> list[str]:
        much = str(4 * max_bytes)
        return ["--port", "0", "--unixsocket", self.socket, "--save", "", "--maxmemory", much]

    def connect(self) -> None:
        import redis

        self.held = redis.Redis(unix_socket_path=self.socket)
        self.get, self.set = self.held.get, self.held.set


class Memcached(Server):
    name, package, programs = "memcached", "pymemcache", ("memcached",)

    def options(self, max_bytes: int) -> list[str]:
        return ["-s", self.socket, "-u", "root", "-t", "1", "-m", str(max(64, 4 * max_bytes >> 20))]

    def connect(self) -> None:
        from pymemcache.client.base import Client

        self.held = Client(self.socket, no_delay=True, default_noreply=False)
        self.get, self.set = self.held.get, self.held.set


PEERS: list[type[Adapter]] = [CacheBox, LruDict, CacheTools, Theine, MokaPy]
OUTSIDE: list[type[Any]] = [Lmdb, DiskCache, Redis, Memcached]
"""Rivals on disk or behind a socket."""


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
