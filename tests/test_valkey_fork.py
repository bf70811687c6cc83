"""What a forked child believes of a Valkey's near copies: nothing, before its own lines tell it of changes."""

from __future__ import annotations

import contextlib
import threading

import pytest
from children import survives

from gbcache import Cache, Tiered, Valkey
from gbcache.errors import FarError


@pytest.mark.parametrize("threads", [True, False])
def test_a_forked_child_believes_nothing_at_first(
    monkeypatch: pytest.MonkeyPatch, threads: bool
) -> None:
    """Also where no thread can be had to ask for its own lines."""
    with contextlib.closing(Valkey("redis://127.0.0.1:1", timeout=0.2)) as far:
        tier = Tiered(Cache("1MB"), far)
        tier._side.told = True  # as if its lines were whole
        tier._side.believe()
        tier.near["k"] = "old"
        assert tier.get("k") == "old"

        def child() -> None:
            monkeypatch.undo()
            assert not tier.trusts
            with pytest.raises(FarError):
                tier.get("k")

        if not threads:

            def start(self: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            monkeypatch.setattr(threading.Thread, "start", start)
        survives(child)
        monkeypatch.undo()
        assert tier.get("k") == "old"
        tier.close()
