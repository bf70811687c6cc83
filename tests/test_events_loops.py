"""Those who read events on a loop of asyncio's: how they take turns with what else it runs, and end."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from children import isolated
from heard import HANG, Hook, both, descriptors, in_thread, joined, pairs, until

from gbcache import Event


@both
def test_a_watch_is_an_async_iterator(make: Any) -> None:
    cache = make()

    async def main() -> list[Any]:
        got: list[Any] = []
        with cache.watch() as watch:
            thread = in_thread(lambda: [cache.set(i, i) or time.sleep(0.0003) for i in range(200)])
            async for event in watch:
                got.append(event.key)
                if len(got) == 200:
                    break
            task = asyncio.create_task(watch.aread())
            await asyncio.sleep(0.01)
            assert not task.done(), "it waits, and others run"
            cache["late"] = 1
            assert pairs(await asyncio.wait_for(task, HANG)) == [("set", "late")]
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(watch.aread(), 0.01)
            cache["again"] = 1
            assert pairs(await watch.aread(2)) == [("set", "again")]
            joined(thread)
        return got

    assert asyncio.run(main()) == list(range(200))


@both
@pytest.mark.parametrize("what", ["watch", "cache"])
def test_closing_ends_an_async_iteration(make: Any, what: str) -> None:
    cache = make()

    async def main() -> list[Any]:
        watch = cache.watch()

        async def all_of() -> list[Any]:
            return [event.key async for event in watch]

        task = asyncio.create_task(all_of())
        await asyncio.sleep(0.01)
        cache["k"] = 1
        await asyncio.sleep(0.01)
        thread = in_thread(watch.close if what == "watch" else cache.close)
        got = await asyncio.wait_for(task, HANG)
        joined(thread)
        return got

    assert asyncio.run(main()) == ["k"]


@both
def test_a_read_of_too_few_is_refused_on_a_loop_too(make: Any) -> None:
    with make().watch() as watch:
        for most in (1, 0, -1):
            with pytest.raises(ValueError, match="above 1"):
                watch.read(most)
            with pytest.raises(ValueError, match="above 1"):
                asyncio.run(asyncio.wait_for(watch.aread(most), 1))


class Rejecting:
    """A cursor with much to look at of which nothing passes."""

    def __init__(self) -> None:
        self.looks = 0
        self.over = False

    def pull(self, most: int) -> list[Event]:
        self.looks += 1
        assert self.looks < 1000, "nobody else has had a turn"
        return []

    def pending(self) -> bool:
        return not self.over

    def finish(self) -> None: ...


@both
@pytest.mark.parametrize("who", ["watch", "subscriber"])
def test_a_loop_has_its_turn_while_a_filter_rejects(make: Any, who: str) -> None:
    cache, cursor = make(), Rejecting()

    async def main() -> None:
        if who == "watch":
            reader: Any = cache.watch()
            reader._cursor = cursor
            task = asyncio.create_task(reader.aread())
        else:
            reader = cache.subscribe(lambda event: None, delivery="asyncio")
            reader._cursor = cursor
        while cursor.looks < 20:
            await asyncio.sleep(0)
        cursor.over = True
        reader.close()
        if who == "watch":
            assert not await task

    asyncio.run(asyncio.wait_for(main(), HANG))


@both
@pytest.mark.parametrize("how", ["function", "coroutine"])
def test_a_subscriber_on_a_loop_is_told_there_in_order(make: Any, how: str) -> None:
    cache = make()
    got: list[tuple[Any, int]] = []
    busy = [0]

    def plain(event: Event) -> None:
        got.append((event.key, threading.get_ident()))

    async def slow(event: Event) -> None:
        busy[0] += 1
        await asyncio.sleep(0)
        assert busy[0] == 1, "one after the other"
        busy[0] -= 1
        plain(event)

    async def main() -> None:
        fn = slow if how == "coroutine" else plain
        before = descriptors()
        with cache.subscribe(fn, delivery="asyncio") as sub:
            thread = in_thread(lambda: [cache.set(i, i) for i in range(700)])
            while len(got) < 700:
                await asyncio.sleep(0.001)
            joined(thread)
            assert sub.delivered == 700 and sub.errors == 0
        await asyncio.sleep(0.01)
        cache["after"] = 1
        await asyncio.sleep(0.01)
        assert descriptors() == before

    asyncio.run(asyncio.wait_for(main(), HANG))
    assert got == [(i, threading.get_ident()) for i in range(700)]


@both
def test_a_loop_may_be_given_from_another_thread(make: Any) -> None:
    cache, loop = make(), asyncio.new_event_loop()
    got: list[Any] = []
    thread = in_thread(loop.run_forever)
    sub = cache.subscribe(lambda e: got.append((e.key, threading.get_ident())), delivery=loop)
    cache.update((i, i) for i in range(300))
    cache.close()
    assert until(lambda: len(got) == 300)
    assert got == [(i, thread.ident) for i in range(300)]
    sub.close()
    loop.call_soon_threadsafe(loop.stop)
    joined(thread)
    loop.close()


# --- what ends on a loop, and what does not ------------------------------------------------------


@both
def test_a_loop_that_was_closed_leaks_no_descriptor(make: Any) -> None:
    async def subscribe(cache: Any) -> Any:
        sub = cache.subscribe(lambda event: None, delivery="asyncio")
        cache["k"] = 1
        await asyncio.sleep(0.005)
        return sub

    def cycle(ends: Callable[[Any, Any], None]) -> None:
        cache = make()
        ends(cache, asyncio.run(subscribe(cache)))

    ways = [lambda c, s: s.close(), lambda c, s: c.close(), lambda c, s: None]
    for way in ways:
        cycle(way)
        before = descriptors()
        for _ in range(5):
            cycle(way)
        assert descriptors() == before, ways.index(way)


@both
def test_subscribers_whose_loop_is_closed_go_when_another_comes(make: Any) -> None:
    """Nobody is told there any more, and each has a descriptor."""
    cache, got = make(), list[Any]()

    async def subscribe() -> Any:
        sub = cache.subscribe(lambda event: None, delivery="asyncio")
        await asyncio.sleep(0.001)
        return sub

    before = descriptors()
    subs = [asyncio.run(subscribe()) for _ in range(5)]
    assert descriptors() <= before + 1 and [sub.closed for sub in subs] == [True] * 4 + [False]
    with cache.subscribe(got.append, delivery="inline"):
        assert subs[4].closed and descriptors() == before
        cache["k"] = 1
    assert len(got) == 1


async def _all_told(got: list[Any], n: int) -> None:
    while len(got) < n:
        await asyncio.sleep(0.001)


@both
@pytest.mark.parametrize("how", ["function", "coroutine"])
@isolated
def test_what_a_subscriber_awaits_may_be_cancelled(make: Any, how: str) -> None:
    """It is an error as any other: not our task was cancelled."""
    hook, got, cache = Hook(), [], make()

    async def main() -> None:
        gone = asyncio.get_running_loop().create_future()
        gone.cancel()

        def plain(event: Event) -> None:
            got.append(event.key)
            if event.key % 5 == 0:
                gone.result()

        async def slow(event: Event) -> None:
            got.append(event.key)
            if event.key % 5 == 0:
                await gone

        sub = cache.subscribe(slow if how == "coroutine" else plain, delivery="asyncio")
        for i in range(10):
            cache[i] = i
        await _all_told(got, 10)
        cache[10] = 10
        await _all_told(got, 11)
        assert got == list(range(11)) and (sub.delivered, sub.errors) == (11, 3)

    asyncio.run(asyncio.wait_for(main(), HANG))
    assert [kind for kind, _ in hook.seen] == [asyncio.CancelledError] * 3


@both
@pytest.mark.parametrize("when", ["begins", "waits", "between", "lacks memory"])
@isolated
def test_a_delivery_that_is_cancelled_goes_on(make: Any, when: str) -> None:
    """Nothing is told twice, and no more is lost than the call that was under way."""
    hook, got, cache = Hook(), [], make()

    async def hear(event: Event) -> None:
        got.append(event.key)
        if when == "waits" and event.key == 5:
            await asyncio.sleep(60)

    async def main() -> None:
        sub = cache.subscribe(
            hear if when == "waits" else lambda e: got.append(e.key), delivery="asyncio"
        )
        pull, ours = sub._cursor, asyncio.all_tasks()
        if when == "lacks memory":
            sub._cursor = Starved(pull)
        for i in range(700):
            cache[i] = i
        while when != "begins" and len(got) < 6 and sub._cursor is pull:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        if when != "lacks memory":
            (task,) = asyncio.all_tasks() - ours
            task.cancel()
        await _all_told(got, 700)
        cache[700] = 1
        await _all_told(got, 701)
        assert got == list(range(701)) and (sub.delivered, sub.lost, sub.errors) == (701, 0, 0)

    asyncio.run(asyncio.wait_for(main(), HANG))
    assert [kind for kind, _ in hook.seen] == [MemoryError] * (when == "lacks memory")


class Starved:
    """A cursor that lacks memory, once."""

    def __init__(self, cursor: Any) -> None:
        self._cursor, self._short = cursor, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def pull(self, most: int) -> Any:
        if self._short:
            self._short = False
            raise MemoryError
        return self._cursor.pull(most)


@both
def test_a_closed_cache_leaves_nothing_on_the_loop(make: Any) -> None:
    async def main() -> None:
        got: list[Any] = []
        before = descriptors()
        for i in range(5):
            cache = make()
            sub = cache.subscribe(lambda event: got.append(event.key), delivery="asyncio")
            if i % 2:
                await asyncio.sleep(0.002)  # it listens, or does not yet
            cache[i] = i
            in_thread(cache.close).join()
            assert not sub.closed
            await _all_told(got, i + 1)
            while not sub.closed:
                await asyncio.sleep(0.001)
            sub.close()
        assert descriptors() == before and got == [0, 1, 2, 3, 4]

    asyncio.run(asyncio.wait_for(main(), HANG))


@both
@pytest.mark.parametrize("collected", ["here", "in another thread"])
def test_a_loop_keeps_no_cache_alive(make: Any, collected: str) -> None:
    async def main() -> None:
        before, got, gone = descriptors(), list[Any](), []
        for i in range(5):
            cache = make()
            gone.append(weakref.ref(cache))
            cache.subscribe(lambda event: got.append(event.key), delivery="asyncio")
            if i:
                cache[i] = i
                await _all_told(got, i)
            del cache
        await asyncio.sleep(0.01)
        if collected == "here":
            gc.collect()
        else:
            joined(in_thread(gc.collect))
        assert [ref() for ref in gone] == [None] * 5
        await asyncio.sleep(0.01)
        assert descriptors() == before
        cache = make()  # its descriptor has the number of one that went
        sub = cache.subscribe(lambda event: got.append(event.key), delivery="asyncio")
        cache[5] = 5
        await _all_told(got, 5)
        assert got == [1, 2, 3, 4, 5] and sub.delivered == 1

    asyncio.run(asyncio.wait_for(main(), HANG))
