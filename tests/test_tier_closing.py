"""A `Tiered` that is closed while others write: what was acknowledged is written, and the rest is refused."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from fars import Full

from gbcache import Cache, ClosedError, FarError, Tiered


def test_a_write_that_comes_between_the_end_of_the_drain_and_that_of_close_is_written() -> None:
    tier = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=30)
    behind: Any = tier._behind
    drain, turns = behind.drain, []

    def drained() -> None:
        drain()
        turns.append(len(turns))
        with suppress(ClosedError):
            tier["late"] = len(turns)  # as another thread does
            acknowledged.append("late")

    acknowledged = ["early"]
    tier["early"] = 0
    behind.drain = drained
    tier.close()
    assert turns and list(tier.far.data) == acknowledged  # type: ignore[attr-defined]
    assert tier.stats().at_risk.entries == 0


def test_a_close_that_fails_refuses_nothing_afterwards() -> None:
    tier = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=30)
    far: Any = tier.far
    behind: Any = tier._behind
    drain = behind.drain

    def drained() -> None:
        drain()
        tier["late"] = 1
        far.failing = True

    behind.drain = drained
    with pytest.raises(FarError, match="1 writes wait"):
        tier.close()
    far.failing, behind.drain = False, drain
    tier["later"] = 2
    with suppress(FarError):  # of an attempt that was under way while it failed
        tier.close()
    tier.close()
    assert far.data.keys() == {"late", "later"}
    with pytest.raises(ClosedError):
        tier["too late"] = 3
    assert tier.stats().at_risk.entries == 0


def test_who_closes_while_another_does_waits_for_what_is_written() -> None:
    tier = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=30)
    far: Any = tier.far
    behind: Any = tier._behind
    gate, reached = threading.Event(), threading.Event()

    def hold(verb: str, keys: list[Any]) -> None:
        reached.set()
        assert gate.wait(10)

    drain = behind.drain

    def drained() -> None:
        drain()
        tier["late"] = 1
        far.hook = hold

    behind.drain = drained
    first = threading.Thread(target=tier.close)
    first.start()
    assert reached.wait(10)
    behind.drain = lambda: None  # as if it had begun before that write
    second = threading.Thread(target=tier.close)
    second.start()
    with pytest.raises(ClosedError):  # it would wait for the far side, and be acknowledged
        tier["too late"] = 2
    second.join(0.1)
    assert second.is_alive() and not far.closed
    gate.set()
    first.join(10)
    second.join(10)
    assert list(far.data) == ["late"] and far.closed and tier.stats().at_risk.entries == 0


def test_writers_while_it_is_closed_lose_nothing_that_was_acknowledged() -> None:
    for _ in range(5):
        tier = Tiered(Cache("1MB"), Full(), write="behind", behind_seconds=0.02)
        far: Any = tier.far
        far.hook = lambda verb, keys: time.sleep(0.005)
        acknowledged: list[int] = []

        def write(tier: Tiered = tier, acknowledged: list[int] = acknowledged) -> None:
            with suppress(ClosedError):
                for i in range(1_000_000):
                    tier[i] = i
                    acknowledged.append(i)
                    if i % 50 == 0:
                        time.sleep(0.0005)

        writer = threading.Thread(target=write)
        writer.start()
        time.sleep(0.02)
        tier.close()
        writer.join(10)
        assert not writer.is_alive() and acknowledged
        assert all(i in far.data for i in acknowledged) and tier.stats().at_risk.entries == 0
