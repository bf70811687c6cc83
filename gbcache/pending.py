"""A write on its way to a far side, and how some are given to it: as many as it has room for."""

from __future__ import annotations

import errno
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from sys import getsizeof
from typing import Any, NamedTuple, NoReturn

from .codec import Codec, base_key, encode_key
from .errors import ClosedError, FarError, ImageError
from .far import Far
from .locks import Lock

__all__ = [
    "FIRST",
    "ITSELF",
    "LONGEST",
    "MIDST",
    "REMOVED",
    "SHORT",
    "Aside",
    "AtRisk",
    "Pending",
    "TierStats",
    "again",
    "are_plain",
    "check",
    "frozen",
    "give",
    "merge",
    "plain",
    "size_of",
    "tell",
    "value_of",
]

_ATOMS = frozenset({bytes, str, int, float, bool, type(None)})
_EACH = 250
"""Bytes a pending write takes beside key and value."""
_PLAIN_KEYS = frozenset({str, bytes})
_KEYS = frozenset({str, bytes, int, float, bool, type(None)})
_NAMED = 3
_DOUBTED = 8
"""Writes that may fail in a row, each alone, while the far side seems to answer."""
FIRST, LONGEST = 0.02, 1.0
"""Seconds between two attempts while the far side fails: doubling, from and to."""
_IDLE = 1.0
SHORT = FarError("memory is short")
"""Made beforehand."""
ITSELF = "the write-behind thread cannot wait for itself"
MIDST = "this was called by a handler in the midst of a write of the same thread: it would wait for that"

Pending = tuple[Any, bool, "float | None", float, int]
"""A write under way: value, whether that is encoded, deadline (on `time.monotonic`), when it came, bytes it takes. A
plain tuple: of one of atoms the collector soon lets go, and there may be many."""
REMOVED = object()
"""The value of a delete."""


class AtRisk(NamedTuple):
    """What a process that is killed now would lose."""

    entries: int
    bytes: int
    seconds: float
    """Age of the oldest."""


class TierStats(NamedTuple):
    """What a `Tiered` has done since it was made. What memory did is in ``tiered.near.stats()``."""

    far_hits: int
    """Reads that memory could not answer, and the far side did."""
    far_misses: int
    """Reads that found nothing in either."""
    negative_hits: int
    """Reads answered by what is known to be absent."""
    loads: int
    """Values that `load` or `get_or_set` made."""
    far_errors: int
    """Times the far side failed, or had no room; what is written behind included."""
    stale_served: int
    """Reads answered from memory because the far side failed."""
    invalidations: int
    """Keys that changed elsewhere; of all keys at once, 1."""
    at_risk: AtRisk
    """What a killed process would lose now: zeros but for ``write="behind"``."""
    behind_errors: int
    """Writes that the far side refused for good (each was reported to `sys.unraisablehook`)."""


def plain(key: Any) -> Any:
    """The key as both sides store it: of a subclass of str, say, the base value, whatever its own ``==`` says."""
    if _is_plain(key, 0) or not isinstance(key, (str, bytes, int, float, tuple)):
        return key
    return base_key(key)


def _is_plain(key: Any, depth: int) -> bool:
    """False of a tuple nested so deep that it is no key."""
    if type(key) is not tuple:
        return type(key) in _KEYS
    return _KEYS.issuperset(map(type, key)) or (
        depth < 64 and all([_is_plain(part, depth + 1) for part in key])
    )


def are_plain(keys: Collection[Any]) -> bool:
    """Whether they are as both sides store them."""
    return _KEYS.issuperset(map(type, keys)) or all([_is_plain(key, 0) for key in keys])


def _weight(key: Any) -> int:
    return getsizeof(key) + (sum(map(_weight, key)) if isinstance(key, tuple) else 0)


def size_of(writes: dict[Any, Pending]) -> int:
    return sum([write[4] for write in writes.values()])


def frozen(codec: Codec | None, key: Any, value: Any, until: float | None) -> Pending:
    """A write of the value as it is now: what is changed in a container later does not get there. Raises what the far
    side would (TypeError, ValueError)."""
    encoded, size = False, _EACH
    if type(key) in _PLAIN_KEYS:
        size += getsizeof(key)
    else:
        encode_key(key)
        size += _weight(key)
    if type(value) not in _ATOMS and value is not REMOVED and codec is not None:
        value, encoded = codec.encode(value), True
    return value, encoded, until, time.monotonic(), size + getsizeof(value)


