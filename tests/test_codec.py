"""Values and keys to bytes and back: equal and of the same type, or refused; hostile bytes are an error."""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict, namedtuple
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import IntEnum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gbcache
from gbcache import extensions
from gbcache.codec import (
    DEPTH_MAX,
    KT_INT,
    PickleCodec,
    TypedCodec,
    decode_key,
    encode_key,
    resolve,
)

CODEC = TypedCodec()
LONE = "\ud800"  # half a surrogate pair: legal in a str, not in UTF-8

atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.text(st.characters(categories=["Cs", "L"])),
    st.binary(),
    st.binary().map(bytearray),
    st.complex_numbers(allow_nan=False),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.datetimes(),
    st.datetimes(timezones=st.timezones()),
    st.datetimes(timezones=st.just(timezone(timedelta(minutes=-37)))),
)
hashable = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.binary(), st.dates())
values = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(hashable, inner),
        st.sets(hashable),
        st.frozensets(hashable),
        st.tuples(st.tuples(hashable, hashable).map(lambda k: {k: 1}), inner),
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal, of the same type, and so all the way down; dicts in the same order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, (set, frozenset)):
        return a == b and {type(x) for x in a} == {type(x) for x in b}
    if isinstance(a, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b)
    if isinstance(a, (datetime, time)):
        return a == b and a.fold == b.fold and repr(a.tzinfo) == repr(b.tzinfo)
    return bool(a == b)


