"""What is kept of a cache's events: replay, loss, the budget it lies in."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from heard import both, in_thread, joined, pairs, told

from gbcache import Cache, Event, Kind

# --- what was recorded ---------------------------------------------------------------------------


@both
def test_changes_are_replayed_from_birth_where_events_were_asked_for(make: Any) -> None:
    cache = make(room=1000)
    cache.update((i, i) for i in range(5))
    del cache[2]
    assert [(e.seq, e.key) for e in cache.changes()] == [
        (1, 0),
        (2, 1),
        (3, 2),
        (4, 3),
        (5, 4),
        (6, 2),
    ]
    assert [e.seq for e in cache.changes(since=4)] == [5, 6]
    assert pairs(cache.changes(kinds="delete")) == [("delete", 2)]
    assert [*cache.changes(6)] == [] == [*cache.changes(prefix="x")]
    for since in (600, -1):  # of another cache, or of this one before a restart
        with pytest.raises(ValueError, match="number of the last event"):
            cache.changes(since)
    with cache.watch(since=3) as watch:
        cache["new"] = 1
        assert [e.seq for e in told(watch)] == [4, 5, 6, 7]


@both
def test_changes_end_with_the_last_of_when_they_were_asked_for(make: Any) -> None:
    cache = make(room=1000)
    cache.update((i, i) for i in range(5))
    changes = cache.changes()
    cache["later"] = 1
    assert [e.key for e in changes] == [0, 1, 2, 3, 4]


@both
@pytest.mark.parametrize("kinds", [None, "replace"])
def test_changes_that_are_overrun_say_so(make: Any, kinds: str | None) -> None:
    """Also where what is lost goes on beyond the last of when they were asked for."""
    cache = make(room=3000)
    for i in range(2900):
        cache["k"] = i
    changes = cache.changes(kinds=kinds)
    got = [next(changes)]
    for i in range(9000):
        cache["k"] = i
    got += changes
    assert [event.kind for event in got].count("lost") == 1 and got[-1].kind == "lost"
    assert got[-1].seq == 2900 == got[-2].seq + got[-1].value
    assert len(got) - 1 + got[-1].value == 2900 - (kinds is not None), "each told, or told lost"
    overrun = cache.changes()
    for i in range(9000):
        cache["k"] = i
    (lost,) = overrun
    assert (lost.kind, lost.seq, lost.value) == ("lost", 11900, 11900)


@both
def test_without_events_nothing_is_recorded_before_somebody_reads(make: Any) -> None:
    cache = make()
    cache["before"] = 1
    assert [*cache.changes()] == [] and cache.memory().parts.get("ring", 0) == 0
    with cache.watch() as watch:
        cache["k"] = 1
        assert pairs(told(watch)) == pairs(cache.changes()) == [("set", "k")]
    cache["nobody listens"] = 1
    assert pairs(cache.changes()) == [("set", "k")]
    with cache.watch(since=0):
        cache["again"] = 1
        assert [(e.seq, e.key) for e in cache.changes()] == [(1, "k"), (2, "again")]


@both
def test_a_kind_nobody_wants_takes_no_number(make: Any) -> None:
    cache = make()
    with cache.watch(kinds=["delete"]) as watch:
        for _ in range(3):
            cache["k"] = 1
            del cache["k"]
        assert [e.seq for e in told(watch)] == [1, 2, 3]


@both
def test_the_late_are_told_first_what_was_lost(make: Any) -> None:
    cache = make(room=500)
    for i in range(5000):
        cache["k"] = i
    first, *rest = cache.changes()
    assert first.kind is Kind.LOST and first.key is None is first.old and first.at == 0.0
    assert first.value + len(rest) == 5000 and first.seq == first.value
    assert [e.seq for e in rest] == list(range(first.seq + 1, 5001))
    assert next(iter(cache.changes(since=4998))).seq == 4999
    assert next(iter(cache.changes(since=10))).value == first.value - 10


@both
def test_readers_at_any_speed_lose_nothing_untold(make: Any) -> None:
    cache = make(room=500)
    watches = [cache.watch() for _ in range(4)]
    speeds = (1, 7, 900, 20_000)
    got: list[list[Event]] = [[] for _ in speeds]
    for i in range(6000):
        cache[i % 50] = i
        for n, speed in enumerate(speeds):
            if i % speed == speed - 1:
                got[n] += told(watches[n])
    for events, watch in zip(got, watches, strict=True):
        events += told(watch)
        lost = [e for e in events if e.kind == "lost"]
        assert sum(e.value for e in lost) + len(events) - len(lost) == 6000 == events[-1].seq
        for before, event in itertools.pairwise([Event(0, Kind.SET, 0, 0, 0, 0.0), *events]):
            assert event.seq == before.seq + (event.value if event.kind == "lost" else 1)
    assert [sum(e.kind == "lost" for e in events) for events in got][:2] == [0, 0]
    assert any(e.kind == "lost" for e in got[3])


@both
def test_one_lost_however_filtered(make: Any) -> None:
    cache = make(room=500)
    with cache.watch(kinds="delete", prefix="nobody") as watch, cache.watch():
        for i in range(5000):
            cache["k"] = i
        events = told(watch)
        assert [e.kind for e in events] == [Kind.LOST] and 0 < events[0].value < 5000


def test_the_ring_lies_in_the_budget_and_the_parts_sum_up() -> None:
    with Cache("1MB", events="256KiB") as cache:
        for i in range(3000):
            cache[i] = b"x" * 500
        memory = cache.memory()
        assert 256 * 1024 - 8 <= memory.parts["ring"] <= 256 * 1024 + 128
        assert sum(memory.parts.values()) == memory.total <= cache.max_bytes
        assert cache.stats().used_bytes <= 1_000_000
        cache.check()


def test_the_first_reader_of_a_full_cache_makes_room_for_the_ring() -> None:
    with Cache("400kB") as cache:
        for i in range(1000):
            cache[i] = b"x" * 900
        before = list(cache)
        with cache.watch() as watch:
            assert list(cache) == before[-len(cache) :] and 200 < len(cache) < len(before)
            cache["k"] = 1
            assert ("set", "k") in pairs(told(watch))
            memory = cache.memory()
            assert memory.parts["ring"] > 0 and sum(memory.parts.values()) == memory.total
        cache.check()


def test_a_ring_that_does_not_fit_is_refused_with_the_size_that_does() -> None:
    with pytest.raises(ValueError, match="events"):
        Cache("100kB", events="90kB")
    with pytest.raises(ValueError, match="events"):
        Cache("100kB", events="1GB")
    for wrong in (True, 2.5, "many"):
        with pytest.raises((TypeError, ValueError), match="events"):
            Cache("1MB", events=wrong)  # type: ignore[arg-type]
    with Cache("1MB", events="200kB") as cache:
        cache["k"] = 1
        with pytest.raises(ValueError, match=r"max_bytes|events"):
            cache.resize("150kB")
        assert cache["k"] == 1 and cache.max_bytes == 1_000_000 and len([*cache.changes()]) == 1
        cache.check()


def test_the_ring_survives_resizes_and_clears() -> None:
    with Cache("1MB", events="100kB") as cache, cache.watch() as watch:
        want = []
        for size in ("600kB", "3MB", "1MB"):
            cache[size] = size
            cache.resize(size)
            cache.clear()
            cache.check()
            want += [("set", size), ("clear", None)]
        assert pairs(told(watch)) == want == pairs(cache.changes())


@both
def test_writers_and_a_reader_at_once(make: Any) -> None:
    cache = make(room=2000)
    got: list[Event] = []
    watch = cache.watch(kinds="set")
    reader = in_thread(lambda: got.extend(watch))
    joined(*[in_thread(lambda s=s: [cache.set((s, i), i) for i in range(3000)]) for s in range(3)])
    emitted = cache._seq()
    cache.close()
    joined(reader)
    assert emitted >= 9000
    for before, event in itertools.pairwise([Event(0, Kind.SET, 0, 0, 0, 0.0), *got]):
        assert event.seq > before.seq
        assert event.kind != "lost" or event.seq == before.seq + event.value
    if not any(e.kind == "lost" for e in got):
        assert len(got) == 9000
