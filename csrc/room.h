/* room.h - the superblock, the one door out, and where room comes from.
 *
 * WHAT      The superblock opens the image and roots everything in it. `struct gb_store` is the
 *           process's handle on an image: addresses, pins and the work counter, never stored.
 *           Room for a block is made one unit at a time, in this order: an extent from the trash; an
 *           entry that is due; if enough is free but scattered, one step of the gap; else the least
 *           recently used entry goes. A pin keeps a block where it is while a long value is read or
 *           written in slices; an entry that dies while pinned stays charged until it is unpinned.
 *
 * PICTURE   superblock                                                      arena
 *             +-----+--------+----+------+--------+------+-----+-----+-----+------- - -
 *             |magic|geometry|seed|state |counters|intent|index|wheel|table|arena root|
 *             +-----+--------+----+------+--------+------+-----+-----+-----+------- - -
 *           trash:  chain head --prev--> chain head --prev--> 0     each head --next--> extents
 *
 * INVARIANT 1 key_bytes and value_bytes are the sums over the indexed entries.
 *           2 every extent is in one indexed entry's chain, a pending entry's, or the trash.
 *           3 a chain's extents hold its value's length, each names the one before.
 *           4 every pending block is pinned.
 *           5 magic, version, layout and length are those of this build and mapping.
 *
 * COST      gb_room_make: one unit, at most GB_ROOM_UNIT steps. remove: one bucket, two links.
 *
 * NOT HERE  keys' bytes, look-ups, put and get (store), values longer than a block (chain), files.
 */
#ifndef GB_ROOM_H
#define GB_ROOM_H

#include "digest.h"
#include "index.h"

#define GB_ROOM_MAGIC 0x0A31656863614247u /* "GBcache1\n", little end first, in eight bytes */
#define GB_ROOM_VERSION 1u
#define GB_ROOM_UNIT 24u /* steps one unit of room may take */
#define GB_ROOM_LAST (GB_STEPS_MAX - GB_ROOM_UNIT)
#define GB_ROOM_PINS 16u

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
    uint64_t seq;        /* of the last event recorded */
    gb_ref ring, ring_blocks;
    uint32_t max_entries; /* 0: no bound but the bytes */
    gb_ref trash;
    uint64_t key_bytes, value_bytes;
    uint64_t checksum;
    uint64_t later[8];
    struct gb_counters counters;
    uint64_t intent[8]; /* the primitive step under way: for live files */
    struct gb_index_root index;
    struct gb_wheel_root wheel;
    struct gb_table_root table;
    struct gb_arena_root arena;
};
_Static_assert(offsetof(struct gb_head, index) % GB_GRANULE == 0, "list heads lie on granules");
_Static_assert(offsetof(struct gb_head, wheel) % GB_GRANULE == 0, "list heads lie on granules");
_Static_assert(offsetof(struct gb_head, arena) % GB_GRANULE == 0, "list heads lie on granules");
#define GB_ROOM_HEAD_GRANULES ((gb_ref)((sizeof(struct gb_head) + GB_GRANULE - 1u) / GB_GRANULE))

/* What the steps of a lock hold are counted under. */
enum gb_op {
    GB_OP_GET, GB_OP_SET, GB_OP_LONG, GB_OP_REMOVE, GB_OP_EXPIRE, GB_OP_WALK, GB_OP_RESIZE, GB_OPS
};

struct gb_pin {
    gb_ref entry, extent; /* an extent that is being read or appended to */
    bool used, writing;
};

struct gb_store {
    uint8_t *base;
    struct gb_head *head;
    struct gb_index index;
    struct gb_digest digest;
    uint32_t pins;   /* active ones: nothing is paid while there are none */
    uint32_t slides; /* steps of the gap that found no hole to move to, since the last eviction */
    uint32_t laps;   /* times the hand came round with nothing left to evict */
    gb_ref cut;       /* where a shrink under way will end the arena; 0: none */
    uint64_t writing; /* granules promised to long writes under way */
    uint32_t max_steps[GB_OPS];
    struct gb_pin pin[GB_ROOM_PINS];
};

