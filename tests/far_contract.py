"""What every far side keeps to. A test file gives its class a `far` fixture: an open, empty `Far`.

Lives are short and real: a far side's clock may be a server's, which no test can move.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from gbcache.errors import ClosedError
from gbcache.far import Far

__all__ = ["KEYS", "VALUES", "FarContract", "in_threads", "scanned", "until"]

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
KEYS: list[Any] = [
    "", "a", "é", "key:\0:1", "\ud800", b"", b"a", b"\xff\0", 0, 1, -1, INT_MAX, INT_MIN, 2**63, -(2**200),
    1.5, -0.5, 1e300, math.inf, None, (), ("a",), ("a", ("b", 1.5, None)), (b"a",), ((),), ("\udfff", b"\0"),
]  # fmt: skip
VALUES: list[Any] = [
    b"", b"\0\xff", "", "text", "\ud800", 0, 1, -1, INT_MIN, INT_MAX, 2**63, -(2**300), 1.5, -0.0, math.inf,
    None, True, False, [], [1, "a", None], {}, {"a": [1, (2, 3)]}, {1: 2, (1, 2): 3}, (), (1,), {1, 2}, frozenset("ab"),
    bytearray(b"x"), 1 + 2j, Decimal("1.10"), UUID(int=7), datetime(2020, 1, 2, 3, 4, 5, 6, tzinfo=timezone.utc),
    timedelta(days=-1, microseconds=1), "-1", "17", b"17", " 1",
]  # fmt: skip
"""Among them texts that look like encoded values of another type."""


def until(met: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for what has to come, and fails if it does not."""
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def scanned(far: Far, count: int = 1000) -> list[Any]:
    """Every key of a scan from the beginning to its end."""
    keys, cursor = far.scan(count=count)
    for _ in range(100_000):
        if cursor is None:
            return keys
        more, cursor = far.scan(cursor, count)
        keys = keys + more
    raise AssertionError("the scan has no end")


def in_threads(n: int, work: Callable[[int], object]) -> None:
    """Runs work(0) ... work(n - 1) at once; the first exception is raised here."""
    failed: list[BaseException] = []
    gate = threading.Barrier(n)

    def run(i: int) -> None:
        try:
            gate.wait(30)
            work(i)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if failed:
        raise failed[0]


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b and (type(a) is not float or repr(a) == repr(b))


def value_of(far: Far, key: Any) -> Any:
    return far.get_many([key])[key][0]


