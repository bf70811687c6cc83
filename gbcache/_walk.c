/* _walk.c - snapshots of the recency list. */
#include "_walk.h"

#define SLICE 32u /* entries a hold */

static uint64_t hash_at(const struct gb_store *s, gb_ref ref) {
    uint32_t word = gb_entry_at(s->base, ref)->word;
    return gb_digest(&s->digest, gb_store_key_at(s, ref, word), gb_key_len(s->base, ref, word),
                     gb_word_ktype(word));
}

/* Room for what is there now, and the moment. GB_OK, GB_BUSY, GB_SMALL; *fine is false with an exception. */
static enum gb_err begin(struct gb_door *d, struct gb_moment *m, bool *fine) {
    *fine = gb_door_enter(d);
    if (!*fine) return GB_BUSY;
    m->most = d->store.head->table.count + 1024u; /* others may add before it begins */
    m->words = gb_index_places(d->store.head->length);
    gb_door_leave(d, GB_OP_WALK);
    PyMem_RawFree(m->hashes);
    PyMem_RawFree(m->bits);
    m->hashes = PyMem_RawMalloc(m->most * sizeof *m->hashes);
    m->bits = PyMem_RawCalloc(m->words, sizeof *m->bits);
    *fine = m->hashes && m->bits;
    if (!*fine) PyErr_NoMemory();
    *fine = *fine && gb_door_enter(d);
    if (!*fine) return GB_BUSY;
    enum gb_err err = gb_moment_begin(&d->store, m);
    gb_door_leave(d, GB_OP_WALK);
    if (err == GB_BUSY) *fine = gb_door_yield(d);
    return err;
}

bool gb_walk_snapshot(struct gb_door *d, uint64_t **hashes, size_t *n) {
    struct gb_moment m = {0};
    bool fine = true, begun = false;
    while (fine && !begun) begun = begin(d, &m, &fine) == GB_OK;
    for (enum gb_err err = GB_AGAIN; fine && err == GB_AGAIN;) {
        fine = gb_door_enter(d);
        if (!fine) break;
        for (uint32_t i = 0; i < SLICE && err == GB_AGAIN; i++) err = gb_moment_step(&d->store, &m);
        gb_door_leave(d, GB_OP_WALK);
    }
    gb_door_hold(d); /* also where it was closed */
    if (begun) gb_moment_end(&d->store, &m);
    gb_door_unlock(d);
    PyMem_RawFree(m.bits);
    *hashes = m.hashes;
    *n = fine ? gb_moment_hashes(&m) : 0;
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
