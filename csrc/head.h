/* head.h - the superblock, and the process's handle on an image.
 *
 * WHAT      The superblock opens the image and roots everything in it. `struct gb_store` is the
 *           process's handle: addresses, pins, the work counter, who listens; never stored. A hold is what
 *           happens between taking the lock and giving it back; its steps are counted.
 *
 * PICTURE   superblock                                                           arena        ring
 *             +-----+--------+----+------+--------+------+----+-----+-----+-----+-----+------+---+
 *             |magic|geometry|seed|state |counters|intent|ring|index|wheel|table|arena|blocks| . |
 *             +-----+--------+----+------+--------+------+----+-----+-----+-----+-----+------+---+
 *
 * INVARIANT 1 the handle's addresses are those of the mapping its base names.
 *           2 no hold takes more than GB_STEPS_MAX steps; max_steps keeps the most.
 *
 * COST      nothing here costs.
 *
 * NOT HERE  what is done with it: room (which checks the superblock), store, chain.
 */
#ifndef GB_HEAD_H
#define GB_HEAD_H

#include "digest.h"
#include "index.h"
#include "ring.h"

#define GB_HEAD_PINS 16u

/* X(name, help): counters kept in the image, so that they survive with it. */
#define GB_COUNTERS(X)                                                                             \
    X(hits, "reads that found a live entry")                                                       \
    X(misses_absent, "reads of a key that was not there")                                          \
    X(misses_expired, "reads of a key whose entry was due")                                        \
    X(sets, "values written, new or over an old one")                                              \
    X(replaces, "values written over an old one")                                                  \
    X(deletes, "entries removed by request")                                                       \
    X(evictions, "entries removed to make room")                                                   \
    X(expirations, "entries removed because they were due")                                        \
    X(rejects, "values refused because they can never fit")                                        \
    X(clears, "times everything was removed at once")                                              \
    X(moves, "blocks moved to make scattered room one")                                            \
    X(loads, "values a get_or_set loaded")                                                         \
    X(load_errors, "loads that raised")                                                            \
    X(stale_hits, "get_or_sets answered with a value past its deadline")
#define GB_FIELD(name, help) uint64_t name;
struct gb_counters {
    GB_COUNTERS(GB_FIELD)
};

struct gb_head {
    uint64_t magic;
    uint32_t version, layout; /* layout: a number made of every size and constant above */
    uint64_t length;          /* bytes */
    uint64_t seed[2];
    uint64_t clock_base; /* wall clock, ms, at the image's time 0: for files */
    uint64_t boot_id[2]; /* of the machine's run that last wrote here: for live files */
    uint32_t state;      /* closed, open, sealed: for files */
    uint32_t generation; /* of the file */
    uint32_t max_entries; /* 0: no bound but the bytes */
    gb_ref trash;
    uint64_t key_bytes, value_bytes;
    uint64_t checksum;
    uint64_t seq;     /* the last event's number of the rings before this one */
    uint64_t owner;   /* process, of a live file */
    int64_t zero_ns;  /* of the monotonic clock of that boot, at the image's time 0 */
    uint64_t max_bytes; /* as it was asked for */
    uint64_t closed_at; /* the image's ms when it was closed: it does not go back behind that */
    char codec[64];     /* the name values are encoded under */
    uint64_t file_id;   /* of the file it was opened in: a copy is another */
    uint64_t later[2];
    struct gb_counters counters;
    struct gb_intent intent; /* the primitive step under way: for live files */
    struct gb_ring_root ring; /* of events, at the image's end; granules 0: there is none */
    struct gb_index_root index;
    struct gb_wheel_root wheel;
    struct gb_table_root table;
    struct gb_arena_root arena;
};
_Static_assert(offsetof(struct gb_head, index) % GB_GRANULE == 0, "list heads lie on granules");
_Static_assert(offsetof(struct gb_head, wheel) % GB_GRANULE == 0, "list heads lie on granules");
_Static_assert(offsetof(struct gb_head, arena) % GB_GRANULE == 0, "list heads lie on granules");
#define GB_HEAD_GRANULES ((gb_ref)((sizeof(struct gb_head) + GB_GRANULE - 1u) / GB_GRANULE))

/* What the steps of a lock hold are counted under. */
enum gb_op {
    GB_OP_GET, GB_OP_SET, GB_OP_LONG, GB_OP_REMOVE, GB_OP_EXPIRE, GB_OP_WALK, GB_OP_RESIZE, GB_OPS
};

struct gb_keep; /* a save under way: keep.h */
struct gb_pin {
    gb_ref entry, extent; /* an extent that is being read or appended to */
    bool used, writing;
    unsigned long by; /* whoever pinned it, if he says so: the core only keeps it */
};

struct gb_store {
    uint8_t *base;
    struct gb_head *head;
    struct gb_index index;
    struct gb_digest digest;
    uint32_t pins;   /* active ones: nothing is paid while there are none */
    uint32_t slides; /* steps of the gap that found no hole to move to, since the last eviction */
    uint32_t laps;   /* times the hand came round with nothing left to evict */
    uint32_t waits;  /* for the wheel, since the last removal */
    gb_ref cut;       /* where a shrink under way will end the arena; 0: none */
    uint64_t writing; /* granules promised to long writes under way */
    uint32_t max_steps[GB_OPS];
    struct gb_ring ring;
    struct gb_keep *keep; /* NULL: nobody saves */
    uint64_t mapped;  /* bytes of the mapping: the image may be shorter */
    uint64_t now;     /* of the present hold, for events */
    uint32_t listens; /* kinds of events that are recorded; 0: nothing is paid */
    bool values;      /* events carry values */
    bool live;        /* the image is a file that outlives the process: intents are written */
    bool told;        /* something was recorded: whoever sleeps is to be woken */
    struct gb_pin pin[GB_HEAD_PINS];
};

#ifdef GB_SILENT /* a bench's build: the difference to it is what is paid while nobody listens */
#define GB_HEAD_LISTENS(s) 0u
#define GB_HEAD_TOLD(s) false
#else
#define GB_HEAD_LISTENS(s) ((s)->listens)
#define GB_HEAD_TOLD(s) ((s)->told)
#endif

/* A lock hold begins and ends: its steps are counted under `op`. */
static inline void gb_head_enter(struct gb_store *s) { s->index.arena.work.steps = 0; }
static inline void gb_head_leave(struct gb_store *s, enum gb_op op) {
    if (GB_UNLIKELY(s->index.arena.work.steps > s->max_steps[op]))
        s->max_steps[op] = s->index.arena.work.steps;
}
static inline uint32_t gb_head_steps(const struct gb_store *s) {
    return s->index.arena.work.steps;
}
static inline uint32_t gb_key_len(uint8_t *base, gb_ref ref, uint32_t word) {
    uint32_t n = gb_word_klen(word);
    return n == GB_KLEN_LONG ? gb_extra_at(base, ref, word)->key_len : n;
}
static inline uint32_t gb_value_len(uint8_t *base, gb_ref ref, uint32_t word) {
    if (word & GB_WORD_EXTRA) return gb_extra_at(base, ref, word)->val_len;
    return gb_word_granules(word) * GB_GRANULE - gb_header_bytes(word) - gb_word_klen(word) -
           gb_word_pad(word);
}

#endif
