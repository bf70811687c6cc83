# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""ObjectStore: the packed store's index, over references to Python objects.

The rare verbs; the frequent ones are hand-written in ``_quick.c`` and put into the class here. The GIL is
the lock, or the critical section of the store (``_alone.h``): what may run Python code, or let go of a
reference, lies before or after the changes to the index, never between.
"""
cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy

from ._refs cimport *
from .errors import BudgetError, ClosedError
from .housekeeper import keep
from .memory import MOST, copy_needed, refused
from .stats import ObjectEntry
from .units import seconds_of

__all__ = ["FRONT", "ObjectStore", "smallest"]

cdef tuple KINDS = ("free", "entries", "extents", "buckets", "overflow", "directory", "ring",
                    "pending", "head")  # in the order of enum gb_kind
from ._packed import UNSET


def smallest():
    """The smallest reservation, in bytes."""
    return gb_refs_smallest()


cdef class ObjectStore:
    """References in a reservation of address space, and the verbs on them. See ``ObjectCache``."""

    cdef gb_refs refs  # first: _quick.c knows it lies there
    cdef Py_buffer view
    cdef bint mapped
    cdef object map, clock, weigher
    cdef dict flights
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        if <char *>&self.refs - <char *><void *>self != sizeof(gb_quick_store) - sizeof(gb_refs):
            raise SystemError("ObjectStore does not begin with its refs")

    def _attach(self, map, *, seed, clock, ttl, idle, double jitter, uint32_t max_entries,
                uint64_t max_weight, weigh, dict flights, housekeeping):
        """Formats a reservation (a writable buffer of zeros, page-aligned) and opens the store."""
        cdef gb_refs *r = &self.refs
        if r.born:
            raise RuntimeError("the cache was initialised already: __init__ may run once")
        self.clock, self.weigher = clock, weigh
        self.flights, r.flights = flights, <PyObject *>flights
        r.seed = int.from_bytes(seed, "little")
        gb_clock_start(&r.clock, NULL if clock is None else <PyObject *>self.clock, <PyObject *>ttl,
                       <PyObject *>idle, jitter, r.seed)
        r.weigh = NULL if weigh is None else <PyObject *>self.weigher
        r.max_entries, r.max_weight, r.keep = max_entries, max_weight, housekeeping
        PyObject_GetBuffer(map, &self.view, PyBUF_WRITABLE)
        if gb_refs_format(r, self.view.buf, self.view.len, GB_CLOCK_HEAD_START) != GB_OK:
            PyBuffer_Release(&self.view)
            raise ValueError(f"a reservation of {self.view.len} bytes is too small, or too large")
        self.map, self.mapped = map, True
        r.born = r.open = True

    def __dealloc__(self):
        if self.refs.open:
            self.refs.open = False
            gb_bulk_drain(&self.refs.index.arena)
        gb_refs_hush(&self.refs)  # no cursor is left: each holds the store
        if self.mapped:
            self.mapped = False
            PyBuffer_Release(&self.view)

    def close(self):
        """Lets go of every key and value, and of the memory. Any other use then raises ClosedError."""
        map = self._emptied()
        if map is not None:
            map.close()

    @cython.critical_section
    def _emptied(self):
        """The memory, once nothing lies in it; None: it is another's to close."""
        if not self.refs.open:
            return None
        self.refs.open, self.refs.kinds = False, 0
        gb_bulk_drain(&self.refs.index.arena)
        gb_refs_hush(&self.refs)
        if not self.mapped:  # a destructor came here before
            return None
        self.mapped = False
        map = self.map
        PyBuffer_Release(&self.view)
        self.map = None
        return map

    @property
    @cython.critical_section
    def closed(self):
        """Whether the cache is closed (or was never initialised)."""
        return not self.refs.open

    def __getitem__(self, key):
        return gb_quick_item(<PyObject *>self, <PyObject *>key)

    def __setitem__(self, key, value):
        gb_quick_write(&self.refs, <PyObject *>key, <PyObject *>value, NULL, False)

    def __delitem__(self, key):
        if not gb_quick_remove(&self.refs, <PyObject *>key, GB_CAUSE_DELETE):
            gb_args_key_error(<PyObject *>key)

    def __contains__(self, key):
        cdef gb_quick_seen seen
        return gb_quick_look(&self.refs, <PyObject *>key, &seen) == 1

    @cython.critical_section
    def __len__(self):
        gb_refs_opened(&self.refs)
        return self.refs.index.table.root.count

    def __iter__(self):
        return ObjectWalk(self, 0)

    def _walk(self, int what):
        """An iterator over a snapshot: 0 keys, 1 values, 2 pairs."""
        return ObjectWalk(self, what)

    def peek(self, key, default=None):
        """The value of `key`, or `default`; leaves order and stats as they are."""
        cdef PyObject *value = gb_quick_read(&self.refs, <PyObject *>key, GB_QUICK_PEEK)
        return default if is_miss(value) else owned(value)

    def pop(self, key, default=UNSET):
        """Removes `key` and returns its value; `default`, or KeyError, if it is absent. Atomic."""
        cdef PyObject *value = gb_quick_read(&self.refs, <PyObject *>key, GB_QUICK_TAKE)
        if not is_miss(value):
            return owned(value)
        if default is UNSET:
            gb_args_key_error(<PyObject *>key)
        return default

    def popitem(self):
        """Removes the least recently used entry; its key and value. KeyError if there is none."""
        return gb_quick_oldest(&self.refs)

    def setdefault(self, key, default=None):
        """The value of `key`; if it is absent, writes `default` and returns it. Atomic."""
        cdef PyObject *value
        for _ in range(1000):
            value = gb_quick_read(&self.refs, <PyObject *>key, GB_QUICK_READ)
            if not is_miss(value):
                return owned(value)
            if gb_quick_write(&self.refs, <PyObject *>key, <PyObject *>default, NULL, True):
                return default
        raise RuntimeError("the key is neither absent nor there: its __eq__ does not say the same twice")

    def _clear(self, reserve):
        """Goes on in an empty reservation, ``reserve(max_entries)``; lets go of all that was in the old one."""
        cdef gb_refs *r = &self.refs
        cdef uint64_t now = 0
        cdef uint32_t entries
        gb_clock_now(&r.clock, True, &now)
        old = None
        while old is None:  # whatever ran meanwhile may have resized it
            with cython.critical_section(self):
                gb_refs_opened(r)
                entries = r.max_entries
            fresh = reserve(entries)
            old = self._begin_anew(fresh, entries, now)
            if old is None:
                fresh.close()
        old.close()

    @cython.critical_section
    def _begin_anew(self, fresh, uint32_t entries, uint64_t now):
        """What it was in before; None, if `fresh` is not made for so many any more."""
        cdef gb_refs *r = &self.refs
        cdef gb_refs_aside aside
        cdef gb_arena old
        cdef Py_buffer view, larger
        cdef uint64_t count
        gb_args_void_all(r.flights)  # first: it may let others in
        if not r.open or r.max_entries != entries:
            return None
        PyObject_GetBuffer(fresh, &larger, PyBUF_WRITABLE)
        old, view, self.view = r.index.arena, self.view, larger
        count = r.index.table.root.count
        gb_refs_format(r, self.view.buf, self.view.len, now)
        gb_refs_begin(&aside)
        gb_refs_cleared(r, count, &aside)
        before, self.map = self.map, fresh
        gb_bulk_drain(&old)
        PyBuffer_Release(&view)
        gb_refs_release(r, &aside)
        return before

    def ttl(self, key):
        """Seconds until `key` expires, None if it never does. KeyError if it is absent."""
        cdef gb_quick_seen seen
        if not gb_quick_look(&self.refs, <PyObject *>key, &seen):
            gb_args_key_error(<PyObject *>key)
        return (seen.due - seen.now) / 1000.0 if seen.due else None

    def entry(self, key):
        """What is known of `key` without using it: an `ObjectEntry`. KeyError if it is absent."""
        cdef gb_quick_seen seen
        if not gb_quick_look(&self.refs, <PyObject *>key, &seen):
            gb_args_key_error(<PyObject *>key)
        left = (seen.due - seen.now) / 1000.0 if seen.due else None
        return ObjectEntry(None if self.weigher is None else seen.weight, left,
                           seen.idle / 1000.0 if seen.idle else None)

    def touch(self, key, ttl=UNSET):
        """Gives `key` the cache's own TTL again, or `ttl`; counts as use. False if it is absent.

        `ttl`: seconds, a timedelta, or None for never.
        """
        return gb_quick_touch(&self.refs, <PyObject *>key,
                              NULL if ttl is UNSET else <PyObject *>ttl) == 1

    def incr(self, key, delta=1, initial=0):
        """Adds `delta` to the int at `key` and returns the sum; an absent key counts from `initial`.

        Atomic. Keeps the deadline; a new entry gets the cache's own TTL. The sum is weighed as what is set.
        TypeError if the value is not an int (a bool is not), which stays as it was.
        """
        for name, number in (("delta", delta), ("initial", initial)):
            if type(number) is not int:
                raise TypeError(f"incr: {name}={number!r} is not an int")
        return gb_quick_incr(&self.refs, <PyObject *>key, <PyObject *>delta, <PyObject *>initial)

    def expire(self):
        """Removes every entry that is due; how many."""
        cdef gb_refs *r = &self.refs
        cdef uint64_t before, now = 0
        gb_clock_now(&r.clock, True, &now)
        with cython.critical_section(self):
            gb_refs_opened(r)
            before = r.counters.expirations
        while self._expire(now):
            PyErr_CheckSignals()
        with cython.critical_section(self):
            return r.counters.expirations - before

    @cython.critical_section
    def _expire(self, uint64_t now):
        """A slice of those that are due; True if there may be more."""
        return self.refs.open and gb_put_expire(&self.refs, now)

    @cython.critical_section
    def check(self):
        """Walks everything and compares every invariant; AssertionError names the broken one."""
        cdef gb_fault fault
        gb_refs_opened(&self.refs)
        cdef bint sound = gb_refs_check(&self.refs, &fault)
        if sound and self.refs.queue != NULL:
            sound = gb_queue_check(self.refs.queue, &fault)
        if not sound:
            raise AssertionError(f"{fault.rule.decode()}: at {fault.at}, want {fault.want}, "
                                 f"got {fault.got}")

    @cython.critical_section
    def _work(self, uint32_t slices):
        """The housekeeper's door: due entries, for a moment; True if more is waiting."""
        cdef gb_refs *r = &self.refs
        cdef uint64_t now
        if not r.open or r.clock.asks != NULL:
            return False
        now = gb_clock_exact(&r.clock)
        while slices and r.open and gb_put_expire(r, now):
            slices -= 1
            if gb_clock_exact(&r.clock) != now:  # a millisecond has begun: others' turn
                return True
        return False

    def _forget(self):
        """Empties it, and begins to count hits and misses anew: functools' cache_clear."""
        self.clear()
        with cython.critical_section(self):
            self.refs.counters.hits = self.refs.counters.misses_absent = 0
            self.refs.counters.misses_expired = 0

    def _fork_before(self):
        """Nothing of ours is held across a fork."""

    _fork_parent = _fork_before

    def _fork_child(self):
        gb_alone_reborn(<PyObject *>self)

    def _weighs(self):
        return self.weigher is not None

    def _once(self, key):
        """What stands for the key while it is loaded: a key that is not hashed again."""
        return gb_memo_name(<PyObject *>key)

    def _stale(self, key, default, bint serve):
        """The value of `key`, also past its deadline while it is kept; `serve`: that is use, and counted."""
        cdef PyObject *value = gb_quick_read(&self.refs, <PyObject *>key, GB_QUICK_STALE if serve else GB_QUICK_KEPT)
        return default if is_miss(value) else owned(value)

    def _land(self, key, value, ttl, flight, uint32_t stale, bint over=False):
        """Stores what a flight loaded, unless it was voided; whether it did. `stale`: ms. `over`: also what is here."""
        return gb_quick_land(&self.refs, <PyObject *>key, <PyObject *>value,
                             NULL if ttl is UNSET else <PyObject *>ttl, <PyObject *>flight, stale, over) == 1

    def _invalidate(self, key):
        """Removes what changed elsewhere; whether it was here."""
        return gb_quick_remove(&self.refs, <PyObject *>key, GB_CAUSE_INVALIDATE) == 1

    def _own_ttl(self):
        """Seconds an entry lives where a write does not say; None: for ever."""
        return self.refs.clock.ttl / 1000.0 or None

    @cython.critical_section
    def _flight(self, key):
        """The flight of the key, or None."""
        return flight_of(last_of(self.flights, hash(key)), key, None)

    @cython.critical_section
    def _board(self, key, mine, over):
        """The flight of the key: the one that is there; `mine`, if there is none, or `over`."""
        return board(self.flights, key, mine, over)

    @cython.critical_section
    def _void(self, key):
        """The key is changed: what a flight under way loads is not to be stored."""
        return gb_args_void(self.refs.flights, <PyObject *>key)

    @cython.critical_section
    def _leave(self, flight, bint loaded, bint failed):
        """Takes a flight off the list, if it is on it."""
        self.refs.counters.loads += loaded
        self.refs.counters.load_errors += failed
        leave(self.flights, flight)

    @cython.critical_section
    def _eager(self):
        """Whether somebody is to be told of what expires."""
        return (self.refs.kinds & 1 << GB_EVENT_EXPIRE) != 0

    @cython.critical_section
    def _timed(self):
        """Whether any entry has a TTL."""
        return self.refs.open and self.refs.index.wheel.root.count > 0

    @cython.critical_section
    def _figures(self):
        """Everything that is counted: (counters, ledger in bytes, sizes, max_steps)."""
        gb_refs_opened(&self.refs)
        return figures_of(&self.refs)

    @cython.critical_section
    def _limit(self, uint32_t max_entries, uint64_t max_weight):
        """Sets the bounds, evicts down to them."""
        cdef gb_refs *r = &self.refs
        cdef uint64_t now = 0
        gb_clock_now(&r.clock, True, &now)
        gb_refs_opened(r)
        r.max_entries, r.max_weight = max_entries, max_weight
        gb_put_fit(r, now)

    def _reserve(self, uint64_t length, fresh=None):
        """Makes the reservation longer: in place, which needs the GIL, or as a copy into `fresh`."""
        with cython.critical_section(self):
            gb_refs_opened(&self.refs)
            if length <= <uint64_t>self.view.len:
                return
        if fresh is None:
            try:
                self._stretch(int(length), self.map)
            except OSError as error:
                raise refused(error, length) from error
        else:
            self._move(fresh)

    def _stretch(self, length, map):
        """No Python code may run meanwhile: the collector rests, and mmap.resize is called as it is."""
        cdef bint collects = PyGC_Disable()
        try:
            PyBuffer_Release(&self.view)
            try:
                map.resize(length)
            finally:
                PyObject_GetBuffer(map, &self.view, PyBUF_WRITABLE)
            gb_refs_rebase(&self.refs, self.view.buf)
            gb_arena_grow(&self.refs.index.arena, <gb_ref>(self.view.len // 8 - 1))
        finally:
            gb_refs_rebase(&self.refs, self.view.buf)
            if collects:
                PyGC_Enable()

    @cython.critical_section
    def _move(self, fresh):
        cdef Py_buffer before
        if not self.refs.open or len(fresh) <= self.view.len:
            return
        before = self.view
        PyObject_GetBuffer(fresh, &self.view, PyBUF_WRITABLE)
        gb_refs_copy(&self.refs, self.view.buf)
        gb_refs_rebase(&self.refs, self.view.buf)
        gb_arena_grow(&self.refs.index.arena, <gb_ref>(self.view.len // 8 - 1))
        self.map = fresh
        PyBuffer_Release(&before)

    def _ring(self, room): pass  # what is recorded takes no entry's room

    @cython.critical_section
    def _listen(self, uint32_t kinds, bint values, uint64_t room):
        """Records these kinds from now on (bits; 0: none), the last `room` of them; with values, or without."""
        gb_refs_listen(&self.refs, kinds, values, room)

    @cython.critical_section
    def _cursor(self, since, uint32_t kinds, prefix, bint values):
        """Reads events of these kinds whose keys begin with `prefix`: from now on, or those after `since`."""
        return ObjectCursor(self, since, kinds, prefix, values)

    @cython.critical_section
    def _seq(self):
        """The number of the last event, 0 if there was none."""
        return 0 if self.refs.queue == NULL else self.refs.queue.last

    @cython.critical_section
    def _bells(self, uintptr_t bell, bint add):
        """A ``struct gb_bell`` that is rung after every change that is recorded; or is no more."""
        cdef gb_queue *q = self.refs.queue  # of a closed one, too, until all is delivered
        if add and q == NULL:
            q = gb_refs_queue(&self.refs)
        if add and not gb_bell_add(&q.bells, <gb_bell *>bell):
            raise MemoryError
        if not add and q != NULL:
            gb_bell_drop(&q.bells, <gb_bell *>bell)

    @cython.critical_section
    def _hear(self, fn):
        """Calls ``fn()`` after every change that is recorded, in the thread that made it; None: no more."""
        cdef gb_queue *q = self.refs.queue
        if q == NULL and fn is not None:
            q = gb_refs_queue(&self.refs)
        if q != NULL:
            gb_queue_hear(q, NULL if fn is None else <PyObject *>fn)


include "_object_readers.pxi"
include "_board.pxi"
