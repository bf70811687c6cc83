"""Operations with too little memory: each, with the first allocation failing, then the second, until none fails.

A script of its own, for a process of its own (`test_oom.py` runs a slice, `proof/oom.py` all). Two ways to fail:

``python``: `_testcapi.set_nomemory`, so what Python's allocators give, binding and interpreter alike.
``ours``: behind ``fault/shim.c``, the malloc, calloc, realloc, mmap, mremap and pthread_create of our own objects.

Each at place n once, and from n on. What must hold after each: only errors that are documented were raised, `check`
is clean, every key has the value it had before or the one it was to get, all works again, and no reference, block
of memory, descriptor, thread or file is left. A case has a forked child, so that one that crashes names itself.

Interpreters fail here too, without a line of ours: they lose the exception while they unwind, leak the items of a
list, spin at a `with`, free a generator twice, abort for want of an error made beforehand. So each is asked first, by
the cases "interpreter: ...", and what it does to itself is counted as its own ("theirs") where one of ours shows it.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import ctypes
import functools
import gc
import json
import mmap
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import starving_files  # noqa: F401, its cases
import starving_more  # noqa: F401, its cases
from starve_sweep import HELD, PLACE, Ours, Python, Sweep
from starving import CASES
from starving_alone import plant

MODES = ("on", "once")
ALONE, CROWD = "interpreter:", "interpreter: a crowd"
IN_OURS, NOT_ALONE = "in ours", ", but not by itself"
AFTER_LOSS = ", where in the other way the error of a function we call is lost: no handler sees it"
CRASHES, ENOUGH, CROWDED = 400, 2, 30
"""After so many a case is given up; and one of the interpreter alone, which has shown it then; a crowd shows more."""


class Own:
    """What this interpreter does to itself where memory is short."""

    BLIND = "os.PathLike object, not PosixPath"
    """A look-up in a type that lacked memory found nothing."""
    RESULT = "returned a result with an exception set"
    GARBLED = {"get_event_loop> returned a result": RESULT, "cyfunction aload at": RESULT}
    """What one of ours may show where a task's step or an `await` has failed: what shows that asyncio did."""
    LOST = "error return without exception set"
    ABORTS = (
        ": Cannot recover from "  # MemoryErrors while it normalizes exceptions, or a stack overflow
    )
    NOTHING = "PyException_GetTraceback+0x0 < PyTraceBack_Here"
    """Our C adds its frame to the error of a Python function it called; that function's interpreter lost it."""
    BROKEN = re.compile(
        r"signal \d+, status 0:  (pymalloc_|_?PyObject_(GC_)?(Malloc|Free|Del|New)|_Py_Dealloc\+0x\w+ < code_dealloc)"
    )
    """A crash in the allocator, or where a code object goes before its time: the memory had been broken before."""

    LEAKS = re.compile(r"'(blocks|references|ours)': \d")
    """What it may leave; "ours": objects, as those of our types, that nobody has. Never a descriptor or a thread."""
    CALLED = re.compile(r"__cinit__\(\) takes .* given\)|getargs\.c:\d+: bad argument")
    """A call with arguments that nobody gave, once memory is back: the code object of who calls was freed, too."""
    CRASHED = {
        "PyContextVar_Set+": ("PyContextVar_Set+", "hamt_tp_dealloc+"),
        "dictiter_dealloc+": ("dictiter_dealloc+",),
    }
    """Where it lets go of what it could not make: a token and its mapping, at once or with the next change of that; the
    iterator of a dict's items."""

    def __init__(self) -> None:
        self.loses = self.spins = self.corrupts = self.aborts = self.stalls = False
        self.leaks = set[str]()
        self.blind, self.garbled, self.crashed = False, set[str](), set[str]()

    def learn(self, told: dict[str, Any]) -> None:
        said = " ".join([*told["bad"], *told["theirs"]])
        self.loses |= self.LOST in said
        self.leaks |= set(self.LEAKS.findall(said))
        self.blind |= self.BLIND in said
        for frame, others in self.CRASHED.items():
            self.crashed |= set(others if frame in said else ())
        self.garbled |= {ours for ours, own in self.GARBLED.items() if own in said}
        self.stalls |= "epoll_wait" in said  # a loop whose task's step was lost
        self.aborts |= self.ABORTS in said
        self.spins |= f"signal {int(signal.SIGALRM)}" in said
        breaks = told["case"].endswith(("generators", "a cell"))
        self.corrupts |= breaks and "it ended with" in said

    def did(self, said: str) -> bool:
        """Whether what one of our cases shows is that."""
        if any(frame in said for frame in self.crashed):
            return True
        if self.BLIND in said:
            return self.blind
        if any(one in said for one in self.garbled):
            return True
        if NOT_ALONE in said or self.CALLED.search(said):
            return self.corrupts
        if AFTER_LOSS in said:
            return self.loses
        if self.ABORTS in said and (self.aborts or "_PyErr_CreateException" in said):
            return True
        spun = self.spins and f"signal {int(signal.SIGALRM)}" in said
        if IN_OURS in said:  # whatever it does to itself elsewhere
            broken = self.corrupts and self.BROKEN.search(said)
            waits = spun and "take_gil" in said  # for a thread that spins
            return bool(broken) or waits or (self.loses and self.NOTHING in said)
        if "it ended with" in said:
            spun = spun and ("acquire_lock" not in said or "take_gil" in said)
            stalled = self.stalls and "epoll_wait" in said
            return self.corrupts or spun or stalled
        if "left each time" in said:
            return HELD not in said and set(re.findall(r"'(\w+)': \d", said)) <= self.leaks
        return self.loses and (self.LOST in said or "returned NULL without setting an exc" in said)


