"""`memoize`: what functools promises, and what it adds: times, flights, instances, a shared cache."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import inspect
import pickle
import random
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock
from test_flight import within

import gbcache
from gbcache import memoize

SHARED: dict[str, Any] = {
    "Cache": lambda **how: gbcache.Cache("1MB", **how),
    "ObjectCache": lambda **how: gbcache.ObjectCache(1000, **how),
}
shared = pytest.mark.parametrize("make", SHARED.values(), ids=SHARED)


def counted(fn: Callable[..., Any] = lambda *args, **kwargs: (args, kwargs)) -> Any:
    """`fn` and its `calls`, which the memoized function has too."""

    def call(*args: Any, **kwargs: Any) -> Any:
        call.calls.append((args, kwargs))
        return fn(*args, **kwargs)

    call.calls = []
    return call


@memoize
def at_home(x: int) -> int:
    """Found by its name."""
    return x


# --- as functools -------------------------------------------------------------------------------
@pytest.mark.parametrize("how", [(), (256,), (256, True), (None,), (2,), None])
def test_every_way_to_write_it(how: Any) -> None:
    f = memoize(counted()) if how is None else memoize(*how)(counted())
    assert f(1, a=2) is f(1, a=2) and f.calls == [((1,), {"a": 2})] and f(2) == ((2,), {})


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("bound", [20, None, 0, -1])
def test_hits_and_misses_are_those_of_functools(bound: Any, typed: bool) -> None:
    rng = random.Random(typed)
    atoms = [0, 1, 1.0, True, "a", b"a", None, (), (1,), ((1,),), "b", 2**70, frozenset()]
    ours, theirs = memoize(bound, typed)(counted()), functools.lru_cache(bound, typed)(counted())
    for _ in range(2000):
        args = rng.choices(atoms, k=rng.choice([0, 1, 1, 1, 2, 3]))
        named = dict.fromkeys(rng.sample("ab", rng.choice([0, 0, 1, 2])), rng.choice(atoms))
        assert repr(ours(*args, **named)) == repr(theirs(*args, **named))
    assert ours.calls == theirs.calls and ours.cache_info() == theirs.cache_info()
    assert ours.cache_parameters() == theirs.cache_parameters()


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (TypeError, {"maxsize": 1.5}), (TypeError, {"maxsize": "1"}), (TypeError, {"key": 1}),
        (TypeError, {"key": len, "typed": True}), (TypeError, {"key": len, "ignore": (0,)}),
        (TypeError, {"ignore": "a"}), (TypeError, {"ignore": (1.0,)}), (TypeError, {"cache": {}}),
        (TypeError, {"ttl": "1"}), (TypeError, {"stale": "1"}), (ValueError, {"ignore": (-1,)}),
        (ValueError, {"ttl": 0}), (ValueError, {"ttl": -1}), (ValueError, {"stale": -1}),
    ],
)  # fmt: skip
def test_what_it_cannot_take(error: type[Exception], how: Any) -> None:
    with pytest.raises(error):
        memoize(**how)(lambda a: a)


def test_what_raises_is_not_kept() -> None:
    f, g = memoize(counted(lambda x: 1 / x)), memoize(key=lambda x: [x])(counted())
    for call, error in [(f, ZeroDivisionError), (f, ZeroDivisionError), (g, TypeError)]:
        with pytest.raises(error):
            call(0)
    with pytest.raises(TypeError, match="unhashable"):
        f([])
    assert len(f.calls) == 2 and f.cache_info().currsize == 0 and not g.calls


def test_the_face() -> None:
    f = memoize(2)(fn := counted())
    assert [f(x)[0] for x in (1, 2, 2, 3)] == [(1,), (2,), (2,), (3,)]
    assert f.__wrapped__ is fn and f.cache_info() == (1, 3, 2, 2)
    assert 1 not in f.cache and f.cache[f.cache_key(3)] is f(3)
    assert f.cache_invalidate(3) and not f.cache_invalidate(3) and f.cache_info().currsize == 1
    f.cache_clear()
    assert f.cache_info() == (0, 0, 2, 0) and len(f.cache) == 0
    assert at_home.__name__ in repr(at_home) and at_home.__doc__ == "Found by its name."
    assert str(inspect.signature(at_home)) == "(x: 'int') -> 'int'" and inspect.isroutine(at_home)


# --- keys ---------------------------------------------------------------------------------------
def test_key_stands_for_the_call() -> None:
    f = memoize(key=lambda *args, **kwargs: (args, frozenset(kwargs.items())))(counted())
    assert f(a=1, b=2) is f(b=2, a=1) and f.cache_key(a=1, b=2) == f.cache_key(b=2, a=1)
    g = memoize(key=len)(counted(sum))
    assert g([1, 2]) == g([3, 4]) == 3 and g.cache_invalidate([5, 6]) and g([3, 4]) == 7


@pytest.mark.parametrize("careful", [True, False], ids=["isinstance", "attribute"])
def test_a_key_is_compared_with_keys_only(careful: bool) -> None:
    """Nothing of ours is shown to a key's ``__eq__``."""

    class Key:
        __hash__ = lambda self: 7  # noqa: E731
        __init__ = lambda self, x: setattr(self, "x", x)  # noqa: E731
        __eq__ = lambda self, o: (not careful or isinstance(o, Key)) and self.x == o.x  # noqa: E731

    f = memoize(key=Key, ttl=0.02, stale=60)(counted(lambda x: 1 / (3 - len(f.calls))))
    assert f(1) == 0.5 and f(2) == 1.0 and len(f.calls) == 2
    time.sleep(0.05)
    assert f(1) == 0.5 and len(f.calls) == 3, "it raised, and the old one was served"
    assert f.cache_invalidate(2) is False and len(f.cache) == 1


