"""``python -m bench [NAME ... | all] [--quick]``; names: those of BENCHES below."""

from __future__ import annotations

import argparse
import shutil

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


def wanting() -> dict[str, str]:
    """The benches that cannot be had whole on this machine, and what is missing for them."""
    absent = {}
    if not valkey.possible():
        absent["valkey"] = "it needs a redis-server (make servers)"
    if not valkey.possible() or not shutil.which("memcached"):
        absent["outside"] = "it needs a redis-server and memcached (make servers)"
    if not traces.there():
        absent["traces"] = f"no traces in {traces.folder()}: GB_TRACES names a folder that has some"
    return absent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("which", nargs="*", default=["all"], choices=[*BENCHES, "all"])
    parser.add_argument(
        "--quick", action="store_true", help="everything small: under a minute, for a look"
    )
    args = parser.parse_args()
    chosen = list(BENCHES) if "all" in args.which else args.which
    absent = wanting() if "all" in args.which else {}
    for name, why in absent.items():
        print(f"no {name}: {why}; what is kept of it stays as it is")
    chosen = [name for name in chosen if name not in absent]
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
