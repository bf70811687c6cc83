/* store.h - bytes for bytes, under the hard budget.
 *
 * WHAT      Find, put, use, touch and delete over entries whose value lies in one block; longer
 *           values are chain.h's. A put that needs room works in slices: GB_AGAIN means "release the
 *           lock, take it again, call me again"; nothing but room has been made until GB_OK.
 *
 * PICTURE   put:  limit? -> old due? -> room for one more? -> block -> copy -> index -> old freed
 *           A new value is a new block: nothing is overwritten in place, so the old value is whole
 *           until the table's slot names the new one.
 *
 * INVARIANT 1 at most max_entries are indexed, where that is not 0.
 *           2 an entry's key and value lie inside its block, and its type bits say what they are.
 *
 * COST      find: one bucket, one entry. put: that, an allocation and two links; in a full image
 *           as many evictions as the bytes brought make necessary, in slices of 64 steps.
 *
 * NOT HERE  Python, codecs, events, clocks (now is ms since the image's time 0), long values.
 */
#ifndef GB_STORE_H
#define GB_STORE_H

#include "room.h"

struct gb_key {
    const uint8_t *bytes;
    uint32_t len, type;
    uint64_t hash;
};
struct gb_put {
    struct gb_key key;
    const uint8_t *value; /* inline puts copy it; a long write gives it in pieces */
    uint32_t value_len, value_type;
    uint64_t due;  /* ms; 0: no TTL */
    uint64_t hard; /* ms; where idle is set, the deadline no use may pass; 0: none */
    uint32_t idle; /* ms a use adds; 0: none */
    uint32_t stale; /* ms it is kept beyond `due`, for those who ask; 0: none */
    bool add;      /* only if absent: else GB_EXISTS */
};

/* The longest key, in bytes: what a block holds beside the largest header. */
#define GB_KEY_MAX                                                                                 \
    (GB_WINDOW_BYTES - (uint32_t)(sizeof(struct gb_entry) + sizeof(struct gb_timer) +              \
                                  sizeof(struct gb_extra)) - 32u)

static inline void gb_store_key(const struct gb_store *s, struct gb_key *k, const void *bytes,
                                uint32_t len, uint32_t type) {
    k->bytes = (const uint8_t *)bytes;
    k->len = len;
    k->type = type;
    k->hash = gb_digest(&s->digest, k->bytes, len, type);
}

static inline const uint8_t *gb_store_key_at(const struct gb_store *s, gb_ref ref, uint32_t word) {
    return (const uint8_t *)gb_at(s->base, ref) + gb_header_bytes(word);
}
/* Of an inline value. */
static inline const uint8_t *gb_store_value_at(const struct gb_store *s, gb_ref ref,
                                               uint32_t word) {
    return gb_store_key_at(s, ref, word) + gb_key_len(s->base, ref, word);
}
static inline bool gb_store_is_chain(const struct gb_store *s, gb_ref ref, uint32_t word) {
    return (word & GB_WORD_EXTRA) &&
           (gb_extra_at(s->base, ref, word)->flags & GB_EXTRA_CHAIN);
}

/* memcmp's call costs as much as the look-up's own work where keys are short. */
static inline bool gb_store_same(const uint8_t *a, const uint8_t *b, uint32_t n) {
    if (GB_UNLIKELY(n > 16u)) return !memcmp(a, b, n);
    if (n >= 8u)
        return ((gb_digest_read8(a) ^ gb_digest_read8(b)) |
                (gb_digest_read8(a + n - 8) ^ gb_digest_read8(b + n - 8))) == 0;
    if (n >= 4u)
        return ((gb_digest_read4(a) ^ gb_digest_read4(b)) |
                (gb_digest_read4(a + n - 4) ^ gb_digest_read4(b + n - 4))) == 0;
    return !n || (a[0] == b[0] && a[n >> 1] == b[n >> 1] && a[n - 1] == b[n - 1]);
}

