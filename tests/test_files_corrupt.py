"""Snapshots that are damaged, cut, foreign or hostile: an ImageError that says where, never another content.

proof/corrupt.py flips every single bit of a file of 64 KiB, in both modes.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from gbcache import Cache, ImageError

MASK, ODD = (1 << 64) - 1, 0x9E3779B97F4A7C15
HEAD, FRAME = 4096, 32
MODES = ("copy", "r")
SHORT = os.environ.get("GB_SLICE") == "short"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    ram = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=ram) as made:
        yield Path(made)


def make(path: Path, n: int = 150) -> dict[Any, Any]:
    cache = Cache("300kB")
    for i in range(n):
        cache[f"key {i}"] = (i, f"v{i}", b"x" * (i % 60))[i % 3]
    cache.update({1: 2.5, None: None, ("a", 2): [1, {"b": 2}], b"raw": "ü", "yes": True})
    cache["long"] = "0123456789" * 600
    cache.set("ttl", "value", ttl=10_000)
    cache.save(path)
    return dict(cache.items())


def read(path: Path, mode: str) -> dict[Any, Any]:
    with Cache.open(path, mode) as found:
        if isinstance(found, Cache):
            found.check()
        return dict(found.items())


def refused(path: Path, mode: str, content: dict[Any, Any] | None = None) -> None:
    """Opening it raises an ImageError that names file, place and rule (or, if `content` is given, gives just that)."""
    try:
        got = read(path, mode)
    except ImageError as error:
        assert error.path == str(path) and error.rule
        assert str(path) in str(error)
        return
    assert content is not None and got == content, "loaded something else"


# --- the checksum, as csrc/digest.c has it ---------------------------------------------------------------------


def spread(x: int) -> tuple[int, int]:
    x = (x + ODD) & MASK
    z = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return x, z ^ (z >> 31)


def step(lane: int, word: int) -> int:
    lane = ((lane ^ word) * ODD) & MASK
    return ((lane << 31) | (lane >> 33)) & MASK


def checksum(about: int, data: bytes) -> int:
    lanes, x = [], about
    for _ in range(4):
        x, lane = spread(x)
        lanes.append(lane)
    padded = data + bytes(-len(data) % 32)
    for at, word in enumerate(struct.unpack(f"<{len(padded) // 8}Q", padded)):
        lanes[at % 4] = step(lanes[at % 4], word)
    h = len(data)
    for lane in lanes:
        h = ((step(h, lane) ^ (h >> 32)) * ODD) & MASK
    return h ^ (h >> 29)


class Forged:
    """A snapshot's bytes to be changed at will, and its sums made right again."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)

    def get(self, form: str, at: int) -> int:
        return struct.unpack_from("<" + form, self.data, at)[0]

    def put(self, form: str, at: int, value: int) -> None:
        struct.pack_into("<" + form, self.data, at, value)

    @property
    def index(self) -> int:
        return self.get("Q", 88)

    def frames(self) -> Iterator[tuple[int, int]]:
        at = HEAD
        while at + FRAME <= min(self.index, len(self.data)):
            size = self.get("Q", at + 8)
            yield at, size
            at += FRAME + size

    def sealed(self) -> bytes:
        about = self.get("Q", 16) ^ self.get("Q", 24)
        for at, size in list(self.frames()):
            payload = bytes(self.data[at + FRAME : at + FRAME + size])
            if at + FRAME + size <= len(self.data):
                self.put("Q", at + 24, checksum(about, bytes(self.data[at : at + 24]) + payload))
        if self.index <= len(self.data):
            self.put("Q", 112, checksum(about, bytes(self.data[self.index :])))
        self.put("Q", 312, checksum(0, bytes(self.data[:312])))
        return bytes(self.data)


@pytest.fixture(scope="module")
def sound(folder: Path) -> tuple[bytes, dict[Any, Any]]:
    content = make(folder / "sound.gbs")
    return (folder / "sound.gbs").read_bytes(), content


def test_the_checksum_is_the_one_of_the_core(sound: tuple[bytes, dict[Any, Any]]) -> None:
    assert Forged(sound[0]).sealed() == sound[0]
    assert len(sound[0]) < 65536


@pytest.mark.parametrize("mode", MODES)
def test_every_truncation(mode: str, folder: Path, sound: tuple[bytes, dict[Any, Any]]) -> None:
    data, path = sound[0], folder / "cut.gbs"
    path.write_bytes(data)
    os.chmod(path, 0o600)
    for length in range(len(data) - 1, -1, -7 if SHORT else -1):
        os.truncate(path, length)
        refused(path, mode)
    path.write_bytes(data + b"\0" * 8)
    refused(path, mode)


