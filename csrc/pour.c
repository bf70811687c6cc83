/* pour.c - counted, laid, indexed. */
#include "pour.h"

#define FAR 32u /* entries whose bucket is being fetched */
#define NEAR 8u   /* and those for which it is here, and what it leads to is being fetched */

/* Whether nothing but an entry's 16 bytes stands before key and value. */
static inline bool slim(const struct gb_record *r) {
    return !r->timed && r->key_len < GB_KLEN_LONG && r->key_len + r->value_len;
}
static inline uint32_t slim_granules(const struct gb_record *r) {
    return ((uint32_t)sizeof(struct gb_entry) + r->key_len + r->value_len + GB_GRANULE - 1u) / GB_GRANULE;
}

/* Key and value fit a block, whatever its header has to say. */
static inline bool pourable(const struct gb_record *r) {
    const uint32_t header = (uint32_t)(sizeof(struct gb_entry) + sizeof(struct gb_timer) + sizeof(struct gb_extra));
    return r->key_len <= GB_KEY_MAX && r->value_len <= GB_WINDOW_BYTES - header - r->key_len;
}

bool gb_pour_count(const struct gb_pour *p, const uint8_t *payload, uint64_t bytes, uint32_t records,
                   struct gb_pour_sum *sum, uint64_t *hash) {
    struct gb_snap_record r;
    struct gb_put put;
    for (uint32_t i = 0; i < records; i++, payload += r.bytes, bytes -= r.bytes) {
        if (gb_snap_parse(payload, bytes, &r) || !pourable(&r.head)) return false;
        if (slim(&r.head)) {
            sum->granules += slim_granules(&r.head);
        } else {
            if (!gb_snap_times(&r, p->now, p->wall, p->saved, &put)) continue;
            sum->granules += gb_store_granules(p->s, &put, false);
        }
        *hash++ = gb_digest(&p->s->digest, r.key, r.head.key_len, r.head.types & 3u);
        sum->entries++;
    }
    return true;
}

gb_ref gb_pour_run(struct gb_store *s, const struct gb_pour_sum *sum) {
    const struct gb_head *h = s->head;
    uint64_t after = h->table.count + (uint64_t)sum->entries;
    bool quiet = !GB_HEAD_LISTENS(s) && !s->keep && !s->index.walks;
    bool filled = after * 20u > gb_table_size(&s->index.table) * (uint64_t)GB_TABLE_SLOTS * 14u; /* it would grow */
    if (!quiet || filled || (h->max_entries && after > h->max_entries)) return 0;
    return gb_arena_alloc_run(&s->index.arena, sum->granules, sum->entries * GB_TABLE_OVERFLOW_GRANULES, GB_KIND_ENTRY);
}

static inline void lay_slim(struct gb_entry *e, const struct gb_snap_record *r, uint64_t hash) {
    uint32_t used = r->head.key_len + r->head.value_len, granules = slim_granules(&r->head);
    uint32_t pad = granules * GB_GRANULE - (uint32_t)sizeof *e - used;
    e->word = granules | (uint32_t)GB_KIND_ENTRY << 10 | pad << 14 | (uint32_t)r->head.key_len << 17 |
              (r->head.types & 3u) << 25 | (uint32_t)(r->head.types >> 2) << 27;
    e->hash = (uint32_t)hash;
    memcpy(e + 1, r->key, used); /* the value lies behind the key in the record too */
}

gb_ref gb_pour_lay(const struct gb_pour *p, const uint8_t *payload, uint64_t bytes, uint32_t records,
                   const uint64_t **hash, gb_ref at) {
    struct gb_snap_record r;
    struct gb_put put;
    for (uint32_t i = 0; i < records; i++, payload += r.bytes, bytes -= r.bytes) {
        struct gb_entry *e = gb_entry_at(p->s->base, at);
        (void)gb_snap_parse(payload, bytes, &r);
        if (slim(&r.head)) {
            lay_slim(e, &r, *(*hash)++);
        } else {
            if (!gb_snap_times(&r, p->now, p->wall, p->saved, &put)) continue;
            put.key.hash = *(*hash)++;
            e->word = gb_store_granules(p->s, &put, false) | (uint32_t)GB_KIND_ENTRY << 10;
            gb_store_fill(p->s, at, &put, false);
        }
        at += gb_word_granules(e->word);
    }
    return at;
}

/* The bucket of a hash, on its way from memory. */
static inline struct gb_bucket *fetch(const struct gb_table *t, uint64_t hash) {
    struct gb_bucket *b = gb_table_bucket(t, gb_table_bucket_of(t, (uint32_t)hash));
    __builtin_prefetch(b, 1);
    return b;
}

