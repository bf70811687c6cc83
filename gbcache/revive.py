"""The end of the demo: a live file, its process killed in the middle, and what is there afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gbcache
from gbcache import replay as engine

__all__ = ["revive"]

_AT = ("gbcache", "demo", "position")
"""Where the count of requests done lies: in the cache itself, written after each."""


def _go_on(cache: gbcache.Cache, requests: Sequence[engine.Request], die_at: int) -> int:
    """Replays from where the cache says it was; hits. At `die_at` the process kills itself."""
    source, hits = engine.Source(10), 0
    for at in range(cache.get(_AT, 0), len(requests)):
        request = requests[at]
        if cache.get(request.key) is None:
            cache.set(request.key, source.load(request), ttl=request.ttl or 3600)
        else:
            hits += 1
        cache.set(_AT, at + 1, ttl=None)
        if at + 1 == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
    return hits


def _child(path: str, trace: str, limit: str, die_at: str) -> None:
    requests = engine.read_trace(Path(trace), int(limit))
    _go_on(gbcache.Cache("6MB", path=path), requests, int(die_at))


def revive(trace: Path, requests: Sequence[engine.Request]) -> dict[str, Any]:
    """Runs half of `requests` in a process that kills itself, reopens its live file, and does the rest."""
    half = len(requests) // 2
    with tempfile.TemporaryDirectory(prefix="gbcache-") as folder:
        path = os.path.join(folder, "demo.gbc")
        call = [
            sys.executable,
            "-m",
            "gbcache.revive",
            path,
            str(trace),
            str(len(requests)),
            str(half),
        ]
        ended = subprocess.run(call, check=False).returncode
        with gbcache.Cache("6MB", path=path) as cache:
            found = cache.recovery
            assert found is not None
            entries, position = len(cache), cache.get(_AT, 0)
            cache.check()
            hits = _go_on(cache, requests, 0)
            size = cache.save(os.path.join(folder, "demo.gbs"))
            kept = len(cache)
        copied = gbcache.Cache.open(os.path.join(folder, "demo.gbs"), "r")
        with copied:
            readable = sum(1 for _ in copied)
    return {
        "signal": -ended, "how": found.how, "ms": found.seconds * 1000, "entries": entries,
        "position": position, "killed_at": half, "hits_after": hits,
        "requests_after": len(requests) - half, "snapshot_bytes": size, "kept": kept, "readable": readable,
    }  # fmt: skip


def tell(r: dict[str, Any]) -> None:
    print(f"\na live file: another process replayed {r['killed_at']:,} requests into it and killed itself "
          f"(signal {r['signal']})")  # fmt: skip
    print(
        f"  reopened in {r['ms']:.2f} ms, {r['how']}: {r['entries']:,} entries, at request {r['position']:,}"
    )
    print(
        f"  gone on from there: {r['hits_after']:,} of {r['requests_after']:,} requests were hits"
    )
    print(
        f"  saved: {r['snapshot_bytes']:,} bytes, opened read-only: {r['readable']:,} of {r['kept']:,} entries"
    )


if __name__ == "__main__":
    _child(*sys.argv[1:])
