"""`Valkey`: what it is given, what it refuses, what is on the server, and threads and processes."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from near import Near
from servers import Server, shared_cluster, shared_server

from gbcache.errors import ClosedError, FarError, ImageError
from gbcache.far import Far, Feed
from gbcache.valkey import PIECE, Valkey


def until(met: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


@pytest.fixture
def server() -> Server:
    server = shared_server()
    with redis.Redis(port=server.port) as client:
        client.flushall()
    return server


@pytest.fixture
def far(server: Server) -> Iterator[Valkey]:
    far = Valkey(server.url, timeout=5)
    yield far
    far.close()


@pytest.fixture
def bare(server: Server) -> Iterator[Any]:
    with redis.Redis(port=server.port) as client:
        yield client


# --- what it is given ------------------------------------------------------------------------


def test_it_is_a_far_and_a_feed(far: Valkey) -> None:
    assert isinstance(far, Far) and isinstance(far, Feed)
    assert re.fullmatch(r"Valkey\(127\.0\.0\.1:\d+, prefix=b'gb:'\)", repr(far))
    far.close()
    assert "closed" in repr(far)


def test_clients_of_any_settings(server: Server) -> None:
    """Their place is taken over, and nothing else; and they stay open."""
    port = server.port
    clients = [
        redis.Redis(port=port, decode_responses=True),
        redis.Redis(port=port, protocol=2),
        redis.Redis(port=port, protocol=3, decode_responses=True, encoding="latin-1"),
        redis.Redis(
            port=port, db=3, client_name="named", health_check_interval=1, socket_timeout=None
        ),
        redis.Redis.from_url(
            f"redis://127.0.0.1:{port}/0?decode_responses=True", max_connections=1
        ),
    ]
    for client in clients:
        far = Valkey(client, timeout=5)
        near = Near(far)
        far.feed(near)
        far.put_many([("é", b"\xff\0", 60), (7, ["x"], None)])
        assert far.get_many([7]) == {7: (["x"], None)}
        until(lambda near=near: near.trusted)
        assert near.read("é") == b"\xff\0"
        far.put_many([("é", 1, None)])
        until(lambda near=near: "é" not in near.copies)
        db = client.get_connection_kwargs().get("db", 0)
        assert far.count() == 2 and client.dbsize() == 2, db
        far.clear()
        far.close()
        assert client.ping()
        client.close()


def test_a_cluster_client() -> None:
    cluster = shared_cluster()
    for server in cluster.servers:  # another test's may be there
        with redis.Redis(port=server.port) as bare:
            bare.flushall()
    with redis.RedisCluster(
        port=cluster.servers[1].port, host="127.0.0.1", decode_responses=True
    ) as client:
        far = Valkey(client, timeout=5)
        far.put_many([(i, i, None) for i in range(50)])
        assert len(far.get_many(range(50))) == 50 == far.count()
        assert all(len(server_keys(server)) > 5 for server in cluster.servers)
        assert far.clear() == 50
        far.close()
        with pytest.raises(ValueError, match="RedisCluster"):
            Valkey(client, cluster=False)


def server_keys(server: Server) -> list[bytes]:
    with redis.Redis(port=server.port) as client:
        return list(client.keys("*"))


def test_a_unix_socket_and_a_password(tmp_path: Path) -> None:
    path = f"/tmp/gbcache-{os.getpid()}.sock"  # pytest's own paths may be too long for one
    own = Server("--unixsocket", path, "--requirepass", "sesam")
    try:
        for url in (f"unix://{path}?password=sesam", f"valkey://:sesam@127.0.0.1:{own.port}"):
            far = Valkey(url)
            near = Near(far)
            far.feed(near)
            assert far.incr("n") == 1 and far.clear() == 1
            until(lambda near=near: near.trusted)
            far.close()
        for wrong in ("redis://127.0.0.1", "redis://:open@127.0.0.1"):
            far = Valkey(f"{wrong}:{own.port}", timeout=5)
            began = time.monotonic()
            with pytest.raises(FarError, match=r"(?i)auth|password") as caught:
                far.put_many([("a", 1, None)])
            assert isinstance(caught.value.__cause__, redis.RedisError)
            assert time.monotonic() - began < 2, "what cannot help is not tried again"
            far.close()
    finally:
        own.close()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"url_or_client": 7}, TypeError, "7 is a int: give a URL"),
        ({"url_or_client": []}, TypeError, "give a URL"),
        ({"url_or_client": "localhost:6379"}, ValueError, "redis://"),
        ({"url_or_client": ["redis://a", "redis://b"], "cluster": False}, ValueError, "several"),
        ({"url_or_client": ["redis://a", "redis://:x@b"]}, ValueError, "differ"),
        ({"url_or_client": "unix:///x", "cluster": True}, ValueError, "Unix socket"),
        ({"url_or_client": "redis://a/3", "cluster": True}, ValueError, "db=3"),
        ({"prefix": ""}, ValueError, "clear"),
        ({"prefix": 1}, TypeError, "prefix=1"),
        ({"codec": "json"}, ValueError, "json"),
        ({"timeout": 0}, ValueError, "timeout=0"),
        ({"timeout": "1"}, TypeError, "timeout='1'"),
        ({"heartbeat": -1}, ValueError, "heartbeat=-1"),
        ({"max_staleness": -1}, ValueError, "max_staleness=-1"),
        ({"retries": -1}, ValueError, "retries=-1"),
        ({"retries": 1.5}, TypeError, "retries=1.5"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=re.escape(says)):
        Valkey(**{"url_or_client": "redis://localhost", **options})


def test_clients_that_cannot_be() -> None:
    from redis.sentinel import Sentinel

    with pytest.raises(TypeError, match="Sentinel"):
        Valkey(Sentinel([("localhost", 1)]).master_for("m"))
    with pytest.raises(ValueError, match="redis_connect_func"):
        Valkey(redis.Redis(redis_connect_func=lambda connection: None))
    from redis.asyncio import Redis

    with pytest.raises(TypeError, match="asyncio"):
        Valkey(Redis())


# --- what is on the server ---------------------------------------------------------------------


def test_keys_are_readable_there(far: Valkey, bare: Any) -> None:
    far.put_many([("user:7", 41, None), (b"\xff", "é", 9), (1, b"x", None), (None, 1.5, None)])
    assert set(bare.keys("*")) == {b"gb:suser:7", b"gb:b\xff", b"gb:i\1\0\0\0\0\0\0\0", b"gb:on"}
    assert bare.incr("gb:suser:7") == 42 and far.incr("user:7") == 43
    assert 8000 < bare.pttl(b"gb:b\xff") <= 9000
    far.put_many([("short", 1, 1e-9)])  # one millisecond, and not none
    assert bare.pttl("gb:sshort") in (-2, 0, 1)


def test_others_keys_are_left_alone(server: Server, bare: Any) -> None:
    """Among them such as a prefix with glob characters would match, were they not escaped."""
    strange = Valkey(server.url, prefix="g[a-z]*?\\^:", timeout=5)
    other = Valkey(server.url, prefix=b"\xff\0:", timeout=5)
    for key in ("g[a-z]*", "ga1", "gz?\\^:sx", "gaxx\\^:sx", "xg[a-z]*?\\^:sx"):
        bare.set(key, "1")
    for far in (strange, other):
        far.put_many([("a", 1, None), ("b", 2, None)])
    for far in (strange, other):
        assert sorted(far.scan()[0]) == ["a", "b"] and far.count() == 2 and far.clear() == 2
        far.close()
    assert bare.dbsize() == 5


def test_many_keys_of_others(far: Valkey, bare: Any) -> None:
    bare.mset({f"other{i}": "x" for i in range(20_000)})
    far.put_many([("mine", 1, None)])
    assert far.scan(count=10)[0] == ["mine"] or far.count() == 1
    assert far.clear() == 1 and bare.dbsize() == 20_000


def test_foreign_values_are_named(far: Valkey, bare: Any) -> None:
    bare.hset("gb:shash", "f", "v")
    bare.set("gb:stext", "no value of ours")
    far.put_many([("good", 1, None)])
    with pytest.raises(ImageError, match=r"gb:shash.*found a hash"):
        far.get_many(["good", "hash"])
    with pytest.raises(ImageError, match=r"gb:stext.*not an encoded value"):
        far.get_many(["text"])
    with pytest.raises(ImageError, match=r"gb:shash.*found a hash"):
        far.incr("hash")
    assert far.add("hash", 1, None) is False
    assert far.delete_many(["hash", "text"]) == [True, True]
    far.put_many([("text", 1, None)])
    assert far.get_many(["good", "text"]) == {"good": (1, None), "text": (1, None)}


@pytest.mark.parametrize("name", [b"gb:", b"gb:x", b"gb:ishort", b"gb:s\xff", b"gb:o"])
def test_foreign_keys_are_named(far: Valkey, bare: Any, name: bytes) -> None:
    bare.set(name, "1")
    with pytest.raises(ImageError, match=re.escape(repr(name))):
        far.scan()
    assert far.count() == 1 and far.clear() == 1 and far.scan() == ([], None)


def test_a_hostile_pickle_is_an_image_error(server: Server, bare: Any) -> None:
    far = Valkey(server.url, codec="pickle")
    far.put_many([("a", {1}, None)])
    assert far.get_many(["a"]) == {"a": ({1}, None)}
    bare.set("gb:sa", b"c\x80\x05.")
    with pytest.raises(ImageError, match="gb:sa"):
        far.get_many(["a"])
    far.close()


@pytest.mark.parametrize("reply", [5, None, b"x", [], [b"v", b"7"], [b"v", None], [b"v", 1, b"w"]])
def test_an_answer_of_another_shape(far: Valkey, monkeypatch: Any, reply: object) -> None:
    monkeypatch.setattr(far._nodes, "run", lambda jobs, again: [reply])
    with pytest.raises(FarError, match="answers 1 keys with"):
        far.get_many(["k"])


def test_a_value_and_its_ttl_belong_together(server: Server, far: Valkey) -> None:
    """Two writers by turns: 0 for ever, 1 for a minute; never is one read with the other's time."""
    stop = threading.Event()

    def write(value: int) -> None:
        mine = Valkey(server.url, timeout=5)
        while not stop.is_set():
            mine.put_many([("k", value, 60 if value else None)])
        mine.close()

    threads = [threading.Thread(target=write, args=(value,)) for value in (0, 1)]
    for thread in threads:
        thread.start()
    seen = set()
    try:
        until(lambda: "k" in far.get_many(["k"]))
        for _ in range(1500):
            value, left = far.get_many(["k"])["k"]
            seen.add(value)
            assert (left is None) == (value == 0)
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert seen == {0, 1}


