"""What readers found between rooms: a flight whose place another took, a memory that is not believed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fars import Telling

from gbcache import Cache, ObjectCache, Tiered, memoize


class Key:
    """Its == lets another thread in, at the comparison that `hook` waits for."""

    hook: Callable[[], None] | None = None

    def __init__(self, n: int) -> None:
        self.n = n

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        if Key.hook is not None:
            Key.hook()
        return isinstance(other, Key) and self.n == other.n


@pytest.fixture(autouse=True)
def no_hook() -> Any:
    yield
    Key.hook = None


@pytest.mark.parametrize("at", range(1, 8))
@pytest.mark.parametrize("how", ["pop", "clear", "memoize"])
def test_who_lost_the_place_of_its_flight_stores_nothing(how: str, at: int) -> None:
    """Two find a flight that is over, and both take its place: the one off the board nobody voids."""
    cache: Any = ObjectCache(100)
    source, loads = {"v": "old"}, dict[int, Callable[[], Any]]()
    begun, go, first, seen = threading.Event(), threading.Event(), threading.Event(), 0
    voided = threading.Event()

    def fn(key: Key) -> Any:
        return loads.get(threading.get_ident(), lambda: source["v"])()

    memo = memoize(fn)
    board = memo.cache if how == "memoize" else cache
    get = memo if how == "memoize" else lambda key: cache.get_or_set(key, lambda: fn(key))
    void = memo.cache_invalidate if how == "memoize" else lambda key: cache.pop(key, None)

    def slowly() -> Any:
        value = source["v"]
        begun.set()
        go.wait(0.5)  # where it leads alone, who lets it go waits for it
        return value

    def over() -> Any:
        first.set()
        voided.wait(10)
        go.wait(10)
        return "first"

    def run(load: Callable[[], Any]) -> threading.Thread:
        def call() -> None:
            loads[threading.get_ident()] = load
            get(Key(1))

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        return thread

    threads = [run(over)]
    assert first.wait(10)
    void(Key(1))  # it is void, and has its place still
    voided.set()
    main = threading.get_ident()

    def come() -> None:
        nonlocal seen
        if threading.get_ident() == main:
            seen += 1
            if seen == at:
                Key.hook = None
                threads.append(run(slowly))
                begun.wait(0.3)

    Key.hook = come
    get(Key(1))
    Key.hook = None
    source["v"] = "new"
    cache.clear() if how == "clear" else void(Key(1))
    go.set()
    for thread in threads:
        thread.join(10)
    assert get(Key(1)) == "new"
    assert len(board) == 1


@pytest.mark.parametrize(
    "make", [lambda: Cache("1MB"), lambda: ObjectCache()], ids=["Cache", "ObjectCache"]
)
def test_a_follower_is_not_given_what_memory_is_not_believed(make: Callable[[], Any]) -> None:
    """The far side's answer was over when it came; what memory has is older."""
    far = Telling()
    tier = Tiered(make(), far, on_far_error="serve_stale", stale=60)
    far.listener.restored()
    tier["k"] = "old"
    assert tier.get("k") == "old"
    far.listener.lost()
    with far._lock:
        far.data["k"] = ("new", time.monotonic() + 0.1)
    inside, got = threading.Event(), {}

    def after(verb: str, keys: Any) -> None:
        if verb == "get":
            far.after = lambda verb, keys: None
            inside.set()
            time.sleep(0.4)

    far.after = after
    threads = [
        threading.Thread(target=lambda name=name: got.__setitem__(name, tier.get("k")))  # type: ignore[misc]
        for name in ("leader", "follower")
    ]
    threads[0].start()
    assert inside.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join(10)
    assert got["leader"] == "new" and got["follower"] != "old"
    tier.close()
