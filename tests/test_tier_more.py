"""`Tiered`: what is known to be absent against what was made since, the buffer of a tier that is dropped, a far side
without room, and leaders that need a thread."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from children import run, skip_without_lmdb, survives
from fars import Full, settle

from gbcache import Cache, FarError, ObjectCache, Tiered, ends, leaders
from gbcache.behind import Behind

NEARS = {"Cache": lambda: Cache("1MB"), "ObjectCache": lambda: ObjectCache(100)}


@pytest.fixture(params=NEARS)
def near(request: pytest.FixtureRequest) -> Any:
    return NEARS[request.param]()


# --- known to be absent, and made since --------------------------------------------------------------

MAKES: dict[str, Callable[[Tiered, Callable[[], Any]], Any]] = {
    "get_or_set": lambda tier, fn: tier.get_or_set("k", fn),
    "aget_or_set": lambda tier, fn: asyncio.run(tier.aget_or_set("k", lambda: in_thread(fn))),
    "load": lambda tier, fn: loaded(tier, fn).get("k"),
    "load many": lambda tier, fn: loaded(tier, fn).get_many(["other", "k"])["k"],
}


async def in_thread(fn: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(fn)


def loaded(tier: Tiered, fn: Callable[[], Any]) -> Tiered:
    tier.load = lambda key: fn() if key == "k" else 0
    return tier


@pytest.mark.parametrize("make", ["get_or_set", "aget_or_set"])
def test_what_was_made_is_not_absent_once_memory_lost_it(near: Any, make: str) -> None:
    tier = Tiered(near, Full(), negative_ttl=60)
    assert tier.get("k") is None
    assert MAKES[make](tier, lambda: 1) == 1
    near.clear()
    assert tier.get("k") == 1 == tier.get_many(["k"])["k"]


@pytest.mark.parametrize("make", ["get_or_set", "aget_or_set"])
def test_what_was_made_and_is_too_long_for_memory_is_there(make: str) -> None:
    tier = Tiered(Cache("64kB"), Full(), negative_ttl=60)
    assert tier.get("k") is None
    MAKES[make](tier, lambda: "x" * 200_000)
    assert len(tier["k"]) == 200_000


def test_what_somebody_else_stored_is_not_absent_once_it_was_seen(near: Any) -> None:
    tier = Tiered(near, Full(), negative_ttl=60)
    assert tier.get("k") is None
    tier.far.data["k"] = "theirs", None  # type: ignore[attr-defined]
    assert tier.get_or_set("k", lambda: "ours") == "theirs"
    near.clear()
    assert tier.get("k") == "theirs"


VOIDS: dict[str, Callable[[Tiered], Any]] = {
    "near.clear": lambda tier: tier.near.clear(),
    "near.pop": lambda tier: (tier.near.set("k", 0), tier.near.pop("k")),
    "delete_many": lambda tier: tier.delete_many(["k"]),
    "discard": lambda tier: (tier.discard("k"), tier.sync()),
    "touch": lambda tier: tier.touch("k"),
}


@pytest.mark.parametrize("write", ["through", "behind"])
@pytest.mark.parametrize("voids", VOIDS)
@pytest.mark.parametrize("make", MAKES)
def test_what_was_read_while_it_was_made_is_not_kept(
    near: Any, make: str, voids: str, write: str
) -> None:
    """The flight that makes it is void, so another one finds nothing."""
    tier = Tiered(near, Full(), negative_ttl=60, write=write, behind_seconds=0.01)
    inside, go = threading.Event(), threading.Event()

    def fn() -> str:
        inside.set()
        assert go.wait(10)
        return "made"

    made: list[Any] = []
    maker = threading.Thread(target=lambda: made.append(MAKES[make](tier, fn)))
    maker.start()
    assert inside.wait(10)
    VOIDS[voids](tier)
    tier.load = None  # for who reads now
    assert tier.get("k") is None
    go.set()
    maker.join(10)
    assert made == ["made"] == [tier.get("k")] == [tier.get_many(["k"]).get("k")]
    tier.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_being_read_as_it_is_stored_is_not_kept(near: Any, when: str) -> None:
    """Another flight has read that it is absent, and says so before or after the value is stored."""
    tier = Tiered(near, Full(), negative_ttl=60)
    far: Any = tier.far
    inside, go, read, end = (threading.Event() for _ in range(4))

    def fn() -> str:
        inside.set()
        assert go.wait(10)
        return "made"

    def hold(verb: str, keys: list[Any]) -> None:
        if threading.current_thread() is reader:
            read.set()
            assert end.wait(10)

    maker = threading.Thread(target=lambda: tier.get_or_set("k", fn))
    reader = threading.Thread(target=lambda: tier.get("k"))
    maker.start()
    assert inside.wait(10)
    near.clear()
    far.after = hold
    reader.start()
    assert read.wait(10)
    for event, thread in [(end, reader), (go, maker)][:: 1 if when == "before" else -1]:
        event.set()
        thread.join(10)
    assert tier.get("k") == "made"


def test_what_a_task_that_was_cancelled_stored_is_there(near: Any) -> None:
    tier = Tiered(near, Full(), negative_ttl=60)
    far: Any = tier.far
    adding, go = threading.Event(), threading.Event()

    def hold(verb: str, keys: list[Any]) -> None:
        if verb == "add":
            adding.set()
            assert go.wait(10)

    async def fn() -> str:
        return "made"

    async def main() -> None:
        task = asyncio.create_task(tier.aget_or_set("k", fn))
        while not adding.is_set():
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert tier.get("k") is None
        go.set()

    far.hook = hold
    asyncio.run(main())
    settle(lambda: "k" in far.data)
    settle(lambda: tier.get("k") == "made")


# --- the buffer of a tier that is dropped ------------------------------------------------------------


def test_the_last_write_of_a_tier_that_was_idle_is_written() -> None:
    """Its thread waits for a first one, and nobody else has the buffer."""
    far = Full()
    for turn in range(2):
        tier = Tiered(Cache("1MB"), far, write="behind", behind_seconds=0.02)
        tier[turn, "a"] = 1
        settle(lambda turn=turn: (turn, "a") in far.data)  # type: ignore[misc]
        time.sleep(0.05)
        tier[turn, "b"] = 2
        buffer = weakref.ref(tier._behind)
        del tier
        settle(lambda turn=turn: (turn, "b") in far.data)  # type: ignore[misc]
        settle(lambda buffer=buffer: buffer() is None)  # type: ignore[misc]
    assert not ends.waiting


def test_the_last_write_of_a_tier_is_written_at_exit(tmp_path: Path) -> None:
    program = """
