/* pour.h - records by the frame, into an image nobody sees yet.
 *
 * WHAT      A put finds a block, fills it and indexes it, ready to stop after any of its steps: right for a
 *           cache in use, and most of the time a load takes. Poured are the records of whole frames: they are
 *           counted; one run of granules is cut off a large free block; entries are laid into it as the records
 *           lie in the file, linked as they lie; then the run joins the list, and each goes into table and wheel,
 *           its bucket fetched while others are done. Counting and laying touch nothing but the run: several
 *           threads may, each in his own.
 *
 * PICTURE   records:  a  b  c                     table: buckets of a, b, c (on their way from memory)
 *           run:     |entry a|entry b|entry c|free ...
 *           list:    head <-> c <-> b <-> a <-> what was poured before
 *
 * INVARIANT 1 a run that is laid is entries, as many as were counted, that meet its end.
 *           2 each has the hash of its key, and so has `hash`, in their order.
 *
 * COST      a copy of the bytes, a hash, and a bucket, an entry: 70 ns at 100 bytes. No step is counted: it is
 *           proportional work, before there is a cache.
 *
 * NOT HERE  making room: what finds no run is for gb_store_put, and so is whatever is longer than a block.
 */
#ifndef GB_POUR_H
#define GB_POUR_H

#include "snap.h"

/* What the records are measured by: see gb_snap_put. */
struct gb_pour {
    struct gb_store *s;
    uint64_t now;
    int64_t wall, saved;
};
/* Some frames' records that are to be put. */
struct gb_pour_sum {
    uint32_t entries, granules;
};

/* Adds a frame's records, which were checked; those whose time is over are left out. hash: of each that is not, all
 * 64 bits. False: one of them must be put. */
bool gb_pour_count(const struct gb_pour *p, const uint8_t *payload, uint64_t bytes, uint32_t records,
                   struct gb_pour_sum *sum, uint64_t *hash);
/* A run for them, or 0: not in one piece, or too many for the table or for max_entries, or somebody listens, walks or
 * saves. Until all of it is laid no other verb than these may be called. */
gb_ref gb_pour_run(struct gb_store *s, const struct gb_pour_sum *sum);
/* Lays the entries of a frame that was counted, from `at` of the run on; *hash moves on. Where the next go. */
gb_ref gb_pour_lay(const struct gb_pour *p, const uint8_t *payload, uint64_t bytes, uint32_t records,
                   const uint64_t **hash, gb_ref at);
/* What lies in the run is there from now on, as if put one after the other; how many of them: it ends before one
 * whose key is there already, for which the table gets no bucket, or that is one too many for max_entries. */
uint32_t gb_pour_index(struct gb_store *s, gb_ref run, uint32_t entries, const uint64_t *hash);
/* Frees what was laid and not indexed: all but the first `done`. No other run may be under way. */
void gb_pour_undo(struct gb_store *s, gb_ref run, uint32_t entries, uint32_t done);
/* Buckets for so many entries at once, but no more than the image could hold of the shortest: growth one by one reads
 * each hash again. Only while the image is empty. */
void gb_pour_presize(struct gb_store *s, uint64_t entries);


bool gb_pour_check(const struct gb_store *s, gb_ref run, const struct gb_pour_sum *sum, const uint64_t *hash,
                   struct gb_fault *f);

#endif
