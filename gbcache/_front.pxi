# The front of a Tiered: a hit of its near side, at little more than the near side's own cost.

from cpython.pycapsule cimport PyCapsule_GetPointer


cdef PyObject *read_packed(PyObject *near, PyObject *key) noexcept:
    return gb_hot_read(&(<PackedStore>near).door, key, GB_HOT_READ)


cdef class Front:
    """What is found in memory is returned from here; for the rest it asks ``_missed(key, default)``."""

    cdef readonly object near  # first, and in this order: _front.h knows
    """The cache in memory."""
    cdef gb_front_read read
    cdef int trusted

    def _face(self, near, capsule):
        """Reads `near` from now on; `capsule`: how, None for a packed one."""
        if capsule is None:
            if not isinstance(near, PackedStore):
                raise SystemError("a near side that is no PackedStore needs its capsule")
            self.read = read_packed
        else:
            self.read = <gb_front_read>PyCapsule_GetPointer(capsule, GB_FRONT_CAPSULE)
        self.near, self.trusted = near, True

    def _trust(self, bint trusted):
        """Whether what is in memory may be returned without asking."""
        gb_front_trust(<PyObject *>self, trusted)

    @property
    def trusts(self):
        """Whether memory is believed now: not while the far side cannot tell what changes."""
        return gb_front_trusts(<PyObject *>self)

    def __getitem__(self, key):
        return gb_front_find(<PyObject *>self, <PyObject *>key, <PyObject *>UNSET)

