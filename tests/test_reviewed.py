"""What reviewers found: each test failed before its fault was mended."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import pytest

import gbcache
from gbcache.__main__ import main
from gbcache.codec import DEPTH_MAX, PickleCodec, TypedCodec
from gbcache.replay import Request, Source, bytes_lru, compare, read_trace, replay, sample

# --- extensions within extensions ------------------------------------------------------------------

IN_LITTLE_STACK = """
import sys, threading
from datetime import datetime
import gbcache
from gbcache.codec import TypedCodec

WRAPS = [
    lambda v, i: (v,),
    lambda v, i: {1.5: v},
    lambda v, i: frozenset([v]),
    lambda v, i: ([v], (v,))[i % 2],
    lambda v, i: ([v], (v,), {"a": v}, {None: v})[i % 4],
    lambda v, i: {v: 0} if i == -1 else (v,),
    lambda v, i: {frozenset([v])} if i == -1 else frozenset([v]),
    lambda v, i: [v],
]
said = []

def run():
    codec = TypedCodec()
    with gbcache.Cache("4MB") as cache:
        for wrap in WRAPS:
            for innermost in (1, datetime(2026, 1, 1), 2**70):
                value, most = innermost, 199 if type(innermost) is datetime else 200
                most -= wrap(1, -1) == {frozenset([1])}  # two in one
                for i in range(most):
                    value = wrap(value, i - most)
                assert codec.decode(codec.encode(value)) == value
                cache["k"] = value
                assert cache["k"] == value
    said.append("all came back")

threading.stack_size(512 * 1024)
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(*said)
"""


def test_what_is_deepest_comes_back_in_little_stack() -> None:
    ran = subprocess.run([sys.executable, "-c", IN_LITTLE_STACK], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "all came back\n"), ran.stderr[-2000:]


HOSTILE = """
import msgpack, os, sys
from gbcache.codec import TypedCodec

short = os.environ.get("GB_SLICE") == "short"
codec = TypedCodec()

def nested(depth, code, before, innermost=b"\\x01"):
    data = innermost
    for _ in range(depth):
        data = msgpack.packb(msgpack.ExtType(code, before + data))
    return data

lists = b"\\x91" * 1000
for code in (1, 2, 3, 4, 9, 13, 14, 77):
    for before in (b"", b"\\x91", b"\\x91\\x92\\x02", b"\\x81\\x05", b"\\x81", lists):
        for depth in (200, 201, 600) if short else (199, 200, 201, 250, 600):
            if before is lists and (depth != (600 if code == 1 else 201) or short and code > 2):
                continue  # it takes a square of the depth
            for innermost in (b"\\x01", b"", b"\\xc1"):
                data = nested(depth, code, before, innermost)
                for tail in (b"", b"\\x05"):
                    try:
                        codec.decode(data + tail)
                    except ValueError as error:
                        assert str(error).startswith("not an encoded value"), error
                    else:
                        plain = depth <= 200 and innermost == b"\\x01"
                        assert not tail and (plain or code in (4, 14))  # an int's, a str's bytes: any
