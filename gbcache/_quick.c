/* _quick.c - the fast half of ObjectStore. */
#include "_bulk.h"
#include "_once.h"

static struct gb_refs *refs_of(PyObject *self) { return &((gb_quick_store *)self)->refs; }

/* The hash, and the custom clock's time if there is one: both may run anything. */
static inline bool prepare(struct gb_refs *r, PyObject *key, uint64_t *hash, uint64_t *now) {
    *now = 0;
    if (GB_UNLIKELY(gb_refs_hash(r, key, hash))) return false;
    if (GB_UNLIKELY(r->clock.asks != NULL) && !gb_clock_ask(&r->clock, now)) return false;
    return GB_LIKELY(r->open) || gb_refs_opened(r);
}

/* Found past its deadline; it stays while it may be served stale. */
static void expired(struct gb_refs *r, gb_ref ref, uint64_t now, enum gb_quick_how how) {
    struct gb_refs_aside aside;
    if (how == GB_QUICK_PEEK || how == GB_QUICK_KEPT) return;
    r->counters.misses_expired += how != GB_QUICK_TOUCH;
    if (how != GB_QUICK_TAKE && !gb_refs_is_over(r, ref, now)) return;
    gb_refs_begin(&aside);
    gb_refs_remove(r, ref, GB_CAUSE_EXPIRE, &aside);
    gb_refs_release(r, &aside);
}

/* What get_or_set answers while another loads. */
static PyObject *read_stale(struct gb_refs *r, gb_ref ref, bool serve) {
    PyObject *pair[2];
    r->counters.stale_hits += serve;
    if (serve) gb_index_use(&r->index, ref); /* its deadline does not slide */
    gb_refs_leave(r);
    return Py_NewRef(gb_refs_pair(r->index.base, ref, pair)[1]);
}

static PyObject *take(struct gb_refs *r, gb_ref ref, PyObject *value) {
    struct gb_refs_aside aside;
    gb_refs_begin(&aside);
    gb_refs_remove(r, ref, GB_CAUSE_DELETE, &aside);
    gb_refs_leave(r);
    gb_refs_release(r, &aside);
    return value;
}

static bool same_int(PyObject *a, PyObject *b) {
    return PyLong_CheckExact(a) && PyLong_CheckExact(b) &&
           PyObject_RichCompareBool(a, b, Py_EQ) > 0; /* runs nothing */
}

/* Prepared. */
static inline PyObject *read_key(struct gb_refs *r, PyObject *key, uint64_t hash, uint64_t now,
                                 enum gb_quick_how how, bool *failed) {
    gb_ref ref;
    gb_refs_enter(r);
    int found = gb_refs_find(r, key, hash, &ref);
    *failed = found < 0;
    if (found <= 0) {
        r->counters.misses_absent += (how == GB_QUICK_READ || how == GB_QUICK_TAKE) && !found;
        return NULL;
    }
    if (GB_UNLIKELY(gb_clock_due(&r->clock, &r->index, ref, &now))) {
        bool kept = how == GB_QUICK_STALE || how == GB_QUICK_KEPT;
        if (kept && !gb_refs_is_over(r, ref, now)) return read_stale(r, ref, how == GB_QUICK_STALE);
        expired(r, ref, now, how);
        return NULL;
    }
    PyObject *pair[2], *value = Py_NewRef(gb_refs_pair(r->index.base, ref, pair)[1]);
    if (how == GB_QUICK_PEEK || how == GB_QUICK_KEPT) return value;
    r->counters.hits++;
    if (how == GB_QUICK_TAKE) return take(r, ref, value);
    gb_refs_use(r, ref, now);
    gb_refs_leave(r);
    return value;
}

PyObject *gb_quick_read_in(struct gb_refs *r, PyObject *key, enum gb_quick_how how) {
    uint64_t hash, now;
    bool failed;
    if (how == GB_QUICK_TAKE && !gb_args_void(r->flights, key)) return NULL;
    if (GB_UNLIKELY(!prepare(r, key, &hash, &now))) return NULL;
    return read_key(r, gb_once_inner(key), hash, now, how, &failed);
}

