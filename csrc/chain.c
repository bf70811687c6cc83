/* chain.c - long values in slices. */
#include "chain.h"

#define EXTENT_BYTES (GB_WINDOW_BYTES - (uint32_t)sizeof(struct gb_extent))
#define EXTENT_LEAST (GB_BLOCK_MAX / 4u) /* granules: smaller holes are not worth a header */

#define HEADER ((uint32_t)(sizeof(struct gb_extent) / GB_GRANULE))
/* Extents of a value's end that may be as short as any: what is free then is two windows more than what is to come, in
 * at most four pieces (the chunk, the entry and the last extent stay where they are), and so in one long enough. */
#define TAIL 9u

static uint32_t granules_of_value(const struct gb_put *p) { return (p->value_len + GB_GRANULE - 1u) / GB_GRANULE; }

/* In the longest extents there are; with a granule more for each, so that half as many again may be had. */
static uint64_t need_of(const struct gb_store *s, const struct gb_put *p) {
    uint64_t extents = ((uint64_t)p->value_len + EXTENT_BYTES - 1u) / EXTENT_BYTES;
    return gb_store_granules(s, p, true) + extents * 3u + p->value_len / GB_GRANULE + HEADER * TAIL;
}

/* What is promised: enough for the shortest extents, so that any hole that is left will do, or what there is. */
static uint64_t promise_of(const struct gb_store *s, const struct gb_put *p, uint64_t need) {
    uint64_t left = gb_room_capacity(s) - s->writing;
    uint64_t most = need + HEADER * (granules_of_value(p) / (EXTENT_LEAST - HEADER));
    return most < left ? most : left;
}

/* The shortest an extent may be, in granules, where `left` are to be written: all headers are to be in the promise. */
static uint32_t least_of(const struct gb_store *s, const struct gb_chain_write *w, const struct gb_put *p,
                         uint32_t left) {
    if (left <= TAIL * (EXTENT_LEAST - HEADER)) return EXTENT_LEAST;
    uint32_t value = granules_of_value(p), entry = gb_word_granules(gb_entry_at(s->base, s->pin[w->pin].entry)->word);
    uint32_t extents = (uint32_t)(w->promised - entry - value) / HEADER - TAIL;
    uint32_t least = (value + extents - 1u) / extents + HEADER;
    return least > EXTENT_LEAST ? least : EXTENT_LEAST;
}

enum gb_err gb_chain_begin(struct gb_store *s, struct gb_chain_write *w, const struct gb_put *p,
                           uint64_t now) {
    uint64_t need = need_of(s, p), capacity = gb_room_capacity(s);
    if (p->key.len > GB_KEY_MAX) return GB_LONGKEY;
    if (need > capacity || p->value_len > GB_CHAIN_VALUE_MAX) {
        s->head->counters.rejects++;
        gb_tell_key(s, GB_EVENT_REJECT, p->key.bytes, p->key.len, p->key.type);
        return GB_TOOBIG;
    }
    if (need + s->writing > capacity) return GB_BUSY;
    gb_ref old = gb_store_live(s, &p->key, now), ref;
    if (old && p->add && !gb_store_is_past(s, old, now)) return GB_EXISTS;
    uint64_t wanted = need + gb_store_granules(s, p, true);
    while (s->head->trash && gb_arena_free_granules(&s->index.arena) < wanted) { /* the dead before the old value */
        if (gb_head_steps(s) > gb_room_last(s)) return GB_AGAIN;
        gb_room_trash(s);
    }
    while (!(ref = gb_arena_alloc(&s->index.arena, gb_store_granules(s, p, true),
                                  GB_KIND_PENDING))) {
        if (gb_head_steps(s) > gb_room_last(s)) return GB_AGAIN;
        enum gb_err err = gb_room_make(s, now, false);
        if (err) return err;
    }
    /* Where both values cannot lie side by side the old one goes first, not everyone else's. */
    old = gb_store_find(s, &p->key);
    bool crowded = old && gb_arena_free_granules(&s->index.arena) < need &&
                   gb_store_is_chain(s, old, gb_entry_at(s->base, old)->word);
    enum gb_err err = crowded && gb_head_steps(s) > gb_room_last(s) ? GB_AGAIN
                                                                    : gb_room_pin(s, ref, true, &w->pin);
    if (err) {
        gb_arena_free(&s->index.arena, ref);
        return err;
    }
    gb_store_fill(s, ref, p, true);
    if (crowded) gb_room_remove(s, old, GB_CAUSE_EVICT);
    w->done = 0;
    w->promised = promise_of(s, p, need);
    s->writing += w->promised;
    return GB_OK;
}

static void append(struct gb_store *s, struct gb_chain_write *w, gb_ref at, const uint8_t *bytes,
                   uint32_t n) {
    struct gb_pin *pin = &s->pin[w->pin];
    struct gb_extent *x = gb_extent_at(s->base, at);
    x->used = n;
    x->next = 0;
    x->prev = pin->extent ? pin->extent : pin->entry;
    memcpy(x + 1, bytes, n);
    GB_ORDER();
    if (pin->extent) gb_extent_at(s->base, pin->extent)->next = at;
    else gb_extra_at(s->base, pin->entry, gb_entry_at(s->base, pin->entry)->word)->chain = at;
    pin->extent = at;
    w->done += n;
}

