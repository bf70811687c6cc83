/* _put.h - writing pairs of references, and making room for them.
 *
 * WHAT      The one door in: a block of the shape its entry's life and weight ask for; another value in an
 *           entry's place; evictions down to the bounds; the removal of what is due. Each records what
 *           it did, and tells of it, as _refs.h says.
 *
 * COST      write: a find, a block, and an eviction where the cache is full. expire: a slice.
 *
 * NOT HERE  finding, the door out (_refs); what a write is asked to be (_quick).
 */
#ifndef GB_PUT_H
#define GB_PUT_H

#include "_refs.h"

/* What is written, and for how long. */
struct gb_put {
    PyObject *key, *value;
    uint64_t hash, now, weight;
    struct gb_life life;
    bool add;
    PyObject *over; /* of an add, may be NULL: only over this very value, whose life goes on */
    const char *mark; /* may be NULL: set, nothing is written */
};

/* 1 written, 0 there already (add) or not there (over), -1 exception. */
int gb_put(struct gb_refs *r, const struct gb_put *p);
/* Another value in an entry's place; its life, its weight and its rank stay. Releases the old one. */
void gb_put_swap(struct gb_refs *r, gb_ref ref, PyObject *value);
/* Gives an entry another life: may move it to another block. 1 done, 0 there was no room and now there is:
 * look the entry up again; -1 with an exception. */
int gb_put_retime(struct gb_refs *r, gb_ref ref, const struct gb_life *life);
/* Evicts down to the bounds. -1 with an exception. */
int gb_put_fit(struct gb_refs *r, uint64_t now);
/* Removes due entries, GB_REFS_ASIDE at most; true if more may be due. */
bool gb_put_expire(struct gb_refs *r, uint64_t now);

#endif
