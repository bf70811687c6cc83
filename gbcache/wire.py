"""One connection to a Valkey or Redis server, on redis-py's: no call on it lasts beyond its deadline.

redis-py's own time-out is for each wait for bytes: a reply that dribbles, or one retry after another, outlasts
it. Here the socket itself knows the instant at which all is over.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401, of host names: a child forked while a thread imports it could never import it
import math
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

try:
    import redis
    from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url
    from redis.exceptions import RedisError
except ImportError as error:
    raise ImportError(
        "gbcache.valkey needs the package redis, 8 or newer: pip install gbcache[valkey]"
    ) from error

__all__ = ["BROKEN", "Address", "Place", "Wire", "place"]

Address = tuple[str, int]
"""Host and port; of a Unix socket, its path and 0."""
BROKEN = (RedisError, OSError)
"""What a connection may raise."""
_WRONG = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What comes of an answer that is none."""

EARS = 4 << 20
"""Bytes of what is told that the system may keep for us."""
DEPTH = 32
"""Of lists in lists in an answer, at most: no server of this kind has more than a few."""

_TIMEVAL = struct.Struct("@ll")
_KEPT = {
    "host", "port", "path", "db", "username", "password", "credential_provider", "client_name", "socket_type",
    "socket_keepalive", "socket_keepalive_options", "socket_read_size",
}  # fmt: skip
"""Of a client's settings, those that say where and how; of the rest we have our own. And all of ssl_*."""


class Place(NamedTuple):
    """Where the servers are, and how they are spoken to."""

    kind: type[Connection] | type[UnixDomainSocketConnection]
    settings: dict[str, Any]
    seeds: list[Address]
    cluster: bool
    remap: Callable[[Address], Address] | None


class _Socket:
    """A socket whose every wait ends at `owner.until`. The rest is the socket's own.

    Python's own time-outs give the GIL away three times for one `recv`, and where another thread computes, each time
    may take 5 ms to get it back. SO_RCVTIMEO on a blocking socket does so once, but each signal begins the wait anew:
    Python tries again, with the whole time-out. Signals are the main thread's, which has to poll. TLS needs Python's.
    """

    def __init__(self, sock: socket.socket, owner: _Timed) -> None:
        self._sock, self._owner = sock, owner
        self._quick = False
        self._kernel = type(sock) is socket.socket
        if self._kernel:
            sock.settimeout(None)
            self._poll = select.poll()
            self._poll.register(sock, select.POLLIN)

    def _left(self) -> float:
        left = self._owner.until - time.monotonic()
        if left <= 0.0:
            raise TimeoutError("timed out")
        return left

    def sendall(self, data: Any) -> None:
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                left = self._left()
                try:
                    if self._kernel:
                        sent += self._sock.send(view[sent:], socket.MSG_DONTWAIT)
                    else:
                        self._sock.settimeout(left)
                        sent += self._sock.send(view[sent:])
                except BlockingIOError:
                    room = select.poll()
                    room.register(self._sock, select.POLLOUT)
                    room.poll(min(left, 1e6) * 1000)

    def recv(self, size: int) -> bytes:
        while True:
            left = self._left()
            try:
                data = self._wait(size, min(left, 1e6))
            except BlockingIOError:
                continue  # it is over, or a rounding before
            if self._quick:  # the system forgets it
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            return data

    def _wait(self, size: int, left: float) -> bytes:
        if not self._kernel:
            self._sock.settimeout(left)
            return self._sock.recv(size)
        if threading.get_ident() == threading.main_thread().ident:
            self._poll.poll(left * 1000)
            return self._sock.recv(size, socket.MSG_DONTWAIT)
        timeval = _TIMEVAL.pack(*divmod(max(1, int(left * 1e6)), 1_000_000))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        return self._sock.recv(size)

    def recv_into(self, buffer: Any, size: int = 0) -> int:  # what hiredis calls
        data = self.recv(size or len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def listen_well(self) -> None:
        """For many small messages one way: room for them, and each acknowledged at once.

        The 128 KiB that a system begins with are soon full of small ones, and a sender that may have ten messages
        on the way waits for an acknowledgement that the system holds back; either pauses for 40 to 400 ms.
        """
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, EARS)
        self._quick = self._sock.family != socket.AF_UNIX and hasattr(socket, "TCP_QUICKACK")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _Timed:
    """Mixed into redis-py's connections: they get such a socket."""

    until = math.inf

    def _connect(self) -> _Socket:
        return _Socket(super()._connect(), self)  # type: ignore[misc]


