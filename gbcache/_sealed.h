/* _sealed.h - a snapshot mapped to be read only.
 *
 * WHAT      All its frames are checked once, when it is opened; from then on every reference of its index is
 *           checked again each time it is used.
 *
 * INVARIANT 1 no length or place from a file is used before it was compared with what is there.
 *           2 no loop is longer than the file.
 *
 * COST      a look-up: two or three cold lines. 8 bytes a frame of memory.
 *
 * NOT HERE  opening and mapping files (snapshot.py), Python objects (_box, _packed).
 */
#ifndef GB_SEALED_H
#define GB_SEALED_H

#include "_load.h"

struct gb_sealed {
    const uint8_t *map;
    struct gb_snap_head head;
    struct gb_digest digest;
    uint64_t *frames; /* places, in the order of use: late ones last */
    uint64_t count;
};
/* Checks all of it, without the GIL; the frames' places are kept. */
bool gb_sealed_check(struct gb_sealed *s, const uint8_t *map, const struct gb_snap_head *head,
                     struct gb_load_fault *f);
void gb_sealed_end(struct gb_sealed *s);
/* The record of a key whose hash is of s->digest, and whose time is not over at `now` (ms of the wall clock). */
bool gb_sealed_find(const struct gb_sealed *s, const struct gb_key *k, int64_t now, struct gb_snap_record *r);
bool gb_sealed_live(const struct gb_snap_record *r, int64_t now);
/* Goes through the records: *frame and *at begin at 0. False at the end. */
bool gb_sealed_next(const struct gb_sealed *s, uint64_t *frame, uint64_t *at, struct gb_snap_record *r);

#endif
