"""What every cache class promises: one mixin, run by each."""

from __future__ import annotations

import collections.abc
import copy
import pickle
from typing import Any

import pytest


class MappingContract:
    """A subclass gives `make(**options)`."""

    def make(self, **options: Any) -> Any:
        raise NotImplementedError

    @pytest.fixture
    def cache(self) -> Any:
        cache = self.make()
        yield cache
        cache.check()
        cache.close()

    def test_is_a_mapping(self, cache: Any) -> None:
        assert isinstance(cache, collections.abc.MutableMapping)
        with pytest.raises(TypeError, match="unhashable"):
            hash(cache)

    def test_round_trip(self, cache: Any) -> None:
        cache["k"] = "v"
        assert cache["k"] == "v" and "k" in cache and len(cache) == 1
        cache["k"] = "w"
        assert cache["k"] == "w" and len(cache) == 1
        del cache["k"]
        assert "k" not in cache and len(cache) == 0
        with pytest.raises(KeyError, match="k"):
            cache["k"]
        with pytest.raises(KeyError, match="k"):
            del cache["k"]

    def test_a_tuple_as_a_missing_key_is_one_argument(self, cache: Any) -> None:
        with pytest.raises(KeyError) as caught:
            cache[1, "x"]
        assert caught.value.args == ((1, "x"),)

    @pytest.mark.parametrize("value", [None, 0, b"", "", False, 0.0, [], {}])
    def test_falsy_values_are_values(self, cache: Any, value: object) -> None:
        cache["k"] = value
        absent = object()
        assert cache.get("k", absent) == value and cache.get("k", absent) is not absent
        assert type(cache["k"]) is type(value)

    def test_get_peek_pop_defaults(self, cache: Any) -> None:
        assert cache.get("k") is None and cache.get("k", 1) == 1 and cache.get("k", default=2) == 2
        assert cache.peek("k") is None and cache.peek("k", 3) == 3
        assert cache.pop("k", 4) == 4
        with pytest.raises(KeyError):
            cache.pop("k")
        cache["k"] = 5
        assert cache.pop("k") == 5 and "k" not in cache

    @pytest.mark.parametrize("call", ["get", "set", "add"])
    def test_arguments_are_checked(self, cache: Any, call: str) -> None:
        verb = getattr(cache, call)
        with pytest.raises(TypeError, match="missing"):
            verb()
        with pytest.raises(TypeError, match="at most"):
            verb(1, 2, 3, 4, 5)
        with pytest.raises(TypeError, match="unexpected keyword"):
            verb("k", 1, frobnicate=2)

    def test_order_is_least_recently_used_first(self, cache: Any) -> None:
        for key in "abcd":
            cache[key] = key
        cache["a"], cache.get("b")
        assert list(cache) == ["c", "d", "a", "b"]
        "c" in cache, cache.peek("d"), cache.entry("c"), list(cache.values()), list(cache.items())
        assert list(cache) == ["c", "d", "a", "b"], "looking is no use"
        cache.touch("c")
        cache["d"] = "D"
        assert list(cache.items()) == [("a", "a"), ("b", "b"), ("c", "c"), ("d", "D")]
        assert cache.popitem() == ("a", "a")

    def test_popitem_of_nothing(self, cache: Any) -> None:
        with pytest.raises(KeyError, match="empty"):
            cache.popitem()

    def test_setdefault_update_clear(self, cache: Any) -> None:
        assert cache.setdefault("k", 1) == 1 and cache.setdefault("k", 2) == 1
        cache.update({"a": 1}, b=2)
        cache.update([("c", 3)])
        assert dict(cache) == {"k": 1, "a": 1, "b": 2, "c": 3}
        cache.clear()
        assert not cache and list(cache) == []

    def test_equality_is_of_mappings(self, cache: Any) -> None:
        cache.update({"a": 1, "b": [2]})
        assert cache == {"b": [2], "a": 1} and cache != {"a": 1} and cache != [("a", 1)]

    def test_views(self, cache: Any) -> None:
        cache.update({"a": 1, "b": 2})
        assert cache.keys() == {"a", "b"} and "a" in cache.keys()  # noqa: SIM118
        assert cache.items() == {("a", 1), ("b", 2)} and ("a", 2) not in cache.items()
        assert sorted(cache.values()) == [1, 2] and 2 in cache.values() and 3 not in cache.values()

    def test_iteration_survives_everything(self, cache: Any) -> None:
        cache.update({i: i for i in range(200)})
        seen = []
        for key in cache:
            seen.append(key)
            if key % 2 == 0:
                cache.pop(key + 1, None)
            cache[key] = -key
            cache[1000 + key] = 0
        assert seen == list(range(0, 200, 2)), "one moment's keys, without those that vanished"

    def test_clear_during_iteration(self, cache: Any) -> None:
        cache.update({i: i for i in range(50)})
        walk = iter(cache)
        next(walk)
        cache.clear()
        assert list(walk) == []

    def test_missing_is_honoured(self, cache: Any) -> None:
        class Counting(type(cache)):  # type: ignore[misc]
            def __missing__(self, key: str) -> str:
                return f"no {key}"

        other = Counting(**self.options())
        assert other["x"] == "no x" and other.get("x") is None and "x" not in other
        other.close()

    def options(self) -> dict[str, Any]:
        raise NotImplementedError

    def test_bulk(self, cache: Any) -> None:
        cache.set_many({f"k{i}": i for i in range(100)})
        cache.set_many([("x", 1), ("y", 2)])
        keys = [f"k{i}" for i in range(0, 200, 3)]
        assert cache.get_many(keys) == {f"k{i}": i for i in range(0, 100, 3)}
        assert cache.get_many([]) == {} and cache.get_many(iter(["x", "x"])) == {"x": 1}
        assert cache.delete_many(["x", "nope", "y", "y"]) == 2
        with pytest.raises(ValueError, match="item 1 has 3 parts"):
            cache.set_many([("a", 1), ("b", 2, 3)])
        with pytest.raises(TypeError):
            cache.set_many(5)

    def test_get_many_counts_as_use(self, cache: Any) -> None:
        cache.update({"a": 1, "b": 2, "c": 3})
        cache.get_many(["a", "b"])
        assert list(cache) == ["c", "a", "b"]

    def test_add(self, cache: Any) -> None:
        assert cache.add("k", 1) is True and cache.add("k", 2) is False and cache["k"] == 1

    def test_incr(self, cache: Any) -> None:
        assert cache.incr("n") == 1 and cache.incr("n", 5) == 6 and cache.incr("n", -10) == -4
        assert cache.incr("m", 2, initial=40) == 42 and cache["m"] == 42
        for bad in ("x", 1.5, True, None, [1]):
            cache["n"] = bad
            with pytest.raises(TypeError, match="not an int"):
                cache.incr("n")
            assert cache["n"] == bad
        for delta in (1.0, True, "1", None):
            with pytest.raises(TypeError, match="delta"):
                cache.incr("k", delta)

    def test_no_copies(self, cache: Any) -> None:
        for refuse in (copy.copy, copy.deepcopy, pickle.dumps, lambda c: c.copy()):
            with pytest.raises(TypeError, match=r"cannot be (copied|pickled): "):
                refuse(cache)

    # --- time ----------------------------------------------------------------------------------

    def test_ttl_is_exact(self, clock: Any) -> None:
        cache = self.make(clock=clock, ttl=10)
        cache["a"] = 1
        cache.set("b", 2, ttl=3)
        cache.set("c", 3, ttl=None)
        assert cache.ttl("a") == 10 and cache.ttl("b") == 3 and cache.ttl("c") is None
        clock.pass_(2.999)
        assert cache["b"] == 2 and "b" in cache
        clock.pass_(0.001)
        assert cache.get("b") is None and "b" not in cache and cache.peek("b") is None
        assert "b" not in list(cache) and cache.pop("b", None) is None
        with pytest.raises(KeyError):
            cache.ttl("b")
        clock.pass_(7)
        assert cache.get("a") is None and cache["c"] == 3
        cache.check()
        assert cache.expire() == 0 and len(cache) == 1
        stats = cache.stats()
        assert stats.expirations == 2 and stats.misses_expired == 2

    def test_expire_gives_the_dead_back(self, clock: Any) -> None:
        cache = self.make(clock=clock)
        for i in range(300):
            cache.set(i, i, ttl=1 + i)
        clock.pass_(100.5)
        assert cache.expire() == 100 and len(cache) == 200 and next(iter(cache)) == 100
        cache.check()

    def test_writes_set_the_deadline_anew(self, clock: Any) -> None:
        cache = self.make(clock=clock, ttl=10)
        cache["n"] = 1
        clock.pass_(4)
        assert cache.incr("n") == 2 and cache.ttl("n") == 6, "incr keeps it"
        cache["n"] = 5
        assert cache.ttl("n") == 10
        assert cache.touch("n", ttl=2) is True and cache.ttl("n") == 2
        assert cache.touch("n", ttl=None) and cache.ttl("n") is None
        assert cache.touch("n") and cache.ttl("n") == 10
        assert cache.touch("nope") is False

    def test_add_over_an_expired_entry(self, clock: Any) -> None:
        cache = self.make(clock=clock)
        cache.set("k", 1, ttl=1)
        clock.pass_(1)
        assert cache.add("k", 2) and cache["k"] == 2 and cache.ttl("k") is None

    def test_idle_slides(self, clock: Any) -> None:
        cache = self.make(clock=clock, idle=5, ttl=12)
        cache["k"] = 1
        for _ in range(2):
            clock.pass_(4)
            assert cache["k"] == 1
        assert cache.ttl("k") == 4, "never beyond the ttl"
        clock.pass_(4)
        assert "k" not in cache
        cache["j"] = 1
        clock.pass_(4.9)
        assert "j" in cache, "looking is no use"
        clock.pass_(0.1)
        assert "j" not in cache

    def test_jitter_only_shortens(self, clock: Any) -> None:
        cache = self.make(clock=clock, ttl=100, jitter=0.5)
        for i in range(200):
            cache[i] = i
        lives = [cache.ttl(i) for i in range(200)]
        assert all(50 <= life <= 100 for life in lives) and len(set(lives)) > 100

    @pytest.mark.parametrize("ttl", [0, -1, float("nan"), -0.0, float("inf"), 1e300, 10**400])
    def test_bad_ttl(self, cache: Any, ttl: float) -> None:
        for call in (
            lambda: cache.set("k", 1, ttl=ttl),
            lambda: cache.add("k", 1, ttl=ttl),
            lambda: cache.touch("k", ttl=ttl),
            lambda: self.make(ttl=ttl),
        ):
            with pytest.raises(ValueError, match="ttl"):
                call()
        assert len(cache) == 0

    @pytest.mark.parametrize("ttl", ["1", b"1", True, [1], object()])
    def test_ttl_of_a_wrong_type(self, cache: Any, ttl: object) -> None:
        with pytest.raises(TypeError, match="ttl"):
            cache.set("k", 1, ttl=ttl)

    def test_a_clock_that_fails(self, clock: Any) -> None:
        cache = self.make(clock=clock)
        cache["k"] = 1
        clock.now = "now"
        with pytest.raises(TypeError):
            cache.get("k")
        clock.now = float("nan")
        with pytest.raises(ValueError, match="clock returned"):
            cache.get("k")
        clock.now = 1001.0
        assert cache["k"] == 1
        cache.check()
