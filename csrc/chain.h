/* chain.h - values longer than a block.
 *
 * WHAT      A long value is a chain of extents behind its entry. It is written by begin / step /
 *           commit and read by open / step / close, each call within one lock hold, so that the lock
 *           is free between slices of at most GB_CHAIN_SLICE bytes. The entry of a value being
 *           written is pending: no look-up finds it until commit. One being read is pinned.
 *
 * PICTURE   entry.extra.chain -> extent <-> extent <-> ... -> 0
 *             +----+----+----+----+-- - - --+
 *             |word|used|prev|next| payload |   prev of the first: the entry
 *             +----+----+----+----+-- - - --+
 *
 * INVARIANT 1 what is promised to writes under way is within the image's capacity.
 *             (The chains' own are room.h's 2, 3 and 4.)
 *
 * COST      a step: at most GB_CHAIN_SLICE bytes and 64 extents; in a full image the evictions the
 *           bytes make necessary, in slices.
 *
 * NOT HERE  threads: whoever calls takes the lock for each call.
 */
#ifndef GB_CHAIN_H
#define GB_CHAIN_H

#include "store.h"

#define GB_CHAIN_SLICE 65472u /* with the rest of its granule it fits a snapshot's frame */
#define GB_CHAIN_VALUE_MAX ((uint32_t)1 << 30)

struct gb_chain_write {
    uint32_t pin;
    uint32_t done;     /* bytes in the chain */
    uint64_t promised; /* granules */
};
struct gb_chain_read {
    uint32_t pin;
    uint32_t done, left; /* bytes of the value */
    uint32_t skip;       /* bytes of the present extent that are done */
};

/* GB_TOOBIG (counted as a reject; the old value stays), GB_LONGKEY, GB_EXISTS, GB_BUSY (too many
 * long reads and writes at once: again later), GB_AGAIN (call again), GB_OK: step may follow. */
enum gb_err gb_chain_begin(struct gb_store *s, struct gb_chain_write *w, const struct gb_put *p,
                           uint64_t now);
/* GB_AGAIN until all of p->value is in the chain. */
enum gb_err gb_chain_step(struct gb_store *s, struct gb_chain_write *w, const struct gb_put *p,
                          uint64_t now);
/* GB_OK: the key has the value. GB_AGAIN: call again. GB_EXISTS, GB_FULL: abort must follow. */
enum gb_err gb_chain_commit(struct gb_store *s, struct gb_chain_write *w, const struct gb_put *p,
                            uint64_t now);
void gb_chain_abort(struct gb_store *s, struct gb_chain_write *w);

enum gb_err gb_chain_open(struct gb_store *s, struct gb_chain_read *r, gb_ref ref);
/* Copies on to `to` + done; GB_AGAIN until nothing is left. */
enum gb_err gb_chain_copy(struct gb_store *s, struct gb_chain_read *r, uint8_t *to);
void gb_chain_close(struct gb_store *s, struct gb_chain_read *r);
/* Gives up every read, write, walk and shrink under way: those who made them are gone (a forked child). */
void gb_chain_orphans(struct gb_store *s);
bool gb_chain_check(const struct gb_store *s, struct gb_fault *f);

#endif
