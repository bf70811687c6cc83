"""What a `Cache` can do with files: save, open, sync."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from . import housekeeper, snapshot
from ._packed import PackedStore
from .codec import Codec
from .files import Path
from .live import LiveFile, Recovery
from .snapshot import Progress, Save, Sealed
from .units import bytes_of, seconds_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from .cache import Cache
    from .stats import Memory

__all__ = ["Persistent", "check_path"]


def check_path(
    path: Path | None, interval: float | timedelta | None, on_error: str, clock: object
) -> float | None:
    """Options of a live file; `sync_interval` in seconds."""
    if on_error not in ("raise", "empty"):
        raise ValueError(f"on_error={on_error!r} is not 'raise' or 'empty'")
    if path is None and interval is not None:
        raise ValueError(f"sync_interval={interval!r} is for a live file: give path= too")
    if path is not None and clock is not None:
        raise ValueError("clock= cannot go with path=: a file's times are the machine's")
    return None if interval is None else seconds_of(interval, "sync_interval")


class Persistent(PackedStore):
    """The half of a `Cache` that knows files."""

    _file: LiveFile | None = None
    recovery: Recovery | None = None
    """How a live file was found; None of other caches."""
    sync_errors = 0
    """Times the sync in the background failed; each is reported to `sys.unraisablehook`."""

    if TYPE_CHECKING:  # what `Cache` is beside
        _codec: Codec

        @property
        def max_bytes(self) -> int: ...
        def memory(self) -> Memory: ...
        def resize(self, max_bytes: int | str, *, max_entries: int | None = None) -> None: ...
        def _alone(self, what: str) -> AbstractContextManager[None]: ...
        def _filled(self, events: int | str | None) -> None: ...

    @overload
    def save(
        self, path: Path, *, wait: Literal[True] = True, progress: Progress | None = None
    ) -> int: ...
    @overload
    def save(
        self, path: Path, *, wait: Literal[False], progress: Progress | None = None
    ) -> Save: ...
    def save(
        self, path: Path, *, wait: bool = True, progress: Progress | None = None
    ) -> int | Save:
        """Writes what the cache holds at this moment to `path`, without stopping anybody; the file's bytes.

        The file is a snapshot of one moment: what is written, removed or evicted meanwhile does not show in
        it. It replaces what was there by a rename, after it was synced: at any time there is the old file or
        the new one, whatever fails. A live file is not replaced (ImageError). Mode 0600. ``wait=False`` returns a
        `Save` at once, which has a thread of its own. ``progress(done, total)`` is called with bytes, in the thread
        that saves.

        Order of use is kept as of the moment, but for what is used while the save is under way, which may
        count as used. `clear` and `resize` wait for a save; a long value that must leave is charged until it
        has been copied. Cost: about 40 MiB/s of a core's time for each 100 MB of small entries, 4 MiB and 1/128
        of `max_bytes` of memory, and 5.4 bytes an entry. Raises OSError, RuntimeError (another save is under way).
        """
        return snapshot.save(self, path, wait, progress)

    def sync(self, *, progress: Progress | None = None) -> int:
        """Writes the checkpoint of a live file: what a power cut falls back to. The file's bytes; cost: as `save`."""
        if self._file is None:
            raise TypeError(
                "sync() is for a live file (path=...): save(path) writes a snapshot of any cache"
            )
        return snapshot.write(self, self._file.checkpoint, progress)

    @overload
    @classmethod
    def open(cls, path: Path, mode: Literal["r"], **options: Any) -> Sealed: ...
    @overload
    @classmethod
    def open(cls, path: Path, mode: Literal["copy", "r+"] = "copy", **options: Any) -> Cache: ...
    @classmethod
    def open(
        cls,
        path: Path,
        mode: str = "copy",
        *,
        max_bytes: int | str | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Cache | Sealed:
        """Opens what `save` wrote, or a live file. `options` are those of the constructor, but `path`.

        ``mode="copy"``: reads a snapshot into a new cache of this process, every byte checked. `max_bytes` and
        `max_entries` are the saved cache's if not given; where less fits, the most recently used are there.
        ``mode="r"``: maps a snapshot, checked once, and shared by all processes that do; a `Sealed`: no order of
        use, no writes; ``codec=`` is the only option. ``mode="r+"``: the live file that is there, as
        ``Cache(max_bytes, path=path)``, which must exist.

        TTLs have gone on running meanwhile, by the wall clock, and are never longer than they were. The
        codec must be the one it was saved with: nothing is unpickled unless you name it. For "r" and "r+" the
        file must be yours and nobody else's to write. Raises ImageError (`path`, `offset`, `rule`), OSError.
        """
        if mode == "r":
            if max_bytes is not None or options.keys() - {"codec"}:
                given = sorted(
                    {*options} - {"codec"} | ({"max_bytes"} if max_bytes is not None else set())
                )
                raise TypeError(f"mode='r' takes no {', '.join(given)}: a Sealed writes nothing")
            return Sealed(path, **options)
        if mode == "r+":
            return cast("Cache", cls(max_bytes, path=path, **options))
        if mode != "copy":
            raise ValueError(f"mode={mode!r} is not 'copy', 'r' or 'r+'")
        return cast("Cache", snapshot.open_copy(cls, path, max_bytes, progress, options))

    def _found(self, max_bytes: int | str | None, max_entries: int) -> None:
        """A live file that was there: it gets the bounds that are asked for. One whose process was killed in a resize
        may not be as long as its budget."""
        total = self._figures()[2]["total"]
        asked = self.max_bytes if max_bytes is None else bytes_of(max_bytes)
        if max_bytes is None and asked // 8 * 8 != total:
            self._asked(total)
        elif (self.max_bytes, total) != (asked, asked // 8 * 8):
            self.resize(asked)
        if max_entries:
            self._limit(max_entries)

    def _look_after(self) -> None:
        if self._timed() and self._keeps():
            housekeeper.keep(self)
