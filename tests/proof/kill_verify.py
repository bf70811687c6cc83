"""The process that opens what `kill.py` left, and compares every key with what was acknowledged."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, dataclass, field
from typing import Any

from kill_child import Plan, brief, complain
from kill_ledger import (
    ABSENT,
    GONE,
    MISSING,
    SLOTS,
    Ledger,
    State,
    allows,
    key_of,
    now_ms,
    writer_of,
)  # fmt: skip

import gbcache

PATIENCE = 30.0
"""Seconds after which a process hangs."""


@dataclass
class Report:
    """What a verifier says."""

    how: str = ""
    seconds: float = 0.0
    evictions: int = 0
    entries: int = 0
    under_way: int = 0
    """Operations that had begun and not returned; `came_true` of them show."""
    came_true: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)


def look(cache: gbcache.Cache, slot: int) -> tuple[Any, float | None]:
    key = key_of(slot)
    found = cache.peek(key, MISSING)
    try:
        return found, None if found is MISSING else cache.ttl(key)
    except KeyError:  # expired in between
        return MISSING, None


def blame(slot: int, states: list[State], found: Any) -> str:
    """What to call it."""
    if found is MISSING:
        return "lost"
    if all(state.what == ABSENT or (state.due and now_ms() > state.due) for state in states):
        return "resurrected"
    named = writer_of(found)
    older = named is not None and named[0] == slot and named[1] < max(state.a for state in states)
    return "lost" if older else "wrong"


def verify_slot(
    cache: gbcache.Cache, ledger: Ledger, slot: int, killed: int, excused: bool, report: Report
) -> bool:
    """Compares one key, and settles which of the two states it is in. Whether it is there."""
    found, left = look(cache, slot)
    begun, done = ledger.numbers(slot)
    states = ledger.states(slot)
    report.under_way += begun != done
    fits = [n for n in {begun, done} if allows(slot, ledger.state(slot, n), found, left, killed)]
    if not fits and not (found is MISSING and excused):
        text = (
            f"slot {slot} ({brief(key_of(slot))}): {brief(found)}, {left} s left; allowed: {states}"
        )
        report.problems.append((blame(slot, states, found), text))
        return found is not MISSING
    settle(ledger, slot, found, killed, begun if begun in fits else done)
    report.came_true += begun != done and begun in fits
    return found is not MISSING


def settle(ledger: Ledger, slot: int, found: Any, killed: int, number: int) -> None:
    """From here on one state is known: it was this one that was found."""
    state = ledger.state(slot, number)
    if number != ledger.numbers(slot)[1]:
        ledger.end(slot)
    else:
        ledger.cancel(slot)
    if found is MISSING and state.what != ABSENT:
        ledger.note(slot, GONE)
    elif state.ttl and not state.late:
        ledger.note(slot, state._replace(late=killed + state.ttl))
    elif state.a != state.b and type(found) is int:
        ledger.note(slot, state._replace(a=found, b=found))


def verify_clear(ledger: Ledger, cache: gbcache.Cache, report: Report) -> None:
    """All of it or nothing, where a clear was under way."""
    olds = [(slot, ledger.state(slot, ledger.numbers(slot)[1])) for slot in range(SLOTS)]
    there = [key_of(slot) in cache for slot, old in olds if old.what != ABSENT and not old.unsure]
    if any(there) and not all(there):
        report.problems.append(("wrong", f"clear: {sum(there)} of {len(there)} entries are left"))


def verify_file(plan: Plan, name: str, ledger: Ledger, report: Report) -> None:
    """A snapshot, whatever was killed: it opens, and its values are some that were written."""
    path = plan.path(name)
    if not os.path.exists(path):
        return
    slots = {key_of(slot): slot for slot in range(SLOTS)}
    with gbcache.Cache.open(path) as cache:
        cache.check()
        for key, found in cache.items():
            named, slot = writer_of(found), slots.get(key, -1)
            if slot < 0 or (named and (named[0] != slot or named[1] > ledger.numbers(slot)[0])):
                report.problems.append(("snapshot", f"{name}: {brief(key)} is {brief(found)}"))


def verify(plan: Plan, ledger: Ledger, killed: int) -> tuple[gbcache.Cache, Report]:
    cache = plan.open()
    recovery, evictions = cache.recovery, cache.stats().evictions
    assert recovery is not None
    report = Report(recovery.how, recovery.seconds, evictions, recovery.entries)
    if recovery.how not in plan.hows:
        report.problems.append(("recovery", f"{recovery} where {plan.hows} is expected"))
    if evictions and not plan.crowded:
        report.problems.append(("evicted", f"{evictions} evictions where there is room for all"))
    cache.check()
    if ledger.get("clearing") and not plan.crowded:
        verify_clear(ledger, cache, report)
    ledger.put("clearing", 0)
    listed = set(cache)
    brief_lived = {
        key_of(s) for s in range(SLOTS) if any(state.unsure for state in ledger.states(s))
    }
    for slot in range(SLOTS):
        there = verify_slot(cache, ledger, slot, killed, plan.crowded and evictions > 0, report)
        if there and key_of(slot) not in listed:
            report.problems.append(("listed", f"slot {slot} is found, and is not in the walk"))
        listed.discard(key_of(slot))
    for key in listed - brief_lived:
        report.problems.append(("listed", f"{brief(key)} is in the walk, and is not found"))
    cache.check()
    return cache, report


def verifier(
    plan: Plan, ledger: Ledger, killed: int, files: list[str], close: bool, out: int
) -> None:
    """The process: it reports, and then closes the file or is killed itself."""
    signal.alarm(int(PATIENCE))
    try:
        cache, report = verify(plan, ledger, killed)
        for name in files:
            verify_file(plan, name, ledger, report)
        os.write(out, json.dumps(asdict(report)).encode())
        if not close:
            os.kill(os.getpid(), signal.SIGKILL)
        cache.close()
        os._exit(0)
    except BaseException as error:
        complain(plan, error)
        os._exit(1)