PyObject *gb_quick_read_hashed(struct gb_refs *r, PyObject *key, uint64_t hash) {
    GB_ALONE(gb_quick_self(r));
    uint64_t now = 0;
    bool failed;
    if (GB_UNLIKELY(r->clock.asks != NULL) && !gb_clock_ask(&r->clock, &now)) return NULL;
    if (GB_UNLIKELY(!r->open) && !gb_refs_opened(r)) return NULL;
    return read_key(r, key, hash, now, GB_QUICK_READ, &failed);
}

PyObject *gb_quick_hit(struct gb_refs *r, PyObject *key, uint64_t hash) {
    GB_ALONE(gb_quick_self(r));
    struct gb_probe p;
    PyObject *pair[2];
    uint64_t now = 0;
    if (GB_UNLIKELY(!r->open || r->clock.asks)) return NULL;
    gb_refs_enter(r);
    gb_probe_begin(&r->index.table, &p, hash);
    gb_ref ref = gb_probe_next(&r->index.table, &p);
    if (!ref) return NULL;
    PyObject *held = gb_refs_key(r->index.base, ref);
    if (held != key && !gb_refs_is(r, ref, key, hash) && !same_int(held, key)) return NULL;
    if (gb_clock_due(&r->clock, &r->index, ref, &now)) return NULL;
    r->counters.hits++;
    gb_refs_use(r, ref, now);
    return Py_NewRef(gb_refs_pair(r->index.base, ref, pair)[1]);
}

PyObject *gb_quick_item(PyObject *self, PyObject *key) {
    PyObject *value = gb_quick_read(refs_of(self), key, GB_QUICK_READ);
    if (GB_LIKELY(value != NULL) || PyErr_Occurred()) return value;
    PyObject *missing = PyObject_GetAttrString((PyObject *)Py_TYPE(self), "__missing__");
    if (missing) {
        value = PyObject_CallFunctionObjArgs(missing, self, key, NULL);
        Py_DECREF(missing);
    } else if (PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        gb_args_key_error(key);
    }
    return value;
}

/* After a write with a deadline: the first one calls the housekeeper. */
static int timed(struct gb_refs *r, uint64_t due) {
    if (GB_LIKELY(!r->keep || !due)) return 0;
    r->keep = false;
    PyObject *none = PyObject_CallOneArg(gb_refs_names.keep, gb_quick_self(r));
    Py_XDECREF(none);
    if (!none) r->keep = true; /* the next write asks again */
    return none ? 0 : -1;
}

/* What the cache's weigh says of a pair. */
static bool weigh(const struct gb_refs *r, PyObject *key, PyObject *value, uint64_t *weight) {
    *weight = 0;
    if (GB_LIKELY(!r->weigh)) return true;
    PyObject *said = PyObject_CallFunctionObjArgs(r->weigh, key, value, NULL);
    if (!said) return false;
    bool whole = PyLong_CheckExact(said);
    long long n = whole ? PyLong_AsLongLong(said) : -1;
    if (n < 0) {
        PyErr_Clear();
        PyErr_Format(whole ? PyExc_ValueError : PyExc_TypeError,
                     "weigh returned %R: not an int from 0 to 2**63 - 1", said);
    }
    Py_DECREF(said);
    *weight = (uint64_t)n;
    return n >= 0;
}

static int write_key(struct gb_refs *r, PyObject *key, PyObject *value, PyObject *ttl, bool add,
                     const char *mark, uint32_t stale) {
    struct gb_put p = {.key = mark ? gb_once_inner(key) : key, .value = value, .add = add,
                       .mark = mark};
    uint64_t ms = r->clock.ttl;
    if (ttl && !gb_clock_ttl(ttl, &ms)) return -1;
    if (!weigh(r, p.key, value, &p.weight) || !prepare(r, key, &p.hash, &p.now)) return -1;
    if (!p.now) { /* no clock need be read where nothing can be due */
        bool exact = ms || r->clock.idle || (add && r->index.wheel.root->count);
        p.now = exact ? gb_clock_exact(&r->clock)
                      : r->index.wheel.root->count ? gb_clock_coarse(&r->clock) : 1u;
    }
    if (ms || r->clock.idle) {
        p.life = gb_clock_life(&r->clock, p.now, ms);
        p.life.stale = stale;
    }
    int done = gb_put(r, &p);
    return done > 0 && timed(r, p.life.due) ? -1 : done;
}

int gb_quick_write(struct gb_refs *r, PyObject *key, PyObject *value, PyObject *ttl, bool add) {
    GB_ALONE(gb_quick_self(r));
    return !gb_args_void(r->flights, key) ? -1 : write_key(r, key, value, ttl, add, NULL, 0);
}

