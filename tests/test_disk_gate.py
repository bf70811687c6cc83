"""Who leaves a Disk's gate tells who waits, also where a signal's handler raises meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from far_contract import until

pytest.importorskip("lmdb")
from gbcache import _disk
from gbcache.locks import Monitor


class Interrupt(Exception):
    pass


class Cut(Monitor):
    """One that is another's for a while: a handler raises in who waits for it."""

    left = 0

    def acquire(self, seconds: float = -1.0) -> bool:
        if self.left:
            self.left -= 1
            raise Interrupt(self.left)
        return super().acquire(seconds)


def leaves(gate: Any) -> Callable[[], object]:
    seat = gate.enter()
    return lambda: gate.leave(seat)


def lets_in(gate: Any) -> Callable[[], object]:
    alone = gate.alone()
    alone.__enter__()
    return lambda: alone.__exit__(None, None, None)


@pytest.mark.parametrize("goes", [leaves, lets_in])
def test_an_interrupt_as_it_tells(
    goes: Callable[[Any], Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = Cut()
    monkeypatch.setattr(_disk, "Monitor", lambda: monitor)
    gate = _disk.Gate()
    go = goes(gate)

    def waits() -> None:
        with gate.alone():
            pass

    waiter = threading.Thread(target=waits, daemon=True)
    waiter.start()
    until(lambda: bool(monitor._waiting))
    monitor.left = 3
    with pytest.raises(Interrupt) as error:
        go()
    waiter.join(10)
    assert not waiter.is_alive(), "it was not told"
    assert str(error.value) == "0"
    gate.leave(gate.enter())
