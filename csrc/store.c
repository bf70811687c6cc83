/* store.c - put and its relatives. */
#include "store.h"

/* What the header must hold: a timer, and extra words for what the first word cannot say. */
static uint32_t flags_of(const struct gb_store *s, const struct gb_put *p, bool chain) {
    bool wide = p->due && (gb_wheel_wide(&s->index.wheel, p->due + p->stale) || p->idle || p->stale);
    bool empty = !p->key.len && !p->value_len; /* else the block were too small to be listed */
    bool extra = chain || wide || empty || p->key.len >= GB_KLEN_LONG;
    return (p->due ? GB_WORD_TTL : 0u) | (extra ? GB_WORD_EXTRA : 0u);
}
static uint64_t bytes_of(uint32_t flags, const struct gb_put *p, bool chain) {
    return gb_header_bytes(flags) + (uint64_t)p->key.len + (chain ? 0u : p->value_len);
}

bool gb_store_fits_inline(const struct gb_put *p) {
    return bytes_of(GB_WORD_TTL | GB_WORD_EXTRA, p, false) <= GB_WINDOW_BYTES;
}

static inline uint32_t granules_of(const struct gb_store *s, const struct gb_put *p, bool chain) {
    uint64_t bytes = bytes_of(flags_of(s, p, chain), p, chain);
    return (uint32_t)((bytes + GB_GRANULE - 1u) / GB_GRANULE);
}
uint32_t gb_store_granules(const struct gb_store *s, const struct gb_put *p, bool chain) {
    return granules_of(s, p, chain);
}

void gb_store_fill(struct gb_store *s, gb_ref ref, const struct gb_put *p, bool chain) {
    struct gb_entry *e = gb_entry_at(s->base, ref);
    uint32_t flags = flags_of(s, p, chain), klen = p->key.len;
    uint32_t size = gb_word_granules(e->word) * GB_GRANULE;
    uint32_t pad = size - (uint32_t)bytes_of(flags, p, chain);
    GB_ASSERT(pad < GB_GRANULE);
    e->word = (e->word & (1023u | (7u << 10) | GB_WORD_PREV_FREE)) | (pad << 14) |
              ((klen < GB_KLEN_LONG ? klen : GB_KLEN_LONG) << 17) | (p->key.type << 25) |
              (p->value_type << 27) | flags;
    e->hash = (uint32_t)p->key.hash;
    uint64_t end = p->due ? p->due + p->stale : 0u;
    if (flags & GB_WORD_TTL) gb_timer_at(s->base, ref)->due = (uint32_t)end;
    if (flags & GB_WORD_EXTRA) {
        bool wide = p->due && gb_wheel_wide(&s->index.wheel, end);
        struct gb_extra *x = gb_extra_at(s->base, ref, e->word);
        memset(x, 0, sizeof *x);
        x->key_len = klen;
        x->val_len = p->value_len;
        x->due_high = (uint32_t)(end >> 32);
        x->idle = p->idle;
        x->stale = p->due ? p->stale : 0u;
        x->flags = (wide ? GB_EXTRA_WIDE : 0u) | (chain ? GB_EXTRA_CHAIN : 0u);
        x->hard_low = (uint32_t)p->hard;
        x->hard_high = (uint32_t)(p->hard >> 32);
    }
    uint8_t *to = (uint8_t *)gb_at(s->base, ref) + gb_header_bytes(flags);
    memcpy(to, p->key.bytes, klen);
    if (!chain && p->value_len) memcpy(to + klen, p->value, p->value_len);
}

gb_ref gb_store_live(struct gb_store *s, const struct gb_key *k, uint64_t now) {
    gb_ref ref = gb_store_find(s, k);
    if (!ref || !gb_store_is_due(s, ref, now)) return ref;
    gb_room_remove(s, ref, GB_CAUSE_EXPIRE);
    return 0;
}

bool gb_store_counted(struct gb_store *s, uint64_t now) {
    const struct gb_head *h = s->head;
    if (GB_LIKELY(!h->max_entries || s->index.table.root->count < h->max_entries)) return true;
    bool wait;
    gb_ref victim = gb_room_due(s, now, &wait);
    if (victim) gb_room_remove(s, victim, GB_CAUSE_EXPIRE);
    else if (!wait) gb_room_remove(s, gb_index_victim(&s->index), GB_CAUSE_EVICT);
    return s->index.table.root->count < h->max_entries;
}

