"""Files as a cache needs them: looked at before they are read, replaced whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from _thread import get_ident
from collections.abc import Iterator
from contextlib import contextmanager

from . import forks
from .errors import ImageError

__all__ = ["boot_id", "extend", "open_file", "path_of", "replacing", "sync_directory"]

Path = str | os.PathLike[str]
_LIVE = b"GBcache1"
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # not led elsewhere, not held up by a FIFO
_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)
_HAS_NONE = (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY)
"""What a file system says that has no such sync."""
_beside: dict[int, int] = {}
"""Descriptors of files that are being written, locked, and the threads that do: a child closes those of others."""


def path_of(path: Path) -> str:
    """The path as text; TypeError for anything that is no path."""
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"path={path!r} is not a str or an os.PathLike of one")
    if not text or "\0" in text:
        raise ValueError(f"path={path!r} is not the path of a file")
    return text


def place_of(path: Path) -> str:
    """`path_of`, from here on: where the process goes later changes nothing. Links in it are seen as they are."""
    text = path_of(path)
    return text if os.path.isabs(text) else os.path.join(os.getcwd(), text)


def open_file(path: str, *, own: bool, write: bool = False, create: bool = False) -> int:
    """Opens a regular file, no symbolic link. `own`: it must be this user's, and nobody else's to write.

    Raises OSError as `open` does (FileNotFoundError ...), ImageError where it is not such a file.
    """
    flags = _FLAGS | (os.O_RDWR if write else os.O_RDONLY) | (os.O_CREAT if create else 0)
    fd = _opened(path, flags)
    try:
        _look_at(os.fstat(fd), path, own)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _opened(path: str, flags: int) -> int:
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            rule = "it is a file itself, not a symbolic link: give os.path.realpath() of it"
            raise ImageError(path, None, rule) from None
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise ImageError(path, None, "it is a regular file") from None
        raise


def _look_at(found: os.stat_result, path: str, own: bool) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ImageError(path, None, "it is a regular file")
    if own and found.st_uid != os.geteuid():
        rule = f"it belongs to this user ({os.geteuid()}), not to {found.st_uid}: use mode='copy'"
        raise ImageError(path, None, rule)
    if own and found.st_mode & 0o022:
        rule = f"nobody else may write it (mode {stat.S_IMODE(found.st_mode):o}): chmod go-w, or mode='copy'"
        raise ImageError(path, None, rule)


def check_directory(path: str) -> None:
    """A directory whose files are its owner's business alone: who may write it could put others in their place."""
    found = os.stat(path)
    if not stat.S_ISDIR(found.st_mode):
        rule = "it is a directory, or there is nothing: a Disk makes its own"
        raise ImageError(path, None, rule)
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022:
        rule = (
            f"nobody else may write it (user {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}): chmod go-w, or "
            "name a directory in it, which is made then"
        )
        raise ImageError(path, None, rule)


def check_alone(fd: int, path: str) -> None:
    """It has this name alone: another would be a file of somebody's, which `path` was to lead the writer to."""
    links = os.fstat(fd).st_nlink
    if links > 1:
        rule = f"it has no other name (hard links: it has {links}): put a copy in its place"
        raise ImageError(path, None, rule)


def sync(fd: int) -> None:
    """What was written is on disk, not in the drive's cache."""
    if _FULL_SYNC is not None:  # macOS, where fsync ends there
        try:
            fcntl.fcntl(fd, _FULL_SYNC)
            return
        except OSError as error:
            if error.errno not in _HAS_NONE:
                raise
    os.fsync(fd)


