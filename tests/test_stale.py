"""stale=: past its deadline a value is there for `get_or_set(stale=)` alone, until the hard end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

import gbcache

MAKERS: dict[str, Callable[..., Any]] = {
    "Cache": lambda **options: gbcache.Cache("1MB", **options),
    "ObjectCache": lambda **options: gbcache.ObjectCache(1000, **options),
}


def fails() -> Any:
    raise LookupError("the source is down")


async def afails() -> Any:
    fails()


@pytest.fixture(params=MAKERS)
def make(request: Any) -> Any:
    made: list[Any] = []

    def one(**options: Any) -> Any:
        made.append(MAKERS[request.param](**options))
        return made[-1]

    yield one
    for cache in made:
        cache.check()
        assert not cache._flights, "nothing of a flight stays"
        cache.close()


@pytest.fixture
def cache(make: Any, clock: Any) -> Any:
    """`k` is "old": 10 s of life, 5 more of staleness. It is now just past its deadline."""
    cache = make(clock=clock)
    assert cache.get_or_set("k", lambda: "old", ttl=10, stale=5) == "old"
    clock.pass_(9.999)
    assert cache["k"] == "old" == cache.get_or_set("k", fails, stale=5)
    clock.pass_(0.001)
    return cache


def served(cache: Any, key: Any = "k") -> Any:
    """What a refresh that fails answers; None if there is nothing to serve."""
    try:
        return cache.get_or_set(key, fails, stale=5)
    except LookupError:
        return None


REMOVALS: dict[str, Callable[[Any], Any]] = {
    "pop": lambda c: c.pop("k", None), "delete_many": lambda c: c.delete_many(["k"]) or None,
}  # fmt: skip


@pytest.mark.parametrize("remove", REMOVALS)
def test_what_is_past_and_removed_has_expired(cache: Any, remove: str) -> None:
    """It was not there to be deleted."""
    with cache.watch() as told:
        assert REMOVALS[remove](cache) is None
        assert [(event.kind, event.key) for event in told.read()] == [("expire", "k")]
    assert served(cache) is None


LOOKS: dict[str, Callable[[Any], Any]] = {
    "get": lambda c: c.get("k", "absent"), "[]": lambda c: c["k"], "in": lambda c: "k" in c,
    "peek": lambda c: c.peek("k", "absent"),
    "get_many": lambda c: c.get_many(["k"]), "iter": lambda c: list(c), "values": lambda c: list(c.values()),
    "items": lambda c: list(c.items()), "in items": lambda c: ("k", "old") in c.items(), "==": lambda c: c != {},
    "ttl": lambda c: c.ttl("k"), "entry": lambda c: c.entry("k"), "touch": lambda c: c.touch("k", ttl=50),
    "touch for ever": lambda c: c.touch("k", ttl=None), "expire": lambda c: c.expire(),
}  # fmt: skip


@pytest.mark.parametrize("later", [0, 2, 4.999])
@pytest.mark.parametrize("look", LOOKS)
def test_a_plain_look_finds_nothing_and_changes_nothing(
    cache: Any, clock: Any, look: str, later: float
) -> None:
    clock.pass_(later)
    try:
        assert LOOKS[look](cache) in ("absent", False, {}, [], 0)
    except KeyError as error:
        assert look in ("[]", "ttl", "entry") and error.args == ("k",)
    assert len(cache) == 1, "len counts it"
    assert served(cache) == "old"
    clock.pass_(5 - later)
    assert served(cache) is None, "nor is its end put off"


CHANGES: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
    "pop": (lambda c: c.pop("k", "absent"), "absent", None), "delete_many": (lambda c: c.delete_many(["k"]), 0, None),
    "clear": (lambda c: c.clear(), None, None), "add": (lambda c: c.add("k", "new"), True, "new"),
    "setdefault": (lambda c: c.setdefault("k", "new"), "new", "new"), "set": (lambda c: c.set("k", "new"), None, "new"),
    "incr": (lambda c: c.incr("k", 2, initial=40), 42, 42),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_takes_it_for_absent_and_ends_its_window(cache: Any, change: str) -> None:
    call, answer, then = CHANGES[change]
    assert call(cache) == answer
    assert cache.get("k") == then == served(cache)
    assert len(cache) == (then is not None) and (then is None or cache.ttl("k") is None)


def test_del_and_popitem_find_nothing(cache: Any) -> None:
    with pytest.raises(KeyError, match="empty"):
        cache.popitem()
    cache["other"] = 1
    assert cache.popitem() == ("other", 1)
    with pytest.raises(KeyError):
        del cache["k"]


def test_without_stale_it_is_not_seen(cache: Any) -> None:
    with pytest.raises(LookupError):
        cache.get_or_set("k", fails)
    assert served(cache) == "old", "a failed load takes nothing away"
    assert cache.get_or_set("k", lambda: "new") == "new" == served(cache)


def test_one_refreshes_and_the_others_are_served_at_once(cache: Any) -> None:
    begun, go = threading.Event(), threading.Event()

    def load() -> str:
        begun.set()
        assert go.wait(10)
        return "new"

    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(cache.get_or_set, "k", load, 20, 5)
        assert begun.wait(10)
        assert [cache.get_or_set("k", fails, stale=5) for _ in range(10)] == ["old"] * 10
        assert asyncio.run(cache.aget_or_set("k", afails, stale=5)) == "old"
        patient = pool.submit(cache.get_or_set, "k", fails)
        assert cache.get("k") is None and cache.stats().load_errors == 0
        go.set()
        assert leader.result(10) == "new" == patient.result(10) == cache["k"]
    assert cache.ttl("k") == 20


def test_a_failed_refresh_serves_the_old_and_is_counted(cache: Any) -> None:
    for n in (1, 2):
        assert served(cache) == "old" == asyncio.run(cache.aget_or_set("k", afails, stale=5))
        assert cache.stats().load_errors == 2 * n and cache.stats().loads == 1
    with pytest.raises(KeyboardInterrupt):
        cache.get_or_set("k", lambda: (_ for _ in ()).throw(KeyboardInterrupt), stale=5)
    assert served(cache) == "old"


def test_stale_hits_are_answers_past_the_deadline(cache: Any) -> None:
    assert cache.stats().stale_hits == 0
    assert served(cache) == "old" and cache.stats().stale_hits == 1
    assert cache.get_or_set("k", lambda: "new", stale=5) == "new"
    assert cache.stats().stale_hits == 1, "who loads is answered with the new value"


def test_the_hard_end_is_exact(cache: Any, clock: Any) -> None:
    clock.pass_(4.999)
    assert cache.expire() == 0 and served(cache) == "old"
    clock.pass_(0.001)
    with pytest.raises(LookupError):
        cache.get_or_set("k", fails, stale=1000)
    assert cache.expire() + cache.stats().expirations >= 1 and len(cache) == 0


@pytest.mark.parametrize("serve", [True, False])
def test_after_the_hard_end_nothing_is_served(cache: Any, clock: Any, serve: bool) -> None:
    """Also to who asks again after a refresh that took longer than the value was kept (a tier does)."""
    clock.pass_(4.999)
    assert cache._stale("k", None, serve) == "old"
    clock.pass_(0.001)
    assert cache._stale("k", None, serve) is None


def test_popitem_does_not_void_a_refresh(cache: Any) -> None:
    """It took nothing of the key's: to popitem it is absent."""

    def load() -> str:
        with pytest.raises(KeyError):
            cache.popitem()
        return "new"

    assert cache.get_or_set("k", load, stale=5) == "new" == cache.get("k")