int gb_quick_land(struct gb_refs *r, PyObject *key, PyObject *value, PyObject *ttl,
                  PyObject *mark, uint32_t stale, bool over) {
    GB_ALONE(gb_quick_self(r));
    const char *byte = gb_args_mark(mark);
    return byte ? write_key(r, key, value, ttl, !over, byte, stale) : -1;
}

int gb_quick_remove(struct gb_refs *r, PyObject *key, enum gb_cause cause) {
    GB_ALONE(gb_quick_self(r));
    struct gb_refs_aside aside;
    uint64_t hash, now;
    gb_ref ref;
    if (!gb_args_void(r->flights, key) || !prepare(r, key, &hash, &now)) return -1;
    int found = gb_refs_find(r, key, hash, &ref);
    if (found <= 0) return found;
    bool due = gb_clock_due(&r->clock, &r->index, ref, &now);
    gb_refs_begin(&aside);
    gb_refs_remove(r, ref, due ? GB_CAUSE_EXPIRE : cause, &aside);
    gb_refs_release(r, &aside);
    return !due;
}

int gb_quick_look(struct gb_refs *r, PyObject *key, struct gb_quick_seen *seen) {
    GB_ALONE(gb_quick_self(r));
    uint64_t hash;
    gb_ref ref;
    memset(seen, 0, sizeof *seen);
    if (!prepare(r, key, &hash, &seen->now)) return -1;
    int found = gb_refs_find(r, key, hash, &ref);
    if (found <= 0) return found;
    seen->due = gb_refs_due(r, ref);
    seen->weight = gb_refs_weight(r, ref);
    seen->idle = gb_refs_idle(r, ref);
    if (seen->due && !seen->now) seen->now = gb_clock_exact(&r->clock);
    return !(seen->due && seen->due <= seen->now);
}

static int touch(struct gb_refs *r, PyObject *key, PyObject *ttl) {
    struct gb_refs_aside aside;
    uint64_t hash, now, ms = r->clock.ttl;
    gb_ref ref;
    if (ttl && !gb_clock_ttl(ttl, &ms)) return -1;
    if (!prepare(r, key, &hash, &now)) return -1;
    int found = gb_refs_find(r, key, hash, &ref);
    if (found <= 0) return found;
    if (!now) now = gb_clock_exact(&r->clock);
    if (gb_clock_due(&r->clock, &r->index, ref, &now)) {
        expired(r, ref, now, GB_QUICK_TOUCH);
        return 0;
    }
    struct gb_life life = gb_clock_life(&r->clock, now, ms);
    uint32_t word = gb_entry_at(r->index.base, ref)->word;
    life.stale = life.due ? gb_stale_at(r->index.base, ref, word) : 0u;
    PyObject *held = gb_refs_key(r->index.base, ref);
    int done = gb_put_retime(r, ref, &life);
    if (done <= 0) return done < 0 ? -1 : touch(r, key, ttl);
    gb_refs_begin(&aside);
    gb_refs_note(r, GB_EVENT_TOUCH, held, NULL, NULL, &aside);
    gb_refs_release(r, &aside);
    return timed(r, life.due) ? -1 : 1;
}

int gb_quick_touch(struct gb_refs *r, PyObject *key, PyObject *ttl) {
    GB_ALONE(gb_quick_self(r));
    return touch(r, key, ttl);
}