def check(codec: Codec | None, items: dict[Any, Any]) -> None:
    """Raises what `frozen` would of one of them; keeps nothing, as there may be many."""
    for key, value in items.items():
        if type(key) not in _PLAIN_KEYS or type(value) not in _ATOMS:
            frozen(codec, key, value, None)


def value_of(codec: Codec | None, write: Pending) -> Any:
    """A copy of what is written."""
    if write[1]:
        assert codec is not None
        return codec.decode(write[0])
    return write[0]


def merge(generations: deque[dict[Any, Pending]]) -> None:
    """The first two are one, in their order."""
    first, second = generations[0], generations[1]
    merged = {key: write for key, write in first.items() if key not in second}
    merged.update(second)
    generations[1] = merged
    generations.popleft()


def again(error: FarError, text: str) -> NoReturn:
    """Raises the same, and what that means here."""
    text = f"{text}: {error}"
    raise (FarError(text) if error.errno is None else FarError(error.errno, text)) from error


def tell(error: BaseException, about: type) -> None:
    """As what a ``__del__`` raises."""
    try:
        from ._packed import report

        report(error, about)
    except Exception:  # nobody is left to tell
        pass


def _of_one(error: FarError) -> int:
    """Its errno, where that is about what the call brought: no room for now (ENOSPC), or ever (EFBIG), or it is not
    allowed (EACCES), each of it alone or all. Else 0: what the system says so of is a file."""
    cause = error.__cause__
    told = (getattr(cause, "errno", None), getattr(cause, "code", None))
    if error.errno == errno.ENOSPC or (
        error.errno in (errno.EFBIG, errno.EACCES) and error.errno not in told
    ):
        return error.errno
    return 0


class Given(NamedTuple):
    """What became of a batch, beside what is stored."""

    left: dict[Any, Pending]
    """These are not taken, for now: there is no room, or they are refused, or fail where others do not."""
    why: FarError | None
    """What the far side said of one."""
    never: dict[Any, BaseException]
    """These cannot be stored, each alone."""


def give(far: Far, codec: Codec | None, batch: dict[Any, Pending], apart: bool = False) -> Given:
    """Has the far side do these. Removals go first: they make room. `apart`: it failed before, maybe by one's fault"""
    trial = _Trial(apart)
    values = trial.values(codec, batch)  # takes time
    now = time.monotonic()
    items: list[Any] = []
    gone: list[Any] = []
    for key, value in values.items():
        until = batch[key][2]
        if value is REMOVED or (until is not None and until <= now):
            gone.append(key)
        else:
            items.append((key, value, None if until is None else until - now))
    try:
        keys = trial.do(far.delete_many, gone, [0] * len(gone), lambda key: key)
        sizes = [batch[key][4] for key, _, _ in items]
        keys += trial.do(far.put_many, items, sizes, lambda item: item[0])
    except (ClosedError, ImageError) as error:  # not of one write: none is to be given up
        raise FarError(str(error)) from error
    return Given({key: batch[key] for key in keys}, trial.why, trial.never)


class _Trial:
    """Calls of the far side with as many as go together: what it does not take keeps nothing else out."""

    def __init__(self, apart: bool) -> None:
        self._apart, self._answers = apart, False
        self.why: FarError | None = None
        self.never: dict[Any, BaseException] = {}

    def values(self, codec: Codec | None, batch: dict[Any, Pending]) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        for key, write in batch.items():
            try:
                values[key] = value_of(codec, write) if write[1] else write[0]
            except MemoryError:
                raise
            except BaseException as error:
                self.never[key] = error
        return values

    def do(
        self,
        call: Callable[[list[Any]], Any],
        items: list[Any],
        sizes: list[int],
        key_of: Callable[[Any], Any],
    ) -> list[Any]:
        """All of them; without room for that the smallest first, until one alone finds none. The keys of those left.

        Where the whole failed before, for what may be one of them: each is tried alone, the first by chance, then ever
        more together; that the far side takes one shows that it is another's fault that it fails.
        """
        left: list[Any] = []
        doubted: list[Any] = []
        step, row = len(items), 0
        if self._apart:
            random.shuffle(items)
            step = min(1, step)
        while items:
            try:
                call(items[:step])
            except FarError as error:
                kind = _of_one(error)
                if not kind and not (self._answers and row < _DOUBTED):
                    raise
                if step > 1:
                    if kind == errno.ENOSPC and step == len(sizes):
                        items = [items[at] for at in sorted(range(step), key=sizes.__getitem__)]
                    step = 1
                    continue
                row += 1
                self.why = error
                if kind == errno.ENOSPC and not (self._apart and row <= _DOUBTED):
                    return left + doubted + [key_of(item) for item in items]
                key = key_of(items.pop(0))
                if kind == errno.EFBIG:
                    self.never[key], self.why, row = error, None, 0
                else:
                    (left if kind else doubted).append(key)
            except (ClosedError, ImageError, MemoryError):
                raise
            except BaseException as error:  # SystemExit too: nobody else writes what is here
                if step == 1:
                    self.never[key_of(items.pop(0))] = error
                step = 1
            else:
                self._answers, row = self._apart, 0
                left += doubted
                doubted.clear()
                del items[:step]
                step = min(step * 2, len(items))
        return left + doubted


