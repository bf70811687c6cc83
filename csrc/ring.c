/* ring.c - one word says where the newest record is, one where the oldest; the rest is read there. */
#include "ring.h"

#define FILLER 255u     /* a kind that is none */
#define TAG_SPARE 0xC8u /* bits no state and no type has */
#define COUNT_MAX ((uint64_t)1 << 62) /* bytes or events no ring comes to; keeps sums from wrapping */

/* The compiler moves no store across. A kill sees a process's stores in the order it made them, so
 * the processor needs no fence. */

static uint32_t windows_of(uint64_t bytes) {
    return (uint32_t)((bytes + GB_WINDOW_BYTES - 1u) / GB_WINDOW_BYTES);
}
/* Behind the newest record: the count, its place (the span's length at a lap's end), the next number. */
struct front {
    uint64_t head, spot, next;
};
static inline struct front front_of(const struct gb_ring *r) {
    uint64_t last = r->root->last;
    if (GB_UNLIKELY(last == GB_RING_NOWHERE)) return (struct front){0, 0, r->root->born};
    uint64_t spot = gb_ring_spot(r, last);
    const struct gb_ring_record *e = gb_ring_in(r, spot);
    return (struct front){last + gb_ring_size(e), spot + gb_ring_size(e), e->seq + 1u};
}
static uint32_t held_bytes(uint8_t tag, uint32_t length) {
    return gb_ring_state(tag) == GB_RING_HELD ? length : 0u;
}
/* A record of so many bytes behind its header. */
static uint64_t record_bytes(uint64_t behind) {
    return (sizeof(struct gb_ring_record) + behind + GB_GRANULE - 1u) & ~(uint64_t)(GB_GRANULE - 1u);
}
static uint64_t bytes_behind(const struct gb_ring_record *e) {
    return (uint64_t)e->key_len + held_bytes(e->value, e->value_len) + held_bytes(e->old, e->old_len);
}

/* Of a known kind, and no length without a thing that has it. */
static bool well_formed(const struct gb_ring_record *e) {
    if (e->kind >= GB_EVENTS || e->key_type > 3u || ((e->value | e->old) & TAG_SPARE)) return false;
    if (gb_ring_wide(e->kind)) return !(e->key_len | e->value | e->old);
    return (gb_ring_state(e->value) || !e->value_len) && (gb_ring_state(e->old) || !e->old_len);
}

void gb_ring_format(struct gb_ring *r, gb_ref at, gb_ref granules, uint64_t seq) {
    GB_ASSERT(granules >= GB_RING_LEAST && seq >= 1u);
    r->root->granules = 0; /* there is none until all of its root is */
    GB_ORDER();
    *r->root = (struct gb_ring_root){.at = at, .born = seq, .last = GB_RING_NOWHERE};
    GB_ORDER();
    r->root->granules = granules;
}

/* A filler, where tail stands on one, lies before the span's first record. */
uint64_t gb_ring_first(const struct gb_ring *r) {
    if (r->root->last == GB_RING_NOWHERE) return r->root->born;
    const struct gb_ring_record *e = gb_ring_in(r, gb_ring_spot(r, r->root->tail));
    return e->kind == FILLER ? gb_ring_in(r, 0)->seq : e->seq;
}

/* Gives up the oldest records until no more than `most` bytes are in use. Never all of them: a record and
 * its filler need less than half the span, so `most` is over a half, and no record is over a quarter. */
static void give_up(struct gb_ring *r, uint64_t head, uint64_t most, struct gb_work *work) {
    uint64_t was = r->root->tail, tail = was, length = gb_ring_length(r);
    uint64_t spot = gb_ring_spot(r, tail);
    while (head - tail > most) {
        uint32_t size = gb_ring_size(gb_ring_in(r, spot));
        tail += size;
        spot = spot + size == length ? 0 : spot + size;
    }
    GB_ASSERT(tail <= r->root->last);
    work->steps += windows_of(tail - was);
    r->root->tail = tail;
    GB_ORDER(); /* and only then what was given up may change */
}

