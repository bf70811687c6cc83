"""Live files, as their users see them."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from children import run
from fillings import filled

import gbcache
from gbcache import Cache, ImageError, files, live

LAYOUT = 12
"""Where a live file's head has it."""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def test_a_live_file_is_there_again(folder: Path) -> None:
    path = folder / "a.gbc"
    with filled(Cache("2MB", path=path, events="64KiB")) as cache:
        assert cache.recovery == live.Recovery("new", 0, "", cache.recovery.seconds)  # type: ignore[union-attr]
        content, seq = list(cache.items()), cache.last_seq
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()}"):
            Cache("2MB", path=path)
    with Cache("2MB", path=path, events="64KiB") as again:
        assert again.recovery is not None and again.recovery.how == "clean"
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()}"):
            Cache.open(path, "r+")  # one that was there has one writer, too
        assert list(again.items()) == content and again.last_seq == seq
        assert 98 < (again.ttl("ttl") or 0) <= 100
        again.check()
    with Cache.open(path, "r+") as third:
        assert third.max_bytes == 2_000_000 and len(third) == len(content)
    assert path.stat().st_mode & 0o777 == 0o600


def test_another_size_and_back(folder: Path) -> None:
    path = folder / "a.gbc"
    with Cache("1MB", path=path) as cache:
        for i in range(5000):
            cache[i] = b"v" * 100
        kept = list(cache)
    with Cache("3MB", path=path) as larger:
        assert list(larger) == kept and path.stat().st_size == 3_000_000
        larger.check()
    with Cache("400kB", path=path) as smaller:
        assert list(smaller) == kept[-len(smaller) :] and path.stat().st_size == 400_000
        smaller.check()


