"""What was written behind, as a process ends: by an interrupt, as a child of multiprocessing, as a forked one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from children import run, skip_without_lmdb, survives

from gbcache import Cache, ClosedError, Tiered

FAR = '''
import multiprocessing
from gbcache import Cache, Tiered
class Far:
    """Tells what it has."""
    def __init__(self, path, raises=None): self.path, self.raises = path, raises
    def put_many(self, items):
        with open(self.path, "a") as file: file.write("".join(f"{k}={v};" for k, v, _ in items))
    def close(self):
        if self.raises: raise self.raises
    get_many = delete_many = scan = sync = lambda *_: None
'''


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("where", ["made there", "taken along"])
def test_a_child_of_multiprocessing_writes_what_it_acknowledged(
    tmp_path: Path, method: str, where: str
) -> None:
    if where == "taken along" and method != "fork":
        pytest.skip("nothing is")
    (tmp_path / "child.py").write_text(
        FAR
        + """
def make(path): return Tiered(Cache("1MB"), Far(path), write="behind", behind_seconds=60)
def child(path, tier=None):
    tier = make(path) if tier is None else tier
    tier["child"] = 1
def grand(path, tier=None):
    other = make(path)
    other["grand"] = 1
    process = multiprocessing.get_context("fork").Process(target=child, args=(path, other))
    process.start()
    process.join()
    other["late"] = 2
"""
    )
    program = f"""
import multiprocessing
if __name__ == "__main__":
    sys.path.insert(0, {str(tmp_path)!r})
    import child
    path, context = sys.argv[1], multiprocessing.get_context({method!r})
    tier = child.make(path) if {where == "taken along"} else None
    if tier is not None:
        tier["parent"] = 0
    for target in (child.child, child.grand):
        process = context.Process(target=target, args=(path, tier))
        process.start()
        process.join()
        assert process.exitcode == 0
    del multiprocessing, tier
"""
    path = tmp_path / "told"
    done = run(program, path)
    assert done.returncode == 0, done.stderr
    parent = ["parent=0"] * (where == "taken along")
    told = path.read_text().split(";")[:-1]
    assert sorted(told) == sorted(["child=1", "child=1", "grand=1", "late=2", *parent]), told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_told_that_its_disk_is_closed(tmp_path: Path) -> None:
    """Nothing that it writes behind could ever be written."""
    skip_without_lmdb(here=True)
    from gbcache import Disk

    with Tiered(Cache("1MB"), Disk(tmp_path / "d"), write="behind", behind_seconds=60) as tier:
        tier["k"] = 1

        def child() -> None:
            for write in (
                lambda: tier.set("k", 2),
                lambda: tier.update({"k": 2}),
                lambda: tier.discard("k"),
            ):
                with pytest.raises(ClosedError, match="opened by process"):
                    write()
            assert tier.stats().at_risk.entries == 0

        survives(child)
        tier.near.clear()
        assert tier["k"] == 1


def test_an_interrupt_as_one_is_closed_at_the_end_keeps_no_other_from_it(tmp_path: Path) -> None:
    program = (
        FAR
        + """
kept = [Tiered(Cache("1MB"), Far(sys.argv[1]), write="behind", behind_seconds=60) for _ in range(8)]
for i, tier in enumerate(kept):
    tier["k"] = i
def interrupted(): raise KeyboardInterrupt("at the end")
for i in (0, 3, 7):
    kept[i]._behind.close = interrupted
"""
    )
    done = run(program, tmp_path / "told")
    told = (tmp_path / "told").read_text().split(";")[:-1]
    assert sorted(told) == [f"k={i}" for i in (1, 2, 4, 5, 6)], done.stderr
    assert "at the end" in done.stderr
