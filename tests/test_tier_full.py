"""`Tiered` with ``write="behind"`` over a far side that has no room: the rest goes on, and what waits is named."""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from children import skip_without_lmdb
from fars import Full, settle

from gbcache import BudgetError, Cache, FarError, ObjectCache, Tiered

SEEDS = 4
NEARS = {"Cache": lambda: Cache("4MB"), "ObjectCache": lambda: ObjectCache(10_000)}


@pytest.fixture(params=NEARS)
def near(request: pytest.FixtureRequest) -> Any:
    return NEARS[request.param]()


class Small(Full):
    """Has room for values of so many characters, together."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.puts, self.refused = room, 0, 0
        self.most = 0
        """Of one value; 0: any. Longer ones are refused for good."""

    def put_many(self, items: Any) -> None:
        after = {key: len(str(value)) for key, (value, _) in self.data.items()}
        after.update((key, len(str(value))) for key, value, _ in items)
        self.puts += 1
        if self.most and any(len(str(value)) > self.most for _, value, _ in items):
            raise BudgetError("it can never fit")
        if sum(after.values()) > self.room:
            self.refused += 1
            raise FarError(errno.ENOSPC, "no room")
        super().put_many(items)


def behind(near: Any, far: Any, **more: Any) -> Tiered:
    return Tiered(near, far, write="behind", behind_seconds=0.02, **more)


def waits(tier: Tiered, n: int = 1) -> None:
    """Until so many writes stand aside, and nothing else waits."""
    buffer: Any = tier._behind
    settle(lambda: len(buffer.aside.writes) == n == buffer.at_risk().entries)


def test_one_write_without_room_keeps_nothing_else_out(near: Any) -> None:
    tier = behind(near, Small(100))
    far: Any = tier.far
    tier["big"] = "x" * 200
    waits(tier)
    for i in range(5):
        tier[i] = "y"
        tier.incr("n")
        settle(lambda i=i: i in far.data)  # type: ignore[misc]
    assert tier.add("added", 1) and tier.get_or_set("made", lambda: 2) == 2
    tier.near.clear()
    assert tier["big"] == "x" * 200 == tier.peek("big") and tier["n"] == 5
    assert tier.stats().at_risk.entries == 1 and tier.stats().at_risk.seconds > 0.02
    tier[5] = "z"
    with pytest.raises(FarError, match=r"1 writes found no room.*'big'.*no room") as told:
        tier.sync()
    assert told.value.errno == errno.ENOSPC and far.data[5][0] == "z" and far.synced == 1
    with pytest.raises(FarError, match="'big'"):
        tier.close()
    with pytest.raises(FarError, match="'big'"):
        tier.incr("big")
    far.room = 1000
    tier.close()
    assert far.data["big"][0] == "x" * 200 and far.closed


REPLACES: dict[str, tuple[Callable[[Tiered], Any], Any]] = {
    "set": (lambda tier: tier.set("big", "small"), "small"),
    "set_many": (lambda tier: tier.set_many({"big": "small", "other": 1}), "small"),
    "discard": (lambda tier: tier.discard("big"), None),
    "del": (lambda tier: tier.__delitem__("big"), None),
    "delete_many": (lambda tier: tier.delete_many(["absent", "big"]), None),
    "pop": (lambda tier: tier.pop("big"), None),
    "clear": (lambda tier: tier.clear(), None),
}


@pytest.mark.parametrize("what", REPLACES)
def test_what_takes_the_place_of_one_without_room(near: Any, what: str) -> None:
    tier = behind(near, Small(100))
    far: Any = tier.far
    far.data["big"] = "old", None
    tier["big"] = "x" * 200
    waits(tier)
    change, wanted = REPLACES[what]
    done = change(tier)
    assert what != "delete_many" or done == 1
    assert what != "pop" or done == "x" * 200
    assert tier.get("big") == wanted
    tier.sync()
    tier.near.clear()
    assert tier.get("big") == wanted == far.data.get("big", (None,))[0]
    assert tier.stats().at_risk == (0, 0, 0.0)
    if wanted is None:
        with pytest.raises(KeyError):
            del tier["big"]
    tier.close()


def test_a_key_without_room_is_popped_once(near: Any) -> None:
    tier = behind(near, Small(100))
    got: list[Any] = []
    for _ in range(10):
        tier["big"] = "x" * 200
        waits(tier)
        threads = [
            threading.Thread(target=lambda: got.append(tier.pop("big", None))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sorted(map(bool, got)) == [False, False, True]
        got.clear()
    tier.close()


def test_of_many_all_that_fit_are_written(near: Any) -> None:
    """In few calls; and removals of the same batch make room first."""
    tier = behind(near, Small(1000))
    far: Any = tier.far
    tier["old"] = "x" * 900
    tier.sync()
    far.puts = far.refused = 0
    buffer: Any = tier._behind
    with buffer._change:  # one batch
        tier.set_many({("big", i): "x" * 2000 for i in range(3)})
        tier.set_many(dict.fromkeys(range(900), "y"))
        tier.discard("old")
    waits(tier, 3)
    assert all(i in far.data for i in range(900)) and "old" not in far.data
    assert far.puts < 60
    with pytest.raises(FarError, match=r"3 writes found no room.*big"):
        tier.sync()
    far.room = 3500
    with pytest.raises(FarError, match=r"2 writes found no room"):
        tier.sync()
    far.room = 10_000
    tier.close()
    assert len(far.data) == 903


def test_room_that_a_removal_makes_is_used_at_once(near: Any) -> None:
    tier = behind(near, Small(100))
    far: Any = tier.far
    tier["a"] = "a" * 60
    tier.sync()
    tier["b"] = "b" * 60
    waits(tier)
    tier.discard("a")
    settle(lambda: "b" in far.data)
    tier.sync()
    assert tier["b"] == "b" * 60 and tier.get("a") is None
    tier.close()


def test_each_of_those_that_wait_has_its_turn(near: Any) -> None:
    """Though the far side has room for a long one, and none for a short one."""
    tier = behind(near, Full())
    far: Any = tier.far
    open_to: list[Any] = []

    def full(verb: str, keys: list[Any]) -> None:
        if verb == "put" and not set(keys) <= set(open_to):
            raise FarError(errno.ENOSPC, "no room")

    far.hook = full
    tier.set_many({"a": "x", "b": "x" * 10, "c": "x" * 20})
    waits(tier, 3)
    open_to.append("c")
    settle(lambda: "c" in far.data)
    open_to.append("b")
    settle(lambda: "b" in far.data)
    open_to.append("a")
    tier.close()
    assert far.data.keys() == {"a", "b", "c"}


def test_what_has_no_room_is_bounded(near: Any) -> None:
    tier = behind(near, Small(10), behind_bytes=65536)
    far: Any = tier.far
    with pytest.raises(FarError, match=r"buffer is full.*no room") as told:
        for i in range(1000):
            tier[i] = "x" * 2000
    assert told.value.errno == errno.ENOSPC and tier.stats().at_risk.bytes <= 65536
    assert all(tier[j] == "x" * 2000 for j in range(i))
    tier[0] = "y" * 2000  # in the place of one that waits
    tier.discard(1)
    far.room = 10**6
    tier.sync()
    assert tier[0] == "y" * 2000 and tier.get(1) is None and len(far.data) == i - 1
    tier.close()


def test_what_can_never_fit_is_refused(near: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda hook: told.append(hook.exc_value))
    tier = behind(near, Small(100))
    far: Any = tier.far
    far.most = 50
    tier.set_many({"never": "x" * 60, "a": 1, "now": "x" * 50})
    settle(lambda: tier.stats().at_risk.entries == 0)
    tier["full"] = "y" * 50
    waits(tier)
    assert tier.stats().behind_errors == 1 == len(told) and isinstance(told[0], BudgetError)
    assert tier.get("never") is None and tier["a"] == 1
    far.most = 20
    settle(lambda: tier.stats().behind_errors == 2)
    assert tier.get("full") is None
    tier.close()


def test_a_clear_that_fails_keeps_what_had_no_room(near: Any) -> None:
    tier = behind(near, Small(100))
    far: Any = tier.far
    tier["big"] = "x" * 200
    waits(tier)
    far.hook = lambda verb, keys: (
        exec("raise FarError('not now')", globals()) if verb == "clear" else None
    )
    with pytest.raises(FarError, match="not now"):
        tier.clear()
    assert tier["big"] == "x" * 200
    far.room = 1000
    tier.sync()
    assert far.data["big"][0] == "x" * 200 == tier["big"]
    tier.close()


def test_a_clear_is_not_undone_by_what_is_being_tried(near: Any) -> None:
    for _ in range(20):
        tier = behind(near, Small(100))
        far: Any = tier.far
        tier["big"] = "x" * 200
        waits(tier)
        far.room = 1000  # it may be written at any moment
        tier.clear()
        assert tier.get("big") is None
        tier.sync()
        assert not far.data
        tier.close()
        near = Cache("1MB")


def test_a_far_side_that_fails_otherwise_keeps_what_had_no_room(near: Any) -> None:
    tier = behind(near, Small(100))
    far: Any = tier.far
    tier["big"] = "x" * 200
    waits(tier)
    far.failing = True
    tier["a"] = 1
    with pytest.raises(FarError, match="2 writes wait"):
        tier.sync()
    far.failing = False
    settle(lambda: "a" in far.data)
    waits(tier)
    far.room = 1000
    tier.close()
    assert len(far.data) == 2


def test_at_random(near: Any) -> None:
    """Reads give the last write, however it stands; the far side has all in the end."""
    import random

    for seed in range(SEEDS):
        dice, model = random.Random(seed), dict[Any, Any]()
        tier = behind(Cache("64kB"), Small(300), negative_ttl=60)
        far: Any = tier.far
        for step in range(400):
            key, deed = dice.randrange(12), dice.random()
            if deed < 0.5:
                tier[key] = model[key] = f"{step}" + "x" * dice.choice([0, 40, 400])
            elif deed < 0.6:
                tier.discard(key)
                model.pop(key, None)
            elif deed < 0.7:
                assert tier.delete_many([key]) == (model.pop(key, None) is not None), step
            elif deed < 0.72:
                tier.clear()
                model.clear()
            elif deed < 0.76:
                far.room = dice.choice([100, 300, 3000])
            elif deed < 0.8:
                with suppress(FarError):
                    tier.sync()
            else:
                if deed < 0.9:
                    tier.near.clear()
                assert tier.get(key) == model.get(key), (seed, step)
        far.room = 10**6
        tier.sync()
        assert {key: value for key, (value, _) in far.data.items()} == model
        tier.close()


def test_over_a_disk(tmp_path: Path) -> None:
    skip_without_lmdb(here=True)
    from gbcache import Disk

    tier = behind(Cache("32MB"), Disk(tmp_path, sync="never", max_bytes="4MiB"))
    tier.set_many(dict.fromkeys(range(60), b"y" * 100000))
    with pytest.raises(FarError, match="found no room"):
        tier.sync()
    waits(tier, len(tier._behind.aside.writes))  # type: ignore[union-attr]
    written = len(tier.far.get_many(range(60)))  # type: ignore[arg-type]
    assert 5 < written < 60
    tier.near.clear()
    assert all(tier[i] == b"y" * 100_000 for i in range(60))
    with pytest.raises(FarError, match="found no room"):
        tier.close()
    for i in range(60 - written):
        tier.discard(i + written)
    tier.close()
    with Disk(tmp_path) as disk:
        assert disk.count() == written
