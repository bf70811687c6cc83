"""What a part of the proof found, as rows of the one table `make proof` prints.

A part prints what it likes, and a row for each goal; it ends with ``sys.exit(said.verdict())``, which says how it is
replayed. A case that shows a failure is kept under ``build/proof/``, and the part says where; its rows and its
command, the seed in it, are kept there in any case.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

KEPT = Path(__file__).resolve().parent.parent.parent / "build" / "proof"
MARK = "row|"
OURS = re.compile(r"/gbcache/\w+\.\w")
"""A frame of a stack in what we wrote, or what Cython made of it: every module, whatever its name."""
GIVEN = ("GB_EXPECT", "GB_SLICE", "PYTHONMALLOC", "ASAN_OPTIONS", "LD_PRELOAD")
_rows: list[str] = []
_all_good = True


def row(goal: str, figure: str, good: bool) -> None:
    """One line of the table: what was to be shown, what was reached, and whether that is it."""
    global _all_good
    _all_good = _all_good and good
    clean = [re.sub(r"\s+", " ", text).replace("|", "/").strip() for text in (goal, figure)]
    _say(f"{MARK}{clean[0]}|{clean[1]}|{'yes' if good else 'NO'}")


def skipped(goal: str, why: str) -> None:
    """What cannot be shown on this machine: no failure, and no "yes"."""
    _say(f"{MARK}{goal}|skipped: {why}|skipped")


def _say(text: str) -> None:
    _rows.append(text)
    print(text, flush=True)


def kept(name: str) -> Path:
    """Where a case is kept that shows a failure; its directory is there."""
    path = KEPT / f"{name}-{os.getpid()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def replay() -> str:
    """The command of this part, with all it was given: a build under ASan does not start without its library."""
    root = KEPT.parent.parent
    name, paths = os.path.relpath(sys.argv[0], root), os.environ.get("PYTHONPATH", ".")
    path = os.path.relpath(paths.split(os.pathsep)[0], root)
    more = [f"{given}={os.environ[given]}" for given in GIVEN if given in os.environ]
    return shlex.join(["env", f"PYTHONPATH={path}", *more, "python", name, *sys.argv[1:]])


def verdict() -> int:
    """0 if there are rows, and every one so far is good: the exit status of a part."""
    print(f"replayed by: {replay()}", flush=True)
    good = _all_good and bool(_rows)
    if not good:
        path = kept(Path(sys.argv[0]).stem + "-rows")
        path.write_text("\n".join([replay(), *_rows, ""]))
        print(f"kept: {path}", flush=True)
    return 0 if good else 1
