"""The servers behind a `Valkey`: one, or the primaries of a cluster. Batches of commands to where they belong."""

from __future__ import annotations

import os
import random
import time
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    MovedError,
    NoPermissionError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from . import forks
from .errors import ClosedError, FarError
from .locks import Lock
from .wire import BROKEN, Address, Place, Wire

__all__ = ["Job", "Nodes", "Slots", "backoff", "number_of", "page_of", "slots_of", "state_of"]

IDLE_MAX = 16
"""Idle connections kept to a node; what more a burst of threads made is closed."""
BACKOFF_FIRST, BACKOFF_MOST = 0.02, 1.0
_LATER = (TryAgainError, ClusterDownError, ReadOnlyError, BusyLoadingError)
"""Answers that say: not now. Nothing was done."""

SLOTS = 16384
Slots = list["Address | None"]
"""Of each of 16384 slots, its primary."""


class Job(NamedTuple):
    """One command: where it goes, by a key of its slot or by an address, and its words."""

    to: bytes | Address
    words: tuple[Any, ...]


def backoff(attempt: int) -> float:
    """Seconds to wait before attempt `attempt` + 2: 20 ms, doubled each time, at most 1 s, and of that a random
    half to whole, so that those who lost a server together do not come back together."""
    return min(BACKOFF_MOST, BACKOFF_FIRST * 2.0 ** min(attempt, 16)) * random.uniform(0.5, 1.0)


def slots_of(reply: Any, asked: Address, where: Place) -> Slots:
    """What CLUSTER SLOTS answered. A host that the node does not know is the one it was reached by."""
    try:
        served = [_served(*each) for each in reply]
        if sum([last - first + 1 for first, last, _ in served]) > SLOTS:
            raise ValueError("more slots than there are")
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise InvalidResponse(f"no answer to CLUSTER SLOTS: {reply!r:.100}") from error
    slots: Slots = [None] * SLOTS
    for first, last, (host, port) in served:
        address = (asked[0] if host in ("", "?") else host, port)
        if where.remap:
            address = where.remap(address)
        slots[first : last + 1] = [address] * (last - first + 1)
    return slots


def _served(first: int, last: int, primary: Any, *_: Any) -> tuple[int, int, Address]:
    host, port = primary[0].decode() if primary[0] else "", int(primary[1])
    if not (0 <= first <= last < SLOTS and 0 <= port < 1 << 16):
        raise ValueError("no such slots, or no such port")
    return first, last, (host, port)


def state_of(info: Any) -> tuple[bool, int]:
    """What CLUSTER INFO answered: whether the node has a part in its cluster, and the epoch it knows of: who knows of
    an older one has the older map. A user that may not ask: as if all were well."""
    if not isinstance(info, bytes):
        return True, 0
    said = dict(line.split(b":", 1) for line in info.split() if b":" in line)
    epoch = said.get(b"cluster_current_epoch", b"0")
    if not epoch.isdigit() or len(epoch) > 20:
        raise InvalidResponse(f"no answer to CLUSTER INFO: an epoch of {epoch!r:.100}")
    return said.get(b"cluster_state", b"ok") == b"ok", int(epoch)


def page_of(reply: Any) -> tuple[int, list[bytes]]:
    """What SCAN answered: where to go on, and the names."""
    if isinstance(reply, list) and len(reply) == 2 and isinstance(reply[1], list):
        at, names = reply
        sound = isinstance(at, bytes) and at.isdigit() and len(at) <= 20
        if sound and all([type(name) is bytes for name in names]):
            return int(at), names
    raise FarError(f"no answer to SCAN: {reply!r:.100}")


def number_of(reply: Any) -> int:
    """A number of 64 bits, however it is written."""
    try:
        number = int(reply)
    except (TypeError, ValueError):
        number = 1 << 63
    if not -(1 << 63) <= number < 1 << 63:
        raise FarError(f"no number of 64 bits: {reply!r:.100}")
    return number


