/* _sealed.c - all of it looked at once, and each reference again. */
#include "_sealed.h"
#include <stdlib.h>

bool gb_sealed_check(struct gb_sealed *s, const uint8_t *map, const struct gb_snap_head *h, struct gb_load_fault *f) {
    uint64_t at = GB_SNAP_HEAD, records = 0, late = h->frames;
    *s = (struct gb_sealed){.map = map, .head = *h};
    gb_digest_seed(&s->digest, h->seed);
    s->frames = malloc((h->frames + 1u) * sizeof *s->frames);
    if (!s->frames) return gb_load_short(f, at);
    while (at < h->index_at) {
        struct gb_snap_frame x;
        if (h->index_at - at < GB_LOAD_FRAME) return gb_load_wrong(f, "the frames meet the index", at);
        memcpy(&x, map + at, sizeof x);
        if (s->count + (h->frames - late) == h->frames) return gb_load_wrong(f, "frames are as many as the head says", at);
        if (!gb_load_frame_right(h, &x, at, (uint32_t)(s->count + (h->frames - late)), f)) return false;
        if (!gb_load_sum_right(h, &x, map + at + GB_LOAD_FRAME)) return gb_load_wrong(f, "a frame's checksum is right", at);
        if (!gb_load_records_right(&x, map + at + GB_LOAD_FRAME, at, f)) return false;
        if (x.kind == GB_SNAP_LATE) s->frames[--late] = at; /* from behind; turned round below */
        else s->frames[s->count++] = at;
        records += x.records;
        at += GB_LOAD_FRAME + x.bytes;
    }
    for (uint64_t i = late, k = h->frames; i < k; i++) {
        uint64_t swap = s->frames[i];
        s->frames[i] = s->frames[--k];
        s->frames[k] = swap;
    }
    if (s->count != late || records != h->entries)
        return gb_load_wrong(f, "frames and entries are as many as the head says", h->index_at);
    s->count = h->frames;
    struct gb_sum sum;
    gb_digest_sum_begin(&sum, gb_load_about(h));
    gb_digest_sum_add(&sum, map + h->index_at, h->length - h->index_at);
    return gb_digest_sum_end(&sum) == h->index_sum || gb_load_wrong(f, "the index's checksum is right", h->index_at);
}

void gb_sealed_end(struct gb_sealed *s) {
    free(s->frames);
    *s = (struct gb_sealed){0};
}

bool gb_sealed_live(const struct gb_snap_record *r, int64_t now) {
    return !r->head.timed || r->times.due > now;
}

bool gb_sealed_find(const struct gb_sealed *s, const struct gb_key *k, int64_t now, struct gb_snap_record *r) {
    const struct gb_snap_head *h = &s->head;
    uint64_t slot = (uint64_t)(uint32_t)k->hash * h->slots >> 32;
    for (uint64_t looks = 0; looks < h->slots; looks++, slot = slot + 1u == h->slots ? 0 : slot + 1u) {
        uint32_t ref;
        memcpy(&ref, s->map + h->index_at + slot * sizeof ref, sizeof ref);
        uint64_t at = (uint64_t)ref * GB_GRANULE;
        if (!ref) return false;
        if (at < GB_SNAP_HEAD + GB_LOAD_FRAME || at >= h->index_at || gb_load_record(s->map + at, h->index_at - at, r)) continue;
        if (r->head.hash == (uint32_t)k->hash && r->head.key_len == k->len && (r->head.types & 3u) == k->type &&
            !memcmp(r->key, k->bytes, k->len))
            return gb_sealed_live(r, now);
    }
    return false;
}

bool gb_sealed_next(const struct gb_sealed *s, uint64_t *frame, uint64_t *at, struct gb_snap_record *r) {
    while (*frame < s->count) {
        struct gb_snap_frame x;
        memcpy(&x, s->map + s->frames[*frame], sizeof x);
        uint64_t payload = s->frames[*frame] + GB_LOAD_FRAME;
        if (!*at) *at = payload;
        if (*at < payload + x.bytes && x.bytes <= s->head.index_at - payload &&
            !gb_load_record(s->map + *at, payload + x.bytes - *at, r)) {
            *at += r->bytes;
            return true;
        }
        ++*frame;
        *at = 0;
    }
    return false;
}
