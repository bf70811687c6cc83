/* ring_model.h - the ring beside its dumb twin: an array of all events ever, with their bytes.
 * Shared by test_ring.c and the fuzz target; needs check.h and gb.c before it. */
#ifndef RING_MODEL_H
#define RING_MODEL_H

#define READERS 8u

struct past {
    struct gb_ring_record event;
    uint8_t *bytes; /* what was held: key, value, old value */
    uint32_t size;  /* of the record */
    uint64_t from, start; /* counts: behind the record before, and where this one begins */
};
struct reader {
    struct gb_ring_cursor cursor;
    struct gb_ring_filter filter;
    uint8_t prefix[4];
    uint64_t at; /* the number it wants */
    uint64_t seen, lost, since;
};
struct twin {
    struct gb_ring ring;
    gb_ref at; /* of the span, which ends where the image does */
    struct past *past; /* past[n] is event n */
    uint64_t first, next, born, head;
    struct reader reader[READERS];
    uint64_t most;       /* events, ever */
    uint32_t most_steps; /* of a begin */
};

static uint64_t span_bytes(const struct twin *t) {
    return (uint64_t)t->ring.root->granules * GB_GRANULE;
}
static uint32_t held(const struct gb_ring_record *e) {
    return e->key_len + (e->value >> 4 == GB_RING_HELD ? e->value_len : 0u) +
           (e->old >> 4 == GB_RING_HELD ? e->old_len : 0u);
}
static uint32_t rounded(uint32_t n) { return (n + 7u) / 8u * 8u; }
static uint32_t windows(uint64_t n) { return (uint32_t)((n + GB_WINDOW_BYTES - 1u) / GB_WINDOW_BYTES); }

/* --- the ring and its image --- */

/* The span ends at the end of an allocation, so that ASan sees a step too far. */
static void twin_image(struct twin *t, gb_ref at, gb_ref granules) {
    size_t bytes = ((size_t)at + granules) * GB_GRANULE;
    t->at = at;
    t->ring.base = malloc(bytes);
    t->ring.root = malloc(sizeof *t->ring.root);
    CHECK(t->ring.base && t->ring.root);
    memset(t->ring.base, 0xA5, bytes);
    memset(t->ring.root, 0xA5, sizeof *t->ring.root);
}
static void twin_format(struct twin *t, gb_ref at, gb_ref granules, uint64_t seq) {
    twin_image(t, at, granules);
    gb_ring_format(&t->ring, at, granules, seq);
    t->first = t->next = t->born = seq;
    t->head = 0;
    SOUND(gb_ring_check, &t->ring);
    CHECK(gb_ring_next(&t->ring) == seq);
}
static void twin_drop(struct gb_ring *r) {
    free(r->base);
    free(r->root);
}
/* The image elsewhere, byte for byte: what a killed process leaves, or a map at another address. */
static struct gb_ring twin_copy(const struct twin *t) {
    struct twin copy;
    twin_image(&copy, t->at, t->ring.root->granules);
    memcpy(copy.ring.base, t->ring.base, (size_t)t->at * GB_GRANULE + span_bytes(t));
    memcpy(copy.ring.root, t->ring.root, sizeof *copy.ring.root);
    return copy.ring;
}

/* --- records against events --- */