class _Tcp(_Timed, Connection):
    pass


class _Tls(_Timed, SSLConnection):
    def _wrap_socket_with_ssl(self, sock: socket.socket) -> Any:
        left = self.until - time.monotonic()  # of what connecting began with
        if left <= 0.0:
            raise TimeoutError("timed out")
        sock.settimeout(left)
        return super()._wrap_socket_with_ssl(sock)  # type: ignore[no-untyped-call]


class _Unix(_Timed, UnixDomainSocketConnection):
    pass


_KINDS: dict[type, Any] = {Connection: _Tcp, SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}


class _Answers:
    """Reads what a server says, in its protocol 2 or 3.

    Our own, because of what a channel hears: redis-py takes 12 us for each key that is told, this takes 1; the
    difference is the age of a copy where much is written. And to run out of time in the middle is no end here.
    """

    def __init__(self, recv: Callable[[int], bytes], error_of: Callable[[str], Exception]) -> None:
        self._recv, self._error_of = recv, error_of
        self._data, self._at = b"", 0
        self._parts: list[bytes] = []  # what has come behind _data
        self._got = 0
        self._next = self._value()

    def read(self) -> Any:
        """The next answer or push. Raises TimeoutError, and can then be called again."""
        while True:
            try:
                need = next(self._next)
            except StopIteration as done:
                self._next = self._value()
                return done.value
            self._fill(need)

    def _fill(self, need: int) -> None:
        """At least so many bytes more."""
        while self._got < need:
            data = self._recv(min(max(need - self._got, 1 << 16), 1 << 22))
            if not data:
                raise redis.exceptions.ConnectionError("the server closed the connection")
            self._parts.append(data)
            self._got += len(data)
        self._data = b"".join([self._data[self._at :], *self._parts])
        self._parts, self._got, self._at = [], 0, 0

    def _value(self, depth: int = 0) -> Generator[int, None, Any]:
        """One value. Yields how many bytes are missing, at least. ValueError for what is none."""
        while (end := self._data.find(b"\r\n", self._at)) < 0:
            yield 1
        kind, head = self._data[self._at : self._at + 1], self._data[self._at + 1 : end]
        self._at = end + 2
        if kind in (b"$", b"=", b"!"):
            data = yield from self._bytes(int(head))
            if kind == b"!" and data is not None:
                return self._error_of(data.decode("utf-8", "replace"))
            return data[4:] if kind == b"=" and data is not None else data
        if kind in (b"*", b">", b"~"):
            return None if head == b"-1" else (yield from self._list(int(head), depth + 1))
        if kind == b"%":
            flat = yield from self._list(2 * int(head), depth + 1)
            if any(isinstance(key, (list, dict)) for key in flat[::2]):
                raise ValueError("a key in a map is a list or a map")
            return dict(zip(flat[::2], flat[1::2], strict=True))
        if kind in (b":", b"("):
            return int(head)
        if kind in (b"+", b",", b"#"):
            return head
        if kind == b"-":
            return self._error_of(head.decode("utf-8", "replace"))
        if kind == b"_":
            return None
        raise ValueError(f"no answer begins with {kind + head[:40]!r}")

    def _bytes(self, size: int) -> Generator[int, None, bytes | None]:
        if size < 0:
            return None
        while (missing := self._at + size + 2 - len(self._data)) > 0:
            yield missing
        at = self._at
        self._at += size + 2
        return self._data[at : at + size]

    def _list(self, count: int, depth: int) -> Generator[int, None, list[Any]]:
        if depth > DEPTH:
            raise ValueError(f"lists in lists, more than {DEPTH}")
        items: list[Any] = []
        while len(items) < count:
            data, at = self._data, self._at
            end = data.find(b"\r\n", at)
            if end > 0 and data[at] == 36 and data[at + 1] != 45:  # $ and no -: what most items are
                stop = end + 2 + int(data[at + 1 : end])
                if stop < end + 2:  # a blank before the -: it would be read again and again
                    raise ValueError(f"no length is {data[at + 1 : end]!r}")
                if stop + 2 <= len(data):
                    items.append(data[end + 2 : stop])
                    self._at = stop + 2
                    continue
            items.append((yield from self._value(depth)))
        return items


