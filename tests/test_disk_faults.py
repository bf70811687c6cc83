"""A Disk whose disk fails, whose files are damaged, torn by a power cut, or foreign."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmdb", reason="a Disk needs lmdb: pip install gbcache[disk]")

import lmdb
from far_contract import in_threads, scanned

import gbcache
from gbcache import files, journal
from gbcache.disk import Disk
from gbcache.errors import FarError, ImageError

PROOF = Path(__file__).parent / "proof"
SHORT = os.environ.get("GB_SLICE") == "short"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with Disk(tmp_path / "d") as made:
        yield made


def reopened(disk: Disk) -> dict[Any, Any]:
    disk.close()
    with Disk(disk.path) as again:
        return {key: value for key, (value, _) in again.get_many(scanned(again)).items()}


# --- the disk fails ------------------------------------------------------------------------------


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


def build_shim(library: Path) -> Path:
    shim = Path(__file__).parent / "fault" / "shim.c"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", str(shim), "-o", str(library), "-ldl"], check=True
    )
    return library


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


needs_shim = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("gcc"),
    reason="the calls are made to fail by a preloaded library: Linux, and gcc",
)


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


# --- torn, foreign, old ----------------------------------------------------------------------------


def killed(folder: Path, sync: str = "always", n: int = 20) -> None:
    """A store whose process ended without a word, with all in the journal."""
    pid = os.fork()
    if not pid:
        disk = Disk(folder, sync=sync, interval=60)
        for i in range(n):
            disk.put_many([(i, bytes([i]) * 100, None)])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def the_journal(folder: Path) -> Path:
    (found,) = folder.glob("journal.*")
    return found


@pytest.mark.parametrize("sync", ["always", "interval"])
def test_a_power_cut_tears_the_last_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str
) -> None:
    """What had not been synced may be missing, from the end; what had been is there, or it is an error."""
    killed(tmp_path / "d", sync)
    data = the_journal(tmp_path / "d").read_bytes()
    monkeypatch.setattr(files, "boot_id", lambda: b"another machine.")
    outcomes = set()
    for cut in range(57, len(data), 167):
        for torn in (
            data[:cut],
            data[:cut] + bytes(len(data) - cut),
            data[: cut - 1] + b"\xff" + data[cut:],
        ):
            shutil.copytree(tmp_path / "d", tmp_path / "e")
            the_journal(tmp_path / "e").write_bytes(torn)
            try:
                with Disk(tmp_path / "e") as disk:
                    keys = sorted(scanned(disk))
                    assert keys == list(range(len(keys)))
                    assert disk.get_many(keys) == {i: (bytes([i]) * 100, None) for i in keys}
                    outcomes.add(len(keys))
            except ImageError as error:
                assert sync == "always" and "synced" in error.rule
                outcomes.add(-1)
            shutil.rmtree(tmp_path / "e")
    assert outcomes == {*range(20), *([-1] if sync == "always" else [])} | outcomes & {20}


def test_after_a_kill_nothing_may_be_missing(tmp_path: Path) -> None:
    killed(tmp_path / "d", "interval")
    data = the_journal(tmp_path / "d").read_bytes()
    for cut in range(0, len(data) - 1, 97):
        shutil.copytree(tmp_path / "d", tmp_path / "e")
        the_journal(tmp_path / "e").write_bytes(data[:cut])
        with pytest.raises(ImageError):
            Disk(tmp_path / "e")
        shutil.rmtree(tmp_path / "e")
    with Disk(tmp_path / "d") as disk:
        assert disk.count() == 20


@pytest.mark.parametrize("gone", ["data.mdb", "journal.00000001"])
def test_a_file_is_gone(tmp_path: Path, gone: str) -> None:
    killed(tmp_path / "d")
    (tmp_path / "d" / gone).unlink()
    with pytest.raises(ImageError, match=r"is there|is in it"):
        Disk(tmp_path / "d")


def test_no_store_of_ours(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "d"), map_size=1 << 20) as env, env.begin(write=True) as txn:
        txn.put(b"k", b"v")
    with pytest.raises(ImageError, match="a store of GbCache's"):
        Disk(tmp_path / "d")
    (tmp_path / "d" / "data.mdb").write_bytes(b"hello" * 1000)
    with pytest.raises(ImageError, match=r"two heads|page size"):
        Disk(tmp_path / "d")


def test_an_older_data_file(tmp_path: Path) -> None:
    """One that was put back, with the journal of a later time."""
    Disk(tmp_path / "d").close()
    old = (tmp_path / "d" / "data.mdb").read_bytes()
    with Disk(tmp_path / "d") as disk:
        disk.put_many([("k", 1, None)])
    (tmp_path / "d" / "data.mdb").write_bytes(old)
    with pytest.raises(ImageError, match=r"older than its journal|as it was closed"):
        Disk(tmp_path / "d")


def test_a_record_damaged_while_it_is_open(tmp_path: Path) -> None:
    """Its checksum is looked at by each read."""
    with Disk(tmp_path / "d") as disk:
        disk.put_many([("k", b"needle" * 5, None), ("l", 1, None)])
        disk._engine.flush()
        with open(tmp_path / "d" / "data.mdb", "r+b") as file:
            data = file.read()
            while (at := data.find(b"needleneedle")) >= 0:
                file.seek(at)
                file.write(b"x")
                data = data[:at] + b"x" + data[at + 1 :]
        with pytest.raises(ImageError, match="checksum"):
            disk.get_many(["k"])
        assert disk.get_many(["l"]) == {"l": (1, None)}


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


# --- slices of the campaigns -----------------------------------------------------------------------


def campaign(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: it forks, and no thread of other tests may be there."""
    command = [sys.executable, str(PROOF / name), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


KILLS, STORES = ["--kills", "10" if SHORT else "25"], ["--stores", "25" if SHORT else "60"]


@pytest.mark.parametrize(
    ("name", "options", "plant"),
    [
        ("disk_kill.py", KILLS, []),
        ("disk_kill.py", KILLS, ["--plant"]),
        ("disk_kill.py", KILLS, ["--plant", "stuck"]),
        ("disk_damage.py", STORES, []),
        ("disk_damage.py", STORES, ["--plant"]),
    ],
)
def test_a_slice_of_the_campaign(name: str, options: list[str], plant: list[str]) -> None:
    """And that it finds what it is there to find."""
    ran = campaign(name, *options, *plant)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    if "(kept: " in ran.stdout:
        shutil.rmtree(ran.stdout.split("(kept: ")[1].split(")")[0])
    assert plant or "0 lost" in ran.stdout or " 0 with a wrong value" in ran.stdout


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
