/* mend.c - what is derived, made anew from what is true. */
#include "mend.h"

#define TWINS 8u  /* pairs: more than one operation can leave */
#define NO_ROOM "mend 1: there is room for a table"
#define AHEAD 16u /* entries whose bucket is being fetched */

struct mending {
    struct gb_store *s;
    uint64_t *bits; /* entries (and, in between, extents no chain has reached) by their first granule */
    struct gb_fault *f;
    gb_ref first, end;
    gb_ref chunks, dirs;       /* of the table, to be used again: linked through their first spare word, their number */
    uint32_t chunk_count, dir_count, entries, extents, chains;
    uint32_t bare;             /* entries whose chain is another's by now */
    bool torn;                 /* the list is to be read from its head */
    gb_ref twin[TWINS], of[TWINS]; /* `of` is in the table, the other is not; 0: it found no room there */
    uint32_t twins;
};

static bool marked(const struct mending *m, gb_ref ref) {
    return ref >= m->first && ref < m->end && (m->bits[ref >> 6] >> (ref & 63u) & 1u);
}
static void mark(struct mending *m, gb_ref ref) { m->bits[ref >> 6] |= (uint64_t)1 << (ref & 63u); }
static void unmark(struct mending *m, gb_ref ref) { m->bits[ref >> 6] &= ~((uint64_t)1 << (ref & 63u)); }

static uint32_t word_of(const struct mending *m, gb_ref ref) { return gb_entry_at(m->s->base, ref)->word; }
/* Of the block at `at`; a free one that a shrink was cutting may reach beyond the end. */
static gb_ref size_of(const struct mending *m, gb_ref at) {
    gb_ref size = gb_arena_size(&m->s->index.arena, at);
    bool cut = gb_word_kind(word_of(m, at)) == GB_KIND_FREE && size > m->end - at;
    return cut ? m->end - at : size;
}

/* Key and value lie in the block. */
static bool whole_entry(const struct mending *m, gb_ref ref, uint32_t word) {
    uint64_t size = (uint64_t)gb_word_granules(word) * GB_GRANULE, need = gb_header_bytes(word);
    bool extra = word & GB_WORD_EXTRA;
    if (need > size || (gb_word_klen(word) == GB_KLEN_LONG && !extra)) return false;
    if (!extra) return need + gb_word_klen(word) + gb_word_pad(word) <= size;
    const struct gb_extra *x = gb_extra_at(m->s->base, ref, word);
    bool chain = x->flags & GB_EXTRA_CHAIN;
    bool agrees = gb_word_klen(word) == (x->key_len < GB_KLEN_LONG ? x->key_len : GB_KLEN_LONG);
    agrees &= chain || !x->chain; /* who frees the block believes it */
    return agrees && x->val_len <= GB_CHAIN_VALUE_MAX && need + x->key_len + (chain ? 0u : x->val_len) <= size;
}

static bool mark_block(struct mending *m, gb_ref at, uint32_t word, gb_ref size) {
    enum gb_kind kind = gb_word_kind(word);
    if (kind == GB_KIND_ENTRY) {
        if (!whole_entry(m, at, word)) return gb_broken(m->f, "mend 2: an entry is whole", at, size, word);
        m->entries++;
        m->chains += (word & GB_WORD_EXTRA) && (gb_extra_at(m->s->base, at, word)->flags & GB_EXTRA_CHAIN);
        mark(m, at);
    } else if (kind == GB_KIND_EXTENT) {
        m->extents++; /* it may be no more than a place yet */
        mark(m, at);
    } else if (kind == GB_KIND_BUCKETS) {
        if (size != GB_BLOCK_MAX || at % GB_BLOCK_MAX)
            return gb_broken(m->f, "mend 1: a bucket chunk fills a window", at, GB_BLOCK_MAX, size);
        m->chunk_count++;
    } else if (kind == GB_KIND_DIRECTORY) {
        m->dir_count += size == GB_TABLE_DIR_GRANULES;
    } else if (kind == GB_KIND_RING) {
        return gb_broken(m->f, "mend 1: a block is of a known kind", at, 0, word);
    }
    return true;
}

