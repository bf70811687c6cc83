/* model.h - the dumb twin of the store. It knows exact LRU order, deadlines and bytes. What it does
 * not know is which entries a full image must give up: there it follows the store, but insists that
 * whoever left was the least recently used of those present, or due. What the store tells of itself
 * (told.h) must agree, and each operation must have told what it did. */
#ifndef MODEL_H
#define MODEL_H

#include "told.h"

#define MODEL_KEYS 400u

struct model_entry {
    uint32_t key, len, tag; /* the value is `len` bytes made from `tag` */
    uint64_t due;
    uint32_t idle, stale;
};
struct twin {
    uint8_t *image;
    uint64_t length, now;
    struct gb_store store;
    struct model_entry m[MODEL_KEYS]; /* most recently used last */
    uint64_t ends[MODEL_KEYS]; /* before the operation: when the key's entry goes; 0: never, or absent */
    uint32_t n, max_entries;
    struct told told;
};

static uint8_t model_value[1u << 16];
static void model_fill(uint32_t tag, uint32_t len) {
    for (uint32_t i = 0; i < len; i++) model_value[i] = (uint8_t)(tag * 31u + i * 7u + (i >> 8));
}
static uint32_t model_key(uint32_t key, uint8_t *out) { /* 1..300 bytes, by the key's number */
    uint32_t len = key % 17u == 0 ? 255u + key % 40u : 4u + key % 13u;
    for (uint32_t i = 0; i < len; i++) out[i] = (uint8_t)(key >> (8u * (i & 3u)));
    return len;
}

static uint32_t key_number(const uint8_t *p, uint32_t n) {
    uint32_t key = 0;
    for (uint32_t i = 0; i < (n < 4u ? n : 4u); i++) key |= (uint32_t)p[i] << (8u * i);
    return key;
}
/* As told.h wants it: the key's bytes must be that key's, to the last. */
static uint32_t model_number(const uint8_t *p, uint32_t n, uint32_t type) {
    uint32_t key = key_number(p, n);
    uint8_t bytes[320];
    bool same = key < MODEL_KEYS && model_key(key, bytes) == n && !memcmp(bytes, p, n) && type == (key & 3u);
    return same ? key : TOLD_KEYS;
}
static uint64_t model_end(const struct model_entry *e) { return e->due ? e->due + e->stale : 0; }
static bool model_gone(const struct twin *t, const struct model_entry *e) {
    return e->due && model_end(e) <= t->now;
}

/* `ring` granules, beyond `length`, for events; 0: none yet. */
static void twin_start(struct twin *t, uint64_t length, uint32_t max_entries, gb_ref ring) {
    uint64_t seed[2] = {check_random(), check_random()};
    memset(t, 0, sizeof *t);
    t->length = length + (uint64_t)ring * GB_GRANULE;
    t->image = malloc(t->length);
    t->now = 1000000;
    t->max_entries = max_entries;
    memset(t->image, 0xA5, t->length);
    CHECK(gb_room_format(&t->store, t->image, t->length, seed, t->now) == GB_OK);
    t->store.head->max_entries = max_entries;
    told_start(&t->told, &t->store, model_number);
    if (ring) CHECK(told_open(&t->told, ring, t->now) == GB_OK);
    told_listen(&t->told);
}
static void twin_stop(struct twin *t) { free(t->image); }

static struct model_entry *model_find(struct twin *t, uint32_t key) {
    for (uint32_t i = 0; i < t->n; i++)
        if (t->m[i].key == key) return &t->m[i];
    return NULL;
}
static void model_drop(struct twin *t, struct model_entry *e) {
    uint32_t i = (uint32_t)(e - t->m);
    memmove(e, e + 1, (t->n - i - 1u) * sizeof *e);
    t->n--;
}
static void model_use(struct twin *t, struct model_entry *e) {
    struct model_entry copy = *e;
    if (copy.idle && copy.due) copy.due = t->now + copy.idle;
    model_drop(t, e);
    t->m[t->n++] = copy;
}