@pytest.mark.parametrize(
    ("ignore", "same"),
    [
        ((), [((1,), {})]),
        (("b",), [((1, 2), {}), ((1, 3), {}), ((1,), {})]),
        ((1,), [((1, 2), {}), ((1, 3), {}), ((1,), {})]),
        ([0], [((1, 2), {}), ((2, 2), {})]),
        ((3,), [((1, 2, 3, 4), {}), ((1, 2, 3, 5), {}), ((1, 2, 3), {})]),
        ({"c", "other"}, [((), {"c": 1}), ((), {"c": 2}), ((), {"other": 3}), ((), {})]),
        (("a", "b"), [((1, 2), {}), ((), {"a": 3, "b": 4}), ((), {})]),
    ],
)
@pytest.mark.parametrize("typed", [False, True])
def test_ignored_arguments_make_no_difference(typed: bool, ignore: Any, same: Any) -> None:
    f = memoize(ignore=ignore, typed=typed)(lambda a=0, b=0, *rest, c=0, **others: object())
    assert len({f(*args, **kwargs) for args, kwargs in same}) == 1
    others = [((), {"d": 1}), ((9, 9, 9), {}), ((9, 9, 8), {}), ((), {"d": "1"})]
    assert len({f(*args, **kwargs) for args, kwargs in others}) == 4


class Moody:
    """A key whose ``__eq__`` does what it is told."""

    mood: Any = None
    hashes = 0

    def __hash__(self) -> int:
        Moody.hashes += 1
        return 1

    def __eq__(self, other: object) -> bool:
        return bool(Moody.mood and Moody.mood())


def test_a_key_is_hashed_once_a_call() -> None:
    key, f = Moody(), memoize(counted())
    A = type("A", (), {"m": memoize(lambda self, x: x)})
    for call in (f, f, (a := A()).m, a.m):
        Moody.hashes = 0
        call(key)
        assert Moody.hashes == 1


