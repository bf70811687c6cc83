"""Reference drift: every public call and error path, a thousand times, under a debug interpreter.

`make drift`. Installs Debian's python3.11-dbg where it is missing (as root), builds the extension for it into
build/dbg, and measures `sys.gettotalrefcount()`: what a call leaves behind is 0. Each call has a forked
child to itself, so that one that crashes (a debug interpreter asserts a lot) names itself too.
"""

# ruff: noqa: E501
from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEBUG = "python3.11-dbg"
BUILD = ROOT / "build" / "dbg"
REPEATS = 1000
LIMIT = 0.01

Call = Callable[[], Any]
KEPT: list[Any] = []
"""Event loops and pools that a child makes and leaves to its end."""


def bootstrap() -> None:
    """Builds for the debug interpreter, then becomes it."""
    if not shutil.which(DEBUG):
        if os.geteuid() != 0:
            raise SystemExit(
                f"drift: {DEBUG} is missing: apt-get install {DEBUG} libpython3.11-dev"
            )
        subprocess.run(["apt-get", "update", "-q"], check=True)
        packages = [DEBUG, "libpython3.11-dbg", "libpython3.11-dev"]
        subprocess.run(
            ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages], check=True
        )
    site = sysconfig.get_path("purelib")  # setuptools, Cython and msgpack, as pure Python
    env = {**os.environ, "PYTHONPATH": site, "GB_CFLAGS": "-O1 -g", "PYTHONDONTWRITEBYTECODE": "1"}
    env["MSGPACK_PUREPYTHON"] = "1"  # a release build's references are not counted
    build = [
        DEBUG,
        "setup.py",
        "-q",
        "build",
        "--build-lib",
        BUILD,
        "--build-temp",
        f"{BUILD}-temp",
    ]
    subprocess.run(list(map(str, build)), check=True, cwd=ROOT, env=env)
    env["PYTHONPATH"] = f"{BUILD}{os.pathsep}{site}"
    os.execvpe(DEBUG, [DEBUG, "-W", "error", str(Path(__file__).resolve()), *sys.argv[1:]], env)


def raises(call: Call, *errors: type[BaseException]) -> Call:
    def expecting() -> None:
        try:
            call()
        except errors:
            return
        raise AssertionError("it did not raise")

    return expecting


def boom(*_: Any) -> Any:
    raise ZeroDivisionError


def interrupt() -> Any:
    raise KeyboardInterrupt


class Clock:
    now: Any = 1000.0

    def __call__(self) -> float:
        if self.now is None:
            boom()
        return self.now


class BadHash:
    __hash__ = boom  # type: ignore[assignment]


class BadEq:
    __eq__ = boom  # type: ignore[assignment]

    def __hash__(self) -> int:
        return 7


class BadFloat:
    __float__ = boom


class Value:
    pass


