/* _bulk.c - many keys at a time: get_many, and the moment an iteration goes through. */
#include "_bulk.h"

#define GROUP 16

/* One group of get_many: the first candidate of each key whose hash runs nothing. */
struct group {
    uint64_t hash[GROUP], epoch;
    gb_ref ref[GROUP];
    Py_ssize_t known;
};

/* The misses of sixteen keys overlap, and those of a group's buckets with the group before: buckets,
 * entries, what they refer to. */
static void bring_buckets(const struct gb_refs *r, PyObject *const *keys, Py_ssize_t n, struct group *g) {
    const struct gb_table *t = &r->index.table;
    g->epoch = gb_refs_epoch(r);
    for (g->known = 0; g->known < n && g->known < GROUP; g->known++) {
        PyObject *key = keys[g->known];
        Py_hash_t h = PyUnicode_CheckExact(key) ? gb_alone_text_hash(key) : -1;
        if (h == -1 && PyLong_CheckExact(key)) h = PyObject_Hash(key);
        if (h == -1) break;
        uint64_t hash = g->hash[g->known] = gb_refs_mix(r, h);
        __builtin_prefetch(gb_table_bucket(t, gb_table_bucket_of(t, (uint32_t)hash)));
    }
}

static void bring_entries(const struct gb_refs *r, struct group *g) {
    const struct gb_table *t = &r->index.table;
    if (g->epoch != gb_refs_epoch(r)) g->known = 0;
    for (Py_ssize_t i = 0; i < g->known; i++) {
        const struct gb_bucket *b = gb_table_bucket(t, gb_table_bucket_of(t, (uint32_t)g->hash[i]));
        uint32_t bits = gb_table_match(b, gb_table_tag(g->hash[i]));
        g->ref[i] = bits ? b->ref[__builtin_ctz(bits)] : 0;
        if (g->ref[i]) __builtin_prefetch(gb_entry_at(r->index.base, g->ref[i]), 1);
    }
}

/* The objects by loads on which nothing waits, for a prefetch is dropped where its page is not in the TLB,
 * and theirs, which lie all over the heap, never are (365 ns a key with prefetches alone, 180 so, among a
 * million). */
static void bring_objects(const struct gb_refs *r, const struct group *g) {
    uintptr_t seen = 0;
    for (Py_ssize_t i = 0; i < g->known; i++) {
        PyObject *pair[2];
        if (!g->ref[i]) continue;
        const struct gb_entry *e = gb_entry_at(r->index.base, g->ref[i]);
        gb_refs_pair(r->index.base, g->ref[i], pair);
        seen += (uintptr_t)Py_TYPE(pair[0]) + (uintptr_t)Py_TYPE(pair[1]);
        __builtin_prefetch((const char *)pair[0] + 40); /* a str's text */
        __builtin_prefetch(gb_list_at(r->index.base, e->lru.prev), 1);
        __builtin_prefetch(gb_list_at(r->index.base, e->lru.next), 1);
    }
    __asm__ volatile("" : : "r"(seen)); /* or the compiler would leave the loads out */
}

/* The candidate, if it is the key's and nothing has happened since; else a whole look-up. */
static PyObject *group_read(struct gb_refs *r, PyObject *key, const struct group *g, Py_ssize_t i) {
    bool fresh = i < g->known && r->open && g->epoch == gb_refs_epoch(r) && !r->clock.asks;
    if (fresh && g->ref[i] && gb_refs_is(r, g->ref[i], key, g->hash[i]) &&
        !(gb_entry_at(r->index.base, g->ref[i])->word & GB_WORD_TTL)) {
        PyObject *pair[2];
        r->counters.hits++;
        gb_index_use(&r->index, g->ref[i]);
        return Py_NewRef(gb_refs_pair(r->index.base, g->ref[i], pair)[1]);
    }
    return gb_quick_read_in(r, key, GB_QUICK_READ);
}

/* A dict that need not grow while it is filled: a fifth of get_many's time. */
static PyObject *dict_for(Py_ssize_t n) {
#if PY_VERSION_HEX < 0x030D0000
    if (n > 8) return _PyDict_NewPresized(n);
#endif
    (void)n;
    return PyDict_New();
}

