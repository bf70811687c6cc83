/* mend.h - an image made whole again after its process was killed.
 *
 * WHAT      A live file is mapped shared, so a killed process leaves in it exactly the stores it had done:
 *           what lies between two of them may be found, and nothing else. The core orders its stores so
 *           that four truths hold between any two, or an intent says what is under way. All that can be
 *           derived from them is made anew: table, wheel, free lists, flags, ledger, sums, backward links.
 *
 * PICTURE   intent finished -> blocks walked, marked -> chains followed -> arena again -> table, wheel again
 *                           -> twins parted -> list read forward, who is on none goes to its front
 *
 * INVARIANT 1 (T1) the walk over the blocks by their first words meets the arena's end.
 *           2 (T2) a block that is an entry has its key, value, deadline and, forward, its chain.
 *           3 (T3) the list read forward leads back to its head, over blocks that are entries or were.
 *           4 (T4) two entries of one key are one that replaced or moved the other a moment ago.
 *           These are its own: what does not keep them was no image, and the fault says so.
 *           5 an image that keeps them is not refused for want of room, be it full: chunks and directories are
 *           used where they lie, and the overflow buckets that are given up make room for as many, as they are
 *           all of one size. Only a put that was killed before it was in the table may find none, and goes.
 *
 * COST      in proportion to the entries: three walks in the order of addresses; a table's bucket and a
 *           neighbour for each entry, fetched ahead. A bit for each granule of scratch.
 *
 * NOT HERE  files, boots, whether the image is to be trusted (image, and the binding).
 */
#ifndef GB_MEND_H
#define GB_MEND_H

#include "chain.h"

/* Words of scratch, all zero, that gb_mend needs for an image so long. */
static inline size_t gb_mend_scratch(uint64_t length) {
    return (size_t)(length / GB_GRANULE / 64u + 1u);
}
/* The handle is attached, and nobody else's. GB_BADIMAGE: the fault says which truth was broken. It may be
 * killed, and begun again. Steps are not counted: this is proportional work, before there is a cache. */
enum gb_err gb_mend(struct gb_store *s, uint64_t *scratch, struct gb_fault *f);

#endif
