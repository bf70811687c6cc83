"""`Valkey` with a cluster whose slots move, whose nodes come and go, and what is told of changes meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from near import Near
from redis.crc import key_slot
from servers import Cluster, Server

from gbcache.errors import FarError
from gbcache.valkey import Valkey

BEAT = 0.2


def until(met: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Its tests change it, each from where the one before left it; all leave it whole."""
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture
def far(cluster: Cluster) -> Iterator[Valkey]:
    far = Valkey(cluster.urls[:2], timeout=0.8, heartbeat=BEAT)
    far.clear()
    yield far
    far.close()


@pytest.fixture
def near(far: Valkey) -> Near:
    near = Near(far)
    far.feed(near)
    until(lambda: near.trusted)
    return near


def at(server: Server) -> Any:
    return redis.Redis(port=server.port, decode_responses=True, protocol=3)


def ask(server: Server, *words: Any) -> Any:
    with at(server) as client:
        return client.execute_command(*words)


def id_of(server: Server) -> str:
    return str(ask(server, "CLUSTER", "MYID"))


def owner(cluster: Cluster, slot: int) -> Server:
    for first, last, primary, *_ in ask_slots(cluster.servers[0]):
        if first <= slot <= last:
            return next(server for server in cluster.servers if server.port == primary[1])
    raise AssertionError("no owner")


def ask_slots(server: Server) -> list[Any]:
    with redis.Redis(port=server.port) as client:
        connection = client.connection_pool.get_connection()
        connection.send_command("CLUSTER", "SLOTS")
        reply = connection.read_response()
        client.connection_pool.release(connection)
        return list(reply)


def begin_move(source: Server, target: Server, slot: int) -> None:
    ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", id_of(source))
    ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", id_of(target))


def move_keys(source: Server, target: Server, slot: int, most: int = 1000) -> None:
    keys = ask(source, "CLUSTER", "GETKEYSINSLOT", slot, most)
    if keys:
        ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 2000, "KEYS", *keys)


def end_move(cluster: Cluster, target: Server, slot: int) -> None:
    name = id_of(target)
    for server in [target, *(s for s in cluster.servers if s is not target)]:
        ask(server, "CLUSTER", "SETSLOT", slot, "NODE", name)


def test_every_node_is_heard(cluster: Cluster, far: Valkey, near: Near) -> None:
    other = Valkey(cluster.urls[2], cluster=True, timeout=5)
    keys = list(range(200))
    far.put_many([(key, "old", None) for key in keys])
    until(lambda: near.changes >= 200)
    assert [near.read(key) for key in keys] == ["old"] * 200 and len(near.copies) == 200
    other.put_many([(key, "new", None) for key in keys])
    until(lambda: not near.copies)
    assert near.told == ["restored"]
    for key in keys:
        near.read(key)
    ask(cluster.servers[1], "FLUSHALL")
    until(lambda: not near.copies)  # of all nodes': which keys it was is not said
    left = len(far.get_many(keys))
    assert 0 < left < 200 and far.count() == left
    other.close()


def test_a_slot_moves_key_by_key(cluster: Cluster, far: Valkey, near: Near) -> None:
    """ASK while it is under way, MOVED after it; and what is written is told, wherever."""
    keys = [f"{{tag}}{i}" for i in range(20)]
    slot = key_slot(b"tag")
    source = owner(cluster, slot)
    target = next(server for server in cluster.servers if server is not source)
    far.put_many([(key, 1, None) for key in keys])
    assert len({near.read(key) for key in keys}) == 1
    begin_move(source, target, slot)
    move_keys(source, target, slot, most=10)
    assert [near.read(key) for key in keys] == [1] * 20
    assert set(far.get_many(keys)) == set(keys) and far.count() == 20  # half here, half there
    far.put_many([(key, 2, None) for key in keys])
    assert far.delete_many([keys[0], keys[-1], "none"]) == [True, True, False]
    assert far.incr(keys[5]) == 3 and far.add(keys[0], 9) is True
    move_keys(source, target, slot)
    end_move(cluster, target, slot)
    until(lambda: owner(cluster, slot) is target)
    assert {k: v for k, (v, _) in far.get_many(keys).items()} == dict.fromkeys(keys[1:-1], 2) | {
        keys[5]: 3,
        keys[0]: 9,
    }
    until(lambda: near.read(keys[1]) == 2)
    far.put_many([(keys[1], 4, None)])
    until(lambda: near.read(keys[1]) == 4)
    assert near.told[0] == "restored"


