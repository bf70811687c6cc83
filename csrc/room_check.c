/* room_check.c - the invariants of room.h, each by its number. */
#include "room.h"

/* Adds up one chain; its extents name the one before (so it comes to an end), and hold `want` bytes. */
static bool check_extents(const struct gb_store *s, gb_ref owner, gb_ref at, uint64_t want,
                        uint64_t *granules, struct gb_fault *f) {
    uint64_t held = 0, most = s->head->arena.end;
    for (gb_ref before = owner; at; at = gb_extent_at(s->base, at)->next) {
        const struct gb_extent *x = gb_extent_at(s->base, at);
        if (at + 1u >= most) return gb_broken(f, "room 3: an extent names the one before", at, most, before);
        uint32_t size = gb_word_granules(x->word);
        if (gb_word_kind(x->word) != GB_KIND_EXTENT || !size || size > most - at || x->prev != before)
            return gb_broken(f, "room 3: an extent names the one before", at, before, x->prev);
        if (x->used + sizeof *x > (uint64_t)size * GB_GRANULE)
            return gb_broken(f, "room 3: a chain holds its value's length", at, size, x->used);
        held += x->used;
        *granules += size;
        before = at;
    }
    if (held != want)
        return gb_broken(f, "room 3: a chain holds its value's length", owner, want, held);
    return true;
}

static bool check_entry(const struct gb_store *s, gb_ref ref, uint64_t *extents,
                        struct gb_fault *f) {
    uint32_t word = gb_entry_at(s->base, ref)->word;
    if (!(word & GB_WORD_EXTRA)) return true;
    const struct gb_extra *x = gb_extra_at(s->base, ref, word);
    if (!(x->flags & GB_EXTRA_CHAIN)) return true;
    bool half = gb_word_kind(word) == GB_KIND_PENDING; /* a writer may be in the middle of it */
    uint64_t want = x->val_len, held = 0;
    for (gb_ref at = x->chain; half && at; at = gb_extent_at(s->base, at)->next)
        held += gb_extent_at(s->base, at)->used;
    return check_extents(s, ref, x->chain, half ? held : want, extents, f);
}

/* Chains that nobody names but the trash. */
static bool check_trash(const struct gb_store *s, uint64_t *extents, struct gb_fault *f) {
    const struct gb_head *h = s->head;
    for (gb_ref t = h->trash; t;) { /* a trashed chain's head names the next chain */
        gb_ref chain = t < h->arena.end ? gb_extent_at(s->base, t)->prev : 0;
        for (; t; t = gb_extent_at(s->base, t)->next) {
            const struct gb_extent *x = gb_extent_at(s->base, t);
            if (t + 1u >= h->arena.end || gb_word_kind(x->word) != GB_KIND_EXTENT ||
                !gb_word_granules(x->word) || *extents > h->arena.end)
                return gb_broken(f, "room 2: the trash holds extents", t, GB_KIND_EXTENT, *extents);
            *extents += gb_word_granules(x->word);
        }
        t = chain;
    }
    return true;
}

static bool is_pinned(const struct gb_store *s, gb_ref ref) {
    bool found = false;
    for (uint32_t i = 0; i < GB_HEAD_PINS; i++) found |= s->pin[i].used && s->pin[i].entry == ref;
    return found;
}

bool gb_room_check(const struct gb_store *s, struct gb_fault *f) {
    const struct gb_head *h = s->head;
    const struct gb_index *ix = &s->index;
    uint64_t keys = 0, values = 0, entries = 0, extents = 0, pending = 0;
    if (h->magic != GB_ROOM_MAGIC || h->version != GB_ROOM_VERSION || h->layout != gb_room_layout())
        return gb_broken(f, "room 5: magic, version and layout are this build's", 0, GB_ROOM_MAGIC,
                         h->magic);
    if (gb_room_end(s) != h->arena.end)
        return gb_broken(f, "room 5: the arena ends where the ring begins", 0, gb_room_end(s),
                         h->arena.end);
    if (h->ring.granules && h->ring.at != h->arena.end + 1u)
        return gb_broken(f, "room 5: the ring ends where the image ends", 0, h->arena.end + 1u, h->ring.at);
    if (h->ring.granules && !gb_ring_check(&s->ring, f)) return false;
    if (!gb_index_check(ix, f) || (s->keep && !gb_keep_check(s, f))) return false;
    gb_ref head = gb_index_list(ix), at = ix->root->lru.next;
    for (; at != head; at = gb_list_at(s->base, at)->next) {
        gb_ref ref = GB_ENTRY_OF_LRU(at);
        uint32_t word = gb_entry_at(s->base, ref)->word;
        keys += gb_key_len(s->base, ref, word);
        values += gb_value_len(s->base, ref, word);
        entries += gb_word_granules(word);
        if (!check_entry(s, ref, &extents, f)) return false;
    }
    if (keys != h->key_bytes || values != h->value_bytes)
        return gb_broken(f, "room 1: key and value bytes are the sums over the entries", keys,
                         h->key_bytes, h->value_bytes);
    if (entries != h->arena.ledger[GB_KIND_ENTRY])
        return gb_broken(f, "room 6: every entry's block is in the recency list", 0, entries,
                         h->arena.ledger[GB_KIND_ENTRY]);
    if (!check_trash(s, &extents, f)) return false;
    for (uint32_t i = 0; i < GB_HEAD_PINS; i++) {
        gb_ref ref = s->pin[i].entry;
        bool again = false;
        for (uint32_t k = 0; k < i; k++) again |= s->pin[k].used && s->pin[k].entry == ref;
        if (!s->pin[i].used || again) continue;
        uint32_t word = gb_entry_at(s->base, ref)->word;
        if (gb_word_kind(word) != GB_KIND_PENDING) continue;
        pending += gb_word_granules(word);
        if (!check_entry(s, ref, &extents, f)) return false;
    }
    for (gb_ref ref = s->keep ? s->keep->ghost : 0; ref; ref = gb_entry_at(s->base, ref)->lru.next) {
        pending += is_pinned(s, ref) ? 0u : gb_word_granules(gb_entry_at(s->base, ref)->word);
        if (!is_pinned(s, ref) && !check_entry(s, ref, &extents, f)) return false;
    }
    if (pending != h->arena.ledger[GB_KIND_PENDING])
        return gb_broken(f, "room 4: every pending block is pinned, or a ghost", 0, pending,
                         h->arena.ledger[GB_KIND_PENDING]);
    if (extents != h->arena.ledger[GB_KIND_EXTENT])
        return gb_broken(f, "room 2: every extent is in a chain or the trash", 0, extents,
                         h->arena.ledger[GB_KIND_EXTENT]);
    return true;
}
