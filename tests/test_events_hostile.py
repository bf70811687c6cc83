"""Subscribers that do what they should not: no crash, no hang, nothing lost untold, nobody else disturbed.

What may hang or crash runs in a forked child with an alarm, as in test_hostile.py.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from children import isolated, survives
from heard import Hook, both, gapless, in_thread, joined, told, until
from test_hostile import ACTS, FINE, acts

import gbcache
from gbcache import Cache, Event

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
DELIVERIES = pytest.mark.parametrize("delivery", ["thread", "inline"])
WRITES: list[Callable[[Any], Any]] = [
    lambda c: c.set("k", 1), lambda c: c.set("k", 2, ttl=50), lambda c: c.touch("k"), lambda c: c.incr("n"),
    lambda c: c.get_or_set("g", lambda: 1), lambda c: c.pop("k"), lambda c: c.set_many({1: 1, 2: 2, 3: 3}),
    lambda c: c.add("a", 1), lambda c: c.setdefault("b", 1), lambda c: c.popitem(), lambda c: c.delete_many([1, 2, 3]),
    lambda c: c.clear(), lambda c: c.resize("200kB" if isinstance(c, Cache) else 20), lambda c: c.set("last", 1),
]  # fmt: skip


# --- what they do --------------------------------------------------------------------------------


@acts
@DELIVERIES
@both
@isolated
def test_a_subscriber_that_comes_back(make: Any, delivery: str, act: str) -> None:
    hook, interrupts, witness, left = Hook(), [], [], [3]
    signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))
    cache = make(room=600)

    def hostile(event: Event) -> None:
        if left[0] and not cache.closed:
            left[0] -= 1
            ACTS[act](cache)

    sub = cache.subscribe(hostile, delivery=delivery)
    cache.subscribe(witness.append, delivery=delivery)
    for write in WRITES:
        with contextlib.suppress(FINE):
            write(cache)
        if delivery == "thread":
            time.sleep(0.001)
    assert until(lambda: not left[0] or cache.closed, 4), "it was called to the end"
    if cache.closed:
        assert act == "close" and not hook.seen
        return gapless(witness)
    assert until(lambda: witness and witness[-1].seq == cache._seq(), 4)
    gapless(witness)
    assert sub.errors == cache.stats().callback_errors == len(hook.seen)
    assert all(fn is hostile for _, fn in hook.seen)
    if act in ("raise", "interrupt"):
        assert sub.errors == 3
        assert bool(interrupts) == (act == "interrupt")  # signals that are not yet handled are one
    cache.check()
    cache["after"] = 1  # perhaps not the last event: the third call may still be on its way
    assert cache["after"] == 1 and until(lambda: "after" in [e.key for e in witness], 4)
    return cache.close()


class Own(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, SystemExit, GeneratorExit, Own, MemoryError])
@DELIVERIES
@both
@isolated
def test_whatever_it_raises_stays_with_it(
    make: Any, delivery: str, error: type[BaseException]
) -> None:
    hook, others = Hook(), []
    cache = make()

    def raises(event: Event) -> None:
        raise error("its own")

    subs = [cache.subscribe(fn, delivery=delivery) for fn in (others.append, raises, others.append)]
    for i in range(10):
        cache[i] = i
    assert until(lambda: len(others) == 20 and len(hook.seen) == 10)
    assert hook.seen == [(error, raises)] * 10 and len(cache) == 10
    assert [s.errors for s in subs] == [0, 10, 0] and cache.stats().callback_errors == 10
    assert sorted(e.seq for e in others) == sorted([*range(1, 11)] * 2)


@DELIVERIES
@both
@isolated
def test_ctrl_c_within_a_subscriber_reaches_the_program_and_undoes_nothing(
    make: Any, delivery: str
) -> None:
    hook = Hook()
    cache = make()

    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    cache.subscribe(interrupted, delivery=delivery)
    with pytest.raises(KeyboardInterrupt):
        cache["k"] = 1
        assert until(lambda: hook.seen)
        time.sleep(0.5)
    assert cache["k"] == 1 and len(hook.seen) == 1


@both
@isolated
def test_a_hook_that_raises_is_nobodys_problem(make: Any) -> None:
    def hook(what: Any) -> None:
        raise ValueError("the hook")

    sys.unraisablehook = hook
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    cache, got = make(), []
    for delivery in ("thread", "inline"):
        cache.subscribe(lambda event: 1 / 0, delivery=delivery)
        cache.subscribe(got.append, delivery=delivery)
    cache["k"] = 1
    assert until(lambda: len(got) == 2 and cache.stats().callback_errors == 2)


@both
@isolated
def test_inline_reentrance_is_told_in_order_to_each(make: Any) -> None:
    cache = make()
    got: list[list[Any]] = [[], []]

    def chain(event: Event) -> None:
        got[0].append(event.key)
        if event.key < 50:
            cache[event.key + 1] = 1
            assert got[0][-1] == event.key, "not within itself"

    cache.subscribe(chain, delivery="inline", kinds="set")
    cache.subscribe(lambda e: got[1].append(e.key), delivery="inline", kinds="set")
    cache[0] = 1
    assert got == [[*range(51)], [*range(51)]]


@both
@isolated
def test_inline_from_many_threads_is_in_order_and_complete(make: Any) -> None:
    sys.setswitchinterval(1e-5)
    cache, got, inside = make(room=9000), [], []

    def hear(event: Event) -> None:
        inside.append(1)
        assert len(inside) == 1, "one at a time"
        got.append(event)
        inside.pop()

    sub = cache.subscribe(hear, delivery="inline")
    joined(*[in_thread(lambda s=s: [cache.set((s, i), i) for i in range(1500)]) for s in range(4)])
    gapless(got)
    assert got[-1].seq == cache._seq() and not sub.errors


@both
@isolated
def test_a_stalled_subscriber_is_told_what_it_lost_and_holds_up_nobody(make: Any) -> None:
    cache, got, other = make(room=3000), [], []
    go = threading.Event()
    stalled = cache.subscribe(lambda event: (go.wait(), got.append(event)))
    cache.subscribe(other.append, delivery="inline")
    watch = cache.watch()
    seen = 0
    for i in range(20_000):
        cache[i % 100] = i
        if i == 0:
            assert until(lambda: stalled.delivered == 1)  # it has begun, and stalls
        if i % 500 == 0:
            seen += len(told(watch))
    seen += len(told(watch))
    assert seen == 20_000 == len(other) and not got
    go.set()
    assert until(lambda: stalled.delivered + stalled.lost == 20_000, 4)
    gapless(got)
    assert sum(e.kind == "lost" for e in got) == 1 and stalled.lost > 10_000


@both
@isolated
def test_an_inline_subscriber_that_computes_holds_up_nobody(make: Any) -> None:
    """It waits for nothing that would let go of a lock: without the GIL that shows whether we hold one."""
    cache, read, met = make(), [], []
    cache["k"] = 1
    begun = threading.Event()
    reader = in_thread(lambda: (begun.wait(), read.append(cache["k"])))

    def compute(event: Event) -> None:
        begun.set()
        end = time.monotonic() + 4
        while not read and time.monotonic() < end:
            pass
        met.append(bool(read))

    cache.subscribe(compute, delivery="inline")
    cache["other"] = 2
    joined(reader)
    assert met == [True] and read == [1]


@both
@isolated
def test_nothing_waits_for_a_subscriber(make: Any) -> None:
    """It waits for a lock whose holder closes, unsubscribes, clears, subscribes, forks."""
    cache, lock, inside = make(), threading.Lock(), threading.Event()
    lock.acquire()
    sub = cache.subscribe(
        lambda event: inside.set() or (lock.acquire(timeout=4) and lock.release())
    )
    cache["k"] = 1
    assert inside.wait(4)
    for call in (cache.clear, gc.collect, lambda: cache.subscribe(print).close(), lambda: cache.watch().close(),
                 lambda: survives(lambda: cache.set("k", 2)), sub.close, cache.close):  # fmt: skip
        call()
    lock.release()


@DELIVERIES
@both
@isolated
def test_the_last_reference_to_the_cache_goes_in_the_middle(make: Any, delivery: str) -> None:
    holder = [make()]
    gone, got = weakref.ref(holder[0]), []

    def drops(event: Event) -> None:
        got.append(event.key)
        holder.clear()
        gc.collect()

    holder[0].subscribe(drops, delivery=delivery)
    holder[0].set("k", 1)
    assert until(lambda: got == ["k"] and not holder)
    assert until(lambda: gc.collect() is not None and gone() is None), "nothing keeps it"


@DELIVERIES
@both
@isolated
def test_a_cycle_of_cache_callback_and_value_is_collected(make: Any, delivery: str) -> None:
    class Owner:
        def hear(self, event: Event) -> None:
            self.heard = event

    def cycle(which: int) -> list[Any]:
        owner, cache = Owner(), make()
        owner.cache = cache
        sub = cache.subscribe(owner.hear, delivery=delivery)
        owner.sub, owner.watch = sub, cache.watch()
        if isinstance(cache, gbcache.ObjectCache):
            cache["self"], cache["cache"], cache["sub"] = owner, cache, sub
        cache["k"] = 1
        assert until(lambda: getattr(owner, "heard", None) and owner.heard.key == "k")
        if which:
            owner.watch.close()
        return [weakref.ref(x) for x in (owner, cache, sub)]

    gone = [*cycle(0), *cycle(1)]
    assert until(lambda: gc.collect() is not None and not any(ref() for ref in gone))
