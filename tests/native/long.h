/* long.h - the dumb twin of long values: writers and readers in slices, side by side. It knows of
 * each key the bytes it has, if it is there; who leaves a full image is the store's choice
 * (test_store.c checks that), what may be read of whom is not. What the store tells of itself
 * (told.h) must agree after every step. */
#ifndef LONG_H
#define LONG_H

#include "told.h"

#define KEYS 24u
#define MOST (1u << 20)

struct version {
    uint32_t tag, len;
    bool there;
};
struct writer {
    struct gb_chain_write w;
    struct gb_put p;
    uint8_t *value, key[300];
    uint32_t k, tag;
    bool used;
};
struct reader {
    struct gb_chain_read r;
    struct version v;
    uint8_t *to;
    bool used;
};
static struct gb_store store, *s = &store;
static struct version model[KEYS];
static struct writer writers[GB_HEAD_PINS];
static struct reader readers[GB_HEAD_PINS];
static uint64_t now, length, names[KEYS]; /* the keys' bytes */
static uint8_t *image;
static struct told told;
static bool plain; /* no deadlines */
static bool starved; /* allocations fail at a test's word: nothing else need be in the way */
static unsigned long commits, fulls, long_reads, busy;

static uint8_t byte_of(uint32_t tag, uint32_t i) { return (uint8_t)(tag * 31u + i * 7u + (i >> 8) * 3u + (i >> 15)); }

static uint32_t number_of(const uint8_t *bytes, uint32_t len, uint32_t type) {
    for (uint32_t k = 0; k < KEYS; k++)
        if (len == 8 && type == 0 && !memcmp(bytes, &names[k], 8)) return k;
    return TOLD_KEYS;
}
static void start(uint64_t bytes, bool colliding) {
    uint64_t seed[2] = {check_random(), check_random()}, name = check_random();
    struct gb_key key;
    length = bytes;
    image = malloc(length);
    memset(image, 0xA5, length);
    now = 1000000;
    CHECK(gb_room_format(s, image, length, seed, now) == GB_OK);
    for (uint32_t k = 0; k < KEYS; k++) { /* all in one bucket, or not */
        do {
            name++;
            gb_store_key(s, &key, &name, 8, 0);
        } while (colliding && (key.hash & 0x3FFFu) != 77u);
        names[k] = name;
    }
    memset(model, 0, sizeof model);
    memset(writers, 0, sizeof writers);
    memset(readers, 0, sizeof readers);
    told_start(&told, s, number_of);
}
/* The same with a ring beyond those bytes, and somebody who listens to all of it. */
static void start_told(uint64_t bytes, bool colliding, gb_ref granules) {
    start(bytes + (uint64_t)granules * GB_GRANULE, colliding);
    CHECK(told_open(&told, granules, now) == GB_OK);
    s->listens = GB_EVENTS_ALL;
    s->values = true;
}
static struct gb_key key_of(uint32_t k) {
    struct gb_key key;
    gb_store_key(s, &key, &names[k], 8, 0);
    return key;
}
static uint32_t writing(void) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < GB_HEAD_PINS; i++) n += writers[i].used;
    return n;
}
static uint32_t reading(void) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < GB_HEAD_PINS; i++) n += readers[i].used;
    return n;
}

