"""A Disk whose disk fails."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmdb", reason="a Disk needs lmdb: pip install gbcache[disk]")

import lmdb
from far_contract import in_threads, scanned
from shimmed import build_shim, needs_shim

import gbcache
from gbcache import journal
from gbcache.disk import Disk
from gbcache.errors import FarError

SHORT = os.environ.get("GB_SLICE") == "short"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with Disk(tmp_path / "d") as made:
        yield made


def reopened(disk: Disk) -> dict[Any, Any]:
    disk.close()
    with Disk(disk.path) as again:
        return {key: value for key, (value, _) in again.get_many(scanned(again)).items()}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("what", ["journal", "owner"])
def test_the_journal_fails(disk: Disk, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The frame, or the mark that says it is there: the call says so, nothing of it is there, and the next one finds
    all in order."""
    monkeypatch.setattr(disk._engine, "_tend", lambda: None)  # it mends what is in doubt by itself
    disk.put_many([("a", 1, None)])
    calls: list[Callable[[], object]] = [
        lambda: disk.put_many([("b", 1, None), ("a", 2, None)]),
        lambda: disk.delete_many(["a"]),
        lambda: disk.incr("n"),
        lambda: disk.add("c", 1),
    ]
    for call in calls:
        disk.sync()  # a new journal, where that is in doubt
        holder: Any = getattr(disk._engine, what)
        real, holder.fd = holder.fd, os.open("/dev/full", os.O_RDWR)
        try:
            with pytest.raises(FarError) as failed:
                call()
        finally:
            os.close(holder.fd)
            holder.fd = real
        assert failed.value.errno == errno.ENOSPC and isinstance(failed.value.__cause__, OSError)
        assert disk.get_many("abcn") == {"a": (1, None)}
        assert disk.delete_many(["none"]) == [False]
    disk.put_many([("d", 4, None)])
    assert disk.count() == 2
    assert reopened(disk) == {"a": 1, "d": 4}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_journal_whose_sync_failed_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second fsync says yes of pages that were dropped: LMDB gets all, and a new journal begins."""
    with Disk(tmp_path / "d", sync="interval", interval=3600) as disk:
        made = disk._engine
        monkeypatch.setattr(made, "_tend", lambda: None)
        disk.put_many([("a", 1, None)])
        old: Any = made.journal
        real, old.fd = old.fd, os.open("/dev/full", os.O_RDWR)  # it cannot be synced
        disk.sync()
        os.close(real)
        assert made.journal is not old and made.store.applied == made.seq == made.synced
        assert reopened(disk) == {"a": 1}


def test_lmdb_fails_in_the_background(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was acknowledged waits; it is written when the disk is well again."""
    real, fails = disk._engine.store._transaction, [True]

    def transaction(*args: Any) -> None:
        if fails[0]:
            raise lmdb.DiskError("planted", errno.ENOSPC)
        real(*args)

    monkeypatch.setattr(disk._engine.store, "_transaction", transaction)
    disk.put_many([(i, i, None) for i in range(10)])
    with pytest.raises(FarError) as failed:
        scanned(disk)
    assert failed.value.errno in (errno.ENOSPC, errno.EIO)
    assert len(disk.get_many(range(10))) == 10 == disk.count()
    assert disk.delete_many([3]) == [True]
    fails[0] = False
    assert len(scanned(disk)) == 9
    assert reopened(disk) == {i: i for i in range(10) if i != 3}


