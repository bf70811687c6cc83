/* table.h - from hash to candidate refs.
 *
 * WHAT      Linear hashing (Litwin, VLDB 80) over buckets of one cache line. A bucket holds twelve
 *           one-byte tags, from the hash's top byte, and twelve refs; one vector compare finds the
 *           candidates. What does not fit goes to an overflow bucket, a block of its own. Buckets lie
 *           in chunks that fill a window of the arena, found through a directory of two levels.
 *           The table yields refs whose tag matches; whoever asks compares the keys.
 *
 * PICTURE   bucket, 64 B                                   chunk: one window
 *             0          4        16                 64      0      64       128
 *            +----------+--------+------------------+       +------+--------+--------+- -
 *            |overflow 4|tags 12 |refs 12 x 4       |       |word..|bucket 0|bucket 1|
 *            +----------+--------+------------------+       +------+--------+--------+- -
 *           root.dirs[] -> directory block -> chunk -> bucket -> overflow bucket -> ...
 *
 *           buckets [0, split) and [size/2.., ..) have been split in this round: hash & (2m+1)
 *           buckets [split, m]                      have not:                    hash & m
 *
 * INVARIANT 1 an entry is in the chain of its hash's bucket, once, with its tag not 0.
 *           2 only the last bucket of a chain has empty slots, and no overflow bucket is empty.
 *           3 count is the number of filled slots.
 *           4 chunks and directory blocks are as many as the buckets need.
 *           5 a chunk, directory block or overflow bucket names its place: whoever moves it can
 *             find its referrer.
 *           6 mask is a power of two less one, split no more than it, and there are no more buckets than the
 *             directories have places for.
 *
 * COST      a look-up: one bucket, and its overflow (8 % of entries lie there). grow and shrink:
 *           one bucket, its entries' hashes read from the entries: about 13 steps.
 *
 * NOT HERE  keys, order, time.
 */
#ifndef GB_TABLE_H
#define GB_TABLE_H

#include "arena.h"
#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define GB_TABLE_SLOTS 12u
#define GB_TABLE_CHUNK (GB_WINDOW_BYTES / 64u - 1u) /* buckets in a chunk */
#define GB_TABLE_MOST ((uint64_t)GB_DIR_ROOTS * (1u << GB_DIR_SHIFT) * GB_TABLE_CHUNK) /* buckets */
#define GB_TABLE_OVERFLOW_GRANULES 9u
#define GB_TABLE_DIR_GRANULES (1u + (1u << GB_DIR_SHIFT) / 2u)

struct gb_bucket {
    gb_ref overflow; /* the block of the next bucket in the chain */
    uint8_t tag[GB_TABLE_SLOTS];
    gb_ref ref[GB_TABLE_SLOTS];
};
struct gb_overflow { /* a block */
    uint32_t word, owner; /* the number of the bucket whose chain it is in */
    struct gb_bucket bucket;
};
struct gb_chunk { /* a window */
    uint32_t word, number;
    uint32_t spare[14];
    struct gb_bucket bucket[GB_TABLE_CHUNK];
};
struct gb_directory { /* a block */
    uint32_t word, number;
    gb_ref chunk[1u << GB_DIR_SHIFT];
};
_Static_assert(sizeof(struct gb_bucket) == 64, "a bucket is a cache line");
_Static_assert(sizeof(struct gb_overflow) == GB_TABLE_OVERFLOW_GRANULES * GB_GRANULE, "72 bytes");
_Static_assert(sizeof(struct gb_chunk) == GB_WINDOW_BYTES, "a chunk fills a window");
_Static_assert(sizeof(struct gb_directory) == GB_TABLE_DIR_GRANULES * GB_GRANULE, "whole granules");
_Static_assert(GB_TABLE_DIR_GRANULES <= GB_BLOCK_MAX, "a directory is a block");

struct gb_table_root {
    uint32_t mask;  /* 2^level - 1 */
    uint32_t split; /* the next bucket to split */
    uint32_t count; /* filled slots */
    uint32_t spare;
    gb_ref dirs[GB_DIR_ROOTS];
};

struct gb_table {
    uint8_t *base;
    struct gb_table_root *root;
    struct gb_arena *arena;
};

enum gb_err gb_table_format(struct gb_table *t);
/* GB_FULL if an overflow bucket is needed and the arena has no block for it; nothing changed. */
enum gb_err gb_table_insert(struct gb_table *t, uint64_t hash, gb_ref ref);
void gb_table_remove(struct gb_table *t, uint32_t hash, gb_ref ref);
void gb_table_replace(struct gb_table *t, uint32_t hash, gb_ref from, gb_ref to);
/* Whether the mean fill asks for one more or one less bucket (70 % and 50 %). */
bool gb_table_wants_grow(const struct gb_table *t);
bool gb_table_wants_shrink(const struct gb_table *t);
/* Splits or merges one bucket. GB_FULL: the arena lacks a block; nothing changed, and *window says
 * whether it was a window that was lacking. */
