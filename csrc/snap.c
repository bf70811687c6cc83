/* snap.c - the walker, and records read back. */
#include "snap.h"

enum gb_err gb_snap_begin(struct gb_store *s, struct gb_snap *p) {
    if (s->keep || !gb_index_walk_begin(&s->index, &p->walk)) return GB_BUSY;
    p->count = p->keep.left = s->index.table.root->count;
    p->steps = 0;
    p->most = GB_SNAP_ENTRIES;
    for (uint32_t i = 0; i < GB_HEAD_PINS; i++) /* dead already, or not born: none of the moment */
        if (s->pin[i].used && gb_word_kind(gb_entry_at(s->base, s->pin[i].entry)->word) == GB_KIND_PENDING)
            gb_keep_saved(&p->keep, s->pin[i].entry);
    s->keep = &p->keep;
    return GB_OK;
}

void gb_snap_end(struct gb_store *s, struct gb_snap *p) {
    struct gb_keep *k = &p->keep;
    if (s->keep != k) return;
    if (p->reading) gb_chain_close(s, &p->read);
    s->keep = NULL;
    while (k->ghost) {
        gb_ref ref = k->ghost;
        k->ghost = gb_entry_at(s->base, ref)->lru.next;
        s->pins--;
        if (!gb_room_pinned(s, ref)) gb_room_drop(s, ref);
    }
    gb_index_walk_end(&s->index, p->walk);
}

/* Begins a long value, in an empty frame. */
static enum gb_err long_begin(struct gb_store *s, struct gb_snap *p, gb_ref ref, struct gb_keep_frame *f) {
    enum gb_err err = gb_chain_open(s, &p->read, ref);
    if (err) return err;
    p->reading = ref;
    p->was_ghost = gb_word_kind(gb_entry_at(s->base, ref)->word) == GB_KIND_PENDING;
    p->payload = gb_keep_size(s, ref);
    f->used = gb_keep_record(s, ref, f->to);
    f->records = 1;
    p->pad = p->payload - f->used - p->read.left;
    if (p->was_ghost) { /* the first one; the pin of the read holds it from here on */
        p->keep.ghost = gb_entry_at(s->base, ref)->lru.next;
        s->pins--;
    }
    gb_keep_saved(&p->keep, ref);
    p->keep.left--;
    return GB_AGAIN;
}

/* One slice of it: the frame has room for one, or is full. */
static enum gb_err long_step(struct gb_store *s, struct gb_snap *p, struct gb_keep_frame *f, bool *full) {
    uint32_t slice = p->read.left < GB_CHAIN_SLICE ? p->read.left : GB_CHAIN_SLICE;
    if (f->used && f->used + slice + p->pad > GB_KEEP_PAYLOAD) {
        *full = true;
        return GB_AGAIN;
    }
    uint32_t before = p->read.left;
    p->read.done = 0; /* it copies to where the frame goes on */
    (void)gb_chain_copy(s, &p->read, f->to + f->used);
    f->used += before - p->read.left;
    if (p->read.left || gb_head_steps(s) == GB_STEPS_MAX) return GB_AGAIN; /* closing may take a step */
    memset(f->to + f->used, 0, (size_t)p->pad);
    f->used += (uint32_t)p->pad;
    gb_chain_close(s, &p->read);
    p->reading = 0;
    *full = true;
    return GB_AGAIN;
}

/* The next entry to save, of the walk: 0: it came to the front. */
static gb_ref next_unsaved(struct gb_store *s, struct gb_snap *p, uint32_t *n) {
    while (*n < p->most * 2u) {
        gb_ref ref = gb_index_walk_next(&s->index, p->walk);
        if (!ref) return 0; /* one way: who is left lies ahead */
        ++*n;
        gb_ref next = s->index.walk[p->walk].at; /* a link: its entry is one granule before */
        __builtin_prefetch(gb_at(s->base, next));
        if (gb_keep_unsaved(&p->keep, ref)) return ref;
    }
    return 0;
}

