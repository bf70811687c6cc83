"""Events whose values run code when they are read, signals that raise in the middle, readers in each other's way."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from children import isolated
from heard import SHORT, Hook, both, in_thread, joined, pairs, told, until
from interrupted import exact, interrupted
from test_hostile import ACTS, FINE, acts

from gbcache import Cache, Event, subscribers

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


# --- values that come back -----------------------------------------------------------------------


class Pickled:
    """A codec whose decode does something first."""

    def __init__(self) -> None:
        self.act: Callable[[Any], Any] = lambda value: None

    def encode(self, value: Any) -> bytes:
        return pickle.dumps(value)

    def decode(self, data: bytes) -> Any:
        value = pickle.loads(data)
        self.act(value)
        return value


@acts
@isolated
def test_a_codec_that_comes_back_in_the_middle_of_a_read(act: str) -> None:
    codec, left = Pickled(), [2]
    cache = Cache("1MB", codec=codec, events="30kB")
    watch = cache.watch(values=True)
    for i in range(30):
        cache[i % 5] = [i, "x" * 200]

    def comes_back(value: Any) -> None:
        if left[0] and not cache.closed:
            left[0] -= 1
            ACTS[act](cache)

    codec.act = comes_back
    got: list[Any] = []
    for _ in range(4):
        with contextlib.suppress(*FINE):
            got += [
                e.value[0]
                for e in told(watch)
                if e.kind in ("set", "replace") and type(e.value) is list
            ]
    assert got == sorted(got) and (len(got) == 30 or act in ("raise", "interrupt"))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("delivery", ["watch", "thread", "inline"])
@isolated
def test_a_value_that_does_not_decode_costs_no_other_event(
    delivery: str, error: type[BaseException]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.excepthook = lambda args: None
    Hook()
    codec, got = Pickled(), []
    cache = Cache("1MB", codec=codec)

    def fails(value: Any) -> None:
        if value == [7]:
            raise error("bad")

    codec.act = fails
    watch = cache.watch(values=True)
    sub = (
        None
        if delivery == "watch"
        else cache.subscribe(lambda e: got.append(e.key), values=True, delivery=delivery)
    )
    cache.update((i, [i]) for i in range(20))

    def read() -> None:
        batch = watch.read(timeout=0)
        for i in range(len(batch)):
            with contextlib.suppress(error):
                got.append(batch[i].key)

    if not sub:
        read()
    until(lambda: len(got) >= 19, 2)
    cache["later"] = [1]
    if not sub:
        read()
    assert until(lambda: got and got[-1] == "later", 2), "and it goes on"
    assert [k for k in got if k != 7] == [*range(7), *range(8, 20), "later"]
    assert sub is None or sub.errors == 1


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_read_goes_on_behind_a_value_that_does_not_decode(error: type[BaseException]) -> None:
    """Of what an iteration has not come to: what is before it is given, it is told once, and passed over."""
    codec, got, failed = Pickled(), [], 0
    cache = Cache("1MB", codec=codec)

    def fails(value: Any) -> None:
        if value in ([1], [7]):
            raise error("bad")

    codec.act = fails
    watch = cache.watch(values=True)
    cache.update((i, [i]) for i in range(20))
    got.append(next(watch).key)
    for _ in range(40):
        try:
            got += [event.key for event in watch.read(10, timeout=0)]
        except error:
            failed += 1
    assert got == [i for i in range(20) if i not in (1, 7)]
    assert failed == (2 if error is ValueError else 3)  # what may be an interrupt is raised at once


@pytest.mark.parametrize("delivery", ["thread", "inline", "asyncio"])
@isolated
def test_one_held_weakly_that_goes_while_its_values_are_read(delivery: str) -> None:
    """It is told what was taken for it, and is no error."""
    hook, codec, got = Hook(), Pickled(), list[Any]()
    cache = Cache("1MB", codec=codec)

    class Listener:
        def hear(self, event: Event) -> None:
            got.append(event.key)

    held = [Listener()]
    codec.act = lambda value: held.clear()

    async def main() -> None:
        sub = cache.subscribe(held[0].hear, values=True, delivery=delivery, weak=True)
        cache.update((i, [i]) for i in range(20))
        for i in range(20, 5000):
            if sub.closed:
                break
            cache[i] = [i]  # without the GIL what another thread lets go of goes a moment later
            await asyncio.sleep(0.001)
        assert sub.closed and sub.errors == 0 and not hook.seen
        assert got == list(range(len(got))) and sub.delivered == len(got)

    asyncio.run(main())


@pytest.mark.parametrize("times, errors", [(5, 0), (10**6, 1)])
@isolated
def test_a_value_that_memory_is_short_for_is_waited_for(times: int, errors: int) -> None:
    """None before it is told twice, none after it is lost; one that never fits is passed over in the end."""
    subscribers.PATIENCE = 8  # type: ignore[attr-defined]
    codec, got, tried = Pickled(), [], []
    cache = Cache("1MB", codec=codec)

    def fails(value: Any) -> None:
        if value == [7] and len(tried) < times:
            tried.append(1)
            raise MemoryError

    codec.act = fails
    sub = cache.subscribe(lambda e: got.append(e.key), values=True)
    cache.update((i, [i]) for i in range(20))
    assert until(lambda: len(got) == 20 - errors, 10)
    assert got == [i for i in range(20) if i != 7 or not errors]
    assert sub.delivered == 20 - errors and sub.errors == errors and sub.lost == 0
    cache["later"] = [1]
    assert until(lambda: got[-1] == "later", 5)


@both
def test_an_error_that_memory_is_short_for_costs_nobody_an_event(make: Any) -> None:
    """It cannot be counted, nor said; what was taken is given all the same."""
    got, short = [], [MemoryError]

    def hear(event: Event) -> None:
        got.append(event.key)
        raise ValueError

    def failed(error: BaseException) -> None:
        if short:
            raise short.pop()

    cache = make()
    sub = cache.subscribe(hear)
    sub._failed = failed
    cache.update((i, i) for i in range(20))
    assert until(lambda: len(got) >= 20) and got == list(range(20)) and sub.delivered == 20


@both
@isolated
def test_closing_while_values_are_read(make: Any) -> None:
    """The one who reads is in the middle of making an event of a record."""
    sys.setswitchinterval(1e-6)
    for _ in range(10 if SHORT else 40):
        cache = make(size="4MB", room=20_000)
        got: list[Any] = []
        cache.subscribe(lambda e, got=got: got.append(e.value), values=True)
        for i in range(60):
            cache[i] = {"n": i, "list": [i] * 50, "nested": {str(j): [j] for j in range(20)}}
        cache.close()
        assert until(lambda got=got: len(got) == 60)
        assert all(v["n"] == i and v["list"] == [i] * 50 for i, v in enumerate(got))


@both
@isolated
def test_two_who_read_one_watch_get_true_events(make: Any) -> None:
    """One reader at a time, it says; who does otherwise gets an error or events, never wrong ones."""
    sys.setswitchinterval(1e-6)
    cache, got = make(size="4MB", room=40_000), []
    watch = cache.watch(values=True)

    def read() -> None:
        while not watch.closed:
            with contextlib.suppress(RuntimeError):
                got.extend(watch.read(50, timeout=0.01))

    readers = [in_thread(read) for _ in range(3)]
    for i in range(3000):
        cache[i] = [i] * (i % 40)
    time.sleep(0.1)
    cache.close()
    joined(*readers)
    assert all(e.value == [e.key] * (e.key % 40) for e in got if e.kind == "set")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@both
@isolated
def test_a_signal_that_raises_in_the_middle_of_inline_delivery(make: Any) -> None:
    """It comes out, or is told; delivery goes on afterwards."""
    Hook()
    cache, got = make(), []
    cache.subscribe(lambda e: got.append(e.key), delivery="inline")

    def handler(*_: Any) -> None:
        raise InterruptedError

    signal.signal(signal.SIGALRM, handler)
    end = time.monotonic() + (0.5 if SHORT else 2.0)
    while time.monotonic() < end:
        with contextlib.suppress(InterruptedError):
            signal.setitimer(signal.ITIMER_REAL, 0.0003)
            for i in range(3000):
                cache["k"] = i
    with contextlib.suppress(InterruptedError):
        signal.setitimer(signal.ITIMER_REAL, 0)
    cache["last"] = 1
    assert got[-1] == "last", "the turn of whoever was interrupted is over"


@exact
@both
def test_an_iteration_that_is_interrupted_anywhere_loses_nothing(make: Any) -> None:
    """Between what the cursor gave and where it is kept, above all."""
    cache, n = make(room=10_000), 0
    watch = cache.watch()
    while True:
        n += 1
        for i in range(5):
            cache[i] = n
        got: list[Event] = []

        def read(last: Any, got: list[Event] = got) -> None:
            while not got or got[-1].key != last:
                got.append(next(watch))

        where = interrupted(lambda: read(4), n)
        cache["end"] = n  # or a failure would hang
        read("end")
        assert [event.key for event in got] == [0, 1, 2, 3, 4, "end"], where
        if not where:
            break


@exact
@both
@isolated
def test_an_iteration_that_signals_interrupt_loses_nothing(make: Any) -> None:
    class Interrupt(BaseException):
        pass

    def handler(*_: Any) -> None:
        if armed:
            raise Interrupt

    cache, got, cut, armed = make(size="4MB", room=50_000), list[int](), 0, False
    watch, last = cache.watch(), 0

    def read() -> None:
        """By itself: CPython 3.13's `try` is not there for who is interrupted at an `if` that ends a loop in it."""
        for event in watch:
            got.append(event.seq)
            if event.seq == last:
                break

    signal.signal(signal.SIGALRM, handler)
    end = time.monotonic() + (1 if SHORT else 2)
    while time.monotonic() < end:
        cache.update((i, i) for i in range(2000))
        last += 2000
        while not got or got[-1] < last:
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + (cut % 300) * 1e-6)
                read()
                armed = False  # a signal that comes late finds no `try`
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                armed = False
                cut += 1
                cache["more"] = last = last + 1  # or a failure would hang
    assert cut and got == [*range(1, last + 1)]


