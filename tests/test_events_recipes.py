"""The README's recipes for events, as they stand there."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from heard import SHORT, both, until

from gbcache import Cache, Event, ObjectCache


def test_write_back_leaves_every_value_in_one_of_the_two_places(tmp_path: Path) -> None:
    # --- the recipe
    disk = sqlite3.connect(tmp_path / "slow.db", isolation_level=None, check_same_thread=False)
    disk.execute("create table slow (key text primary key, value blob)")

    def write_back(event: Event) -> None:
        if event.kind == "evict":
            disk.execute("replace into slow values (?, ?)", (event.key, event.old))
        else:  # written anew: what is below is out of date
            disk.execute("delete from slow where key = ?", (event.key,))

    cache = Cache("150kB")
    cache.subscribe(write_back, kinds=("evict", "set"), values=True, delivery="inline")
    # ---
    disk.execute("pragma synchronous = off")
    rng, truth = random.Random(4), {}
    for i in range(1000 if SHORT else 4000):
        key = f"key-{rng.randrange(900)}"
        cache[key] = truth[key] = rng.randbytes(rng.randrange(900)) + i.to_bytes(4, "little")
    slow = dict(disk.execute("select key, value from slow"))
    fast = dict(cache.items())
    assert len(slow) > 10 and slow.keys().isdisjoint(fast) and slow | fast == truth
    disk.close()


class Socket:
    """What stands for a websocket."""

    def __init__(self) -> None:
        self.wire: asyncio.Queue[Any] = asyncio.Queue()

    async def send(self, message: Any) -> None:
        await self.wire.put(message)

    def __aiter__(self) -> Socket:
        return self

    async def __anext__(self) -> Any:
        return await self.wire.get()


# --- the recipe


async def push(cache: Any, socket: Any) -> None:
    with cache.watch(kinds=("replace", "delete", "expire", "evict", "clear")) as events:
        async for event in events:
            await socket.send(event.key)


async def listen(socket: Any, copy: Any) -> None:
    async for key in socket:
        if key is None:  # a clear, or events were lost: nothing can be trusted
            copy.clear()
        else:
            copy.pop(key, None)


# ---


@pytest.mark.parametrize("make", [lambda: Cache("1MB", max_entries=2), lambda: ObjectCache(2)])
def test_an_invalidation_of_what_was_evicted_and_written_anew(make: Any) -> None:
    async def main() -> None:
        cache, copy, socket = make(), {"k": "old"}, Socket()
        tasks = [
            asyncio.create_task(push(cache, socket)),
            asyncio.create_task(listen(socket, copy)),
        ]
        cache["k"] = "old"
        await asyncio.sleep(0.01)
        cache["a"] = cache["b"] = 1  # "k" leaves, and its next write replaces nothing
        cache["k"] = "new"
        for _ in range(2000):
            if "k" not in copy:
                break
            await asyncio.sleep(0.001)
        assert "k" not in copy
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())


@both
def test_an_invalidation_reaches_the_copy(make: Any) -> None:
    async def main() -> None:
        cache, copy, socket = make(room=2000), make(), Socket()
        tasks = [
            asyncio.create_task(push(cache, socket)),
            asyncio.create_task(listen(socket, copy)),
        ]
        await asyncio.sleep(0)
        for i in range(500):
            cache[i] = copy[i] = "old"
        cache["short"] = copy["short"] = "old"

        def change() -> None:
            for i in range(0, 500, 2):
                cache[i] = "new"
            cache.set("short", 1, ttl=0.01)
            del cache[1]

        await asyncio.to_thread(change)
        for _ in range(4000):
            if "short" not in copy and 1 not in copy and 498 not in copy:
                break
            await asyncio.sleep(0.005)
        assert set(copy) == set(range(3, 500, 2)), "what changed is gone, nothing else"
        cache.clear()
        while len(copy):
            await asyncio.sleep(0.001)
        copy["k"] = "old"
        for i in range(20_000):  # more than is kept: the copy is told that it missed something
            cache["other"] = i
        while len(copy):
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()

    asyncio.run(asyncio.wait_for(main(), 30))


# --- the recipe


def mirror_of(cache: Any, mirror: dict[Any, Any], at: list[int]) -> None:
    def apply(event: Event) -> None:
        if event.kind in ("set", "replace"):
            mirror[event.key] = cache.peek(event.key)
        elif event.kind in ("delete", "expire", "evict"):
            mirror.pop(event.key, None)
        elif event.kind in ("clear", "lost"):
            mirror.clear()
            mirror.update(cache.items())

    seq = 0
    for event in cache.changes():  # what happened before we came
        apply(event)
        seq = event.seq
    for event in cache.watch(since=seq):  # and what happens from now on
        apply(event)
        at.append(event.seq)


# ---


@both
def test_a_mirror_is_what_the_cache_is(make: Any) -> None:
    for room in (300, 20_000):  # it loses some, it loses none
        cache, mirror = make(size="4MB", room=room, max_entries=200), {}
        rng = random.Random(room)

        def work(n: int, cache: Any = cache, rng: Any = rng) -> None:
            for i in range(n):
                key = rng.randrange(400)
                if rng.random() < 0.7:
                    cache.set(key, i, ttl=rng.choice([None, 0.01]))
                elif rng.random() < 0.99:
                    cache.pop(key, None)
                else:
                    cache.clear()

        work(1000)
        at: list[int] = [0]
        thread = threading.Thread(target=mirror_of, args=(cache, mirror, at), daemon=True)
        thread.start()
        work(5000)
        assert until(lambda cache=cache, mirror=mirror: mirror == dict(cache.items()))
        time.sleep(0.02)  # what has a ttl is past it: nothing goes between two looks
        cache.expire()
        assert until(
            lambda cache=cache, mirror=mirror, at=at: (
                at[-1] == cache._seq()  # equal, and not in passing
                and mirror == dict(cache.items())
                and len(mirror) == len(cache)
            )
        )
        snapshot = dict(cache.items())
        cache.close()
        thread.join(20)
        assert not thread.is_alive() and mirror.keys() <= snapshot.keys()