def test_keys_that_misbehave() -> None:
    f = memoize(2)(counted())
    for mood in (lambda: 1 / 0, lambda: f.cache_clear(), lambda: f(0), lambda: f.cache.resize(1)):
        f(Moody())
        Moody.mood = mood
        try:
            assert len(f(Moody())[0]) == 1
        except ZeroDivisionError:
            pass
        finally:
            Moody.mood = None
        f.cache.check()


@pytest.mark.parametrize("nth", range(1, 9))
def test_a_key_may_load_its_own_call_whenever_it_is_hashed(nth: int) -> None:
    hashes: list[int] = []

    class Key:
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Key)

        def __hash__(self) -> int:
            hashes.append(1)
            return 1 if len(hashes) != nth else (f.cache_invalidate(Key()), f(Key()), 1)[2]

    f = memoize(cache=gbcache.ObjectCache())(lambda key: "value")
    assert f(Key()) == f(Key()) == "value" and not f.cache._flights


# --- time ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("ttl", [0.5, timedelta(milliseconds=500)])
def test_a_result_lives_as_long_as_its_ttl(ttl: Any) -> None:
    f, a = (
        memoize(ttl=ttl)(lambda: object()),
        type("A", (), {"m": memoize(ttl=ttl)(lambda a: [a])})(),
    )
    old = f(), a.m()
    assert f() is old[0] and a.m() is old[1]
    time.sleep(0.55)
    assert f() is not old[0] and a.m() is not old[1]


@shared
def test_times_in_a_given_cache(make: Any, clock: Clock) -> None:
    cache = make(ttl=10, clock=clock)
    fs = [memoize(cache=cache, **how)(counted()) for how in ({}, {"ttl": 20}, {"ttl": None})]
    for seconds, calls in ((9, [1, 1, 1]), (2, [2, 1, 1]), (12, [3, 2, 1])):
        assert [f(1) for f in fs] and (clock.pass_(seconds), [f(1) for f in fs])
        assert [len(f.calls) for f in fs] == calls
    g = memoize(cache=cache, ttl=10, stale=60)(counted(lambda x: 1 / (2 - len(g.calls))))
    for seconds, result in ((0, 1.0), (11, 1.0), (0, -1.0), (100, -0.5)):
        clock.pass_(seconds)
        assert g(1) == result, "a failure serves the old one, and the next call tries again"


def test_one_loads_anew_and_the_others_get_the_old() -> None:
    begun, go = threading.Event(), threading.Event()
    f = memoize(ttl=0.02, stale=60)(
        counted(lambda: (len(f.calls), len(f.calls) > 1 and (begun.set(), go.wait(10)))[0])
    )
    assert f() == 1
    time.sleep(0.05)
    with ThreadPoolExecutor(1) as pool:
        new = pool.submit(f)
        assert begun.wait(10) and [within(10, f) for _ in range(3)] == [1] * 3
        go.set()
        assert new.result(10) == 2 and len(f.calls) == 2


# --- async --------------------------------------------------------------------------------------
async def slowly(*args: Any) -> list[Any]:
    await asyncio.sleep(0.01)
    return [args]


def test_coroutine_functions_and_methods() -> None:
    A, fn, twice = (
        type("A", (), {"m": memoize(slowly)}),
        memoize(slowly),
        memoize(maxsize=0)(slowly),
    )

    async def main() -> None:
        a = A()
        for f in (fn, a.m):
            assert await f(1) is await asyncio.create_task(f(1)) is not await f(2)
            assert f.cache_info()[:2] == (1, 2) and f.cache_invalidate(1)
        assert await A().m(1) is not await a.m(1) and await twice(1) is not await twice(1)

    asyncio.run(main())
    for f in (fn, A.m, A().m, twice):
        assert asyncio.iscoroutinefunction(f)
        assert inspect.iscoroutinefunction(f) or sys.version_info < (3, 12)


def test_a_coroutine_function_may_be_memoized_twice() -> None:
    async def main(f: Any) -> Any:
        return await f(1) is await f(1)

    assert asyncio.run(main(memoize(memoize(slowly))))


