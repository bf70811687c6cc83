"""A TCP proxy that stands between a client and a server, and can be a bad network."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

__all__ = ["Proxy"]


class _Pair:
    """One connection through the proxy: both sockets, and whether the client listens for changes."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.listens = False

    def end(self, reset: bool = False) -> None:
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                if reset:  # RST, and not FIN
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.close()


class Proxy:
    """Forwards to `port`. `cut` ends every connection; `hold` lets nothing through, and says nothing, till `let`."""

    def __init__(self, port: int) -> None:
        self._to = ("127.0.0.1", port)
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._door.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._held = ""
        self._over = False
        self._wake_in, self._wake_out = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def cut(self) -> None:
        with self._lock:
            for pair in self._pairs:
                pair.end(reset=True)
            self._pairs = []
        self._wake()

    def hold(self, whom: str = "all") -> None:
        """`whom`: all, or only the connections that `listen`."""
        self._held = whom
        self._wake()

    def let(self) -> None:
        self._held = ""
        self._wake()

    @property
    def listening(self) -> int:
        return sum(pair.listens for pair in self._pairs)

    def close(self) -> None:
        self._over = True
        self._wake()
        self._thread.join(10)
        self.cut()
        for sock in (self._door, self._wake_in, self._wake_out):
            sock.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_in.send(b"x")

    def _run(self) -> None:
        while not self._over:
            with selectors.DefaultSelector() as ready:
                ready.register(self._wake_out, selectors.EVENT_READ, None)
                ready.register(self._door, selectors.EVENT_READ, None)
                with self._lock:
                    pairs = list(self._pairs)
                for pair in pairs:
                    if self._held == "all" or (self._held == "listen" and pair.listens):
                        continue
                    with contextlib.suppress(ValueError, KeyError, OSError):  # cut meanwhile
                        ready.register(
                            pair.client, selectors.EVENT_READ, (pair, pair.client, pair.server)
                        )
                        ready.register(
                            pair.server, selectors.EVENT_READ, (pair, pair.server, pair.client)
                        )
                self._serve(ready)

    def _serve(self, ready: selectors.BaseSelector) -> None:
        """Forwards until the set of connections has to be looked at anew."""
        while not self._over:
            for key, _ in ready.select():
                if key.fileobj is self._wake_out:
                    self._wake_out.recv(100)
                    return
                if key.fileobj is self._door:
                    self._accept()
                    return
                pair, source, target = key.data
                if not self._forward(pair, source, target):
                    with self._lock:
                        if pair in self._pairs:
                            self._pairs.remove(pair)
                    pair.end()
                    return

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._door.accept()
            try:
                server = socket.create_connection(self._to, 2)
            except OSError:
                client.close()
                return
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.append(_Pair(client, server))

    def _forward(self, pair: _Pair, source: socket.socket, target: socket.socket) -> bool:
        try:
            data = source.recv(1 << 16)
            if source is pair.client and b"TRACKING" in data:
                pair.listens = True
            if data:
                target.sendall(data)
            return bool(data)
        except OSError:
            return False