enum gb_err gb_snap_step(struct gb_store *s, struct gb_snap *p, struct gb_keep_frame *f, bool *full) {
    struct gb_keep *k = &p->keep;
    uint32_t n = 0;
    *full = false;
    if (p->reading) return long_step(s, p, f, full);
    if (k->ghost) {
        *full = f->used != 0;
        return f->used ? GB_AGAIN : long_begin(s, p, k->ghost, f);
    }
    while (n < p->most && k->left) {
        gb_ref ref = next_unsaved(s, p, &n);
        bool end = !ref && s->index.walk[p->walk].at == gb_index_list(&s->index); /* one way: who is left lies ahead */
        if (end) { /* one way: as above, but no save is to go on for ever */
            s->index.walk[p->walk].at = s->index.root->lru.prev; /* unreachable: as above */
            k->eager = true; /* unreachable: as above */
        }
        if (!ref) break;
        bool chain = gb_store_is_chain(s, ref, gb_entry_at(s->base, ref)->word);
        uint64_t size = gb_keep_size(s, ref);
        if (chain || f->used + size > GB_KEEP_PAYLOAD) {
            *full = f->used != 0;
            enum gb_err err = chain && !f->used ? long_begin(s, p, ref, f) : GB_BUSY;
            if (err == GB_AGAIN) return err;
            s->index.walk[p->walk].at = GB_LRU_OF(ref); /* its turn comes again */
            return *full ? GB_AGAIN : err;
        }
        f->used += gb_keep_record(s, ref, f->to + f->used);
        f->records++;
        gb_keep_saved(k, ref);
        k->left--;
        s->index.arena.work.steps++;
    }
    p->steps += n;
    if (p->steps > p->count) k->eager = true;
    if (k->left) return GB_AGAIN;
    *full = f->used != 0;
    return GB_OK;
}

bool gb_snap_check(const struct gb_store *s, const struct gb_snap *p, struct gb_fault *f) {
    const struct gb_pin *pin = &s->pin[p->read.pin];
    if (p->reading && (!pin->used || gb_keep_unsaved(&p->keep, pin->entry)))
        return gb_broken(f, "snap 1: a long value under way is pinned and counts as saved", p->reading, 1, pin->used);
    return (p->most && p->most <= GB_SNAP_ENTRIES) ||
           gb_broken(f, "snap 2: a hold saves some entries, not too many", 0, GB_SNAP_ENTRIES, p->most);
}

const char *gb_snap_parse(const uint8_t *at, uint64_t left, struct gb_snap_record *r) {
    uint64_t used = sizeof r->head;
    if (left < used) return "a record's head lies in its frame";
    memcpy(&r->head, at, sizeof r->head);
    memset(&r->times, 0, sizeof r->times);
    if (r->head.timed > 1u || r->head.types >> 5) return "a record's types and flags are known ones";
    if (r->head.timed) {
        if (left < used + sizeof r->times) return "a record's times lie in its frame";
        memcpy(&r->times, at + used, sizeof r->times);
        used += sizeof r->times;
    }
    if (r->head.key_len > GB_RECORD_KEY_MAX || r->head.value_len > GB_CHAIN_VALUE_MAX)
        return "a record's lengths are ones a cache can hold";
    r->key = at + used;
    used += r->head.key_len;
    r->value = at + used;
    used += r->head.value_len;
    r->bytes = (used + GB_GRANULE - 1u) / GB_GRANULE * GB_GRANULE;
    return r->bytes > left ? "a record's bytes lie in its frame" : NULL;
}

const char *gb_snap_read(const uint8_t *at, uint64_t left, struct gb_snap_record *r) {
    const char *rule = gb_snap_parse(at, left, r);
    if (rule) return rule;
    for (const uint8_t *p = r->value + r->head.value_len; p < at + r->bytes; p++)
        if (*p) return "the rest of a record is zero";
    return NULL;
}

/* A time of the wall clock in the image's ms: no further off than it was at the file's moment. */
static uint64_t local_time(int64_t then, uint64_t now, int64_t wall, int64_t saved) {
    int64_t here = (int64_t)now + wall; /* of the wall clock */
    if (then <= here || then <= saved) return 0;
    int64_t left = then - (here > saved ? here : saved);
    return now + ((uint64_t)left < GB_WHEEL_MAX_MS / 2u ? (uint64_t)left : GB_WHEEL_MAX_MS / 2u);
}

bool gb_snap_times(const struct gb_snap_record *r, uint64_t now, int64_t wall, int64_t saved, struct gb_put *p) {
    *p = (struct gb_put){.key = {r->key, r->head.key_len, r->head.types & 3u, 0}, .value = r->value,
                         .value_len = r->head.value_len, .value_type = r->head.types >> 2};
    if (!r->head.timed) return true;
    p->due = local_time(r->times.due, now, wall, saved);
    p->hard = r->times.hard ? local_time(r->times.hard, now, wall, saved) : 0;
    p->idle = r->times.idle;
    p->stale = r->times.stale;
    if (p->due) return p->hard || !r->times.hard;
    if (!r->times.stale || r->times.due > INT64_MAX - r->times.stale) return false;
    uint64_t kept = local_time(r->times.due + r->times.stale, now, wall, saved);
    p->due = now; /* past, and kept */
    p->stale = (uint32_t)(kept > now ? kept - now : 0);
    return kept > now;
}

bool gb_snap_put(const struct gb_store *s, const struct gb_snap_record *r, uint64_t now, int64_t wall,
                 int64_t saved, struct gb_put *p) {
    bool lives = gb_snap_times(r, now, wall, saved, p);
    gb_store_key(s, &p->key, r->key, r->head.key_len, r->head.types & 3u);
    return lives;
}
