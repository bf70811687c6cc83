"""Live files: the cache's image mapped from a file, and what is done when it is found again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from . import files, forks, memory, snapshot
from ._packed import PackedStore, judge, live_head, read_head, smallest
from .errors import ClosedError, ImageError
from .locks import Latch, endure

if TYPE_CHECKING:
    from .persistent import Persistent

__all__ = ["LiveFile", "Recovery"]

_OTHER = "image 3: version and layout"
CHECKPOINT = ".checkpoint"
"""What `sync` writes is beside the live file, under its name and this."""


class Recovery(NamedTuple):
    """How a live file was opened, and what of it is there."""

    how: str
    """``"new"``: there was none. ``"clean"``: it had been closed. ``"mended"``: its process was killed, or ended
    without closing it; nothing that was acknowledged is missing. ``"checkpoint"``: the machine lost power (or the file
    is damaged, or gone), and this is what the last `sync` wrote. ``"empty"``: that too was missing or damaged, and
    ``on_error="empty"``."""
    entries: int
    reason: str
    """Why it was not used as it is; empty for new and clean."""
    seconds: float


class LiveFile:
    """The file of one cache: locked, mapped, and found again."""

    fd = -1
    _stop: Latch | None = None  # of one that failed before it had one

    def __init__(self, path: files.Path) -> None:
        self.path, self._process = files.place_of(path), os.getpid()
        _all.add(self)
        self.checkpoint = self.path + CHECKPOINT
        self.boot = files.boot_id()
        self.fd = -1
        self._stop = Latch()
        self._syncing: threading.Thread | None = None

    # --- opening -------------------------------------------------------------------------------

    def open(
        self, cache: Persistent, length: int | None, attach: Callable[..., bool], on_error: str
    ) -> Recovery:
        """Attaches `cache` to the file, or to a new one that holds the checkpoint, or to an empty one.

        `length`: of a new image; None: there must be a file. `attach(map, how, boot)` is `_attach` with the
        cache's options; False: it cannot be mended.
        """
        begun = time.perf_counter()
        forks.register(cache)  # whoever forks meanwhile has a child without the mapping
        try:
            how, reason = self._open(cache, length, attach, on_error)
            return Recovery(how, len(cache), reason, time.perf_counter() - begun)
        except BaseException:
            try:
                if not cache.closed:  # its mapping would keep the lock
                    PackedStore.close(cache)
            except OSError:
                pass
            finally:  # `release`, but a call of ours may ask for memory
                fd, self.fd = self.fd, -1
                if fd >= 0:
                    try:
                        fcntl.flock(fd, fcntl.LOCK_UN)
                    finally:
                        os.close(fd)
            raise

    def _open(
        self, cache: Persistent, length: int | None, attach: Callable[..., bool], on_error: str
    ) -> tuple[str, str]:
        reason, known = "there is no live file", None
        if self._lock_existing():
            mapped = self._map_existing()
            if mapped is None:
                reason = "it is empty"
            else:
                try:
                    how, reason = self._use(cache, mapped, attach)
                    known = _bounds(mapped)
                finally:
                    try:  # noqa: SIM105, `suppress` asks for memory
                        mapped.close()
                    except BufferError:  # it is the cache's now
                        pass
                if how:
                    return how, reason
        elif length is None and not os.path.exists(self.checkpoint):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)
        return self._rebuild(cache, length, attach, on_error, reason, known)

    def _use(
        self, cache: Persistent, mapped: mmap.mmap, attach: Callable[..., bool]
    ) -> tuple[str, str]:
        """Attaches the cache to what was found; how, or "", and why."""
        verdict, reason = judge(mapped, self.boot, self.id_of(self.fd), len(mapped))
        if not files.is_live(mapped[:8]):  # whatever on_error says: it is not ours to replace
            rule = (
                "a live file begins with GBcache1: give another path (`Cache.open` opens snapshots)"
            )
            raise ImageError(self.path, 0, rule)
        if verdict == "lost":
            return "", reason
        head = live_head(mapped) or {}  # it was judged: it has one
        snapshot.check_codec(self.path, head["codec"], cache._codec)
        how = "mend" if verdict == "killed" else "clean"
        if not attach(mapped, how=how, boot=self.boot, file_id=self.id_of(self.fd)):
            return "", "{}: at {}, want {}, got {}".format(*cache._fault())
        if verdict == "killed":
            return "mended", "it was not closed"
        mapped.flush(0, mmap.PAGESIZE)  # OPEN is on disk before anything else changes
        return "clean", ""

    @staticmethod
    def id_of(fd: int) -> int:
        """Tells a file from a copy of it, which may be of no one moment."""
        found = os.fstat(fd)
        return (found.st_ino ^ found.st_dev << 40) % 2**64

    def _lock_existing(self) -> bool:
        """Opens and locks the file; False if there is none."""
        while True:
            try:
                fd = files.open_file(self.path, own=True, write=True)
            except FileNotFoundError:
                return False
            self.fd = fd
            self._lock(fd)
            if files._same(fd, self.path):  # nobody put another one in its place meanwhile
                return True
            self.release()

    def _lock(self, fd: int) -> None:
        for _ in range(10):  # `python -m gbcache` may be looking whether anybody has it open
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(0.001)
        head = os.pread(fd, 65536, 0)
        known = live_head(head) if head else None
        owner = f"process {known['owner']}" if known and known["owner"] else "another process"
        raise BlockingIOError(
            errno.EAGAIN,
            f"a live file has one writer at a time, and {owner} has it open",
            self.path,
        )

    def _map_existing(self) -> mmap.mmap | None:
        size = os.fstat(self.fd).st_size
        if size > memory.MOST + 4096:  # whatever on_error says, as for one of another kind
            rule = f"a live file has {memory.MOST + 4096:,} bytes at most: give another path"
            raise ImageError(self.path, None, f"{rule} (this has {size:,})")
        return memory.shared(self.fd, size) if size else None

    def _rebuild(
        self,
        cache: Persistent,
        length: int | None,
        attach: Callable[..., bool],
        on_error: str,
        reason: str,
        known: dict[str, Any] | None,
    ) -> tuple[str, str]:
        """A new file beside the old one, filled, then put in its place."""
        there = self.fd >= 0
        if there and on_error == "raise" and reason.startswith(_OTHER):  # it may be whole
            rule = (
                f"this release wrote it ({reason}): open it with the one that did and save() it, "
                "or with on_error='empty' to begin anew"
            )
            raise ImageError(self.path, None, rule)
        source = self._open_checkpoint()
        if source < 0 and there and on_error == "raise":
            rule = (
                f"it can be used ({reason}), or a checkpoint is beside it: "
                "open it with on_error='empty' to begin anew"
            )
            raise ImageError(self.path, None, rule)
        try:
            if length is None:
                length = known["length"] if known else self._length_of(source)
            return self._fill_new(cache, length, attach, on_error, reason, source, known)
        finally:
            if source >= 0:
                os.close(source)

    def _length_of(self, source: int) -> int:
        """What a checkpoint says its cache was."""
        if source < 0:
            raise ImageError(
                self.path, None, "it says how large it was, or a checkpoint does: give max_bytes="
            )
        asked = self._head_of(source)["max_bytes"]
        if not smallest() <= asked <= memory.MOST:
            raise ImageError(
                self.checkpoint, None, f"its max_bytes={asked} is possible: give max_bytes="
            )
        return int(asked) // 8 * 8

    def _head_of(self, source: int) -> dict[str, Any]:
        return read_head(source, os.fstat(source).st_size, self.checkpoint)

    def _open_checkpoint(self) -> int:
        try:
            return files.open_file(self.checkpoint, own=True)
        except FileNotFoundError:
            return -1

    def _fill_new(
        self, cache: Persistent, length: int, attach: Callable[..., bool], on_error: str, reason: str, source: int,
        known: dict[str, Any] | None,
    ) -> tuple[str, str]:  # fmt: skip
        beside, there = self.path + ".new", self.fd >= 0
        if there and files._same(
            self.fd, beside
        ):  # killed between link and unlink: the live file's other name
            os.unlink(beside)
        fd = files._open_beside(beside)
        try:
            os.fchmod(fd, 0o600)
            files.extend(fd, length)
            mapped = memory.shared(fd, length)
            attach(mapped, boot=self.boot, file_id=self.id_of(fd))
            how = "new" if source < 0 and not there else "empty"
            _as_it_was(cache, known)
            if source >= 0:
                try:
                    _as_it_was(cache, self._head_of(source))
                    snapshot.fill(cache, source, self.checkpoint, None)
                    how = "checkpoint"
                    cache._after_checkpoint()
                except ImageError as error:
                    if on_error == "raise" or isinstance(error, snapshot.OtherCodec):
                        raise
                    reason = f"{reason}; {error}"
                    cache.clear()
            cache._opened(self.boot)
            mapped.flush(0, mmap.PAGESIZE)
            self._put_in_place(beside, there)
        except BaseException:
            if os.getpid() == self._process:  # or it is the parent's
                files.remove(beside)
            files.unlock(fd, self._process)
            raise
        files._beside.pop(fd, None)
        old, self.fd = self.fd, fd
        if old >= 0:
            os.close(old)
        return how, "" if how == "new" else reason

    def _put_in_place(self, beside: str, there: bool) -> None:
        if there:
            os.rename(beside, self.path)
        else:
            try:
                os.link(
                    beside, self.path
                )  # unlike rename, not over what somebody else made meanwhile
            except FileExistsError:
                raise BlockingIOError(
                    errno.EAGAIN,
                    "another process made this live file at the same moment",
                    self.path,
                ) from None
            os.unlink(beside)
        files.sync_directory(self.path)

    # --- while it is open ----------------------------------------------------------------------

    @contextlib.contextmanager
    def _own(self) -> Iterator[int]:
        """A descriptor of our own: a close beside us lets go of the file's, whose number may be another file's then."""
        try:
            fd = os.dup(self.fd)
        except OSError:
            if self.fd >= 0:
                raise
            fd = -1
        try:
            if self.fd < 0:  # `release` forgets the number, then closes: `fd` may be another's
                raise ClosedError("the cache was closed during a resize")
            files._beside[fd] = threading.get_ident()
            yield fd
        finally:
            files._beside.pop(fd, None)
            if fd >= 0:
                os.close(fd)

    def extend(self, length: int) -> None:
        with self._own() as fd:
            files.extend(fd, length)

    def remapped(self, length: int) -> mmap.mmap | None:
        """Where a mapping cannot change its length in place, a new one of the file."""
        if sys.platform.startswith("linux"):
            return None
        with self._own() as fd:
            os.ftruncate(fd, length)
            return memory.shared(fd, length)

    def keep_synced(self, cache: Persistent, interval: float) -> None:
        """Has a thread call `sync` each `interval` seconds, as long as the cache lives and is open."""
        assert self._stop is not None
        ref, stop = weakref.ref(cache), self._stop
        thread = threading.Thread(
            target=endure, args=(_sync_on, ref, stop, interval), name="gbcache-sync", daemon=True
        )
        thread.start()
        self._syncing = thread  # not before: one that did not start cannot be waited for

    def stop(self, wait: bool) -> None:
        """No further sync in the background; waits for one under way, if it may: one that waits for whoever closes
        finds the cache closed."""
        assert self._stop is not None
        self._stop.open()
        thread = self._syncing
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()

    def release(self) -> None:
        """Gives up the lock: the file may be opened by others."""
        fd, self.fd = self.fd, -1  # closed, even where that fails: never twice
        if fd >= 0:
            files.unlock(fd, self._process)

    def __del__(self) -> None:
        try:
            if self._stop is not None:
                self._stop.open()
        finally:
            self.release()


def _bounds(mapped: mmap.mmap) -> dict[str, Any] | None:
    """The head of a file that is not used as it is, where its words agree: its bounds are to be believed."""
    head = live_head(mapped)
    if head is None or not smallest() <= head["length"] <= len(mapped):
        return None
    counted = head["max_entries"] is None or head["entries"] <= head["max_entries"]
    return head if counted and head["length"] == head["max_bytes"] // 8 * 8 else None


def _as_it_was(cache: Persistent, head: dict[str, Any] | None) -> None:
    """An empty cache gets the bounds it had, where none were given."""
    if head is None:
        return
    if not cache._asked():
        cache._asked(head["max_bytes"])
    if cache._figures()[2]["max_entries"] == 0:
        cache._limit(head["max_entries"] or 0)


_all: weakref.WeakSet[LiveFile] = weakref.WeakSet()


def _forked() -> None:
    for file in list(_all):
        if file._process != os.getpid():  # the parent's lock is its own
            file.release()


forks.in_child(_forked)


def _sync_on(ref: weakref.ref[Any], stop: Latch, interval: float) -> None:
    while not stop.wait(interval):
        cache = ref()
        if cache is None or cache.closed:
            return
        try:
            cache.sync()
        except Exception as error:
            if cache.closed:
                return
            cache.sync_errors += 1
            from ._packed import report

            report(error, _sync_on)
        del cache
