/* told.h - a reader of the event ring that believes nothing, for the models of store and chain. It
 * pulls after every lock hold, keeps a mirror of what the events say is there, and knows three other
 * ways how many there must be: the counters, the numbers, what was lost. Beside it two readers with
 * filters, who come when they please; what they get is compared with what the first one got. */
#ifndef TOLD_H
#define TOLD_H

#define TOLD_KEYS 400u
#define TOLD_LOG 4096u /* events remembered: by number, modulo this */
#define TOLD_SIDES 2u
#define TOLD_REMOVALS (1u << GB_EVENT_DELETE | 1u << GB_EVENT_EXPIRE | 1u << GB_EVENT_EVICT)

struct told_value {
    uint64_t sum; /* a hash of the bytes, where they are known */
    uint32_t len, type;
    bool known;
};
struct told_event {
    uint64_t seq, count;
    uint32_t kind, key, key_len, key_type;
    uint8_t front[4]; /* the key's first bytes */
    uint8_t value, old;
};
struct told_side {
    struct gb_ring_cursor at;
    struct gb_ring_filter filter;
    uint8_t prefix[4];
};
struct told {
    struct gb_store *s;
    uint32_t (*number)(const uint8_t *key, uint32_t len, uint32_t type); /* below TOLD_KEYS */
    struct gb_ring_cursor all;
    struct told_side side[TOLD_SIDES];
    struct told_event log[TOLD_LOG];
    struct told_value value[TOLD_KEYS]; /* the mirror */
    bool there[TOLD_KEYS], exact, filling;
    uint32_t n;
    uint64_t before[GB_EVENTS], next, op; /* counters and next number at the hold's begin, the operation's */
    uint64_t touches;                     /* the one kind that has no counter: the caller counts */
    bool missed;                          /* some of the operation's events were not seen, or too late */
    uint32_t doze;                        /* holds for which nothing is pulled, so that some is lost */
};
static unsigned long told_events, told_lost;

static bool told_ring(const struct told *d) { return d->s->head->ring.granules != 0; }
static uint64_t told_next(const struct told *d) { return told_ring(d) ? gb_ring_next(&d->s->ring) : 0; }
static uint64_t told_sum(const struct told *d, const void *bytes, uint32_t len) {
    return gb_digest(&d->s->digest, (const uint8_t *)bytes, len, 0);
}

/* ---- one event ---- */

/* Which of the two values' bytes a record must hold: what tell.h promises, said again. */
static void told_states(const struct told *d, const struct gb_ring_record *e, enum gb_ring_state *value,
                        enum gb_ring_state *old) {
    bool new = e->kind == GB_EVENT_SET || e->kind == GB_EVENT_REPLACE;
    bool gone = e->kind == GB_EVENT_REPLACE || (TOLD_REMOVALS >> e->kind & 1u);
    uint64_t bytes = sizeof *e + e->key_len, most = gb_ring_most(&d->s->ring);
    *value = *old = GB_RING_NONE;
    if (gb_ring_wide(e->kind)) return;
    bool holds = new && e->value_len <= GB_TELL_VALUE_MAX, keeps = gone && e->old_len <= GB_TELL_VALUE_MAX;
    if (holds) bytes += e->value_len;
    if (keeps && bytes + e->old_len > most) keeps = false;
    if (holds && bytes > most) holds = false;
    if (new) *value = !d->s->values ? GB_RING_UNASKED : holds ? GB_RING_HELD : GB_RING_OMITTED;
    if (gone) *old = !d->s->values ? GB_RING_UNASKED : keeps ? GB_RING_HELD : GB_RING_OMITTED;
}