static bool mark_blocks(struct mending *m) {
    gb_ref at = m->first;
    while (at < m->end) {
        gb_ref size = size_of(m, at);
        uint32_t word = word_of(m, at);
        bool large = gb_word_kind(word) != GB_KIND_FREE && size > GB_BLOCK_MAX;
        if (!size || size > m->end - at || large)
            return gb_broken(m->f, "mend 1: the blocks meet the end", at, m->end, size);
        if (!mark_block(m, at, word, size)) return false;
        at += size;
    }
    return true;
}

/* Follows one chain. Where another entry of the same key has it too (it was changing hands), this one is
 * left without, to be the twin that goes. */
static bool follow(struct mending *m, gb_ref entry, struct gb_extra *x) {
    uint8_t *base = m->s->base;
    uint64_t left = x->val_len;
    gb_ref before = entry, at = x->chain;
    bool shared = at >= m->first && at < m->end && !marked(m, at) &&
                  gb_word_kind(word_of(m, at)) == GB_KIND_EXTENT;
    if (shared) x->chain = 0;
    if (left && !x->chain) {
        m->bare++;
        return true;
    }
    for (; at; at = gb_extent_at(base, at)->next) {
        struct gb_extent *e = gb_extent_at(base, at);
        bool is = marked(m, at) && gb_word_kind(e->word) == GB_KIND_EXTENT && e->used <= left &&
                  e->used + sizeof *e <= (uint64_t)gb_word_granules(e->word) * GB_GRANULE;
        if (!is) return gb_broken(m->f, "mend 2: a chain is of extents, each in one chain", at, left, entry);
        unmark(m, at);
        left -= e->used;
        e->prev = before;
        before = at;
    }
    return !left || gb_broken(m->f, "mend 2: a chain holds its value's length", entry, 0, left);
}

static bool follow_chains(struct mending *m) {
    for (gb_ref at = m->first; at < m->end; at += size_of(m, at)) {
        uint32_t word = word_of(m, at);
        if (gb_word_kind(word) != GB_KIND_ENTRY || !(word & GB_WORD_EXTRA)) continue;
        struct gb_extra *x = gb_extra_at(m->s->base, at, word);
        if ((x->flags & GB_EXTRA_CHAIN) && !follow(m, at, x)) return false;
    }
    return true;
}

/* Whether a block is one of the first `*left` of its kind; then it is put before the others, by its own word. */
static bool claim(uint32_t *left, gb_ref *list, gb_ref at, uint32_t *link) {
    if (!*left) return false;
    --*left;
    *link = *list;
    *list = at;
    return true;
}
static struct gb_chunk *chunk_of(const struct mending *m, gb_ref at) {
    return (struct gb_chunk *)gb_at(m->s->base, at);
}
static struct gb_directory *directory_of(const struct mending *m, gb_ref at) {
    return (struct gb_directory *)gb_at(m->s->base, at);
}

/* Chunks and directories stay where they are, so that an image that is full has what its table needs: it is the room
 * they had. What else a table is made of is overflow buckets, all of one size. */
static bool kept(struct mending *m, gb_ref at, uint32_t *chunks, uint32_t *dirs) {
    uint32_t word = word_of(m, at);
    enum gb_kind kind = gb_word_kind(word);
    if (kind == GB_KIND_EXTENT && marked(m, at)) { /* no chain reached it */
        unmark(m, at);
        return false;
    }
    if (kind == GB_KIND_BUCKETS) return claim(chunks, &m->chunks, at, &chunk_of(m, at)->spare[0]);
    if (kind == GB_KIND_DIRECTORY && gb_word_granules(word) == GB_TABLE_DIR_GRANULES)
        return claim(dirs, &m->dirs, at, &directory_of(m, at)->number);
    return kind == GB_KIND_ENTRY || kind == GB_KIND_EXTENT;
}

