"""kill -9 of the process that has a live file, again and again: nothing that was acknowledged may be lost.

`python tests/proof/kill.py --kills 300`. Each round forks a child that opens the file and writes with four threads,
each on its own keys, and acknowledges every operation in a side file; kills it at a random instant, once each of the
four was seen to go on (one that is stuck is a fault); and has another process reopen the file, check it, and compare
every key with what was acknowledged. That one is killed too, half of the time, so that a file is mended many times
over. Two files by turns: in the roomy one nothing is ever evicted, and so nothing may be missing; in the crowded one
much is, and only what is found is compared. What else may be under way at a kill: sync, save, resize, clear, close,
mending, creation.

Exits with 1 at the first thing that is wrong; then the directory is kept, with the file as each process found it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import said
from kill_child import ASIDES, PLANTS, Plan, child
from kill_ledger import THREADS, Ledger, now_ms
from kill_verify import PATIENCE, Report, verifier

SIZES = {"roomy": 16_000_000, "crowded": 1_600_000}
COPIES = 4


class Arena:
    """One live file, its side file, and what is known of how it was left."""

    def __init__(self, root: str, name: str) -> None:
        self.name, self.directory = name, os.path.join(root, name)
        os.mkdir(self.directory)
        self.live = os.path.join(self.directory, "live.gbc")
        self.ledger = Ledger(os.path.join(self.directory, "ledger"))
        self.left = "open"
        self.copies = 0

    def hows(self) -> set[str]:
        """How it may be found."""
        if not os.path.exists(self.live):
            return {"new"}
        return {"open": {"mended"}, "closed": {"clean"}, "either": {"mended", "clean"}}[self.left]

    def keep_copy(self) -> None:
        """The file as the next process finds it, for whoever must look at it; the last ones of these."""
        if os.path.exists(self.live):
            n, at = self.copies % COPIES, self.directory
            shutil.copyfile(self.live, os.path.join(at, f"found-{n}"))
            shutil.copyfile(os.path.join(at, "ledger"), os.path.join(at, f"ledger-{n}"))
            self.copies += 1

    def begin_anew(self) -> None:
        for name in os.listdir(self.directory):
            if name != "ledger":
                os.unlink(os.path.join(self.directory, name))
        self.ledger.forget()


class Campaign:
    def __init__(self, root: str, seed: int, wait: tuple[float, float], plant: str) -> None:
        self.rng, self.wait, self.plant = random.Random(seed), wait, plant
        self.arenas = [Arena(root, name) for name in SIZES]
        self.kinds: Counter[str] = Counter()
        """Kills, by what was under way."""
        self.acknowledged = dict.fromkeys(SIZES, 0)
        self.asides: Counter[str] = Counter()
        """How often each came to its end beside the writers."""
        self.patience = 3.0 if plant == "stuck" else PATIENCE
        self.under_way = self.came_true = self.evictions = 0
        self.slowest = 0.0
        self.problems: list[tuple[str, str]] = []

    def plan(self, arena: Arena, **more: Any) -> Plan:
        options: dict[str, Any] = {}
        if self.rng.random() < 0.3:
            options["events"] = self.rng.choice(["32kB", "128kB"])
        if more.get("aside") == "interval":
            options["sync_interval"] = 0.02
        seed = self.rng.getrandbits(48)
        return Plan(arena.directory, SIZES[arena.name], arena.name == "crowded", seed, arena.hows(),
                    options=options, plant=self.plant, **more)  # fmt: skip

    # --- processes -------------------------------------------------------------------------------

    def fork(self, arena: Arena, run: Callable[[], object]) -> int:
        arena.keep_copy()
        for name in ("running", "stop", "asides"):
            arena.ledger.put(name, 0)
        pid = os.fork()
        if not pid:
            run()
            os._exit(1)
        return pid

    def kill(self, arena: Arena, pid: int, plan: Plan, may_end: bool = False) -> int | None:
        """Kills, and waits for the end; the moment, or None if it had come to an end of its own accord."""
        if (sum(self.kinds.values()) + 1) % 10 == 0:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.002)
            self.kinds["(stopped first)"] += 1
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed = now_ms()
        self.hear(arena)
        if status == signal.SIGKILL:
            return killed
        if not (may_end and status == 0) and not self.problems:
            what = f"{arena.name}: it ended with status {status:#x}: {plan}"
            self.problems.append(("crash", what))
        return None

    def hear(self, arena: Arena) -> None:
        """What children have to complain of."""
        path = os.path.join(arena.directory, "trouble")
        if os.path.exists(path):
            with open(path) as lines:
                self.problems += [tuple(json.loads(line)) for line in lines]
            os.unlink(path)

    def until(self, arena: Arena, pid: int, met: Callable[[], Any], hung: str) -> None:
        """Till that is so, or the child has ended: `kill` finds out."""
        end = time.monotonic() + self.patience
        while not met():
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
            if time.monotonic() > end:
                what = f"{arena.name}: {hung} in {self.patience} s"
                self.problems.append(("hang", what))
                return
            time.sleep(0.0002)

    def until_running(self, arena: Arena, pid: int) -> None:
        open_ = "a child does not open its file"
        self.until(arena, pid, lambda: arena.ledger.get("running"), open_)
        self.slowest = max(self.slowest, arena.ledger.get("recovery_us") / 1e6)

    def until_all_go_on(self, arena: Arena, pid: int) -> None:
        """Each writer acknowledges one more: of those that wait for each other the kill would show nothing."""
        for part in range(THREADS):
            before = arena.ledger.progress(part)
            stuck = f"writer {part} acknowledges nothing"
            self.until(
                arena, pid, lambda n=part, was=before: arena.ledger.progress(n) != was, stuck
            )  # type: ignore[misc]
            if self.problems:
                return

    # --- a round ---------------------------------------------------------------------------------

    def round(self, number: int) -> None:
        arena = self.arenas[number % 2]
        if number > 40 and self.rng.random() < 0.03:
            arena.begin_anew()
        if not os.path.exists(arena.live) and self.rng.random() < 0.7:
            self.hasten(arena)
        killed = self.write(arena) if not self.problems else None
        while not self.problems and self.rng.random() < 0.2:
            self.hasten(arena)
        if not self.problems:
            self.verify(arena, killed or now_ms())

    def write(self, arena: Arena) -> int | None:
        aside = self.rng.choice(["", "", "", "sync", "save", "interval", "resize"])
        plan = self.plan(arena, aside=aside, clears=self.rng.random() < 0.1)
        before = arena.ledger.acknowledged()
        pid = self.fork(arena, lambda: child(plan, arena.ledger))
        self.until_running(arena, pid)
        time.sleep(self.rng.uniform(*self.wait))
        if not self.problems:
            self.until_all_go_on(arena, pid)
        # The first of each comes to its end, also on a slow disk.
        if plan.aside in ASIDES and not self.asides[plan.aside]:
            ended = f"{plan.aside} does not come to its end"
            self.until(arena, pid, lambda: arena.ledger.get("asides"), ended)
        time.sleep(self.rng.uniform(0, 0.005))  # not always as the last of them has returned
        closing = self.rng.random() < 0.08
        if closing:
            arena.ledger.put("stop", 1)
            time.sleep(self.rng.uniform(0, 0.006))
        killed = self.kill(arena, pid, plan, may_end=closing)
        arena.left = "open" if not closing else "closed" if killed is None else "either"
        what = "closing" if closing else plan.aside or ("clear" if plan.clears else "writes alone")
        if killed is not None:
            self.kinds[what] += 1
        self.asides[plan.aside] += arena.ledger.get("asides")
        arena.ledger.fold()
        self.acknowledged[arena.name] += arena.ledger.acknowledged() - before
        return killed

    def hasten(self, arena: Arena) -> None:
        """A child that opens and closes the file is killed within its first milliseconds."""
        plan = self.plan(arena, hasty=True)
        what = "creating" if plan.hows == {"new"} else "opening"
        pid = self.fork(arena, lambda: child(plan, arena.ledger))
        time.sleep(self.rng.uniform(0, 0.012))
        self.kill(arena, pid, plan)
        self.kinds[what] += 1
        arena.left = "either"

    def verify(self, arena: Arena, killed: int) -> None:
        plan, close = self.plan(arena), self.rng.random() < 0.5
        files = [name for name in ("saved", "live.gbc.checkpoint") if self.rng.random() < 0.2]
        here, there = os.pipe()
        pid = self.fork(arena, lambda: verifier(plan, arena.ledger, killed, files, close, there))
        os.close(there)
        said = self.listen(arena, here, pid)
        _, status = os.waitpid(pid, 0)
        os.close(here)
        self.hear(arena)
        if said:
            self.take(Report(**json.loads(said)))
        if status != (0 if close else signal.SIGKILL) or (not said and not self.problems):
            what = f"{arena.name}: the verifier ended with status {status:#x}"
            self.problems.append(("crash", what))
        arena.left = "closed" if close else "open"

    def listen(self, arena: Arena, fd: int, pid: int) -> bytes:
        said, end = b"", time.monotonic() + PATIENCE
        while select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            piece = os.read(fd, 65536)
            if not piece:
                return said
            said += piece
        what = f"{arena.name}: the verifier does not come to an end in {PATIENCE} s"
        self.problems.append(("hang", what))
        os.kill(pid, signal.SIGKILL)
        return said

    def take(self, report: Report) -> None:
        self.problems += [(kind, text) for kind, text in report.problems]
        self.slowest = max(self.slowest, report.seconds)
        self.under_way += report.under_way
        self.came_true += report.came_true
        self.evictions = max(self.evictions, report.evictions)
        self.kinds["(found " + report.how + ")"] += 1

    def idle(self) -> list[str]:
        """What acknowledged nothing, of what was to be under way at a kill."""
        files = [name for name, n in self.acknowledged.items() if not n]
        return files + [what for what in ASIDES if self.kinds[what] >= 10 and not self.asides[what]]

    # --- what it says ----------------------------------------------------------------------------

    def kills(self) -> int:
        return sum(count for kind, count in self.kinds.items() if not kind.startswith("("))

    def summary(self, seed: int, seconds: float) -> str:
        bad = Counter(kind for kind, _ in self.problems)
        other = sum(bad.values()) - sum(bad[kind] for kind in PLANTS)
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kinds.items()))
        return (
            f"seed {seed}: {self.kills()} kills in {seconds:.1f} s ({self.kills() / seconds:.1f}/s): {kinds}\n"
            f"{self.acknowledged['roomy']:,} operations acknowledged in the roomy file, "
            f"{self.acknowledged['crowded']:,} in the crowded one; {self.under_way:,} were under way at a kill, "
            f"{self.came_true:,} of them are done; {self.evictions:,} evictions at most\n"
            f"lost {bad['lost']}, resurrected {bad['resurrected']}, wrong {bad['wrong']}, other {other}; "
            f"slowest recovery {self.slowest * 1000:.1f} ms"
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument(
        "--seconds", type=float, default=3600.0, help="stop after so long, with fewer kills"
    )
    parser.add_argument(
        "--wait", type=float, nargs=2, default=(20.0, 150.0), help="ms that writers have"
    )
    parser.add_argument("--plant", choices=PLANTS, default="", help="a fault that must be found")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    seed = random.SystemRandom().randrange(10**9) if given.seed is None else given.seed
    root = tempfile.mkdtemp(
        prefix="gbcache-kill-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    )
    wait = (given.wait[0] / 1000, given.wait[1] / 1000)
    campaign, begun, number = Campaign(root, seed, wait, given.plant), time.monotonic(), 0
    try:
        while (
            campaign.kills() < given.kills
            and time.monotonic() - begun < given.seconds
            and not campaign.problems
        ):
            campaign.round(number)
            number += 1
    finally:
        print(campaign.summary(seed, time.monotonic() - begun), flush=True)
    idle = campaign.idle()
    said.row(
        "kill -9 of a live file's writers: nothing acknowledged is lost, raised from the dead or another's",
        f"{campaign.kills():,} kills by turns; {campaign.acknowledged['roomy']:,} acknowledged where there is room for "
        f"all; and {campaign.acknowledged['crowded']:,} in a crowded file, of which what is found is checked (what is "
        f"missing may be evicted); {len(campaign.problems)} wrong"
        + (f"; nothing acknowledged: {', '.join(idle)}" if idle else ""),
        not campaign.problems and not idle and campaign.kills() >= given.kills,
    )
    for kind, text in campaign.problems[:10]:
        print(f"{kind}: {text}")
    if campaign.problems:
        print(f"kept: {root}")
        return 1
    shutil.rmtree(root)
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
