"""Those who watch: how they wait, wake, filter, and end."""

from __future__ import annotations

import contextlib
import gc
import resource
import threading
import time
import weakref
from typing import Any

import pytest
from heard import HANG, both, descriptors, in_thread, joined, pairs, told

import gbcache
from gbcache import Event


@both
def test_a_watch_waits_for_the_next_event(make: Any) -> None:
    cache = make()
    with cache.watch() as watch:
        asleep = threading.Event()

        def write() -> None:
            asleep.wait()
            for i in range(100):
                cache[i] = i
                time.sleep(0.0005 if i % 7 == 0 else 0)

        thread = in_thread(write)
        asleep.set()
        assert [next(watch).key for _ in range(100)] == list(range(100))
        joined(thread)


@both
def test_read_gives_at_most_so_many_and_iterating_goes_on_where_it_stopped(make: Any) -> None:
    cache = make(room=4000)
    with cache.watch() as watch:
        cache.update((i, i) for i in range(3000))
        assert [e.key for e in watch.read(5)] == [0, 1, 2, 3, 4]
        assert next(watch).key == 5
        assert [e.key for e in watch.read(2, timeout=0)] == [6, 7], (
            "none that was taken and not given"
        )
        assert [e.key for _, e in zip(range(10), watch, strict=False)] == list(range(8, 18))
        rest: list[Event] = []
        while events := watch.read(1000, timeout=0):
            assert len(events) <= 1000
            rest += events
        assert [e.key for e in rest] == list(range(18, 3000))


@both
def test_read_waits_as_long_as_it_was_told_to(make: Any) -> None:
    """Whatever rang before: an earlier read that gave up, an event the filter rejects."""
    cache = make()
    with cache.watch(prefix="a") as watch:
        assert not watch.read(timeout=0.001)
        cache["a"] = 1
        assert pairs(watch.read()) == [("set", "a")]
        before = time.monotonic()
        assert not watch.read(timeout=0.05) and time.monotonic() - before >= 0.05, "rung before"

        def write() -> None:
            time.sleep(0.05)
            cache["rejected"] = 1
            time.sleep(0.05)
            cache["a"] = 2

        thread = in_thread(write)
        assert pairs(watch.read(timeout=HANG)) == [("replace", "a")], "rung for another key"
        joined(thread)


@both
def test_a_closed_watch_gives_nothing_more(make: Any) -> None:
    """What was not read is dropped; what others have recorded later is not its."""
    cache = make()
    watch, other = cache.watch(), cache.watch()
    cache["k"] = 1
    assert not watch.closed
    watch.close()
    watch.close()
    cache["k"] = 2
    assert watch.closed and not watch.read(timeout=0) and list(watch) == [] == list(watch.read())
    assert pairs(told(other)) == [("set", "k"), ("replace", "k")]
    assert "closed" in repr(watch) and "closed" not in repr(other)


@both
def test_closing_from_another_thread_wakes(make: Any) -> None:
    cache = make()
    for way in (lambda w: w.read(), lambda w: list(w), lambda w: w.read(timeout=600)):
        watch, done = cache.watch(), []
        thread = in_thread(lambda watch=watch, way=way, done=done: done.append(list(way(watch))))
        time.sleep(0.02)
        watch.close()
        joined(thread)
        assert done == [[]]


@both
def test_closing_the_cache_ends_a_watch_after_what_was_recorded(make: Any) -> None:
    cache = make(room=5000)
    early, late = cache.watch(), cache.watch()
    got: list[Any] = []
    thread = in_thread(lambda: got.extend(early))
    cache.update((i, i) for i in range(2000))
    cache.close()
    joined(thread)
    assert [e.key for e in got] == list(range(2000)) == [e.key for e in late]
    assert early.closed and late.closed and not late.read() and not late.read(timeout=1)
    for use in (cache.watch, lambda: cache.subscribe(print), lambda: list(cache.changes())):
        with pytest.raises(gbcache.ClosedError):
            use()


@both
def test_a_dropped_watch_leaves_nothing_behind(make: Any) -> None:
    cache = make()
    kept = cache.watch()
    before = descriptors()
    watches = [cache.watch(kinds="set") for _ in range(20)]
    assert descriptors() > before
    gone = [weakref.ref(w) for w in watches]
    watches.clear()
    assert descriptors() == before and not any(ref() for ref in gone)
    kept.close()
    cache["nobody"] = 1
    assert [*cache.changes()] == [], "nobody listens: nothing is recorded"


@both
def test_a_watch_is_not_needed_to_keep_a_cache(make: Any) -> None:
    cache = make()
    watch = cache.watch()
    cache["k"] = 1
    del cache
    gc.collect()
    assert pairs(told(watch)) == [("set", "k")]


@both
def test_as_many_readers_sleep_as_there_are_descriptors(make: Any) -> None:
    cache = make()
    with cache.subscribe(print):
        pass  # the thread's own descriptor stays
    before = descriptors()
    watches = [cache.watch() for _ in range(200)]
    threads = [in_thread(watch.read) for watch in watches[::20]]
    for watch in watches[1::2]:
        watch.close()
    time.sleep(0.02)
    cache["k"] = 1
    joined(*threads)
    assert [told(w) for w in watches[1::2]] == [[]] * 100
    assert sum(pairs(told(w)) == [("set", "k")] for w in watches[::2]) == 90
    with resources(descriptors() + 2):
        for ask in (cache.watch, lambda: cache.subscribe(lambda event: None, delivery="asyncio")):
            ours = list[Any]()
            with pytest.raises((OSError, RuntimeError)):
                for _ in range(9):
                    ours.append(ask())
    del ours, watch, watches
    assert descriptors() == before and not cache._hub._subscribers


@contextlib.contextmanager
def resources(most: int) -> Any:
    """No descriptor beyond so many."""
    was = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, was[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, was)