class Aside:
    """Writes that the far side did not take while it took others, mostly for want of room. They are older than all
    others that wait, and are tried again beside them. Under the lock of the buffer whose they are."""

    def __init__(self) -> None:
        self.writes: dict[Any, Pending] = {}
        self.bytes = 0
        self.error: FarError | None = None
        """What the far side said."""
        self.again = 0.0
        """When they are tried again."""
        self.begun = self.tried = 0
        """Attempts; the last that came to its end."""
        self.failed = False  # the last, for another reason
        self._fruitless = 0  # of them, in a row
        self.sparing = Lock()
        """Held throughout an attempt, and while the far side is emptied."""

    def since(self) -> float:
        return min([write[3] for write in self.writes.values()], default=float("inf"))

    def of(self, keys: Collection[Any] | None) -> list[Any]:
        return list(self.writes) if keys is None else [key for key in keys if key in self.writes]

    def size_of(self, keys: Iterable[Any]) -> int:
        return sum(self.writes[key][4] for key in keys if key in self.writes)

    def pop(self, key: Any) -> int:
        """A later one takes its place; the bytes it took."""
        size = self.size_of((key,))
        self.writes.pop(key, None)
        self.bytes -= size
        return size

    def rest(self) -> float:
        """Seconds until they are."""
        return max(self.again - time.monotonic(), 0.0) if self.writes else _IDLE

    def begin(self) -> dict[Any, Pending] | None:
        """If they are due: those to be tried, and `sparing` is held. It does not wait for that: emptying the far side
        may take long, or wait for who asks."""
        now = time.monotonic()
        if not self.writes or self.again > now:
            return None
        batch, begun, again = dict(self.writes), self.begun + 1, now + LONGEST
        self.again = now + FIRST
        if not self.sparing.acquire(0.0):  # last: from here on nothing is made
            return None
        self.begun, self.again = begun, again  # if it fails for another reason
        return batch

    def end(self, batch: dict[Any, Pending], left: dict[Any, Pending], failed: bool) -> None:
        self.failed = failed
        self._fruitless = 0 if len(left) < len(batch) else self._fruitless + 1
        pause = min(FIRST * 2**self._fruitless, LONGEST) if self._fruitless else 0.0
        self.again, self.tried = time.monotonic() + pause, self.begun
        self.keep({key: write for key, write in left.items() if self.writes.get(key) is write})

    def join(
        self,
        batch: dict[Any, Pending],
        left: dict[Any, Pending],
        later: Sequence[dict[Any, Pending]],
    ) -> None:
        """A batch was given, of which these are left; `later` ones replace them."""
        if not self.writes or any(write[0] is REMOVED for write in batch.values()):
            self.again, self._fruitless = 0.0, 0  # there may be room
        kept = {key: write for key, write in self.writes.items() if key not in batch}
        kept.update(one for one in left.items() if not any(one[0] in some for some in later))
        self.keep(kept)

    def forget(self, writes: dict[Any, Pending]) -> None:
        self.keep({key: one for key, one in self.writes.items() if writes.get(key) is not one})

    def keep(self, writes: dict[Any, Pending]) -> None:
        self.writes, self.bytes = writes, size_of(writes)

    def told(self, keys: Sequence[Any]) -> FarError:
        """The error that names them."""
        some = ", ".join(f"{key!r:.60}" for key in keys[:_NAMED])
        more = f" and {len(keys) - _NAMED:,} more" if len(keys) > _NAMED else ""
        full = self.error is not None and self.error.errno == errno.ENOSPC
        what = "found no room at the far side" if full else "are not taken by the far side"
        text = f"{len(keys):,} writes {what} ({some}{more}): {self.error}"
        return FarError(errno.ENOSPC if full else errno.EACCES, text)