class Nodes:
    """Connections, kept by node, and the map of slots. Any thread may call; a connection is one thread's at a time."""

    def __init__(self, where: Place, timeout: float, retries: int) -> None:
        self.where, self.timeout, self._retries = where, timeout, retries
        self.closed = False
        self.channels: list[Any] = []  # told where a node says that it is no primary
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._lock = Lock()
        self._idle: dict[Address, list[Wire]] = {}
        self._dropped: dict[Address, float] = {}  # when: older connections are not kept
        self._slots: Slots | None = None
        self._epoch = 0  # of that map
        # When one was sent to a node for this once (ASK): it may be in no map yet, and has to be listened to.
        self.asked: dict[Address, float] = {}
        self._known: list[Address] = []  # who had keys when we last heard of it

    def in_child(self) -> None:
        """After a fork: the parent's connections are closed here and stand there."""
        idle = [wire for wires in self._idle.values() for wire in wires]
        self._reset()
        for wire in idle:
            wire.close()

    def close(self) -> None:
        with self._lock:
            self.closed = True
            idle, self._idle = self._idle, {}
        for wires in idle.values():
            for wire in wires:
                wire.close()

    def check_open(self) -> None:
        if self.closed:
            raise ClosedError("this Valkey is closed")

    # --- batches -----------------------------------------------------------------------------

    def run(self, jobs: Sequence[Job], again: bool, until: float | None = None) -> list[Any]:
        """The answers, in the order of the jobs, within `timeout` seconds in all, or `until`; one that is an error is
        returned as one. No two jobs may be about the same key: their order is kept only where nothing is repeated.

        A job is sent again, after a pause, if it cannot have been done: the node was not reached, or said so. If
        `again`, also where it may have been: reading. Raises FarError, and ClosedError.
        """
        until = time.monotonic() + self.timeout if until is None else until
        replies: list[Any] = [None] * len(jobs)
        batch = _Batch(self, jobs, replies, again, until)
        todo = list(range(len(jobs)))
        for attempt in range(self._retries + 1):
            todo = batch.round(todo)
            if not todo:
                return replies
            if batch.moved:
                continue
            pause = backoff(attempt)
            if attempt == self._retries or time.monotonic() + pause >= until:
                break
            time.sleep(pause)
        raise batch.failed(batch.trouble)

    def take(self, address: Address, until: float) -> Wire:
        """A connection to that node, an idle one or a new one. Raises what is BROKEN, and ClosedError."""
        while True:
            with self._lock:
                self.check_open()
                idle = self._idle.get(address)
                wire = idle.pop() if idle else None
            if wire is None:
                return Wire(self.where, address, until)
            if wire.usable():
                return wire
            wire.close()

    def give(self, wire: Wire) -> None:
        """Back among the idle: all its answers have been read."""
        with self._lock:
            idle = self._idle.setdefault(wire.address, [])
            sound = wire.pid == os.getpid() and wire.since >= self._dropped.get(wire.address, 0.0)
            if sound and not self.closed and len(idle) < IDLE_MAX:
                idle.append(wire)
                return
        wire.close()

    def drop(self, address: Address) -> None:
        """Closes the connections to a node, as they are idle: its name may lead elsewhere by now."""
        with self._lock:
            self._dropped[address] = time.monotonic()
            idle = self._idle.pop(address, [])
        for wire in idle:
            wire.close()

    # --- who has what ------------------------------------------------------------------------

    def address_of(self, key: bytes, until: float) -> Address:
        """The node that has `key`'s slot."""
        if not self.where.cluster:
            return self.where.seeds[0]
        slots = self._slots or self.refresh(until)
        slot = key_slot(key)
        address = slots[slot]
        if address is None:
            self._slots = None
            raise FarError(f"slot {slot} of the cluster has no server")
        return address

    def primaries(self, fresh: bool, until: float) -> list[Address]:
        """Every node that has keys, in an order that stays; `fresh`: they are asked. Raises FarError."""
        if not self.where.cluster:
            return self.where.seeds[:1]
        if fresh or not self._known:
            self.refresh(until)
        return self._known

    def adopt(self, slots: Slots | None, epoch: int = 0) -> None:
        """Takes the map a node has just answered; None: it is out of date, ask before the next use."""
        self._slots = slots
        if slots is None:
            return
        self._epoch = epoch
        self._known = sorted({address for address in slots if address is not None})
        kept = {*self._known, *self.where.seeds, *list(self.asked)}
        with self._lock:
            left = [self._idle.pop(address) for address in set(self._idle) - kept]
        for wires in left:
            for wire in wires:
                wire.close()

    def refresh(self, until: float) -> Slots:
        """Asks one node after another for the map, each for its share of what time is left. Raises FarError.

        One that its cluster has lost may still answer, with a map of before: it is taken where there is no other.
        """
        asked = list(dict.fromkeys(random.sample(self._known, len(self._known)) + self.where.seeds))
        trouble: Exception | None = None
        second: tuple[bool, int, Slots] | None = None
        for n, address in enumerate(asked):
            now = time.monotonic()
            share, wire = now + max(0.0, until - now) / (len(asked) - n), None
            try:
                wire = self.take(address, share)
                wire.send([("CLUSTER", "INFO"), ("CLUSTER", "SLOTS")], share)
                sound, epoch = state_of(wire.read(share))
                reply = wire.read(share)
                if isinstance(reply, Exception):
                    raise reply
                slots = slots_of(reply, address, self.where)
            except BROKEN as error:
                if wire is not None:
                    wire.close()
                trouble = error
                continue
            self.give(wire)
            if not any(slots):
                trouble = ResponseError(f"{address[0]}:{address[1]} knows of no slots")
            elif sound and epoch >= self._epoch:
                self.adopt(slots, epoch)
                return slots
            elif second is None or (sound, epoch) > second[:2]:
                second = (sound, epoch, slots)
        if second is not None:
            self.adopt(second[2], second[1])
            return second[2]
        raise FarError(f"no node of the cluster tells who has what: {trouble}") from trouble


