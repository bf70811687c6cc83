"""kill -9 of the process that writes to a Disk, again and again: nothing that was acknowledged may be lost.

    python tests/proof/disk_kill.py [--kills N] [--seed S]

Each round forks a child that opens the directory, compares every key with the ledger, and then writes with four
threads, each on its own keys: single ones, many in a call, removals, values of more than a MiB, with layers so small
that LMDB is written to all the time, or large ones. The parent kills it at a random instant: while it opens, looks,
writes, or closes. The ledger is memory that both share: an operation is noted before it begins and after it returned.
A key may be as its last operation left it or, where one had begun, as that one would. With ``--plant`` a child
acknowledges what it does not do, with ``--plant stuck`` a thread waits for ever, and that must be found. A child that
ends in any way but by our kill, is still opening after a minute, or has a thread that acknowledges nothing before it is
killed, is a fault as well. After the last kill all is looked at once more.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import said

from gbcache import ClosedError, engine
from gbcache.disk import Disk

THREADS, KEYS, PATIENCE = 4, 60, 60.0
MODES = ("always", "interval", "never")
SLOT = struct.Struct("<QQ")  # begun, done
HEAD = 4096  # opened 8 | wrong: length 8, text | at DONE, of each thread: calls acknowledged 8
DONE = 3072
SHUT, OPENED, CLOSING = range(3)
LAYERS = (1 << 15, 1 << 18, 16 << 20)


class Ledger:
    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, HEAD + THREADS * KEYS * SLOT.size)

    def get(self, slot: int) -> tuple[int, int]:
        return SLOT.unpack_from(self.memory, HEAD + slot * SLOT.size)

    def begin(self, slot: int, n: int) -> None:
        struct.pack_into("<Q", self.memory, HEAD + slot * SLOT.size, n)

    def end(self, slot: int, n: int) -> None:
        struct.pack_into("<Q", self.memory, HEAD + slot * SLOT.size + 8, n)

    def set_opened(self, opened: int) -> None:
        struct.pack_into("<Q", self.memory, 0, opened)

    @property
    def opened(self) -> int:
        return int(struct.unpack_from("<Q", self.memory, 0)[0])

    def complain(self, text: str) -> None:
        said = text.encode()[: DONE - 16]
        self.memory[16 : 16 + len(said)] = said
        struct.pack_into("<Q", self.memory, 8, len(said))

    def calls(self, thread: int) -> int:
        return int(struct.unpack_from("<Q", self.memory, DONE + 8 * thread)[0])

    def add_call(self, thread: int) -> None:
        struct.pack_into("<Q", self.memory, DONE + 8 * thread, self.calls(thread) + 1)

    @property
    def complaint(self) -> str:
        (n,) = struct.unpack_from("<Q", self.memory, 8)
        return self.memory[16 : 16 + n].decode()


def key_of(slot: int) -> Any:
    kind = slot % 4
    return (
        f"key{slot}"
        if kind == 0
        else slot
        if kind == 1
        else ("t", slot)
        if kind == 2
        else f"long{slot}" * 120
    )


def state(slot: int, n: int) -> bytes | None:
    """What operation `n` on a key leaves there; None: nothing."""
    dice = random.Random(f"{slot}:{n}")
    if not n or dice.random() < 0.25:
        return None
    size = dice.randrange(400) if dice.random() < 0.98 else dice.choice([20_000, 1_200_000])
    return struct.pack("<QQ", slot, n) + bytes([n % 251]) * size


def verify(disk: Disk, ledger: Ledger) -> None:
    slots = range(THREADS * KEYS)
    found = disk.get_many([key_of(slot) for slot in slots])
    for slot in slots:
        begun, done = ledger.get(slot)
        value = found.get(key_of(slot), (None, None))[0]
        if value == state(slot, done):
            ledger.begin(slot, done)
        elif value == state(slot, begun):
            ledger.end(slot, begun)
        else:
            kind = (
                "lost" if value is None else "resurrected" if state(slot, done) is None else "wrong"
            )
            said = None if value is None else (len(value), struct.unpack_from("<QQ", value))
            raise AssertionError(f"{kind}: slot {slot} is {said}, begun {begun}, done {done}")
    there = {key_of(slot) for slot in slots if found.get(key_of(slot))}
    keys, cursor = disk.scan(count=50)
    while cursor is not None:
        more, cursor = disk.scan(cursor, 50)
        keys += more
    if set(keys) != there or disk.count() != len(there):
        raise AssertionError(
            f"wrong: scan has {len(keys)}, count is {disk.count()}, there are {len(there)}"
        )


def write(disk: Disk, ledger: Ledger, thread: int, seed: str, plant: str) -> None:
    dice = random.Random(f"{seed}:{thread}")
    while True:
        if plant == "stuck" and dice.random() < 0.05:
            threading.Event().wait()
        many = dice.choice([1, 1, 1, 3, 10])
        slots = [thread * KEYS + i for i in dice.sample(range(KEYS), many)]
        numbers = [ledger.get(slot)[1] + 1 for slot in slots]
        for slot, n in zip(slots, numbers, strict=True):
            ledger.begin(slot, n)
        made = [(key_of(slot), state(slot, n)) for slot, n in zip(slots, numbers, strict=True)]
        gone = [key for key, value in made if value is None]
        if not (plant == "lost" and dice.random() < 0.05):
            if gone:
                disk.delete_many(gone)
            disk.put_many([(k, v, dice.choice([None, 1e6])) for k, v in made if v is not None])
        for slot, n in zip(slots, numbers, strict=True):
            ledger.end(slot, n)
        ledger.add_call(thread)


def child(folder: Path, ledger: Ledger, seed: str, plant: str, last: bool = False) -> None:
    """`last`: it looks, closes, and ends well."""
    try:
        dice = random.Random(seed)
        engine.LAYER, engine.SWEEP, engine.IDLE = (
            dice.choice(LAYERS),
            0.01,
            dice.choice([0.02, 5.0]),
        )
        disk = Disk(
            folder, sync=dice.choice(MODES[:2] if dice.random() < 0.9 else MODES), interval=0.005
        )
        verify(disk, ledger)
        if last:
            disk.close()
            os._exit(0)
        ledger.set_opened(OPENED)
        closing = threading.Event()
        work = [
            threading.Thread(
                target=guarded, args=(ledger, closing, write, disk, ledger, t, seed, plant)
            )
            for t in range(THREADS)
        ]
        for thread in work:
            thread.start()
        if dice.random() < 0.2:
            time.sleep(dice.random() * 0.05)
            ledger.set_opened(CLOSING)
            closing.set()
            disk.close()
        time.sleep(PATIENCE)
    except BaseException as error:
        ledger.complain(f"{type(error).__name__}: {error}")
    finally:
        os._exit(1)


def guarded(ledger: Ledger, closing: threading.Event, call: Any, *args: Any) -> None:
    """A thread of the child. That the Disk is closed is no fault once the child itself began to close it."""
    try:
        call(*args)
    except BaseException as error:
        if not (isinstance(error, ClosedError) and closing.is_set()):
            ledger.complain(f"{type(error).__name__}: {error}")
            os._exit(1)


def alive(pid: int) -> bool:
    """Whether a child still runs; it is left to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def stuck(ledger: Ledger, pid: int, patience: float) -> str:
    """Which thread acknowledges nothing more; of those that wait for each other a kill would show nothing."""
    for thread in range(THREADS):
        before, end = ledger.calls(thread), time.monotonic() + patience
        while ledger.calls(thread) == before and ledger.opened == OPENED and alive(pid):
            if time.monotonic() > end:
                return f"thread {thread} acknowledged nothing in {patience:g} s"
            time.sleep(0.001)
    return ""


