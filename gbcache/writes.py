# cython: freethreading_compatible=True
"""Writes of a `Tiered` under way, by key: which of them overlap, so that none of those lands.

Compiled, and without `with`: where memory is short, what was begun is ended all the same. See `near`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .locks import Lock

__all__ = ["Write", "Writes"]


class Write(bytearray):
    """Writes to one key under way. Its byte is set: none of them may land."""

    __slots__ = ("under_way",)
    under_way: int

    def __init__(self) -> None:
        super().__init__(1)
        self.under_way = 0


class Writes:
    """What is under way. The lock is held for a few steps each, in which a key's ``__eq__`` may come back here."""

    def __init__(self) -> None:
        self.lock = Lock()
        self._of: dict[Any, Write] = {}

    def __len__(self) -> int:
        return len(self._of)

    def begin(self, keys: Sequence[Any]) -> list[Write]:
        """Before the far side is told. Raises what a key's ``__eq__`` does, and nothing is under way then."""
        made: list[Write] = []
        at = 0
        self.lock.acquire()
        try:
            for key in keys:
                found = self._of.get(key)
                write = Write() if found is None else found
                made.append(write)
                if found is None:  # not setdefault: 3.13's counts what it lacked the memory to keep
                    self._of[key] = write
                elif write.under_way:
                    write[0] = 1
                write.under_way += 1
                at += 1
        except BaseException:
            self._end(keys, made, at)
            raise
        finally:
            self.lock.release()
        return made

    def end(self, keys: Sequence[Any], writes: Sequence[Write]) -> None:
        """After it was told, or failed to be. Makes no object, but what a key's ``__eq__`` does."""
        self.lock.acquire()
        try:
            self._end(keys, writes, len(writes))
        finally:
            self.lock.release()

    def _end(self, keys: Sequence[Any], writes: Sequence[Write], count: int) -> None:
        at = 0
        while at < count:
            key, write = keys[at], writes[at]
            write.under_way -= 1
            if write.under_way <= 0 and self._of.get(key) is write:
                del self._of[key]
            at += 1

    def void(self, keys: Sequence[Any] | None) -> None:
        """None of these keys (None: any) lands what is being written."""
        self.lock.acquire()
        try:
            for write in self._of.values() if keys is None else map(self._of.get, keys):
                if write is not None:
                    write[0] = 1
        finally:
            self.lock.release()
