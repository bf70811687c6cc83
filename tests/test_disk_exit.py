"""A Disk that is open when the process ends."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("lmdb")
from gbcache import Disk
from gbcache.journal import _MARK


def ends(code: str, path: Path) -> str:
    """What it writes to stderr; it is to end by itself, and well."""
    ran = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60
    )
    assert not ran.returncode, ran.stderr
    return ran.stderr


OPEN = """
import sys
from gbcache import Disk
disk = Disk(sys.argv[1], sync="interval", interval=0.01)
disk.put_many([(i, b"x" * 100, None) for i in range(1000)])
"""


@pytest.mark.parametrize("why", ["", "disk.loop = disk", "sys.stderr = None"])
def test_it_is_closed(why: str, tmp_path: Path) -> None:
    assert not ends(OPEN + why, tmp_path / "d")
    seq, clean = _MARK.unpack((tmp_path / "d" / "owner").read_bytes())[2:4]
    assert clean and seq > 0


def test_a_thread_that_is_no_more_holds_nobody_up(tmp_path: Path) -> None:
    """As one that was within it when the interpreter ended; what was acknowledged is in the journal."""
    held = """
from gbcache import far
far._open.clear()  # as of one that is opened while the process ends
disk._engine._files.acquire()
"""
    assert not ends(OPEN + held, tmp_path / "d")
    with Disk(tmp_path / "d") as disk:
        assert disk.count() == 1000


@pytest.mark.parametrize(
    "first", ["from gbcache import Disk", "from gbcache import Tiered", "import gbcache.behind"]
)
def test_what_is_behind_gets_there_first(first: str, tmp_path: Path) -> None:
    code = f"""
import sys
{first}
from gbcache import Cache, Disk, Tiered
tier = Tiered(Cache("1MB"), Disk(sys.argv[1]), write="behind", behind_seconds=60)
tier["key"] = "value"
"""
    assert not ends(code, tmp_path / "d")
    with Disk(tmp_path / "d") as disk:
        assert disk.get_many(["key"]) == {"key": ("value", None)}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 cannot call a function without memory")
def test_a_transaction_that_lacks_memory_is_given_up_by_its_thread(tmp_path: Path) -> None:
    """Whoever keeps the error keeps its frames, and a transaction left open in them would let nobody close."""
    testcapi = pytest.importorskip("_testcapi")
    disk = Disk(tmp_path / "d")
    disk.put_many([("a", 1, None)])

    def fill(txn: object, *_: object) -> None:
        held.append(txn)
        testcapi.set_nomemory(0)
        raise MemoryError

    disk._engine.store._fill = fill  # type: ignore[method-assign]
    held: list[object] = []
    try:
        with pytest.raises(MemoryError):
            disk._engine.flush()
    finally:
        testcapi.remove_mem_hooks()
    del disk._engine.store._fill
    closing = threading.Thread(target=disk.close, daemon=True)
    closing.start()
    closing.join(20)
    assert held and not closing.is_alive()
    with Disk(tmp_path / "d") as again:
        assert again.get_many(["a"]) == {"a": (1, None)}
