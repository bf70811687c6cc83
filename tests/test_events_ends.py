"""Events where a process forks or ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest
from children import isolated, survives
from heard import both, descriptors, in_thread, joined, pairs, told, until

from gbcache import Event

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

# --- forks ---------------------------------------------------------------------------------------


@forks
@both
@isolated
def test_a_child_has_no_readers_and_may_have_its_own(make: Any) -> None:
    cache, got = make(room=2000), []
    subs = [cache.subscribe(got.append, delivery=d) for d in ("thread", "inline")]
    watch = cache.watch()
    cache["k"] = 1
    assert until(lambda: len(got) == 2)

    def child() -> None:
        before = len(got)
        cache["child"] = 1
        time.sleep(0.02)
        assert len(got) == before and all(s.closed for s in subs) and watch.closed
        assert list(watch) == [] and not watch.read(timeout=1)
        assert pairs(cache.changes(kinds="set")) == [("set", "k"), ("set", "child")], (
            "the record is its own"
        )
        mine: list[Event] = []
        with (
            cache.watch() as own,
            cache.subscribe(mine.append),
            cache.subscribe(mine.append, delivery="inline"),
        ):
            cache["own"] = 1
            assert pairs(told(own)) == [("set", "own")] and until(lambda: len(mine) == 2)
        for reader in (*subs, watch):
            reader.close()
        cache.check()
        cache.close()

    survives(child)
    cache["parent"] = 1
    assert until(lambda: len(got) == 4) and pairs(told(watch)) == [("set", "k"), ("set", "parent")]


@forks
@both
@isolated
def test_forty_generations(make: Any) -> None:
    """Each subscribes anew: nothing of an ancestor's stays registered."""
    cache = make()
    for _ in range(40):
        got: list[Event] = []
        sub = cache.subscribe(got.append)
        cache["k"] = 1
        assert until(lambda got=got: len(got) == 1)
        assert sub.delivered == 1
        child = os.fork()
        if child:
            status = os.waitpid(child, 0)[1]
            assert status == 0
            os._exit(0)


@forks
@both
@isolated
def test_forks_while_others_write_and_read(make: Any) -> None:
    cache, got, stop = make(room=2000), [], []
    sub = cache.subscribe(lambda event: got.append(event.seq))
    watch = cache.watch()

    def write() -> None:
        while not stop:
            cache[len(got) % 50] = 1

    threads = [in_thread(write), in_thread(write), in_thread(lambda: sum(1 for _ in watch))]

    def child() -> None:
        mine: list[Event] = []
        with cache.watch(kinds="delete") as own, cache.subscribe(mine.append, kinds="delete"):
            cache["mine"] = 1
            del cache["mine"]
            assert ("delete", "mine") in pairs(own.read(timeout=2)) and until(lambda: mine)
        cache.check()

    for _ in range(8):
        survives(child)
    stop.append(1)
    cache.close()
    joined(*threads)
    assert until(lambda: sub.closed)  # what was recorded is still delivered
    assert got == sorted(got) and len(got) == len(set(got))


@forks
@both
@pytest.mark.parametrize("delivery", ["thread", "inline"])
@isolated
def test_a_fork_within_a_subscriber_whose_child_goes_on(make: Any, delivery: str) -> None:
    """Inline the child comes back from the call it was in; in the thread it has only that thread."""
    cache, parent, failed, children = make(), os.getpid(), [], []
    sys.unraisablehook = failed.append

    def hear(event: Event) -> None:
        if event.key == "fork" and os.getpid() == parent:
            children.append(os.fork())
            if not children[-1] and delivery == "thread":
                cache["child"] = 1
                os._exit(cache["child"] - 1)

    cache.subscribe(hear, delivery=delivery)
    cache["fork"] = 1
    if os.getpid() != parent:
        assert not failed, failed
        mine: list[Event] = []
        with cache.subscribe(mine.append, delivery="inline"):
            cache["child"] = 1
        assert pairs(mine) == [("set", "child")]
        return
    assert until(lambda: children) and os.waitpid(children[0], 0)[1] == 0
    cache["after"] = 1
    assert not failed


@forks
@both
@pytest.mark.parametrize("ends", ["returns", "exits"])
@isolated
def test_a_child_that_a_subscriber_forked_ends_with_it(make: Any, ends: str) -> None:
    """In the thread: else it would sleep on its parent's descriptor, and take its parent's news."""
    cache, got, children = make(room=5000), [], []

    def hear(event: Event) -> None:
        if event.key != "fork":
            got.append(event.key)
            return
        children.append(os.fork())
        if not children[-1]:
            cache["child"] = 1
            if ends == "exits":
                sys.exit(1)

    sys.unraisablehook = lambda args: None
    cache.subscribe(hear)
    cache["fork"] = 1
    assert until(lambda: children)
    gone: list[int] = []
    assert until(lambda: gone or gone.append(os.waitpid(children[0], os.WNOHANG)[0]) or gone.pop())
    for i in range(200):
        cache[i] = i
        assert until(lambda i=i: got == [*range(i + 1)], 5), "a ring was taken by the child"


