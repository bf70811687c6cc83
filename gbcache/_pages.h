/* _pages.h - whether a data file of LMDB's can be handed to LMDB.
 *
 * WHAT      A walk over all of a file at rest: both heads, every page that can be reached from the
 *           newer one, every record's checksum. What LMDB relies on is looked at before LMDB does,
 *           for it believes what it reads: a page number beyond the end is a SIGBUS, a separator
 *           with one bit changed is an entry that nobody finds.
 *
 * PICTURE   head 0 | head 1 | pages, each once: of a tree, of a long value, or free
 *           head -> free pages' tree
 *                -> main tree -> "entries": name -> record (_record.h)
 *                             -> "due": deadline 8 (big end first), name -> nothing
 *                             -> "gbcache": what the store is (struct gb_pages_store)
 *
 * COST      one pass: about a second for a GB of records of 100 bytes, at most; a bit for each page.
 *
 * NOT HERE  LMDB itself, opening, repair. A file that somebody changes during the walk or after it.
 */
#ifndef GB_PAGES_H
#define GB_PAGES_H

#include "_record.h"

#define GB_PAGES_CODEC 64u

/* The one record of the main tree that is not LMDB's. Checked by a sum that needs no seed. */
struct gb_pages_store {
    uint64_t sum, version, seed[2], applied;
    char codec[GB_PAGES_CODEC];
};

struct gb_pages {
    const uint8_t *file;
    uint64_t size;
    uint8_t *seen; /* a bit a page, size / 256 / 8 + 1 bytes of zeros */
    /* what is found: */
    uint64_t page, next, root_free[6], root_main[6], root_entries[6], root_due[6], txn;
    struct gb_pages_store store;
    struct gb_digest digest;
    uint64_t entries, timed, due, timed_sum, due_sum;
    /* or not: */
    const char *rule;
    uint64_t at;
};

bool gb_pages_check(struct gb_pages *p);
uint64_t gb_pages_store_sum(const struct gb_pages_store *s);

#endif
