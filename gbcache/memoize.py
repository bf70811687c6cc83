"""`memoize`: the face of functools.lru_cache, over a cache that knows times, flights and instances."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import time
import weakref
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar, overload

from ._object import MARK, Holder, Memo
from ._packed import UNSET
from .cache import Cache, ObjectCache
from .flight import MISS, afill, fill
from .locks import Lock
from .mapping import stale_ms
from .units import seconds_of

__all__ = ["CacheInfo", "Memoized", "memoize"]

P = ParamSpec("P")
R = TypeVar("R")
_numbers = itertools.count(1)
_CLEARED = "gbcache.memoize.cleared"
_naming = Lock()
_OWN = ("cache", "cache_info", "cache_clear")
_PASSED_ON = (
    "__wrapped__",
    "__name__",
    "__qualname__",
    "__module__",
    "__annotations__",
    "__defaults__",
    "__isabstractmethod__",
)


class CacheInfo(NamedTuple):
    """As functools has it. Of a method: over all its instances that are alive."""

    hits: int
    misses: int
    maxsize: int | None
    currsize: int


async def _ready(value: Any) -> Any:
    return value


def _ignoring(fn: Callable[..., Any], ignore: Collection[int | str]) -> tuple[int, set[str]]:
    """The arguments the key leaves out: positions as bits, and names."""
    if isinstance(ignore, str) or not isinstance(ignore, Collection):
        raise TypeError(f"ignore={ignore!r} is not a tuple of names and positions")
    parameters = list(inspect.signature(fn).parameters.values())
    placed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    places, names = 0, set()
    for which in ignore:
        if isinstance(which, bool) or not isinstance(which, (int, str)):
            raise TypeError(f"ignore={ignore!r}: {which!r} is not a position or a name")
        for i, parameter in enumerate(parameters):
            named = which == parameter.name and parameter.kind not in stars
            if named or (which == i and parameter.kind in placed):
                names.add(parameter.name)
                places |= (parameter.kind in placed) << i
                break
        else:
            star = stars[0] if isinstance(which, int) else stars[1]
            if not any(parameter.kind is star for parameter in parameters) or which in range(
                -64, 0
            ):
                raise ValueError(f"ignore={ignore!r}: {fn!r} has no argument {which!r}")
            if isinstance(which, int):
                places |= 1 << which
            else:
                names.add(which)
    if places >> 64:
        raise ValueError(f"ignore={ignore!r}: positions from 0 to 63 can be left out")
    return places, names


def _packed(key: Any, typed: bool) -> tuple[Any, ...]:
    """A call's key in what a packed cache can hold: positional and named arguments, and types by name."""
    if not isinstance(key, tuple):
        return (key,), ()
    at = next(
        (i for i, part in enumerate(key) if part is MARK), len(key) // 2 if typed else len(key)
    )
    rest = key[at:] if at < len(key) and key[at] is not MARK else key[at + 1 :]
    pairs = (len(rest) - at) // 3 * 2 if typed else len(rest)
    types = tuple(f"{t.__module__}.{t.__qualname__}" for t in rest[pairs:])
    return (key[:at], rest[:pairs], types) if typed else (key[:at], rest)


