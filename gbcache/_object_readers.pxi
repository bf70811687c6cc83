# _object_readers.pxi - part of _object.pyx: who goes through an ObjectStore.


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
        cdef gb_queue *q = gb_refs_queue(&store.refs)
        self.at.wanted = (q.last if since is None else min(behind, <uint64_t>1 << 62)) + 1
        self.at.kinds, self.at.values, self.prefix = kinds, values, prefix
        self.at.prefix = NULL if prefix is None else <PyObject *>prefix
        self.store = store
        q.cursors += 1

    def __dealloc__(self):
        if self.store is None:
            return
        self.store.refs.queue.cursors -= 1
        if not self.store.refs.open:
            gb_refs_hush(&self.store.refs)

    def pull(self, Py_ssize_t most):
        """The next events that pass, `most` at most; first a `lost` if some were overwritten. [] for none."""
        return gb_queue_pull(self.store.refs.queue, &self.at, &self.store.refs.clock, most)

    def finish(self):
        """The cache is about to be closed: the queue stays as long as a cursor does."""

    def pending(self):
        """Whether there is something that this cursor has not looked at."""
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

    def __cinit__(self, ObjectStore store, int what):
        self.store, self.what = store, what
        self.keys = gb_bulk_snapshot(&store.refs, &self.hashes)

    def __dealloc__(self):
        PyMem_Free(self.hashes)

    def __iter__(self):
        return self

    def __length_hint__(self):
        return 0 if self.keys is None else len(self.keys) - self.at

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
