"""A Disk whose files are torn by a power cut, damaged, or foreign; and slices of the campaigns."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lmdb", reason="a Disk needs lmdb: pip install gbcache[disk]")

import lmdb
from far_contract import scanned

from gbcache import files
from gbcache.disk import Disk
from gbcache.errors import ImageError

PROOF = Path(__file__).parent / "proof"
SHORT = os.environ.get("GB_SLICE") == "short"


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


# --- slices of the campaigns -----------------------------------------------------------------------


def campaign(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: it forks, and no thread of other tests may be there."""
    command = [sys.executable, str(PROOF / name), *options]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=env
    )


KILLS, STORES = ["--kills", "6" if SHORT else "12"], ["--stores", "15" if SHORT else "30"]


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
