"""What the tests of a feed share: servers, a listener that keeps what it is told, and one that is fed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import redis
from far_contract import until
from servers import Server, shared_server

from gbcache.valkey import Valkey

BEAT = 0.2


class Heard:
    """Whatever is told, as it came, and when."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self.at: list[float] = []
        self.raises = False

    def _note(self, what: Any) -> None:
        self.all.append(what)
        self.at.append(time.monotonic())
        if self.raises:
            raise RuntimeError("planted")

    def changed(self, keys: Sequence[Any] | None) -> None:
        self._note(keys)

    def lost(self) -> None:
        self._note("lost")

    def restored(self) -> None:
        self._note("restored")

    @property
    def keys(self) -> list[Any]:
        return [key for told in self.all if isinstance(told, list) for key in told]


@pytest.fixture(name="server")
def a_server() -> Server:
    server = shared_server()
    with redis.Redis(port=server.port) as client:
        client.flushall()
    return server


@pytest.fixture(name="own")
def an_own() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(name="other")
def another(server: Server) -> Iterator[Valkey]:
    """Another process's, as it were."""
    far = Valkey(server.url, timeout=5)
    yield far
    far.close()


def fed(url: str, **options: Any) -> tuple[Valkey, Heard]:
    far, heard = Valkey(url, **{"timeout": 1, "heartbeat": BEAT, **options}), Heard()
    far.feed(heard)
    until(lambda: heard.all == ["restored"])
    return far, heard


def kill_listeners(server: Server) -> None:
    with redis.Redis(port=server.port) as client:
        for each in client.client_list():
            if "t" in each["flags"] or "B" in each["flags"]:
                client.client_kill_filter(_id=each["id"])
