"""Keys of a subclass with an ``==`` of its own: a `Tiered` stores the base value, and has it on its way as that."""

from __future__ import annotations

import asyncio
import enum
import threading
from typing import Any

import pytest
from fars import Full, Telling

from gbcache import Cache, ObjectCache, Tiered

NEARS = {"Cache": lambda: Cache("1MB"), "ObjectCache": lambda: ObjectCache(100)}


class Own(str):
    """None is another, and all are alike in a dict: so it is with what lies."""

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 7


class Same(str):
    """All are one."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 7


class Pair(tuple):  # type: ignore[type-arg]
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class Name(str, enum.Enum):
    A = "a"


KEYS: dict[str, Any] = {
    "none is another": (lambda: Own("k"), "k"),
    "all are one": (lambda: Same("k"), "k"),
    "a tuple": (lambda: Pair(("k", 1)), ("k", 1)),
    "within a tuple": (lambda: ("k", (Own("l"), 1)), ("k", ("l", 1))),
    "an enum": (lambda: Name.A, "a"),
}


@pytest.fixture(params=NEARS)
def near(request: pytest.FixtureRequest) -> Any:
    return NEARS[request.param]()


@pytest.fixture(params=KEYS)
def key(request: pytest.FixtureRequest) -> Any:
    """What makes it, and its base value."""
    return KEYS[request.param]


def test_what_is_on_its_way_is_read(near: Any, key: Any) -> None:
    make, base = key
    tier = Tiered(near, Full(), write="behind", behind_seconds=60)
    far: Any = tier.far
    far.data[base] = "old", None
    tier[make()] = 1
    tier.near.clear()
    assert tier[make()] == 1 == tier[base] == tier.peek(make()) and make() in tier
    assert tier.ttl(make()) is None and list(tier.get_many([make()]).values()) == [1]
    tier.set_many({make(): 2})
    tier.near.clear()
    assert tier[base] == 2 and tier.stats().at_risk.entries == 1
    tier.discard(make())
    assert tier.get(base) is None and tier.get(make()) is None
    tier.sync()
    assert base not in far.data
    assert tier.add(make(), 3) and not tier.add(base, 4) and tier.setdefault(make(), 4) == 3
    assert tier.incr(make()) == 4 and tier.touch(make(), 60)
    assert tier.pop(make()) == 4 and tier.get_or_set(make(), lambda: 5) == 5
    assert asyncio.run(tier.aget_or_set(make(), None)) == 5  # type: ignore[arg-type]
    del tier[make()]
    assert tier.delete_many([make(), base]) == 0
    tier.close()
    assert not far.data and all(
        type(each) in (str, tuple) for verb, keys in far.calls for each in keys
    )


def test_two_keys_that_are_one_are_two(near: Any) -> None:
    tier = Tiered(near, Full(), write="behind", behind_seconds=60)
    tier[Same("a")], tier[Same("b")] = 1, 2
    tier.near.clear()
    assert tier["a"] == 1 and tier["b"] == 2
    tier.close()


@pytest.mark.parametrize("write", ["through", "behind"])
def test_writes_that_overlap_meet(near: Any, key: Any, write: str) -> None:
    """Of a key and its base value: the one's voids the other's, and a change elsewhere both."""
    make, base = key
    tier = Tiered(near, Telling(), write=write, behind_seconds=0.01)
    far: Any = tier.far
    far.listener.restored()
    for first, second in ((make(), base), (base, make()), (make(), make())):
        reached, go = threading.Event(), threading.Event()

        def hold(verb: str, keys: list[Any], reached: Any = reached, go: Any = go) -> None:
            if not reached.is_set():
                reached.set()
                assert go.wait(10)

        far.after = hold
        one = threading.Thread(
            target=tier.add if write == "behind" else tier.set, args=(first, "one")
        )
        one.start()
        assert reached.wait(10)
        far.foreign(base, "theirs")
        two = threading.Thread(target=tier.set, args=(second, "two"))
        two.start()
        two.join(0.2)
        go.set()
        one.join(10)
        two.join(10)
        tier.sync()
        assert tier[base] == far.data[base][0] == tier[make()]
        assert not tier._side._writing
        del tier[base]
    tier.close()


def test_a_load_gets_the_key_as_it_was_given(near: Any, key: Any) -> None:
    make, base = key
    given: list[Any] = []

    def load(key: Any) -> int:
        given.append(key)
        return 1

    tier = Tiered(near, Full(), load=load)
    one, other = make(), make()
    assert tier[one] == 1 and given[0] is one and tier[base] == 1 and len(given) == 1
    tier.clear()
    got = tier.get_many([other, "x"])
    assert list(got.values()) == [1, 1] and any(each is other for each in got)
    assert given[1] is other and given[2] == "x"
    tier.near.clear()
    assert len(tier.get_many([make(), base, base])) == len({make(), base})
    assert tier.far.data.keys() == {base, "x"}  # type: ignore[attr-defined]
    tier.close()


def test_a_key_that_is_none_is_refused_as_ever(near: Any) -> None:
    deep: Any = Own("k")
    for _ in range(5000):
        deep = (deep,)
    with Tiered(near, Full(), write="behind") as tier:
        for bad, error in ((deep, ValueError), (Pair(([],)), TypeError)):
            for call in (tier.peek, tier.discard, lambda key: tier.set(key, 1)):
                with pytest.raises(error):
                    call(bad)
        assert not len(tier)


def test_a_change_that_is_told_by_another_name_is_of_the_same_key(near: Any, key: Any) -> None:
    make, base = key
    with Tiered(near, Telling(), negative_ttl=60) as tier:
        far: Any = tier.far
        far.listener.restored()
        assert tier[make()] == 1 if tier.add(base, 1) else False
        far.data[base] = 2, None
        far.listener.changed([make()])
        assert tier[base] == 2
