"""A Disk's journal: what was acknowledged and is not yet in LMDB, and who owns the directory.

A journal is appended to, one frame a group of writes, and only ever cut back to where a failed append began. Each
frame has its number, a checksum of its own head and one of its content, and says up to which number all was synced
when it was written: so a frame that a power cut tore, which nobody was told of, is told from one that was damaged.

The file ``owner`` is the lock, and holds the number of the last frame acknowledged, written after every group but
not synced: the kernel keeps it when a process is killed, and then not one frame may be missing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from typing import NamedTuple

from . import files
from ._disk import checksum, sync_journal
from .errors import ImageError

__all__ = ["Changes", "Journal", "Mark", "Owner", "recover"]

Changes = dict[bytes, "bytes | None"]
"""Name -> record, None: it is gone."""

_HEAD = struct.Struct("<8sQQQ16sQ")  # magic, number, applied, whether it is the first, seed, sum
_FRAME = struct.Struct("<QQQQQQ")  # magic, length, seq, synced, sum of the content, sum of this
_PAIR = struct.Struct("<II")
_MARK = struct.Struct("<8s16sQQQQQ")  # magic, boot, seq, clean, process, at, sum
_MAGIC, _OWNED, _FRAMED = b"GBjrnl02", b"GBowner1", 0x656D617246427B5B
_GONE = 0xFFFFFFFF
_PREFIX = "journal."


def _sealed(form: struct.Struct, *values: int | bytes, about: int = 0) -> bytes:
    """Packed, with its own checksum as the last number."""
    body = form.pack(*values, 0)[:-8]
    return body + checksum(body, about or len(body)).to_bytes(8, "little")


def _opened(form: struct.Struct, data: bytes, about: int = 0) -> tuple[int | bytes, ...] | None:
    """What `_sealed` packed; None if it did not."""
    if len(data) < form.size:
        return None
    body, held = data[: form.size - 8], data[form.size - 8 : form.size]
    if checksum(body, about or len(body)) != int.from_bytes(held, "little"):
        return None
    return form.unpack(data[: form.size])[:-1]


def _write_all(fd: int, data: bytes, at: int) -> None:
    done = os.pwrite(fd, data, at)
    while done < len(data):
        more = os.pwrite(fd, memoryview(data)[done:], at + done)
        if not more:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done += more


class Journal:
    """One file of frames, open for appending by one thread at a time."""

    fd = -1

    def __init__(self, path: str, about: int) -> None:
        self.path, self.about = path, about
        self.size = _HEAD.size
        self.doubtful = False
        """It may hold more than `size`, or less than it was given: nothing is to be added."""
        self.fd = files.open_file(path, own=True, write=True, create=True)

    @classmethod
    def create(cls, folder: str, number: int, seed: bytes, applied: int, first: bool) -> Journal:
        """A new one, on disk with its name. `first`: whatever is in those before it is in LMDB."""
        made = cls(os.path.join(folder, f"{_PREFIX}{number:08d}"), _about(number, seed))
        try:
            made._begin(_sealed(_HEAD, _MAGIC, number, applied, first, seed))
        except BaseException:
            made.close()
            files.remove(made.path)
            raise
        return made

    def _begin(self, head: bytes) -> None:
        files.check_alone(self.fd, self.path)
        os.ftruncate(self.fd, 0)
        _write_all(self.fd, head, 0)
        files.sync(self.fd)
        files.sync_directory(self.path)

    def frame(self, seq: int, synced: int, changes: Changes) -> bytes:
        """What `append` of the room below writes at `size`."""
        parts = []
        for name, record in changes.items():
            if record is None:
                parts.append(_PAIR.pack(len(name), _GONE) + name)
            else:
                parts += (_PAIR.pack(len(name), len(record)), name, record)
        body = b"".join(parts)
        about, held = self.about, checksum(body, self.about)
        return _sealed(_FRAME, _FRAMED, len(body), seq, synced, held, about=about) + body

    def sync(self) -> None:
        """When it returns, all frames are on disk; if it raises OSError, the journal is `doubtful`."""
        sync_journal(self)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close

    def remove(self) -> None:
        """All of it is in LMDB. If a power cut brings it back, its frames are known by their numbers. Raises OSError,
        and then it is as it was: those behind it may not go before it."""
        try:  # noqa: SIM105, suppress() asks for memory
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        self.close()


def _about(number: int, seed: bytes) -> int:
    """Told to every checksum of a journal: no frame of another one is taken for one of its own, nor a value that looks
    like one, however many there are: who does not know the seed makes no head whose content would be summed."""
    return (int.from_bytes(seed[:8], "little") + number) % 2**64


# --- what is found again ---------------------------------------------------------------------------


class _Found(NamedTuple):
    path: str
    number: int
    applied: int
    first: bool
    frames: list[tuple[int, Changes]]
    end: int
    broken: str
    """What is wrong at `end`: "" nothing, "cut" the file ends within a frame, "damaged" it is no frame."""
    claims: int
    """The highest number that any sound frame behind `end` says was synced."""


def _changes(body: bytes) -> Changes:
    found: Changes = {}
    at = 0
    while at < len(body):
        name_size, size = _PAIR.unpack_from(body, at)
        at += _PAIR.size
        name = body[at : at + name_size]
        at += name_size
        if size == _GONE:
            found[name] = None
        else:
            found[name] = body[at : at + size]
            at += size
    return found


def _frame(data: bytes, at: int, about: int) -> tuple[int, int, bytes] | str:
    """(seq, synced, body) of the frame at `at`, or what is wrong with it."""
    head = _opened(_FRAME, data[at : at + _FRAME.size], about)
    if head is None:
        return "cut" if len(data) - at < _FRAME.size else "damaged"
    magic, length, seq, synced, held = map(int, head)
    begins = at + _FRAME.size
    if magic != _FRAMED:
        return "damaged"
    if begins + length > len(data):
        return "cut"
    body = data[begins : begins + length]
    return (seq, synced, body) if checksum(body, about) == held else "damaged"


def _claims(data: bytes, at: int, about: int) -> int:
    mark, highest = _FRAMED.to_bytes(8, "little"), 0
    at = data.find(mark, at + 1)
    while at >= 0:
        found = _frame(data, at, about)
        if not isinstance(found, str):
            highest = max(highest, found[1])
        at = data.find(mark, at + 1)
    return highest


def _no_head(head: tuple[int | bytes, ...] | None) -> str:
    if head is not None and head[0] == b"GBjrnl01":
        return "it is of this release's format: another release wrote it, and that one opens it"
    return "it begins with the head of a journal"


def _read(path: str, number: int, seed: bytes) -> _Found | None:
    """A journal's frames up to the first that is not sound; None for a file whose creation was interrupted."""
    fd = files.open_file(path, own=True)
    with open(fd, "rb") as file:
        data = file.read()
    head = _opened(_HEAD, data)
    if head is None and (len(data) < _HEAD.size or not any(data)):
        return None
    if head is None or head[0] != _MAGIC or head[1] != number:
        raise ImageError(path, 0, _no_head(head))
    if head[4] != seed:
        raise ImageError(path, 0, "it belongs to the data file beside it")
    about, at = _about(number, seed), _HEAD.size
    frames: list[tuple[int, Changes]] = []
    broken, claims = "", 0
    while at < len(data):
        found = _frame(data, at, about)
        if isinstance(found, str):
            broken, claims = found, _claims(data, at, about)
            break
        if frames and found[0] != frames[-1][0] + 1:
            raise ImageError(path, at, f"frame {frames[-1][0] + 1} is there: it has {found[0]}")
        frames.append((found[0], _changes(found[2])))
        claims = found[1]
        at += _FRAME.size + len(found[2])
    return _Found(path, number, int(head[2]), bool(head[3]), frames, at, broken, claims)


