/* _hot.c - the fast half of PackedStore. */
#include "_args.h"
#include "_many.h"

/* Entered. The live entry of a key, or 0; counts a miss unless the caller only looks. What is past its
 * deadline stays while it may be served stale. */
static gb_ref look(struct gb_door *d, const struct gb_key *k, uint64_t *now, enum gb_hot_how how) {
    struct gb_store *s = &d->store;
    gb_ref ref = gb_store_find(s, k);
    bool counts = how == GB_HOT_READ || how == GB_HOT_TAKE;
    if (GB_UNLIKELY(!ref)) {
        s->head->counters.misses_absent += counts;
        return 0;
    }
    if (GB_LIKELY(!gb_clock_due(&d->clock, &d->store.index, ref, now))) return ref;
    bool over = gb_store_is_due(s, ref, *now);
    s->head->counters.misses_expired += counts;
    if ((how == GB_HOT_STALE || how == GB_HOT_KEPT) && !over) return ref;
    if (how == GB_HOT_TAKE || (counts && over)) gb_room_remove(s, ref, GB_CAUSE_EXPIRE);
    return 0;
}

/* Entered; leaves. NULL with *busy: too many long reads at once, try again. */
static PyObject *read_long(struct gb_door *d, gb_ref ref, uint32_t word, uint64_t now,
                           enum gb_hot_how how, bool *busy) {
    struct gb_chain_read r;
    uint8_t *to = NULL;
    *busy = gb_chain_open(&d->store, &r, ref) == GB_BUSY;
    PyObject *raw = *busy ? NULL : gb_box_raw_long(gb_word_vtype(word), r.left, &to);
    if (raw) {
        gb_hot_after(d, ref, now, how);
        if (gb_door_far(d, r.left)) gb_door_stay(d);
    } else if (!*busy) {
        gb_chain_close(&d->store, &r);
    }
    gb_door_leave(d, GB_OP_GET);
    if (raw && !gb_door_copy(d, &r, to)) Py_CLEAR(raw);
    return raw;
}

static PyObject *read_key(struct gb_door *d, const struct gb_key *k, uint64_t now,
                          enum gb_hot_how how) {
    struct gb_store *s = &d->store;
    for (bool busy = false;; busy = false) {
        if (GB_UNLIKELY(!gb_door_enter(d))) return NULL;
        gb_ref ref = look(d, k, &now, how);
        if (!ref) {
            gb_door_leave(d, GB_OP_GET);
            return NULL;
        }
        gb_hot_prefetch(s, ref);
        uint32_t word = gb_entry_at(s->base, ref)->word, type = gb_word_vtype(word);
        PyObject *raw;
        if (GB_LIKELY(!gb_store_is_chain(s, ref, word))) {
            raw = gb_box_raw(type, gb_store_value_at(s, ref, word),
                             gb_value_len(s->base, ref, word));
            if (GB_LIKELY(raw != NULL)) gb_hot_after(d, ref, now, how);
            gb_door_leave(d, GB_OP_GET);
        } else {
            raw = read_long(d, ref, word, now, how, &busy);
            if (busy && gb_door_yield(d)) continue;
        }
        return gb_box_finish(d, type, raw);
    }
}

PyObject *gb_hot_read(struct gb_door *d, PyObject *key, enum gb_hot_how how) {
    struct gb_box b;
    struct gb_key k;
    uint64_t now = 0;
    PyObject *value = NULL;
    if (how == GB_HOT_TAKE && !gb_hot_void(d, key)) return NULL;
    if (GB_UNLIKELY(!gb_box_key(&b, key))) return NULL;
    if (GB_LIKELY(!d->clock.asks) || gb_clock_ask(&d->clock, &now)) {
        if (GB_UNLIKELY(!gb_box_core_key(d, &b, &k))) k.len = 0, k.type = 3u; /* nobody's key */
        value = read_key(d, &k, now, how);
    }
    gb_box_drop(&b);
    gb_door_inform(d);
    return value;
}