/* The old value is what the mirror has. */
static void told_old(struct told *d, const struct gb_ring_record *e, uint32_t key) {
    const struct told_value *v = &d->value[key];
    const uint8_t *old = gb_ring_old(e);
    if (!d->exact) return;
    CHECK(d->there[key] && v->len == e->old_len && v->type == gb_ring_type(e->old));
    if (old && v->known) CHECK(told_sum(d, old, e->old_len) == v->sum);
}
static void told_new(struct told *d, const struct gb_ring_record *e, uint32_t key) {
    const uint8_t *value = gb_ring_value(e);
    uint64_t sum = value ? told_sum(d, value, e->value_len) : 0;
    d->n += !d->there[key];
    d->there[key] = true;
    d->value[key] = (struct told_value){sum, e->value_len, gb_ring_type(e->value), value != NULL};
}
static void told_apply(struct told *d, const struct gb_ring_record *e, uint32_t key) {
    if (e->kind == GB_EVENT_CLEAR) {
        if (d->exact) CHECK(e->count == d->n);
        memset(d->there, 0, sizeof d->there);
        d->n = 0;
        return;
    }
    if (e->kind == GB_EVENT_SET && d->exact) CHECK(!d->there[key]);
    if (e->kind == GB_EVENT_TOUCH && d->exact) CHECK(d->there[key]);
    if (gb_ring_state(e->old)) told_old(d, e, key);
    if (gb_ring_state(e->value)) told_new(d, e, key);
    if (!(TOLD_REMOVALS >> e->kind & 1u)) return;
    d->n -= d->there[key];
    d->there[key] = false;
}
static void told_take(struct told *d, const struct gb_ring_record *e) {
    enum gb_ring_state value, old;
    struct told_event *l = &d->log[e->seq % TOLD_LOG];
    told_states(d, e, &value, &old);
    if (!d->missed) {
        CHECK(d->s->listens >> e->kind & 1u);
        CHECK(e->at == d->s->now && gb_ring_state(e->value) == value && gb_ring_state(e->old) == old);
    }
    *l = (struct told_event){.seq = e->seq, .kind = e->kind, .key = TOLD_KEYS, .count = e->count,
                             .key_len = e->key_len, .key_type = e->key_type, .value = e->value, .old = e->old};
    memcpy(l->front, gb_ring_key(e), e->key_len < 4u ? e->key_len : 4u);
    if (!gb_ring_wide(e->kind)) l->key = d->number(gb_ring_key(e), e->key_len, e->key_type);
    CHECK(gb_ring_wide(e->kind) || l->key < TOLD_KEYS);
    told_apply(d, e, l->key);
    told_events++;
}

/* ---- the readers ---- */

static uint64_t told_buffer[GB_RING_RECORD_MAX / 8u];

/* All that is new: numbered without a gap, but for what is said to be lost. */
static void told_pull(struct told *d) {
    uint64_t lost = 0, wanted = d->all.wanted, sum = 0;
    struct gb_ring_filter every = {.kinds = GB_EVENTS_ALL, .prefix_type = -1, .values = true};
    uint8_t *to = (uint8_t *)told_buffer;
    for (bool more = true, first = true; more; first = false) {
        struct gb_work work = {0};
        uint32_t n = gb_ring_pull(&d->s->ring, &d->all, &every, to, sizeof told_buffer, &work, GB_STEPS_MAX,
                                  &lost, &more);
        CHECK((first || !lost) && (n || !more) && work.steps <= GB_STEPS_MAX);
        if (lost) d->exact = false, d->missed = true;
        sum += lost;
        for (uint32_t at = 0; at < n; at += gb_ring_size(gb_ring_record_at(to + at))) {
            CHECK(gb_ring_record_at(to + at)->seq == wanted + sum);
            told_take(d, gb_ring_record_at(to + at));
            wanted++;
        }
    }
    CHECK(wanted + sum == gb_ring_next(&d->s->ring) && d->all.wanted == wanted + sum);
    told_lost += sum;
}