static void arena_again(struct mending *m) {
    struct gb_arena *a = &m->s->index.arena;
    uint32_t dirs = m->dir_count < GB_DIR_ROOTS ? m->dir_count : GB_DIR_ROOTS, chunks = dirs << GB_DIR_SHIFT;
    if (m->chunk_count < chunks) chunks = m->chunk_count;
    m->chunk_count = chunks; /* one less than there are, where a chunk was on its way elsewhere: the table did without */
    dirs = (chunks + (1u << GB_DIR_SHIFT) - 1u) >> GB_DIR_SHIFT;
    gb_arena_again_begin(a, m->first, m->end);
    for (gb_ref at = m->first, size; at < m->end; at += size) {
        size = size_of(m, at);
        if (kept(m, at, &chunks, &dirs)) gb_arena_again_keep(a, at);
        else gb_arena_again_free(a, at, size);
    }
    gb_arena_again_end(a);
}

/* An empty table of all the buckets the chunks have: no fewer than before. A split chain never needs more overflow
 * buckets than it had whole, so there is room for all that are needed now where those were that there had been. */
static bool table_again(struct mending *m) {
    struct gb_table *t = &m->s->index.table;
    memset(t->root, 0, sizeof *t->root);
    if (!m->chunk_count)
        return gb_table_format(t) == GB_OK || gb_broken(m->f, NO_ROOM, 0, 1, 0);
    gb_table_size_again(t, m->chunk_count * GB_TABLE_CHUNK);
    for (uint32_t n = 0; n < m->chunk_count; n++) {
        gb_ref chunk = m->chunks, dir = m->dirs;
        if (n % (1u << GB_DIR_SHIFT) == 0) {
            m->dirs = directory_of(m, dir)->number;
            gb_table_directory_again(t, dir, n >> GB_DIR_SHIFT);
        }
        m->chunks = chunk_of(m, chunk)->spare[0];
        gb_table_chunk_again(t, chunk, n);
    }
    return true;
}

/* Whether its neighbours on the list agree with it; if all do, the list is as it should be. */
static bool in_order(const struct mending *m, gb_ref ref) {
    gb_ref link = GB_LRU_OF(ref), head = gb_index_list(&m->s->index);
    const struct gb_link *l = gb_list_at(m->s->base, link);
    bool next = l->next == head || (l->next > m->first && marked(m, l->next - 1u));
    bool prev = l->prev == head || (l->prev > m->first && marked(m, l->prev - 1u));
    return next && prev && gb_list_at(m->s->base, l->next)->prev == link &&
           gb_list_at(m->s->base, l->prev)->next == link;
}

struct ahead {
    gb_ref ref;
    struct gb_key key;
};

static struct ahead look_ahead(const struct mending *m, gb_ref at) {
    const struct gb_store *s = m->s;
    const struct gb_table *t = &s->index.table;
    uint32_t word = word_of(m, at);
    struct ahead a = {.ref = at};
    gb_store_key(s, &a.key, gb_store_key_at(s, at, word), gb_key_len(s->base, at, word), gb_word_ktype(word));
    __builtin_prefetch(gb_table_bucket(t, gb_table_bucket_of(t, (uint32_t)a.key.hash)), 1);
    gb_ref next = gb_entry_at(s->base, at)->lru.next, prev = gb_entry_at(s->base, at)->lru.prev;
    if (next < m->end) __builtin_prefetch(gb_list_at(s->base, next));
    if (prev < m->end) __builtin_prefetch(gb_list_at(s->base, prev));
    return a;
}

/* To be parted once the list is read. */
static bool pair(struct mending *m, gb_ref of, gb_ref twin, const char *rule) {
    if (m->twins == TWINS) return gb_broken(m->f, rule, twin, of, TWINS);
    m->of[m->twins] = of;
    m->twin[m->twins++] = twin;
    return true;
}

