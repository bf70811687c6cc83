"""`Tiered` with ``write="behind"``: a write on its way against all else, and a far side that fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
from fars import Full, Telling
from test_tier_races import OPERATIONS, Gate

from gbcache import Cache, FarError, ObjectCache, Tiered

NEARS = {"Cache": lambda: Cache("1MB"), "ObjectCache": lambda: ObjectCache(100)}


@pytest.fixture(params=NEARS)
def near(request: pytest.FixtureRequest) -> Any:
    return NEARS[request.param]()


class Held:
    """Some threads stop at a place until they are let go."""

    def __init__(self) -> None:
        self.reached, self.gate = threading.Event(), threading.Event()
        self.only: threading.Thread | None = None

    def here(self, only: threading.Thread | None = None) -> None:
        if only is None or threading.current_thread() is only:
            self.reached.set()
            assert self.gate.wait(20)

    def let_go(self) -> None:
        self.gate.set()


class Scene:
    """A tier of which the far side's verbs, the buffer's thread and single writers can be held up."""

    def __init__(self, near: Any, **more: Any) -> None:
        self.far: Any = Telling()
        self.tier = Tiered(near, self.far, write="behind", behind_seconds=0.02, **more)
        self.far.listener.restored()
        self.threads: list[threading.Thread] = []
        self.holds: list[tuple[str, str, Held, threading.Thread | None]] = []
        self.far.hook = lambda verb, keys: self.come("before", verb)
        self.far.after = lambda verb, keys: self.come("after", verb)
        behind: Any = self.tier._behind
        forget = self.tier._side.forget

        def watched(put: Callable[..., Any]) -> Callable[..., Any]:
            def queued(*args: Any) -> Any:
                done = put(*args)
                self.come("after", "queue")
                return done

            return queued

        def forgotten(key: Any) -> None:
            self.come("before", "forget")
            forget(key)

        behind.put, behind.put_many = watched(behind.put), watched(behind.put_many)
        self.tier._side.forget = forgotten  # type: ignore[method-assign]

    def come(self, when: str, what: str) -> None:
        for at, verb, held, only in self.holds:
            if (at, verb) == (when, what):
                held.here(only)

    def hold(self, when: str, what: str, only: threading.Thread | None = None) -> Held:
        held = Held()
        self.holds.append((when, what, held, only))
        return held

    def thread(self, call: Callable[[], Any]) -> threading.Thread:
        self.threads.append(threading.Thread(target=call))
        return self.threads[-1]

    def begin(self, thread: threading.Thread, held: Held) -> None:
        thread.start()
        assert held.reached.wait(10)

    def end(self) -> None:
        for _, _, held, _ in self.holds:
            held.let_go()
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()
        self.tier.sync()

    def agrees(self) -> bool:
        there = self.far.data.get("k", (None,))[0]
        return bool(
            self.tier.near.peek("k", there) == there == self.tier.get("k") == self.tier.get("k")
        )


@pytest.fixture
def scene(near: Any) -> Iterator[Scene]:
    made = Scene(near)
    yield made
    made.end()
    made.tier.close()


# --- a write on its way against what the far side does at once ---------------------------------------


def test_a_write_behind_outlives_an_add_that_began_before_it(scene: Scene) -> None:
    adds = scene.thread(lambda: scene.tier.add("k", 5))
    held = scene.hold("after", "add")
    scene.begin(adds, held)
    scene.tier["k"] = 6
    held.let_go()
    adds.join(10)
    assert scene.tier["k"] == 6
    scene.end()
    assert scene.far.data["k"][0] == 6 and scene.agrees()


def test_a_write_behind_outlives_one_that_is_too_long_for_the_buffer(near: Any) -> None:
    scene = Scene(near, behind_bytes=65536)
    writes = scene.thread(lambda: scene.tier.set("k", "x" * 100_000))
    held = scene.hold("after", "put", writes)
    scene.begin(writes, held)
    scene.tier["k"] = 6
    held.let_go()
    writes.join(10)
    assert scene.tier["k"] == 6
    scene.end()
    assert scene.far.data["k"][0] == 6 and scene.agrees()
    scene.tier.close()


@pytest.mark.parametrize("what", ["set", "set_many"])
def test_an_incr_that_found_nothing_on_its_way(scene: Scene, what: str) -> None:
    """The write is with the far side before the incr is, and in memory after it."""
    tier = scene.tier
    incr = scene.thread(lambda: tier.incr("k"))
    counts = scene.hold("before", "incr")
    scene.begin(incr, counts)
    write = scene.thread(lambda: tier.set("k", 1) if what == "set" else tier.set_many({"k": 1}))
    queued = scene.hold("after", "queue", write)
    written = scene.hold("after", "put")
    scene.begin(write, queued)
    assert written.reached.wait(10)
    counts.let_go()
    incr.join(0.2)
    queued.let_go()
    write.join(10)
    scene.end()
    assert scene.far.data["k"][0] == 2 and scene.agrees()


@pytest.mark.parametrize("read", ["get", "get_many", "get_or_set", "peek"])
def test_what_an_incr_left_is_read_after_it(scene: Scene, read: str) -> None:
    """The write that it counted from is with the far side, and the buffer does not know yet."""
    tier = scene.tier
    reads: dict[str, Callable[[], Any]] = {
        "get": lambda: tier.get("k"),
        "get_many": lambda: tier.get_many(["k"])["k"],
        "get_or_set": lambda: tier.get_or_set("k", lambda: 0),
        "peek": lambda: tier.peek("k"),
    }
    incr = scene.thread(lambda: tier.incr("k"))
    counts = scene.hold("before", "incr")
    scene.begin(incr, counts)
    written = scene.hold("after", "put")
    tier["k"] = 1
    assert written.reached.wait(10)
    counts.let_go()
    incr.join(0.2)
    seen = reads[read]() if not incr.is_alive() else 2
    scene.end()
    assert seen == 2 == scene.far.data["k"][0] and scene.agrees()


def test_of_two_writes_behind_the_first_is_not_seen_after_the_second(scene: Scene) -> None:
    tier = scene.tier
    first = scene.thread(lambda: tier.set("k", 1))
    queued = scene.hold("after", "queue", first)
    forgets = scene.hold("before", "forget", first)
    scene.begin(first, queued)
    tier["k"] = 2
    queued.let_go()
    assert forgets.reached.wait(10)
    assert tier["k"] == 2 == tier.near.get("k", 2)
    scene.end()
    assert scene.agrees()


def test_a_write_behind_is_late_for_memory_and_somebody_else_wrote(scene: Scene) -> None:
    tier = scene.tier
    write = scene.thread(lambda: tier.set("k", 1))
    queued, written = scene.hold("after", "queue", write), scene.hold("after", "put")
    scene.begin(write, queued)
    assert written.reached.wait(10)
    scene.far.foreign("k", 9)
    queued.let_go()
    write.join(10)
    scene.end()
    assert scene.far.data["k"][0] == 9 and scene.agrees()


def test_a_read_keeps_nothing_that_is_on_its_way(scene: Scene) -> None:
    """It may be with the far side already, and somebody else's write over it."""
    tier = scene.tier
    written = scene.hold("after", "put")
    tier["k"] = 1
    assert written.reached.wait(10)
    scene.far.foreign("k", 9)
    assert tier.get_or_set("k", lambda: 0) in (1, 9)
    scene.end()
    assert scene.far.data["k"][0] == 9 and scene.agrees()