def child(
    case: str,
    how: str,
    start: int,
    resume: int,
    options: Any,
    progress: mmap.mmap,
    patience: int = 1,
) -> tuple[list[tuple[int, bool, str]], str]:
    """A sweep in a process of its own: what is bad, by its place and way, and how it ended if it crashed."""
    progress[: PLACE.size] = PLACE.pack(start, 0, 0, 0)
    ours, theirs = os.pipe()
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with (
        tempfile.TemporaryFile() as errors,
        tempfile.TemporaryDirectory(dir=shm, prefix="gbcache-starve-") as root,
    ):
        pid = os.fork()
        if pid == 0:
            Sweep.patience = patience
            os.close(ours)
            os.dup2(errors.fileno(), 2)
            with os.fdopen(theirs, "w") as told:
                try:
                    gc.freeze()
                    way = Python() if how == "python" else Ours()
                    sweep = Sweep(case, way, Path(root), progress, told)
                    sweep.run(start, options.step, options.most, resume)
                except BaseException as error:
                    told.write(json.dumps({"bad": [start, False, f"{error!r}"]}))
            os._exit(0)
        os.close(theirs)
        with os.fdopen(ours) as pipe:
            bad = [tuple(json.loads(line)["bad"]) for line in pipe]
        status = os.waitpid(pid, 0)[1]
        if not status:
            return bad, ""
        errors.seek(0)
        lines = errors.read().decode(errors="replace").splitlines()
    trace = [line for line in lines if "[0x" in line][2:]  # without the handler that wrote it
    frames = " < ".join(named(line) for line in trace[:9])
    last = " ".join(line for line in lines if line.startswith("Fatal Python error"))
    whose = f" {IN_OURS}" if of_ours(trace) else ""
    return bad, f"it ended{whose} with signal {status & 127}, status {status >> 8}: {last} {frames}"


@functools.cache
def symbols(path: str) -> list[tuple[int, str]]:
    """The functions of an object, those that are static too, by where they begin."""
    told = subprocess.run(["nm", "-n", path], capture_output=True, text=True, check=False).stdout
    split = [line.split() for line in told.splitlines()]
    return [(int(one[0], 16), one[2]) for one in split if len(one) == 3 and one[1] in "tTwW"]


def named(line: str) -> str:
    """A frame of a backtrace, "object(function+0x1)[0x2]": its function and offset."""
    path, _, rest = line.rpartition("(")
    frame = rest.split(")")[0]
    if not frame.startswith("+0x"):
        return frame
    at = int(frame[1:], 16)
    known = symbols(path)
    i = bisect.bisect_right(known, (at, "~")) - 1
    return f"{known[i][1]}+{hex(at - known[i][0])}" if i >= 0 else frame


def of_ours(trace: list[str]) -> bool:
    """Whether our C led to where it ended, with no Python code in between."""
    between = (line for line in trace if "_PyEval_EvalFrame" in line or "/gbcache/" in line)
    return "/gbcache/" in next(between, "")


