/* _walk.c - snapshots of the recency list. */
#include "_walk.h"

#define SLICE 32u /* entries a hold */

static uint64_t hash_at(const struct gb_store *s, gb_ref ref) {
    uint32_t word = gb_entry_at(s->base, ref)->word;
    return gb_digest(&s->digest, gb_store_key_at(s, ref, word), gb_key_len(s->base, ref, word),
                     gb_word_ktype(word));
}

/* One hold: up to SLICE more. 1: there may be more, 0: the end, -1: closed. */
static int walk_on(struct gb_door *d, uint32_t id, uint64_t *hashes, size_t most, size_t *n) {
    if (!gb_door_enter(d)) return -1;
    gb_ref ref = 1;
    for (uint32_t i = 0; i < SLICE && *n < most && ref; i++) {
        ref = gb_index_walk_next(&d->store.index, id);
        if (ref) hashes[(*n)++] = hash_at(&d->store, ref);
    }
    gb_door_leave(d, GB_OP_WALK);
    return ref && *n < most;
}

bool gb_walk_snapshot(struct gb_door *d, uint64_t **hashes, size_t *n) {
    uint32_t id;
    bool begun = false;
    *hashes = NULL;
    *n = 0;
    while (!begun) {
        if (!gb_door_enter(d)) return false;
        begun = gb_index_walk_begin(&d->store.index, &id);
        size_t most = d->store.head->table.count + 1024u; /* others may add meanwhile */
        gb_door_leave(d, GB_OP_WALK);
        if (!begun && !gb_door_yield(d)) return false;
        if (!begun) continue;
        *hashes = PyMem_RawMalloc(most * sizeof **hashes);
        int more = *hashes ? 1 : 0;
        while (more > 0) more = walk_on(d, id, *hashes, most, n);
        if (more < 0) return false;
    }
    if (!gb_door_enter(d)) return false;
    gb_index_walk_end(&d->store.index, id);
    gb_door_leave(d, GB_OP_WALK);
    if (!*hashes) PyErr_NoMemory();
    return *hashes != NULL;
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
