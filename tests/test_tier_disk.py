"""`Tiered` over a real `Disk` and over a real server: the whole of it, as a user has it."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gbcache import Cache, FarError, ObjectCache, Tiered

pytest.importorskip("lmdb", reason="a Disk needs lmdb: pip install gbcache[disk]")
from gbcache import Disk


def test_ten_times_what_memory_holds(tmp_path: Path) -> None:
    """Four threads, zipf: no entry is missing, ever."""
    tier = Tiered(Cache("150kB"), Disk(tmp_path / "d", sync="interval"), negative_ttl=5)
    value = {i: (i, "x" * (i % 200)) for i in range(10_000)}
    for at in range(0, 10_000, 500):
        tier.set_many({i: value[i] for i in range(at, at + 500)})
    bad: list[Any] = []

    def read(part: int) -> None:
        dice = random.Random(part)
        for _ in range(1500):
            i = int(dice.random() ** 3 * 10_000)
            if tier.get(i) != value[i]:
                bad.append(i)
            if dice.random() < 0.1:
                some = dice.sample(range(10_000), 20)
                if tier.get_many(some) != {k: value[k] for k in some}:
                    bad.append(some)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not bad and len(tier) == 10_000 and len(tier.near) < 2500
    assert tier.stats().far_hits > 1000 and tier.near.used_bytes <= 150_000
    tier.close()
    with Tiered(ObjectCache(10), Disk(tmp_path / "d")) as again:
        assert dict(again.items()) == value


@pytest.mark.parametrize("write", ["through", "behind"])
def test_a_full_disk_is_told_and_it_goes_on(write: str, tmp_path: Path) -> None:
    """Memory and disk agree, and once there is room it goes on without being opened again."""
    tier = Tiered(
        Cache("1MB"), Disk(tmp_path / "d", max_bytes="8MB"), write=write, behind_seconds=0.02
    )
    n = 0
    with pytest.raises(FarError) as told:
        while n < 1000:
            tier[n] = bytes([n % 256]) * 50_000
            if write == "behind":
                tier.sync()
            n += 1
    assert told.value.__cause__ is not None or told.value.errno
    if write == "through":
        assert tier.get(n) is None and n not in tier.near
        for i in range(n // 2):
            del tier[i]
        tier["new"] = b"x" * 50_000
        assert (
            tier["new"] == b"x" * 50_000
            and tier.get(0) is None
            and tier[n - 1][:1] == bytes([(n - 1) % 256])
        )
    else:
        assert tier[n] == bytes([n % 256]) * 50_000  # on its way still
        tier.far.delete_many(list(range(n // 2)))
        with suppress(FarError):  # of an attempt that was under way before there was room
            tier.sync()
        tier.sync()
        tier.near.clear()
        assert tier[n] == bytes([n % 256]) * 50_000
    tier.close()


CHILD = """
import os, sys, signal
from gbcache import Cache, Disk, Tiered
tier = Tiered(Cache("1MB"), Disk(sys.argv[1], sync=sys.argv[2]))
for i in range(300):
    tier[i] = i
    tier.incr("sum", i)
print("done", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("sync", ["always", "interval"])
def test_a_killed_process_loses_nothing(sync: str, tmp_path: Path) -> None:
    call = [sys.executable, "-c", CHILD, str(tmp_path / "d"), sync]
    ran = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == -9 and ran.stdout == "done\n", ran.stderr
    with Tiered(Cache("1MB"), Disk(tmp_path / "d")) as tier:
        assert len(tier) == 301 and tier["sum"] == sum(range(300))
        assert all(tier[i] == i for i in range(300))


# --- a server ----------------------------------------------------------------------------------------


@pytest.fixture
def two() -> Iterator[tuple[Tiered, Tiered]]:
    """Two tiers of one server, as two machines have it."""
    pytest.importorskip("redis", reason="Valkey needs redis: pip install gbcache[valkey]")
    from servers import Server, server_program

    if server_program() is None:
        pytest.skip("no valkey-server or redis-server: apt-get install redis-server (make servers)")
    from gbcache import Valkey

    server = Server()
    tiers = [Tiered(Cache("1MB"), Valkey(server.url), negative_ttl=60) for _ in range(2)]
    end = time.monotonic() + 10
    while not all(tier.trusts for tier in tiers):
        assert time.monotonic() < end
        time.sleep(0.005)
    yield tiers[0], tiers[1]
    for tier in tiers:
        tier.close()
    server.close()


def settle(met: Any) -> None:
    end = time.monotonic() + 10
    while not met():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_what_one_writes_the_other_reads(two: tuple[Tiered, Tiered]) -> None:
    one, other = two
    one["k"] = [1]
    settle(lambda: other.get("k") == [1])
    settle(lambda: "k" in other.near or other.get("k") is None)
    one["k"] = [2]
    settle(lambda: other["k"] == [2])
    assert other.get("absent") is None and other.stats().negative_hits == 0
    one["absent"] = "there"
    settle(lambda: other.get("absent") == "there")
    del one["k"]
    settle(lambda: other.get("k") is None)
    assert one.incr("n") == 1 and other.incr("n", 5) == 6
    settle(lambda: one["n"] == 6)
    assert one.add("lock", 1, ttl=50) and not other.add("lock", 2)
    assert other.touch("lock", 500) and 499 < (one.ttl("lock") or 0) <= 500
    one.clear()
    settle(lambda: other.get("n") is None and len(other) == 0)
    assert other.stats().invalidations >= 5
