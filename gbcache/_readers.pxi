# _readers.pxi - part of _packed.pyx: who goes through a PackedStore.

cdef class PackedWalk:
    """One iteration: the hashes of a moment, each looked up when its turn comes."""

    cdef PackedImage store
    cdef uint64_t *hashes
    cdef size_t at, n
    cdef int what

    def __cinit__(self, PackedImage store not None, int what):
        self.store, self.what = store, what
        gb_walk_snapshot(&store.door, &self.hashes, &self.n)

    def __dealloc__(self):
        PyMem_RawFree(self.hashes)

    def __iter__(self):
        return self

    @cython.critical_section
    def __length_hint__(self):
        return self.n - self.at

    @cython.critical_section
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


cdef class PackedCursor:
    """A place in a store's events, and which of them are wanted. See ``_news.h``."""

    cdef PackedImage store
    cdef gb_news news
    cdef bint busy  # a thread is within pull: it may wait there without the GIL
    cdef bint finishing  # or within finish
    cdef object __weakref__

    def __cinit__(self, PackedImage store not None):
        self.store = store

    def __dealloc__(self):
        gb_news_close(&self.news)

    @cython.critical_section
    def pull(self, Py_ssize_t most):
        """A Batch of the next events, `most` at most; empty if there are none."""
        cdef Batch batch = Batch.__new__(Batch)
        batch.store = self.store
        while self.finishing:
            gb_door_yield(&self.store.door)
        if self.busy:
            raise RuntimeError("another thread is reading these events: give each its own watch")
        self.busy = True
        try:
            gb_news_take(&self.store.door, &self.news, most, &batch.batch)
        finally:
            self.busy = False
        return batch

    @cython.critical_section
    def pending(self):
        """Whether a pull would find something to look at."""
        return gb_news_pending(&self.store.door, &self.news)

    @cython.critical_section
    def finish(self):
        """Copies out what is left: the cache is about to be closed."""
        while self.busy or self.finishing:
            gb_door_yield(&self.store.door)
        self.finishing = True
        try:
            gb_news_finish(&self.store.door, &self.news)
        finally:
            self.finishing = False


cdef class Batch:
    """Events in the order they happened: a sequence, each made when it is looked at. See `Watch.read`."""

    cdef PackedImage store
    cdef gb_batch batch

    def __dealloc__(self):
        gb_news_drop(&self.batch)

    def __len__(self):
        return self.batch.count

    def __getitem__(self, index):
        cdef list made
        if isinstance(index, slice):
            made = []
            for at in range(*index.indices(self.batch.count)):
                made.append(self[at])
            return made
        cdef Py_ssize_t i = index
        if i < 0:
            i += self.batch.count
        if not 0 <= i < self.batch.count:
            raise IndexError(f"Batch index {index} is not below {self.batch.count}")
        return gb_news_event(&self.store.door, &self.batch, i)

    def __iter__(self):
        return BatchWalk(self)

    def keys(self):
        """The keys in a list, one for each event (None of those that have none); faster than the events."""
        cdef list made = []
        for i in range(self.batch.count):
            made.append(gb_news_key(&self.batch, i))
        return made

    def __repr__(self):
        return f"<Batch of {self.batch.count} events>"


cdef class BatchWalk:
    cdef Batch all
    cdef Py_ssize_t at

    def __cinit__(self, Batch all not None):
        self.all = all

    def __iter__(self):
        return self

    @cython.critical_section
    def __length_hint__(self):
        return self.all.batch.count - self.at

    @cython.critical_section
    def __next__(self):
        if self.at == self.all.batch.count:
            raise StopIteration
        self.at += 1
        return gb_news_event(&self.all.store.door, &self.all.batch, self.at - 1)


def report(error, fn):
    """Hands an exception to sys.unraisablehook: it was raised by `fn`, and nobody is there to catch it."""
    kind, trace = type(error), error.__traceback__
    Py_INCREF(kind)
    Py_INCREF(error)
    if trace is not None:
        Py_INCREF(trace)
    PyErr_Restore(<PyObject *>kind, <PyObject *>error, NULL if trace is None else <PyObject *>trace)
    PyErr_WriteUnraisable(<PyObject *>fn)


cdef class Bell:
    """A file descriptor to sleep on: readable once there is news after `arm`. See ``_bell.h``."""

    cdef gb_bell bell

    def __init__(self, int fd):
        self.bell.fd = fd

    def arm(self):
        """From now on news makes the descriptor readable, once."""
        self.bell.armed = True

    def disarm(self):
        self.bell.armed = False

    @property
    def address(self):
        """Where the stores' C finds it. Keep the bell alive as long as it is registered."""
        return <size_t>&self.bell
