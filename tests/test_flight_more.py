"""Flights again: keys that compare oddly."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from test_flight import until

import gbcache


def followed(cache: Any, n: int) -> None:
    """Until so many wait for the only flight."""
    (flight,) = cache._flights.values()
    until(lambda: len(flight.waiters or ()) == n)


# --- keys that compare oddly -----------------------------------------------------------------------


@pytest.fixture
def objects() -> Iterator[Any]:
    with gbcache.ObjectCache(1000) as cache:
        yield cache
        cache.check()
        assert not cache._flights


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
