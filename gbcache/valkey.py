"""A far side that is a Valkey or Redis server, or a cluster of them: `Valkey`."""

from __future__ import annotations

import errno
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from redis.exceptions import ClusterCrossSlotError, MovedError, OutOfMemoryError, ResponseError

from .codec import Codec, decode_key, encode_key, pack_value, resolve, unpack_value
from .errors import FarError, ImageError
from .far import Listener
from .nodes import Job, Nodes, is_denied, number_of, page_of
from .tracking import Channel
from .units import seconds_of
from .wire import Address, place

__all__ = ["Valkey"]

PIECE = 1000
"""Keys of a batch that go out together, and share one time-out."""
PIECE_BYTES = 16 << 20
"""Bytes of the same."""
SCRIPT_KEYS = 100
"""Keys that one run of the reading script asks for: the server does nothing else meanwhile, about 100 us."""
STRING_MAX = 512 << 20
"""Bytes of a key or a value that the protocol carries."""
_LETTERS = b"sbio"
"""Of a key's type, in the order of KT_STR, KT_BYTES, KT_INT, KT_OTHER."""

# The value and its TTL belong together, so they are read in one go; and what is no string is named by its type.
_GET = """\
local found = {}
for i, key in ipairs(KEYS) do
  local value = redis.pcall('GET', key)
  if type(value) == 'table' then
    if string.sub(value.err, 1, 9) ~= 'WRONGTYPE' then return value end
    value = {redis.call('TYPE', key).ok}
  end
  found[2 * i - 1] = value
  found[2 * i] = redis.call('PTTL', key)
end
return found"""

# Numbers are doubles here, so they go in and out as text.
_INCR = """\
if redis.call('EXISTS', KEYS[1]) == 0 then
  if ARGV[2] == '' then return redis.error_reply('ERR increment or decrement would overflow') end
  if ARGV[3] == '' then redis.call('SET', KEYS[1], ARGV[2])
  else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
else
  local sum = redis.pcall('INCRBY', KEYS[1], ARGV[1])
  if type(sum) == 'table' then return sum end
end
return redis.call('GET', KEYS[1])"""

_TOUCH = """\
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if ARGV[1] == '' then redis.call('PERSIST', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return 1"""