print("done")
"""


def test_hostile_extensions_are_an_error_not_a_crash() -> None:
    ran = subprocess.run([sys.executable, "-c", HOSTILE], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr[-2000:]


def test_extensions_within_extensions_are_strict() -> None:
    import msgpack

    codec, ext = TypedCodec(), msgpack.ExtType

    def packed(code: int, *held: bytes) -> bytes:
        return bytes(msgpack.packb(ext(code, b"".join(held))))

    inner = packed(1, b"\x91\x05")
    assert codec.decode(packed(1, b"\x92\x01", inner)) == (1, (5,))
    for held, says in [
        (packed(1, b"\x91\x05\x06"), "ExtraData"),
        (packed(1, b"\x92\x05"), "incomplete"),
        (packed(1, b""), "incomplete"),
        (packed(77, b"\x91\x05"), "unknown extension 77"),
        (packed(10, b"\x93\x01\x01", inner), "no extension|can be none"),
        (packed(1, b"\x81", inner, b"\x01"), "unhashable"),
    ]:
        for whole in (held, packed(1, b"\x92\x01", held), packed(1, b"\x91", inner, held)):
            with pytest.raises(ValueError, match=r"not an encoded value"):
                codec.decode(whole)
        with pytest.raises(ValueError, match=says):
            codec.decode(packed(1, b"\x91", held))


def test_a_recursion_error_is_an_error_of_the_bytes() -> None:
    codec = TypedCodec()
    data = codec.encode(((1,),))

    def deep(n: int) -> Any:
        return deep(n - 1) if n else codec.decode(data)

    seen = set()
    for n in range(sys.getrecursionlimit()):
        try:
            assert deep(n) == ((1,),)
        except (RecursionError, ValueError) as error:
            seen.add(type(error))
            if type(error) is RecursionError:
                break
    assert RecursionError in seen  # `deep` itself


def test_files_that_were_written_before_are_read() -> None:
    """The bytes of the first release: the format did not change."""
    value = {"t": (1, (datetime(2026, 1, 2, 3, 4, 5, 6), {2.5: {frozenset([(1,)])}})), "l": [(2,)]}
    data = TypedCodec().encode(value)
    assert data == bytes.fromhex(BEFORE)
    assert TypedCodec().decode(data) == value


BEFORE = (
    "82a174c72f019201c72a0192c70c0999cd07ea01020304050600c0c7170d9192cb4004000000000000c7090291"
    "c7050391d5019101a16c91d5019102"
)


def test_pickle_knows_no_such_depth() -> None:
    value: Any = 0
    for _ in range(DEPTH_MAX + 20):
        value = (value,)
    codec = PickleCodec()
    assert codec.decode(codec.encode(value)) == value


# --- memoized methods ------------------------------------------------------------------------------


class Point(NamedTuple):
    """Cannot be referred to weakly."""

    x: int

    @gbcache.memoize
    def plus(self, n: int) -> list[int]:
        return [self.x + n]


class Slotted:
    __slots__ = ("v",)

    def __init__(self, v: int) -> None:
        self.v = v

    @gbcache.memoize
    def get(self) -> int:
        return self.v

    @gbcache.memoize
    def slow(self, go: threading.Event, on: threading.Event) -> int:
        seen = self.v
        on.set()
        go.wait(10)
        return seen


def test_results_of_what_has_no_weak_reference_can_be_forgotten() -> None:
    point = Point(1)
    first = point.plus(2)
    assert point.plus(2) is first
    assert Point.plus.cache_key(point, 2) == point.plus.cache_key(2) == (point, 2)
    assert point.plus.cache.peek(point.plus.cache_key(2)) is first
    assert point.plus.cache_invalidate(2) and not Point.plus.cache_invalidate(point, 2)
    assert point.plus(2) is not first and Point.plus.cache_invalidate(point, 2)
    slotted = Slotted(1)
    assert slotted.get() == 1
    slotted.v = 2
    assert slotted.get.cache_invalidate() and slotted.get() == 2


def test_a_call_under_way_of_such_an_instance_is_not_stored() -> None:
    slotted, go, on, seen = Slotted(1), threading.Event(), threading.Event(), []
    thread = threading.Thread(target=lambda: seen.append(slotted.slow(go, on)))
    thread.start()
    assert on.wait(10)
    slotted.v = 2
    slotted.slow.cache_invalidate(go, on)
    go.set()
    thread.join()
    assert seen == [1] and slotted.slow(go, on) == 2


def test_what_is_abstract_stays_so() -> None:
    class Base(ABC):
        @gbcache.memoize
        @classmethod
        @abstractmethod
        def of_class(cls) -> int: ...

        @gbcache.memoize
        @staticmethod
        @abstractmethod
        def static() -> int: ...

        @gbcache.memoize
        @abstractmethod
        def plain(self) -> int: ...

        @property
        @gbcache.memoize
        @abstractmethod
        def attribute(self) -> int: ...

        @gbcache.memoize
        @classmethod
        def there(cls) -> int:
            return 1

    names = {"of_class", "static", "plain", "attribute"}
    assert Base.__abstractmethods__ == names

    class Still(Base):
        pass

    assert Still.__abstractmethods__ == names
    with pytest.raises(TypeError, match="abstract"):
        Still()  # type: ignore[abstract]

    class Whole(Still):
        @gbcache.memoize
        @classmethod
        def of_class(cls) -> int:
            return 2

        static = plain = attribute = None  # type: ignore[assignment]

    assert Whole().of_class() == 2 and Whole.there() == 1


def test_a_property_called_dict_is_not_where_results_lie() -> None:
    class Fresh:
        calls = 0
        kept: dict[str, Any] = {}

        @property
        def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
            return {"x": 1}

        @gbcache.memoize
        def get(self) -> int:
            Fresh.calls += 1
            return Fresh.calls

    class One(Fresh):
        @property
        def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
            return Fresh.kept

    class Bare:
        __slots__ = ("__weakref__",)
        __dict__ = Fresh.__dict__["__dict__"]
        get = gbcache.memoize(lambda self: Fresh.get.__wrapped__(self))

    for kind in (Fresh, One, Bare):
        a, b = kind(), kind()
        assert a.get() == a.get() == a.get() != b.get() == b.get(), kind
        assert a.get.cache_info().currsize == 1 and a.get.cache_info().hits >= 2
        assert a.get.cache_invalidate() and a.get() not in (b.get(), 1)
        held = vars(kind)["get"] if kind is Bare else Fresh.get
        assert len(held._holders) == 2
        del a, b
        gc.collect()
    assert not Fresh.kept


# --- stale= and weigh= -----------------------------------------------------------------------------


def test_stale_may_be_a_timedelta_of_nothing() -> None:
    with gbcache.ObjectCache(ttl=1) as cache:
        assert cache.get_or_set("k", lambda: 1, stale=timedelta(0)) == 1
        with pytest.raises(ValueError, match="stale="):
            cache.get_or_set("k", lambda: 1, stale=timedelta(-1))
        with pytest.raises(ValueError, match="stale="):
            cache.get_or_set("k", lambda: 1, stale=-1)
    assert gbcache.memoize(stale=timedelta(0))(lambda x: x)(3) == 3


def test_a_sum_is_weighed() -> None:
    told = [0.0]
    with gbcache.ObjectCache(
        max_weight=100, weigh=lambda k, v: v, clock=lambda: told[0], idle=50
    ) as cache:
        cache.set("a", 1, ttl=80)
        cache.incr("b", 60)
        assert cache.incr("a", 39) == 40 and cache.stats().weight == 100
        with pytest.raises(gbcache.BudgetError):
            cache.incr("a", 61)
        assert cache["a"] == 40 and cache.stats().weight == 100 and cache.stats().rejects == 1
        told[0] = 40
        assert cache.incr("a") == 41 and "b" not in cache and cache.stats().weight == 41
        assert (
            cache.ttl("a") == 40 and cache.entry("a").weight == 41
        )  # ends at 80, whatever is used
        assert cache.incr("a", -41) == 0 and cache.stats().weight == 0
        told[0] = 80
        assert cache.incr("a", 7) == 7 and cache.stats().weight == 7
        assert cache.ttl("a") == 50
        with pytest.raises(ValueError, match="weigh returned"):
            cache.incr("a", -8)
        assert cache["a"] == 7
        cache.check()


def test_weigh_may_do_anything_to_what_is_summed() -> None:
    what: list[Any] = []

    def weigh(key: Any, value: Any) -> int:
        if what:
            what.pop()()
        return 1

    cache = gbcache.ObjectCache(max_weight=9, weigh=weigh, ttl=100)
    cache["n"] = 1000
    what.append(lambda: cache.set("n", 2000, ttl=None))
    assert cache.incr("n") == 2001 and cache.ttl("n") is None
    what.append(lambda: cache.pop("n"))
    assert cache.incr("n", 5) == 5 and cache.ttl("n") is not None
    what.append(lambda: cache.touch("n", ttl=7))
    assert cache.incr("n", 5) == 10 and cache.ttl("n") <= 7
    what.append(lambda: cache.set("n", "text"))
    with pytest.raises(TypeError, match="not an int"):
        cache.incr("n")
    cache["n"] = 1
    what.append(lambda: cache.clear())
    assert cache.incr("n", 5) == 5 and len(cache) == 1
    cache.check()
    what.append(cache.close)
    with pytest.raises(gbcache.ClosedError):
        cache.incr("n")


def test_a_bound_that_is_lowered_while_room_is_made() -> None:
    class Lowers:
        def __del__(self) -> None:
            if not cache.closed:
                cache.resize(5, max_weight=6)

    weights = {"heavy": 8}
    with gbcache.ObjectCache(5, max_weight=10, weigh=lambda k, v: weights.get(k, 2)) as cache:
        for i in range(5):
            cache[i] = Lowers() if i == 0 else i
        with pytest.raises(gbcache.BudgetError, match="8 can never fit max_weight=6"):
            cache["heavy"] = 1
        assert "heavy" not in cache and cache.max_weight == 6 and cache.stats().rejects == 1
        assert list(cache)[-1] == 4
        cache.check()


# --- replays ---------------------------------------------------------------------------------------


def forever(request: Request) -> None:
    """No TTL."""


def test_a_replay_goes_on_where_the_cache_refuses() -> None:
    requests = [Request(key, size) for key, size in (
        ("a", 100), ("b", 9_000_000), ("a", 100), ("k" * 5000, 10), ("b", 9_000_000), ("a", 100)
    )]  # fmt: skip
    with gbcache.Cache("1MB") as cache:
        report = replay(requests, cache, Source(rounds=1), ttl=forever)
    assert (report.requests, report.hits, report.rejects) == (6, 2, 3)
    assert len(report.load_ns) == 4 and report.peak_payload == 101
    assert compare(requests, Source(rounds=1), 10)[0][1] == 0.5


def test_the_peak_is_sampled_where_a_hit_falls_on_it_too() -> None:
    requests = [Request("a", 60_000), *[Request("b", 60_000)] * 9000]
    with gbcache.Cache("1MB") as cache:

        def show(at: int) -> None:
            if at == 8192:
                cache.clear()

        report = replay(requests, cache, Source(rounds=1), ttl=forever, show=show)
        assert report.memory.value_bytes == 60_000
    assert report.peak_payload == 120_002


def test_what_can_never_fit_leaves_the_reference_as_it_is() -> None:
    requests = [Request("a", 10), Request("b", 1000), Request("a", 10)]
    assert bytes_lru(requests, Source(), 100) == 1


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_no_request(limit: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="limit="):
        read_trace(sample(), limit)
    assert main(["demo", "--limit", str(limit)]) == 2
    assert f"limit={limit}" in capsys.readouterr().err
