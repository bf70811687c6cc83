"""One case of `starve.py`, at one place after the other: how memory fails there, what is wrong then, what is left."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import mmap
import os
import shutil
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from starving import CASES

NO_MORE = ("can't allocate lock", "can't start new thread")
"""What the interpreter says in a MemoryError's place."""
AWAITED = "'async for' received an invalid object"
"""What Cython makes of a MemoryError of an `await`."""
STUCK = 1.5
"""Seconds after which a place does not come to an end; most take a few ms, and 1 s where a wake-up was lost."""
HELD = ", held by "
PLACE = struct.Struct("<ibii")
"""What a sweep leaves of itself should it crash: the place, its way, how many it has tried, and how many failed."""
AGAIN, WINDOWS, SAME = 8, 40, 4
"""How often a place is tried again that seemed to leave something, and how often that is repeated: a leak does so
each time, and soon the same; what an interpreter makes at the first hundreds of calls of a line is not."""


class Python:
    """Fails what Python's allocators are asked for."""

    def __init__(self) -> None:
        import _testcapi

        self._begin, self._end = _testcapi.set_nomemory, _testcapi.remove_mem_hooks

    def attempt(
        self, act: Callable[[], Any], n: int, once: bool
    ) -> tuple[BaseException | None, bool]:
        """What was raised, and whether place n was reached (of "once": not known, True)."""
        raised, reached = None, once
        begin, end, stop = self._begin, self._end, n + 1 if once else 0
        begin(n, stop)
        try:
            act()
        except BaseException as error:
            raised = error
        if not once:
            try:
                bytearray(33)
            except MemoryError:
                reached = True
        end()
        return raised, reached


class Ours:
    """Fails what our own objects ask the system for."""

    def __init__(self) -> None:
        self._shim = ctypes.CDLL(None)

    def attempt(
        self, act: Callable[[], Any], n: int, once: bool
    ) -> tuple[BaseException | None, bool]:
        raised = None
        self._shim.shim_memory(n + 1, 0 if once else 1)
        try:
            act()
        except BaseException as error:
            raised = error
        return raised, self._shim.shim_memory_end() > n


def bare(error: BaseException | None) -> None:
    """Takes the frames from an error, and from those it came from: they would keep what they had."""
    while error is not None:
        error = error.with_traceback(None).__context__


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def is_ours(one: object) -> bool:
    return str(type(one).__module__).startswith("gbcache")


def left() -> dict[str, int]:
    """What is to be the same after as before."""
    gc.collect()
    ours = sum(map(is_ours, gc.get_objects()))
    total = getattr(sys, "gettotalrefcount", int)()
    return {"blocks": sys.getallocatedblocks(), "references": total, "descriptors": descriptors(),
            "threads": threading.active_count(), "ours": ours}  # fmt: skip


