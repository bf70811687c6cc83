"""What the tests of events share: both makers, and words for what was told."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import gbcache
from gbcache import Cache, Event, ObjectCache

SHORT = os.environ.get("GB_SLICE") == "short"
LONG = os.environ.get("GB_SLICE") == "long"
HANG = 20.0


def packed(size: str = "1MB", room: int | None = None, **options: Any) -> Any:
    """`room`: how many short events are kept, about."""
    return Cache(size, events=None if room is None else room * 48, **options)


def objects(size: str = "", room: int | None = None, **options: Any) -> Any:
    return ObjectCache(events=room, **options)


tells = pytest.mark.skipif(
    not hasattr(ObjectCache, "_cursor"), reason="ObjectCache tells nothing yet"
)
both = pytest.mark.parametrize(
    "make", [pytest.param(packed, id="Cache"), pytest.param(objects, id="ObjectCache", marks=tells)]
)


def pairs(events: Any) -> list[tuple[str, Any]]:
    return [(str(e.kind), e.key) for e in events]


def told(watch: Any, most: int = 100_000) -> list[Event]:
    """What is there now."""
    events: list[Event] = []
    while batch := watch.read(most, timeout=0):
        events += batch
    return events


def until(true: Callable[[], Any], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def in_thread(job: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=job, daemon=True)
    thread.start()
    return thread


def joined(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a thread hangs"


def over(call: Callable[[], Any]) -> bool:
    """Whether it ended with BudgetError."""
    try:
        call()
    except gbcache.BudgetError:
        return True
    return False


class Hook:
    """What came to sys.unraisablehook."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        sys.unraisablehook = self

    def __call__(self, what: Any) -> None:
        self.seen.append((what.exc_type, what.object))


def gapless(events: list[Event]) -> None:
    """In order, each once, or told lost."""
    last = 0
    for event in events:
        assert event.seq == last + (event.value if event.kind == "lost" else 1), events
        last = event.seq
