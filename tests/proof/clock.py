"""Clocks that jump, stand still and go back, and a process that was stopped: nothing expires early, nothing is late.

    python tests/proof/clock.py [--stopped SECONDS] [--seed S]

Each case runs in a child of its own, most of them twice: by the library's `clock=`, and by the machine's clocks, which
a library loaded before libc (tests/fault/clock.c) makes say what the case wants; so what is tested is the way people
run it: coarse and exact clock, housekeeper, waiting. Times are in whole ms, which is what a TTL is kept in. With
`--plant early` an entry lives 9 ms less than its model, with `--plant late` 9 ms more: both must be found.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import said
from clock_cases import CASES, FORMS, RESTARTS, TTL

import gbcache

SHIM = Path(__file__).parent.parent / "fault" / "clock.c"


def shim_of(folder: Path) -> Path:
    made = folder / "clock.so"
    call = ["gcc", "-shared", "-fPIC", "-O1", str(SHIM), "-o", str(made), "-ldl"]
    subprocess.run(call, check=True)
    return made


class Proof:
    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.shim, self.folder = args, shim_of(folder), folder

    def child(self, case: str, kind: str, machine: bool, *more: str) -> dict[str, Any]:
        env = dict(os.environ)
        if machine:
            env["LD_PRELOAD"] = f"{env.get('LD_PRELOAD', '')} {self.shim}".strip()
        call = [
            sys.executable,
            __file__,
            "--case",
            case,
            "--kind",
            kind,
            "--seed",
            str(self.args.seed),
        ]
        call += ["--stopped", str(self.args.stopped), "--plant", self.args.plant, *more]
        call += ["--machine"] if machine else []
        ran = subprocess.Popen(
            call, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        if case == "paused":
            os.waitid(os.P_PID, ran.pid, os.WSTOPPED)
            time.sleep(self.args.stopped)
            os.kill(ran.pid, signal.SIGCONT)
        out, err = ran.communicate(timeout=self.args.stopped + 300)
        if more[-2:] == ("--making", "killed"):  # it alone is to end so, and in no other way
            ended = ran.returncode == -signal.SIGKILL
            return {"figure": "", "wrong": [] if ended else [f"not killed: {err[-1500:]}"]}
        if ran.returncode:
            return {"figure": "died", "wrong": [f"exit status {ran.returncode}: {err[-1500:]}"]}
        return dict(json.loads(out))

    def case(self, goal: str, name: str, machines: tuple[bool, ...]) -> None:
        figures, wrong = [], list[str]()
        for kind in ("Cache", "ObjectCache"):
            for machine in machines:
                told = self.child(name, kind, machine)
                figures.append(told["figure"])
                by = "the machine's clocks" if machine else "clock="
                wrong += [f"{name}, {kind}, {by}: {what}" for what in told["wrong"]]
        print("\n".join(wrong[:20]), end="\n" if wrong else "", flush=True)
        figure = "; ".join(dict.fromkeys(figures))
        said.row(goal, f"{figure}; {len(wrong)} wrong", not wrong)

    def restarts(self) -> None:
        wrong, count = list[str](), 0
        for form in FORMS:
            for wall, mono in RESTARTS:
                root = Path(tempfile.mkdtemp(dir=self.folder))
                where = ["--form", form, "--root", str(root)]
                made = self.child("restarted", "Cache", True, *where, "--making", form)
                told = self.child(
                    "restarted", "Cache", True, *where, "--passed", str(wall), str(mono)
                )
                count += 1
                what = f"{form}, wall {wall:+.0f} s, boot {mono:+.0f} s: "
                wrong += [what + text for text in made["wrong"] + told.get("wrong", [])]
                if "left" in told:
                    wrong += [what + text for text in self.judge(wall, mono, form, told["left"])]
        print("\n".join(wrong), end="\n" if wrong else "", flush=True)
        said.row(
            "a TTL over a restart: what is left by the wall clock, never more than was given",
            f"{count} restarts of {len(FORMS)} kinds of file, {len(wrong)} wrong",
            not wrong,
        )

    def judge(self, wall: float, mono: float, form: str, left: float | None) -> list[str]:
        """A live file of the same boot may go by the clock that runs since it: neither is longer than given."""
        by_wall = TTL - max(wall, 0.0)
        allowed = [by_wall, TTL - mono] if form in ("clean", "killed") and mono >= 0 else [by_wall]
        got = 0.0 if left is None else left
        if got > TTL + 0.001:
            return [f"{got} s are left of {TTL}"]
        near = any(max(0.0, one) - 30 <= got <= max(0.0, one) + 0.01 for one in allowed)
        return [] if near else [f"{left} s are left, not one of {allowed}"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stopped", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", default="none", choices=["none", "early", "late"])
    for hidden in ("--case", "--kind", "--form", "--root", "--making"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--machine", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--passed", type=float, nargs=2, default=(0.0, 0.0), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(CASES[args.case](args)))
        return 0
    print(f"seed {args.seed}, gbcache {gbcache.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as made:
        proof = Proof(args, Path(made))
        both, real = (False, True), (True,)
        proof.case(
            "wall clock +-10 days, the other +10 years: nothing early, nothing late", "jumps", both
        )
        proof.case(
            "the clock goes back (less than 24 days): nothing early, nothing late",
            "backwards",
            both,
        )
        if args.plant == "none":
            proof.case("the clock stands still: nothing expires, nobody hangs", "stuck", real)
            proof.case("10^6 keys due in one tick: worst operation 5 ms", "million", real)
            proof.case("the same in a full cache, of sets: worst operation 5 ms", "full", real)
            proof.case(
                "a process that was stopped: nothing early, gone when touched", "paused", (False,)
            )
            proof.restarts()
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
