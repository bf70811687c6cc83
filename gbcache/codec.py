"""Values and keys to bytes and back, losslessly.

Values: the C layer stores atoms (bytes, str, 64-bit int, float, bool, None) itself and asks a `Codec` for
the rest. `TypedCodec` is the default: msgpack with strict types, and extension types for what msgpack
lacks. What comes back is equal and of the same type, or `encode` refuses it.

Keys: str, bytes and 64-bit ints are encoded in C; `encode_key` does the others by the same rule: equal
keys, and only those, have equal bytes. Equality is Python's own: ``1 == 1.0 == True``.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import partial
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

from . import extensions as ext
from .extensions import DEPTH_MAX, revive

__all__ = [
    "KT_BYTES",
    "KT_INT",
    "KT_OTHER",
    "KT_STR",
    "Codec",
    "PickleCodec",
    "TypedCodec",
    "base_key",
    "decode_key",
    "encode_key",
    "pack_value",
    "resolve",
    "unpack_value",
]

_WAY_OUT = 'store it as something else, or choose codec="pickle" or your own Codec'


@runtime_checkable
class Codec(Protocol):
    """How values that are no atoms become bytes. Called outside every lock, from any thread."""

    name: str

    def encode(self, value: Any) -> bytes:
        """The bytes of `value`; TypeError if it cannot be stored."""

    def decode(self, data: bytes) -> Any:
        """A new object equal to what was encoded; ValueError if `data` is none of its encodings."""


class TypedCodec:
    """The default codec. Cost: some microseconds for a small dict.

    Supported, nested as you like to a depth of 200: list tuple dict set frozenset bytes bytearray str
    int (any size) float complex bool None, datetime date time timedelta (naive, with a fixed offset, or
    a ZoneInfo key), Decimal, UUID. Subclasses are refused: they would come back as their base.
    """

    name = "typed"

    def __init__(self) -> None:
        self._pack: Callable[[Any], bytes] | None = None
        self._unpack: Callable[[bytes], Any] | None = None

    def _load(self) -> None:
        import msgpack  # where it is used: `import gbcache` stays light

        self._parse = partial(msgpack.unpackb, raw=False, use_list=True, strict_map_key=False)

        unpackb, revived = msgpack.unpackb, self._revive

        def unpack(data: bytes) -> Any:
            return unpackb(data, strict_map_key=False, ext_hook=revived)

        packer = msgpack.Packer
        self._unpack = unpack
        self._pack = lambda value: bytes(packer(use_bin_type=True, strict_types=True).pack(value))

    def _revive(self, code: int, data: bytes) -> Any:
        return revive(code, data, self._parse)

    def encode(self, value: Any) -> bytes:
        """The bytes of `value`.

        Raises TypeError naming the type and its place in the value if it would not come back equal and
        of the same type, ValueError if it is nested deeper than 200 or contains itself.
        """
        if self._pack is None:
            self._load()
        assert self._pack is not None
        return self._pack(_lower(value, self._pack, None, 0))

    def decode(self, data: bytes) -> Any:
        """The value. Raises ValueError, and nothing else, for bytes that are no encoding."""
        if self._unpack is None:
            self._load()
        assert self._unpack is not None
        try:
            value = self._unpack(data)
            if 0xFF in data and _STAMP.search(data):
                _refuse_stamps(value)
            return value
        except MemoryError:
            raise
        except Exception as error:  # hostile bytes may trip anything below; it is all one verdict
            raise ValueError(f"not an encoded value: {type(error).__name__}: {error}") from None


_STAMP = re.compile(rb"[\xd6\xd7]\xff|\xc7\x0c\xff")
"""Where msgpack's own extension may begin, a Timestamp, of which it asks no hook."""


def _refuse_stamps(value: Any) -> None:
    left = [value]
    while left:
        at = left.pop()
        kind = type(at)
        if kind is dict:
            left += [*at, *at.values()]
        elif kind in (list, tuple, set, frozenset):
            left += at
        elif kind.__module__ == "msgpack.ext":
            raise ValueError("extension -1, which no value has")


