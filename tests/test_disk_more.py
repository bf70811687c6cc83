"""A `Disk` whose caller changes what it gave, whose commit fails or is interrupted, and that is read from within."""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmdb", reason="a Disk needs lmdb: pip install gbcache[disk]")

import lmdb

from gbcache import codec, groups, journal
from gbcache._disk import Gate, Reading
from gbcache.disk import Disk
from gbcache.errors import FarError
from gbcache.verbs import Incr
from gbcache.view import Do


def planted(*args: Any) -> None:
    raise lmdb.DiskError("planted", errno.EIO)


def quiet(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its engine, whose background does nothing by itself."""
    monkeypatch.setattr(disk._engine, "_tend", lambda: None)
    return disk._engine


# --- what the caller gave ------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["get_many", "delete_many"])
def test_keys_that_change_meanwhile(tmp_path: Path, verb: str) -> None:
    """A list that a codec, a key or another thread appends to: what counts is what it was."""
    keys: list[Any] = []

    class Adds(codec.TypedCodec):
        def decode(self, data: bytes) -> Any:
            keys.extend(["a"] * 100_000)
            return super().decode(data)

    class Key(tuple[str]):
        @property
        def __class__(self) -> Any:  # what isinstance() asks
            keys.extend(["a"] * 100_000)
            return tuple

        @__class__.setter
        def __class__(self, value: Any) -> None: ...

    with Disk(tmp_path / "d", codec=Adds()) as disk:
        disk.put_many([("a", [1], None), (("t",), [2], None)])
        keys += ["a", Key(("t", "b")) if verb == "delete_many" else ("t", "b")]
        if verb == "get_many":
            assert disk.get_many(keys) == {"a": ([1], None)} and len(keys) > 100_000
        else:
            assert disk.delete_many(keys) == [True, False]
        assert disk.get_many(iter(("a", "none"))).keys() == ({"a"} if verb == "get_many" else set())  # type: ignore[arg-type]


def test_a_codec_is_called_outside_every_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the verb: it finds the map free to move, and may write to the same Disk."""
    alone: list[bool] = []

    class Asks(codec.TypedCodec):
        def _ask(self) -> None:
            if not alone[:1]:
                return

            def take() -> None:
                with disk._engine.store.gate.alone():
                    alone.append(True)

            thread = threading.Thread(target=take, daemon=True)
            thread.start()
            thread.join(5)
            alone.append(not thread.is_alive())
            disk.put_many([("from a codec", 1, None)])

        def decode(self, data: bytes) -> Any:
            self._ask()
            return super().decode(data)

        def encode(self, value: Any) -> bytes:
            self._ask()
            return super().encode(value)

    with Disk(tmp_path / "d", codec=Asks()) as disk:
        quiet(disk, monkeypatch)
        long = "k" * 3000
        disk.put_many([("a", [1], None), (long, [2], 50), ("big", 2**70, None)])
        disk._engine.flush()
        alone.append(True)
        found = disk.get_many(["a", "none", long])
        assert found["a"] == ([1], None) and found[long][0] == [2] and list(found) == ["a", long]
        assert disk.touch("a", 100) and disk.touch(long, None) and disk.add("b", [3])
        with pytest.raises(TypeError, match=r"incr\('a'\): its value is a list"):
            disk.incr("a")
        with pytest.raises(TypeError, match=r"incr\('big'\): its value is a int, not an int of 64"):
            disk.incr("big")
        assert len(alone) > 6 and all(alone)
        alone.clear()
        found = disk.get_many(["a", long, "b", "from a codec"])
        assert 99 < (found.pop("a")[1] or 0) <= 100
        assert found == {long: ([2], None), "b": ([3], None), "from a codec": (1, None)}


# --- LMDB fails ----------------------------------------------------------------------------------


def test_no_room_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal in doubt, `max_bytes` near, and LMDB fails: whoever writes is told a FarError."""
    with Disk(tmp_path / "d", max_bytes="4MiB", sync="never") as disk:
        made = quiet(disk, monkeypatch)
        disk.put_many([(i, bytes(1000), None) for i in range(50)])
        monkeypatch.setattr(made.store, "_transaction", planted)
        monkeypatch.setattr(made.store, "beyond", lambda *_: True)
        made.journal.doubtful = True
        calls: list[Callable[[], object]] = [
            lambda: disk.put_many([("b", 1, None)]),
            lambda: disk.add("c", 1),
            lambda: disk.incr("n"),
            lambda: disk.delete_many([1]),
            lambda: disk.clear(),
        ]
        for call in calls:
            with pytest.raises(FarError) as failed:
                call()
            assert isinstance(failed.value.__cause__, lmdb.Error)
        monkeypatch.undo()
        assert disk.delete_many([1, "b"]) == [True, False] and disk.count() == 49
        disk.put_many([("b", 1, None)])


def test_lmdb_fails_a_leader_that_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it raises is a FarError, whoever asked for what."""

    class Broken:
        def get(self, name: bytes) -> Any:
            raise lmdb.CorruptedError("planted")

        def abort(self) -> None: ...

    with Disk(tmp_path / "d") as disk:
        made = quiet(disk, monkeypatch)
        monkeypatch.setattr(made.store, "begin", Broken)
        made.reading = made.store.reading()
        calls: list[Callable[[], object]] = [
            lambda: disk.add("c", 1),
            lambda: disk.incr("n"),
            lambda: disk.touch("n", 1),
            lambda: disk.delete_many([1]),
        ]
        for call in calls:
            with pytest.raises(FarError, match="planted") as failed:
                call()
            assert isinstance(failed.value.__cause__, lmdb.Error)
        monkeypatch.undo()
        made.reading = made.store.reading()
        assert disk.incr("n") == 1


def test_closed_where_lmdb_fails_both_journals_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was frozen too is acknowledged, and may have a tail that is not on disk."""
    synced: list[str] = []
    disk = Disk(tmp_path / "d", sync="never")  # the thread that syncs would at its end
    made = quiet(disk, monkeypatch)
    disk.put_many([("a", 1, None)])
    monkeypatch.setattr(made.store, "_transaction", planted)
    with pytest.raises(lmdb.Error):
        made._settle_behind()
    disk.put_many([("b", 1, None)])
    paths = {made.journal.path, made._frozen_journal.path}
    real = journal.sync_journal

    def sync(one: Any) -> None:
        synced.append(one.path)
        if fails and len(synced) == 1:
            one.doubtful = True
            raise OSError(errno.EIO, "planted")
        real(one)

    fails = True
    monkeypatch.setattr(journal, "sync_journal", sync)
    with pytest.raises(FarError) as failed:
        disk.close()
    assert isinstance(failed.value.__cause__, OSError)
    assert len(paths) == 2 and set(synced) == paths
    with Disk(tmp_path / "d") as again:
        assert again.get_many("ab") == {"a": (1, None), "b": (1, None)}


# --- interrupted ---------------------------------------------------------------------------------


class Interrupt(Exception): ...


def raising(*_: object) -> None:
    raise Interrupt


def test_a_write_is_over_when_its_interrupt_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread leads, and is in the midst of it: what it stores is there when the one that waits is told."""
    with Disk(tmp_path / "d") as disk:
        made = quiet(disk, monkeypatch)
        disk.put_many([("a", "old", None)])
        first, inside = threading.Event(), threading.Event()
        real = made._commit

        def commit(batch: list[Any]) -> None:
            if not first.is_set():
                first.set()
                while len(made.groups._waiting) < 2:
                    time.sleep(0.001)
            elif len(batch) == 2:
                inside.set()
                time.sleep(0.5)
            real(batch)

        made.groups._commit = commit
        others = [
            threading.Thread(target=disk.put_many, args=([(n, 1, None)],), daemon=True)
            for n in range(2)
        ]
        others[0].start()
        first.wait(10)
        others[1].start()  # it leads next
        while not made.groups._waiting:
            time.sleep(0.001)

        def interrupt() -> None:
            inside.wait(10)
            for _ in range(3):  # the next ones find it waiting, too
                time.sleep(0.05)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        sender = threading.Thread(target=interrupt, daemon=True)
        before = signal.signal(signal.SIGUSR1, raising)
        found: Any = None
        try:
            sender.start()
            with pytest.raises(Interrupt):
                disk.put_many([("a", "new", None)])
            found = disk.get_many("a")
        finally:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            sender.join(10)
            signal.signal(signal.SIGUSR1, before)
        assert found == {"a": ("new", None)}, "it landed after that"
        for thread in others:
            thread.join(10)


@pytest.mark.parametrize("alone", [False, True])
def test_a_leader_is_interrupted_after_it_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """Those it wrote for are told what came of it; FarError would say that nothing of it is there."""
    with Disk(tmp_path / "d") as disk:
        made = quiet(disk, monkeypatch)
        first, said = threading.Event(), [0, 0]
        real = made._commit

        def commit(batch: list[Any]) -> None:
            real(batch)
            if len(batch) > 1:
                raise Interrupt
            if not first.is_set():
                first.set()
                while len(made.groups._waiting) < 3:
                    time.sleep(0.001)

        made.groups._commit = commit

        def follow(n: int) -> None:
            said[n] = disk.clear() if alone else disk.incr("n")

        begin = threading.Thread(target=disk.put_many, args=([("x", 1, None)],), daemon=True)
        begin.start()
        first.wait(10)
        others = [threading.Thread(target=follow, args=(n,), daemon=True) for n in range(2)]

        def later() -> None:
            while not made.groups._waiting:  # the main thread leads
                time.sleep(0.001)
            for thread in others:
                thread.start()

        starter = threading.Thread(target=later, daemon=True)
        starter.start()
        with pytest.raises(Interrupt):
            disk.put_many([("led", 1, None)])
        starter.join(10)
        for thread in others:
            thread.join(10)
        assert sorted(said) == ([0, 2] if alone else [1, 2])
        assert made.groups._waiting == [] and disk.incr("n") == (1 if alone else 3)


def test_an_interrupt_is_of_who_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes as the main thread does a step of another: it is not that one's error."""
    with Disk(tmp_path / "d") as disk:
        made = quiet(disk, monkeypatch)

        def step() -> None:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            time.sleep(0.1)

        others = [Do(step), Do(made._flush)]
        for one in others:
            one.thread = 0
            made.groups._waiting.append(one)
        before = signal.signal(signal.SIGUSR1, raising)
        try:
            with pytest.raises(Interrupt):
                disk.put_many([("a", 1, None)])
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert others[0].error is None and isinstance(others[1].error, FarError)
        assert disk.get_many("a") == {}


def test_a_leader_is_interrupted_before_it_stores(tmp_path: Path) -> None:
    """What it did not come to is not there, and that is what the others are told."""
    group = [groups.Request() for _ in range(3)]
    group[1].told, group[1].result = True, "stored"
    made = groups.Groups(lambda batch: None)
    made._give_up(group, group[0], Interrupt())  # type: ignore[attr-defined]
    assert [type(request.error) for request in group] == [type(None), type(None), FarError]


def test_what_could_not_be_put_among_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is short once the journal has it: who is told so finds it, at the latest when the background looks."""
    with Disk(tmp_path / "d") as disk:
        tend = disk._engine._tend
        made = quiet(disk, monkeypatch)
        layers = made.layers

        class Short(groups.Request):
            def do(self, view: Any) -> None:
                made.layers = (None, layers[1])

        batch = [Incr("n", made.records.name("n"), 1, 0, 0), Short()]
        with pytest.raises(TypeError):
            made._commit(batch)
        made.layers = layers
        made.groups._give_up(batch, batch[1], MemoryError())
        assert batch[0].error is None and batch[0].result == 1 and made.owed
        tend()
        assert disk.get_many("n") == {"n": (1, None)} and made.owed is None
        layers = made.layers
        with pytest.raises(TypeError):
            made._commit(batch)
        made.layers = layers
        assert disk.scan() == (["n"], None) and disk.get_many("n") == {"n": (2, None)}


# --- read from within ----------------------------------------------------------------------------


def test_who_is_inside_may_come_in_again(tmp_path: Path) -> None:
    """A handler, or a `__del__`, that reads while its thread does, and the map is about to move."""
    with Disk(tmp_path / "d") as disk:
        disk.put_many([("a", 1, None)])
        store, moved = disk._engine.store, threading.Event()

        def move() -> None:
            with store.gate.alone():
                moved.set()

        mover, read = threading.Thread(target=move, daemon=True), threading.Event()

        def nested() -> None:
            with store.reading():
                mover.start()
                time.sleep(0.1)
                assert disk.get_many("a") == {"a": (1, None)} and disk.count() == 1
                assert not moved.is_set()
                read.set()

        reader = threading.Thread(target=nested, daemon=True)
        reader.start()
        assert read.wait(5), "it waits for who waits for it"
        assert moved.wait(5)
        for thread in (reader, mover):
            thread.join(5)


def test_a_gate_keeps_out_who_is_not_inside() -> None:
    """Places taken and left in any order, by any thread: alone is who is let in alone."""
    gate, outside = Gate(), threading.Event()
    places = [view_of(gate) for _ in range(40)]
    for place in places:
        place.open()
    for n in (1, 0, *range(4, 40)):
        places[n].close()
    entered, alone = threading.Event(), threading.Event()

    def move() -> None:
        with gate.alone():
            alone.set()
            outside.wait(5)

    def enter() -> None:
        with view_of(gate):
            entered.set()

    mover, other = (threading.Thread(target=call, daemon=True) for call in (move, enter))
    mover.start()
    time.sleep(0.1)
    other.start()
    assert not entered.wait(0.1) and not alone.is_set()
    with view_of(gate):
        assert not alone.is_set()
    closer = threading.Thread(target=lambda: [places[n].close() for n in (3, 2)])
    closer.start()  # by another thread
    closer.join(5)
    assert alone.wait(5) and not entered.wait(0.1)
    outside.set()
    assert entered.wait(5)
    mover.join(5)
    other.join(5)
    with gate.alone(), view_of(gate):  # its own thread
        pass


def view_of(gate: Any) -> Any:
    class Nothing:
        def abort(self) -> None: ...

    return Reading(gate, Nothing, lmdb.Error, "none")
