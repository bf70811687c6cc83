/* image.c - verdicts on superblocks. */
#include "image.h"

static uint64_t sum_of(const struct gb_head *h) {
    struct gb_sum sum;
    struct gb_head c = *h;
    c.checksum = c.owner = c.boot_id[0] = c.boot_id[1] = c.clock_base = c.file_id = 0; /* what an opening writes before OPEN */
    c.zero_ns = 0;
    c.state = 0;
    gb_digest_sum_begin(&sum, h->version);
    gb_digest_sum_add(&sum, &c, sizeof c);
    return gb_digest_sum_end(&sum);
}

/* What roots the arena, table and ring lie in the image, and the table is one: a clean image is used without a walk. */
static bool roots_lie(const struct gb_head *h, uint64_t mapped, struct gb_fault *f) {
    uint64_t ring = (uint64_t)h->ring.granules * GB_GRANULE;
    if (h->length % GB_GRANULE || h->length > mapped || h->length < gb_room_smallest() + ring)
        return gb_broken(f, "image 1: the length is the file's", 0, mapped, h->length);
    gb_ref end = (gb_ref)(h->length / GB_GRANULE) - 1u - h->ring.granules;
    bool lies = h->arena.first == GB_HEAD_GRANULES && h->arena.end == end && h->arena.hand <= end &&
                h->arena.gap < end && h->index.lru.next < end && h->index.lru.prev < end && h->trash < end &&
                (!h->ring.granules || (h->ring.granules >= GB_TELL_LEAST && h->ring.at == end + 1u));
    for (uint32_t i = 0; i < GB_DIR_ROOTS; i++) lies &= h->table.dirs[i] < end;
    lies &= gb_table_sized(&h->table);
    return lies || gb_broken(f, "image 2: roots lie in the arena", h->arena.first, end, h->arena.end);
}

enum gb_image_verdict gb_image_judge(const void *base, uint64_t mapped, const uint64_t boot[2], uint64_t file_id,
                                     struct gb_fault *f) {
    const struct gb_head *h = (const struct gb_head *)base;
    if (mapped < sizeof h->magic || h->magic != GB_ROOM_MAGIC) {
        gb_broken(f, "image 3: a live file begins with GBcache1", 0, GB_ROOM_MAGIC, mapped);
    } else if (mapped < gb_room_smallest()) {
        gb_broken(f, "image 1: the length is the file's", 0, gb_room_smallest(), mapped);
    } else if (h->version != GB_ROOM_VERSION || h->layout != gb_room_layout()) {
        gb_broken(f, "image 3: version and layout are this release's", h->version, gb_room_layout(), h->layout);
    } else if (h->state == GB_IMAGE_OPEN) {
        bool here = h->boot_id[0] == boot[0] && h->boot_id[1] == boot[1] && (boot[0] | boot[1]);
        bool ours = here && h->file_id == file_id;
        if (ours && h->length <= mapped) return GB_IMAGE_KILLED;
        if (ours) gb_broken(f, "image 1: the length is the file's", 0, mapped, h->length); /* cut since: no kill does that */
        else if (here) gb_broken(f, "image 4: a file not closed is no copy of another", 0, file_id, h->file_id);
        else gb_broken(f, "image 4: a file not closed is of this run of the machine", 0, boot[0], h->boot_id[0]);
    } else if (h->state != GB_IMAGE_CLOSED) {
        gb_broken(f, "image 4: the file was filled to its end", h->state, GB_IMAGE_CLOSED, h->state);
    } else if (sum_of(h) != h->checksum) {
        gb_broken(f, "image 5: the head's checksum is right", 0, h->checksum, sum_of(h));
    } else if (roots_lie(h, mapped, f)) {
        return GB_IMAGE_CLEAN;
    }
    return GB_IMAGE_LOST;
}

void gb_image_state(struct gb_store *s, enum gb_image_state state, const uint64_t boot[2], uint64_t file_id,
                    uint64_t owner) {
    struct gb_head *h = s->head;
    s->live = state != GB_IMAGE_PRIVATE;
    s->index.arena.intent = s->live ? &h->intent : NULL;
    GB_ORDER(); /* the times of this boot are there before its name */
    h->boot_id[0] = boot[0];
    h->boot_id[1] = boot[1];
    h->file_id = file_id;
    h->owner = owner;
    GB_ORDER();
    h->state = state;
    GB_ORDER();
}

void gb_image_seal(struct gb_store *s) {
    s->head->checksum = sum_of(s->head);
    GB_ORDER(); /* a kill before the next leaves it OPEN, and mended */
    s->head->owner = 0;
    s->head->state = GB_IMAGE_CLOSED;
}