class Memoized(Memo, Generic[P, R]):
    """What `memoize` makes of a function; see there. Calls are looked up in C."""

    __wrapped__: Callable[P, R]
    __qualname__: str
    cache: Any
    """Where the results lie: an ObjectCache of its own, or the cache that was given."""
    _maxsize: int | None
    _given_ttl: Any
    _async: bool
    _name: str
    _generation: int
    _nth: int
    _hits: int
    _misses: int
    """Of calls whose results do not lie in a cache of its own."""
    _counting: Lock
    _holders: dict[int, weakref.ref[Holder]]
    _dictless: dict[int, tuple[weakref.ref[Any], Holder]]
    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
        def _dict(self, obj: Any) -> dict[str, Any] | None: ...

    def __new__(
        cls,
        fn: Callable[P, R],
        maxsize: int | None,
        typed: bool,
        ttl: Any,
        key: Callable[..., Any] | None,
        ignore: Collection[int | str],
        stale: float | timedelta,
        cache: Cache | ObjectCache | None,
    ) -> Memoized[P, R]:
        name = getattr(fn, "__qualname__", type(fn).__qualname__)
        slow = inspect.iscoroutinefunction(fn) or (isinstance(fn, Memoized) and fn._async)
        kept = cache is None and maxsize != 0
        self: Memoized[P, R] = super().__new__(
            cls,
            wrapped=fn,
            store=cls._store_of(maxsize, ttl, name) if kept else None,
            key=key,
            places=_ignoring(fn, ignore)[0] if ignore else 0,
            names=_ignoring(fn, ignore)[1] if ignore else None,
            slot=f"{name} (memoized {next(_numbers)})",
            ttl=UNSET if cache is None else ttl,
            stale=stale_ms(stale),
            typed=typed,
            fill=afill if slow else fill,
            ready=_ready if slow else None,
            free=not kept and cache is None,
        )
        functools.update_wrapper(self, fn)
        for its in getattr(fn, "__dict__", ()):
            if hasattr(cls, its) and its not in functools.WRAPPER_ASSIGNMENTS:
                self.__dict__.pop(its, None)  # it would hide what we have of that name
        if slow:
            self._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
            if hasattr(inspect, "markcoroutinefunction"):
                inspect.markcoroutinefunction(self)
        self.cache = self._store if kept else cache
        self._maxsize, self._given_ttl, self._async = maxsize, ttl, slow
        self._hits = self._misses = 0
        self._counting = Lock()
        self._holders, self._dictless = {}, {}
        self._name = f"{getattr(fn, '__module__', '')}.{name}"
        if cache is not None:
            self._generation = self._first_generation()
        return self

    @staticmethod
    def _store_of(maxsize: int | None, ttl: Any, name: str) -> ObjectCache:
        most = None if maxsize is None else min(maxsize, 2**32 - 1)
        return ObjectCache(most, ttl=None if ttl is UNSET else ttl, name=name)

    # --- what C asks -----------------------------------------------------------------------

    def _instance(self, obj: Any) -> Holder | None:
        """The instance's holder, made if need be; None if it can have none: then it is kept by its results,
        as functools has it."""
        held = self._find(obj)
        if held is not None:
            return held
        try:
            owner: Any = weakref.ref(obj)
        except (
            TypeError
        ):  # nothing tells it from one that is at its place later, with its __dict__'s copy
            return None
        content = self._dict(obj)  # where C looks, whatever the class calls its __dict__
        holder = Holder(self._store_of(self._maxsize, self._given_ttl, self._store.name), owner)
        if content is not None:
            held = content.setdefault(self._slot, holder)
            if held is not holder and self._held(obj) is not held:
                content[self._slot] = held = holder  # it came along with a copied __dict__
        else:
            key, instances = id(obj), self._dictless
            # in C: a signal's handler does not cut it off
            mine = weakref.ref(obj, functools.partial(instances.pop, key)), holder
            if (found := instances.setdefault(key, mine))[0]() is not obj:
                instances[key] = found = mine  # of one that was here before, whose end went unheard
            held = found[1]
        assert held is not None
        at, holders = id(held), self._holders
        holders[at] = weakref.ref(held, functools.partial(holders.pop, at))
        return held

    def _stores(self) -> list[ObjectCache]:
        """Its own, and those of the instances that are alive."""
        held = [ref() for ref in list(self._holders.values())]
        return [self._store, *(holder.store for holder in held if holder is not None)]

    def _find(self, obj: Any) -> Holder | None:
        held = self._held(obj)
        if held is None and id(obj) in self._dictless:
            owner, holder = self._dictless.get(id(obj), (None, None))
            held = holder if owner is not None and owner() is obj else None
        return held

    def _shared(self, key: Any, call: Callable[[], Any]) -> Any:
        """A call whose results lie in a cache that was given, or nowhere."""
        if self.cache is None:
            with self._counting:
                self._misses += 1
            return call()
        full = self._full(key)
        value = self.cache.get(full, MISS)
        with self._counting:
            self._hits += value is not MISS
            self._misses += value is MISS
        if value is MISS:
            return self._fill(self.cache, full, call, self._given_ttl, self._stale_ms)
        return self._ready(value) if self._async else value

    def _full(self, key: Any) -> Any:
        if self._given_key is not None:
            return self._name, self._generation, key
        if isinstance(self.cache, ObjectCache):
            return self._name, self._generation, key
        return self._name, self._generation, *_packed(key, self._typed)

    def _first_generation(self) -> int:
        """A number for the first, second ... function of this name over this cache: one that is defined anew
        does not see the old one's results; the same one in another process does, if the cache was kept. What
        `cache_clear` made of it lies in the cache itself."""
        with _naming:
            given: dict[str, int] = self.cache._generations
            given[self._name] = self._nth = given.get(self._name, -1) + 1
        if isinstance(self.cache, ObjectCache):
            return self._nth
        number: int = self.cache.peek((_CLEARED, self._name, self._nth), self._nth)
        return number

    def _next_generation(self) -> int:
        """A number never given before, here or elsewhere. It is younger than all results of the old one, so a
        cache that evicts it has evicted those; and even then the number does not come again."""
        number = time.time_ns()
        if not isinstance(self.cache, ObjectCache):
            self.cache.set((_CLEARED, self._name, self._nth), number, ttl=None)
        return number

    # --- the face of functools ---------------------------------------------------------------

    def cache_info(self) -> CacheInfo:
        """Hits, misses, maxsize and currsize. In a given cache: currsize and maxsize are that cache's."""
        if self._store is None:
            size = 0 if self.cache is None else len(self.cache)
            bound = 0 if self.cache is None else self.cache.max_entries
            return CacheInfo(self._hits, self._misses, bound, size)
        return self._info(self._stores())

    def _info(self, stores: list[ObjectCache]) -> CacheInfo:
        stats = [store.stats() for store in stores]
        hits, misses = sum(s.hits for s in stats), sum(s.misses for s in stats)
        return CacheInfo(hits, misses, stats[0].max_entries, sum(s.entries for s in stats))

    def cache_clear(self) -> None:
        """Forgets every result, of every instance, and the counts. In a given cache: raises the
        generation, so that no old result is found; they leave as others need the room."""
        with self._counting:
            self._hits = self._misses = 0
        if self._store is None:
            if self.cache is not None:
                self._generation = self._next_generation()
            return
        for store in self._stores():
            store._forget()

    def cache_parameters(self) -> dict[str, Any]:
        """`maxsize` and `typed`, as they were given."""
        return {"maxsize": self._maxsize, "typed": self._typed}

    def cache_key(self, *args: Any, **kwargs: Any) -> Any:
        """The key under which the result of such a call lies in `cache`."""
        key = self._key(*args, **kwargs)
        if self._store is None:
            return key if self.cache is None else self._full(key)
        alone = args and self._owns(args[0]) and self._instance(args[0]) is None
        return (args[0], key) if alone else key  # as C keeps it where there can be no holder

    def cache_invalidate(self, *args: Any, **kwargs: Any) -> bool:
        """Forgets the result of such a call; whether there was one. A call under way is not stored."""
        store = self.cache
        if self._store is not None and args and self._owns(args[0]):
            holder = self._instance(args[0])
            store = self._store if holder is None else holder.store
        if store is None:
            return False
        return store.pop(self.cache_key(*args, **kwargs), MISS) is not MISS

    def _of(self, obj: Any, name: str) -> Any:
        """An attribute of the method bound to `obj`: its own results, else what the memo has."""
        if name in ("cache_key", "cache_invalidate"):
            return functools.partial(getattr(self, name), obj)
        if name == "__signature__":
            whole = inspect.signature(self.__wrapped__)
            return whole.replace(parameters=list(whole.parameters.values())[1:])
        if name.startswith("__") and name not in _PASSED_ON:
            raise AttributeError(name)
        holder = self._instance(obj) if name in _OWN and self._store is not None else None
        if holder is None:
            return getattr(self, name)
        if name == "cache_info":
            return lambda: self._info([holder.store])
        return holder.store if name == "cache" else holder.store._forget

    def __reduce__(self) -> str:
        return str(self.__qualname__)

    def __copy__(self) -> Memoized[P, R]:
        return self

    def __deepcopy__(self, memo: object) -> Memoized[P, R]:
        return self

    def __repr__(self) -> str:
        return f"<memoized {self._name}>"


