"""`Tiered` with ``write="behind"``: what the buffer's thread does, and what memory cannot hold."""

from __future__ import annotations

import errno
import sys
import time
from collections import deque
from typing import Any

import pytest
from fars import Full, Telling, settle

from gbcache import Cache, FarError, ObjectCache, Tiered
from gbcache.codec import TypedCodec

NEARS = {"Cache": lambda: Cache("1MB"), "ObjectCache": lambda: ObjectCache(100)}


@pytest.fixture(params=NEARS)
def near(request: pytest.FixtureRequest) -> Any:
    return NEARS[request.param]()


# --- the buffer's thread -----------------------------------------------------------------------------


def test_what_is_refused_later_is_not_in_memory(near: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda hook: None)
    tier = Tiered(near, Full(), write="behind", behind_seconds=0.02)
    far: Any = tier.far
    tier["bad"] = "old"
    tier.sync()

    def refuse(verb: str, keys: list[Any]) -> None:
        if verb == "put" and "bad" in keys:
            raise ValueError("not this one")

    far.hook = refuse
    tier.update({"a": 1, "bad": 2})
    tier.sync()
    assert tier["bad"] == "old" and tier["a"] == 1 and tier.stats().behind_errors == 1
    tier["bad"] = 3  # alone
    tier.sync()
    assert tier["bad"] == "old" and tier.stats().behind_errors == 2
    tier.close()


@pytest.mark.parametrize("many", [False, True])
def test_a_write_behind_is_served_stale(near: Any, many: bool) -> None:
    tier = Tiered(near, Full(), write="behind", on_far_error="serve_stale", stale=50)
    far: Any = tier.far
    if many:
        tier.set_many({"k": 1}, ttl=0.05)
    else:
        tier.set("k", 1, ttl=0.05)
    tier.sync()
    time.sleep(0.1)
    far.failing = True
    assert tier["k"] == 1 and tier.stats().stale_served == 1
    far.failing = False
    tier.close()


def test_the_buffers_thread_never_waits_for_itself() -> None:
    """The collector may run a ``__del__`` in it that writes."""
    tier = Tiered(Cache("1MB"), Full(), write="behind", behind_bytes=65536, behind_seconds=0.02)
    far: Any = tier.far
    raised: list[BaseException] = []

    def finalized(verb: str, keys: list[Any]) -> None:
        if verb == "put" and "a" in keys:
            far.hook = lambda verb, keys: None
            for i in range(50):
                tier[i] = "x" * 3000
            for call in (lambda: tier.delete_many(["a"]), tier.sync, tier.close):
                try:
                    call()
                except FarError as error:
                    raised.append(error)

    far.hook = finalized
    tier["a"] = 1
    settle(lambda: len(far.data) == 51)
    assert len(raised) == 3 and "itself" in str(raised[0])
    tier.close()


def test_a_handler_within_a_write_does_not_give_the_lock_up() -> None:
    """Where there is no room: what was interrupted would store into a generation that was written meanwhile."""
    tier = Tiered(Cache("1MB"), Full(), write="behind", behind_bytes=65536, behind_seconds=30)
    far: Any = tier.far
    tier["first"] = "x" * 30_000
    behind: Any = tier._behind
    with behind._change:  # as in the midst of a put
        for i in range(20):
            tier[i] = "y" * 20_000
        assert not far.data
        for call in (tier.sync, lambda: tier.incr("n")):
            with pytest.raises(FarError, match="midst"):
                tier["n"] = 1
                call()
        behind._bytes -= 100_000  # what a put that it came between would not have counted
    tier.sync()
    assert len(far.data) == 22 and tier.stats().at_risk.bytes == 0 == behind._bytes
    tier.close()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_the_buffers_thread_outlives_whatever_the_far_side_raises(
    monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda hook: told.append(hook.exc_type))
    tier = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=0.02)
    far: Any = tier.far

    def leave(verb: str, keys: list[Any]) -> None:
        if verb == "put" and "bad" in keys:
            raise kind

    far.hook = leave
    tier.update({"a": 1, "bad": 2, "c": 3})
    settle(lambda: tier.stats().at_risk.entries == 0)
    assert far.data.keys() == {"a", "c"} and tier.stats().behind_errors == 1 and told == [kind]
    tier.close()


def test_a_key_weighs_what_is_in_it() -> None:
    tier = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=30)
    tier[("x" * 10_000, ("y" * 10_000, 1))] = 1
    assert tier.stats().at_risk.bytes > 20_000
    tier.close()


def test_a_ttl_is_no_longer_for_what_was_decoded_meanwhile() -> None:
    class Slow(TypedCodec):
        def decode(self, data: Any) -> Any:
            time.sleep(0.1)
            return super().decode(data)

    far: Any = Full()
    far.codec = Slow()
    tier = Tiered(ObjectCache(100), far, write="behind", behind_seconds=30)
    begun = time.monotonic()
    tier.set_many({i: [i] for i in range(4)}, ttl=100)
    tier.sync()
    ends = [far.data[i][1] - 100 - begun for i in range(4)]
    assert max(ends) < 0.1, ends
    tier.close()


# --- what memory cannot hold -------------------------------------------------------------------------


def test_an_old_copy_is_not_served_once_the_new_value_was_too_long() -> None:
    tier = Tiered(Cache("64kB"), Telling(), on_far_error="serve_stale", stale=50)
    far: Any = tier.far
    far.listener.restored()
    tier["k"] = "old"
    far.listener.lost()
    far.data["k"] = b"x" * 500_000, None
    assert len(tier["k"]) == 500_000
    far.failing = True
    with pytest.raises(FarError):
        tier["k"]