/* Into table and wheel, and the sums. */
static bool index_entry(struct mending *m, const struct ahead *a) {
    struct gb_store *s = m->s;
    gb_ref same = gb_store_find(s, &a->key);
    uint32_t word = word_of(m, a->ref);
    if (gb_entry_at(s->base, a->ref)->hash != (uint32_t)a->key.hash)
        return gb_broken(m->f, "mend 2: an entry's hash is its key's", a->ref, (uint32_t)a->key.hash,
                         gb_entry_at(s->base, a->ref)->hash);
    uint64_t latest = (s->head->wheel.tick << GB_WHEEL_TICK_SHIFT) + GB_WHEEL_MAX_MS;
    if ((word & GB_WORD_TTL) && gb_wheel_deadline(&s->index.wheel, a->ref) > latest)
        return gb_broken(m->f, "mend 2: a deadline is one the wheel can hold", a->ref, latest,
                         gb_wheel_deadline(&s->index.wheel, a->ref));
    if (!in_order(m, a->ref)) m->torn = true;
    if (same) return pair(m, same, a->ref, "mend 4: a key has one entry");
    if (gb_table_insert(&s->index.table, a->key.hash, a->ref)) return pair(m, 0, a->ref, NO_ROOM);
    if (word & GB_WORD_TTL) gb_wheel_link(&s->index.wheel, a->ref);
    gb_room_born(s, a->ref);
    return true;
}

static bool index_again(struct mending *m) {
    struct ahead queue[AHEAD];
    uint32_t in = 0, out = 0;
    gb_wheel_format(&m->s->index.wheel, m->s->head->wheel.tick << GB_WHEEL_TICK_SHIFT);
    m->s->head->key_bytes = m->s->head->value_bytes = 0;
    for (gb_ref at = m->first; at < m->end; at += size_of(m, at)) {
        if (!marked(m, at)) continue;
        queue[in++ % AHEAD] = look_ahead(m, at);
        if (in - out == AHEAD && !index_entry(m, &queue[out++ % AHEAD])) return false;
    }
    for (; out < in; out++)
        if (!index_entry(m, &queue[out % AHEAD])) return false;
    return true;
}

/* Reads the list forward; what is on it loses its mark. */
static void read_list(struct mending *m) {
    uint8_t *base = m->s->base;
    gb_ref head = gb_index_list(&m->s->index), before = head;
    gb_ref at = gb_list_at(base, head)->next;
    while (at != head && at > m->first && marked(m, at - 1u)) {
        unmark(m, at - 1u);
        gb_list_at(base, at)->prev = before;
        before = at;
        at = gb_list_at(base, at)->next;
    }
    gb_list_at(base, before)->next = head; /* as it was, unless it was no list of ours */
    gb_list_at(base, head)->prev = before;
}

static bool chainless(const struct mending *m, gb_ref ref) {
    uint32_t word = word_of(m, ref);
    const struct gb_extra *x = word & GB_WORD_EXTRA ? gb_extra_at(m->s->base, ref, word) : NULL;
    return x && (x->flags & GB_EXTRA_CHAIN) && x->val_len && !x->chain;
}

/* An entry that is in the bucket a hash belongs to, and not on the list, or 0. A put makes its block an entry before
 * it knows that the bucket is full, and that there is no block for another: killed then, it leaves one too many. */
static gb_ref newcomer(const struct mending *m, uint32_t hash) {
    const struct gb_table *t = &m->s->index.table;
    const struct gb_bucket *b = gb_table_bucket(t, gb_table_bucket_of(t, hash));
    for (;; b = &((struct gb_overflow *)gb_at(m->s->base, b->overflow))->bucket) {
        for (uint32_t i = 0; i < GB_TABLE_SLOTS; i++)
            if (marked(m, b->ref[i])) return b->ref[i];
        if (!b->overflow) return 0;
    }
}

/* The same in any bucket: the block it took for another one of its own may be the one that is missing here. */
static gb_ref newcomer_elsewhere(const struct mending *m) {
    for (gb_ref at = m->first; at < m->end; at += size_of(m, at)) {
        if (!marked(m, at)) continue;
        struct ahead a = look_ahead(m, at);
        if (gb_store_find(m->s, &a.key) == at) return at;
    }
    return 0;
}

/* It is not, or no longer, in table, wheel and sums. */
static void parted(struct mending *m, gb_ref gone) {
    m->bare -= chainless(m, gone);
    if (!marked(m, gone)) gb_list_unlink(m->s->base, GB_LRU_OF(gone));
    unmark(m, gone);
    gb_room_drop(m->s, gone);
}