PyObject *gb_bulk_get(PyObject *self, PyObject *keys) {
    GB_ALONE(self);
    struct gb_refs *r = &((gb_quick_store *)self)->refs;
    struct group two[2] = {{.known = 0}, {.known = 0}};
    PyObject *all = PySequence_Tuple(keys), *into = all ? dict_for(PyTuple_GET_SIZE(all)) : NULL;
    bool fine = into && gb_refs_opened(r);
    Py_ssize_t n = fine ? PyTuple_GET_SIZE(all) : 0;
    if (n) bring_buckets(r, &PyTuple_GET_ITEM(all, 0), n, &two[0]);
    for (Py_ssize_t i = 0; fine && i < n; i++) {
        PyObject *const *at = &PyTuple_GET_ITEM(all, i);
        struct group *g = &two[i / GROUP % 2];
        if (i % GROUP == 0 && r->open) {
            bring_entries(r, g);
            if (n - i > GROUP) bring_buckets(r, at + GROUP, n - i - GROUP, &two[(i / GROUP + 1) % 2]);
            bring_objects(r, g);
        }
        PyObject *value = group_read(r, *at, g, i % GROUP);
        if (value) fine = PyDict_SetItem(into, *at, value) == 0;
        else fine = !PyErr_Occurred();
        Py_XDECREF(value);
    }
    Py_XDECREF(all);
    if (!fine) Py_CLEAR(into);
    return into;
}

/* ---- iteration ---- */
PyObject *gb_bulk_snapshot(struct gb_refs *r, uint64_t **hashes) {
    GB_ALONE(gb_quick_self(r));
    *hashes = NULL;
    if (!gb_refs_opened(r)) return NULL;
    uint32_t most = r->index.table.root->count, n = 0;
    PyObject *keys = PyList_New(most); /* may run the collector */
    if (!keys) return NULL;
    bool open = gb_refs_opened(r);
    if (open) *hashes = PyMem_Malloc((most + 1u) * sizeof **hashes);
    if (open && !*hashes) PyErr_NoMemory();
    if (!*hashes) {
        Py_DECREF(keys);
        return NULL;
    }
    const struct gb_index *ix = &r->index;
    gb_ref head = gb_index_list(ix), at = ix->root->lru.prev;
    for (; at != head && n < most; at = gb_list_at(ix->base, at)->prev) {
        const struct gb_entry *e = gb_entry_at(ix->base, GB_ENTRY_OF_LRU(at));
        __builtin_prefetch(gb_list_at(ix->base, e->lru.prev));
        (*hashes)[n] = e->hash | (uint64_t)gb_word_klen(e->word) << 56;
        PyList_SET_ITEM(keys, n++, Py_NewRef(gb_refs_key(ix->base, GB_ENTRY_OF_LRU(at))));
    }
    if (n == most || PyList_SetSlice(keys, n, most, NULL) == 0) return keys;
    PyMem_Free(*hashes);
    *hashes = NULL;
    Py_DECREF(keys);
    return NULL;
}

int gb_bulk_walk(struct gb_refs *r, PyObject *key, uint64_t hash, PyObject **value) {
    GB_ALONE(gb_quick_self(r));
    uint64_t now = 0;
    PyObject *pair[2];
    if (r->clock.asks && !gb_clock_ask(&r->clock, &now)) return -1;
    if (!gb_refs_opened(r)) return -1;
    gb_ref ref = gb_refs_same(r, key, hash);
    if (!ref || gb_clock_due(&r->clock, &r->index, ref, &now)) return 0;
    *value = Py_NewRef(gb_refs_pair(r->index.base, ref, pair)[1]);
    return 1;
}

/* ---- all of them ---- */
int gb_bulk_traverse(const struct gb_arena *a, visitproc visit, void *arg) {
    PyObject *pair[2];
    for (gb_ref at = a->root->first; at < a->root->end; at += gb_arena_size(a, at)) {
        if (gb_word_kind(gb_entry_at(a->base, at)->word) != GB_KIND_ENTRY) continue;
        gb_refs_pair(a->base, at, pair);
        Py_VISIT(pair[0]);
        Py_VISIT(pair[1]);
    }
    return 0;
}

void gb_bulk_drain(struct gb_arena *a) {
    PyObject *pair[2];
    for (gb_ref at = a->root->first; at < a->root->end; at += gb_arena_size(a, at)) {
        if (gb_word_kind(gb_entry_at(a->base, at)->word) != GB_KIND_ENTRY) continue;
        gb_refs_pair(a->base, at, pair);
        Py_DECREF(pair[0]);
        Py_DECREF(pair[1]);
    }
}
