"""Which build is being tested, how long hypothesis may take, and a clock that obeys."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import gbcache
from gbcache._packed import BUILD

ANY = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=ANY)
settings.register_profile("short", deadline=None, max_examples=15, suppress_health_check=ANY)
settings.register_profile("long", deadline=None, max_examples=2000, suppress_health_check=ANY)
settings.load_profile(os.environ.get("GB_SLICE", "default"))


def pytest_report_header() -> str:
    return f"gbcache {gbcache.__version__} from {os.path.dirname(gbcache.__file__)}: {BUILD}"


def pytest_configure(config: pytest.Config) -> None:
    """A suite that ran against another build than it was told to would prove nothing."""
    told = getattr(config, "workerinput", {}).get("native")
    config.stash[NATIVE] = Path(told or tempfile.mkdtemp(prefix="gbcache-native-"))
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # as in a shell's background: tests send it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    expect = os.environ.get("GB_EXPECT")
    root = Path(__file__).parent.parent
    wanted = root if expect == "normal" else root / "build" / str(expect)
    if expect and Path(gbcache.__file__).parent != wanted / "gbcache":
        raise pytest.UsageError(f"expected {wanted}, but gbcache is {gbcache.__file__}")
    if (expect == "tiny" and not BUILD["tiny"]) or (expect == "normal" and BUILD["tiny"]):
        raise pytest.UsageError(f"expected the {expect} build, but it says {BUILD}")


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Who switches the GIL on does so for all tests that follow, which then prove nothing about threads without it."""
    if os.environ.get("GB_EXPECT") == "free":
        assert not sys._is_gil_enabled(), f"{item.nodeid}, or what it imports, switched the GIL on"  # type: ignore[attr-defined,unused-ignore]


# --- the C tests, beside the others -------------------------------------------------------------------

NATIVE = pytest.StashKey[Path]()  # where native/run.py leaves what each said
RUNNER = pytest.StashKey["subprocess.Popen[bytes]"]()  # not in a worker of xdist's: it runs once


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Last, what is waited for: until then it runs beside the others."""
    items.sort(key=lambda item: "test_native.py" in item.nodeid)


def begin_native(config: pytest.Config, collected: list[str]) -> None:
    """Begins those that were asked for: gcc and they run beside Python's tests, on what these leave of the cores."""
    wanted, kinds = [], {"test_native": "", "test_a_kill": "kill-", "test_inputs": "kept-"}
    for test in collected:
        found = re.search(rf"test_native\.py::({'|'.join(kinds)})\w*\[(.+)\]", test)
        if found:
            wanted.append(kinds[found[1]] + found[2])
    if not wanted or config.option.collectonly:
        return
    assert shutil.which("gcc"), "the native tests need gcc"
    workers = "1" if len(collected) > 3 * len(wanted) else "2"
    run, out = str(Path(__file__).parent / "native" / "run.py"), str(config.stash[NATIVE])
    config.stash[RUNNER] = subprocess.Popen([sys.executable, run, out, workers, *wanted])


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.collect()  # hundreds of tests do: without what pytest and hypothesis keep it takes far less
    gc.freeze()
    if not hasattr(session.config, "workerinput"):
        begin_native(session.config, [item.nodeid for item in session.items])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A worker of xdist's (make test has two) is told where."""
    node.workerinput["native"] = str(node.config.stash[NATIVE])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    if RUNNER not in node.config.stash:  # each worker collects the same
        begin_native(node.config, ids)


def pytest_unconfigure(config: pytest.Config) -> None:
    if RUNNER in config.stash:
        config.stash[RUNNER].kill()
        config.stash[RUNNER].wait()
    if NATIVE in config.stash and not hasattr(config, "workerinput"):
        shutil.rmtree(config.stash[NATIVE], ignore_errors=True)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()
