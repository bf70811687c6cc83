# _gate.pxi - part of _disk.pyx: who reads LMDB, and who has it alone.

cdef enum:
    TAKEN = -2
    NONE = -1

cdef struct Seat:
    unsigned long thread
    Py_ssize_t next  # of those that are free, or TAKEN


cdef class Gate:
    """Many inside, or one alone: LMDB's map may only move while no transaction is open.

    Whoever is inside has a seat. A thread that has one, or is alone, is let in again even while another waits for all
    to leave: a signal's handler or a ``__del__`` that reads would wait for who waits for its own thread.

    The seats are under the GIL, or in the gate's critical section; the monitor is for those who have to wait.
    No ``with``: where memory is short, Cython's hands a traceback on that is not there.
    """

    cdef Seat *seats
    cdef Py_ssize_t size, free, inside
    cdef unsigned long owner
    cdef bint shut
    cdef object changed

    def __cinit__(self):
        self.free = NONE

    def __init__(self):
        self.changed = Monitor()

    def __dealloc__(self):
        free(self.seats)

    cpdef Py_ssize_t enter(self) except -1:
        """The seat to `leave` from."""
        cdef Py_ssize_t seat = self._in()
        if seat == NONE:
            self.changed.acquire()
            try:
                while (seat := self._in()) == NONE:
                    self.changed.wait()
            finally:
                self.changed.release()
        return seat

    cpdef leave(self, Py_ssize_t seat):
        if self._out(seat):
            self._tell()

    @cython.critical_section
    def has_me(self):
        """Whether this thread is inside: it would wait for itself, were it to wait for who has it alone."""
        return bool(self._has(PyThread_get_thread_ident()))

    def _tell(self):
        """A signal's handler that raises as the monitor is waited for does so afterwards: who waits would for ever."""
        cdef bint held = False
        raised = None
        while not held:
            try:
                held = self.changed.acquire()
            except BaseException as error:
                raised = error
        try:
            self.changed.tell()
        finally:
            self.changed.release()
        if raised is not None:
            raise raised

    @cython.critical_section
    cdef Py_ssize_t _in(self) except -2:
        """The seat taken, or NONE: it is shut."""
        cdef unsigned long thread = PyThread_get_thread_ident()
        cdef Py_ssize_t seat
        if self.shut and self.owner != thread and not self._has(thread):
            return NONE
        if self.free == NONE:
            self._more()
        seat = self.free
        self.free = self.seats[seat].next
        self.seats[seat] = Seat(thread, TAKEN)
        self.inside += 1
        return seat

    @cython.critical_section
    cdef bint _out(self, Py_ssize_t seat) except -1:
        """Whether somebody waits for the last one to leave."""
        if not 0 <= seat < self.size or self.seats[seat].next != TAKEN:
            raise RuntimeError("nobody has that seat")
        self.seats[seat].next = self.free
        self.free = seat
        self.inside -= 1
        return self.shut and not self.inside

    cdef bint _has(self, unsigned long thread) noexcept:
        cdef Py_ssize_t seat
        for seat in range(self.size):
            if self.seats[seat].next == TAKEN and self.seats[seat].thread == thread:
                return True
        return False

    cdef int _more(self) except -1:
        cdef Py_ssize_t size = 2 * self.size or 16, seat
        cdef Seat *seats = <Seat *>realloc(self.seats, size * sizeof(Seat))
        if not seats:
            raise MemoryError
        for seat in range(self.size, size):
            seats[seat] = Seat(0, seat + 1)
        seats[size - 1].next = NONE
        self.seats, self.free, self.size = seats, self.size, size
        return 0

    @cython.critical_section
    cdef Py_ssize_t _shut(self, bint shut) except -1:
        """How many are inside."""
        self.shut = shut
        self.owner = PyThread_get_thread_ident() if shut else 0
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
    cdef Py_ssize_t seat
    cdef bint inside

    def __init__(self, Gate gate, begin, wrong, path):
        self.gate, self.begin, self.wrong, self.path = gate, begin, wrong, path

    def open(self):
        if not self.inside:
            self.seat = self.gate.enter()
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
                self.gate.leave(self.seat)

    def __enter__(self):
        return self.open()

    def __exit__(self, kind, error, trace):
        self.close()
        if kind is not None and issubclass(kind, self.wrong):
            raise ImageError(self.path, None, f"LMDB can read it: {error}") from error

    def __del__(self):
        self.close()
