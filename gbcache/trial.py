"""How writes are given to a far side: together; where that fails apart, so that none keeps another out."""

from __future__ import annotations

import errno
import time
from typing import Any, NamedTuple

from .codec import Codec
from .errors import ClosedError, FarError, ImageError
from .far import Far
from .pending import REMOVED, Pending, bare, value_of

__all__ = ["Given", "give"]

_IN_A_ROW = 8
"""Writes that fail one after the other, each alone, before it is taken for the far side's fault; twice as many with
each attempt that failed before, if nothing is taken: as many may be at fault themselves."""
_DOUBLED = 7
_PIECE = 1 << 20
"""Encoded bytes that are decoded for one call, but for one write that is longer: a value may take many times its
bytes."""
_Item = tuple[Any, Any, "float | None"]
"""Key, value (or REMOVED), deadline."""


class Given(NamedTuple):
    """What became of a batch, beside what is stored."""

    rest: dict[Any, Pending]
    """These were not tried, or failed as all others did; in the order in which they came."""
    left: dict[Any, Pending]
    """These are not taken, for now: there is no room, or they are refused, or fail where others do not."""
    never: dict[Any, BaseException]
    """These cannot be stored, each alone."""
    why: FarError | None
    """What the far side said of one that is left."""
    error: FarError | None
    """How the far side failed last, if it did."""
    doubted: set[Any]
    """Those of the rest that failed alone. While nothing is taken that may be the far side's fault: they go on holding
    writers up. As it takes others they stand aside."""
    taken: bool
    """Whether any is stored."""


def give(
    far: Far,
    codec: Codec | None,
    batch: dict[Any, Pending],
    doubted: set[Any],
    failed: int,
    seconds: float,
) -> Given:
    """Has the far side do these: one call at least, and more for so long. `failed`: so many times they did before,
    together; `doubted`: alone, so these come last."""
    trial = _Trial(far, codec, batch, doubted, _IN_A_ROW << min(failed, _DOUBLED))
    items = trial.begin()
    todo = trial.run(items, 1 if failed else len(items), time.monotonic() + seconds)
    rest = {item[0] for item in todo}.union(trial.failed).difference(trial.left, trial.never)
    return Given(
        {key: write for key, write in batch.items() if key in rest} if rest else {},
        {key: batch[key] for key in trial.left},
        trial.never,
        bare(trial.why),
        bare(trial.error),
        rest.intersection(doubted.union(trial.failed)),
        trial.taken,
    )


def _of_one(error: FarError) -> int:
    """Its errno, where that is about what the call brought: no room for now (ENOSPC), or ever (EFBIG), or it is not
    allowed (EACCES), each of it alone or all. Else 0: what the system says so of is a file."""
    cause = error.__cause__
    told = (getattr(cause, "errno", None), getattr(cause, "code", None))
    code = error.errno or 0
    if code == errno.ENOSPC or (code in (errno.EFBIG, errno.EACCES) and code not in told):
        return code
    return 0


class _Trial:
    """One `give`."""

    def __init__(
        self, far: Far, codec: Codec | None, batch: dict[Any, Pending], doubted: set[Any], row: int
    ) -> None:
        self._far, self._codec, self._batch = far, codec, batch
        self._doubted, self._row = doubted, row
        self.left: list[Any] = []
        self.failed: list[Any] = []
        """Alone, since the last that was taken."""
        self.never: dict[Any, BaseException] = {}
        self.why: FarError | None = None
        self.error: FarError | None = None
        self.taken = False
        self._plain = False  # nothing is removed, or ever over
        self._encoded = False  # something is

    def begin(self) -> list[_Item]:
        """In the order in which they are tried: those that failed alone last, removals first, which make room."""
        items: list[_Item] = []
        plain, encoded = True, False
        for key, (value, is_encoded, until, _, _) in self._batch.items():
            if until is not None or value is REMOVED:
                plain = False
            encoded |= is_encoded
            items.append((key, value, until))
        self._plain, self._encoded = plain, encoded
        if self._doubted or not plain:
            items.sort(key=lambda item: (item[0] in self._doubted, item[1] is not REMOVED))
        return items

    def run(self, items: list[_Item], step: int, end: float) -> list[_Item]:
        """As many as go together; after a failure one alone, then ever more. Those that were not tried."""
        at = row = 0
        sized = begun = False
        while at < len(items) and not (begun and time.monotonic() > end):
            some, begun = items[at : at + step], True
            if self._encoded:
                del some[self._piece(some) :]
            try:
                given = self._decoded(some) if self._encoded else some
                if given:
                    self._call(given)
            except (ClosedError, ImageError) as error:  # not of one write: none is to be given up
                self.error = FarError(str(error))
                break
            except FarError as error:
                kind = _of_one(error)
                if len(some) == 1:
                    at, row = at + 1, row + 1
                    self._fails(some[0][0], kind, error)
                step = 1
                # Of many that have no room one is tried alone, however late it is: else all would come again.
                begun = len(some) == 1 or not kind
                if kind == errno.ENOSPC:
                    items = items[at:]
                    if sized and len(some) == 1:  # smaller ones have been tried
                        self.left += [item[0] for item in items]
                        return []
                    items.sort(key=self._size_of)
                    at, sized = 0, True
                elif not kind:
                    self.error = error
                    if row > (_IN_A_ROW if self.taken else self._row):
                        break
            except MemoryError:
                raise
            except BaseException as error:  # SystemExit too: nobody else writes what is here
                if len(some) == 1:
                    self.never[some[0][0]] = error
                    at += 1
                begun, step = len(some) == 1, 1
            else:
                at, step = at + len(some), min(step * 2, len(items))
                if given:
                    row, self.taken = 0, True
                    self._sets_aside()
        # The last few, too: where it stopped answering just now they go wrongly, and come again.
        if self.taken:
            self._sets_aside()
        return items[at:]

    def _piece(self, items: list[_Item]) -> int:
        """How many are decoded at once."""
        size = 0
        for n, item in enumerate(items):
            write = self._batch[item[0]]
            size += write[4] if write[1] else 0
            if size > _PIECE and n:
                return n
        return len(items)

    def _decoded(self, items: list[_Item]) -> list[_Item]:
        """What cannot be is never stored."""
        out: list[_Item] = []
        for item in items:
            write = self._batch[item[0]]
            try:
                out.append((item[0], value_of(self._codec, write), item[2]) if write[1] else item)
            except MemoryError:
                raise
            except BaseException as error:
                self.never[item[0]] = error
        return out

    def _call(self, items: list[_Item]) -> None:
        """What is over by now goes, too."""
        if self._plain:
            self._far.put_many(items)
            return
        gone: list[Any] = []
        puts: list[_Item] = []
        now = time.monotonic()
        for key, value, until in items:
            if value is REMOVED or (until is not None and until <= now):
                gone.append(key)
            else:
                puts.append((key, value, None if until is None else until - now))
        if gone:
            self._far.delete_many(gone)
        if puts:
            self._far.put_many(puts)

    def _size_of(self, item: _Item) -> int:
        """What is removed, or is over by now, makes room."""
        over = item[1] is REMOVED or (item[2] is not None and item[2] <= time.monotonic())
        return 0 if over else self._batch[item[0]][4]

    def _fails(self, key: Any, kind: int, error: FarError) -> None:
        if kind == errno.EFBIG:
            self.never[key] = error
        elif kind:
            self.left.append(key)
            self.why = error
        else:
            self.failed.append(key)

    def _sets_aside(self) -> None:
        """It takes others, so it is their fault."""
        if self.failed:
            self.left += self.failed
            self.why = self.error
            self.failed = []
