"""A Disk's engine: writes go to the journal in groups, and from memory to LMDB in the background.

A record is in up to three places: what waits (`active`, in the newest journal), what is being written (`frozen`, in the
journal before), and LMDB. Whoever reads looks in this order, and takes LMDB's transaction after it has looked in the
other two: a record leaves a layer only when LMDB has it.

Where the leader is the main thread, a signal's handler may raise between any two of its lines. What it then leaves
may be begun anew: views change nothing, and `append` is one step. The others, in which journals or LMDB change, are
done `aside`, in a thread where no handler runs.

The lock `_lmdb` is held by who writes to LMDB, and in it `_files` by who takes a journal away; `_files` also by who
syncs them. Otherwise only the leader changes layers and journals.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

from . import files, forks
from ._disk import Records, append, digest_of, pay
from .codec import Codec, name_of
from .errors import ClosedError, FarError, ImageError
from .groups import CLOSED, COME_BACK, Groups, Request
from .journal import Changes, Journal, Owner, numbered, recover
from .lmdbstore import LMDBError, Store, failed
from .locks import Latch, Lock, aside, endure
from .view import Do, Expire, View, answer, refused, running

__all__ = ["Engine"]

LAYER = 16 << 20
"""Bytes that wait in memory before they go to LMDB; twice as many, and writers wait for it."""
IDLE = 5.0
"""Seconds after which they go even if they are few."""
SWEEP, BATCH = 0.5, 1000
"""Seconds between two looks for what is over, and entries taken at a time."""
_FORKED = "this Disk was opened by process %d, which forked: close it there, and open it here"


class Engine:
    """One open directory."""

    def __init__(
        self, path: str, sync: str, interval: float, max_bytes: int | None, codec: Codec
    ) -> None:
        self.path, self.sync_mode, self.interval = path, sync, interval
        self.process, self.closed = os.getpid(), False
        self.layer = LAYER if max_bytes is None else min(LAYER, max_bytes // 16)
        self.most = None if max_bytes is None else max_bytes - 4 * self.layer
        self.layers: tuple[Changes, Changes] = ({}, {})
        self.owed: Changes | None = None  # what is in the journal, and had no room in memory
        self.active_size = self.frozen_size = 0
        self.seq = self.synced = self._frozen_seq = 0
        self.groups_done = self.grouped = self.expired = 0
        self.trouble: BaseException | None = None
        self._frozen_journal: Journal | None = None
        self._lmdb, self._files = Lock(), Lock()
        self._offset = time.time() - running()
        self.refused = partial(refused, path=path)
        with contextlib.suppress(FileExistsError):
            os.makedirs(path, 0o700)
        files.check_directory(path)
        self._stopping, self._closes, self._wake, self._stop = False, False, Latch(), Latch()
        self.threads: list[threading.Thread] = []
        self.owner = Owner(path)
        self.store = Store(path, name_of(codec), self.most)
        self.reading = self.store.reading()  # the leader's
        self.groups = Groups(self._commit, self.reading)
        try:
            if self.owner.mark is not None:
                self._offset = max(time.time(), self.owner.mark.at / 1000) - running()
            self._open()
            self.records = Records(self.store.seed, codec, path, digest_of)
        except BaseException as error:
            self.abandon()
            if isinstance(error, (OSError, LMDBError)) and not isinstance(error, FarError):
                raise failed(error, path) from error
            raise

    def begin(self) -> None:
        works = [self._tend_on, self._sync_on][: 1 + (self.sync_mode == "interval")]
        self._settled = self._swept = time.monotonic()
        for work in works:
            thread = threading.Thread(None, endure, "gbcache-disk", (work,), daemon=True)
            self.threads.append(thread)
            thread.start()
        _OPEN.add(self)

    def abandon(self) -> None:
        self.closed = True  # for a thread that did start
        self._halt()
        with contextlib.suppress(OSError, LMDBError):  # what went wrong before is what is told
            self._give_back()

    def _open(self) -> None:
        store, owner = self.store, self.owner
        if not os.path.lexists(store.path):
            if owner.mark is not None:
                raise ImageError(store.path, None, "the data file is there: it was removed")
            for _, path in numbered(self.path):  # of one that was killed while it was made
                files.remove(path)
            store.make()
            self.journal = Journal.create(self.path, 1, store.seed, 0, True)
            store.put_in_place()
            store.open()
        else:
            store.make()
            store.check(store.path)
            found = recover(self.path, store.seed, store.applied, owner.mark, owner.boot)
            store.open()
            if found.seq > store.applied:
                store.write(found.changes, found.seq)
            self.journal = Journal.create(self.path, found.number + 1, store.seed, found.seq, True)
            for path in found.paths:
                files.remove(path)
            self.seq = self.synced = found.seq
        self.number = int(self.journal.path.rpartition(".")[2])
        owner.write(self.seq, self.now())

    # --- what others call --------------------------------------------------------------------

    def now(self) -> int:
        """Milliseconds since 1970 by the clock when it was opened: it does not jump while we run, and is never before
        what it was when the last process wrote."""
        return int((running() + self._offset) * 1000)

    def check_open(self) -> None:
        if self.closed or (forks.within() and self.process != os.getpid()):
            raise ClosedError(_FORKED % self.process if self.process != os.getpid() else CLOSED)

    def run(self, request: Request) -> Any:
        self.check_open()
        self._check_outside()
        return self.groups.run(request)

    def _check_outside(self) -> None:
        """RuntimeError where this thread is within a read or the background's work: a write may wait for its end."""
        if self.store.gate.has_me() or self._lmdb.mine or self._files.mine:
            raise RuntimeError(COME_BACK)

    def count(self) -> int:
        self.check_open()
        active, frozen = self.layers
        return self.store.count({**frozen, **active})

    def flush(self) -> None:
        if any(self.layers) or self.owed is not None:
            self.run(Do(self._flush))

    def _flush(self) -> None:
        """Leader: all that waits is in LMDB then."""
        if any(self.layers) or self.suspect:
            self.settle()

    def sync(self) -> None:
        """The journal, or what waits, is on disk."""
        self.check_open()
        self._sync_behind()
        if self.suspect:
            self.run(Do(self._flush))

    def close(self, last: bool = False) -> None:
        """`last`: it is to be what the thread that tends does last."""
        if self.closed or self.process != os.getpid() or forks.put_off(self.close):
            return
        if last:
            self._closes = True
            self._halt()
            return
        self._check_outside()
        self.groups.check()
        aside(partial(self._end, threading.current_thread()))

    def _halt(self) -> None:
        self._stopping = True
        self._wake.open()
        self._stop.open()

    def _end(self, closer: threading.Thread) -> None:
        """All of a close, for no handler to cut in two: with its background gone a Disk is not to be left open."""
        self._halt()
        for thread in self.threads:
            while thread is not closer and thread.is_alive():  # join() would register this thread
                time.sleep(0.001)
        with contextlib.suppress(ClosedError):
            self.groups.insist(partial(Do, self.shut))

    # --- the leader --------------------------------------------------------------------------

    def _commit(self, batch: Sequence[Request]) -> None:
        pay(self)  # of a leader that was interrupted
        group: list[Request] = []
        for request in batch:
            if not request.alone:
                group.append(request)
                continue
            self._write_group(group)
            group = []
            try:
                self.groups.aside(partial(request.answer, self))
            except Exception as error:
                if error is not request.error:  # but of a signal's handler
                    raise
        self._write_group(group)

    def _write_group(self, group: list[Request]) -> None:
        if not group:
            return
        try:
            self.make_way(sum([request.size for request in group if request.grows]))
        except (OSError, LMDBError) as error:  # what brings no more finds out for itself
            for request in group:
                if request.grows:
                    request.error = self.refused(error)
            group = [request for request in group if not request.grows]
        view = View(self, self.now())
        try:
            answer(self, view, group)
            view.close()  # the map may have to move
            if view.overlay:
                self._append(view, group)
                self.groups_done += 1
                self.grouped += sum([request.wrote for request in group])
        except (OSError, LMDBError) as error:
            for request in group:
                if request.wrote and request.error is None:
                    request.error = self.refused(error)
        finally:
            view.close()
            pay(self)  # those it wrote for are told so

    def make_way(self, size: int) -> None:
        """Where `max_bytes` is reached LMDB gets what waits, in one commit: it may be removals."""
        waiting = self.active_size + self.frozen_size + size
        if size and any(self.layers) and self.store.beyond(waiting):
            self.groups.aside(self._make_room)

    @property
    def suspect(self) -> bool:
        """The journal may not hold what it was given: before anything else LMDB gets all, and a new one begins."""
        frozen = self._frozen_journal
        return self.journal.doubtful or (frozen is not None and frozen.doubtful)

    def _append(self, view: View, group: list[Request]) -> None:
        if self.suspect or self.active_size > 2 * self.layer:
            self.groups.aside(self._make_room)
        journal, owner, seq = self.journal, self.owner, self.seq + 1
        frame, mark = journal.frame(seq, self.synced, view.overlay), owner.mark_of(seq, self.now())
        waits = self.active_size + view.size + 64 * len(view.overlay)
        append(self, journal, frame, journal.size + len(frame), seq, waits, view.overlay,
               self.sync_mode == "always" or self._stopping, owner.fd, mark, group)  # fmt: skip
        self.expired += view.expired
        if self.active_size > self.layer:
            self._wake.open()

    def _make_room(self) -> None:
        try:
            self.settle()
        except (OSError, LMDBError) as error:
            self.trouble = error
            if self.suspect or self.active_size > 8 * self.layer:
                raise

    # In short functions: far down in a long one a `with` or `finally` that lacks memory spins for ever (CPython).

    def settle(self, overlay: Changes | None = None, drop: bool = False) -> None:
        """Leader: all that waits, and `overlay`, into LMDB; with `drop`, only that, and all else is gone."""
        with self._lmdb:
            merged: Changes = {} if drop else {**self.layers[1], **self.layers[0]}
            merged.update(overlay or {})
            self._write(merged, self.seq, drop)
            self.layers = ({}, {})
            self.active_size = self.frozen_size = 0
            self._forget_frozen()
            self._begin_anew()

    def _begin_anew(self) -> None:
        try:
            fresh = self._new_journal(True)
        except OSError:
            if self.suspect:
                raise
            return  # it goes on in the old one: its frames are known by their numbers
        try:
            self._go_on_in(fresh)
        finally:
            if self.journal is not fresh:  # no memory for the `with`
                fresh.close()
                files.remove(fresh.path)

    def _go_on_in(self, fresh: Journal) -> None:
        with self._files:
            old, self.journal, self.synced = self.journal, fresh, self.seq
            try:
                old.remove()
            except (OSError, MemoryError):  # the fresh one says that all before it was applied
                old.close()

    def _write(self, changes: Changes, seq: int, drop: bool = False) -> None:
        try:
            self.store.write(changes, seq, drop)
        finally:
            self._settled = time.monotonic()
        self.trouble = None

    def _forget_frozen(self) -> None:
        with self._files:
            if self._frozen_journal is not None:
                self._frozen_journal.remove()
                self._frozen_journal = None

    def _new_journal(self, first: bool) -> Journal:
        store, number = self.store, self.number + 1
        made = Journal.create(self.path, number, store.seed, store.applied, first)
        self.number += 1
        return made

    def rotate(self) -> None:
        """Leader."""
        active, frozen = self.layers
        if frozen or not active or self.suspect:
            return
        self._forget_frozen()  # where it could not be before
        self._frozen_journal, self.journal = self.journal, self._new_journal(False)
        self._frozen_seq = self.seq
        self.frozen_size, self.active_size = self.active_size, 0
        self.layers = ({}, active)

    def shut(self) -> None:
        """Leader: the end. What cannot be written to LMDB is still in the journal."""
        try:
            if any(self.layers) or self.suspect:
                try:
                    self.settle()
                except BaseException:
                    self._sync_journals()
                    raise
            self.owner.write(self.seq, self.now(), clean=True)
        finally:
            self.closed = True
            _OPEN.discard(self)
            self._give_back()

    def _give_back(self) -> None:
        """All that is the system's, whatever of it fails: else nobody could open it again."""
        self.groups.end()
        with contextlib.ExitStack() as rest:
            rest.callback(self.owner.release)
            for journal in filter(None, (getattr(self, "journal", None), self._frozen_journal)):
                rest.callback(journal.close)
            rest.callback(self.store.close)

    # --- the background ----------------------------------------------------------------------

    def _tend_on(self) -> None:
        while not self._stopping:
            self._wake.wait(SWEEP)
            self._wake.close()
            try:
                self._tend()
            except ClosedError:
                return
            except Exception as error:
                self.trouble = error
                self._stop.wait(SWEEP)
        if self._closes:
            with contextlib.suppress(FarError):  # the journal has it
                self.close()

    def _tend(self) -> None:
        now = time.monotonic()
        if self.suspect or self.owed is not None:
            self.run(Do(self._flush))
        idle = now - self._settled > IDLE
        if self.active_size > self.layer or self.layers[1] or (self.layers[0] and idle):
            self._settle_behind()
        if now - self._swept > SWEEP:
            self._swept = now
            self._sweep()

    def _sync_on(self) -> None:
        while not self._stop.wait(self.interval):
            self._sync_behind()
        self._sync_behind()  # the end may take its time

    def _sync_behind(self) -> None:
        if self.synced < self.seq and not self.suspect:
            with contextlib.suppress(FarError):  # it is suspect then, and that is seen to
                aside(self._sync_journals)

    def _settle_behind(self) -> None:
        """While others write on."""
        self.run(Do(self.rotate))
        with self._lmdb:
            frozen = self.layers[1]
            if not frozen:
                return
            self._write(frozen, self._frozen_seq)
            self.layers, self.frozen_size = (self.layers[0], {}), 0
            self._forget_frozen()

    def _sweep(self) -> None:
        while not (self._stopping or self.suspect):  # that is for `_tend` to mend
            found = self.store.due(self.now(), BATCH)
            if found:
                self.run(Expire(found))
                self._settle_behind()
            if len(found) < BATCH:
                return

    def _sync_journals(self) -> None:
        try:
            self._sync_both()
        except OSError as error:
            raise failed(error, self.path) from error

    def _sync_both(self) -> None:
        with self._files:
            seq = self.seq  # before the journals, and the newest first: what they lack is above it
            try:
                self.journal.sync()
            finally:  # where that failed, too: at the end it is all that can be done
                if self._frozen_journal is not None:
                    self._frozen_journal.sync()
            self.synced = max(self.synced, seq)

    def after_fork(self) -> None:
        """In the child: the lock is the parent's alone, and so is all else."""
        self.closed = True
        self.owner.release()
        self.journal.close()


_OPEN: weakref.WeakSet[Engine] = weakref.WeakSet()


def _forked() -> None:
    for engine in list(_OPEN):
        if engine.process != os.getpid():
            engine.after_fork()


forks.in_child(_forked)
