"""One flight per key: stampedes, cycles, cancellation, and changes in the middle of a load."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import gbcache

MAKERS: dict[str, Callable[[], Any]] = {
    "Cache": lambda: gbcache.Cache("1MB"),
    "ObjectCache": lambda: gbcache.ObjectCache(1000),
}


def made(request: Any) -> Any:
    cache = MAKERS[request.param]()
    yield cache
    if not cache.closed:
        cache.check()
        assert not cache._flights, "nothing of a flight stays"
    cache.close()


cache = pytest.fixture(params=MAKERS)(made)


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """The call's result; a test that hangs fails."""
    box: list[Any] = []

    def run() -> None:
        try:
            box.append((True, call()))
        except BaseException as error:
            box.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert box, "it hangs"
    fine, result = box[0]
    if not fine:
        raise result
    return result


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def loading(cache: Any) -> list[Any]:
    """The keys of the flights under way."""
    keys = []
    for flight in list(cache._flights.values()):
        while flight is not None:
            keys.append(getattr(flight.key, "key", flight.key))
            flight = flight.next
    return keys


def test_a_miss_loads_and_a_hit_does_not(cache: Any) -> None:
    loads: list[int] = []
    load = lambda: loads.append(1) or "value"  # noqa: E731
    assert cache.get_or_set("k", load) == cache.get_or_set("k", load) == "value"
    assert len(loads) == 1 and cache["k"] == "value" and cache.ttl("k") is None
    assert cache.get_or_set("t", lambda: None, ttl=50) is None and 49 < cache.ttl("t") <= 50
    assert cache.get_or_set("t", lambda: 1 / 0) is None, "None is a value"


def test_a_stampede_of_threads_loads_once(cache: Any) -> None:
    loads: list[int] = []
    ready = threading.Barrier(100)

    def load() -> list[int]:
        loads.append(1)
        time.sleep(0.05)
        return [len(loads)]

    def ask(_: int) -> Any:
        ready.wait()
        return cache.get_or_set("k", load)

    with ThreadPoolExecutor(100) as pool:
        assert list(pool.map(ask, range(100))) == [[1]] * 100
    assert len(loads) == 1


def test_a_stampede_of_tasks_loads_once(cache: Any) -> None:
    loads: list[int] = []

    async def load() -> list[int]:
        loads.append(1)
        await asyncio.sleep(0.02)
        return [len(loads)]

    async def main() -> None:
        got = await asyncio.gather(*[cache.aget_or_set("k", load) for _ in range(1000)])
        assert got == [[1]] * 1000

    asyncio.run(main())
    assert len(loads) == 1


def test_threads_and_loops_share_a_flight(cache: Any) -> None:
    loads: list[int] = []

    async def aload() -> str:
        loads.append(1)
        await asyncio.sleep(0.1)
        return "value"

    def load() -> str:
        loads.append(1)
        time.sleep(0.1)
        return "value"

    jobs = [lambda: cache.get_or_set("k", load), lambda: asyncio.run(cache.aget_or_set("k", aload))]
    with ThreadPoolExecutor(8) as pool:
        assert {f.result() for f in [pool.submit(job) for job in jobs * 4]} == {"value"}
    assert len(loads) == 1


def test_packed_followers_get_copies_of_their_own() -> None:
    with gbcache.Cache("1MB") as cache:
        begun, go = threading.Event(), threading.Event()

        def load() -> list[int]:
            begun.set()
            go.wait(10)
            return [1]

        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(cache.get_or_set, "k", load)
            begun.wait(10)
            two = pool.submit(cache.get_or_set, "k", load)
            time.sleep(0.05)
            go.set()
            one.result().append(2)
            assert two.result() == [1] == cache["k"]


def test_an_exception_reaches_all_and_is_not_kept(cache: Any) -> None:
    calls: list[int] = []

    def load() -> None:
        calls.append(1)
        time.sleep(0.05)
        raise LookupError("no such thing")

    def ask(_: int) -> str:
        with pytest.raises(LookupError, match="no such thing"):
            cache.get_or_set("k", load)
        return "raised"

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(ask, range(10))) == {"raised"}
    assert len(calls) < 10 and "k" not in cache and cache.get_or_set("k", lambda: 1) == 1


def test_a_load_may_ask_for_its_own_key(cache: Any) -> None:
    def outer() -> str:
        return "outer " + cache.get_or_set("k", lambda: "inner")

    assert within(10, lambda: cache.get_or_set("k", outer)) == "outer inner"
    assert cache["k"] == "outer inner"


def test_threads_that_wait_for_each_other(cache: Any) -> None:
    """A loads a, which needs b; B loads b, which needs a: one of them computes."""
    both = threading.Barrier(2)

    def load(mine: str, other: str) -> str:
        both.wait(10)
        return mine + cache.get_or_set(other, lambda: other.upper())

    def main() -> list[str]:
        with ThreadPoolExecutor(2) as pool:
            a = pool.submit(cache.get_or_set, "a", lambda: load("a", "b"))
            b = pool.submit(cache.get_or_set, "b", lambda: load("b", "a"))
            return sorted([a.result(), b.result()])

    a, b = within(10, main)
    assert a in ("aB", "abA", "aba") and b in ("bA", "baB", "bab")


def test_a_ring_of_three_threads(cache: Any) -> None:
    all_in = threading.Barrier(3)

    def load(n: int) -> int:
        all_in.wait(10)
        return 10 * n + cache.get_or_set((n + 1) % 3, lambda: (n + 1) % 3)

    def main() -> list[int]:
        with ThreadPoolExecutor(3) as pool:
            return [
                f.result()
                for f in [pool.submit(cache.get_or_set, n, lambda n=n: load(n)) for n in range(3)]
            ]

    assert len(within(10, main)) == 3


