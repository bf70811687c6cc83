"""CPython's own tests of functools.lru_cache, run against `memoize`, each in a process of its own.

What cannot apply is waived by name, with why. A waived case that passes fails here.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import types
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import gbcache

suite = pytest.importorskip(
    "test.test_functools", reason="this Python was installed without its test package"
)

SECONDS = 60
"""For one case, on a busy machine; they take less than one."""

WAIVED = {
    ("TestLRU", "test_lru_cache_threaded2"): "asks that equal simultaneous calls all run: one does",
}
if hasattr(suite.TestLRU, "test_common_signatures"):  # since 3.12
    WAIVED["TestLRU", "test_common_signatures"] = (
        "asks for signatures without types: ours have them"
    )


class Ours:
    """What the suites find in `self.module`, and what `test_pickle` finds by name."""

    module = types.SimpleNamespace(
        **{
            **vars(functools),
            "lru_cache": gbcache.memoize,
            "cache": gbcache.memoize(maxsize=None),
        }
    )

    @gbcache.memoize()
    def cached_meth(self, x: int, y: int) -> int:
        return 3 * x + y

    @staticmethod
    @gbcache.memoize()
    def cached_staticmeth(x: int, y: int) -> int:
        return 3 * x + y


@gbcache.memoize()
def cached(x: int, y: int) -> int:
    return 3 * x + y


class TestLRU(Ours, suite.TestLRU, unittest.TestCase):  # type: ignore[misc]
    __test__ = False  # pytest is not to collect it
    cached_func = (cached,)


class TestCache(Ours, suite.TestCache, unittest.TestCase):  # type: ignore[misc]
    __test__ = False


CASES = [
    (cls.__name__, name)
    for cls in (TestLRU, TestCache)
    for name in dir(cls)
    if name.startswith("test_")
]


def run(suite_name: str, name: str) -> str:
    """What came of one case: "passed", or how it failed."""
    most = 3 if (suite_name, name) in WAIVED else SECONDS - 5  # these wait for what does not come
    code = f"""
import faulthandler, test_lru_cache, unittest
faulthandler.dump_traceback_later({most}, exit=True)
case = test_lru_cache.{suite_name}({name!r})
result = unittest.TextTestRunner(verbosity=0).run(case)
raise SystemExit(0 if result.wasSuccessful() else 1)
"""
    path = [str(Path(__file__).parent), *sys.path]
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}\n{code}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"it hung for {SECONDS} s"
    return "passed" if done.returncode == 0 else f"exit {done.returncode}\n{done.stderr}"


@pytest.fixture(scope="module")
def outcomes(request: Any) -> dict[Any, Any]:
    """Those cases that are asked for, three at a time."""
    asked = {item.callspec.id for item in request.session.items if item.fspath == request.fspath
             and hasattr(item, "callspec")}  # fmt: skip
    pool = ThreadPoolExecutor(3)
    running = {case: pool.submit(run, *case) for case in CASES if "-".join(case) in asked}
    pool.shutdown(wait=False)
    return running


@pytest.mark.parametrize(("suite_name", "name"), CASES)
def test_as_cpython_has_it(suite_name: str, name: str, outcomes: dict[Any, Any]) -> None:
    outcome = outcomes[suite_name, name].result()
    if (suite_name, name) in WAIVED:
        assert outcome != "passed", "it passes: it needs no waiver"
    else:
        assert outcome == "passed", outcome


def test_the_suites_are_whole() -> None:
    assert len([name for suite_name, name in CASES if suite_name == "TestLRU"]) >= 25
    assert set(WAIVED) <= set(CASES)