static bool told_passes(const struct gb_ring_filter *f, const struct told_event *l) {
    if (!(f->kinds >> l->kind & 1u)) return false;
    if (f->prefix_type < 0 || gb_ring_wide(l->kind)) return true;
    return l->key_type == (uint32_t)f->prefix_type && l->key_len >= f->prefix_len &&
           !memcmp(l->front, f->prefix, f->prefix_len);
}
/* From number `from` on nothing that is remembered passes, up to `to`. */
static void told_skips(const struct told *d, const struct gb_ring_filter *f, uint64_t from, uint64_t to) {
    for (; from < to; from++) {
        const struct told_event *l = &d->log[from % TOLD_LOG];
        CHECK(l->seq != from || !told_passes(f, l));
    }
}
static void told_side(struct told *d, struct told_side *side) {
    const struct gb_ring *r = &d->s->ring;
    uint64_t lost, at = side->at.wanted, first = gb_ring_first(r), gone = first > at ? first - at : 0;
    uint8_t *to = (uint8_t *)told_buffer;
    if (!side->at.born) return;
    for (bool more = true; more; at = side->at.wanted) {
        struct gb_work work = {0};
        uint32_t n = gb_ring_pull(r, &side->at, &side->filter, to, sizeof told_buffer, &work, GB_RING_LONGEST,
                                  &lost, &more);
        CHECK(lost == gone);
        at += lost;
        gone = 0;
        for (uint32_t i = 0; i < n; i += gb_ring_size(gb_ring_record_at(to + i))) {
            const struct gb_ring_record *e = gb_ring_record_at(to + i);
            const struct told_event *l = &d->log[e->seq % TOLD_LOG];
            told_skips(d, &side->filter, at, e->seq);
            at = e->seq + 1u;
            if (l->seq != e->seq) continue; /* the other one came too late for it */
            CHECK(told_passes(&side->filter, l) && e->kind == l->kind && e->count == l->count);
            CHECK(e->key_len == l->key_len && !memcmp(gb_ring_key(e), l->front, l->key_len < 4u ? l->key_len : 4u));
            if (side->filter.values) CHECK(e->value == l->value && e->old == l->old);
            else CHECK(!gb_ring_value(e) && !gb_ring_old(e));
        }
        told_skips(d, &side->filter, at, side->at.wanted);
    }
    CHECK(side->at.wanted == gb_ring_next(r));
}
static void told_side_start(struct told *d, struct told_side *side, const uint8_t *prefix, uint32_t type) {
    memcpy(side->prefix, prefix, sizeof side->prefix);
    side->filter = (struct gb_ring_filter){
        .kinds = check_below(3) ? GB_EVENTS_ALL : check_below(GB_EVENTS_ALL + 1u), .prefix = side->prefix,
        .prefix_len = check_below(3), .prefix_type = check_below(2) ? (int32_t)type : -1,
        .values = check_below(2)};
    if (check_below(2)) gb_ring_newest(&d->s->ring, &side->at);
    else gb_ring_since(&d->s->ring, &side->at, d->next > 40u ? d->next - 40u : 0);
}

/* ---- holds and operations ---- */

/* By kind, how many the store itself counted. */
static void told_counts(const struct told *d, uint64_t *n) {
    const struct gb_counters *c = &d->s->head->counters;
    memset(n, 0, GB_EVENTS * sizeof *n);
    n[GB_EVENT_SET] = c->sets - c->replaces;
    n[GB_EVENT_REPLACE] = c->replaces;
    n[GB_EVENT_TOUCH] = d->touches;
    n[GB_EVENT_DELETE] = c->deletes;
    n[GB_EVENT_EXPIRE] = c->expirations;
    n[GB_EVENT_EVICT] = c->evictions;
    n[GB_EVENT_CLEAR] = c->clears;
    n[GB_EVENT_REJECT] = c->rejects;
}
/* Every event of a hold is there, by number, and was told of; none was while nobody listened. */
static void told_settle(struct told *d) {
    uint64_t now[GB_EVENTS], want = 0;
    told_counts(d, now);
    for (uint32_t k = 0; k < GB_EVENTS; k++)
        if (d->s->listens >> k & 1u) want += now[k] - d->before[k];
    uint64_t next = told_next(d), got = next - d->next;
    CHECK(got == want && d->s->told == (got != 0));
    if (d->s->listens != GB_EVENTS_ALL) d->exact = false;
    if (d->doze) d->doze--, d->exact = false, d->missed = true;
    else if (told_ring(d)) told_pull(d);
    memcpy(d->before, now, sizeof now);
    d->next = next;
    d->s->told = false;
}
static void told_enter(struct told *d, uint64_t now) {
    d->s->now = now;
    gb_head_enter(d->s);
}
static void told_leave(struct told *d, enum gb_op op) {
    gb_head_leave(d->s, op);
    told_settle(d);
}
static void told_start(struct told *d, struct gb_store *s,
                       uint32_t (*number)(const uint8_t *, uint32_t, uint32_t)) {
    memset(d, 0, sizeof *d);
    d->s = s;
    d->number = number;
    told_counts(d, d->before);
}
static void told_op(struct told *d) {
    d->op = d->next;
    d->missed = d->all.wanted != d->next;
}
/* Somebody comes, or the last one goes. */
static void told_listen(struct told *d) {
    if (!told_ring(d)) return;
    uint32_t which = check_below(8);
    d->s->listens = !which ? 0u : which == 1u ? check_below(GB_EVENTS_ALL + 1u) : GB_EVENTS_ALL;
    d->s->values = check_below(3) != 0;
    d->doze = check_below(6) ? 0 : check_below(500);
}
/* A ring of so many granules, if the image has room for it. */
static enum gb_err told_open(struct told *d, gb_ref granules, uint64_t now) {
    bool fits = d->s->head->length >= gb_room_smallest() + (uint64_t)granules * GB_GRANULE;
    bool had = told_ring(d);
    enum gb_err err;
    do {
        told_enter(d, now);
        err = gb_room_ring(d->s, granules);
        gb_head_leave(d->s, GB_OP_RESIZE);
        if (err == GB_OK) { /* the number 1 comes next, and nobody listened before */
            d->next = told_next(d);
            CHECK(d->next == 1u);
            gb_ring_newest(&d->s->ring, &d->all);
        }
        told_settle(d);
    } while (err == GB_AGAIN);
    if (!fits) CHECK(err == GB_SMALL);
    else if (had) CHECK(err == GB_EXISTS);
    else if (granules < GB_TELL_LEAST) CHECK(err == GB_SMALL);
    else CHECK(err == GB_OK || (err == GB_BUSY && d->s->pins) || err == GB_FULL);
    if (err == GB_OK) CHECK(d->s->head->ring.granules == granules);
    return err;
}
static gb_ref told_size(void) {
    return GB_TELL_LEAST + check_below(check_below(3) ? 40u : 6u * GB_TELL_LEAST);
}

