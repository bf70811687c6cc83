"""A `Tiered` that is dropped, and not closed, lets go of what it had of a `Valkey` that others share."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import pytest
import redis
from far_contract import until
from feeding import BEAT, a_server  # noqa: F401
from servers import Server

from gbcache import Cache, ObjectCache, Tiered
from gbcache.valkey import Valkey


def lines() -> set[threading.Thread]:
    """The threads that listen to a server."""
    return {each for each in threading.enumerate() if each.name.startswith("gbcache-valkey")}


def listeners(server: Server) -> int:
    """Connections that are told of changes."""
    with redis.Redis(port=server.port) as client:
        return sum("t" in each["flags"] for each in client.client_list())


def made(far: Valkey, near: type[Any] = Cache, **options: Any) -> Tiered:
    tier = Tiered(near("1MB") if near is Cache else near(100), far, **options)
    until(lambda: tier.trusts)
    return tier


@pytest.mark.parametrize("write", ["through", "behind"])
@pytest.mark.parametrize("near", [Cache, ObjectCache])
def test_its_channel_ends_and_no_other(server: Server, near: type[Any], write: str) -> None:
    before, told = lines(), listeners(server)
    far = Valkey(server.url, timeout=5, heartbeat=BEAT)
    kept, dropped = made(far), made(far, near, write=write)
    dropped["k"] = 1
    dropped.sync()
    assert kept["k"] == 1 and len(lines() - before) == 2 and listeners(server) == told + 2
    del dropped
    gc.collect()
    until(lambda: len(lines() - before) == 1 and listeners(server) == told + 1)
    assert len(far._channels) == 1
    far.put_many([("k", 2, None)])
    until(lambda: kept["k"] == 2)
    assert made(far)["k"] == 2  # the next one
    far.close()
    until(lambda: lines() == before)


def test_in_the_thread_that_tells_it(server: Server) -> None:
    """Where the last reference was that of its own channel."""
    before = lines()
    far = Valkey(server.url, timeout=5, heartbeat=BEAT)
    tiers, begun, go_on = [made(far)], threading.Event(), threading.Event()

    def changed(keys: Any) -> None:
        begun.set()
        assert go_on.wait(20)

    tiers[0]._side.changed = changed  # type: ignore[method-assign]
    far.put_many([("k", 1, None)])
    assert begun.wait(20)
    tiers.clear()
    go_on.set()
    until(lambda: gc.collect() >= 0 and lines() == before)
    assert not far._channels and far.get_many(["k"]) == {"k": (1, None)}
    far.close()


def test_one_that_was_not_made(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its channel could not begin: nothing of it stays."""
    before = lines()
    far = Valkey(server.url, timeout=5, heartbeat=BEAT)

    def none(thread: threading.Thread) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        with pytest.raises(MemoryError):
            Tiered(Cache("1MB"), far)
    assert not far._channels and lines() == before
    far.close()


def test_where_no_server_is_to_be_had() -> None:
    """Its thread tries on, and ends between two attempts."""
    before, server = lines(), Server()
    far = Valkey(server.url, timeout=0.2, heartbeat=BEAT)
    server.close()
    tier = Tiered(Cache("1MB"), far)
    until(lambda: len(lines() - before) == 1)
    del tier
    gc.collect()
    until(lambda: lines() == before)
    far.close()


def test_a_close_meanwhile(server: Server) -> None:
    """Tiers that go while their far side is closed: all channels end."""
    before = lines()
    for _ in range(5):
        far = Valkey(server.url, timeout=5, heartbeat=BEAT)
        tiers = [Tiered(Cache("1MB"), far) for _ in range(4)]
        thread = threading.Thread(target=far.close, daemon=True)
        thread.start()
        while tiers:
            tiers.pop()
            time.sleep(0)
        thread.join(20)
        assert not thread.is_alive()
        until(lambda: lines() == before)
        assert not far._channels