PyObject *gb_hot_item(PyObject *self, PyObject *key) {
    PyObject *value = gb_hot_read(&((gb_hot_store *)self)->door, key, GB_HOT_READ);
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

void gb_hot_times(struct gb_door *d, struct gb_put *p, uint64_t now, uint64_t ttl) {
    struct gb_life life = gb_clock_life(&d->clock, now, ttl);
    p->due = life.due;
    p->hard = life.hard;
    p->idle = life.idle;
}

int gb_hot_timed_first(struct gb_door *d) {
    GB_STORE(d->keep, false);
    PyObject *none = PyObject_CallOneArg(gb_door_names.keep, gb_door_owner(d));
    Py_XDECREF(none);
    if (!none) GB_STORE(d->keep, true); /* the next write asks again */
    return none ? 0 : -1;
}

/* The clock a write needs: none, where nothing can be due. */
static bool time_of_write(struct gb_door *d, bool exact, uint64_t *now) {
    *now = 1;
    if (!exact && !gb_door_locks(d) && d->open && !d->store.head->wheel.count && !d->clock.asks) return true;
    return gb_clock_now(&d->clock, exact, now);
}

/* A write's first miss, begun before the value is looked at. Only while the GIL is the lock: the way
 * to the bucket is read here. */
GB_FETCHES void foresee_bucket(struct gb_door *d, uint64_t hash) {
    const struct gb_table *t = &d->store.index.table;
    if (GB_LIKELY(!gb_door_locks(d) && d->open))
        __builtin_prefetch(gb_table_bucket(t, gb_table_bucket_of(t, (uint32_t)hash)), 1);
}

static int write_key(struct gb_door *d, PyObject *key, PyObject *value, PyObject *ttl, bool add,
                     const char *mark, uint32_t stale) {
    struct gb_box kb, vb;
    struct gb_put p = {.add = add, .stale = stale};
    uint64_t ms = d->clock.ttl, now;
    enum gb_err err = GB_OK;
    bool done = false;
    if (ttl && !gb_clock_ttl(ttl, &ms)) return -1;
    if (!gb_box_key(&kb, key)) return -1;
    bool sane = gb_box_core_key(d, &kb, &p.key);
    foresee_bucket(d, p.key.hash);
    if (!gb_box_value(d, &vb, value)) {
        gb_box_drop(&kb);
        return -1;
    }
    p.value = vb.bytes;
    p.value_len = vb.len > UINT32_MAX ? UINT32_MAX : (uint32_t)vb.len;
    p.value_type = vb.type;
    if (GB_UNLIKELY(!sane)) {
        gb_door_raise(d, GB_LONGKEY, &p);
    } else if (time_of_write(d, ms || d->clock.idle || add, &now)) {
        gb_hot_times(d, &p, now, ms);
        done = gb_door_put(d, &p, now, mark, &err);
    }
    gb_box_drop(&vb);
    gb_box_drop(&kb);
    gb_door_inform(d);
    if (!done || (p.due && gb_hot_timed(d))) return -1;
    return err == GB_OK;
}

bool gb_hot_void_slow(struct gb_door *d, PyObject *key) {
    PyObject *base = gb_box_base(key);
    if (!base) return false;
    GB_ALONE(gb_door_owner(d));
    bool done = gb_args_void(d->flights, base);
    Py_DECREF(base);
    return done;
}

int gb_hot_write(struct gb_door *d, PyObject *key, PyObject *value, PyObject *ttl, bool add) {
    return !gb_hot_void(d, key) ? -1 : write_key(d, key, value, ttl, add, NULL, 0);
}

int gb_hot_land(struct gb_door *d, PyObject *key, PyObject *value, PyObject *ttl, PyObject *mark,
                uint32_t stale, bool over) {
    const char *byte = gb_args_mark(mark);
    return byte ? write_key(d, key, value, ttl, !over, byte, stale) : -1;
}

int gb_hot_remove(struct gb_door *d, PyObject *key, enum gb_cause cause) {
    struct gb_box b;
    struct gb_key k;
    uint64_t now = 0;
    gb_ref ref = 0;
    if (!gb_hot_void(d, key) || !gb_box_key(&b, key)) return -1;
    bool sane = gb_box_core_key(d, &b, &k), in = false;
    if (gb_clock_now(&d->clock, true, &now) && (in = gb_door_enter(d))) {
        ref = sane ? gb_store_live(&d->store, &k, now) : 0;
        bool past = ref && gb_store_is_past(&d->store, ref, now); /* kept for get_or_set alone */
        if (ref) gb_room_remove(&d->store, ref, past ? GB_CAUSE_EXPIRE : cause);
        if (past) ref = 0;
        gb_door_leave(d, GB_OP_REMOVE);
    }
    gb_box_drop(&b);
    gb_door_inform(d);
    return !in ? -1 : ref != 0;
}

int gb_hot_has(struct gb_door *d, PyObject *key) {
    struct gb_box b;
    struct gb_key k;
    uint64_t now = 0;
    gb_ref ref = 0;
    if (!gb_box_key(&b, key)) return -1;
    bool sane = gb_box_core_key(d, &b, &k), in = false;
    if ((!d->clock.asks || gb_clock_ask(&d->clock, &now)) && (in = gb_door_enter(d))) {
        ref = sane ? look(d, &k, &now, GB_HOT_PEEK) : 0;
        gb_door_leave(d, GB_OP_GET);
    }
    gb_box_drop(&b);
    return !in ? -1 : ref != 0;
}

static PyObject *hot_get(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    PyObject *a[2] = {NULL, NULL};
    if (!gb_args_get(args, n, kwnames, a)) return NULL;
    PyObject *value = gb_hot_read(&((gb_hot_store *)self)->door, a[0], GB_HOT_READ);
    if (value || PyErr_Occurred()) return value;
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
    int done = gb_hot_write(&((gb_hot_store *)self)->door, a[0], a[1], a[2], add);
    if (done < 0) return NULL;
    return add ? PyBool_FromLong(done) : Py_NewRef(Py_None);
}

static PyObject *hot_set(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    return write_args(self, "set", args, n, kwnames, false);
}
static PyObject *hot_add(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    return write_args(self, "add", args, n, kwnames, true);
}

static PyObject *hot_set_many(PyObject *self, PyObject *const *args, Py_ssize_t n,
                              PyObject *kwnames) {
    static const char *const names[] = {"items", "ttl"};
    PyObject *a[2] = {NULL, NULL};
    if (!gb_args_take("set_many", names, 1, 2, args, n, kwnames, a)) return NULL;
    PyObject *pairs = gb_args_pairs(a[0]);
    bool fine = pairs != NULL;
    for (Py_ssize_t i = 0; fine && i < PyList_GET_SIZE(pairs); i++) {
        PyObject *pair = gb_args_pair(pairs, i);
        fine = pair && gb_hot_write(&((gb_hot_store *)self)->door, PyTuple_GET_ITEM(pair, 0),
                                    PyTuple_GET_ITEM(pair, 1), a[1], false) >= 0;
        Py_XDECREF(pair);
    }
    Py_XDECREF(pairs);
    return fine ? Py_NewRef(Py_None) : NULL;
}

static PyObject *hot_delete_many(PyObject *self, PyObject *keys) {
    PyObject *all = PySequence_Tuple(keys);
    if (!all) return NULL;
    Py_ssize_t removed = 0;
    int one = 0;
    for (Py_ssize_t i = 0; one >= 0 && i < PyTuple_GET_SIZE(all); i++) {
        one = gb_hot_remove(&((gb_hot_store *)self)->door, PyTuple_GET_ITEM(all, i), GB_CAUSE_DELETE);
        removed += one > 0;
    }
    Py_DECREF(all);
    return one < 0 ? NULL : PyLong_FromSsize_t(removed);
}

#define FAST(name, text) GB_ARGS_FAST(name, hot_##name, text)
static PyMethodDef methods[] = {
    FAST(get, "get(key, default=None)\n--\n\n"
              "The value of `key`, or `default`. Counts as use. Cost: one look-up, one copy."),
    FAST(set, "set(key, value, ttl=<the cache's own>)\n--\n\n"
              "Write a value; `ttl` in seconds, a timedelta, or None for never.\n\n"
              "Raises BudgetError if it can never fit (the old value stays), TypeError for an\n"
              "unsupported key or value, ValueError for a ttl that is not above 0."),
    FAST(add, "add(key, value, ttl=<the cache's own>)\n--\n\n"
              "Write a value only if `key` is absent; True if it was written. Atomic."),
    FAST(set_many, "set_many(items, ttl=<the cache's own>)\n--\n\n"
                   "Write a mapping, or pairs, one after the other."),
    {"get_many", gb_many_get, METH_O,
     "get_many(keys)\n--\n\n"
     "A dict of those keys that are there. In stages with prefetch: several times faster than\n"
     "as many `get`s where the cache is larger than the processor's."},
    {"delete_many", hot_delete_many, METH_O,
     "delete_many(keys)\n--\n\nRemove keys; how many were there."},
    {NULL, NULL, 0, NULL},
};

int gb_hot_install(PyTypeObject *type, size_t basic_size) {
    if (basic_size < sizeof(gb_hot_store) || (size_t)type->tp_basicsize < basic_size) {
        PyErr_SetString(PyExc_SystemError, "PackedStore does not begin with its door");
        return -1;
    }
    return gb_args_install(type, methods);
}