enum gb_err gb_room_format(struct gb_store *s, void *base, uint64_t length, const uint64_t seed[2],
                           uint64_t now);
enum gb_err gb_room_attach(struct gb_store *s, void *base, uint64_t length);
/* The image, handle and all, was mapped elsewhere. */
void gb_room_rebase(struct gb_store *s, void *base);
/* Back to an empty image of the same seed, counters and bounds. GB_BUSY while anything is pinned. */
enum gb_err gb_room_clear(struct gb_store *s, uint64_t now);
/* The smallest image, in bytes. */
uint64_t gb_room_smallest(void);
/* Granules one value could have if nothing else were there (and a shrink under way had ended). */
uint64_t gb_room_capacity(const struct gb_store *s);

/* The one door out: unlinks, accounts, counts, frees (or leaves to the pin). */
void gb_room_remove(struct gb_store *s, gb_ref ref, enum gb_cause cause);
/* The half of it that a replace needs: the entry is out of the index already. */
void gb_room_release(struct gb_store *s, gb_ref ref);
/* Accounts a birth. */
void gb_room_born(struct gb_store *s, gb_ref ref);
/* Frees a block no index knows, and sends its chain to the trash. */
void gb_room_drop(struct gb_store *s, gb_ref ref);

/* Brings what evicting the next victim will touch (it is the coldest there is: four misses, one after
 * the other, 100 ns), so that the next put of a full image finds it. Worth nothing in one that is not. */
static inline void gb_room_foresee(const struct gb_store *s) {
    gb_ref victim = gb_index_victim(&s->index);
    if (!victim) return;
    const struct gb_entry *e = gb_entry_at(s->base, victim);
    const struct gb_table *t = &s->index.table;
    __builtin_prefetch(gb_table_bucket(t, gb_table_bucket_of(t, e->hash)), 1);
    __builtin_prefetch(gb_at(s->base, victim + gb_word_granules(e->word)), 1); /* to coalesce */
    __builtin_prefetch(gb_list_at(s->base, e->lru.prev), 1); /* and who comes after */
}

/* One unit of room. GB_OK: try the allocation again; GB_FULL: nothing is left to give. */
enum gb_err gb_room_make(struct gb_store *s, uint64_t now, bool window);
/* Keeps the table near its mean fill, if the hold has steps left for it. */
void gb_room_tend(struct gb_store *s, uint64_t now);
/* Housekeeping without a caller: due entries, trash. True if more is waiting. */
bool gb_room_work(struct gb_store *s, uint64_t now);

/* Gives up all above `length` bytes in slices: GB_AGAIN until done, and until then nobody else moves
 * blocks. GB_BUSY if a pinned block is in the way, or if more is promised to long writes than would be
 * left: all is as it was but for what was evicted. A `length` that is the image's own leaves a shrink
 * half done. Growing takes one call, after the image was mapped longer. */
enum gb_err gb_room_shrink(struct gb_store *s, uint64_t length);
void gb_room_grow(struct gb_store *s, uint64_t length);

enum gb_err gb_room_pin(struct gb_store *s, gb_ref entry, bool writing, uint32_t *id);
void gb_room_unpin(struct gb_store *s, uint32_t id);
bool gb_room_pinned(struct gb_store *s, gb_ref block);
bool gb_room_check(const struct gb_store *s, struct gb_fault *f);

/* A lock hold begins and ends: its steps are counted under `op`. */
static inline void gb_room_enter(struct gb_store *s) { s->index.arena.work.steps = 0; }
static inline void gb_room_leave(struct gb_store *s, enum gb_op op) {
    if (GB_UNLIKELY(s->index.arena.work.steps > s->max_steps[op]))
        s->max_steps[op] = s->index.arena.work.steps;
}
static inline uint32_t gb_room_steps(const struct gb_store *s) {
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
