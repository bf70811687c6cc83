"""`Valkey` where nobody answers, or not what was hoped for: how long a call takes, and what is sent again."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from far_contract import until
from proxy import Proxy
from servers import Server, free_port, shared_cluster, shared_server

from gbcache import Cache, Tiered
from gbcache.errors import FarError, ImageError
from gbcache.valkey import Valkey
from gbcache.wire import DEPTH, _Answers

LATE = 0.4
"""Seconds a busy machine may add to a time-out."""


@pytest.fixture
def own() -> Iterator[Server]:
    """One that may be stopped."""
    server = Server()
    yield server
    server.close()


def calls(far: Valkey) -> list[Callable[[], object]]:
    return [
        lambda: far.get_many(["a"]), lambda: far.put_many([("a", 1, None)]), lambda: far.delete_many(["a"]),
        far.scan, far.count, far.clear, far.sync, lambda: far.incr("n"), lambda: far.add("b", 1),
    ]  # fmt: skip


def fails_within(call: Callable[[], object], seconds: float) -> None:
    began = time.monotonic()
    with pytest.raises(FarError) as caught:
        call()
    assert time.monotonic() - began < seconds + LATE
    assert isinstance(caught.value.__cause__, redis.RedisError)


def test_no_call_outlasts_its_time_out(own: Server) -> None:
    """The server stands still: connections to it are made, by the system, and say nothing."""
    far = Valkey(own.url, timeout=0.15)
    far.put_many([("a", 1, None)])
    own.stop()
    try:
        for call in calls(far):
            fails_within(call, 0.15)
    finally:
        own.go_on()
    far.put_many([("after", 1, None)])  # of what was sent meanwhile, anything may have been done
    assert far.get_many(["after"]) == {"after": (1, None)}
    far.close()


def test_nor_against_a_server_that_dribbles(own: Server) -> None:
    """A byte now and then keeps a time-out for each wait from ever ending; not ours."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def dribble() -> None:
            sock, _ = door.accept()
            with sock:
                try:
                    for byte in b"$1000\r\n" + bytes(1000):
                        sock.sendall(b"%c" % byte)
                        time.sleep(0.02)
                except OSError:
                    return

        thread = threading.Thread(target=dribble)
        thread.start()
        far = Valkey(f"redis://127.0.0.1:{door.getsockname()[1]}", timeout=0.3)
        fails_within(lambda: far.incr("n"), 0.3)
        far.close()
        thread.join(10)


def test_nobody_listens() -> None:
    far = Valkey(f"redis://127.0.0.1:{free_port()}", timeout=0.2)
    for call in calls(far):
        fails_within(call, 0.2)
    far.close()
    few = Valkey(f"redis://127.0.0.1:{free_port()}", timeout=60, retries=1)
    fails_within(lambda: few.get_many(["a"]), 0.1)
    few.close()


