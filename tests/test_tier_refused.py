"""`Tiered` with ``write="behind"`` over a far side that does not take one write: it stands aside and is named."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Iterator
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
    assert len(buffer.aside.writes) <= 8 and tier.stats().at_risk.entries >= 49
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