PyObject *gb_quick_incr(struct gb_refs *r, PyObject *key, PyObject *delta, PyObject *initial) {
    GB_ALONE(gb_quick_self(r));
    struct gb_put p = {.key = key, .add = true};
    gb_ref ref;
    if (!gb_args_void(r->flights, key)) return NULL;
    for (uint32_t i = 0; i < 1000u; i++) {
        if (!prepare(r, key, &p.hash, &p.now)) return NULL;
        if (gb_refs_find(r, key, p.hash, &ref) < 0) return NULL;
        PyObject *pair[2], *held = initial;
        if (!p.now) p.now = gb_clock_exact(&r->clock);
        bool fresh = !ref || gb_clock_due(&r->clock, &r->index, ref, &p.now);
        if (!fresh) held = gb_refs_pair(r->index.base, ref, pair)[1];
        if (!PyLong_CheckExact(held)) {
            PyErr_Format(PyExc_TypeError, "incr: the value of %R is not an int", key);
            return NULL;
        }
        PyObject *sum = PyNumber_Add(held, delta); /* exact ints: runs nothing */
        if (!sum) return NULL;
        if (!fresh && !r->weigh) {
            gb_refs_use(r, ref, p.now);
            gb_put_swap(r, ref, sum);
            return sum;
        }
        p.value = sum;
        p.over = fresh ? NULL : Py_NewRef(held); /* weigh may do anything to it */
        bool fine = weigh(r, key, sum, &p.weight) && gb_refs_opened(r);
        if (fine) p.life = gb_clock_life(&r->clock, p.now, r->clock.ttl);
        int done = fine ? gb_put(r, &p) : -1;
        if (done > 0 && fresh && timed(r, p.life.due)) done = -1;
        Py_XDECREF(p.over);
        if (done > 0) return sum;
        Py_DECREF(sum);
        if (done < 0) return NULL; /* 0: another was first */
    }
    PyErr_Format(PyExc_RuntimeError, "incr: %R is neither absent nor there: its __eq__ does not say the same "
                 "twice", key);
    return NULL;
}

PyObject *gb_quick_oldest(struct gb_refs *r) {
    GB_ALONE(gb_quick_self(r));
    uint64_t now = 0;
    PyObject *both = PyTuple_New(2); /* now: afterwards nothing may fail, or run the collector */
    if (!both) return NULL;
    for (bool due = true; due;) {
        struct gb_refs_aside aside;
        PyObject *pair[2];
        gb_ref ref = 0;
        bool fine = (!r->clock.asks || gb_clock_ask(&r->clock, &now)) && gb_refs_opened(r);
        if (fine) ref = gb_index_victim(&r->index);
        if (fine && !ref) PyErr_SetString(PyExc_KeyError, "popitem(): the cache is empty");
        if (!ref) {
            Py_DECREF(both);
            return NULL;
        }
        due = gb_clock_due(&r->clock, &r->index, ref, &now);
        gb_refs_pair(r->index.base, ref, pair);
        for (int i = 0; !due && i < 2; i++) PyTuple_SET_ITEM(both, i, Py_NewRef(pair[i]));
        gb_refs_begin(&aside);
        gb_refs_remove(r, ref, due ? GB_CAUSE_EXPIRE : GB_CAUSE_DELETE, &aside);
        gb_refs_release(r, &aside);
    }
    PyObject *key = PyTuple_GET_ITEM(both, 0); /* it was there: a flight is a later one's */
    if (!gb_args_void(r->flights, key)) PyErr_WriteUnraisable(key);
    return both;
}

/* ---- methods ---- */
static PyObject *quick_get(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    PyObject *a[2] = {NULL, NULL};
    if (!gb_args_get(args, n, kwnames, a)) return NULL;
    GB_ALONE(self);
    struct gb_refs *r = refs_of(self);
    uint64_t hash, now;
    bool failed; /* so that a miss need not ask whether there is an exception */
    if (GB_UNLIKELY(!prepare(r, a[0], &hash, &now))) return NULL;
    PyObject *value = read_key(r, a[0], hash, now, GB_QUICK_READ, &failed);
    if (value || GB_UNLIKELY(failed)) return value;
    return Py_NewRef(a[1] ? a[1] : Py_None);
}

static PyObject *write_args(PyObject *self, const char *verb, PyObject *const *args, Py_ssize_t n,
                            PyObject *kwnames, bool add) {
    static const char *const names[] = {"key", "value", "ttl"};
    PyObject *a[3] = {NULL, NULL, NULL};
    if (GB_LIKELY(!kwnames && n == 2)) {
        a[0] = args[0];
        a[1] = args[1];
    } else if (!gb_args_take(verb, names, 2, 3, args, n, kwnames, a)) {
        return NULL;
    }
    int done = gb_quick_write(refs_of(self), a[0], a[1], a[2], add);
    if (done < 0) return NULL;
    return add ? PyBool_FromLong(done) : Py_NewRef(Py_None);
}
static PyObject *quick_set(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    return write_args(self, "set", args, n, kwnames, false);
}
static PyObject *quick_add(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    return write_args(self, "add", args, n, kwnames, true);
}

