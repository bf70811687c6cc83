"""A Disk that is being closed: by whom it is not done, what cuts it off, and what is written meanwhile."""

from __future__ import annotations

import errno
import gc
import signal
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from far_contract import until
from interrupted import exact, interrupted, places

pytest.importorskip("lmdb", reason='needs the extra: pip install "gbcache[disk]"')

from gbcache import Disk, FarError, engine, housekeeper
from gbcache.errors import ClosedError
from gbcache.view import Do


class Interrupt(BaseException):
    pass


def led_by_another(disk: Disk, comes: Callable[[list[Any]], None]) -> threading.Thread:
    """A thread in which `comes` is called as it leads the batch that the close is in."""
    made: Any = disk._engine
    real, first = made.groups._commit, threading.Event()

    def commit(batch: list[Any]) -> None:
        if any(type(one) is Do and one.step == made.shut for one in batch):
            comes(batch)
        real(batch)
        if not first.is_set():
            first.set()
            until(lambda: len(made.groups._waiting) > 1)

    def lead(key: str) -> None:
        with suppress(Interrupt):
            disk.put_many([(key, 1, None)])

    def follow() -> None:  # which leads next: it came first
        first.wait(10)
        lead("led")

    made._tend = lambda: None
    made.groups._commit = commit
    threads = [threading.Thread(target=call, daemon=True) for call in (lambda: lead("x"), follow)]
    for thread in threads:
        thread.start()
    until(lambda: made.groups._waiting)
    return threads[1]


def test_who_leads_its_end_is_interrupted(tmp_path: Path) -> None:
    """The FarError that says so says of a close that nothing of it was done: it is done again, by who closes."""
    disk, cut = Disk(tmp_path / "d"), []

    def comes(batch: list[Any]) -> None:
        if len(batch) > 1:
            cut.append(1)
            raise Interrupt

    other = led_by_another(disk, comes)
    disk.close()
    other.join(10)
    assert cut == [1] and disk._engine.closed
    with Disk(tmp_path / "d") as again:
        assert again.get_many("x") == {"x": (1, None)}


def test_what_another_that_leads_finds_is_told(tmp_path: Path) -> None:
    """... and closed all the same: what went wrong in it is no interrupt."""
    disk: Any = Disk(tmp_path / "d")

    def comes(batch: list[Any]) -> None:
        if len(batch) > 1:
            disk._engine.settle = fails

    def fails(*args: Any) -> None:
        raise OSError(errno.EIO, "planted")

    other = led_by_another(disk, comes)
    with pytest.raises(FarError, match="planted"):
        disk.close()
    other.join(10)
    assert disk._engine.closed
    with Disk(tmp_path / "d") as again:
        assert again.get_many("x") == {"x": (1, None)}


@exact
def test_a_close_that_is_cut_off_is_over_or_has_not_begun(tmp_path: Path) -> None:
    """Else it would acknowledge on, and nobody would sync what it acknowledged, or tend it."""
    path = tmp_path / "d"
    most, seen = places(Disk(path, sync="interval").close), set()
    for n in range(1, most + 1):
        disk: Any = Disk(path, sync="interval", interval=0.01)
        where = interrupted(disk.close, n)
        threads = disk._engine.threads
        seen.add(disk._engine.closed)
        if disk._engine.closed:
            with pytest.raises(ClosedError):
                disk.put_many([("a", n, None)])
        else:
            disk.put_many([("a", n, None)])
            until(lambda disk=disk: disk._engine.synced == disk._engine.seq)  # type: ignore[misc]
            assert all(thread.is_alive() for thread in threads), where
        disk.close()
        assert not any(thread.is_alive() for thread in threads), where
    assert seen == {True, False}


