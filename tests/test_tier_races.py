"""`Tiered`: what overlaps. Each turn of a read or a write against another at the far side, threads at random against
what they may see, and a buffer that is behind."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from typing import Any

import pytest
from fars import Full, Telling

from gbcache import Cache, ClosedError, FarError, ObjectCache, Tiered
from gbcache.behind import Behind

SHORT = os.environ.get("GB_SLICE") == "short"
NEARS = {"Cache": lambda: Cache("200kB"), "ObjectCache": lambda: ObjectCache(100)}

# --- two operations, in every order ------------------------------------------------------------------


def cut(tier: Tiered) -> None:
    """Somebody writes while nobody is told."""
    far: Any = tier.far
    far.listener.lost()
    far.data["k"] = "untold", None
    far.listener.restored()


def incr(tier: Tiered) -> None:
    with suppress(TypeError):  # where it is text
        tier.incr("k")


OPERATIONS: dict[str, Callable[[Tiered], Any]] = {
    "get": lambda tier: tier.get("k"),
    "get_many": lambda tier: tier.get_many(["k", "other"]).get("k"),
    "set": lambda tier: tier.set("k", "set"),
    "again": lambda tier: tier.set("k", "again"),
    "delete": lambda tier: tier.discard("k"),
    "incr": lambda tier: incr(tier),
    "clear": lambda tier: tier.clear(),
    "load": lambda tier: tier.get_or_set("k", lambda: "load"),
    "foreign": lambda tier: tier.far.foreign("k", "foreign"),  # type: ignore[attr-defined]
    "cut": lambda tier: cut(tier),
    "evict": lambda tier: tier.near.pop("k", None),
}


class Gate:
    """Holds up one thread, before or after the far side does what it asked for."""

    def __init__(self, far: Any, when: str) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None
        setattr(far, when, self.hold)

    def hold(self, verb: str, keys: list[Any]) -> None:
        if threading.current_thread() is self.thread:
            self.reached.set()
            assert self.open.wait(20)


@pytest.mark.parametrize("near", NEARS)
@pytest.mark.parametrize("begin", ["absent", "far", "both"])
def test_two_that_overlap(near: str, begin: str) -> None:
    """Whatever comes between an operation and its answer: afterwards memory agrees with the far side."""
    for first, second, when in product(OPERATIONS, OPERATIONS, ("hook", "after")):
        how = "serve_stale" if begin == "both" else "raise"
        tier = Tiered(NEARS[near](), Telling(), negative_ttl=60, on_far_error=how)
        far: Any = tier.far
        far.listener.restored()
        if begin != "absent":
            far.data["k"] = "old", None
        if begin == "both":
            assert tier["k"] == "old"
        gate = Gate(far, when)
        gate.thread = threading.Thread(target=OPERATIONS[first], args=(tier,))
        gate.thread.start()
        while not gate.reached.wait(0.0005) and gate.thread.is_alive():
            pass
        other = threading.Thread(target=OPERATIONS[second], args=(tier,))
        other.start()
        other.join(0.002)  # it may wait for the first one's flight
        gate.open.set()
        gate.thread.join(20)
        other.join(20)
        assert not gate.thread.is_alive() and not other.is_alive()
        wanted = far.data.get("k", ("nothing",))[0]
        case = f"{first} then {second}, {when}"
        assert tier.get("k", "nothing") == wanted, case
        assert tier.near.peek("k", wanted) == wanted, case
        assert tier.get_many(["k"]).get("k", "nothing") == wanted, case
        assert not tier._side._writing and not tier.near._flights, case
        tier.close()


# --- threads at random -------------------------------------------------------------------------------


@pytest.mark.parametrize("near", NEARS)
@pytest.mark.parametrize("write", ["through", "behind"])
def test_nobody_sees_the_past(near: str, write: str) -> None:
    """One writer a key, who counts: a reader never sees less than was written before it began, nor what is not yet."""
    seconds = 0.8 if SHORT else 1.5
    tier = Tiered(
        NEARS[near](), Full(), write=write, negative_ttl=5, behind_seconds=0.02, behind_bytes=65536
    )
    far: Any = tier.far
    dice = random.Random(1)
    far.hook = lambda verb, keys: (
        time.sleep(dice.random() * 0.0005) if dice.random() < 0.2 else None
    )
    keys = [f"k{i}" for i in range(24)]
    done, began = dict.fromkeys(keys, 0), dict.fromkeys(keys, 0)
    stop, bad = time.monotonic() + seconds, []

    def writer(part: int) -> None:
        own, mine = random.Random(part), keys[part::3]
        while time.monotonic() < stop and not bad:
            key = own.choice(mine)
            began[key] += 1
            how = own.random()
            if how < 0.8:
                tier.set(key, began[key], ttl=own.choice([None, 1000]))
            elif how < 0.9:
                tier.set_many({key: began[key]})
            else:
                tier.near.clear() if how < 0.91 else None
                tier.discard(key)
                began[key] += 1
                assert tier.add(key, began[key])
            done[key] = began[key]

    def reader(part: int) -> None:
        own = random.Random(part)
        while time.monotonic() < stop and not bad:
            some = own.sample(keys, own.randrange(1, 6))
            least = {key: done[key] for key in some}
            got = tier.get_many(some) if len(some) > 1 else {some[0]: tier.get(some[0])}
            for key in some:
                seen = got.get(key)
                if seen is None:  # deleted: then a delete was under way, or nothing is written yet
                    if least[key] and done[key] == least[key] == began[key]:
                        bad.append(f"{key}: absent, after {least[key]}")
                elif not least[key] <= seen <= began[key]:
                    bad.append(f"{key}: {seen}, after {least[key]}, {began[key]} begun")
            if own.random() < 0.02:
                tier.near.pop(own.choice(keys), None)

    threads = [threading.Thread(target=writer, args=(i,)) for i in range(3)]
    threads += [threading.Thread(target=reader, args=(10 + i,)) for i in range(3)]
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(old)
    assert not bad, bad[:5]
    assert sum(done.values()) > 100
    tier.sync()
    for key in keys:
        wanted = far.data.get(key, (None,))[0]
        assert tier.get(key) == wanted == (done[key] or None)
        assert tier.near.peek(key, wanted) == wanted
    assert not tier._side._writing and not tier.near._flights
    tier.close()


# --- behind ------------------------------------------------------------------------------------------


def settle(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_behind_coalesces_and_keeps_order() -> None:
    tier = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=0.05)
    far: Any = tier.far
    for i in range(1000):
        tier["a"] = i
        tier[i % 10] = i
    tier.discard(3)
    tier["list"] = value = [1]
    value.append(2)  # too late
    assert tier.get(3) is None and tier["list"] == [1]
    assert tier.stats().at_risk.entries <= 12 and tier.stats().at_risk.bytes > 0
    settle(lambda: tier.stats().at_risk == (0, 0, 0.0))
    assert far.data["a"] == (999, None) and 3 not in far.data and far.data["list"][0] == [1]
    assert sum(len(keys) for _, keys in far.calls) < 300
    tier.close()


def test_what_is_behind_is_seen_wherever_it_is() -> None:
    tier = Tiered(Cache("100kB"), Full(), write="behind", behind_seconds=0.05)
    far: Any = tier.far
    gate = threading.Event()
    far.hook = lambda verb, keys: gate.wait(10) if verb == "put" else None
    tier["a"] = "first"
    settle(lambda: ("put", ["a"]) in far.calls)
    assert tier["a"] == "first"
    tier.near.clear()
    assert tier["a"] == tier.peek("a") == "first" and "a" in tier and tier.ttl("a") is None
    assert tier.get_many(["a"]) == {"a": "first"}
    tier["a"] = "second"  # while the first one is being written
    tier.near.clear()
    assert tier["a"] == "second"
    gate.set()
    tier.sync()
    assert far.data["a"][0] == "second" == tier["a"] and far.synced == 1
    tier.close()


def test_behind_blocks_when_full_and_tells_when_it_fails() -> None:
    tier = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=30, behind_bytes=65536)
    far: Any = tier.far
    gate = threading.Event()
    far.hook = lambda verb, keys: gate.wait(10) if verb == "put" else None
    threading.Timer(0.2, gate.set).start()
    begun = time.monotonic()
    for i in range(400):
        tier[i] = "x" * 500
        assert tier.stats().at_risk.bytes <= 65536
    assert time.monotonic() - begun > 0.15
    tier["big"] = "y" * 200_000  # more than the buffer: it goes through
    assert len(far.data["big"][0]) == 200_000 and all(
        len(far.data[i][0]) == 500 for i in range(400)
    )
    far.failing = True
    with pytest.raises(FarError, match="buffer is full"):
        for i in range(1000, 2000):
            tier[i] = "x" * 500
    with pytest.raises(FarError, match="writes wait"):
        tier.sync()
    with pytest.raises(FarError, match="writes wait"):
        tier.close()
    assert tier[1000] == "x" * 500
    far.failing = False
    tier.close()
    written = [i for i in range(1000, 2000) if i in far.data]
    assert len(written) > 50 and written == list(range(1000, 1000 + len(written)))
    with pytest.raises(ClosedError):
        tier["a"] = 1


def test_behind_keeps_what_found_no_memory() -> None:
    """MemoryError of the far side, or of its thread's own steps, is no refusal; a thread that cannot start is none."""
    tier = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=0.01)
    far, behind = tier.far, tier._behind
    assert behind is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            threading.Thread, "start", lambda self: exec("raise RuntimeError('no thread')")
        )
        with pytest.raises(RuntimeError, match="no thread"):
            tier["a"] = 1
    short = [4]

    def hook(verb: str, keys: list[Any]) -> None:
        if verb == "put" and short[0]:
            short[0] -= 1
            raise MemoryError

    turn, turned = behind._turn, [2]

    def starved() -> bool | None:
        if turned[0]:
            turned[0] -= 1
            raise MemoryError
        return turn()

    far.hook, behind._turn = hook, starved  # type: ignore[attr-defined, method-assign]
    tier["b"] = 2
    until = time.monotonic() + 10
    while tier.stats().at_risk.entries and time.monotonic() < until:
        time.sleep(0.01)
    assert far.data["b"][0] == 2 and not short[0] and not turned[0]  # type: ignore[attr-defined]
    assert tier.stats().behind_errors == 0
    tier.close()


