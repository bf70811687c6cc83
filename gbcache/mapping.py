"""What both caches are, whatever lies behind: views in the order of use, loading, no copies, a context."""

from __future__ import annotations

import asyncio
from collections.abc import (
    Awaitable,
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    MutableMapping,
    ValuesView,
)
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from . import flight
from ._packed import UNSET
from .events import Event
from .locks import Lock
from .notify import Hub, Subscription
from .units import seconds_of
from .watch import Watch

__all__ = ["Common", "Loadable"]


class Loadable(Protocol):
    """What a flight needs of a cache."""

    def get(self, key: Any, default: Any = None) -> Any: ...
    def peek(self, key: Any, default: Any = None) -> Any: ...
    def _once(self, key: Any) -> Any: ...
    def _stale(self, key: Any, default: Any, serve: bool) -> Any: ...
    def _land(self, key: Any, value: Any, ttl: Any, flight: bytearray, stale: int) -> bool: ...
    def _board(self, key: Any, mine: Any, over: Any) -> Any: ...
    def _leave(self, flight: bytearray, loaded: bool, failed: bool) -> None: ...
    def _arrived(self, key: Any, value: Any) -> Any: ...


class _Keys(KeysView[Any]):
    _mapping: Common

    def __iter__(self) -> Iterator[Any]:
        return self._mapping._walk(0)


class _Values(ValuesView[Any]):
    _mapping: Common

    def __iter__(self) -> Iterator[Any]:
        return self._mapping._walk(1)

    def __contains__(self, value: object) -> bool:
        return any(value is held or value == held for held in self)


class _Items(ItemsView[Any, Any]):
    _mapping: Common

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping._walk(2)

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        absent = object()
        held = self._mapping.peek(item[0], absent)
        return held is not absent and (held is item[1] or held == item[1])


Figures = tuple[dict[str, int], dict[str, int], dict[str, int], dict[str, int]]
_C = TypeVar("_C", bound="Common")
_making = Lock()


def stale_ms(stale: float | timedelta) -> int:
    """`stale=` in ms; 0 for none."""
    if isinstance(stale, (int, float, timedelta)) and not isinstance(stale, bool) and not stale:
        return 0
    if stale is None or (isinstance(stale, (int, float)) and stale < 0):
        raise ValueError(f"stale={stale!r} is not seconds from 0, or a timedelta")
    seconds = seconds_of(stale, "stale")
    ms = int(seconds * 1000.0 + 0.5)
    if ms >= 2**32:
        raise ValueError(f"stale={stale!r} is longer than 49 days")
    return ms or 1


