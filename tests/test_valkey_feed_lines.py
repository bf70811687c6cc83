"""The lines of `Valkey.feed`: a change that could not be told is told as a loss, and the line comes back."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from feeding import BEAT, Heard, a_server, an_own, another, fed, kill_listeners, until  # noqa: F401, fixtures
from proxy import Proxy
from servers import Server, free_port, server_program

from gbcache import tracking
from gbcache.tracking import Channel
from gbcache.valkey import Valkey


def test_a_killed_connection_is_lost_at_once(server: Server, other: Valkey) -> None:
    far, heard = fed(server.url, heartbeat=60)
    kill_listeners(server)
    until(lambda: heard.all == ["restored", "lost", "restored"])
    assert heard.at[2] - heard.at[1] < 1
    other.put_many([("k", 1, None)])
    until(lambda: heard.keys == ["k"])
    far.close()


def test_a_loss_is_told_as_soon_as_there_is_memory(
    server: Server, other: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, heard = fed(server.url)
    down, failed = Channel._down, []

    def fails(channel: Channel, line: Any, error: Exception) -> None:
        if len(failed) < 3:
            failed.append(error)
            raise MemoryError
        down(channel, line, error)

    monkeypatch.setattr(Channel, "_down", fails)
    kill_listeners(server)
    until(lambda: heard.all == ["restored", "lost", "restored"])
    assert len(failed) == 3
    other.put_many([("k", 1, None)])
    until(lambda: heard.keys == ["k"])
    far.close()


@pytest.mark.parametrize("max_staleness", [0.0, 0.2])
def test_a_loss_a_listener_does_not_take_is_told_again(own: Server, max_staleness: float) -> None:
    """It raises, for want of memory, say: each time the line cannot be had again it is told once more."""
    far, heard = fed(own.url, max_staleness=max_staleness)
    heard.raises = True
    own.close()
    with pytest.warns(RuntimeWarning, match="a Listener raised"):
        until(lambda: heard.all.count("lost") >= 2)
        heard.raises = False
        told = len(heard.all)
        until(lambda: len(heard.all) > told)
    time.sleep(0.5)
    assert heard.all[1:] == ["lost"] * (len(heard.all) - 1) and len(heard.all) <= told + 2
    far.close()


def test_no_thread_to_wait_for_max_staleness(own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then copies are not trusted at all."""
    far, heard = fed(own.url, max_staleness=60.0)
    start = threading.Thread.start

    def fails(thread: threading.Thread) -> None:
        if thread.name == "gbcache-valkey-late":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fails)
    own.close()
    until(lambda: heard.all == ["restored", "lost"])
    far.close()


@pytest.mark.parametrize("whom", ["all", "listen"])
def test_silence_is_noticed(server: Server, whom: str) -> None:
    proxy = Proxy(server.port)
    far, heard = fed(proxy.url)
    time.sleep(3 * BEAT)
    assert heard.all == ["restored"], "heartbeats are answered"
    began = time.monotonic()
    proxy.hold(whom)
    until(lambda: "lost" in heard.all)
    assert BEAT / 2 < heard.at[1] - began < 2 * BEAT + 0.2
    proxy.let()
    until(lambda: heard.all == ["restored", "lost", "restored"])
    far.close()
    proxy.close()


def test_max_staleness_is_waited_for(own: Server) -> None:
    far, heard = fed(own.url, max_staleness=0.5)
    kill_listeners(own)
    until(lambda: len(heard.all) == 2)
    assert heard.all == ["restored", "restored"], "it was back in time"
    time.sleep(0.7)
    assert len(heard.all) == 2
    own.kill()
    began = time.monotonic()
    until(lambda: len(heard.all) == 3)
    assert heard.all[2] == "lost" and 0.45 < heard.at[2] - began < 0.8
    own.start()
    until(lambda: len(heard.all) == 4 and heard.all[3] == "restored")
    far.close()


def test_the_server_may_come_later() -> None:
    port = free_port()
    far, heard = Valkey(f"redis://127.0.0.1:{port}", timeout=1), Heard()
    if server_program() is None:
        Server()  # skips
    far.feed(heard)
    time.sleep(0.1)
    assert heard.all == []
    server = Server(port=port)
    until(lambda: heard.all == ["restored"])
    far.close()
    server.close()


def test_a_server_that_does_not_tell_is_warned_of(server: Server) -> None:
    with redis.Redis(port=server.port) as client:
        client.execute_command(
            "ACL", "SETUSER", "mute", "on", ">x", "~*", "+@all", "-client|tracking"
        )
        far, heard = Valkey(f"redis://mute:x@127.0.0.1:{server.port}"), Heard()
        with pytest.warns(RuntimeWarning, match="does not tell of changes.*permission") as warned:
            far.feed(heard)
            until(lambda: len(warned) > 0)
            time.sleep(0.1)
        assert len(warned) == 1 and heard.all == []
        client.execute_command("ACL", "SETUSER", "mute", "+@all")
        until(lambda: heard.all == ["restored"])
        far.close()
        client.execute_command("ACL", "DELUSER", "mute")


def test_a_line_outlives_whatever_is_raised_in_it(
    server: Server, other: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that a codec of the user's takes for a reason to exit, say."""
    far, heard = fed(server.url)
    changed, exits = Channel._changed, [SystemExit, KeyboardInterrupt]

    def fails(channel: Channel, keys: Any) -> None:
        if exits:
            raise exits.pop()
        changed(channel, keys)

    monkeypatch.setattr(Channel, "_changed", fails)
    for n in (1, 2):
        other.put_many([("k", 1, None)])
        until(lambda n=n: heard.all == ["restored"] + ["lost", "restored"] * n)
    other.put_many([("k", 1, None)])
    until(lambda: heard.keys == ["k"])
    far.close()


def test_a_line_that_begins_as_the_channel_closes_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[Any] = []

    class Late(tracking._Line):
        def __init__(self, channel: Channel, address: Any) -> None:
            channel.close()  # which sees the lines that are there
            super().__init__(channel, address)
            lines.append(self)

    monkeypatch.setattr(tracking, "_Line", Late)
    where = SimpleNamespace(seeds=[("127.0.0.1", free_port())], cluster=False)
    nodes: Any = SimpleNamespace(where=where, timeout=0.2, channels=[])
    Channel(nodes, Heard(), b"", BEAT, 0.0, bytes).start()
    (line,) = lines
    line.thread.join(5)
    left = line.thread.is_alive()
    line.cut()
    assert not left


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_channel_is_closed_as_a_line_begins(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Its thread is not there yet, or half: it is not waited for, and ends."""
    lines: list[Any] = []

    class Closes(threading.Thread):
        def start(self) -> None:
            if when == "before":
                channel.close()
            super().start()

        def _set_ident(self) -> None:
            super()._set_ident()  # type: ignore[misc]
            if when == "within":
                closing = threading.Thread(target=channel.close)
                closing.start()
                closing.join()

    class Line(tracking._Line):
        def __init__(self, channel: Channel, address: Any) -> None:
            super().__init__(channel, address)
            self.thread = Closes(target=self._run, daemon=True)
            lines.append(self)

    monkeypatch.setattr(tracking, "_Line", Line)
    where = SimpleNamespace(seeds=[("127.0.0.1", free_port())], cluster=False)
    nodes: Any = SimpleNamespace(where=where, timeout=0.2, channels=[])
    channel = Channel(nodes, Heard(), b"", BEAT, 0.0, bytes)
    channel.start()
    (line,) = lines
    line.thread.join(5)
    assert not line.thread.is_alive()
