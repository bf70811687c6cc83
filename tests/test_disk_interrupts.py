"""A signal's handler that raises, anywhere in a call of a `Disk`: between any two steps of what is not compiled.

The calls are traced by opcode, and the n-th of those before which Python looks for signals raises, for every n. After
each the Disk goes on, is closed in time, and has all that was acknowledged; or is killed there, and opens with it.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from interrupted import exact, interrupted, places

pytest.importorskip("lmdb")
from gbcache import Disk, verbs

pytestmark = exact
SHORT = os.environ.get("GB_SLICE") == "short"


def in_time(call: Callable[[], object], where: str) -> None:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), f"waits for ever after an interrupt at {where}"


def have(disk: Disk, keys: range | list[Any]) -> set[Any]:
    return set(disk.get_many(list(keys)))


CALLS: dict[str, Callable[[Disk], object]] = {
    "put": lambda d: d.put_many([("x", 1, None), ("y", 2, None)]),
    "put a large one": lambda d: d.put_many([("x", bytes(2 << 20), None)]),
    "add and touch a large one": lambda d: (d.add("x", bytes(2 << 20)), d.touch("x", 100)),
    "delete": lambda d: d.delete_many(["none", "gone"]),
    "add": lambda d: d.add("x", 1),
    "incr": lambda d: d.incr("n"),
    "touch": lambda d: d.touch("gone", 100),
    "get": lambda d: d.get_many(["a", "none"]),
    "count": lambda d: d.count(),
    "scan": lambda d: d.scan(None, 10),
    "sync": lambda d: d.sync(),
    "flush": lambda d: d._engine.flush(),
    "rotate": lambda d: d._engine._settle_behind(),
}


def prepared(path: Path, sync: str) -> Disk:
    """A Disk with entries in LMDB and before it, whose background does nothing by itself."""
    disk = Disk(path, sync=sync)
    disk._engine._tend = lambda: None  # type: ignore[method-assign]
    disk.put_many([("a", 1, None), ("gone", 1, None)])
    disk._engine.flush()
    disk.put_many([("b", 2, None)])
    return disk


@pytest.mark.parametrize("sync", ["always", "never"])
@pytest.mark.parametrize("name", CALLS)
def test_it_goes_on(tmp_path: Path, name: str, sync: str) -> None:
    """In one Disk, again and again: every write after an interrupt is there, and none that was before is gone."""
    disk, call, n, step = prepared(tmp_path / "d", sync), CALLS[name], 0, 3 if SHORT else 1
    acknowledged: list[Any] = ["a", "b"]
    while True:
        n += step
        if not (where := interrupted(lambda: call(disk), n)):
            break
        in_time(lambda i=n: disk.put_many([(i, i, None)]), where)  # type: ignore[misc]
        acknowledged.append(n)
        assert have(disk, [n]) == {n}, where
        if n % 40 < step:
            in_time(disk._engine.flush, where)
    assert n > step
    in_time(disk.close, "an earlier place")
    with Disk(tmp_path / "d") as again:
        assert have(again, acknowledged) == set(acknowledged)


@pytest.mark.skipif(
    os.environ.get("GB_EXPECT") == "asan", reason="a fork beside threads may wait for gcc's ASan"
)
@pytest.mark.parametrize("name", ["put", "incr", "flush", "rotate", "put a large one"])
def test_killed_after_it(tmp_path: Path, name: str) -> None:
    """Killed at the interrupt, or after one more write: it opens, and all that was acknowledged is there."""
    n, step = 0, 19 if SHORT else 7
    while True:
        n += step
        path, told = tmp_path / str(n), tmp_path / f"{n}.told"
        if (pid := os.fork()) == 0:
            try:
                disk = prepared(path, "always" if n % 2 else "never")
                where = interrupted(partial(CALLS[name], disk), n)
                if n % 3:
                    disk.put_many([("after", 1, None)])
                told.write_text(where)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        where = told.read_text()
        if not where:
            break
        with Disk(path) as again:
            wanted = {"a", "b", "after"} if n % 3 else {"a", "b"}
            assert have(again, ["a", "b", "after"]) == wanted, where
    assert n > step


@pytest.mark.parametrize("clears", [False, True])
def test_the_others_are_told_what_is_so(tmp_path: Path, clears: bool) -> None:
    """The leader of a group is interrupted, anywhere: who is told FarError finds nothing of what it wanted, and may try
    again; who is not, all of it."""
    disk, n, step, seen = Disk(tmp_path / "d", sync="never"), 0, 3 if SHORT else 1, set()
    engine = disk._engine
    engine._tend = lambda: None  # type: ignore[method-assign]
    name = engine.records.name("n")
    while True:
        n += step
        disk.put_many([("n", n * 1000, None), ("gone", 1, None)])
        group: list[Any] = [
            verbs.Incr("n", name, 1, 0, 0),
            verbs.Delete([(engine.records.name("gone"), b"")]),
        ]
        last: list[Any] = [verbs.Clear()] if clears else []
        for request in group + last:
            request.thread = 0  # of another thread
            engine.groups._waiting.append(request)
        where = interrupted(lambda: disk.put_many([("own", 1, None)]), n)
        if where and not any(request.done for request in group + last):  # before it led
            engine.groups._waiting.clear()
            continue
        assert all(request.done for request in group + last), where
        told = [request.error is None for request in group + last]
        found = disk.get_many(["n", "gone"])
        if clears and told[-1]:
            assert found == {}, where
        else:
            assert found["n"][0] == n * 1000 + told[0], where
            assert ("gone" not in found) == told[1], where
            assert not told[0] or group[0].result == n * 1000 + 1, where
        seen.add(tuple(told))
        if not where:
            break
    disk.close()
    assert len(seen) == (3 if clears else 2), seen


def test_a_handler_may_not_write_to_what_it_interrupts(tmp_path: Path) -> None:
    """It would wait for itself, and all others with it."""
    told: list[str] = []

    class Comes(dict[Any, Any]):
        def get(self, *args: Any) -> Any:
            for call in (lambda: disk.put_many([("h", 1, None)]), disk.close):
                with pytest.raises(RuntimeError, match="within a call of this Disk") as error:
                    call()
                told.append(str(error.value))
            return None

        def abort(self) -> None:
            pass

    disk = Disk(tmp_path / "d")
    disk.put_many([("a", 1, None)])
    real = disk._engine.store.begin
    disk._engine.store.begin = Comes  # type: ignore[method-assign]
    disk._engine.reading = disk._engine.store.reading()
    assert disk.add("new", 1) and len(told) == 2
    disk._engine.store.begin = real  # type: ignore[method-assign]
    disk._engine.reading = disk._engine.store.reading()
    disk.put_many([("b", 1, None)])
    disk.close()
    with Disk(tmp_path / "d") as again:
        assert have(again, ["a", "b", "new", "h"]) == {"a", "b", "new"}


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # a descriptor nobody has yet is closed by the collector
@pytest.mark.parametrize("what", ["open", "close"])
def test_it_opens_again(tmp_path: Path, what: str) -> None:
    """An opening or a closing that was interrupted holds nothing once what it made is dropped."""
    path = tmp_path / "d"
    with Disk(path) as disk:
        disk.put_many([("a", 1, None)])

    def call() -> Callable[[], object]:
        return partial(Disk, path) if what == "open" else Disk(path).close

    most = places(call())
    gc.collect()
    assert most > (20 if what == "open" else 5)  # a close is done aside
    for n in range(1, most, 1 if what == "close" else 11 if SHORT else 7):
        where = interrupted(call(), n)
        gc.collect()
        with Disk(path) as disk:
            assert have(disk, ["a"]) == {"a"}, where