/* ---- what the operation told, for a model that knows what it did ---- */

#define TOLD1(a) ((uint64_t)GB_EVENT_##a + 1u)
#define TOLD2(a, b) (TOLD1(a) << 8 | TOLD1(b))

/* Whether exactly these kinds were told of the key, as far as anybody listened to them. */
static bool told_is(const struct told *d, uint32_t key, uint64_t kinds) {
    uint64_t got = 0, want = 0;
    if (d->missed || !told_ring(d)) return true;
    for (uint64_t q = d->op; q < d->next; q++)
        if (d->log[q % TOLD_LOG].key == key) got = got << 8 | (d->log[q % TOLD_LOG].kind + 1u);
    for (uint32_t at = 64; at;) {
        uint64_t kind = kinds >> (at -= 8u) & 255u;
        if (kind && (d->s->listens >> (kind - 1u) & 1u)) want = want << 8 | kind;
    }
    return got == want;
}
/* Whether nothing was told of other keys but these kinds. */
static bool told_others(const struct told *d, uint32_t key, uint32_t kinds) {
    bool good = true;
    for (uint64_t q = d->op; !d->missed && q < d->next; q++) {
        const struct told_event *l = &d->log[q % TOLD_LOG];
        good &= l->key == key || (kinds >> l->kind & 1u);
    }
    return good;
}

/* ---- the mirror beside the store: begin, each entry that is there, end ---- */

static void told_begin(struct told *d) {
    if (d->exact) CHECK(d->n == d->s->index.table.root->count); /* SETs less what went */
    d->filling = !d->exact;
    if (!d->filling) return;
    memset(d->there, 0, sizeof d->there);
    d->n = 0;
}
/* `bytes`: NULL, or the value's. */
static void told_see(struct told *d, uint32_t key, uint32_t len, uint32_t type, const uint8_t *bytes) {
    struct told_value *v = &d->value[key];
    if (d->filling) {
        d->there[key] = true;
        d->n++;
        *v = (struct told_value){.len = len, .type = type};
        return;
    }
    CHECK(d->there[key] && v->len == len && v->type == type);
    if (bytes && v->known) CHECK(v->sum == told_sum(d, bytes, len));
}
static void told_end(struct told *d) {
    CHECK(d->n == d->s->index.table.root->count);
    d->exact = told_ring(d) && d->s->listens == GB_EVENTS_ALL && d->all.wanted == d->next;
}
/* The store was attached anew: who listened does so again. */
static void told_again(struct told *d, const struct gb_store *was) {
    d->s->listens = was->listens;
    d->s->values = was->values;
    d->s->now = was->now;
}
#endif
