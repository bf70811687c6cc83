"""What a Valkey server tells of changes, and that it is known when it does not: `Channel`.

One connection to each node that has keys, and a thread that reads it: CLIENT TRACKING in its broadcasting mode,
which tells of every key that begins with our prefix, whoever writes it. Without NOLOOP: that leaves out what the
connection itself wrote, and ours never writes; were it all one connection, a key that another wrote and we wrote
within one turn of the server's loop would go untold, and with it the other's value.

How long a change may go untold. Each `heartbeat` seconds the server is asked (HELLO, which tells whether it is still
the primary; in a cluster CLUSTER INFO and SLOTS, so that a primary nobody is listening to is seen, and a node that its
cluster has lost). The answer comes behind all that was told before it, so it measures the way, the server and our own
backlog at once: once it is here, all that was changed before the question has been told. 2 x `heartbeat` after a
question that was answered the next answer has to be here, or the channel is broken.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import redis
from redis.exceptions import AuthenticationError, ClusterDownError, NoPermissionError, ResponseError

from . import forks
from .errors import ClosedError
from .far import Listener
from .locks import Latch, Lock, endure
from .nodes import Nodes, Slots, backoff, slots_of, state_of
from .wire import BROKEN, Address, Wire

__all__ = ["Channel"]

PATIENCE = 1.9
"""Heartbeats after a question that was answered, until the next answer has to be here. What is stated is 2: the rest
is for the thread to wake up in."""
ASKED = 60.0
"""Seconds that a node is listened to after we were sent there by ASK, if it is in no map."""
LASTS = 8
"""Attempts, of some 3 s, after which a replica is not one that is about to be the primary, or to be left."""
BATCH = 500
"""Keys told of in one call, about: what lies ready is told together, but the first does not wait for all."""


class _Silent(redis.exceptions.TimeoutError):
    """A heartbeat was not answered in time."""


class _Demoted(redis.exceptions.ConnectionError):
    """It was a primary, or its name led to one, and may do so again."""


class _Line:
    """The way to one node, and its thread: connects, listens, and begins again until it is cut."""

    def __init__(self, channel: Channel, address: Address) -> None:
        self.channel, self.address = channel, address
        self.up = False
        self._heard, self._attempt = 0.0, 0
        self._fault: BaseException | None = None
        """Why it is down, as long as the channel has not been told."""
        self.view: set[Address] = set()
        self.epoch = 0
        self._info_due = False
        self._cut = Latch()
        self._wire: Wire | None = None
        name = f"gbcache-valkey-{address[0]}:{address[1]}"
        self.thread = threading.Thread(target=endure, args=(self._run,), name=name, daemon=True)

    def cut(self) -> None:
        """It ends: at once where it listens, else when what it tries is over."""
        self._cut.open()
        self.wake()

    def wake(self) -> None:
        """Where it listens, it begins anew."""
        wire = self._wire
        if wire is not None:
            wire.wake()

    def _run(self) -> None:
        while not self._cut.opened:
            if self._fault is not None:
                self.channel._down(self, self._fault)
                self._fault = (
                    None  # not before: where memory is short for that, it comes here again
                )
                if self._cut.wait(backoff(self._attempt)):
                    return
                self._attempt += 1
                self.channel._look_around(self)
            try:
                self._stand()
                self._attempt = 0
                self._listen()
            except BaseException as error:
                # Whatever it is: were the thread to end here, copies would be kept that nobody tells of.
                self._fault = error
            finally:
                if self._wire is not None:
                    self._wire.close()
                    self._wire = None

    def _stand(self) -> None:
        """TRACKING first, then all else: from its OK on nothing goes untold."""
        nodes = self.channel.nodes
        until = time.monotonic() + nodes.timeout
        wire = self._wire = Wire(nodes.where, self.address, until, protocol=3)
        if self._cut.opened:  # while there was no wire to wake
            return
        wire.ask("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self.channel.prefix, until=until)
        nodes.drop(self.address)  # what was connected before may lead to another server than this
        self.channel._owed = True  # before it, all may have been missed, and none of that been told
        self._heard = time.monotonic()
        self._ask(wire, until)
        while not self._hear(wire, until):
            pass

    def _listen(self) -> None:
        """Of what was changed up to `_heard`, all has been told. That moves on with each heartbeat's answer, or the
        channel counts as broken, also where it is we who were late to ask."""
        wire, beat = self._wire, self.channel.heartbeat
        assert wire is not None
        asked: float | None = None
        while not self._cut.opened:
            end = self._heard + PATIENCE * beat
            try:
                answered = self._hear(
                    wire, end if asked is not None else min(end, self._heard + beat)
                )
            except redis.exceptions.TimeoutError:
                answered = False
            now = time.monotonic()
            if now >= end:
                raise _Silent(f"what is told was behind by {PATIENCE * beat:g} s")
            if answered and asked is not None:
                self._heard, asked = asked, None
            if asked is None and now >= self._heard + beat:
                self._ask(wire, end)
                asked = now

    def _ask(self, wire: Wire, until: float) -> None:
        self._info_due = self.channel.nodes.where.cluster
        asked = [("CLUSTER", "INFO"), ("CLUSTER", "SLOTS")] if self._info_due else [("HELLO", 3)]
        wire.send(asked, until)

    def _hear(self, wire: Wire, until: float) -> bool:
        """Waits for what the server says, and tells of all of it that has come. Whether an answer was among it."""
        keys: list[bytes] = []
        flushed, answer = False, None
        try:
            while answer is None and len(keys) < BATCH:
                said = wire.read(until)
                until = 0.0  # the rest only if it is here
                if not isinstance(said, list) or not said or isinstance(said[0], list):
                    if self._info_due:
                        self._info_due = False
                        self._informed(said)
                        continue
                    if isinstance(said, Exception):
                        raise said
                    answer = said
                elif said[0] == b"invalidate":
                    keys += said[1] or ()
                    flushed = flushed or said[1] is None
        except redis.exceptions.TimeoutError:
            if until:
                raise
        if flushed or keys:
            self.channel._changed(None if flushed else keys)
        if answer is not None:
            self._answered(answer)
        return answer is not None

    def _informed(self, info: Any) -> None:
        """A node that its cluster has lost does not hear of changes, and may still be read from."""
        if isinstance(info, Exception) and not isinstance(info, NoPermissionError):
            raise info
        sound, self.epoch = state_of(info)
        if not sound:
            raise ClusterDownError("the node has no part in its cluster: cluster_state is not ok")

    def _answered(self, answer: Any) -> None:
        nodes, slots = self.channel.nodes, None
        if nodes.where.cluster:
            slots = slots_of(answer, self.address, nodes.where)
            self.view = {address for address in slots if address is not None}
        elif isinstance(answer, dict) and answer.get(b"role") in (b"replica", b"slave"):
            raise _Demoted("it is a replica, which may be behind and does not say so")
        self.channel._up(self, slots)


class Channel:
    """Tells a `Listener` of every change below `prefix`, and when it can not.

    The listener is called from the threads of the lines, by one at a time, in order, and under a lock that no call
    of a user's waits for. What it raises is warned of, and it is told `restored` within the next heartbeat, since
    it may have missed what it was told.
    """

    def __init__(self, nodes: Nodes, listener: Listener, prefix: bytes, heartbeat: float, max_staleness: float,
                 key_of: Callable[[bytes], Any]) -> None:  # fmt: skip
        self.nodes, self.prefix, self.heartbeat = nodes, prefix, heartbeat
        self._listener, self._max_staleness, self._key_of = listener, max_staleness, key_of
        self.trouble: BaseException | None = None
        self._closed = False
        self._warned = False
        self._owed = False  # a line begins anew, or the listener raised: it is told `restored`
        self._trusted = False  # `restored` was told, and no `lost` since
        self._begin()
        nodes.channels.append(self)
        _all.add(self)

    def _begin(self) -> None:
        self._turn = Lock()
        self._whole = False
        self._timer: Latch | None = None  # of who waits for `max_staleness` to be over
        self._since: float | None = None  # when it was whole last
        self._lines: dict[Address, _Line] = {}

    def start(self) -> None:
        """Begins to connect, and returns at once: the server may come later."""
        with self._turn:
            self._want(set(self.nodes.where.seeds))

    def end(self) -> None:
        """No call of the listener begins after this. Takes no lock and waits for nothing: a finalizer may call it."""
        self._closed = True
        with contextlib.suppress(ValueError):  # twice
            self.nodes.channels.remove(self)
        timer = self._timer
        if timer is not None:
            timer.open()
        for line in list(self._lines.values()):
            line.cut()

    def close(self) -> None:
        """`end`, and waits for the threads, unless it is called from one."""
        if self._closed:
            return
        self.end()
        lines = list(self._lines.values())
        end = time.monotonic() + self.nodes.timeout + 0.1
        if threading.current_thread() not in [line.thread for line in lines]:
            for line in lines:
                with contextlib.suppress(RuntimeError):  # not begun yet: it is cut, and ends then
                    line.thread.join(max(0.0, end - time.monotonic()))

    def alarm(self, address: Address) -> None:
        """From a thread of a user's, so without the lock."""
        line = self._lines.get(address)
        if line is not None:
            line.wake()

    # --- what the lines report ---------------------------------------------------------------

    def _changed(self, keys: list[bytes] | None) -> None:
        if keys is None:
            self._tell(self._listener.changed, None)
            return
        ours = []
        for key in dict.fromkeys(keys):
            try:
                ours.append(self._key_of(key))
            except ValueError:  # a foreign key, which no copy can have
                continue
        if ours:
            self._tell(self._listener.changed, ours)

    def _up(self, line: _Line, slots: Slots | None) -> None:
        with self._turn:
            line.up = self._lines.get(line.address) is line
            # One that was cut meanwhile has no say: it may be the only one that has answered yet.
            if line.up and line.view:
                if line.epoch >= max([each.epoch for each in self._lines.values() if each.up]):
                    self.nodes.adopt(slots, line.epoch)
                self._want(self._views())
            self._settle()

    def _down(self, line: _Line, error: BaseException) -> None:
        with self._turn:
            if self._closed or self._lines.get(line.address) is not line:
                return
            line.up = False
            self.nodes.asked.pop(line.address, None)  # if it is in no map either, that was all
            self.trouble = error
            self._settle()
            lasts = isinstance(error, _Demoted) and line._attempt >= LASTS
            first = (lasts or _is_refusal(error)) and not self._warned
            self._warned = self._warned or first
        if first:
            at = f"{line.address[0]}:{line.address[1]}"
            _warn(f"{at} does not tell of changes, so nothing is kept near: {error}; it takes a primary, "
                  "Redis 6 or any Valkey, and a user that may call CLIENT TRACKING")  # fmt: skip

    def _look_around(self, line: _Line) -> None:
        """Of a line that is down: where every line is, it finds out who has the keys now."""
        if not self.nodes.where.cluster or any([each.up for each in list(self._lines.values())]):
            return
        try:
            slots = self.nodes.refresh(time.monotonic() + self.nodes.timeout)
        except (*BROKEN, ClosedError):
            return
        with self._turn:
            self._want({address for address in slots if address is not None})

    # --- what follows ------------------------------------------------------------------------

    def _views(self) -> set[Address]:
        """Who has keys by any map, and who was read from as it was about to have some."""
        views = [line.view for line in self._lines.values() if line.up]
        since = time.monotonic() - ASKED
        return {a for a, at in list(self.nodes.asked.items()) if at > since}.union(*views)

    def _want(self, wanted: set[Address]) -> None:
        """One line to each of these, and no other: a node that is new is one that is not heard yet. None at all is
        never right: with the last line ends all that could begin another."""
        if self._closed or not wanted:
            return
        for address in [a for a in self._lines if a not in wanted]:
            # What it has told may not have been read yet, and copies may be of its values.
            self._owed = True
            self._lines.pop(address).cut()
        for address in wanted - set(self._lines):
            line = self._lines[address] = _Line(self, address)
            try:
                line.thread.start()
            except BaseException:
                self._lines.pop(address).cut()  # it may have begun
                raise
            if self._closed:  # meanwhile: `close` may not have seen this one
                line.cut()

    def _settle(self) -> None:
        """From the state of the lines to that of the channel, and to what the listener is told. Each call goes on where
        one before lacked memory, or the listener raised."""
        if not (self._lines and all([line.up for line in self._lines.values()])):
            self._whole = False
            if self._since is None:
                self._since = time.monotonic()
            if self._trusted and self._timer is None:
                self._bear()
        elif self._owed or not self._whole:
            if self._timer is not None:
                self._timer.open()
                self._timer = None
            self._since = None
            self._trusted = True
            self._owed = not self._tell(self._listener.restored)
            self._whole = True

    def _bear(self) -> None:
        """Copies are trusted for `max_staleness` more, and no longer."""
        assert self._since is not None
        end = self._since + self._max_staleness
        if end > time.monotonic():
            timer = Latch()
            late = threading.Thread(
                target=endure,
                args=(self._overdue, timer, end),
                name="gbcache-valkey-late",
                daemon=True,
            )
            try:
                self._timer = timer
                late.start()
                return
            except (MemoryError, RuntimeError):  # no thread to be had: at once, then
                self._timer = None
        self._lose()

    def _overdue(self, timer: Latch, end: float) -> None:
        if timer.wait(max(0.0, end - time.monotonic())):
            return
        with self._turn:
            if self._timer is timer:
                self._lose()
                self._timer = None

    def _lose(self) -> None:
        if self._trusted and self._tell(self._listener.lost):
            self._trusted = False

    def _tell(self, call: Callable[..., None], *what: Any) -> bool:
        """Whether the listener took it."""
        with self._turn:
            if self._closed:
                return True
            try:
                call(*what)
            except BaseException as error:  # a SystemExit would end the line, and nobody be told
                self._owed = True  # at the next answer to a heartbeat
                _warn(f"a Listener raised {error!r}")
                return False
            return True

    # --- fork --------------------------------------------------------------------------------

    def in_child(self) -> None:
        """After a fork: no thread came along, and the connections are the parent's. A thread of our own says so,
        for the listener may wait for locks; then all begins anew."""
        for line in self._lines.values():
            if line._wire is not None:
                line._wire.close()
        self._begin()
        if not self._closed:
            threading.Thread(
                target=endure, args=(self._anew,), name="gbcache-valkey-forked", daemon=True
            ).start()

    def _anew(self) -> None:
        with self._turn:
            self._lose()
        self.start()


def _warn(text: str) -> None:
    # A filter may make it an exception, and where there is no standard error to be had, to warn raises what it likes.
    with contextlib.suppress(Exception):
        warnings.warn(f"gbcache: {text}", RuntimeWarning, stacklevel=3)


_all: weakref.WeakSet[Channel] = weakref.WeakSet()


def _in_child() -> None:
    for channel in list(_all):
        channel.in_child()


forks.in_child(_in_child)


def _is_refusal(error: BaseException) -> bool:
    """Whether asking again cannot help until somebody changes the server or what we were given."""
    if type(error) is ResponseError:
        return not str(error).startswith("BUSY ")  # somebody's slow script
    return isinstance(error, (AuthenticationError, NoPermissionError))
