"""Keys that claim to be another, by hash and ``==``: a `Tiered` goes by their base value in memory, too."""

from __future__ import annotations

import enum
from typing import Any
from uuid import UUID

import pytest
from fars import Full

from gbcache import Cache, ObjectCache, Tiered

NEARS = {"Cache": lambda: Cache("1MB"), "ObjectCache": lambda: ObjectCache(100)}


class Liar(str):
    """Says that it is "other"."""

    def __eq__(self, other: object) -> bool:
        return other == "other"

    def __hash__(self) -> int:
        return hash("other")


class Number(int):
    def __eq__(self, other: object) -> bool:
        return other == "other"

    def __hash__(self) -> int:
        return hash("other")


class Own(str):
    """Is itself alone."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class Name(str, enum.Enum):
    A = "a"


@pytest.fixture(params=NEARS)
def tier(request: pytest.FixtureRequest) -> Any:
    return Tiered(NEARS[request.param](), Full())


@pytest.mark.parametrize("liar", [Liar("k"), Number(7)], ids=repr)
def test_none_has_the_value_of_another(tier: Any, liar: Any) -> None:
    tier["other"] = "its"
    assert tier["other"] == "its"  # it is in memory
    before = tier.near.stats().hits
    assert tier.get(liar) is None and tier.get_many([liar]) == {}
    with pytest.raises(KeyError):
        tier[liar]
    assert tier.near.stats().hits == before
    tier[liar] = "the liar's"
    assert tier[liar] == tier.get(liar) == "the liar's" and tier["other"] == "its"
    assert list(tier.get_many([liar]).values()) == ["the liar's"]
    del tier[liar]
    assert tier.get(liar) is None and tier["other"] == "its"


@pytest.mark.parametrize("make", [lambda: Own("a"), lambda: Name.A, lambda: "a"])
@pytest.mark.parametrize("part", [False, True])
def test_what_is_in_memory_is_a_hit(tier: Any, make: Any, part: bool) -> None:
    key, plain = ((1, make()), (1, "a")) if part else (make(), "a")
    tier[plain] = 1
    tier.far.data[plain] = (2, None)  # memory is not asked of it
    before = tier.near.stats()
    assert tier[key] == tier.get(key) == 1 and list(tier.get_many([key]).values()) == [1]
    after = tier.near.stats()
    assert (after.hits, after.misses) == (before.hits + 3, before.misses)
    tier.near.clear()
    assert tier[key] == 2


def test_what_a_far_side_takes_beyond_that() -> None:
    """Another kind of key is the far side's own affair."""
    tier = Tiered(ObjectCache(10), Full())
    key = UUID(int=7)
    tier[key] = 1
    assert tier[key] == 1 == tier.get_many([key])[key] and tier.near.stats().hits == 2


@pytest.mark.parametrize("key", [(), ("a",), ((((1,),),),)])
def test_a_tuple(tier: Any, key: Any) -> None:
    tier[key] = 1
    before = tier.near.stats().hits
    assert tier[key] == 1 and tier.near.stats().hits == before + 1
    for _ in range(100):
        key = (key,)
    with pytest.raises(ValueError, match="deeper"):
        tier.get(key)
