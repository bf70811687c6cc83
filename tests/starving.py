"""The operations of `starve.py`: what each does, and what must hold whether it was done or not."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gbcache
from gbcache import Cache, ObjectCache

CASES: dict[str, Callable[[Path], Any]] = {}
ABSENT = object()


class Token:
    """A key or a value that is compared by identity, and whose references are counted."""


TOKENS = [Token() for _ in range(4)]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Work:
    """An operation, done once."""

    allowed: tuple[type[BaseException], ...] = (MemoryError,)

    def __init__(self, root: Path) -> None:
        self.root = root

    def act(self) -> Any: ...
    def look(self, failed: bool) -> None: ...
    def over(self) -> None: ...


def counted() -> list[int]:
    return [sys.getrefcount(token) for token in TOKENS]


BASE = counted()


def before(packed: bool) -> dict[Any, Any]:
    if packed:
        return {
            "a": "x" * 20,
            "n": 5,
            3: [1, (2, "three")],
            "long": b"y" * 9000,
            b"t": None,
            (1, "p"): 1.5,
        }
    return {"a": TOKENS[0], "n": 5, TOKENS[1]: [1], "b": TOKENS[2]}


Act = Callable[[Any], Any]


def _cancel(readied: Any) -> None:
    """What is under way in a loop that had no memory to go on. Tasks it could not note are only known to it."""
    if isinstance(readied, asyncio.AbstractEventLoop):
        for _ in range(8):
            with contextlib.suppress(RuntimeError):  # what it was run for before may stop it
                readied.run_until_complete(asyncio.sleep(0))
        if left := asyncio.all_tasks(readied):
            for task in left:
                task.cancel()
            readied.run_until_complete(asyncio.wait(left))
        gc.collect()  # and those whose next step was lost


def _end(readied: Any) -> None:
    """A loop holds what it was doing when memory was short."""
    if isinstance(readied, asyncio.AbstractEventLoop):
        readied.close()


class OnCache(Work):
    """A verb of a cache: each key has its old value or its new one after it, and then it is done again."""

    def __init__(self, root: Path, packed: bool, act: Act, options: dict[str, Any], ready: Act | None,
                 allowed: tuple[type[BaseException], ...], again: bool) -> None:  # fmt: skip
        super().__init__(root)
        self.allowed = (MemoryError, *allowed)
        self.clock = Clock()
        self._act, self._again = act, again
        made = []
        for _ in range(2):  # the second is what it comes to
            o = {"clock": self.clock, **options}
            c: Any = Cache(o.pop("size", "100kB"), **o) if packed else ObjectCache(**o)
            c.update(before(packed))
            c.set("dead", 1, ttl=1)
            c.set("ttl", TOKENS[3] if not packed else "z", ttl=50)
            self.clock.now += 2
            made.append((c, ready(c) if ready else None))
            self.clock.now -= 2
        self.clock.now += 2
        (self.cache, self.readied), (other, theirs) = made
        self.was = {key: other.peek(key) for key in other}
        with contextlib.suppress(Exception):
            self._done(other, theirs)
        self.will = {key: other.peek(key) for key in other}
        other.close()
        _end(theirs)

    def _done(self, cache: Any, readied: Any) -> Any:
        return self._act(cache) if readied is None else self._act(cache, readied)  # type: ignore[call-arg]

    def act(self) -> None:
        self._done(self.cache, self.readied)

    def look(self, failed: bool) -> None:
        c = self.cache
        if failed:
            _cancel(self.readied)
        c.check()
        for key in {**self.was, **self.will}:
            value = c.peek(key, ABSENT)
            assert value in (self.was.get(key, ABSENT), self.will.get(key, ABSENT)), (key, value)
        assert set(c) <= {*self.was, *self.will}, list(c)
        if not failed and self._again:
            assert dict(c.items()) == self.will
        assert not c._flights, "a flight is left"
        c.set("again", 1, ttl=5)
        assert c["again"] == 1 and c.pop("again") == 1
        c.check()
        if failed and self._again:
            with contextlib.suppress(
                *[e for e in self.allowed if e is not MemoryError], KeyError, ZeroDivisionError
            ):
                self._done(c, self.readied)
            assert dict(c.items()) == self.will, (dict(c.items()), self.will)

    def over(self) -> None:
        self.cache.close()
        _end(self.readied)
        self.cache = self.readied = None
        self.was.clear()
        self.will.clear()
        if (now := counted()) != BASE:
            gc.collect()
            now = counted()
        assert now == BASE, f"references are left: {now} for {BASE}"


def verb(name: str, act: Act, *, kinds: str = "po", ready: Act | None = None, again: bool = True,
         allowed: tuple[type[BaseException], ...] = (), **options: Any) -> None:  # fmt: skip
    """A case for a Cache (p), and one for an ObjectCache (o)."""
    for kind in kinds:
        title = f"{'Cache' if kind == 'p' else 'ObjectCache'}: {name}"
        assert title not in CASES, title
        CASES[title] = lambda root, kind=kind: OnCache(  # type: ignore[misc]
            root, kind == "p", act, options, ready, allowed, again
        )


def boom(*_: Any) -> Any:
    raise ZeroDivisionError


MANY = {f"k{i}": i for i in range(30)}
LONG = b"l" * 30_000


class Codec:
    def encode(self, value: Any) -> bytes:
        return str(type(value)).encode()

    def decode(self, data: bytes) -> Any:
        return data.decode()


def plain() -> None:
    verb("set", lambda c: c.set("new", [1, "two"]))
    verb("set over", lambda c: c.set("a", [2] * 30))
    verb("set with a ttl", lambda c: c.set("a", 7, ttl=5.5))
    verb("set a tuple key", lambda c: c.set((1, (2, "x")), 2**80))
    verb("set long", lambda c: c.set("long", LONG), kinds="p")
    verb("[] =", lambda c: c.__setitem__("ttl", (1, 2)))
    verb("set in a full one", lambda c: c.set("new", 1), max_entries=6, again=False)
    verb("set many in a full one", lambda c: c.set_many(MANY), max_entries=6, again=False)
    verb(
        "set by weight",
        lambda c: c.set("new", 1),
        kinds="o",
        again=False,
        max_weight=9,
        weigh=lambda k, v: 1,
    )
    verb("set where weigh raises", lambda c: c.set("new", 1), kinds="o", allowed=(TypeError,),
         weigh=lambda k, v: 1.5 if k == "new" else 1)  # fmt: skip
    verb(
        "set what never fits",
        lambda c: c.set("new", b"x" * 200_000),
        kinds="p",
        allowed=(gbcache.BudgetError,),
    )
    verb("set what is no value", lambda c: c.set("new", Token()), kinds="p", allowed=(TypeError,))
    verb("set through a codec", lambda c: c.set("new", {"x": (1, 2)}), kinds="p", codec=Codec())
    verb("get through a codec", lambda c: c.get(3), kinds="p", codec=Codec())
    verb("set pickled", lambda c: c.set("new", {"x": (1, 2)}), kinds="p", codec="pickle")
    verb("add", lambda c: (c.add("new", 1), c.add("a", 2)))
    verb("get", lambda c: (c.get("a"), c.get("none", 1), c.get("dead")), again=False)
    verb("get long", lambda c: c.get("long"), kinds="p")
    verb("[]", lambda c: c["n"])
    verb("[] missing", lambda c: c["none"], allowed=(KeyError,))
    verb("peek, in", lambda c: (c.peek("a"), "a" in c, "none" in c, c.peek("none", 5)))
    verb("get_many", lambda c: c.get_many(["a", "n", "ttl", "none", (1, "p"), "long"] * 9))
    verb("get_many of an iterator", lambda c: c.get_many(iter("an")))
    verb("set_many", lambda c: c.set_many(MANY, ttl=5))
    verb("set_many of pairs", lambda c: c.set_many(list(MANY.items())))
    verb("update", lambda c: c.update(MANY, z=1))
    verb("delete_many", lambda c: c.delete_many(["a", "none", "long", 3, 1.5]))
    verb("del", lambda c: c.__delitem__("a"), allowed=(KeyError,))
    verb("del missing", lambda c: c.__delitem__("none"), allowed=(KeyError,))
    verb("pop", lambda c: c.pop("a", None))
    verb("pop missing", lambda c: c.pop("none"), allowed=(KeyError,))
    verb("popitem", lambda c: c.popitem(), again=False)
    verb("setdefault", lambda c: (c.setdefault("a", 1), c.setdefault("new", 2)))
    verb("incr", lambda c: c.incr("n", 10**6), again=False)
    verb("incr a new one", lambda c: c.incr("new", 3, initial=2**40), again=False)
    verb("incr what is no int", lambda c: c.incr("a"), allowed=(TypeError,))
    verb(
        "touch",
        lambda c: (
            c.touch("ttl", ttl=70),
            c.touch("a", ttl=5),
            c.touch("ttl", ttl=None),
            c.touch("none"),
        ),
    )
    verb("ttl, entry", lambda c: (c.ttl("ttl"), c.entry("ttl"), c.entry("a")))
    verb("iterate", lambda c: (list(c), list(c.keys()), list(c.values()), list(c.items())))
    verb("iterate halfway", lambda c: next(iter(c.items())))
    verb("equality", lambda c: (c == {"a": 1}, c != 5, c == dict(c.items())))
    verb("views", lambda c: (("a", 1) in c.items(), 1 in c.values(), c.keys() & {"a"}))
    verb("clear", lambda c: c.clear())
    verb("clear while recorded", lambda c: c.clear(), events=20_000)
    verb("expire", lambda c: c.expire())
    verb(
        "figures",
        lambda c: (
            c.stats(),
            c.memory(),
            repr(c),
            str(c.memory()),
            c.used_bytes,
            c.max_entries,
            len(c),
        ),
    )
    verb("check", lambda c: c.check())
    verb("resize larger", lambda c: c.resize("300kB"), kinds="p")
    verb("resize smaller", lambda c: c.resize("60kB"), kinds="p", again=False)
    verb("resize and bound", lambda c: c.resize("150kB", max_entries=3), kinds="p", again=False)
    verb("resize", lambda c: c.resize(3), kinds="o", again=False)
    verb("resize larger", lambda c: c.resize(10_000), kinds="o", max_entries=10)
    verb("no copy", lambda c: c.copy(), allowed=(TypeError,))


def told() -> None:
    """Events; who was not told because it could not subscribe is not told."""
    watching = lambda c: c.watch(values=True)  # noqa: E731
    changed = lambda c: (c.watch(values=True), c.set("w", "v"), c.set("a", 2), c.pop("n"))[0]  # noqa: E731
    sizes: dict[str, Any] = {"events": 20_000}
    verb("set while watched", lambda c, w: c.set("new", [1, "two"]), ready=watching)
    verb("set over while watched", lambda c, w: c.set("a", [2]), ready=watching)
    verb(
        "evict while watched",
        lambda c, w: c.set_many(MANY),
        ready=watching,
        max_entries=6,
        again=False,
    )
    verb("pop while watched", lambda c, w: c.pop("a", None), ready=watching)
    verb("expire while watched", lambda c, w: c.expire(), ready=watching)
    verb("clear while watched", lambda c, w: c.clear(), ready=watching)
    verb("touch while watched", lambda c, w: c.touch("a", ttl=5), ready=watching)
    verb("resize while watched", lambda c, w: c.resize("300kB"), kinds="p", ready=watching)
    verb("watch", lambda c: c.watch(prefix="a", kinds=["set", "evict"]).close())
    verb("watch, dropped", lambda c: c.watch())
    verb("read", lambda c, w: [tuple(e) for e in w.read(100, timeout=0)], ready=changed)
    verb("next", lambda c, w: next(w), ready=changed)
    verb(
        "keys of a batch",
        lambda c, w: getattr(w.read(100, timeout=0), "keys", list)(),
        ready=changed,
    )
    verb("changes", lambda c, w: list(c.changes(since=1)), ready=changed, **sizes)
    verb("bad kinds", lambda c: c.watch(kinds="never"), allowed=(ValueError,))
    verb(
        "subscribe inline",
        lambda c: (s := c.subscribe(len, delivery="inline"), c.set("a", 2), s.close()),
    )
    verb(
        "told inline",
        lambda c, s: c.set("new", 1),
        ready=lambda c: c.subscribe(str, delivery="inline", values=True),
    )
    verb("told inline, raises", lambda c, s: c.set("new", 1), allowed=(ZeroDivisionError,),
         ready=lambda c: c.subscribe(boom, delivery="inline"))  # fmt: skip
    # none in a thread: `threading` waits for ever for one that had no memory to begin
    verb(
        "subscribe weakly",
        lambda c: c.subscribe(c.get, weak=True, delivery="inline").close(),
        again=False,
    )
    verb("housekeeper", lambda c: c.set("new", 1, ttl=50), clock=None, housekeeping=True)


def loaded() -> None:
    def run(fn: Callable[[Any], Any]) -> Act:
        async def main(c: Any) -> Any:
            return await fn(c)

        return lambda c, loop: loop.run_until_complete(main(c))

    def loop(c: Any) -> Any:
        return asyncio.new_event_loop()

    async def fine() -> int:
        await asyncio.sleep(0)
        return 5

    async def crowd(c: Any) -> Any:
        return await asyncio.gather(*(c.aget_or_set("new", fine) for _ in range(3)))

    zero = (ZeroDivisionError,)
    verb("get_or_set", lambda c: c.get_or_set("new", lambda: 5, ttl=5))
    verb("get_or_set, hit", lambda c: c.get_or_set("a", boom))
    verb("get_or_set, raises", lambda c: c.get_or_set("new", boom), allowed=zero)
    verb("get_or_set, stale", lambda c: c.get_or_set("old", lambda: 6, stale=9), again=False,
         ready=lambda c: (c.get_or_set("old", lambda: 5, ttl=1, stale=9), None)[1])  # fmt: skip
    verb("get_or_set, void", lambda c: c.get_or_set("new", lambda: c.set("new", 4)), again=False)
    verb("get_or_set within", lambda c: c.get_or_set("new", lambda: c.get_or_set("new", lambda: 5)))
    verb(
        "get_or_set, no value",
        lambda c: c.get_or_set("new", Token),
        kinds="p",
        allowed=(TypeError,),
    )
    verb("aget_or_set", run(lambda c: c.aget_or_set("new", fine)), ready=loop)
    verb("aget_or_set, raises", run(lambda c: c.aget_or_set("new", boom)), ready=loop, allowed=zero)
    verb("aget_or_set, crowd", run(crowd), ready=loop)


plain()
told()
loaded()