class Common(MutableMapping[Any, Any]):
    """What both caches are: views in the order of use, no copies, a context."""

    __hash__ = None  # type: ignore[assignment]
    _way_out = "take dict(cache.items())"
    name: str
    _flights: dict[Any, flight.Flight]
    _generations: dict[str, int]
    """Of memoized functions whose results lie here."""
    _hub: Hub | None = None
    _events_room: int

    if TYPE_CHECKING:  # what the stores are

        def _walk(self, what: int) -> Iterator[Any]: ...
        def _figures(self) -> Figures: ...
        def _seq(self) -> int: ...
        def close(self) -> None: ...
        def peek(self, key: Any, default: Any = None) -> Any: ...
        def get(self, key: Any, default: Any = None) -> Any: ...
        def _once(self, key: Any) -> Any: ...
        def _stale(self, key: Any, default: Any, serve: bool) -> Any: ...
        def _land(self, key: Any, value: Any, ttl: Any, flight: bytearray, stale: int) -> bool: ...
        def _flight(self, key: Any) -> Any: ...
        def _board(self, key: Any, mine: Any, over: Any) -> Any: ...
        def _leave(self, flight: bytearray, loaded: bool, failed: bool) -> None: ...
        def _arrived(self, key: Any, value: Any) -> Any: ...

    def keys(self) -> KeysView[Any]:
        """A view of the keys; iterating it is least recently used first, and no use."""
        return _Keys(self)

    def values(self) -> ValuesView[Any]:
        """A view of the values; iterating it is least recently used first, and no use."""
        return _Values(self)

    def items(self) -> ItemsView[Any, Any]:
        """A view of the pairs; iterating it is least recently used first, and no use."""
        return _Items(self)

    def get_or_set(
        self,
        key: Any,
        fn: Callable[[], Any],
        ttl: float | timedelta | object | None = UNSET,
        stale: float | timedelta = 0,
    ) -> Any:
        """The value of `key`; if it is absent, ``fn()``, stored with `ttl` (not given: the cache's own).

        One flight per key: of all threads and tasks that miss, one calls `fn`, the others get its result
        or its exception, which is not stored. No lock is held meanwhile. Who would wait for himself, in
        however many steps, calls `fn` himself; so does a call on the very event loop that the load needs.
        If anybody sets, deletes or clears the key meanwhile (or one of the same hash), the result is
        returned and not stored. A thread that `fn` starts, waits for, and that asks for the same key is
        beyond this: give it a copy of the context (``contextvars.copy_context().run``).

        `stale`, in seconds or a timedelta: for so long after its deadline the value is kept, unseen by
        plain reads. A `get_or_set` with `stale=` that finds it there loads anew if nobody else is
        loading, and else returns it at once; if the load raises, it returns the old value too
        (`stats().load_errors` counts). `len` counts such entries. At most 49 days.

        A value that can never fit is returned all the same; for a key that is too long KeyLengthError is
        raised, and `fn` not called. Cost on a hit: a `get` and a call.
        """
        return flight.load(
            self, key, fn, ttl, 0 if stale.__class__ is int and not stale else stale_ms(stale)
        )

    async def aget_or_set(
        self,
        key: Any,
        fn: Callable[[], Awaitable[Any]],
        ttl: float | timedelta | object | None = UNSET,
        stale: float | timedelta = 0,
    ) -> Any:
        """`get_or_set` for coroutines: ``await fn()``; flights are shared with `get_or_set`, across loops.

        If the task that loads is cancelled, one of those who wait takes over.
        """
        return await flight.aload(
            self, key, fn, ttl, 0 if stale.__class__ is int and not stale else stale_ms(stale)
        )

    # --- events --------------------------------------------------------------------------------

    def subscribe(
        self,
        fn: Callable[[Event], Any],
        *,
        kinds: Iterable[str] | str | None = None,
        prefix: str | bytes | None = None,
        values: bool = False,
        delivery: str | asyncio.AbstractEventLoop = "thread",
        weak: bool = False,
    ) -> Subscription:
        """Has ``fn(event)`` called for every change from now on, in the order of `event.seq`.

        `kinds` (all if not given) and `prefix` (of str or of bytes keys; `clear` passes it) are compared in
        C: what they reject costs no call. `values` has the events carry values (a Cache's up to 8 kB each, and no more
        than a quarter of the ring; longer ones are OMITTED). `fn` is
        called by one thread that all caches share (so that one that takes its time delays all who
        are called by it); with ``delivery="inline"`` by whoever made the change,
        after the operation (or by another who is delivering at that moment); with ``"asyncio"`` on the
        running loop, or on the loop given, where it may be a coroutine function.

        `fn` may use any cache, close this one, subscribe and unsubscribe. What it raises goes to
        `sys.unraisablehook` and is counted, and stops nobody. If it is slower than changes come, it is told
        ``lost`` with their number; it never holds up a writer. `weak` keeps no reference to `fn`.

        Recording lies in the cache's budget: the first reader makes a ring, where `events=` did not. A
        subscriber belongs to the process it was made in: a forked child has none. Cost: a change is
        recorded in some 60 ns.
        """
        return self._events().subscribe(fn, kinds, prefix, values, delivery, weak)

    def watch(
        self,
        *,
        kinds: Iterable[str] | str | None = None,
        prefix: str | bytes | None = None,
        values: bool = False,
        since: int | None = None,
    ) -> Watch:
        """The changes from now on as an iterator that waits, or an async iterator; a context manager.

        `since`: begin with what is still kept of the events with a higher number. The rest is as in
        `subscribe`; `read` and `aread` of what is returned give many events at once. Each watch has a file
        descriptor, and each change looks at each watch (1 to 4 ns): for thousands, let one tell the others.
        """
        return self._events().watch(kinds, prefix, values, since)

    def changes(
        self,
        since: int = 0,
        *,
        kinds: Iterable[str] | str | None = None,
        prefix: str | bytes | None = None,
    ) -> Iterator[Event]:
        """The recorded changes with a number above `since`, up to now: first a `lost`, if some are gone.

        Empty if nothing was recorded: nobody listened, and the cache has no `events=`. Values are there if
        somebody wanted them when they were recorded.
        """
        return self._events().changes(since, kinds, prefix)

    @property
    def last_seq(self) -> int:
        """The number of the last change recorded; 0 if none was."""
        return self._seq()

    def _events(self) -> Hub:
        if self._hub is None:
            with _making:
                if self._hub is None:
                    self._hub = Hub(self, self._events_room, False)
        elif self._hub._cache() is None:
            self._hub.own(self)
        return self._hub

    @property
    def max_entries(self) -> int | None:
        """The bound on the count, None if there is none."""
        return self._figures()[2]["max_entries"] or None

    @property
    def used_bytes(self) -> int:
        """Bytes in use: everything but free blocks."""
        _, parts, sizes, _ = self._figures()
        return sizes["total"] - parts["free"]

    def copy(self) -> NoReturn:
        """Refused: a cache is not a value."""
        raise TypeError(f"a {type(self).__name__} cannot be copied: {self._way_out}")

    def __copy__(self) -> NoReturn:
        self.copy()

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.copy()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled: {self._way_out}")

    def __enter__(self: _C) -> _C:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
