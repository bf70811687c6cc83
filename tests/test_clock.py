"""Clocks of the machine that jump or go back: slices of proof/clock.py, whose shim stands before libc."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from children import skip_without_lmdb

import gbcache

SHIM = Path(__file__).parent / "fault" / "clock.c"
HEAD = """
import ctypes, sys, time
from gbcache import Cache, ObjectCache
shift = ctypes.CDLL(None).clock_shift
shift.argtypes = [ctypes.c_int64] * 2
def go(wall, running): shift(int(wall * 1e9), int(running * 1e9))
path = sys.argv[1]
"""
BACK = """
for made in (Cache("1MB"), ObjectCache()):
    go(0, 0)
    for i in range(500):
        made.set(i, i, ttl=1000)
    go(0, -5000)  # before it was made
    assert all(made.get(i) == i for i in range(500))
    made.set("back", 1, ttl=1)
    made.check()
    go(0, 2000)
    assert made.get(1) is None and made.get("back") is None
    made.expire()
    assert not len(made)
"""
SEALED = """
cache = Cache("1MB")
cache.set("k", 1, ttl=1000)
cache.set("short", 1, ttl=10)
cache.save(path)
go(-864000, 0)
found = Cache.open(path, "r")
assert 900 < found.ttl("k") <= 1000, found.ttl("k")
go(864000, 0)  # the clock is set right, and wrong: no time passed
assert found["k"] == 1 and found["short"] == 1 and len(dict(found)) == 2
go(0, 20)
assert "short" not in found and list(found) == ["k"]
"""
DISK = """
from gbcache.disk import Disk
for n in range(3):
    go(-864000 * n, 0)
    with Disk(path) as disk:
        found = disk.get_many(["k"])
        assert not n or 900 < found["k"][1] <= 1000, (n, found)
        disk.put_many([("other", n, None)] + ([("k", 1, 1000)] if not n else []))
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not shutil.which("gcc"),
    reason="the clocks are moved by a preloaded library: Linux, and gcc (Debian: apt-get install gcc)",
)
@pytest.mark.parametrize("code", [BACK, SEALED, DISK], ids=["back", "sealed", "disk"])
def test_the_machines_clocks(code: str, tmp_path: Path) -> None:
    """A cache whose running clock is behind its birth; a snapshot and a Disk whose wall clock was set back."""
    library = tmp_path / "clock.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", str(SHIM), "-o", str(library), "-ldl"], check=True
    )
    if code is DISK:
        skip_without_lmdb()
    env = {**os.environ, "LD_PRELOAD": f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()}
    env["PYTHONPATH"] = str(Path(gbcache.__file__).parent.parent)
    call = [sys.executable, "-c", HEAD + code, str(tmp_path / "file")]
    ran = subprocess.run(call, env=env, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.mark.parametrize("back", [5e3, 30 * 86400, 9 * 365 * 86400])
def test_a_ttl_given_by_a_clock_that_went_back_is_what_was_said(back: float) -> None:
    now = [0.0]
    cache = gbcache.Cache("1MB", clock=lambda: now[0])
    cache.set("far", 1, ttl=10 * 365 * 86400)
    now[0] = back
    cache.expire()
    now[0] = 0.0
    cache.set("k", 1, ttl=10)
    cache["later"] = 1
    assert cache.touch("later", ttl=10)
    assert (cache.ttl("k"), cache.ttl("later")) == (10, 10)
    now[0] = 20.0
    assert "k" not in cache and "later" not in cache
    cache.check()