def test_an_add_after_a_discard_is_seen(scene: Scene) -> None:
    """The discard is with the far side, and the buffer does not know yet."""
    tier = scene.tier
    made = scene.thread(lambda: tier.get_or_set("k", lambda: "made"))
    adds = scene.hold("before", "add")
    scene.begin(made, adds)
    gone = scene.hold("after", "delete")
    tier.discard("k")
    assert gone.reached.wait(10)
    adds.let_go()
    made.join(0.2)
    seen = tier.get("k") if not made.is_alive() else "made"
    scene.end()
    assert seen == "made" and scene.agrees()


@pytest.mark.parametrize("who", ["first", "buffer"])
def test_two_that_overlap_behind(near: Any, who: str) -> None:
    """As with writes through; what is held up is the first of the two, or the buffer's thread that writes it."""
    for first, second, when in product(OPERATIONS, OPERATIONS, ("hook", "after")):
        tier = Tiered(near, Telling(), write="behind", behind_seconds=0.002, negative_ttl=60)
        far: Any = tier.far
        far.listener.restored()
        tier["k"] = "old"
        tier.sync()
        gate = Gate(far, when)
        begins = threading.Thread(target=OPERATIONS[first], args=(tier,))
        gate.thread = begins if who == "first" else tier._behind._thread  # type: ignore[union-attr]
        begins.start()
        begins.join(0.004)
        other = threading.Thread(target=OPERATIONS[second], args=(tier,))
        other.start()
        other.join(0.004)  # it may wait for the first one
        gate.open.set()
        begins.join(20)
        other.join(20)
        case = f"{first} then {second}, {when}"
        assert not begins.is_alive() and not other.is_alive(), case
        seen = tier.get("k", "nothing")
        tier.sync()
        wanted = far.data.get("k", ("nothing",))[0]
        assert seen == wanted or "foreign" in case or "cut" in case, case
        assert tier.get("k", "nothing") == wanted == tier.near.peek("k", wanted), case
        assert not tier._side._writing and not tier.near._flights, case
        behind: Any = tier._behind
        behind.close()
        near._tier = None  # the next one's
        near.clear()


