/* intent.h - what cannot be told by one store, while it is under way in a live file.
 *
 * WHAT      The core orders its stores so that a killed process leaves an image that can be read. Four things
 *           take more than an order: they are written down first, and who finds them after a kill finishes
 *           them. `op` is stored last, and cleared when all is done; finishing may itself be killed.
 *
 * PICTURE   slide   gap    to                     from          from + size   + idle
 *                   +------+----------------------+-------------+--------+
 *                   | free | copied up to `done`  | ..the block | (free) |  a gap's length at a time, upward: what is
 *                   +------+----------------------+-------------+--------+  not copied yet is not overwritten
 *           retime  a deadline in three words | clear  the format of an empty image | ring  its new place
 *
 * INVARIANT 1 a slide's block, its old and new place, the gap and the free block behind, if there is one, lie in
 *             the arena.
 *           2 a ring's image is as long as the mapping at most.
 *
 * COST      a slide: its bytes, once. Private images have no intents, and pay a test.
 *
 * NOT HERE  finishing (mend), who names the block (room).
 */
#ifndef GB_INTENT_H
#define GB_INTENT_H

#include "base.h"

enum gb_intent_op { GB_INTENT_NONE, GB_INTENT_SLIDE, GB_INTENT_RETIME, GB_INTENT_CLEAR, GB_INTENT_RING };
struct gb_intent {
    uint32_t op;
    gb_ref from, to, gap;  /* slide: a block's old and new place, where the gap began; retime: from */
    uint32_t size, done;   /* slide: granules, and how many were copied; ring: granules */
    uint32_t flags, idle;  /* retime: of the extra words; slide: idle is the free block behind, which joins the gap */
    uint64_t due;          /* retime: ms; ring: the image's new length */
    uint64_t seq;          /* ring: the next event's number */
    uint64_t hard;         /* retime: ms */
    uint64_t later;
};
_Static_assert(sizeof(struct gb_intent) == 64, "an intent is a cache line");

static inline void gb_intent_begin(struct gb_intent *i, enum gb_intent_op op) {
    GB_ORDER();
    i->op = op;
    GB_ORDER();
}
static inline void gb_intent_end(struct gb_intent *i) {
    GB_ORDER();
    i->op = GB_INTENT_NONE;
    GB_ORDER();
}

/* Goes on with the copy of a slide, from wherever it was. */
static inline void gb_intent_slide(struct gb_intent *i, uint8_t *base) {
    uint32_t gap = i->from - i->to;
    while (i->done < i->size) {
        uint32_t n = i->size - i->done < gap ? i->size - i->done : gap;
        memcpy(gb_at(base, i->to + i->done), gb_at(base, i->from + i->done), (size_t)n * GB_GRANULE);
        GB_ORDER();
        i->done += n;
        GB_ORDER();
    }
}

/* Any bytes may stand in it. */
static inline bool gb_intent_check(const struct gb_intent *i, gb_ref first, gb_ref end, uint64_t mapped,
                                   struct gb_fault *f) {
    bool lies = i->gap >= first && i->gap <= i->to && i->to < i->from && i->size && i->size <= GB_BLOCK_MAX &&
                i->from < end && i->size <= end - i->from && i->idle <= end - i->from - i->size && i->done <= i->size;
    if (i->op == GB_INTENT_SLIDE && !lies)
        return gb_broken(f, "intent 1: a slide lies in the arena", i->from, end, i->to);
    if (i->op == GB_INTENT_RING && (i->due % GB_GRANULE || i->due > mapped || i->size > i->due / GB_GRANULE))
        return gb_broken(f, "intent 2: an image is no longer than its mapping", i->size, mapped, i->due);
    return true;
}

#endif