def test_a_tier_that_is_dropped_without_memory_writes_what_is_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turn, short, dropped = Behind._turn, [3], threading.Event()

    def starved(self: Behind) -> bool | None:
        dropped.wait(10)
        if short[0]:
            short[0] -= 1
            raise MemoryError
        return turn(self)

    monkeypatch.setattr(Behind, "_turn", starved)
    far: Any = Full()
    tier = Tiered(Cache("1MB"), far, write="behind", behind_seconds=0.01)
    tier["k"] = 1
    del tier
    dropped.set()
    until = time.monotonic() + 10
    while "k" not in far.data and time.monotonic() < until:
        time.sleep(0.01)
    assert far.data["k"][0] == 1 and not short[0]


def test_behind_is_bounded_in_time() -> None:
    """A far side that does not keep up slows writers down; what is at risk is not older than about the interval."""
    tier = Tiered(Cache("10MB"), Full(), write="behind", behind_seconds=0.05)
    far: Any = tier.far
    far.hook = lambda verb, keys: time.sleep(0.00005 * len(keys))
    ages, stop = [], time.monotonic() + 0.8
    i = 0
    while time.monotonic() < stop:
        tier[i] = i
        i += 1
        if i % 50 == 0:
            ages.append(tier.stats().at_risk.seconds)
    tier.close()
    assert len(far.data) == i and sorted(ages)[len(ages) // 2] < 0.2


def test_what_the_far_side_refuses_for_good_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda hook: told.append(hook.exc_value))
    tier = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=0.02)
    far: Any = tier.far

    def refuse(verb: str, keys: list[Any]) -> None:
        if verb == "put" and "bad" in keys:
            raise ValueError("not this one")

    far.hook = refuse
    tier.update({"a": 1, "bad": 2, "c": 3})
    tier.sync()
    assert set(far.data) == {"a", "c"} and tier.stats().behind_errors == 1
    assert len(told) == 1 and "not this one" in str(told[0])
    tier.close()