static void same(const struct past *p, uint64_t seq, const struct gb_ring_record *got, bool values) {
    const struct gb_ring_record *e = &p->event;
    uint32_t value = values || !(e->value >> 4) ? e->value : e->value % 16u + 16u * GB_RING_UNASKED;
    uint32_t old = values || !(e->old >> 4) ? e->old : e->old % 16u + 16u * GB_RING_UNASKED;
    uint32_t bytes = values ? held(e) : e->key_len;
    CHECK(gb_ring_size(got) == rounded((uint32_t)sizeof *got + bytes));
    CHECK(got->kind == e->kind && got->seq == seq && got->at == e->at);
    CHECK(got->count == e->count); /* or the lengths */
    CHECK(got->key_len == e->key_len && got->key_type == e->key_type);
    CHECK(got->value == value && got->old == old);
    CHECK(gb_ring_type(got->value) == e->value % 16u && (uint32_t)gb_ring_state(got->old) == old / 16u);
    CHECK(!e->key_len || !memcmp(gb_ring_key(got), p->bytes, e->key_len));
    CHECK((gb_ring_value(got) != NULL) == (value >> 4 == GB_RING_HELD));
    CHECK((gb_ring_old(got) != NULL) == (old >> 4 == GB_RING_HELD));
    const uint8_t *at = p->bytes + e->key_len;
    if (gb_ring_value(got)) {
        CHECK(!e->value_len || !memcmp(gb_ring_value(got), at, e->value_len));
        at += e->value_len;
    }
    if (gb_ring_old(got)) CHECK(!e->old_len || !memcmp(gb_ring_old(got), at, e->old_len));
    for (uint32_t i = (uint32_t)sizeof *got + bytes; i < gb_ring_size(got); i++)
        CHECK(((const uint8_t *)got)[i] == 0);
}
static bool wants(const struct reader *rd, const struct past *p) {
    const struct gb_ring_record *e = &p->event;
    if (!((rd->filter.kinds >> e->kind) & 1u)) return false;
    if (e->kind == GB_EVENT_CLEAR || e->kind == GB_EVENT_RECOVER || rd->filter.prefix_type == -1) return true;
    if (e->key_type != (uint32_t)rd->filter.prefix_type || e->key_len < rd->filter.prefix_len) return false;
    for (uint32_t i = 0; i < rd->filter.prefix_len; i++)
        if (rd->prefix[i] != p->bytes[i]) return false;
    return true;
}

/* All that `r` keeps is events first .. next - 1, to the byte. */
static void whole(const struct gb_ring *r, const struct past *past, uint64_t first, uint64_t next) {
    struct gb_ring_filter all = {GB_EVENTS_ALL, 0, NULL, -1, true};
    struct gb_ring_cursor c;
    struct gb_work work = {0};
    uint64_t lost, told = 0, at = first;
    bool more = true;
    static uint64_t to[GB_RING_RECORD_MAX / 8u * 2u];
    gb_ring_since(r, &c, 0);
    CHECK(gb_ring_next(r) == next && gb_ring_pending(r, &c) == (next > 1u));
    while (more) {
        uint32_t n = gb_ring_pull(r, &c, &all, (uint8_t *)to, sizeof to, &work, UINT32_MAX, &lost, &more);
        told += lost;
        for (uint32_t i = 0; i < n; i += gb_ring_size(gb_ring_record_at((uint8_t *)to + i)), at++) {
            CHECK(at < next);
            same(&past[at], at, gb_ring_record_at((uint8_t *)to + i), true);
        }
    }
    CHECK(at == next && told == first - 1u);
}
static void killed_here(const struct twin *t, uint64_t next) {
    struct gb_ring copy = twin_copy(t);
    SOUND(gb_ring_check, &copy);
    whole(&copy, t->past, t->first, next);
    twin_drop(&copy);
}

/* A ring that passed its check, whoever wrote it: it can be pulled to its end, and written on. */
static void use_it(struct gb_ring *r) {
    struct gb_ring_filter filters[] = {{UINT32_MAX, 0, NULL, -1, true}, {UINT32_MAX, 0, NULL, -1, false},
                                       {UINT32_MAX, 2, (const uint8_t *)"ab", 1, true}};
    uint8_t *to = malloc(GB_RING_RECORD_MAX);
    for (uint32_t i = 0; i < 3u; i++) {
        struct gb_ring_cursor c;
        uint64_t lost, all = gb_ring_length(r);
        gb_ring_since(r, &c, 0);
        for (bool more = true; more;) {
            struct gb_work work = {0};
            uint64_t pos = c.pos;
            uint32_t n = gb_ring_pull(r, &c, &filters[i], to, GB_RING_RECORD_MAX, &work,
                                      GB_RING_LONGEST, &lost, &more);
            CHECK(n <= GB_RING_RECORD_MAX && work.steps <= GB_RING_LONGEST);
            CHECK((!more || c.pos > pos) && c.pos - pos <= all);
            all -= c.pos - pos;
        }
        CHECK(c.wanted == gb_ring_next(r) || gb_ring_next(r) == 1u);
    }
    free(to);
    for (uint32_t i = 0; i < 40u; i++) {
        struct gb_work work = {0};
        struct gb_ring_record e = {.kind = GB_EVENT_TOUCH, .key_len = (uint16_t)(i % 3u * 8u)};
        uint8_t *key = gb_ring_begin(r, &e, &work);
        if (!key) continue;
        memset(key, 'k', e.key_len);
        gb_ring_commit(r);
        SOUND(gb_ring_check, r);
    }
}

