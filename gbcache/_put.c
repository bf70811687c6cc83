/* _put.c - blocks, room and writing: what changes the entries. */
#include "_put.h"
#include "_quick.h"

#define STEPS_LAST (GB_STEPS_MAX - 16u)
#define STUBBORN 32u  /* rounds of one call in which what was let go of wrote as much back */

static void set_weight(uint8_t *base, gb_ref ref, uint64_t weight) {
    uint32_t word = gb_entry_at(base, ref)->word;
    if (word & GB_REFS_WEIGHT)
        memcpy((uint8_t *)gb_at(base, ref) + gb_header_bytes(word) + 2u * sizeof(PyObject *), &weight,
               sizeof weight);
}

/* ---- blocks ---- */
/* What a block for such a life looks like: the word but for tag and granules. */
static uint32_t shape(const struct gb_refs *r, const struct gb_life *life) {
    uint32_t word = r->weigh ? GB_REFS_WEIGHT : 0u;
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
                     (shape & GB_REFS_WEIGHT ? 8u : 0u);
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

/* What says that the arena has no block: no exception is set yet, for there may be more to be had. */
#define NO_ROOM (-2)

/* Another block in the place of `ref`, with the same pair. */
static int reshape(struct gb_refs *r, gb_ref ref, uint32_t wanted, const struct gb_life *life) {
    PyObject *pair[2];
    const struct gb_entry *e = gb_entry_at(r->index.base, ref);
    uint64_t hash = e->hash | (uint64_t)gb_word_klen(e->word) << 56;
    gb_ref to = block(r, wanted, hash, gb_refs_pair(r->index.base, ref, pair), gb_refs_weight(r, ref));
    if (!to) return NO_ROOM;
    set_life(r, to, life);
    gb_index_replace(&r->index, ref, to, true);
    gb_arena_free(&r->index.arena, ref);
    return 0;
}

static int retime(struct gb_refs *r, gb_ref ref, const struct gb_life *life) {
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

/* ---- room ---- */
/* Who is to go: the dead before the living; 0 if nobody is left. */
static gb_ref victim_of(struct gb_refs *r, uint64_t now, enum gb_cause *cause) {
    struct gb_index *ix = &r->index;
    gb_ref victim = 0;
    bool more = false;
    if (ix->wheel.root->count)
        victim = gb_wheel_due(&ix->wheel, now, &ix->arena.work, ix->arena.work.steps + 8u, true, &more);
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

/* Some evictions towards room for `entries` more of `weight`; what they held is released, which may
 * run anything. 1: something was evicted, look again; 0: there is room. */
static int make_room(struct gb_refs *r, uint64_t now, uint32_t entries, uint64_t weight) {
    struct gb_refs_aside aside;
    gb_refs_begin(&aside);
    gb_refs_enter(r);
    while (gb_refs_over(r, entries, weight) && aside.n < 2u * GB_REFS_ASIDE &&
           r->index.arena.work.steps <= STEPS_LAST && evict(r, now, &aside))
        ;
    gb_refs_leave(r);
    bool some = aside.n > 0;
    gb_refs_release(r, &aside);
    return some;
}

/* Destructors that write make room scarce again; such as put back all that leaves would keep us for ever. */
struct patience {
    uint64_t weight;
    uint32_t count, rounds;
};
static bool stubborn(const struct gb_refs *r, struct patience *p) {
    if (!r->open) return false; /* whoever goes on will say so */
    uint32_t count = r->index.table.root->count;
    if (!p->rounds || count < p->count || r->weight < p->weight) {
        *p = (struct patience){r->weight, count, 1};
        return false;
    }
    if (GB_LIKELY(++p->rounds < STUBBORN)) return false;
    PyErr_SetString(PyExc_RuntimeError, "what the cache lets go of writes to it, again and again");
    return true;
}

int gb_put_fit(struct gb_refs *r, uint64_t now) {
    struct patience patience = {.rounds = 0};
    for (int some = 1; some;) {
        if (!gb_refs_opened(r)) return -1;
        some = make_room(r, now, 0, 0);
        if (some && stubborn(r, &patience)) return -1;
    }
    return 0;
}

/* More address space, between two tries. -1 with an exception: there is none, or not for a bounded cache,
 * which has what it needs. */
static int grow(struct gb_refs *r) {
    if (r->max_entries || gb_refs_whole(r)) {
        PyErr_SetString(PyExc_MemoryError, "the cache's address space is full: give it max_entries");
        return -1;
    }
    PyObject *none = PyObject_CallOneArg(gb_refs_names.grow, gb_quick_self(r));
    Py_XDECREF(none);
    return none && gb_refs_opened(r) ? 0 : -1; /* it may have run anything */
}

bool gb_put_expire(struct gb_refs *r, uint64_t now) {
    struct gb_refs_aside aside;
    gb_refs_begin(&aside);
    bool more = false;
    gb_ref ref = 1;
    gb_refs_enter(r);
    while (ref && aside.n < 2u * GB_REFS_ASIDE && r->index.arena.work.steps <= STEPS_LAST) {
        ref = gb_wheel_due(&r->index.wheel, now, &r->index.arena.work, STEPS_LAST, false, &more);
        if (ref) gb_refs_remove(r, ref, GB_CAUSE_EXPIRE, &aside);
    }
    gb_refs_leave(r);
    gb_refs_release(r, &aside);
    return ref || more;
}

/* ---- writing ---- */
static int too_heavy(struct gb_refs *r, const struct gb_put *p) {
    struct gb_refs_aside aside;
    gb_refs_begin(&aside);
    r->counters.rejects++;
    gb_refs_note(r, GB_EVENT_REJECT, p->key, p->value, NULL, &aside);
    gb_refs_release(r, &aside);
    PyErr_Format(gb_refs_names.budget_error,
                 "a weight of %llu can never fit max_weight=%llu; the old value, if any, is kept",
                 (unsigned long long)p->weight, (unsigned long long)r->max_weight);
    return -1;
}

static int too_much(const struct gb_put *p) {
    PyErr_Format(PyExc_OverflowError, "with a weight of %llu the sum would pass 2**63 - 1",
                 (unsigned long long)p->weight);
    return -1;
}

static void exchange(struct gb_refs *r, gb_ref ref, PyObject *value, struct gb_refs_aside *aside) {
    struct gb_entry *e = gb_entry_at(r->index.base, ref);
    uint8_t *at = (uint8_t *)e + gb_header_bytes(e->word) + sizeof(PyObject *);
    PyObject *old;
    memcpy(&old, at, sizeof old);
    Py_INCREF(value);
    memcpy(at, &value, sizeof value);
    aside->held[aside->n++] = old;
    r->counters.sets++;
    r->counters.replaces++;
    gb_refs_note(r, GB_EVENT_REPLACE, gb_refs_key(r->index.base, ref), value, old, aside);
}

void gb_put_swap(struct gb_refs *r, gb_ref ref, PyObject *value) {
    struct gb_refs_aside aside;
    gb_refs_begin(&aside);
    exchange(r, ref, value, &aside);
    gb_refs_release(r, &aside);
}

/* Over an entry that is there. Nothing Python runs until the old value is aside. */
static int overwrite(struct gb_refs *r, gb_ref ref, const struct gb_put *p,
                     struct gb_refs_aside *aside) {
    uint8_t *base = r->index.base;
    if (p->add && p->over) gb_refs_use(r, ref, p->now);
    else if (retime(r, ref, &p->life)) return NO_ROOM;
    ref = GB_ENTRY_OF_LRU(r->index.root->lru.next); /* it was used: wherever it lies now */
    r->weight += p->weight - gb_refs_weight(r, ref);
    set_weight(base, ref, p->weight);
    exchange(r, ref, p->value, aside);
    return 1;
}

/* `ref`: a block of the right length that is free for it; 0: none. */
static int insert(struct gb_refs *r, const struct gb_put *p, gb_ref ref, struct gb_refs_aside *aside) {
    PyObject *const pair[2] = {p->key, p->value};
    bool window = false;
    if (ref) fill(r, ref, shape(r, &p->life), p->hash, pair, p->weight);
    else ref = block(r, shape(r, &p->life), p->hash, pair, p->weight);
    if (!ref) return NO_ROOM;
    set_life(r, ref, &p->life);
    if (gb_index_insert(&r->index, p->hash, ref)) {
        gb_arena_free(&r->index.arena, ref);
        return NO_ROOM;
    }
    Py_INCREF(p->key);
    Py_INCREF(p->value);
    r->weight += p->weight;
    r->counters.sets++;
    gb_refs_note(r, GB_EVENT_SET, p->key, p->value, NULL, aside);
    if (gb_table_wants_grow(&r->index.table)) (void)gb_table_grow(&r->index.table, &window);
    return 1;
}

/* One for one: the victim's block becomes the new entry's, so that the arena and the blocks beside it,
 * which are as cold, are left alone. -1 with an exception. */
static int exchange_victim(struct gb_refs *r, const struct gb_put *p, struct gb_refs_aside *aside) {
    enum gb_cause cause;
    gb_ref victim = victim_of(r, p->now, &cause);
    uint32_t word = gb_entry_at(r->index.base, victim)->word;
    bool fits = gb_word_granules(word) == granules_of(shape(r, &p->life));
    if (fits) gb_refs_take(r, victim, cause, aside);
    else gb_refs_remove(r, victim, cause, aside);
    return insert(r, p, fits ? victim : 0, aside);
}

/* Of an add: whether what is there has it left alone. */
static bool is_off(const struct gb_refs *r, gb_ref ref, const struct gb_put *p) {
    PyObject *pair[2];
    bool there = ref && !gb_refs_is_past(r, ref, p->now);
    if (there && p->over) return gb_refs_pair(r->index.base, ref, pair)[1] != p->over;
    return there != (p->over != NULL);
}

int gb_put(struct gb_refs *r, const struct gb_put *p) {
    struct gb_refs_aside aside;
    gb_refs_begin(&aside);
    gb_ref ref;
    int done;
    struct patience patience = {.rounds = 0};
    if (r->max_weight && p->weight > r->max_weight) return too_heavy(r, p);
    if (GB_UNLIKELY(p->weight && r->weight + p->weight > INT64_MAX)) return too_much(p);
    for (;;) {
        gb_refs_enter(r);
        done = gb_refs_find(r, p->key, p->hash, &ref);
        if (done < 0) return -1;
        if (ref && gb_refs_is_over(r, ref, p->now)) {
            gb_refs_remove(r, ref, GB_CAUSE_EXPIRE, &aside);
            ref = 0;
        }
        if ((p->add && is_off(r, ref, p)) || (p->mark && gb_args_is_void(p->mark))) {
            done = 0;
            break;
        }
        uint64_t weight = ref ? p->weight - gb_refs_weight(r, ref) : p->weight; /* wraps, and back */
        if (GB_LIKELY(!aside.n && !gb_refs_over(r, !ref, weight))) {
            done = ref ? overwrite(r, ref, p, &aside) : insert(r, p, 0, &aside);
            if (GB_LIKELY(done != NO_ROOM)) break;
            gb_refs_leave(r);
            gb_refs_release(r, &aside);
            if (!gb_refs_opened(r) || grow(r)) return -1;
            continue;
        }
        if (ref) gb_index_use(&r->index, ref); /* it is not to be its own victim */
        if (!aside.n && !ref && r->max_entries && !r->max_weight) { /* the common way: one for one */
            done = exchange_victim(r, p, &aside);
            foresee(r);
            if (GB_UNLIKELY(done == NO_ROOM)) done = grow(r); /* bounded: it says so */
            break;
        }
        gb_refs_leave(r);
        gb_refs_release(r, &aside);
        if (!gb_refs_opened(r)) return -1;
        if (r->max_weight && p->weight > r->max_weight) return too_heavy(r, p); /* a destructor lowered it */
        (void)make_room(r, p->now, !ref, weight);
        if (!gb_refs_opened(r) || stubborn(r, &patience)) return -1;
    }
    gb_refs_leave(r);
    gb_refs_release(r, &aside);
    return done;
}

int gb_put_retime(struct gb_refs *r, gb_ref ref, const struct gb_life *life) {
    return retime(r, ref, life) == NO_ROOM ? grow(r) ? -1 : 0 : 1;
}
