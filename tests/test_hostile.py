"""Whatever user code does in the middle of a call: no crash, no hang, no broken cache.

Every test here runs in a forked child with an alarm: a crash or a hang is a failure, not the end of the run.
"""

# ruff: noqa: E501
from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from children import isolated, run, survives

import gbcache
import gbcache.housekeeper
from gbcache import Cache, ObjectCache

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
Act = Callable[[Any], Any]
SIGNALLED = (KeyError, RuntimeError, gbcache.BudgetError)  # RuntimeError: resize() within resize()
FINE = (KeyError, TypeError, ZeroDivisionError, KeyboardInterrupt, gbcache.ClosedError, gbcache.BudgetError)  # fmt: skip


def sound(cache: Any) -> None:
    """The cache after all that: whole, and of use, unless it was closed."""
    if not cache.closed:
        cache.check()
        assert not cache._flights, "nothing of a flight stays"
        cache["after"] = 1
        assert cache["after"] == 1 == cache.get_or_set("after", lambda: 2)
        cache.check()
    cache.close()


def fork(cache: Any) -> None:
    survives(
        lambda: (
            (cache.set("child", 1), cache.get("child"), cache.check()) if not cache.closed else 0
        )
    )


def join(cache: Any) -> None:
    thread = threading.Thread(target=lambda: cache.closed or (cache.set("t", 1), cache.get("t")))
    thread.start()
    thread.join()


def interrupt(_: Any = None) -> None:
    raise KeyboardInterrupt


MAKERS: dict[str, Callable[..., Any]] = {
    "Cache": lambda **options: Cache("1MB", **options),
    "ObjectCache": lambda **options: ObjectCache(**{"max_entries": 30, **options}),
}
ACTS: dict[str, Act] = {
    "get": lambda c: c.get("k"), "set": lambda c: c.set("k", 7), "set another": lambda c: c.set(str(time.time()), 1, ttl=9),
    "delete": lambda c: c.delete_many(["k", 1, 2]), "pop": lambda c: c.pop("k", None), "clear": lambda c: c.clear(),
    "close": lambda c: c.close(), "shrink": lambda c: c.resize("100kB" if isinstance(c, Cache) else 3),
    "grow": lambda c: c.resize("3MB" if isinstance(c, Cache) else 9000), "expire": lambda c: c.expire(),
    "iterate": lambda c: (list(c), list(c.items())), "incr": lambda c: c.incr("n"), "touch": lambda c: c.touch("k", ttl=4),
    "get_many": lambda c: c.get_many(["k", 1, 2] * 10), "set_many": lambda c: c.set_many({str(i): "x" * 500 for i in range(2500)}),
    "popitem": lambda c: c.popitem(), "get_or_set": lambda c: c.get_or_set("g", lambda: 1), "own get_or_set": lambda c: c.get_or_set("k", lambda: 1, stale=5),
    "collect": lambda c: gc.collect(), "fork": fork, "join a thread": join, "raise": lambda c: 1 / 0, "interrupt": interrupt,
}  # fmt: skip
VERBS: dict[str, Act] = {
    **{n: (lambda c, n=n: getattr(c, n)("k")) for n in ("get", "peek", "pop", "ttl", "entry", "touch", "incr", "setdefault")},
    "in": lambda c: "k" in c, "[]": lambda c: c["k"], "del": lambda c: c.__delitem__("k"), "set": lambda c: c.set("k", 2),
    "set ttl": lambda c: c.set("k", 2, ttl=5), "add": lambda c: c.add("new", 2), "add there": lambda c: c.add("k", 2), "popitem": lambda c: c.popitem(),
    "clear": lambda c: c.clear(), "expire": lambda c: c.expire(), "resize": lambda c: c.resize("90kB" if isinstance(c, Cache) else 2),
    "iterate": lambda c: list(c.items()), "get_many": lambda c: c.get_many([1, "k", 2]), "delete_many": lambda c: c.delete_many([1, "k"]),
    "set_many": lambda c: c.set_many({1: 2, 3: 4}, ttl=3), "load": lambda c: c.get_or_set("new", lambda: 1), "load due": lambda c: c.get_or_set("due", lambda: 1, stale=3),
    "aload": lambda c: asyncio.run(c.aget_or_set("new", lambda: asyncio.sleep(0, 1))),
}  # fmt: skip
acts = pytest.mark.parametrize("act", ACTS)
both = pytest.mark.parametrize("title", MAKERS)


