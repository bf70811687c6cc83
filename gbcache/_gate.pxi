# _gate.pxi - part of _disk.pyx: who reads LMDB, and who has it alone.

cdef class Gate:
    """Many inside, or one alone: LMDB's map may only move while no transaction is open.

    The numbers are under the GIL, or in the gate's critical section; the monitor is for those who have to wait.
    No ``with``: where memory is short, Cython's hands a traceback on that is not there.
    """

    cdef Py_ssize_t inside
    cdef bint shut
    cdef object changed

    def __init__(self):
        self.changed = Monitor()

    cpdef enter(self):
        if not self._in():
            self.changed.acquire()
            try:
                while not self._in():
                    self.changed.wait()
            finally:
                self.changed.release()

    cpdef leave(self):
        if self._out():
            self._tell()

    def _tell(self):
        self.changed.acquire()
        try:
            self.changed.tell()
        finally:
            self.changed.release()

    @cython.critical_section
    cdef bint _in(self) except -1:
        self.inside += not self.shut
        return not self.shut

    @cython.critical_section
    cdef bint _out(self) except -1:
        """Whether somebody waits for the last one to leave."""
        self.inside -= 1
        return self.shut and not self.inside

    @cython.critical_section
    cdef Py_ssize_t _shut(self, bint shut) except -1:
        """How many are inside."""
        self.shut = shut
        return self.inside

    def alone(self):
        """For `with`: nobody else is inside."""
        return Alone(self)

    def abort(self, txn):
        """Of a transaction that writes: LMDB 3's waits until nobody reads, and does not keep new ones out. Makes no
        object, unless somebody reads: one that stays open is its thread's, and another's ``close`` waits for it."""
        cdef bint alone = True
        try:
            self._shut_out()
        except MemoryError:
            alone = False
        try:
            txn.abort()
        finally:
            if alone:
                self._let_in()

    cdef _shut_out(self):
        cdef bint mine = False
        self.changed.acquire()
        try:
            while self.shut:
                self.changed.wait()
            mine = True
            while self._shut(True):
                self.changed.wait()
        except BaseException:
            if mine:
                self._shut(False)
                self.changed.tell()
            raise
        finally:
            self.changed.release()

    cdef _let_in(self):
        self._shut(False)
        self._tell()


cdef class Alone:
    """A class, and no generator: contextlib runs Python, and so signals' handlers, before a generator has begun."""

    cdef Gate gate

    def __init__(self, Gate gate):
        self.gate = gate

    def __enter__(self):
        self.gate._shut_out()

    def __exit__(self, kind, error, trace):
        self.gate._let_in()


cdef class Reading:
    """A place inside the gate, and a transaction, ``begin()``: for `with`, or by `open` and `close`, twice or not.

    No signal's handler runs between the gate and the note that it was entered; and one that is dropped gives both
    back. What LMDB finds wrong (`wrong`) inside a `with` is an ImageError.
    """

    cdef Gate gate
    cdef object begin, txn, wrong, path
    cdef bint inside

    def __init__(self, Gate gate, begin, wrong, path):
        self.gate, self.begin, self.wrong, self.path = gate, begin, wrong, path

    def open(self):
        if not self.inside:
            self.gate.enter()
            self.inside = True
            try:
                self.txn = self.begin()
            except BaseException:
                self.close()
                raise
        return self.txn

    def close(self):
        txn, self.txn = self.txn, None
        if self.inside:
            self.inside = False
            try:
                if txn is not None:
                    txn.abort()
            finally:
                self.gate.leave()

    def __enter__(self):
        return self.open()

    def __exit__(self, kind, error, trace):
        self.close()
        if kind is not None and issubclass(kind, self.wrong):
            raise ImageError(self.path, None, f"LMDB can read it: {error}") from error

    def __del__(self):
        self.close()