Memo._quicken(Memoized)


class OfClass:
    """A memoized classmethod: the class is the instance."""

    def __init__(self, memo: Memoized[..., Any]) -> None:
        self.__func__ = self.__wrapped__ = memo

    @property
    def __isabstractmethod__(self) -> bool:
        return getattr(self.__func__, "__isabstractmethod__", False)

    def __get__(self, obj: Any, owner: type | None = None) -> Any:
        return self.__func__.__get__(type(obj) if owner is None else owner)


@overload
def memoize(maxsize: Callable[P, R], /) -> Memoized[P, R]: ...
@overload
def memoize(
    maxsize: int | None = 128,
    typed: bool = False,
    *,
    ttl: float | timedelta | None = ...,
    key: Callable[..., Any] | None = None,
    ignore: Collection[int | str] = (),
    stale: float | timedelta = 0,
    cache: Cache | ObjectCache | None = None,
) -> Callable[[Callable[P, R]], Memoized[P, R]]: ...
def memoize(
    maxsize: Any = 128,
    typed: bool = False,
    *,
    ttl: Any = UNSET,
    key: Callable[..., Any] | None = None,
    ignore: Collection[int | str] = (),
    stale: float | timedelta = 0,
    cache: Cache | ObjectCache | None = None,
) -> Any:
    """Keeps the results of a function: `functools.lru_cache` with times, flights and instances.

    ``@memoize`` or ``@memoize(maxsize=1000, ttl=60)``, on functions, methods, static and class methods,
    and on ``async def``. Of all threads and tasks that miss a call, one makes it and the others get its
    result, or its exception, which is not kept.

    A method's results belong to the instance: each has `maxsize` of its own (and an index of 26 kB from its
    first call on), they lie in its ``__dict__`` as a cached_property's do, and go with it, also if they
    refer to it. An instance without a ``__dict__`` is referred to weakly (then a result that refers to it
    keeps it); one that can have no weak reference is kept by its results, as in functools. Put
    `memoize` outside `classmethod`; within it, and within `property`, it does what functools does.

    Parameters
    ----------
    maxsize : int or None
        The most results kept, the least recently used go first; None: no bound; 0: none are kept.
    typed : bool
        Whether ``f(3)`` and ``f(3.0)`` are told apart.
    ttl : float or timedelta, optional
        Seconds a result is kept. None: for ever. Not given: for ever, or as the given `cache` has it.
    key : callable, optional
        ``key(*args, **kwargs)``: what stands for a call, hashable. A method's sees the instance too.
        Not given: as functools does it; ``f(a=1, b=2)`` and ``f(b=2, a=1)`` are two calls.
    ignore : names and positions
        Arguments that make no difference.
    stale : float or timedelta
        For so long after its `ttl` a result is given to those who call while one of them makes it anew,
        and where that raises.
    cache : Cache or ObjectCache, optional
        Where the results are to lie, shared with others; `maxsize` then counts for nothing. In a `Cache`
        they lie in its byte budget, under (qualified name, generation, arguments): arguments and results
        must be what it can hold. A method then needs `key`.

    The result has `cache_info cache_clear cache_parameters __wrapped__` as functools', and `cache`,
    `cache_key(*args, **kwargs)`, `cache_invalidate(*args, **kwargs)`. Cost of a hit: a look-up; an int or
    str alone needs no tuple.

    Raises TypeError for arguments of the wrong type, ValueError for times that are not above 0; in a
    call, TypeError for arguments that cannot be hashed.
    """
    if callable(maxsize) or isinstance(maxsize, (staticmethod, classmethod)):
        return _wrap(maxsize, 128, False, UNSET, None, (), 0, None)
    if maxsize is not None and not isinstance(maxsize, int):
        raise TypeError(f"maxsize={maxsize!r} is not an int, None, or the function itself")
    if key is not None and (not callable(key) or typed or ignore):
        raise TypeError(f"key={key!r} must be callable, and goes with neither typed= nor ignore=")
    if cache is not None and not isinstance(cache, (Cache, ObjectCache)):
        raise TypeError(f"cache={cache!r} is not a Cache or an ObjectCache")
    if ttl is not UNSET and ttl is not None:
        seconds_of(ttl)
    stale_ms(stale)
    bound = None if maxsize is None else max(maxsize, 0)
    return lambda fn: _wrap(fn, bound, bool(typed), ttl, key, ignore, stale, cache)


def _wrap(fn: Any, *options: Any) -> Any:
    if isinstance(fn, staticmethod):
        return staticmethod(_wrap(fn.__func__, *options))
    if isinstance(fn, classmethod):
        return OfClass(_wrap(fn.__func__, *options))
    if not callable(fn):
        raise TypeError(f"memoize: {fn!r} is not callable")
    return Memoized(fn, *options)
