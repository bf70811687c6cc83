/* _many.h - many keys in one call.
 *
 * WHAT      get_many: keys in groups of sixteen, each group in one hold and in stages: hash all, touch
 *           their buckets, touch their entries, touch the entries' neighbours, then copy out.
 *
 * COST      a third of as many dict look-ups where nothing is in the processor's cache.
 *
 * NOT HERE  due entries and long values: those are left to single reads after the group.
 */
#ifndef GB_MANY_H
#define GB_MANY_H

#include "_hot.h"

/* A dict of those of `keys` (any iterable) that are there; METH_O of a gb_hot_store. */
PyObject *gb_many_get(PyObject *self, PyObject *keys);
#endif