/* The entry of a key, due or not, or 0. No order, no counters. */
static inline gb_ref gb_store_find(const struct gb_store *s, const struct gb_key *k) {
    struct gb_probe p;
    gb_ref ref;
    uint32_t klen = k->len < GB_KLEN_LONG ? k->len : GB_KLEN_LONG;
    uint32_t want = (klen << 17) | (k->type << 25), mask = (255u << 17) | (3u << 25);
    gb_probe_begin(&s->index.table, &p, k->hash);
    while ((ref = gb_probe_next(&s->index.table, &p))) {
        const struct gb_entry *e = gb_entry_at(s->base, ref);
        if (e->hash != (uint32_t)k->hash || (e->word & mask) != want) continue;
        if (GB_UNLIKELY(klen == GB_KLEN_LONG) && gb_key_len(s->base, ref, e->word) != k->len)
            continue;
        if (GB_LIKELY(gb_store_same(gb_store_key_at(s, ref, e->word), k->bytes, k->len)))
            return ref;
    }
    return 0;
}

/* Whether the value lies in the entry's own block (else it is for chain.h). */
bool gb_store_fits_inline(const struct gb_put *p);
/* GB_OK, GB_AGAIN, GB_EXISTS, GB_LONGKEY, GB_FULL (only while pins hold the rest). */
enum gb_err gb_store_put(struct gb_store *s, const struct gb_put *p, uint64_t now);
/* What a put shares with a long write: a PENDING block of the right size, filled with header and
 * key (and the value, unless it goes to a chain); then its admission in place of `old`, or 0.
 * GB_FULL: the table lacks a block, the entry is still pending. */
uint32_t gb_store_granules(const struct gb_store *s, const struct gb_put *p, bool chain);
void gb_store_fill(struct gb_store *s, gb_ref ref, const struct gb_put *p, bool chain);
enum gb_err gb_store_admit(struct gb_store *s, uint64_t hash, gb_ref ref, gb_ref old);
/* The live entry of a key; a due one is removed first. */
gb_ref gb_store_live(struct gb_store *s, const struct gb_key *k, uint64_t now);
/* Whether one more entry is within max_entries; evicts at most one to make it so. */
bool gb_store_counted(struct gb_store *s, uint64_t now);

/* A use: to the front, and a sliding deadline slides. `now` counts only where idle is set. */
void gb_store_use_slow(struct gb_store *s, gb_ref ref, uint64_t now);
void gb_store_use_walked(struct gb_store *s, gb_ref ref); /* while somebody walks, perhaps to save */
static inline void gb_store_use(struct gb_store *s, gb_ref ref, uint64_t now) {
    if (GB_UNLIKELY(s->index.walks != 0)) gb_store_use_walked(s, ref);
    else gb_index_use(&s->index, ref);
    if (GB_UNLIKELY((gb_entry_at(s->base, ref)->word & (GB_WORD_TTL | GB_WORD_EXTRA)) ==
                    (GB_WORD_TTL | GB_WORD_EXTRA)))
        gb_store_use_slow(s, ref, now);
}
/* Gives the entry other times (as in gb_put); counts as a use. Where the block cannot say them the
 * entry gets another one: GB_AGAIN (look it up again), GB_FULL, GB_BUSY (pinned) as in put. */
enum gb_err gb_store_retime(struct gb_store *s, gb_ref ref, uint64_t due, uint64_t hard,
                            uint32_t idle, uint64_t now);
/* The deadline in ms, 0 if none; the entry may be kept for a while beyond. */
uint64_t gb_store_due(const struct gb_store *s, gb_ref ref);
static inline bool gb_store_is_due(const struct gb_store *s, gb_ref ref, uint64_t now) {
    return (gb_entry_at(s->base, ref)->word & GB_WORD_TTL) && gb_index_due(&s->index, ref, now);
}
/* Whether plain reads take it for absent, though it may be kept for a while. */
static inline bool gb_store_is_past(const struct gb_store *s, gb_ref ref, uint64_t now) {
    return (gb_entry_at(s->base, ref)->word & GB_WORD_TTL) &&
           gb_index_deadline(&s->index, ref) <= now;
}
bool gb_store_check(const struct gb_store *s, struct gb_fault *f);

#endif