def by_itself(case: str, how: str, n: int, once: bool, options: Any, what: str) -> str:
    """What a place showed, for an interpreter that breaks its memory: its own if the place does not show it alone."""
    only = argparse.Namespace(**{**vars(options), "most": n + 1})
    again, ended = child(case, how, n, n + bool(once), only, mmap.mmap(-1, 4096))
    shown = {kind(more) for _, _, more in again} | {kind(ended)}
    return what if kind(what) in shown else f"{what.replace(f' {IN_OURS}', '')}{NOT_ALONE}"


def kind(what: str) -> str:
    """How it begins, without the numbers: a crash by its signal, whose it was, and where."""
    return re.sub(r"0x[0-9a-f]+|\d+", "", what)[:70]


def swept(case: str, how: str, options: Any, own: Own) -> dict[str, Any]:
    """A sweep that goes on after a crash, some times."""
    progress, start, resume = mmap.mmap(-1, 4096), options.start, 0
    found, tried, failed, given_up = list[tuple[int, bool, str]](), 0, 0, True
    times = CROWDED if case == CROWD else ENOUGH if case.startswith(ALONE) else CRASHES
    for _ in range(times):
        bad, ended = child(case, how, start, resume, options, progress)
        n, once, more, missed = PLACE.unpack(progress[: PLACE.size])
        found, tried, failed = [*found, *bad], tried + more, failed + missed
        if not ended:
            given_up = False
            break
        spun = f"signal {int(signal.SIGALRM)}" in ended
        if spun and IN_OURS in ended:  # or the machine is busy: once more, with ten times as long
            only = argparse.Namespace(**{**vars(options), "most": n + 1})
            bad, ended = child(case, how, n, n + bool(once), only, mmap.mmap(-1, 4096), 10)
            found += bad
            if not ended:
                start, resume = n + options.step, 0
                continue
        found.append((n, once, ended))
        spun = spun and not once
        start = n + options.step * (not spun)
        resume = n + 20 * options.step if spun else 0  # it does so for a stretch of places
    told: dict[str, Any] = {"case": case, "tried": tried, "failed": failed, "places": n}
    given_up = (given_up and not case.startswith(ALONE)) or n >= options.most
    told |= {"given up": given_up, "bad": [], "theirs": []}
    lost = {n for n, _, what in found if own.loses and own.NOTHING in what}
    for n, once, what in found:
        if n in lost and IN_OURS not in what:
            what += AFTER_LOSS
        if own.corrupts and not own.did(what):  # what an earlier place broke may come out anywhere
            what = by_itself(case, how, n, once, options, what)
        told["theirs" if own.did(what) else "bad"].append(f"{MODES[once]} {n}: {what}")
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("how", choices=["python", "ours"])
    parser.add_argument("--only", default="", help="cases whose name begins with one of these (|)")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument(
        "--each", default="-", help="of these, though, every place, as of the interpreter's own (|)"
    )
    parser.add_argument("--most", type=int, default=5000)
    parser.add_argument(
        "--planted", action="store_true", help="with cases that are to be found out"
    )
    parser.add_argument("--end", action="store_true", help="a last line: how many cases were told")
    options = parser.parse_args()
    if options.planted:
        plant()
    with contextlib.suppress(AttributeError):  # not behind the shim
        ctypes.CDLL(None).shim_crashes()
    bad, cases, own, every = (
        0,
        0,
        Own(),
        argparse.Namespace(**{**vars(options), "step": 1, "start": 0}),
    )
    wanted, each = tuple(options.only.split("|")), tuple(options.each.split("|"))
    chosen = [case for case in CASES if case.startswith(wanted)]
    if none := [name for name in wanted if not any(case.startswith(name) for case in chosen)]:
        parser.error(f"no case begins with {none}")
    loops = any("aget_or_set" in case for case in chosen)  # a crowd takes half a minute
    for case in sorted(CASES, key=lambda case: not case.startswith(ALONE)):
        control = case.startswith(ALONE)
        if case in chosen or (control and (loops or case != CROWD)):
            begun = time.monotonic()
            told = swept(
                case, options.how, every if case.startswith((ALONE, *each)) else options, own
            )
            told["seconds"] = round(time.monotonic() - begun, 2)
            if control:
                own.learn(told)
                told["theirs"], told["bad"] = [*told["theirs"], *told["bad"]], []
            bad, cases = bad + len(told["bad"]), cases + 1
            print(json.dumps(told), flush=True)
    if options.end:  # a sweep that was cut off has none
        print(json.dumps({"end": cases}), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