class Trigger:
    """Runs an act when user code is called, so many times, and not within itself."""

    def __init__(self, act: str) -> None:
        self.act, self.left, self.busy, self.ran, self.cache = ACTS[act], 0, False, 0, None

    def __call__(self) -> None:
        if self.left and not self.busy and self.cache is not None and not self.cache.closed:
            self.busy, self.left, self.ran = True, self.left - 1, self.ran + 1
            try:
                self.act(self.cache)
            except (KeyError, gbcache.ClosedError, gbcache.BudgetError):
                pass
            finally:
                self.busy = False

    def through(self, verbs: dict[str, Act], make: Callable[[], Any], times: int = 3) -> None:
        """Each verb, on a new cache, with the trigger armed."""
        for verb, call in verbs.items():
            self.cache = None
            self.cache = cache = make()
            self.left = times
            try:
                call(cache)
            except FINE:
                pass
            except BaseException as error:
                raise AssertionError(f"{verb}: {error!r}") from error
            self.left = 0
            sound(cache)
        assert self.ran, "the user's code ran"


# --- user code that comes back -------------------------------------------------------------------


@acts
@both
@isolated
def test_a_clock_that_comes_back(title: str, act: str) -> None:
    trigger, now = Trigger(act), [1000.0]

    def clock() -> float:
        trigger()
        now[0] += 0.5
        return now[0]

    def make() -> Any:
        cache = MAKERS[title](clock=clock, idle=50)
        cache.update((i, i) for i in range(8))
        cache["k"] = 1
        cache.get_or_set("due", lambda: 1, ttl=0.5, stale=99)
        return cache

    trigger.through(VERBS, make)


@acts
@both
@isolated
def test_a_load_that_comes_back(title: str, act: str) -> None:
    trigger = Trigger(act)

    def load() -> int:
        trigger()
        return 5

    async def aload() -> int:
        await asyncio.sleep(0)
        trigger()
        return 5

    loads: dict[str, Act] = {
        "load": lambda c: c.get_or_set("k", load), "load stale": lambda c: c.get_or_set("k", load, ttl=1, stale=5),
        "aload": lambda c: asyncio.run(c.aget_or_set("k", aload)), "nested": lambda c: c.get_or_set("o", lambda: c.get_or_set("k", load)),
    }  # fmt: skip
    trigger.through(loads, lambda: MAKERS[title]())


@acts
@both
@isolated
def test_a_ttl_that_comes_back(title: str, act: str) -> None:
    trigger = Trigger(act)

    class Ttl:
        def __float__(self) -> float:
            trigger()
            return 5.0

    writes: dict[str, Act] = {
        "set": lambda c: c.set("k", 1, ttl=Ttl()), "add": lambda c: c.add("new", 1, Ttl()), "touch": lambda c: c.touch("k", Ttl()),
        "set_many": lambda c: c.set_many({"k": 1, "j": 2}, ttl=Ttl()), "load": lambda c: c.get_or_set("new", lambda: 1, ttl=Ttl()),
    }  # fmt: skip
    trigger.through(writes, lambda: MAKERS[title]())


@acts
@isolated
def test_a_weigh_that_comes_back(act: str) -> None:
    trigger = Trigger(act)

    def make() -> Any:
        cache = ObjectCache(max_weight=20, weigh=lambda k, v: trigger() or 2)
        cache.update((i, i) for i in range(6))
        cache["k"] = 1
        return cache

    trigger.through(VERBS, make)


