/* _refs.c - finding pairs of references, taking them out, telling of it. */
#include "_refs.h"

struct gb_refs_names gb_refs_names;

uint64_t gb_refs_smallest(void) { return 16u * GB_WINDOW_BYTES + sizeof(struct gb_refs_head); }

void gb_refs_rebase(struct gb_refs *r, void *base) {
    struct gb_index *ix = &r->index;
    struct gb_refs_head *h = base;
    ix->base = ix->arena.base = ix->table.base = ix->wheel.base = base;
    ix->root = &h->index;
    ix->arena.root = &h->arena;
    ix->table.root = &h->table;
    ix->table.arena = &ix->arena;
    ix->wheel.root = &h->wheel;
    r->epoch++; /* a search under way holds an address */
}

enum gb_err gb_refs_format(struct gb_refs *r, void *base, uint64_t length, uint64_t now) {
    if (length < gb_refs_smallest()) return GB_SMALL;
    if (length / GB_GRANULE > UINT32_MAX) return GB_TOOBIG;
    if (r->index.base) r->epoch += r->index.root->epoch + 1u;
    gb_refs_rebase(r, base);
    ((struct gb_refs_head *)base)->magic = 0x7366657262675F5Fu;
    r->weight = 0;
    uint32_t head = (uint32_t)(sizeof(struct gb_refs_head) + GB_GRANULE - 1u) / GB_GRANULE;
    return gb_index_format(&r->index, head, (gb_ref)(length / GB_GRANULE) - 1u, now);
}

gb_ref gb_refs_top(const struct gb_refs *r) {
    const struct gb_arena_root *a = r->index.arena.root;
    const uint32_t *end = gb_at(r->index.base, a->end);
    return end[0] & GB_WORD_PREV_FREE ? a->end - end[-1] : a->end;
}

void gb_refs_copy(const struct gb_refs *r, void *to) {
    uint64_t end = r->index.arena.root->end, used = gb_refs_top(r) + 4u; /* with the head of what is free behind */
    if (used > end - 1u) used = end - 1u;
    memcpy(to, r->index.base, used * GB_GRANULE);
    memcpy(gb_at(to, (gb_ref)end - 1u), gb_at(r->index.base, (gb_ref)end - 1u), 2u * GB_GRANULE); /* its foot, and the end */
}

gb_ref gb_refs_same(const struct gb_refs *r, PyObject *key, uint64_t hash) {
    struct gb_probe p;
    gb_ref at;
    gb_probe_begin(&r->index.table, &p, hash);
    while ((at = gb_probe_next(&r->index.table, &p)))
        if (gb_refs_key(r->index.base, at) == key) return at;
    return 0;
}

bool gb_refs_opened(struct gb_refs *r) {
    if (GB_LIKELY(r->open)) return true;
    PyErr_SetString(gb_refs_names.closed_error,
                    r->born ? "the cache is closed"
                            : "the cache was never initialised: a subclass must call "
                              "super().__init__()");
    return false;
}

int gb_refs_hash(const struct gb_refs *r, PyObject *key, uint64_t *hash) {
    Py_hash_t h = -1;
    if (GB_LIKELY(PyUnicode_CheckExact(key))) h = gb_alone_text_hash(key);
    if (h == -1) h = PyObject_Hash(key);
    if (GB_UNLIKELY(h == -1)) return -1;
    *hash = gb_refs_mix(r, h);
    return 0;
}

/* Whether comparing the two runs no code but the interpreter's: then nothing can change meanwhile. */
static bool plain(PyObject *a, PyObject *b) {
    PyTypeObject *t = Py_TYPE(a);
    return t == Py_TYPE(b) &&
           (t == &PyUnicode_Type || t == &PyLong_Type || t == &PyBytes_Type || t == &PyFloat_Type);
}

int gb_refs_find_slow(struct gb_refs *r, PyObject *key, uint64_t hash, gb_ref *ref) {
    struct gb_index *ix = &r->index;
    struct gb_probe p;
    gb_ref at;
    uint32_t again = 0;
    *ref = 0;
again:
    if (GB_UNLIKELY(again++ == 1000u)) {
        PyErr_SetString(PyExc_RuntimeError, "the cache was changed by each of 1,000 comparisons");
        return -1;
    }
    gb_probe_begin(&ix->table, &p, hash);
    while ((at = gb_probe_next(&ix->table, &p))) {
        PyObject *held = gb_refs_key(ix->base, at);
        *ref = at;
        if (held == key) return 1;
        if (gb_entry_at(ix->base, at)->hash != (uint32_t)hash) continue;
        uint64_t epoch = gb_refs_epoch(r);
        bool safe = plain(held, key);
        if (!safe) Py_INCREF(held);
        int same = PyObject_RichCompareBool(held, key, Py_EQ);
        if (safe) {
            if (same) return same;
            continue;
        }
        gb_ref now = r->open && same > 0 ? gb_refs_same(r, held, hash) : 0; /* wherever it lies by now */
        uint64_t then = now ? gb_refs_epoch(r) : 0;
        Py_DECREF(held); /* may be the last, and its destructor may do anything, too */
        if (same < 0 || !gb_refs_opened(r)) return -1;
        if (now && gb_refs_epoch(r) == then) {
            *ref = now;
            return 1;
        }
        if (gb_refs_epoch(r) != epoch) goto again;
    }
    *ref = 0;
    return 0;
}

uint64_t gb_refs_due(const struct gb_refs *r, gb_ref ref) {
    if (!(gb_entry_at(r->index.base, ref)->word & GB_WORD_TTL)) return 0;
    return gb_index_deadline(&r->index, ref);
}

