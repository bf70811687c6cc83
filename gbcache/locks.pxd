# locks.pxd - the classes of locks.py as C structs, where it is compiled.

cdef class Lock:
    cdef object __weakref__
    cdef object _held
    cdef readonly Py_ssize_t _depth

cdef class Turn:
    cdef Lock _lock
    cdef object _ask

cdef class Monitor(Lock):
    cdef readonly list _waiting

cdef class Latch:
    cdef object _gate
    cdef bint _open
