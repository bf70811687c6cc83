"""The event stream against a model: after every step it says exactly what happened, in which order.

The model is a dict kept by the events alone. What it cannot know is when an entry that is due is noticed; it
insists that what is told expired was due, and that everything else is told where, when and as it must be.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Clock
from heard import LONG, SHORT, both, objects, packed, tells, told
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gbcache import OMITTED, Event, ObjectCache
from gbcache._packed import BUILD

KEYS = st.one_of(
    st.integers(0, 12),
    st.integers(0, 6).map(lambda i: f"key-{i}"),
    st.integers(0, 2).map(lambda i: ("t", i)),
    st.integers(0, 2).map(lambda i: b"long" * (60 + i)),
)
VALUES = st.one_of(
    st.integers(-(2**70), 2**70),
    st.none(),
    st.text(max_size=30),
    st.integers(0, 6000).map(bytes),
    st.integers(4_000, 20_000).map(lambda n: b"L" * n),
    st.lists(st.integers(), max_size=8),
)
TTLS = st.one_of(st.none(), st.integers(1, 20), st.floats(0.001, 5.0))
GONE = ("delete", "expire", "evict")
LONGEST = 2 * BUILD["window_bytes"] - 64


def ms(seconds: float) -> int:
    return max(1, int(seconds * 1000 + 0.0005))


class Told(RuleBasedStateMachine):
    """`model`: key -> [value, deadline in ms or None], least recently used first."""

    make: Callable[..., Any] = staticmethod(packed)
    omits = True

    @initialize(entries=st.sampled_from([1, 3, 7, 20]))
    def start(self, entries: int) -> None:
        self.clock, self.entries, self.seq = Clock(), entries, 0
        self.cache = self.make(size="4MB", room=20_000, max_entries=entries, clock=self.clock)
        self.watch = self.cache.watch(values=True)
        self.some = self.cache.watch(kinds=["evict", "expire"], prefix="key-")
        self.model: OrderedDict[Any, list[Any]] = OrderedDict()

    def now(self) -> int:
        return int((self.clock.now - 1000.0) * 1000 + 0.0005)

    def live(self, key: Any) -> bool:
        held = self.model.get(key)
        return held is not None and (held[1] is None or held[1] > self.now())

    def same(self, told: Any, value: Any, both_bytes: int) -> bool:
        if told is OMITTED:
            return (
                self.omits and len(value) > 1000 and (len(value) > LONGEST or both_bytes > LONGEST)
            )
        return type(told) is type(value) and bool(told == value)

    def apply(self, e: Event, value: Any, ttl: Any) -> None:
        """One event: it must be possible now, and the model does as it says."""
        self.seq += 1
        assert e.seq == self.seq and e.at == pytest.approx(self.clock.now, abs=0.002)
        held = self.model.get(e.key)
        assert (held is not None) == (e.kind in ("replace", "touch", *GONE)), e
        size = sum(len(v) for v in (value, held and held[0]) if isinstance(v, bytes))
        if e.kind in ("replace", *GONE):
            assert held and self.same(e.old, held[0], size), e
        else:
            assert e.old is None
        if e.kind == "expire":
            assert not self.live(e.key), "it was not due"
        if e.kind == "evict":
            assert e.key == next(iter(self.model)), "an older one stays"
            assert len(self.model) >= self.room, "there was room"
        if e.kind in ("set", "replace"):
            assert self.same(e.value, value, size)
            self.model.pop(e.key, None)
            self.model[e.key] = [value, None if ttl is None else self.now() + ms(ttl)]
        elif e.kind == "touch":
            self.model[e.key][1] = None if ttl is None else self.now() + ms(ttl)
            self.model.move_to_end(e.key)
        elif e.kind == "clear":
            assert e.value == len(self.model)
            self.model.clear()
        else:
            assert e.value is None
            del self.model[e.key]

    def hear(
        self, *own: tuple[str, Any], value: Any = None, ttl: Any = None, room: int = 0
    ) -> None:
        """`own`: what the operation itself must be told as, beside what expired or had to go."""
        self.room = room or self.entries
        events = told(self.watch)
        for event in events:
            self.apply(event, value, ttl)
        assert [(e.kind, e.key) for e in events if e.kind not in ("expire", "evict")] == list(own)
        some = [e for e in events if e.kind in ("expire", "evict") and str(e.key)[:4] == "key-"]
        assert [(e.seq, e.key) for e in told(self.some)] == [(e.seq, e.key) for e in some]

    def writes(self, key: Any) -> tuple[str, Any]:
        return ("replace" if self.live(key) else "set", key)

    @rule(key=KEYS, value=VALUES, ttl=TTLS)
    def set(self, key: Any, value: Any, ttl: float | None) -> None:
        want = self.writes(key)
        self.cache.set(key, value, ttl=ttl)
        self.hear(want, value=value, ttl=ttl)

    @rule(key=KEYS, value=VALUES, verb=st.sampled_from(["add", "setdefault", "get_or_set"]))
    def write_if_absent(self, key: Any, value: Any, verb: str) -> None:
        there = self.live(key)
        got = getattr(self.cache, verb)(key, value if verb != "get_or_set" else lambda: value)
        if verb != "add" and there:
            assert got == self.model[key][0]
            self.model.move_to_end(key)
        self.hear(*([] if there else [("set", key)]), value=value)

    @rule(key=KEYS)
    def get(self, key: Any) -> None:
        got = self.cache.get(key, self)
        if self.live(key):
            assert got == self.model[key][0]
            self.model.move_to_end(key)
        else:
            assert got is self
        self.hear()
        assert key not in self.model or self.live(key), "what was seen to be due was told"

    @rule(key=KEYS)
    def look(self, key: Any) -> None:
        assert (key in self.cache) == self.live(key) == (self.cache.peek(key, self) is not self)
        self.hear()

    @rule(key=KEYS, verb=st.sampled_from(["pop", "delete_many"]))
    def delete(self, key: Any, verb: str) -> None:
        want = [("delete", key)] if self.live(key) else []
        if verb == "pop":
            assert self.cache.pop(key, self) == (self.model[key][0] if want else self)
        else:
            assert self.cache.delete_many([key]) == len(want)
        self.hear(*want)

    @rule()
    def popitem(self) -> None:
        want = next((k for k in self.model if self.live(k)), self)
        if want is not self:
            assert self.cache.popitem() == (want, self.model[want][0])
            self.hear(("delete", want))

    @rule(key=KEYS, ttl=TTLS)
    def touch(self, key: Any, ttl: float | None) -> None:
        there = self.live(key)
        assert self.cache.touch(key, ttl=ttl) == there
        self.hear(*([("touch", key)] if there else []), ttl=ttl)

    @rule(key=KEYS, delta=st.integers(-5, 5))
    def incr(self, key: Any, delta: int) -> None:
        there = self.live(key)
        held, deadline = self.model[key] if there else (0, None)
        if type(held) is int and abs(held) < 2**60:
            want = self.writes(key)
            self.cache.incr(key, delta)
            self.hear(want, value=held + delta)
            self.model[key][1] = deadline

    @rule(seconds=st.one_of(st.floats(0, 3), st.integers(10, 1000)))
    def wait(self, seconds: float) -> None:
        self.clock.pass_(seconds)

    @rule()
    def expire(self) -> None:
        due, before = {k for k in self.model if not self.live(k)}, len(self.model)
        self.clock.pass_(0.008)  # a tick of the wheel: what is due is surely in a past one
        expired = self.cache.expire()
        self.hear()
        assert expired == before - len(self.model)
        assert due.isdisjoint(self.model)

    @precondition(lambda self: len(self.model) > 2)
    @rule(odds=st.integers(0, 4))
    def clear(self, odds: int) -> None:
        if odds == 0:
            self.cache.clear()
            self.hear(("clear", None))

    @rule(entries=st.sampled_from([1, 3, 7, 20]))
    def resize(self, entries: int) -> None:
        self.cache.resize(**({"max_bytes": "4MB"} if self.omits else {}), max_entries=entries)
        self.entries = entries
        self.hear(room=entries + 1)

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "cache"):
            self.cache.check()
            assert len(self.cache) == len(self.model) <= self.entries
            alive = [k for k in self.model if self.live(k)]
            assert [k for k in self.cache if self.live(k)] == alive, (
                "the same keys in the same order"
            )

    @rule()
    def replay(self) -> None:
        mirror: dict[Any, Any] = {}
        for event in self.cache.changes():
            follow(mirror, event)
        assert mirror.keys() == self.model.keys()
        for key, value in self.cache.items():
            assert mirror[key] is OMITTED or mirror[key] == value

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.close()


class ObjectTold(Told):
    make = staticmethod(objects)
    omits = False


TestTold = Told.TestCase
TestObjectTold = tells(ObjectTold.TestCase)
Told.TestCase.settings = ObjectTold.TestCase.settings = settings(
    max_examples={"short": 25, "long": 3000}.get(os.environ.get("GB_SLICE", ""), 60),
    stateful_step_count=60,
    deadline=None,
)


def follow(mirror: dict[Any, Any], event: Event) -> None:
    if event.kind in ("set", "replace"):
        mirror[event.key] = event.value
    elif event.kind == "clear":
        mirror.clear()
    elif event.kind in GONE:
        del mirror[event.key]


# --- threads -------------------------------------------------------------------------------------

OPERATIONS = 5000 if SHORT else 250_000 if LONG else 25_000


@both
def test_replaying_what_four_threads_did_yields_what_is_there(make: Any) -> None:
    """Values say who wrote them and in which turn; an old value is the one that was told before."""
    cache = make(size="512MB" if LONG else "64MB", room=OPERATIONS * 8)
    watch, popped = cache.watch(values=True), Counter[tuple[int, int]]()
    added = Counter[int]()

    def work(me: int) -> None:
        rng = random.Random(me)
        for i in range(OPERATIONS):
            key, value, what = rng.randrange(16), me * 10**7 + i, rng.random()
            if what < 0.6:
                cache[key] = value
            elif what < 0.8:
                if (got := cache.pop(key, None)) is not None:
                    popped[key, got] += 1
            elif what < 0.9:
                added[me] += cache.add(key, value)
            else:
                cache.get_or_set(key, lambda value=value: value)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
        assert not thread.is_alive(), "a thread hangs"
    sys.setswitchinterval(before)
    mirror: dict[Any, Any] = {}
    turn: dict[tuple[Any, int], int] = {}
    kinds = Counter[str]()
    last = 0
    while events := watch.read(10_000, timeout=0):
        for event in events:
            assert event.seq == last + 1 and event.kind in ("set", "replace", "delete")
            last = event.seq
            kinds[str(event.kind)] += 1
            assert mirror.get(event.key) == event.old, "per key in order"
            if event.kind == "delete":
                popped[event.key, event.old] -= 1
            else:
                me, i = divmod(event.value, 10**7)
                assert turn.get((event.key, me), -1) < i, "each thread's own order"
                turn[event.key, me] = i
            follow(mirror, event)
    assert mirror == dict(cache.items()) and last == cache._seq()
    assert kinds["set"] - kinds["delete"] == len(cache) and not any(popped.values())
    assert kinds["set"] >= sum(added.values()) > 0 and last > OPERATIONS
    cache.check()


@pytest.mark.skipif(not hasattr(ObjectCache, "_cursor"), reason="not yet")
def test_an_object_in_an_event_is_the_very_object() -> None:
    cache, value, key = ObjectCache(), object(), (object(),)
    with cache.watch(values=True) as watch:
        cache[key] = value
        cache[key] = None
        first, second = watch.read(timeout=0)
        assert first.value is value is second.old and first.key is key
