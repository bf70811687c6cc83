/* store.c - put and its relatives. */
#include "store.h"

/* What the header must hold: a timer, and extra words for what the first word cannot say. */
static uint32_t flags_of(const struct gb_store *s, const struct gb_put *p, bool chain) {
    bool wide = p->due && gb_wheel_wide(&s->index.wheel, p->due);
    return (p->due ? GB_WORD_TTL : 0u) |
           (chain || p->idle || wide || p->key.len >= GB_KLEN_LONG ? GB_WORD_EXTRA : 0u);
}
static uint64_t bytes_of(uint32_t flags, const struct gb_put *p, bool chain) {
    return gb_header_bytes(flags) + (uint64_t)p->key.len + (chain ? 0u : p->value_len);
}

bool gb_store_fits_inline(const struct gb_put *p) {
    return bytes_of(GB_WORD_TTL | GB_WORD_EXTRA, p, false) <= GB_WINDOW_BYTES;
}

static uint32_t granules_for(uint64_t bytes) {
    uint32_t n = (uint32_t)((bytes + GB_GRANULE - 1u) / GB_GRANULE);
    return n < 3u ? 3u : n; /* so that a freed entry is a block the lists can hold */
}

static void fill(struct gb_store *s, gb_ref ref, const struct gb_put *p, uint32_t flags,
                 bool chain) {
    struct gb_entry *e = gb_entry_at(s->base, ref);
    uint32_t size = gb_word_granules(e->word), klen = p->key.len;
    uint64_t bytes = bytes_of(flags, p, chain);
    uint32_t pad = size * GB_GRANULE - (uint32_t)bytes;
    if (pad > 7u) { /* three granules hold less than 17 bytes of header and key: say so in words */
        GB_ASSERT(flags & GB_WORD_EXTRA || size == 3u);
        pad = 7u;
    }
    e->word = (e->word & (1023u | (7u << 10) | GB_WORD_PREV_FREE)) | (pad << 14) |
              ((klen < GB_KLEN_LONG ? klen : GB_KLEN_LONG) << 17) | (p->key.type << 25) |
              (p->value_type << 27) | flags;
    if (flags & GB_WORD_TTL) gb_timer_at(s->base, ref)->due = (uint32_t)p->due;
    if (flags & GB_WORD_EXTRA) {
        bool wide = p->due && gb_wheel_wide(&s->index.wheel, p->due);
        *gb_extra_at(s->base, ref, e->word) = (struct gb_extra){
            .key_len = klen,
            .val_len = p->value_len,
            .due_high = (uint32_t)(p->due >> 32),
            .idle = p->idle,
            .flags = (wide ? GB_EXTRA_WIDE : 0u) | (chain ? GB_EXTRA_CHAIN : 0u)};
    }
    uint8_t *to = (uint8_t *)gb_at(s->base, ref) + gb_header_bytes(flags);
    memcpy(to, p->key.bytes, klen);
    if (!chain && p->value_len) memcpy(to + klen, p->value, p->value_len);
}