enum gb_err gb_chain_step(struct gb_store *s, struct gb_chain_write *w, const struct gb_put *p,
                          uint64_t now) {
    uint32_t stop = w->done + GB_CHAIN_SLICE < p->value_len ? w->done + GB_CHAIN_SLICE
                                                           : p->value_len;
    while (w->done < stop && gb_head_steps(s) <= gb_room_last(s)) { /* holes may be small and many */
        uint32_t left = p->value_len - w->done;
        uint32_t want = left < EXTENT_BYTES ? left : EXTENT_BYTES;
        uint32_t most = (uint32_t)(want + sizeof(struct gb_extent) + GB_GRANULE - 1u) / GB_GRANULE;
        uint32_t least = least_of(s, w, p, (left + GB_GRANULE - 1u) / GB_GRANULE);
        gb_ref at = gb_arena_alloc_between(&s->index.arena, least, most, GB_KIND_EXTENT);
        if (!at) {
            enum gb_err err = gb_room_make(s, now, false);
            if (err) return err;
            continue;
        }
        uint32_t room = gb_arena_size(&s->index.arena, at) * GB_GRANULE -
                        (uint32_t)sizeof(struct gb_extent);
        append(s, w, at, p->value + w->done, left < room ? left : room);
    }
    return w->done < p->value_len ? GB_AGAIN : GB_OK;
}

static void write_end(struct gb_store *s, struct gb_chain_write *w) {
    s->writing -= w->promised;
    gb_room_unpin(s, w->pin);
}

enum gb_err gb_chain_commit(struct gb_store *s, struct gb_chain_write *w, const struct gb_put *p,
                            uint64_t now) {
    gb_ref ref = s->pin[w->pin].entry, old;
    for (;;) {
        old = gb_store_live(s, &p->key, now);
        if (old && p->add && !gb_store_is_past(s, old, now)) return GB_EXISTS;
        while (!old && !gb_store_counted(s, now))
            if (gb_head_steps(s) > gb_room_last(s)) return GB_AGAIN;
        if (gb_head_steps(s) > gb_room_last(s)) return GB_AGAIN; /* the new value must be told too */
        uint32_t word = gb_entry_at(s->base, ref)->word;
        bool wide = p->due && gb_wheel_wide(&s->index.wheel, p->due + p->stale); /* it moved on */
        struct gb_extra *x = gb_extra_at(s->base, ref, word);
        x->flags = (x->flags & ~GB_EXTRA_WIDE) | (wide ? GB_EXTRA_WIDE : 0u);
        if (!gb_store_admit(s, p->key.hash, ref, old)) break;
        if (gb_head_steps(s) > gb_room_last(s)) return GB_AGAIN;
        enum gb_err err = gb_room_make(s, now, false);
        if (err) return err;
    }
    write_end(s, w);
    gb_room_tend(s, now);
    return GB_OK;
}

void gb_chain_abort(struct gb_store *s, struct gb_chain_write *w) {
    gb_ref ref = s->pin[w->pin].entry;
    write_end(s, w);
    gb_room_drop(s, ref);
}

enum gb_err gb_chain_open(struct gb_store *s, struct gb_chain_read *r, gb_ref ref) {
    uint32_t word = gb_entry_at(s->base, ref)->word;
    enum gb_err err = gb_room_pin(s, ref, false, &r->pin);
    if (err) return err;
    s->pin[r->pin].extent = gb_extra_at(s->base, ref, word)->chain;
    r->left = gb_value_len(s->base, ref, word);
    r->done = r->skip = 0;
    return GB_OK;
}

enum gb_err gb_chain_copy(struct gb_store *s, struct gb_chain_read *r, uint8_t *to) {
    struct gb_pin *pin = &s->pin[r->pin];
    uint32_t budget = GB_CHAIN_SLICE;
    while (r->left && budget && gb_head_steps(s) < GB_STEPS_MAX) {
        const struct gb_extent *x = gb_extent_at(s->base, pin->extent);
        uint32_t n = x->used - r->skip;
        if (n > budget) n = budget;
        memcpy(to + r->done, (const uint8_t *)(x + 1) + r->skip, n);
        r->done += n;
        r->left -= n;
        budget -= n;
        r->skip += n;
        s->index.arena.work.steps++;
        if (r->skip < x->used || !x->next) continue;
        pin->extent = x->next;
        r->skip = 0;
    }
    return r->left ? GB_AGAIN : GB_OK;
}

void gb_chain_close(struct gb_store *s, struct gb_chain_read *r) { gb_room_unpin(s, r->pin); }

void gb_chain_orphans(struct gb_store *s) {
    for (uint32_t i = 0; i < GB_HEAD_PINS; i++) {
        gb_ref ref = s->pin[i].entry;
        if (!s->pin[i].used) continue;
        bool writing = s->pin[i].writing;
        gb_room_unpin(s, i);
        if (writing) gb_room_drop(s, ref);
    }
    s->writing = 0;
    (void)gb_room_shrink(s, s->head->length); /* one under way is left */
    s->index.walks = 0;
    memset(s->index.walk, 0, sizeof s->index.walk);
}

bool gb_chain_check(const struct gb_store *s, struct gb_fault *f) {
    if (!gb_store_check(s, f)) return false;
    if (s->writing > gb_room_capacity(s))
        return gb_broken(f, "chain 1: promises are within the capacity", 0, gb_room_capacity(s),
                         s->writing);
    return true;
}
