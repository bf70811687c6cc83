/* moment.h - the entries of one moment, beside whatever goes on.
 *
 * WHAT      A walk from least to most recently used that notes the hash of each entry of the moment it began,
 *           once: in its turn; or as the entry is used, replaced or removed before, for then it leaves its
 *           place. So it ends after as many steps as there were entries, whoever uses them meanwhile. A bit for
 *           each place where an entry can begin says "noted, or younger than the moment".
 *
 * PICTURE   hashes   [in their turn, least recently used first -> n][ free ][used <- those used before it]
 *           list     noted ... | at: not noted, all of the moment | noted by their use, or younger (the front)
 *
 * INVARIANT 1 left is the number of indexed entries whose bit is not set; until a clear, which ends the walk.
 *           2 n + used + left is at most the number of entries there were, and that at most `most`.
 *
 * COST      nothing but the test a save has while nobody walks; else a bit for each of up to eight walks, and
 *           once for an entry the hash of its key, in the hold of whoever uses it: no step of it.
 *
 * NOT HERE  what the hashes are for (_walk); who vanished since (a look-up tells).
 */
#ifndef GB_MOMENT_H
#define GB_MOMENT_H

#include "head.h"

struct gb_moment {
    uint64_t *bits;   /* gb_index_places of zeros */
    size_t words;     /* enough for the image as it begins: who comes to a place beyond is noted there and then */
    uint64_t *hashes; /* room for `most` */
    size_t most, n, used;
    uint32_t left, walk;
};

/* GB_BUSY: too many walks; GB_SMALL: more entries, or a longer image, than there is room for. */
enum gb_err gb_moment_begin(struct gb_store *s, struct gb_moment *m);
/* One step. GB_AGAIN, or GB_OK: all are noted. */
enum gb_err gb_moment_step(struct gb_store *s, struct gb_moment *m);
void gb_moment_end(struct gb_store *s, struct gb_moment *m);
/* All noted: those used come last, in their order. Their number. */
size_t gb_moment_hashes(struct gb_moment *m);
bool gb_moment_check(const struct gb_store *s, const struct gb_moment *m, struct gb_fault *f);

/* While somebody walks: an entry is about to be used, replaced or removed; is born; lies elsewhere. */
void gb_moment_meet(struct gb_store *s, gb_ref ref);
void gb_moment_born(struct gb_store *s, gb_ref ref);
void gb_moment_moved(struct gb_store *s, gb_ref from, gb_ref to);

#endif