class Sweep:
    """One case, at one place after the other."""

    patience = 1

    def __init__(
        self, case: str, how: Python | Ours, root: Path, progress: mmap.mmap, told: TextIO
    ) -> None:
        self.make, self.how, self.root, self.progress = CASES[case], how, root, progress
        self.told = told
        self.unraisable: list[BaseException] = []
        self.tried = self.failed = 0
        sys.unraisablehook = lambda told: self.unraisable.append(told.exc_value or told.exc_type())
        threading.excepthook = lambda told: self.unraisable.append(
            told.exc_value or told.exc_type()
        )

    def one(self, n: int, once: bool) -> tuple[str, bool]:
        """What is wrong after an attempt at place n, and whether it was reached."""
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        work = self.make(self.root)
        said, reached = "", False
        try:
            self.unraisable.clear()
            raised, reached = self.how.attempt(work.act, n, once)
            asyncio._set_running_loop(None)  # what asyncio itself may leave in 3.10
            bare(raised)
            said = self._odd(raised, work.allowed)
            self.unraisable.clear()
            if not said:
                try:
                    work.look(raised is not None)
                except BaseException as error:
                    trace = error.__traceback__
                    while trace is not None and trace.tb_next is not None:
                        trace = trace.tb_next
                    where = "" if trace is None else f" at line {trace.tb_lineno}"
                    said = f"after {type(raised).__name__}: {error!r}{where}"
                    bare(error)
        finally:
            try:
                work.over()
            except BaseException as error:
                said = said or f"it does not close: {error!r}"
                bare(error)
        self.failed += raised is not None
        return said, reached

    def _odd(self, raised: BaseException | None, allowed: tuple[type[BaseException], ...]) -> str:
        if isinstance(raised, RuntimeError) and str(raised) in NO_MORE:
            return ""
        if AWAITED in str(raised) and isinstance(raised.__cause__, MemoryError):  # type: ignore[union-attr]
            return ""
        if raised is not None and not isinstance(raised, allowed):
            return f"raised {raised!r} from {raised.__context__!r}"
        for error in self.unraisable:
            if not isinstance(error, (*allowed, MemoryError)):
                return f"unraisable: {error!r}"
            bare(error)
        return ""

    def leaks(self, n: int, once: bool) -> str:
        """What each further attempt at this place leaves."""
        more, same = dict[str, int](), 0
        for window in range(WINDOWS):
            times = 2 if not window else AGAIN  # most it is nothing: soon seen
            signal.setitimer(signal.ITIMER_REAL, STUCK * times * self.patience)
            before = left()
            for _ in range(times):
                self.one(n, once)
            after = left()
            until = time.monotonic() + 5
            while after["threads"] > before["threads"] and time.monotonic() < until:
                time.sleep(0.01)
                after = left()
            grown = {name: after[name] - before[name] for name in before}
            last, more = more, {
                name: n for name, n in grown.items() if n >= times and (not more or name in more)
            }  # fmt: skip
            if not more:
                return ""
            same = same + 1 if more == last and not any(n % times for n in more.values()) else 0
            if same == SAME:
                break
        said = f"left each time: { ({name: n / AGAIN for name, n in more.items()}) }"
        return said + (self.held(n, once) if grown["ours"] > 0 else "")

    def held(self, n: int, once: bool) -> str:
        """Who has what of ours further attempts leave: nobody has what an interpreter has lost a reference to."""
        gc.unfreeze()  # what is frozen is not looked through
        gc.collect()
        before = gc.get_objects()  # kept: no address is used again
        known = {id(one) for one in before}
        for _ in range(AGAIN):
            self.one(n, once)
        gc.collect()
        at = [one for one in gc.get_objects() if id(one) not in known and is_ours(one)]
        # What the next attempt takes the place of is not left, as a context's last flight.
        for _ in range(AGAIN):
            self.one(n, once)
        gc.collect()
        seen = {id(sys._getframe())}
        walked: list[Any] = []  # kept: as above
        while at:
            walked.append(at)
            found = gc.get_referrers(*at)
            if holders := {type(one).__name__ for one in found if id(one) in known}:
                return f"{HELD}{', '.join(sorted(holders))}"
            seen.update(map(id, (at, found, walked)))
            at = [one for one in found if id(one) not in seen]
            del found
            seen.update(map(id, at))
        return ""

    def at(self, n: int, once: bool) -> bool:
        """Tries a place; whether it was reached."""
        self.progress[: PLACE.size] = PLACE.pack(n, once, self.tried, self.failed)
        before = left()
        said, reached = self.one(n, once)
        after = left()
        self.tried += 1
        if not said and reached and any(after[name] > before[name] for name in before):
            said = self.leaks(n, once)
        if said:  # told at once: the next place may end the process
            self.told.write(json.dumps({"bad": [n, once, said]}) + "\n")
            self.told.flush()
        return reached

    def run(self, start: int, step: int, most: int, resume: int) -> None:
        """From place `start` on; in the way "on" not before `resume`."""
        for _ in range(3):  # what is made at the first use
            said, _ = self.one(1 << 30, True)
            assert not said, f"with all its memory: {said}"
        self.failed, n = 0, start
        while n < most:
            signal.setitimer(signal.ITIMER_REAL, STUCK * self.patience)
            reached = n < resume or self.at(n, False)
            self.at(n, True)
            if not reached:
                break
            n += step
        self.progress[: PLACE.size] = PLACE.pack(n, True, self.tried, self.failed)
