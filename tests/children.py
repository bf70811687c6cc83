"""A call in a forked child, which must end by itself, and well; a program of its own."""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gbcache

__all__ = ["isolated", "run", "skip_without_lmdb", "survives"]

HANGS = 20
"""Seconds."""
TRIES = 4 if os.environ.get("GB_EXPECT") == "asan" else 1
"""ASan's allocator is not made ready for fork: where a thread begins or ends at that moment, its lock stays taken in
the child, before a line of ours has run. There a child that hangs is tried again; elsewhere it fails at once."""


def survives(call: Callable[[], Any]) -> None:
    """Runs it in a child, which must end by itself, and well."""
    for _ in range(TRIES):
        status = _in_child(call)
        if status & 127 not in (signal.SIGALRM, signal.SIGKILL):
            break
    assert status & 127 not in (signal.SIGALRM, signal.SIGKILL), "it hangs"
    assert status == 0, f"it ended with status {status} (signal {status & 127}); see stderr"


def _in_child(call: Callable[[], Any]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(HANGS)
            call()
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    until = time.monotonic() + HANGS + 5
    while time.monotonic() < until:  # it may hang before it has set its alarm
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def isolated(test: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(test)
    def outer(*args: Any, **kwargs: Any) -> None:
        survives(lambda: test(*args, **kwargs))

    return outer


def run(code: str, *args: object, first: str = "") -> subprocess.CompletedProcess[str]:
    """The code, with `sys.argv[1:]`, in an interpreter of its own; `first`: what it does before it imports gbcache."""
    call = [
        sys.executable,
        "-c",
        f"import os, signal, sys\n{first}\nimport gbcache\n{code}",
        *map(str, args),
    ]
    env = {**os.environ, "PYTHONPATH": str(Path(gbcache.__file__).parent.parent)}  # this very build
    return subprocess.run(call, env=env, cwd="/", capture_output=True, text=True, timeout=60)


def skip_without_lmdb(here: bool = False) -> None:
    """Of a test that has a Disk in a program of its own; `here`: in this one, where the package switches the GIL on."""
    if not importlib.util.find_spec("lmdb"):
        pytest.skip("a Disk needs lmdb: pip install gbcache[disk]")
    if here and os.environ.get("GB_EXPECT") == "free":
        pytest.skip("the package lmdb switches the GIL on")