static inline enum gb_err admit(struct gb_store *s, uint64_t hash, gb_ref ref, gb_ref old) {
    struct gb_counters *c = &s->head->counters;
    gb_arena_rekind(&s->index.arena, ref, GB_KIND_ENTRY);
    if (old) {
        gb_tell(s, GB_EVENT_REPLACE, ref, ref, old);
        gb_index_replace(&s->index, old, ref, true);
        gb_room_release(s, old);
        c->replaces++;
    } else if (gb_index_insert(&s->index, hash, ref)) {
        gb_arena_rekind(&s->index.arena, ref, GB_KIND_PENDING);
        return GB_FULL;
    } else {
        gb_tell(s, GB_EVENT_SET, ref, ref, 0);
    }
    gb_room_born(s, ref);
    c->sets++;
    return GB_OK;
}
/* For the chains; a put has its own inside, without the call (make bench-events: the first row counts it). */
enum gb_err gb_store_admit(struct gb_store *s, uint64_t hash, gb_ref ref, gb_ref old) {
    return admit(s, hash, ref, old);
}

/* A pending block, filled, for the put; *old is the entry it will replace. Making room may remove
 * that one or move it, so it is looked for again whenever either happened. */
static enum gb_err prepare(struct gb_store *s, const struct gb_put *p, uint64_t now, gb_ref *ref,
                           gb_ref *old) {
    for (;;) {
        *old = gb_store_live(s, &p->key, now);
        if (*old && p->add && !gb_store_is_past(s, *old, now)) return GB_EXISTS;
        while (!*old && !gb_store_counted(s, now))
            if (gb_head_steps(s) > gb_room_last(s)) return GB_AGAIN;
        uint64_t epoch = s->index.root->epoch + s->head->counters.moves;
        uint32_t granules = granules_of(s, p, false);
        while (!(*ref = gb_arena_alloc(&s->index.arena, granules, GB_KIND_PENDING))) {
            if (gb_head_steps(s) > gb_room_last(s)) return GB_AGAIN;
            enum gb_err err = gb_room_make(s, now, false);
            if (err) return err;
            if (s->index.root->epoch + s->head->counters.moves != epoch) break;
            granules = gb_store_granules(s, p, false); /* the wheel has come forward, and may need fewer words now */
        }
        if (!*ref) continue;
        if (GB_HEAD_LISTENS(s) && gb_head_steps(s) > gb_room_last(s)) { /* the new value must be told too */
            gb_arena_free(&s->index.arena, *ref);
            return GB_AGAIN;
        }
        gb_store_fill(s, *ref, p, false);
        return GB_OK;
    }
}

enum gb_err gb_store_put(struct gb_store *s, const struct gb_put *p, uint64_t now) {
    gb_ref ref, old;
    uint64_t evictions = s->head->counters.evictions;
    if (GB_UNLIKELY(p->key.len > GB_KEY_MAX)) return GB_LONGKEY;
    enum gb_err err = prepare(s, p, now, &ref, &old);
    if (err) return err;
    while (admit(s, p->key.hash, ref, old)) { /* the table wants an overflow bucket */
        err = gb_head_steps(s) > gb_room_last(s) ? GB_AGAIN : gb_room_make(s, now, false);
        if (err) {
            gb_arena_free(&s->index.arena, ref);
            return err;
        }
    }
    gb_room_tend(s, now);
    if (s->head->counters.evictions != evictions) gb_room_foresee(s);
    return GB_OK;
}

uint64_t gb_store_due(const struct gb_store *s, gb_ref ref) {
    if (!(gb_entry_at(s->base, ref)->word & GB_WORD_TTL)) return 0;
    return gb_index_deadline(&s->index, ref);
}

void gb_store_use_walked(struct gb_store *s, gb_ref ref) {
    gb_moment_meet(s, ref);
    if (s->keep && s->keep->eager) {
        gb_keep_changing(s, ref);
        if (gb_keep_unsaved(s->keep, ref)) return; /* a long value: its turn comes where it is */
    }
    gb_index_use(&s->index, ref);
}

void gb_store_use_slow(struct gb_store *s, gb_ref ref, uint64_t now) {
    const struct gb_extra *x = gb_extra_at(s->base, ref, gb_entry_at(s->base, ref)->word);
    if (!x->idle) return;
    uint64_t hard = ((uint64_t)x->hard_high << 32) | x->hard_low, due = now + x->idle;
    if (hard && hard < due) due = hard;
    if (due == gb_store_due(s, ref)) return;
    if (GB_UNLIKELY(s->keep != NULL)) gb_keep_changing(s, ref);
    (void)gb_index_retime(&s->index, ref, due + x->stale, hard, x->idle);
}

