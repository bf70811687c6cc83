"""More operations of `starve.py`: the interpreter alone, and what is planted."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from starving import CASES, Work

import gbcache
from gbcache.flight import Flight


class Control(Work):
    """What the interpreter does to itself, without a line of ours."""

    allowed = (MemoryError, KeyError, RuntimeError, OSError)

    def __init__(self, root: Path, act: Callable[[], Any]) -> None:
        super().__init__(root)
        self.act = act  # type: ignore[method-assign]
        self.pairs = [(i, i) for i in range(2500 if act is _items else 0)]  # none is kept ready

    def over(self) -> None:
        self.pairs = []


def _deep(n: int) -> Any:
    return _deep(n - 1) if n else {}["none"]


def _joined(n: int = 2) -> bytes:
    parts = [_joined(n - 1) if n else b"x" for _ in range(2)]
    return b"".join(struct.pack("<BI", 7, len(part)) + part for part in parts)


@contextlib.contextmanager
def _within() -> Iterator[None]:
    yield


_LONG = (
    "def far_down():\n    a = 1\n"
    + "    a = -a\n" * 300
    + "    with within():\n        str(a) + str(a)\n"
)


_variable: ContextVar[Any] = ContextVar("variable", default=None)


def _at_once(n: int = 17) -> None:
    """More errors, each in the other's handler, than are made beforehand."""
    try:
        bytearray(99)
    except MemoryError:
        if n:
            _at_once(n - 1)
        raise


def _items() -> None:
    one = {1: 2}
    for _ in one.items():
        for _ in one.items():
            for _ in one.items():
                pass


def _context() -> None:
    token = _variable.set((1, _variable.get()))
    _variable.reset(token)


def _forgiving(act: Callable[[], Any]) -> Callable[[], Any]:
    def do() -> None:
        with contextlib.suppress(KeyError):
            act()

    return do


def _listed() -> Any:
    pairs = list({f"k{i}": i for i in range(30)}.items())
    return sorted(pairs)


class _Celled:
    __module__ = "gbcache"  # counted as ours: interpreters leave such, too

    def find(self, key: Any) -> Any:
        return lambda: (self, key)


def _called() -> None:
    _Celled().find([1.5])()


def _task() -> None:
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()


def _crowd() -> None:
    """Tasks that wait for a future of another thread's, and raise."""

    async def one(future: Future[None]) -> None:
        asyncio.get_running_loop()
        await asyncio.shield(asyncio.wrap_future(future))
        raise ZeroDivisionError

    async def all_of_them() -> None:
        future: Future[None] = Future()
        tasks = [asyncio.ensure_future(one(future)) for _ in range(3)]
        asyncio.get_running_loop().call_soon(future.set_result, None)
        await asyncio.gather(*tasks, return_exceptions=True)

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(all_of_them())
    finally:
        loop.close()


def controls() -> None:
    scope: dict[str, Any] = {"within": _within}
    exec(_LONG, scope)
    for name, act in {
        "an error through frames": _forgiving(lambda: _deep(3)), "a list of a list": _listed,
        "a task": _task, "a cell": _called, "an error through many frames": _forgiving(lambda: _deep(20)),
        "generators": _joined, "a with far down": scope["far_down"], "a context variable": _context,
        "many errors at once": _at_once, "items": _items,
        "a path": lambda: os.fspath(Path("x")), "a crowd": _crowd,
    }.items():  # fmt: skip
        CASES[f"interpreter: {name}"] = lambda root, act=act: Control(root, act)  # type: ignore[misc]


class Planted(Work):
    """Does wrong where memory is short."""

    def __init__(self, root: Path, act: Callable[[Any], Any]) -> None:
        super().__init__(root)
        self._act, self.state = act, [0, 0]

    def act(self) -> None:
        self._act(self)

    def look(self, failed: bool) -> None:
        assert self.state[0] == self.state[1]


def plant() -> None:
    """Cases that the sweep must find out, and one that it must not."""

    def half(w: Any) -> None:
        w.state[0] = 1
        w.made = bytearray(50)
        w.state[1] = 1

    def descriptor(w: Any) -> None:
        fd = os.open("/", os.O_RDONLY)
        w.made = bytearray(50), bytearray(50)
        os.close(fd)

    cache = gbcache.ObjectCache(8)
    die = functools.partial(signal.raise_signal, signal.SIGSEGV)

    def crash(w: Any) -> None:  # behind our C: there are Pythons that crash here on their own
        try:
            w.made = bytearray(50)
        except MemoryError:
            cache.get_or_set("key", die)

    kept: list[Any] = [None]

    def keeps(w: Any) -> None:
        kept[0] = Flight(1), kept[0]
        w.made = bytearray(50), bytearray(50)
        kept[0] = None

    for name, act in {
        "half a state": half,
        "an object that is kept": keeps,
        "a descriptor": descriptor,
        "a crash": crash,
        "nothing": len,
    }.items():
        fn = (lambda w: bytearray(50)) if act is len else act
        CASES[f"planted: {name}"] = lambda root, fn=fn: Planted(root, fn)  # type: ignore[misc]


controls()
