"""What the leader of a group sees: memory, LMDB, and before both what the group itself changed; and its own steps."""

from __future__ import annotations

import time
from _thread import get_ident
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ._disk import deadline_of
from .errors import FarError
from .groups import Request
from .journal import Changes
from .lmdbstore import LMDBError, failed

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["LONG", "Do", "Expire", "View", "admit", "answer", "refused", "running"]

LONG = 0x80
"""In a name's first byte: it is the digest of a key that is in the record."""


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def running() -> float:
    """Seconds that pass while the machine sleeps, too, where that can be had."""
    return time.clock_gettime(_CLOCK)


class View:
    """What the leader sees while it does one group: everything, and the group's own changes before all."""

    def __init__(self, engine: Engine, now: int) -> None:
        self.records, self.now = engine.records, now
        self.overlay: Changes = {}
        self._layers = (
            self.overlay,
            *engine.layers,
        )  # before LMDB's transaction, which is taken when needed
        self._reading = engine.reading
        self.expired, self.size = 0, 0
        self.borrowed = False
        """Whether what was read last was of this group, and is lost with it."""

    def close(self) -> None:
        self._reading.close()

    def get(self, name: bytes) -> Any:
        """The record under a name, or None; LMDB's own bytes, for as long as the view is open."""
        for layer in self._layers:
            if name in layer:
                self.borrowed |= layer is self.overlay
                return layer[name]
        return self._reading.open().get(name)

    def alive(self, record: Any) -> bool:
        deadline = deadline_of(record)
        return not deadline or deadline > self.now

    def locate(self, name: bytes, key: bytes) -> tuple[bytes, Any]:
        """(name, record or None) of a key; `key`: the bytes of one so long that its name is a digest."""
        record = self.get(name)
        while record is not None and name[0] & LONG and self.records.long_key(name, record) != key:
            name = _next(name)
            record = self.get(name)
        return name, record

    def put(self, name: bytes, record: bytes) -> None:
        self.size += len(name) + len(record)
        self.overlay[name] = record

    def store_at(self, name: bytes, record: bytes) -> None:
        """`record` was made for the first name its key may have."""
        if name[0] & LONG:
            there, _ = self.locate(name, self.records.long_key(name, record))
            record = record if there == name else self.records.seal(there, record[8:])
            name = there
        self.put(name, record)

    def remove(self, name: bytes) -> None:
        """A record that is there. The last of those with an equal digest takes its place: no gap."""
        if name[0] & LONG:
            last = name
            while self.get(_next(last)) is not None:
                last = _next(last)
            if last != name:
                moved = bytes(self.get(last))
                self.put(name, self.records.seal(name, moved[8:]))
                name = last
        self.overlay[name] = None
        self.size += len(name)


def refused(error: Exception, path: str) -> Exception:
    """What is told of what came up: of the disk, a FarError."""
    if isinstance(error, FarError) or not isinstance(error, (OSError, LMDBError)):
        return error
    return failed(error, path)


def admit(engine: Engine, size: int, alone: bool = False) -> None:
    """Raises FarError where there is no room for so many more bytes; `alone`: they are of one call."""
    if engine.active_size > 2 * engine.layer and engine.trouble is not None:
        told = f"{engine.path}: {engine.active_size} bytes wait, and cannot be written"
        raise failed(engine.trouble, told)
    engine.store.admit(engine.active_size + engine.frozen_size + size, size if alone else 0)


def answer(engine: Engine, view: View, group: Sequence[Request]) -> None:
    """Leader: does each of a group, in `view`. Others' where no signal's handler runs: what that raised would be
    theirs."""
    if any([request.thread != get_ident() for request in group]):
        engine.groups.aside(partial(_answer, engine, view, group))
    else:
        _answer(engine, view, group)


def _answer(engine: Engine, view: View, group: Sequence[Request]) -> None:
    for request in group:
        view.borrowed, before = False, len(view.overlay) + view.size
        try:
            engine.check_open()
            if request.grows:
                admit(engine, request.size + view.size)
            request.result = request.do(view)
        except Exception as error:
            request.error = engine.refused(error)
        request.wrote = view.borrowed or len(view.overlay) + view.size != before


def _next(name: bytes) -> bytes:
    return name[:-2] + (int.from_bytes(name[-2:], "big") + 1).to_bytes(2, "big")


class Do(Request):
    """A step of the engine's own."""

    __slots__ = ("step",)
    alone, grows = True, False

    def __init__(self, step: Callable[[], None]) -> None:
        super().__init__()
        self.step = step

    def run(self, engine: Engine) -> None:
        self.step()


class Expire(Request):
    """Removes what is still as it was found, and over."""

    __slots__ = ("found",)
    grows = False

    def __init__(self, found: list[tuple[bytes, bytes]]) -> None:
        super().__init__()
        self.found = found

    def do(self, view: View) -> None:
        for deadline, name in self.found:
            record = view.get(name)
            if record is not None and deadline_of(record) == int.from_bytes(deadline, "big"):
                view.remove(name)
                view.expired += 1
