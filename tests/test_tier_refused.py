"""`Tiered` with ``write="behind"`` over a far side that does not take one write: it stands aside and is named."""

from __future__ import annotations

import errno
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
from fars import Full, settle
from servers import Server

from gbcache import Cache, FarError, Tiered
from gbcache.nodes import is_denied
from gbcache.valkey import Valkey

BROKEN = ("the line broke",)
DENIED = (errno.EACCES, "not this one")


def behind(far: Any, **more: Any) -> Tiered:
    return Tiered(Cache("4MB"), far, write="behind", behind_seconds=0.02, **more)


def refusing(far: Full, bad: set[Any], *told: Any, verbs: str = "put delete") -> None:
    """Every call with one of these keys fails."""

    def hook(verb: str, keys: list[Any]) -> None:
        if verb in verbs.split() and not bad.isdisjoint(keys):
            raise FarError(*told)

    far.hook = hook


@pytest.mark.parametrize("told", [BROKEN, DENIED], ids=["broken", "denied"])
@pytest.mark.parametrize("alone", [True, False])
def test_one_write_that_fails_keeps_no_other_out(told: tuple[Any, ...], alone: bool) -> None:
    far = Full()
    tier = behind(far)
    refusing(far, {"bad"}, *told)
    if alone:  # in a batch of its own, that fails before another is there
        tier["bad"] = 1
        settle(lambda: len([verb for verb, _ in far.calls if verb == "put"]) > 1)
    tier.set_many({**dict.fromkeys(range(100), "y"), "bad": 2})
    settle(lambda: len(far.data) == 100)
    settle(lambda: tier.stats().at_risk.entries == 1)
    with pytest.raises(FarError, match=r"1 writes are not taken by the far side .'bad'") as error:
        tier.sync()
    assert error.value.errno == errno.EACCES and far.synced == 1
    tier.near.clear()
    assert tier["bad"] == 2 and tier.incr("n") == 1
    with pytest.raises(FarError, match="'bad'"):
        tier.close()
    far.hook = lambda verb, keys: None
    tier.close()
    assert far.data["bad"][0] == 2 and len(far.data) == 102


@pytest.mark.parametrize("told", [BROKEN, DENIED], ids=["broken", "denied"])
def test_a_removal_that_fails_keeps_no_other_out(told: tuple[Any, ...]) -> None:
    far = Full()
    tier = behind(far)
    far.data["bad"] = "old", None
    refusing(far, {"bad"}, *told)
    tier.discard("bad")
    tier["a"] = 1
    tier.discard("b")
    settle(lambda: "a" in far.data)
    settle(lambda: tier.stats().at_risk.entries == 1)
    assert tier.get("bad") is None
    refusing(far, {"bad"}, *told, verbs="delete")
    tier["bad"] = 3  # in its place
    tier.close()
    assert far.data["bad"][0] == 3


def test_what_takes_the_place_of_one_that_fails() -> None:
    far = Full()
    tier = behind(far)
    refusing(far, {"bad"}, *DENIED, verbs="put")
    tier["bad"] = 1
    settle(lambda: bool(tier._behind.aside.writes))  # type: ignore[union-attr]
    tier.discard("bad")
    tier.close()
    assert not far.data and far.closed


def test_some_that_break_the_line_and_one_that_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda hook: told.append(hook.exc_value))
    far, bad = Full(), {7, 77, 177, 178, 179}
    tier = behind(far)
    refusing(far, bad, *BROKEN)
    fails = far.hook

    def hook(verb: str, keys: list[Any]) -> None:
        if verb == "put" and 111 in keys:
            raise TypeError("no value")
        fails(verb, keys)

    far.hook = hook
    tier.set_many(dict.fromkeys(range(200), "y"))
    settle(lambda: len(far.data) == 194)
    settle(lambda: tier.stats().at_risk.entries == 5)
    assert {type(error) for error in told} == {TypeError} and tier.stats().behind_errors == 1
    assert len(far.calls) < 150
    for key in bad:
        tier[key] = "z"
        bad.discard(key)
        break
    settle(lambda: key in far.data and tier.stats().at_risk.entries == 4)
    bad.clear()
    tier.close()
    assert len(far.data) == 199