def test_a_task_and_its_children(cache: Any) -> None:
    async def child() -> str:
        return str(await cache.aget_or_set("k", lambda: asyncio.sleep(0, "child's own")))

    async def load() -> list[str]:
        return list(await asyncio.gather(child(), child()))

    async def main() -> Any:
        return await asyncio.wait_for(cache.aget_or_set("k", load), 5)

    assert asyncio.run(main()) == ["child's own", "child's own"]


def test_a_thread_with_the_leaders_context(cache: Any) -> None:
    def load() -> str:
        context, box = contextvars.copy_context(), []
        ask = lambda: box.append(cache.get_or_set("k", lambda: "thread's own"))  # noqa: E731
        thread = threading.Thread(target=context.run, args=(ask,))
        thread.start()
        thread.join(5)
        return str(box[0])

    assert within(10, lambda: cache.get_or_set("k", load)) == "thread's own"


def test_a_blocking_call_on_the_leaders_loop(cache: Any) -> None:
    async def load() -> str:
        await asyncio.sleep(0.05)
        return "loaded"

    async def main() -> tuple[str, str]:
        task = asyncio.ensure_future(cache.aget_or_set("k", load))
        await asyncio.sleep(0.01)
        direct = cache.get_or_set("k", lambda: "computed on the loop")
        return direct, await task

    assert within(10, lambda: asyncio.run(main())) == ("computed on the loop", "loaded")


CHANGES: dict[str, Callable[[Any], Any]] = {
    "set": lambda c: c.set("k", "newer"),
    "item": lambda c: c.__setitem__("k", "newer"),
    "add": lambda c: c.add("k", "newer"),
    "set_many": lambda c: c.set_many({"k": "newer"}),
    "incr": lambda c: c.incr("k"),
    "delete": lambda c: c.delete_many(["k"]),
    "pop": lambda c: c.pop("k", None),
    "clear": lambda c: c.clear(),
    "set and delete": lambda c: (c.set("k", 1), c.pop("k")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_voids_the_store(cache: Any, change: str) -> None:
    """Those who wait get what was loaded; it is not stored; who comes later starts anew."""
    begun, go, late = threading.Event(), threading.Event(), threading.Event()

    def load() -> str:
        begun.set()
        go.wait(10)
        return "old"

    def reload() -> str:
        late.set()
        return "fresh"

    with ThreadPoolExecutor(3) as pool:
        leader = pool.submit(cache.get_or_set, "k", load)
        begun.wait(10)
        follower = pool.submit(cache.get_or_set, "k", load)
        until(lambda: len(cache._flights) == 1)
        time.sleep(0.02)
        CHANGES[change](cache)
        now = cache.peek("k")
        later = pool.submit(cache.get_or_set, "k", reload).result(10)
        assert later == (now if now is not None else "fresh")
        assert late.is_set() == (now is None)
        go.set()
        assert leader.result(10) == "old"
        assert follower.result(10) in ("old", later)
    assert cache.peek("k") == later


def test_other_keys_void_nothing(cache: Any) -> None:
    def load() -> str:
        cache.set("other", 1)
        cache.delete_many(["another"])
        return "value"

    assert cache.get_or_set("k", load) == "value" == cache.peek("k")


def test_what_cannot_be_stored(cache: Any) -> None:
    if isinstance(cache, gbcache.Cache):
        assert len(cache.get_or_set("big", lambda: b"x" * 2_000_000)) == 2_000_000
        assert "big" not in cache and cache.stats().rejects == 1
        with pytest.raises(TypeError, match="would not come back"):
            cache.get_or_set("odd", object)
    with pytest.raises(ValueError, match="ttl"):
        cache.get_or_set("k", lambda: 1, ttl=-1)
    with pytest.raises(TypeError):
        cache.get_or_set([], lambda: 1)
    assert cache.get_or_set("gone", lambda: (cache.close(), "value")[1]) == "value"


def test_many_keys_many_threads(cache: Any) -> None:
    """Loads, changes and nested loads at random: every answer is one that was true."""
    import random

    stop = time.monotonic() + 0.7

    def work(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < stop:
            a, b = rng.randrange(6), rng.randrange(6)
            what = rng.random()
            if what < 0.6:
                got = cache.get_or_set(
                    a, lambda a=a, b=b: a + 0 * cache.get_or_set(b, lambda b=b: b)
                )
                assert got == a
            elif what < 0.8:
                cache.pop(a, None)
            elif what < 0.9:
                cache.set(a, a)
            else:
                cache.clear()

    def main() -> None:
        with ThreadPoolExecutor(6) as pool:
            for future in [pool.submit(work, seed) for seed in range(6)]:
                future.result()

    within(20, main)


@pytest.mark.parametrize("size", [10, 200_000])
@pytest.mark.parametrize("gone", [False, True])
def test_a_load_that_was_overtaken_leaves_nothing(size: int, gone: bool) -> None:
    """It does not land, also where nothing is in its way; a long one is written in pieces, which are given back."""

    def load() -> bytes:
        cache["k"] = 1
        if gone:
            del cache["k"]
        return b"x" * size

    with gbcache.Cache("1MB") as cache:
        for _ in range(10):
            assert len(cache.get_or_set("k", load)) == size
            assert cache.pop("k", None) == (None if gone else 1)
            assert cache.memory().parts["pending"] == 0
        cache.check()
