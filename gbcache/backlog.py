"""What is on its way to a far side, and what of it stands aside."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from . import ends, pending
from .locks import Monitor
from .pending import AtRisk, Pending

__all__ = ["BATCH", "NEVER", "Backlog"]

BATCH = 10_000
"""Writes given to the far side at once, at most."""
NEVER = float("inf")


class Backlog:
    """Writes in generations, in the order they came; within one, a later write to a key takes the place of the one
    before. So those of one key keep their order. What is aside is older than all of them."""

    def __init__(self) -> None:
        self._newest: dict[Any, Pending] = {}
        """The last of the generations: who reads it without the lock finds one or the other, and no row in between."""
        self._generations = deque([self._newest])
        self._mark = bytearray(1)
        """What was put may land in memory while this is not set."""
        self._since = NEVER
        """When the oldest write came."""
        self._bytes = 0
        self.aside = pending.Aside()
        """None of it in `_since`."""
        self._change = Monitor()

    def _add(self, key: Any, write: Pending) -> None:
        newest = self._newest = self._generations[-1]  # a handler may have cut off who began it
        aside = self.aside.writes
        old, total = newest.get(key), self._bytes + write[4]
        if old is not None or (
            (aside or len(self._generations) > 1) and self.last(key) is not None
        ):
            fresh = bytearray(1)
            self._mark[0], self._mark = 1, fresh
        if old is not None:  # its place in the row is the older one's, and so is its age
            write = (*write[:3], old[3], write[4])
            total -= old[4]
        elif len(newest) >= BATCH:
            newest = {}
            self._generations.append(newest)
            self._newest = newest
        if self._since == NEVER:
            ends.waiting.add(self)
            self._change.tell()  # the thread waits for a first one
            self._since = write[3]
        self._bytes = total
        if newest is not self._newest and not any(newest is one for one in self._generations):
            self._weigh()  # a handler forked, and this is the child: those were its parent's
            self._add(key, write)
            return
        newest[key] = write  # last: if that is cut off, a generation without it is as good
        if aside:
            self._bytes -= self.aside.pop(key)

    def void(self) -> None:
        """Nothing that was put so far lands in memory any more, if it has not yet."""
        with self._change:
            fresh = bytearray(1)
            self._mark[0], self._mark = 1, fresh

    def last(self, key: Any) -> Pending | None:
        """The write of the key that is on its way, if one is."""
        while True:
            with self._change:
                generations, newest = (self.aside.writes, *self._generations), self._newest
            found: Pending | None = None
            for generation in generations:  # the newest last: there it is before it leaves `aside`
                found = generation.get(key, found)
            if found is not None or self._newest is newest:  # else one that began since
                return found

    def has_any(self, keys: Iterable[Any]) -> bool:
        """Whether a write of one of them is on its way."""
        while True:  # as in `last`
            with self._change:
                if self._since == NEVER and not self.aside.writes:
                    return False
                generations, newest = (self.aside.writes, *self._generations), self._newest
            if not all([writes.keys().isdisjoint(keys) for writes in generations]):
                return True
            if self._newest is newest:
                return False

    def at_risk(self) -> AtRisk:
        with self._change:
            age = max(0.0, time.monotonic() - min(self._since, self.aside.since()))
            return AtRisk(self._count(), self._bytes, age)

    def _count(self) -> int:
        return sum(map(len, self._generations)) + len(self.aside.writes)

    def remove_aside(self, keys: Iterable[Any]) -> set[Any]:
        """Of those that have no room at the far side a removal takes the place; which were there."""
        gone = set()
        with self._change:
            for key in keys if self.aside.writes else ():
                write = self.aside.writes.get(key)
                if write is not None and write[0] is not pending.REMOVED:
                    self._add(key, pending.frozen(None, key, pending.REMOVED, None))
                    if write[2] is None or write[2] > time.monotonic():
                        gone.add(key)
        return gone

    def forget_aside(self, writes: dict[Any, Pending]) -> None:
        """These are no longer to be written: all was removed at the far side since."""
        with self._change:
            self.aside.forget(writes)
            self._weigh()

    def _weigh(self) -> None:
        """Anew: a handler may put something between two steps of a put."""
        self._bytes = sum(map(pending.size_of, self._generations)) + self.aside.bytes
        first = next(filter(None, self._generations), None)
        self._since = next(iter(first.values()))[3] if first else NEVER
        if not first and not self.aside.writes:
            ends.waiting.discard(self)
