"""Write-behind buffers beyond their tiers: before the next tier, in a forked child, and as the process ends."""

from __future__ import annotations

import atexit
import sys
import time
import weakref
from typing import Any

from . import forks, pending
from .errors import FarError
from .far import Far  # its own end comes after ours

__all__ = ["buffers", "settle", "waiting", "watch"]

buffers: weakref.WeakSet[Any] = weakref.WeakSet()
waiting: set[Any] = set()
"""Those with something on its way: they last until it is written, if everybody else has dropped them."""
_watched = False


def settle(far: Far) -> None:
    """Before a tier begins: what an earlier one of this far side acknowledged is there. It would come over what this
    one writes, and would not be read by it."""
    for behind in list(waiting):
        if behind.far is far:
            try:
                behind.drain()
            except FarError as error:
                pending.again(
                    error,
                    "an earlier Tiered's writes come first, and are tried again until they are there "
                    "(to give them up, close this far side and open another)",
                )


def watch(far: Far) -> None:
    """Before something is on its way there. ClosedError: a forked child's Disk takes nothing ever. And a child of
    multiprocessing ends by `os._exit`, once it has called this."""
    global _watched
    if (check := getattr(far, "_check_open", None)) is not None:
        check()
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if _watched or util is None or process is None or process.parent_process() is None:
        return
    util.Finalize(None, _at_exit, exitpriority=100)  # twice is harmless
    _watched = True


def _close(behind: Any, end: float) -> None:
    """Until then what passes, as a server that begins anew, loses nothing."""
    while True:
        try:
            behind.close()
            return
        except FarError:
            if time.monotonic() > end:
                raise
        time.sleep(pending.FIRST)


def _at_exit() -> None:
    raised: BaseException | None = None
    end = time.monotonic() + pending.LONGEST
    for behind in list(buffers):
        try:
            try:
                _close(behind, end)
            except RuntimeError:  # of `Thread.start`
                behind.empty()
        except Exception as error:
            pending.tell(error, type(behind))
        except BaseException as error:  # the others have theirs to write
            raised = error
    if raised is not None:
        raise raised


def _forked() -> None:
    global _watched
    _watched = False  # multiprocessing's child forgets what its parent would call
    for behind in list(buffers):
        behind._in_child()
    waiting.clear()  # last: they are the parent's


atexit.register(_at_exit)
forks.in_child(_forked)