class Recovered(NamedTuple):
    changes: Changes
    seq: int
    number: int
    """Of the last journal there is."""
    paths: list[str]


def numbered(folder: str) -> list[tuple[int, str]]:
    """The journals of a directory, in order."""
    there = [name[len(_PREFIX) :] for name in os.listdir(folder) if name.startswith(_PREFIX)]
    return sorted((int(n), os.path.join(folder, _PREFIX + n)) for n in there if n.isdecimal())


def recover(folder: str, seed: bytes, applied: int, mark: Mark | None, boot: bytes) -> Recovered:
    """What the journals have beyond `applied`. ImageError where something acknowledged is missing or damaged.

    After a kill (`mark` is of this boot) every frame that was acknowledged must be there; after a power cut those
    that are known to have been synced: then the last one may be torn.
    """
    listed = numbered(folder)
    strict = mark is not None and mark.boot == boot and any(boot)
    found, begun = [], []
    for number, path in listed:
        one = _read(path, number, seed)
        if one is None:
            begun.append((number, path))
        else:
            found.append(one)
    if not found:
        raise ImageError(
            folder, None, "a journal is in it: one was removed, or never belonged to it"
        )
    begins = max((i for i, one in enumerate(found) if one.first), default=0)
    # Kills leave some that were begun: behind all others, or before one that says all before it was applied.
    for number, path in begun:
        if found[begins].number < number < found[-1].number:
            raise ImageError(path, 0, "it begins with the head of a journal")
    changes, seq = _replay(found[begins:], applied, strict)
    if strict and mark is not None and seq < mark.seq:
        rule = f"frame {mark.seq}, which was acknowledged, is there: the last is {seq}"
        raise ImageError(found[-1].path, found[-1].end, rule)
    if mark is not None and mark.clean and not applied == seq == mark.seq:
        rule = f"it is as it was closed, with frame {mark.seq}: it has {applied}, and its journal {seq}"
        raise ImageError(folder, None, rule)
    return Recovered(changes, seq, listed[-1][0], [path for _, path in listed])


