/* tell.c - events, gathered from entries. */
#include "tell.h"

/* What the record says of a value: that there is none, or its type and length and whether it is held. */
static uint8_t tag_of(const struct gb_store *s, gb_ref ref, uint32_t *len) {
    if (!ref) return 0;
    uint32_t word = gb_entry_at(s->base, ref)->word;
    *len = gb_value_len(s->base, ref, word);
    enum gb_ring_state state = !s->values                 ? GB_RING_UNASKED
                               : *len > GB_TELL_VALUE_MAX ? GB_RING_OMITTED
                                                          : GB_RING_HELD;
    return gb_ring_tag(state, gb_word_vtype(word));
}

static bool told_held(uint8_t tag) { return gb_ring_state(tag) == GB_RING_HELD; }

static void omit(uint8_t *tag) { *tag = gb_ring_tag(GB_RING_OMITTED, gb_ring_type(*tag)); }

static uint32_t told_bytes(const struct gb_ring_record *e) {
    return (uint32_t)sizeof *e + e->key_len + (told_held(e->value) ? e->value_len : 0u) +
           (told_held(e->old) ? e->old_len : 0u);
}

/* A value's bytes, wherever they lie; what follows them. */
static uint8_t *copy_value(struct gb_store *s, gb_ref ref, uint8_t *to) {
    uint32_t word = gb_entry_at(s->base, ref)->word, len = gb_value_len(s->base, ref, word);
    const struct gb_extra *x = word & GB_WORD_EXTRA ? gb_extra_at(s->base, ref, word) : NULL;
    if (!x || !(x->flags & GB_EXTRA_CHAIN)) {
        memcpy(to, (uint8_t *)gb_entry_at(s->base, ref) + gb_header_bytes(word) +
               gb_key_len(s->base, ref, word), len);
        return to + len;
    }
    for (gb_ref at = x->chain; at; at = gb_extent_at(s->base, at)->next) {
        const struct gb_extent *e = gb_extent_at(s->base, at);
        memcpy(to, e + 1, e->used);
        to += e->used;
        s->index.arena.work.steps++;
    }
    return to;
}

static void put(struct gb_store *s, struct gb_ring_record *e, const void *key, gb_ref value, gb_ref old) {
    uint32_t most = gb_ring_most(&s->ring);
    if (told_bytes(e) > most && told_held(e->old)) omit(&e->old);
    if (told_bytes(e) > most) omit(&e->value); /* a key alone fits */
    e->at = s->now;
    uint8_t *to = gb_ring_begin(&s->ring, e, &s->index.arena.work);
    GB_ASSERT(to); /* GB_TELL_LEAST: a key fits */
    if (!to) return; /* one way: no value is told that does not fit, and GB_TELL_LEAST holds any key */
    if (key) memcpy(to, key, e->key_len);
    to += e->key_len;
    if (told_held(e->value)) to = copy_value(s, value, to);
    if (told_held(e->old)) (void)copy_value(s, old, to);
    gb_ring_commit(&s->ring);
    s->told = true;
}

void gb_tell_entry(struct gb_store *s, enum gb_event kind, gb_ref entry, gb_ref value, gb_ref old) {
    uint32_t word = gb_entry_at(s->base, entry)->word, len = 0, old_len = 0;
    struct gb_ring_record e = {.kind = (uint8_t)kind, .key_type = (uint8_t)gb_word_ktype(word),
                               .key_len = (uint16_t)gb_key_len(s->base, entry, word)};
    e.value = tag_of(s, value, &len);
    e.old = tag_of(s, old, &old_len);
    e.value_len = len;
    e.old_len = old_len;
    put(s, &e, (uint8_t *)gb_entry_at(s->base, entry) + gb_header_bytes(word), value, old);
}

void gb_tell_key(struct gb_store *s, enum gb_event kind, const void *bytes, uint32_t len,
                 uint32_t type) {
    if (!(s->listens & 1u << kind)) return;
    struct gb_ring_record e = {.kind = (uint8_t)kind, .key_type = (uint8_t)type,
                               .key_len = (uint16_t)len};
    put(s, &e, bytes, 0, 0);
}

void gb_tell_count(struct gb_store *s, enum gb_event kind, uint64_t count) {
    if (!(s->listens & 1u << kind)) return;
    struct gb_ring_record e = {.kind = (uint8_t)kind, .count = count};
    put(s, &e, NULL, 0, 0);
}