# --- load, clear, many -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["discard", "expired"])
def test_load_does_not_bring_back_what_was_removed(near: Any, how: str) -> None:
    tier = Tiered(near, Full(), write="behind", behind_seconds=30, load=lambda key: "new")
    for read in (
        lambda key: tier.get_or_set(key, lambda: "x"),
        tier.get,
        lambda key: tier.get_many([key]).get(key),
    ):
        tier["k"] = "old"
        tier.sync()
        if how == "discard":
            tier.discard("k")
        else:
            tier.set("k", "brief", ttl=0.02)
            time.sleep(0.03)
        assert read("k") == "new" == tier["k"] == tier.far.data["k"][0]  # type: ignore[attr-defined]
    tier.close()


def test_a_clear_that_fails_loses_nothing(near: Any) -> None:
    tier = Tiered(near, Full(), write="behind", behind_seconds=30)
    far: Any = tier.far
    tier["k"] = 1
    tier.sync()
    tier["k"] = 2
    far.failing = True
    with pytest.raises(FarError):
        tier.clear()
    far.failing = False
    assert tier["k"] == 2
    tier.sync()
    assert tier["k"] == 2 == far.data["k"][0]

    def fails(verb: str, keys: list[Any]) -> None:
        if verb == "clear":
            raise FarError("not now")

    tier["k"], far.hook = 3, fails
    with pytest.raises(FarError):
        tier.clear()
    tier.sync()
    assert tier["k"] == 3 == far.data["k"][0]
    tier.close()


def test_many_of_which_memory_cannot_hold_one_are_queued_once() -> None:
    tier = Tiered(Cache("64kB"), Full(), write="behind", behind_seconds=30)

    def heard(event: Any) -> None:  # as another thread might, between two steps
        if event.key == "a":
            tier.discard("k")

    tier.near.subscribe(heard, delivery="inline", kinds="set")
    tier.set_many({"k": 1, "a": 2, "big": b"x" * 500_000})
    assert tier.get("k") is None and tier["a"] == 2 and len(tier["big"]) == 500_000
    tier.sync()
    assert tier.get("k") is None and tier["a"] == 2 and len(tier["big"]) == 500_000
    tier.close()


@pytest.mark.parametrize("many", [False, True])
def test_what_a_handler_raises_after_a_write_is_queued_is_no_refusal(near: Any, many: bool) -> None:
    tier = Tiered(near, Full(), write="behind", behind_seconds=30)
    behind: Any = tier._behind
    tier["k"] = "old"
    put, put_many = behind.put, behind.put_many

    def interrupted(*args: Any) -> None:
        put_many(*args) if many else put(*args)
        raise ValueError("a signal's handler")

    behind.put = behind.put_many = interrupted
    with pytest.raises(ValueError, match="handler"):
        tier.update({"k": "new"}) if many else tier.set("k", "new")
    assert tier["k"] == "new"
    behind.put, behind.put_many = put, put_many
    for refused in ((object(), 1), ("k", object()), ("k", lambda: 1)):
        with pytest.raises(TypeError):
            tier.set_many([refused, ("other", 2)]) if many else tier.set(*refused)
    assert tier["k"] == "new" and tier.get("other") is None and not tier._side.doubted
    tier.close()


# --- near_only ---------------------------------------------------------------------------------------


def test_what_only_memory_has_is_gone_though_the_far_side_answered_meanwhile(near: Any) -> None:
    tier = Tiered(near, Full(), on_far_error="near_only")
    far: Any = tier.far
    fails = [True]

    def heard(event: Any) -> None:  # as another thread might
        if event.key == "a" and fails[0]:
            fails[0] = far.failing = False
            tier.get("other")

    near.subscribe(heard, delivery="inline", kinds="set")
    far.failing = True
    tier.set_many({"a": 1, "b": 2, "c": 3})
    tier.get("another")
    assert not fails[0] and tier.get_many("abc") == {}


def test_only_memory_and_it_cannot_hold_one() -> None:
    tier = Tiered(Cache("64kB"), Full(), on_far_error="near_only")
    far: Any = tier.far
    far.failing = True
    with pytest.raises(FarError):
        tier.set_many({"a": 1, "big": b"x" * 500_000, "b": 2})
    assert tier["a"] == 1 and tier["b"] == 2 and tier.get("big") is None
    with pytest.raises(FarError):
        tier["b"] = b"x" * 500_000
    assert tier.get("b") is None
    far.failing = False
    assert tier.get("other") is None and tier.get("a") is None


def test_only_memory_where_the_buffer_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gbcache.pending.LONGEST", 0.05)
    tier = Tiered(
        Cache("2MB"),
        Full(),
        write="behind",
        behind_bytes=65536,
        behind_seconds=0.02,
        on_far_error="near_only",
    )
    far: Any = tier.far
    far.failing = True
    for i in range(60):
        tier[i] = "x" * 2000
    tier.set_many({"m": "x" * 2000, "n": "y" * 2000})
    assert all(tier[i] == "x" * 2000 for i in range(60)) and tier["n"] == "y" * 2000
    far.failing = False
    tier.sync()
    held = [i for i in range(60) if i in far.data]
    assert 0 < len(held) < 60 and [i for i in range(60) if tier.get(i) is not None] == held
    tier.close()
