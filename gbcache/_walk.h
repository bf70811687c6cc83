/* _walk.h - iteration over one moment's entries.
 *
 * WHAT      A snapshot is the 64-bit keyed hashes of one moment's entries, each once, least recently used
 *           first (those used while it is taken last): 8 bytes an entry, outside the budget, while an
 *           iterator lives, and while it is taken a bit for 16 bytes of the image. Each is looked up again
 *           when its turn comes, so that whatever moves, is overwritten or vanishes meanwhile is seen as it
 *           is then.
 *           Two keys of one cache share a 64-bit hash with a chance of n^2 / 2^65.
 *
 * COST      snapshot: one entry a key, in slices of 32; next: one look-up. No use, no stats.
 */
#ifndef GB_WALK_H
#define GB_WALK_H

#include "_hot.h"

/* *hashes is to be freed with PyMem_RawFree. False with an exception. */
bool gb_walk_snapshot(struct gb_door *d, uint64_t **hashes, size_t *n);
/* 1 found, 0 gone, -1 exception. New references; value only if asked for. */
int gb_walk_next(struct gb_door *d, uint64_t hash, bool want_value, PyObject **key,
                 PyObject **value);
#endif
