"""`Valkey` where what goes wrong is seldom: a line that is late, signals, interrupts, warnings that cannot be given."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from near import Near
from proxy import Proxy
from servers import Server, shared_cluster, shared_server

from gbcache import tracking
from gbcache.nodes import Job
from gbcache.valkey import Valkey
from gbcache.wire import BROKEN, Wire, place


def until(met: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def test_a_line_that_was_cut_while_it_connected_cuts_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The seeds are names the cluster does not use: the first to answer has the second cut, which answers late, and
    before any of those that came in their place."""
    ports = [server.port for server in shared_cluster().servers]
    late = ("localhost", ports[1])
    lines: dict[Any, Any] = {}
    waits = threading.Event()

    def slow(where: Any, address: Any, end: float, protocol: int) -> Wire:
        if address == late:
            lines[late] = channel._lines[late]
            waits.set()
            until(lambda: late not in channel._lines)
        elif address[0] == "localhost":
            assert waits.wait(5)
        else:
            lines[late].thread.join(5)
        return Wire(where, address, time.monotonic() + 5, protocol)

    monkeypatch.setattr(tracking, "Wire", slow)
    far = Valkey([f"redis://localhost:{port}" for port in ports[:2]], timeout=5)
    near = Near(far)
    far._channels.append(channel := tracking.Channel(far._nodes, near, b"gb:", 0.2, 0.0, bytes))
    channel.start()
    try:
        until(lambda: near.trusted, 5)
        assert set(channel._lines) == {("127.0.0.1", port) for port in ports}
    finally:
        far.close()


@pytest.fixture
def alarms() -> Iterator[None]:
    """A signal each 20 ms, as a profiler has them."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("what", ["recv", "send"])
def test_signals_do_not_make_a_wait_longer(alarms: None, what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        began = time.monotonic()
        wire = Wire(place(f"redis://127.0.0.1:{port}", None), ("127.0.0.1", port), began + 5)
        threading.Timer(
            1.5, lambda: door.accept()[0].close()
        ).start()  # an end, where there is none
        began = time.monotonic()
        with pytest.raises(redis.exceptions.TimeoutError):
            if what == "send":
                wire.send([("SET", "k", bytes(8 << 20))], began + 0.1)
            else:
                wire.read(began + 0.1)
        assert time.monotonic() - began < 0.4
        wire.close()
        time.sleep(max(0.0, began + 1.6 - time.monotonic()))


def test_an_interrupt_closes_no_connection_of_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two nodes' connections the first is given back, and another thread has it, when the second is waited for."""
    far = Valkey(shared_cluster().urls, timeout=5)
    read, taken = Wire.read, []

    def interrupted(wire: Wire, end: float) -> Any:
        for address in first:
            if wire.address != address:
                taken.append(far._nodes.take(address, end))
                raise KeyboardInterrupt
        first.append(wire.address)
        return read(wire, end)

    far.sync()
    first: list[Any] = []
    jobs = [Job(node, ("PING",)) for node in far._nodes.primaries(False, 0.0)]
    monkeypatch.setattr(Wire, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        far._nodes.run(jobs, True)
    monkeypatch.undo()
    assert taken[0].ask("PING", until=time.monotonic() + 5) == b"PONG"
    far._nodes.give(taken[0])
    far.close()


def test_a_line_goes_on_where_nobody_can_be_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon without a standard error: to warn raises."""
    server = shared_server()
    ended: list[Any] = []

    def closed(*what: Any, **how: Any) -> None:
        raise ValueError("I/O operation on closed file")

    monkeypatch.setattr(tracking.warnings, "warn", closed)
    monkeypatch.setattr(threading, "excepthook", ended.append)
    with redis.Redis(port=server.port) as client:
        client.execute_command(
            "ACL", "SETUSER", "dumb", "on", ">x", "~*", "+@all", "-client|tracking"
        )
        far = Valkey(f"redis://dumb:x@127.0.0.1:{server.port}", heartbeat=0.2)
        near = Near(far)
        far.feed(near)
        try:
            (line,) = far._channels[0]._lines.values()
            until(lambda: line._attempt > 1 or not line.thread.is_alive())
            client.execute_command("ACL", "SETUSER", "dumb", "+@all")
            until(lambda: near.trusted, 5)
        finally:
            far.close()
            client.execute_command("ACL", "DELUSER", "dumb")
    assert not ended


def test_a_loss_is_told_again_where_nobody_can_be_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*what: Any, **how: Any) -> None:
        raise ValueError("I/O operation on closed file")

    class Raises(Near):
        tries = 0

        def lost(self) -> None:
            self.tries += 1
            if self.tries < 3:
                raise RuntimeError("planted")
            super().lost()

    monkeypatch.setattr(threading, "excepthook", lambda *_: None)
    own = Server()
    far = Valkey(own.url, heartbeat=0.2, max_staleness=0.1)
    near = Raises(far)
    far.feed(near)
    until(lambda: near.trusted)
    monkeypatch.setattr(tracking.warnings, "warn", closed)
    own.close()
    until(lambda: not near.trusted, 5)
    far.close()


def test_a_busy_server_is_no_refusal() -> None:
    """Somebody's slow script: it will be over."""
    busy = redis.ResponseError("BUSY Redis is busy running a script. You can only call SCRIPT KILL")
    assert not tracking._is_refusal(busy)
    assert tracking._is_refusal(redis.ResponseError("unknown command 'CLIENT'"))


# --- copies past the bound ------------------------------------------------------------------------


class Node:
    """As much of a node as it takes, with answers of our choosing."""

    def __init__(self) -> None:
        self.door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.door.getsockname()[1])
        self.address = ("127.0.0.1", self.port)
        self.owners: list[Node] = []
        self.state, self.epoch, self.info, self.role = "ok", 1, "", "master"
        self.value = b"old"
        self.reads = 0
        self.readonly = False
        self.socks: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self.door.close()
        for sock in self.socks:
            sock.close()

    def _run(self) -> None:
        while True:
            try:
                sock = self.door.accept()[0]
            except OSError:
                return
            self.socks.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), sock.makefile("rb") as said:
            while line := said.readline():
                words = []
                for _ in range(int(line[1:])):
                    words.append(said.read(int(said.readline()[1:]) + 2)[:-2])
                sock.sendall(self._answer(words))

    def _answer(self, words: list[bytes]) -> bytes:
        if words[0] == b"HELLO":
            role = b"$4\r\nrole\r\n$%d\r\n%b\r\n" % (len(self.role), self.role.encode())
            return b"%2\r\n$5\r\nproto\r\n:3\r\n" + role
        if words[:2] == [b"CLUSTER", b"INFO"]:
            info = f"cluster_state:{self.state}\r\ncluster_current_epoch:{self.epoch}\r\n"
            return self.info.encode() or b"$%d\r\n%b\r\n" % (len(info), info.encode())
        if words[:2] == [b"CLUSTER", b"SLOTS"]:
            each, answer = 16384 // len(self.owners), b"*%d\r\n" % len(self.owners)
            for i, node in enumerate(self.owners):
                last = 16383 if node is self.owners[-1] else (i + 1) * each - 1
                answer += b"*3\r\n:%d\r\n:%d\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % (
                    i * each,
                    last,
                    node.port,
                )
            return answer
        if words[0] == b"EVAL":
            self.reads += 1
            value = b"s" + self.value
            return b"*2\r\n$%d\r\n%b\r\n:-1\r\n" % (len(value), value)
        if words[0] == b"SET" and self.readonly:
            self.readonly = False
            return b"-READONLY it\r\n"
        return b"+PONG\r\n" if words[0] == b"PING" else b"+OK\r\n"


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    nodes = [Node(), Node()]
    for node in nodes:
        node.owners = nodes[:]
    yield nodes
    for node in nodes:
        node.close()


