"""The whole cache against models that know exact order, bytes, deadlines and events; and keys made to collide.

    python tests/proof/model.py [--examples N] [--steps S] [--keys K] [--seed S]

The machines are those of `tests/test_model.py` and `tests/test_events_model.py`, longer: N runs of up to S operations
each, after each of which all invariants are looked at. A run that fails is made small by hypothesis, printed and kept.
The keys are of families that share bits, K of each: what a look-up and a set of them take is counted in steps, beside
those of keys drawn at random. One family is apart: keys whose hash() is equal. A Cache hashes their bytes; an
ObjectCache has nothing but that hash, and compares with all of them, as a dict does: its comparisons are counted beside
a dict's.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import traceback
from pathlib import Path
from typing import Any

import hypothesis
import said
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, run_state_machine_as_test

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from test_events_model import ObjectTold, Told
from test_model import ObjectTwin, Twin

from gbcache import Cache, ObjectCache

WHOSE: dict[Any, str] = {
    Twin: "Cache",
    ObjectTwin: "ObjectCache",
    Told: "events of a Cache",
    ObjectTold: "events of an ObjectCache",
}
PHASES = (Phase.generate, Phase.shrink)


def counted(machine: type[RuleBasedStateMachine], done: dict[str, int]) -> Any:
    """The same machine, which counts the steps it took and the runs it began."""

    class Counted(machine):  # type: ignore[valid-type,misc]
        def __init__(self) -> None:
            super().__init__()
            done["runs"] += 1

        @invariant()
        def a_step_was_taken(self) -> None:
            done["steps"] += 1

    Counted.__name__ = Counted.__qualname__ = machine.__name__
    return Counted


def plant(machine: Any) -> Any:
    """A model that is wrong: whenever it has four keys it forgets one."""

    class Wrong(machine):  # type: ignore[valid-type,misc]
        @invariant()
        def forgets(self) -> None:
            if len(getattr(self, "model", ())) >= 4:
                self.model.popitem()

    Wrong.__name__ = Wrong.__qualname__ = machine.__name__
    return Wrong


def against_models(options: Any) -> None:
    for machine in WHOSE:
        done, bad = {"runs": 0, "steps": 0}, 0
        how = settings(
            max_examples=options.examples,
            stateful_step_count=options.steps,
            deadline=None,
            database=None,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )
        tried = counted(plant(machine) if options.plant else machine, done)
        hypothesis.seed(options.seed)(tried)
        try:
            run_state_machine_as_test(tried, settings=how)
        except Exception:
            bad, case = 1, said.kept(f"model-{machine.__name__}")
            case.write_text(traceback.format_exc())
            print(case.read_text(), f"kept: {case}", sep="\n")
        said.row(
            f"{WHOSE[machine]} against a model",
            f"{done['steps']:,} operations in {done['runs']:,} runs, all looked at after each; {bad} differ, "
            f"seed {options.seed}",
            not bad and done["steps"] >= options.examples * 5,
        )


EQUAL = 1500
"""Keys with one hash: what filling takes grows with the square of it."""
TO_A_DICT = 1.1
PRIME: int = sys.hash_info.modulus
"""Its multiples have the hash 0."""


class Same:
    """A key that has the hash of all others, and counts what it is compared with."""

    compared = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        Same.compared += 1
        return isinstance(other, Same) and other.number == self.number


def comparisons(into: Any, n: int) -> int:
    """Of n keys with one hash: each is set, found, set again, not found (another one), and half are deleted."""
    Same.compared = 0
    for i in range(n):
        into[Same(i)] = i
    for i in range(n):
        assert into[Same(i)] == i
        into[Same(i)] = -i
        assert Same(n + i) not in into
    for i in range(0, n, 2):
        del into[Same(i)]
    assert len(into) == n // 2
    return Same.compared


def equal_hashes() -> None:
    """Of an ObjectCache: it cannot tell them apart without ==, as a dict cannot."""
    plain = comparisons({}, EQUAL)
    with ObjectCache() as cache:
        ours = comparisons(cache, EQUAL)
    with ObjectCache() as cache:
        for i in range(EQUAL):
            cache[i * PRIME] = i
        assert all(cache[i * PRIME] == i for i in range(EQUAL))
        most = max(cache.stats().max_steps.values())
    said.row(
        "keys whose hash() is equal, ObjectCache: an operation compares with all of them, as a dict's does: "
        f"at most {TO_A_DICT:g} times its comparisons",
        f"{EQUAL:,} keys: {ours:,} comparisons, a dict's {plain:,}: ratio {ours / plain:.2f}; "
        f"{EQUAL:,} multiples of {PRIME}: an operation took {most:,} steps at most",
        ours <= TO_A_DICT * plain,
    )


def families(n: int, seed: int, kind: str) -> dict[str, list[Any]]:
    """Keys at random, and keys that would collide in a table that took some of their bits, or Python's hash."""
    rng = random.Random(seed)
    by_hash = {"equal hash()": [i * PRIME for i in range(n)]} if kind == "Cache" else {}
    return by_hash | {
        "random": [rng.getrandbits(60) for _ in range(n)],
        "low bits equal": [i << 32 for i in range(n)],
        "high bits equal": [(1 << 62) + i for i in range(n)],
        "multiples": [i * 1_048_583 * 64 for i in range(n)],
        "equal ends": [f"{i:08d}" + "0" * 40 for i in range(n)],
        "equal beginnings": [b"\0" * 40 + i.to_bytes(8, "big") for i in range(n)],
    }


def made_to_collide(options: Any) -> None:
    made: dict[str, Any] = {"Cache": lambda: Cache("256MB"), "ObjectCache": ObjectCache}
    for kind, make in made.items():
        most: dict[str, int] = {}
        for name, keys in families(options.keys, options.seed, kind).items():
            with make() as cache:
                for key in keys:
                    cache[key] = 1
                assert len(cache) == len(keys) and all(cache[key] == 1 for key in keys)
                most[name] = max(cache.stats().max_steps.values())
        worst = max(most, key=lambda name: most[name])
        said.row(
            f"keys made to collide, {kind}{'' if kind == 'Cache' else ', of hashes that differ'}",
            f"{options.keys:,} of each of {len(most) - 1} families: an operation took {most[worst]} steps at most "
            f"({worst}), {most['random']} with keys at random",
            most[worst] <= 5 * most["random"],
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--keys", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plant", action="store_true", help="a model that is wrong: must be found")
    options = parser.parse_args()
    against_models(options)
    made_to_collide(options)
    equal_hashes()
    return said.verdict()


if __name__ == "__main__":
    os.environ.pop("GB_SLICE", None)
    sys.exit(main())
