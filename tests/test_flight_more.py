"""Flights again: keys that compare oddly."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from test_flight import until

import gbcache


async def hangs() -> Any:
    await asyncio.sleep(3600)


def followed(cache: Any, n: int) -> None:
    """Until so many wait for the only flight."""
    (flight,) = cache._flights.values()
    until(lambda: len(flight.waiters or ()) == n)


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