def test_a_node_that_stands_still(cluster: Cluster, far: Valkey, near: Near) -> None:
    keys = list(range(60))
    far.put_many([(key, key, None) for key in keys])
    still = cluster.servers[2]
    theirs = [k for k in keys if owner(cluster, key_slot(far._name(k))) is still]
    others = [k for k in keys if k not in theirs]
    assert theirs and others
    still.stop()
    began = time.monotonic()
    try:
        until(lambda: near.told[-1] == "lost")
        assert time.monotonic() - began < 2 * BEAT + 0.4
        assert len(far.get_many(others)) == len(others)
        for call in (lambda: far.get_many(theirs), lambda: far.incr(theirs[0]), far.count):
            began = time.monotonic()
            with pytest.raises(FarError):
                call()
            assert time.monotonic() - began < 1.2
    finally:
        still.go_on()
    until(lambda: near.told[-1] == "restored")
    until(lambda: ask(still, "CLUSTER", "INFO") and all_well(cluster))
    assert len(far.get_many(keys)) == 60 or len(far.get_many(others)) == len(others)


def all_well(cluster: Cluster) -> bool:
    for server in cluster.servers:
        info = ask(server, "CLUSTER", "INFO")
        text = info if isinstance(info, str) else "\n".join(f"{k}:{v}" for k, v in info.items())
        if "cluster_slots_ok:16384" not in text or "cluster_state:ok" not in text:
            return False
    return True


def test_a_new_primary_is_listened_to(cluster: Cluster, far: Valkey, near: Near) -> None:
    slot = key_slot(b"new")
    source = owner(cluster, slot)
    target = cluster.add()
    ask(target, "CLUSTER", "MEET", "127.0.0.1", source.port)
    until(lambda: all_well(cluster))
    told = len(near.told)
    begin_move(source, target, slot)
    end_move(cluster, target, slot)
    until(lambda: near.told[told:] == ["lost", "restored"])
    other = Valkey(cluster.urls[0], cluster=True, timeout=5)
    other.put_many([("{new}", 1, None)])
    until(lambda: near.read("{new}") == 1 and "{new}" in near.copies)
    other.put_many([("{new}", 2, None)])
    until(lambda: near.read("{new}") == 2)
    assert ask(target, "DBSIZE") == 1 == far.count()
    other.close()


def test_what_was_read_by_ask_is_told_of(cluster: Cluster, far: Valkey, near: Near) -> None:
    """From a node that has no slot yet: it is in no map, and only who was sent there knows of it."""
    slot = key_slot(b"asked")
    source = owner(cluster, slot)
    target = cluster.add()
    ask(target, "CLUSTER", "MEET", "127.0.0.1", source.port)
    until(lambda: all_well(cluster))
    far.put_many([("{asked}", 1, None)])
    begin_move(source, target, slot)
    move_keys(source, target, slot)
    until(lambda: near.read("{asked}") == 1 and "{asked}" in near.copies)
    time.sleep(2 * BEAT)  # the bound
    until(lambda: near.read("{asked}") == 1 and "{asked}" in near.copies)
    other = Valkey(cluster.urls[0], cluster=True, timeout=5)
    other.put_many([("{asked}", 2, None)])
    until(lambda: near.read("{asked}") == 2, 5)
    end_move(cluster, target, slot)
    until(lambda: owner(cluster, slot) is target)
    other.put_many([("{asked}", 3, None)])
    until(lambda: near.read("{asked}") == 3 and "{asked}" in near.copies)
    other.close()


def test_failover(cluster: Cluster, far: Valkey, near: Near) -> None:
    """A replica takes over, by order; then its old primary is killed, and nobody misses it."""
    primary = cluster.servers[0]
    replica = cluster.add()
    ask(replica, "CLUSTER", "MEET", "127.0.0.1", primary.port)
    until(lambda: id_of(primary) in str(ask(replica, "CLUSTER", "NODES")))
    until(lambda: all_well(cluster))
    ask(replica, "CLUSTER", "REPLICATE", id_of(primary))
    keys = list(range(100))
    far.put_many([(key, "old", None) for key in keys])
    until(lambda: "master_link_status:up" in str(ask_text(replica, "INFO", "replication")))
    until(lambda: ask(replica, "DBSIZE") == ask(primary, "DBSIZE"))
    for key in keys:
        near.read(key)
    told = len(near.told)
    ask(replica, "CLUSTER", "FAILOVER")
    until(lambda: "role:master" in ask_text(replica, "INFO", "replication"))
    until(lambda: near.told[told:] == ["lost", "restored"])
    assert [near.read(key) for key in keys] == ["old"] * 100
    primary.kill()
    far.put_many([(key, "new", None) for key in keys])
    until(lambda: near.told[-1] == "restored" and all(near.read(key) == "new" for key in keys))
    far.put_many([(key, "newer", None) for key in keys])
    until(lambda: all(near.read(key) == "newer" for key in keys))


def ask_text(server: Server, *words: str) -> str:
    with redis.Redis(port=server.port) as client:
        connection = client.connection_pool.get_connection()
        connection.send_command(*words)
        reply = connection.read_response()
        client.connection_pool.release(connection)
        return bytes(reply).decode()