/* One of two entries of a key goes, or of a table that has no room for both: the one that lost its chain to the
 * other, else the one that is not on the list, else either. `of` is the one in table, wheel and sums. */
static void part(struct mending *m, gb_ref of, gb_ref twin) {
    struct gb_store *s = m->s;
    if (!of) of = newcomer(m, gb_entry_at(s->base, twin)->hash);
    if (!of && !marked(m, twin)) of = newcomer_elsewhere(m);
    bool keep_twin = of && (chainless(m, of) || (!chainless(m, twin) && marked(m, of) && !marked(m, twin)));
    if (keep_twin) {
        uint32_t word = word_of(m, of);
        gb_table_remove(&s->index.table, gb_entry_at(s->base, of)->hash, of);
        if (word & GB_WORD_TTL) gb_wheel_unlink(&s->index.wheel, of);
        s->head->key_bytes -= gb_key_len(s->base, of, word);
        s->head->value_bytes -= gb_value_len(s->base, of, word);
        parted(m, of);
        if (gb_table_insert(&s->index.table, look_ahead(m, twin).key.hash, twin) == GB_OK) { /* in the other's room */
            if (word_of(m, twin) & GB_WORD_TTL) gb_wheel_link(&s->index.wheel, twin);
            gb_room_born(s, twin);
            return;
        }
    }
    parted(m, twin);
}

static void list_mend(struct mending *m, gb_ref head) {
    read_list(m);
    for (uint32_t i = 0; i < m->twins; i++) part(m, m->of[i], m->twin[i]);
    for (gb_ref w = m->first >> 6; w <= (m->end - 1u) >> 6; w++)
        for (uint64_t left = m->bits[w]; left; left &= left - 1u)
            gb_list_link(m->s->base, head, GB_LRU_OF((w << 6) + (gb_ref)__builtin_ctzll(left)));
}

static bool list_again(struct mending *m) {
    gb_ref head = gb_index_list(&m->s->index);
    if (m->torn || m->twins || !in_order(m, head - 1u)) list_mend(m, head);
    return !m->bare || gb_broken(m->f, "mend 2: a chain holds its value's length", 0, 0, m->bare);
}

static bool lies(const struct mending *m, gb_ref at) {
    return at >= m->first && gb_entry_lies(m->s->base, at, m->end);
}

/* A slide that was under way: the rest of the copy; then those forward of the block learn its place. */
static void finish_slide(struct mending *m) {
    struct gb_store *s = m->s;
    const struct gb_intent *i = &s->head->intent;
    gb_arena_slide_finish(&s->index.arena);
    uint32_t word = word_of(m, i->to);
    gb_ref back = gb_extent_at(s->base, i->to)->prev, link = gb_entry_at(s->base, i->to)->lru.prev;
    bool linked = link == gb_index_list(&s->index) || (link > m->first && link < m->end);
    if (gb_word_kind(word) == GB_KIND_ENTRY && linked) {
        gb_list_at(s->base, link)->next = GB_LRU_OF(i->to);
    } else if (gb_word_kind(word) == GB_KIND_EXTENT && lies(m, back)) {
        uint32_t before = word_of(m, back);
        if (gb_word_kind(before) == GB_KIND_EXTENT) gb_extent_at(s->base, back)->next = i->to;
        else if (gb_word_kind(before) == GB_KIND_ENTRY && (before & GB_WORD_EXTRA))
            gb_extra_at(s->base, back, before)->chain = i->to;
    }
}

