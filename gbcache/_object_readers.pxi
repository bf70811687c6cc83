# _object_readers.pxi - part of _object.pyx: who goes through an ObjectStore, what C calls back, what is counted.


@cython.no_gc_clear  # whoever clears a cycle clears the store, which must stay until we are gone
cdef class ObjectCursor:
    """A reader's place among a store's events."""

    cdef ObjectStore store
    cdef object prefix, __weakref__
    cdef gb_queue_cursor at

    def __cinit__(self, ObjectStore store not None, since, uint32_t kinds, prefix, bint values):
        cdef uint64_t behind = 0 if since is None else since
        if type(prefix) not in (str, bytes, type(None)):
            raise TypeError(f"prefix={prefix!r} is neither a str nor bytes")
        self.at.kinds, self.at.values, self.prefix = kinds, values, prefix
        self.at.prefix = NULL if prefix is None else <PyObject *>prefix
        cdef gb_queue *q
        with cython.critical_section(store):
            q = gb_refs_queue(&store.refs)
            self.at.wanted = (q.last if since is None else min(behind, <uint64_t>1 << 62)) + 1
            self.store = store
            q.cursors += 1

    def __dealloc__(self):
        if self.store is None:
            return
        with cython.critical_section(self.store):
            self.store.refs.queue.cursors -= 1
            if not self.store.refs.open:
                gb_refs_hush(&self.store.refs)

    def pull(self, Py_ssize_t most):
        """The next events that pass, `most` at most; first a `lost` if some were overwritten. [] for none."""
        with cython.critical_section(self.store):
            return gb_queue_pull(self.store.refs.queue, &self.at, &self.store.refs.clock, most)

    def pending(self):
        """Whether there is something that this cursor has not looked at."""
        with cython.critical_section(self.store):
            return self.at.wanted <= self.store.refs.queue.last

    def finish(self):
        """The cache is about to be closed: what is left stays where it is."""


cdef class ObjectWalk:
    """One iteration: the keys of a moment, each looked up when its turn comes."""

    cdef ObjectStore store
    cdef list keys
    cdef uint64_t *hashes
    cdef Py_ssize_t at
    cdef int what

    def __cinit__(self, ObjectStore store not None, int what):
        self.store, self.what = store, what
        self.keys = gb_bulk_snapshot(&store.refs, &self.hashes)

    def __dealloc__(self):
        PyMem_Free(self.hashes)

    def __iter__(self):
        return self

    @cython.critical_section
    def __length_hint__(self):
        return 0 if self.keys is None else len(self.keys) - self.at

    @cython.critical_section
    def __next__(self):
        cdef PyObject *value = NULL
        while self.keys is not None and self.at < len(self.keys):
            self.at += 1
            key = self.keys[self.at - 1]
            if not gb_bulk_walk(&self.store.refs, <PyObject *>key, self.hashes[self.at - 1], &value):
                continue
            held = owned(value)
            return key if self.what == 0 else held if self.what == 1 else (key, held)
        raise StopIteration


cdef inline object owned(PyObject *made):
    """A new reference as Cython counts it."""
    cdef object result = <object>made
    Py_DECREF(result)
    return result


cdef bint is_miss(PyObject *value) except -1:
    """Whether NULL means absent; an exception goes on."""
    if value != NULL:
        return False
    return -1 if PyErr_Occurred() != NULL else True


cdef PyObject *read_object(PyObject *near, PyObject *key) noexcept:
    return gb_quick_read(&(<ObjectStore>near).refs, key, GB_QUICK_READ)


FRONT = PyCapsule_New(<void *>read_object, GB_FRONT_CAPSULE, NULL)
"""How the front of a `Tiered` reads an ObjectStore."""


def grow(ObjectStore store not None):
    """Twice the address space, in place where the system can."""
    length = min(MOST, 2 * len(store.map))
    store._reserve(length, copy_needed(length))


cdef tuple figures_of(gb_refs *r):
    """All is copied before the first object is made: that may run the collector, and it anything, `close` too."""
    cdef gb_refs_counters c = r.counters
    cdef uint32_t ledger[9]
    memcpy(ledger, r.index.arena.root.ledger, sizeof(ledger))
    cdef uint64_t top = (<uint64_t>gb_refs_top(r) + 1) * 8
    cdef uint64_t queue = 0 if r.queue == NULL else gb_queue_bytes(r.queue)
    cdef uint64_t weight = r.weight, max_weight = r.max_weight
    cdef uint32_t count = r.index.table.root.count, timed = r.index.wheel.root.count
    cdef uint32_t max_entries = r.max_entries, max_steps = r.max_steps
    counters = dict(hits=c.hits, misses_absent=c.misses_absent,
                    misses_expired=c.misses_expired, sets=c.sets, replaces=c.replaces,
                    deletes=c.deletes, evictions=c.evictions, expirations=c.expirations,
                    rejects=c.rejects, clears=c.clears, moves=0, loads=c.loads,
                    load_errors=c.load_errors, stale_hits=c.stale_hits)
    parts = {name: <uint64_t>ledger[i] * 8 for i, name in enumerate(KINDS)}
    parts["free"] = 0
    parts["free"] = top - sum(parts.values())
    parts["ring"] += queue
    sizes = dict(entries=count, timed=timed, total=top + queue, max_entries=max_entries, weight=weight,
                 max_weight=max_weight)
    return counters, parts, sizes, {"any": max_steps}


cdef install():
    global gb_clock_seconds
    gb_refs_names.budget_error = <PyObject *>BudgetError
    gb_refs_names.closed_error = <PyObject *>ClosedError
    gb_refs_names.keep = <PyObject *>keep
    gb_refs_names.grow = <PyObject *>grow
    gb_clock_seconds = <PyObject *>seconds_of
    for name in (BudgetError, ClosedError, keep, grow, seconds_of):
        Py_INCREF(name)  # C has them as long as the process lasts, whatever becomes of the modules' names
    gb_event_install()
    gb_quick_install(<void *>ObjectStore, sizeof(gb_quick_store))
    import sys
    gb_memo_install(<PyObject *>sys.modules[__name__], <void *>ObjectStore)


install()
