/* keep.c - records, and what leaves while a save is under way. */
#include "keep.h"

static bool is_chain(const struct gb_store *s, gb_ref ref, uint32_t word) {
    return (word & GB_WORD_EXTRA) && (gb_extra_at(s->base, ref, word)->flags & GB_EXTRA_CHAIN);
}

uint64_t gb_keep_size(const struct gb_store *s, gb_ref ref) {
    uint32_t word = gb_entry_at(s->base, ref)->word;
    uint64_t bytes = sizeof(struct gb_record) + (word & GB_WORD_TTL ? sizeof(struct gb_record_times) : 0u);
    bytes += (uint64_t)gb_key_len(s->base, ref, word) + gb_value_len(s->base, ref, word);
    return (bytes + GB_GRANULE - 1u) / GB_GRANULE * GB_GRANULE;
}

static struct gb_record_times times_of(const struct gb_store *s, gb_ref ref, uint32_t word) {
    struct gb_record_times t = {0};
    t.due = (int64_t)gb_index_deadline(&s->index, ref) + s->keep->wall;
    if (!(word & GB_WORD_EXTRA)) return t;
    const struct gb_extra *x = gb_extra_at(s->base, ref, word);
    uint64_t hard = (uint64_t)x->hard_high << 32 | x->hard_low;
    t.hard = hard ? (int64_t)hard + s->keep->wall : 0;
    t.idle = x->idle;
    t.stale = x->stale;
    return t;
}

uint32_t gb_keep_record(const struct gb_store *s, gb_ref ref, uint8_t *to) {
    const struct gb_entry *e = gb_entry_at(s->base, ref);
    uint32_t word = e->word, klen = gb_key_len(s->base, ref, word), at = sizeof(struct gb_record);
    bool chain = is_chain(s, ref, word);
    struct gb_record r = {.value_len = gb_value_len(s->base, ref, word), .hash = e->hash, .key_len = (uint16_t)klen,
                          .types = (uint8_t)(gb_word_ktype(word) | gb_word_vtype(word) << 2),
                          .timed = (word & GB_WORD_TTL) != 0};
    memcpy(to, &r, sizeof r);
    if (r.timed) {
        struct gb_record_times t = times_of(s, ref, word);
        memcpy(to + at, &t, sizeof t);
        at += (uint32_t)sizeof t;
    }
    uint32_t inside = klen + (chain ? 0u : r.value_len);
    memcpy(to + at, (const uint8_t *)e + gb_header_bytes(word), inside);
    at += inside;
    if (chain) return at;
    uint32_t pad = (GB_GRANULE - at % GB_GRANULE) % GB_GRANULE;
    memset(to + at, 0, pad);
    return at + pad;
}

static void append_late(struct gb_store *s, gb_ref ref) {
    struct gb_keep *k = s->keep;
    struct gb_keep_frame *f = &k->late[k->head % GB_KEEP_FRAMES];
    if (f->used + gb_keep_size(s, ref) > GB_KEEP_PAYLOAD) {
        if (k->head - k->tail + 1u == GB_KEEP_FRAMES) { /* who came in here did not look whether it was crowded */
            k->failed = true;
            return;
        }
        f = &k->late[++k->head % GB_KEEP_FRAMES];
    }
    f->used += gb_keep_record(s, ref, f->to + f->used);
    f->records++;
}

bool gb_keep_leaving(struct gb_store *s, gb_ref ref) {
    struct gb_keep *k = s->keep;
    if (!gb_keep_unsaved(k, ref)) return false;
    uint32_t word = gb_entry_at(s->base, ref)->word;
    if (is_chain(s, ref, word)) {
        gb_arena_rekind(&s->index.arena, ref, GB_KIND_PENDING);
        gb_entry_at(s->base, ref)->lru.next = k->ghost;
        k->ghost = ref;
        s->pins++; /* who finds nothing else to give up is to wait, as for any pin */
        return true;
    }
    append_late(s, ref);
    gb_keep_saved(k, ref);
    k->left--;
    return false;
}

void gb_keep_changing(struct gb_store *s, gb_ref ref) {
    struct gb_keep *k = s->keep;
    if (!gb_keep_unsaved(k, ref) || is_chain(s, ref, gb_entry_at(s->base, ref)->word)) return;
    append_late(s, ref);
    gb_keep_saved(k, ref);
    k->left--;
}

void gb_keep_moved(struct gb_keep *k, gb_ref from, gb_ref to) {
    if (gb_keep_unsaved(k, from)) gb_keep_again(k, to);
    else gb_keep_saved(k, to);
}

struct gb_keep_frame *gb_keep_take(struct gb_keep *k) {
    if (k->taken == k->head) return NULL;
    return &k->late[k->taken++ % GB_KEEP_FRAMES];
}

void gb_keep_give(struct gb_keep *k, struct gb_keep_frame *f) {
    f->written = true;
    while (k->tail < k->taken && k->late[k->tail % GB_KEEP_FRAMES].written) {
        struct gb_keep_frame *first = &k->late[k->tail++ % GB_KEEP_FRAMES];
        first->used = first->records = 0;
        first->written = false;
    }
}

bool gb_keep_check(const struct gb_store *s, struct gb_fault *f) {
    const struct gb_keep *k = s->keep;
    gb_ref head = gb_index_list(&s->index);
    uint64_t unsaved = 0;
    for (gb_ref at = s->index.root->lru.next; at != head; at = gb_list_at(s->base, at)->next)
        unsaved += gb_keep_unsaved(k, GB_ENTRY_OF_LRU(at));
    for (gb_ref ref = k->ghost; ref; ref = gb_entry_at(s->base, ref)->lru.next, unsaved++)
        if (!gb_keep_is_ghost(s, ref))
            return gb_broken(f, "keep 2: a ghost is pending and not saved", ref, GB_KIND_PENDING,
                             gb_word_kind(gb_entry_at(s->base, ref)->word));
    return unsaved == k->left || k->failed ||
           gb_broken(f, "keep 1: left counts the entries not yet saved", 0, unsaved, k->left);
}
