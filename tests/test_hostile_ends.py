"""Hostile keys, values and loads: every call comes to an end, nobody waits for ever, nothing older wins."""

# ruff: noqa: E501
from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import pickle
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from children import isolated
from test_hostile import MAKERS, both, sound

import gbcache
import gbcache.flight
from gbcache import ObjectCache

# --- keys and values that lie, and that never come to an end --------------------------------------


class Odd:
    """Hashes and compares as it is told."""

    def __init__(self, n: int = 7, equal: Callable[[Any, Any], bool] = lambda a, b: True) -> None:
        self.n, self.equal = n, equal

    def __hash__(self) -> int:
        return self.n

    def __eq__(self, other: object) -> bool:
        return self.equal(self, other)


@isolated
def test_keys_equal_to_everything_and_to_nothing() -> None:
    cache, nothing, nan = ObjectCache(9), Odd(7, lambda a, b: False), float("nan")
    cache[nothing], cache[nan] = 1, 2
    assert cache.get(Odd(7)) is None and cache[nothing] == 1 and cache[nan] == 2, (
        "the held key's == is asked"
    )
    assert cache.get_or_set(nothing, lambda: 3) == 1 and cache.get_or_set(nan, lambda: 3) == 2
    cache[Odd(5)] = 3
    assert (
        cache[Odd(5, lambda a, b: False)] == 3 and cache.pop(nan) == 2 and cache.incr(nothing) == 2
    )
    sound(cache)


@isolated
def test_a_hash_that_changes_loses_the_entry_and_breaks_nothing() -> None:
    cache, keys = ObjectCache(20), [Odd(i, lambda a, b: a is b) for i in range(20)]
    cache.update((k, k.n) for k in keys)
    for key in keys:
        key.n += 1000
    cache.check()
    assert list(cache) == keys and cache.get_many(keys) == {} and cache.add(1, 2) is not False
    assert cache.popitem() == (keys[1], 1) and len(cache.keys() & set(keys)) <= 20
    cache.update((k, 0) for k in keys)
    sound(cache)


@pytest.mark.parametrize("asks", ["get", "set", "get_or_set"])
@pytest.mark.parametrize("says", [True, False])
@isolated
def test_an_eq_that_always_writes_comes_to_an_end(says: bool, asks: str) -> None:
    """As a dict's look-up does, if only with an exception."""
    cache, calls = ObjectCache(), [0]

    def equal(a: Any, b: Any) -> bool:
        calls[0] += 1
        assert calls[0] < 10_000, "it compares for ever"
        cache[object()] = 1
        return says

    cache[Odd(7, equal)] = 1
    arguments = {"get": (), "set": (1,), "get_or_set": (lambda: 1,)}[asks]
    with contextlib.suppress(RuntimeError):
        getattr(cache, asks)(Odd(7, equal), *arguments)
    sound(cache)


@pytest.mark.parametrize("verb", ["setdefault", "incr"])
@isolated
def test_an_eq_that_lies_every_other_time_comes_to_an_end(verb: str) -> None:
    calls = [0]

    def equal(a: Any, b: Any) -> bool:
        calls[0] += 1
        assert calls[0] < 10_000, "it compares for ever"
        return calls[0] % 2 == 0

    cache = ObjectCache(9)
    cache[Odd(7, equal)] = 1
    with contextlib.suppress(RuntimeError):
        getattr(cache, verb)(Odd(7, equal), 5)
    sound(cache)


# Not `resize`: there each death is another's birth and the next one's death within one decref, which the
# interpreter itself (its trashcan) then never comes out of, with any container.
@pytest.mark.parametrize("way", ["set", "set heavy", "clear", "expire", "popitem", "close"])
@isolated
def test_a_value_that_puts_itself_back_when_it_dies(way: str) -> None:
    """Nobody makes room for ever."""
    sys.unraisablehook = lambda _: None

    class Phoenix:
        def __del__(self) -> None:
            if not cache.closed:
                cache.set(object(), Phoenix(), ttl=5)

    heavy = (
        {"max_weight": 10, "weigh": lambda k, v: 1} if way == "set heavy" else {"max_entries": 10}
    )
    cache = ObjectCache(**heavy, clock=lambda: 1000.0)  # type: ignore[arg-type]
    cache.update((i, Phoenix()) for i in range(10))
    ways: dict[str, Callable[[], Any]] = {
        "set": lambda: cache.set("x", 1), "set heavy": lambda: cache.set("x", 1), "resize": lambda: cache.resize(5), "clear": cache.clear,
        "expire": cache.expire, "popitem": cache.popitem, "close": cache.close,
    }  # fmt: skip
    with contextlib.suppress(RuntimeError):
        ways[way]()
    if not cache.closed:
        cache.check()
    cache.close()


@isolated
def test_caches_in_caches_in_caches() -> None:
    cache = ObjectCache(1)
    for _ in range(5000):
        outer = ObjectCache(1)
        outer["inner"] = cache
        cache = outer
    cache.close()


# --- flights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("twin", ["get_or_set", "aget_or_set"])
@isolated
def test_a_key_that_raises_leaves_no_flight_behind(twin: str, error: type[BaseException]) -> None:
    """At whichever of its calls: those who come later do not wait for a load that is over."""
    for load, method, n in [
        (o, m, n) for o in (int, lambda: 1 / 0) for m in ("hash", "eq") for n in range(1, 12)
    ]:
        left = {"hash": 0, "eq": 0, method: n}

        class Key:
            def __hash__(self, left: Any = left) -> int:
                return self.count(left, "hash") or 7

            def __eq__(self, other: object, left: Any = left) -> bool:
                return not self.count(left, "eq")

            def count(self, left: Any, method: str) -> Any:
                left[method] -= 1
                if left[method] == 0:
                    raise error

        cache = ObjectCache(9)
        try:
            if twin == "get_or_set":
                cache.get_or_set(Key(), load)
            else:
                asyncio.run(cache.aget_or_set(Key(), lambda load=load: asyncio.sleep(0, load())))
        except (error, ZeroDivisionError):
            pass
        left.update(hash=0, eq=0)
        assert not cache._flights, f"a flight stays after {method} {n} raised"
        sound(cache)


