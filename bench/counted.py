"""The operations of the gate, run under callgrind: a process of its own, started by `gate.py`.

Nothing in it may differ from run to run: the hash seeds are fixed, no housekeeper runs, the collector is off,
and everything is made before it is counted. `os.getppid` is the mark between what counts and what does not:
callgrind writes its sums whenever that is entered.
"""

from __future__ import annotations

import gc
import itertools
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

os.urandom = lambda n: bytes(range(1, n + 1))  # the seeds of the hashes, as `Cache` draws them

import gbcache  # noqa: E402
from gbcache.codec import TypedCodec  # noqa: E402

VALUE = b"v" * 100
LITTLE = {"name": "Ada", "age": 36, "tags": ["a", "b"], "score": 1.5}
Body = Callable[[int], Callable[[], Any]]
"""Makes ready, and gives the call that does the operation so many times."""

fresh = itertools.count()
"""New keys, for everybody."""


def keys(n: int) -> list[str]:
    return [f"key{i:09d}" for i in itertools.islice(fresh, n)]


def one(call: Callable[[Any], Any], over: Iterable[Any]) -> Callable[[], None]:
    def run() -> None:
        for x in over:
            call(x)

    return run


def loop(over: Iterable[Any]) -> Callable[[], None]:
    def run() -> None:
        for _ in over:
            pass

    return run


def two(call: Callable[[Any, Any], Any], over: Iterable[Any]) -> Callable[[], None]:
    def run() -> None:
        for x in over:
            call(x, VALUE)

    return run


def lived(put: Callable[..., Any], over: Iterable[Any]) -> Callable[[], None]:
    def run() -> None:
        for x in over:
            put(x, VALUE, ttl=60)

    return run


def circle(of: list[Any], n: int) -> list[Any]:
    """`n` of them, in turn."""
    return list(itertools.islice(itertools.cycle(of), n))


def packed(**options: Any) -> gbcache.Cache:
    return gbcache.Cache("16MB", housekeeping=False, **options)


def objects(entries: int | None = None, **options: Any) -> gbcache.ObjectCache:
    return gbcache.ObjectCache(entries, housekeeping=False, **options)


def caches(name: str, make: Callable[..., Any]) -> dict[str, Body]:
    """What both caches do."""
    hot = keys(1000)
    held = make()
    held.set_many(dict.fromkeys(hot, VALUE))
    mortal = make(clock=lambda: 0.0)  # where a timer is put, and so the work, depends on the time
    mortal.set_many(dict.fromkeys(hot, VALUE), ttl=60)
    full = make(max_entries=1000) if make is packed else make(1000)
    full.set_many(dict.fromkeys(hot, VALUE))
    growing, loud = make(), make(events="1MiB" if make is packed else 65536)
    loud.set_many(dict.fromkeys(hot, VALUE))
    now = [0.0]
    dying = make(clock=lambda: now[0])

    def gone(n: int) -> Callable[[], Any]:
        out = keys(n)
        held.set_many(dict.fromkeys(out, VALUE))

        def run() -> None:
            for x in out:
                del held[x]

        return run

    def due(n: int) -> Callable[[], Any]:
        dying.set_many(dict.fromkeys(keys(n), VALUE), ttl=5)
        now[0] += 10
        return dying.expire

    def many(n: int) -> Callable[[], Any]:
        return one(held.get_many, [circle(hot, 100)] * (n // 100))

    return {
        f"{name}.get, a hit": lambda n: one(held.get, circle(hot, n)),
        f"{name}.get, a hit with a TTL": lambda n: one(mortal.get, circle(hot, n)),
        f"{name}.get, a miss": lambda n: one(held.get, keys(n)),
        f"{name}.set, overwriting": lambda n: two(held.set, circle(hot, n)),
        f"{name}.set, a new key": lambda n: two(growing.set, keys(n)),
        f"{name}.set, a new key for the oldest": lambda n: two(full.set, keys(n)),
        f"{name}.set with a TTL, overwriting": lambda n: lived(mortal.set, circle(hot, n)),
        f"{name}.set, overwriting, recorded": lambda n: two(loud.set, circle(hot, n)),
        f"{name}, del": gone,
        f"{name}.get_many of 100, a key": many,
        f"{name}.expire, an entry": due,
    }


class Nothing:
    """A far side that holds nothing: what memory has never asks it."""

    def get_many(self, keys: Any) -> dict[Any, Any]:
        return {}

    def put_many(self, items: Any) -> None: ...

    def delete_many(self, keys: Any) -> list[bool]:
        return [False] * len(keys)

    def scan(self, cursor: Any = None, count: int = 1000) -> tuple[list[Any], Any]:
        return [], None

    def sync(self) -> None: ...

    def close(self) -> None: ...


def operations() -> dict[str, Body]:
    counter, tier, codec = packed(), gbcache.Tiered(packed(), Nothing()), TypedCodec()
    hot = keys(1000)
    for key in hot:
        counter[key] = 1
        tier[key] = VALUE
    known = gbcache.memoize(abs)
    first = gbcache.memoize(maxsize=128)(abs)
    once = gbcache.ObjectCache(1000, housekeeping=False)
    data = codec.encode(LITTLE)
    return {
        "loop": lambda n: loop(circle(hot, n)),
        **caches("Cache", packed),
        "Cache.incr": lambda n: one(counter.incr, circle(hot, n)),
        **caches("ObjectCache", objects),
        "ObjectCache.get_or_set, a load": lambda n: two(
            lambda k, v: once.get_or_set(k, int), keys(n)
        ),
        "memoize, a hit": lambda n: one(known, [7] * n),
        "memoize, a miss for the oldest": lambda n: one(first, [next(fresh) for _ in range(n)]),
        "Tiered.get, a near hit": lambda n: one(tier.get, circle(hot, n)),
        "TypedCodec.encode, a small dict": lambda n: one(codec.encode, [LITTLE] * n),
        "TypedCodec.decode, a small dict": lambda n: one(codec.decode, [data] * n),
    }


def main() -> int:
    n = int(sys.argv[1])
    gc.disable()
    mark = os.getppid
    for name, body in operations().items():
        for much in (n, n, 2 * n):  # the first is for what is done once: specialising, growing
            run = body(much)
            mark()
            run()
            mark()
        print(name, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
