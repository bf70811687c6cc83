/* _bulk.h - many keys of an ObjectStore at a time.
 *
 * WHAT      get_many in groups of sixteen, whose cache misses overlap; the snapshot of keys that an
 *           iteration goes through, and each key's turn in it.
 *
 * COST      get_many: as as many gets, at a third of their time where the cache is large. snapshot: one
 *           entry a key, 16 bytes each while the iterator lives; a turn: one look-up by identity.
 *
 * NOT HERE  one key at a time (_quick).
 */
#ifndef GB_BULK_H
#define GB_BULK_H

#include "_quick.h"

/* get_many(keys): a dict of those that are there. */
PyObject *gb_bulk_get(PyObject *self, PyObject *keys);
/* A list of one moment's keys, least recently used first; *hashes has 40 bits of each one's hash, and is
 * to be freed with PyMem_Free. NULL with an exception. */
PyObject *gb_bulk_snapshot(struct gb_refs *r, uint64_t **hashes);
/* A snapshot's key in its turn: 1 and its value, 0 if it is gone, -1 exception. */
int gb_bulk_walk(struct gb_refs *r, PyObject *key, uint64_t hash, PyObject **value);
/* Every pair of an image, in the order of its blocks. */
int gb_bulk_traverse(const struct gb_arena *a, visitproc visit, void *arg);
/* Releases every pair of an image nobody uses any more. */
void gb_bulk_drain(struct gb_arena *a);

#endif
