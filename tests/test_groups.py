"""Writers that share a commit: one leads for all who wait, wherever it is interrupted."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from typing import Any

import pytest
from children import isolated

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


class Cut:
    """A gate at which a signal's handler raises, once."""

    def __init__(self, gate: Any) -> None:
        self.gate, self.left = gate, 1

    def acquire(self, *args: Any, **how: Any) -> bool:
        if how and self.left:
            self.left = 0
            raise Interrupt
        return bool(self.gate.acquire(*args, **how))

    def release(self) -> None:
        self.gate.release()


def test_a_leader_that_is_cut_off_as_it_waits_for_others_gathers_again() -> None:
    def commit(batch: list[groups.Request]) -> None:
        sizes.append(len(batch))
        for request in batch:
            request.result = "done"

    sizes: list[int] = []
    made = groups.Groups(commit)
    made._expected, made._took, made._gathered = 2, 1.0, Cut(made._gathered)
    with pytest.raises(Interrupt):
        made.run(groups.Request())
    assert not made._gathers and not made._gathered.acquire(False)
    for came in (False, True):  # while it is not told yet, one more comes
        made._expected, made._gathered.left = 2, 1
        gate = made._gathered.gate

        class Comes:
            def acquire(self, *args: Any, gate: Any = gate, came: bool = came, **how: Any) -> bool:
                if how and came:
                    with made._lock:
                        made._gathers = False
                        gate.release()
                return bool(gate.acquire(*args)) if not how else False

            release = gate.release

        made._gathered = Comes()
        assert made.run(groups.Request()) == "done"
        assert not made._gathers and gate.locked(), "another's wake is nobody's"
        made._gathered = Cut(gate)


class Back:
    """Garbage that comes back as it is collected."""

    def __init__(self, call: Any) -> None:
        self.me, self.call = self, call

    def __del__(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.call()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@isolated
def test_who_may_not_come_back_is_told_so_when_the_queue_is_free() -> None:
    """An exception brings the collector, and that a __del__ which asks the same."""
    made = groups.Groups(lambda batch: None)
    made._leader = threading.get_ident()
    for objects in range(1, 40):
        gc.disable()
        Back(made.check)
        gc.set_threshold(objects)
        gc.enable()
        for _ in range(20):
            with contextlib.suppress(RuntimeError):
                made.check()
    gc.set_threshold(700)
    with pytest.raises(RuntimeError, match="within a call"):
        made.run(groups.Request())
