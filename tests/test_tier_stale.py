"""What memory keeps past its time for when the far side fails, while that tells of what expires there."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest
from fars import Telling, settle
from servers import Server

from gbcache import Cache, FarError, ObjectCache, Tiered

NEARS = {
    "Cache": lambda **more: Cache("1MB", **more),
    "ObjectCache": lambda **more: ObjectCache(100, **more),
}


@pytest.fixture(params=NEARS)
def made(request: pytest.FixtureRequest) -> Any:
    """A near cache of the options."""
    return NEARS[request.param]


def telling(near: Any, **more: Any) -> tuple[Tiered, Any]:
    tier = Tiered(near, Telling(), on_far_error="serve_stale", stale=60, **more)
    far: Any = tier.far
    far.listener.restored()
    return tier, far


def expired(tier: Tiered, key: Any) -> None:
    settle(lambda: key not in tier.near)


def test_what_expired_stays_when_the_far_side_tells_so(made: Any) -> None:
    tier, far = telling(made())
    tier.set("k", 1, ttl=0.05)
    tier.set("l", 1, ttl=60)
    expired(tier, "k")
    far.listener.changed(["k", "l", "x" * 5000])
    far.failing = True
    assert tier["k"] == 1 and tier.get_many(["k"]) == {"k": 1}
    with pytest.raises(FarError):  # it was changed
        tier.get("l")
    far.failing = False
    settle(lambda: tier.get("k") is None)
    assert tier["l"] == 1 and tier.trusts


def test_it_is_over_in_memory_before_it_is_over_there(made: Any) -> None:
    """Else what is told in between would take it out."""
    for many in (False, True):
        tier, far = telling(made())
        far.data["k"] = 1, time.monotonic() + 60
        if many:
            tier.set_many({"k": 1}, ttl=60)
        else:
            assert tier["k"] == 1
        left: Any = tier.near.ttl("k")
        assert left < far.data["k"][1] - time.monotonic() - 0.005
        assert left > 59


def test_a_flight_is_void_all_the_same(made: Any) -> None:
    tier, far = telling(made())
    tier.set("k", "old", ttl=0.03)
    expired(tier, "k")
    far.data["k"] = "older", None
    reached, go = threading.Event(), threading.Event()

    def hold(verb: str, keys: list[Any]) -> None:
        reached.set()
        assert go.wait(10)

    far.after = hold
    reads = threading.Thread(target=tier.get, args=("k",))
    reads.start()
    assert reached.wait(10)
    far.after = lambda verb, keys: None
    far.foreign("k", "new")
    go.set()
    reads.join(10)
    assert tier["k"] == "new"


def test_memory_with_a_ttl_of_its_own_keeps_nothing_that_was_changed(made: Any) -> None:
    tier, far = telling(made(ttl=0.03))
    tier["k"] = "old"
    expired(tier, "k")
    far.foreign("k", "new")
    far.failing = True
    with pytest.raises(FarError):
        tier.get("k")


def test_a_server_that_is_gone_after_it_told_of_what_expired(made: Any) -> None:
    pytest.importorskip("redis")
    from gbcache import Valkey

    server = Server()
    with contextlib.closing(server):
        far, other = (Valkey(server.url, timeout=0.3, heartbeat=5) for _ in range(2))
        tier = Tiered(made(), far, on_far_error="serve_stale", stale=60)
        settle(lambda: tier.trusts)
        for i in range(8):
            tier.set(f"k{i}", i, ttl=0.3)
        settle(lambda: tier.stats().invalidations >= 8)  # of its own writes
        assert tier.get_many([f"k{i}" for i in range(8)]) == {f"k{i}": i for i in range(8)}
        assert len(tier.near) == 8
        told, end = tier.stats().invalidations, time.monotonic() + 10
        while tier.stats().invalidations < told + 8:  # at once: whoever asks has it expire
            other.get_many([f"k{i}" for i in range(8)])
            assert time.monotonic() < end
        server.close()
        assert [tier.get(f"k{i}") for i in range(8)] == list(range(8))
        tier.close()
        other.close()