uint32_t gb_refs_idle(const struct gb_refs *r, gb_ref ref) {
    uint32_t word = gb_entry_at(r->index.base, ref)->word;
    return word & GB_WORD_EXTRA ? gb_extra_at(r->index.base, ref, word)->idle : 0u;
}

/* ---- what leaves ---- */
void gb_refs_tell(struct gb_refs *r, struct gb_refs_aside *aside) {
    aside->told = false;
    if (r->queue) gb_queue_tell(r->queue); /* a destructor may have closed the cache */
}

void gb_refs_take(struct gb_refs *r, gb_ref ref, enum gb_cause cause, struct gb_refs_aside *aside) {
    static const uint8_t kinds[GB_CAUSES] = {
        [GB_CAUSE_DELETE] = GB_EVENT_DELETE,
        [GB_CAUSE_EVICT] = GB_EVENT_EVICT,
        [GB_CAUSE_EXPIRE] = GB_EVENT_EXPIRE,
        [GB_CAUSE_INVALIDATE] = GB_EVENT_INVALIDATE,
    };
    struct gb_refs_counters *c = &r->counters;
    PyObject **pair = gb_refs_pair(r->index.base, ref, &aside->held[aside->n]);
    aside->n += 2u;
    r->weight -= gb_refs_weight(r, ref);
    gb_index_remove(&r->index, ref);
    c->deletes += cause == GB_CAUSE_DELETE || cause == GB_CAUSE_INVALIDATE;
    c->evictions += cause == GB_CAUSE_EVICT;
    c->expirations += cause == GB_CAUSE_EXPIRE;
    if (GB_UNLIKELY(r->kinds)) gb_refs_note(r, kinds[cause], pair[0], NULL, pair[1], aside);
}

void gb_refs_remove(struct gb_refs *r, gb_ref ref, enum gb_cause cause,
                    struct gb_refs_aside *aside) {
    gb_refs_take(r, ref, cause, aside);
    gb_arena_free(&r->index.arena, ref);
    if (gb_table_wants_shrink(&r->index.table)) (void)gb_table_shrink(&r->index.table);
}

/* ---- who listens ---- */
struct gb_queue *gb_refs_queue(struct gb_refs *r) {
    if (!gb_refs_opened(r)) return NULL;
    if (!r->queue) r->queue = gb_queue_new();
    return r->queue;
}

int gb_refs_listen(struct gb_refs *r, uint32_t kinds, bool values, uint64_t room) {
    struct gb_queue *q = r->queue;
    r->kinds = 0;
    if (!kinds) return 0;
    q = gb_refs_queue(r);
    if (!q || gb_queue_open(q, room)) return -1;
    q->values = values;
    r->kinds = kinds & GB_EVENTS_ALL;
    return 0;
}

void gb_refs_hush(struct gb_refs *r) {
    struct gb_queue *q = r->queue;
    r->kinds = 0;
    if (!q || q->cursors) return;
    r->queue = NULL;
    gb_queue_free(q);
}

void gb_refs_record(struct gb_refs *r, uint32_t kind, PyObject *key, PyObject *value, PyObject *old,
                    struct gb_refs_aside *aside) {
    gb_queue_push(r->queue, kind, gb_clock_date(&r->clock), key, value, old,
                  &aside->held[aside->n]);
    aside->n += GB_QUEUE_GONE;
    aside->told = true;
}

void gb_refs_cleared(struct gb_refs *r, uint64_t count, struct gb_refs_aside *aside) {
    r->counters.clears++;
    if (GB_LIKELY(!(r->kinds & (1u << GB_EVENT_CLEAR)))) return;
    gb_refs_record(r, GB_EVENT_CLEAR, NULL, NULL, NULL, aside);
    gb_queue_newest(r->queue)->count = count;
}

void gb_refs_slide(struct gb_refs *r, gb_ref ref, uint64_t now) {
    struct gb_extra *x = gb_extra_at(r->index.base, ref, gb_entry_at(r->index.base, ref)->word);
    if (!x->idle || !now) return;
    uint64_t hard = ((uint64_t)x->hard_high << 32) | x->hard_low, due = now + x->idle;
    (void)gb_index_retime(&r->index, ref, (hard && hard < due ? hard : due) + x->stale, hard, x->idle);
}

bool gb_refs_check(const struct gb_refs *r, struct gb_fault *f) {
    const struct gb_arena *a = &r->index.arena;
    uint64_t entries = 0, weight = 0;
    if (!gb_index_check(&r->index, f)) return false;
    for (gb_ref at = a->root->first; at < a->root->end; at += gb_arena_size(a, at)) {
        uint32_t word = gb_entry_at(a->base, at)->word;
        if (gb_word_kind(word) != GB_KIND_ENTRY) continue;
        if (!gb_refs_key(a->base, at))
            return gb_broken(f, "refs 2: an entry holds a key", at, 1, 0);
        entries++;
        weight += gb_refs_weight(r, at);
    }
    if (entries != r->index.table.root->count)
        return gb_broken(f, "refs 4: the entries are the blocks of their kind", 0,
                         r->index.table.root->count, entries);
    if (weight != r->weight)
        return gb_broken(f, "refs 3: the weight is the sum over the entries", 0, weight, r->weight);
    if (gb_refs_over(r, 0, 0))
        return gb_broken(f, "refs 5: count and weight are within their bounds", 0, r->max_entries,
                         entries);
    return true;
}
