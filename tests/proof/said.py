"""What a part of the proof found, as rows of the one table `make proof` prints.

A part prints what it likes, and a row for each goal; it ends with ``sys.exit(said.verdict())``. A case that shows
a failure is kept under ``build/proof/``, and the part says where, and its seed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

KEPT = Path(__file__).resolve().parent.parent.parent / "build" / "proof"
MARK = "row|"
_all_good = True


def row(goal: str, figure: str, good: bool) -> None:
    """One line of the table: what was to be shown, what was reached, and whether that is it."""
    global _all_good
    _all_good = _all_good and good
    clean = [re.sub(r"\s+", " ", text).replace("|", "/").strip() for text in (goal, figure)]
    print(f"{MARK}{clean[0]}|{clean[1]}|{'yes' if good else 'NO'}", flush=True)


def kept(name: str) -> Path:
    """Where a case is kept that shows a failure; its directory is there."""
    path = KEPT / f"{name}-{os.getpid()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def verdict() -> int:
    """0 if every row so far is good: the exit status of a part."""
    return 0 if _all_good else 1
