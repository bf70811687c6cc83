"""Which build is being tested, how long hypothesis may take, and a clock that obeys."""

from __future__ import annotations

import os
import signal
from pathlib import Path

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


def pytest_configure() -> None:
    """A suite that ran against another build than it was told to would prove nothing."""
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