def test_closed_where_lmdb_fails(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed all the same, and the journal has everything."""

    def transaction(*args: Any) -> None:
        raise lmdb.DiskError("planted", errno.EIO)

    disk.put_many([(i, i, None) for i in range(10)])
    monkeypatch.setattr(disk._engine.store, "_transaction", transaction)
    with pytest.raises(FarError):
        disk.close()
    assert reopened(disk) == {i: i for i in range(10)}


FAILING = """
import ctypes, json, os, sys
from gbcache import engine
from gbcache.disk import Disk
from gbcache.errors import FarError
from test_files_faults import TOLD, refuses
engine.LAYER = 2000
shim = ctypes.CDLL(None)


def life(folder):
    known = {}
    try:
        disk = Disk(folder)
    except OSError as error:  # FarError is one
        assert error.errno == int(code) or mode == "2", error
        return known
    struck = shim.shim_calls() >= int(turn)
    assert not (struck and call in TOLD and refuses(int(code), int(mode))), "it was opened"
    for i in range(40):
        key, value = i % 13, b"%d" % i * 40
        try:
            if i % 5 == 4:
                disk.delete_many([key]); value = None
            elif i % 11 == 10:
                disk.scan(); continue
            else:
                disk.put_many([(key, value, None)])
        except FarError as error:
            pass
        else:
            known[key] = value
        try:
            there = {k: v for k, (v, _) in disk.get_many(range(13)).items()}
        except FarError:  # LMDB's own write failed: until the next one what is not in memory cannot be read
            continue
        assert there == {k: v for k, v in known.items() if v is not None}, (i, there, known)
    try:
        disk.close()
    except FarError:
        pass
    return known


struck, calls = 0, 0
for n, how in enumerate(sys.argv[2:]):
    call, turn, code, mode = how.split(":")
    folder = os.path.join(sys.argv[1], str(n))
    shim.shim_root(folder.encode())
    shim.shim_arm(call.encode(), int(turn), int(code), int(mode))
    try:
        known = life(folder)
        calls = shim.shim_disarm()
        struck += calls >= int(turn)
        with Disk(folder) as disk:
            there = {k: v for k, (v, _) in disk.get_many(range(13)).items()}
            assert there == {k: v for k, v in known.items() if v is not None}, (there, known)
            assert disk.count() == len(there)
    except BaseException as error:
        raise AssertionError(how) from error
print(json.dumps([struck, calls]))
"""


ASKED = """
import ctypes, errno, itertools, sys
from gbcache import engine
from gbcache.disk import Disk
from gbcache.errors import FarError
engine.SWEEP = engine.IDLE = 3600  # nobody else calls what fails
shim = ctypes.CDLL(None)
real, tried, fresh = engine.append, 0, itertools.count()


def careless(*given):
    try:
        real(*given)
    except OSError:
        pass


def fails(where, call, act, how=0):
    "Each turn of a call there: whoever asked is told, with its number. And where none is reached nothing is told."
    global tried
    turn, struck = 0, True
    while struck:
        turn += 1
        shim.shim_root(where.encode())
        shim.shim_arm(call, turn, errno.EIO, how)
        told = None
        try:
            act()
        except FarError as error:
            told = error.errno
        struck = shim.shim_disarm() >= turn
        assert told == (errno.EIO if struck else None), (where, call, turn, told)
        tried += struck
    assert turn > 1, (where, call, "never failed")


with Disk(sys.argv[1] + "/1") as disk:
    disk.put_many([("a", 1, None), ("n", 1, None)])
    if len(sys.argv) > 2:
        engine.append = careless
    for act in (
        lambda: disk.put_many([("b", 2, None)]), lambda: disk.incr("n"), lambda: disk.add(next(fresh), 1),
        lambda: disk.delete_many([disk.put_many([("c", 1, None)]) or "c"]),
    ):
        for call in b"pwrite", b"fdatasync":
            disk.sync()  # a new journal, where that is in doubt
            fails(disk._engine.journal.path, call, act)
        disk.sync()
        fails(disk._engine.owner.path, b"pwrite", act)


def sync():
    disk.put_many([("k", tried, None)])
    disk.sync()


with Disk(sys.argv[1] + "/2", sync="interval", interval=3600) as disk:
    fails(sys.argv[1] + "/2", b"fdatasync", sync, 1)  # the journal's, and then LMDB's
closed = lambda: Disk(sys.argv[1] + "/2").close()
fails(sys.argv[1] + "/2/owner", b"fsync", closed)  # when it is opened, and when it is closed
print(tried)
"""


def behind(library: Path, program: str, *args: str) -> str:
    """What a program printed whose libc is behind the shim."""
    paths = [str(Path(gbcache.__file__).parent.parent), str(Path(__file__).parent)]
    env = {
        **os.environ,
        "LD_PRELOAD": f"{os.environ.get('LD_PRELOAD', '')} {library}".strip(),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    ran = subprocess.run([sys.executable, "-c", program, *args], env=env, capture_output=True, text=True,
                         timeout=300)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def fail(root: Path, library: Path, faults: list[str]) -> tuple[int, int]:
    """A Disk's life for each "call:turn:error:how"; how many of them were reached, and the last one's calls."""
    struck, calls = json.loads(behind(library, FAILING, str(root), *faults))
    return struck, calls


@pytest.mark.skipif(
    SHORT or not sys.platform.startswith("linux"), reason="needs a preloaded library, and seconds"
)
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_one_call_of_the_system_fails(tmp_path: Path, call: str) -> None:
    """The journal's, LMDB's pages' or its head's: memory and disk agree, and it goes on."""
    library = build_shim(tmp_path / "shim.so")
    codes = (errno.EIO, errno.ENOSPC)
    faults = [f"{call}:{turn}:{code}:0" for turn in range(1, 40, 7) for code in codes]
    struck, _ = fail(tmp_path, library, faults)
    assert struck >= 3, "they have to be reached"


@needs_shim
def test_who_asked_is_told_of_what_failed(tmp_path: Path) -> None:
    """An acknowledgement whose write or sync failed is none: not of a change, not of a sync, not of an end."""
    library = build_shim(tmp_path / "shim.so")
    assert int(behind(library, ASKED, str(tmp_path))) >= 16


@needs_shim
def test_an_error_that_is_swallowed_is_found(tmp_path: Path) -> None:
    library = build_shim(tmp_path / "shim.so")
    with pytest.raises(AssertionError, match=r"pwrite.*None"):
        behind(library, ASKED, str(tmp_path), "plant")


def test_an_error_is_for_whom_it_concerns(disk: Disk) -> None:
    disk.put_many([("text", "x", None)])

    def work(t: int) -> None:
        for i in range(30):
            if t % 2:
                disk.put_many([((t, i), i, None)])
            else:
                with pytest.raises(TypeError, match="str"):
                    disk.incr("text")

    in_threads(8, work)
    assert disk.count() == 4 * 30 + 1
    info = disk.info()
    assert info.grouped >= info.groups > 0


def test_no_memory_for_a_new_journal(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on disk by then: neither its descriptor nor its file is left."""

    def none(*_: Any) -> int:
        raise MemoryError

    def there() -> tuple[int, set[str]]:
        return len(os.listdir("/dev/fd")), set(os.listdir(disk.path))

    disk.put_many([("k", 1, None)])
    before = there()
    with monkeypatch.context() as short:
        short.setattr(journal, "_about", none)
        with pytest.raises(MemoryError):
            disk.scan()
    assert there() == before
    assert reopened(disk) == {"k": 1}


def test_room_that_is_made_is_there_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is full, and removals wait in memory, the next write has LMDB told of them first."""
    with Disk(tmp_path / "d", max_bytes="8MB") as disk:
        monkeypatch.setattr(disk._engine, "_tend", lambda: None)
        n = 0
        with pytest.raises(FarError):
            while n < 1000:
                disk.put_many([(n, bytes(50_000), None)])
                n += 1
        disk.delete_many(list(range(n // 2)))
        disk.put_many([("new", bytes(50_000), None)])
        assert disk.get_many(["new", 0]).keys() == {"new"}