def flip_all(path: Path, data: bytes, mode: str, bits: Callable[[int], Iterator[int]]) -> int:
    fd = os.open(path, os.O_RDWR)
    flips = 0
    for at, byte in enumerate(data):
        for bit in bits(at):
            os.pwrite(fd, bytes([byte ^ (1 << bit)]), at)
            refused(path, mode)
            flips += 1
        os.pwrite(fd, bytes([byte]), at)
    os.close(fd)
    return flips


@pytest.mark.parametrize("mode", MODES)
def test_bit_flips(mode: str, folder: Path, sound: tuple[bytes, dict[Any, Any]]) -> None:
    """Every bit of the head and the frames' heads, one of every third other byte."""
    data, path, dice = sound[0], folder / "flip.gbs", random.Random(7)
    path.write_bytes(data)
    os.chmod(path, 0o600)
    heads = {at + i for at, _ in Forged(data).frames() for i in range(FRAME)} | set(range(320))

    def bits(at: int) -> Iterator[int]:
        if at in heads:
            yield from range(8)
        elif at % (13 if SHORT else 3) == 0:
            yield dice.randrange(8)

    assert flip_all(path, data, mode, bits) > 2000
    read(path, mode)


def records(forged: Forged) -> Iterator[int]:
    for at, size in forged.frames():
        inside, end = at + FRAME, at + FRAME + size
        while inside < end:
            value, key, timed = (
                forged.get("I", inside),
                forged.get("H", inside + 8),
                forged.data[inside + 11],
            )
            yield inside
            inside += -(-(12 + 24 * timed + key + value) // 8) * 8


def mutations(data: bytes) -> Iterator[tuple[str, Forged]]:
    """Files whose sums are right and whose words are not."""
    for what, form, at, values in (
        ("entries", "Q", 72, (0, 1, 2**32, 2**63)), ("frames", "Q", 80, (0, 1, 2**40)),
        ("index", "Q", 88, (0, 4096, 4104, 2**40, 2**63)), ("slots", "Q", 96, (0, 1, 2**31, 2**62)),
        ("length", "Q", 104, (0, 4096, 2**62)), ("max_bytes", "Q", 56, (0, 1, 2**62)),
        ("moment", "q", 48, (-1, 2**62)), ("seq", "Q", 120, (2**62, 2**64 - 1)), ("counted", "Q", 128, (0, 2**60)),
        ("version", "I", 8, (0, 2, 2**31)), ("order", "I", 12, (0x04030201,)), ("codec", "Q", 248, (2**64 - 1,)),
    ):  # fmt: skip
        for value in values:
            forged = Forged(data)
            forged.put(form, at, value)
            yield f"{what}={value}", forged
    frames = list(Forged(data).frames())
    for at, size in frames:
        for offset, form, value in ((4, "I", 1), (4, "I", 2), (4, "I", 9), (8, "Q", size + 8), (8, "Q", 0),
                                    (8, "Q", 2**63),
                                    (16, "I", 0), (16, "I", 10**6), (20, "I", 77)):  # fmt: skip
            forged = Forged(data)
            forged.put(form, at + offset, value)
            yield f"frame {at} +{offset}={value}", forged
    for at in list(records(Forged(data)))[::5]:
        for offset, form, value in ((0, "I", 0), (0, "I", 3), (0, "I", 2**30), (0, "I", 2**32 - 1),
                                    (8, "H", 0), (8, "H", 3990), (8, "H", 65535), (10, "B", 0xFF),
                                    (10, "B", 7 << 2), (10, "B", 2 << 2), (10, "B", 4 << 2),
                                    (10, "B", 3), (11, "B", 1), (11, "B", 2), (4, "I", 12345)):  # fmt: skip
            forged = Forged(data)
            forged.put(form, at + offset, value)
            yield f"record {at} +{offset}={value}", forged
    index = Forged(data).index
    slots = range(index, len(data) - 3, 4)
    for value in (1, 2**32 - 1, index // 8, (HEAD + FRAME) // 8, (HEAD + FRAME) // 8 + 3):
        forged = Forged(data)
        for at in slots:
            forged.put("I", at, value)
        yield f"index full of {value}", forged
    for at in list(records(Forged(data)))[::9]:
        forged = Forged(data)
        forged.data[at + 12 : at + 16] = b"\xff\xfe\xfd\xfc"
        yield f"bytes of the record at {at}", forged


@pytest.mark.parametrize("mode", MODES)
def test_hostile_files_with_right_sums(
    mode: str, folder: Path, sound: tuple[bytes, dict[Any, Any]]
) -> None:
    """They may be refused, or be read as something (the sums are no signature): never a crash, a hang, or
    another exception than of a value that cannot be decoded."""
    path, seen = folder / "hostile.gbs", {"refused": 0, "read": 0, "undecodable": 0}
    path.touch(0o600)
    for what, forged in islice(mutations(sound[0]), 0, None, 3 if SHORT else 1):
        path.write_bytes(forged.sealed())
        try:
            with Cache.open(path, mode) as found:
                if isinstance(found, Cache):
                    found.check()
                for key in ("key 1", "nobody", 1, ("a", 2)):
                    found.get(key)
                for _ in found.items():
                    pass
            seen["read"] += 1
        except ImageError as error:
            assert error.path == str(path), what
            seen["refused"] += 1
        except (ValueError, TypeError, KeyError, OverflowError, EOFError):
            seen["undecodable"] += 1
    assert seen["refused"] > (30 if SHORT else 100), seen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("at", [72, 80])
def test_as_many_frames_and_entries_as_the_head_says(
    at: int, mode: str, folder: Path, sound: tuple[bytes, dict[Any, Any]]
) -> None:
    path = folder / "counts.gbs"
    path.touch(0o600)
    for more in (-1, 1):
        forged = Forged(sound[0])
        forged.put("Q", at, forged.get("Q", at) + more)
        path.write_bytes(forged.sealed())
        refused(path, mode)


@pytest.mark.parametrize("mode", MODES)
def test_type_and_length_go_together(
    mode: str, folder: Path, sound: tuple[bytes, dict[Any, Any]]
) -> None:
    """What makes an object of a number takes its eight bytes for granted, and those of a constant its one."""
    path = folder / "types.gbs"
    path.touch(0o600)
    of_text = next(r for r in records(Forged(sound[0])) if Forged(sound[0]).get("I", r) > 8)
    for value_type in (2, 3, 4):  # int, float, constant
        forged = Forged(sound[0])
        forged.put("B", of_text + 10, value_type << 2 | forged.data[of_text + 10] & 3)
        path.write_bytes(forged.sealed())
        with pytest.raises(ImageError, match="a value's length is one of its type"):
            Cache.open(path, mode)


def test_a_record_in_the_index_itself_is_none(
    folder: Path, sound: tuple[bytes, dict[Any, Any]]
) -> None:
    forged, path = Forged(sound[0]), folder / "index.gbs"
    at = next(r for r in records(forged) if forged.data[r + 12 : r + 19] == b"key 1v1")
    index, slots = forged.index, forged.get("Q", 96)
    first = forged.get("I", at + 4) * slots >> 32  # where the search for it begins
    place = index + (64 if first > slots // 2 else slots * 4 // 8 * 8 - 64)
    for slot in range(slots):
        forged.put("I", index + 4 * slot, place // 8)
    forged.data[place : place + 24] = forged.data[at : at + 24]
    path.touch(0o600)
    path.write_bytes(forged.sealed())
    with Cache.open(path, "r") as found:
        assert "key 1" not in found


def test_what_is_no_snapshot(folder: Path) -> None:
    (folder / "empty").touch(0o600)
    (folder / "text").write_text("hello\n" * 2000)
    (folder / "link").symlink_to("sound.gbs")
    (folder / "deep").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "open").write_bytes((folder / "text").read_bytes())
    os.chmod(folder / "open", 0o666)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "socket"))
        for mode in ("copy", "r", "r+"):
            for name in ("empty", "text", "link", "deep", "fifo", "socket"):
                if (mode, name) == ("r+", "empty"):
                    continue
                with pytest.raises((ImageError, OSError)) as caught:
                    Cache.open(folder / name, mode)
                assert name in str(caught.value)
            with pytest.raises(ImageError):
                Cache.open("/dev/null", mode)
            with pytest.raises(FileNotFoundError):
                Cache.open(folder / "nowhere", mode)
    for mode in ("r", "r+"):
        with pytest.raises(ImageError, match="chmod"):
            Cache.open(folder / "open", mode)
    Cache("100kB", path=folder / "live.gbc").close()
    with pytest.raises(ImageError, match="GbSnap1"):
        Cache.open(folder / "live.gbc")
    make(folder / "snap.gbs", 3)
    with pytest.raises(ImageError, match="GBcache1"):
        Cache("100kB", path=folder / "snap.gbs")
    assert read(folder / "snap.gbs", "copy")


@pytest.mark.parametrize("name", ["c.gbs.saving", "alive.gbc.new"])
def test_no_write_is_led_elsewhere(folder: Path, name: str) -> None:
    """A hard link to a file of ours, put where the next version is to be written: it stays as it is."""
    victim = folder / "victim"
    victim.write_bytes(b"precious")
    victim.chmod(0o600)
    (folder / name).hardlink_to(victim)
    with pytest.raises(ImageError, match="no other name"):
        if name.startswith("c"):
            with Cache("100kB") as cache:
                cache.save(folder / "c.gbs")
        else:
            Cache("100kB", path=folder / "alive.gbc").close()
    assert victim.read_bytes() == b"precious"
    (folder / name).unlink()
    with Cache("100kB", path=folder / "alive.gbc") as cache:
        cache.save(folder / "c.gbs")
    (folder / "alive.gbc").unlink()
