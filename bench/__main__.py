"""``python -m bench [NAME ... | all] [--quick]``; names: those of BENCHES below."""

from __future__ import annotations

import argparse

from bench import (
    events,
    far,
    latency,
    memo,
    objects,
    ops,
    outside,
    persist,
    space,
    tier,
    traces,
    valkey,
)

BENCHES = {
    "ops": ops.run,
    "outside": outside.run,
    "objects": objects.run,
    "memo": memo.run,
    "events": events.run,
    "memory": space.run_memory,
    "budget": space.run_budget,
    "traces": traces.run,
    "latency": latency.run,
    "expire": latency.run_expire,
    "persist": persist.run,
    "far": far.run,
    "valkey": valkey.run,
    "tier": tier.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("which", nargs="*", default=["all"], choices=[*BENCHES, "all"])
    parser.add_argument(
        "--quick", action="store_true", help="everything small: under a minute, for a look"
    )
    args = parser.parse_args()
    chosen = list(BENCHES) if "all" in args.which else args.which
    if "all" in args.which and not valkey.possible():
        print("no valkey: it needs a redis-server (make servers)")
        chosen.remove("valkey")
    missed = []
    for name in chosen:
        report = BENCHES[name](args.quick)
        if report.rows:  # else it could not be taken here, and what is kept stays
            report.save()
        missed += [row["what"] for row in report.rows if row["met"] is False]
    print(f"\n{len(missed)} aims not met" + "".join(f"\n  {what}" for what in missed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
