"""The child that is killed: writers on their own keys, and what else may be under way in a live file."""

from __future__ import annotations

import faulthandler
import json
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from kill_ledger import (
    ABSENT,
    BYTES,
    GONE,
    HOUR,
    LONGS,
    MISSING,
    NUMBER,
    PER_THREAD,
    SLACK,
    SLOTS,
    TEXT,
    THREADS,
    Ledger,
    State,
    is_counter,
    is_long,
    is_value,
    key_of,
    now_ms,
    value_of,
)  # fmt: skip

import gbcache

PLANTS = ["lost", "resurrected", "wrong", "stuck"]
KEYS = [key_of(slot) for slot in range(SLOTS)]


@dataclass
class Plan:
    """One child."""

    directory: str
    size: int
    crowded: bool
    seed: int
    hows: set[str]
    """How it may find its file."""
    hasty: bool = False
    """It opens and closes, and is killed at that."""
    aside: str = ""
    """What a fifth thread does: sync, save, resize; interval: the cache's own thread syncs."""
    clears: bool = False
    """One thread writes all keys, and clears now and then."""
    options: dict[str, Any] = field(default_factory=dict)
    plant: str = ""
    """A fault to be found: an operation in 50 that is acknowledged and not done (or done wrong), or never returns."""

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def open(self) -> gbcache.Cache:
        return gbcache.Cache(self.size, path=self.path("live.gbc"), **self.options)


class Trouble(Exception):
    """What must not be: (kind, text)."""