@pytest.mark.parametrize(
    "answer", ["LOADING it", "READONLY it", "TRYAGAIN it", "CLUSTERDOWN it", "MASTERDOWN it"]
)
def test_not_now(answer: str) -> None:
    """What a server says without having done a thing: a write, too, is sent again."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            while len(asked) < 3:
                sock, _ = door.accept()
                with sock:
                    while len(asked) < 3 and (data := sock.recv(1000)):
                        asked.append(data)
                        sock.sendall(b"+OK\r\n" if len(asked) == 3 else f"-{answer}\r\n".encode())

        thread = threading.Thread(target=serve)
        thread.start()
        far = Valkey(f"redis://127.0.0.1:{door.getsockname()[1]}", timeout=5)
        far.put_many([("a", 1, None)])
        thread.join(10)
        far.close()
    assert asked == [b"*3\r\n$3\r\nSET\r\n$5\r\ngb:sa\r\n$1\r\n1\r\n"] * 3


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$x\r\n", b"", b":1", b"*2\r\n+OK\r\n"]
)
def test_no_server_of_this_kind(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            sock, _ = door.accept()
            with sock:
                sock.recv(1000)
                sock.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        far = Valkey(f"redis://127.0.0.1:{door.getsockname()[1]}", timeout=5)
        fails_within(lambda: far.incr("n"), 0.1)
        far.close()
        thread.join(10)


def test_a_server_started_again_is_found_again(own: Server) -> None:
    far = Valkey(own.url, timeout=10, retries=100)
    assert far.incr("n") == 1
    own.kill()
    own.start()
    assert far.incr("n") == 1  # a dead idle connection is seen before anything is sent on it
    own.kill()
    thread = threading.Timer(0.3, own.start)
    thread.start()
    assert far.incr("n", 5) == 5  # tried again until it is there
    thread.join()
    far.close()


def test_a_write_that_was_sent_is_not_sent_again(own: Server) -> None:
    proxy = Proxy(own.port)
    far = Valkey(proxy.url, timeout=5)
    assert far.incr("n") == 1
    proxy.hold()
    threading.Timer(0.1, proxy.cut).start()
    fails_within(lambda: far.incr("n"), 0.1)
    proxy.let()
    assert far.get_many(["n"])["n"][0] == 1
    proxy.hold()  # a read is
    threading.Timer(0.1, lambda: (proxy.cut(), proxy.let())).start()
    assert far.get_many(["n"])["n"][0] == 1
    far.close()
    proxy.close()


def test_what_the_server_refuses() -> None:
    server = shared_server()
    bare = redis.Redis(port=server.port)
    bare.execute_command(
        "ACL", "SETUSER", "reader", "on", ">x", "~gb:*", "+get", "+pttl", "+eval", "+type"
    )
    far = Valkey(f"redis://reader:x@127.0.0.1:{server.port}", timeout=5)
    bare.set("gb:sa", "1")
    assert far.get_many(["a"]) == {"a": (1, None)}
    with pytest.raises(FarError, match="permission") as caught:
        far.put_many([("a", 2, None)])
    assert isinstance(caught.value.__cause__, redis.ResponseError)
    far.close()
    lost = Valkey(shared_cluster().urls[0], timeout=5)
    for call in (
        lambda: lost.get_many(range(100)),
        lambda: lost.put_many([(i, i, None) for i in range(100)]),
    ):
        with pytest.raises(FarError, match="cluster=True"):
            call()
    lost.close()
    bare.execute_command("ACL", "DELUSER", "reader")
    bare.close()


def test_a_full_server(own: Server) -> None:
    far = Valkey(own.url, timeout=5)
    far.put_many([("a", 1, None)])
    with redis.Redis(port=own.port) as client:
        client.config_set("maxmemory", "100kb")
        client.config_set("maxmemory-policy", "noeviction")
    with pytest.raises(FarError, match="maxmemory") as raised:
        far.put_many([("b", 1, None)])
    assert raised.value.errno == errno.ENOSPC
    with pytest.raises(FarError, match="maxmemory"):
        far.incr("n")
    assert far.get_many(["a"]) == {"a": (1, None)} and far.delete_many(["a"]) == [True]
    far.close()


def test_behind_a_full_server_removals_go_first(own: Server) -> None:
    """What has no room waits, and lets by what makes some."""
    tier = Tiered(Cache("8MB"), Valkey(own.url, timeout=5), write="behind", behind_seconds=0.02)
    tier["old"] = "x" * 200_000
    tier.sync()
    with redis.Redis(port=own.port) as client:
        client.config_set("maxmemory-policy", "noeviction")

        def is_full() -> bool:
            """It gives back what it had for a line, too: then there is room once more."""
            client.config_set("maxmemory", client.info("memory")["used_memory"] - 100_000)
            tier["new"] = "y"
            try:
                tier.sync()
            except FarError as error:
                return "maxmemory" in str(error)
            return False

        until(is_full)
        tier.discard("old")
        until(lambda: tier.stats().at_risk.entries == 0)
        assert client.dbsize() == 1
    tier.close()


# --- a server that lies ---------------------------------------------------------------------------


class Liar:
    """Answers everything with the same bytes."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = answers
        self.door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.door.getsockname()[1])
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock = self.door.accept()[0]
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), sock, sock.makefile("rb") as said:
            while line := said.readline():
                for _ in range(int(line[1:])):
                    said.read(int(said.readline()[1:]) + 2)
                sock.sendall(self.answers[0])

    def close(self) -> None:
        self.door.close()