def sync_directory(path: str) -> None:
    """What was created, renamed or removed beside `path` is on disk."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(fd)
    finally:
        os.close(fd)


def _same(fd: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def remove(path: str) -> None:
    """Takes away what failed, if it can; what went wrong before is what is told, and a descriptor closed after it."""
    try:  # noqa: SIM105, suppress() asks for memory
        os.unlink(path)
    except (OSError, MemoryError):
        pass


def unlock(fd: int, process: int) -> None:
    """Closes what `process` has locked. Its lock is given up first: a child forked meanwhile may have it too, and would
    keep it. In a child it is closed, no more."""
    _beside.pop(fd, None)
    try:
        if os.getpid() == process:
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def _forked() -> None:
    for fd in list(_beside):
        if _beside.pop(fd) != get_ident():  # else whoever forked in the midst of it closes it
            os.close(fd)


forks.in_child(_forked)


def _open_beside(path: str) -> int:
    """The file a new version is written to: locked, empty. What a killed process left is used again."""
    owner = os.getpid()
    while True:
        there, fd = os.path.lexists(path), -1
        try:
            fd = open_file(path, own=True, write=True, create=True)
            _beside[fd] = get_ident()
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(fd, path):  # not renamed or removed between the two
                check_alone(fd, path)
                try:
                    os.ftruncate(fd, 0)
                except BaseException:
                    remove(path)
                    raise
                return fd
        except BlockingIOError:
            unlock(fd, owner)
            raise BlockingIOError(
                errno.EAGAIN, "another save to the same file is under way", path
            ) from None
        except BaseException:
            if not there:
                remove(path)
            if fd >= 0:
                unlock(fd, owner)
            raise
        unlock(fd, owner)


def is_live(begins: bytes) -> bool:
    """Whether a file's first bytes are a live file's."""
    return begins[:8] == _LIVE


def _check_replaceable(path: str, over_live: bool) -> None:
    if os.path.islink(path) or (os.path.exists(path) and not os.path.isfile(path)):
        rule = "it is a regular file, or there is none: nothing else is replaced"
        raise ImageError(path, None, rule)
    if over_live:
        return
    try:
        fd = open_file(path, own=False)
    except FileNotFoundError:
        return
    try:
        if is_live(os.pread(fd, 8, 0)):  # its writer would go on in what nobody finds again
            rule = "it is no live file, which no save replaces: give another path, or remove it once it is closed"
            raise ImageError(path, 0, rule)
    finally:
        os.close(fd)


@contextmanager
def replacing(path: str, over_live: bool = False) -> Iterator[int]:
    """A descriptor to write the new content of `path` to; at the end it takes the old one's place.

    Synced, then renamed, then the directory synced: a power cut leaves the old file or the new one. If
    anything fails the old one stays and nothing is left beside it. Only a killed process leaves
    ``path + ".saving"``, which the next one uses again. The new file has mode 0600. `over_live`: what is
    replaced may be a live file, which the caller has locked.
    """
    _check_replaceable(path, over_live)
    beside, owner = path + ".saving", os.getpid()
    fd = _open_beside(beside)  # nothing between: a signal's handler may raise, and it would stay
    try:
        try:
            os.fchmod(fd, 0o600)
            yield fd
            if os.getpid() != owner:
                raise RuntimeError(
                    f"forked in the midst of writing {path}: the parent goes on with it"
                )
            sync(fd)
            _check_replaceable(path, over_live)  # what somebody else put there meanwhile
            os.rename(beside, path)
        except BaseException:
            if os.getpid() == owner:  # or it is the parent's
                remove(beside)
            raise
        sync_directory(path)
    finally:
        unlock(fd, owner)


def extend(fd: int, length: int) -> None:
    """Gives the file its bytes on disk, all of them: a store into a hole of a full disk would be a SIGBUS."""
    if hasattr(os, "posix_fallocate"):
        size = os.fstat(fd).st_size
        if length > size:  # not what is there: where this is emulated it writes to it
            os.posix_fallocate(fd, size, length - size)
        return
    size, zeros = os.fstat(fd).st_size, bytes(1 << 20)
    while size < length:
        size += os.pwrite(fd, zeros[: length - size], size)


def boot_id() -> bytes:
    """16 bytes that name this run of the machine; zeros where that cannot be known."""
    try:
        if sys.platform.startswith("linux"):
            with open("/proc/sys/kernel/random/boot_id") as file:
                return bytes.fromhex(file.read().strip().replace("-", ""))
        return _boot_session()
    except (OSError, ValueError):
        return bytes(16)


def _boot_session() -> bytes:
    """Where there is no /proc."""
    import subprocess

    call = ["sysctl", "-n", "kern.bootsessionuuid"]
    try:
        said = subprocess.run(call, capture_output=True, text=True, timeout=5, check=True).stdout
    except subprocess.SubprocessError:
        return bytes(16)
    return bytes.fromhex(said.strip().replace("-", ""))
