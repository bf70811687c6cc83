# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""PackedStore: buffer in, lock at the door, bytes out.

The rare verbs; the frequent ones are hand-written in ``_hot.c`` and put into the class here. Between
``gb_door_enter`` and ``gb_door_leave`` only C runs: no Python object is touched there.
"""
cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_RawFree
from cpython.ref cimport Py_DECREF
from libc.string cimport memcpy

from ._gb cimport *

from .codec import decode_key, encode_key
from .errors import BudgetError, ClosedError
from .housekeeper import keep
from .stats import Entry
from .units import seconds_of

cdef extern from "Python.h":
    PyObject *PyErr_Occurred()
    int PyErr_CheckSignals() except -1
    int PyGC_Disable()
    int PyGC_Enable()

__all__ = ["BUILD", "KEY_MAX", "UNSET", "PackedStore", "smallest"]

KEY_MAX = GB_KEY_MAX
BUILD = {
    "tiny": GB_WINDOW_BYTES != 4096,
    "debug": GB_DEBUG,
    "window_bytes": GB_WINDOW_BYTES,
    "steps_max": GB_STEPS_MAX,
}
cdef tuple OPS = ("get", "set", "long", "remove", "expire", "walk", "resize")
cdef tuple KINDS = ("free", "entries", "extents", "buckets", "overflow", "directory", "ring",
                    "pending", "head")  # in the order of enum gb_kind
UNSET = object()


def smallest():
    """The smallest image, in bytes."""
    return gb_room_smallest()


cdef inline object owned(PyObject *made):
    """A new reference as Cython counts it."""
    cdef object result = <object>made
    Py_DECREF(result)
    return result


@cython.no_gc_clear  # the buffer must outlive everything that may still read it
cdef class PackedStore:
    """An image in a writable buffer, and the verbs on it. Subclassed by ``Cache``."""

    cdef gb_door door  # first: _hot.c knows it lies there
    cdef Py_buffer view
    cdef object map, clock, encode, decode
    cdef dict flights
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        if <char *>&self.door - <char *><void *>self != sizeof(gb_hot_store) - sizeof(gb_door):
            raise SystemError("PackedStore does not begin with its door")
        gb_lock_init(&self.door.lock)

    def _attach(self, map, *, seed, clock, ttl, idle, double jitter, uint32_t max_entries, codec,
                dict flights, housekeeping):
        """Formats an image in `map` (a writable buffer, page-aligned) and opens the door."""
        cdef uint64_t words[2]
        cdef gb_door *d = &self.door
        cdef const unsigned char[:] bytes16 = seed
        if d.born:
            raise RuntimeError("the cache was initialised already: __init__ may run once")
        memcpy(words, &bytes16[0], 16)
        self.clock, self.encode, self.decode = clock, codec.encode, codec.decode
        d.encode, d.decode = <PyObject *>self.encode, <PyObject *>self.decode
        self.flights, d.flights = flights, <PyObject *>flights
        gb_clock_start(&d.clock, NULL if clock is None else <PyObject *>self.clock, <PyObject *>ttl,
                       <PyObject *>idle, jitter, words[0])
        self._hold_buffer(map)
        cdef gb_err err = gb_room_format(&d.store, self.view.buf, self.view.len, words,
                                         GB_CLOCK_HEAD_START)
        if err:
            PyBuffer_Release(&self.view)
            gb_door_raise(d, err, NULL)
        d.store.head.max_entries = max_entries
        self.map = map
        d.keep = housekeeping
        d.born = d.open = True

    def _hold_buffer(self, map):
        PyObject_GetBuffer(map, &self.view, PyBUF_WRITABLE)
        if <size_t>self.view.buf % 4096:
            PyBuffer_Release(&self.view)
            raise ValueError("the image's buffer does not begin on a page")

    def __dealloc__(self):
        if self.door.open:
            self.door.open = False
            PyBuffer_Release(&self.view)

    def close(self):
        """Gives the image's memory back. Closing twice is allowed; any other use raises ClosedError.

        Waits for long copies under way in other threads.
        """
        cdef gb_door *d = &self.door
        if not d.open: return
        gb_door_enter(d)
        d.open = False
        gb_door_leave(d, GB_OP_RESIZE)
        while d.outsiders:
            gb_door_rest()
        PyBuffer_Release(&self.view)
        map, self.map = self.map, None
        map.close()

    @property
    def closed(self):
        """Whether the cache is closed (or was never initialised)."""
        return not self.door.open

    def __getitem__(self, key):
        return gb_hot_item(<PyObject *>self, <PyObject *>key)

    def __setitem__(self, key, value):
        gb_hot_write(&self.door, <PyObject *>key, <PyObject *>value, NULL, False)

    def __delitem__(self, key):
        if not gb_hot_delete(&self.door, <PyObject *>key):
            gb_args_key_error(<PyObject *>key)

    def __contains__(self, key):
        return gb_hot_has(&self.door, <PyObject *>key) == 1

    def __len__(self):
        cdef gb_door *d = &self.door
        gb_door_enter(d)
        cdef uint32_t count = d.store.head.table.count
        gb_door_leave(d, GB_OP_GET)
        return count

    def __iter__(self):
        return PackedWalk(self, 0)

    def _walk(self, int what):
        """An iterator over a snapshot: 0 keys, 1 values, 2 pairs."""
        return PackedWalk(self, what)

    def peek(self, key, default=None):
        """The value of `key`, or `default`; leaves order and stats as they are. Cost: as `get`."""
        cdef PyObject *value = gb_hot_read(&self.door, <PyObject *>key, GB_HOT_PEEK)
        return default if is_miss(value) else owned(value)

    def pop(self, key, default=UNSET):
        """Removes `key` and returns its value; `default`, or KeyError, if it is absent. Atomic."""
        cdef PyObject *value = gb_hot_read(&self.door, <PyObject *>key, GB_HOT_TAKE)
        if not is_miss(value):
            return owned(value)
        if default is UNSET:
            gb_args_key_error(<PyObject *>key)
        return default

    def popitem(self):
        """Removes the least recently used entry; its key and value. KeyError if there is none."""
        cdef PyObject *value
        while True:
            name = gb_verbs_oldest(&self.door)
            value = gb_hot_read(&self.door, <PyObject *>name, GB_HOT_TAKE)
            if not is_miss(value):
                return name, owned(value)

    def setdefault(self, key, default=None):
        """The value of `key`; if it is absent, writes `default` and returns it. Atomic."""
        cdef PyObject *value
        while True:
            value = gb_hot_read(&self.door, <PyObject *>key, GB_HOT_READ)
            if not is_miss(value):
                return owned(value)
            if gb_hot_write(&self.door, <PyObject *>key, <PyObject *>default, NULL, True):
                return default

    def clear(self):
        """Removes everything at once: the image is formatted anew. Cost: constant."""
        cdef gb_door *d = &self.door
        cdef gb_err err = GB_BUSY
        cdef uint64_t now = 0
        gb_args_void_all(d.flights)
        gb_clock_now(&d.clock, True, &now)
        while err == GB_BUSY:  # a long value is being read or written
            gb_door_enter(d)
            err = gb_room_clear(&d.store, now)
            gb_door_leave(d, GB_OP_REMOVE)
            if err == GB_BUSY:
                gb_door_rest()

    def ttl(self, key):
        """Seconds until `key` expires, None if it never does. KeyError if it is absent."""
        cdef gb_verbs_seen look
        gb_verbs_look(&self.door, <PyObject *>key, &look)
        return (look.due - look.now) / 1000.0 if look.due else None

    def entry(self, key):
        """What is known of `key` without using it: an `Entry`. KeyError if it is absent."""
        cdef gb_verbs_seen look
        gb_verbs_look(&self.door, <PyObject *>key, &look)
        left = (look.due - look.now) / 1000.0 if look.due else None
        return Entry(look.key_bytes, look.value_bytes, left,
                     look.idle / 1000.0 if look.idle else None)

    def touch(self, key, ttl=UNSET):
        """Gives `key` the cache's own TTL again, or `ttl`; counts as use. False if it is absent.

        `ttl`: seconds, a timedelta, or None for never.
        """
        return gb_verbs_touch(&self.door, <PyObject *>key,
                              NULL if ttl is UNSET else <PyObject *>ttl) == 1

    def incr(self, key, delta=1, initial=0):
        """Adds `delta` to the int at `key` and returns the sum; an absent key counts from `initial`.

        Atomic. Keeps the deadline; a new entry gets the cache's own TTL. TypeError if the value is not
        an int (a bool is not), OverflowError beyond 64 bits; both leave the value as it was.
        """
        cdef long long total = 0
        for name, number in (("delta", delta), ("initial", initial)):
            if type(number) is not int:
                raise TypeError(f"incr: {name}={number!r} is not an int")
        gb_verbs_incr(&self.door, <PyObject *>key, delta, initial, &total)
        return total

    def expire(self):
        """Removes every entry that is due; how many. In slices, the GIL released."""
        cdef gb_door *d = &self.door
        cdef uint64_t before, now = 0
        gb_clock_now(&d.clock, True, &now)
        gb_door_enter(d)
        before = d.store.head.counters.expirations
        gb_door_leave(d, GB_OP_EXPIRE)
        while self.door.open and gb_door_work(d, now, 256):
            PyErr_CheckSignals()
        gb_door_enter(d)
        before = d.store.head.counters.expirations - before
        gb_door_leave(d, GB_OP_EXPIRE)
        return before

    def check(self):
        """Walks the whole image and compares every invariant; AssertionError names the broken one.

        Cost: in proportion to the entries, in one lock hold: for tests and for doubts.
        """
        cdef gb_fault fault
        cdef gb_door *d = &self.door
        gb_door_enter(d)
        cdef bint sound = gb_chain_check(&d.store, &fault)
        gb_door_unlock(d)  # a check's steps are nobody's worst case
        if not sound:
            raise AssertionError(f"{fault.rule.decode()}: at {fault.at}, want {fault.want}, "
                                 f"got {fault.got}")

    def _work(self, uint32_t slices):
        """The housekeeper's door: some slices of due entries; True if more is waiting."""
        cdef gb_door *d = &self.door
        if not d.open or d.clock.asks != NULL:
            return False
        return gb_door_work(d, gb_clock_exact(&d.clock), slices)

    def _stale(self, key, default):
        """The value of `key`, also past its deadline while it is kept; counts as use."""
        cdef PyObject *value = gb_hot_read(&self.door, <PyObject *>key, GB_HOT_STALE)
        return default if is_miss(value) else owned(value)

    def _land(self, key, value, ttl, flight, uint32_t stale):
        """Stores what a flight loaded, unless it was voided; whether it did. `stale`: ms."""
        return gb_hot_land(&self.door, <PyObject *>key, <PyObject *>value,
                           NULL if ttl is UNSET else <PyObject *>ttl, <PyObject *>flight, stale) == 1

    def _leave(self, key, flight, bint loaded, bint failed):
        """Takes a flight off the list, if it is still on it. Compiled: other threads do not come between."""
        cdef gb_door *d = &self.door
        if self.flights.get(key) is flight:
            del self.flights[key]
        if not d.open:
            return
        gb_door_enter(d)
        d.store.head.counters.loads += loaded
        d.store.head.counters.load_errors += failed
        gb_door_leave(d, GB_OP_GET)

    def _timed(self):
        """Whether any entry has a TTL."""
        return self.door.open and self.door.store.head.wheel.count > 0

    def _figures(self):
        """Everything that is counted: (counters, ledger in bytes, sizes, max_steps)."""
        cdef gb_door *d = &self.door
        cdef gb_counters c
        cdef uint32_t ledger[9]
        cdef uint32_t steps[7]
        cdef uint32_t count, timed, most
        cdef uint64_t keys, values, length
        gb_door_enter(d)
        c = d.store.head.counters
        memcpy(ledger, d.store.head.arena.ledger, sizeof(ledger))
        memcpy(steps, d.store.max_steps, sizeof(steps))
        keys, values = d.store.head.key_bytes, d.store.head.value_bytes
        length, count = d.store.head.length, d.store.head.table.count
        timed, most = d.store.head.wheel.count, d.store.head.max_entries
        gb_door_leave(d, GB_OP_GET)
        counters = dict(hits=c.hits, misses_absent=c.misses_absent,
                        misses_expired=c.misses_expired, sets=c.sets, replaces=c.replaces,
                        deletes=c.deletes, evictions=c.evictions, expirations=c.expirations,
                        rejects=c.rejects, clears=c.clears, moves=c.moves, loads=c.loads,
                        load_errors=c.load_errors, stale_hits=c.stale_hits)
        parts = {name: <uint64_t>ledger[i] * 8 for i, name in enumerate(KINDS)}
        parts["head"] += length - sum(parts.values())  # less than a granule, if any
        sizes = dict(entries=count, timed=timed, key_bytes=keys, value_bytes=values,
                     total=length, max_entries=most)
        return counters, parts, sizes, {op: steps[i] for i, op in enumerate(OPS)}

    def _shrink(self, uint64_t length):
        """Empties all above `length`, in slices; the mapping is as long as before."""
        cdef gb_door *d = &self.door
        cdef gb_err err = GB_AGAIN
        try:
            while err:
                gb_door_enter(d)
                err = gb_room_shrink(&d.store, length)
                gb_door_leave(d, GB_OP_RESIZE)
                if err == GB_BUSY:
                    gb_door_rest()
                elif err and err != GB_AGAIN:
                    gb_door_raise(d, err, NULL)
                PyErr_CheckSignals()
        except BaseException:
            gb_door_enter(d)
            gb_room_shrink(&d.store, d.store.head.length)  # left half done
            gb_door_leave(d, GB_OP_RESIZE)
            raise

    def _remap(self, uint64_t length, fresh=None):
        """Makes the mapping, in place or as a copy into `fresh`, as long as an image that fits already.

        No Python code may run meanwhile: the collector rests, and mmap.resize is called as it is.
        """
        cdef gb_door *d = &self.door
        cdef Py_buffer other
        cdef bint collects
        size, old = int(length), self.map
        gb_door_enter(d)
        collects = PyGC_Disable()
        try:
            if length < d.store.head.length:
                raise SystemError(f"an image of {d.store.head.length} bytes does not fit {length}")
            if fresh is None:
                PyBuffer_Release(&self.view)
                try:
                    old.resize(size)
                finally:
                    PyObject_GetBuffer(old, &self.view, PyBUF_WRITABLE)
            else:
                PyObject_GetBuffer(fresh, &other, PyBUF_WRITABLE)
                memcpy(other.buf, self.view.buf, min(<size_t>self.view.len, <size_t>other.len))
                PyBuffer_Release(&self.view)
                self.view, self.map = other, fresh
            gb_room_rebase(&d.store, self.view.buf)
            if length > d.store.head.length:
                gb_room_grow(&d.store, length)
        finally:
            gb_room_rebase(&d.store, self.view.buf)
            gb_door_leave(d, GB_OP_RESIZE)
            if collects:
                PyGC_Enable()
        if fresh is not None:
            old.close()

    def _limit(self, uint32_t max_entries):
        """Sets max_entries; evicts down to it, in slices."""
        cdef gb_door *d = &self.door
        cdef bint over = True
        while over:
            gb_door_enter(d)
            d.store.head.max_entries = max_entries
            over = max_entries and d.store.head.table.count > max_entries
            if over:
                gb_room_remove(&d.store, gb_index_victim(&d.store.index), GB_CAUSE_EVICT)
            gb_door_leave(d, GB_OP_REMOVE)

    def _fork_before(self):
        gb_door_fork_before(&self.door)

    def _fork_parent(self):
        gb_door_fork_parent(&self.door)

    def _fork_child(self):
        gb_door_fork_child(&self.door)