uint8_t *gb_ring_begin(struct gb_ring *r, const struct gb_ring_record *e, struct gb_work *work) {
    uint64_t bytes = record_bytes(bytes_behind(e)), length = gb_ring_length(r), skip = 0;
    GB_ASSERT(well_formed(e));
    if (bytes > gb_ring_most(r)) return NULL;
    struct front at = front_of(r);
    if (GB_UNLIKELY(at.spot + bytes > length)) skip = length - at.spot;
    if (at.head + skip + bytes - r->root->tail > length)
        give_up(r, at.head, length - skip - bytes, work);
    struct gb_ring_record *to = gb_ring_in(r, at.spot);
    if (GB_UNLIKELY(at.spot + bytes > length)) {
        if (skip) {
            to->granules = (uint16_t)(skip / GB_GRANULE);
            to->kind = FILLER;
        }
        to = gb_ring_in(r, 0);
    }
    GB_POISON(to, bytes);
    *(uint64_t *)(void *)((uint8_t *)to + bytes - GB_GRANULE) = 0; /* what the bytes leave over */
    *to = *e;
    to->granules = (uint16_t)(bytes / GB_GRANULE);
    to->seq = at.next;
    r->root->begun = at.head + skip;
    work->steps += windows_of(bytes);
    return (uint8_t *)to + sizeof *to;
}

/* The lap may move first: what is kept lies in it, or in the one before, either way. */
void gb_ring_commit(struct gb_ring *r) {
    struct gb_ring_root *root = r->root;
    uint64_t begun = root->begun, length = gb_ring_length(r);
    GB_ASSERT(begun - front_of(r).head < length); /* one was begun */
    if (GB_UNLIKELY(begun - root->lap == length)) root->lap = begun;
    GB_ORDER();
    root->last = begun;
    GB_ORDER();
}

void gb_ring_newest(const struct gb_ring *r, struct gb_ring_cursor *c) {
    struct front at = front_of(r);
    *c = (struct gb_ring_cursor){at.head, at.next, r->root->born};
}

void gb_ring_since(const struct gb_ring *r, struct gb_ring_cursor *c, uint64_t seq) {
    struct front at = front_of(r);
    uint64_t wanted = seq < UINT64_MAX ? seq + 1u : seq;
    uint64_t pos = wanted < at.next ? r->root->tail : at.head; /* no walk to what is not there yet */
    *c = (struct gb_ring_cursor){pos, wanted, r->root->born};
}

/* A cursor that fell behind, or is of an earlier ring, goes to the tail. Returns how many it lost. */
static uint64_t catch_up(const struct gb_ring *r, struct gb_ring_cursor *c) {
    const struct gb_ring_root *root = r->root;
    uint64_t first = gb_ring_first(r), wanted = c->wanted;
    if (GB_UNLIKELY(c->born != root->born || c->pos < root->tail)) c->pos = root->tail;
    c->born = root->born;
    if (wanted >= first) return 0;
    c->wanted = first;
    return first - wanted;
}

static bool passes(const struct gb_ring_filter *f, const struct gb_ring_record *e) {
    if (!((f->kinds >> e->kind) & 1u)) return false;
    if (f->prefix_type < 0 || gb_ring_wide(e->kind)) return true;
    return e->key_type == (uint32_t)f->prefix_type && e->key_len >= f->prefix_len &&
           (!f->prefix_len || !memcmp(gb_ring_key(e), f->prefix, f->prefix_len));
}

static uint8_t unasked(uint8_t tag) {
    return gb_ring_state(tag) ? gb_ring_tag(GB_RING_UNASKED, gb_ring_type(tag)) : tag;
}
/* The record without the bytes of values: as if nobody had wanted them. */
static void copy_bare(const struct gb_ring_record *e, uint8_t *to, uint32_t size) {
    struct gb_ring_record *copy = (struct gb_ring_record *)(void *)to;
    *(uint64_t *)(void *)(to + size - GB_GRANULE) = 0; /* a value's bytes may follow the key's */
    memcpy(to, e, sizeof *e + e->key_len);
    copy->granules = (uint16_t)(size / GB_GRANULE);
    copy->value = unasked(e->value);
    copy->old = unasked(e->old);
}