def plain(make: Callable[..., Any], packed: bool) -> dict[str, Call]:
    """The verbs. `a` is there, `n` is 5, `t` has a TTL; each call leaves it so."""
    from datetime import timedelta

    import gbcache

    clock = Clock()
    c = make(clock=clock)
    keep = [c, clock]
    value = ["value"] if packed else Value()
    c["a"], c["n"] = value, 5
    c.set("t", value, ttl=50)
    many = {f"k{i}": i for i in range(40)}
    other = make(clock=clock)
    other["x"] = 1
    closed = make()
    closed["x"] = 1
    closed.close()

    class Default(type(c)):  # type: ignore[misc]
        def __missing__(self, key: Any) -> Any:
            return key

    default = Default("1MB") if packed else Default()
    never = type(c).__new__(type(c))
    E, K, T, V = Exception, KeyError, TypeError, ValueError
    Z, Closed = ZeroDivisionError, gbcache.ClosedError

    def at(now: Any, *calls: Call) -> None:
        before, clock.now = clock.now, now
        try:
            for call in calls:
                call()
        finally:
            clock.now = before

    def expired(key: str, *calls: Call) -> None:
        c.set(key, value, ttl=1)
        at(1005.0, *calls)
        c.pop(key, None)

    return {
        "get": lambda: (c.get("a"), c.get("none"), c.get("none", value), c.get(key="a", default=1)),
        "[]": lambda: (c["a"], c["t"]), "[] missing": raises(lambda: c["none"], K),
        "__missing__": lambda: default["x"], "peek": lambda: (c.peek("a"), c.peek("none", 5)),
        "in, len, bool": lambda: ("a" in c, "none" in c, len(c), bool(c)),
        "iterate": lambda: (list(c), list(c.keys()), list(c.values()), list(c.items())),
        "iterate halfway": lambda: next(iter(c.items())), "==": lambda: (c == {"a": 1}, c == other, c != 5),
        "views": lambda: (("a", 1) in c.items(), 1 in c.values(), c.keys() & {"a"}, len(c.items())),
        "get_many": lambda: (c.get_many(["a", "t", "none"] * 20), c.get_many(iter("ab")), c.get_many([])),
        "set": lambda: (c.set("a", value), c.set(key="a", value=value, ttl=None), c.__setitem__("a", value)),
        "set ttl": lambda: (c.set("t", value, ttl=5), c.set("t", value, ttl=timedelta(1)), c.set("t", value, ttl=50.5)),
        "set other shapes": lambda: (c.set("s", 1), c.set("s", 1, ttl=5), c.set("s", "x" * 99), c.pop("s")),
        "add": lambda: (c.add("a", 1), c.add("new", value, ttl=5), c.pop("new")),
        "set_many": lambda: (c.set_many(many, ttl=5), c.set_many(list(many.items())), c.delete_many(many)),
        "update": lambda: (c.update(many), c.update([("k", 1)], z=1), c.delete_many([*many, "k", "z"])),
        "delete_many": lambda: c.delete_many(["none", 1.5]), "del": lambda: (c.set("d", value), c.__delitem__("d")),
        "del missing": raises(lambda: c.__delitem__("none"), K), "pop": lambda: (c.set("p", value), c.pop("p"), c.pop("p", value)),
        "pop missing": raises(lambda: c.pop("none"), K), "setdefault": lambda: (c.setdefault("a", 1), c.setdefault("s", value), c.pop("s")),
        "popitem": lambda: (other.popitem(), other.set("x", value)),
        "popitem of nothing": raises(lambda: default.popitem(), K),
        "popitem over a dead one": raises(lambda: (default.clear(), default.set("x", value, ttl=0.001), __import__("time").sleep(0.002), default.popitem()), K),
        "incr": lambda: (c.incr("n", 10**6), c.incr("n", delta=-(10**6)), c.incr("i", 1, initial=7), c.pop("i")),
        "incr of no int": raises(lambda: c.incr("a"), T), "incr by no int": raises(lambda: c.incr("n", 1.5), T),
        "touch": lambda: (c.touch("t", ttl=60), c.touch("none"), c.touch("a", ttl=5), c.touch("a", ttl=None)),
        "ttl, entry": lambda: (c.ttl("t"), c.ttl("a"), c.entry("t"), c.entry("a")),
        "ttl missing": raises(lambda: c.ttl("none"), K), "entry missing": raises(lambda: c.entry("none"), K),
        "figures": lambda: (c.stats(), c.stats().hit_ratio, c.memory(), str(c.memory()), repr(c), c.max_entries, c.used_bytes, c.closed),
        "check, expire": lambda: (c.check(), c.expire()), "clear": lambda: (other.clear(), other.set("x", 1)),
        "resize": lambda: (other.resize("900kB"), other.resize("1MB")) if packed else (other.resize(5), other.resize(500)),
        "evict": lambda: (other.resize("1MB", max_entries=3) if packed else other.resize(3), other.set_many(many), other.resize("1MB", max_entries=99) if packed else other.resize(99)),
        "due: get": lambda: expired("e", lambda: c.get("e")), "due: pop": lambda: expired("e", lambda: c.pop("e", 1)),
        "due: set": lambda: expired("e", lambda: c.set("e", 2)), "due: add": lambda: expired("e", lambda: c.add("e", 2, ttl=5)),
        "due: incr": lambda: expired("e", lambda: c.incr("e")), "due: expire": lambda: expired("e", c.expire),
        "due: delete_many": lambda: expired("e", lambda: c.delete_many(["e"])), "due: walk": lambda: expired("e", lambda: list(c.items())),
        "due: setdefault": lambda: expired("e", lambda: c.setdefault("e", 3)), "due: get_many": lambda: expired("e", lambda: c.get_many(["e", "a"])),
        "no hash": lambda: [raises(f, T)() for f in (lambda: c[[]], lambda: c.set({}, 1), lambda: c.pop([], 1), lambda: c.touch([]), lambda: c.get_many([[]]), lambda: c.incr([]), lambda: [] in c, lambda: c.delete_many([[]]))],
        "bad hash": lambda: [raises(f, E)() for f in (lambda: c[BadHash()], lambda: c.set(BadHash(), 1), lambda: c.add(BadHash(), 1), lambda: c.get_many(["a", BadHash()]))],
        "bad arguments": lambda: [raises(f, T)() for f in (lambda: c.get(), lambda: c.set(1), lambda: c.set(1, 2, 3, 4), lambda: c.set("a", 1, tll=1), lambda: c.get("a", key="a"), lambda: c.set_many(5), lambda: c.get_many(5), lambda: c.delete_many(5), lambda: c.resize("x", 1, 2))],
        "bad pairs": raises(lambda: c.set_many([("a", value), (1, 2, 3)]), V),
        "bad ttl": lambda: [raises(lambda t=t: c.set("a", value, ttl=t), V, T, Z)() for t in (0, -1, "1", float("nan"), True, 10**400, BadFloat(), [1])],
        "bad clock": raises(lambda: at(None, lambda: c.get("a")), Z), "clock of text": raises(lambda: at("x", lambda: c.set("a", 1)), T),
        "no time": raises(lambda: at(float("nan"), lambda: c.popitem()), V), "bad clock, walk": raises(lambda: at(None, lambda: list(c)), Z),
        "no copy": lambda: [raises(f, T)() for f in (c.copy, lambda: __import__("pickle").dumps(c), lambda: __import__("copy").copy(c))],
        "make, fill, close": lambda: (m := make(ttl=5, clock=clock), m.set_many(many), m.close()),
        "make, fill, forget": lambda: make(clock=clock).set_many(many), "make a cycle": lambda: (m := make(), m.__dict__.update(me=m)),
        "with": lambda: make().__enter__().__exit__(None, None, None),
        "bad options": lambda: [raises(lambda o=o: make(**o), V, T)() for o in ({"ttl": 0}, {"jitter": 5}, {"clock": 5}, {"max_entries": 0}, {"idle": -1}, {"ttl": BadFloat})],
        "a clock that fails at once": raises(lambda: make(clock=boom), Z), "again": raises(lambda: c.__init__("1MB") if packed else c.__init__(), RuntimeError),
        "closed": lambda: [raises(f, Closed)() for f in (lambda: closed["x"], lambda: closed.set("x", 1), lambda: list(closed), closed.popitem, closed.stats, lambda: closed.get_many(["x"]), closed.clear, lambda: closed.get_or_set("x", boom))],
        "never initialised": lambda: [raises(f, Closed)() for f in (lambda: never["x"], lambda: never.set("x", 1), lambda: list(never), never.popitem, never.check)],
        "new alone": lambda: type(c).__new__(type(c)), "keep": lambda: keep,
    }  # fmt: skip


