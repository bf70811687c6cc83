"""`Valkey` keeps to what every far side does, with one server and with a cluster of three."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from far_contract import FarContract
from servers import shared_cluster, shared_server

from gbcache.valkey import Valkey


class TestSingle(FarContract):
    @pytest.fixture
    def far(self) -> Iterator[Valkey]:
        far = Valkey(shared_server().url, timeout=10)
        far.clear()
        yield far
        far.close()


class TestCluster(FarContract):
    SHORT = 0.1

    @pytest.fixture
    def far(self) -> Iterator[Valkey]:
        far = Valkey(shared_cluster().urls[0], cluster=True, timeout=10)
        far.clear()
        yield far
        far.close()
