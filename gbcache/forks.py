# cython: freethreading_compatible=True
"""Forks: each cache's lock is held across one, and a forked child begins anew what is its parent's.

What a hook raises Python prints, and forks all the same; so does a signal's handler that raises as a hook begins, or in
the midst of it. Hence this is compiled, where no handler runs between two lines: what was taken is given back. And what
a child needs of Python code is called again where it was cut off.
"""

from __future__ import annotations

import os
import weakref
from _thread import RLock
from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = ["PATIENCE", "STUCK", "in_child", "insist", "put_off", "register", "take", "within"]

PATIENCE = 1.0
"""Seconds that a hook within ours waits for another thread, which may wait for what this one holds."""
STUCK = (
    "this would wait for a thread that cannot go on within a fork: do it in a hook that is "
    "registered after gbcache was imported"
)
_TRIES = 100
"""Of what a signal's handler cuts off."""

# By id, not in a WeakSet: a cache is unhashable, as every mapping is. With the process that made it.
_stores: Any = {}  # as a dict Cython would refuse the one that a test puts here
_turn = RLock()  # threading's is Python, in which a handler may raise
"""Held across a fork: `_held` is of one thread at a time."""
_depth = 0  # a signal's handler may fork while we get ready to
_held: list[Any] = []
"""Stores whose locks are held, or were to be: each knows whether. Twice, where a fork was begun in another."""
_late: list[Callable[[], object]] = []
"""What waits for the fork to be over."""
_hooks: list[Callable[[], None]] = []
"""Called by ours: so what was put off comes behind all of them, whenever their modules were imported."""


def register(store: Any) -> None:
    """Makes `store` known to fork: its lock is held across, its child's copy is the child's own."""
    key = id(store)
    _stores[key] = weakref.ref(store, partial(_stores.pop, key)), os.getpid()


def in_child(hook: Callable[[], None]) -> None:
    """Has a forked child call `hook`, and again where it raises: it may find some of its work done."""
    _hooks.append(hook)


def within() -> bool:
    """Whether this thread forks, in a hook that runs within ours: other threads may wait for what it holds."""
    owned: Any = _turn
    return _depth > 0 and bool(owned._is_owned())


def take(lock: Any) -> None:
    """Acquires it; RuntimeError within a fork, where another thread keeps it."""
    if not within():
        lock.acquire()  # makes no object
    elif not lock.acquire(True, PATIENCE):
        raise RuntimeError(STUCK)


def put_off(call: Callable[[], object]) -> bool:
    """Within a fork: has `call` called once it is over, in each process in which it was put off. Else False."""
    if not within():
        return False
    _late.append(call)
    return True


def insist(call: Callable[..., object], *args: Any) -> None:
    """Calls, and again where that was cut off. Raises what did so, once it has come to its end."""
    raised: BaseException | None = None
    left = _TRIES
    while left:
        left -= 1
        try:
            call(*args)
            break
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised


def _before() -> None:
    global _depth
    raised: BaseException | None = None
    try:
        insist(_turn.acquire)
    except BaseException as error:  # of a signal's handler while it waited
        raised = error
    owned: Any = _turn
    if owned._is_owned():
        _depth += 1
        for ref, _ in _stores.copy().values():  # without memory for it, no more are held
            store = ref()
            if store is not None:
                _held.append(store)
                store._fork_before()
    if raised is not None:
        raise raised


def _in_parent() -> None:
    global _depth, _late
    owned: Any = _turn
    if not owned._is_owned():  # `_before` could not begin
        return
    raised: BaseException | None = None
    _depth -= 1
    held: list[Any] = _held
    if not _depth:
        for store in held:
            try:
                store._fork_parent()
            except BaseException as error:
                raised = error
        held.clear()
    late: Any = None
    if not _depth and _late:
        try:
            late, _late = _late, []  # while no other thread forks
        except MemoryError as error:  # at the end of the next
            raised = error
    owned.release()  # as `_turn` it would be a bound method, which takes memory
    while late:
        try:
            late.pop()()
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised


def _in_child() -> None:
    global _depth, _turn
    raised: BaseException | None = None
    _depth = 0
    held: list[Any] = _held
    for store in held:
        try:
            store._fork_child()
        except BaseException as error:
            raised = error
    held.clear()
    try:
        mine = os.getpid()
        for ref, process in _stores.copy().values():  # `_before` was cut short, or never called
            store = ref()
            if store is not None and process != mine:  # else made by a hook that came before ours
                store._fork_child()
    except BaseException as error:
        raised = error
    try:
        _turn = RLock()
    except BaseException as error:
        raised = error
    hooks: list[Any] = _hooks
    late: list[Any] = _late
    at = 0
    while at < len(hooks):
        try:
            insist(hooks[at])
        except BaseException as error:
            raised = error
        at += 1
    while late:
        try:
            late.pop()()
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