@pytest.mark.parametrize("kind", ["own", *SHARED])
def test_a_thousand_tasks_load_once(kind: str) -> None:
    f = memoize(cache=SHARED.get(kind, lambda: None)())(slowly)

    async def main() -> None:
        assert await asyncio.gather(*[f(1) for _ in range(1000)]) == [[(1,)]] * 1000
        assert await f(1) == [(1,)]

    asyncio.run(main())
    assert f.cache_info()[:2] == (1, 1000)


def test_a_cancelled_leader_hands_over() -> None:
    calls: list[int] = []

    @memoize
    async def f() -> str:
        calls.append(1)
        await asyncio.sleep(60 if len(calls) == 1 else 0)
        return "value"

    async def main() -> None:
        leader, *rest = [asyncio.ensure_future(f()) for _ in range(5)]
        await asyncio.sleep(0.01)
        leader.cancel()
        assert await asyncio.wait_for(asyncio.gather(*rest), 5) == ["value"] * 4

    asyncio.run(main())
    assert len(calls) == 2


# --- threads, recursion, re-entrance ------------------------------------------------------------
@pytest.mark.parametrize("kind", ["own", "method", *SHARED])
def test_a_hundred_threads_load_once(kind: str) -> None:
    f = memoize(cache=SHARED.get(kind, lambda: None)())(
        counted(lambda *_: (time.sleep(0.05), [1])[1])
    )
    call = type("A", (), {"m": f})().m if kind == "method" else f
    ready = threading.Barrier(100)
    with ThreadPoolExecutor(100) as pool:
        got = list(pool.map(lambda _: (ready.wait(20), call(1))[1], range(100)))
    assert got == [[1]] * 100 and len(f.calls) == 1


def test_recursion_goes_as_deep_as_functools_does() -> None:
    fib = memoize(maxsize=None)(lambda n: n if n < 2 else fib(n - 1) + fib(n - 2))
    assert fib(300) == 222232244629420445529739893461909967206666939096499764990979600
    assert fib.cache_info().misses == 301


def test_twice_as_deep_costs_twice_as_much() -> None:
    peaks = []
    f = memoize(maxsize=None)(lambda n: n and 1 + f(n - 1))
    for depth in (200, 400):
        f.cache_clear()
        tracemalloc.start()
        f(depth)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 3.3 * peaks[0], "four times would be quadratic"


def test_the_function_may_clear_invalidate_and_ask_for_its_own_call() -> None:
    f = memoize(counted(lambda x: f.cache_clear() if x else f.cache_invalidate(x)))
    assert [f(x) for x in (1, 1, 0, 0)] and len(f.calls) == 4, "a call under way is not stored"
    g = memoize(counted(lambda: g() if len(g.calls) < 3 else "in the end"))
    assert within(10, g) == g() == "in the end"


def test_the_function_may_be_dropped_while_it_runs() -> None:
    holder = [memoize(lambda x: (holder.clear(), gc.collect(), x)[2])]
    A = type("A", (), {"m": memoize(lambda self, x: (delattr(A, "m"), gc.collect(), x)[2])})
    assert holder[0](1) == A().m(1) == 1 and not holder and not hasattr(A, "m")


# --- a shared cache -----------------------------------------------------------------------------
@shared
def test_functions_of_one_name_never_see_each_others_results(make: Any) -> None:
    cache = make()
    one, two = (memoize(cache=cache)(counted(lambda x, n=n: n)) for n in range(2))
    assert one.__qualname__ == two.__qualname__ and one.cache is two.cache is cache
    assert (one(1), two(1), one(1), two(1)) == (0, 1, 0, 1) and len(cache) == 2
    one.cache_clear()
    assert (one(1), two(1)) == (0, 1) and len(one.calls) == 2 and len(two.calls) == 1
    assert one.cache_info()[:2] == (0, 1) and cache[one.cache_key(1)] == 0
    assert one.cache_invalidate(1) and not one.cache_invalidate(1)


