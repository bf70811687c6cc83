"""Files of any length are told of by their heads, and a sync reaches the disk itself."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from gbcache import Cache, files
from gbcache.__main__ import main


def test_info_of_a_live_file_longer_than_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only its head is read: nothing as long as the file is asked for."""
    path = tmp_path / "a.gbc"
    Cache("1MB", path=path).close()
    try:
        os.truncate(path, 1 << 43)
    except OSError as error:
        pytest.skip(f"no file of 8 TiB here: {error}")
    assert main(["info", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["state"], said["file_bytes"]) == ("closed", 1 << 43)


@pytest.mark.parametrize("refused", [False, True])
def test_a_sync_is_through_the_drives_cache(
    refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system has a call for that; some file systems refuse it."""
    done: list[str] = []
    full = 51

    def control(fd: int, what: int) -> None:
        assert what == full
        done.append("full")
        if refused:
            raise OSError(errno.ENOTSUP, "not here")

    monkeypatch.setattr(files, "_FULL_SYNC", full)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", lambda fd: done.append("fsync"))
    with files.replacing(str(tmp_path / "a")) as fd:
        os.write(fd, b"new")
    once = ["full", "fsync"] if refused else ["full"]
    assert done == 2 * once  # the file, its directory