/* --- what may happen --- */

static uint8_t byte_of(uint64_t seq, uint32_t i) { /* keys of few letters, so that prefixes meet */
    uint64_t z = (seq * 0x9E3779B97F4A7C15u) ^ (i * 0xBF58476D1CE4E5B9u);
    return (uint8_t)((z >> 40) % 3u + (i < 3u ? 'a' : (z >> 20) % 250u));
}
/* Mostly short, sometimes up to `most` and a little above. */
static uint32_t any_length(uint32_t most) {
    uint32_t what = check_below(8);
    if (what < 5) return check_below(what < 2 ? 4 : 30);
    return what < 7 ? check_below(most / 3u + 1u) : check_below(most + 8u);
}
static struct gb_ring_record any_event(const struct twin *t) {
    uint32_t most = gb_ring_most(&t->ring);
    struct gb_ring_record e = {0};
    e.kind = (uint8_t)check_below(GB_EVENTS);
    e.at = check_below(1000) * 0x100000001u;
    e.key_type = (uint8_t)check_below(4);
    if (gb_ring_wide(e.kind)) {
        e.count = check_below(3) ? check_below(100) : UINT64_MAX - check_below(3);
        return e;
    }
    e.key_len = (uint16_t)any_length(most);
    enum gb_ring_state value = check_below(GB_RING_STATES), old = check_below(GB_RING_STATES);
    e.value = gb_ring_tag(value, check_below(8));
    e.old = gb_ring_tag(old, check_below(8));
    if (value) e.value_len = any_length(most);
    if (old) e.old_len = any_length(most);
    if (value == GB_RING_OMITTED) e.value_len += 1u << 30; /* no byte of it is there */
    if (old == GB_RING_UNASKED) e.old_len = UINT32_MAX;
    return e;
}

/* The model's own account of what is overwritten: from which count on each kept event lies. */
static void model_put(struct twin *t, const struct gb_ring_record *e, uint32_t size) {
    uint64_t length = span_bytes(t), left = length - t->head % length;
    struct past *p = &t->past[t->next];
    *p = (struct past){.event = *e, .size = size, .from = t->head};
    p->start = t->head + (left < size ? left : 0);
    p->bytes = malloc(held(e) + 1u);
    for (uint32_t i = 0; i < held(e); i++) p->bytes[i] = byte_of(t->next, i);
    t->head = p->start + size;
    while (t->first < t->next && t->head - t->past[t->first].start > length) t->first++;
}
static bool twin_put(struct twin *t, struct gb_ring_record e, bool kill) {
    struct gb_work work = {check_below(3)};
    uint32_t size = rounded((uint32_t)sizeof(struct gb_ring_record) + held(&e)), before = work.steps;
    if (t->next >= t->most) return false;
    if (size > gb_ring_most(&t->ring)) {
        struct gb_ring_root was = *t->ring.root;
        CHECK(!gb_ring_begin(&t->ring, &e, &work));
        CHECK(!memcmp(&was, t->ring.root, sizeof was) && work.steps == before);
        return false;
    }
    uint64_t tail = t->ring.root->tail;
    model_put(t, &e, size);
    uint8_t *to = gb_ring_begin(&t->ring, &e, &work);
    uint32_t steps = windows(size) + windows(t->ring.root->tail - tail);
    CHECK(to && work.steps - before == steps && steps <= GB_RING_STEPS);
    if (steps > t->most_steps) t->most_steps = steps;
    if (kill) killed_here(t, t->next);
    if (held(&e)) memcpy(to, t->past[t->next].bytes, held(&e));
    SOUND(gb_ring_check, &t->ring); /* not committed: not there */
    if (kill) killed_here(t, t->next);
    CHECK(gb_ring_next(&t->ring) == t->next);
    gb_ring_commit(&t->ring);
    t->next++;
    if (kill) killed_here(t, t->next);
    return true;
}
/* A begin that no commit follows; the next one takes its place. */
static void twin_give_up(struct twin *t) {
    struct gb_ring_record e = any_event(t);
    struct gb_work work = {0};
    uint8_t *to = gb_ring_begin(&t->ring, &e, &work);
    if (!to) return;
    memset(to, 0xEE, held(&e));
    uint64_t first = gb_ring_first(&t->ring);
    CHECK(first >= t->first && first <= t->next);
    t->first = first; /* what was overwritten for it is gone */
}

