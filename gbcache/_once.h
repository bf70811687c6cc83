/* _once.h - a key that remembers its hash.
 *
 * WHAT      What a miss hands from C to Python and back: the key of a call is hashed once, however often
 *           the way through a flight asks for it. Equal to the key it holds, from either side.
 *
 * NOT HERE  who makes one (_memo), who takes the key out again (_quick's land).
 */
#ifndef GB_ONCE_H
#define GB_ONCE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

typedef struct {
    PyObject_HEAD
    Py_hash_t hash;
    PyObject *key;
} gb_once;

extern PyTypeObject gb_once_type;
PyObject *gb_once_new(PyObject *key, Py_hash_t hash);
static inline PyObject *gb_once_inner(PyObject *key) {
    return Py_TYPE(key) == &gb_once_type ? ((gb_once *)key)->key : key;
}

#endif
