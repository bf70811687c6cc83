"""A Disk that is being opened: killed, again and again, or failing."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from gbcache import FarError, ImageError, files, journal

pytest.importorskip("lmdb", reason='needs the extra: pip install "gbcache[disk]"')
from test_disk_torn import killed

from gbcache import Disk


def dies_opening(folder: Path, at: int) -> bool:
    """Opens the store in a process that is killed before its `at`-th change of a file; whether it was."""
    pid = os.fork()
    if not pid:
        left = [at]

        def deadly(call: Any) -> Any:
            def do(*args: Any, **named: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **named)

            return do

        for owner, names in (
            (os, ("ftruncate", "pwrite", "fsync", "unlink")),
            (files, ("open_file",)),
        ):
            for name in names:
                setattr(owner, name, deadly(getattr(owner, name)))
        Disk(folder, sync="always")
        os._exit(0)
    return os.waitpid(pid, 0)[1] == signal.SIGKILL


@pytest.mark.skipif(
    os.environ.get("GB_EXPECT") == "asan", reason="a fork beside threads may wait for gcc's ASan"
)
def test_killed_while_it_is_opened_again_and_again(tmp_path: Path) -> None:
    """A journal that was begun may lie before one that was not."""
    killed(tmp_path / "d")
    for first in range(0, 40, 2):
        for second in range(first % 7, 40, 7):
            shutil.copytree(tmp_path / "d", tmp_path / "e")
            deaths = [dies_opening(tmp_path / "e", n) for n in (first, second, first)]
            with Disk(tmp_path / "e") as disk:
                assert disk.count() == 20 and disk.get_many([7]) == {7: (bytes([7]) * 100, None)}
            shutil.rmtree(tmp_path / "e")
            if not deaths[1]:
                break
        if not deaths[0]:
            return
    raise AssertionError("an opening has no end")


def test_an_opening_that_fails_gives_all_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a close fails meanwhile, or no thread is to be had: else nobody could open it again."""

    def closes(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    killed(tmp_path / "d")
    close, fds = os.close, len(os.listdir("/dev/fd"))
    for owner, name, do in (
        (os, "close", closes), (threading.Thread, "start", lambda self: exec("raise RuntimeError('none')")),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, do)
            with pytest.raises((FarError, RuntimeError)):
                Disk(tmp_path / "d")
        assert len(os.listdir("/dev/fd")) == fds
    with Disk(tmp_path / "d") as disk:
        assert disk.count() == 20


def test_no_write_is_led_elsewhere(tmp_path: Path) -> None:
    """A hard link to another file, put where a Disk writes: it stays as it is."""
    victim, folder = tmp_path / "victim", tmp_path / "d"
    victim.touch(0o600)
    folder.mkdir()
    (folder / "owner").hardlink_to(victim)
    with pytest.raises(ImageError, match="no other name"):
        Disk(folder)
    assert victim.read_bytes() == b""
    (folder / "owner").unlink()
    Disk(folder).close()
    victim.write_bytes(b"precious")
    (folder / "journal.00000007").hardlink_to(victim)
    with pytest.raises(ImageError, match="no other name"):
        journal.Journal.create(str(folder), 7, bytes(16), 0, False)
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_directory_that_others_may_write(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "there"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(ImageError, match=f"nobody else may write it .*mode {mode:o}"):
        Disk(path)
    assert not os.listdir(path)
    with Disk(path / "in it") as disk:
        disk.put_many([("k", 1, None)])
    path.chmod(0o755)
    Disk(path).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(ImageError, match="user 12345"):
        Disk(tmp_path)
