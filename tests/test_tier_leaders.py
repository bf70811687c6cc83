"""`Tiered` with `load=`: `aget_or_set` of many keys takes few threads; none waits for ever for one that is queued."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from fars import Full
from test_tier_more import made_in_time

from gbcache import Cache, Tiered, leaders


def tier_of(load: Any, most: int, monkeypatch: pytest.MonkeyPatch) -> Tiered:
    monkeypatch.setattr(leaders, "MANY", most)
    monkeypatch.setattr(leaders, "_STALL", 0.05)
    return Tiered(Cache("1MB"), Full(), load=load)


async def all_of(tier: Tiered, keys: list[Any]) -> list[Any]:
    many = [tier.aget_or_set(key, made_in_time) for key in keys]
    return await asyncio.wait_for(asyncio.gather(*many, return_exceptions=True), 20)


def running(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def test_many_leaders_with_load_have_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    far, loads = [], []

    def load(key: Any) -> Any:
        loads.append(running("gbcache-load"))
        time.sleep(0.04)
        if key % 2:
            raise KeyError(key)
        return "loaded"

    def slow(verb: str, keys: list[Any]) -> None:
        far.append(running("gbcache-far"))
        time.sleep(0.04)

    tier = tier_of(load, 40, monkeypatch)
    tier.far.hook = slow  # type: ignore[attr-defined]
    assert asyncio.run(all_of(tier, list(range(300)))) == ["loaded", "made"] * 150
    assert 1 < max(far) <= leaders.MOST and max(loads) <= 40
    assert tier.stats().loads == 300 and tier.stats().far_misses == 150


def chained(most: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Tiered, threading.Event]:
    """Of one whose loads wait for that of "k"."""
    there = threading.Event()

    def load(key: Any) -> Any:
        if key == "k":
            return "loaded"
        assert there.wait(20)
        return tier.get("k")

    tier = tier_of(load, most, monkeypatch)
    return tier, there


async def last(tier: Tiered, there: threading.Event, n: int) -> list[Any]:
    """ "k" is queued behind all others."""
    others = asyncio.create_task(all_of(tier, list(range(n))))
    loads: Any = tier._side.threads.loads  # type: ignore[attr-defined]
    while len(loads._calls) + len(loads._threads) < n:
        await asyncio.sleep(0.001)
    lead = asyncio.create_task(all_of(tier, ["k"]))
    while len(loads._calls) + len(loads._threads) < n + 1:
        await asyncio.sleep(0.001)
    there.set()
    return await others + await lead


def test_loads_that_wait_for_one_that_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    tier, there = chained(4, monkeypatch)
    assert asyncio.run(last(tier, there, 30)) == ["loaded"] * 31


def few(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no more threads than so many for `load`."""
    start, left = threading.Thread.start, [None] * count

    def starts(thread: threading.Thread) -> None:
        if thread.name == "gbcache-load":
            if not left:
                raise RuntimeError("can't start new thread")
            left.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starts)


def test_without_more_threads_loads_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(key: Any) -> Any:
        time.sleep(0.01)
        return "loaded"

    tier = tier_of(load, 100, monkeypatch)
    few(2, monkeypatch)
    assert asyncio.run(all_of(tier, list(range(50)))) == ["loaded"] * 50


def test_without_more_threads_none_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told that there are none; who waited for it does it itself, or is told too."""
    tier, there = chained(100, monkeypatch)
    few(2, monkeypatch)
    got = asyncio.run(last(tier, there, 2))
    assert isinstance(got[-1], RuntimeError) and "no thread" in str(got[-1])
    assert not tier.near._flights and not tier._side.threads.loads._calls  # type: ignore[attr-defined]
