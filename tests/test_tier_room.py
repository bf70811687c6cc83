"""`Tiered` with ``write="behind"``: a far side that is emptied meanwhile, or has room for one never."""

from __future__ import annotations

import errno
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from children import skip_without_lmdb
from fars import Full, settle
from test_tier_full import NEARS, Small, behind, waits

from gbcache import Cache, FarError


@pytest.fixture(params=NEARS)
def near(request: pytest.FixtureRequest) -> Any:
    return NEARS[request.param]()


def test_a_clear_that_takes_long_keeps_nobody(near: Any) -> None:
    """Nor does one take away what was written in its midst."""
    tier = behind(near, Small(100))
    far: Any = tier.far
    buffer: Any = tier._behind
    tier["big"] = "x" * 200
    waits(tier)
    inside, go = threading.Event(), threading.Event()

    def slow(verb: str, keys: list[Any]) -> None:
        if verb == "clear":
            inside.set()
            assert go.wait(20)

    far.hook = slow
    clears = threading.Thread(target=tier.clear)
    clears.start()
    assert inside.wait(10)
    buffer.aside.again = 0.0
    tier["before"] = 1
    settle(lambda: "before" in far.data)
    tier["late"] = "y" * 200
    waits(tier, 2)
    for i in range(5):
        tier[i] = 1
        settle(lambda i=i: i in far.data)  # type: ignore[misc]
    go.set()
    clears.join(10)
    assert not clears.is_alive() and tier.get("big") is None and tier["late"] == "y" * 200
    far.room = 1000
    tier.close()
    assert far.data.keys() == {"late"}


def test_a_handler_in_the_midst_of_a_clear_waits_for_nothing(near: Any) -> None:
    tier = behind(near, Small(100))
    far: Any = tier.far
    buffer: Any = tier._behind
    tier["big"] = "x" * 200
    waits(tier)
    told: list[Any] = []

    def handler(verb: str, keys: list[Any]) -> None:
        if verb == "clear" and threading.current_thread() is clears:
            buffer.aside.again = 0.0
            with far.held:  # what it has in its hand
                tier["a"] = 1
                time.sleep(0.1)
                tier["b"] = 2  # that one is too old for a writer not to wait
                for verb in (tier.sync, lambda: tier.incr("a")):
                    with suppress(FarError):
                        verb()
                        told.append(verb)
                    told.append(None)

    far.held, far.hook = threading.Lock(), handler
    clears = threading.Thread(target=tier.clear, daemon=True)
    put = far.put_many
    far.put_many = lambda items: far.held.acquire() and (far.held.release() or put(items))
    clears.start()
    clears.join(10)
    assert not clears.is_alive() and told == [None, None] and tier.get("big") is None
    tier.sync()
    assert tier.stats().at_risk == (0, 0, 0.0)
    tier.close()


def test_removals_find_their_way_past_what_has_no_room(near: Any) -> None:
    """They are what makes room."""
    tier = behind(near, Small(1900), behind_bytes=65536)
    far: Any = tier.far
    tier["old"] = "x" * 1900
    tier.sync()
    with pytest.raises(FarError, match="buffer is full"):
        for i in range(1000):
            tier[i] = "x" * 2000
    with pytest.raises(FarError, match="buffer is full"):
        for j in range(100):
            tier["short", j] = "y"
    for key in ["old", *(("absent", j) for j in range(1000))]:
        tier.discard(key)
    settle(lambda: "old" not in far.data)
    far.room = 10**6
    tier.sync()
    assert len(far.data) == i + j
    far.hook = lambda verb, keys: exec("raise FarError(28, 'no room')", globals())
    with pytest.raises(FarError, match="buffer is full"):  # even so it is bounded
        for i in range(3000):
            tier.discard(("none", i))
    assert tier.stats().at_risk.bytes <= 2 * 65536
    far.hook = lambda verb, keys: None
    tier.close()


def test_many_keys_and_many_that_have_no_room() -> None:
    tier = behind(Cache("16MB"), Small(1), behind_bytes="32MB")
    tier.set_many({f"k{i}": f"{i} and more" for i in range(8000)})
    waits(tier, 8000)
    keys = ["k0", *(f"z{i}" for i in range(60_000))]
    begun = time.thread_time()
    assert tier.delete_many(keys) == 1
    assert time.thread_time() - begun < 1  # some seconds, if each is sought among all
    tier.clear()
    tier.close()


def test_a_disk_that_one_call_is_too_long_for(tmp_path: Path) -> None:
    """Each fits, and not all at once; so it is with those that wait for room, too."""
    skip_without_lmdb(here=True)
    from gbcache import Disk

    tier = behind(Cache("32MB"), Disk(tmp_path, sync="never", max_bytes="4MiB"))
    far: Any = tier.far
    tier.set_many(dict.fromkeys(range(180), b"x" * 20000))
    with pytest.raises(FarError, match="found no room") as told:
        tier.sync()
    assert told.value.errno == errno.ENOSPC
    first = far.count()
    assert 50 < first < 180 and tier.stats().behind_errors == 0
    tier.set_many(dict.fromkeys(range(180, 360), b"x" * 20000))
    waits(tier, 360 - first)  # more than any one call may bring
    tier.delete_many([i for i in range(180) if far.get_many([i])])
    settle(lambda: far.count() > 50)
    assert all(tier[i] == b"x" * 20_000 for i in range(180, 360))
    tier.clear()
    tier.close()


