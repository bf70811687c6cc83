"""Snapshots with frames of every kind, among them late ones; and whole frames out of place, with right sums."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_files_corrupt import (
    FRAME,
    HEAD,
    MODES,
    SHORT,
    Forged,
    flip_all,
    folder,
    read,
    refused,
)  # fmt: skip

from gbcache import Cache, ImageError, memory, snapshot

__all__ = ["folder"]
MAIN, LATE, LONG = range(3)


def forged_with(data: bytes, form: str, at: int, value: int) -> bytes:
    """One word is another one, and all sums are right."""
    forged = Forged(data)
    forged.put(form, at, value)
    return forged.sealed()


def use(path: Path, mode: str) -> None:
    """Reads what there is to read: an ImageError, or what a value that cannot be decoded raises."""
    with contextlib.suppress(ValueError, TypeError, KeyError), Cache.open(path, mode) as found:
        if isinstance(found, Cache):
            found.check()
        dict(found.items())


def kinds_of(data: bytes) -> list[int]:
    return [Forged(data).get("I", at + 4) for at, _ in Forged(data).frames()]


def make_late(path: Path) -> dict[Any, Any]:
    """Some 64 KiB, saved while everything is written anew, until a frame is late."""
    cache = Cache("4MB")
    content: dict[Any, Any] = {
        i: (i, f"v{i}", b"x" * (i % 60), i / 3, None, [i])[i % 6] for i in range(900)
    }
    content |= {"ü": "ü" * 30, "long": "0123456789" * 900, ("t", 1): {"a": (1, 2)}, 2**80: True}
    cache.update(content)
    cache.set("ttl", "value", ttl=10_000)
    content["ttl"] = "value"
    stop = threading.Event()

    def again() -> None:
        while not stop.is_set():
            for key in content:
                cache.set(key, content[key], ttl=10_000 if key == "ttl" else None)

    old, thread = sys.getswitchinterval(), threading.Thread(target=again)
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            cache.save(path)
            if set(kinds_of(path.read_bytes())) == {MAIN, LATE, LONG}:
                break
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(old)
    return content


@pytest.fixture(scope="module")
def late(folder: Path) -> bytes:
    path = folder / "late.gbs"
    content = make_late(path)
    data = path.read_bytes()
    assert set(kinds_of(data)) == {MAIN, LATE, LONG}, kinds_of(data)
    assert all(read(path, mode) == content for mode in MODES)
    assert list(read(path, "r")) == list(read(path, "copy"))  # what came late was used last
    return data


def cut(data: bytes) -> tuple[bytes, list[bytes], bytes]:
    forged = Forged(data)
    frames = [bytes(data[at : at + FRAME + size]) for at, size in forged.frames()]
    return data[:HEAD], frames, data[forged.index :]


def join(
    head: bytes, frames: list[bytes], index: bytes, *, count: bool = True, number: bool = False
) -> bytes:
    """A file of these frames; its head tells of them (`count`), they may be numbered anew; sums as they are."""
    if number:
        frames = [f[:20] + struct.pack("<I", i) + f[24:] for i, f in enumerate(frames)]
    forged = Forged(head + b"".join(frames) + index)
    if count:
        records = sum(struct.unpack_from("<I", f, 16)[0] for f in frames)
        at = HEAD + sum(map(len, frames))
        for offset, value in ((72, records), (80, len(frames)), (88, at), (104, at + len(index))):
            forged.put("Q", offset, value)
    return bytes(forged.data)


def with_sums(data: bytes, *, frames: bool) -> bytes:
    """Right sums: all, or only the head's and the index's."""
    forged = Forged(data)
    if frames:
        return forged.sealed()
    kept = [(at, bytes(forged.data[at : at + FRAME])) for at, _ in forged.frames()]
    forged.sealed()
    for at, head in kept:
        forged.data[at : at + FRAME] = head
    return bytes(forged.data)


def out_of_place(data: bytes, other: bytes) -> Iterator[tuple[bytes, bool]]:
    """The file, and whether it must be refused: with sums and numbers all right it may be read."""
    head, frames, index = cut(data)
    foreign = cut(other)[1]
    swapped = [frames[1], frames[0], *frames[2:]]
    for what, changed in (
        ("swapped", swapped), ("backwards", frames[::-1]), ("twice", [frames[0], *frames]), ("gone", frames[1:]),
        ("last gone", frames[:-1]), ("foreign", [foreign[0], *frames[1:]]), ("foreign too", [*frames, foreign[-1]]),
        ("none", []),
    ):  # fmt: skip
        shorter = what in ("none", "last gone")  # with a head that says so: another sound file
        for count in (False, True):
            moved = join(head, changed, index, count=count)
            yield with_sums(moved, frames=False), not (shorter and count)
        moved = join(head, changed, index, number=True)
        yield with_sums(moved, frames=False), not shorter
        yield with_sums(moved, frames=True), False


@pytest.mark.parametrize("mode", MODES)
def test_frames_out_of_place(mode: str, folder: Path, late: bytes) -> None:
    path = folder / "moved.gbs"
    make_late(folder / "other.gbs")
    path.touch(0o600)
    for data, must in out_of_place(late, (folder / "other.gbs").read_bytes()):
        path.write_bytes(data)
        if must:
            refused(path, mode)
        else:
            use(path, mode)


@pytest.mark.parametrize("mode", MODES)
def test_what_came_late_was_used_last(mode: str, folder: Path, late: bytes) -> None:
    """Wherever in the file its frames lie."""
    path = folder / "order.gbs"
    path.touch(0o600)
    head, frames, index = cut(late)
    orders = []
    for first in (None, LATE):
        moved = sorted(frames, key=lambda frame: struct.unpack_from("<I", frame, 4)[0] != first)
        path.write_bytes(with_sums(join(head, moved, index, number=True), frames=True))
        with Cache.open(path, mode) as found:
            orders.append(list(found))
    assert orders[0] == orders[1]


@pytest.mark.parametrize("mode", MODES)
def test_a_frame_ends_before_the_index(mode: str, folder: Path, late: bytes) -> None:
    """The last one, made longer by a granule: its bytes are there, but they are the index's."""
    at, size = list(Forged(late).frames())[-1]
    path = folder / "reaches.gbs"
    path.touch(0o600)
    path.write_bytes(forged_with(late, "Q", at + 8, size + 8))
    with pytest.raises(ImageError, match="a frame ends before the index"):
        Cache.open(path, mode)


