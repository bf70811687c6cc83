"""Flights again: leaders whose loop is closed or not run, keys that compare oddly, and what a context keeps alive."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from test_flight import MAKERS, made, until, within

import gbcache

cache = pytest.fixture(params=MAKERS)(made)


async def hangs() -> Any:
    await asyncio.sleep(3600)


def followed(cache: Any, n: int) -> None:
    """Until so many wait for the only flight."""
    (flight,) = cache._flights.values()
    until(lambda: flight.waiters is not None and len(flight.waiters.all) == n)


class Stopped:
    """A loop that was run until its task leads the flight of "k", and then no more."""

    def __init__(self, cache: Any) -> None:
        self.cache, self.loop = cache, asyncio.new_event_loop()
        self.task: Any = self.loop.create_task(cache.aget_or_set("k", hangs))
        self.loop.run_until_complete(asyncio.sleep(0))
        assert cache._flights

    def end(self) -> None:
        if not self.loop.is_closed():
            self.task.cancel()
            self.loop.run_until_complete(asyncio.wait([self.task]))
            self.loop.close()
        self.task._log_destroy_pending = False
        self.task = None
        gc.collect()


@pytest.fixture
def stopped(cache: Any) -> Iterator[Stopped]:
    one = Stopped(cache)
    yield one
    one.end()


def in_thread(cache: Any) -> Any:
    return cache.get_or_set("k", lambda: "own")


def in_task(cache: Any) -> Any:
    return asyncio.run(cache.aget_or_set("k", lambda: asyncio.sleep(0, "own")))


CALLERS = {"a thread": in_thread, "a task": in_task}
caller = pytest.mark.parametrize("ask", CALLERS.values(), ids=CALLERS)


# --- a loop that does not come along ---------------------------------------------------------------


@caller
def test_a_leader_whose_loop_is_closed_leads_no_more(stopped: Stopped, ask: Any) -> None:
    cache = stopped.cache
    stopped.loop.close()
    assert within(10, lambda: ask(cache)) == "own" == cache["k"], "loaded and stored, as by any"
    assert not cache._flights


def test_a_leader_whose_loop_is_closed_is_void(stopped: Stopped) -> None:
    """Whatever still runs its coroutine, what it loads was not told of what changed."""
    cache, coroutine = stopped.cache, stopped.task.get_coro()
    stopped.loop.close()
    assert within(10, lambda: in_thread(cache)) == "own"
    del cache["k"]
    with pytest.raises((StopIteration, asyncio.CancelledError)):
        coroutine.throw(asyncio.CancelledError)
    assert "k" not in cache


@caller
def test_a_loop_that_is_not_run_is_not_waited_for(stopped: Stopped, ask: Any) -> None:
    assert within(10, lambda: ask(stopped.cache)) == "own"


def test_a_loop_that_this_thread_would_have_to_run(cache: Any) -> None:
    """... and that is run again: its leader's value lands, unless another's is there."""

    def main() -> None:
        for other in (None, "newer"):
            loop, go = asyncio.new_event_loop(), asyncio.Event()

            async def load(go: Any = go) -> str:
                await go.wait()
                return "leader's"

            task = loop.create_task(cache.aget_or_set("k", load))
            loop.run_until_complete(asyncio.sleep(0))
            assert cache.get_or_set("k", lambda: "own") == "own" and "k" not in cache
            if other is not None:
                cache["k"] = other
            go.set()
            assert loop.run_until_complete(task) == "leader's"
            assert cache["k"] == (other or "leader's")
            loop.close()
            cache.clear()

    within(10, main)


class Running:
    """A loop in a thread, whose task leads the flight of "k" until it is told to stop, or to end."""

    def __init__(self, cache: Any) -> None:
        self.loop, self.go = asyncio.new_event_loop(), asyncio.Event()
        self.cache, self.loads = cache, 0
        self.task: Any = self.loop.create_task(cache.aget_or_set("k", self.load))
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        until(lambda: self.loads)

    async def load(self) -> str:
        self.loads += 1
        await self.go.wait()
        return "leader's"

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def end(self) -> None:
        if self.thread.is_alive():
            self.stop()
        Stopped.end(self)  # type: ignore[arg-type]


@pytest.fixture
def running(cache: Any) -> Iterator[Running]:
    one = Running(cache)
    yield one
    one.end()


def following(pool: ThreadPoolExecutor, running: Running) -> list[Future[Any]]:
    asked = [pool.submit(ask, running.cache) for ask in CALLERS.values()]
    followed(running.cache, 2)
    return asked


def test_who_waits_as_a_loop_is_stopped(running: Running) -> None:
    with ThreadPoolExecutor(2) as pool:
        asked = following(pool, running)
        running.stop()
        assert [one.result(10) for one in asked] == ["own", "own"]
    running.go.set()
    assert running.loop.run_until_complete(running.task) == "leader's" == running.cache["k"]


def test_who_waits_as_a_loop_is_closed(running: Running) -> None:
    with ThreadPoolExecutor(2) as pool:
        asked = following(pool, running)
        running.stop()
        running.loop.close()
        assert [one.result(10) for one in asked] == ["own", "own"]
        assert in_thread(running.cache) == "own"


def test_one_who_asks_lets_all_out_who_wait_for_a_closed_loop(running: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(in_thread, running.cache)
        followed(running.cache, 1)
        running.stop()
        running.loop.close()
        assert within(10, lambda: in_thread(running.cache)) == asked.result(10) == "own"


def test_who_waits_long_for_a_loop_that_runs_is_told(running: Running) -> None:
    """To look at it now and then changes nothing: one load, and what was loaded, though it is void."""
    with ThreadPoolExecutor(2) as pool:
        asked = following(pool, running)
        running.cache["k"] = "newer"
        del running.cache["k"]
        time.sleep(0.4)
        followed(running.cache, 2)
        running.loop.call_soon_threadsafe(running.go.set)
        assert [one.result(10) for one in asked] == ["leader's", "leader's"]
    assert running.loads == 1 and "k" not in running.cache


def test_a_wait_on_two_legs(running: Running) -> None:
    """Who waits for one that waits for a loop that is stopped."""
    cache = running.cache
    inner = threading.Event()

    def load() -> str:
        inner.set()
        return "through " + in_thread(cache)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(cache.get_or_set, "through", load)
        inner.wait(10)
        two = pool.submit(cache.get_or_set, "through", load)
        time.sleep(0.05)
        running.stop()
        assert one.result(10) == two.result(10) == "through own"


def test_a_task_that_has_no_memory_to_look_again(running: Running) -> None:
    """... does not wait for ever: it computes."""
    short = threading.Event()

    async def main() -> Any:
        loop: Any = asyncio.get_running_loop()
        later = loop.call_later

        def call(delay: float, what: Any, *args: Any) -> Any:
            if short.is_set():
                raise MemoryError
            return later(delay, what, *args)

        loop.call_later = call
        return await running.cache.aget_or_set("k", lambda: asyncio.sleep(0, "own"))

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(asyncio.run, main())
        followed(running.cache, 1)
        short.set()
        assert asked.result(10) == "own"


# --- keys that compare oddly -----------------------------------------------------------------------


class Key:
    """Knows only its like, and counts its hashes."""

    def __init__(self, x: int) -> None:
        self.x, self.hashes = x, 0

    def __hash__(self) -> int:
        self.hashes += 1
        return hash(self.x)

    def __eq__(self, other: Any) -> bool:
        return bool(self.x == other.x)


@pytest.fixture
def objects() -> Iterator[Any]:
    with gbcache.ObjectCache(1000) as cache:
        yield cache
        cache.check()
        assert not cache._flights


def test_followers_of_a_cancelled_leader_meet_no_strange_key(objects: Any) -> None:
    async def load() -> int:
        return 7  # before the next one looks

    async def main() -> list[Any]:
        leader = asyncio.ensure_future(objects.aget_or_set(Key(1), hangs))
        await asyncio.sleep(0)
        rest = [asyncio.ensure_future(objects.aget_or_set(Key(1), load)) for _ in range(4)]
        await asyncio.sleep(0)
        leader.cancel()
        return list(await asyncio.gather(*rest))

    assert asyncio.run(main()) == [7] * 4


def test_followers_of_an_interrupted_leader_meet_no_strange_key(objects: Any) -> None:
    begun = threading.Event()

    def load() -> Any:
        begun.set()
        followed(objects, 3)
        signal.raise_signal(signal.SIGINT)

    def follow() -> Any:
        begun.wait(10)
        return objects.get_or_set(Key(1), lambda: 7)

    with ThreadPoolExecutor(3) as pool:
        rest = [pool.submit(follow) for _ in range(3)]
        with pytest.raises(KeyboardInterrupt):
            objects.get_or_set(Key(1), load)
        assert [one.result(10) for one in rest] == [7] * 3


def test_a_call_that_takes_over_hashes_its_key_no_more() -> None:
    held: list[Any] = []

    @gbcache.memoize
    async def f(key: Key) -> int:
        if not held:
            held.append(key)
            await hangs()
        return 7

    async def main() -> list[int]:
        keys = [Key(1) for _ in range(4)]
        leader, *rest = [asyncio.ensure_future(f(key)) for key in keys]
        await asyncio.sleep(0)
        leader.cancel()
        assert await asyncio.gather(*rest) == [7] * 3
        return [key.hashes for key in keys]

    assert asyncio.run(main()) == [1] * 4
    f.cache.close()


def test_one_nan_is_one_flight(objects: Any) -> None:
    nan, calls = float("nan"), []

    def load() -> str:
        calls.append(1)
        followed(objects, 3)
        return "loaded"

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(objects.get_or_set, nan, load) for _ in range(4)]
        assert [one.result(20) for one in asked] == ["loaded"] * 4
    assert len(calls) == 1


def test_a_change_of_nan_voids_its_load(objects: Any) -> None:
    nan = float("nan")

    def load() -> str:
        objects[nan] = "newer"
        del objects[nan]
        return "older"

    assert objects.get_or_set(nan, load) == "older" and nan not in objects


# --- what stays alive ------------------------------------------------------------------------------


class Value:
    pass


class Oops(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("followers", [0, 3])
def test_a_task_born_within_a_load_keeps_nothing_of_it(
    objects: Any, fails: bool, followers: int
) -> None:
    """Nor does a context: not the value, nor the error and what its frames hold."""
    refs: list[Any] = []
    kept: list[Any] = []

    async def load() -> Value:
        kept.append(asyncio.ensure_future(asyncio.sleep(3600)))
        kept.append(contextvars.copy_context())
        await asyncio.sleep(0)
        value = Value()
        refs.append(weakref.ref(value))
        if fails:
            raise Oops
        return value

    async def main() -> None:
        asked = [
            asyncio.ensure_future(objects.aget_or_set("k", load)) for _ in range(followers + 1)
        ]
        done = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(one) for one in done} == {Oops if fails else Value}
        del done, asked
        objects.clear()
        await asyncio.sleep(0)
        gc.collect()
        assert len(refs) == 1 and refs[0]() is None
        kept[0].cancel()

    asyncio.run(main())


def test_a_context_keeps_no_loop(objects: Any) -> None:
    kept: list[Any] = []

    async def load() -> None:
        kept.append(contextvars.copy_context())

    loop = asyncio.new_event_loop()
    loop.run_until_complete(objects.aget_or_set("k", load))
    loop.close()
    ref = weakref.ref(loop)
    del loop
    gc.collect()
    assert ref() is None and kept