@both
@isolated
def test_a_signal_that_raises_wakes_who_waits(make: Any) -> None:
    def handler(*_: Any) -> None:
        raise InterruptedError

    cache = make()
    watch = cache.watch()
    signal.signal(signal.SIGUSR1, handler)
    main = threading.main_thread().ident
    thread = in_thread(lambda: (time.sleep(0.05), signal.pthread_kill(main or 0, signal.SIGUSR1)))
    with pytest.raises(InterruptedError):
        watch.read()
    joined(thread)
    cache["k"] = 1
    assert pairs(watch.read()) == [("set", "k")]


@both
@isolated
def test_readers_that_go_while_the_housekeeper_tells(make: Any) -> None:
    """A bell is not rung after its reader is gone, though the cache is being closed by somebody else."""
    for _ in range(4 if SHORT else 12):
        cache = make(size="16MB", room=1000)
        cache.set_many(((i, None) for i in range(60_000)), ttl=0.04)
        watches = [cache.watch() for _ in range(8)]

        def read(watch: Any) -> None:
            for _ in watch:
                pass

        threads = [in_thread(lambda w=w: read(w)) for w in watches]
        watches.clear()
        until(lambda cache=cache: len(cache) < 58_000, 2)
        cache.close()
        joined(*threads)


@both
@isolated
def test_asyncio_subscribers_that_raise(make: Any) -> None:
    hook, got = Hook(), []

    async def later(event: Event) -> None:
        await asyncio.sleep(0)
        raise ValueError

    def now(event: Event) -> None:
        raise SystemExit

    async def main() -> None:
        cache = make()
        for fn in (now, later, got.append):
            cache.subscribe(fn, delivery="asyncio")
        cache.update((i, i) for i in range(5))
        while len(got) < 5 or len(hook.seen) < 10:
            await asyncio.sleep(0.001)
        assert cache.stats().callback_errors == 10
        cache.close()

    asyncio.run(asyncio.wait_for(main(), 4))
    assert {fn for _, fn in hook.seen} == {now, later} and [e.seq for e in got] == [1, 2, 3, 4, 5]


@both
@isolated
def test_a_great_many_caches_with_subscribers(make: Any) -> None:
    size = "120kB"
    caches = [make(size=size) for _ in range(300)]
    got: list[Any] = []
    for i, cache in enumerate(caches):
        cache.subscribe(got.append, delivery="inline" if i % 3 == 0 else "thread")
    for cache, i in itertools.product(caches, range(3)):
        cache[i] = i
    assert until(lambda: len(got) == 900, 4)
    gone = [weakref.ref(cache) for cache in caches]
    for cache in caches[::2]:
        cache.close()
    del caches, cache
    assert until(lambda: gc.collect() is not None and not any(ref() is not None for ref in gone))
