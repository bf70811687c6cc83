"""Signals' handlers and finalizers that come back to a `Disk` out of a call of it: refused where they would wait for
their own thread, and never for ever."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from children import isolated

pytest.importorskip("lmdb")
from gbcache import Disk
from gbcache.engine import Engine
from gbcache.journal import Journal
from gbcache.lmdbstore import Store
from gbcache.verbs import PutBig
from gbcache.view import Expire

WITHIN = "within a call of this Disk"

READS: dict[str, Callable[[Disk], object]] = {
    "get_many": lambda d: d.get_many(["a"]),
    "scan": lambda d: d.scan(b"\0", 10),
    "count": lambda d: d.count(),
}
COMES_BACK: dict[str, Callable[[Disk], object]] = {
    "close": lambda d: d.close(),
    "a small put": lambda d: d.put_many([("h", 1, None)]),
    "a put for which the map has to grow": lambda d: d.put_many([("h", bytes(40 << 20), None)]),
    "delete": lambda d: d.delete_many(["a"]),
    "incr": lambda d: d.incr("n"),
    "add": lambda d: d.add("h", 1),
    "touch": lambda d: d.touch("a", 9),
    "clear": lambda d: d.clear(),
    "flush": lambda d: d.scan(),
}


def interrupts(disk: Disk, call: Callable[[], object]) -> None:
    """Has a signal come each time a transaction that reads is begun: its thread has a place in the gate by then."""
    real = disk._engine.store.begin

    def begin() -> Any:
        disk._engine.store.begin = real  # type: ignore[method-assign]
        signal.raise_signal(signal.SIGUSR1)
        return real()

    signal.signal(signal.SIGUSR1, lambda *_: call())
    disk._engine.store.begin = begin  # type: ignore[method-assign]


def opened(path: Path) -> Disk:
    """One with entries in LMDB and before it, whose background does nothing by itself."""
    disk = Disk(path, sync="never")
    disk._engine._tend = lambda: None  # type: ignore[method-assign]
    disk.put_many([("a", 1, None)])
    disk._engine.flush()
    disk.put_many([("b", 2, None)])
    return disk


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("comes", COMES_BACK)
@isolated
def test_out_of_a_call_that_reads(tmp_path: Path, reads: str, comes: str) -> None:
    disk, told = opened(tmp_path / "d"), []

    def handler() -> None:
        with pytest.raises(RuntimeError, match=WITHIN) as error:
            COMES_BACK[comes](disk)
        told.append(error.value)
        assert disk.get_many(["a", "b"]) == {"a": (1, None), "b": (2, None)}
        disk.sync()

    interrupts(disk, handler)
    READS[reads](disk)
    assert len(told) == 1
    COMES_BACK[comes](disk)  # by now it may
    disk.close()
    Disk(tmp_path / "d").close()


@isolated
def test_the_body_of_an_iteration_may(tmp_path: Path) -> None:
    """Between two pages its thread has no place: it writes what it likes, and so does a handler."""
    disk, names, cursor = opened(tmp_path / "d"), set(), None
    disk.put_many([(i, 1, None) for i in range(100)])
    signal.signal(signal.SIGUSR1, lambda *_: disk.put_many([("h", bytes(40 << 20), None)]))
    while True:
        page, cursor = disk.scan(cursor, 30)
        names.update(page)
        disk.touch(page[0], 100)
        disk.put_many([(page[0], bytes(2 << 20), None)])
        signal.raise_signal(signal.SIGUSR1)
        if cursor is None:
            break
    assert names >= {"a", "b", *range(100)}
    signal.signal(signal.SIGUSR1, lambda *_: disk.close())
    signal.raise_signal(signal.SIGUSR1)
    assert disk._engine.closed


@isolated
def test_a_leader_that_was_interrupted_keeps_no_place(tmp_path: Path) -> None:
    """Wherever its handler raises as it reads: the thread writes on, and another moves the map at once."""
    disk = opened(tmp_path / "d")

    def handler() -> None:
        raise KeyboardInterrupt

    class Txn:
        def __init__(self, txn: Any) -> None:
            self.txn = txn

        def get(self, name: bytes) -> Any:
            signal.raise_signal(signal.SIGUSR1)
            return self.txn.get(name)

        def abort(self) -> None:
            self.txn.abort()

    begin, close = disk._engine.store.begin, type(disk._engine.reading).close
    signal.signal(signal.SIGUSR1, lambda *_: handler())
    disk._engine.store.begin = lambda: Txn(begin())  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gbcache.view.View.close", lambda view: handler())  # nor does it get to that
        disk._engine.groups._reading = disk._engine.reading = disk._engine.store.reading()
        with pytest.raises(KeyboardInterrupt):
            disk.add("c", 1)
    assert close is type(disk._engine.reading).close
    disk._engine.store.begin = begin  # type: ignore[method-assign]
    thread = threading.Thread(target=disk._engine.store._grow, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    disk.put_many([("d", 1, None)])
    disk.close()


# --- collected in a thread of its own ------------------------------------------------------------

PLACES: dict[str, tuple[Any, str]] = {
    "tending": (Engine, "rotate"),
    "leading": (Expire, "do"),
    "reading": (Store, "begin"),
    "writing": (Store, "_fill"),
    "syncing": (Journal, "sync"),
}


@pytest.mark.parametrize("place", PLACES)
@isolated
def test_collected_in_a_thread_of_its_own(tmp_path: Path, place: str) -> None:
    """Amid whatever that does: it ends, all is closed, and the next one opens with all that was there."""
    target, name = PLACES[place]
    real, seen = getattr(target, name), []

    def collects(*args: Any) -> Any:
        if threading.current_thread().name == "gbcache-disk" and armed.is_set() and not seen:
            seen.append(gc.collect())
        return real(*args)

    class Loop: ...

    armed = threading.Event()
    setattr(target, name, collects)
    gc.disable()
    disk = Disk(tmp_path / "d", sync="interval", interval=0.05)
    threads, loop = list(disk._engine.threads), Loop()
    disk._engine._settled = 0.0  # long ago: what waits is written at once
    loop.me, loop.disk = loop, disk  # type: ignore[attr-defined]
    disk.put_many([("a", 1, None), ("gone", 1, 0.001)])
    del loop, disk
    armed.set()
    for thread in threads:
        thread.join(10)
    assert seen and not any(thread.is_alive() for thread in threads)
    with Disk(tmp_path / "d") as again:
        assert again.get_many(["a"]) == {"a": (1, None)}
        assert again._engine.owner.mark is not None and again._engine.owner.mark.clean


@pytest.mark.parametrize("place", [(PutBig, "do"), (Engine, "settle"), (Engine, "_make_room")])
@isolated
def test_a_finalizer_in_the_thread_that_stands_in_for_a_leader(
    tmp_path: Path, place: tuple[Any, str]
) -> None:
    """What changes LMDB is done in another thread than the main one; a collection may come there, too."""
    target, name = place
    real, told = getattr(target, name), []

    def collects(*args: Any) -> Any:
        if threading.current_thread() is not threading.main_thread() and not told:
            for call in (lambda: disk.put_many([("f", 1, None)]), disk.close):
                with pytest.raises(RuntimeError, match=WITHIN) as error:
                    call()
                told.append(error.value)
        return real(*args)

    disk = opened(tmp_path / "d")
    setattr(target, name, collects)
    disk._engine.journal.doubtful = name == "_make_room"
    disk.put_many([("c", bytes(100 if name == "_make_room" else 2 << 20), None)])
    assert len(told) == 2
    disk.put_many([("d", 1, None)])
    disk.close()
    with Disk(tmp_path / "d") as again:
        assert set(again.get_many(["a", "b", "c", "d", "f"])) == {"a", "b", "c", "d"}