def particular(make: Callable[..., Any], packed: bool) -> dict[str, Call]:
    """What only one of the two has."""
    import gbcache

    if packed:
        switch: dict[str, Any] = {"encode": list, "decode": list}

        class Codec:
            encode = staticmethod(lambda v: switch["encode"](v))
            decode = staticmethod(lambda b: switch["decode"](b))

        switch["encode"], switch["decode"] = lambda v: b"coded", lambda b: [b]
        c = make(codec=Codec())
        c["o"], c["long"], c["p"] = [1], b"x" * 200_000, [2]

        def failing(which: str, call: Call) -> None:
            before, switch[which] = switch[which], boom
            try:
                raises(call, ZeroDivisionError)()
            finally:
                switch[which] = before

        d = make()
        keys = ["x", "\xfc", b"b", 1, 2**70, 1.5, None, True, (1, ("x", None))]
        return {
            "keys of all types": lambda: [(d.set(k, 1), d.get(k), d.get_many([k]), list(d), d.pop(k)) for k in keys],
            "values of all types": lambda: [(d.set("v", v), d["v"]) for v in (*keys[:8], [1], {"a": (1,)}, {1}, "\u20ac" * 99)],
            "long values": lambda: (c["long"], c.set("long", b"y" * 200_000), c.get_many(["long"])),
            "codec": lambda: (c["o"], c.set("o", [1])), "codec: encode fails": lambda: failing("encode", lambda: c.set("o", [1])),
            "codec: decode fails": lambda: failing("decode", lambda: c["o"]), "codec: items": lambda: failing("decode", lambda: list(c.items())),
            "codec: get_many fails": lambda: failing("decode", lambda: c.get_many(["o", "p", "long"])),
            "codec: encodes to no bytes": lambda: (switch.update(encode=lambda v: 5), raises(lambda: c.set("o", [1]), TypeError)(), switch.update(encode=lambda v: b"coded")),
            "too long": lambda: [raises(f, ValueError)() for f in (lambda: d.set("k" * 5000, 1), lambda: d.incr("k" * 5000), lambda: d.set(float("nan"), 1))],
            "too big": raises(lambda: d.set("k", b"x" * 2_000_000), gbcache.BudgetError), "odd value": raises(lambda: d.set("k", object()), TypeError),
            "incr too far": raises(lambda: (d.set("n", 2**63 - 1), d.incr("n")), OverflowError),
        }  # fmt: skip
    said: list[Any] = [1]
    w = make(max_weight=10, weigh=lambda k, v: boom() if said[0] is boom else said[0])

    def saying(what: Any, call: Call) -> None:
        said[0] = what
        try:
            raises(call, ZeroDivisionError, TypeError, ValueError, gbcache.BudgetError)()
        finally:
            said[0] = 1

    o = make()
    o[BadEq()] = 1
    odd = float("nan")
    return {
        "weigh": lambda: (w.set("a", 1), w.set("a", 2, ttl=5), w.incr("n"), w.entry("a"), w.set_many(enumerate(range(30)))),
        "weigh fails": lambda: [saying(s, lambda: w.set("a", 1)) for s in (boom, -1, 1.5, 99, 2**70)],
        "weigh fails incr": lambda: (w.pop("n", None), saying(boom, lambda: w.incr("n"))),
        "== fails": lambda: [raises(f, ZeroDivisionError)() for f in (lambda: o[BadEq()], lambda: o.set(BadEq(), 1), lambda: o.pop(BadEq()), lambda: BadEq() in o, lambda: o.touch(BadEq()), lambda: o.incr(BadEq()), lambda: o.get_many([BadEq()]), lambda: o.delete_many([BadEq()]), lambda: o.ttl(BadEq()))],
        "cycle through it": lambda: (m := make(), m.set("me", m), m.set(Value(), iter(m))), "nan": lambda: (o.set(odd, 1), o[odd], o.pop(odd)),
        "resize": raises(lambda: o.resize(max_weight=5), TypeError), "big ints": lambda: (o.set("n", 2**80), o.incr("n", 2**90), o.pop("n")),
    }  # fmt: skip


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
    sys.path.insert(0, str(ROOT / "tests"))
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


