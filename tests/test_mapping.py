"""CPython's own tests of mappings, run against both caches. What cannot apply is waived by name, with why."""

from __future__ import annotations

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
CASES = [(suite, name) for suite, (cls, _) in SUITES.items() for name in names(cls)]


@pytest.mark.parametrize(
    ("made", "waived"), [(Made, WAIVED), (MadeObject, WAIVED_OBJECT)], ids=["Cache", "ObjectCache"]
)
@pytest.mark.parametrize(("suite", "name"), CASES)
def test_as_cpython_has_it(suite: str, name: str, made: type, waived: Any) -> None:
    case = type("Case", (SUITES[suite][0],), {"type2test": made})(name)
    try:
        getattr(case, name)()
    except Exception:
        if (suite, name) not in waived:
            raise
    else:
        assert (suite, name) not in waived, "it passes: it needs no waiver"


def test_the_suites_are_whole() -> None:
    for suite, (cls, count) in SUITES.items():
        assert len(names(cls)) >= count, suite
    assert set(WAIVED) | set(WAIVED_OBJECT) <= set(CASES)
