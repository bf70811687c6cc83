"""What a reviewer found where a cache ends in the midst of something: each test failed before its fault was mended."""

from __future__ import annotations

import pytest
from children import run

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
