"""A signal's handler that raises, at any place of a call: what stands for it in tests.

The call is traced by opcode, and the n-th of those before which Python looks for signals raises.
"""

from __future__ import annotations

import dis
import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import gbcache

ROOM = os.path.dirname(gbcache.__file__)


class Interrupted(BaseException):
    """What the handler raises."""


LOOKS_AFTER = ("CALL", "RESUME", "JUMP_BACKWARD")
"""Of 3.11 and later: the opcodes after which it looks. 3.10 does at nearly each."""


class At:
    """Raises at the n-th such opcode of our own Python, in this thread."""

    def __init__(self, n: int) -> None:
        self.left, self.where = n, ""
        self.before: tuple[FrameType | None, str] = (None, "")

    def looks(self, frame: FrameType) -> bool:
        last, name = self.before
        op = dis.opname[frame.f_code.co_code[frame.f_lasti]]
        self.before = (frame, op)
        if sys.version_info < (3, 11):
            return not op.startswith("SETUP_")
        return last is not frame or name.startswith(LOOKS_AFTER)

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


def interrupted(call: Callable[[], object], n: int) -> str:
    """Where it was; "" if it ended before that."""
    at = At(n)
    sys.settrace(at)
    try:
        call()
    except Interrupted:
        return at.where
    finally:
        sys.settrace(None)
    return ""
