/* _refs.h - references to Python objects behind the index: what ObjectCache stores.
 *
 * WHAT      The same table, recency list and wheel as the packed store's, over entries whose payload is
 *           a pair of references. They lie in a reservation of address space, touched as it fills, that
 *           the cache has for itself; the garbage collector is shown every pair (gb_bulk_traverse). The
 *           GIL is the lock, or the store's own section (_alone.h): nothing here lets go of it, but what runs
 *           Python code, or frees a reference.
 *
 * PICTURE   an entry's block            word of an entry
 *             0      16       28/68      key length bits: the tag, top 8 bits of the key's hash
 *            +------+--------+---------+-----+-------+--------+    value type bit: has a weight
 *            |header| timer, | extra   | key | value | weight |
 *            +------+--------+---------+-----+-------+--------+
 *                   only if its life has them        only with weigh=
 *
 * INVARIANT 1 keys compare by identity, then by 40 bits of their hash, then by ==, and == runs between
 *             two probes: whatever it did, the search begins anew if the set of entries changed.
 *           2 an entry holds a key. What leaves is put aside while the index is being changed, and
 *             released after.
 *           3 the weight is the sum over the entries.
 *           4 the entries are the blocks of their kind: the collector sees each exactly once.
 *           5 count and weight are within their bounds when a call returns.
 *           6 what is recorded is told before the operation returns, in its thread, once the index is
 *             whole and what went is released.
 *
 * COST      find: one bucket, one entry. removal: as find. None depends on the count. An event that nobody
 *           asks for: a test.
 *
 * NOT HERE  writing and making room (_put), methods and their arguments (_quick), options (cache.py).
 */
#ifndef GB_REFS_H
#define GB_REFS_H

#include "_queue.h"

#include "_alone.h"

#define GB_REFS_ASIDE 16u /* entries removed in one go, before what they held is released, at most */
#define GB_REFS_WEIGHT (1u << 27) /* the lowest bit of a word's value type */

struct gb_refs_head { /* at the reservation's start */
    uint64_t magic; /* so that no list head has ref 0 */
    struct gb_index_root index;
    struct gb_wheel_root wheel;
    struct gb_table_root table;
    struct gb_arena_root arena;
};

struct gb_refs_counters {
    uint64_t hits, misses_absent, misses_expired, sets, replaces, deletes, evictions, expirations,
        rejects, clears, loads, load_errors, stale_hits;
};

struct gb_refs {
    struct gb_index index;
    struct gb_clock clock;
    struct gb_refs_counters counters;
    bool open;
    bool born; /* was ever open: tells "closed" from "never initialised" */
    bool keep; /* the housekeeper is to be told of the first TTL */
    uint32_t kinds; /* what is recorded, a bit for each gb_event; 0: nobody listens */
    uint32_t max_entries; /* 0: no bound */
    uint64_t max_weight;  /* 0: no bound */
    uint64_t weight;
    uint64_t epoch; /* of all images there were */
    uint64_t seed;
    PyObject *weigh; /* borrowed; NULL: nothing is weighed */
    PyObject *flights; /* borrowed; of flights under way: _args.h */
    uint32_t max_steps;
    struct gb_queue *queue; /* NULL: nobody ever listened */
};

/* What was removed, to be released once the index is whole again. An event makes it longer by what the
 * record it overwrites held, so there is always something aside where something is to be told. */
struct gb_refs_aside {
    uint32_t n;
    bool told;
    PyObject *held[2u * GB_REFS_ASIDE + 2u + 2u * GB_QUEUE_GONE]; /* the last removal, and a write */
};

struct gb_refs_names {
    PyObject *budget_error, *closed_error, *keep, *grow;
};
extern struct gb_refs_names gb_refs_names;

/* Formats `length` bytes at `base`, all zero; what was there before is the caller's to drain.
 * GB_SMALL, GB_TOOBIG as an image's. */
