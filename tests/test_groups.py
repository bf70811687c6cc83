"""Writers that share a commit: one leads for all who wait, wherever it is interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import Any

import pytest

from gbcache import groups
from gbcache.errors import FarError

SHORT = os.environ.get("GB_SLICE") == "short"


def test_the_leader_is_interrupted() -> None:
    """Those who waited for it are told; the next group has another leader."""
    interrupts = [True]

    def commit(batch: list[groups.Request]) -> None:
        if len(batch) == 1 and not made._waiting:
            started.set()
            gate.wait(10)
        if interrupts[0] and len(batch) > 1:
            interrupts[0] = False
            raise KeyboardInterrupt
        for request in batch:
            request.result = "done"

    made, gate, started = groups.Groups(commit), threading.Event(), threading.Event()
    said: list[Any] = []

    def work() -> None:
        try:
            said.append(made.run(groups.Request()))
        except BaseException as error:
            said.append(type(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    threads[0].start()
    started.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(made._waiting) < 3:
        pass
    gate.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert sorted(map(str, said)) == sorted(
        map(str, ["done", KeyboardInterrupt, FarError, FarError])
    )
    assert made.run(groups.Request()) == "done"


class Interrupt(Exception):
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_queue_has_a_leader_wherever_a_signal_comes() -> None:
    """Signals whose handler raises, at every place of a thread that leads and waits: the others go on."""

    def commit(batch: list[groups.Request]) -> None:
        for request in batch:
            request.result = "done"

    def raising(*_: object) -> None:
        raise Interrupt

    made, over = groups.Groups(commit), threading.Event()
    done, seen, enough = [0, 0], 0, 100 if SHORT else 1000
    until = time.monotonic() + 60

    def work(thread: int) -> None:
        while not over.is_set():
            with contextlib.suppress(FarError):  # its leader was interrupted
                done[thread] += made.run(groups.Request()) == "done"

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(2)]
    for thread in threads:
        thread.start()
    before = signal.signal(signal.SIGALRM, raising)
    try:
        while seen < enough and time.monotonic() < until:
            try:
                signal.setitimer(signal.ITIMER_REAL, 5e-5)
                for _ in range(200):
                    made.run(groups.Request())
            except Interrupt:
                seen += 1
            except FarError:  # another's interrupt never ends here: the others are not interrupted
                pytest.fail("interrupted, and told so")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupt:  # the last one, late
        pass
    finally:
        signal.signal(signal.SIGALRM, before)
    said = list(done)
    for thread in range(2):
        until = time.monotonic() + 10
        while done[thread] == said[thread] and time.monotonic() < until:
            time.sleep(0.001)
    over.set()
    assert min(done[n] - said[n] for n in range(2)) > 0, "it waits for a leader"
    for each in threads:
        each.join(10)
        assert not each.is_alive(), "it waits for a leader"
    assert seen > enough // 2 and made.run(groups.Request()) == "done"