_Where = tuple[Any, str, Any] | None
"""Where in a value: within what, how, at which index or key. Made text only for an error: that is most of the cost."""


def _place(where: _Where) -> str:
    return "value" if where is None else _place(where[0]) + where[1].format(where[2])


def _lower_zone(zone: tzinfo | None, where: _Where) -> Any:
    if zone is None:
        return None
    if type(zone) is timezone:
        offset = zone.utcoffset(None)
        plain = timezone(offset)
        parts = [offset.days, offset.seconds, offset.microseconds]
        name = zone.tzname(None)
        return parts if repr(plain) == repr(zone) else [*parts, name]
    key = getattr(zone, "key", None)
    if type(zone).__name__ == "ZoneInfo" and isinstance(key, str):
        return key
    raise TypeError(
        f"{_place(where)} has a time zone of type {type(zone).__name__}, which would not come back: "
        f"use datetime.timezone or ZoneInfo(key), or {_WAY_OUT}"
    )


_PLAIN = frozenset({bool, float, bytes, type(None)})


def _ext(code: int, data: bytes) -> Any:
    import msgpack

    return msgpack.ExtType(code, data)


def _lower(value: Any, pack: Callable[[Any], bytes], where: _Where, depth: int) -> Any:
    """`value` in msgpack's own types and extensions; errors name the place."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is str:
        return (
            value
            if _is_clean(value)
            else _ext(ext.SURROGATE, value.encode("utf-8", "surrogatepass"))
        )
    if kind is int:
        if -(2**63) <= value < 2**64:
            return value
        return _ext(ext.BIGINT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
    if depth >= DEPTH_MAX:
        raise ValueError(
            f"the value is nested deeper than {DEPTH_MAX} (or contains itself): {_place(where)[:60]}..."
        )
    if kind is list:
        return [_lower(v, pack, (where, "[{}]", i), depth + 1) for i, v in enumerate(value)]
    if kind is dict:
        return _lower_dict(value, pack, where, depth)
    if kind in (tuple, set, frozenset):
        code = ext.TUPLE if kind is tuple else ext.SET if kind is set else ext.FROZENSET
        parts = [_lower(v, pack, (where, "[{}]", i), depth + 1) for i, v in enumerate(value)]
        return _ext(code, pack(parts))
    return _lower_standard(value, kind, pack, where)


def _is_clean(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _lower_dict(
    value: dict[Any, Any], pack: Callable[[Any], bytes], where: _Where, depth: int
) -> Any:
    for k in value:
        usual = type(k) is str and k.isascii()
        if not usual and (type(k) not in (str, int, bytes) or _lower(k, pack, None, 0) is not k):
            break
    else:
        lowered = {}
        for k, v in value.items():
            if type(v) in _PLAIN or (type(v) is str and v.isascii()):
                lowered[k] = v
            else:
                lowered[k] = _lower(v, pack, (where, "[{!r:.40}]", k), depth + 1)
        return lowered
    pairs = []  # keys that msgpack's own map cannot hold
    for k, v in value.items():
        key = _lower(k, pack, (where, " key {!r:.40}", k), depth + 1)
        pairs.append([key, _lower(v, pack, (where, "[{!r:.40}]", k), depth + 1)])
    return _ext(ext.DICT, pack(pairs))


def _lower_standard(value: Any, kind: type, pack: Callable[[Any], bytes], where: _Where) -> Any:
    if kind is datetime:
        zone = _lower_zone(value.tzinfo, where)
        v = value
        parts = [v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond, v.fold, zone]
        return _ext(ext.DATETIME, pack(parts))
    if kind is date:
        return _ext(ext.DATE, pack([value.year, value.month, value.day]))
    if kind is time:
        zone = _lower_zone(value.tzinfo, where)
        parts = [value.hour, value.minute, value.second, value.microsecond, value.fold, zone]
        return _ext(ext.TIME, pack(parts))
    if kind is timedelta:
        return _ext(ext.DELTA, pack([value.days, value.seconds, value.microseconds]))
    if kind is Decimal:
        return _ext(ext.DECIMAL, pack(str(value)))
    if kind is UUID:
        return _ext(ext.UUID_, value.bytes)
    if kind is bytearray:
        return _ext(ext.BYTEARRAY, bytes(value))
    if kind is complex:
        return _ext(ext.COMPLEX, pack([value.real, value.imag]))
    raise TypeError(
        f"{_place(where)} is a {kind.__module__}.{kind.__qualname__}, which would not come back as it is: "
        f"{_WAY_OUT}"
    )


class PickleCodec:
    """Anything pickle can, by name only. Never open a file with it that you did not write yourself:
    unpickling runs code."""

    name = "pickle"

    def encode(self, value: Any) -> bytes:
        """`value`, pickled. Raises TypeError naming the type if pickle cannot."""
        try:
            return pickle.dumps(value, protocol=5)
        except (pickle.PicklingError, AttributeError, TypeError, RecursionError) as error:
            raise TypeError(f"a {type(value).__name__} cannot be pickled: {error}") from error

    def decode(self, data: bytes) -> Any:
        """The unpickled value."""
        return pickle.loads(data)


def resolve(codec: str | Codec) -> Codec:
    """A codec by name ("typed", "pickle"), or the object itself if it can encode and decode."""
    if isinstance(codec, str):
        if codec == "typed":
            return TypedCodec()
        if codec == "pickle":
            return PickleCodec()
        raise ValueError(
            f"codec={codec!r} is not known: 'typed', 'pickle', or an object of your own"
        )
    if callable(getattr(codec, "encode", None)) and callable(getattr(codec, "decode", None)):
        return codec
    raise TypeError(f"codec={codec!r} is a {type(codec).__name__} without encode() and decode()")


def name_of(codec: Codec) -> str:
    """What a file says of the codec its values were encoded by: at most 63 ASCII characters."""
    kind = type(codec)
    known = {TypedCodec: "typed", PickleCodec: "pickle"}.get(kind)
    name = known or f"{kind.__module__}.{kind.__qualname__}"
    return name.encode("ascii", "replace").decode()[-63:]


# --- values of a far side: atoms by a tag, ints as text, which INCR of a server understands ---------


def pack_value(codec: Codec, value: Any) -> bytes:
    """The bytes of a value, atom or not. Raises what `codec.encode` does."""
    kind = type(value)
    if kind is bytes:
        return b"".join((b"b", value))
    if kind is str:
        return b"s" + str.encode(value, "utf-8", "surrogatepass")
    if kind is int and -(2**63) <= value < 2**63:
        return b"%d" % value
    if kind is float:
        return b"f" + struct.pack("<d", value)
    if value is None or kind is bool:
        return b"N" if value is None else b"T" if value else b"F"
    return b"c" + codec.encode(value)


def unpack_value(codec: Codec, data: bytes) -> Any:
    """The value `pack_value` made `data` of. Raises ValueError for anything it never returns, and what
    `codec.decode` does."""
    tag = data[:1]
    if tag == b"b":
        return data[1:]
    if tag == b"s":
        return data[1:].decode("utf-8", "surrogatepass")
    if tag == b"c":
        return codec.decode(data[1:])
    if tag == b"f" and len(data) == 9:
        return struct.unpack("<d", data[1:])[0]
    if data in (b"N", b"T", b"F"):
        return None if data == b"N" else data == b"T"
    if tag in b"-0123456789" and 0 < len(data) <= 20:
        number = int(data)
        if b"%d" % number == data and -(2**63) <= number < 2**63:
            return number
    raise ValueError(f"not an encoded value: {len(data)} bytes {data[:16]!r}")


# --- keys ----------------------------------------------------------------------------------------

KT_STR, KT_BYTES, KT_INT, KT_OTHER = range(4)
_K_NONE, _K_FLOAT, _K_BIG, _K_TUPLE = b"n", b"f", b"i", b"t"
_TUPLE_DEPTH = 64
_KEY_TYPES = "str, bytes, int, float, bool, None, or a tuple of these"


def encode_key(key: Any) -> tuple[int, bytes]:
    """(key type, bytes) of a key; equal for equal keys and for no others.

    Raises TypeError for an unsupported type, ValueError for NaN (which never equals itself) and for
    tuples nested deeper than 64.
    """
    return _encode_key(key, 0)


def base_key(key: Any) -> Any:
    """The key as it comes back from its bytes: Python compares it as these are compared."""
    return decode_key(*encode_key(key))


def _encode_key(key: Any, depth: int) -> tuple[int, bytes]:
    if isinstance(key, str):
        return KT_STR, str.encode(key, "utf-8", "surrogatepass")
    if isinstance(key, bytes):
        return KT_BYTES, key if type(key) is bytes else bytes.__getitem__(key, slice(None))
    if isinstance(key, float):
        return _encode_float(float.__float__(key))
    if isinstance(key, int):
        return _encode_int(int.__int__(key))
    if key is None:
        return KT_OTHER, _K_NONE
    if isinstance(key, tuple):
        if depth >= _TUPLE_DEPTH:
            raise ValueError(f"a key's tuples are nested deeper than {_TUPLE_DEPTH}")
        parts = [_encode_key(part, depth + 1) for part in tuple.__iter__(key)]
        framed = [struct.pack("<BI", kind, len(data)) + data for kind, data in parts]
        return KT_OTHER, _K_TUPLE + b"".join(framed)
    raise TypeError(f"a key cannot be a {type(key).__name__}: use {_KEY_TYPES}")


def _encode_float(number: float) -> tuple[int, bytes]:
    if number != number:
        raise ValueError(
            "a key cannot be NaN: it never equals itself, so it could not be found again"
        )
    if number.is_integer():
        return _encode_int(int(number))
    return KT_OTHER, _K_FLOAT + struct.pack("<d", number)


def _encode_int(number: int) -> tuple[int, bytes]:
    if -(2**63) <= number < 2**63:
        return KT_INT, number.to_bytes(8, "little", signed=True)
    return KT_OTHER, _K_BIG + number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)


def decode_key(kind: int, data: bytes) -> Any:
    """The key of `encode_key`'s pair. Raises ValueError for anything it never returns."""
    return _decode_key(kind, data, 0)


