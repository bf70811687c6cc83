/* _front.h - the front of a `Tiered`: a hit of its near side, whichever that is.
 *
 * WHAT      The near side's read is a function, handed over in a capsule where it is another module's: one call,
 *           no look-up of a method, no arguments to be packed. A miss is Python's affair: ``_missed(key, default)``.
 *
 * COST      A hit takes 2 to 5 ns more than the store's own method.
 *
 * NOT HERE  what is done on a miss (readthrough.py), and when memory may be believed (near.py).
 */
#ifndef GB_FRONT_H
#define GB_FRONT_H

#include "_args.h"

/* A read that counts as use: a new reference; NULL with an exception, or without one for a miss. */
typedef PyObject *(*gb_front_read)(PyObject *near, PyObject *key);
#define GB_FRONT_CAPSULE "gbcache._object.FRONT"

typedef struct {
    PyObject_HEAD
    PyObject *near;
    gb_front_read read;
    int trusted; /* what is in memory may be returned without asking */
} gb_front;

static inline void gb_front_trust(PyObject *self, int trusted) { GB_STORE(((gb_front *)self)->trusted, trusted); }
static inline int gb_front_trusts(PyObject *self) { return GB_LOAD(((gb_front *)self)->trusted); }
/* The value, from memory or by `_missed` with `absent`: UNSET for `[]`, where a miss is a KeyError. */
PyObject *gb_front_find(PyObject *self, PyObject *key, PyObject *absent);
/* -1 with an exception. `size`: of the class as Cython lays it out. */
int gb_front_install(PyTypeObject *type, size_t size);
#endif
