"""What `drift.py` calls, too: flights, and what is built on a cache: memoized functions, a `Tiered`."""

# ruff: noqa: E501
from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from drift_calls import BadHash, Call, Clock, boom, interrupt, raises


def flights(make: Callable[..., Any]) -> dict[str, Call]:
    import asyncio
    import threading
    from concurrent.futures import ThreadPoolExecutor

    import gbcache

    clock = Clock()
    c = make(clock=clock)
    c["hit"] = 1
    Z, I = ZeroDivisionError, KeyboardInterrupt  # noqa: E741
    loop = asyncio.new_event_loop()
    pool = ThreadPoolExecutor(1)
    pool.submit(int).result()

    def gone(value: Any = None) -> None:
        c.pop("k", None)

    async def fine() -> int:
        await asyncio.sleep(0)
        return 5

    async def bad() -> None:
        await asyncio.sleep(0)
        boom()

    def go(call: Callable[[], Any]) -> Any:
        async def main() -> Any:
            return await call()

        return loop.run_until_complete(main())

    def get(fn: Any, **options: Any) -> Any:
        return c.aget_or_set("k", fn, **options)

    def past(*calls: Call) -> None:
        c.get_or_set("k", lambda: 5, ttl=1, stale=50)
        clock.now += 2
        for call in calls:
            call()
        clock.now = 1000.0
        gone()

    def follow(load: Call, *errors: type[BaseException]) -> None:
        begun, going = threading.Event(), threading.Event()

        def slow() -> Any:
            begun.set()
            going.wait(10)
            return load()

        leader = pool.submit(c.get_or_set, "k", slow)
        begun.wait(10)
        timer = threading.Timer(0.001, going.set)
        timer.start()
        for wait in (lambda: c.get_or_set("k", lambda: 6), leader.result):
            with contextlib.suppress(errors):
                wait()
        timer.join()
        gone()

    async def crowd(fn: Any) -> None:
        await asyncio.gather(*[get(fn) for _ in range(4)], return_exceptions=True)

    async def cancel(who: int) -> None:
        tasks = [asyncio.ensure_future(get(fine)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[who].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def same_loop() -> None:
        task = asyncio.ensure_future(get(fine))
        await asyncio.sleep(0)
        c.get_or_set("k", lambda: 7)
        await task

    def close() -> None:
        m = make()
        m.get_or_set("k", m.close)

    def unawaited() -> None:
        coroutine = get(fine)
        coroutine.send(None)
        coroutine.close()

    return {
        "hit": lambda: c.get_or_set("hit", boom), "load": lambda: (c.get_or_set("k", lambda: 5, ttl=5), gone()),
        "raise": raises(lambda: c.get_or_set("k", boom), Z), "interrupt": raises(lambda: c.get_or_set("k", interrupt), I),
        "void": lambda: (c.get_or_set("k", lambda: c.set("k", 1)), gone()), "delete": lambda: c.get_or_set("k", gone),
        "own key": lambda: (c.get_or_set("k", lambda: c.get_or_set("k", lambda: 5)), gone()),
        "own key raises": raises(lambda: c.get_or_set("k", lambda: c.get_or_set("k", boom)), Z),
        "nested": lambda: (c.get_or_set("k", lambda: c.get_or_set("j", lambda: 5)), gone(), c.pop("j")),
        "bad ttl": raises(lambda: c.get_or_set("k", lambda: 5, ttl=-1), ValueError), "bad key": raises(lambda: c.get_or_set([], boom), TypeError),
        "bad stale": lambda: [raises(lambda s=s: c.get_or_set("k", boom, stale=s), TypeError, ValueError)() for s in (-1, "x", True, float("nan"))],
        "bad hash": raises(lambda: c.get_or_set(BadHash(), boom), Z, TypeError), "closed by the load": close,
        "stale: refresh": lambda: past(lambda: c.get_or_set("k", lambda: 6, stale=5)), "stale: served": lambda: past(lambda: c.get_or_set("k", boom, stale=5)),
        "stale: interrupt": lambda: past(raises(lambda: c.get_or_set("k", interrupt, stale=5), I)),
        "stale: own key": lambda: past(lambda: c.get_or_set("k", lambda: c.get_or_set("k", boom, stale=5), stale=5)),
        "stale: looks": lambda: past(lambda: (c.get("k"), c.peek("k"), "k" in c, list(c.items()), c.touch("k"), c.get_many(["k"]), c.expire())),
        "stale: pop": lambda: past(lambda: c.pop("k", 1)), "stale: add": lambda: past(lambda: c.add("k", 1)), "stale: incr": lambda: past(lambda: c.incr("k")),
        "stale: async": lambda: past(lambda: go(lambda: get(fine, stale=5))), "stale: async served": lambda: past(lambda: go(lambda: get(bad, stale=5))),
        "follow": lambda: follow(lambda: 5), "follow an error": lambda: follow(boom, Z), "follow an interrupt": lambda: follow(interrupt, I),
        "async load": lambda: (go(lambda: get(fine, ttl=5)), gone()), "async hit": lambda: go(lambda: c.aget_or_set("hit", boom)),
        "async raise": raises(lambda: go(lambda: get(bad)), Z), "async raise at once": raises(lambda: go(lambda: get(boom)), Z),
        "async of a plain function": lambda: (go(lambda: get(lambda: 5)), gone()), "async crowd": lambda: (go(lambda: crowd(fine)), gone()),
        "async crowd, error": lambda: go(lambda: crowd(bad)), "async cancel the leader": lambda: (go(lambda: cancel(0)), gone()),
        "async cancel a follower": lambda: (go(lambda: cancel(1)), gone()), "async void": lambda: (go(lambda: get(lambda: asyncio.sleep(0, c.set("k", 1)))), gone()),
        "async same loop": lambda: (go(same_loop), gone()), "async let fall": unawaited, "async bad stale": raises(lambda: go(lambda: get(fine, stale=-1)), ValueError),
        "unstorable": raises(lambda: c.get_or_set("k", object), TypeError) if isinstance(c, gbcache.Cache) else lambda: (c.get_or_set("k", object), gone()),
    }  # fmt: skip


def memoized() -> dict[str, Call]:
    import asyncio

    import gbcache

    fn = gbcache.memoize(maxsize=8, ttl=50)(lambda a, *more, **named: boom() if a == "bad" else [a])
    packed = gbcache.memoize(cache=gbcache.Cache("1MB"))(lambda a, b=1: (a, b))
    count = iter(range(10**9))

    class Owner:
        @gbcache.memoize(maxsize=8)
        def method(self, a: int) -> list[int]:
            return [a]

    @gbcache.memoize(maxsize=8)
    async def later(a: int) -> list[int]:
        await asyncio.sleep(0)
        return [a]

    owner, loop = Owner(), asyncio.new_event_loop()
    return {
        "hit": lambda: (fn(1), fn("a"), fn(1, 2), fn(1, x=2), fn(None)), "miss, evict": lambda: fn(next(count)),
        "raise": raises(lambda: fn("bad"), ZeroDivisionError), "no hash": raises(lambda: fn([]), TypeError),
        "bad hash": raises(lambda: fn(BadHash()), ZeroDivisionError, TypeError), "no argument": raises(lambda: fn(), TypeError),
        "invalidate": lambda: (fn(1), fn.cache_invalidate(1), fn.cache_invalidate("none")), "clear": lambda: (fn(1), fn.cache_clear()),
        "figures": lambda: (fn.cache_info(), fn.cache_parameters(), fn.cache_key(1, x=2), fn.__wrapped__),
        "packed": lambda: (packed(1), packed(1, b=next(count)), packed.cache_invalidate(1)),
        "method": lambda: (owner.method(1), Owner.method(owner, 2)), "owner that goes": lambda: Owner().method(1),
        "made": lambda: (m := gbcache.memoize(maxsize=3)(lambda a: a), m(1), m(2)),
        "async": lambda: (loop.run_until_complete(later(1)), loop.run_until_complete(later(next(count)))),
    }  # fmt: skip


def tiers() -> dict[str, Call]:
    import fars

    import gbcache

    far = fars.Full()
    far.calls = type("Forget", (list,), {"append": lambda self, call: None})()
    c = gbcache.Tiered(gbcache.Cache("1MB"), far)
    c["a"], c["n"] = [1], 5
    many = {f"k{i}": i for i in range(20)}

    def out_of_order(call: Call) -> None:
        far.failing = True
        try:
            raises(call, gbcache.FarError)()
        finally:
            far.failing = False

    def past_near(call: Call) -> None:
        c.near.clear()
        call()

    return {
        "get": lambda: (c.get("a"), c.get("none"), c["a"], "a" in c), "get from far": lambda: past_near(lambda: c.get("a")),
        "missing": raises(lambda: c["none"], KeyError), "get_many": lambda: past_near(lambda: c.get_many(["a", "n", "none"])),
        "set": lambda: (c.set("s", [1], ttl=5), c.pop("s")), "set_many": lambda: (c.set_many(many), c.delete_many(many)),
        "add, incr, touch": lambda: (c.add("a", 1), c.incr("n"), c.touch("a", ttl=50), c.add("x", 1), c.pop("x")),
        "get_or_set": lambda: (c.get_or_set("g", lambda: 5), c.pop("g")), "load fails": raises(lambda: c.get_or_set("g", boom), ZeroDivisionError),
        "far fails": lambda: [out_of_order(f) for f in (lambda: c.set("a", [1]), lambda: past_near(lambda: c.get("b")), lambda: c.pop("a"))],
        "no hash": raises(lambda: c.get([]), TypeError), "figures": lambda: (c.stats(), repr(c)), "put back": lambda: c.set("a", [1]),
    }  # fmt: skip
