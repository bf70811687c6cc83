"""What memory may keep of a far side that changes: the coherence of a `Tiered`.

Three rules, and no lock is held while the far side is asked:

1. A read that misses is a flight of the near cache; whatever changes the key in memory voids it, so what it read
   before the change is returned and not kept.
2. A write changes the key in memory after the far side has it, or `Behind`, always: it lands its value, or takes the
   key out. So a flight that read what was there before is void.
3. Of two writes to a key that overlap, in whatever order the far side had them, neither lands; nor does one that an
   invalidation overlaps. The next read finds out. A write behind overlaps all from when it is queued until the far
   side is known to have it: of two of those the later one lands, and before the far side does more with the key than
   store it, and again afterwards, nothing is on its way.

What cannot be taken out, because memory is short or a key raises, makes all of memory doubtful: nothing in it is
believed until it has been emptied.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from . import forks
from ._packed import UNSET
from .behind import Behind
from .cache import Cache, ObjectCache
from .codec import pack_value
from .errors import BudgetError, ClosedError, KeyLengthError
from .flight import MISS
from .leaders import Threads
from .locks import Lock
from .pending import plain
from .writes import Write, Writes

__all__ = ["ABSENT", "UNFIT", "Found", "NearSide", "Word", "claim"]

ABSENT = object()
"""The far side has no such key."""
UNFIT = (BudgetError, KeyLengthError)
"""Memory can never hold it: it is read from the far side each time."""
_EARLY = 0.01
"""Seconds by which a copy that is to outlast its time is over before the far side tells so: both count whole ms."""
NEGATIVES = 65536
"""Keys known to be absent that are kept at once; some 100 bytes each."""


class Found(NamedTuple):
    """What the far side said."""

    value: Any
    """ABSENT, if there is none."""
    until: float | None = None
    """On `time.monotonic`, when it expires; None: never."""


_claiming = Lock()


def claim(tier: Any, near: Cache | ObjectCache, **parts: Any) -> None:
    """A near cache under two tiers would serve the one's values to the other; of two before one Disk neither would be
    told of the other's writes. And what is in memory beforehand was not read from this far side, or long ago."""
    parts["near"] = near
    with _claiming:
        for what, part in parts.items():
            of = getattr(part, "_tier", None)
            other = None if of is None else of()
            if other is not None and not other._closed:
                raise ValueError(
                    f"{what}={part!r} belongs to another Tiered already: share that one, or close it"
                )
        if held := len(near):  # what has expired is among it: it might be served stale
            raise ValueError(
                f"near={near!r} holds {held:,} entries, and a Tiered begins with an empty memory: near.clear() first, "
                f"the far side has the truth"
            )
        for part in parts.values():
            part._tier = weakref.ref(tier)


class Word:
    """The far side's word that somebody else wrote, and the buffer's of what came of ours. It keeps no tier alive."""

    def __init__(self, tier: Any) -> None:
        self.hush: Callable[[], None] | None = None
        """What `feed` returned."""
        self.tier = weakref.ref(
            tier, self.over
        )  # no finalizer: their registry would keep what an interpreter leaks

    def over(self, _: object) -> None:
        """The tier was dropped, and who tells is there: he has us."""
        if self.hush is not None:
            self.hush()

    def changed(self, keys: Sequence[Any] | None) -> None:
        tier = self.tier()
        if tier is not None:
            try:
                tier._side.changed(keys)
            except ClosedError:
                return
            tier._count("invalidations", 1 if keys is None else len(keys))

    def lost(self) -> None:
        tier = self.tier()
        if tier is not None:
            tier._believe(False)
            if tier._on_error == "raise":
                self.changed(None)

    def restored(self) -> None:
        tier = self.tier()
        if tier is not None:
            with suppress(ClosedError):
                tier._side.changed(None)
            tier._believe(True)

    def refused(self, key: Any) -> None:
        tier = self.tier()
        if tier is not None:
            tier._side.drop([key])

    def answered(self) -> None:
        tier = self.tier()
        if tier is not None:
            tier._answered()


