"""Real servers for the tests: one redis-server, or a cluster of three, on free loopback ports, gone at the end."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest

__all__ = [
    "MISSING",
    "Cluster",
    "Server",
    "free_port",
    "server_program",
    "shared_cluster",
    "shared_server",
]

MISSING = "no redis-server or valkey-server here: make servers (or apt-get install redis-server)"


def server_program() -> str | None:
    return shutil.which("valkey-server") or shutil.which("redis-server")


def free_port(also: int = 0) -> int:
    """A port nobody listens on; with `also`, nor on the one so much above it."""
    while True:
        with socket.socket() as a, socket.socket() as b:
            a.bind(("127.0.0.1", 0))
            port = int(a.getsockname()[1])
            if port + also > 65535:
                continue
            try:
                b.bind(("127.0.0.1", port + also if also else 0))
            except OSError:
                continue
            return port


class Server:
    """One server without persistence, in a directory of its own. `close` kills it, as does the interpreter's end."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        program = server_program()
        if program is None:
            pytest.skip(MISSING)
        self.port = port or free_port(10000 if "--cluster-enabled" in options else 0)
        self.place = tempfile.mkdtemp(prefix="gbcache-server-")
        self._command = [
            program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
            "--dir", self.place, "--logfile", "server.log", *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # a sanitizer's
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=env
        )
        end = time.monotonic() + 20
        while not self._answers():
            assert self._process.poll() is None, Path(self.place, "server.log").read_text()[-2000:]
            assert time.monotonic() < end, "the server does not come up"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as sock:
                sock.sendall(b"PING\r\n")
                return sock.recv(5) in (b"+PONG", b"-NOAU")
        except OSError:
            return False

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.place, ignore_errors=True)
        atexit.unregister(self.close)


class Cluster:
    """Three primaries without replicas, that have all slots and agree on it."""

    def __init__(self, size: int = 3) -> None:
        self.servers: list[Server] = []
        for _ in range(size):
            self.add()
        self._assign(size)
        self._settle(size)

    def add(self) -> Server:
        """One more server, in no cluster yet."""
        server = Server(
            "--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no"
        )  # fmt: skip
        self.servers.append(server)
        return server

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    def _assign(self, size: int) -> None:
        import redis

        for i, server in enumerate(self.servers):
            with redis.Redis(port=server.port, decode_responses=True) as client:
                first, last = 16384 * i // size, 16384 * (i + 1) // size - 1
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
                if i:
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.servers[0].port)

    def _settle(self, size: int) -> None:
        import redis

        end = time.monotonic() + 30
        for server in self.servers:
            with redis.Redis(port=server.port, decode_responses=True) as client:
                while True:
                    info = client.execute_command("CLUSTER", "INFO")
                    info = (
                        info
                        if isinstance(info, dict)
                        else dict(x.split(":", 1) for x in info.split("\r\n") if x)
                    )
                    if [info[f"cluster_{what}"] for what in ("state", "slots_ok", "size")] == [
                        "ok",
                        "16384",
                        str(size),
                    ]:
                        break
                    assert time.monotonic() < end, f"the cluster does not come together: {info}"
                    time.sleep(0.05)

    def close(self) -> None:
        for server in self.servers:
            server.close()


@cache
def shared_server() -> Server:
    """One for all tests that leave a server as it was but for its keys."""
    return Server()


@cache
def shared_cluster() -> Cluster:
    return Cluster()
