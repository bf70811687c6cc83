"""A process killed before any one store of the C core: the image it leaves is mended, and nothing of it is lost.

    python tests/proof/kill_stores.py [--rounds N] [--seed S]

The core is built so that each of its stores is announced (tests/native/kill_core.c), in three builds; each round kills
at every kind of store there is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import said

RUN = Path(__file__).parent.parent / "native" / "run.py"
BUILDS = ["normal", "tiny", "fast"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    env = {**os.environ, "KILL_ROUNDS": str(args.rounds), "SEED": str(args.seed)}
    wanted = [f"kill-{build}" for build in BUILDS]
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([sys.executable, str(RUN), out, "1", *wanted], env=env, check=True)
        told = [json.loads((Path(out) / f"{name}.json").read_text()) for name in wanted]
    for name, each in zip(wanted, told, strict=True):
        print(f"{name}: {each['said'].strip()[-3000:]}")
    kills = sum(int(n) for each in told for n in re.findall(r"(\d+) kills", each["said"]))
    good = all(each["passed"] for each in told) and kills > 0
    said.row(
        "killed before any store of the core: mended, nothing lost",
        f"{kills:,} kills in {len(BUILDS)} builds, {'0 wrong' if good else 'WRONG'}",
        good,
    )
    return said.verdict()


if __name__ == "__main__":
    sys.exit(main())