static void reader_start(struct twin *t, struct reader *rd) {
    static const uint32_t all = GB_EVENTS_ALL;
    uint32_t what = check_below(4);
    memset(rd, 0, sizeof *rd);
    if (what == 0) {
        gb_ring_newest(&t->ring, &rd->cursor);
        rd->at = t->next;
        CHECK(!gb_ring_pending(&t->ring, &rd->cursor));
    } else {
        uint64_t seq = what == 1 ? t->next + check_below(4) : check_below((uint32_t)t->next);
        if (what == 1 && check_below(50) == 0) seq = UINT64_MAX;
        gb_ring_since(&t->ring, &rd->cursor, seq);
        rd->at = seq == UINT64_MAX ? seq : seq + 1u;
    }
    rd->since = rd->at;
    rd->filter = (struct gb_ring_filter){all, 0, rd->prefix, -1, true};
    if (rd < t->reader + 2) return; /* these take all there is */
    if (check_below(2)) rd->filter.kinds = check_below(2) ? UINT32_MAX : (uint32_t)check_below(1u << GB_EVENTS);
    rd->filter.values = check_below(2);
    if (check_below(2)) return;
    rd->filter.prefix_type = (int32_t)check_below(4);
    rd->filter.prefix_len = check_below(4);
    for (uint32_t i = 0; i < rd->filter.prefix_len; i++) rd->prefix[i] = (uint8_t)('a' + check_below(3));
    if (!rd->filter.prefix_len) rd->filter.prefix = NULL;
}