class FarContract:
    """The mixin: everything here goes through the protocol alone."""

    SHORT = 0.06
    """Seconds: a TTL that a test waits out."""

    # --- values and keys ---------------------------------------------------------------------

    def test_it_is_a_far(self, far: Any) -> None:
        assert isinstance(far, Far)
        assert far.get_many([]) == {} and far.delete_many([]) == []
        far.put_many([])
        assert far.scan() == ([], None)

    def test_every_value_comes_back_as_it_was(self, far: Any) -> None:
        far.put_many([(i, value, None) for i, value in enumerate(VALUES)])
        found = far.get_many(range(len(VALUES)))
        assert list(found) == list(range(len(VALUES)))
        for i, value in enumerate(VALUES):
            assert same(found[i][0], value) and found[i][1] is None, value

    def test_every_key(self, far: Any) -> None:
        far.put_many([(key, repr(key), None) for key in KEYS])
        assert far.get_many(KEYS) == {key: (repr(key), None) for key in KEYS}
        found = scanned(far)
        assert set(found) == set(KEYS) and len(found) == len(KEYS)
        assert far.delete_many(KEYS) == [True] * len(KEYS)
        assert far.get_many(KEYS) == {} and scanned(far) == []

    def test_equal_keys_are_one_key(self, far: Any) -> None:
        far.put_many(
            [(1, "int", None), (1.0, "float", None), ("1", "str", None), (b"1", "b", None)]
        )
        assert far.get_many([True]) == {1: ("float", None)}
        assert far.get_many([1, 1.0, True]) == {1: ("float", None)}
        assert far.get_many(["1", b"1"]) == {"1": ("str", None), b"1": ("b", None)}
        assert far.get_many([(True, 2.0)]) == {}
        far.put_many([((1, 2), "pair", None)])
        assert value_of(far, (True, 2.0)) == "pair"
        assert far.delete_many([True, 1]) == [True, False]

    @pytest.mark.parametrize("size", [100, 510, 511, 512, 513, 2000, 100_000])
    def test_long_keys(self, far: Any, size: int) -> None:
        """Alike but for their last byte, or their type, or their length."""
        base = "k" * (size - 1)
        keys = [base, base + "a", base + "b", (base + "a").encode(), (base + "a",), base + "aa"]
        far.put_many([(key, i, None) for i, key in enumerate(keys)])
        assert far.get_many(keys) == {key: (i, None) for i, key in enumerate(keys)}
        assert set(scanned(far)) == set(keys)
        assert far.delete_many([keys[1], keys[1]]) == [True, False]
        assert set(far.get_many(keys)) == set(keys) - {keys[1]}

    def test_long_values(self, far: Any) -> None:
        value = bytes(range(256)) * (5_000_000 // 256)
        far.put_many([("b", value, None), ("s", "é" * 1_000_000, None), ("c", [value], 60)])
        found = far.get_many(["b", "s", "c"])
        assert found["b"] == (value, None) and found["s"] == ("é" * 1_000_000, None)
        assert found["c"][0] == [value]
        far.put_many([("b", b"short", None)])
        assert value_of(far, "b") == b"short"

    def test_a_value_read_is_a_copy(self, far: Any) -> None:
        far.put_many([("k", [1], None)])
        value_of(far, "k").append(2)
        assert value_of(far, "k") == [1]

    # --- order -------------------------------------------------------------------------------

    def test_a_batch_is_done_in_its_order(self, far: Any) -> None:
        far.put_many([("k", i, None) for i in range(20)])
        assert far.get_many(["k", "k"]) == {"k": (19, None)}
        assert far.delete_many(["k", "none", "k"]) == [True, False, False]

    def test_what_is_absent(self, far: Any) -> None:
        far.put_many([("a", None, None)])
        assert far.get_many(["a", "b"]) == {"a": (None, None)}
        assert far.delete_many(["b", "a", "a"]) == [False, True, False]

    def test_the_last_write_shows(self, far: Any) -> None:
        for i in range(50):
            far.put_many([("k", i, None)])
            assert value_of(far, "k") == i
            if i % 5 == 0:
                far.delete_many(["k"])
                assert far.get_many(["k"]) == {}

    # --- time --------------------------------------------------------------------------------

    def test_seconds_left(self, far: Any) -> None:
        far.put_many([("a", 1, 60), ("b", 2, 0.75), ("c", 3, None), ("d", 4, 3_000_000_000)])
        found = far.get_many("abcd")
        assert 50 < found["a"][1] <= 60 and 0 < found["b"][1] <= 0.75 and found["c"][1] is None
        assert 2_999_999_900 < found["d"][1] <= 3_000_000_000

    def test_what_is_over_is_gone(self, far: Any) -> None:
        far.put_many([("a", 1, self.SHORT), ("b", 2, None)])
        time.sleep(self.SHORT)
        until(lambda: far.get_many(["a", "b"]) == {"b": (2, None)}, 1)
        assert scanned(far) == ["b"]
        assert far.delete_many(["a"]) == [False]

    def test_a_put_sets_the_time_anew(self, far: Any) -> None:
        far.put_many([("a", 1, self.SHORT), ("b", 1, self.SHORT), ("c", 1, None)])
        far.put_many([("a", 2, None), ("b", 2, 60), ("c", 2, self.SHORT)])
        time.sleep(self.SHORT * 2)
        until(lambda: set(far.get_many("abc")) == {"a", "b"}, 1)
        assert far.get_many(["a"]) == {"a": (2, None)}

    # --- what is refused, and changes nothing -----------------------------------------------

    @pytest.mark.parametrize("key", [[], {}, object(), ("a", []), {1}, bytearray(b"a")])
    def test_no_key_by_type(self, far: Any, key: Any) -> None:
        with pytest.raises(TypeError, match="key"):
            far.put_many([("a", 1, None), (key, 1, None)])
        for call in (far.get_many, far.delete_many):
            with pytest.raises(TypeError, match=r"key|unhashable"):
                call([key])
        assert far.get_many(["a"]) == {}

    def test_no_key_by_value(self, far: Any) -> None:
        for call in (
            far.get_many,
            far.delete_many,
            lambda keys: far.put_many([(keys[0], 1, None)]),
        ):
            with pytest.raises(ValueError, match="NaN"):
                call([math.nan])

    @pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf, 1e300])
    def test_no_ttl_by_value(self, far: Any, ttl: float) -> None:
        with pytest.raises(ValueError, match="ttl"):
            far.put_many([("a", 1, None), ("b", 1, ttl)])
        assert far.get_many(["a", "b"]) == {}

    @pytest.mark.parametrize("ttl", ["1", b"1", True, [1]])
    def test_no_ttl_by_type(self, far: Any, ttl: Any) -> None:
        with pytest.raises(TypeError, match="ttl"):
            far.put_many([("a", 1, None), ("b", 1, ttl)])
        assert far.get_many(["a", "b"]) == {}

    def test_no_value(self, far: Any) -> None:
        with pytest.raises(TypeError, match="object"):
            far.put_many([("a", 1, None), ("b", object(), None)])
        assert far.get_many(["a", "b"]) == {}

    @pytest.mark.parametrize("count", [0, -1])
    def test_no_count(self, far: Any, count: int) -> None:
        with pytest.raises(ValueError, match="count"):
            far.scan(count=count)

    @pytest.mark.parametrize("cursor", [object(), [], 1.5])
    def test_no_cursor(self, far: Any, cursor: Any) -> None:
        with pytest.raises((TypeError, ValueError), match="cursor"):
            far.scan(cursor)

    # --- scan --------------------------------------------------------------------------------

    @pytest.mark.parametrize("count", [1, 7, 100, 5000])
    def test_scan_has_all(self, far: Any, count: int) -> None:
        keys = [f"key{i}" for i in range(120)] + ["x" * (600 + i) for i in range(20)]
        far.put_many([(key, b"", None) for key in keys])
        assert set(scanned(far, count)) == set(keys)

    def test_scan_while_others_come_and_go(self, far: Any) -> None:
        stays = {f"stays{i}" for i in range(200)}
        far.put_many([(key, b"", None) for key in stays])
        seen: set[Any] = set()
        keys, cursor = far.scan(count=10)
        for i in range(100_000):
            seen.update(keys)
            if cursor is None:
                break
            far.put_many([(f"new{i}", b"", None)])
            far.delete_many([f"new{i - 3}"])
            keys, cursor = far.scan(cursor, 10)
        assert stays <= seen

    # --- the verbs that Tiered uses where they are ------------------------------------------

    def test_add(self, far: Any) -> None:
        assert far.add("k", "first", None) is True
        assert far.add("k", "second", None) is False
        assert value_of(far, "k") == "first"
        assert far.add("t", 1, self.SHORT) is True
        time.sleep(self.SHORT)
        until(lambda: far.add("t", 2, None), 1)
        assert far.get_many(["t"]) == {"t": (2, None)}
        with pytest.raises(TypeError, match="key"):
            far.add([], 1, None)
        with pytest.raises(ValueError, match="ttl"):
            far.add("n", 1, -1)

    def test_incr(self, far: Any) -> None:
        assert far.incr("n", 1, 0, None) == 1
        assert far.incr("n", 5, 100, 9) == 6
        assert far.incr("n", -10, 0, None) == -4
        assert far.get_many(["n"]) == {"n": (-4, None)}
        assert far.incr("m", 3, 10, 60) == 13
        value, left = far.get_many(["m"])["m"]
        assert (value, type(value)) == (13, int) and 50 < left <= 60
        assert far.incr("m", 1, 0, None) == 14
        assert 50 < far.get_many(["m"])["m"][1] <= 60

    def test_incr_of_what_is_over_begins_anew(self, far: Any) -> None:
        far.put_many([("n", 41, self.SHORT)])
        time.sleep(self.SHORT)
        until(lambda: far.get_many(["n"]) == {}, 1)
        assert far.incr("n", 1, 0, None) == 1
        assert far.get_many(["n"]) == {"n": (1, None)}

    def test_incr_to_the_ends(self, far: Any) -> None:
        far.put_many([("n", INT_MAX - 1, None), ("m", INT_MIN + 1, None)])
        assert far.incr("n", 1, 0, None) == INT_MAX
        assert far.incr("m", -1, 0, None) == INT_MIN
        for key, delta in (("n", 1), ("m", -1), ("n", INT_MAX)):
            with pytest.raises(OverflowError):
                far.incr(key, delta, 0, None)
        with pytest.raises(OverflowError):
            far.incr("new", 1, INT_MAX, None)
        assert far.get_many(["n", "m", "new"]) == {"n": (INT_MAX, None), "m": (INT_MIN, None)}
        assert far.incr("n", INT_MIN, 0, None) == -1

    @pytest.mark.parametrize("value", ["1", b"1", 1.0, True, None, [1], 2**63])
    def test_incr_of_no_int(self, far: Any, value: Any) -> None:
        far.put_many([("k", value, None)])
        with pytest.raises(TypeError, match=r"int|incr"):
            far.incr("k", 1, 0, None)
        assert same(value_of(far, "k"), value)

    @pytest.mark.parametrize(
        ("delta", "initial"), [(1.0, 0), (True, 0), ("1", 0), (1, None), (1, 0.5)]
    )
    def test_incr_by_no_int(self, far: Any, delta: Any, initial: Any) -> None:
        with pytest.raises(TypeError, match="int"):
            far.incr("k", delta, initial, None)
        assert far.get_many(["k"]) == {}

    def test_touch(self, far: Any) -> None:
        far.put_many([("a", "x" * 5000, None), ("b", [1], 500.0)])
        assert far.touch("a", 50.0) and far.touch("b", None) and not far.touch("c", 5.0)
        got = far.get_many(["a", "b"])
        assert got["a"][0] == "x" * 5000 and 49 < got["a"][1] <= 50 and got["b"] == ([1], None)
        assert far.touch("a", 0.05)
        time.sleep(0.1)
        assert far.get_many(["a"]) == {} and not far.touch("a", 5.0)

    def test_count_and_clear(self, far: Any) -> None:
        assert (far.count(), far.clear()) == (0, 0)
        far.put_many([(i, b"x" * 100, None if i % 2 else 60) for i in range(500)])
        far.put_many([(0, "again", None)])
        assert far.count() == 500
        far.delete_many(range(10))
        assert far.count() == 490
        assert far.clear() == 490
        assert far.count() == 0 and scanned(far) == [] and far.get_many(range(500)) == {}
        far.put_many([(0, "new", None)])
        assert far.count() == 1

    # --- threads -----------------------------------------------------------------------------

    def test_each_thread_its_own_keys(self, far: Any) -> None:
        def work(t: int) -> None:
            for i in range(40):
                keys = [f"{t}:{i}:{j}" for j in range(5)]
                far.put_many([(key, (t, i), None) for key in keys])
                assert far.get_many(keys) == dict.fromkeys(keys, ((t, i), None))
                if i % 2:
                    assert far.delete_many(keys) == [True] * 5
                    assert far.get_many(keys) == {}

        in_threads(8, work)
        assert len(scanned(far)) == far.count() == 8 * 20 * 5

    def test_one_key_for_all_threads(self, far: Any) -> None:
        """What is read was written, whole; and who wrote last wins."""

        def work(t: int) -> None:
            for i in range(40):
                far.put_many([("k", [t, i, "x" * (t * 700)], None)])
                value = value_of(far, "k")
                assert value[2] == "x" * (value[0] * 700)

        in_threads(8, work)
        assert value_of(far, "k")[1] == 39

    def test_incr_and_add_are_atomic(self, far: Any) -> None:
        won: list[int] = []
        returned: list[int] = []

        def work(t: int) -> None:
            if far.add("first", t, None):
                won.append(t)
            for _ in range(40):
                returned.append(far.incr("n", 1, 0, None))

        in_threads(8, work)
        assert won == [value_of(far, "first")]
        assert sorted(returned) == list(range(1, 321)) and value_of(far, "n") == 320

    # --- the end -----------------------------------------------------------------------------

    def test_sync(self, far: Any) -> None:
        far.put_many([("k", 1, None)])
        assert far.sync() is None
        assert value_of(far, "k") == 1

    def test_closed(self, far: Any) -> None:
        far.put_many([("k", 1, None)])
        far.close()
        far.close()
        calls: list[Callable[[], object]] = [
            lambda: far.get_many(["k"]),
            lambda: far.put_many([("k", 1, None)]),
            lambda: far.delete_many(["k"]),
            far.scan, far.sync, far.count, far.clear,
            lambda: far.add("k", 1, None),
            lambda: far.incr("k", 1, 0, None),
            lambda: far.touch("k", None),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(ClosedError):
                call()

    def test_closed_while_threads_are_at_it(self, far: Any) -> None:
        """Each call either does its work or says that it is closed."""

        def work(t: int) -> None:
            if t == 0:
                time.sleep(0.05)
                far.close()
                return
            try:
                for i in range(100_000):
                    far.put_many([((t, i), i, None)])
                    far.get_many([(t, i)])
            except ClosedError:
                return
            raise AssertionError("it was never closed")

        in_threads(5, work)
