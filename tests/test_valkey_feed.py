"""`Valkey.feed`: every change is told, and to each listener. And the proofs of it, in short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from feeding import BEAT, Heard, a_server, another, fed, kill_listeners, until  # noqa: F401, fixtures
from near import Near
from servers import Server, server_program

from gbcache.valkey import Valkey

PROOF = Path(__file__).parent / "proof" / "valkey_stale.py"
SHORT = os.environ.get("GB_SLICE") == "short"


def test_every_kind_of_change(server: Server, other: Valkey) -> None:
    far, heard = fed(server.url)
    changes: list[Callable[[], object]] = [
        lambda: other.put_many([("k", 1, None)]),
        lambda: other.put_many([("k", 2, None)]),
        lambda: other.delete_many(["k"]),
        lambda: other.add("k", 1),
        lambda: other.incr("k"),
        lambda: far.put_many([("k", 3, None)]),  # our own too
        lambda: other.put_many([("k", 1, 0.02)]),
    ]
    for change in changes:
        del heard.all[:]
        change()
        until(lambda: heard.keys == ["k"])
    until(lambda: heard.keys == ["k", "k"])  # it expired
    other.delete_many(["none"])
    keys: list[Any] = ["", b"\xff", 7, -1, None, 2.5, ("a", (1, None)), "\ud800", 2**70, "é" * 500]
    other.put_many([(key, 0, None) for key in keys])
    until(lambda: heard.keys[2:] and set(heard.keys[2:]) == set(keys))
    other.clear()
    far.close()
    count = len(heard.all)
    other.put_many([("k", 1, None)])
    time.sleep(0.05)
    assert len(heard.all) == count, "told after close"


def test_a_flush_is_told_as_any_key(server: Server) -> None:
    far, heard = fed(server.url)
    with redis.Redis(port=server.port) as client:
        client.flushdb()
    until(lambda: heard.all == ["restored", None])
    far.close()


def test_what_is_not_ours_is_not_told(server: Server, other: Valkey) -> None:
    far, heard = fed(server.url)
    with redis.Redis(port=server.port) as client:
        client.mset({"gb": 1, "gb:": 1, "gb:?": 1, "gb:inone": 1, "other": 1})
    other.put_many([("ours", 1, None)])
    until(lambda: heard.keys == ["ours"])
    far.close()


def test_many_changes_are_told_in_batches(server: Server, other: Valkey) -> None:
    far, heard = fed(server.url, heartbeat=5)
    other.put_many([(i, i, None) for i in range(20_000)])
    until(lambda: set(heard.keys) == set(range(20_000)))
    assert len(heard.all) < 5000 and "lost" not in heard.all
    far.close()


def test_a_listener_that_does_not_keep_up_is_told_so(server: Server, other: Valkey) -> None:
    """What it is told late, it is not to trust: the heartbeat's answer stands behind it."""
    far = Valkey(server.url, timeout=1, heartbeat=0.1)
    heard = Heard()
    slow = threading.Event()

    class Slow(Heard):
        def changed(self, keys: Sequence[Any] | None) -> None:
            slow.wait(0.4)
            heard.changed(keys)

    listener = Slow()
    listener.all, listener.at = heard.all, heard.at
    far.feed(listener)
    until(lambda: heard.all == ["restored"])
    other.put_many([("k", 1, None)])
    until(lambda: heard.all[:3] == ["restored", ["k"], "lost"])
    slow.set()
    until(lambda: heard.all[3:4] == ["restored"])
    far.close()


def test_a_listener_that_raises_is_told_anew(server: Server, other: Valkey) -> None:
    far, heard = fed(server.url)
    heard.raises = True
    with pytest.warns(RuntimeWarning, match="planted"):
        other.put_many([("k", 1, None)])
        until(lambda: ["k"] in heard.all)
        heard.raises = False
        until(lambda: heard.all[-1] == "restored" and len(heard.all) > 2)
    kill_listeners(server)
    until(lambda: heard.all[-2:] == ["lost", "restored"])
    far.close()


def test_a_listener_that_ends_its_thread_is_told_anew(server: Server, other: Valkey) -> None:
    class Exits(Heard):
        def _note(self, what: Any) -> None:
            super()._note(what)
            if what == ["exit"]:
                raise SystemExit

    far, heard = Valkey(server.url, timeout=1, heartbeat=BEAT), Exits()
    far.feed(heard)
    until(lambda: heard.all == ["restored"])
    with pytest.warns(RuntimeWarning, match="SystemExit"):
        other.put_many([("exit", 1, None)])
        until(lambda: heard.all == ["restored", ["exit"], "restored"])
    other.put_many([("k", 1, None)])
    until(lambda: heard.all[3:] == [["k"]])
    far.close()


def test_close_from_the_listener(server: Server, other: Valkey) -> None:
    far = Valkey(server.url, timeout=1)
    closed = threading.Event()

    class Closes(Heard):
        def changed(self, keys: Sequence[Any] | None) -> None:
            far.close()
            closed.set()

    heard = Closes()
    far.feed(heard)
    until(lambda: heard.all == ["restored"])
    other.put_many([("k", 1, None)])
    assert closed.wait(5)


def test_two_listeners(server: Server, other: Valkey) -> None:
    far, first = fed(server.url)
    second = Heard()
    far.feed(second)
    until(lambda: second.all == ["restored"])
    other.put_many([("k", 1, None)])
    until(lambda: first.keys == second.keys == ["k"])
    far.close()


def test_a_forked_child_is_told(server: Server, other: Valkey) -> None:
    """It has no thread of its parent's: its copies are not to be trusted until it listens itself."""
    far = Valkey(server.url, timeout=5, heartbeat=1)
    near = Near(far)
    far.feed(near)
    until(lambda: near.trusted)
    other.put_many([("k", "old", None)])
    until(lambda: near.changes > 0)
    assert near.read("k") == "old" and near.copies
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            until(lambda: near.told == ["restored", "lost", "restored"], 5)
            assert near.read("k") == "old" and near.copies
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            until(lambda: near.read("k") == "new", 5)
            code = 0
        finally:
            os._exit(code)
    os.read(ready[0], 1)
    other.put_many([("k", "new", None)])
    until(lambda: near.read("k") == "new")
    os.write(go[1], b"x")
    assert os.waitpid(pid, 0)[1] == 0
    assert near.told == ["restored"]
    for end in (*ready, *go):
        os.close(end)
    far.close()


# --- the proofs, in short ------------------------------------------------------------------------


def proof(*options: str) -> subprocess.CompletedProcess[str]:
    if server_program() is None:
        Server()  # skips
    command = [sys.executable, str(PROOF), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(SHORT, reason="the proofs count in seconds")
def test_no_copy_outlives_what_is_stated() -> None:
    ran = proof("--writes", "4000", "--cuts", "4", "--down", "0.8")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "all as stated" in ran.stdout


@pytest.mark.skipif(SHORT, reason="the proofs count in seconds")
@pytest.mark.parametrize(
    "options",
    [
        ("--plant", "deaf", "--writes", "3000", "--cuts", "0", "--down", "0"),
        ("--plant", "heartless", "--writes", "0", "--cuts", "3", "--down", "0"),
    ],
)
def test_a_planted_fault_is_found(options: tuple[str, ...]) -> None:
    """Changes that are not heard; heartbeats that do not come. Sought again where the machine is late itself."""
    for seed in "123":
        ran = proof(*options, "--seed", seed)
        found = re.search("reads were stale|were not noticed|behind, the bound", ran.stdout)
        if found:
            break
    assert found and ran.returncode == 1, ran.stdout + ran.stderr