/* The value of an entry, read without a pin. */
static void whole(gb_ref ref, struct version v) {
    uint32_t word = gb_entry_at(image, ref)->word, bad = 0, done = 0;
    CHECK(gb_value_len(image, ref, word) == v.len);
    if (!gb_store_is_chain(s, ref, word)) {
        const uint8_t *p = gb_store_value_at(s, ref, word);
        for (uint32_t i = 0; i < v.len; i++) bad += p[i] != byte_of(v.tag, i);
    } else {
        gb_ref at = gb_extra_at(image, ref, word)->chain;
        for (; at; at = gb_extent_at(image, at)->next) {
            const uint8_t *p = (const uint8_t *)(gb_extent_at(image, at) + 1);
            uint32_t n = gb_extent_at(image, at)->used;
            for (uint32_t i = 0; i < n; i++) bad += p[i] != byte_of(v.tag, done + i);
            done += n;
        }
        CHECK(done == v.len);
    }
    CHECK(!bad);
}
/* The bytes of a key's value, where the mirror knows those it should have; now and then. */
static const uint8_t *bytes_known(uint32_t k) {
    static uint8_t bytes[GB_TELL_VALUE_MAX];
    if (!told.value[k].known || told.value[k].len != model[k].len || check_below(16)) return NULL;
    for (uint32_t i = 0; i < model[k].len; i++) bytes[i] = byte_of(model[k].tag, i);
    return bytes;
}
static void compare(void) {
    uint32_t n = 0;
    uint64_t promised = 0;
    SOUND(gb_chain_check, s);
    told_settle(&told); /* of what was done without a hold */
    told_begin(&told);
    for (uint32_t k = 0; k < KEYS; k++) {
        struct gb_key key = key_of(k);
        gb_ref ref = gb_store_find(s, &key);
        if (!ref) model[k].there = false; /* evicted */
        n += ref != 0;
        CHECK(!ref || model[k].there); /* nobody comes back, or comes half written */
        if (ref && check_below(6) == 0) whole(ref, model[k]);
        if (ref) told_see(&told, k, model[k].len, gb_word_vtype(gb_entry_at(image, ref)->word), bytes_known(k));
    }
    told_end(&told);
    CHECK(s->index.table.root->count == n);
    for (uint32_t i = 0; i < GB_HEAD_PINS; i++) promised += writers[i].used ? writers[i].w.promised : 0;
    CHECK(s->writing == promised && s->pins == writing() + reading());
    for (uint32_t op = 0; op < GB_OPS; op++) {
        if (s->max_steps[op] > GB_STEPS_MAX) printf("op %u: %u steps\n", op, s->max_steps[op]);
        CHECK(s->max_steps[op] <= GB_STEPS_MAX);
    }
}

/* Calls `call` in lock holds until it no longer says GB_AGAIN. */
#define HOLDS(err, op, call)                                                                       \
    do {                                                                                           \
        uint32_t holds_ = 0;                                                                       \
        do {                                                                                       \
            told_enter(&told, now);                                                                \
            err = call;                                                                            \
            told_leave(&told, op);                                                                  \
            CHECK(++holds_ < 200000u); /* else it would never end */                               \
        } while (err == GB_AGAIN);                                                                 \
    } while (0)

