/* _walk.c - snapshots of the recency list. */
#include "_walk.h"

#define SLICE 32u /* entries a hold */

static uint64_t hash_at(const struct gb_store *s, gb_ref ref) {
    uint32_t word = gb_entry_at(s->base, ref)->word;
    return gb_digest(&s->digest, gb_store_key_at(s, ref, word), gb_key_len(s->base, ref, word),
                     gb_word_ktype(word));
}

struct snapshot {
    struct gb_moment moment; /* first: it is what meet() is given */
    const struct gb_store *store;
    uint64_t *hashes;
    size_t most, met, used; /* those in their turn stand from the start on, those used before it from the end back */
};

static void meet(struct gb_moment *m, gb_ref ref, bool used) {
    struct snapshot *p = (struct snapshot *)(void *)m;
    p->hashes[used ? p->most - ++p->used : p->met++] = hash_at(p->store, ref);
}

/* Room for what is there now; false with an exception. */
static bool prepare(struct gb_door *d, struct snapshot *p) {
    if (!gb_door_enter(d)) return false;
    p->most = d->store.head->table.count + 1024u; /* others may add before it begins */
    p->moment.words = gb_place_words(d->store.head->length);
    gb_door_leave(d, GB_OP_WALK);
    PyMem_RawFree(p->hashes);
    PyMem_RawFree(p->moment.met);
    p->hashes = PyMem_RawMalloc(p->most * sizeof *p->hashes);
    p->moment.met = PyMem_RawCalloc(p->moment.words, sizeof *p->moment.met);
    if (!p->hashes || !p->moment.met) PyErr_NoMemory();
    return p->hashes && p->moment.met;
}

/* The moment. 1: it has begun, 0: not yet, -1: an exception. */
static int begin(struct gb_door *d, struct snapshot *p, uint32_t *id) {
    if (!prepare(d, p) || !gb_door_enter(d)) return -1;
    bool fits = d->store.head->table.count <= p->most &&
                gb_place_words(d->store.head->length) <= p->moment.words;
    bool begun = fits && gb_index_walk_begin(&d->store.index, id, &p->moment);
    gb_door_leave(d, GB_OP_WALK);
    return begun ? 1 : !fits || gb_door_yield(d) ? 0 : -1;
}

/* One hold of it: false with an exception, or *more. */
static bool go_on(struct gb_door *d, uint32_t id, bool *more) {
    if (!gb_door_enter(d)) return false;
    for (uint32_t i = 0; i < SLICE && *more; i++) *more = gb_index_walk_meet(&d->store.index, id);
    gb_door_leave(d, GB_OP_WALK);
    return true;
}

/* Those that were used come last, in their order. */
static void put_together(struct snapshot *p) {
    uint64_t *last = p->hashes + p->most - p->used;
    for (size_t i = 0; i < p->used / 2u; i++) {
        uint64_t hash = last[i];
        last[i] = last[p->used - 1u - i];
        last[p->used - 1u - i] = hash;
    }
    memmove(p->hashes + p->met, last, p->used * sizeof *last);
}

bool gb_walk_snapshot(struct gb_door *d, uint64_t **hashes, size_t *n) {
    struct snapshot p = {.moment.meet = meet, .store = &d->store};
    uint32_t id;
    int begun = 0;
    while (!begun) begun = begin(d, &p, &id);
    bool more = begun > 0, fine = more;
    while (more && fine) fine = go_on(d, id, &more);
    if (begun > 0) {
        gb_door_hold(d); /* also where it was closed */
        gb_index_walk_end(&d->store.index, id);
        gb_door_unlock(d);
    }
    PyMem_RawFree(p.moment.met);
    put_together(&p);
    *hashes = p.hashes;
    *n = fine ? p.met + p.used : 0;
    return fine;
}

static gb_ref find(const struct gb_store *s, uint64_t hash) {
    struct gb_probe p;
    gb_ref ref;
    gb_probe_begin(&s->index.table, &p, hash);
    while ((ref = gb_probe_next(&s->index.table, &p)))
        if (gb_entry_at(s->base, ref)->hash == (uint32_t)hash && hash_at(s, ref) == hash) break;
    return ref;
}

int gb_walk_next(struct gb_door *d, uint64_t hash, bool want_value, PyObject **key,
                 PyObject **value) {
    const struct gb_store *s = &d->store;
    uint64_t now = 0;
    if (d->clock.asks && !gb_clock_ask(&d->clock, &now)) return -1;
    if (!gb_door_enter(d)) return -1;
    gb_ref ref = find(s, hash);
    if (!ref || gb_clock_due(&d->clock, &d->store.index, ref, &now)) {
        gb_door_leave(d, GB_OP_GET);
        return 0;
    }
    uint32_t word = gb_entry_at(s->base, ref)->word, type = gb_word_vtype(word);
    uint32_t klen = gb_key_len(s->base, ref, word), ktype = gb_word_ktype(word);
    bool is_long = gb_store_is_chain(s, ref, word);
    PyObject *raw = NULL;
    *value = NULL;
    *key = PyBytes_FromStringAndSize((const char *)gb_store_key_at(s, ref, word),
                                     (Py_ssize_t)klen);
    if (*key && want_value && !is_long)
        raw = gb_box_raw(type, gb_store_value_at(s, ref, word), gb_value_len(s->base, ref, word));
    gb_door_leave(d, GB_OP_GET);
    if (want_value && !is_long && !raw) Py_CLEAR(*key); /* an error is set: nothing is called now */
    *key = gb_box_key_object(ktype, *key);
    if (*key && want_value)
        *value = is_long ? gb_hot_read(d, *key, GB_HOT_PEEK) : gb_box_finish(d, type, raw);
    if (*key && (!want_value || *value)) return 1;
    if (!*key && raw) Py_DECREF(raw); /* else finish has taken it over */
    Py_CLEAR(*key);
    return PyErr_Occurred() ? -1 : 0;
}