def fed(nodes: list[Node]) -> tuple[Valkey, Near]:
    far = Valkey(
        [f"redis://127.0.0.1:{node.port}" for node in nodes], timeout=1, heartbeat=0.1, cluster=True
    )
    near = Near(far)
    far.feed(near)
    until(lambda: near.trusted and len(far._channels[0]._lines) == len(nodes))
    return far, near


def test_where_a_line_is_given_up_copies_are_not_kept(nodes: list[Node]) -> None:
    """What it was told last may not have been read: another node's map may be the first to leave it out."""
    far, near = fed(nodes)
    time.sleep(0.15)
    told = len(near.told)
    for node in nodes:
        node.owners = nodes[:1]
    until(lambda: len(far._channels[0]._lines) == 1)
    until(lambda: near.told[told:] == ["restored"], 2)
    far.close()


def test_a_node_that_its_cluster_has_lost_is_down(nodes: list[Node]) -> None:
    far, near = fed(nodes)
    nodes[0].state = "fail"
    until(lambda: near.told[-1] == "lost", 2)
    nodes[1].owners, nodes[1].epoch = nodes[1:], 2  # which takes over
    until(lambda: near.trusted and list(far._channels[0]._lines) == [nodes[1].address], 2)
    nodes[1].value = b"new"
    reads = nodes[0].reads
    assert {near.read(key) for key in range(20)} == {"new"} and nodes[0].reads == reads
    far._nodes.adopt(None)  # and the one that is lost does not lead there again
    for _ in range(10):
        far._nodes.adopt(None, 0)
        assert set(far._nodes.refresh(time.monotonic() + 1)) == {nodes[1].address}
    far.close()


def test_a_map_of_before_is_not_taken(nodes: list[Node]) -> None:
    """A node that has not heard of it yet says what was."""
    far, _ = fed(nodes)
    nodes[1].owners, nodes[1].epoch = nodes[1:], 2
    until(lambda: set(far._nodes._slots or ()) == {nodes[1].address}, 2)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        assert set(far._nodes._slots or ()) == {nodes[1].address}
        time.sleep(0.001)
    far.close()


