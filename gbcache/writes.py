# cython: freethreading_compatible=True
"""Writes of a `Tiered` under way, by key: which of them overlap, so that none of those lands.

Compiled, and without `with`: where memory is short, or a signal's handler raises, what was begun is ended all the same.
See `near`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .locks import Lock

__all__ = ["Write", "Writes"]

_TRIES = 100
"""Of letting go of a key, in whose ``__eq__`` a signal's handler may raise."""


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

    def during(
        self,
        keys: Sequence[Any],
        side: Any,
        found: Sequence[Any],
        call: Callable[..., Any],
        *args: Any,
    ) -> Any:
        """Has the far side told by `call`, then memory by `side.wrote`: that it has `found`, unless the call says
        False. Where anything raises, the keys are dropped from memory."""
        writes = self.begin(keys)
        sound = False
        try:
            done = call(*args)
            side.wrote(keys, writes, () if done is False else found)
            sound = True
        finally:
            try:
                if not sound:
                    self._drop(side, keys)
            finally:
                self.end(keys, writes)
        return done

    def _drop(self, side: Any, keys: Sequence[Any]) -> None:
        """What raises in here is a signal's handler, or says that there is no memory for a call: something else is on
        its way up already. Makes no object."""
        left = _TRIES
        while left:
            left -= 1
            try:
                side.drop(keys)
                return
            except BaseException:
                side.doubted, side.trusted = True, False
        side.doubt()

    def begin(self, keys: Sequence[Any]) -> list[Write]:
        """Before the far side is told. Raises what a key's ``__eq__`` does, and nothing is under way then."""
        made: list[Write] = []
        at = 0
        self.lock.acquire()
        try:
            for key in keys:
                found = self._of.get(key)
                if found is not None and found.under_way <= 0:  # `end` could not let go of it
                    found = None
                write = Write() if found is None else found
                made.append(write)
                if found is None:  # not setdefault: 3.13's counts what it lacked the memory to keep
                    self._of[key] = write
                else:
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
        raised: BaseException | None = None
        held = False
        while not held:
            try:
                held = self.lock.acquire()
            except BaseException as error:  # of a signal's handler
                raised = error
        try:
            self._end(keys, writes, len(writes))
        finally:
            self.lock.release()
        if raised is not None:
            raise raised

    def _end(self, keys: Sequence[Any], writes: Sequence[Write], count: int) -> None:
        at = 0
        while at < count:  # all of them first: here nothing raises
            write = writes[at]
            write.under_way -= 1
            at += 1
        raised: BaseException | None = None
        left = _TRIES
        while at:
            key, write = keys[at - 1], writes[at - 1]
            try:
                if write.under_way <= 0 and self._of.get(key) is write:
                    del self._of[key]
            except BaseException as error:
                raised = error
                left -= 1
                if left > 0:
                    continue
            at -= 1
        if raised is not None:
            raise raised

    def void(self, keys: Sequence[Any] | None) -> None:
        """None of these keys (None: any) lands what is being written."""
        self.lock.acquire()
        try:
            for write in self._of.values() if keys is None else map(self._of.get, keys):
                if write is not None:
                    write[0] = 1
        finally:
            self.lock.release()
