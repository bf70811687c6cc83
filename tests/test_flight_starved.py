"""Whoever waits for a flight, or ends one, gives the graph of all flights back, wherever it lacks memory: it is every
thread's. And of what it made nothing is left."""

from __future__ import annotations

import gc
import importlib.util
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from children import isolated

from gbcache import Cache, ObjectCache, flight

pytestmark = [
    pytest.mark.skipif(not importlib.util.find_spec("_testcapi"), reason="has set_nomemory"),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer's allocator is there"),
]
ENOUGH = 200
"""Allocations; a call makes some ten."""


def led() -> flight.Flight:
    """By another thread."""
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(flight._start()[0]))
    thread.start()
    thread.join()
    one: flight.Flight = made[0]
    one[0] = 0
    return one


def follows() -> Callable[[], object]:
    one, waiter = led(), threading.Lock()
    return lambda: flight._follow(one, waiter, None)


def follows_what_is_over() -> Callable[[], object]:
    one, waiter = led(), threading.Lock()
    one.ended = True
    return lambda: flight._follow(one, waiter, None)


def waited() -> Callable[[], object]:
    one, waiter = led(), threading.Lock()
    flight._follow(one, waiter, None)
    return lambda: flight._waited(one, waiter, None)


def settles() -> Callable[[], object]:
    one = led()
    flight._follow(one, threading.Lock(), None)
    return lambda: flight._settle(one, 1)


@pytest.mark.parametrize("make", [follows, follows_what_is_over, waited, settles])
@isolated
def test_wherever_memory_is_short(make: Callable[[], Callable[[], object]]) -> None:
    import _testcapi

    failed = 0
    make()()
    gc.collect()
    gc.disable()
    for n in range(ENOUGH):
        call = make()
        _testcapi.set_nomemory(n, n + 1)
        try:
            call()
        except (MemoryError, SystemError):  # which some interpreters make of it
            failed += 1
        finally:
            _testcapi.remove_mem_hooks()
        assert not flight._graph._is_owned(), f"place {n}: no other thread ever leads or waits"  # type: ignore[attr-defined]
        assert not flight._open
        del call
    gc.collect()
    left = [one for one in gc.get_objects() if isinstance(one, (flight.Waiters, flight.Flight))]
    assert not left, f"{len(left)} are left"
    assert failed > 1 or make is settles, "nothing lacked memory"  # that one makes no object


@pytest.mark.parametrize("make", [lambda: Cache("1MB"), lambda: ObjectCache(max_entries=9)])
@isolated
def test_a_change_without_memory_voids_what_is_loaded(make: Any) -> None:
    """Or it is not made. The flight is found by its key's hash, of which an object is made."""
    import _testcapi

    key, went = "k" * 9, 0

    def pops(cache: Any, n: int, raised: list[int]) -> int:
        pop = cache.pop
        _testcapi.set_nomemory(n, 0)
        try:
            pop(key, None)
        except MemoryError:
            raised.append(n)
        finally:
            _testcapi.remove_mem_hooks()
        return 1

    for n in range(ENOUGH):
        cache, raised = make(), []
        cache.get_or_set(key, partial(pops, cache, n, raised))
        went += not raised
        assert raised or key not in cache, f"place {n}: what was loaded before is kept"
        assert not cache._flights
    assert went
