"""`Valkey` keeps to what every far side does, with one server and with a cluster of three."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("redis", reason="needs the package redis: pip install gbcache[valkey]")

from far_contract import FarContract
from servers import Cluster, Server

from gbcache.valkey import Valkey


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


class TestSingle(FarContract):
    @pytest.fixture
    def far(self, server: Server) -> Iterator[Valkey]:
        far = Valkey(server.url, timeout=10)
        far.clear()
        yield far
        far.close()


class TestCluster(FarContract):
    SHORT = 0.1

    @pytest.fixture
    def far(self, cluster: Cluster) -> Iterator[Valkey]:
        far = Valkey(cluster.urls[0], cluster=True, timeout=10)
        far.clear()
        yield far
        far.close()
