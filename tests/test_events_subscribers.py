"""Subscribers: who is told what, by which thread, in which order, and until when."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from typing import Any

import pytest
from heard import HANG, SHORT, both, descriptors, pairs, until

import gbcache
from gbcache import Event


def dispatching() -> bool:
    return any(t.name == "gbcache-events" for t in threading.enumerate())


def none_is_left() -> None:
    """A subscriber that another test left in a cycle is served until it is collected."""
    gc.collect()
    assert until(lambda: not dispatching(), 5), "another test left a cache with a subscriber"


DELIVERIES = pytest.mark.parametrize("delivery", ["thread", "inline"])


@both
@DELIVERIES
def test_a_subscriber_is_told_everything_in_order(make: Any, delivery: str) -> None:
    cache, got = make(room=5000), []
    with cache.subscribe(got.append, delivery=delivery, values=True) as sub:
        for i in range(600):
            cache[i % 5] = i
            if delivery == "inline":
                assert got[-1].value == i, "before the call returns"
        assert until(lambda: len(got) == 600)
        assert [e.value for e in got] == list(range(600)) and [e.seq for e in got] == [
            *range(1, 601)
        ]
        assert (sub.delivered, sub.lost, sub.errors, sub.closed) == (600, 0, 0, False)
    cache["after"] = 1
    time.sleep(0.01)
    assert sub.closed and len(got) == 600 == sub.delivered and cache.stats().callback_errors == 0


@both
def test_one_thread_tells_all_and_ends_with_the_last(make: Any) -> None:
    none_is_left()
    caches, who = [make() for _ in range(3)], set()
    subs = [c.subscribe(lambda event: who.add(threading.get_ident())) for c in caches for _ in "ab"]
    for cache in caches:
        cache["k"] = 1
    assert until(lambda: all(s.delivered == 1 for s in subs)) and len(who) == 1
    assert threading.get_ident() not in who and dispatching()
    for sub in subs:
        sub.close()
        time.sleep(0.01)  # it sleeps
    assert until(lambda: not dispatching(), 5), "nobody is told: no thread"
    with caches[0].subscribe(lambda event: who.clear()):
        caches[0]["k"] = 2
        assert until(lambda: not who)


@both
def test_the_thread_ends_with_the_last_cache(make: Any) -> None:
    none_is_left()
    for end in ("close", "drop"):
        cache = make()
        cache.subscribe(lambda event: None)
        cache["k"] = 1
        if end == "close":
            cache.close()
        del cache
        # again: the thread may have been in the midst of a turn
        assert until(lambda: gc.collect() >= 0 and not dispatching(), 5), end


@both
@DELIVERIES
def test_what_a_filter_rejects_is_no_call(make: Any, delivery: str) -> None:
    cache = make(room=5_000)
    calls: dict[str, list[Any]] = {"user:": [], "delete": []}
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            cache.subscribe(calls["user:"].append, prefix="user:", delivery=delivery)
        )
        stack.enter_context(
            cache.subscribe(calls["delete"].append, kinds="delete", delivery=delivery)
        )
        for i in range(2000):
            cache[f"other:{i % 10}"] = i
        cache["user:1"] = 1
        del cache["user:1"]
        assert until(lambda: len(calls["user:"]) == 2 and len(calls["delete"]) == 1)
    assert pairs(calls["user:"]) == [("set", "user:1"), ("delete", "user:1")]


@both
@DELIVERIES
def test_each_subscriber_has_its_own_pace_and_wishes(make: Any, delivery: str) -> None:
    cache, got = make(), {name: [] for name in ("all", "set", "values")}
    with (
        cache.subscribe(got["all"].append, delivery=delivery),
        cache.subscribe(got["set"].append, kinds="set", delivery=delivery),
        cache.subscribe(got["values"].append, values=True, delivery=delivery),
    ):
        cache["k"], cache["k"] = 1, 2
        assert until(lambda: len(got["all"]) == len(got["values"]) == 2 and got["set"])
        assert [(e.value, e.old) for e in got["values"]] == [(1, None), (2, 1)]
        assert [(e.value, e.old) for e in got["all"]] == [(None, None)] * 2


@both
@DELIVERIES
def test_weak_keeps_nothing_alive(make: Any, delivery: str) -> None:
    cache, got = make(), []

    class Listener:
        def hear(self, event: Event) -> None:
            got.append(event.key)

    def function(event: Event) -> None:
        got.append(event.key)

    listener = Listener()
    subs = [cache.subscribe(fn, weak=True, delivery=delivery) for fn in (listener.hear, function)]
    cache["k"] = 1
    assert until(lambda: got == ["k", "k"])
    del listener, function
    gc.collect()
    cache["gone"] = 1
    assert until(lambda: all(s.closed for s in subs)) and got == ["k", "k"]
    assert cache.stats().callback_errors == 0


@both
@DELIVERIES
def test_a_subscriber_may_close_itself_and_others_and_subscribe(make: Any, delivery: str) -> None:
    cache = make()
    got: list[tuple[str, Any]] = []
    subs: dict[str, Any] = {}

    def once(event: Event) -> None:
        got.append(("once", event.key))
        subs["once"].close()
        subs["other"].close()
        subs["new"] = cache.subscribe(lambda e: got.append(("new", e.key)), delivery=delivery)

    subs["once"] = cache.subscribe(once, delivery=delivery)
    subs["other"] = cache.subscribe(lambda e: got.append(("other", e.key)), delivery=delivery)
    cache["a"] = 1
    assert until(lambda: "new" in subs)
    cache["b"] = 1
    assert until(lambda: ("new", "b") in got)
    assert [g for g in got if g[0] != "other"] == [("once", "a"), ("new", "b")]
    assert ("other", "b") not in got and subs["once"].closed and subs["other"].closed


@both
@DELIVERIES
def test_what_was_recorded_before_the_close_is_delivered(make: Any, delivery: str) -> None:
    cache, got = make(room=2000), []
    slow = threading.Event()
    sub = cache.subscribe(
        lambda e: (delivery == "thread" and slow.wait(HANG), got.append(e.key)), delivery=delivery
    )
    cache.update((i, i) for i in range(1000))
    try:
        cache.close()
    finally:
        slow.set()
    del cache
    gc.collect()
    assert until(lambda: len(got) == 1000) and got == list(range(1000)) and sub.lost == 0


@both
@DELIVERIES
def test_a_subscriber_may_close_the_cache(make: Any, delivery: str) -> None:
    cache, got = make(), []

    def hear(event: Event) -> None:
        got.append(event.key)
        cache.close()

    sub = cache.subscribe(hear, delivery=delivery)
    cache["a"] = 1
    assert until(lambda: cache.closed) and got == ["a"] and sub.errors == 0


def test_open_and_close_leak_no_descriptor_and_no_thread() -> None:
    def cycle(delivery: Any, how: int) -> None:
        cache = (
            gbcache.Cache("100kB")
            if how % 2 or not hasattr(gbcache.ObjectCache, "_cursor")
            else gbcache.ObjectCache()
        )
        watch, sub = cache.watch(), cache.subscribe(lambda event: None, delivery=delivery)
        cache["k"] = 1
        for end in (sub.close, watch.close, cache.close)[how % 3 :: 1 if how % 5 else -1]:
            end()

    for how in range(3):
        cycle("thread", how)
    before, threads = descriptors(), threading.active_count()
    for how in range(60 if SHORT else 200):
        cycle("thread" if how % 4 else "inline", how)
    assert descriptors() == before and until(lambda: threading.active_count() <= threads)