cdef class PackedWalk:
    """One iteration: the hashes of a moment, each looked up when its turn comes."""

    cdef PackedStore store
    cdef uint64_t *hashes
    cdef size_t at, n
    cdef int what

    def __cinit__(self, PackedStore store, int what):
        self.store, self.what = store, what
        gb_walk_snapshot(&store.door, &self.hashes, &self.n)

    def __dealloc__(self):
        PyMem_RawFree(self.hashes)

    def __iter__(self):
        return self

    def __length_hint__(self):
        return self.n - self.at

    def __next__(self):
        cdef PyObject *key = NULL
        cdef PyObject *value = NULL
        while self.at < self.n:
            self.at += 1
            if not gb_walk_next(&self.store.door, self.hashes[self.at - 1], self.what > 0,
                                &key, &value):
                continue
            if self.what == 0:
                return owned(key)
            name, held = owned(key), owned(value)
            return held if self.what == 1 else (name, held)
        raise StopIteration


cdef bint is_miss(PyObject *value) except -1:
    """Whether NULL means absent; an exception goes on."""
    if value != NULL:
        return False
    return -1 if PyErr_Occurred() != NULL else True


cdef install():
    global gb_clock_seconds
    gb_door_names.budget_error = <PyObject *>BudgetError
    gb_door_names.closed_error = <PyObject *>ClosedError
    gb_clock_seconds = <PyObject *>seconds_of
    gb_door_names.encode_key = <PyObject *>encode_key
    gb_door_names.decode_key = <PyObject *>decode_key
    gb_door_names.keep = <PyObject *>keep
    gb_hot_install(<void *>PackedStore, sizeof(gb_hot_store))


install()