/* What a look at the bucket will lead to: an overflow bucket, or an entry whose tag is the same. */
GB_FETCHES void fetch_beyond(const struct gb_table *t, const struct gb_bucket *b, uint64_t hash) {
    uint32_t same = gb_table_match(b, gb_table_tag(hash));
    if (b->overflow) __builtin_prefetch((uint8_t *)gb_at(t->base, b->overflow) + GB_GRANULE, 1);
    if (same) __builtin_prefetch(gb_at(t->base, b->ref[__builtin_ctz(same)]));
}

/* An entry whose bucket is not simply one with room. */
static bool pour_in(struct gb_store *s, uint64_t hash, gb_ref ref, uint32_t word) {
    struct gb_key key = {gb_store_key_at(s, ref, word), gb_key_len(s->base, ref, word), gb_word_ktype(word), hash};
    return !gb_store_find(s, &key) && !gb_table_insert(&s->index.table, hash, ref); /* no file a save wrote has two */
}

uint32_t gb_pour_index(struct gb_store *s, gb_ref run, uint32_t entries, const uint64_t *hash) {
    struct gb_table *t = &s->index.table;
    struct gb_bucket *bucket[FAR];
    gb_ref list = gb_index_list(&s->index);
    uint32_t done = 0, most = s->head->max_entries ? s->head->max_entries : UINT32_MAX;
    for (uint32_t i = 0; i < FAR && i < entries; i++) bucket[i] = fetch(t, hash[i]);
    for (; done < entries; done++) {
        struct gb_bucket *b = bucket[done % FAR];
        uint32_t word = gb_entry_at(s->base, run)->word;
        if (GB_UNLIKELY(t->root->count == most)) break;
        if (done + FAR < entries) bucket[done % FAR] = fetch(t, hash[done + FAR]);
        if (done + NEAR < entries) fetch_beyond(t, bucket[(done + NEAR) % FAR], hash[done + NEAR]);
        if (!gb_table_quick(t, b, hash[done], run) && GB_UNLIKELY(!pour_in(s, hash[done], run, word))) break;
        gb_list_link(s->base, list, GB_LRU_OF(run));
        if (word & GB_WORD_TTL) gb_wheel_link(&s->index.wheel, run);
        gb_room_born(s, run);
        run += gb_word_granules(word);
    }
    s->index.root->epoch += done;
    s->head->counters.sets += done;
    gb_head_enter(s);
    return done;
}

void gb_pour_undo(struct gb_store *s, gb_ref run, uint32_t entries, uint32_t done) {
    for (uint32_t i = 0; i < entries; i++) {
        uint32_t granules = gb_word_granules(gb_entry_at(s->base, run)->word);
        if (i >= done) gb_arena_free(&s->index.arena, run);
        run += granules;
    }
    gb_head_enter(s);
}

void gb_pour_presize(struct gb_store *s, uint64_t entries) {
    const struct gb_head *h = s->head;
    uint64_t most = h->max_entries && h->max_entries < entries ? h->max_entries : entries;
    uint64_t held = (h->arena.end - h->arena.first) / (GB_ARENA_LISTED + 1u); /* the shortest, each with its slot */
    if (held < most) most = held;
    gb_table_presize(&s->index.table, (uint32_t)(most * 20u / (GB_TABLE_SLOTS * 14u)) + 1u);
    gb_head_enter(s);
}

bool gb_pour_check(const struct gb_store *s, gb_ref run, const struct gb_pour_sum *sum, const uint64_t *hash,
                   struct gb_fault *f) {
    gb_ref at = run, end = run + sum->granules;
    uint32_t i = 0;
    for (; i < sum->entries && at < end; i++) {
        const struct gb_entry *e = gb_entry_at(s->base, at);
        struct gb_key k;
        if (gb_word_kind(e->word) != GB_KIND_ENTRY || !gb_word_granules(e->word)) break;
        gb_store_key(s, &k, gb_store_key_at(s, at, e->word), gb_key_len(s->base, at, e->word), gb_word_ktype(e->word));
        if (k.hash != hash[i] || e->hash != (uint32_t)k.hash)
            return gb_broken(f, "pour 2: each has the hash of its key", at, k.hash, hash[i]);
        at += gb_word_granules(e->word);
    }
    return (i == sum->entries && at == end) || gb_broken(f, "pour 1: the entries of a run meet its end", run, end, at);
}
