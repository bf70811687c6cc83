"""`Valkey` where what goes wrong is seldom: a line that is late, signals, interrupts, warnings that cannot be given."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from near import Near
from servers import Server, shared_cluster, shared_server

from gbcache import tracking
from gbcache.nodes import Job, is_refusal
from gbcache.valkey import Valkey
from gbcache.wire import Wire, place


def until(met: Callable[[], bool], seconds: float = 10.0) -> None:
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
    jobs = [Job(node, ("PING",)) for node in far._nodes.primaries(False)]
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
    assert not is_refusal(busy)
    assert is_refusal(redis.ResponseError("unknown command 'CLIENT'"))
