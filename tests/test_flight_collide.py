"""Flights of keys that have one hash, and whose ``==`` lets others in: no change of a key is missed."""

from __future__ import annotations

import contextvars
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from gbcache import ObjectCache, flight

SHORT = os.environ.get("GB_SLICE") == "short"


class Key:
    """One of many of the same hash: to compare two is a step of the actor that does."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        actor = threading.current_thread()
        if isinstance(actor, Actor):
            actor.stops()
        return isinstance(other, Key) and self.name == other.name

    def __hash__(self) -> int:
        return 7


class Actor(threading.Thread):
    """Goes on a step when it is told to."""

    def __init__(self, acts: Callable[[], Any]) -> None:
        super().__init__()
        self.acts, self.stopped, self.free = acts, False, False
        self.goes = threading.Semaphore(0)

    def run(self) -> None:
        self.stops()
        self.acts()

    def stops(self) -> None:
        if not self.free:
            self.stopped = True
            self.goes.acquire()

    def step(self) -> None:
        self.stopped = False
        self.goes.release()


class Play:
    """Two load a key, two change it, one loads another of its hash, and a third of that is kept; who goes next is
    drawn."""

    def __init__(self, seed: int) -> None:
        self.cache, self.source = ObjectCache(max_entries=100), 0
        self.cache[Key("there")] = 0
        self.actors = [
            Actor(lambda: self.cache.get_or_set(Key("beside"), self.stops)),
            Actor(lambda: self.cache.get_or_set(Key("asked"), self.loads)),
            Actor(lambda: self.cache.get_or_set(Key("asked"), self.loads)),
            Actor(self.changes),
            Actor(self.changes),
        ]
        self.drawn = random.Random(seed)

    def stops(self) -> None:
        actor = threading.current_thread()
        assert isinstance(actor, Actor)
        actor.stops()

    def loads(self) -> int:
        value = self.source
        self.stops()
        return value

    def changes(self) -> None:
        self.source += 1
        self.cache.pop(Key("asked"), None)

    def rests(self) -> bool:
        """Whether nobody is on the way: all have stopped, wait for a flight, or are over."""
        flights = list(self.cache._flights.values())
        waiters = [each.waiters.all for each in flights if each.waiters is not None]
        going = [each for each in self.actors if each.is_alive() and not each.stopped]
        return len(going) == sum(map(len, waiters))

    def run(self) -> None:
        for each in self.actors:
            each.start()
        last = beside = self.actors[0]
        deadline, steps = time.monotonic() + 20, 0
        try:
            while any(each.is_alive() for each in self.actors):
                assert time.monotonic() < deadline, "it does not end"
                ready = [each for each in self.actors if each.stopped and each.is_alive()]
                if ready and self.rests() and self.rests():
                    others = [each for each in ready if each is not beside]
                    if steps >= 2 and (last not in others or self.drawn.random() < 0.3):
                        last = self.drawn.choice(others or ready)
                    last.step()
                    steps += 1
                time.sleep(0.00005)
        finally:
            for each in self.actors:
                each.free = True
                each.goes.release(1000)


@pytest.mark.parametrize("part", range(1 if SHORT else 3))
def test_whoever_loads_is_told_of_every_change(part: int) -> None:
    for seed in range(100 * part, 100 * part + 100):
        play = Play(seed)
        play.run()
        assert play.cache.get(Key("asked"), 2) == 2, f"seed {seed}: what was loaded before is kept"
        assert not play.cache._flights, f"seed {seed}: a flight is left"
        play.cache.close()


def test_none_is_no_key_of_a_flight_that_was_taken_out() -> None:
    """Its key is let go of; who comes along the list just then looks for None."""
    cache, leaving = ObjectCache(max_entries=9), list[flight.Flight]()
    context = contextvars.copy_context()  # which goes with what began in it
    taken, beside, mine = (context.run(flight._start)[0] for _ in range(3))

    class Odd:
        def __eq__(self, other: object) -> bool:
            for one in leaving:
                cache._leave(one, False, False)
            return self is other

        def __hash__(self) -> int:
            return hash(None)

    assert cache._board(Odd(), taken, None) is taken
    assert cache._board(Odd(), beside, None) is beside
    leaving += [beside, taken]  # in this order: `beside` leads to `taken` for ever
    assert cache._board(None, mine, None) is mine
    cache._leave(mine, False, False)
    assert not cache._flights