static void write_done(struct writer *w) {
    free(w->value);
    w->used = false;
}
static struct writer *write_begin(uint32_t k, uint32_t len, bool add) {
    uint32_t i = 0, before = gb_arena_free_granules(&s->index.arena);
    enum gb_err err;
    while (i < GB_HEAD_PINS && writers[i].used) i++;
    if (i == GB_HEAD_PINS) return NULL;
    struct writer *w = &writers[i];
    *w = (struct writer){.k = k, .tag = check_below(1u << 16), .value = malloc(len + 1u)};
    for (uint32_t b = 0; b < len; b++) w->value[b] = byte_of(w->tag, b);
    w->p = (struct gb_put){.value = w->value, .value_len = len, .add = add};
    w->p.key = key_of(k);
    if (!plain && check_below(4) == 0) w->p.due = now + ((uint64_t)1 << (10u + check_below(30)));
    if (w->p.due && check_below(3) == 0) w->p.stale = 1u << check_below(32);
    HOLDS(err, GB_OP_LONG, gb_chain_begin(s, &w->w, &w->p, now));
    bool there = gb_store_find(s, &w->p.key) != 0;
    if (err == GB_EXISTS) CHECK(add && there);
    else if (err == GB_TOOBIG) CHECK(len / 8u > gb_room_capacity(s) * 3u / 4u || len > GB_CHAIN_VALUE_MAX);
    else if (err == GB_BUSY) CHECK(s->pins == GB_HEAD_PINS || s->writing > 0);
    else if (err == GB_FULL) CHECK(starved || reading() > 0);
    else CHECK(err == GB_OK);
    if (err == GB_TOOBIG) CHECK(gb_arena_free_granules(&s->index.arena) == before);
    busy += err == GB_BUSY;
    w->used = err == GB_OK;
    if (err) free(w->value);
    return err ? NULL : w;
}
static void write_abort(struct writer *w) {
    gb_chain_abort(s, &w->w);
    write_done(w);
}
/* One slice; the last is followed by a commit. */
static void write_step(struct writer *w) {
    told_enter(&told, now);
    enum gb_err err = gb_chain_step(s, &w->w, &w->p, now);
    told_leave(&told, GB_OP_LONG);
    if (err == GB_AGAIN) return;
    if (!err && w->w.done == w->p.value_len) {
        if (check_below(5) == 0) return; /* the commit may come much later */
        HOLDS(err, GB_OP_LONG, gb_chain_commit(s, &w->w, &w->p, now));
        struct version *v = &model[w->k];
        if (err == GB_EXISTS) CHECK(w->p.add && v->there);
        if (!err) {
            *v = (struct version){w->tag, w->p.value_len, true};
            gb_ref ref = gb_store_find(s, &w->p.key);
            bool due = w->p.due && w->p.due + w->p.stale <= now; /* then it may have gone already */
            CHECK(ref || due);
            if (ref) whole(ref, *v);
            if (!due) CHECK(gb_store_due(s, ref) == w->p.due);
            write_done(w);
            commits++;
            return;
        }
    }
    CHECK(err == GB_EXISTS || err == GB_FULL);
    if (err == GB_FULL) {
        fulls++;
        CHECK(starved || reading() > 0); /* what is promised to writes is theirs, but for dead values pinned */
    }
    write_abort(w);
}

static bool read_open(uint32_t k) {
    struct gb_key key = key_of(k);
    gb_ref ref = gb_store_find(s, &key);
    uint32_t i = 0;
    if (!ref || !gb_store_is_chain(s, ref, gb_entry_at(image, ref)->word)) return false;
    while (i < GB_HEAD_PINS && readers[i].used) i++;
    if (i == GB_HEAD_PINS) return false;
    struct reader *r = &readers[i];
    bool room = s->pins < GB_HEAD_PINS;
    CHECK(gb_chain_open(s, &r->r, ref) == (room ? GB_OK : GB_BUSY));
    if (!room) return false;
    CHECK(gb_room_pinned(s, ref));
    CHECK(r->r.left == model[k].len);
    r->v = model[k];
    r->to = malloc(r->v.len + 1u);
    return r->used = true;
}
static void read_close(struct reader *r) {
    gb_chain_close(s, &r->r);
    free(r->to);
    r->used = false;
}
static void read_step(struct reader *r) {
    told_enter(&told, now);
    enum gb_err err = gb_chain_copy(s, &r->r, r->to);
    told_leave(&told, GB_OP_GET);
    uint32_t bad = 0;
    CHECK(r->r.done + r->r.left == r->v.len && (err == GB_OK) == !r->r.left);
    CHECK(err == GB_OK || err == GB_AGAIN);
    for (uint32_t i = 0; i < r->r.done; i++) bad += r->to[i] != byte_of(r->v.tag, i);
    CHECK(!bad);
    long_reads += err == GB_OK;
    if (err == GB_OK && check_below(3)) read_close(r);
}

