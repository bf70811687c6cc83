"""CPython's own tests of mappings, run against both caches. What cannot apply is waived by name, with why."""

from __future__ import annotations

import faulthandler
import functools
import json
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

import gbcache

mapping_tests = pytest.importorskip(
    "test.mapping_tests", reason="this Python was installed without its test package"
)

FOREIGN = "keys or values of arbitrary classes have no bytes"
COPY = "a cache cannot be copied: TypeError naming the way out"
FROMKEYS = "a cache needs a size: there is no fromkeys"
REPR = "repr shows the fill, not the content, which may be gigabytes"
FRESH = "a value read is a fresh copy: appending to it changes nothing in the cache"

WAIVED_OBJECT = {
    ("TestMapping", "test_copy"): COPY,
    ("TestMapping", "test_fromkeys"): FROMKEYS,
    ("TestMapping", "test_popitem"): COPY,
    ("Hash", "test_copy"): COPY,
    ("Hash", "test_fromkeys"): FROMKEYS,
    ("Hash", "test_popitem"): COPY,
    ("Hash", "test_repr"): REPR,
    ("Hash", "test_repr_deep"): REPR,
}
WAIVED = {
    ("TestMapping", "test_copy"): COPY,
    ("TestMapping", "test_fromkeys"): FROMKEYS,
    ("TestMapping", "test_popitem"): COPY,
    ("TestMapping", "test_setdefault"): FRESH,
    ("Hash", "test_copy"): COPY,
    ("Hash", "test_eq"): FOREIGN,
    ("Hash", "test_fromkeys"): FROMKEYS,
    ("Hash", "test_getitem"): FOREIGN,
    ("Hash", "test_pop"): FOREIGN,
    ("Hash", "test_popitem"): COPY,
    ("Hash", "test_repr"): REPR,
    ("Hash", "test_repr_deep"): REPR,
    ("Hash", "test_setdefault"): FRESH,
}


def names(suite: Any) -> list[str]:
    return [name for name in dir(suite) if name.startswith("test_")]


class Made(gbcache.Cache):
    """The tests make empty mappings, and full ones from a dict."""

    def __init__(self, content: Any = (), **named: Any) -> None:
        super().__init__("1MB")
        self.update(content, **named)


class MadeObject(gbcache.ObjectCache):
    def __init__(self, content: Any = (), **named: Any) -> None:
        super().__init__()
        self.update(content, **named)


SUITES = {
    "Basic": (mapping_tests.BasicTestMappingProtocol, 14),
    "TestMapping": (mapping_tests.TestMappingProtocol, 18),
    "Hash": (mapping_tests.TestHashMappingProtocol, 22),
}
MADE = {"Cache": Made, "ObjectCache": MadeObject}
SECONDS = 30  # a case may take
CASES = [(suite, name) for suite, (cls, _) in SUITES.items() for name in names(cls)]


def report(made: str, suite: str) -> None:
    """In a process of its own: a line a case, its name and what it raised."""
    for name in names(SUITES[suite][0]):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        case, raised = type("Case", (SUITES[suite][0],), {"type2test": MADE[made]})(name), ""
        try:
            getattr(case, name)()
        except Exception:
            raised = traceback.format_exc()
        print(json.dumps([name, raised]), flush=True)


@functools.cache
def outcomes(made: str, suite: str) -> dict[str, str]:
    path = [str(Path(__file__).parent), *sys.path]
    code = f"import sys; sys.path[:] = {path!r}; import test_mapping; test_mapping.report({made!r}, {suite!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    came = dict(json.loads(line) for line in done.stdout.splitlines())
    return {
        name: came.get(name, f"exit {done.returncode}\n{done.stderr}")
        for name in names(SUITES[suite][0])
    }


@pytest.mark.parametrize(("made", "waived"), [("Cache", WAIVED), ("ObjectCache", WAIVED_OBJECT)])
@pytest.mark.parametrize(("suite", "name"), CASES)
def test_as_cpython_has_it(suite: str, name: str, made: str, waived: Any) -> None:
    raised = outcomes(made, suite)[name]
    if (suite, name) in waived:
        assert raised and not raised.startswith("exit "), raised or "it passes: it needs no waiver"
    else:
        assert not raised, raised


def test_the_suites_are_whole() -> None:
    for suite, (cls, count) in SUITES.items():
        assert len(names(cls)) >= count, suite
    assert set(WAIVED) | set(WAIVED_OBJECT) <= set(CASES)