/* The store may have evicted or expired: drop from the model what is gone, and insist that the gone
 * are due ones or exactly the oldest. `spared` was replaced by the operation itself. */
static void model_follow(struct twin *t, const bool *present) {
    bool kept_older = false;
    for (uint32_t i = 0; i < t->n;) {
        bool due = model_gone(t, &t->m[i]);
        if (present[t->m[i].key]) {
            if (!due) kept_older = true;
            i++;
            continue;
        }
        CHECK(due || !kept_older); /* evicted while an older one stayed: not LRU */
        model_drop(t, &t->m[i]);
    }
}

static void twin_read(struct twin *t, gb_ref ref, uint32_t tag, uint32_t len) {
    uint32_t word = gb_entry_at(t->image, ref)->word;
    CHECK(gb_value_len(t->image, ref, word) == len);
    model_fill(tag, len);
    if (!gb_store_is_chain(&t->store, ref, word)) {
        CHECK(!memcmp(gb_store_value_at(&t->store, ref, word), model_value, len));
        return;
    }
    struct gb_chain_read r;
    uint8_t *to = malloc(len);
    enum gb_err err = gb_chain_open(&t->store, &r, ref);
    CHECK(err == GB_OK);
    do {
        gb_head_enter(&t->store);
        err = gb_chain_copy(&t->store, &r, to);
        gb_head_leave(&t->store, GB_OP_GET);
    } while (err == GB_AGAIN);
    CHECK(err == GB_OK && !memcmp(to, model_value, len));
    gb_chain_close(&t->store, &r);
    free(to);
}

/* Everything that can be compared: invariants, order, values, deadlines. */
static void twin_compare(struct twin *t) {
    struct gb_store *s = &t->store;
    bool present[MODEL_KEYS] = {false};
    SOUND(gb_chain_check, s);
    gb_ref head = gb_index_list(&s->index), at = s->index.root->lru.prev;
    for (; at != head; at = gb_list_at(t->image, at)->prev) {
        gb_ref ref = GB_ENTRY_OF_LRU(at);
        uint32_t word = gb_entry_at(t->image, ref)->word;
        uint32_t klen = gb_key_len(t->image, ref, word);
        uint32_t key = key_number(gb_store_key_at(s, ref, word), klen);
        CHECK(key < MODEL_KEYS && !present[key]);
        present[key] = true;
    }
    model_follow(t, present);
    memset(t->ends, 0, sizeof t->ends);
    told_begin(&t->told);
    uint32_t i = 0;
    for (at = s->index.root->lru.prev; at != head; at = gb_list_at(t->image, at)->prev, i++) {
        gb_ref ref = GB_ENTRY_OF_LRU(at);
        uint32_t word = gb_entry_at(t->image, ref)->word;
        CHECK(i < t->n);
        CHECK(key_number(gb_store_key_at(s, ref, word), 4) == t->m[i].key);
        CHECK(gb_store_due(s, ref) == t->m[i].due);
        bool read = check_below(8) == 0;
        if (read) twin_read(t, ref, t->m[i].tag, t->m[i].len); /* fills model_value */
        t->ends[t->m[i].key] = model_end(&t->m[i]);
        told_see(&t->told, t->m[i].key, t->m[i].len, gb_word_vtype(word), read ? model_value : NULL);
    }
    told_end(&t->told);
    CHECK(i == t->n);
    CHECK(!t->max_entries || t->n <= t->max_entries);
}

static enum gb_err twin_put_long(struct twin *t, struct gb_put *p) {
    struct gb_store *s = &t->store;
    struct gb_chain_write w;
    enum gb_err err;
    do {
        told_enter(&t->told, t->now);
        err = gb_chain_begin(s, &w, p, t->now);
        told_leave(&t->told, GB_OP_LONG);
    } while (err == GB_AGAIN);
    if (err) return err;
    if (check_below(10) == 0) {
        gb_chain_abort(s, &w);
        return GB_GONE;
    }
    do {
        told_enter(&t->told, t->now);
        err = gb_chain_step(s, &w, p, t->now);
        told_leave(&t->told, GB_OP_LONG);
        if (check_below(4) == 0) SOUND(gb_chain_check, s);
    } while (err == GB_AGAIN);
    CHECK(err == GB_OK);
    do {
        told_enter(&t->told, t->now);
        err = gb_chain_commit(s, &w, p, t->now);
        told_leave(&t->told, GB_OP_LONG);
    } while (err == GB_AGAIN);
    if (err) gb_chain_abort(s, &w);
    return err;
}