@pytest.mark.parametrize("write", ["through", "behind"])
def test_what_memorys_codec_does_not_know_is_on_the_far_side(write: str) -> None:
    class Odd:
        pass

    far: Any = Full()
    far.codec = None
    tier = Tiered(Cache("1MB"), far, write=write)
    odd = Odd()
    tier["k"] = tier["l"] = 1
    tier["k"] = odd
    tier.set_many({"l": odd, "m": 1})
    assert tier["k"] is odd is tier["l"] and tier["m"] == 1 == tier.near.peek("m")
    tier.sync()
    assert tier["k"] is odd and tier.get_many(["k", "l", "m"]) == {"k": odd, "l": odd, "m": 1}
    assert tier.get_or_set("made", lambda: odd) is odd is tier["made"]
    tier.close()


# --- what was found beside ---------------------------------------------------------------------------


def test_what_is_not_served_is_not_counted_as_served(near: Any) -> None:
    tier = Tiered(near, Full(), on_far_error="serve_stale", stale=50)
    far: Any = tier.far
    tier.set("a", 1, ttl=0.02)
    time.sleep(0.03)
    far.failing = True
    for _ in range(3):
        with pytest.raises(FarError):
            tier.get_many(["a", "b"])
    assert tier.stats().stale_served == 0
    assert tier.get_many(["a"]) == {"a": 1} and tier.stats().stale_served == 1


def test_a_doubt_that_comes_while_memory_is_emptied_lasts(near: Any) -> None:
    tier = Tiered(near, Full())
    side = tier._side
    empty = side._empty
    tier["k"] = 1
    side.doubt()

    def emptied() -> None:
        empty()
        near["late"] = 1  # what another thread could not take out
        side.doubt()

    side._empty = emptied  # type: ignore[method-assign]
    side.settle()
    assert side.doubted and not side.trusted and not tier.trusts
    side._empty = empty  # type: ignore[method-assign]
    assert tier.get("late") is None and tier.trusts and not len(near)


def test_a_close_that_was_cut_off_is_done_by_the_next(near: Any) -> None:
    tier = Tiered(near, Full(), write="behind")
    far: Any = tier.far
    close, cut = far.close, [True]

    def interrupted() -> None:
        if cut.pop():
            raise KeyboardInterrupt
        close()

    far.close = interrupted
    cut.insert(0, False)
    tier["k"] = 1
    with pytest.raises(KeyboardInterrupt):
        tier.close()
    assert not far.closed
    tier.close()
    assert far.closed and near.closed and far.data["k"][0] == 1
    tier.close()


@pytest.mark.parametrize("at", [0, 150, 199, 250, 999])
def test_many_writes_of_which_one_cannot_be_stored_are_refused_together(near: Any, at: int) -> None:
    tier = Tiered(near, Full(), write="behind", behind_seconds=30)
    far: Any = tier.far
    tier["k"] = "old"
    bad = {"k": "new", **{i: (object() if i == at else [i]) for i in range(1000)}}
    for items in (bad, {"k": "new", **dict.fromkeys(range(500), 1), (1, object()): 2}):
        with pytest.raises(TypeError):
            tier.set_many(items)
        assert tier["k"] == "old" and tier.stats().at_risk.entries == 1
    tier.close()
    assert far.data.keys() == {"k"}


def test_the_far_sides_failures_behind_are_counted(near: Any) -> None:
    tier = Tiered(near, Full(), write="behind", behind_seconds=0.02)
    far: Any = tier.far
    far.failing = True
    tier["k"] = 1
    settle(lambda: tier.stats().far_errors >= 2)
    with pytest.raises(FarError):
        tier.sync()
    far.failing = False
    tier.sync()
    puts = sum(verb == "put" for verb, _ in far.calls)
    assert tier.stats().far_errors == puts - 1

    def full(verb: str, keys: list[Any]) -> None:
        if verb == "put":
            raise FarError(errno.ENOSPC, "no room")

    far.hook = full
    tier["k"] = 2
    settle(lambda: tier.stats().far_errors >= puts + 1)
    far.hook = lambda verb, keys: None
    tier.close()
    assert tier.stats().behind_errors == 0


class Row(deque[Any]):
    """Generations, of which something happens right after one began."""

    def append(self, one: Any) -> None:
        super().append(one)
        self.then()

    def then(self) -> None:
        pass


def row_of(tier: Tiered) -> Row:
    behind: Any = tier._behind
    behind._generations = row = Row(behind._generations)
    return row


def test_a_look_as_a_generation_begins_ends(near: Any) -> None:
    """A signal's handler, or the collector, comes back between two of its steps."""
    tier = Tiered(near, Full(), write="behind", behind_seconds=0.02)
    row, seen = row_of(tier), list[Any]()
    row.then = lambda: seen.append((tier._behind.last("other"), tier._behind.has_any(["other"])))  # type: ignore[method-assign, union-attr]
    tier["k"] = 1
    tier.sync()
    assert seen and set(seen) == {(None, False)}
    tier.close()


def test_a_generation_whose_beginning_was_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put afterwards is not put into one that was written."""

    class Interrupt(BaseException):
        pass

    monkeypatch.setattr("gbcache.backlog.BATCH", 3)
    tier = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=0.5)
    row = row_of(tier)

    def cut() -> None:
        del row.then  # type: ignore[method-assign]
        raise Interrupt

    row.then = cut  # type: ignore[method-assign]
    with pytest.raises(Interrupt):
        for i in range(4):
            tier[f"k{i}"] = i
    tier.sync()
    tier["k0"] = "new"
    tier.sync()
    far: Any = tier.far
    assert far.data["k0"][0] == "new"
    tier.close()