def _replay(found: list[_Found], applied: int, strict: bool) -> tuple[Changes, int]:
    """All changes up to the first frame that is not there, and its number less one."""
    changes: Changes = {}
    seq, missing = applied, False
    for i, one in enumerate(found):
        if one.applied > applied:
            rule = f"the data file has frame {one.applied}: it is older than its journal, with {applied}"
            raise ImageError(one.path, 0, rule)
        if i and one.number != found[i - 1].number + 1:
            raise ImageError(one.path, 0, "the journal before it is there")
        for n, made in one.frames:
            missing = missing or n > seq + 1
            if missing and strict:
                raise ImageError(one.path, 0, f"frame {seq + 1} is there: it has {n}")
            if not missing and n == seq + 1:
                changes.update(made)
                seq = n
        if strict and one.broken and (one.broken == "damaged" or one is not found[-1]):
            raise ImageError(one.path, one.end, "a frame has its checksum")
        # What is lost here may have been applied: one that was removed, and that a power cut brought back in part.
        # If not, the next frame there is has a number that does not follow.
        if one.claims > seq:
            raise ImageError(one.path, one.end, f"frame {seq + 1}, which was synced, is there")
    return changes, seq


# --- the owner ---------------------------------------------------------------------------------------


class Mark(NamedTuple):
    """What the owner's file says."""

    boot: bytes
    seq: int
    clean: bool
    process: int
    at: int
    """When, in ms of the Disk's own clock: it is never opened before that again."""


class Owner:
    """The lock on a directory: one process, and one Disk in it."""

    fd = -1

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, "owner")
        self.process = os.getpid()
        self.fd = files.open_file(self.path, own=True, write=True, create=True)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            files.check_alone(self.fd, self.path)
            self.mark = self._read()
        except BlockingIOError:
            with contextlib.suppress(ImageError):
                self.mark = self._read()
            self.release()
            raise BlockingIOError(errno.EAGAIN, f"a Disk has one owner at a time, and {self._who()} has it open",
                                  folder) from None  # fmt: skip
        except BaseException:
            self.release()
            raise
        self.boot = files.boot_id()

    mark: Mark | None = None

    def _who(self) -> str:
        mine = self.mark is not None and self.mark.process == os.getpid()
        return (
            "this process"
            if mine
            else f"process {self.mark.process}"
            if self.mark
            else "another process"
        )

    def _read(self) -> Mark | None:
        data = os.pread(self.fd, _MARK.size + 1, 0)
        if not any(data):
            return None
        said = _opened(_MARK, data)
        if said is None or said[0] != _OWNED or len(data) != _MARK.size:
            raise ImageError(self.path, 0, "it is the owner's file of a Disk")
        _, boot, seq, clean, process, at = said
        assert isinstance(boot, bytes)
        return Mark(boot, int(seq), bool(clean), int(process), int(at))

    def mark_of(self, seq: int, now: int, clean: bool = False) -> bytes:
        """What says that frame `seq` is acknowledged."""
        return _sealed(_MARK, _OWNED, self.boot, seq, clean, self.process, now)

    def write(self, seq: int, now: int, clean: bool = False) -> None:
        """Notes it, on disk."""
        _write_all(self.fd, self.mark_of(seq, now, clean), 0)
        files.sync(self.fd)

    def release(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            files.unlock(fd, self.process)

    __del__ = release  # an interrupted opening may leave nobody else to do it
