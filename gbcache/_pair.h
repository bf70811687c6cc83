/* _pair.h - two threads that pour a snapshot's main frames into an image.
 *
 * WHAT      A load's work is reading, sums, hashes and copies, and little of it must be done in order. So the
 *           main frames are taken a part (some frames, GB_PAIR_ROOM bytes) at a time: each thread reads its part,
 *           checks it, lays its entries in a run of its own, and waits for its turn to index them. The second
 *           thread lives within one call, and only while there is much to do. What does not go smoothly in a part
 *           is not dealt with here: the part is as if it had never been taken, and the loader's plain way
 *           finds out what it is.
 *
 * PICTURE   one:   read 0 | check | lay | index 0 | read 2 | check | lay | index 2 | ...
 *           other:          read 1 | check | lay  | index 1 | read 3 | ...             order of the file
 *
 * INVARIANT 1 parts are given out in the order of the file, and indexed in it: the recency list is the file's.
 *           2 nothing walks over the blocks while a run is being filled: who could is not called meanwhile.
 *           3 between two calls nothing is under way: the loader's place is the first frame not indexed.
 *
 * COST      a part: one read, and GB_PAIR_ROOM * 3 / 2 bytes of memory a thread. With two cores free 0.18 s for
 *           5 million entries of 100 bytes, half of it the kernel's: reading, and huge pages of zeros.
 *
 * NOT HERE  faults, late frames, long values, images too small for what is in the file (_load).
 */
#ifndef GB_PAIR_H
#define GB_PAIR_H

#include "_load.h"

#define GB_PAIR_ROOM ((uint64_t)1 << 18)

/* NULL: no memory. The image is empty; it gets a table for what the file holds. */
struct gb_pair *gb_pair_begin(struct gb_loader *l);
/* As many main frames as go smoothly, until that ns of the clock, without the GIL; l->frame and l->number say how far. */
void gb_pair_run(struct gb_loader *l, int64_t until);
int64_t gb_pair_clock(void);
void gb_pair_end(struct gb_pair *p);

#endif