class Valkey:
    """A `Far` that many processes and machines share, and a `Feed`: the server tells of every change.

    `url_or_client`: a URL (``redis://``, ``rediss://``, ``unix://``, ``valkey://``), a list of them (nodes of a
    cluster), or a client of redis-py, `redis.Redis` or `redis.RedisCluster`, from which the settings of its
    connections are taken: where, who, TLS. The connections are our own, so the client's protocol, decoding,
    time-outs and retries play no part, and it is never closed. `cluster`: True to find the other nodes of a cluster
    from one; by default for several URLs or a RedisCluster.

    `prefix` begins every key on the server: then a letter for the key's type (s, b, i, o), then its bytes. Two
    caches of one server need prefixes of which none begins with the other. Nobody else may write below it: what is
    found there and is none of ours raises `ImageError`, which names it. A ``{tag}`` in a prefix or a key decides
    about its slot in a cluster, as ever. Keys and values go up to 512 MiB, which is the protocol's limit.

    `codec`: of the values, as in `Cache`. Ints are stored as decimal text, so `incr` is the server's.

    `timeout`: seconds that a call may take, connecting, waiting and trying again included, for each 1000 keys or
    16 MiB of a batch, and for each page of `count` and `clear`. Only finding the address of a name is the system's
    own, and connecting may take that long for each address of it. Then, or after `retries` attempts more, it is a
    `FarError`; the pause between attempts is 20 ms, doubled each time, at most 1 s, shortened at random. Sent again
    is what cannot have been done, and what only reads; of a write that was sent and not answered it is not known.

    What is acknowledged is in the server's memory. Whether it survives the server, or its power, is decided there
    (``appendonly``, ``appendfsync``, replicas); a failover of a cluster may lose acknowledged writes.

    **Staleness.** A listener of `feed` hears of a change as soon as the server says so. Where it cannot hear - the
    connection is cut, or nothing comes through, or we do not keep up, or a cluster has a primary that is not
    listened to yet - this is known at most 2 x `heartbeat` seconds after the first change that was not told (in a
    cluster: after its nodes know of the new primary). Then up to `max_staleness` seconds are given to the channel
    to come back, and then `lost` is called. So a copy can be out of date for

        2 x `heartbeat` + `max_staleness` seconds

    at most, and a slow answer costs copies but never trust. Not in this bound: a listener that takes its time, since
    the next thing is told when it returns; a process of ours that stands still, threads and all; SWAPDB, of which
    the server tells nobody; a server that was replaced and still takes itself for the primary.

    It takes a server with EVAL, SCAN and UNLINK; to be told of changes, a primary with CLIENT TRACKING: Redis 6, any
    Valkey.

    Threads: any may call. One thread of ours for each node that is listened to. After a fork, the child has its
    own connections, and its listener is told `lost` and, when the channel stands again, `restored`.

    Raises TypeError or ValueError for what cannot be; no server is needed to make one.
    """

    def __init__(
        self,
        url_or_client: Any,
        *,
        prefix: str | bytes = "gb:",
        codec: str | Codec = "typed",
        cluster: bool | None = None,
        timeout: float = 1.0,
        max_staleness: float = 0.0,
        heartbeat: float = 1.0,
        retries: int = 5,
    ) -> None:
        self._prefix = _prefix(prefix)
        self.codec = resolve(codec)
        seconds = seconds_of(timeout, "timeout", False)
        self._heartbeat = seconds_of(heartbeat, "heartbeat", False)
        self._max_staleness = seconds_of(max_staleness, "max_staleness") if max_staleness else 0.0
        if isinstance(retries, bool) or not isinstance(retries, int):
            raise TypeError(f"retries={retries!r} is a {type(retries).__name__}: give an int")
        if retries < 0:
            raise ValueError(f"retries={retries} is negative: give 0 for one attempt and no more")
        self._nodes = Nodes(place(url_or_client, cluster), seconds, retries)
        self._channels: list[Channel] = self._nodes.channels
        self._end = weakref.finalize(self, _close, self._nodes)
        self._end.atexit = False  # the threads are daemons

    def __repr__(self) -> str:
        host, port = self._nodes.where.seeds[0]
        state = ", closed" if self._nodes.closed else ""
        return f"Valkey({host}:{port}, prefix={self._prefix!r}{state})"

    # --- Far -------------------------------------------------------------------------------------

    def get_many(self, keys: Sequence[Any]) -> dict[Any, tuple[Any, float | None]]:
        """Of the keys that are there: the value and the seconds left, both of one instant.

        Raises FarError, ImageError for a value that is none of ours, TypeError or ValueError for a bad key. Cost: one
        round trip to each node concerned for each 1000 keys.
        """
        named = self._named(keys)
        found: dict[Any, tuple[Any, float | None]] = {}
        for piece in _pieces(list(named), lambda key: len(key)):
            groups = self._together(piece)
            jobs = [Job(group[0], ("EVAL", _GET, len(group), *group)) for group in groups]
            held: dict[bytes, tuple[Any, int]] = {}
            for group, reply in zip(groups, self._run(jobs, again=True), strict=True):
                held.update(self._held(group, reply))
            for key in piece:
                value, left = held[key]
                if value is not None and left != -2:  # -2: its time came between the two
                    seconds = None if left == -1 else max(left, 0.5) / 1000
                    found[named[key]] = (self._unpack(key, value), seconds)
        return found

    def put_many(self, items: Sequence[tuple[Any, Any, float | None]]) -> None:
        """Stores (key, value, TTL in seconds), in their order; of a key that comes twice only the last is sent.

        TTLs are kept in whole milliseconds, at least one. When it returns, the servers have acknowledged all. Raises
        FarError: any may be stored or not; TypeError or ValueError: nothing is.
        """
        last: dict[bytes, tuple[Any, ...]] = {}
        for key, value, ttl in items:
            name = self._name(key)
            last.pop(name, None)
            last[name] = ("SET", name, self._pack(key, value), *_px(ttl))
        for piece in _pieces(list(last.values()), lambda words: len(words[1]) + len(words[2])):
            self._run([Job(words[1], words) for words in piece], again=False)

    def delete_many(self, keys: Sequence[Any]) -> list[bool]:
        """Removes; for each, in order, whether it was there. Raises as `put_many`."""
        names = [self._name(key) for key in keys]
        was: dict[bytes, bool] = {}
        for piece in _pieces(list(dict.fromkeys(names)), lambda name: len(name)):
            was.update(zip(piece, self._unlink(piece), strict=True))
        return [was.pop(name, False) for name in names]  # the second of two alike finds nothing

    def scan(self, cursor: Any = None, count: int = 1000) -> tuple[list[Any], Any]:
        """About `count` keys, by SCAN, and the place to go on from; a key may come twice.

        A cluster's nodes come one after another; while slots move between them, keys of these may be missed. Raises
        ImageError for a key that is none of ours.
        """
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"count={count!r} is a {type(count).__name__}: give an int")
        if count < 1:
            raise ValueError(f"count={count} is not above 0")
        names, cursor = self._page(_cursor(cursor), count)
        return [self._key(name) for name in names], cursor

    def sync(self) -> None:
        """Every node answers; that is all. What survives a power cut is decided by the servers' own settings
        (``appendonly yes`` with ``appendfsync always`` keeps all that was acknowledged)."""
        until = time.monotonic() + self._nodes.timeout
        nodes = self._primaries(True, until)
        self._run([Job(node, ("PING",)) for node in nodes], again=True, until=until)

    def close(self) -> None:
        """Ends the channels and their threads, and closes the connections; a call that is under way is finished."""
        self._end()

    # --- what Tiered uses where it is --------------------------------------------------------------

    def incr(self, key: Any, delta: int = 1, initial: int = 0, ttl: float | None = None) -> int:
        """Adds to an int, atomically for all who do; an absent one begins at `initial` + `delta` with `ttl`.

        Raises TypeError where there is no int, or for a bad argument, OverflowError beyond 64 bits, and FarError: then
        it may have been added or not.
        """
        for what, number in (("delta", delta), ("initial", initial)):
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"{what}={number!r} is a {type(number).__name__}: give an int")
            if not _fits(number):
                raise OverflowError(f"{what}={number} is beyond 64 bits")
        name, px = self._name(key), _px(ttl)
        begins = str(initial + delta) if _fits(initial + delta) else ""
        words = ("EVAL", _INCR, 1, name, str(delta), begins, px[1] if px else "")
        (reply,) = self._nodes.run([Job(name, words)], again=False)
        if isinstance(reply, ResponseError):
            if "overflow" in str(reply):
                raise OverflowError(
                    f"incr({key!r:.100}, {delta}) would go beyond 64 bits"
                ) from reply
            if "not an integer" in str(reply):
                raise TypeError(f"incr({key!r:.100}): what it holds is no int") from reply
            if str(reply).startswith("WRONGTYPE"):
                self.get_many([key])  # which says what it is
        return number_of(self._checked(reply))

    def add(self, key: Any, value: Any, ttl: float | None = None) -> bool:
        """Stores if the key is absent, atomically; whether it did. Raises as `put_many`."""
        name = self._name(key)
        words = ("SET", name, self._pack(key, value), *_px(ttl), "NX")
        return self._run([Job(name, words)], again=False)[0] is not None

    def touch(self, key: Any, ttl: float | None) -> bool:
        """Gives a key that is there another TTL (None: for ever); whether it was there. Raises as `put_many`."""
        name, px = self._name(key), _px(ttl)
        return self._run(
            [Job(name, ("EVAL", _TOUCH, 1, name, px[1] if px else ""))], again=True
        ) == [1]

    def count(self) -> int:
        """How many keys there are, by SCAN: it looks at every key of the servers, a round trip for each 1000.

        Exact while nobody writes and the servers' tables do not shrink.
        """
        return sum(len(names) for names in self._pages())

    def clear(self) -> int:
        """Removes all of ours, by SCAN and UNLINK; how many there were. What is written meanwhile may stay."""
        return sum(sum(self._unlink(names)) for names in self._pages() if names)

    # --- Feed --------------------------------------------------------------------------------------

    def feed(self, listener: Listener) -> Callable[[], None]:
        """Has `listener` told of every change below our prefix from now on, our own included. See the class.

        Returns at once, what ends it: until that is called, or `close`, `listener` is kept alive. `restored` is called
        when the channel stands, from a thread of ours. A server that does not let us listen is warned of once
        (RuntimeWarning), and tried again for as long as this is open.
        """
        self._nodes.check_open()
        times, key_of = (self._heartbeat, self._max_staleness), partial(_decode, self._prefix)
        channel = Channel(self._nodes, listener, self._prefix, *times, key_of)
        try:
            channel.start()
        except BaseException:
            channel.end()
            raise
        return channel.end

    # --- keys and values ---------------------------------------------------------------------------

    def _name(self, key: Any) -> bytes:
        kind, data = encode_key(key)
        name = b"%b%c%b" % (self._prefix, _LETTERS[kind], data)
        if len(name) > STRING_MAX:
            raise ValueError(
                f"a key of {len(name)} bytes with its prefix: the protocol ends at {STRING_MAX}"
            )
        return name

    def _named(self, keys: Iterable[Any]) -> dict[bytes, Any]:
        """Each key once, by its name on the server."""
        named: dict[bytes, Any] = {}
        for key in keys:
            named.setdefault(self._name(key), key)
        return named

    def _key(self, name: bytes) -> Any:
        try:
            return _decode(self._prefix, name)
        except ValueError:
            rule = f"every key that begins with {self._prefix!r} is one of ours: remove it, or choose another prefix"
            raise ImageError(f"the server's key {name[:100]!r}", None, rule) from None

    def _pack(self, key: Any, value: Any) -> bytes:
        data = pack_value(self.codec, value)
        if len(data) > STRING_MAX:
            raise ValueError(
                f"{key!r:.100}: a value of {len(data)} bytes: the protocol ends at {STRING_MAX}"
            )
        return data

    def _unpack(self, name: bytes, data: Any) -> Any:
        try:
            if isinstance(data, list):
                raise ValueError(f"found a {data[0].decode()}")
            return unpack_value(self.codec, data)
        except Exception as error:  # a codec of the user's may raise anything
            rule = f"it holds a value of ours: {error}"
            raise ImageError(f"the server's key {name[:100]!r}", None, rule) from error

    def _held(self, group: list[bytes], reply: Any) -> Iterator[tuple[bytes, tuple[Any, int]]]:
        """Of each key what `_GET` is to answer: its value, and the ms left."""
        sound = isinstance(reply, list) and len(reply) == 2 * len(group)
        if not sound or not all(isinstance(left, int) and _fits(left) for left in reply[1::2]):
            raise FarError(f"{self!r}: it answers {len(group)} keys with {reply!r:.100}")
        return zip(group, zip(reply[::2], reply[1::2], strict=True), strict=True)

    # --- the servers -------------------------------------------------------------------------------

    def _run(self, jobs: list[Job], again: bool, **until: float) -> list[Any]:
        return [self._checked(reply) for reply in self._nodes.run(jobs, again, **until)]

    def _checked(self, reply: Any) -> Any:
        if isinstance(reply, (MovedError, ClusterCrossSlotError)) and not self._nodes.where.cluster:
            raise FarError("the server is a node of a cluster: give Valkey cluster=True") from reply
        if isinstance(reply, OutOfMemoryError):  # what waits for room lets others by
            raise FarError(errno.ENOSPC, f"{self!r}: {reply}") from reply
        if isinstance(reply, Exception):
            text = f"{self!r}: {reply}"
            raise (FarError(errno.EACCES, text) if is_denied(reply) else FarError(text)) from reply
        return reply

    def _together(self, names: list[bytes]) -> list[list[bytes]]:
        """Those that one script asks for. In a cluster one each: of a slot that moves, two may be in two places."""
        most = 1 if self._nodes.where.cluster else SCRIPT_KEYS
        return [names[i : i + most] for i in range(0, len(names), most)]

    def _unlink(self, names: list[bytes]) -> list[bool]:
        replies = self._run([Job(name, ("UNLINK", name)) for name in names], again=False)
        return [reply == 1 for reply in replies]

    def _primaries(self, fresh: bool, until: float) -> list[Address]:
        self._nodes.check_open()
        return self._nodes.primaries(fresh, until)

    def _page(self, cursor: tuple[Address, int] | None, count: int) -> tuple[list[bytes], Any]:
        """The next names, and where to go on. Pages without any of ours are passed over, for half of `timeout`."""
        end = time.monotonic() + self._nodes.timeout / 2  # so that the last has the other half
        until = end + self._nodes.timeout / 2
        nodes = self._primaries(cursor is None, until)
        address, at = cursor or (nodes[0], 0)
        if address not in nodes and not self._nodes.where.cluster:
            raise ValueError(f"cursor={(*address, at)} is of another server")
        match = (
            b"".join(b"\\%c" % c if c in b"*?[]\\^-" else b"%c" % c for c in self._prefix) + b"*"
        )
        while True:
            if address in nodes:
                job = Job(address, ("SCAN", at, "MATCH", match, "COUNT", count))
                at, names = page_of(self._run([job], again=True, until=until)[0])
            else:  # it has no keys any more
                at, names = 0, []
            if not at:
                later = [node for node in nodes if node > address]
                if not later:
                    return names, None
                address = later[0]
            if names or time.monotonic() > end:
                return names, (*address, at)

    def _pages(self) -> Iterator[list[bytes]]:
        names, cursor = self._page(None, PIECE)
        while cursor is not None:
            yield names
            names, cursor = self._page(_cursor(cursor), PIECE)
        yield names


