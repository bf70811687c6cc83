"""The whole cache against a dumb model that knows exact LRU order, deadlines and values.

What the model cannot know is how many entries a full image must give up: there it follows the cache, but
insists that whoever left was due, or older than everyone who stayed.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

from conftest import Clock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import gbcache
from gbcache._packed import BUILD, smallest

KEYS = st.one_of(
    st.integers(0, 40),
    st.integers(0, 20).map(lambda i: f"key-{i}"),
    st.integers(0, 5).map(lambda i: ("t", i)),
    st.integers(0, 3).map(lambda i: b"long" * (60 + i)),
)
WINDOW = BUILD["window_bytes"]


def ambiguous(n: int) -> bool:
    """Whether a value so long lies in its entry's block or in a chain depends on its key."""
    return WINDOW - 400 < n <= WINDOW


VALUES = st.one_of(
    st.integers(-(2**70), 2**70),
    st.none(),
    st.booleans(),
    st.floats(allow_nan=False),
    st.text(max_size=30),
    st.integers(0, 2000).filter(lambda n: not ambiguous(n)).map(bytes),
    st.integers(3000, 20_000).filter(lambda n: not ambiguous(n)).map(lambda n: b"L" * n),
    st.lists(st.integers(), max_size=8),
)
TTLS = st.one_of(st.none(), st.integers(1, 20), st.floats(0.001, 5.0), st.integers(10**6, 10**8))


def ms(seconds: float) -> int:
    return max(1, int(seconds * 1000 + 0.0005))


