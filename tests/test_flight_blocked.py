"""Calls that block an event loop while they wait for a flight: whoever then waits for what is led there waits for it,
and one of them computes."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from test_flight import MAKERS, loading, made, until, within

from gbcache import flight

cache = pytest.fixture(params=MAKERS)(made)


@pytest.fixture(autouse=True)
def all_over() -> Any:
    yield
    assert not getattr(flight, "_stuck", 0), "a loop that is held up no more"


async def load_b() -> str:
    await asyncio.sleep(1)
    return "b"


def blocks(call: Callable[[], Any], led: threading.Event, cache: Any) -> Any:
    """On a loop whose task leads "b": `call`, once "a" is led elsewhere."""

    async def main() -> tuple[Any, Any]:
        task = asyncio.ensure_future(cache.aget_or_set("b", load_b))
        await asyncio.sleep(0)
        led.set()
        until(lambda: "a" in loading(cache))
        return call(), await task

    return within(20, lambda: asyncio.run(main()))


def going(call: Callable[..., Any], *args: Any) -> Future[Any]:
    """In a thread that no test waits for which fails."""
    over: Future[Any] = Future()

    def run() -> None:
        try:
            over.set_result(call(*args))
        except BaseException as error:
            over.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return over


def stuck() -> None:
    until(lambda: flight._stuck)


def plainly(cache: Any) -> Any:
    return cache.get_or_set("a", lambda: "own a")


def within_a_load(cache: Any) -> Any:
    """Who blocks the loop leads, too."""
    return cache.get_or_set("c", lambda: plainly(cache))


blocking = pytest.mark.parametrize("call", [plainly, within_a_load])


@blocking
def test_a_thread_that_the_loop_waits_for_asks_for_what_is_led_there(cache: Any, call: Any) -> None:
    go = threading.Event()

    def load() -> Any:
        stuck()
        return cache.get_or_set("b", lambda: "b by the thread")

    other = going(lambda: go.wait(10) and cache.get_or_set("a", load))
    assert blocks(lambda: call(cache), go, cache) == ("b by the thread", "b")
    assert other.result(10) == "b by the thread"


@blocking
def test_a_task_of_another_loop(cache: Any, call: Any) -> None:
    go = threading.Event()

    async def load() -> Any:
        await asyncio.to_thread(stuck)
        return await cache.aget_or_set("b", lambda: asyncio.sleep(0, "b by the task"))

    other = going(
        lambda: go.wait(10) and asyncio.run(cache.aget_or_set("a", load)),
    )
    assert blocks(lambda: call(cache), go, cache) == ("b by the task", "b")
    assert other.result(10) == "b by the task"


@blocking
def test_in_more_steps(cache: Any, call: Any) -> None:
    """The thread it waits for waits for another one, which asks."""
    go, asked = threading.Event(), threading.Event()

    def load_a() -> Any:
        asked.set()
        return cache.get_or_set("m", lambda: "m")

    def load_m() -> Any:
        asked.wait(10)
        stuck()
        time.sleep(0.05)  # the other is waiting for it by now
        return cache.get_or_set("b", lambda: "b by the second")

    second = going(cache.get_or_set, "m", load_m)
    until(lambda: "m" in loading(cache))
    first = going(lambda: go.wait(10) and cache.get_or_set("a", load_a))
    assert blocks(lambda: call(cache), go, cache) == ("b by the second", "b")
    assert first.result(10) == second.result(10) == "b by the second"


def test_two_loops_that_block_each_other(cache: Any) -> None:
    """Each leads what the other's blocking call asks for."""
    both = threading.Barrier(2)

    async def main(mine: str, other: str) -> tuple[Any, Any]:
        task = asyncio.ensure_future(cache.aget_or_set(mine, lambda: asyncio.sleep(0.5, mine)))
        await asyncio.sleep(0)
        both.wait(10)
        return cache.get_or_set(other, lambda: "computed"), await task

    def run() -> list[Any]:
        asked = [going(asyncio.run, main(*keys)) for keys in ("ab", "ba")]
        return [one.result(15) for one in asked]

    (other_of_a, a), (other_of_b, b) = within(20, run)
    assert (a, b) == ("a", "b")
    assert sorted([other_of_a == "computed", other_of_b == "computed"]) == [False, True]


def test_who_is_in_no_circle_waits(cache: Any) -> None:
    """What the loop will come to is loaded once: by those whom nobody there waits for it is waited for."""
    go, out = threading.Event(), threading.Event()
    asked: list[Any] = []

    def load() -> str:
        stuck()
        asked.append(going(cache.get_or_set, "b", lambda: "not loaded"))
        asked.append(
            going(cache.get_or_set, "d", lambda: cache.get_or_set("b", lambda: "not loaded"))
        )
        (led,) = [one for one in cache._flights.values() if getattr(one.key, "key", one.key) == "b"]
        until(lambda: led.waiters is not None and len(led.waiters.all) == 2)
        out.set()
        return "a"

    other = going(lambda: go.wait(10) and cache.get_or_set("a", load))
    assert blocks(lambda: plainly(cache), go, cache) == ("a", "b")
    assert other.result(10) == "a" and [one.result(10) for one in asked] == ["b", "b"]
    assert out.is_set()


def test_a_handler_that_waits_where_its_loop_is_held_up(cache: Any) -> None:
    """Both waits count while the second lasts, and the first goes on to count after it."""
    go, rung = threading.Event(), threading.Event()

    def ring(*_: Any) -> None:
        if not rung.is_set():
            rung.set()
            assert cache.get_or_set("h", lambda: "not loaded") == "h"

    def strike() -> bool:
        """One signal may come just before the lock is waited for: its handler would run when that is over."""
        if not rung.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        return [len(one) for one in flight._stuck.values()] == [2]

    def load_h() -> str:
        stuck()
        until(strike)
        assert cache.get_or_set("b", lambda: "b by h") == "b by h"
        return "h"

    def load_a() -> Any:
        until(lambda: "h" in cache)
        until(lambda: [len(one) for one in flight._stuck.values()] == [1])
        return cache.get_or_set("b", lambda: "b by a")

    async def main() -> Any:
        task = asyncio.ensure_future(cache.aget_or_set("b", load_b))
        await asyncio.sleep(0)
        go.set()
        until(lambda: {"a", "h"} <= set(loading(cache)))
        return cache.get_or_set("a", lambda: "own a"), await task

    before = signal.signal(signal.SIGUSR1, ring)
    try:
        for key, load in (("h", load_h), ("a", load_a)):
            going(lambda key=key, load=load: go.wait(10) and cache.get_or_set(key, load))
        assert asyncio.run(asyncio.wait_for(main(), 15)) == ("b by a", "b")
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_is_not_held_up_by_what_blocks_its_parents_loops(cache: Any) -> None:
    go = threading.Event()

    def load() -> str:
        stuck()
        if (pid := os.fork()) == 0:
            os._exit(0 if not flight._stuck else 1)
        assert os.waitpid(pid, 0)[1] == 0
        return "a"

    other = going(lambda: go.wait(10) and cache.get_or_set("a", load))
    assert blocks(lambda: plainly(cache), go, cache) == ("a", "b")
    assert other.result(10) == "a"