def test_while_nothing_is_taken_nothing_stands_aside() -> None:
    """What is at risk for too long holds writers up, so no write may get out of that by failing."""
    far = Full()
    tier = behind(far)
    far.failing = True
    tier.set_many(dict.fromkeys(range(20), "y"))
    buffer: Any = tier._behind
    settle(lambda: buffer._failed > 2)
    assert not buffer.aside.writes and tier.stats().at_risk.entries == 20
    with pytest.raises(FarError, match="buffer is full: put: out of order"):
        tier["later"] = 1
    with pytest.raises(FarError, match="20 writes wait for the far side"):
        tier.sync()
    far.failing = False
    tier.close()
    assert len(far.data) == 20


def test_a_far_side_that_breaks_in_the_midst_of_them() -> None:
    """A few may be doubted wrongly, which are tried again; no more."""
    far = Full()
    tier = behind(far)
    far.failing = True
    tier.set_many(dict.fromkeys(range(50), "y"))
    buffer: Any = tier._behind
    settle(lambda: buffer._failed > 2)
    puts: list[int] = []

    def hook(verb: str, keys: list[Any]) -> None:
        if verb == "put":
            far.failing = bool(puts)
            puts.append(len(keys))

    far.hook = hook
    settle(lambda: len(puts) > 4)
    assert len(buffer.aside.writes) <= 9 and tier.stats().at_risk.entries >= 49
    far.hook = lambda verb, keys: None
    far.failing = False
    tier.close()
    assert len(far.data) == 50


def test_one_of_those_aside_that_fails_keeps_no_other_there() -> None:
    far, full, bad = Full(), {"full"}, {"bad"}
    tier = behind(far)

    def hook(verb: str, keys: list[Any]) -> None:
        if verb == "put" and not bad.isdisjoint(keys):
            raise FarError(*BROKEN)
        if verb == "put" and not full.isdisjoint(keys):
            raise FarError(errno.ENOSPC, "no room")

    far.hook = hook
    tier.set_many({"bad": 1, "full": 2, "a": 3, "b": 4})
    buffer: Any = tier._behind
    settle(lambda: buffer.aside.writes.keys() == {"bad", "full"})
    full.clear()

    def come() -> bool:
        buffer.aside.again = 0.0
        return "full" in far.data

    settle(come)
    assert tier.stats().at_risk.entries == 1
    bad.clear()
    tier.close()


def test_what_takes_the_place_of_one_that_fails_is_as_old() -> None:
    """Else who waits until all is there would go on as if it were."""
    far = Full()
    tier = behind(far)
    far.failing = True
    tier["a"] = 1
    buffer: Any = tier._behind
    settle(lambda: buffer._failed > 1)
    began = time.monotonic()
    tier["a"] = 2  # let by, and no other is
    failed = buffer._failed
    settle(lambda: buffer._failed > failed + 1)
    assert tier.stats().at_risk.entries == 1
    assert tier.stats().at_risk.seconds > time.monotonic() - began
    far.failing = False
    tier.close()
    assert far.data["a"][0] == 2


def test_the_end_writes_all_that_is_taken() -> None:
    """It does not give up at the first failure, which may be one write's."""
    far = Full()
    tier = Tiered(Cache("4MB"), far, write="behind", behind_seconds=30)
    refusing(far, {("bad", i) for i in range(5)}, *BROKEN)
    tier.set_many(dict.fromkeys(range(1000), "y"))
    tier.set_many({("bad", i): "y" for i in range(5)})
    with pytest.raises(FarError, match="5 writes are not taken"):
        tier.close()
    assert len(far.data) == 1000
    far.hook = lambda verb, keys: None
    tier.close()