/* What came is, in order and to the byte, what passes among the events looked at. */
static uint64_t compare_pull(const struct twin *t, const struct reader *rd, const uint8_t *to,
                             uint32_t n, uint64_t from) {
    uint64_t seq = from, seen = 0;
    for (uint32_t i = 0; i < n; seq++) {
        CHECK(seq < rd->cursor.wanted);
        if (!wants(rd, &t->past[seq])) continue;
        CHECK(n - i >= sizeof(struct gb_ring_record));
        same(&t->past[seq], seq, gb_ring_record_at(to + i), rd->filter.values);
        i += gb_ring_size(gb_ring_record_at(to + i));
        seen++;
        CHECK(i <= n);
    }
    for (; seq < rd->cursor.wanted && seq < t->next; seq++) CHECK(!wants(rd, &t->past[seq]));
    return seen;
}
static uint32_t size_for(const struct reader *rd, const struct past *p) {
    uint32_t bytes = rd->filter.values ? held(&p->event) : p->event.key_len;
    return rounded((uint32_t)sizeof(struct gb_ring_record) + bytes);
}
static void reader_pull(struct twin *t, struct reader *rd, uint32_t room, uint32_t steps) {
    struct gb_work work = {check_below(3)};
    uint64_t lost = 99, from = rd->at < t->first ? t->first : rd->at;
    uint32_t limit = work.steps + steps, before = work.steps;
    bool more = false, pending = gb_ring_pending(&t->ring, &rd->cursor);
    struct gb_ring_cursor was = rd->cursor;
    uint8_t *to = malloc(room + 1u);
    CHECK(pending == (rd->at < t->next));
    uint32_t n = gb_ring_pull(&t->ring, &rd->cursor, &rd->filter, to, room, &work, limit, &lost, &more);
    CHECK(n <= room && work.steps <= limit && work.steps >= before);
    CHECK(lost == from - rd->at);
    CHECK(rd->cursor.wanted >= from && (rd->cursor.wanted == from || rd->cursor.wanted <= t->next));
    uint64_t seen = compare_pull(t, rd, to, n, from), at = rd->cursor.wanted;
    if (!more) CHECK(at >= t->next && !gb_ring_pending(&t->ring, &rd->cursor));
    if (more && room >= GB_RING_RECORD_MAX && steps >= GB_RING_LONGEST)
        CHECK(rd->cursor.pos > was.pos || rd->cursor.born != was.born); /* forward */
    if (more && steps > 1000u && at < t->next) /* then it was the room */
        CHECK(wants(rd, &t->past[at]) && room - n < size_for(rd, &t->past[at]));
    rd->at = at;
    rd->seen += seen;
    rd->lost += lost;
    if (rd < t->reader + 2) /* every event is seen, or lost, or still there */
        CHECK(rd->seen + rd->lost == rd->at - rd->since);
    free(to);
}
static void any_pull(struct twin *t) {
    uint32_t who = 0;
    while (who + 1u < READERS && check_below(2)) who++; /* the last ones stall for long */
    uint32_t what = check_below(8);
    uint32_t room = GB_RING_RECORD_MAX * (what == 7 ? 8u : 1u), steps = UINT32_MAX / 2u;
    if (what < 2) room = check_below(GB_RING_RECORD_MAX);
    if (what > 1 && what < 5) steps = check_below(10);
    reader_pull(t, &t->reader[who], room, steps);
}

/* The ring elsewhere and of another length, empty: what clear or resize does. Numbers go on. */
static void twin_again(struct twin *t, gb_ref granules) {
    twin_drop(&t->ring);
    twin_format(t, check_below(3), granules, t->next);
}
static void twin_compare(const struct twin *t) {
    SOUND(gb_ring_check, &t->ring);
    CHECK(gb_ring_next(&t->ring) == t->next && gb_ring_first(&t->ring) == t->first);
    CHECK(t->ring.root->born == t->born);
}
static void twin_step(struct twin *t, gb_ref granules_most) {
    uint32_t what = check_below(100);
    if (what < 60) {
        (void)twin_put(t, any_event(t), what == 0);
    } else if (what < 92) {
        any_pull(t);
    } else if (what < 97) {
        reader_start(t, &t->reader[check_below(READERS)]);
    } else if (what == 97) {
        twin_give_up(t);
    } else if (what == 98) {
        struct gb_ring old = t->ring;
        t->ring = twin_copy(t);
        twin_drop(&old);
    } else if (check_below(10) == 0) {
        twin_again(t, GB_RING_LEAST + check_below(granules_most - GB_RING_LEAST + 1u));
    }
    twin_compare(t);
}
static void twin_start(struct twin *t, gb_ref granules, uint64_t seq, uint64_t most) {
    memset(t, 0, sizeof *t);
    t->most = most;
    t->past = calloc(most + 1u, sizeof *t->past);
    CHECK(t->past);
    twin_format(t, check_below(3), granules, seq);
    for (uint32_t i = 0; i < READERS; i++) reader_start(t, &t->reader[i]);
}
static void twin_free(struct twin *t) {
    for (uint64_t n = 0; n <= t->most; n++) free(t->past[n].bytes);
    free(t->past);
    twin_drop(&t->ring);
}
static void twin_stop(struct twin *t) {
    for (uint32_t i = 0; i < READERS; i++) /* in the end everyone has everything */
        for (uint32_t n = 0; gb_ring_pending(&t->ring, &t->reader[i].cursor); n++) {
            CHECK(n <= 2u * span_bytes(t) / sizeof(struct gb_ring_record));
            reader_pull(t, &t->reader[i], GB_RING_RECORD_MAX, GB_RING_LONGEST);
        }
    twin_free(t);
}
#endif
