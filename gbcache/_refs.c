/* _refs.c - finding, writing and removing pairs of references. */
#include "_refs.h"

struct gb_refs_names gb_refs_names;

#define HAS_WEIGHT (1u << 27) /* the lowest bit of the word's value type */
#define STEPS_LAST (GB_STEPS_MAX - 16u)

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
    if (GB_LIKELY(PyUnicode_CheckExact(key))) h = ((PyASCIIObject *)key)->hash;
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
    *ref = 0;
again:
    gb_probe_begin(&ix->table, &p, hash);
    while ((at = gb_probe_next(&ix->table, &p))) {
        PyObject *held = gb_refs_key(ix->base, at);
        *ref = at;
        if (held == key) return 1;
        if (gb_entry_at(ix->base, at)->hash != (uint32_t)hash) continue;
        uint64_t epoch = gb_refs_epoch(r);
        bool safe = plain(held, key);
        Py_INCREF(held);
        int same = PyObject_RichCompareBool(held, key, Py_EQ);
        Py_DECREF(held); /* may be the last */
        if (same < 0) return -1;
        if (!safe) {
            if (!gb_refs_opened(r)) return -1;
            if (gb_refs_epoch(r) != epoch) goto again;
        }
        if (same) return 1;
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

uint64_t gb_refs_weight(const struct gb_refs *r, gb_ref ref) {
    uint64_t weight = 0;
    uint32_t word = gb_entry_at(r->index.base, ref)->word;
    if (word & HAS_WEIGHT)
        memcpy(&weight, (uint8_t *)gb_at(r->index.base, ref) + gb_header_bytes(word) +
               2u * sizeof(PyObject *), sizeof weight);
    return weight;
}

static void set_weight(uint8_t *base, gb_ref ref, uint64_t weight) {
    uint32_t word = gb_entry_at(base, ref)->word;
    if (word & HAS_WEIGHT)
        memcpy((uint8_t *)gb_at(base, ref) + gb_header_bytes(word) + 2u * sizeof(PyObject *), &weight,
               sizeof weight);
}

void gb_refs_release(struct gb_refs_aside *aside) {
    while (aside->n) Py_XDECREF(aside->held[--aside->n]);
}

static void put_aside(struct gb_refs *r, gb_ref ref, struct gb_refs_aside *aside) {
    gb_refs_pair(r->index.base, ref, &aside->held[aside->n]);
    aside->n += 2u;
    r->weight -= gb_refs_weight(r, ref);
}

/* The one door out, but for the block: its bytes stay. */
static inline void take_out(struct gb_refs *r, gb_ref ref, enum gb_cause cause,
                            struct gb_refs_aside *aside) {
    struct gb_refs_counters *c = &r->counters;
    put_aside(r, ref, aside);
    gb_index_remove(&r->index, ref);
    c->deletes += cause == GB_CAUSE_DELETE;
    c->evictions += cause == GB_CAUSE_EVICT;
    c->expirations += cause == GB_CAUSE_EXPIRE;
}

void gb_refs_remove(struct gb_refs *r, gb_ref ref, enum gb_cause cause,
                    struct gb_refs_aside *aside) {
    take_out(r, ref, cause, aside);
    gb_arena_free(&r->index.arena, ref);
    if (gb_table_wants_shrink(&r->index.table)) (void)gb_table_shrink(&r->index.table);
}

/* ---- blocks ---- */
/* What a block for such a life looks like: the word but for tag and granules. */
static uint32_t shape(const struct gb_refs *r, const struct gb_life *life) {
    uint32_t word = r->weigh ? HAS_WEIGHT : 0u;
    if (!life->due) return word;
    bool extra = life->idle || life->stale || gb_wheel_wide(&r->index.wheel, life->due);
    return word | GB_WORD_TTL | (extra ? GB_WORD_EXTRA : 0u);
}

static void set_life(struct gb_refs *r, gb_ref ref, const struct gb_life *life) {
    uint8_t *base = r->index.base;
    uint32_t word = gb_entry_at(base, ref)->word;
    if (!(word & GB_WORD_TTL)) return;
    uint64_t end = life->due + life->stale;
    gb_timer_at(base, ref)->due = (uint32_t)end;
    if (!(word & GB_WORD_EXTRA)) return;
    struct gb_extra *x = gb_extra_at(base, ref, word);
    memset(x, 0, sizeof *x);
    x->due_high = (uint32_t)(end >> 32);
    x->flags = gb_wheel_wide(&r->index.wheel, end) ? GB_EXTRA_WIDE : 0u;
    x->idle = life->idle;
    x->stale = life->stale;
    x->hard_low = (uint32_t)life->hard;
    x->hard_high = (uint32_t)(life->hard >> 32);
}

static uint32_t granules_of(uint32_t shape) {
    uint32_t bytes = gb_header_bytes(shape) + 2u * (uint32_t)sizeof(PyObject *) +
                     (shape & HAS_WEIGHT ? 8u : 0u);
    return (bytes + GB_GRANULE - 1u) / GB_GRANULE;
}

/* Makes an entry of a block that has the right length (references borrowed). */
static void fill(struct gb_refs *r, gb_ref ref, uint32_t shape, uint64_t hash, PyObject *const pair[2],
                 uint64_t weight) {
    struct gb_entry *e = gb_entry_at(r->index.base, ref);
    uint32_t block = 1023u | (7u << 10) | GB_WORD_PREV_FREE;
    e->word = (e->word & block) | shape | ((uint32_t)(hash >> 56) << 17);
    memcpy((uint8_t *)e + gb_header_bytes(e->word), pair, 2u * sizeof *pair);
    set_weight(r->index.base, ref, weight);
    e->hash = (uint32_t)hash;
}

/* A block of a shape, its pair filled in. 0: the reservation is full. */
static gb_ref block(struct gb_refs *r, uint32_t shape, uint64_t hash, PyObject *const pair[2],
                    uint64_t weight) {
    gb_ref ref = gb_arena_alloc(&r->index.arena, granules_of(shape), GB_KIND_ENTRY);
    if (ref) fill(r, ref, shape, hash, pair, weight);
    return ref;
}

static int no_room(void) {
    PyErr_SetString(PyExc_MemoryError, "the cache's address space is full: give it max_entries");
    return -1;
}

/* Another block in the place of `ref`, with the same pair. */
static int reshape(struct gb_refs *r, gb_ref ref, uint32_t wanted, const struct gb_life *life) {
    PyObject *pair[2];
    const struct gb_entry *e = gb_entry_at(r->index.base, ref);
    uint64_t hash = e->hash | (uint64_t)gb_word_klen(e->word) << 56;
    gb_ref to = block(r, wanted, hash, gb_refs_pair(r->index.base, ref, pair), gb_refs_weight(r, ref));
    if (!to) return no_room();
    set_life(r, to, life);
    gb_index_replace(&r->index, ref, to, true);
    gb_arena_free(&r->index.arena, ref);
    return 0;
}

int gb_refs_retime(struct gb_refs *r, gb_ref ref, const struct gb_life *life) {
    uint32_t wanted = shape(r, life), same = GB_WORD_TTL | GB_WORD_EXTRA;
    if ((gb_entry_at(r->index.base, ref)->word & same) != (wanted & same))
        return reshape(r, ref, wanted, life);
    if (wanted & GB_WORD_TTL) {
        gb_wheel_unlink(&r->index.wheel, ref);
        set_life(r, ref, life);
        gb_wheel_link(&r->index.wheel, ref);
    }
    gb_index_use(&r->index, ref);
    return 0;
}

void gb_refs_slide(struct gb_refs *r, gb_ref ref, uint64_t now) {
    struct gb_extra *x = gb_extra_at(r->index.base, ref, gb_entry_at(r->index.base, ref)->word);
    if (!x->idle || !now) return;
    uint64_t hard = ((uint64_t)x->hard_high << 32) | x->hard_low, due = now + x->idle;
    (void)gb_index_retime(&r->index, ref, (hard && hard < due ? hard : due) + x->stale);
}

/* ---- room ---- */
/* Who is to go: the dead before the living; 0 if nobody is left. */
static gb_ref victim_of(struct gb_refs *r, uint64_t now, enum gb_cause *cause) {
    struct gb_index *ix = &r->index;
    gb_ref victim = 0;
    bool more = false;
    if (ix->wheel.root->count)
        victim = gb_wheel_due(&ix->wheel, now, &ix->arena.work, ix->arena.work.steps + 8u, &more);
    *cause = victim ? GB_CAUSE_EXPIRE : GB_CAUSE_EVICT;
    return victim ? victim : gb_index_victim(ix);
}

static bool evict(struct gb_refs *r, uint64_t now, struct gb_refs_aside *aside) {
    enum gb_cause cause;
    gb_ref victim = victim_of(r, now, &cause);
    if (victim) gb_refs_remove(r, victim, cause, aside);
    return victim != 0;
}

/* The next victim is the coldest there is. Its entry was brought when its elder left; now what it
 * refers to, its bucket, and the entry of the one after it. */
static void foresee(const struct gb_refs *r) {
    const struct gb_table *t = &r->index.table;
    gb_ref victim = gb_index_victim(&r->index);
    if (!victim) return;
    PyObject *pair[2];
    const struct gb_entry *e = gb_entry_at(r->index.base, victim);
    gb_refs_pair(r->index.base, victim, pair);
    uintptr_t seen = (uintptr_t)Py_TYPE(pair[0]) + (uintptr_t)Py_TYPE(pair[1]);
    __asm__ volatile("" : : "r"(seen));
    __builtin_prefetch(gb_table_bucket(t, gb_table_bucket_of(t, e->hash)), 1);
    __builtin_prefetch(gb_list_at(r->index.base, e->lru.prev), 1);
}

static bool over(const struct gb_refs *r, uint32_t entries, uint64_t weight) {
    return (r->max_entries && r->index.table.root->count + entries > r->max_entries) ||
           (r->max_weight && r->weight + weight > r->max_weight);
}

/* Some evictions towards room for `entries` more of `weight`; what they held is released, which may
 * run anything. 1: something was evicted, look again; 0: there is room. */
static int make_room(struct gb_refs *r, uint64_t now, uint32_t entries, uint64_t weight) {
    struct gb_refs_aside aside = {.n = 0};
    gb_refs_enter(r);
    while (over(r, entries, weight) && aside.n < 2u * GB_REFS_ASIDE &&
           r->index.arena.work.steps <= STEPS_LAST && evict(r, now, &aside))
        ;
    gb_refs_leave(r);
    bool some = aside.n > 0;
    gb_refs_release(&aside);
    return some;
}

int gb_refs_fit(struct gb_refs *r, uint64_t now) {
    do {
        if (!gb_refs_opened(r)) return -1;
    } while (make_room(r, now, 0, 0));
    return 0;
}

bool gb_refs_expire(struct gb_refs *r, uint64_t now) {
    struct gb_refs_aside aside = {.n = 0};
    bool more = false;
    gb_ref ref = 1;
    gb_refs_enter(r);
    while (ref && aside.n < 2u * GB_REFS_ASIDE && r->index.arena.work.steps <= STEPS_LAST) {
        ref = gb_wheel_due(&r->index.wheel, now, &r->index.arena.work, STEPS_LAST, &more);
        if (ref) gb_refs_remove(r, ref, GB_CAUSE_EXPIRE, &aside);
    }
    gb_refs_leave(r);
    gb_refs_release(&aside);
    return ref || more;
}

/* ---- writing ---- */
static int too_heavy(struct gb_refs *r, const struct gb_refs_put *p) {
    r->counters.rejects++;
    PyErr_Format(gb_refs_names.budget_error,
                 "a weight of %llu can never fit max_weight=%llu; the old value, if any, is kept",
                 (unsigned long long)p->weight, (unsigned long long)r->max_weight);
    return -1;
}

static PyObject *exchange(struct gb_refs *r, gb_ref ref, PyObject *value) {
    struct gb_entry *e = gb_entry_at(r->index.base, ref);
    uint8_t *at = (uint8_t *)e + gb_header_bytes(e->word) + sizeof(PyObject *);
    PyObject *old;
    memcpy(&old, at, sizeof old);
    Py_INCREF(value);
    memcpy(at, &value, sizeof value);
    r->counters.replaces++;
    return old;
}

void gb_refs_swap(struct gb_refs *r, gb_ref ref, PyObject *value) {
    PyObject *old = exchange(r, ref, value);
    r->counters.sets++;
    Py_DECREF(old);
}

/* Over an entry that is there. Nothing Python runs until the old value is aside. */
static int overwrite(struct gb_refs *r, gb_ref ref, const struct gb_refs_put *p,
                     struct gb_refs_aside *aside) {
    uint8_t *base = r->index.base;
    if (gb_refs_retime(r, ref, &p->life)) return -1;
    ref = GB_ENTRY_OF_LRU(r->index.root->lru.next); /* it was used: wherever it lies now */
    r->weight += p->weight - gb_refs_weight(r, ref);
    set_weight(base, ref, p->weight);
    aside->held[aside->n++] = exchange(r, ref, p->value);
    return 1;
}

/* `ref`: a block of the right length that is free for it; 0: none. */
static int insert(struct gb_refs *r, const struct gb_refs_put *p, gb_ref ref) {
    PyObject *const pair[2] = {p->key, p->value};
    bool window = false;
    if (ref) fill(r, ref, shape(r, &p->life), p->hash, pair, p->weight);
    else ref = block(r, shape(r, &p->life), p->hash, pair, p->weight);
    if (!ref) return no_room();
    set_life(r, ref, &p->life);
    if (gb_index_insert(&r->index, p->hash, ref)) {
        gb_arena_free(&r->index.arena, ref);
        return no_room();
    }
    Py_INCREF(p->key);
    Py_INCREF(p->value);
    r->weight += p->weight;
    if (gb_table_wants_grow(&r->index.table)) (void)gb_table_grow(&r->index.table, &window);
    return 1;
}

/* One for one: the victim's block becomes the new entry's, so that the arena and the blocks beside it,
 * which are as cold, are left alone. -1 with an exception. */
static int exchange_victim(struct gb_refs *r, const struct gb_refs_put *p, struct gb_refs_aside *aside) {
    enum gb_cause cause;
    gb_ref victim = victim_of(r, p->now, &cause);
    uint32_t word = gb_entry_at(r->index.base, victim)->word;
    bool fits = gb_word_granules(word) == granules_of(shape(r, &p->life));
    if (fits) take_out(r, victim, cause, aside);
    else gb_refs_remove(r, victim, cause, aside);
    return insert(r, p, fits ? victim : 0);
}

int gb_refs_put(struct gb_refs *r, const struct gb_refs_put *p) {
    struct gb_refs_aside aside = {.n = 0};
    gb_ref ref;
    int done;
    if (r->max_weight && p->weight > r->max_weight) return too_heavy(r, p);
    for (;;) {
        gb_refs_enter(r);
        done = gb_refs_find(r, p->key, p->hash, &ref);
        if (done < 0) return -1;
        if (ref && gb_refs_is_over(r, ref, p->now)) {
            gb_refs_remove(r, ref, GB_CAUSE_EXPIRE, &aside);
            ref = 0;
        }
        if ((ref && p->add && !gb_refs_is_past(r, ref, p->now)) || (p->mark && *p->mark)) {
            done = 0;
            break;
        }
        uint64_t weight = ref ? p->weight - gb_refs_weight(r, ref) : p->weight; /* wraps, and back */
        if (GB_LIKELY(!aside.n && !over(r, !ref, weight))) {
            done = ref ? overwrite(r, ref, p, &aside) : insert(r, p, 0);
            r->counters.sets += done > 0;
            break;
        }
        if (ref) gb_index_use(&r->index, ref); /* it is not to be its own victim */
        if (!aside.n && !ref && r->max_entries && !r->max_weight) { /* the common way: one for one */
            done = exchange_victim(r, p, &aside);
            r->counters.sets += done > 0;
            foresee(r);
            break;
        }
        gb_refs_leave(r);
        gb_refs_release(&aside);
        if (!gb_refs_opened(r)) return -1;
        (void)make_room(r, p->now, !ref, weight);
        if (!gb_refs_opened(r)) return -1;
    }
    gb_refs_leave(r);
    gb_refs_release(&aside);
    return done;
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
    if (over(r, 0, 0))
        return gb_broken(f, "refs 5: count and weight are within their bounds", 0, r->max_entries,
                         entries);
    return true;
}