@forks
@both
@isolated
def test_a_child_keeps_no_descriptor_of_its_parents_readers(make: Any) -> None:
    def child(before: int) -> None:
        nonlocal watch, sub
        watch = sub = None
        assert descriptors() <= before + 1  # of os.listdir's own, or of a thread to come

    cache = make()
    before = descriptors()
    watch, sub = [cache.watch() for _ in range(5)], cache.subscribe(print, kinds="clear")
    survives(lambda: child(before))


# --- the interpreter's end -----------------------------------------------------------------------

HEAD = """
import asyncio, gbcache, sys, threading, time
cache = gbcache.{title}
got = []
"""
ENDS = {
    "thread": "cache.subscribe(got.append)\nfor i in range(20000): cache[i % 99] = i\n",
    "slow": "cache.subscribe(lambda e: time.sleep(0.02))\nfor i in range(20000): cache[i % 99] = i\n",
    "stalled": "cache.subscribe(lambda e: time.sleep(600))\ncache['k'] = 1\ntime.sleep(0.05)\n",
    "inline": "cache.subscribe(got.append, delivery='inline')\nfor i in range(5000): cache[i % 99] = i\n",
    "raises": "sys.unraisablehook = lambda _: None\ncache.subscribe(lambda e: 1 / 0)\ncache['k'] = 1\n",
    "closed": "cache.subscribe(got.append)\nfor i in range(20000): cache[i % 99] = i\ncache.close()\n",
    "watch": "w = cache.watch()\nthreading.Thread(target=lambda: list(w), daemon=True).start()\n"
    "for i in range(20000): cache[i % 99] = i\n",
    "watch waits": "w = cache.watch()\nthreading.Thread(target=w.read, daemon=True).start()\ntime.sleep(0.05)\n",
    "watch dropped late": "import builtins\nbuiltins.w = cache.watch()\ncache['k'] = 1\n",
    "asyncio": "async def main():\n    cache.subscribe(got.append, delivery='asyncio')\n"
    "    for i in range(20000): cache[i % 99] = i\n    await asyncio.sleep(0)\nasyncio.run(main())\ncache['k'] = 1\n",
    "asyncio coroutine": "async def main():\n    async def hear(e): await asyncio.sleep(600)\n"
    "    cache.subscribe(hear, delivery='asyncio')\n    cache['k'] = 1\n    await asyncio.sleep(0.02)\n"
    "asyncio.run(main())\n",
    "async for": "async def main():\n    async def hear():\n        async for e in cache.watch(): got.append(e)\n"
    "    task = asyncio.create_task(hear())\n    cache['k'] = 1\n    await asyncio.sleep(0.02)\nasyncio.run(main())\n",
    "writers": "cache.subscribe(got.append, values=True)\ndef work():\n    while True: cache['k'] = [1] * 99\n"
    "for _ in range(3): threading.Thread(target=work, daemon=True).start()\ntime.sleep(0.1)\n",
    "at exit": "import atexit\natexit.register(lambda: cache.set('k', 2))\n"
    "cache.subscribe(got.append)\ncache['k'] = 1\n",
    "cycle": "cache.me = cache.subscribe(lambda e, c=cache: c.get('k'))\ncache['k'] = 1\ndel cache\n",
}
TELLS = 'import gbcache; print(hasattr(gbcache.ObjectCache, "_cursor"))'


@pytest.mark.parametrize("title", ["Cache('4MB', ttl=9)", "ObjectCache(5000, ttl=9)"])
@pytest.mark.parametrize("end", ENDS)
def test_the_end_is_quick_and_quiet(end: str, title: str) -> None:
    import gbcache

    if title.startswith("Object") and not hasattr(gbcache.ObjectCache, "_cursor"):
        pytest.skip("ObjectCache tells nothing yet")
    code = HEAD.format(title=title) + ENDS[end] + "end = time.monotonic()\n"
    code += "import atexit\nprint(repr(time.time()), flush=True)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    took = time.time() - float(done.stdout)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert took < 10.0, f"{took} s from the last line to the end"


def test_what_is_pending_at_the_end_is_delivered() -> None:
    code = """
import gbcache, sys
cache = gbcache.Cache("4MB", events="1MiB")
cache.subscribe(lambda event: print(event.key))
for i in range(2000): cache[i] = i
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(i) for i in range(2000)] and done.stderr == ""


@both
def test_a_watch_that_is_closed_between_two_steps_of_its_reader(make: Any) -> None:
    cache = make()
    watch = cache.watch()
    cache["k"] = 1

    class Closing(list[Any]):
        """Another thread closes the watch as its reader looks whether there is more."""

        def __len__(self) -> int:
            watch.close()
            return super().__len__()

    watch._batch = Closing(watch.read())
    assert [event.key for event in watch] in ([], ["k"])
    with pytest.raises(StopIteration):
        next(watch)