def test_a_user_that_may_not_ask_for_the_state(nodes: list[Node]) -> None:
    for node in nodes:
        node.info = "-NOPERM this user has no permissions to run the 'cluster|info' command\r\n"
    far, near = fed(nodes)
    time.sleep(0.4)
    assert near.told[-1] == "restored" and "lost" not in near.told[2:]
    assert near.read("k") == "old"
    far.close()


def test_a_name_that_leads_elsewhere() -> None:
    """The server behind it is demoted, and lives: its connections stand, and what it says is old."""
    first, second = Server(), Server()
    proxy = Proxy(first.port)
    far = Valkey(proxy.url, timeout=1, heartbeat=0.1)
    near = Near(far)
    far.feed(near)
    until(lambda: near.trusted)
    far.put_many([("k", "old", None)])
    until(lambda: near.changes > 0)
    assert near.read("k") == "old"
    proxy._to = ("127.0.0.1", second.port)
    with redis.Redis(port=first.port) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
    other = Valkey(second.url)
    other.put_many([("k", "new", None)])
    until(lambda: near.read("k") == "new", 2)
    other.put_many([("k", "newer", None)])
    until(lambda: near.read("k") == "newer", 2)
    for each in (other, far, proxy, first, second):
        each.close()


def test_a_connection_of_before_is_not_kept() -> None:
    server = shared_server()
    far = Valkey(server.url)
    address = ("127.0.0.1", server.port)
    wire = far._nodes.take(address, time.monotonic() + 5)
    far._nodes.drop(address)
    far._nodes.give(wire)
    assert not far._nodes._idle.get(address) and wire._sock is None
    far.sync()
    assert len(far._nodes._idle[address]) == 1
    far.close()


def test_who_hears_readonly_has_the_line_look(nodes: list[Node]) -> None:
    far = Valkey(f"redis://127.0.0.1:{nodes[0].port}", timeout=5, heartbeat=60)
    near = Near(far)
    far.feed(near)
    until(lambda: near.trusted)
    nodes[0].readonly = True
    far.put_many([("k", 1, None)])
    # More than once, if more than one attempt hears it.
    until(lambda: near.told[:3] == ["restored", "lost", "restored"])
    far.close()


def test_a_replica_is_not_trusted(nodes: list[Node]) -> None:
    """It may be behind, or cut off, and would not say so."""
    nodes[0].role = "replica"
    far = Valkey(f"redis://127.0.0.1:{nodes[0].port}", timeout=5, heartbeat=0.1)
    near = Near(far)
    with pytest.warns(RuntimeWarning, match="does not tell of changes.*replica") as warned:
        far.feed(near)
        until(lambda: len(warned) > 0, 10)
    assert near.told == []
    nodes[0].role = "master"
    until(lambda: near.told == ["restored"])
    far.close()


# --- what is left open, and what takes longer than it may -----------------------------------------


def test_connections_to_nodes_that_have_left_are_closed(nodes: list[Node]) -> None:
    far = Valkey(f"redis://127.0.0.1:{nodes[0].port}", timeout=5, cluster=True)
    far.sync()
    (wire,) = far._nodes._idle[nodes[1].address]
    for node in nodes:
        node.owners = nodes[:1]
    far._nodes.refresh(time.monotonic() + 5)
    assert list(far._nodes._idle) == [nodes[0].address] and wire._sock is None
    nodes[0].owners = nodes[1:]
    for _ in range(2):
        far._nodes.refresh(time.monotonic() + 5)
    assert nodes[0].address in far._nodes._idle  # where it is asked who has what
    far.close()


def test_a_handshake_has_what_connecting_left(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = redis.Connection._connect

    def slow(connection: Any) -> Any:
        time.sleep(0.4)
        return connect(connection)

    monkeypatch.setattr(redis.Connection, "_connect", slow)
    with socket.create_server(("127.0.0.1", 0)) as door:  # which never says a word
        port = door.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(BROKEN):
            Wire(place(f"rediss://127.0.0.1:{port}", None), ("127.0.0.1", port), began + 0.6)
        assert time.monotonic() - began < 0.9


def test_a_page_has_one_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of others' keys, of which each takes longer: it ends with where to go on, or in time."""
    own = Server()
    with redis.Redis(port=own.port) as client:
        client.mset({f"other{i}": "x" for i in range(1000)})
    far = Valkey(own.url, timeout=0.5)
    read, delay = Wire.read, [0.0]

    def slow(wire: Wire, end: float) -> Any:
        delay[0] += 0.12
        time.sleep(min(delay[0], max(0.0, end - time.monotonic())))
        return read(wire, end)

    monkeypatch.setattr(Wire, "read", slow)
    began = time.monotonic()
    names, cursor = far.scan(count=1)
    assert time.monotonic() - began < 0.6 and names == [] and cursor is not None
    monkeypatch.undo()
    far.close()
    own.close()