static void put_len(uint32_t k, uint32_t len) {
    static uint8_t value[GB_WINDOW_BYTES];
    uint32_t tag = check_below(1u << 16);
    struct gb_put p = {.value = value, .value_len = len, .key = key_of(k)};
    enum gb_err err;
    for (uint32_t i = 0; i < len; i++) value[i] = byte_of(tag, i);
    CHECK(gb_store_fits_inline(&p));
    HOLDS(err, GB_OP_SET, gb_store_put(s, &p, now));
    CHECK(err == GB_OK || (err == GB_FULL && (starved || s->pins)));
    if (!err) model[k] = (struct version){tag, len, true};
}
static void put_small(uint32_t k) { put_len(k, check_below(check_below(2) ? 40 : GB_WINDOW_BYTES - 100u)); }
static void drop(uint32_t k) {
    struct gb_key key = key_of(k);
    gb_ref ref = gb_store_find(s, &key);
    told_enter(&told, now);
    if (ref) gb_room_remove(s, ref, check_below(2) ? GB_CAUSE_DELETE : GB_CAUSE_EVICT);
    told_leave(&told, GB_OP_REMOVE);
    model[k].there = false;
}
static void retime(uint32_t k) {
    struct gb_key key = key_of(k);
    uint64_t due = check_below(2) ? 0 : now + 1u + check_random() % ((uint64_t)1 << (1u + check_below(40)));
    enum gb_err err = GB_AGAIN;
    for (uint32_t n = 0; err == GB_AGAIN; n++) {
        told_enter(&told, now);
        gb_ref ref = gb_store_live(s, &key, now);
        bool pinned = ref && gb_room_pinned(s, ref);
        err = ref ? gb_store_retime(s, ref, due, 0, 0, now) : GB_GONE;
        told.touches += err == GB_OK;
        told_leave(&told, GB_OP_SET);
        CHECK(err != GB_BUSY || pinned);
        CHECK(n < 200000u);
    }
    CHECK(err == GB_OK || err == GB_GONE || err == GB_BUSY || (err == GB_FULL && (starved || s->pins)));
}
/* Somebody subscribes or leaves; a ring, if there is none and room for one. */
static void listen(void) {
    static const uint8_t any[4];
    struct told_side *side = &told.side[check_below(TOLD_SIDES)];
    if (!told_ring(&told) || check_below(20) == 0) (void)told_open(&told, told_size(), now);
    length = s->head->length;
    if (check_below(3) == 0) told_listen(&told);
    if (told_ring(&told) && check_below(3) == 0) told_side_start(&told, side, any, 0);
    else if (told_ring(&told)) told_side(&told, side);
}
static void tidy(void) {
    for (bool more = true; more;) {
        told_enter(&told, now);
        more = gb_room_work(s, now);
        told_leave(&told, GB_OP_EXPIRE);
    }
}
static void close_all(void) {
    for (uint32_t i = 0; i < GB_HEAD_PINS; i++) {
        if (readers[i].used) read_close(&readers[i]);
        if (writers[i].used) write_abort(&writers[i]);
    }
}
static void orphans(void) {
    gb_chain_orphans(s);
    for (uint32_t i = 0; i < GB_HEAD_PINS; i++) {
        if (readers[i].used) free(readers[i].to);
        if (writers[i].used) free(writers[i].value);
        readers[i].used = writers[i].used = false;
    }
    CHECK(!s->pins && !s->writing && s->head->arena.ledger[GB_KIND_PENDING] == 0);
}

static struct writer *write_all(uint32_t k, uint32_t len) { /* but for the commit */
    enum gb_err err;
    plain = true;
    struct writer *w = write_begin(k, len, false);
    plain = false;
    if (!w) return NULL;
    HOLDS(err, GB_OP_LONG, gb_chain_step(s, &w->w, &w->p, now));
    if (!err) return w;
    CHECK(err == GB_FULL);
    write_abort(w);
    return NULL;
}
static void commit(struct writer *w) {
    enum gb_err err;
    HOLDS(err, GB_OP_LONG, gb_chain_commit(s, &w->w, &w->p, now));
    CHECK(err == GB_OK);
    model[w->k] = (struct version){w->tag, w->p.value_len, true};
    write_done(w);
}
#endif