enum gb_err gb_refs_format(struct gb_refs *r, void *base, uint64_t length, uint64_t now);
/* The reservation was mapped elsewhere. */
void gb_refs_rebase(struct gb_refs *r, void *base);
uint64_t gb_refs_smallest(void);
/* Behind the last block in use: granules that were ever touched, but for the end mark. */
gb_ref gb_refs_top(const struct gb_refs *r);
/* What of the reservation was ever touched, to as much room elsewhere, all zero. */
void gb_refs_copy(const struct gb_refs *r, void *to);
/* False: ClosedError is set. */
bool gb_refs_opened(struct gb_refs *r);
/* The hash by which a key is found; -1 with an exception, else 0. Runs the key's __hash__. */
int gb_refs_hash(const struct gb_refs *r, PyObject *key, uint64_t *hash);
/* 1 found, 0 absent, -1 exception. Runs the keys' __eq__; *ref is true when it returns. */
int gb_refs_find_slow(struct gb_refs *r, PyObject *key, uint64_t hash, gb_ref *ref);
/* The entry of this very object, by a hash of which 40 bits count; runs nothing. */
gb_ref gb_refs_same(const struct gb_refs *r, PyObject *key, uint64_t hash);
/* Takes the entry out; its references go aside. The one door out. */
void gb_refs_remove(struct gb_refs *r, gb_ref ref, enum gb_cause cause, struct gb_refs_aside *aside);
/* The same, but for its block: that and its bytes stay. */
void gb_refs_take(struct gb_refs *r, gb_ref ref, enum gb_cause cause, struct gb_refs_aside *aside);
static inline void gb_refs_begin(struct gb_refs_aside *aside) {
    aside->n = 0;
    aside->told = false;
}
void gb_refs_tell(struct gb_refs *r, struct gb_refs_aside *aside);
/* What is aside dies, then those who listen are told. May run anything; an exception stays as it is. */
static inline void gb_refs_release(struct gb_refs *r, struct gb_refs_aside *aside) {
    while (aside->n) Py_XDECREF(aside->held[--aside->n]);
    if (GB_UNLIKELY(aside->told)) gb_refs_tell(r, aside);
}
/* The queue, made if there is none. NULL: ClosedError or MemoryError. */
struct gb_queue *gb_refs_queue(struct gb_refs *r);
/* From now on these kinds are recorded (0: nothing is); the first time it makes `room`. -1: exception. */
int gb_refs_listen(struct gb_refs *r, uint32_t kinds, bool values, uint64_t room);
/* Of a closed store: lets go of the queue, unless a cursor reads it. May run anything. */
void gb_refs_hush(struct gb_refs *r);
/* Records a change of a kind that is asked for. Runs nothing. */
void gb_refs_record(struct gb_refs *r, uint32_t kind, PyObject *key, PyObject *value, PyObject *old,
                    struct gb_refs_aside *aside);
static inline void gb_refs_note(struct gb_refs *r, uint32_t kind, PyObject *key, PyObject *value,
                                PyObject *old, struct gb_refs_aside *aside) {
    if (GB_UNLIKELY(r->kinds & (1u << kind))) gb_refs_record(r, kind, key, value, old, aside);
}
/* Counts a clear of so many entries, and records it. */
void gb_refs_cleared(struct gb_refs *r, uint64_t count, struct gb_refs_aside *aside);
/* The deadline in ms; 0: never. The entry may be kept for a while beyond. */
uint64_t gb_refs_due(const struct gb_refs *r, gb_ref ref);
/* Whether it is past its deadline: plain reads take it for absent. `now` 0: not known, so it is not. */
static inline bool gb_refs_is_past(const struct gb_refs *r, gb_ref ref, uint64_t now) {
    return (gb_entry_at(r->index.base, ref)->word & GB_WORD_TTL) &&
           gb_index_deadline(&r->index, ref) <= now;
}
/* Whether it is at its end, and to be removed. */
static inline bool gb_refs_is_over(const struct gb_refs *r, gb_ref ref, uint64_t now) {
    return (gb_entry_at(r->index.base, ref)->word & GB_WORD_TTL) &&
           gb_index_due(&r->index, ref, now);
}
uint32_t gb_refs_idle(const struct gb_refs *r, gb_ref ref);
static inline uint64_t gb_refs_weight(const struct gb_refs *r, gb_ref ref) {
    uint64_t weight = 0;
    uint32_t word = gb_entry_at(r->index.base, ref)->word;
    if (word & GB_REFS_WEIGHT)
        memcpy(&weight, (uint8_t *)gb_at(r->index.base, ref) + gb_header_bytes(word) +
               2u * sizeof(PyObject *), sizeof weight);
    return weight;
}
static inline bool gb_refs_over(const struct gb_refs *r, uint32_t entries, uint64_t weight) {
    return (r->max_entries && r->index.table.root->count + entries > r->max_entries) ||
           (r->max_weight && r->weight + weight > r->max_weight);
}
bool gb_refs_check(const struct gb_refs *r, struct gb_fault *f);