enum gb_err gb_table_grow(struct gb_table *t, bool *window);
enum gb_err gb_table_shrink(struct gb_table *t);
/* An empty table gets so many buckets at once, or as many as the arena has windows for. */
void gb_table_presize(struct gb_table *t, uint32_t buckets);
/* A table made anew in blocks that are there, and emptied: `at` as directory `number`; the window `at` as chunk
 * `number`, whose directory is there by then; so many buckets. */
void gb_table_directory_again(struct gb_table *t, gb_ref at, uint32_t number);
void gb_table_chunk_again(struct gb_table *t, gb_ref at, uint32_t number);
void gb_table_size_again(struct gb_table *t, uint32_t buckets);
/* A block of the table was copied to `to`: mend what refers to it. */
void gb_table_moved(struct gb_table *t, gb_ref from, gb_ref to);
bool gb_table_check(const struct gb_table *t, struct gb_fault *f);

/* Invariant 6, where any bytes may stand: what gb_table_size says is so. */
static inline bool gb_table_sized(const struct gb_table_root *r) {
    uint64_t size = (uint64_t)r->mask + 1u + r->split;
    return !(r->mask & (r->mask + 1u)) && r->split <= r->mask && size <= GB_TABLE_MOST;
}
static inline uint32_t gb_table_size(const struct gb_table *t) {
    return t->root->mask + 1u + t->root->split;
}
static inline uint32_t gb_table_bucket_of(const struct gb_table *t, uint32_t hash) {
    uint32_t b = hash & t->root->mask;
    return b < t->root->split ? hash & (2u * t->root->mask + 1u) : b;
}
static inline struct gb_bucket *gb_table_bucket(const struct gb_table *t, uint32_t number) {
    uint32_t c = number / GB_TABLE_CHUNK, b = number % GB_TABLE_CHUNK;
    gb_ref dir = t->root->dirs[c >> GB_DIR_SHIFT];
    const struct gb_directory *d = (struct gb_directory *)gb_at(t->base, dir);
    gb_ref chunk = d->chunk[c & ((1u << GB_DIR_SHIFT) - 1u)];
    return &((struct gb_chunk *)gb_at(t->base, chunk))->bucket[b];
}
static inline uint8_t gb_table_tag(uint64_t hash) { /* 0 marks an empty slot */
    uint8_t top = (uint8_t)(hash >> 56);
    return top ? top : 1u;
}

/* Bits of the slots whose tag is `tag`. */
static inline uint32_t gb_table_match(const struct gb_bucket *b, uint8_t tag) {
#if defined(__SSE2__)
    __m128i line = _mm_loadu_si128((const __m128i *)(const void *)b); /* overflow ref, then tags */
    __m128i same = _mm_cmpeq_epi8(line, _mm_set1_epi8((char)tag));
    return (uint32_t)_mm_movemask_epi8(same) >> 4;
#elif defined(__ARM_NEON)
    uint8x16_t line = vld1q_u8((const uint8_t *)b);
    uint8x16_t same = vceqq_u8(line, vdupq_n_u8(tag));
    uint64_t nibbles = vget_lane_u64(
        vreinterpret_u64_u8(vshrn_n_u16(vreinterpretq_u16_u8(same), 4)), 0) >> 16;
    uint32_t bits = 0;
    for (; nibbles; nibbles &= nibbles - 1u) bits |= 1u << ((uint32_t)__builtin_ctzll(nibbles) >> 2);
    return bits;
#else
    uint32_t bits = 0;
    for (uint32_t i = 0; i < GB_TABLE_SLOTS; i++) bits |= (uint32_t)(b->tag[i] == tag) << i;
    return bits;
#endif
}

/* Look-up and insertion in one, where they are short: the hash's bucket `b` has room, no overflow, and no such tag. */
static inline bool gb_table_quick(struct gb_table *t, struct gb_bucket *b, uint64_t hash, gb_ref ref) {
    uint32_t empty = gb_table_match(b, 0);
    if (b->overflow || !empty || gb_table_match(b, gb_table_tag(hash))) return false;
    uint32_t slot = (uint32_t)__builtin_ctz(empty);
    b->ref[slot] = ref;
    b->tag[slot] = gb_table_tag(hash);
    t->root->count++;
    return true;
}

/* The candidates of a hash, one at a time. The table must not change between two of them. */
struct gb_probe {
    const struct gb_bucket *bucket;
    uint32_t bits;
    uint8_t tag;
};
static inline void gb_probe_begin(const struct gb_table *t, struct gb_probe *p, uint64_t hash) {
    p->bucket = gb_table_bucket(t, gb_table_bucket_of(t, (uint32_t)hash));
    p->tag = gb_table_tag(hash);
    p->bits = gb_table_match(p->bucket, p->tag);
    t->arena->work.steps++;
}
static inline gb_ref gb_probe_next(const struct gb_table *t, struct gb_probe *p) {
    while (!p->bits) {
        if (!p->bucket->overflow) return 0;
        p->bucket = &((struct gb_overflow *)gb_at(t->base, p->bucket->overflow))->bucket;
        p->bits = gb_table_match(p->bucket, p->tag);
        t->arena->work.steps++;
    }
    uint32_t slot = (uint32_t)__builtin_ctz(p->bits);
    p->bits &= p->bits - 1u;
    return p->bucket->ref[slot];
}

#endif
