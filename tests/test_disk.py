"""A Disk, by the contract of every far side, and what it alone does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmdb", reason="a Disk needs lmdb: pip install gbcache[disk]")

from far_contract import FarContract

from gbcache.disk import Disk


class TestContract(FarContract):
    @pytest.fixture(params=["always", "interval", "never"])
    def far(self, tmp_path: Path, request: Any) -> Iterator[Disk]:
        with Disk(tmp_path / "d", sync=request.param) as disk:
            yield disk