import time
class Far:
    def put_many(self, items):
        with open(sys.argv[1], "a") as file: file.write(repr(items[0][:2]))
    get_many = delete_many = scan = sync = close = lambda *_: None
tier = gbcache.Tiered(gbcache.Cache("1MB"), Far(), write="behind", behind_seconds=0.02)
tier["a"] = 1
time.sleep(0.3)
tier["b"] = 2
del tier
"""
    assert run(program, tmp_path / "told").returncode == 0
    assert (tmp_path / "told").read_text() == "('a', 1)('b', 2)"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_nothing_of_a_tier_its_parent_dropped() -> None:
    far = Full()
    tier = Tiered(Cache("1MB"), far, write="behind", behind_seconds=30)
    tier["k"] = 1
    buffer = weakref.ref(tier._behind)
    del tier
    there: Any = buffer()

    def child() -> None:
        assert not ends.waiting and there.at_risk().entries == 0
        there.close()
        assert not far.data

    survives(child)
    assert ends.waiting == {there}
    there.close()
    assert far.data["k"][0] == 1 and not ends.waiting


@pytest.mark.parametrize("pending", [False, True])
def test_a_put_that_is_cut_off_leaves_nothing_that_overtakes(pending: bool) -> None:
    """CPython 3.10 looks for signals between any two lines."""
    code = Behind._add.__code__

    def cut(line: int) -> bool:
        left = [line]

        def here(frame: Any, event: str, arg: object) -> Any:
            if event == "line":
                left[0] -= 1
                if not left[0]:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return here

        sys.settrace(lambda frame, event, arg: here if frame.f_code is code else None)
        try:
            tier["k"] = "old"
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    line = 0
    while True:
        line += 1
        tier = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=0.01)
        if pending:
            tier["other"] = 1
        was_cut = cut(line)
        tier.delete_many(["k"])
        assert tier.add("k", "new"), line
        tier["j"] = 1
        tier.sync()
        tier.near.clear()
        assert tier["k"] == "new", line
        assert tier.stats().at_risk == (0, 0, 0.0), line
        tier.close()
        if not was_cut:
            break
    assert line > 5


# --- leaders that need a thread ----------------------------------------------------------------------


async def made_in_time() -> str:
    await asyncio.sleep(0.05)
    return "made"


def crowd(tier: Tiered, call: Callable[[], Any]) -> None:
    """A leader, and more followers than asyncio has threads."""

    async def main() -> None:
        lead = asyncio.create_task(tier.aget_or_set("k", made_in_time))
        while not tier.near._flights:
            await asyncio.sleep(0)
        others = [asyncio.create_task(asyncio.to_thread(call)) for _ in range(70)]
        assert await asyncio.wait_for(lead, 10) == "made"
        assert await asyncio.wait_for(asyncio.gather(*others), 10) == ["made"] * 70

    asyncio.run(main())


def test_a_leader_needs_none_of_the_threads_its_followers_wait_in(near: Any) -> None:
    tier = Tiered(near, Full())
    crowd(tier, lambda: tier.get("k"))
    assert tier.far.data["k"][0] == "made"  # type: ignore[attr-defined]


def test_leaders_whose_load_waits_for_another_leader(near: Any) -> None:
    tier = Tiered(near, Full())
    tier.load = lambda key: tier.get_or_set("k", lambda: 0) if key != "k" else fails()

    def fails() -> Any:
        raise KeyError

    async def main() -> None:
        lead = asyncio.create_task(tier.aget_or_set("k", made_in_time))
        while not tier.near._flights:
            await asyncio.sleep(0)
        others = [tier.aget_or_set(i, made_in_time) for i in range(2 * leaders.MOST)]
        assert set(await asyncio.wait_for(asyncio.gather(lead, *others), 20)) == {"made"}

    asyncio.run(main())


def test_many_leaders_have_few_threads(near: Any) -> None:
    tier = Tiered(near, Full())
    far: Any = tier.far
    seen = []

    def slow(verb: str, keys: list[Any]) -> None:
        seen.append(len(tier._side.threads._threads))
        time.sleep(0.002)

    async def main() -> None:
        many = [tier.aget_or_set(i, made_in_time) for i in range(4 * leaders.MOST)]
        assert await asyncio.gather(*many) == ["made"] * len(many)

    far.hook = slow
    asyncio.run(main())
    assert 1 < max(seen) <= leaders.MOST
    settle(lambda: not tier._side.threads._threads)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
@pytest.mark.parametrize("first", [True, False])
def test_a_leader_without_a_thread_says_so(
    near: Any, error: Exception, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = Tiered(near, Full())
    start, left = threading.Thread.start, [not first]

    def starts(thread: threading.Thread) -> None:
        if left and left.pop():
            left.append(False)
            return start(thread)
        raise error

    async def main() -> None:
        two = await asyncio.gather(
            *[tier.aget_or_set("k", made_in_time) for _ in range(2)], return_exceptions=True
        )
        assert all("no thread to ask the far side in" in str(one) for one in two), two

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", starts)
        asyncio.run(main())
    assert not tier.near._flights and not tier._side.threads._calls
    assert asyncio.run(tier.aget_or_set("k", made_in_time)) == "made"


def test_what_the_far_side_raises_comes_to_the_task(near: Any) -> None:
    tier = Tiered(near, Full(), load=lambda key: next(iter(())))
    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(tier.aget_or_set("k", made_in_time))
    tier.load, tier.far.failing = None, True  # type: ignore[attr-defined]
    with pytest.raises(FarError, match="out of order"):
        asyncio.run(tier.aget_or_set("k", made_in_time))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_threads_of_its_own(near: Any) -> None:
    tier = Tiered(near, Full())
    far: Any = tier.far
    asked, go = threading.Event(), threading.Event()

    def hold(verb: str, keys: list[Any]) -> None:
        asked.set()
        assert go.wait(20)

    def child() -> None:
        far.hook = lambda verb, keys: None
        assert asyncio.run(tier.aget_or_set("k", made_in_time)) == "made"

    async def main() -> None:
        many = [tier.aget_or_set(i, made_in_time) for i in range(2 * leaders.MOST)]
        await asyncio.wait_for(asyncio.gather(*many), 20)

    far.hook = hold
    other = threading.Thread(target=lambda: asyncio.run(main()))
    other.start()
    assert asked.wait(10)
    survives(child)
    go.set()
    other.join(20)
    assert len(far.data) == 2 * leaders.MOST


def test_what_was_begun_for_a_task_ends_before_the_process_does(tmp_path: Path) -> None:
    program = """
import asyncio, time
disk = gbcache.Disk(sys.argv[1])
class Far:
    get_many, put_many, delete_many = disk.get_many, disk.put_many, disk.delete_many
    scan, sync, close = disk.scan, disk.sync, disk.close
    def add(self, *args): time.sleep(0.3); return disk.add(*args)
tier = gbcache.Tiered(gbcache.Cache("1MB"), Far())
async def fn(): return 1
async def main():
    try: await asyncio.wait_for(tier.aget_or_set("k", fn), 0.1)
    except asyncio.TimeoutError: print("late")
asyncio.run(main())
"""
    skip_without_lmdb(here=True)
    from gbcache import Disk

    done = run(program, tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("late\n", "", 0)
    with Disk(tmp_path) as disk:
        assert disk.get_many(["k"]) == {"k": (1, None)}
