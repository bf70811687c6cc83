# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""PackedStore: buffer in, lock at the door, bytes out.

The rare verbs; the frequent ones are hand-written in ``_hot.c`` and put into the class here. Between
``gb_door_enter`` and ``gb_door_leave`` only C runs: no Python object is touched there.
"""
cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport ENOMEM
from libc.string cimport memcmp, memcpy
from posix.unistd cimport getpid

import os
from array import array
from time import monotonic_ns, time, time_ns

from ._gb cimport *

from .codec import base_key, decode_key, encode_key
from .errors import BudgetError, ClosedError, ImageError, KeyLengthError
from .housekeeper import keep
from .memory import refused
from .stats import Entry
from .units import seconds_of

cdef extern from "Python.h":
    PyObject *PyErr_Occurred()
    void PyErr_Restore(PyObject *type, PyObject *value, PyObject *trace)
    void PyErr_WriteUnraisable(PyObject *fn)
    int PyErr_CheckSignals() except -1
    int PyGC_Disable()
    int PyGC_Enable()
    unsigned long PyThread_get_thread_ident() nogil

__all__ = ["BUILD", "KEY_MAX", "UNSET", "Front", "PackedStore", "smallest"]

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


include "_board.pxi"
include "_image.pxi"
include "_files.pxi"
include "_readers.pxi"


@cython.no_gc_clear  # as its base
cdef class PackedStore(PackedImage):
    """The verbs on an image. Subclassed by ``Cache``."""

    def __getitem__(self, key):
        return gb_hot_item(<PyObject *>self, <PyObject *>key)

    def __setitem__(self, key, value):
        gb_hot_write(&self.door, <PyObject *>key, <PyObject *>value, NULL, False)

    def __delitem__(self, key):
        if not gb_hot_remove(&self.door, <PyObject *>key, GB_CAUSE_DELETE):
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
        with cython.critical_section(self):
            gb_args_void_all(d.flights)
        gb_clock_now(&d.clock, True, &now)
        while err == GB_BUSY:  # a long value is being read or written
            gb_door_enter(d)
            err = gb_room_clear(&d.store, now)
            gb_door_leave(d, GB_OP_REMOVE)
            if err == GB_BUSY:
                gb_door_await(d)
        gb_door_inform(d)

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
        while gb_door_is_open(d) and gb_door_work(d, now, 1 if gb_door_heard(d) else 256):
            gb_door_inform(d)
            PyErr_CheckSignals()
        gb_door_inform(d)
        gb_door_enter(d)
        before = d.store.head.counters.expirations - before
        gb_door_leave(d, GB_OP_EXPIRE)
        return before

    def _once(self, key):
        """What stands for the key while it is loaded. KeyLengthError where nothing could be stored under it."""
        cdef gb_box box
        cdef gb_put p
        gb_box_key(&box, <PyObject *>key)
        cdef bint fits = box.len <= GB_KEY_MAX or gb_box_core_key(&self.door, &box, &p.key)
        gb_box_drop(&box)
        if not fits:
            gb_door_raise(&self.door, GB_LONGKEY, &p)
        return gb_box_base(<PyObject *>key)

    def _stale(self, key, default, bint serve):
        """The value of `key`, also past its deadline while it is kept; `serve`: that is use, and counted."""
        cdef PyObject *value = gb_hot_read(&self.door, <PyObject *>key, GB_HOT_STALE if serve else GB_HOT_KEPT)
        return default if is_miss(value) else owned(value)

    def _land(self, key, value, ttl, flight, uint32_t stale, bint over=False):
        """Stores what a flight loaded, unless it was voided; whether it did. `stale`: ms. `over`: also what is here."""
        return gb_hot_land(&self.door, <PyObject *>key, <PyObject *>value,
                           NULL if ttl is UNSET else <PyObject *>ttl, <PyObject *>flight, stale, over) == 1

    def _invalidate(self, key):
        """Removes what changed elsewhere; whether it was here."""
        return gb_hot_remove(&self.door, <PyObject *>key, GB_CAUSE_INVALIDATE) == 1

    def _own_ttl(self):
        """Seconds an entry lives where a write does not say; None: for ever."""
        return self.door.clock.ttl / 1000.0 or None


cdef bint is_miss(PyObject *value) except -1:
    """Whether NULL means absent; an exception goes on."""
    if value != NULL:
        return False
    return -1 if PyErr_Occurred() != NULL else True


include "_front.pxi"


cdef install():
    global gb_clock_seconds
    gb_door_names.budget_error = <PyObject *>BudgetError
    gb_door_names.closed_error = <PyObject *>ClosedError
    gb_door_names.key_length_error = <PyObject *>KeyLengthError
    gb_clock_seconds = <PyObject *>seconds_of
    gb_door_names.encode_key = <PyObject *>encode_key
    gb_door_names.decode_key = <PyObject *>decode_key
    gb_door_names.base_key = <PyObject *>base_key
    gb_door_names.keep = <PyObject *>keep
    gb_hot_install(<void *>PackedStore, sizeof(gb_hot_store))
    gb_front_install(<void *>Front, Front.__basicsize__)
    gb_event_install()
    for name in (BudgetError, ClosedError, KeyLengthError, seconds_of, encode_key, decode_key, base_key,
                 keep):
        Py_INCREF(name)  # C has them as long as the process lasts, whatever becomes of the modules' names


install()
