"""What a reviewer found where a cache ends in the midst of something: each test failed before its fault was mended."""

from __future__ import annotations

import os
from typing import Any

import pytest
from children import run

from gbcache import Cache

fine = ("fine\n", 0)


def said(code: str, *args: object) -> tuple[str, int]:
    """What it printed, and how it ended: some crash, where they fail."""
    done = run(code, *args)
    return done.stdout if done.stdout else done.stderr[-2000:], done.returncode


# --- a cursor that dies with the records -----------------------------------------------------------


@pytest.mark.parametrize("holder", ["value", "key", "old", "hear"])
def test_the_last_cursor_is_held_by_a_record(holder: str) -> None:
    """The collector empties the queue, and that lets go of who reads it."""
    code = """
import gc
from functools import partial

class Key:
    pass

c = gbcache.ObjectCache(100)
w = c.watch(values=True)
c["a"] = 1
c["b"] = 2
if sys.argv[1] == "value":
    c["w"] = w
elif sys.argv[1] == "key":
    k = Key()
    k.w = w
    c[k] = 1
    c.pop(k)
    del k
elif sys.argv[1] == "old":
    c["w"] = w
    del c["w"]
else:
    c._hear(partial(isinstance, w, str))
for i in range(3):
    c[i] = i
del c, w
gc.collect()
print("fine")
"""
    assert said(code, holder) == fine


# --- figures of a cache that is closed meanwhile -----------------------------------------------------


@pytest.mark.parametrize("verb", ["stats", "memory", "__repr__", "used_bytes", "max_entries"])
def test_a_cache_closed_while_it_is_asked_for_its_figures(verb: str) -> None:
    """By a collection that what is made for the answer sets off: 3.10 and 3.11 do so in the midst of it."""
    code = """
import gc
hoard = [{} for _ in range(500)]
gc.disable()
for i in range(150):
    c = gbcache.ObjectCache(10)
    c["a"] = 1
    c.watch()
    armed = [1]
    closes = lambda phase, info: c.close() if armed and not armed.clear() else None
    gc.callbacks.append(closes)
    gc.set_threshold(1 + i // 2)
    gc.enable()
    try:
        told = getattr(c, sys.argv[1])
        told = told() if callable(told) else told
    except gbcache.ClosedError:
        pass
    gc.disable()
    gc.callbacks.remove(closes)
print("fine")
"""
    assert said(code, verb) == fine


# --- a cache that outlives its watch -----------------------------------------------------------------


@pytest.mark.parametrize("make", ["Cache('1MB')", "ObjectCache()"])
def test_a_watch_that_dies_in_a_cycle_from_which_its_cache_comes_back(make: str) -> None:
    """Before 3.14 weak references are cleared first, so that the hub does not know its cache any more."""
    code = """
import gc
pool = []

class Owner:
    def __init__(self):
        self.cache = eval("gbcache." + sys.argv[1])
        self.watch = self.cache.watch()
        self.watch._asleep()
        self.me = self

    def __del__(self):
        pool.append(self.cache)

Owner()
gc.collect()
bells = [gbcache.watch.Bell(-1) for _ in range(32)]  # as many as there may be
for bell in bells:
    pool[0]._bells(bell.address, True)
pool[0]["k"] = 1
print("fine")
"""
    assert said(code, make) == fine


# --- what closes, or grows, meanwhile ----------------------------------------------------------------


HOLDS = """
hooks = []
os.register_at_fork(before=lambda: hooks and hooks[0]())  # within ours: the locks are held
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.skipif(os.environ.get("GB_EXPECT") == "asan", reason="forks beside threads")
def test_a_load_that_ends_while_its_cache_is_closed_raises_nothing() -> None:
    """It found the cache open, and waits for its lock while another thread closes it."""
    code = """
import threading, time
signal.alarm(40)
raised = []

def ends():
    try:
        c._leave(gbcache.flight._start()[0], True, False)
    except gbcache.ClosedError as error:
        raised.append(error)

