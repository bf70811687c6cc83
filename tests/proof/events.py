"""Events: each change told once and in order to every kind of reader, and what was not told counted as lost.

    python tests/proof/events.py [--ops N] [--seed S]

In each class six threads do N / 2 operations: on keys of their own, whose values count up, and on keys of all. Four
readers follow and must miss nothing: a subscriber with a thread, an inline one, a watch in a thread, an asyncio watch.
Each has every number once, in order; each key's events make one chain (what went is what came before); and the events
alone, played back, give the cache's content at the end. A fifth reader stands still meanwhile: what it is told at the
end and what it is told is lost are together what was emitted. With `--plant` a reader drops one event in 1,000, or
(`swap`) tells two in the wrong order: both must be found.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import threading
import time
from typing import Any

import said

from gbcache import Cache, ObjectCache

THREADS, OWN, SHARED = 6, 300, 200
ROOM = 10_000
"""About so many events are kept; nobody who follows may be further behind."""
THE_END = "the end"
GOES = {"delete", "expire", "evict", "invalidate"}


def make(kind: str) -> Any:
    if kind == "Cache":
        return Cache("8MB", events=ROOM * 64, max_entries=1500)
    return ObjectCache(1500, events=ROOM)


class Reader:
    """What one reader was told, looked at as it comes."""

    def __init__(self, name: str, plant: str = "") -> None:
        self.name, self.plant = name, plant
        self.seq = self.delivered = self.lost = 0
        self.content: dict[Any, Any] = {}
        self.wrong: list[str] = []
        self.held: Any = None

    def told(self, event: Any) -> None:
        if self.plant == "drop" and event.seq % 1000 == 7:
            return
        if self.plant == "swap" and event.seq % 1000 == 7:
            self.held = event
            return
        self.look(event)
        if self.held is not None:
            held, self.held = self.held, None
            self.look(held)

    def look(self, event: Any) -> None:
        kind = str(event.kind.value)
        if kind == "lost":
            self.lost += event.value
            self.seq = event.seq
            return
        self.delivered += 1
        if event.seq != self.seq + 1:
            self.note(f"number {event.seq} after {self.seq}")
        self.seq = event.seq
        if self.lost:
            return  # what it has of the content is not all
        before = self.content.get(event.key)
        if kind == "set":
            if before is not None:
                self.note(f"{event} where {before} is")
            self.content[event.key] = event.value
        elif kind == "replace":
            if event.old != before:
                self.note(f"{event}, but {before} was there")
            self.content[event.key] = event.value
        elif kind in GOES:
            if event.old != before or before is None:
                self.note(f"{event}, but {before} was there")
            self.content.pop(event.key, None)
        elif kind == "clear":
            self.content.clear()
        elif kind == "touch" and before is None:
            self.note(f"{event} of what is not there")
        self.follow(event.key, before, event.value)

    def follow(self, key: Any, before: Any, value: Any) -> None:
        """A key that one thread alone writes: its numbers go up."""
        own = isinstance(key, str) and key.startswith("own")
        if own and isinstance(before, int) and isinstance(value, int) and value <= before:
            self.note(f"{key}: {value} after {before}")

    def note(self, what: str) -> None:
        if len(self.wrong) < 5:
            self.wrong.append(f"{self.name}: {what}")


def work(
    cache: Any, thread: int, ops: int, seed: int, readers: list[Reader], done: list[int]
) -> None:
    """A writer; `done[thread]` counts what returned."""
    dice, count = random.Random(f"{seed}:{thread}"), 0
    for n in range(ops):
        roll, count = dice.random(), count + 1
        own = roll < 0.6
        key = f"own{thread}-{dice.randrange(OWN)}" if own else f"all-{dice.randrange(SHARED)}"
        what = dice.random()
        if what < 0.6:
            cache.set(key, count, ttl=dice.choice([None, None, None, 0.02, 10]))
        elif what < 0.75:
            cache.delete_many([key])
        elif what < 0.85:
            cache.incr(f"n{dice.randrange(20)}")
        elif what < 0.9:
            cache.touch(key, ttl=5)
        elif what < 0.95:
            cache.get(key)
        elif what < 0.9999:
            cache.add(key, count)
        else:
            cache.clear()
        if n % 64 == 0:
            waits = 0
            while (
                cache.last_seq - min(reader.seq for reader in readers) > ROOM // 4
                and waits < 20_000
            ):
                time.sleep(0.001)
                waits += 1
            if waits == 20_000:
                raise TimeoutError("a reader follows no more")
        done[thread] = n + 1


def read_on(watch: Any, reader: Reader, over: threading.Event) -> None:
    while not over.is_set():
        for event in watch.read(1000, timeout=0.05):
            reader.told(event)


async def aread_on(watch: Any, reader: Reader) -> None:
    while THE_END not in reader.content:
        for event in await watch.aread(1000):
            reader.told(event)


class Round:
    """One class, all readers."""

    def __init__(self, kind: str, ops: int, seed: int, plant: str) -> None:
        self.kind, self.ops, self.seed = kind, ops, seed
        self.cache = make(kind)
        self.readers = [Reader(name, plant) for name in ("thread", "inline", "watch", "asyncio")]
        self.stalled, self.over = Reader("stalled"), threading.Event()
        self.wrong: list[str] = []
        self.done = [0] * THREADS

    def write(self, thread: int) -> None:
        ops = self.ops // THREADS + (thread < self.ops % THREADS)
        try:
            work(self.cache, thread, ops, self.seed, self.readers, self.done)
        except BaseException as error:
            self.wrong.append(f"writer {thread} died: {error!r}")

    def run(self) -> None:
        cache, over = self.cache, self.over
        thread, inline, watched, asynced = self.readers
        stands = cache.watch(values=True)
        watches = [cache.watch(values=True) for _ in range(2)]
        subs = [
            cache.subscribe(thread.told, values=True),
            cache.subscribe(inline.told, values=True, delivery="inline"),
        ]
        follow = [
            threading.Thread(target=read_on, args=(watches[0], watched, over)),
            threading.Thread(
                target=lambda: asyncio.run(aread_on(watches[1], asynced)), daemon=True
            ),
        ]
        writers = [threading.Thread(target=self.write, args=(n,)) for n in range(THREADS)]
        for each in follow + writers:
            each.start()
        for each in writers:
            each.join()
        if sum(self.done) != self.ops:
            self.wrong.append(f"{sum(self.done)} operations of {self.ops} were done: {self.done}")
        time.sleep(0.2)  # what expires
        cache.set(THE_END, 1, ttl=None)
        end = time.monotonic() + 30
        while any(r.seq != cache.last_seq for r in self.readers) and time.monotonic() < end:
            time.sleep(0.01)
        over.set()
        for each in follow:
            each.join(10)
            if each.is_alive():
                self.wrong.append("a reader does not come to its end")
        while batch := stands.read(1000, timeout=0):
            for event in batch:
                self.stalled.told(event)
        self.judge()
        self.wrong += [f"a subscriber's errors: {sub.errors}" for sub in subs if sub.errors]
        cache.close()

    def judge(self) -> None:
        emitted, content = self.cache.last_seq, dict(self.cache.items())
        for reader in self.readers:
            self.wrong += reader.wrong
            if reader.delivered != emitted or reader.lost:
                self.wrong.append(
                    f"{reader.name}: {reader.delivered} told, {reader.lost} lost of {emitted}"
                )
            if reader.content != content:
                odd = set(reader.content.items()) ^ set(content.items())
                self.wrong.append(f"{reader.name}: the content differs: {list(odd)[:4]}")
        stalled = self.stalled
        if stalled.delivered + stalled.lost != emitted or not stalled.lost:
            self.wrong.append(
                f"stalled: {stalled.delivered} told, {stalled.lost} lost of {emitted}"
            )
        self.wrong += stalled.wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ops", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", choices=["drop", "swap"], default="")
    args = parser.parse_args()
    rounds = []
    half = args.ops // 2
    for kind, ops in (("Cache", half), ("ObjectCache", args.ops - half)):
        begun = time.monotonic()
        made = Round(kind, ops, args.seed, args.plant)
        made.run()
        rounds.append(made)
        emitted = made.readers[0].delivered
        stalled, seconds = made.stalled, time.monotonic() - begun
        print(
            f"seed {args.seed}, {kind}: {emitted:,} events in {seconds:.0f} s; "
            f"stalled: {stalled.delivered:,} told, {stalled.lost:,} lost",
            flush=True,
        )
        for what in made.wrong[:10]:
            print(f"{kind}: {what}", flush=True)
    wrong = [what for made in rounds for what in made.wrong]
    if args.plant:
        return int(not wrong)
    done = sum(sum(made.done) for made in rounds)
    events = sum(made.readers[0].delivered for made in rounds)
    said.row(
        "events: each once and in order to four kinds of readers, played back they are the content; both classes",
        f"{done:,} operations of {THREADS} threads, {events:,} events each, {len(wrong)} wrong",
        not wrong and done == args.ops,
    )
    lost = sum(made.stalled.lost for made in rounds)
    told = sum(made.stalled.delivered for made in rounds)
    short = [what for what in wrong if what.startswith("stalled")]
    said.row(
        "a reader that stands still: delivered + lost == emitted",
        f"{told:,} + {lost:,} {'!=' if short else '=='} {events:,}",
        not short,
    )
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