/* What a put of the key had to tell: `had` it, and that one was `due`. */
static void twin_put_told(struct twin *t, uint32_t k, enum gb_err err, bool had, bool due) {
    const struct told *d = &t->told;
    CHECK(told_others(d, k, 1u << GB_EVENT_EVICT | 1u << GB_EVENT_EXPIRE));
    if (err == GB_TOOBIG) CHECK(told_is(d, k, TOLD1(REJECT)) && told_others(d, k, 0));
    else if (err == GB_EXISTS) CHECK(told_is(d, k, 0) && told_others(d, k, 0));
    else if (err == GB_GONE && due) CHECK(told_is(d, k, TOLD1(EXPIRE)));
    else if (err == GB_GONE) CHECK(told_is(d, k, 0) || told_is(d, k, TOLD1(EVICT)));
    else if (!had) CHECK(told_is(d, k, TOLD1(SET)));
    else if (due) CHECK(told_is(d, k, TOLD2(EXPIRE, SET)));
    else CHECK(told_is(d, k, TOLD1(REPLACE)) || told_is(d, k, TOLD2(EVICT, SET)));
}

static struct gb_put twin_any_put(struct twin *t, uint32_t value_len, uint32_t tag) {
    struct gb_put p = {.value = model_value, .value_len = value_len, .value_type = tag & 7u};
    if (check_below(3) == 0) p.due = t->now + 1u + check_below(check_below(3) ? 900u : 4000000u);
    if (check_below(50) == 0) p.due = t->now + ((uint64_t)1 << 31) + check_below(1u << 30);
    uint64_t wheel = t->store.head->wheel.tick << GB_WHEEL_TICK_SHIFT;
    if (t->now > wheel && check_below(3) == 0) /* wide where the wheel stands now, and narrow once it has come up */
        p.due = wheel + GB_WHEEL_NARROW + 1u + check_below((uint32_t)(t->now - wheel));
    if (check_below(12) == 0) {
        p.idle = 1u + check_below(500);
        p.due = t->now + p.idle;
    }
    if (check_below(8) == 0) p.stale = 1u + check_below(check_below(4) ? 900u : 1u << 31);
    p.add = check_below(6) == 0;
    return p;
}
static enum gb_err twin_put_bytes(struct twin *t, struct gb_put *p) {
    enum gb_err err;
    if (!gb_store_fits_inline(p)) return twin_put_long(t, p);
    do {
        told_enter(&t->told, t->now);
        err = gb_store_put(&t->store, p, t->now);
        told_leave(&t->told, GB_OP_SET);
    } while (err == GB_AGAIN);
    return err;
}
static void twin_put(struct twin *t, uint32_t value_most) {
    uint8_t key[320];
    uint32_t k = check_below(MODEL_KEYS), tag = check_below(1u << 16);
    uint32_t len = check_below(check_below(4) ? value_most / 8u + 1u : value_most + 1u);
    struct gb_put p = twin_any_put(t, len, tag);
    gb_store_key(&t->store, &p.key, key, model_key(k, key), k & 3u);
    model_fill(tag, len);
    struct model_entry *old = model_find(t, k);
    bool live = old && !(old->due && old->due <= t->now); /* not past: what add looks at */
    bool gone = old && model_gone(t, old);
    enum gb_err err = twin_put_bytes(t, &p);
    twin_put_told(t, k, err, old, gone);
    if (err == GB_GONE) { /* aborted: the old value may have gone to make room, or is whole */
        if (old && !gb_store_find(&t->store, &p.key)) model_drop(t, old);
        return;
    }
    CHECK(err == GB_OK || (err == GB_EXISTS && p.add && live) || err == GB_TOOBIG);
    if (err) return;
    CHECK(!p.add || !live);
    if (old) model_drop(t, old);
    t->m[t->n++] = (struct model_entry){k, len, tag, p.due, p.idle, p.due ? p.stale : 0u};
}