KILLED = """
cache = gbcache.Cache("2MB", path=sys.argv[1])
for i in range(3000):
    cache[i] = b"v" * (i % 300)
del cache[7]
if len(sys.argv) > 2:
    cache.sync()
    cache["after"] = 1
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_nothing(folder: Path) -> None:
    path = folder / "a.gbc"
    assert run(KILLED, path).returncode == -signal.SIGKILL
    with Cache("2MB", path=path) as cache:
        assert cache.recovery is not None and cache.recovery.how == "mended"
        assert list(cache) == [i for i in range(3000) if i != 7]
        assert all(cache[i] == b"v" * (i % 300) for i in range(3000) if i != 7)
        cache.check()


def test_a_power_cut_falls_back_to_the_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "a.gbc"
    run(KILLED, path, "sync")
    monkeypatch.setattr(files, "boot_id", lambda: b"another boot 123")
    with Cache("2MB", path=path) as cache:
        assert cache.recovery is not None and cache.recovery.how == "checkpoint"
        assert "after" not in cache and list(cache) == [i for i in range(3000) if i != 7]
        cache.check()
    with Cache("2MB", path=path) as cache:
        assert cache.recovery is not None and cache.recovery.how == "clean"


def test_nothing_sound_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "a.gbc"
    run(KILLED, path)
    monkeypatch.setattr(files, "boot_id", lambda: b"another boot 123")
    before = path.read_bytes()
    with pytest.raises(ImageError, match="on_error='empty'"):
        Cache("2MB", path=path)
    assert path.read_bytes() == before and os.listdir(folder) == ["a.gbc"]
    with Cache("2MB", path=path, on_error="empty", events="16KiB") as cache:
        assert cache.recovery is not None and cache.recovery.how == "empty" and len(cache) == 0
        assert [(e.kind, e.value) for e in cache.changes()] == [("recover", 0)]
    damaged = Path(str(path) + live.CHECKPOINT)
    damaged.write_bytes(b"GbSnap1\n" + bytes(9000))
    path.unlink()
    with pytest.raises(ImageError):
        Cache("2MB", path=path)
    with Cache("2MB", path=path, on_error="empty") as cache:
        assert cache.recovery is not None and cache.recovery.how == "empty"


def test_closed_then_another_boot_is_clean(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "a.gbc"
    filled(Cache("2MB", path=path)).close()
    monkeypatch.setattr(files, "boot_id", lambda: b"another boot 123")
    with Cache("2MB", path=path) as cache:
        assert cache.recovery is not None and cache.recovery.how == "clean"
        assert 98 < (cache.ttl("ttl") or 0) <= 100


def test_no_thread_to_sync_in_the_background(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none)
        with pytest.raises(RuntimeError, match="new thread") as told:
            Cache("1MB", path=folder / "a.gbc", sync_interval=5)
    with Cache("1MB", path=folder / "a.gbc"):  # though the frames are there: it is nobody's
        assert told.value


def test_background_sync(folder: Path) -> None:
    path = folder / "a.gbc"
    with Cache("1MB", path=path, sync_interval=0.05) as cache:
        cache["k"] = 1
        checkpoint = Path(cache._file.checkpoint)  # type: ignore[union-attr]
        deadline = time.monotonic() + 10
        found = None
        while found is None and time.monotonic() < deadline:  # the first may come before the key
            time.sleep(0.02)
            found = Cache.open(checkpoint).get("k") if checkpoint.exists() else None
        assert found == 1 and cache.sync_errors == 0
    for bad, error in (({"sync_interval": 1}, ValueError), ({"on_error": "x"}, ValueError)):
        with pytest.raises(error):
            Cache("1MB", **bad)
    with pytest.raises(ValueError, match="clock"):
        Cache("1MB", path=path, clock=time.monotonic)
    with pytest.raises(TypeError, match="path"):
        Cache("1MB").sync()


def test_a_forked_child_has_no_part_in_it(folder: Path) -> None:
    path = folder / "a.gbc"
    cache = Cache("1MB", path=path)
    cache["k"] = 1
    pid = os.fork()
    if not pid:
        try:
            cache["k"] = 2
        except gbcache.ClosedError as error:
            os._exit(0 if "parent" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert cache["k"] == 1
    cache.close()
    Cache("1MB", path=path).close()


def test_a_copy_of_an_open_live_file_is_not_believed(folder: Path) -> None:
    path, copy = folder / "a.gbc", folder / "b.gbc"
    with Cache("1MB", path=path) as cache:
        cache["k"] = 1
        copy.write_bytes(path.read_bytes())
        os.chmod(copy, 0o600)
        with pytest.raises(ImageError, match="copy of another"):
            Cache("1MB", path=copy)
    copy.write_bytes(path.read_bytes())  # of a closed one
    with Cache("1MB", path=copy) as cache:
        assert cache["k"] == 1
    (folder / "text").write_text("not ours\n" * 9000)
    os.chmod(folder / "text", 0o600)
    with pytest.raises(ImageError, match="begins with GBcache1"):
        Cache("1MB", path=folder / "text", on_error="empty")
    assert (folder / "text").read_text() == "not ours\n" * 9000


def test_a_constructor_that_fails_leaves_the_file_to_others(tmp_path: Path) -> None:
    path = tmp_path / "a.gbc"
    with pytest.raises(ValueError, match="does not fit") as told:
        Cache("60kB", path=path, events="50kB")
    with Cache(
        "60kB", path=path
    ) as cache:  # while the exception, and so its frames, are still there
        assert told.value and len(cache) == 0


def of_another_release(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(LAYOUT)
        layout = file.read(4)
        file.seek(LAYOUT)
        file.write(bytes(byte ^ 0xFF for byte in layout))


def test_what_another_release_wrote_is_not_given_up_for_a_checkpoint(folder: Path) -> None:
    path = folder / "a.gbc"
    with Cache("1MB", path=path) as cache:
        cache["k"] = "old"
        cache.sync()
        cache["k"] = "new"
    of_another_release(path)
    was = path.read_bytes()
    with pytest.raises(ImageError, match="open it with the one that did"):
        Cache("1MB", path=path)
    assert path.read_bytes() == was
    with Cache("1MB", path=path, on_error="empty") as cache:
        assert cache["k"] == "old" and cache.recovery.how == "checkpoint"


def test_a_file_longer_than_an_image_can_be_is_not_replaced(folder: Path) -> None:
    path = folder / "disk.img"
    path.touch(0o600)
    os.truncate(path, 40 << 30)  # sparse
    for on_error in ("raise", "empty"):
        with pytest.raises(ImageError, match="bytes at most"):
            Cache("1MB", path=path, on_error=on_error)
    assert path.stat().st_size == 40 << 30


def test_a_checkpoint_of_another_codec_is_kept(folder: Path) -> None:
    path = folder / "a.gbc"
    with Cache("1MB", path=path, codec="pickle") as cache:
        cache["k"] = 1
        cache.sync()
    path.unlink()
    for on_error in ("raise", "empty"):
        with pytest.raises(ImageError, match="pickle"):
            Cache("1MB", path=path, on_error=on_error)
    with Cache("1MB", path=path, codec="pickle") as cache:
        assert cache["k"] == 1


def test_a_path_is_the_one_of_the_beginning(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with Cache("1MB", path="a.gbc") as cache:
        cache["k"] = 1
        monkeypatch.chdir(tmp_path)
        cache.sync()
        assert (folder / "a.gbc.checkpoint").exists() and not list(tmp_path.iterdir())
        monkeypatch.chdir(folder)
        cache.save("s.gbs")
    found = Cache.open("s.gbs", "r")
    monkeypatch.chdir(tmp_path)
    assert found.refresh() is found
    found.close()


def test_a_snapshot_becomes_a_live_file_as_its_checkpoint(folder: Path) -> None:
    """Not by ``open``: killed meanwhile, it would be half of it."""
    path: Path = folder / "a.gbc"
    with Cache("1MB") as cache:
        cache["k"] = 1
        cache.save(f"{path}.checkpoint")
    with pytest.raises(TypeError, match="path"):
        Cache.open(f"{path}.checkpoint", path=path)  # type: ignore[call-overload]
    with Cache("1MB", path=path) as cache:
        assert cache["k"] == 1 and cache.recovery.how == "checkpoint"
