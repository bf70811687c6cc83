"""One memo in several classes: each has its instances' results, however it is called."""

from __future__ import annotations

import gc
import sysconfig
import weakref
from typing import Any

import pytest

import gbcache


def classes(later: bool) -> tuple[Any, Any, list[Any]]:
    """Two that share one; `later`: it is put into the second when that is made already."""
    calls: list[Any] = []

    class A:
        @gbcache.memoize
        def f(self, x: int) -> int:
            calls.append((type(self).__name__, x))
            return len(calls)

    class B:
        if not later:
            f = A.f

    if later:
        B.f = A.f  # type: ignore[misc]
    return A, B, calls


@pytest.mark.parametrize("later", [False, True])
def test_each_knows_its_own(later: bool) -> None:
    A, B, calls = classes(later)
    for each in (A(), B(), A()):
        made = each.f(3)
        assert type(each).f(each, 3) == made == each.f(3), "two results of one call"
        assert each.f.cache_invalidate(3), "what is bound does not find its own"
        assert type(each).f(each, 3) == made + 1 == each.f(3)
        assert type(each).f.cache_invalidate(each, 3)
        assert each.f(3) == made + 2 and type(each).f.cache_key(each, 3) == each.f.cache_key(3) == 3
    assert [name for name, _ in calls] == ["A"] * 3 + ["B"] * 3 + ["A"] * 3


@pytest.mark.parametrize("later", [False, True])
def test_none_is_kept_by_its_results(later: bool) -> None:
    A, B, _ = classes(later)
    for kind in (A, B, A):
        each = kind()
        each.f(1)
        type(each).f(each, 2)
        gone = weakref.ref(each)
        del each
        gc.collect()
        assert gone() is None


@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="where a thread has ended, CPython 3.13 without the GIL lets no class go",
)
def test_classes_come_and_go() -> None:
    """It keeps none, and those that are gone take no room."""

    class A:
        @gbcache.memoize
        def f(self, x: int) -> int:
            return x

    gone = []
    for _ in range(50):
        B = type("B", (), {"f": A.f, "g": A.f})  # twice in one
        assert B.g(B(), 1) == 1 and A.f(A(), 1) == 1
        gone.append(weakref.ref(B))
        del B
        gc.collect()
    assert not any(ref() for ref in gone)
    others = [each for each in gc.get_referents(A.f) if isinstance(each, tuple)]
    assert all(len(each) < 5 for each in others)


def test_who_is_no_instance_is_an_argument() -> None:
    A, B, _ = classes(False)

    class C:
        pass

    one = C()
    assert A.f(one, 1) == 1 == B.f(one, 1) and A.f.cache_info().currsize == 1