class Twin(RuleBasedStateMachine):
    """`model`: key -> (value, deadline in ms or None), least recently used first."""

    @initialize(extra=st.integers(0, 30_000), entries=st.sampled_from([None, None, 7]))
    def start(self, extra: int, entries: int | None) -> None:
        self.clock = Clock()
        self.base = 1000.0
        self.entries = entries
        self.cache: Any = self.make(extra)
        self.model: OrderedDict[Any, tuple[Any, int | None]] = OrderedDict()
        self.before = self.cache.stats()

    def make(self, extra: int) -> Any:
        return gbcache.Cache(smallest() + extra, max_entries=self.entries, clock=self.clock)

    def waits(self, value: Any) -> bool:
        """Whether get_many reads such a value after its group."""
        return isinstance(value, bytes) and len(value) > WINDOW

    def now(self) -> int:
        return int((self.clock.now - self.base) * 1000 + 0.0005)

    def live(self, key: Any) -> bool:
        held = self.model.get(key)
        return held is not None and (held[1] is None or held[1] > self.now())

    def follow(self) -> None:
        """Drops from the model what is gone; only the due and the oldest may be."""
        present = dict.fromkeys(self.cache, True)
        kept_older = False
        for key in list(self.model):
            if key in present:
                kept_older = True
            elif not self.live(key):
                del self.model[key]
            else:
                assert not kept_older, f"{key!r} left before an older one"
                del self.model[key]
        assert list(present) == list(self.model), "the same keys in the same order"

    def write(self, key: Any, value: Any, ttl: float | None) -> None:
        self.model.pop(key, None)
        self.model[key] = (value, None if ttl is None else self.now() + ms(ttl))

    @rule(key=KEYS, value=VALUES, ttl=TTLS)
    def set(self, key: Any, value: Any, ttl: float | None) -> None:
        try:
            self.cache.set(key, value, ttl=ttl)
        except gbcache.BudgetError:
            assert len(value) > self.cache.max_bytes // 3
            return
        self.write(key, value, ttl)

    @rule(key=KEYS, value=VALUES)
    def add(self, key: Any, value: Any) -> None:
        try:
            added = self.cache.add(key, value)
        except gbcache.BudgetError:
            return
        assert added == (not self.live(key))
        if added:
            self.write(key, value, None)

    @rule(key=KEYS)
    def get(self, key: Any) -> None:
        absent = object()
        got = self.cache.get(key, absent)
        if self.live(key):
            assert got == self.model[key][0] and type(got) is type(self.model[key][0])
            self.model.move_to_end(key)
        else:
            assert got is absent
            self.model.pop(key, None)

    @rule(keys=st.lists(KEYS, max_size=20))
    def get_many(self, keys: list[Any]) -> None:
        got = self.cache.get_many(keys)
        assert got == {k: self.model[k][0] for k in keys if self.live(k)}
        late = []  # long values and due entries are read after their group
        for i in range(0, len(keys), 16):
            group = keys[i : i + 16]
            for key in group:
                if self.live(key):
                    if self.waits(self.model[key][0]):
                        late.append(key)
                    else:
                        self.model.move_to_end(key)
            for key in late:
                self.model.move_to_end(key)
            late = []

    @rule(key=KEYS)
    def look(self, key: Any) -> None:
        absent = object()
        assert (key in self.cache) == self.live(key)
        got = self.cache.peek(key, absent)
        assert got == self.model[key][0] if self.live(key) else got is absent
        if self.live(key):
            deadline = self.model[key][1]
            left = self.cache.ttl(key)
            assert left is None if deadline is None else left == (deadline - self.now()) / 1000

    @rule(key=KEYS)
    def delete(self, key: Any) -> None:
        assert self.cache.delete_many([key]) == self.live(key)
        self.model.pop(key, None)

    @rule(key=KEYS)
    def pop(self, key: Any) -> None:
        absent = object()
        got = self.cache.pop(key, absent)
        assert got == self.model[key][0] if self.live(key) else got is absent
        self.model.pop(key, None)

    @rule()
    def popitem(self) -> None:
        self.drop_due()
        if self.model:
            assert self.cache.popitem() == next((k, v[0]) for k, v in self.model.items())
            self.model.popitem(last=False)

    @rule(key=KEYS, ttl=TTLS)
    def touch(self, key: Any, ttl: float | None) -> None:
        there = self.live(key)
        assert self.cache.touch(key, ttl=ttl) == there
        if there:
            self.write(key, self.model[key][0], ttl)
        else:
            self.model.pop(key, None)

    @rule(key=KEYS, delta=st.integers(-5, 5))
    def incr(self, key: Any, delta: int) -> None:
        held = self.model[key][0] if self.live(key) else 0
        if type(held) is not int or not -(2**63) <= held < 2**63 - 10:
            return
        assert self.cache.incr(key, delta) == held + delta
        deadline = self.model[key][1] if self.live(key) else None
        self.model.pop(key, None)
        self.model[key] = (held + delta, deadline)

    @rule(seconds=st.one_of(st.floats(0, 3), st.integers(10, 10**7)))
    def wait(self, seconds: float) -> None:
        self.clock.pass_(seconds)

    @rule()
    def expire(self) -> None:
        self.drop_due()

    def drop_due(self) -> None:
        for _ in range(len(self.model) + 2):  # one that falls due in a tick waits for its end
            self.clock.pass_(0.008)
            due = [k for k in self.model if not self.live(k)]
            self.cache.expire()
            for key in due:
                del self.model[key]
            held = list(self.cache)
            assert held == list(self.model), "everything due is gone, nothing else"
            if len(self.cache) == len(held):
                return
        raise AssertionError("what is due stays")

    @rule(extra=st.integers(0, 60_000))
    def resize(self, extra: int) -> None:
        self.cache.resize(smallest() + extra)

    @rule(odds=st.integers(0, 9))
    def clear(self, odds: int) -> None:
        if odds == 0:
            self.cache.clear()
            self.model.clear()

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.check()
        memory = self.cache.memory()
        assert sum(memory.parts.values()) == memory.total
        assert memory.total <= getattr(self.cache, "max_bytes", memory.total)
        self.follow()
        assert self.entries is None or len(self.cache) <= self.entries
        stats = self.cache.stats()
        assert all(steps <= BUILD["steps_max"] for steps in stats.max_steps.values()), (
            stats.max_steps
        )

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            for key, (value, _) in self.model.items():
                if self.live(key):
                    assert self.cache[key] == value
            self.cache.close()


class ObjectTwin(Twin):
    """The same twin; what is held is held by reference, and the bound on entries is kept exactly."""

    def make(self, extra: int) -> Any:
        return gbcache.ObjectCache(self.entries, clock=self.clock)

    def waits(self, value: Any) -> bool:
        return False

    @rule(key=KEYS)
    def is_it(self, key: Any) -> None:
        if self.live(key):
            assert self.cache.peek(key) is self.model[key][0] or key in self.counted()

    def counted(self) -> set[Any]:
        """Ints may be equal and not the same, where incr made them."""
        return {k for k, (v, _) in self.model.items() if type(v) is int}

    @rule(extra=st.integers(0, 60_000))
    def resize(self, extra: int) -> None:
        self.entries = extra % 20 or None
        self.cache.resize(self.entries)

    @rule(key=st.integers(1000, 1100))
    def exactly_one_leaves(self, key: int) -> None:
        self.drop_due()
        before, there = len(self.model), key in self.model
        self.set(key, None, None)
        wanted = before if there else before + 1
        assert len(self.cache) == (min(wanted, self.entries) if self.entries else wanted)


TestTwin = Twin.TestCase
TestObjectTwin = ObjectTwin.TestCase
TestTwin.settings = TestObjectTwin.settings = settings(
    max_examples={"short": 25, "long": 3000}.get(os.environ.get("GB_SLICE", ""), 60),
    stateful_step_count=60,
    deadline=None,
)
