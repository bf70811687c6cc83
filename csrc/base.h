/* base.h - the words everyone speaks.
 *
 * WHAT      An image is one span of memory handed in by the caller. A granule is 8 bytes of it; a
 *           `gb_ref` counts granules from its start, 0 is nil, so one image reaches 32 GiB and may be
 *           mapped anywhere. A block is a run of granules that opens with one 32-bit word. An entry
 *           is a block that holds a key. A step is one entry, block or bucket touched: the unit in
 *           which every operation is bounded and counted. Links a splice writes in a neighbour are
 *           part of the step that splices.
 *
 * PICTURE   the first word of every block
 *
 *             31    30   29..27 26..25 24..17 16..14  13        12..10 9..0
 *            +-----+----+------+------+------+------+---------+------+----------+
 *            |extra|ttl | vtype| ktype| klen | pad  |prev free| kind | granules |
 *            +-----+----+------+------+------+------+---------+------+----------+
 *            bits 14..31 belong to entries; a free block uses bit 14 as "held".
 *
 *           an entry (links sit on granules, so a ref may name them)
 *
 *             0    4    8          16               28              28+sizeof(extra)
 *            +----+----+----------+----------------+---------------+-----+-------+-----+
 *            |word|hash| lru link | wheel link, due| extra         | key | value | pad |
 *            +----+----+----------+----------------+---------------+-----+-------+-----+
 *                                  only with ttl     only with extra
 *
 * INVARIANT 1 a ref is below the image's length in granules.
 *           2 a block is 1..GB_BLOCK_MAX granules long, a free one any length.
 *
 * COST      nothing here costs.
 *
 * NOT HERE  time, locks, allocation, Python: memory, `now` and the seed are arguments.
 */
#ifndef GB_BASE_H
#define GB_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint32_t gb_ref;

#define GB_GRANULE 8u
#ifdef GB_TINY /* small constants, so that rare paths are common ones */
#define GB_WINDOW_BYTES 1024u
#define GB_WHEEL_BITS 2u
#define GB_DIR_ROOTS 64u
#define GB_DIR_SHIFT 3u
#else
#define GB_WINDOW_BYTES 4096u
#define GB_WHEEL_BITS 6u
#define GB_DIR_ROOTS 1024u
#define GB_DIR_SHIFT 9u
#endif
#define GB_BLOCK_MAX (GB_WINDOW_BYTES / GB_GRANULE) /* granules: no block is larger */
#define GB_STEPS_MAX 64u                            /* steps in one lock hold, at most */

/* X(name, message): every code a call of the core may return; a miss is not an error. */
#define GB_ERRORS(X)                                                                               \
    X(OK, "done")                                                                                  \
    X(AGAIN, "the work budget of this slice is spent, call again")                                 \
    X(FULL, "nothing is left to evict and no block fits")                                          \
    X(TOOBIG, "the value can never fit the budget")                                                \
    X(LONGKEY, "the key is longer than a block allows")                                            \
    X(EXISTS, "the key is there already")                                                          \
    X(BUSY, "a long read or write is under way")                                                   \
    X(GONE, "what the cursor stood on is gone")                                                    \
    X(SMALL, "the image is too small")                                                             \
    X(BADIMAGE, "not an image of this layout")
#define GB_ENUM(name, text) GB_##name,
enum gb_err { GB_ERRORS(GB_ENUM) GB_ERR_COUNT };
#undef GB_ENUM

/* Why an entry left. What a replace overwrites goes another way: it is one change. */
enum gb_cause { GB_CAUSE_DELETE, GB_CAUSE_EVICT, GB_CAUSE_EXPIRE, GB_CAUSE_INVALIDATE, GB_CAUSES };

/* What a block is for; the ledger has one line for each. HEAD is the fixed front and the end mark. */
enum gb_kind {
    GB_KIND_FREE,
    GB_KIND_ENTRY,
    GB_KIND_EXTENT,
    GB_KIND_BUCKETS,
    GB_KIND_OVERFLOW,
    GB_KIND_DIRECTORY,
    GB_KIND_RING,
    GB_KIND_PENDING, /* an entry no look-up finds: being written, or dead but pinned */
    GB_KIND_HEAD,    /* the fixed front of the image: a line of the ledger, never a block */
    GB_KINDS
};

struct gb_link {
    gb_ref prev, next;
};

struct gb_entry {
    uint32_t word;
    uint32_t hash; /* low half of the key's hash: bucket number; never computed again */
    struct gb_link lru;
};

struct gb_timer {
    struct gb_link link;
    uint32_t due; /* ms, low half; gb_extra.due_high has the rest beyond 2^31 ms */
};

struct gb_extra {
    uint32_t key_len;  /* true length of the key */
    uint32_t val_len;  /* true length of the value */
    gb_ref chain;      /* first extent, 0 while the value lies inline */
    uint32_t due_high; /* deadline, high half; valid if GB_EXTRA_WIDE */
    uint32_t idle;     /* ms a use adds, 0 for none */
    uint32_t flags;
    uint32_t stale; /* ms the value is kept beyond its deadline, for those who ask for it */
    uint32_t spare;
    uint32_t hard_low, hard_high; /* the deadline no use may pass, where idle is set; 0: none */
};
#define GB_EXTRA_WIDE 1u
#define GB_EXTRA_CHAIN 2u

struct gb_extent {
    uint32_t word;
    uint32_t used; /* payload bytes */
    gb_ref prev;   /* the extent before, or the entry that owns the chain */
    gb_ref next;
};

