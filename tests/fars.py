"""Far sides for tests: a dict with a clock, that can be made to stop, to fail, and to tell."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from gbcache import FarError
from gbcache.codec import TypedCodec


def settle(condition: Callable[[], bool]) -> None:
    """Waits until it is so."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


class Dict:
    """A far side without optional verbs. `hook(verb, keys)` is called within each call, before anything is done."""

    def __init__(self) -> None:
        self.data: dict[Any, tuple[Any, float | None]] = {}
        self.calls: list[tuple[str, list[Any]]] = []
        self.hook: Callable[[str, list[Any]], None] = lambda verb, keys: None
        self.after: Callable[[str, list[Any]], None] = lambda verb, keys: None
        self.failing = self.closed = False
        self.synced = 0
        self._lock = threading.Lock()

    def _call(self, verb: str, keys: Sequence[Any]) -> None:
        self.calls.append((verb, list(keys)))
        self.hook(verb, list(keys))
        if self.failing:
            raise FarError(f"{verb}: out of order")

    def _live(self, key: Any) -> Any:
        found = self.data.get(key)
        if found is None or (found[1] is not None and found[1] <= time.monotonic()):
            return None
        return found

    def get_many(self, keys: Sequence[Any]) -> dict[Any, tuple[Any, float | None]]:
        self._call("get", keys)
        got = {}
        with self._lock:
            for key in keys:
                found = self._live(key)
                if found is not None:
                    left = None if found[1] is None else found[1] - time.monotonic()
                    got[key] = found[0], left
        self.after("get", list(keys))
        return got

    def put_many(self, items: Sequence[tuple[Any, Any, float | None]]) -> None:
        self._call("put", [key for key, _, _ in items])
        with self._lock:
            for key, value, ttl in items:
                self.data[key] = value, None if ttl is None else time.monotonic() + ttl
        self.after("put", [key for key, _, _ in items])

    def delete_many(self, keys: Sequence[Any]) -> list[bool]:
        self._call("delete", keys)
        with self._lock:
            gone = [self._live(key) is not None for key in keys]
            for key in keys:
                self.data.pop(key, None)
        self.after("delete", list(keys))
        return gone

    def scan(self, cursor: Any = None, count: int = 1000) -> tuple[list[Any], Any]:
        self._call("scan", [])
        with self._lock:
            keys = cursor or [key for key in self.data if self._live(key) is not None]
        return keys[:count], keys[count:] or None

    def sync(self) -> None:
        self._call("sync", [])
        self.synced += 1

    def close(self) -> None:
        self.closed = True


class Full(Dict):
    """With all that a far side may have."""

    codec = TypedCodec()

    def add(self, key: Any, value: Any, ttl: float | None) -> bool:
        self._call("add", [key])
        with self._lock:
            if self._live(key) is not None:
                return False
            self.data[key] = value, None if ttl is None else time.monotonic() + ttl
        self.after("add", [key])
        return True

    def incr(self, key: Any, delta: int, initial: int, ttl: float | None) -> int:
        self._call("incr", [key])
        with self._lock:
            found = self._live(key) or (initial, None if ttl is None else time.monotonic() + ttl)
            if type(found[0]) is not int:
                raise TypeError(f"incr: the value of {key!r} is not an int")
            self.data[key] = found[0] + delta, found[1]
            return int(found[0] + delta)

    def touch(self, key: Any, ttl: float | None) -> bool:
        self._call("touch", [key])
        with self._lock:
            found = self._live(key)
            if found is not None:
                self.data[key] = found[0], None if ttl is None else time.monotonic() + ttl
            return found is not None

    def count(self) -> int:
        self._call("count", [])
        return sum(1 for key in self.data if self._live(key) is not None)

    def clear(self) -> int:
        self._call("clear", [])
        with self._lock:
            n = len(self.data)
            self.data.clear()
        return n


class Telling(Full):
    """Others write to it, by `foreign`, and it tells."""

    listener: Any = None

    def feed(self, listener: Any) -> None:
        self.listener = listener

    def foreign(self, key: Any, value: Any) -> None:
        with self._lock:
            self.data[key] = value, None
        self.listener.changed([key])
