"""What a child that is to be killed has been told: a side file that survives it, exact for every key.

For each key (a slot) two numbers, `begun` and `done`, and the state of the key after the operation with an even and
with an odd number. An operation writes its row, then `begun`, works, and then writes `done`. After a kill a key may be
in the state of `done` or, where they differ, in that of `begun`; in no other. All are aligned stores of eight bytes
into a shared mapping, by one thread for each slot: a kill comes between two of them.

Most of a child's time would go into that. In a drill a run of slots goes to and fro between two states, and two
numbers for all of them say how often: there nearly all the time is the cache's, where kills are to come.
"""

from __future__ import annotations

import mmap
import os
import random
import time
from array import array
from typing import Any, NamedTuple

from gbcache._packed import KEY_MAX

ABSENT, BYTES, TEXT, NUMBER = range(4)
PER_THREAD, THREADS = 400, 4
SLOTS = PER_THREAD * THREADS
LONGS = 6
"""Slots of each thread whose values are long."""
HOUR = 3_600_000
SLACK = 100
"""Milliseconds: more than the cache's clock is behind or rounds up."""
MISSING = object()

_WORDS = 16  # of a slot
_HEAD = 64
_DRILL = 16  # five words for each part: first slot, how many, begun, done; and operations of drills that are over
_FIELDS = ["running", "stop", "clearing", "recovery_us", "asides"]
_POOL = random.Random(0).randbytes(140_000).hex().encode()


class State(NamedTuple):
    """What a key is after an operation."""

    what: int = ABSENT
    a: int = 0
    """Of a value: the number of the operation that wrote it; of a counter: its value ..."""
    b: int = 0
    """... the value's length; the counter's value if it had been evicted before."""
    due: int = 0
    """Milliseconds of the monotonic clock; it expires from then on. 0: never."""
    ttl: int = 0
    late: int = 0
    """It expires before that; 0: not known, the operation has not returned."""

    @property
    def unsure(self) -> bool:
        """It may have expired by now."""
        return 0 < self.ttl < HOUR


GONE = State()


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def key_of(slot: int) -> Any:
    """Every kind of key there is, short and long."""
    kind = slot % 7
    if kind == 0:
        return slot
    if kind == 1:
        return b"b%d" % slot
    if kind == 2:
        return ("a-long-key/" * 30)[: KEY_MAX - 8] + str(slot)
    return ("user", slot) if kind == 3 else f"k{slot}"


def is_long(slot: int) -> bool:
    return slot % PER_THREAD >= PER_THREAD - LONGS


def is_counter(slot: int) -> bool:
    return slot % 16 == 5 and not is_long(slot)


def value_of(slot: int, state: State) -> Any:
    """The value: it names its slot and the operation that wrote it, if it is not shorter than that."""
    if state.what == NUMBER:
        return state.a
    name = b"%d:%d:" % (slot, state.a)
    start = (slot * 7919 + state.a * 104_729) % 60_000
    raw = (name + _POOL[start : start + state.b])[: state.b]
    return raw.decode() if state.what == TEXT else raw


def is_value(slot: int, state: State, found: Any) -> bool:
    if state.what == NUMBER:
        return type(found) is int and found in (state.a, state.b)
    wanted = value_of(slot, state)
    return type(found) is type(wanted) and bool(found == wanted)


def writer_of(found: Any) -> tuple[int, int] | None:
    """The slot and the number of the operation that a value names."""
    try:
        slot, number, _ = (found if isinstance(found, str) else found.decode()).split(":", 2)
        return int(slot), int(number)
    except (AttributeError, ValueError):
        return None


def allows(slot: int, state: State, found: Any, left: float | None, killed: int) -> bool:
    """Whether a key in this state may be found like that: its value or MISSING, and seconds it has left.

    `killed`: when the process was, which ends every operation that had not returned.
    """
    if state.what == ABSENT or found is MISSING:
        gone = state.what == ABSENT or (state.due > 0 and now_ms() >= state.due - SLACK)
        return found is MISSING and gone
    if not is_value(slot, state, found):
        return False
    if not state.due:
        return left is None
    if left is None:
        return False
    ends, late = now_ms() + left * 1000.0, state.late or killed + state.ttl
    return state.due - SLACK <= ends <= late + SLACK and now_ms() <= late + SLACK