/* RELOCATE: the image goes on at another address; the old one is forbidden. */
static void twin_relocate(struct twin *t, uint64_t length) {
    struct gb_store old = t->store;
    uint8_t *copy = malloc(length);
    memcpy(copy, t->image, t->length < length ? t->length : length);
    memset(t->image, 0xEE, t->length);
    free(t->image);
    t->image = copy;
    CHECK(gb_room_attach(&t->store, copy, length) == GB_OK);
    memcpy(t->store.max_steps, old.max_steps, sizeof old.max_steps);
    told_again(&t->told, &old);
    if (length > t->length) gb_room_grow(&t->store, length);
    t->length = length;
}

static void twin_resize(struct twin *t) {
    uint64_t smallest = gb_room_smallest() + (uint64_t)t->store.head->ring.granules * GB_GRANULE;
    uint64_t length = smallest + 8u * check_below(4000) - (check_below(8) ? 0u : 8u * 500u);
    enum gb_err err;
    if (length > t->length) {
        twin_relocate(t, length);
        return;
    }
    do {
        told_enter(&t->told, t->now);
        err = gb_room_shrink(&t->store, length);
        told_leave(&t->told, GB_OP_RESIZE);
    } while (err == GB_AGAIN);
    CHECK(err == (length < smallest ? GB_SMALL : GB_OK));
    if (!err) twin_relocate(t, length);
}
/* Somebody subscribes or leaves, or a reader with a filter comes, or reads what there is for it. */
static void twin_listen(struct twin *t, uint32_t k) {
    struct told *d = &t->told;
    uint8_t bytes[320];
    struct told_side *side = &d->side[check_below(TOLD_SIDES)];
    (void)model_key(k, bytes);
    gb_ref granules = told_size() - (check_below(5) ? 0u : 30u); /* now and then too few */
    if (check_below(told_ring(d) ? 20 : 3) == 0) (void)told_open(d, granules, t->now);
    if (check_below(4) == 0) told_listen(d);
    if (told_ring(d) && check_below(3) == 0) told_side_start(d, side, bytes, k & 3u);
    else if (told_ring(d)) told_side(d, side);
}

static void twin_touch(struct twin *t, struct gb_key *key, uint32_t k) {
    struct gb_store *s = &t->store;
    uint64_t due = check_below(3) ? t->now + 1u + check_below(5000) : 0;
    enum gb_err err = GB_AGAIN;
    while (err == GB_AGAIN) {
        told_enter(&t->told, t->now);
        gb_ref ref = gb_store_live(s, key, t->now);
        err = ref ? gb_store_retime(s, ref, due, 0, 0, t->now) : GB_GONE;
        t->told.touches += err == GB_OK;
        told_leave(&t->told, GB_OP_SET);
    }
    struct model_entry *e = model_find(t, k);
    bool gone = e && model_gone(t, e);
    CHECK(told_others(&t->told, k, 1u << GB_EVENT_EVICT | 1u << GB_EVENT_EXPIRE));
    if (err == GB_OK) CHECK(told_is(&t->told, k, TOLD1(TOUCH)));
    else CHECK(told_is(&t->told, k, !e ? 0u : gone ? TOLD1(EXPIRE) : TOLD1(EVICT)));
    if (err == GB_GONE) return;
    CHECK(err == GB_OK && e && !gone);
    if (!due) e->stale = 0;
    e->idle = 0;
    e->due = due;
    model_use(t, e);
}