class Writer:
    """Operations at random on the slots of one range, each acknowledged."""

    def __init__(self, cache: gbcache.Cache, ledger: Ledger, plan: Plan, part: int) -> None:
        self.cache, self.ledger, self.crowded = cache, ledger, plan.crowded
        self.first = part * PER_THREAD
        self.rng = random.Random(plan.seed * THREADS + part)
        self.plant = plan.plant
        self.state = {s: ledger.state(s, ledger.numbers(s)[1]) for s in self.slots()}
        mix = [(self.drill, 1),
            (self.set, 33), (self.set_many, 9), (self.delete, 9), (self.delete_many, 3), (self.touch, 11),
               (self.incr, 12), (self.get, 12), (self.get_many, 3), (self.add, 4), (self.pop, 3)]  # fmt: skip
        self.mix: list[Callable[[], None]] = [op for op, share in mix for _ in range(share)]

    def slots(self) -> range:
        return range(self.first, self.first + PER_THREAD)

    def step(self) -> None:
        if self.planted("stuck"):
            threading.Event().wait()
        self.mix[int(self.rng.random() * 100)]()

    # --- what to write ---------------------------------------------------------------------------

    def pick(self) -> int:
        """A slot; a long one a little more often than their number."""
        if self.rng.random() < 0.03:
            return self.first + PER_THREAD - 1 - int(self.rng.random() * LONGS)
        return self.first + int(self.rng.random() * PER_THREAD)

    def run_of(self, most: int) -> range:
        """Some slots in a row, none of them long."""
        count = 2 + int(self.rng.random() * (most - 1))
        start = self.first + int(self.rng.random() * (PER_THREAD - LONGS - count))
        return range(start, start + count)

    def life(self, brief: bool = True) -> int:
        """Milliseconds; none, hours, or so short that the next child finds it expired."""
        dice = self.rng.random()
        if dice < 0.6:
            return 0
        if dice < 0.92 or not brief:
            return int(dice * 100) % 5 * HOUR + HOUR
        return 50 + int(self.rng.random() * 1500)

    def fresh(self, slot: int, ttl: int) -> State:
        dice, due = self.rng.random(), now_ms() + ttl if ttl else 0
        if is_counter(slot):
            number = int(dice * 1e9) - 500_000_000
            return State(NUMBER, number, number, due, ttl)
        if is_long(slot):
            length = 20_000 + int(dice * 180_000)
        else:
            length = 10 + int(dice * dice * dice * 2990)
        return State(TEXT if dice < 0.1 else BYTES, self.ledger.next(slot), length, due, ttl)

    def planted(self, what: str) -> bool:
        return self.plant == what and self.rng.random() < 0.02

    # --- what is seen ----------------------------------------------------------------------------

    def expect(self, slot: int, found: Any) -> None:
        """Nobody else writes this key: it is as it was left, or evicted, or expired."""
        state = self.state[slot]
        if found is MISSING:
            expired = state.due and now_ms() >= state.due - SLACK
            if state.what != ABSENT and not expired and not self.crowded:
                raise Trouble("lost", f"slot {slot}: not there, after {state}")
            if state.what != ABSENT:
                self.state[slot] = self.ledger.note(slot, GONE)  # and must not come back
        elif state.what == ABSENT or (state.due and now_ms() > state.late + SLACK):
            raise Trouble("resurrected", f"slot {slot}: {brief(found)}, after {state}")
        elif not is_value(slot, state, found):
            raise Trouble("wrong", f"slot {slot}: {brief(found)}, after {state}")

    def done(self, slot: int) -> None:
        self.state[slot] = self.ledger.end(slot)

    # --- operations ------------------------------------------------------------------------------

    def set(self) -> None:
        slot = self.pick()
        state = self.fresh(slot, self.life(not is_counter(slot)))
        value = value_of(slot, state)
        if self.planted("wrong"):
            value = b"wrong" if state.b < 1000 or state.what == NUMBER else value[:-1] + value[:1]
        self.ledger.begin(slot, state)
        if self.planted("lost"):
            pass
        elif state.ttl:
            self.cache.set(KEYS[slot], value, state.ttl / 1000)
        else:
            self.cache[KEYS[slot]] = value
        self.done(slot)

    def set_many(self) -> None:
        slots, ttl = self.run_of(40), self.life(False)
        states = [self.fresh(slot, ttl) for slot in slots]
        items = [
            (KEYS[slot], value_of(slot, state)) for slot, state in zip(slots, states, strict=True)
        ]
        for slot, state in zip(slots, states, strict=True):
            self.ledger.begin(slot, state)
        self.cache.set_many(items, ttl / 1000 if ttl else None)
        for slot in slots:
            self.done(slot)

    def drill(self) -> None:
        """A run of keys is written over, or deleted and written, again and again."""
        slots, ttl = self.run_of(60), self.life(False)
        states = [self.fresh(slot, ttl) for slot in slots]
        for slot, state in zip(slots, states, strict=True):
            self.ledger.begin(slot, state)
        items = [(KEYS[s], value_of(s, state)) for s, state in zip(slots, states, strict=True)]
        self.cache.set_many(items, ttl / 1000 if ttl else None)
        for slot in slots:
            self.done(slot)
        deletes, later = self.rng.random() < 0.4, self.life(False)
        others = [GONE if deletes else self.fresh(slot, later) for slot in slots]
        news = [
            (KEYS[s], value_of(s, state))
            for s, state in zip(slots, others, strict=True)
            if state.what
        ]
        drill = self.ledger.drill(slots, others)
        for _ in range(30):
            self.ledger.drill_begin(drill)
            if deletes:
                self.cache.delete_many([key for key, _ in items])
            else:
                self.cache.set_many(news, later / 1000 if later else None)
            self.ledger.drill_end(drill)
            self.ledger.drill_begin(drill)
            self.cache.set_many(items, ttl / 1000 if ttl else None)
            self.ledger.drill_end(drill)
        self.state.update(zip(slots, self.ledger.drill_over(drill), strict=True))

    def delete(self) -> None:
        slot = self.pick()
        self.ledger.begin(slot, GONE)
        if not self.planted("resurrected"):
            try:
                del self.cache[KEYS[slot]]
            except KeyError:
                state = self.state[slot]
                if state.what != ABSENT and not state.unsure and not self.crowded:
                    raise Trouble(
                        "lost", f"slot {slot}: nothing to delete, after {state}"
                    ) from None
        self.done(slot)

    def delete_many(self) -> None:
        slots = self.run_of(12)
        for slot in slots:
            self.ledger.begin(slot, GONE)
        self.cache.delete_many([KEYS[slot] for slot in slots])
        for slot in slots:
            self.done(slot)

    def pop(self) -> None:
        slot = self.pick()
        self.ledger.begin(slot, GONE)
        found = self.cache.pop(KEYS[slot], MISSING)
        before = self.state[slot]
        self.done(slot)
        if found is not MISSING and not is_value(slot, before, found):
            raise Trouble("wrong", f"slot {slot}: popped {brief(found)}, after {before}")

    def touch(self) -> None:
        slot = self.pick()
        state = self.state[slot]
        if state.what == ABSENT or state.unsure:
            return
        ttl = self.life(not is_counter(slot))
        self.ledger.begin(slot, state._replace(due=now_ms() + ttl if ttl else 0, ttl=ttl, late=0))
        if self.cache.touch(KEYS[slot], ttl / 1000 if ttl else None):
            self.done(slot)
        else:
            self.ledger.cancel(slot)
            self.expect(slot, MISSING)

    def incr(self) -> None:
        slot = self.first + int(self.rng.random() * (PER_THREAD // 16)) * 16
        slot += (5 - slot) % 16
        if not is_counter(slot):
            return
        state, delta = self.state[slot], 1 + int(self.rng.random() * 1000)
        anew = State(NUMBER, delta + 7, delta + 7)
        if state.what == ABSENT:
            state = anew
        elif self.crowded and state.ttl:
            return  # whether its deadline is kept depends on whether it was evicted
        else:
            state = state._replace(
                a=state.a + delta, b=delta + 7 if self.crowded else state.a + delta
            )
        self.ledger.begin(slot, state)
        found = self.cache.incr(KEYS[slot], delta, 7)
        self.done(slot)
        if found not in (state.a, state.b):
            raise Trouble("wrong", f"slot {slot}: incr made it {found}, not {state}")
        if state.a != state.b:
            self.state[slot] = self.ledger.note(slot, state._replace(a=found, b=found))

    def get(self) -> None:
        slot = self.pick()
        self.expect(slot, self.cache.get(KEYS[slot], MISSING))

    def get_many(self) -> None:
        slots = self.run_of(20)
        found = self.cache.get_many([KEYS[slot] for slot in slots])
        for slot in slots:
            self.expect(slot, found.get(KEYS[slot], MISSING))

    def add(self) -> None:
        slot = self.pick()
        if self.state[slot].unsure:
            return
        state = self.fresh(slot, self.life(not is_counter(slot)))
        self.ledger.begin(slot, state)
        before = self.state[slot]
        if self.cache.add(
            KEYS[slot], value_of(slot, state), state.ttl / 1000 if state.ttl else None
        ):
            self.done(slot)
            if before.what != ABSENT and not self.crowded:
                raise Trouble("lost", f"slot {slot}: not there when it was added, after {before}")
        else:
            self.ledger.cancel(slot)
            if before.what == ABSENT:
                raise Trouble(
                    "resurrected", f"slot {slot}: there when it was added, after {before}"
                )


def brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 90 else f"{text[:50]}... ({len(value)})"


def clear(cache: gbcache.Cache, ledger: Ledger, writers: list[Writer]) -> None:
    """All of it, or nothing: the field says that one is under way."""
    for slot in range(SLOTS):
        ledger.begin(slot, GONE)
    ledger.put("clearing", 1)
    cache.clear()
    ledger.put("clearing", 0)
    for writer in writers:
        for slot in writer.slots():
            writer.done(slot)


# --- the process ---------------------------------------------------------------------------------


def complain(plan: Plan, error: BaseException) -> None:
    """For the parent, who tells it and counts it."""
    kind, text = error.args if isinstance(error, Trouble) else ("error", traceback.format_exc())
    with open(plan.path("trouble"), "a") as out:
        out.write(json.dumps([kind, f"in the child: {text}"]) + "\n")


def child(plan: Plan, ledger: Ledger) -> NoReturn:
    """What the forked process does until it is killed."""
    faulthandler.enable()  # a crash is to say where it was
    try:
        sys.setswitchinterval(0.0005)
        if plan.hasty:
            open_and_close(plan, ledger)
        work(plan, ledger)
        os._exit(0)
    except BaseException as error:
        complain(plan, error)
        os._exit(1)


def opened(plan: Plan, ledger: Ledger) -> gbcache.Cache:
    cache = plan.open()
    assert cache.recovery is not None
    if cache.recovery.how not in plan.hows:
        raise Trouble("recovery", f"{cache.recovery} where {plan.hows} is expected")
    ledger.put("recovery_us", int(cache.recovery.seconds * 1e6))
    ledger.put("running", 1)
    return cache


def open_and_close(plan: Plan, ledger: Ledger) -> NoReturn:
    while True:
        opened(plan, ledger).close()
        plan.hows = {"clean"}


def work(plan: Plan, ledger: Ledger) -> None:
    cache = opened(plan, ledger)
    writers = [Writer(cache, ledger, plan, part) for part in range(THREADS)]
    stop = threading.Event()

    def guarded(job: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                job()
        except BaseException as error:
            complain(plan, error)
            os._exit(1)

    jobs: list[Callable[[], object]] = [writer.step for writer in writers]
    if plan.clears:
        jobs = [lambda: alone(cache, ledger, writers)]
    if plan.aside in ASIDES:
        aside = ASIDES[plan.aside]
        jobs.append(lambda: (aside(cache, plan), ledger.put("asides", ledger.get("asides") + 1)))
    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    while not ledger.get("stop"):
        time.sleep(0.001)
    stop.set()
    for thread in threads:
        thread.join()
    cache.close()


def alone(cache: gbcache.Cache, ledger: Ledger, writers: list[Writer]) -> None:
    for writer in writers:
        for _ in range(50):
            writer.step()
    if writers[0].rng.random() < 0.3:
        clear(cache, ledger, writers)


def resize(cache: gbcache.Cache, plan: Plan) -> None:
    cache.resize(plan.size * 3 // 2)
    cache.resize(plan.size)


ASIDES: dict[str, Callable[[gbcache.Cache, Plan], object]] = {
    "sync": lambda cache, plan: cache.sync(),
    "save": lambda cache, plan: cache.save(plan.path("saved")),
    "resize": resize,
}