class Ledger:
    """The side file. `begin`, work, `end`; or `cancel`, where the work changed nothing."""

    def __init__(self, path: str) -> None:
        length = 8 * (_HEAD + SLOTS * _WORDS)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, length)
        self._map = mmap.mmap(fd, length)
        self._words = memoryview(self._map).cast("q")
        os.close(fd)

    def forget(self) -> None:
        self._map[:] = bytes(len(self._map))

    def get(self, field: str) -> int:
        return self._words[_FIELDS.index(field)]

    def put(self, field: str, value: int) -> None:
        self._words[_FIELDS.index(field)] = value

    @staticmethod
    def _at(slot: int) -> int:
        return _HEAD + slot * _WORDS

    def numbers(self, slot: int) -> tuple[int, int]:
        """`begun` and `done`."""
        at = self._at(slot)
        return self._words[at], self._words[at + 1]

    def next(self, slot: int) -> int:
        return self._words[self._at(slot) + 1] + 1

    def state(self, slot: int, number: int) -> State:
        at = self._at(slot) + 2 + 6 * (number & 1)
        return State(*self._words[at : at + 6])

    def states(self, slot: int) -> list[State]:
        """What is allowed: after `done`, and after `begun` if that is another."""
        begun, done = self.numbers(slot)
        return [self.state(slot, n) for n in sorted({begun, done})]

    def begin(self, slot: int, state: State) -> None:
        at = self._at(slot)
        number = self._words[at + 1] + 1
        row = at + 2 + 6 * (number & 1)
        self._words[row : row + 6] = memoryview(array("q", state))
        self._words[at] = number

    def end(self, slot: int) -> State:
        """It has returned. The state, with the time it has at most."""
        at = self._at(slot)
        number = self._words[at]
        row = at + 2 + 6 * (number & 1)
        ttl = self._words[row + 4]
        if ttl and not self._words[row + 5]:
            self._words[row + 5] = now_ms() + ttl
        self._words[at + 1] = number
        return State(*self._words[row : row + 6])

    def cancel(self, slot: int) -> None:
        at = self._at(slot)
        self._words[at] = self._words[at + 1]

    def note(self, slot: int, state: State) -> State:
        """What was seen to be so."""
        self.begin(slot, state)
        return self.end(slot)

    def drill(self, slots: range, others: list[State]) -> int:
        """From here on the run is in the state it is in, or in the other one; where to count."""
        for slot, other in zip(slots, others, strict=True):
            at, number = self._at(slot), self._words[self._at(slot) + 1]
            row = at + 2 + 6 * (number + 1 & 1)
            self._words[row : row + 6] = memoryview(array("q", other))
            self._words[at + 2 + 6 * (number & 1) + 5] = (
                0  # it is set again and again: no end is known
            )
        drill = _DRILL + 5 * (slots[0] // PER_THREAD)
        self._words[drill], self._words[drill + 2], self._words[drill + 3] = slots[0], 0, 0
        self._words[drill + 1] = len(slots)
        return drill

    def drill_begin(self, drill: int) -> None:
        self._words[drill + 2] += 1

    def drill_end(self, drill: int) -> None:
        self._words[drill + 3] += 1

    def drill_over(self, drill: int) -> list[State]:
        """It was there and back again; the states."""
        first, count, _, done = self._words[drill : drill + 4]
        self._words[drill + 4] += count * (done - 2)
        for slot in range(first, first + count):  # the other state's number was given away
            self._words[self._at(slot)] += 2
            self._words[self._at(slot) + 1] += 2
        self._words[drill + 1] = 0
        for slot in range(first, first + count):
            row = self._at(slot) + 2 + 6 * (self._words[self._at(slot) + 1] & 1)
            if self._words[row + 4]:
                self._words[row + 5] = now_ms() + self._words[row + 4]
        return [self.state(slot, self.numbers(slot)[1]) for slot in range(first, first + count)]

    def fold(self) -> None:
        """After a kill: what a drill says of its slots goes to each of them."""
        for drill in range(_DRILL, _DRILL + 5 * THREADS, 5):
            first, count, begun, done = self._words[drill : drill + 4]
            for slot in range(first, first + count):
                at = self._at(slot)
                self._words[at] = self._words[at + 1] + begun
                self._words[at + 1] += done
            self._words[drill + 1] = 0

    def progress(self, part: int) -> tuple[int, int, int]:
        """Another one after each operation of this writer that was acknowledged."""
        at, drill = self._at(part * PER_THREAD), _DRILL + 5 * part
        done = sum(self._words[at + 1 : at + PER_THREAD * _WORDS : _WORDS])
        return done, self._words[drill + 3], self._words[drill + 4]

    def acknowledged(self) -> int:
        return sum(self._words[_HEAD + 1 :: _WORDS]) + sum(
            self._words[_DRILL + 4 : _HEAD : 5][:THREADS]
        )