def test_a_signal_while_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler raises as the close waits for the background: once it is closed."""
    disk: Any = Disk(tmp_path / "d", sync="interval")
    going = disk._engine.threads[0]

    def ring(*_: Any) -> None:
        raise Interrupt

    def tend() -> None:
        until(lambda: disk._engine._stopping)
        time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        time.sleep(0.05)

    before = signal.signal(signal.SIGUSR1, ring)
    monkeypatch.setattr(disk._engine, "_tend", tend)
    disk._engine._wake.open()
    try:
        with pytest.raises(Interrupt):
            disk.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert disk._engine.closed and not going.is_alive()
    Disk(tmp_path / "d").close()


def test_what_is_written_while_it_is_closed_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The background may be long at its last step, and who would sync in time is gone."""
    disk: Any = Disk(tmp_path / "d", sync="interval", interval=3600)
    made, go, tending = disk._engine, threading.Event(), threading.Event()

    def tend() -> None:
        tending.set()
        go.wait(10)

    monkeypatch.setattr(made, "_tend", tend)
    made._wake.open()
    tending.wait(10)
    disk.put_many([("before", 1, None)])
    assert made.synced < made.seq
    closing = threading.Thread(target=disk.close, daemon=True)
    closing.start()
    until(lambda: made.synced == made.seq)
    disk.put_many([("meanwhile", 1, None)])
    assert made.synced == made.seq and not made.closed
    go.set()
    closing.join(10)
    assert made.closed
    with Disk(tmp_path / "d") as again:
        assert again.get_many(["before", "meanwhile"]).keys() == {"before", "meanwhile"}


def test_a_close_makes_no_thread_of_its_own_known(tmp_path: Path) -> None:
    """`threading` would keep it, as one of its dummies, for as long as the process lives."""
    gc.collect()  # a Disk that is garbage is closed by whoever comes upon it
    before = set(threading.enumerate())
    Disk(tmp_path / "d").close()
    assert set(threading.enumerate()) <= before


def test_an_opening_that_is_cut_off_ends_what_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both threads run: also the one that syncs is told."""
    begun: list[threading.Thread] = []

    class Open:
        def add(self, made: Any) -> None:
            begun.extend(made.threads)
            raise Interrupt

    monkeypatch.setattr(engine, "_OPEN", Open())
    with pytest.raises(Interrupt):
        Disk(tmp_path / "d", sync="interval", interval=0.01)
    monkeypatch.undo()
    for thread in begun:
        thread.join(5)
    assert len(begun) == 2 and not any(thread.is_alive() for thread in begun)
    Disk(tmp_path / "d").close()


def test_a_sync_of_the_last_journal_is_none_of_the_one_before(tmp_path: Path) -> None:
    with Disk(tmp_path / "d", sync="never") as disk:
        made = disk._engine
        disk.put_many([("a", 1, None)])
        assert made.synced < made.seq
        made._frozen_seq, made._stopping = made.seq, True  # a journal before it has that
        disk.put_many([("b", 2, None)])
        assert made.synced < made.seq
        made._frozen_seq, made._stopping = 0, False


def test_what_a_handler_raises_out_of_a_join_is_not_taken_for_a_thread_to_come() -> None:
    class Hung(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            raise RuntimeError("a handler's")

        def is_alive(self) -> bool:
            return True

    with pytest.raises(RuntimeError, match="handler"):
        housekeeper.join(Hung())


@pytest.mark.parametrize("sync", ["always", "interval", "never"])
def test_a_closed_one_goes_with_its_last_user(tmp_path: Path, sync: str) -> None:
    """Not when the collector comes, which may be where memory is short."""
    disk = Disk(tmp_path / "d", sync=sync)
    disk.put_many([("a", 1, None)])
    made: Any = disk._engine
    gone = weakref.ref(made)
    disk.close()
    with pytest.raises(ClosedError, match="the Disk is closed"):
        made.groups.run(Do(list))
    gc.disable()
    try:
        del disk, made
        until(lambda: gone() is None)  # the last thread may be on its way out
    finally:
        gc.enable()