static void twin_get(struct twin *t, struct gb_key *key, struct model_entry *e) {
    gb_ref ref = gb_store_find(&t->store, key);
    CHECK(!ref == !e);
    if (!ref) return;
    CHECK(gb_store_is_due(&t->store, ref, t->now) == model_gone(t, e));
    CHECK(gb_store_is_past(&t->store, ref, t->now) == (e->due && e->due <= t->now));
    if (gb_store_is_past(&t->store, ref, t->now)) return;
    gb_store_use(&t->store, ref, t->now);
    model_use(t, e);
}
static void twin_delete(struct twin *t, struct gb_key *key, uint32_t k, struct model_entry *e) {
    told_enter(&t->told, t->now);
    gb_ref ref = gb_store_live(&t->store, key, t->now);
    if (ref) gb_room_remove(&t->store, ref, GB_CAUSE_DELETE);
    told_leave(&t->told, GB_OP_REMOVE);
    CHECK(told_is(&t->told, k, !e ? 0u : model_gone(t, e) ? TOLD1(EXPIRE) : TOLD1(DELETE)));
    CHECK(told_others(&t->told, k, 0));
    if (e) model_drop(t, e);
}
static void twin_work(struct twin *t) {
    uint8_t bytes[320];
    struct gb_key key;
    for (bool more = true; more;) {
        told_enter(&t->told, t->now);
        more = gb_room_work(&t->store, t->now);
        told_leave(&t->told, GB_OP_EXPIRE);
    }
    CHECK(told_others(&t->told, TOLD_KEYS, 1u << GB_EVENT_EXPIRE));
    for (uint32_t i = 0; i < t->n; i++) { /* at most one tick late */
        uint32_t k = t->m[i].key;
        gb_store_key(&t->store, &key, bytes, model_key(k, bytes), k & 3u);
        CHECK(!t->m[i].due || model_end(&t->m[i]) + 8u > t->now || !gb_store_find(&t->store, &key));
    }
}
static void twin_clear(struct twin *t) {
    told_enter(&t->told, t->now);
    CHECK(gb_room_clear(&t->store, t->now) == GB_OK);
    told_leave(&t->told, GB_OP_REMOVE);
    CHECK(told_is(&t->told, TOLD_KEYS, TOLD1(CLEAR)) && told_others(&t->told, TOLD_KEYS, 0));
    CHECK(t->told.missed || t->told.op == t->told.next || t->told.log[t->told.op % TOLD_LOG].count == t->n);
    t->n = 0;
}

/* Who expired was at his end. */
static void twin_expired(const struct twin *t) {
    const struct told *d = &t->told;
    for (uint64_t q = d->op; !d->missed && q < d->next; q++) {
        const struct told_event *l = &d->log[q % TOLD_LOG];
        CHECK(l->kind != GB_EVENT_EXPIRE || (t->ends[l->key] && t->ends[l->key] <= t->now));
    }
}
static void twin_do(struct twin *t, uint32_t what, uint32_t value_most) {
    uint32_t k = check_below(MODEL_KEYS);
    uint8_t bytes[320];
    struct gb_key key;
    struct model_entry *e = model_find(t, k);
    gb_store_key(&t->store, &key, bytes, model_key(k, bytes), k & 3u);
    if (what < 43) {
        twin_put(t, value_most);
    } else if (what < 73) {
        twin_get(t, &key, e);
    } else if (what < 78) {
        twin_delete(t, &key, k, e);
    } else if (what < 84) {
        twin_touch(t, &key, k);
    } else if (what < 90) {
        t->now += check_below(check_below(20) ? 400u : 3000000u);
    } else if (what < 93) {
        twin_work(t);
    } else if (what < 96) {
        twin_listen(t, k);
    } else if (what < 98) {
        twin_relocate(t, t->length);
    } else if (what < 99 || check_below(4)) {
        twin_resize(t);
        CHECK(told_others(&t->told, TOLD_KEYS, 1u << GB_EVENT_EVICT));
    } else {
        twin_clear(t);
    }
}
static void twin_step(struct twin *t, uint32_t value_most) {
    told_op(&t->told);
    CHECK(t->told.next == told_next(&t->told)); /* nothing was told between two operations */
    twin_do(t, check_below(100), value_most);
    twin_expired(t);
}
#endif
