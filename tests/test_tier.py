"""`Tiered`: verbs on both sides, what memory may keep, times, failures."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from fars import Dict, Full, Telling

from gbcache import Cache, ClosedError, FarError, KeyLengthError, ObjectCache, Tiered, flight

NEARS = [lambda: Cache("200kB"), lambda: ObjectCache(100)]


@pytest.fixture(params=NEARS, ids=["Cache", "ObjectCache"])
def near(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture(params=["through", "behind"])
def tier(request: pytest.FixtureRequest, near: Any) -> Iterator[Tiered]:
    made = Tiered(near, Full(), write=request.param)
    yield made
    made.close()


def far(tier: Tiered) -> Any:
    return tier.far


def reads(tier: Tiered) -> int:
    return sum(verb == "get" for verb, _ in far(tier).calls)


def test_a_mapping(tier: Tiered) -> None:
    tier["a"], tier[7], tier[("t", 1)], tier[b"raw"] = 1, "seven", [1, {"x": 2}], None
    assert tier["a"] == 1 and tier[7] == "seven" and tier[("t", 1)] == [1, {"x": 2}]
    assert tier[b"raw"] is None and b"raw" in tier and "b" not in tier
    assert len(tier) == 4 and set(tier) == {"a", 7, ("t", 1), b"raw"}
    assert dict(tier.items())["a"] == 1 and "seven" in tier.values() and ("a", 1) in tier.items()
    assert tier.get("b") is None and tier.get("b", 5) == 5
    with pytest.raises(KeyError, match="b"):
        tier["b"]
    with pytest.raises(KeyError):
        del tier["b"]
    del tier["a"]
    assert "a" not in tier and tier.get("a") is None and len(tier) == 3
    assert tier.pop(7) == "seven" and tier.pop(7, None) is None
    with pytest.raises(KeyError):
        tier.pop(7)
    assert tier.setdefault("s", 1) == 1 and tier.setdefault("s", 2) == 1
    tier.update({"u": 1, "v": 2})
    assert tier == {("t", 1): [1, {"x": 2}], b"raw": None, "s": 1, "u": 1, "v": 2}
    assert tier.delete_many(["u", "v", "w", "u"]) == 2
    key, _ = tier.popitem()
    assert key not in tier
    tier.clear()
    assert len(tier) == 0 and not list(tier) and tier.get("s") is None
    with pytest.raises(TypeError):
        hash(tier)


def test_what_memory_evicts_is_still_there(tier: Tiered) -> None:
    for i in range(3000):
        tier[i] = f"value {i}" * 10
    assert len(tier.near) < 2500
    for i in range(3000):  # some may be on their way
        assert tier[i] == f"value {i}" * 10
    tier.sync()
    for i in range(3000):
        assert tier[i] == f"value {i}" * 10
    assert len(tier) == 3000 and sum(1 for _ in tier) == 3000
    tier.near.clear()
    assert tier.get_many(range(2990, 3010)) == {i: f"value {i}" * 10 for i in range(2990, 3000)}
    assert tier.stats().far_hits > 500


def test_hits_do_not_ask_and_get_many_asks_once(near: Any) -> None:
    tier = Tiered(near, Full())
    far(tier).data = {i: (i, None) for i in range(50)}
    assert tier[1] == 1 and tier[1] == 1 and reads(tier) == 1
    assert tier.get_many([*range(10), 5, 99]) == {i: i for i in range(10)} and reads(tier) == 2
    assert far(tier).calls[-1] == ("get", [0, *range(2, 10), 99])
    assert tier.get_many(range(10)) == {i: i for i in range(10)} and reads(tier) == 2
    assert near.stats().hits >= 12 and tier.peek(20) == 20 and 20 not in near


def test_what_is_absent_is_remembered_if_asked(near: Any) -> None:
    tier = Tiered(near, Full(), negative_ttl=0.15)
    for _ in range(5):
        assert tier.get("k") is None and tier.get_many(["k"]) == {}
    assert reads(tier) == 1 and tier.stats().negative_hits == 9
    tier["k"] = 1
    assert tier["k"] == 1
    del tier["k"]
    assert tier.get("k") is None and reads(tier) == 2
    assert tier.add("k", 2) and tier["k"] == 2
    far(tier).data["other"] = "there", None
    assert tier.get("new") is None
    far(tier).data["new"] = "there", None
    assert tier.get("new") is None  # that is what it means
    time.sleep(0.2)
    assert tier.get("new") == "there" and tier.get("other") == "there"


def test_times_are_carried(tier: Tiered) -> None:
    tier.set("brief", 1, ttl=0.15)
    tier.set("long", 2, ttl=100)
    tier.set_many({"m": 3, "n": 4}, ttl=100)
    tier["ever"] = 5
    assert 99 < (tier.ttl("long") or 0) <= 100 and 99 < (tier.ttl("m") or 0) <= 100
    assert tier.ttl("ever") is None
    assert 99 < tier.near.ttl("long") <= 100 and tier.near.ttl("ever") is None
    tier.sync()
    tier.near.clear()
    assert tier["long"] == 2 and 99 < tier.near.ttl("long") <= 100
    time.sleep(0.2)
    assert tier.get("brief") is None and "brief" not in tier
    with pytest.raises(KeyError):
        tier.ttl("brief")
    assert tier.touch("long", 500) and 499 < (tier.ttl("long") or 0) <= 500
    assert not tier.touch("brief")
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="ttl"):
            tier.set("x", 1, ttl=wrong)


def test_a_copy_lives_no_longer_than_the_near_side_says() -> None:
    tier = Tiered(Cache("100kB", ttl=0.1), Full(), ttl=50)
    tier["a"] = 1
    assert tier.near.ttl("a") <= 0.1 and (tier.ttl("a") or 0) > 49
    time.sleep(0.15)
    assert "a" not in tier.near and tier["a"] == 1 and tier.near.ttl("a") <= 0.1
    far(tier).data["b"] = 2, time.monotonic() + 0.05  # less than the near side's
    assert tier["b"] == 2 and tier.near.ttl("b") <= 0.05


def test_incr_and_add_are_the_far_sides(tier: Tiered) -> None:
    assert tier.incr("n") == 1 and tier.incr("n", 4) == 5 and tier["n"] == 5
    assert tier.incr("m", -2, initial=10) == 8
    tier["n"] = 100
    assert tier.incr("n") == 101 and tier.get("n") == 101
    assert not tier.add("n", 5) and tier.add("o", 6) and tier["o"] == 6
    tier["s"] = "text"
    with pytest.raises(TypeError, match="not an int"):
        tier.incr("s")
    with pytest.raises(TypeError, match="delta"):
        tier.incr("n", 1.5)  # type: ignore[arg-type]


def test_a_far_side_that_cannot(near: Any) -> None:
    tier = Tiered(near, Dict())
    tier.update({i: i for i in range(2500)})
    assert len(tier) == 2500 and len(list(tier)) == 2500
    for call in (
        lambda: tier.incr("n"),
        lambda: tier.add("n", 1),
        lambda: tier.touch("n"),
        lambda: tier.get_or_set("n", int),
        lambda: Tiered(Cache("100kB"), Dict(), load=str),
    ):
        with pytest.raises(TypeError, match="Dict lacks"):
            call()
    tier.clear()
    assert len(tier) == 0


def test_loading(near: Any) -> None:
    asked = []

    def load(key: Any) -> Any:
        asked.append(key)
        if key == "none":
            raise KeyError(key)
        if key == "bad":
            raise ZeroDivisionError
        return f"made of {key}"

    tier = Tiered(near, Full(), load=load, ttl=60)
    assert tier["a"] == tier["a"] == "made of a" and asked == ["a"]
    assert far(tier).data["a"][0] == "made of a" and 59 < tier.near.ttl("a") <= 60
    assert tier.get("none") is None and "none" not in far(tier).data
    with pytest.raises(ZeroDivisionError):
        tier.get("bad")
    assert tier.get_many(["a", "b", "none"]) == {"a": "made of a", "b": "made of b"}
    assert tier.stats().loads == 2
    assert tier.get_or_set("c", lambda: "not this") == "made of c"


def test_get_or_set(tier: Tiered) -> None:
    assert tier.get_or_set("a", lambda: 1, ttl=50) == 1 == tier.get_or_set("a", lambda: 2)
    assert 49 < (tier.ttl("a") or 0) <= 50
    tier.near.clear()
    assert tier.get_or_set("a", lambda: 3) == 1

    def fails() -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tier.get_or_set("b", fails)
    assert tier.get_or_set("b", lambda: [1]) == [1]
    far(tier).hook = lambda verb, keys: (
        far(tier).data.setdefault("c", ("theirs", None)) if verb == "add" else None
    )
    assert tier.get_or_set("c", lambda: "ours") == "theirs" == tier["c"]


def test_get_or_set_of_coroutines(tier: Tiered) -> None:
    made = []

    async def fn() -> int:
        made.append(1)
        await asyncio.sleep(0.01)
        return 7

    async def main() -> None:
        assert await asyncio.gather(*(tier.aget_or_set("k", fn) for _ in range(20))) == [7] * 20
        assert await tier.aget_or_set("k", fn) == 7 and len(made) == 1

    asyncio.run(main())
    assert far(tier).data["k"][0] == 7
    with pytest.raises(TypeError, match="await aget_or_set"):
        tier.get_or_set("other", fn)


def test_one_flight_for_all_threads(near: Any) -> None:
    tier = Tiered(near, Full())
    far(tier).data = {i: (i, None) for i in range(9)}
    gate = threading.Event()
    far(tier).hook = lambda verb, keys: gate.wait(5)
    got: list[Any] = []
    jobs: list[Callable[[], Any]] = [
        *[lambda: tier[1]] * 8,
        *[lambda: tier.get_many([0, 1, 2])[1]] * 4,
        *[lambda: tier.get_or_set(1, lambda: 99)] * 4,
    ]
    threads = [threading.Thread(target=lambda job=job: got.append(job())) for job in jobs]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    gate.set()
    for thread in threads:
        thread.join(10)
    assert got == [1] * 16
    asked = [key for verb, keys in far(tier).calls if verb == "get" for key in keys]
    assert asked.count(1) == 1 and len(asked) == 3, far(tier).calls


# --- failures ----------------------------------------------------------------------------------------


def test_errors_are_told_and_memory_forgets(near: Any) -> None:
    tier = Tiered(near, Full())
    tier["a"] = 1
    far(tier).failing = True
    for call in (
        lambda: tier.get("b"),
        lambda: tier["b"],
        lambda: tier.get_many(["a", "b"]),
        lambda: tier.set("b", 2),
        lambda: tier.sync(),
        lambda: len(tier),
        lambda: tier.add("c", 1),
        lambda: tier.incr("c"),
        lambda: tier.get_or_set("c", int),
        lambda: tier.ttl("a"),
    ):
        with pytest.raises(FarError, match="out of order"):
            call()
    assert tier["a"] == 1  # which memory has
    with pytest.raises(FarError):
        tier["a"] = 2
    assert "a" not in near  # nobody knows
    with pytest.raises(FarError):
        del tier["a"]
    far(tier).failing = False
    assert tier["a"] == 1 and tier.stats().far_errors == 12
    assert not tier._side._writing and not near._flights


def test_serving_stale(near: Any) -> None:
    tier = Tiered(near, Full(), on_far_error="serve_stale", stale=50, ttl=0.1)
    tier["a"] = 1
    time.sleep(0.15)
    assert tier.get("a") is None
    far(tier).data["a"] = 2, time.monotonic() + 0.1
    assert tier["a"] == 2
    time.sleep(0.15)
    far(tier).failing = True
    assert tier["a"] == 2 and tier.get_many(["a"]) == {"a": 2} and tier.stats().stale_served == 2
    for call in (lambda: tier["b"], lambda: tier.get_many(["a", "b"]), lambda: tier.set("a", 3)):
        with pytest.raises(FarError):
            call()


def test_near_only(near: Any) -> None:
    tier = Tiered(near, Full(), on_far_error="near_only", stale=50)
    tier["a"] = 1
    far(tier).failing = True
    assert tier["a"] == 1 and tier.get("b") is None and tier.get_many(["a", "b"]) == {"a": 1}
    tier["c"] = 3
    assert tier["c"] == 3
    far(tier).failing = False
    assert tier.get("d") is None  # it answers again: what it did not get is gone
    assert tier.get("c") is None and tier["a"] == 1


@pytest.mark.parametrize("how", ["raise", "serve_stale"])
def test_invalidations(near: Any, how: str) -> None:
    tier = Tiered(near, Telling(), on_far_error=how, negative_ttl=60)
    side, told = far(tier), []
    near.subscribe(
        lambda event: told.append((event.kind, event.key)), delivery="inline", kinds="invalidate"
    )
    side.data["a"] = 1, None
    assert tier["a"] == 1 and tier["a"] == 1 and not tier.trusts and reads(tier) == 2
    side.listener.restored()
    assert tier["a"] == 1 and tier["a"] == 1 and tier.trusts and reads(tier) == 3
    side.foreign("a", 2)
    assert tier["a"] == 2 and told == [("invalidate", "a")]
    assert tier.get("b") is None
    side.foreign("b", 1)
    assert tier["b"] == 1
    side.listener.lost()
    side.data["a"] = 3, None  # untold
    assert tier["a"] == 3 and not tier.trusts
    assert tier.get("c") is None
    side.data["c"] = 1, None
    assert tier["c"] == 1  # that it was absent is believed no longer than the rest
    if how == "serve_stale":
        side.failing = True
        assert tier["a"] == 3 and tier.get_many(["a"]) == {"a": 3}
        side.failing = False
    side.data["a"] = 4, None
    side.listener.restored()
    assert tier["a"] == 4 and tier.trusts
    side.listener.changed(None)
    assert len(near) == 0 and tier.stats().invalidations >= 3


def test_closing(near: Any) -> None:
    with Tiered(near, Full()) as tier:
        tier["a"] = 1
    assert near.closed and far(tier).closed
    tier.close()
    for call in (
        lambda: tier["a"],
        lambda: tier.get("b"),
        lambda: tier.set("a", 1),
        lambda: list(tier),
    ):
        with pytest.raises(ClosedError):
            call()


def test_wrong_arguments() -> None:
    near = Cache("100kB")
    for bad, error, says in (
        ({"near": {}}, TypeError, "near="),
        ({"far": {}}, TypeError, "lacks get_many"),
        ({"write": "back"}, ValueError, "write='back'"),
        ({"on_far_error": "ignore"}, ValueError, "on_far_error='ignore'"),
        ({"load": 5}, TypeError, "load=5"),
        ({"ttl": 0}, ValueError, "ttl=0"),
        ({"negative_ttl": -1}, ValueError, "negative_ttl=-1"),
        ({"write": "behind", "behind_bytes": 5}, ValueError, "behind_bytes=5"),
        ({"write": "behind", "behind_seconds": 0}, ValueError, "behind_seconds=0"),
    ):
        given: dict[str, Any] = {"near": near, "far": Full(), **bad}
        with pytest.raises(error, match=says):
            Tiered(given.pop("near"), given.pop("far"), **given)
    tier = Tiered(near, Full())
    for key in ([], {}, object()):
        with pytest.raises(TypeError):
            tier.get(key)


@pytest.mark.parametrize("write", ["through", "behind"])
def test_what_memory_cannot_hold_is_on_the_far_side(write: str) -> None:
    tier = Tiered(Cache("64kB"), Full(), write=write)
    tier["big"], tier["small"] = b"x" * 500_000, 1
    assert tier["big"] == b"x" * 500_000 and "big" not in tier.near and tier["small"] == 1
    tier["small"] = b"y" * 500_000
    assert tier["small"] == b"y" * 500_000 == tier.get_many(["small"])["small"]
    assert tier.get_or_set("made", lambda: b"z" * 500_000) == tier["made"] == b"z" * 500_000
    tier.close()


@pytest.mark.parametrize("write", ["through", "behind"])
def test_a_key_too_long_for_memory_is_on_the_far_side(write: str) -> None:
    tier = Tiered(Cache("64kB"), Full(), write=write, negative_ttl=5)
    key, other = "k" * 5000, "o" * 5000
    assert tier.get(key) is None and key not in tier
    tier[key] = 1
    tier.update({other: 2, "short": 3})
    assert tier[key] == 1 == tier.peek(key) and key in tier and tier.pop("short") == 3
    assert tier.get_many([key, other]) == {key: 1, other: 2} and len(tier) == 2
    assert tier.get_or_set("m" * 5000, lambda: 4) == tier["m" * 5000] == 4
    assert tier.touch(key, ttl=50) and 49 < tier.ttl(key) <= 50 and tier.incr(other) == 3
    assert not tier.add(key, 5) and tier.pop(key) == 1 and key not in tier and not len(tier.near)
    tier.close()
    with Cache("64kB") as cache, pytest.raises(KeyLengthError, match="5000 bytes"):
        cache[key] = 1


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_led_any_more(near: Any, fails: bool) -> None:
    """A batch of flights leaves no trace in the context, however it ends."""
    tier = Tiered(near, Full())
    far(tier).data = {i: (i, None) for i in range(9)}
    far(tier).failing = fails
    with pytest.raises(FarError) if fails else nullcontext():
        assert len(tier.get_many(range(20))) == 9
    assert flight._leading.get() is None and not near._flights


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_goes_on(near: Any) -> None:
    """Whoever held a lock, or was writing, is not there."""
    tier = Tiered(near, Full(), negative_ttl=5)
    tier["a"] = 1
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with tier._side.lock:
            tier._side._writing.begin(["a"])
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        far(tier)._lock = threading.Lock()
        tier["a"] = 2
        os._exit(not (tier["a"] == 2 == tier.near.peek("a") and tier.get("b") is None))
    status = os.waitpid(child, 0)[1]
    done.set()
    thread.join()
    assert status == 0
