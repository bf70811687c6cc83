"""The ends of a flight: a leader that is cancelled, interrupted or forked from, followers that give up, what stays."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from test_flight import MAKERS, made, until, within

import gbcache

cache = pytest.fixture(params=MAKERS)(made)


def test_a_cancelled_leader_hands_over(cache: Any) -> None:
    calls: list[str] = []

    async def load() -> str:
        calls.append("load")
        await asyncio.sleep(0.05 if len(calls) > 1 else 60)
        return "value"

    async def main() -> list[str]:
        leader = asyncio.ensure_future(cache.aget_or_set("k", load))
        await asyncio.sleep(0.01)
        rest = [asyncio.ensure_future(cache.aget_or_set("k", load)) for _ in range(5)]
        await asyncio.sleep(0.01)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        return list(await asyncio.wait_for(asyncio.gather(*rest), 5))

    assert asyncio.run(main()) == ["value"] * 5 and len(calls) == 2


def test_a_cancelled_follower_cancels_nobody(cache: Any) -> None:
    async def load() -> str:
        await asyncio.sleep(0.05)
        return "value"

    async def main() -> list[Any]:
        tasks = [asyncio.ensure_future(cache.aget_or_set("k", load)) for _ in range(3)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    one, two, three = asyncio.run(main())
    assert one == three == "value" and isinstance(two, asyncio.CancelledError)


def _futures() -> int:
    gc.collect()
    return sum(type(each) is asyncio.Future for each in gc.get_objects())


def test_followers_that_give_up_leave_nothing(cache: Any) -> None:
    """A loader that hangs may be asked for ever, by those who have no time."""

    async def main() -> None:
        go = asyncio.Event()
        leader = asyncio.ensure_future(cache.aget_or_set("k", go.wait))
        await asyncio.sleep(0)
        before = _futures()
        for _ in range(10):
            tasks = [asyncio.ensure_future(cache.aget_or_set("k", go.wait)) for _ in range(20)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        del tasks, task
        assert _futures() <= before + 2
        go.set()
        assert await leader

    asyncio.run(main())


def test_followers_that_give_up_as_it_ends(cache: Any) -> None:
    """In another thread: who did not give up is told, each time."""

    async def one(i: int, go: threading.Event) -> None:
        tasks = [asyncio.ensure_future(cache.aget_or_set(i, None)) for _ in range(9)]
        await asyncio.sleep(0)
        go.set()
        for task in tasks[::2]:
            await asyncio.sleep(0)
            task.cancel()
        done, late = await asyncio.wait(tasks, timeout=5)
        assert not late and sum(task.cancelled() for task in done) <= 5
        assert {task.result() for task in done if not task.cancelled()} == {i}

    def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            for i in range(100):
                go, led = threading.Event(), threading.Event()

                def load(i: int = i, go: Any = go, led: Any = led) -> int:
                    led.set()
                    go.wait(5)
                    return i

                leader = pool.submit(cache.get_or_set, i, load)
                led.wait(5)
                asyncio.run(one(i, go))
                assert leader.result() == i

    within(30, main)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_follower_whose_loop_cannot_be_told_is_told_again(
    cache: Any, error: type[BaseException]
) -> None:
    async def main() -> list[str]:
        loop: Any = asyncio.get_running_loop()
        plain, fails = loop.call_soon_threadsafe, [error, None, error]

        def call(*args: Any) -> Any:
            if fails and (raised := fails.pop()) is not None:
                raise raised
            return plain(*args)

        go = asyncio.Event()

        async def load() -> str:
            await go.wait()
            loop.call_soon_threadsafe = call
            return "value"

        tasks = [asyncio.ensure_future(cache.aget_or_set("k", load)) for _ in range(4)]
        await asyncio.sleep(0)
        go.set()
        got = await asyncio.wait_for(asyncio.gather(*tasks), 5)
        del loop.call_soon_threadsafe
        assert not fails
        return got

    assert asyncio.run(main()) == ["value"] * 4


def test_an_interrupt_hands_over(cache: Any) -> None:
    """Ctrl-C in the leader is the leader's; a follower takes over."""
    begun = threading.Event()
    calls: list[int] = []

    def load() -> str:
        calls.append(1)
        begun.set()
        if len(calls) == 1:
            until(lambda: follower.running())
            time.sleep(0.05)
            signal.raise_signal(signal.SIGINT)
        return "value"

    def follow() -> Any:
        begun.wait(10)
        return cache.get_or_set("k", load)

    with ThreadPoolExecutor(1) as pool:
        follower = pool.submit(follow)
        with pytest.raises(KeyboardInterrupt):
            cache.get_or_set("k", load)
        assert follower.result(10) == "value" and len(calls) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_does_not_wait_for_the_parents_threads(cache: Any) -> None:
    begun, go = threading.Event(), threading.Event()

    def load() -> str:
        begun.set()
        go.wait(20)
        return "parent's"

    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(cache.get_or_set, "k", load)
        begun.wait(10)
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            os._exit(
                0 if cache.get_or_set("k", lambda: "child's") == "child's" == cache["k"] else 1
            )
        status = os.waitpid(child, 0)[1]
        go.set()
        assert status == 0 and leader.result(10) == "parent's" == cache["k"]


def test_nothing_outlives_a_flight() -> None:
    class Value:
        pass

    with gbcache.ObjectCache() as cache:
        ref = weakref.ref(cache.get_or_set("k", Value))
        assert ref() is not None
        cache.clear()
        gc.collect()
        assert ref() is None
