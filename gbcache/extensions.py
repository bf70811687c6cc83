"""What msgpack lacks, as its extensions: their codes, and how they come back.

An extension's content is msgpack again, and may hold others. msgpack's parser takes 40 kB of C stack: so
at most three are under way at a time, however deep extensions lie, in a loop and not one in another.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID

__all__ = ["DEPTH_MAX", "revive"]

DEPTH_MAX = 200
"""Containers within containers, at most: what a codec stores, and what extensions it reads."""

TUPLE, SET, FROZENSET, BIGINT, DECIMAL, UUID_, BYTEARRAY, COMPLEX = range(1, 9)
DATETIME, DATE, TIME, DELTA, DICT, SURROGATE = range(9, 15)


def _zone_of(zone: Any) -> tzinfo | None:
    if zone is None:
        return None
    if isinstance(zone, str):
        from zoneinfo import ZoneInfo

        return ZoneInfo(zone)
    return timezone(timedelta(*zone[:3]), *zone[3:])


def _datetime(p: Any) -> datetime:
    return datetime(*p[:7], fold=p[7]).replace(tzinfo=_zone_of(p[8]))


def _time(p: Any) -> time:
    return time(*p[:4], fold=p[4]).replace(tzinfo=_zone_of(p[5]))


_WHOLE: dict[int, Callable[[bytes], Any]] = {
    UUID_: lambda data: UUID(bytes=data),
    BYTEARRAY: bytearray,
    BIGINT: lambda data: int.from_bytes(data, "little", signed=True),
    SURROGATE: lambda data: data.decode("utf-8", "surrogatepass"),
}
"""Made of the bytes as they are."""
_FLAT: dict[int, Callable[[Any], Any]] = {
    DECIMAL: Decimal,
    COMPLEX: lambda p: complex(p[0], p[1]),
    DATETIME: _datetime,
    DATE: lambda p: date(*p),
    TIME: _time,
    DELTA: lambda p: timedelta(*p),
}
"""Made of what they hold, which is no extension."""
_DEEP: dict[int, Callable[[Any], Any]] = {
    TUPLE: tuple,
    SET: set,
    FROZENSET: frozenset,
    DICT: lambda pairs: dict(pairs),  # keys msgpack's own map cannot hold
}
"""Made of what they hold, which is anything."""


class _Held:
    """Stands where an extension's value will."""

    __slots__ = ("code", "content", "value", "within")
    __hash__ = None  # type: ignore[assignment]  # no key: none was ever written as one

    value: Any
    within: bool

    def __init__(self, code: int, content: Any) -> None:
        self.code, self.content = code, content


_TO_FILL = frozenset({_Held, list, dict})


def _fill(content: Any) -> Any:
    """`content` with values where those that stand for them were."""
    box = [content]
    left: list[Any] = [box]
    while left:
        at = left.pop()
        if _TO_FILL.isdisjoint(map(type, at if type(at) is list else at.values())):
            continue
        for i, v in enumerate(at) if type(at) is list else at.items():
            kind = type(v)
            if kind is _Held:
                at[i] = v.value
            elif kind is list or kind is dict:
                left.append(v)
    return box[0]


def _flat(code: int, data: bytes, parse: Callable[..., Any]) -> Any:
    if code in _WHOLE:
        return _WHOLE[code](data)
    if code in _FLAT:
        return _FLAT[code](parse(data, ext_hook=_none_here))
    raise ValueError(f"unknown extension {code}")


def _none_here(code: int, data: bytes) -> Any:
    raise ValueError(f"extension {code} where there can be none")


def revive(code: int, data: bytes, parse: Callable[..., Any]) -> Any:
    """The value of an extension. `parse` reads msgpack, with the `ext_hook` it is given."""
    if code not in _DEEP:
        return _flat(code, data, parse)
    found: list[_Held] = []

    def hold(code: int, data: bytes) -> Any:
        if code not in _DEEP:
            return _flat(code, data, parse)
        held = _Held(code, data)
        found.append(held)
        return held

    content = parse(data, ext_hook=hold)
    if found:
        _make(found, parse, hold)
        content = _fill(content)
    return _DEEP[code](content)


def _make(found: list[_Held], parse: Callable[..., Any], hold: Callable[..., Any]) -> None:
    """Gives what was found its value, and what is found in it, in turn."""
    depth, end = 1, len(found)
    for i, held in enumerate(found):  # which grows meanwhile, by what lies one deeper
        if i == end:
            depth, end = depth + 1, len(found)
        if depth >= DEPTH_MAX:
            raise ValueError(f"extensions nested deeper than {DEPTH_MAX}")
        before = len(found)
        held.content = parse(held.content, ext_hook=hold)
        held.within = len(found) > before
    for held in reversed(found):  # what lies deepest first
        content, held.content = held.content, None
        held.value = _DEEP[held.code](_fill(content) if held.within else content)
