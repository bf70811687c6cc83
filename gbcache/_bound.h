/* _bound.h - a memoized method of one instance, and the holder of its results.
 *
 * WHAT      A bound memo is a memo and an instance. A holder has the instance's own results of one memo; it
 *           lies in the instance's __dict__, and names its owner.
 *
 * NOT HERE  keys and calls (_memo), holders of instances that have no __dict__ (memoize.py).
 */
#ifndef GB_BOUND_H
#define GB_BOUND_H

#include "_memo.h"

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *memo, *self;
} gb_bound;
typedef struct {
    PyObject_HEAD
    PyObject *store, *owner; /* owner: a weak reference, or the address of who can have none */
    PyObject *weak;
} gb_holder;

extern PyTypeObject gb_bound_type, gb_holder_type;
PyObject *gb_bound_new(PyObject *memo, PyObject *self);
/* What a weak reference refers to, a new reference; NULL if it is gone. */
PyObject *gb_bound_referent(PyObject *weak);
/* The instance's holder in its __dict__, a new reference; NULL if it is not there, or has no __dict__. */
gb_holder *gb_bound_held(const gb_memo *m, PyObject *self);
/* A method of a memo: the dict in which it would lie, or None. */
PyObject *gb_bound_dict(PyObject *memo, PyObject *self);

#endif