def test_pieces(far: Valkey) -> None:
    n = 2 * PIECE + 7
    far.put_many([(i, i, 60) for i in range(n)])
    assert {k: v for k, (v, _) in far.get_many(range(n)).items()} == {i: i for i in range(n)}
    big = [(f"b{i}", bytes(9_000_000), None) for i in range(4)]
    far.put_many(big)
    assert [len(far.get_many([key])[key][0]) for key, _, _ in big] == [9_000_000] * 4
    assert far.delete_many([*range(n), 0]) == [True] * n + [False]


# --- threads and processes ------------------------------------------------------------------------


def test_fork(far: Valkey) -> None:
    """The child has connections of its own, and the parent's go on."""
    assert far.incr("n") == 1
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = 0 if [far.incr("n") for _ in range(200)][-1] >= 201 else 2
        finally:
            os._exit(code)
    for _ in range(200):
        far.incr("n")
    assert os.waitpid(pid, 0)[1] == 0
    assert far.incr("n") == 402


def test_nothing_is_left(server: Server) -> None:
    before = threading.active_count()
    descriptors = len(os.listdir("/proc/self/fd"))
    far = Valkey(server.url)
    near = Near(far)
    far.feed(near)
    until(lambda: near.trusted)
    far.get_many(["a"])
    far.close()
    far.close()
    assert threading.active_count() == before and len(os.listdir("/proc/self/fd")) == descriptors
    with pytest.raises(ClosedError):
        far.feed(near)
    gone = Valkey(server.url)
    gone.feed(Near(None))
    gone.get_many(["a"])
    del gone
    until(lambda: threading.active_count() == before)
    until(lambda: len(os.listdir("/proc/self/fd")) == descriptors)
