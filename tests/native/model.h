/* model.h - the dumb twin of the store. It knows exact LRU order, deadlines and bytes. What it does
 * not know is which entries a full image must give up: there it follows the store, but insists that
 * whoever left was the least recently used of those present, or due. */
#ifndef MODEL_H
#define MODEL_H

#define MODEL_KEYS 400u

struct model_entry {
    uint32_t key, len, tag; /* the value is `len` bytes made from `tag` */
    uint64_t due;
    uint32_t idle;
};
struct twin {
    uint8_t *image;
    uint64_t length, now;
    struct gb_store store;
    struct model_entry m[MODEL_KEYS]; /* most recently used last */
    uint32_t n, max_entries;
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

static void twin_start(struct twin *t, uint64_t length, uint32_t max_entries) {
    uint64_t seed[2] = {check_random(), check_random()};
    memset(t, 0, sizeof *t);
    t->length = length;
    t->image = malloc(length);
    t->now = 1000000;
    t->max_entries = max_entries;
    memset(t->image, 0xA5, length);
    CHECK(gb_room_format(&t->store, t->image, length, seed, t->now) == GB_OK);
    t->store.head->max_entries = max_entries;
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
        bool due = t->m[i].due && t->m[i].due <= t->now;
        if (present[t->m[i].key]) {
            if (!due) kept_older = true;
            i++;
            continue;
        }
        CHECK(due || !kept_older); /* evicted while an older one stayed: not LRU */
        model_drop(t, &t->m[i]);
    }
}

static uint32_t key_number(const uint8_t *p, uint32_t n) {
    uint32_t key = 0;
    for (uint32_t i = 0; i < (n < 4u ? n : 4u); i++) key |= (uint32_t)p[i] << (8u * i);
    return key;
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
    uint32_t i = 0;
    for (at = s->index.root->lru.prev; at != head; at = gb_list_at(t->image, at)->prev, i++) {
        gb_ref ref = GB_ENTRY_OF_LRU(at);
        uint32_t word = gb_entry_at(t->image, ref)->word;
        CHECK(i < t->n);
        CHECK(key_number(gb_store_key_at(s, ref, word), 4) == t->m[i].key);
        CHECK(gb_store_due(s, ref) == t->m[i].due);
        if (check_below(8) == 0) twin_read(t, ref, t->m[i].tag, t->m[i].len);
    }
    CHECK(i == t->n);
    CHECK(!t->max_entries || t->n <= t->max_entries);
}

static enum gb_err twin_put_long(struct twin *t, struct gb_put *p) {
    struct gb_store *s = &t->store;
    struct gb_chain_write w;
    enum gb_err err;
    do {
        gb_head_enter(s);
        err = gb_chain_begin(s, &w, p, t->now);
        gb_head_leave(s, GB_OP_LONG);
    } while (err == GB_AGAIN);
    if (err) return err;
    if (check_below(10) == 0) {
        gb_chain_abort(s, &w);
        return GB_GONE;
    }
    do {
        gb_head_enter(s);
        err = gb_chain_step(s, &w, p, t->now);
        gb_head_leave(s, GB_OP_LONG);
        if (check_below(4) == 0) SOUND(gb_chain_check, s);
    } while (err == GB_AGAIN);
    CHECK(err == GB_OK);
    do {
        gb_head_enter(s);
        err = gb_chain_commit(s, &w, p, t->now);
        gb_head_leave(s, GB_OP_LONG);
    } while (err == GB_AGAIN);
    if (err) gb_chain_abort(s, &w);
    return err;
}

