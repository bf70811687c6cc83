"""What power.py records: a save, and the two lives of a live file, done behind tests/fault/shim.c."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

from gbcache import Cache, files

SIZE = 64_000
FIRST, SECOND, THIRD = b"the first boot..", b"the second boot.", b"the third boot.."


def content(letter: str, scale: int = 60) -> dict[Any, Any]:
    """What a version is called by one letter; "-" is an empty one."""
    if letter == "-":
        return {}
    return {**{i: letter * (i * 7 % 40) for i in range(scale)}, "long": letter * (100 * scale)}


class Recorder:
    """What the child does, and which versions a power cut may leave from then on."""

    def __init__(self, root: Path, log: Path) -> None:
        self.root, self.shim = root, ctypes.CDLL(None)
        self.shim.shim_root(os.fsencode(root))
        self.shim.shim_log(os.fsencode(log))

    def may(self, versions: str) -> None:
        self.shim.shim_mark(versions.encode())

    def see(self) -> None:
        """The pages as they are now: between two calls the kernel may write any of them."""
        self.shim.shim_mark(b"=")

    def fill(self, cache: Cache, letter: str) -> None:
        wanted = content(letter)
        for turn, key in enumerate(wanted):
            cache.set(key, wanted[key], ttl=9999 if turn % 5 == 0 else None)
            if turn % 9 == 0:
                self.see()
        for key in [key for key in cache if key not in wanted]:
            del cache[key]
        self.see()

    def live(self, **more: Any) -> Cache:
        return Cache(more.pop("size", SIZE), path=self.root / "l.gbc", housekeeping=False, **more)

    def sync(self, cache: Cache, old: str, new: str) -> None:
        self.may(old + new)
        cache.sync()
        self.may(new)

    def close(self, cache: Cache, old: str, new: str) -> None:
        self.may(old + new)
        cache.close()
        self.may(new)


def do_save(r: Recorder, letter: str, scale: int) -> None:
    cache = Cache("4MB")
    cache.update(content(letter, scale))
    r.may("on")
    cache.save(r.root / "a.gbs")
    r.may("n")


def do_first_life(r: Recorder) -> None:
    """Made, filled, synced, closed; opened, written, synced, larger, smaller, closed; opened, and killed."""
    r.may("-")
    cache = r.live()
    r.fill(cache, "a")
    r.sync(cache, "-", "a")
    r.fill(cache, "b")
    r.close(cache, "a", "b")
    r.may("ab")
    cache = r.live()
    r.may("a")
    r.fill(cache, "c")
    r.sync(cache, "a", "c")
    r.fill(cache, "d")
    cache.resize(2 * SIZE)
    r.fill(cache, "e")
    cache.resize(SIZE)
    r.close(cache, "c", "e")
    r.may("ce")
    cache = r.live(size=SIZE + 4096)
    r.may("c")
    r.fill(cache, "f")
    r.shim.shim_log(None)
    os._exit(0)


def do_second_life(r: Recorder) -> None:
    """In another boot: the checkpoint, written to a new file; that one goes on, and is closed."""
    files.boot_id = lambda: SECOND
    r.may("c")
    cache = r.live()
    assert cache.recovery is not None and cache.recovery.how == "checkpoint", cache.recovery
    r.fill(cache, "g")
    r.close(cache, "c", "g")
    r.may("cg")
    cache = r.live()
    r.may("c")
    r.fill(cache, "h")
    r.sync(cache, "c", "h")
    r.close(cache, "h", "h")


def main(work: str, root: str, log: str, *more: str) -> None:
    files.boot_id = lambda: FIRST
    recorder = Recorder(Path(root), Path(log))
    if work == "save":
        do_save(recorder, more[0], int(more[1]))
    elif work == "disk":
        import power_disk

        power_disk.live(recorder, *more)
    else:
        {"first": do_first_life, "second": do_second_life}[work](recorder)
    recorder.shim.shim_log(None)


if __name__ == "__main__":
    main(*sys.argv[1:])