@isolated
def test_a_load_that_changes_its_keys_hash_leaves_no_flight_behind() -> None:
    cache, key = ObjectCache(9), Odd(7)
    assert cache.get_or_set(key, lambda: setattr(key, "n", 8) or "first") == "first"
    assert not cache._flights and cache.get_or_set(key, lambda: "second") == "second"
    assert not cache._flights
    sound(cache)


class Leader:
    """A thread that loads `k`, and waits in the middle."""

    def __init__(self, cache: Any, load: Callable[[], Any]) -> None:
        self.begun, self.going, self.cache, self.load = (
            threading.Event(),
            threading.Event(),
            cache,
            load,
        )
        self.result = ThreadPoolExecutor(1).submit(cache.get_or_set, "k", self.slow)
        assert self.begun.wait(4)

    def slow(self) -> Any:
        self.begun.set()
        assert self.going.wait(4)
        return self.load()


@pytest.mark.parametrize(
    ("title", "where"),
    [("ObjectCache", "weigh"), ("ObjectCache", "clock"), ("Cache", "clock"), ("Cache", "codec")],
)
@isolated
def test_a_load_that_begins_within_a_write_does_not_undo_it(title: str, where: str) -> None:
    """It began before the write was done: what it loads is older."""
    leaders: list[Leader] = []
    armed: list[bool] = []

    def begin() -> None:
        if armed and armed.pop():
            leaders.append(Leader(cache, lambda: "old"))

    class Codec:
        encode = staticmethod(lambda value: begin() or pickle.dumps(value))
        decode = staticmethod(pickle.loads)

    options: dict[str, Any] = {
        "weigh": {"weigh": lambda k, v: begin() or 1},
        "clock": {"clock": lambda: begin() or 1000.0},
        "codec": {"codec": Codec()},
    }[where]
    cache = MAKERS[title](**options)
    armed.append(True)
    cache.set("k", ["new"], ttl=50)
    leaders[0].going.set()
    assert leaders[0].result.result() == "old" and cache["k"] == ["new"]
    sound(cache)


@isolated
def test_an_interrupt_while_a_flight_is_voided_is_not_lost() -> None:
    cache, armed = ObjectCache(9), []
    leader = Leader(cache, lambda: "old")

    class Key(str):
        __eq__ = str.__eq__

        def __hash__(self) -> int:
            if armed:
                raise armed.pop()
            return str.__hash__(self)

    armed.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        cache[Key("k")] = "new"
    leader.going.set()
    leader.result.result()
    sound(cache)


@both
@pytest.mark.parametrize(
    "error", [StopIteration, LookupError, GeneratorExit, asyncio.CancelledError]
)
@isolated
def test_whatever_a_thread_raises_a_task_that_waits_goes_on(
    title: str, error: type[BaseException]
) -> None:
    cache = MAKERS[title]()

    def fail() -> None:
        raise error

    leader = Leader(cache, fail)

    async def follow() -> Any:
        task = asyncio.ensure_future(cache.aget_or_set("k", lambda: asyncio.sleep(0, 5)))
        await asyncio.sleep(0.02)
        leader.going.set()
        await asyncio.wait([task], timeout=2)
        assert task.done(), "it waits for ever"
        return task.exception() or task.result()

    assert isinstance(
        asyncio.run(follow()), int if not issubclass(error, Exception) else (error, RuntimeError)
    )
    sound(cache)


@both
@isolated
def test_a_load_that_closes_the_cache_answers_all(title: str) -> None:
    cache = MAKERS[title]()
    leader = Leader(cache, lambda: cache.close() or "value")
    follower = ThreadPoolExecutor(1).submit(cache.get_or_set, "k", lambda: "own")
    time.sleep(0.05)
    leader.going.set()
    assert leader.result.result() == "value" == follower.result()


@both
@isolated
def test_a_collection_at_any_point_may_join_a_thread_that_loads(title: str) -> None:
    """Flights' own lock is not held while the collector, and so any destructor, runs."""
    cache, fired = MAKERS[title](), []

    def collected(phase: str, _: Any) -> None:
        if phase == "stop" and gbcache.flight._graph._is_owned() and not fired:  # type: ignore[attr-defined]
            fired.append(1)
            thread = threading.Thread(target=lambda: cache.get_or_set("other", lambda: 1))
            thread.start()
            thread.join()

    leader = Leader(cache, lambda: "value")
    threading.Timer(0.1, leader.going.set).start()
    gc.callbacks.append(collected)
    gc.freeze()  # what other tests left is not looked at each time
    gc.set_threshold(1, 1, 1)
    assert cache.get_or_set("k", lambda: "own") == "value" == leader.result.result()
    gc.set_threshold(700)
    sound(cache)


@both
@isolated
def test_a_coroutine_that_is_closed_in_another_context(title: str) -> None:
    cache = MAKERS[title]()
    coroutine = cache.aget_or_set("k", lambda: asyncio.sleep(0, 5))
    contextvars.copy_context().run(coroutine.send, None)
    contextvars.copy_context().run(coroutine.close)
    sound(cache)
