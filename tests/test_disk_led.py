"""What a signal's handler raises in a thread that leads is that thread's, and not the error of those it leads."""

from __future__ import annotations

import errno
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from children import isolated
from far_contract import until

pytest.importorskip("lmdb")
from gbcache import Disk
from gbcache.errors import FarError
from gbcache.groups import Request


class Interrupt(Exception):
    pass


class Holds(Request):
    """Leads until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()

    def do(self, view: Any) -> None:
        assert self.let.wait(20)


class Struck(Request):
    """A signal comes to the main thread while this is done."""

    def do(self, view: Any) -> str:
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGUSR1)
        for _ in range(10_000):
            pass
        return "done"


@isolated
def test_a_handler_of_who_leads(tmp_path: Path) -> None:
    def raising(*_: object) -> None:
        raise Interrupt

    disk = Disk(tmp_path / "d", sync="never")
    groups, told, made = disk._engine.groups, list[Any](), dict[Any, Any]()

    def run(kind: type[Request]) -> None:
        request = kind()
        made[kind] = request
        try:
            told.append(groups.run(request))
        except BaseException as error:
            told.append(error)

    first = threading.Thread(target=run, args=(Holds,), daemon=True)
    first.start()
    until(lambda: groups._led and Holds in made and not groups._waiting)

    def queues() -> None:
        until(lambda: len(groups._waiting) == 1)  # the main thread's
        threading.Thread(target=run, args=(Struck,), daemon=True).start()
        until(lambda: len(groups._waiting) == 2)
        made[Holds].let.set()

    threading.Thread(target=queues, daemon=True).start()
    signal.signal(signal.SIGUSR1, raising)
    with pytest.raises(Interrupt):
        disk.put_many([("k", 1, None)])
    until(lambda: len(told) == 2)
    said = [one for one in told if one is not None]
    assert all(isinstance(one, FarError) and one.errno == errno.EINTR for one in said), told
    disk.put_many([("k", 2, None)])
    disk.close()
