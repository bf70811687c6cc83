/* _many.c - get_many, in stages, so that the cache misses of sixteen keys overlap. */
#include "_many.h"

#define GROUP 16 /* keys a hold: bucket, entry and splice of each within 64 steps */

/* One hold of get_many. What a hold should not do at once (a due entry, a long value) is left to
 * `later`, as NULL in `raw`. */
struct batch {
    struct gb_box box[GROUP];
    struct gb_key key[GROUP];
    PyObject *raw[GROUP];
    uint32_t type[GROUP];
    bool later[GROUP];
};

static void batch_take(struct gb_door *d, struct batch *g, int i, uint64_t now) {
    struct gb_store *s = &d->store;
    gb_ref ref = gb_store_find(s, &g->key[i]);
    g->raw[i] = NULL;
    g->later[i] = false;
    if (!ref) {
        s->head->counters.misses_absent++;
        return;
    }
    uint32_t word = gb_entry_at(s->base, ref)->word;
    if (gb_store_is_chain(s, ref, word) || gb_clock_due(&d->clock, &d->store.index, ref, &now)) {
        g->later[i] = true;
        return;
    }
    g->type[i] = gb_word_vtype(word);
    g->raw[i] = gb_box_raw(g->type[i], gb_store_value_at(s, ref, word),
                           gb_value_len(s->base, ref, word));
    if (GB_UNLIKELY(!g->raw[i])) { /* no memory: who reads it later will say so, if it is still so */
        PyErr_Clear();
        g->later[i] = true;
    }
    if (g->raw[i]) gb_hot_after(d, ref, now, GB_HOT_READ);
}

/* In stages, so that the misses of sixteen keys overlap: buckets, entries, their neighbours. */
static bool batch_read(struct gb_door *d, struct batch *g, int n, uint64_t now) {
    const struct gb_table *t = &d->store.index.table;
    struct gb_probe probe[GROUP];
    gb_ref ref[GROUP];
    if (!gb_door_enter(d)) return false;
    for (int i = 0; i < n; i++)
        __builtin_prefetch(gb_table_bucket(t, gb_table_bucket_of(t, (uint32_t)g->key[i].hash)));
    for (int i = 0; i < n; i++) {
        gb_probe_begin(t, &probe[i], g->key[i].hash);
        ref[i] = gb_probe_next(t, &probe[i]);
        if (!ref[i]) continue;
        __builtin_prefetch(gb_entry_at(d->store.base, ref[i]), 1);
        __builtin_prefetch((uint8_t *)gb_entry_at(d->store.base, ref[i]) + 64);
    }
    gb_head_enter(&d->store); /* the look-ups that follow count these steps */
    for (int i = 0; i < n; i++)
        if (ref[i]) gb_hot_prefetch(&d->store, ref[i]);
    for (int i = 0; i < n; i++) batch_take(d, g, i, now);
    gb_door_leave(d, GB_OP_GET);
    return true;
}

/* Takes over what the batch holds, whatever happened. */
static bool batch_give(struct gb_door *d, struct batch *g, int n, PyObject *const *keys,
                       PyObject *into) {
    bool fine = true;
    for (int i = 0; i < n; i++) {
        gb_box_drop(&g->box[i]);
        if (!fine) {
            Py_XDECREF(g->raw[i]);
            continue;
        }
        PyObject *value = gb_box_finish(d, g->type[i], g->raw[i]);
        if (fine && g->later[i]) value = gb_hot_read(d, keys[i], GB_HOT_READ);
        if (fine && value) fine = PyDict_SetItem(into, keys[i], value) == 0;
        else if (fine && PyErr_Occurred()) fine = false;
        Py_XDECREF(value);
    }
    return fine;
}

static bool batch_one(struct gb_door *d, PyObject *const *keys, int n, PyObject *into) {
    struct batch g;
    uint64_t now = 0;
    int boxed = 0;
    bool fine = !d->clock.asks || gb_clock_ask(&d->clock, &now);
    for (; fine && boxed < n; boxed++) {
        fine = gb_box_key(&g.box[boxed], keys[boxed]);
        if (!fine) break;
        if (!gb_box_core_key(d, &g.box[boxed], &g.key[boxed])) g.key[boxed].type = 3u;
        if (g.key[boxed].len > GB_KEY_MAX) g.key[boxed].len = 0;
        g.raw[boxed] = NULL;
        g.later[boxed] = false;
        g.type[boxed] = GB_BOX_BYTES;
    }
    fine = fine && batch_read(d, &g, n, now);
    if (fine) return batch_give(d, &g, n, keys, into);
    while (boxed-- > 0) gb_box_drop(&g.box[boxed]);
    return false;
}

/* The text of a str lies on the line behind its head, which the tuple's making has touched. */
static void prefetch_keys(PyObject *const *keys, Py_ssize_t n) {
    for (Py_ssize_t i = 0; i < n; i++) __builtin_prefetch((const char *)keys[i] + 56);
}

PyObject *gb_many_get(PyObject *self, PyObject *keys) {
    struct gb_door *d = &((gb_hot_store *)self)->door;
    PyObject *all = PySequence_Tuple(keys), *into = all ? PyDict_New() : NULL;
    bool fine = into != NULL;
    Py_ssize_t n = fine ? PyTuple_GET_SIZE(all) : 0;
    if (fine) prefetch_keys(&PyTuple_GET_ITEM(all, 0), n < GROUP ? n : GROUP);
    for (Py_ssize_t i = 0; fine && i < n; i += GROUP) {
        int left = n - i < GROUP ? (int)(n - i) : GROUP;
        if (n - i > GROUP)
            prefetch_keys(&PyTuple_GET_ITEM(all, i + GROUP), n - i < 2 * GROUP ? n - i - GROUP : GROUP);
        fine = batch_one(d, &PyTuple_GET_ITEM(all, i), left, into);
    }
    if (fine && !n) {
        fine = gb_door_enter(d);
        if (fine) gb_door_leave(d, GB_OP_GET);
    }
    Py_XDECREF(all);
    if (!fine) Py_CLEAR(into);
    return into;
}
