"""What lies behind a `Tiered`: the far side, a slow authority that has everything."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

__all__ = ["Far", "Feed", "Listener"]


@runtime_checkable
class Far(Protocol):
    """What a far side has to do. All methods may be called from any thread, and no lock of ours is held.

    Keys are those of a `Cache`. A TTL is seconds, from 0 excluded; None: for ever. What cannot be done is raised:
    `FarError` where trying again may help, `ImageError` where what is stored is damaged. A FarError says by its
    `errno` that a write has no room: ENOSPC, until some is made; EFBIG, never; or that it is not allowed: EACCES. Each
    is of one item alone, or of all of that call's.

    A far side may also have these, and `Tiered` then uses them:

    ``incr(key, delta, initial, ttl) -> int``: adds to an int, atomically; an absent one begins at `initial` +
    `delta` with `ttl`, one that is there keeps its TTL. TypeError where it is no int, OverflowError beyond 64 bits.
    ``add(key, value, ttl) -> bool``: stores if the key is absent, atomically.
    ``touch(key, ttl) -> bool``: gives a key that is there another TTL; whether it was there.
    ``codec``: what turns containers into bytes; with ``write="behind"`` they are kept so until they are written.
    ``scans_once``: true where `scan` never gives a key twice.
    ``count() -> int``, ``clear() -> int`` (how many there were): else by `scan`.
    ``feed``: as in `Feed`.
    """

    def get_many(self, keys: Sequence[Any]) -> dict[Any, tuple[Any, float | None]]:
        """Of the keys that are there: the value, and the seconds left (None: it does not expire)."""

    def put_many(self, items: Sequence[tuple[Any, Any, float | None]]) -> None:
        """Stores (key, value, TTL), in their order. When it returns, all are acknowledged, in the strength that the
        far side states; if it raises, any of them may be stored or not, but none in part."""

    def delete_many(self, keys: Sequence[Any]) -> list[bool]:
        """Removes; for each, in order, whether it was there."""

    def scan(self, cursor: Any = None, count: int = 1000) -> tuple[list[Any], Any]:
        """About `count` keys from a place on, and the place to go on from; None: that was all. From None on, a key
        that is there all the while comes up at least once; one that comes or goes meanwhile may."""

    def sync(self) -> None:
        """When it returns, all that was acknowledged before survives a power cut, as far as the far side can."""

    def close(self) -> None:
        """Gives everything back. Twice is allowed."""


class Listener(Protocol):
    """What a far side with others writing to it tells its near side. Called under no lock
    that a call of the far side's waits for."""

    def changed(self, keys: Sequence[Any] | None) -> None:
        """Somebody wrote or removed these keys (None: any): copies of them are out of date."""

    def lost(self) -> None:
        """From now on changes may go untold: no copy is to be trusted until `restored`."""

    def restored(self) -> None:
        """All changes from now on are told again; what was copied before is out of date."""


@runtime_checkable
class Feed(Protocol):
    """A far side that others write to, and that tells of it."""

    def feed(self, listener: Listener) -> Callable[[], None] | None:
        """Has `listener` told from now on, from a thread of the far side's. Its first call is `restored`, made when
        the channel stands; until then, as after `lost`, nothing read may be kept as a copy. What it returns, if it can,
        ends that: `Tiered` calls it when it is dropped, from wherever that is, so it may wait for nothing."""


_open: weakref.WeakSet[Any] = weakref.WeakSet()


def close_at_exit(far: Any) -> None:
    """Has it closed when the process ends, after whatever is written to it from behind (behind.py, which imports this)
    and while all threads still run: later one that is no more may hold any lock."""
    _open.add(far)


def _at_exit() -> None:
    for far in list(_open):
        try:
            far.close()
        except Exception as error:
            from ._packed import report

            report(error, type(far))


atexit.register(_at_exit)
