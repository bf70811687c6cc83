"""The least that a near side has to do to keep copies of a far side that tells of changes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

__all__ = ["Near"]


class Near:
    """A `Listener` with copies. What is read while a change of it is told is not kept."""

    def __init__(self, far: Any, deaf: bool = False) -> None:
        self.far = far
        self.copies: dict[Any, Any] = {}
        self.trusted = False
        self.told: list[str] = []
        """lost and restored, as they came."""
        self.changes = self.hits = 0
        self._flights: dict[Any, list[list[bool]]] = {}
        self._lock = threading.Lock()
        self._deaf = deaf  # planted: as if changes were not told

    def read(self, key: Any) -> Any:
        # No lock here: a loop of hits takes it again and again, and who waits to tell of a change never gets it.
        value = self.copies.get(key, self) if self.trusted else self
        if value is not self:
            self.hits += 1
            return value
        with self._lock:
            flight = [self.trusted]
            self._flights.setdefault(key, []).append(flight)
        value = None
        try:
            value = self.far.get_many([key]).get(key, (None, None))[0]
        except BaseException:
            flight[0] = False
            raise
        finally:
            with self._lock:  # one step: what is told in between must void it
                flights = self._flights[key]
                flights[:] = [each for each in flights if each is not flight]
                if not flights:
                    del self._flights[key]
                if flight[0] and self.trusted:
                    self.copies[key] = value
        return value

    def changed(self, keys: Sequence[Any] | None) -> None:
        if self._deaf:
            return
        with self._lock:
            self.changes += 1 if keys is None else len(keys)
            if keys is None:
                self._void()
                return
            for key in keys:
                self.copies.pop(key, None)
                for flight in self._flights.get(key, ()):
                    flight[0] = False

    def lost(self) -> None:
        with self._lock:
            self.trusted = False
            self._void()
            self.told.append("lost")

    def restored(self) -> None:
        with self._lock:
            self._void()
            self.trusted = True
            self.told.append("restored")

    def _void(self) -> None:
        self.copies.clear()
        for flights in self._flights.values():
            for flight in flights:
                flight[0] = False