static inline PyObject **gb_refs_pair(uint8_t *base, gb_ref ref, PyObject *pair[2]) {
    const struct gb_entry *e = gb_entry_at(base, ref);
    memcpy(pair, (uint8_t *)gb_at(base, ref) + gb_header_bytes(e->word), 2u * sizeof *pair);
    return pair; /* 28 bytes into a block is no place for a pointer to one */
}
static inline PyObject *gb_refs_key(uint8_t *base, gb_ref ref) {
    PyObject *key;
    memcpy(&key, (uint8_t *)gb_at(base, ref) + gb_header_bytes(gb_entry_at(base, ref)->word),
           sizeof key);
    return key;
}
static inline uint64_t gb_refs_mix(const struct gb_refs *r, Py_hash_t hash) {
    uint64_t h = ((uint64_t)hash ^ r->seed) * 0x9E3779B97F4A7C15u; /* ints hash to themselves */
    return h ^ (h >> 32);
}
/* Whether two exact strs are equal: nothing runs. */
static inline bool gb_refs_text(PyObject *a, PyObject *b) {
    return PyUnicode_GET_LENGTH(a) == PyUnicode_GET_LENGTH(b) &&
           PyUnicode_KIND(a) == PyUnicode_KIND(b) &&
           !memcmp(PyUnicode_DATA(a), PyUnicode_DATA(b),
                   (size_t)PyUnicode_GET_LENGTH(a) * PyUnicode_KIND(a));
}
/* Whether an entry is surely the key's: the very object, or an equal str. Runs nothing. */
static inline bool gb_refs_is(const struct gb_refs *r, gb_ref ref, PyObject *key, uint64_t hash) {
    PyObject *held = gb_refs_key(r->index.base, ref);
    if (held == key) return true;
    return gb_entry_at(r->index.base, ref)->hash == (uint32_t)hash && PyUnicode_CheckExact(key) &&
           PyUnicode_CheckExact(held) && gb_refs_text(held, key);
}
/* A find that most often ends at the first candidate. */
static inline int gb_refs_find(struct gb_refs *r, PyObject *key, uint64_t hash, gb_ref *ref) {
    struct gb_probe p;
    gb_probe_begin(&r->index.table, &p, hash);
    *ref = gb_probe_next(&r->index.table, &p);
    if (!*ref) return 0;
    if (GB_LIKELY(gb_refs_is(r, *ref, key, hash))) return 1;
    return gb_refs_find_slow(r, key, hash, ref);
}
/* Whether the reservation is as long as one can be. */
static inline bool gb_refs_whole(const struct gb_refs *r) {
    return r->index.arena.root->end >= ((1ull << 35) - 4096u) / GB_GRANULE - 1u;
}
/* Moves whenever an entry comes, goes or changes its place. */
static inline uint64_t gb_refs_epoch(const struct gb_refs *r) {
    return r->epoch + r->index.root->epoch;
}
/* A hit's part: recency, and an idle time that slides. */
void gb_refs_slide(struct gb_refs *r, gb_ref ref, uint64_t now);
static inline void gb_refs_use(struct gb_refs *r, gb_ref ref, uint64_t now) {
    gb_index_use(&r->index, ref);
    if (GB_UNLIKELY(gb_entry_at(r->index.base, ref)->word & GB_WORD_EXTRA))
        gb_refs_slide(r, ref, now);
}
static inline void gb_refs_enter(struct gb_refs *r) { r->index.arena.work.steps = 0; }
static inline void gb_refs_leave(struct gb_refs *r) {
    if (GB_UNLIKELY(r->index.arena.work.steps > r->max_steps))
        r->max_steps = r->index.arena.work.steps;
}
#endif