def test_a_disk_that_one_write_never_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_lmdb(here=True)
    from gbcache import Disk

    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda hook: told.append(hook.exc_value))
    tier = behind(Cache("32MB"), Disk(tmp_path, sync="never", max_bytes="4MiB"))
    buffer: Any = tier._behind
    tier["big"] = b"x" * 3_000_000
    settle(lambda: tier.stats().behind_errors == 1)
    tier[0] = b"small"
    tier.sync()
    assert tier.get("big") is None and tier[0] == b"small"
    with buffer._change:  # one batch: between those that fit
        tier.set_many({"big": b"x" * 3_000_000, 1: b"small", "long": b"y" * 1_000_000})
        tier.set("bigger", b"x" * 6_000_000)
    tier.sync()
    assert tier.stats().behind_errors == 3 == len(told)
    assert {error.errno for error in told} == {errno.EFBIG}
    tier.near.clear()
    assert tier.get_many(["big", "bigger", 0, 1]) == {0: b"small", 1: b"small"}
    tier["late"] = b"y" * 1_500_000
    waits(tier)  # there is no room
    tier["big"] = b"x" * 3_000_000
    settle(lambda: tier.stats().behind_errors == 4)
    with pytest.raises(FarError, match=r"1 writes found no room.*'late'"):
        tier.sync()
    del tier["late"]
    tier.close()


@pytest.mark.parametrize("cause", [OSError(errno.EFBIG, "File too large"), None])
def test_a_file_that_may_be_no_longer_is_no_write_too_long(
    near: Any, cause: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of the process's, which may be lifted."""
    monkeypatch.setattr(sys, "unraisablehook", lambda hook: None)
    tier = behind(near, Full())
    far: Any = tier.far

    def limited(verb: str, keys: list[Any]) -> None:
        if verb == "put":
            raise FarError(errno.EFBIG, "too long") from cause

    far.hook = limited
    tier["a"] = 1
    settle(lambda: tier._behind._failed > 2 or tier.stats().behind_errors > 0)  # type: ignore[union-attr]
    far.hook = lambda verb, keys: None
    assert tier.get("a") == (1 if cause else None)
    tier.close()
    assert ("a" in far.data) == bool(cause)


def test_what_has_no_room_and_then_fails_otherwise_keeps_nothing_else_out() -> None:
    """For however long: they are tried by turns."""
    tier = behind(Cache("1MB"), Full())
    far: Any = tier.far

    def fails(verb: str, keys: list[Any]) -> None:
        if verb == "put" and "big" in keys:
            raise FarError(code, "not that one")

    code, far.hook = errno.ENOSPC, fails
    tier["big"] = 1
    waits(tier)
    code = errno.EIO
    aside: Any = tier._behind.aside  # type: ignore[union-attr]
    settle(lambda: tier.stats().far_errors > 3)
    aside._fruitless, errors = 9, tier.stats().far_errors  # it rests as long as it ever does
    settle(lambda: tier.stats().far_errors > errors + 1)
    tier["small"] = 1
    settle(lambda: "small" in far.data)
    far.hook = lambda verb, keys: None
    tier.close()
    assert set(far.data) == {"big", "small"}


@pytest.mark.parametrize("begun", [False, True], ids=["the same", "a later one"])
def test_a_reader_meets_what_takes_the_place_of_what_is_aside(near: Any, begun: bool) -> None:
    """It looks without the lock, while a write comes to the newest generation, or one begun since, and `aside` lets go
    of the one before."""
    tier = behind(near, Small(100))
    far: Any = tier.far
    buffer: Any = tier._behind
    tier["k"] = "x" * 200
    waits(tier)
    buffer.interval = buffer._late = 60.0  # what is put now stays
    met: list[Any] = []

    def comes() -> None:
        if not met:
            met.append(1)
            if begun:  # as the thread begins one
                buffer._newest = {}
                buffer._generations.append(buffer._newest)
            tier["k"] = "later"

    class Aside(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            comes()
            return super().get(key, default)

    class Newest(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            found = super().get(key, default)
            comes()
            return found

    with buffer.aside.sparing:  # it is not tried
        buffer.aside.writes = Aside(buffer.aside.writes)
        buffer._newest = buffer._generations[-1] = Newest()
        found = buffer.last("k")
        assert met and found is not None and found[0] == "later"
        assert not buffer.aside.writes and buffer.has_any(["k"])
    far.room = 1000
    tier.close()
    assert far.data["k"][0] == "later"