uint32_t gb_ring_pull(const struct gb_ring *r, struct gb_ring_cursor *c,
                      const struct gb_ring_filter *f, uint8_t *to, uint32_t room,
                      struct gb_work *work, uint32_t steps_max, uint64_t *lost, bool *more) {
    *lost = catch_up(r, c);
    uint64_t length = gb_ring_length(r), spot = gb_ring_spot(r, c->pos), wanted = c->wanted;
    uint64_t steps = work->steps < steps_max ? steps_max - work->steps : 0u, walked = 0;
    uint64_t most = steps * GB_WINDOW_BYTES, ahead = front_of(r).head - c->pos;
    uint32_t used = 0;
    while (walked < ahead) {
        const struct gb_ring_record *e = gb_ring_in(r, spot);
        uint32_t size = gb_ring_size(e);
        if (walked + size > most) break;
        if (e->kind != FILLER && e->seq >= wanted) {
            if (passes(f, e)) {
                uint32_t bytes = f->values ? size : (uint32_t)record_bytes(e->key_len);
                if (bytes > room - used) break;
                if (f->values) memcpy(to + used, e, bytes);
                else copy_bare(e, to + used, bytes);
                used += bytes;
            }
            wanted = e->seq + 1u;
        }
        walked += size;
        spot += size;
        if (spot == length) spot = 0;
    }
    work->steps += windows_of(walked);
    c->pos += walked;
    c->wanted = wanted;
    *more = walked < ahead;
    return used;
}

static bool check_root(const struct gb_ring_root *root, uint64_t length, struct gb_fault *f) {
    uint64_t last = root->last, tail = root->tail, lap = root->lap;
    if (root->granules < GB_RING_LEAST || root->born < 1u || root->born >= COUNT_MAX)
        return gb_broken(f, "ring 1: a span of some length, numbers from 1 on", root->born,
                         GB_RING_LEAST, root->granules);
    if (last == GB_RING_NOWHERE)
        return !(tail | lap) || gb_broken(f, "ring 2: an empty ring begins at 0", lap, 0, tail);
    if (last >= COUNT_MAX || (last | tail) % GB_GRANULE)
        return gb_broken(f, "ring 2: counts are whole granules, and not without end", 0, tail, last);
    if (tail > last || last - tail >= length)
        return gb_broken(f, "ring 2: tail <= last < tail + length", 0, tail, last);
    if (lap % length || lap > tail + length || last >= lap + length)
        return gb_broken(f, "ring 2: tail and last are in the lap or the one before", tail, lap, last);
    return true;
}

/* A record whose `size` bytes lie in the span; nothing else of it is believed. */
static bool check_record(const struct gb_ring_record *e, uint32_t size, struct gb_fault *f) {
    if (size < sizeof *e || !well_formed(e))
        return gb_broken(f, "ring 5: a known kind, and no length of what is not there", 0, size,
                         size < sizeof *e ? 0 : e->kind);
    uint64_t behind = bytes_behind(e);
    if (record_bytes(behind) != size)
        return gb_broken(f, "ring 5: a record is as long as its lengths say", e->seq, size,
                         record_bytes(behind));
    for (uint64_t i = sizeof *e + behind; i < size; i++)
        if (((const uint8_t *)e)[i])
            return gb_broken(f, "ring 5: the rest of a record is zero", e->seq, size, i);
    return true;
}

/* From tail to last; every turn comes forward by a granule at least, so it ends. */
static bool check_records(const struct gb_ring *r, struct gb_fault *f) {
    uint64_t length = gb_ring_length(r), last = r->root->last, pos = r->root->tail;
    uint64_t end = pos + length, spot = gb_ring_spot(r, pos), seq = 0, size;
    for (; pos <= last; pos += size) {
        const struct gb_ring_record *e = gb_ring_in(r, spot);
        size = gb_ring_size(e);
        if (!size || size > gb_ring_most(r) || size > length - spot || size > end - pos)
            return gb_broken(f, "ring 3: a record is in the span, and not too long", pos, end, size);
        if (pos < last && size > last - pos)
            return gb_broken(f, "ring 3: the records meet last", pos, last, pos + size);
        if (e->kind == FILLER) {
            if (spot + size != length || pos == last)
                return gb_broken(f, "ring 4: a filler fills the span before a record", pos, length,
                                 spot + size);
        } else {
            if (!check_record(e, (uint32_t)size, f)) return false;
            if (e->seq < r->root->born || e->seq >= COUNT_MAX || (seq && e->seq != seq))
                return gb_broken(f, "ring 6: numbers have no gap", pos, seq, e->seq);
            seq = e->seq + 1u;
        }
        spot = spot + size == length ? 0 : spot + size;
    }
    return true;
}

bool gb_ring_check(const struct gb_ring *r, struct gb_fault *f) {
    if (!check_root(r->root, gb_ring_length(r), f)) return false;
    return r->root->last == GB_RING_NOWHERE || check_records(r, f);
}
