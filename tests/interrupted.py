"""A signal's handler that raises, at any place of a call: what stands for it in tests.

The call is traced by opcode, and the n-th of those before which Python looks for signals raises.
"""

from __future__ import annotations

import dis
import os
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import pytest

import gbcache

ROOM = os.path.dirname(gbcache.__file__)


class Interrupted(BaseException):
    """What the handler raises."""


LOOKS_AFTER = ("CALL", "RESUME", "JUMP_BACKWARD")
"""The opcodes after which it looks."""
exact = pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="3.10 may run a handler between the body of a with and its end",
)


def handler(code: CodeType, at: int) -> int:
    """Where Python goes on if the opcode at `at` raises; 0: nowhere in this function."""
    for entry in dis._parse_exception_table(code):  # type: ignore[attr-defined]
        if entry.start <= at < entry.end:
            return int(entry.target)
    return 0


class At:
    """Raises at the n-th such opcode of our own Python, in this thread."""

    def __init__(self, n: int) -> None:
        self.left, self.where = n, ""
        self.last: FrameType | None = None
        self.ran: dict[FrameType, int] = {}  # of each frame, the opcode before this one

    def looks(self, frame: FrameType) -> bool:
        """Whether Python may have looked since; not where what raises then and what raises now go different ways: the
        call at the end of a `with` is within it, and what follows is not."""
        code, now = frame.f_code, frame.f_lasti
        last, was = self.last, self.ran.get(frame, now)
        self.last, self.ran[frame] = frame, now
        looked = last is not frame or dis.opname[code.co_code[was]].startswith(LOOKS_AFTER)
        return looked and handler(code, was) == handler(code, now)

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(ROOM):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and self.looks(frame):
            self.left -= 1
            if not self.left:
                sys.settrace(None)
                self.where = f"{frame.f_code.co_name}:{frame.f_lineno}"
                raise Interrupted
        return self


def _trace(at: At) -> None:
    sys._getframe().f_trace_opcodes = (
        True  # 3.12 asks for opcodes only if a frame wanted them by then
    )
    sys.settrace(at)


def interrupted(call: Callable[[], object], n: int) -> str:
    """Where it was; "" if it ended before that."""
    at = At(n)
    _trace(at)
    try:
        call()
    except Interrupted:
        return at.where
    finally:
        sys.settrace(None)
    return ""


def places(call: Callable[[], object]) -> int:
    """How many there are."""
    at = At(10**9)
    _trace(at)
    try:
        call()
    finally:
        sys.settrace(None)
    return 10**9 - at.left