def test_touch_and_incr_before_the_deadline_keep_the_window(make: Any, clock: Any) -> None:
    cache = make(clock=clock)
    for key in ("touched", "counted", "kept for ever", "set anew"):
        cache.get_or_set(key, lambda: 1, ttl=10, stale=5)
    clock.pass_(6)
    assert cache.touch("touched", ttl=10) and cache.incr("counted") == 2
    assert cache.touch("kept for ever", ttl=None)
    cache.set("set anew", 2, ttl=10)
    clock.pass_(4)
    assert cache["touched"] == 1 and served(cache, "counted") == 2 and "counted" not in cache
    clock.pass_(6)
    assert served(cache, "touched") == 1 and served(cache, "counted") is None
    assert served(cache, "set anew") is None and cache["kept for ever"] == 1
    clock.pass_(5)
    assert served(cache, "touched") is None


@pytest.mark.parametrize("ttl", [None, 10])
def test_idle_slides_and_the_window_follows(make: Any, clock: Any, ttl: float | None) -> None:
    cache = make(clock=clock, idle=4, ttl=ttl)
    cache.get_or_set("k", lambda: "old", stale=5)
    clock.pass_(3)
    assert cache["k"] == "old" and cache.ttl("k") == 4 and cache.entry("k").idle == 4
    clock.pass_(4)
    assert "k" not in cache
    for _ in range(4):
        assert served(cache) == "old", "being served is no use: the end stays"
        clock.pass_(1.25)
    assert served(cache) is None


@pytest.mark.parametrize("stale", [timedelta(days=49), 4_294_967])
def test_a_window_of_weeks_and_a_life_of_a_century(make: Any, clock: Any, stale: Any) -> None:
    cache = make(clock=clock)
    cache.get_or_set("k", lambda: "old", ttl=3_155_760_000, stale=stale)
    cache.get_or_set("short", lambda: "old", ttl=0.001, stale=stale)
    clock.pass_(48 * 86400)
    assert cache["k"] == "old" and served(cache, "short") == "old" and cache.expire() == 0
    clock.pass_(3_155_760_000 - 48 * 86400)
    assert "k" not in cache and served(cache) == "old" and served(cache, "short") is None
    clock.pass_(48 * 86400)
    assert served(cache) == "old"
    clock.pass_(2 * 86400)
    assert served(cache) is None and cache.expire() <= 1 and len(cache) == 0


@pytest.mark.parametrize(
    ("stale", "error"),
    [(3_155_760_000.0, ValueError), (-1, ValueError), (float("nan"), ValueError), (float("inf"), ValueError),
     (1e300, ValueError), (10**400, ValueError), (timedelta(-1), ValueError), ("5", TypeError), (True, TypeError),
     ([1], TypeError), (False, TypeError), ("", TypeError)],
)  # fmt: skip
def test_bad_stale(make: Any, stale: Any, error: type[Exception]) -> None:
    cache = make()
    with pytest.raises(error, match="stale"):
        cache.get_or_set("k", lambda: 1, stale=stale)
    with pytest.raises(error, match="stale"):
        asyncio.run(cache.aget_or_set("k", afails, stale=stale))
    assert len(cache) == 0


def test_jitter_moves_the_deadline_and_not_the_windows_length(make: Any, clock: Any) -> None:
    cache = make(clock=clock, ttl=100, jitter=0.5)
    for i in range(50):
        cache.get_or_set(i, lambda: "old", stale=5)
    lives = {i: cache.ttl(i) for i in range(50)}
    start = clock.now
    for i, life in sorted(lives.items(), key=lambda pair: pair[1]):
        clock.now = start + life
        assert i not in cache and served(cache, i) == "old"
        clock.now = start + life + 5
        assert served(cache, i) is None