_Static_assert(sizeof(struct gb_link) == GB_GRANULE, "a link is a granule, so a ref can name it");
_Static_assert(sizeof(struct gb_entry) == 16, "an entry's header is 16 bytes");
_Static_assert(offsetof(struct gb_entry, lru) == GB_GRANULE, "lru link = entry + 1");
_Static_assert(sizeof(struct gb_timer) == 12, "a ttl costs 12 bytes");
_Static_assert(sizeof(struct gb_extra) == 40, "extra words are 40 bytes");
_Static_assert(sizeof(struct gb_extent) == 16, "an extent's header is 16 bytes");

#define GB_LRU_OF(e) ((gb_ref)((e) + 1u))
#define GB_WHEEL_OF(e) ((gb_ref)((e) + 2u))
#define GB_ENTRY_OF_LRU(l) ((gb_ref)((l) - 1u))
#define GB_ENTRY_OF_WHEEL(l) ((gb_ref)((l) - 2u))

#define GB_WORD_PREV_FREE (1u << 13)
#define GB_WORD_HELD (1u << 14)
#define GB_WORD_TTL (1u << 30)
#define GB_WORD_EXTRA (1u << 31)
#define GB_KLEN_LONG 255u

static inline uint32_t gb_word_granules(uint32_t w) { return w & 1023u; }
static inline enum gb_kind gb_word_kind(uint32_t w) { return (enum gb_kind)((w >> 10) & 7u); }
static inline uint32_t gb_word_pad(uint32_t w) { return (w >> 14) & 7u; }
static inline uint32_t gb_word_klen(uint32_t w) { return (w >> 17) & 255u; }
static inline uint32_t gb_word_ktype(uint32_t w) { return (w >> 25) & 3u; }
static inline uint32_t gb_word_vtype(uint32_t w) { return (w >> 27) & 7u; }

/* Between two stores that must happen in this order. A killed process leaves exactly the stores of the
 * instructions it had done, so the compiler alone could break it. */
#define GB_ORDER() __atomic_signal_fence(__ATOMIC_SEQ_CST)

static inline void *gb_at(uint8_t *base, gb_ref ref) { return base + (size_t)ref * GB_GRANULE; }
static inline struct gb_entry *gb_entry_at(uint8_t *base, gb_ref ref) {
    return (struct gb_entry *)gb_at(base, ref);
}
static inline struct gb_timer *gb_timer_at(uint8_t *base, gb_ref ref) {
    return (struct gb_timer *)gb_at(base, ref + 2u);
}
static inline struct gb_extent *gb_extent_at(uint8_t *base, gb_ref ref) {
    return (struct gb_extent *)gb_at(base, ref);
}
/* Only where the word says GB_WORD_EXTRA. */
static inline struct gb_extra *gb_extra_at(uint8_t *base, gb_ref ref, uint32_t word) {
    uint8_t *p = (uint8_t *)gb_at(base, ref) + sizeof(struct gb_entry);
    return (struct gb_extra *)(void *)(p + ((word & GB_WORD_TTL) ? sizeof(struct gb_timer) : 0));
}
/* ms by which an entry outlives its deadline: the wheel's, which the timer holds, is the end of both. */
static inline uint32_t gb_stale_at(uint8_t *base, gb_ref ref, uint32_t word) {
    return word & GB_WORD_EXTRA ? gb_extra_at(base, ref, word)->stale : 0u;
}
static inline uint32_t gb_header_bytes(uint32_t word) {
    return (uint32_t)sizeof(struct gb_entry) +
           ((word & GB_WORD_TTL) ? (uint32_t)sizeof(struct gb_timer) : 0u) +
           ((word & GB_WORD_EXTRA) ? (uint32_t)sizeof(struct gb_extra) : 0u);
}

/* Whether an entry at `ref` may be looked at: all but key and value end where the arena does. Where nothing is trusted. */
static inline bool gb_entry_lies(uint8_t *base, gb_ref ref, gb_ref end) {
    return ref && ref < end && gb_header_bytes(gb_entry_at(base, ref)->word) <= (uint64_t)(end - ref) * GB_GRANULE;
}

/* Counts steps of the present lock hold. Process-local, never in the image. */
struct gb_work {
    uint32_t steps;
};

/* The broken sentence, not a line number: what a _check reports. */
struct gb_fault {
    const char *rule;
    uint64_t at, want, got;
};
static inline bool gb_broken(struct gb_fault *f, const char *rule, uint64_t at, uint64_t want,
                             uint64_t got) {
    f->rule = rule;
    f->at = at;
    f->want = want;
    f->got = got;
    return false;
}

#ifndef GB_ALLOC_FAILS /* a test's say in whether the arena has no block this time */
#define GB_ALLOC_FAILS() false
#endif
#ifndef GB_DEBUG
#define GB_DEBUG 0
#endif
#if GB_DEBUG >= 1 /* cheap */
#define GB_ASSERT(c) ((c) ? (void)0 : __builtin_trap())
#else
#define GB_ASSERT(c) ((void)sizeof(c))
#endif
#if GB_DEBUG >= 2 /* freed blocks are filled, so that a use after free shows */
#define GB_POISON(p, n) memset((p), 0x55, (n))
#else
#define GB_POISON(p, n) ((void)(p), (void)(n))
#endif

/* For what does nothing but prefetch: gcc 12 takes such a call for one without effect, and drops it, before it
 * inlines. */
#define GB_FETCHES static inline __attribute__((always_inline))

#define GB_LIKELY(x) __builtin_expect(!!(x), 1)
#define GB_UNLIKELY(x) __builtin_expect(!!(x), 0)

#endif