@pytest.mark.parametrize("mode", MODES)
def test_bit_flips_of_late_and_long_frames(mode: str, folder: Path, late: bytes) -> None:
    path, dice = folder / "flip.gbs", random.Random(7)
    path.write_bytes(late)
    os.chmod(path, 0o600)
    heads = {at + i for at, _ in Forged(late).frames() for i in range(FRAME)} | set(range(320))

    def bits(at: int) -> Iterator[int]:
        if at in heads:
            yield from range(8)
        elif at % (29 if SHORT else 9) == 0:
            yield dice.randrange(8)

    assert flip_all(path, late, mode, bits) > 2000
    read(path, mode)


def test_what_expires_while_it_is_read(folder: Path) -> None:
    cache = Cache("100kB")
    cache["a"] = 1
    cache.set("b", 2, ttl=0.2)
    cache.save(folder / "ttl.gbs")
    with Cache.open(folder / "ttl.gbs", "r") as found:
        views = iter(found.items()), iter(found.values())
        assert [next(view) for view in views] == [("a", 1), 1]
        time.sleep(0.3)
        for view in views:
            assert len(list(view)) <= 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (64, "Q", 2**32),
        (64, "Q", 2**63),
        (48, "q", 2**50),
        (48, "q", 253_402_300_800_000),
        (56, "Q", 2**63),
    ],
)
def test_words_of_the_head_beyond_what_is(
    at: int, form: str, value: int, mode: str, folder: Path, late: bytes
) -> None:
    """max_entries, saved_at and max_bytes with right sums: an ImageError or a cache, and an `info`."""
    path = folder / "head.gbs"
    path.write_bytes(forged_with(late, form, at, value))
    os.chmod(path, 0o600)
    with contextlib.suppress(ImageError), Cache.open(path, mode) as found:
        assert isinstance(found, Cache) or found.info
    with contextlib.suppress(ImageError):
        snapshot.info(path)