def _close(nodes: Nodes) -> None:
    nodes.close()
    for channel in list(nodes.channels):  # which each of them leaves
        channel.close()


def _prefix(prefix: str | bytes) -> bytes:
    if not isinstance(prefix, (str, bytes)):
        raise TypeError(f"prefix={prefix!r} is a {type(prefix).__name__}: give a str or bytes")
    if not prefix:
        raise ValueError(
            "prefix is empty: every key of the server would be ours, and clear() would remove it"
        )
    return prefix.encode() if isinstance(prefix, str) else prefix


def _decode(prefix: bytes, name: bytes) -> Any:
    """The key of a name on the server. ValueError if it is none of ours."""
    at = len(prefix)
    kind = _LETTERS.find(name[at : at + 1]) if len(name) > at and name.startswith(prefix) else -1
    if kind < 0:
        raise ValueError(f"not a key of ours: {name[:100]!r}")
    return decode_key(kind, name[at + 1 :])


def _px(ttl: float | None) -> tuple[Any, ...]:
    """What SET is told of a TTL."""
    return () if ttl is None else ("PX", max(1, int(seconds_of(ttl) * 1000)))


def _fits(number: int) -> bool:
    return -(2**63) <= number < 2**63


def _cursor(cursor: Any) -> tuple[Address, int] | None:
    if cursor is None:
        return None
    if isinstance(cursor, tuple) and [type(part) for part in cursor] == [str, int, int]:
        return (cursor[0], cursor[1]), cursor[2]
    raise TypeError(f"cursor={cursor!r:.100} is none that scan returned")


def _pieces(items: list[Any], size_of: Any) -> Iterator[list[Any]]:
    """In their order, in pieces of at most PIECE items and about PIECE_BYTES bytes."""
    piece: list[Any] = []
    size = 0
    for item in items:
        more = size_of(item)
        if piece and (len(piece) == PIECE or size + more > PIECE_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(item)
        size += more
    if piece:
        yield piece