static PyObject *quick_set_many(PyObject *self, PyObject *const *args, Py_ssize_t n,
                                PyObject *kwnames) {
    static const char *const names[] = {"items", "ttl"};
    PyObject *a[2] = {NULL, NULL};
    if (!gb_args_take("set_many", names, 1, 2, args, n, kwnames, a)) return NULL;
    PyObject *pairs = gb_args_pairs(a[0]);
    bool fine = pairs != NULL;
    for (Py_ssize_t i = 0; fine && i < PyList_GET_SIZE(pairs); i++) {
        PyObject *pair = gb_args_pair(pairs, i);
        fine = pair && gb_quick_write(refs_of(self), PyTuple_GET_ITEM(pair, 0),
                                      PyTuple_GET_ITEM(pair, 1), a[1], false) >= 0;
        Py_XDECREF(pair);
    }
    Py_XDECREF(pairs);
    return fine ? Py_NewRef(Py_None) : NULL;
}

static PyObject *quick_delete_many(PyObject *self, PyObject *keys) {
    PyObject *all = PySequence_Tuple(keys);
    Py_ssize_t removed = 0;
    int one = 0;
    if (!all) return NULL;
    for (Py_ssize_t i = 0; one >= 0 && i < PyTuple_GET_SIZE(all); i++) {
        one = gb_quick_remove(refs_of(self), PyTuple_GET_ITEM(all, i), GB_CAUSE_DELETE);
        removed += one > 0;
    }
    Py_DECREF(all);
    return one < 0 ? NULL : PyLong_FromSsize_t(removed);
}

/* ---- the type ---- */
static traverseproc base_traverse;
static inquiry base_clear;

static int quick_traverse(PyObject *self, visitproc visit, void *arg) {
    const struct gb_refs *r = refs_of(self);
    int stop = r->open ? gb_bulk_traverse(&r->index.arena, visit, arg) : 0;
    if (!stop && r->queue) stop = gb_queue_traverse(r->queue, visit, arg);
    return stop || !base_traverse ? stop : base_traverse(self, visit, arg);
}

/* Unreachable but for a cycle: let go of everything. The memory stays until dealloc. */
static int quick_clear(PyObject *self) {
    struct gb_refs *r = refs_of(self);
    if (r->open) {
        r->open = false;
        r->kinds = 0;
        gb_bulk_drain(&r->index.arena);
    }
    if (r->queue) {
        r->queue->cursors++; /* or the last one's end, held by a record, would free it meanwhile */
        gb_queue_empty(r->queue);
        r->queue->cursors--;
        gb_refs_hush(r);
    }
    r->weigh = r->flights = r->clock.asks = NULL; /* borrowed from what goes now */
    return base_clear ? base_clear(self) : 0;
}

#define FAST(name, text) GB_ARGS_FAST(name, quick_##name, text)
static PyMethodDef methods[] = {
    FAST(get, "get(key, default=None)\n--\n\n"
              "The value of `key`, or `default`. Counts as use. Cost: one look-up."),
    FAST(set, "set(key, value, ttl=<the cache's own>)\n--\n\n"
              "Write a value; `ttl` in seconds, a timedelta, or None for never.\n\n"
              "Raises BudgetError if it weighs more than the cache may (the old value stays),\n"
              "TypeError for an unhashable key, ValueError for a ttl that is not above 0."),
    FAST(add, "add(key, value, ttl=<the cache's own>)\n--\n\n"
              "Write a value only if `key` is absent; True if it was written. Atomic."),
    FAST(set_many, "set_many(items, ttl=<the cache's own>)\n--\n\n"
                   "Write a mapping, or pairs, one after the other."),
    {"get_many", gb_bulk_get, METH_O,
     "get_many(keys)\n--\n\nA dict of those keys that are there. Cache misses of sixteen overlap."},
    {"delete_many", quick_delete_many, METH_O,
     "delete_many(keys)\n--\n\nRemove keys; how many were there."},
    {NULL, NULL, 0, NULL},
};

int gb_quick_install(PyTypeObject *type, size_t basic_size) {
    if (basic_size < sizeof(gb_quick_store) || (size_t)type->tp_basicsize < basic_size) {
        PyErr_SetString(PyExc_SystemError, "ObjectStore does not begin with its refs");
        return -1;
    }
    base_traverse = type->tp_traverse;
    base_clear = type->tp_clear;
    type->tp_traverse = quick_traverse;
    type->tp_clear = quick_clear;
    return gb_args_install(type, methods);
}
