"""What a cache tells of its changes: the words, and which of them one asks for. Who listens, and how it is told, is in
`notify`."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any, NamedTuple

__all__ = ["ALL", "OMITTED", "Event", "Kind", "bits_of", "check_prefix"]


class Kind(str, Enum):
    """What happened. Plain strings do as well: ``Kind.EVICT == "evict"``."""

    SET = "set"
    """A value was written where there was none."""
    REPLACE = "replace"
    """A value was written over an old one."""
    TOUCH = "touch"
    """A deadline was set anew; the value is the same."""
    DELETE = "delete"
    """An entry was removed by request."""
    EXPIRE = "expire"
    """An entry was removed because it was due."""
    EVICT = "evict"
    """An entry was removed to make room."""
    CLEAR = "clear"
    """Everything was removed at once; `value` says how many entries."""
    REJECT = "reject"
    """A value was refused because it can never fit; the old one, if any, stays."""
    INVALIDATE = "invalidate"
    """An entry was removed because it changed elsewhere."""
    RECOVER = "recover"
    """The cache is not what it was before it stopped; `value` says how many entries are left."""
    LOST = "lost"
    """Events that this reader will not see, because it was slower than they came; `value` says how many."""

    __str__ = str.__str__


class _Omitted:
    """A value of more bytes than an event carries."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "gbcache.OMITTED"

    def __reduce__(self) -> str:
        return "OMITTED"


OMITTED = _Omitted()
"""In an event in a value's place: it was longer than an event carries (8 kB)."""


class Event(NamedTuple):
    """One change, told once.

    seq: its number, from 1, one higher each (of `lost`: of the last event lost). kind: a `Kind`. key: None for
    `clear`, `recover` and `lost`. value: the new value of `set` and `replace` where values were asked for;
    how many, of `clear`, `recover` and `lost`. old: the value that went, of `replace delete expire evict`,
    where values were asked for. at: when, in seconds as of time.time() (0.0 for `lost`).
    """

    seq: int
    """The number of the event, from 1, one higher each; of `lost`: of the last event lost."""
    kind: Kind
    key: Any
    """None for `clear`, `recover` and `lost`."""
    value: Any
    """The new value of `set` and `replace`, where values were asked for; a count for `clear`,
    `recover` and `lost`; else None."""
    old: Any
    """The value that went, of `replace delete expire evict`, where values were asked for; else None."""
    at: float
    """When, in seconds as of time.time() (of the cache's own `clock=`, if it has one); exact to 4 ms.
    Of `lost`: 0.0."""


_BITS: dict[Kind, int] = {
    kind: 1 << i for i, kind in enumerate(Kind) if kind is not Kind.LOST
}  # enum gb_event
ALL = sum(_BITS.values())


def bits_of(kinds: Iterable[str] | str | None) -> int:
    """Kinds as a mask; None: all. ValueError names one that is none."""
    if kinds is None:
        return ALL
    mask = 0
    if not isinstance(kinds, Iterable):
        raise TypeError(f"kinds={kinds!r} is not a kind of event, nor some of them")
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        try:
            mask |= _BITS.get(Kind(kind), 0)
        except ValueError:
            known = ", ".join(Kind)
            raise ValueError(f"kinds: {kind!r} is not a kind of event: {known}") from None
    if not mask:
        raise ValueError(f"kinds={kinds!r} names nothing to be told of (lost is told in any case)")
    return mask


def check_prefix(prefix: str | bytes | None) -> None:
    if prefix is not None and type(prefix) not in (str, bytes):
        raise TypeError(f"prefix={prefix!r} is not a str or bytes")