static bool finish(struct mending *m, bool *cleared) {
    struct gb_store *s = m->s;
    struct gb_head *h = s->head;
    const struct gb_intent *i = &h->intent;
    if (!gb_intent_check(i, m->first, m->end, s->mapped, m->f)) return false;
    if (i->op == GB_INTENT_SLIDE) finish_slide(m);
    if (i->op == GB_INTENT_CLEAR) {
        if (gb_room_clear_finish(s, h->wheel.tick << GB_WHEEL_TICK_SHIFT)) /* one way: the smallest image has it */
            return gb_broken(m->f, NO_ROOM, 0, 1, 0); /* unreachable: as above */
        *cleared = true;
    }
    if (i->op == GB_INTENT_RETIME) {
        uint32_t word = lies(m, i->from) ? word_of(m, i->from) : 0;
        const uint32_t both = GB_WORD_TTL | GB_WORD_EXTRA;
        if (gb_word_kind(word) != GB_KIND_ENTRY || (word & both) != both)
            return gb_broken(m->f, "mend 1: an intent is within the arena", i->from, m->end, word);
        gb_index_retime_finish(&s->index, i);
    }
    if (i->op == GB_INTENT_RING) {
        bool ring = i->size >= GB_TELL_LEAST && i->seq;
        if (i->due < gb_room_smallest() + (uint64_t)i->size * GB_GRANULE || (i->size && !ring))
            return gb_broken(m->f, "mend 1: an intent is within the arena", i->size, s->mapped, i->due);
        h->length = i->due;
        if (i->size) gb_ring_format(&s->ring, (gb_ref)(i->due / GB_GRANULE) - i->size, i->size, i->seq);
    }
    gb_intent_end(&h->intent);
    return true;
}

/* The roots a walk relies on lie in the mapping; the arena reaches to where it should end. Any clock the wheel is
 * given is below its bound, and only so has every deadline it allows a level. */
static bool frame(struct mending *m) {
    struct gb_store *s = m->s;
    struct gb_head *h = s->head;
    uint64_t ring = (uint64_t)h->ring.granules * GB_GRANULE;
    m->first = GB_HEAD_GRANULES;
    m->end = h->arena.end;
    gb_ref most = (gb_ref)(s->mapped / GB_GRANULE) - 1u;
    bool lies = h->length <= s->mapped && h->length >= gb_room_smallest() + ring;
    lies &= h->intent.op == GB_INTENT_CLEAR || (m->end > m->first && m->end <= most);
    if (!lies) return gb_broken(m->f, "mend 1: length and roots lie in the mapping", h->arena.end, s->mapped, h->length);
    const uint64_t late = GB_WHEEL_CLOCK_MS >> GB_WHEEL_TICK_SHIFT;
    return h->wheel.tick < late || gb_broken(m->f, "mend 2: the clock is one the wheel can tell", 0, late, h->wheel.tick);
}

static bool stretch(struct mending *m) {
    struct gb_store *s = m->s;
    gb_ref end = gb_room_end(s);
    gb_ref ring = s->head->ring.granules;
    bool apart = ring && (ring < GB_TELL_LEAST || s->head->ring.at != end + 1u);
    if (apart || m->end > end)
        return gb_broken(m->f, "mend 1: the arena ends where the ring begins", m->end, end, s->head->ring.at);
    if (m->end < end) { /* a ring or a length was about to change */
        s->head->arena.gap = 0;
        gb_arena_stretch(&s->index.arena, end);
        m->end = end;
    }
    return true;
}

enum gb_err gb_mend(struct gb_store *s, uint64_t *scratch, struct gb_fault *f) {
    struct mending m = {.s = s, .bits = scratch, .f = f};
    struct gb_head *h = s->head;
    bool cleared = false;
    h->trash = 0;
    if (!frame(&m) || !finish(&m, &cleared)) return GB_BADIMAGE;
    m.end = h->arena.end;
    if (!stretch(&m)) return GB_BADIMAGE;
    if (h->ring.granules && !gb_ring_check(&s->ring, f)) return GB_BADIMAGE;
    if (cleared) return GB_OK;
    if (!mark_blocks(&m) || ((m.extents || m.chains) && !follow_chains(&m))) return GB_BADIMAGE;
    arena_again(&m);
    if (!table_again(&m) || !index_again(&m) || !list_again(&m)) return GB_BADIMAGE;
    h->index.epoch++;
    while (h->trash) gb_room_trash(s);
    gb_head_enter(s);
    return GB_OK;
}