def references() -> int:
    """All there are, but for those to Cython's coroutine types: each coroutine that Cython 3.3.1 makes leaves one
    to its type (`__Pyx_Coroutine_dealloc` frees the object, not the heap type's reference). No memory goes."""
    theirs = [vars(m).values() for name, m in sys.modules.items() if name.startswith("_cython_")]
    known = {id(t): sys.getrefcount(t) for room in theirs for t in room if isinstance(t, type)}
    return sys.gettotalrefcount() - sum(known.values())  # type: ignore[attr-defined,no-any-return]


def drift(call: Call) -> float:
    """References a call leaves; the least of up to four tries, for caches of the interpreter's fill too."""
    import gc

    least = float("inf")
    for _ in range(50):
        call()
    for _ in range(4):
        gc.collect()
        before = references()
        for _ in range(REPEATS):
            call()
        gc.collect()
        left = (references() - before) / REPEATS
        if abs(left) < abs(least):
            least = left
        if abs(least) < LIMIT:
            break
    return least


def in_a_child(work: Callable[[], str]) -> str:
    """What `work` says, in a process of its own; or how it ended."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        import signal

        signal.alarm(60)
        try:
            said = work()
        except BaseException as error:
            said = f"it failed: {error!r}"
        os.write(theirs, said.encode()[:60_000])
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return said if status == 0 else f"it ended with status {status} (signal {status & 127})"


def measured(which: Callable[[], dict[str, Call]], name: str) -> str:
    """What is wrong with a call; "" if nothing is."""
    calls = which()
    left = drift(calls[name])
    return "" if abs(left) < LIMIT else f"{left:+.3f} references a call"


def main() -> int:
    import gbcache

    assert Path(gbcache.__file__).is_relative_to(BUILD), gbcache.__file__
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    rooms: dict[str, Callable[[], dict[str, Call]]] = {"memoize": memoized, "Tiered": tiers}
    makers = {"Cache": lambda **o: gbcache.Cache("1MB", **o), "ObjectCache": gbcache.ObjectCache}
    bad = total = 0
    for title, make in makers.items():
        packed = title == "Cache"
        rooms |= {
            title: lambda make=make, packed=packed: plain(make, packed),
            f"{title} alone": lambda make=make, packed=packed: particular(make, packed),
            f"{title} flights": lambda make=make: flights(make),
        }
    for room, which in rooms.items():
        names = in_a_child(lambda which=which: "\n".join(KEPT.append(which()) or KEPT[0])).split(
            "\n"
        )
        for name in [n for n in names if wanted in f"{room}: {n}"]:
            said = in_a_child(lambda which=which, name=name: measured(which, name))
            total += 1
            bad += bool(said)
            if said:
                print(f"{room}: {name}: {said}", flush=True)
    print(f"drift: {total} calls, {REPEATS} times each: {bad or 'none'} drift")
    return 1 if bad or not total else 0


if __name__ == "__main__":
    if not hasattr(sys, "gettotalrefcount"):
        bootstrap()
    sys.exit(main())