LIES = {
    "deep": b"*1\r\n" * 2000 + b":1\r\n",
    "deep maps": b"%1\r\n:1\r\n" * 2000 + b":1\r\n",
    "a list as a key": b"%1\r\n*0\r\n:1\r\n",
    "a map as a key": b"%1\r\n%0\r\n:1\r\n",
    "no list": b"*0\r\n",
    "a word": b"+x\r\n",
    "a number": b":1\r\n",
    "a long number": b":" + b"9" * 400 + b"\r\n",
    "a longer one": b":" + b"9" * 5000 + b"\r\n",
    "nothing": b"_\r\n",
    "a length below zero": b"*300000000\r\n$ -8\r\n",
    "a page of no names": b"*2\r\n$1\r\n0\r\n*1\r\n:1\r\n",
    "no cursor": b"*2\r\n$1\r\nx\r\n*0\r\n",
    "a list for a cursor": b"*2\r\n*0\r\n*0\r\n",
    "a late death": b"*2\r\n$1\r\n1\r\n:" + b"9" * 400 + b"\r\n",
    "errors in a list": b"*2\r\n-ERR\r\n:-1\r\n",
    "a move to nowhere": b"-MOVED 5\r\n",
    "a move to no port": b"-MOVED 1 h:x\r\n",
    "a move far away": b"-MOVED 1 127.0.0.1:" + b"9" * 30 + b"\r\n",
    "asked of no host": b"-ASK 1 " + b"a" * 300 + b".b:1\r\n",
    "slots of lists": b"*1\r\n*3\r\n*0\r\n*0\r\n*0\r\n",
    "slots beyond": b"*1\r\n*3\r\n:0\r\n:999999999999\r\n*2\r\n$1\r\nh\r\n:1\r\n",
    "slots again": b"*2\r\n" + b"*3\r\n:0\r\n:16383\r\n*2\r\n$1\r\nh\r\n:1\r\n" * 2,
    "a port beyond": b"*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n$1\r\nh\r\n:99999\r\n",
    "an epoch of words": b"$23\r\ncluster_current_epoch:x\r\n",
}


@pytest.mark.parametrize("cluster", [False, True])
@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies(lie: str, cluster: bool) -> None:
    """Whatever it says, it costs a call its time-out at most, and an error of ours."""
    liar = Liar(LIES[lie])
    for login in ("", "u:p@"):  # the answer to a log-in is read by redis-py
        url = f"redis://{login}127.0.0.1:{liar.port}"
        far = Valkey(url, timeout=0.2, retries=1, cluster=cluster)
        for call in calls(far):
            began = time.monotonic()
            with contextlib.suppress(FarError, ImageError):
                call()
            assert time.monotonic() - began < 0.2 + LATE
        far.close()
    liar.close()


def test_what_nests_as_deep_as_may_be_is_read() -> None:
    def read(data: bytes) -> object:
        parts = [data]
        return _Answers(lambda size: parts.pop(), ValueError).read()

    value: object = 1
    for _ in range(DEPTH):
        value = [value]
    assert read(b"*1\r\n" * DEPTH + b":1\r\n") == value
    with pytest.raises(ValueError, match="lists in lists"):
        read(b"*1\r\n" * (DEPTH + 1) + b":1\r\n")
    assert read(b"%1\r\n+k\r\n*2\r\n$ 1\r\nx\r\n$-1\r\n") == {b"k": [b"x", None]}