static void twin_put(struct twin *t, uint32_t value_most) {
    struct gb_store *s = &t->store;
    uint8_t key[320];
    uint32_t k = check_below(MODEL_KEYS), tag = check_below(1u << 16);
    uint32_t len = check_below(check_below(4) ? value_most / 8u + 1u : value_most + 1u);
    struct gb_put p = {.value = model_value, .value_len = len, .value_type = tag & 7u};
    gb_store_key(s, &p.key, key, model_key(k, key), k & 3u);
    model_fill(tag, len);
    if (check_below(3) == 0) p.due = t->now + 1u + check_below(check_below(3) ? 900u : 4000000u);
    if (check_below(50) == 0) p.due = t->now + ((uint64_t)1 << 31) + check_below(1u << 30);
    if (check_below(12) == 0) {
        p.idle = 1u + check_below(500);
        p.due = t->now + p.idle;
    }
    p.add = check_below(6) == 0;
    struct model_entry *old = model_find(t, k);
    bool live = old && !(old->due && old->due <= t->now);
    enum gb_err err;
    if (gb_store_fits_inline(&p)) {
        do {
            gb_head_enter(s);
            err = gb_store_put(s, &p, t->now);
            gb_head_leave(s, GB_OP_SET);
        } while (err == GB_AGAIN);
    } else {
        err = twin_put_long(t, &p);
    }
    if (err == GB_GONE) { /* aborted: the old value may have gone to make room, or is whole */
        if (old && !gb_store_find(s, &p.key)) model_drop(t, old);
        return;
    }
    CHECK(err == GB_OK || (err == GB_EXISTS && p.add && live) || err == GB_TOOBIG);
    if (err) return;
    CHECK(!(p.add && live) || !gb_store_find(s, &p.key) || true);
    if (old) model_drop(t, old);
    t->m[t->n++] = (struct model_entry){k, len, tag, p.due, p.idle};
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
    if (length > t->length) gb_room_grow(&t->store, length);
    t->length = length;
}

static void twin_resize(struct twin *t) {
    uint64_t smallest = gb_room_smallest(), length = smallest + 8u * check_below(4000);
    enum gb_err err;
    if (length > t->length) {
        twin_relocate(t, length);
        return;
    }
    do {
        gb_head_enter(&t->store);
        err = gb_room_shrink(&t->store, length);
        gb_head_leave(&t->store, GB_OP_RESIZE);
    } while (err == GB_AGAIN);
    CHECK(err == GB_OK);
    twin_relocate(t, length);
}

static void twin_touch(struct twin *t, struct gb_key *key, uint32_t k) {
    struct gb_store *s = &t->store;
    uint64_t due = check_below(3) ? t->now + 1u + check_below(5000) : 0;
    enum gb_err err = GB_AGAIN;
    while (err == GB_AGAIN) {
        gb_head_enter(s);
        gb_ref ref = gb_store_live(s, key, t->now);
        err = ref ? gb_store_retime(s, ref, due, 0, 0, t->now) : GB_GONE;
        gb_head_leave(s, GB_OP_SET);
    }
    struct model_entry *e = model_find(t, k);
    if (err == GB_GONE) return;
    CHECK(err == GB_OK && e);
    e->idle = 0;
    e->due = due;
    model_use(t, e);
}

static void twin_step(struct twin *t, uint32_t value_most) {
    struct gb_store *s = &t->store;
    uint32_t what = check_below(100), k = check_below(MODEL_KEYS);
    uint8_t bytes[320];
    struct gb_key key;
    struct model_entry *e = model_find(t, k);
    if (what < 45) {
        twin_put(t, value_most);
        return;
    }
    gb_store_key(s, &key, bytes, model_key(k, bytes), k & 3u);
    gb_head_enter(s);
    if (what < 75) {
        gb_ref ref = gb_store_find(s, &key);
        CHECK(!ref == !e);
        if (ref && !gb_store_is_due(s, ref, t->now)) {
            CHECK(!(e->due && e->due <= t->now));
            gb_store_use(s, ref, t->now);
            model_use(t, e);
        }
    } else if (what < 80) {
        gb_ref ref = gb_store_live(s, &key, t->now);
        if (ref) gb_room_remove(s, ref, GB_CAUSE_DELETE);
        if (e) model_drop(t, e);
    } else if (what < 86) {
        twin_touch(t, &key, k);
    } else if (what < 92) {
        t->now += check_below(check_below(20) ? 400u : 3000000u);
    } else if (what < 96) {
        for (bool more = true; more;) {
            gb_head_enter(s);
            more = gb_room_work(s, t->now);
            gb_head_leave(s, GB_OP_EXPIRE);
        }
        for (uint32_t i = 0; i < t->n; i++) /* at most one tick late */
            CHECK(!t->m[i].due || t->m[i].due + 8u > t->now ||
                  !gb_store_find(s, (gb_store_key(s, &key, bytes, model_key(t->m[i].key, bytes),
                                                  t->m[i].key & 3u), &key)));
        gb_head_enter(s);
    } else if (what < 98) {
        twin_relocate(t, t->length);
    } else if (what < 99 || check_below(4)) {
        twin_resize(t);
    } else {
        CHECK(gb_room_clear(s, t->now) == GB_OK);
        t->n = 0;
    }
    gb_head_leave(&t->store, GB_OP_REMOVE);
}
#endif
