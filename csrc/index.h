/* index.h - what exists, in which order, until when.
 *
 * WHAT      Table, recency list and wheel over entries, kept in agreement. An entry that is in the
 *           table is in the list, and in the wheel if and only if its word says TTL. The list runs
 *           from the most recently used (the front) to the least (the back): the next victim.
 *
 * PICTURE   hash -> table -> entry <-> entry <-> entry     list: front = most recently used
 *                              |                  |
 *                            wheel              wheel      only where the word says TTL
 *
 * INVARIANT 1 the list's length is the table's count.
 *           2 every entry of the list is found in the table by its hash.
 *           3 the wheel's count is the number of listed entries with a TTL.
 *
 * COST      insert, remove, replace: one bucket, two list neighbours, two wheel neighbours.
 *           use: three links. victim: one load.
 *
 * NOT HERE  what a key or a value is, bytes, the budget; who frees a block.
 */
#ifndef GB_INDEX_H
#define GB_INDEX_H

#include "arena.h"
#include "table.h"
#include "wheel.h"

struct gb_index_root {
    struct gb_link lru;
    uint64_t epoch; /* births and deaths, ever: moved means the set of entries changed */
};

struct gb_moment;
/* A walk from least to most recently used that survives whatever happens between its steps. */
struct gb_walk {
    gb_ref at; /* the next link to visit */
    bool used;
    struct gb_moment *moment; /* NULL: what is used is visited again; it is moment.h's */
};
#define GB_INDEX_WALKS 8u

struct gb_index {
    uint8_t *base;
    struct gb_index_root *root;
    struct gb_arena arena;
    struct gb_table table;
    struct gb_wheel wheel;
    uint32_t walks; /* active ones: nothing is paid while there are none */
    uint32_t stirs; /* uses during walks: the order such a walk saw is not one moment's */
    struct gb_walk walk[GB_INDEX_WALKS];
};

enum gb_err gb_index_format(struct gb_index *ix, uint32_t head_granules, gb_ref end, uint64_t now);
/* Most recently used. GB_FULL: the table lacks a block; nothing changed. */
enum gb_err gb_index_insert(struct gb_index *ix, uint64_t hash, gb_ref ref);
void gb_index_remove(struct gb_index *ix, gb_ref ref);
/* `to`, of the same key and hash, takes the place of `from` and becomes most recently used. */
void gb_index_replace(struct gb_index *ix, gb_ref from, gb_ref to, bool use);
/* Sets the deadline of an entry that has a timer, and where there are extra words the one no use may pass and what
 * a use adds; false if it lacks the words to say so. */
bool gb_index_retime(struct gb_index *ix, gb_ref ref, uint64_t due, uint64_t hard, uint32_t idle);
void gb_index_retime_finish(struct gb_index *ix, const struct gb_intent *i);
/* An entry's block was copied from `from` to `to`. */
void gb_index_moved(struct gb_index *ix, gb_ref from, gb_ref to);
bool gb_index_walk_begin(struct gb_index *ix, uint32_t *id);
gb_ref gb_index_walk_next(struct gb_index *ix, uint32_t id);
void gb_index_walk_end(struct gb_index *ix, uint32_t id);
void gb_index_walk_stir(struct gb_index *ix, gb_ref link);
bool gb_index_check(const struct gb_index *ix, struct gb_fault *f);

/* A bit for each place where an entry can begin: `gb_index_places` words of them for an image so long. */
static inline size_t gb_index_places(uint64_t length) { return (size_t)(length / GB_GRANULE / 128u + 1u); }
static inline bool gb_index_marked(const uint64_t *bits, gb_ref ref) { return bits[ref >> 7] >> (ref >> 1 & 63u) & 1u; }
static inline void gb_index_mark(uint64_t *bits, gb_ref ref) { bits[ref >> 7] |= (uint64_t)1 << (ref >> 1 & 63u); }
static inline void gb_index_unmark(uint64_t *bits, gb_ref ref) { bits[ref >> 7] &= ~((uint64_t)1 << (ref >> 1 & 63u)); }

static inline gb_ref gb_index_list(const struct gb_index *ix) {
    return (gb_ref)((size_t)((uint8_t *)&ix->root->lru - ix->base) / GB_GRANULE);
}
static inline gb_ref gb_index_victim(const struct gb_index *ix) {
    gb_ref back = ix->root->lru.prev;
    return back == gb_index_list(ix) ? 0 : GB_ENTRY_OF_LRU(back);
}
static inline void gb_index_use(struct gb_index *ix, gb_ref ref) {
    gb_ref link = GB_LRU_OF(ref);
    if (ix->root->lru.next == link) return;
    if (GB_UNLIKELY(ix->walks)) gb_index_walk_stir(ix, link);
    gb_list_unlink(ix->base, link);
    gb_list_link(ix->base, gb_index_list(ix), link);
}
/* Whether an entry that has a timer is at its end: to be removed. */
static inline bool gb_index_due(const struct gb_index *ix, gb_ref ref, uint64_t now) {
    return gb_wheel_deadline(&ix->wheel, ref) <= now;
}
/* The deadline of an entry that has a timer; it may be kept for a while beyond (stale). */
static inline uint64_t gb_index_deadline(const struct gb_index *ix, gb_ref ref) {
    return gb_wheel_deadline(&ix->wheel, ref) -
           gb_stale_at(ix->base, ref, gb_entry_at(ix->base, ref)->word);
}

#endif