def test_modes_owners_and_codecs(folder: Path) -> None:
    path = folder / "mine.gbs"
    cache = Cache("100kB", codec="pickle")
    cache["k"] = {1, 2}
    cache.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    for mode in MODES:
        with pytest.raises(ImageError, match="pickle"):
            Cache.open(path, mode)
        with Cache.open(path, mode, codec="pickle") as found:
            assert found["k"] == {1, 2}
    live = folder / "mine.gbc"
    with Cache("100kB", path=live, codec="pickle") as found:
        found["k"] = {1, 2}
        found.sync()
    with pytest.raises(ImageError, match="pickle"):
        Cache.open(live, "r+")
    live.unlink()
    with pytest.raises(ImageError, match="pickle"):  # of the checkpoint
        Cache("100kB", path=live)
    assert not live.exists() and not Path(f"{live}.new").exists()
    for bits in (0o666, 0o620, 0o602):
        os.chmod(path, bits)
        with pytest.raises(ImageError, match="chmod"):
            Cache.open(path, "r", codec="pickle")
        with Cache.open(path, codec="pickle") as found:
            assert found["k"] == {1, 2}
    if os.geteuid() == 0:
        os.chmod(path, 0o600)
        os.chown(path, 12345, -1)
        with pytest.raises(ImageError, match="belongs to"):
            Cache.open(path, "r", codec="pickle")


@pytest.mark.parametrize("bytes_", [None, "100kB"])
@pytest.mark.parametrize("on_error", ["raise", "empty"])
@pytest.mark.parametrize("length", [0, 8, 5000, 60_000])
def test_live_files_cut_short(length: int, on_error: str, bytes_: str | None, folder: Path) -> None:
    """Nothing else than an ImageError, or an empty cache."""
    path = folder / "cut.gbc"
    path.write_bytes(b"GBcache1"[:length].ljust(length, b"\0"))
    os.chmod(path, 0o600)
    try:
        with Cache.open(path, "r+", max_bytes=bytes_, on_error=on_error) as found:
            assert (
                on_error == "empty" and found.recovery is not None and found.recovery.how == "empty"
            )
    except ImageError:
        assert on_error == "raise" or bytes_ is None


@pytest.mark.parametrize("word", [0, 5, 8, 2**60, 2**63])
def test_lengths_that_a_live_file_says(word: int, folder: Path) -> None:
    """Of the superblock, or of its checkpoint's max_bytes: refused, or the checkpoint."""
    path = folder / "length.gbc"
    for name in ("length.gbc", "length.gbc.checkpoint"):
        (folder / name).unlink(missing_ok=True)
    with Cache("100kB", path=path) as cache:
        cache["k"] = 1
        cache.sync()
    checkpoint, live = Path(f"{path}.checkpoint"), path.read_bytes()
    sound = checkpoint.read_bytes()
    path.write_bytes(live[:16] + struct.pack("<Q", word) + live[24:])
    with Cache.open(path, "r+") as found:
        assert found["k"] == 1
    path.unlink()
    checkpoint.write_bytes(forged_with(sound, "Q", 56, word))
    with pytest.raises(ImageError):
        Cache.open(path, "r+").close()


def test_whoever_writes_makes_way_for_a_save_that_rests(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The saver stands still; what others write over meanwhile is ten times what fits its late frames."""
    path, began = folder / "rests.gbs", threading.Event()
    monkeypatch.setattr(snapshot, "_TURN", 1)

    def rests(done: int, total: int) -> None:
        began.set()
        time.sleep(0.05)

    with Cache("60MB") as cache:
        content = {i: bytes([i % 251]) * 150 for i in range(200_000)}
        cache.update(content)
        handle = cache.save(path, wait=False, progress=rests)
        assert began.wait(20)
        for i in content:
            cache[i] = b"new"
        handle.wait(60)
        assert cache[7] == b"new"
    assert read(path, "copy") == content


def test_what_is_being_saved_is_not_mapped_anew(folder: Path) -> None:
    """`resize` waits for a save; this is what stands behind it."""
    cache = Cache("1MB")
    cache.update(dict.fromkeys(range(100), b"x" * 50))
    with open(folder / "a.gbs", "wb") as file:
        saver = snapshot.Saver(
            cache, file.fileno(), max_bytes=1 << 20, at=0, id=bytes(16), codec=b"typed"
        )
        length = 2 * cache.memory().total
        with pytest.raises(SystemError, match="is being saved"):
            cache._remap(length, memory.copy_needed(length))
        saver.end()
    cache.resize("2MB")
    assert len(cache) == 100
    cache.check()