def test_the_time_an_entry_has_left_is_that_of_the_call() -> None:
    """Others may take long to fail before it."""
    far, bad = Full(), {("bad", i) for i in range(4)}
    tier = Tiered(Cache("4MB"), far, write="behind", behind_seconds=30)

    def hook(verb: str, keys: list[Any]) -> None:
        if verb == "put" and not bad.isdisjoint(keys):
            time.sleep(0.05)
            raise FarError(*BROKEN)

    far.hook = hook
    tier.set_many(dict.fromkeys(bad, "y"))
    began = time.monotonic()
    for i in range(10):
        tier.set(i, "y", ttl=0.15)
    tier["last"] = 1
    with pytest.raises(FarError):
        tier.sync()
    ends = [until for _, until in far.data.values() if until is not None]
    assert all(until < began + 0.15 + 0.05 for until in ends)  # what is over is not put at all
    bad.clear()
    tier.close()


def test_what_fails_at_random() -> None:
    """What is not refused is there after a `sync`, and reads give the last write; in the end all is there."""
    for seed in range(3):
        dice, model, bad = random.Random(seed), dict[Any, Any](), dict[Any, tuple[Any, ...]]()
        far = Full()

        def hook(verb: str, keys: list[Any], bad: Any = bad) -> None:
            told = [bad[key] for key in keys if key in bad]
            if verb in ("put", "delete") and told:
                raise FarError(*told[0])

        far.hook = hook
        tier = behind(far, behind_bytes="1MB")
        for step in range(300):
            key, deed = dice.randrange(30), dice.random()
            with suppress(FarError):
                if deed < 0.6:
                    tier[key] = step
                    model[key] = step
                elif deed < 0.7:
                    tier.discard(key)
                    model.pop(key, None)
                elif deed < 0.75:
                    bad[key] = dice.choice([BROKEN, DENIED])
                elif deed < 0.85:
                    bad.pop(dice.choice(list(bad) or [0]), None)
                elif deed < 0.88:
                    time.sleep(0.002)
                else:
                    tier.near.clear()
                    assert tier.get(key) == model.get(key), (seed, step)
        with suppress(FarError):
            tier.sync()
        here = {key: value for key, (value, _) in far.data.items()}
        assert all(here.get(key) == model.get(key) or key in bad for key in range(30)), seed
        bad.clear()
        for _ in range(2):  # an attempt that was under way
            with suppress(FarError):
                tier.sync()
        tier.close()
        assert {key: value for key, (value, _) in far.data.items()} == model, seed


# --- a server -------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server("--proto-max-bulk-len", "1mb")
    yield server
    server.close()


def _denied(server: Server) -> tuple[str, Any]:
    rules = ("on", ">p", "+@all", "~gb:spub*", "&*")
    redis.Redis(port=server.port).execute_command("ACL", "SETUSER", "u", *rules)
    return f"redis://u:p@127.0.0.1:{server.port}", 1


def _long(server: Server) -> tuple[str, Any]:
    return server.url, b"x" * 2_000_000


@pytest.mark.parametrize("why", [_denied, _long])
def test_what_a_server_refuses_keeps_no_other_out(
    server: Server, why: Callable[[Server], tuple[str, Any]]
) -> None:
    url, value = why(server)
    tier = Tiered(Cache("16MB"), Valkey(url), write="behind", behind_seconds=0.02)
    tier["secret"] = value
    time.sleep(0.05)
    for i in range(5):
        tier[f"pub{i}"] = i
    asked = redis.Redis(port=server.port)
    settle(lambda: asked.dbsize() == 5)
    settle(lambda: tier.stats().at_risk.entries == 1)
    with pytest.raises(FarError, match=r"1 writes are not taken by the far side .'secret'"):
        tier.close()
    asked.execute_command("ACL", "SETUSER", "u", "~*")
    tier["secret"] = 1
    tier.close()
    assert asked.dbsize() == 6


def test_a_server_that_takes_nothing_refuses_no_single_write() -> None:
    assert not is_denied(redis.ResponseError("MISCONF Errors writing to the AOF file"))
    assert not is_denied(redis.ResponseError("NOREPLICAS Not enough good replicas to write."))
    assert is_denied(redis.ResponseError("invalid expire time in 'set' command"))
    assert is_denied(redis.exceptions.NoPermissionError("this user has no permissions"))
