/* arena.h - cuts the image into blocks, frees and moves them, and keeps the ledger.
 *
 * WHAT      The arena is the granules [first, end) of the image, cut into blocks without gaps, so it
 *           can be walked by the blocks' own first words. Free blocks are kept in segregated lists
 *           (two levels, after TLSF: Masmano, Ripoll, Crespo, Real, ECRTS 2004) and coalesce at once.
 *           A window is an aligned run of GB_BLOCK_MAX granules; bucket chunks fill one exactly.
 *           The gap is a free run that grows by moving the live blocks above it away: that is how
 *           scattered holes become room. A held block is free and in the gap, and in no list.
 *
 * PICTURE   a free block                                  the arena
 *             0    4     8      12            size-4       first                       hand  end
 *            +----+-----+------+------+-- - --+-----+      +-----+----+--------+-----+--- - ---+
 *            |word|size |prev  |next  |       |size |      |entry|free| extent | gap |live|mark|
 *            +----+-----+------+------+-- - --+-----+      +-----+----+--------+-----+--- - ---+
 *            one granule: word and size only; two: no links. Those two sizes lie in no list.
 *
 * INVARIANT 1 the blocks from `first` meet `end` exactly.
 *           2 no two free blocks touch; a block's PREV_FREE says whether the one before is free.
 *           3 a free block's two size words agree.
 *           4 every free block of three granules or more is in its class's list, or is the gap.
 *           5 the ledger's lines are the sums over the blocks; with HEAD they sum to the length.
 *           (1 holds between any two stores, but for a slide and a clear, which say so in an intent.)
 *           6 a class's bit is set if and only if its list is not empty.
 *           7 the gap is one held block that ends at `hand`, or empty; hand is a block's start.
 *
 * COST      alloc: at most 8 list heads looked at; free: at most two neighbours; one step each.
 *           gap_next: one block. No verb walks the arena but check.
 *
 * NOT HERE  who refers to a block, eviction, keys: the caller moves what `gap_next` proposes.
 */
#ifndef GB_ARENA_H
#define GB_ARENA_H

#include "intent.h"
#include "list.h"

#define GB_ARENA_LISTED 3u /* granules: the smallest block with room for links */
#define GB_ARENA_EXACT 32u
#define GB_ARENA_CLASSES (GB_ARENA_EXACT + 16u * 5u) /* exact below 32 granules, then 16 a doubling */

struct gb_arena_root {
    gb_ref first, end;
    gb_ref hand; /* where the gap ends */
    gb_ref gap;  /* the held block, 0 if none */
    uint32_t ledger[GB_KINDS]; /* granules */
    uint32_t moves;            /* blocks moved, ever (wraps) */
    uint64_t bits[2];
    struct gb_link heads[GB_ARENA_CLASSES];
};

struct gb_arena {
    uint8_t *base;
    struct gb_arena_root *root;
    struct gb_intent *intent; /* of a live file; NULL: nobody will ask */
    struct gb_work work;
};

/* Blocks of a class are at least its floor; the last class takes everything larger. */
uint32_t gb_arena_class(uint32_t granules);
void gb_arena_format(struct gb_arena *a, uint32_t head_granules, uint32_t end);
/* A block of `granules`; 0 if no listed free block fits. */
gb_ref gb_arena_alloc(struct gb_arena *a, uint32_t granules, enum gb_kind kind);
/* GB_BLOCK_MAX granules, aligned to as many, or 0. */
gb_ref gb_arena_alloc_window(struct gb_arena *a, enum gb_kind kind);
/* The largest free block of at least `least` and at most `most` granules, cut to `most`. */
gb_ref gb_arena_alloc_between(struct gb_arena *a, uint32_t least, uint32_t most, enum gb_kind kind);
/* A run off the front of a large free block that has `beside` granules more, or 0. It is charged to `kind`, and
 * the caller cuts it into blocks: it has no first word until then, and no block may be freed or moved meanwhile. */
gb_ref gb_arena_alloc_run(struct gb_arena *a, uint32_t granules, uint32_t beside, enum gb_kind kind);
void gb_arena_free(struct gb_arena *a, gb_ref ref);
void gb_arena_rekind(struct gb_arena *a, gb_ref ref, enum gb_kind kind);

/* How large the gap is to grow: a block's worth, an aligned window, or all that lies above. */
enum gb_gap { GB_GAP_BLOCK, GB_GAP_WINDOW, GB_GAP_TAIL };
/* The next live block, which stands at the hand; 0 once the gap is as wanted (and, but for TAIL,
 * has been given to the lists). The caller moves that block away and frees it, or slides, or skips. */
gb_ref gb_arena_gap_next(struct gb_arena *a, enum gb_gap want);
/* Slides the block at the hand down to the gap's start (or the first window boundary behind it), and
 * returns its new place: its bytes are there, whoever refers to it is the caller's to tell. 0 if
 * there is no gap, or the block would not move down and end at or below `limit`. The intent of it stays
 * until the caller has told them. */
gb_ref gb_arena_gap_slide(struct gb_arena *a, bool aligned, gb_ref limit);
/* Does what is left of a slide that was killed. */
void gb_arena_slide_finish(struct gb_arena *a);
/* The block at the hand cannot move: give the gap to the lists and start behind it. */
void gb_arena_gap_skip(struct gb_arena *a);

/* Back to the first block. */
void gb_arena_gap_rewind(struct gb_arena *a);

/* The image was mapped longer: [end, new_end) becomes free. */
void gb_arena_grow(struct gb_arena *a, gb_ref new_end);
/* The same of an arena that is about to be made again: nothing but the blocks is looked at. */
void gb_arena_stretch(struct gb_arena *a, gb_ref new_end);
/* Gives up [new_end, end), which must be free and in the gap; false if it is not. */
bool gb_arena_shrink(struct gb_arena *a, gb_ref new_end);
/* Everything but the blocks themselves made anew, for a walk that keeps some: begin, then each block of it
 * kept or given up, in order, up to `end`; then end. */
void gb_arena_again_begin(struct gb_arena *a, gb_ref first, gb_ref end);
void gb_arena_again_keep(struct gb_arena *a, gb_ref ref);
void gb_arena_again_free(struct gb_arena *a, gb_ref ref, uint32_t granules);
void gb_arena_again_end(struct gb_arena *a);
bool gb_arena_check(const struct gb_arena *a, struct gb_fault *f);

static inline uint32_t gb_arena_size(const struct gb_arena *a, gb_ref ref) {
    const uint32_t *w = (const uint32_t *)gb_at(a->base, ref);
    return gb_word_kind(w[0]) == GB_KIND_FREE ? w[1] : gb_word_granules(w[0]);
}
static inline uint32_t gb_arena_free_granules(const struct gb_arena *a) {
    return a->root->ledger[GB_KIND_FREE];
}

#endif