def test_clear_forgets_what_is_behind() -> None:
    tier = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=30)
    far: Any = tier.far
    tier["a"] = 1
    tier.clear()
    assert tier.get("a") is None and tier.stats().at_risk.entries == 0
    gate = threading.Event()
    far.hook = lambda verb, keys: gate.wait(10) if verb == "put" else None
    tier["b"] = 2
    waiter = threading.Thread(target=tier.sync)
    waiter.start()
    settle(lambda: ("put", ["b"]) in far.calls)
    threading.Timer(0.05, gate.set).start()
    tier.clear()
    waiter.join(10)
    assert not far.data and tier.get("b") is None
    tier.close()


def test_a_tier_that_is_dropped_writes_what_is_behind() -> None:
    far = Full()
    tier = Tiered(Cache("1MB"), far, write="behind", behind_seconds=0.05)
    tier["a"] = 1
    del tier
    settle(lambda: "a" in far.data)


def test_keys_and_values_that_cannot_be_are_refused_at_once() -> None:
    tier = Tiered(ObjectCache(100), Full(), write="behind")
    for key, value in ((object(), 1), ("a", object()), (float("nan"), 1)):
        with pytest.raises((TypeError, ValueError)):
            tier[key] = value
    assert len(tier) == 0
    tier.close()


def test_writers_of_one_key_behind() -> None:
    """However they interleave, memory ends with what the far side gets."""
    tier = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=0.01)
    far: Any = tier.far

    def write(value: Any) -> None:
        for key in "abcdefgh":
            tier[key] = value

    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for turn in range(40 if SHORT else 150):
            writers = [threading.Thread(target=write, args=((turn, n),)) for n in range(3)]
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join()
            kept = {k: tier.near.peek(k) for k in "abcdefgh"}
            tier.sync()
            assert all(kept[k] in (None, far.data[k][0]) for k in kept), (kept, far.data)
    finally:
        sys.setswitchinterval(old)
    tier.close()


def test_a_write_over_one_that_waits_is_as_old_as_that() -> None:
    tier = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=30)
    tier["a"] = 1
    time.sleep(0.05)
    tier["a"] = 2
    assert tier.stats().at_risk.seconds >= 0.05 and tier.stats().at_risk.entries == 1
    tier.close()


def test_a_far_side_that_was_closed_first_loses_nothing_in_silence() -> None:
    tier = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=0.02)
    far: Any = tier.far

    def shut(verb: str, keys: list[Any]) -> None:
        raise ClosedError("the far side is closed")

    far.hook = shut
    tier.update({"a": 1, "b": 2})
    with pytest.raises(FarError, match=r"2 writes wait.*is closed"):
        tier.close()
    assert tier.stats().behind_errors == 0 and tier.stats().at_risk.entries == 2
    far.hook = lambda verb, keys: None
    tier.close()
    assert far.data.keys() == {"a", "b"}
