"""`Valkey` where what goes wrong is seldom: a line that is late, signals, interrupts, a warning that cannot be given."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from near import Near
from servers import shared_cluster

from gbcache import tracking
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
        with pytest.raises(tracking.redis.exceptions.TimeoutError):
            if what == "send":
                wire.send([("SET", "k", bytes(8 << 20))], began + 0.1)
            else:
                wire.read(began + 0.1)
        assert time.monotonic() - began < 0.4
        wire.close()
        time.sleep(max(0.0, began + 1.6 - time.monotonic()))