def _decode_key(kind: int, data: bytes, depth: int) -> Any:
    if kind == KT_STR:
        return data.decode("utf-8", "surrogatepass")
    if kind == KT_BYTES:
        return data
    if kind == KT_INT and len(data) == 8:
        return int.from_bytes(data, "little", signed=True)
    if kind == KT_OTHER and data:
        tag, rest = data[:1], data[1:]
        if tag == _K_NONE and not rest:
            return None
        if tag == _K_FLOAT and len(rest) == 8:
            return struct.unpack("<d", rest)[0]
        if tag == _K_BIG and rest:
            return int.from_bytes(rest, "little", signed=True)
        if tag == _K_TUPLE and depth < _TUPLE_DEPTH:
            return _decode_tuple(rest, depth)
    raise ValueError(f"not an encoded key: type {kind}, {len(data)} bytes {data[:16]!r}")


def _decode_tuple(data: bytes, depth: int) -> tuple[Any, ...]:
    parts, at = [], 0
    while at < len(data):
        if at + 5 > len(data):
            raise ValueError(f"not an encoded key: a tuple ends within a header, at byte {at}")
        kind, size = struct.unpack_from("<BI", data, at)
        at += 5
        if at + size > len(data):
            raise ValueError(f"not an encoded key: a tuple's part of {size} bytes is cut at {at}")
        parts.append(_decode_key(kind, data[at : at + size], depth + 1))
        at += size
    return tuple(parts)
