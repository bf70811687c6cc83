"""What a Disk's verbs ask of the leader: each reads and changes a view, alone or with others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._disk import deadline_of
from .codec import encode_key
from .groups import Request
from .view import LONG, View, admit

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["PAGE", "SHORT", "Add", "AddBig", "Clear", "Delete", "Find", "Incr", "IncrBig", "Put", "PutBig", "Touch",
           "TouchBig", "bytes_of"]  # fmt: skip

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
SHORT, PAGE = 64, 4096
"""What is asked for first, for an int and for a touch: most need no more."""


def bytes_of(name: bytes, key: Any) -> bytes:
    """Of a key that its name does not hold."""
    return encode_key(key)[1] if name[0] & LONG else b""


class Put(Request):
    __slots__ = ("items",)

    def __init__(self, items: list[tuple[bytes, bytes]], size: int) -> None:
        super().__init__(size)
        self.items = items

    def do(self, view: View) -> None:
        for name, record in self.items:
            view.store_at(name, record)


class Big(Request):
    """One that brings so much that it goes to LMDB at once."""

    __slots__ = ()
    alone = True

    def run(self, engine: Engine) -> Any:
        engine.make_way(self.size)
        admit(engine, self.size, alone=True)
        view = View(engine, engine.now())
        try:
            result = self.do(view)
        finally:  # by `with` it may stay open where memory is short
            view.close()
        if view.overlay:
            engine.settle(view.overlay)
        return result


class PutBig(Big, Put):
    __slots__ = ()


class Delete(Request):
    __slots__ = ("names",)
    grows = False

    def __init__(self, names: list[tuple[bytes, bytes]]) -> None:
        super().__init__()
        self.names = names

    def do(self, view: View) -> list[bool]:
        return [self._one(view, *name) for name in self.names]

    @staticmethod
    def _one(view: View, name: bytes, key: bytes) -> bool:
        name, record = view.locate(name, key)
        if record is None:
            return False
        alive = view.alive(record)
        view.remove(name)
        return alive


class Add(Request):
    __slots__ = ("key", "name", "record")

    def __init__(self, name: bytes, key: bytes, record: bytes) -> None:
        super().__init__(len(record))
        self.name, self.key, self.record = name, key, record

    def do(self, view: View) -> bool:
        _, there = view.locate(self.name, self.key)
        if there is not None and view.alive(there):
            return False
        view.store_at(self.name, self.record)
        return True


class AddBig(Big, Add):
    __slots__ = ()


class Incr(Request):
    __slots__ = ("by", "deadline", "initial", "key", "name")

    def __init__(
        self, key: Any, name: bytes, by: int, initial: int, deadline: int, size: int = SHORT
    ) -> None:
        super().__init__(size)
        self.key, self.name, self.by, self.initial, self.deadline = key, name, by, initial, deadline

    def do(self, view: View) -> int | bytes:
        """The new value; the bytes of what is none: it may be for a codec to say what that is, and that not here."""
        there, record = view.locate(self.name, bytes_of(self.name, self.key))
        value, deadline = self.initial, self.deadline
        if record is not None and view.alive(record):
            payload = view.records.payload(there, record)
            if payload[:1] not in b"-0123456789":
                return payload
            value, deadline = int(payload), deadline_of(record)
        value += self.by
        if not INT_MIN <= value <= INT_MAX:
            raise OverflowError(f"incr({self.key!r}, {self.by}): the result does not fit 64 bits")
        view.store_at(*view.records.pack(self.key, value, deadline))
        return value


class IncrBig(Big, Incr):
    __slots__ = ()


class Touch(Request):
    """Does nothing where the record is longer than `size`: that is what it `needs`, and is then to ask for."""

    __slots__ = ("deadline", "key", "name", "needs")

    def __init__(self, key: Any, name: bytes, deadline: int, size: int) -> None:
        super().__init__(size)
        self.key, self.name, self.deadline, self.needs = key, name, deadline, 0

    def do(self, view: View) -> bool:
        there, record = view.locate(self.name, bytes_of(self.name, self.key))
        if record is None or not view.alive(record):
            return False
        self.needs = len(record)
        if self.needs > self.size:
            return False
        view.put(there, view.records.until(there, record, self.deadline))
        return True


class TouchBig(Big, Touch):
    __slots__ = ()


class Clear(Request):
    alone, grows = True, False

    def run(self, engine: Engine) -> int:
        entries = engine.count()
        engine.settle(drop=True)
        return entries


class Find(Request):
    """The record of a long key whose digest is another's, too: the leader sees all in one state."""

    __slots__ = ("key", "name")
    grows = False

    def __init__(self, name: bytes, key: bytes) -> None:
        super().__init__()
        self.name, self.key = name, key

    def do(self, view: View) -> tuple[bytes, bytes | None]:
        name, record = view.locate(self.name, self.key)
        return name, None if record is None else bytes(record)
