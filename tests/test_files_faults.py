"""Every call that touches a disk fails once, at each of its turns: the old file or the new one, an error with its
number, nothing left beside it, and a cache that goes on."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gbcache

SHIM = Path(__file__).parent / "fault" / "shim.c"
SHORT = os.environ.get("GB_SLICE") == "short"
pytestmark = [
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="the shim is written for Linux"
    ),
    pytest.mark.skipif(
        "libasan" in os.environ.get("LD_PRELOAD", ""), reason="one preloaded library at a time"
    ),
]

CHILD = """
import os, sys
import gbcache
work, path, gone = sys.argv[1:4]
keys = 300
def content(cache):
    return sorted(cache.items())
def fill(cache, what):
    for i in range(keys):
        cache[i] = what * (i % 50)
    cache["long"] = what * 9000
failed = 0
def attempt(do):
    global failed
    try:
        return do()
    except OSError as error:
        failed = error.errno
        return None
    except gbcache.ImageError as error:  # a read that failed within a check says so
        failed = -1
        return None
if work == "save":
    cache = gbcache.Cache("400kB")
    fill(cache, "n")
    attempt(lambda: cache.save(path))
    cache.check()
    cache["goes on"] = 1
elif work == "sync":
    cache = attempt(lambda: gbcache.Cache("400kB", path=path + ".live"))
    if cache is not None:
        fill(cache, "n")
        attempt(cache.sync)
        cache.check()
        attempt(cache.close)
elif work == "copy":
    cache = attempt(lambda: gbcache.Cache.open(path))
    if cache is not None:
        cache.check()
        assert len(cache) == keys + 1
else:
    cache = attempt(lambda: gbcache.Cache.open(path, "r"))
    if cache is not None:
        assert len(list(cache)) == keys + 1
print(failed)
os._exit(0) if gone == "die" else None
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not shutil.which("gcc"):
        pytest.skip("the shim needs gcc: install it (Debian: apt-get install gcc)")
    made = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", str(SHIM), "-o", str(made), "-ldl"], check=True
    )
    yield made


def child(
    shim: Path, work: str, path: Path, fail: str, count: Path
) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "SHIM_ROOT": str(path.parent),
        "SHIM_FAIL": fail,
        "SHIM_COUNT": str(count),
        "PYTHONPATH": str(Path(gbcache.__file__).parent.parent),
    }
    call = [sys.executable, "-c", CHILD, work, str(path), "live"]
    return subprocess.run(call, env=env, cwd="/", capture_output=True, text=True, timeout=120)


FAULTS = {
    "save": ("open", "pwrite", "ftruncate", "fsync", "fchmod", "rename"),
    "sync": ("open", "pwrite", "ftruncate", "posix_fallocate", "fsync", "rename", "link", "msync"),
    "copy": ("open", "pread"),
    "r": ("open", "pread"),
}


@pytest.mark.parametrize("work", FAULTS)
def test_each_call_fails_once(work: str, shim: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    path, count = root / "a.gbs", tmp_path / "count"
    old = gbcache.Cache("400kB")
    for i in range(300):
        old[i] = "o" * (i % 50)
    old["long"] = "o" * 9000
    old.save(path)
    kept = path.read_bytes()
    tried = 0
    for name in FAULTS[work]:
        kinds = (
            [str(errno.EIO), str(errno.ENOSPC)]
            if name not in ("pread", "open")
            else [str(errno.EIO)]
        )
        if name in ("pwrite", "pread"):
            kinds += ["short", "eintr"]
        for kind in kinds[: 1 if SHORT else None]:
            for turn in range(1, 40):
                for beside in root.glob("a.gbs.*"):
                    beside.unlink()
                path.write_bytes(kept)
                os.chmod(path, 0o600)
                ran = child(shim, work, path, f"{name}:{turn}:{kind}", count)
                assert ran.returncode == 0, (name, kind, turn, ran.stderr[-1500:])
                if int(count.read_text()) < turn:
                    break
                tried += 1
                said = int(ran.stdout)
                if kind in ("short", "eintr"):
                    assert said == 0, (name, kind, turn, said)
                elif said:
                    assert said in (int(kind), -1), (name, kind, turn, said)
                left = sorted(
                    p.name for p in root.iterdir() if p.name.endswith((".saving", ".new"))
                )
                assert not left, (name, kind, turn, left)
                if work == "save":
                    now = gbcache.Cache.open(path)
                    assert now[49] in ("o" * 49, "n" * 49) and len(now) == 301
                    assert said or now[49] == "n" * 49
                    if path.read_bytes() != kept:
                        assert now[49] == "n" * 49
                elif work == "sync":
                    checkpoint = Path(f"{path}.live.checkpoint")
                    assert not checkpoint.exists() or len(gbcache.Cache.open(checkpoint)) == 301
                else:
                    assert path.read_bytes() == kept
    assert tried >= len(FAULTS[work])