def _packed(words: tuple[Any, ...]) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if type(word) is bytes else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


class Wire:
    """One connection that stands. Raises what is `BROKEN`, and is then good for nothing but `close`."""

    def __init__(self, where: Place, address: Address, until: float, protocol: int = 2) -> None:
        """Connects and logs in. `until`: on the monotonic clock. Finding the address of a name is the system's own,
        and has no time-out; each address that a name has may take what is left."""
        self.since = time.monotonic()
        left = until - self.since
        if left <= 0:
            raise redis.exceptions.TimeoutError("no time left to connect")
        at: dict[str, Any] = {"host": address[0], "port": address[1]}
        if where.kind is UnixDomainSocketConnection:
            at = {"path": address[0]}
        self.address = address
        self._conn = _KINDS[where.kind](
            **{**where.settings, **at}, protocol=protocol, driver_info=None,
            socket_timeout=left, socket_connect_timeout=left,
        )  # fmt: skip
        self._conn.until = until
        self.pid = os.getpid()
        try:
            self._conn.connect()
        except BROKEN:
            raise
        except _WRONG as error:  # a host or port that is none, or an answer redis-py cannot read
            self._conn.disconnect()  # its own errors alone have redis-py do so
            what = f"{address[0]}:{address[1]} cannot be connected to"
            raise redis.exceptions.InvalidResponse(f"{what}: {error!r:.200}") from error
        self._sock: _Socket | None = self._conn._sock
        if protocol == 3:
            self._conn._sock.listen_well()
        self._answers = _Answers(self._conn._sock.recv, self._conn._parser.parse_error)

    def send(self, commands: Iterable[tuple[Any, ...]], until: float) -> None:
        """Sends them in one piece, as far as there is room; reading their answers is for `read`."""
        self._conn.until = until
        if self._sock is None:
            raise redis.exceptions.ConnectionError("it is closed")
        try:
            self._sock.sendall(b"".join(map(_packed, commands)))
        except TimeoutError:
            raise redis.exceptions.TimeoutError("it could not be sent in time") from None
        except OSError as error:
            raise redis.exceptions.ConnectionError(str(error)) from error

    def read(self, until: float) -> Any:
        """One answer, or, with protocol 3, one push. An error that the server answers is returned, not raised.

        Where time runs out, what has come of an answer waits for the next call.
        """
        self._conn.until = until
        try:
            reply = self._answers.read()
        except TimeoutError:
            raise redis.exceptions.TimeoutError("no answer in time") from None
        except OSError as error:
            raise redis.exceptions.ConnectionError(str(error)) from error
        except _WRONG as error:
            raise redis.exceptions.InvalidResponse(f"no server of this kind: {error}") from error
        loading = isinstance(reply, redis.exceptions.BusyLoadingError)
        if isinstance(reply, redis.exceptions.ConnectionError) and not loading:
            raise reply  # which is how redis-py sees NOAUTH and the like
        return reply

    def ask(self, *words: Any, until: float) -> Any:
        """One command and its answer; what the server answers as an error is raised."""
        self.send([words], until)
        reply = self.read(until)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def usable(self) -> bool:
        """Whether an idle one may be used again: nothing has come, so it has not been closed from there."""
        sock = self._sock
        if sock is None or self.pid != os.getpid():
            return False
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
        return not poll.poll(0)

    def wake(self) -> None:
        """Has a thread that waits in `read` see the end of the stream."""
        sock = self._sock
        if sock is not None and self.pid == os.getpid():
            with contextlib.suppress(OSError, ValueError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock = None
        self._conn.disconnect()


# --- where ---------------------------------------------------------------------------------------


def place(target: Any, cluster: bool | None) -> Place:
    """What `Valkey` was given, as a place: a URL, several, or a redis-py client whose settings are taken over."""
    if isinstance(target, str):
        return _of_urls([target], bool(cluster))
    if isinstance(target, (list, tuple)) and target and all(isinstance(url, str) for url in target):
        return _of_urls(list(target), True if cluster is None else cluster)
    if isinstance(target, redis.RedisCluster):
        if cluster is False:
            raise ValueError("cluster=False, but the client is a RedisCluster: give a Redis")
        manager = target.nodes_manager
        settings = dict(manager.connection_kwargs)
        kind = settings.pop(
            "connection_class", SSLConnection if settings.pop("ssl", False) else Connection
        )
        if kind not in (Connection, SSLConnection):
            raise TypeError(f"connections of type {kind.__name__} are not known here: give URLs")
        _refuse(settings.get("redis_connect_func") and target.user_on_connect_func)
        seeds = [(node.host, node.port) for node in manager.nodes_cache.values()]
        seeds += [(node.host, node.port) for node in manager.startup_nodes.values()]
        settings = {**settings, "host": None, "port": None}
        return Place(kind, _settings(settings), sorted(set(seeds)), True, manager.address_remap)
    if isinstance(target, redis.Redis):
        pool = target.connection_pool
        _refuse(pool.connection_kwargs.get("redis_connect_func"))
        return _of_settings(pool.connection_class, [pool.connection_kwargs], bool(cluster))
    raise TypeError(
        f"{target!r:.100} is a {type(target).__name__}: give a URL as in 'redis://localhost:6379/0', a list of "
        "them (a cluster), or a client of redis-py, redis.Redis or redis.RedisCluster (not an asyncio one)"
    )


def _refuse(hook: object) -> None:
    if hook:
        raise ValueError(
            "the client has a redis_connect_func, which cannot be run on connections that are not its own: give a URL"
        )


def _of_urls(urls: list[str], cluster: bool) -> Place:
    parsed: list[dict[str, Any]] = []
    for url in urls:
        for scheme in ("valkey", "valkeys"):  # the same protocol by its newer name
            if url.startswith(scheme + "://"):
                url = url.replace(scheme, "redis" if scheme == "valkey" else "rediss", 1)
        parsed.append(dict(parse_url(url)))  # type: ignore[no-untyped-call]
    if len(urls) > 1 and not cluster:
        raise ValueError("cluster=False, but there are several URLs: a single server has one")
    kinds = {p.pop("connection_class", Connection) for p in parsed}
    alike = [{k: v for k, v in p.items() if k not in ("host", "port")} for p in parsed]
    if len(kinds) > 1 or any(a != alike[0] for a in alike):
        raise ValueError("the URLs differ in more than host and port: nodes of one cluster do not")
    return _of_settings(kinds.pop(), parsed, cluster)


def _of_settings(kind: Any, each: list[Any], cluster: bool) -> Place:
    if kind not in _KINDS:
        raise TypeError(
            f"connections of type {kind.__name__} are not known here (a Sentinel's are not): give a URL"
        )
    if kind is UnixDomainSocketConnection:
        if cluster:
            raise ValueError("a cluster cannot be reached by a Unix socket: its nodes name ports")
        seeds: list[Address] = [(each[0].get("path", ""), 0)]
    else:
        seeds = [(p.get("host") or "localhost", int(p.get("port") or 6379)) for p in each]
    if cluster and each[0].get("db"):
        raise ValueError(f"db={each[0]['db']!r}: a cluster has no database but 0")
    return Place(kind, _settings(each[0]), seeds, cluster, None)


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    at = ("host", "port", "path")
    return {k: v for k, v in given.items() if (k in _KEPT or k.startswith("ssl_")) and k not in at}