@shared
def test_arguments_are_told_apart_in_a_shared_cache(make: Any) -> None:
    fs = [memoize(typed=typed, cache=make())(counted()) for typed in (False, True)]
    calls = [((), {}), ((1,), {}), (((1,),), {}), (("1",), {}), ((1, 2), {}), ((1,), {"a": 2}),
             ((1, "a", 2), {}), ((), {"a": 1, "b": 2}), ((), {"b": 2, "a": 1}), ((None,), {})]  # fmt: skip
    for args, kwargs in calls * 2:
        assert [f(*args, **kwargs) for f in fs] == [(args, kwargs)] * 2
    packed = isinstance(
        fs[0].cache, gbcache.Cache
    )  # elsewhere as in functools: a lone int is its own key
    assert [repr(f(1.0)[0]) for f in fs] == ["(1,)" if packed else "(1.0,)", "(1.0,)"]


def test_classes_are_arguments_as_good_as_any() -> None:
    f = memoize(cache=gbcache.ObjectCache())(counted())
    for x in (int, "builtins.int", type("Local", (), {}), type("Local", (), {})):
        assert f(x)[0] == (x,)


def test_results_count_in_the_byte_budget() -> None:
    f = memoize(cache=(cache := gbcache.Cache("200kB")))(lambda n: b"x" * n)
    assert [len(f(n)) for n in range(1000, 2000)] == [*range(1000, 2000)]
    assert 100_000 < cache.used_bytes <= 200_000 and 0 < f.cache_info().currsize < 200
    assert len(f(300_000)) == 300_000, "what cannot be kept is returned"
    for odd in ([1], {1}, object(), frozenset()):
        with pytest.raises(TypeError, match="key cannot be"):
            f(odd)
    with pytest.raises(TypeError, match="would not come back"):
        memoize(cache=cache)(object)()


# --- the object itself --------------------------------------------------------------------------
def test_it_is_pickled_by_name_and_copied_as_itself() -> None:
    assert copy.copy(at_home) is copy.deepcopy(at_home) is at_home
    assert pickle.loads(pickle.dumps(at_home)) is at_home


def test_callables_of_every_kind() -> None:
    for fn in (functools.partial(len), len, at_home, memoize(len), "a".join, type("C", (str,), {})):
        f: Any = memoize(fn)
        assert f("") == fn("") and f.__wrapped__ is fn and repr(f) and copy.copy(f) is f


def test_a_subclass_may_call_in_its_own_way() -> None:
    Louder = type("Louder", (type(at_home),), {"__call__": lambda self, *args: "louder"})
    f = Louder(abs, 128, False, None, None, (), 0, None)
    assert f(-1) == "louder"


def test_cycles_are_collected() -> None:
    def make() -> list[Any]:
        f = memoize(counted(lambda x: (f, x)))
        g = memoize(key=lambda *_: g and 1, cache=gbcache.ObjectCache())(lambda x: (g, x))
        f(f), g(f), f(g)
        return [weakref.ref(x) for x in (f, g, f.cache, g.cache)]

    refs = make()
    gc.collect()
    assert [ref() for ref in refs] == [None] * 4


def test_memoized_results_stay_and_a_clear_stays_cleared(tmp_path: Path) -> None:
    path, calls = tmp_path / "a.gbc", []

    def define(cache: gbcache.Cache):  # type: ignore[no-untyped-def]
        @gbcache.memoize(cache=cache)
        def square(x: int) -> int:
            calls.append(x)
            return x * x

        return square

    with gbcache.Cache("1MB", path=path) as cache:
        assert define(cache)(3) == 9
    with gbcache.Cache("1MB", path=path) as cache:
        square = define(cache)
        assert square(3) == 9 and calls == [3]
        square.cache_clear()
    with gbcache.Cache("1MB", path=path) as cache:
        assert define(cache)(3) == 9 and calls == [3, 3]