@acts
@isolated
def test_a_codec_that_comes_back(act: str) -> None:
    trigger = Trigger(act)

    class Codec:
        def encode(self, value: Any) -> bytes:
            trigger()
            return pickle.dumps(value)

        def decode(self, data: bytes) -> Any:
            trigger()
            return pickle.loads(data)

    def make() -> Any:
        cache = Cache("1MB", codec=Codec())
        cache[1], cache["k"], cache[2] = [1], [2], [3] * 100_000
        return cache

    more: dict[str, Act] = {"long": lambda c: c.set("k", [1] * 100_000), "values": lambda c: [9] in c.values(),
                            "load": lambda c: c.get_or_set("new", lambda: [1]), "get_many": lambda c: c.get_many([2, 1, "k"])}  # fmt: skip
    trigger.through({**VERBS, **more}, make, times=2)


@acts
@pytest.mark.parametrize("method", ["__hash__", "__eq__"])
@isolated
def test_a_key_that_comes_back(method: str, act: str) -> None:
    trigger = Trigger(act)

    class Key:
        def __hash__(self) -> int:
            return (method == "__hash__" and trigger()) or 7

        def __eq__(self, other: object) -> bool:
            return bool((method == "__eq__" and trigger()) or isinstance(other, Key))

    def make() -> Any:
        cache = ObjectCache(30, ttl=50)
        cache.update({Key(): 1, "k": 2, 1: 1})
        return cache

    names = (
        "get",
        "peek",
        "pop",
        "ttl",
        "entry",
        "touch",
        "incr",
        "setdefault",
        "__contains__",
        "__getitem__",
        "__delitem__",
    )
    verbs: dict[str, Act] = {n: (lambda c, n=n: getattr(c, n)(Key())) for n in names}
    verbs |= {"get_many": lambda c: c.get_many([1, Key(), 2, Key()]), "load": lambda c: c.get_or_set(Key(), lambda: 1),
              "aload": lambda c: asyncio.run(c.aget_or_set(Key(), lambda: asyncio.sleep(0, 1))), "set_many": lambda c: c.set_many([(Key(), 1), (2, 3)]),
              "delete_many": lambda c: c.delete_many([Key(), 1, Key()]), "==": lambda c: c == {Key(): 1}}  # fmt: skip
    trigger.through(verbs, make)


@acts
@pytest.mark.parametrize("how", ["weakref", "__del__"])
@isolated
def test_a_last_reference_that_comes_back(how: str, act: str) -> None:
    """A weakref's callback, or a destructor, of a key or a value; what it raises is nobody's."""
    trigger, refs = Trigger(act), []
    sys.unraisablehook = lambda _: None

    class Dying:
        if how == "__del__":

            def __del__(self) -> None:
                trigger()

    def dying() -> Dying:
        made = Dying()
        if how == "weakref":
            refs.append(weakref.ref(made, lambda _: trigger()))
        return made

    def make() -> Any:
        cache = ObjectCache(12, ttl=60)
        cache.update({i: dying() for i in range(4)})
        cache.update({dying(): i for i in range(4)})
        cache["k"] = dying()
        return cache

    more: dict[str, Act] = {"evict": lambda c: c.set_many(dict.fromkeys(range(50, 90))), "close": lambda c: c.close(), "replace": lambda c: c.update(dict.fromkeys(range(4)))}  # fmt: skip
    trigger.through({**VERBS, **more}, make)


@both
@isolated
def test_a_signal_handler_that_uses_the_cache(title: str) -> None:
    cache, n, within = MAKERS[title](), [0], [0]
    steps = [
        *(
            ACTS[a]
            for a in ACTS
            if a not in ("close", "fork", "join a thread", "raise", "interrupt")
        ),
        lambda c: c.set("big", "x" * 200_000),
        lambda c: c.get("big"),
    ]

    def handler(*_: Any) -> None:
        n[0] += 1
        within[0] += 1
        begun = time.monotonic()
        if within[0] < 3:
            signal.setitimer(signal.ITIMER_REAL, 0.0005)
        with contextlib.suppress(SIGNALLED):
            steps[n[0] % len(steps)](cache)
        within[0] -= 1
        if not within[0]:  # no faster than what it comes to gets on, however slow the machine
            signal.setitimer(signal.ITIMER_REAL, 0.0005 + 2 * (time.monotonic() - begun))

    signal.signal(signal.SIGUSR1, handler)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    for i in range(600):
        with contextlib.suppress(SIGNALLED):
            steps[i * 7 % len(steps)](cache)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    cache.resize("1MB" if title == "Cache" else 30)
    assert n[0] > 3
    sound(cache)