def wait():
    for thread in threads:
        thread.start()
    time.sleep(0.03)

hooks.append(wait)
for _ in range(20):
    c = gbcache.Cache("1MB")
    threads = [threading.Thread(target=do) for do in (ends, ends, c.close, ends, ends)]
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    for thread in threads:
        thread.join()
assert c.closed and not raised, raised
print("fine")
"""
    done = run(code, first=HOLDS)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr[-2000:]


@pytest.mark.parametrize("step", ["before", "after"])
def test_a_first_reader_while_a_cache_is_made_smaller(step: str) -> None:
    """Its ring is there between two looks: the cache stays as it was."""

    class Watched(Cache):
        watch_now = False

        def _figures(self) -> Any:
            if self.watch_now and step == "before":
                self._watch()
            figures = super()._figures()
            if self.watch_now:
                self._watch()
            return figures

        def _watch(self) -> None:
            self.watch_now = False
            self.reader = self.watch()

    with Watched("16MB") as cache:
        cache["k"] = 1
        cache.watch_now = True
        with pytest.raises(
            ValueError, match=r"its ring of events, \d+ bytes, the smallest that works"
        ):
            cache.resize("300kB")
        assert cache.max_bytes == 16_000_000 and cache["k"] == 1
        cache["k"] = 2
        assert [event.key for event in cache.reader.read(timeout=1)] == ["k"]
        cache.check()
        cache.resize("2MB")
        cache.check()


# --- types that are not for use alone ----------------------------------------------------------------


@pytest.mark.parametrize(
    "act",
    [
        "type(iter(Cache('1MB')))(None, 0)",
        "type(iter(ObjectCache()))(None, 0)",
        "type(iter(Cache('1MB').watch()._cursor.pull(9)))(None)",
        "packed.Saver(None, 1, max_bytes=1, at=1, id=bytes(16), codec=b'')",
        "packed.load(None, 0, 1, '', 1, None)",
        "gbcache._object.grow(None)",
        "packed.PackedCursor().pull(2)",
        "packed.PackedCursor().pending()",
        "packed.PackedCursor().finish()",
        "len(packed.Batch()), packed.Batch()[0]",
        "(iter(packed.Batch()).__next__(),)",
        "packed.SealedImage().get('k')",
    ],
)
def test_what_is_made_of_nothing_is_an_error(act: str) -> None:
    code = """
from gbcache import Cache, ObjectCache, _packed as packed
try:
    eval(sys.argv[1])
except (TypeError, IndexError, StopIteration, gbcache.ClosedError):
    print("fine")
"""
    assert said(code, act) == fine


def test_a_save_that_was_ended_goes_on_no_more() -> None:
    code = """
from gbcache._packed import Saver
fd = os.open(os.devnull, os.O_WRONLY)
saver = Saver(gbcache.Cache("1MB"), fd, max_bytes=1, at=1, id=bytes(16), codec=b"")
saver.end()
for act in (lambda: saver.run(1), saver.finish, lambda: saver.written):
    try:
        act()
    except ValueError:
        print("fine")
"""
    assert said(code) == ("fine\n" * 3, 0)


def test_what_the_core_calls_outlives_its_names() -> None:
    code = """
import gc
from datetime import timedelta

c, o = gbcache.Cache("1MB"), gbcache.ObjectCache()
ours = [vars(module) for name, module in sys.modules.items() if name.partition(".")[0] == "gbcache"]
for name in ("seconds_of", "encode_key", "decode_key", "keep", "KeyLengthError"):
    for names in ours:
        names.pop(name, None)
gc.collect()
hoard = [(lambda: 7) for _ in range(1000)]
for cache in (c, o):
    cache.set("k", 1, ttl=timedelta(seconds=5))
c[(1, "two")] = 1
assert list(c) == ["k", (1, "two")]
print("fine")
"""
    assert said(code) == fine