@settings(deadline=None)
@given(values)
@example(2**64)
@example(-(2**63) - 1)
@example([LONE, {LONE: LONE}])
@example({1: "a", "1": "b", b"1": "c", None: "d", (1, 2): "e"})
@example(datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")))
@example(time(1, 2, tzinfo=timezone(timedelta(hours=1), "odd name")))
@example(Decimal("1.10"))
def test_values_come_back(value: Any) -> None:
    data = CODEC.encode(value)
    assert type(data) is bytes and same(CODEC.decode(data), value)


def test_decimals_keep_what_equality_does_not_see() -> None:
    for text in ("NaN", "-Infinity", "0E+3", "-0", "1.10"):
        assert str(CODEC.decode(CODEC.encode(Decimal(text)))) == text


class Level(IntEnum):
    LOW = 1


class MyList(list):  # type: ignore[type-arg]
    pass


class Zone(tzinfo):
    pass


@pytest.mark.parametrize(
    "value",
    [
        object(),
        Level.LOW,
        MyList(),
        OrderedDict(),
        namedtuple("Point", "x y")(1, 2),
        range(3),
        datetime(2026, 1, 1, tzinfo=Zone()),
        int,
        memoryview(b"x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_not_come_back_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r'value\["deep"\]\[1\]|value\[.deep.\]\[1\]') as caught:
        CODEC.encode({"deep": [0, value]})
    assert "codec=" in str(caught.value) or "ZoneInfo" in str(caught.value)


def test_a_value_that_contains_itself() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="contains itself"):
        CODEC.encode(endless)


def test_depth_has_a_bound_on_both_sides() -> None:
    nested: Any = 0
    for _ in range(DEPTH_MAX):
        nested = [nested]
    assert same(CODEC.decode(CODEC.encode(nested)), nested)
    with pytest.raises(ValueError, match="deeper than"):
        CODEC.encode([nested])
    for bracket in (b"\x91", b"\xc7"):  # a million lists, extensions
        with pytest.raises(ValueError):
            CODEC.decode(bracket * 1_000_000)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\xc1")
@example(b"\xdd\xff\xff\xff\xff")  # a list of 2**32 - 1
@example(b"\xc7\x01\x02\x91")
@example(b"\xd4\x7f\x00")  # an extension nobody knows
def test_hostile_bytes_are_an_error_or_a_value(data: bytes) -> None:
    try:
        CODEC.decode(data)
    except ValueError as error:
        assert str(error).startswith("not an encoded value")


@settings(deadline=None)
@given(values, st.data())
def test_damaged_bytes_are_an_error_or_a_value(value: Any, data: Any) -> None:
    good = bytearray(CODEC.encode(value))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    for bad in (bytes(good), bytes(good[:at])):
        try:
            CODEC.decode(bad)
        except ValueError as error:
            assert str(error).startswith("not an encoded value")


# --- keys ----------------------------------------------------------------------------------------

key_atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.integers(-5, 5).map(float),
    st.text(max_size=8),
    st.binary(max_size=8),
)
keys = st.recursive(key_atoms, lambda k: st.lists(k, max_size=4).map(tuple), max_leaves=6)


@settings(deadline=None, max_examples=400)
@given(keys, keys)
@example(1, True)
@example(0.0, -0.0)
@example((1, (2.0, "x")), (True, (2, "x")))
@example(2.0**70, 2**70)
@example("a", b"a")
@example(("a", "b"), ("ab",))
@example((), None)
def test_equal_keys_and_no_others_have_equal_bytes(a: Any, b: Any) -> None:
    assert (encode_key(a) == encode_key(b)) == (a == b)


@settings(deadline=None)
@given(keys)
def test_keys_come_back_equal(key: Any) -> None:
    assert decode_key(*encode_key(key)) == key


@settings(deadline=None)
@given(keys)
def test_c_and_python_agree_on_keys(key: Any) -> None:
    with gbcache.Cache("64KiB") as cache:
        cache[key] = 1
        assert list(cache) == [key] and cache.get(decode_key(*encode_key(key))) == 1


@settings(deadline=None, max_examples=300)
@given(st.integers(-1, 5), st.binary(max_size=40))
@example(KT_INT, b"1234567")
@example(3, b"t" + b"\x00\xff\xff\xff\xff")
@example(3, b"t\x00")
def test_hostile_keys_are_an_error_or_a_key(kind: int, data: bytes) -> None:
    with contextlib.suppress(ValueError):
        hash(decode_key(kind, data))


def test_a_subclass_key_is_its_value() -> None:
    class Name(str):
        def encode(self, *args: Any) -> bytes:  # not asked: a key is the text it is
            raise AssertionError

        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            raise AssertionError

    with gbcache.Cache("64KiB") as cache:
        cache[Name("k")] = 1
        assert cache["k"] == 1 and type(next(iter(cache))) is str
        cache[Level.LOW] = 2
        assert cache[1] == 2


def test_tuples_of_tuples_have_a_bound() -> None:
    key: Any = ()
    for _ in range(63):
        key = (key,)
    assert decode_key(*encode_key(key)) == key
    with pytest.raises(ValueError, match="nested deeper than 64"):
        encode_key(((key,),))


# --- by name, and of one's own -------------------------------------------------------------------


def test_resolve() -> None:
    assert resolve("typed").name == "typed" and resolve("pickle").name == "pickle"
    with pytest.raises(ValueError, match="'json' is not known"):
        resolve("json")
    with pytest.raises(TypeError, match="without encode"):
        resolve(5)  # type: ignore[arg-type]


def test_pickle_names_what_it_cannot() -> None:
    codec = PickleCodec()
    assert codec.decode(codec.encode({"x": UUID(int=5)})) == {"x": UUID(int=5)}
    with pytest.raises(TypeError, match="function cannot be pickled"):
        codec.encode(lambda: None)


def test_dates_are_not_datetimes() -> None:
    assert type(CODEC.decode(CODEC.encode(date(2026, 1, 1)))) is date
    assert type(CODEC.decode(CODEC.encode(datetime(2026, 1, 1)))) is datetime


@pytest.mark.parametrize("key", [1.5, (1, 2), 2**70, "\ud800"])
def test_dicts_within_dicts_of_odd_keys_take_linear_time(key: object) -> None:
    """Each level looks at its values once, whatever kind of dict it turns out to be."""
    value: object = 1
    for _ in range(100):
        value = {"a": value, key: 0}
    codec = TypedCodec()
    assert codec.decode(codec.encode(value)) == value


# --- through a cache --------------------------------------------------------------------------------


def test_pickle_by_name() -> None:
    with gbcache.Cache("1MB", codec="pickle") as cache:
        cache["k"] = timezone.utc, IntEnum
        assert cache["k"] == (timezone.utc, IntEnum)
        with pytest.raises(TypeError, match="pickled"):
            cache["f"] = lambda: 0


def test_a_codec_of_ones_own() -> None:
    class Reverse:
        name = "reverse"

        def encode(self, value: Any) -> Any:
            return value if isinstance(value, int) else repr(value)[::-1].encode()

        def decode(self, data: bytes) -> Any:
            if data.startswith(b"!"):
                raise RuntimeError("no")
            return data[::-1].decode()

    with gbcache.Cache("1MB", codec=Reverse()) as cache:
        cache["k"] = [1]
        assert cache["k"] == "[1]"
        cache["bang"] = (1, "!")
        with pytest.raises(TypeError, match="not bytes"):
            cache["int"] = 2**80
        cache.check()


def test_a_codec_that_calls_back() -> None:
    class Reentrant:
        name = "reentrant"
        cache: Any = None

        def encode(self, value: Any) -> bytes:
            self.cache["inner"] = b"i"
            self.cache.clear()
            return b"e"

        def decode(self, data: bytes) -> Any:
            self.cache.pop("k", None)
            return self.cache.get("inner"), data

    codec = Reentrant()
    with gbcache.Cache("1MB", codec=codec) as cache:
        codec.cache = cache
        cache["k"] = []
        assert cache["k"] == (None, b"e") and "k" not in cache
        cache.check()
    codec.cache = None


STAMPS = [b"\xd6\xff\0\0\0\1", b"\xd7\xff" + bytes(8), b"\xc7\x0c\xff" + bytes(12)]


@pytest.mark.parametrize("stamp", STAMPS, ids=["32 bits", "64 bits", "96 bits"])
def test_a_timestamp_of_msgpacks_own_is_no_value(stamp: bytes) -> None:
    """It is made without a word to whoever reads extensions, and could not be written again."""

    def within(code: int, content: bytes) -> bytes:
        return bytes([0xC7, len(content), code]) + content

    codec = TypedCodec()
    one = b"\x91" + stamp
    for data in (
        stamp,
        one,
        b"\x92\x01" + one,
        b"\x81\xa1k" + stamp,
        b"\x81" + stamp + b"\xa1k",
        within(extensions.TUPLE, one),
        b"\x91" + within(extensions.TUPLE, b"\x91" + within(extensions.TUPLE, one)),
        within(extensions.SET, one),
        within(extensions.FROZENSET, one),
        within(extensions.DICT, b"\x91\x92\x01" + stamp),
        within(extensions.DECIMAL, stamp),
    ):
        with pytest.raises(ValueError, match="not an encoded value"):
            codec.decode(data)


@pytest.mark.parametrize("stamp", STAMPS, ids=["32 bits", "64 bits", "96 bits"])
def test_what_looks_like_a_timestamp_comes_back(stamp: bytes) -> None:
    codec = TypedCodec()
    value = [{"k": stamp, stamp: ({stamp}, frozenset([stamp]))}, [stamp.hex(), -1, 0xD6FF], None]
    data = codec.encode(value)
    assert stamp in data and codec.decode(data) == value