class _Batch:
    """The rounds of one `Nodes.run`."""

    def __init__(
        self, nodes: Nodes, jobs: Sequence[Job], replies: list[Any], again: bool, until: float
    ) -> None:
        self.nodes, self.jobs, self.replies = nodes, jobs, replies
        self.again, self.until = again, until
        # Of a job that an answer sent elsewhere: where to, and if only this time (ASK).
        self.sent_on: dict[int, tuple[Address, bool]] = {}
        self.trouble: Exception = FarError("nothing was tried")
        self.at: Address | None = None
        self.moved = False

    def failed(self, error: Exception) -> FarError:
        """What is raised of `error`."""
        if isinstance(error, FarError):
            return error
        at = f"{self.at[0]}:{self.at[1]}: " if self.at else ""
        far = FarError(f"{at}{error or type(error).__name__} (time-out {self.nodes.timeout:g} s)")
        far.__cause__ = error
        return far

    def round(self, todo: list[int]) -> list[int]:
        """Does these jobs, all nodes at once; those that are to be done again. Raises FarError if one must not be."""
        self.moved = False
        left: list[int] = []
        sent: list[tuple[Wire, list[int]]] = []
        try:
            fatal = self._send(todo, left, sent)
            fatal = self._receive(left, sent) or fatal
        except BaseException:  # closed, or interrupted: answers that nobody read
            for wire, _ in sent:
                wire.close()
            raise
        if fatal is not None:
            raise self.failed(fatal)
        return sorted(left)

    def _send(
        self, todo: list[int], left: list[int], sent: list[tuple[Wire, list[int]]]
    ) -> Exception | None:
        """To each node its part, on a connection of its own. The error that is to be raised, if any."""
        fatal: Exception | None = None
        for address, indices in self._by_node(todo, left).items():
            wire = None
            try:
                wire = self.nodes.take(address, self.until)
                wire.send(self._words(indices), self.until)
                sent.append((wire, indices))
            except BROKEN as error:
                fatal = self._broken(error, address, indices, left, wire) or fatal
        return fatal

    def _receive(self, left: list[int], sent: list[tuple[Wire, list[int]]]) -> Exception | None:
        """All answers, of all nodes, so that their connections are good for more. As `_send`."""
        fatal: Exception | None = None
        while sent:
            wire, indices = sent[0]
            read = 0
            try:
                for i in indices:
                    once = self.sent_on.pop(i, (None, False))[1]
                    if once:
                        wire.read(self.until)  # ASKING's OK
                    if self._later(i, wire.read(self.until), wire.address):
                        left.append(i)
                    if once:  # again: a line to it may have been given up since it was sent
                        self.nodes.asked[wire.address] = time.monotonic()
                    read += 1
            except BROKEN as error:
                fatal = self._broken(error, wire.address, indices[read:], left, wire) or fatal
                del sent[0]
            else:
                del sent[
                    0
                ]  # before it is given back: from then on it is another's, and not to be closed here
                if isinstance(self.trouble, ReadOnlyError) and self.at == wire.address:
                    wire.close()
                    self.nodes.drop(wire.address)
                    for channel in list(self.nodes.channels):
                        channel.alarm(wire.address)
                else:
                    self.nodes.give(wire)
        return fatal

    def _by_node(self, todo: list[int], left: list[int]) -> dict[Address, list[int]]:
        groups: dict[Address, list[int]] = {}
        for i in todo:
            to = self.jobs[i].to
            try:
                if i in self.sent_on:
                    address = self.sent_on[i][0]
                else:
                    address = self.nodes.address_of(to, self.until) if isinstance(to, bytes) else to
            except FarError as error:
                self.trouble = error
                left.extend(todo)
                return {}
            groups.setdefault(address, []).append(i)
        return groups

    def _words(self, indices: list[int]) -> list[tuple[Any, ...]]:
        words: list[tuple[Any, ...]] = []
        for i in indices:
            if self.sent_on.get(i, (None, False))[1]:
                words.append(("ASKING",))
            words.append(self.jobs[i].words)
        return words

    def _broken(self, error: Exception, address: Address, indices: list[int], left: list[int],
                wire: Wire | None) -> Exception | None:  # fmt: skip
        """The node did not answer to these: they are left to be done again, or the error comes back."""
        self.trouble, self.at = error, address
        for i in indices:
            self.sent_on.pop(i, None)
        if self.nodes.where.cluster:
            self.nodes.adopt(None)
        if wire is not None:
            wire.close()
        sent = wire is not None
        if isinstance(error, (AuthenticationError, ResponseError)) or (sent and not self.again):
            return error
        left.extend(indices)
        return None

    def _later(self, i: int, reply: Any, address: Address) -> bool:
        """Keeps the answer to job `i`, unless that is to be asked again: elsewhere, or later."""
        if isinstance(reply, (AskError, MovedError)) and self.nodes.where.cluster:
            to = (reply.host or address[0], reply.port)
            remap = self.nodes.where.remap
            gone = isinstance(reply, MovedError)
            to = remap(to) if remap else to
            self.sent_on[i] = (to, not gone)
            if not gone:
                self.nodes.asked[to] = time.monotonic()
            self.moved = True
            if gone:
                self.nodes.adopt(None)
        elif isinstance(reply, _LATER):
            if self.nodes.where.cluster:
                self.nodes.adopt(None)
        else:
            self.replies[i] = reply
            return False
        self.trouble, self.at = reply, address
        return True


def is_denied(reply: Exception) -> bool:
    """Whether it is about what was asked: a word in capitals tells of the server's own state (MISCONF, NOREPLICAS)."""
    told = type(reply) is ResponseError and not str(reply).partition(" ")[0].isupper()
    return told or isinstance(reply, NoPermissionError)


_all: weakref.WeakSet[Nodes] = weakref.WeakSet()


def _in_child() -> None:
    for nodes in list(_all):
        nodes.in_child()


forks.in_child(_in_child)
