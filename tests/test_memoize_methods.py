"""Memoized methods: results of each instance, which go with it; bound, static and class methods."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import pickle
import random
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from test_memoize import counted, shared

from gbcache import Cache, memoize


class Plain:
    """Every kind of method."""

    itself = memoize(lambda self: self)
    down = memoize(maxsize=None)(lambda self, n: n and 1 + self.down(n - 1))
    first = property(memoize(lambda self: object()))
    static_inside = staticmethod(memoize(lambda x: object()))
    static_outside = memoize(staticmethod(lambda x: object()))
    class_inside = classmethod(memoize(lambda cls, x: (cls, object())))
    class_outside = memoize(classmethod(lambda cls, x: (cls, object())))

    @memoize
    def method(self, x: Any = 0, *more: Any) -> Any:
        """Its words."""
        return object()


class Heir(Plain):
    @memoize
    def method(self, x: Any = 0, *more: Any) -> Any:
        return "heir", super().method(x)


def test_results_belong_to_the_instance() -> None:
    a, b = Plain(), Plain()
    assert a.method(1) is a.method(1) is Plain.method(a, 1) is not b.method(1)
    assert a.method.cache_info() == (2, 1, 128, 1) and b.method.cache_info() == (0, 1, 128, 1)
    assert a.method.cache_key(1, 2) == Plain.method.cache_key(a, 1, 2) == (1, 2)
    old = b.method(1)
    assert a.method.cache_invalidate(1) and not a.method.cache_invalidate(1)
    a.method(2), a.method.cache_clear()
    assert len(a.method.cache) == 0 and b.method(1) is old
    assert Plain.method.cache_invalidate(b, 1) and b.method(1) is not old
    Plain.method.cache_clear()
    assert b.method.cache_info() == (0, 0, 128, 0)


def test_an_instance_goes_and_its_results_with_it() -> None:
    for kept in (lambda a: a.itself(), lambda a: a.method(a), lambda a: a.method(1)):
        a = Plain()
        refs = [weakref.ref(a), weakref.ref(a.itself.cache)]
        kept(a)
        del a
        gc.collect()
        assert [ref() for ref in refs] == [None, None]


@pytest.mark.parametrize(
    "slots", [(), ("__weakref__",), ("__dict__",), ("__weakref__", "__dict__")]
)
def test_slots(slots: Any) -> None:
    A = type("A", (), {"__slots__": slots, "m": memoize(lambda self, x: object())})
    if "__weakref__" not in slots:  # kept by its results, as in functools
        a, b = A(), A()
        assert a.m(1) is a.m(1) is not b.m(1) and A.m.cache_info() == (1, 2, 128, 2)
        return
    for _ in range(20):  # addresses come again
        a, b = A(), A()
        assert a.m(1) is a.m(1) is not b.m(1) and A.m.cache_info().currsize == 2
        del a, b
        gc.collect()


@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle"])
def test_a_copy_has_results_of_its_own(how: str) -> None:
    again = getattr(copy, how, lambda a: pickle.loads(pickle.dumps(a)))
    a = Plain()
    old = a.method(1), a.itself()
    b = again(a)
    assert b.itself() is b and b.method(1) is b.method(1) is not old[0]
    assert (a.method(1), a.itself()) == old and again(b).itself() is not b


def test_equal_and_unhashable_instances_are_told_apart() -> None:
    A = type("A", (), {"__eq__": lambda *_: True, "m": memoize(lambda self: object())})
    a, b = A(), A()
    assert A.__hash__ is None and a.m() is a.m() is not b.m()


def test_inheritance_and_a_class_attribute_added_later() -> None:
    one, other, heir = type("Between", (Plain,), {})(), Plain(), Heir()
    assert one.method(1) is one.method(1) is not other.method(1)
    assert heir.method(1) is heir.method(1) and heir.method(1)[0] == "heir"
    assert Plain.method(heir, 1) is heir.method(1)[1] is super(Heir, heir).method(1)
    Heir.late = memoize(lambda self, x: object())  # type: ignore[attr-defined]
    assert heir.late(1) is heir.late(1) is Heir.late(heir, 1) is not Heir().late(1)  # type: ignore[attr-defined]


BOUND: dict[str, Callable[[Any], bool]] = {
    "equal": lambda a: a.method == a.method != a.itself and hash(a.method) == hash(a.method),
    "parts": lambda a: a.method.__self__ is a and a.method.__func__ is Plain.method,
    "name": lambda a: a.method.__name__ == "method" and not hasattr(a.method, "nothing"),
    "signature": lambda a: str(inspect.signature(a.method)) == "(x: 'Any' = 0, *more: 'Any') -> 'Any'",
    "doc": lambda a: a.method.__doc__ == "Its words.",
    "copy": lambda a: copy.copy(a.method) == a.method,
    "deepcopy": lambda a: copy.deepcopy([a, a.method])[1].__self__ is not a,
    "pickle": lambda a: type(pickle.loads(pickle.dumps(a.method)).__self__) is Plain,
    "WeakMethod": lambda a: weakref.WeakMethod(a.method)() == a.method,
}  # fmt: skip


@pytest.mark.parametrize("promise", BOUND)
def test_a_bound_method_is_what_methods_are(promise: str) -> None:
    assert BOUND[promise](Plain())


@pytest.mark.parametrize(
    "name", [f"{a}_{b}" for a in ("static", "class") for b in ("inside", "outside")]
)
def test_static_and_class_methods(name: str) -> None:
    if name == "class_inside" and sys.version_info >= (3, 13):
        pytest.skip(
            "there classmethod passes the class as any argument: as in functools, says the docstring"
        )
    f = getattr(Plain, name)
    assert f(1) is f(1) is getattr(Plain(), name)(1) is not f(2)
    if "class" in name:
        assert f(1)[0] is Plain and getattr(Heir, name)(1)[0] is Heir
    old = f(1)
    assert f.cache_invalidate(1) and f(1) is not old
    old = f(1)
    f.cache_clear()
    assert f(1) is not old and f.cache_info().currsize == 1


def test_thousands_of_instances_whose_results_have_no_bound() -> None:
    """Each reserves address space, of which a process has 128 TB. In a process of its own."""
    code = "from test_memoize_methods import Plain; alive = [Plain() for _ in range(5000)]; [a.down(1) for a in alive]"
    env = f"import sys; sys.path[:] = {[*sys.path]!r}; "
    done = subprocess.run([sys.executable, "-c", env + code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()[-300:]


def test_a_function_that_is_a_method_too_stays_a_function() -> None:
    f = memoize(counted(lambda x: object()))
    A = type("A", (), {"m": f})
    a = A()
    assert a.m() is a.m() is f(a) and f(1) is f(1) and len(f.calls) == 2


def test_a_cycle_through_an_instance_is_collected() -> None:
    def make() -> list[Any]:
        a = Plain()
        a.bound = a.itself  # type: ignore[attr-defined]
        a.method(a.bound), a.method(a), a.itself()  # type: ignore[attr-defined]
        return [weakref.ref(x) for x in (a, a.method.cache, a.itself.cache)]

    refs = make()
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3


def test_a_method_may_call_itself() -> None:
    assert Plain().down(300) == 300


def test_positions_of_a_method_count_self() -> None:
    a, b = (
        (A := type("A", (), {"m": memoize(ignore=(1, "by"))(lambda s, x, y, by=0: object())}))(),
        A(),
    )
    assert a.m(1, 2) is a.m(2, 2, by=3) is A.m(a, 4, 2, 5) is not a.m(1, 3)
    assert a.m(1, 2) is not b.m(1, 2)


@shared
def test_methods_in_a_shared_cache_need_a_key(make: Any) -> None:
    keyed = memoize(cache=make(), key=lambda self, x: (self.n, x))(lambda self, x: [self.n])
    A = type("A", (), {"bad": memoize(cache=make())(lambda self, x: x), "keyed": keyed})
    (a := A()).n, (b := A()).n = 1, 2
    with pytest.raises(TypeError, match="key="):
        a.bad(1)
    assert a.keyed(0) == a.keyed(0) == [1] and b.keyed(0) == [2]
    assert A.keyed.cache_info()[:2] == (1, 2) and a.keyed.cache_invalidate(0)


def test_threads_clear_and_count_while_instances_come_and_go() -> None:
    stop, f = time.monotonic() + 1, memoize(8)(lambda x: (x,))
    crowd, interval = (
        [a for a in [Plain() for _ in range(100)] if a.itself()],
        sys.getswitchinterval(),
    )

    def call(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < stop:
            a, x = Plain(), rng.randrange(20)
            assert f(x) == (x,) and a.itself() is a and rng.choice(crowd).itself()

    def clear(_: int) -> None:
        while time.monotonic() < stop:
            f.cache_clear(), f.cache_invalidate(3), f.cache_info()
            Plain.itself.cache_info(), crowd[0].itself.cache_clear()

    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            for job in [pool.submit(job, i) for i, job in enumerate([call, call, clear, clear])]:
                job.result(30)
    finally:
        sys.setswitchinterval(interval)
    f.cache.check()


def test_a_copied_dict_at_the_place_of_its_first_owner() -> None:
    class P(tuple[int, ...]):
        @memoize
        def f(self) -> Any:
            return self.u  # type: ignore[attr-defined]

    a = P((1,))
    a.u = 1  # type: ignore[attr-defined]
    assert a.f() == 1
    b = copy.copy(a)
    b.u = 2  # type: ignore[attr-defined]
    P.f.cache_clear()
    old = id(a)
    del a
    keep: list[Any] = []
    for _ in range(10_000):
        c = copy.copy(b)
        assert c.f() == 2
        P.f.cache_clear()
        if id(c) == old:
            break
        keep.append(c)


class Slotted:
    """No ``__dict__``: its results lie beside it, under its address."""

    __slots__ = ("__weakref__", "x")

    def __init__(self, x: int) -> None:
        self.x = x

    @memoize
    def method(self) -> int:
        return self.x


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_whose_end_is_cut_off_leaves_no_results_to_the_next_at_its_place() -> None:
    """A signal's handler raises as an instance goes; what Python code runs then, it would cut off."""

    def cut(frame: Any, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename.endswith("memoize.py"):
            raise KeyboardInterrupt

    for x in range(100):
        one = Slotted(x)
        assert one.method() == x
        traced = sys.gettrace()
        sys.settrace(cut)
        del one
        sys.settrace(traced)
    assert not vars(Slotted)["method"]._dictless and not vars(Slotted)["method"]._holders


def test_results_of_one_that_went_unheard_are_nobodys() -> None:
    """Where no memory was had to hear of its end."""
    memo: Any = vars(Slotted)["method"]
    first = Slotted(1)
    assert first.method() == 1
    (old,) = memo._dictless.values()
    second = Slotted(2)
    memo._dictless[id(second)] = (weakref.ref(Slotted(0)), old[1])
    assert second.method() == 2 and second.method.cache_info().hits == 0
    assert second.method() == 2 and second.method.cache_info().hits == 1
    assert first.method() == 1 and first.method.cache_info().hits == 1


def test_what_the_function_has_hides_nothing_of_the_memo() -> None:
    """As of one that functools.lru_cache made, or that was memoized: their attributes come along, but for our own."""

    def plain(x: int) -> int:
        return x

    for name in ("cache_info", "cache_clear", "cache_key", "_key", "_instance", "_of", "_shared"):
        setattr(plain, name, "the function's")
    plain.more, plain.cache = "the function's", "the function's"  # type: ignore[attr-defined]
    made: Any = memoize(plain)
    assert made(1) == made(1) == 1 and made.cache_info().hits == 1
    assert made.cache_key(1) == 1 and len(made.cache) == 1 and made.more == "the function's"
    made.cache_clear()
    assert made.cache_info().currsize == 0 and made.__wrapped__ is plain
    assert made.__doc__ is None and made.__name__ == "plain"
    other: Any = memoize(maxsize=7)(functools.lru_cache(maxsize=3)(plain))
    assert other.cache_parameters() == {"maxsize": 7, "typed": False}
    third: Any = memoize(maxsize=9)(made)
    assert third.cache_parameters()["maxsize"] == 9 and third.__wrapped__ is made
    assert third(2) == 2 and len(third.cache) == 1 and third.cache is not made.cache


def test_the_name_of_what_wraps_another_is_that_of_the_function() -> None:
    def inner(x: int) -> int:
        return x

    cache = Cache("1MB")
    for attribute in ("cache_clear", "other"):

        @functools.wraps(inner)
        def outer(x: int) -> int:
            return x

        setattr(outer, attribute, 1)
        memoize(cache=cache)(outer)(1)
    assert len(cache) >= 2 and all(inner.__qualname__ in str(key) for key in cache)
