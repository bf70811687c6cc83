"""A cache is closed while others read its events, or begin to; and the thread of all outlives the fault of one."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import Any

import pytest
from heard import both, until

import gbcache
from gbcache import Cache, ClosedError, dispatch
from gbcache.notify import Subscription
from gbcache.watch import Watch


def stormed(rounds: int, begin: Any) -> None:
    """Caches closed while long writes keep their locks, and threads `begin(cache)` read."""
    for _ in range(rounds):
        cache, over = Cache("64MB", events="4MB"), list[int]()
        big = b"x" * 4_000_000

        def writes(cache: Cache = cache, over: list[int] = over, big: bytes = big) -> None:
            with contextlib.suppress(ClosedError):
                while not over:
                    cache["big"] = big

        threads = [threading.Thread(target=writes) for _ in range(2)] + begin(cache)
        for thread in threads:
            thread.start()
        for i in range(1000):
            cache[i % 50] = i
        cache.close()
        over.append(1)
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads), "a reader hangs"


def test_a_reader_of_a_cache_that_is_closed_comes_to_its_end() -> None:
    said: list[str] = []

    def reads(watch: Watch) -> None:
        n = 0
        try:
            while events := watch.read():
                n = events[-1].seq
            said.append("all" if n >= 1000 else "some")
        except BaseException as error:
            said.append(repr(error))

    stormed(25, lambda c: [threading.Thread(target=reads, args=(c.watch(),)) for _ in range(3)])
    assert said == ["all"] * 75


def test_closing_a_cache_does_not_end_the_thread_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    died, subs = list[str](), list[Subscription]()
    monkeypatch.setattr(threading, "excepthook", lambda args: died.append(repr(args.exc_value)))

    def begin(cache: Cache) -> list[threading.Thread]:
        subs.append(cache.subscribe(lambda event: None))
        return []

    stormed(25, begin)
    assert until(lambda: all(sub.closed for sub in subs)) and not died
    assert all(sub.delivered + sub.lost >= 1000 for sub in subs)


@both
def test_nobody_reads_a_cache_that_is_being_closed(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who came too late would wait for ever."""
    cache = make()
    cursor = cache._events()._open(None, 1, None, False)  # begun before
    finish, late = dispatch.Dispatcher.finish, list[str]()

    def finishing(self: Any, hub: Any) -> None:
        for begin in (cache.watch, lambda: cache.subscribe(print), lambda: cache.changes(0)):
            try:
                begin()
                late.append("told")
            except ClosedError:
                late.append("closed")
        finish(self, hub)

    monkeypatch.setattr(dispatch.Dispatcher, "finish", finishing)
    cache.close()
    assert late[:2] == ["closed"] * 2
    with pytest.raises(ClosedError):
        Watch(cache._events(), cursor, 1, False)
    with pytest.raises(ClosedError):
        cache._events().join(
            Subscription(cache._events(), print, cursor, 1, False, "thread", False), None
        )


@both
def test_no_thread_for_the_first_subscriber(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of it: neither is its cache served for ever, nor recorded for nobody."""
    first, second = make(), make()
    with monkeypatch.context() as patch:

        def start(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(dispatch, "_one", dispatch.Dispatcher())
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start"):
            first.subscribe(print)
        first["k"] = 1
        assert first.last_seq == 0, "it is recorded for nobody"
        patch.undo()
        one = dispatch.Dispatcher()
        patch.setattr(dispatch, "_one", one)
        got: list[Any] = []
        with second.subscribe(got.append):
            second["k"] = 1
            assert until(lambda: len(got) == 1)
        assert until(lambda: one._thread is None), "the thread lives on for nobody"


class Bad:
    """A hub with a fault of its own."""

    def __init__(self) -> None:
        self.ended = list[str]()

    def turn(self) -> bool:
        raise ZeroDivisionError("a hub")

    def pending(self, delivery: str) -> bool:
        return False

    def silence(self, wake: Any) -> None: ...

    def over(self, delivery: str) -> None:
        self.ended.append(delivery)


def test_the_fault_of_one_cache_is_not_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[Any]()
    monkeypatch.setattr(sys, "unraisablehook", lambda args: told.append(args.exc_value))
    bad, cache, got = Bad(), gbcache.Cache("1MB"), list[Any]()
    with cache.subscribe(got.append):
        dispatch.the().serve(bad, cache)
        assert until(lambda: bad.ended == ["thread"]) and isinstance(told[0], ZeroDivisionError)
        cache["k"] = 1
        assert until(lambda: len(got) == 1)
    assert until(lambda: dispatch.the()._thread is None)


def test_a_hub_that_lacks_a_thread_is_at_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a thread or a lock cannot be had for is short memory, and over later."""
    told, short = list[Any](), ["can't start new thread", "can't allocate lock"]
    monkeypatch.setattr(sys, "unraisablehook", lambda args: told.append(args.exc_value))
    cache, got = gbcache.Cache("1MB"), list[Any]()
    hub: Any = cache._events()
    turn = hub.turn

    def lacks() -> bool:
        if short:
            raise RuntimeError(short.pop())
        return bool(turn())

    hub.turn = lacks
    with cache.subscribe(got.append):
        cache["k"] = 1
        assert until(lambda: len(got) == 1) and not short and not told
    assert until(lambda: dispatch.the()._thread is None)


def test_a_thread_that_died_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    one = dispatch.Dispatcher()
    monkeypatch.setattr(dispatch, "_one", one)
    with gbcache.Cache("1MB") as cache, cache.subscribe(lambda event: None):
        monkeypatch.setattr(one, "_round", lambda: 1 // 0)
        one.ring()
        assert until(lambda: one._thread is not None)
        thread: Any = one._thread
        thread.join(10)
        monkeypatch.undo()
        monkeypatch.setattr(dispatch, "_one", one)
        got = list[Any]()
        with cache.subscribe(got.append):
            cache["k"] = 1
            assert until(lambda: len(got) == 1)


@both
def test_a_close_that_a_subscriber_interrupts_is_one(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while what is left is delivered: the cache is closed, and its other readers come to their end."""
    monkeypatch.setattr(sys, "unraisablehook", lambda args: None)
    cache, got = make(), list[Any]()
    watch = cache.watch()

    def interrupted(event: Any) -> None:
        got.append(event)
        raise KeyboardInterrupt

    cache.subscribe(interrupted, delivery="inline")
    cache._events()._draining.acquire()  # as if another thread were at it
    cache["k"] = 1
    cache._events()._draining.release()
    with contextlib.suppress(KeyboardInterrupt):
        cache.close()
        time.sleep(0.01)
    assert cache.closed and len(got) == 1
    assert [event.key for event in watch] == ["k"]


@both
def test_who_leaves_a_closed_cache_before_all_is_delivered(make: Any) -> None:
    cache, go = make(), threading.Event()
    inline = cache.subscribe(lambda event: None, delivery="inline")
    slow = cache.subscribe(lambda event: go.wait(20))
    cache["k"] = 1
    try:
        cache.close()
        slow.close()
    finally:
        go.set()
    assert inline.closed and slow.closed
