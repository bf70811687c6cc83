"""A write on its way to a far side, and how some are given to it: as many as it has room for."""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from sys import getsizeof
from typing import Any, NamedTuple, NoReturn

from .codec import Codec, base_key, encode_key
from .errors import FarError
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
    "bare",
    "check",
    "frozen",
    "merge",
    "plain",
    "size_of",
    "tell",
    "value_of",
    "young",
]

_ATOMS = frozenset({bytes, str, int, float, bool, type(None)})
_EACH = 250
"""Bytes a pending write takes beside key and value."""
_PLAIN_KEYS = frozenset({str, bytes})
_KEYS = frozenset({str, bytes, int, float, bool, type(None)})
_NAMED = 3
FIRST, LONGEST = 0.02, 1.0
"""Seconds between two attempts while the far side fails: doubling, from and to."""
_IDLE = 1.0
_OTHERS = 9
"""Of the time that an attempt at what stands aside takes, so much goes to others before the next."""
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


def young(write: Pending) -> Pending:
    """The same, come now."""
    return (*write[:3], time.monotonic(), write[4])


def bare(error: FarError | None) -> FarError | None:
    """Without tracebacks: their frames keep all that the far side was given."""
    todo: list[BaseException | None] = [error]
    for one in todo:
        if one is not None and one.__traceback__ is not None:
            one.__traceback__ = None
            todo += [one.__cause__, one.__context__]
    return error


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
    """The first two are one. As within one: a later write of a key takes the place of the one before, and its age."""
    merged = dict(generations[0])
    for key, write in generations[1].items():
        old = merged.get(key)
        merged[key] = write if old is None else (*write[:3], old[3], write[4])
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
        self.failed = False  # some of the last, for another reason
        self.doubted: set[Any] = set()
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

    def end(
        self,
        batch: dict[Any, Pending],
        rest: dict[Any, Pending],
        left: dict[Any, Pending],
        took: float,
    ) -> None:
        """In so many seconds; the rest is tried first the next time, and after a while in which others are."""
        still = {**rest, **left}
        self.failed = bool(rest)
        self._fruitless = 0 if len(still) < len(batch) else self._fruitless + 1
        pause = min(FIRST * 2**self._fruitless, LONGEST) if self._fruitless else 0.0
        self.again, self.tried = time.monotonic() + max(pause, took * _OTHERS), self.begun
        self.keep({key: write for key, write in still.items() if self.writes.get(key) is write})

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