/* Whether the entry's own block can say the new times. */
static bool retime_in_place(struct gb_store *s, gb_ref ref, uint64_t due, uint64_t hard,
                            uint32_t idle) {
    uint32_t word = gb_entry_at(s->base, ref)->word;
    bool extra = word & GB_WORD_EXTRA;
    if (!(word & GB_WORD_TTL) != !due || (idle && !extra)) return false;
    return !due || gb_index_retime(&s->index, ref, due + gb_stale_at(s->base, ref, word), hard, idle);
}

enum gb_err gb_store_retime(struct gb_store *s, gb_ref ref, uint64_t due, uint64_t hard,
                            uint32_t idle, uint64_t now) {
    if (GB_UNLIKELY(s->keep != NULL)) gb_keep_changing(s, ref);
    if (GB_UNLIKELY(s->index.walks != 0)) gb_store_use_walked(s, ref);
    else gb_index_use(&s->index, ref);
    if (retime_in_place(s, ref, due, hard, idle)) {
        gb_tell(s, GB_EVENT_TOUCH, ref, 0, 0);
        return GB_OK;
    }
    if (s->pins && gb_room_pinned(s, ref)) return GB_BUSY; /* its chain is being read */
    uint32_t word = gb_entry_at(s->base, ref)->word;
    bool chain = gb_store_is_chain(s, ref, word);
    struct gb_put p = {.value_len = gb_value_len(s->base, ref, word),
                       .value_type = gb_word_vtype(word),   .due = due, .hard = hard, .idle = idle,
                       .stale = gb_stale_at(s->base, ref, word)};
    p.key.len = gb_key_len(s->base, ref, word);
    p.key.type = gb_word_ktype(word);
    p.key.hash = gb_entry_at(s->base, ref)->hash;
    uint32_t granules = gb_store_granules(s, &p, chain);
    gb_ref to = gb_arena_alloc(&s->index.arena, granules, GB_KIND_PENDING);
    if (!to) { /* making room may move or remove the entry: the caller looks for it again */
        enum gb_err err = gb_room_make(s, now, false);
        return err ? err : GB_AGAIN;
    }
    p.key.bytes = gb_store_key_at(s, ref, word);
    p.value = p.key.bytes + p.key.len;
    gb_store_fill(s, to, &p, chain);
    if (chain) { /* the chain changes hands */
        struct gb_extra *from = gb_extra_at(s->base, ref, word);
        gb_extra_at(s->base, to, gb_entry_at(s->base, to)->word)->chain = from->chain;
        if (from->chain) gb_extent_at(s->base, from->chain)->prev = to;
    }
    gb_tell(s, GB_EVENT_TOUCH, to, 0, 0);
    gb_arena_rekind(&s->index.arena, to, GB_KIND_ENTRY);
    bool unsaved = s->keep && gb_keep_unsaved(s->keep, ref); /* then it is long, and `to` has its chain */
    gb_index_replace(&s->index, ref, to, !(unsaved && s->keep->eager));
    if (chain) gb_extra_at(s->base, ref, word)->chain = 0; /* now that the other one has it for certain */
    if (unsaved) gb_keep_saved(s->keep, ref);
    gb_room_release(s, ref);
    gb_room_born(s, to);
    if (unsaved) gb_keep_again(s->keep, to);
    return GB_OK;
}

bool gb_store_check(const struct gb_store *s, struct gb_fault *f) {
    if (!gb_room_check(s, f)) return false;
    const struct gb_head *h = s->head;
    if (h->max_entries && h->table.count > h->max_entries)
        return gb_broken(f, "store 1: at most max_entries are indexed", 0, h->max_entries,
                         h->table.count);
    gb_ref head = gb_index_list(&s->index), at = s->index.root->lru.next;
    for (; at != head; at = gb_list_at(s->base, at)->next) {
        gb_ref ref = GB_ENTRY_OF_LRU(at);
        uint32_t word = gb_entry_at(s->base, ref)->word, klen = gb_key_len(s->base, ref, word);
        uint64_t used = (uint64_t)gb_header_bytes(word) + klen;
        if (!gb_store_is_chain(s, ref, word)) used += gb_value_len(s->base, ref, word);
        if (used > gb_word_granules(word) * GB_GRANULE || gb_word_granules(word) > h->arena.end - ref)
            return gb_broken(f, "store 2: key and value lie inside the block", ref,
                             gb_word_granules(word) * GB_GRANULE, used);
        struct gb_key k;
        gb_store_key(s, &k, gb_store_key_at(s, ref, word), klen, gb_word_ktype(word));
        if (gb_store_find(s, &k) != ref)
            return gb_broken(f, "store 2: an entry's key finds the entry", ref, ref,
                             gb_store_find(s, &k));
    }
    return true;
}