def campaign(kills: int, seed: int, plant: str = "") -> tuple[dict[str, int], str]:
    """Counts, and what was wrong, which ends it."""
    dice, ledger = random.Random(seed), Ledger()
    counts = {"kills": 0, "while opening": 0}
    folder = Path(tempfile.mkdtemp(prefix="disk-kill-"))
    for n in range(kills):
        ledger.set_opened(SHUT)
        hung = ""
        pid = os.fork()
        if not pid:
            child(folder / "d", ledger, f"{seed}:{n}", plant)
        if dice.random() < 0.15:
            time.sleep(dice.random() * 0.02)
        else:
            end = time.monotonic() + PATIENCE
            while not ledger.opened and alive(pid):
                if time.monotonic() > end:
                    hung = f"it was not open after {PATIENCE:g} s"
                    break
                time.sleep(0.001)
            time.sleep(dice.random() * 0.06)
            hung = hung or stuck(ledger, pid, 3 if plant == "stuck" else PATIENCE)
            time.sleep(dice.random() * 0.01)  # not always as the last of them has returned
        counts["while opening"] += not ledger.opened
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        counts["kills"] += killed
        ended = "" if killed else f"it was not our kill that ended it: wait status {status:#x}"
        if wrong := ledger.complaint or hung or ended:
            return counts, f"round {n}: {wrong} (kept: {folder})"
    pid = os.fork()
    if not pid:
        signal.alarm(int(PATIENCE))
        child(folder / "d", ledger, f"{seed}:last", "", last=True)
    if os.waitpid(pid, 0)[1]:
        return counts, f"after the last kill: {ledger.complaint or 'it died'} (kept: {folder})"
    counts["acknowledged"] = sum(ledger.get(slot)[1] for slot in range(THREADS * KEYS))
    shutil.rmtree(folder)
    return counts, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", nargs="?", const="lost", default="", choices=["lost", "stuck"])
    args = parser.parse_args()
    counts, wrong = campaign(args.kills, args.seed, args.plant)
    print(f"seed {args.seed}: " + ", ".join(f"{n:,} {what}" for what, n in counts.items()))
    print(wrong or "0 lost, 0 resurrected, 0 wrong")
    if args.plant:
        return int(not wrong)
    said.row(
        "kill -9 of a Disk's writers: nothing acknowledged is lost",
        f"{counts['kills']:,} kills, {counts.get('acknowledged', 0):,} acknowledged, {int(bool(wrong))} wrong",
        not wrong and counts["kills"] >= args.kills and counts["acknowledged"] > 0,
    )
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