@pytest.mark.parametrize(
    "verb",
    ["get", "peek", "pop", "ttl", "touch", "incr", "setdefault", "popitem", "clear", "expire"],
)
@both
@isolated
def test_the_last_reference_to_the_cache_goes_in_the_middle(title: str, verb: str) -> None:
    holder: list[Any] = []
    cache = MAKERS[title](clock=lambda: holder.clear() or 1000.0)
    cache["k"] = 1
    gone = weakref.ref(cache)
    holder.append(cache)
    del cache
    getattr(holder[0], verb)(*([] if verb in ("popitem", "clear", "expire") else ["k"]))
    assert gone() is None


@acts
@both
@isolated
def test_iterables_that_come_back(title: str, act: str) -> None:
    def items(cache: Any, *parts: Any) -> Iterator[Any]:
        yield parts[0]
        ACTS[act](cache)
        yield parts[1]

    for verb in ("get_many", "delete_many", "set_many", "update"):
        cache = MAKERS[title]()
        cache.update({"k": 1, 1: 1})
        with contextlib.suppress(FINE):
            getattr(cache, verb)(
                items(
                    cache,
                    *(("k", 1) if verb[-5:] == "_many" and verb[0] != "s" else (("k", 1), (1, 2))),
                )
            )
        sound(cache)


# --- processes and bounds ------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["Cache('1MB')", "ObjectCache(30)"])
def test_a_signal_handler_that_forks_while_forking(make: str) -> None:
    """In a program of its own: concurrent.futures, once imported, holds a lock across a fork, and would wait for itself."""
    code = """
signal.alarm(20)
cache, once, forks = eval("gbcache." + sys.argv[1]), [1], []
cache.set("k", 1, ttl=50)

def fork():
    forks.append(1)
    if (pid := os.fork()) == 0:
        signal.alarm(20)
        cache.set("child", 1)
        os._exit(cache.check() is not None or cache["child"] != 1)
    assert os.waitpid(pid, 0)[1] == 0

signal.signal(signal.SIGUSR1, lambda *_: fork() if once and once.pop() else None)

class Stores(dict):
    def copy(self):
        signal.raise_signal(signal.SIGUSR1)
        return super().copy()

gbcache.forks._stores = Stores(gbcache.forks._stores)
fork()
cache["after"] = 1
assert cache.check() is None and "child" not in cache and len(forks) == 2, forks
print("fine")
"""
    done = run(code, make)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr[-2000:]


@pytest.mark.parametrize("order", ["resize in clear", "clear in resize"])
@isolated
def test_clear_and_resize_at_once_leave_the_address_space_that_the_bound_needs(order: str) -> None:
    armed: list[Callable[[], Any]] = []
    cache = ObjectCache(10, clock=lambda: ((armed and armed.pop()()) and 0) or 1000.0)
    calls: list[Callable[[], Any]] = [cache.clear, lambda: cache.resize(20_000)]
    first, second = calls if order == "resize in clear" else calls[::-1]
    armed.append(second)
    first()
    assert cache.max_entries == 20_000
    cache.update((i, i) for i in range(20_000))
    assert len(cache) == 20_000
    sound(cache)


@both
@isolated
def test_a_clock_that_initialises_the_cache_again(title: str) -> None:
    again = [True]

    def clock() -> float:
        if again and again.pop():
            cache.__init__(*arguments, clock=clock)
        return 1000.0

    kind = gbcache.Cache if title == "Cache" else ObjectCache
    arguments = ("1MB",) if title == "Cache" else (30,)
    cache = kind.__new__(kind)
    with contextlib.suppress(RuntimeError):
        cache.__init__(*arguments, clock=clock)
    sound(cache)