class NearSide:
    """The cache in memory, as flights and writes of a `Tiered` see it (a `flight.Loadable` of `Found`)."""

    def __init__(
        self, cache: Cache | ObjectCache, negative_ttl: float | None, stale: int, front: Any
    ) -> None:
        self.cache, self.stale = cache, stale
        self._front = weakref.ref(front)
        self.trusted = True
        """Whether what is in memory is as the far side has it."""
        self.told = True
        """Whether the far side tells of changes, if others make them."""
        self.fed = False
        """Whether the far side may tell of changes."""
        self.doubted = False
        """Whether something may be in memory that should have been taken out."""
        self._anew, self._settling = False, Lock()
        self.own_ttl = cache._own_ttl()
        self._outlive = bool(stale) and self.own_ttl is None
        """Whether what is over in memory was over on the far side, too, and stays for when that fails."""
        self.behind: Behind | None = None
        """What is on its way to the far side, if writes are."""
        self.absent = None
        if negative_ttl is not None:
            self.absent = ObjectCache(NEGATIVES, ttl=negative_ttl, name="absent")
        self._flight, self._board, self._leave = cache._flight, cache._board, cache._leave
        self._void, self._put = cache._void, cache._land
        self._begin_anew()
        _sides.add(self)

    def _begin_anew(self) -> None:
        """Also in a forked child: whoever held the lock, was writing, or asked for a task, is not there."""
        self._writing = Writes()
        self.under_way = self._writing._of
        self.lock = self._writing.lock
        self.threads = Threads()

    def _ttl(self, until: float | None) -> Any:
        """Of a copy: what is left, or the near cache's own TTL if that is less; None: it is over."""
        if until is None:
            return UNSET
        left = until - time.monotonic()
        if self._outlive and self.fed:
            left -= _EARLY
        if left <= 0:
            return None
        return left if self.own_ttl is None or left < self.own_ttl else UNSET

    # --- reads: what a flight needs --------------------------------------------------------------

    def _once(self, key: Any) -> Any:
        return key

    def get(self, key: Any, default: Any = None) -> Any:
        value = self.cache.get(key, MISS) if self.trusted else MISS
        return default if value is MISS else Found(value)

    def peek(self, key: Any, default: Any = None) -> Any:
        value = self.cache.peek(key, MISS) if self.trusted else MISS
        return default if value is MISS else Found(value)

    def _stale(self, key: Any, default: Any, serve: bool) -> Any:
        value = self.cache._stale(key, MISS, serve)
        return default if value is MISS else Found(value)

    def _arrived(self, key: Any, found: Found) -> Found:
        return found if found.value is ABSENT else Found(self.cache._arrived(key, found.value))

    def _land(self, key: Any, found: Found, ttl: Any, flight: bytearray, stale: int) -> bool:
        """Keeps what a flight found, unless the key changed meanwhile."""
        if found.value is ABSENT:
            if self.absent is not None and found.until is None:
                self.absent[key] = flight  # believed while it is not void
            return False
        if self.absent is not None:  # first: whether it is kept or not, it is there
            self.absent.pop(key, None)
        keep = self._ttl(found.until)
        # over what is here for want of a better one; a later write of ours has voided the flight
        over, kept = not self.trusted, False
        try:
            kept = keep is not None and self._put(
                key, found.value, keep, flight, max(stale, self.stale), over
            )
        except KeyLengthError:  # (a BudgetError is for the flight, which counts it)
            pass
        except Exception as error:
            if not self._beyond(error, found.value):
                raise
        finally:
            if over and not kept and not flight[0]:
                self.forget(key)
        return kept

    def made(self, key: Any, ours: Collection[Any]) -> None:
        """The far side may have what was made for want of it. While one of `ours` is the key's flight nobody else read
        that it is absent; else somebody may have."""
        try:
            flight = self._flight(key)
            if flight is None or flight[0] or flight not in ours:
                self.forget(key)
            elif self.absent is not None:
                self.absent.pop(key, None)
        except ClosedError:  # closed meanwhile: the far side has it
            pass
        except BaseException:
            self.doubt()
            raise

    def _beyond(self, error: Exception, value: Any) -> bool:
        """Whether memory's codec, another than the far side's, does not know the value: that is why it raised."""
        if isinstance(error, (BudgetError, ClosedError, MemoryError)) or not isinstance(
            self.cache, Cache
        ):
            return False
        try:
            pack_value(self.cache._codec, value)
        except MemoryError:
            raise
        except Exception:
            return True
        return False

    def known_absent(self, key: Any) -> bool:
        """Whether the far side said lately that it has no such key, and nobody wrote it since."""
        if self.absent is None or not self.trusted:
            return False
        flight = self.absent.get(key)
        return flight is not None and not flight[0]

    # --- writes ----------------------------------------------------------------------------------

    def write(
        self, keys: Sequence[Any], found: Sequence[Found], call: Callable[..., Any], *args: Any
    ) -> Any:
        """Has `call` tell the far side; then `found` lands, unless that says False, or the keys leave memory."""
        return self._writing.during(keys, self, found, call, *args)

    def wrote(self, keys: Sequence[Any], writes: Sequence[Write], found: Sequence[Found]) -> None:
        """The far side was told: lands what it has now, or takes the keys out of memory."""
        try:
            for i, key in enumerate(keys):
                if found:
                    self.keep(key, found[i].value, found[i].until, writes[i])
                else:
                    self.forget(key)
        except ClosedError:  # closed meanwhile: the far side has it
            pass

    def keep(self, key: Any, value: Any, until: float | None, mark: bytearray) -> bool:
        """The far side has it, or it is on its way there: lands, if `mark` is not set; else the key leaves memory."""
        ttl = UNSET if until is None else self._ttl(until)
        if value is not ABSENT and ttl is not None:
            self._void(key)
            try:
                if self._put(key, value, ttl, mark, self.stale, True):
                    if self.absent is not None:
                        self.absent.pop(key, None)
                    return True
            except UNFIT:  # it will be read from where it is
                pass
            except Exception as error:
                if not self._beyond(error, value):
                    raise
        self.forget(key)
        return False

    def keep_many(self, items: dict[Any, Any], until: float | None, mark: bytearray) -> None:
        """`keep` for some at once."""
        ttl = UNSET if until is None else self._ttl(until)
        void, put, stale = self._void, self._put, self.stale
        if ttl is None:
            for key in items:
                self.forget(key)
            return
        for key, value in items.items():
            void(key)
            try:
                if put(key, value, ttl, mark, stale, True):
                    continue
            except Exception as error:
                if not isinstance(error, UNFIT) and not self._beyond(error, value):
                    raise
            self.forget(key)
        if self.absent is not None:
            self.absent.delete_many(items)

    def void(self, keys: Iterable[Any]) -> None:
        """They are on their way to the far side: nothing lands of what began to be written there before."""
        self._writing.void(list(keys))

    # --- what others changed ---------------------------------------------------------------------

    def forget(self, key: Any) -> None:
        """Takes a key out of memory, with an ``invalidate`` event, and voids what is under way."""
        self.cache._invalidate(key)
        if self.absent is not None:
            self.absent.pop(key, None)

    def drop(self, keys: Iterable[Any]) -> None:
        """Takes keys out of memory, whatever went wrong; else it is not believed."""
        try:
            for key in keys:
                self.forget(key)
        except ClosedError:
            pass
        except BaseException:
            self.doubt()

    def doubt(self) -> None:
        """Nothing in memory is believed until `settle` could empty it. Makes no object."""
        self._anew = True  # first: `settle` looks at it last
        self.doubted = True
        self.believe()

    def believe(self) -> None:
        while True:
            trusted = self.trusted = self.told and not self.doubted
            front = self._front()
            if front is not None:
                front._trust(trusted)
            if trusted == (self.told and not self.doubted):  # else another thread was between
                return

    def settle(self) -> None:
        """Before the far side is asked: what is doubted goes, if it can now."""
        if self.doubted:
            with self._settling:
                self._anew = False
                try:
                    self._empty()
                except MemoryError:
                    return
                self.doubted = False
                if self._anew:
                    self.doubted = True
                self.believe()

    def changed(self, keys: Sequence[Any] | None) -> None:
        """Somebody else wrote these keys (None: any)."""
        try:
            keys = None if keys is None else list(map(plain, keys))
            self._writing.void(keys)
            if self.behind is not None:
                self.behind.void()
            if keys is None:
                self._empty()
            else:
                for key in keys:
                    self._outdated(key)
        except ClosedError:
            raise
        except BaseException:
            self.doubt()
            raise

    def _outdated(self, key: Any) -> None:
        """Or the far side tells that it expired there: then it stays."""
        if self._outlive:
            self._void(key)  # first: what is over when we look has not landed since
            if key not in self.cache:
                if self.absent is not None:
                    self.absent.pop(key, None)
                return
        self.forget(key)

    def clear(self) -> None:
        """Nothing is in memory; flights under way are void."""
        self.changed(None)

    def _empty(self) -> None:
        self.cache.clear()
        if self.absent is not None:
            self.absent.clear()

    def close(self) -> None:
        self.cache.close()
        if self.absent is not None:
            self.absent.close()


_sides: weakref.WeakSet[NearSide] = weakref.WeakSet()


def _forked() -> None:
    for side in list(_sides):
        side._begin_anew()
        if side.fed:
            # By threads that are the parent's: nothing is believed until they have followers.
            side.told = False
            side.believe()


forks.in_child(_forked)
