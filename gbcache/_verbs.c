/* _verbs.c - look, touch, incr, oldest. */
#include "_verbs.h"
#include "_args.h"

int gb_verbs_look(struct gb_door *d, PyObject *key, struct gb_verbs_seen *seen) {
    const struct gb_store *s = &d->store;
    struct gb_box b;
    struct gb_key k;
    gb_ref ref = 0;
    memset(seen, 0, sizeof *seen);
    if (!gb_box_key(&b, key)) return -1;
    bool sane = gb_box_core_key(d, &b, &k), in = false;
    if (gb_clock_now(&d->clock, true, &seen->now) && (in = gb_door_enter(d))) {
        ref = sane ? gb_store_find(s, &k) : 0;
        if (ref) {
            uint32_t word = gb_entry_at(s->base, ref)->word;
            seen->due = gb_store_due(s, ref);
            seen->key_bytes = gb_key_len(s->base, ref, word);
            seen->value_bytes = gb_value_len(s->base, ref, word);
            if (word & GB_WORD_EXTRA) seen->idle = gb_extra_at(s->base, ref, word)->idle;
        }
        gb_door_leave(d, GB_OP_GET);
    }
    gb_box_drop(&b);
    if (!in) return -1;
    if (ref && !(seen->due && seen->due <= seen->now)) return 0;
    gb_args_key_error(key);
    return -1;
}

/* What to do with an error of one try: 1 try again, 0 done with it, -1 an exception is set. */
static int again(struct gb_door *d, enum gb_err err, const struct gb_put *p) {
    if (err == GB_AGAIN) return 1;
    if (err == GB_BUSY) return gb_door_await(d) ? 1 : -1;
    if (err == GB_OK || err == GB_GONE) return 0;
    gb_door_raise(d, err, p);
    return -1;
}

static int touch_boxed(struct gb_door *d, struct gb_put *p, uint64_t now) {
    enum gb_err err;
    int more;
    do {
        if (!gb_door_enter(d)) return -1;
        gb_ref ref = gb_store_live(&d->store, &p->key, now);
        if (ref && gb_store_is_past(&d->store, ref, now)) ref = 0;
        err = ref ? gb_store_retime(&d->store, ref, p->due, p->hard, p->idle, now) : GB_GONE;
        if (err == GB_FULL && d->store.pins) err = GB_BUSY;
        gb_door_leave(d, GB_OP_SET);
        more = again(d, err, p);
    } while (more > 0);
    return more < 0 ? -1 : err == GB_OK;
}

int gb_verbs_touch(struct gb_door *d, PyObject *key, PyObject *ttl) {
    struct gb_put p = {.add = false};
    struct gb_box b;
    uint64_t ms = d->clock.ttl, now = 0;
    int done = -1;
    if (ttl && !gb_clock_ttl(ttl, &ms)) return -1;
    if (!gb_box_key(&b, key)) return -1;
    bool sane = gb_box_core_key(d, &b, &p.key);
    if (gb_clock_now(&d->clock, true, &now)) {
        if (!sane) p.key.len = 0, p.key.type = 3u; /* nobody's key */
        gb_hot_times(d, &p, now, ms);
        done = touch_boxed(d, &p, now);
    }
    gb_box_drop(&b);
    gb_door_inform(d);
    return done == 1 && p.due && gb_hot_timed(d) ? -1 : done;
}

enum verdict { DONE, NO_INT, OUT_OF_RANGE };

/* One try under the lock; *err is the put's where the verdict is DONE. */
static enum verdict incr_once(struct gb_door *d, struct gb_put *p, uint64_t now, long long delta,
                              long long initial, int64_t *total, enum gb_err *err) {
    struct gb_store *s = &d->store;
    gb_ref ref = gb_store_live(s, &p->key, now);
    long long held = initial, sum;
    *err = GB_OK;
    p->due = p->hard = p->idle = p->stale = 0;
    if (ref && gb_store_is_past(s, ref, now)) ref = 0;
    if (ref) { /* keeps its deadline */
        uint32_t word = gb_entry_at(s->base, ref)->word;
        if (gb_word_vtype(word) != GB_BOX_INT) return NO_INT;
        memcpy(&held, gb_store_value_at(s, ref, word), sizeof held);
        p->due = gb_store_due(s, ref);
        if (word & GB_WORD_EXTRA) {
            const struct gb_extra *x = gb_extra_at(s->base, ref, word);
            p->hard = ((uint64_t)x->hard_high << 32) | x->hard_low;
            p->idle = x->idle;
            p->stale = x->stale;
            if (p->idle) p->due = now + p->idle; /* a use */
            if (p->idle && p->hard && p->hard < p->due) p->due = p->hard;
        }
    } else {
        gb_hot_times(d, p, now, d->clock.ttl);
    }
    if (__builtin_saddll_overflow(held, delta, &sum)) return OUT_OF_RANGE;
    *total = sum;
    p->value = (const uint8_t *)total;
    p->value_len = 8;
    p->value_type = GB_BOX_INT;
    *err = gb_store_put(s, p, now);
    if (*err == GB_FULL && s->pins) *err = GB_BUSY;
    return DONE;
}

int gb_verbs_incr(struct gb_door *d, PyObject *key, long long delta, long long initial,
                  long long *total) {
    struct gb_put p = {.add = false};
    struct gb_box b;
    uint64_t now = 0;
    int64_t sum = 0;
    enum gb_err err = GB_OK;
    enum verdict verdict = DONE;
    int more = -1;
    if (!gb_hot_void(d, key) || !gb_box_key(&b, key)) return -1;
    if (!gb_box_core_key(d, &b, &p.key)) {
        gb_door_raise(d, GB_LONGKEY, &p);
    } else if (gb_clock_now(&d->clock, true, &now)) {
        do {
            more = -1;
            if (!gb_door_enter(d)) break;
            verdict = incr_once(d, &p, now, delta, initial, &sum, &err);
            gb_door_leave(d, GB_OP_SET);
            more = again(d, err, &p);
        } while (more > 0);
    }
    gb_box_drop(&b);
    gb_door_inform(d);
    *total = sum;
    if (more) return -1;
    if (verdict == NO_INT) PyErr_Format(PyExc_TypeError, "incr: the value of %R is not an int", key);
    if (verdict == OUT_OF_RANGE)
        PyErr_Format(PyExc_OverflowError, "incr: %R by %lld leaves the 64-bit range", key, delta);
    if (verdict != DONE) return -1;
    return p.due ? gb_hot_timed(d) : 0;
}

PyObject *gb_verbs_oldest(struct gb_door *d) {
    const struct gb_store *s = &d->store;
    PyObject *raw = NULL;
    uint32_t type = 0;
    uint64_t now = 0;
    if (!gb_clock_now(&d->clock, true, &now) || !gb_door_enter(d)) return NULL;
    gb_ref ref = gb_index_victim(&s->index);
    while (ref && gb_store_is_past(s, ref, now)) { /* the dead are nobody's to take */
        gb_room_remove(&d->store, ref, GB_CAUSE_EXPIRE);
        if (gb_head_steps(s) > GB_STEPS_MAX / 2u) {
            gb_door_leave(d, GB_OP_REMOVE);
            gb_door_inform(d);
            if (!gb_door_enter(d)) return NULL;
        }
        ref = gb_index_victim(&s->index);
    }
    if (ref) {
        uint32_t word = gb_entry_at(s->base, ref)->word;
        type = gb_word_ktype(word);
        raw = PyBytes_FromStringAndSize((const char *)gb_store_key_at(s, ref, word),
                                        (Py_ssize_t)gb_key_len(s->base, ref, word));
    }
    gb_door_leave(d, GB_OP_GET);
    if (raw || !ref) gb_door_inform(d); /* of what was due */
    if (ref) return gb_box_key_object(type, raw);
    PyErr_SetString(PyExc_KeyError, "popitem(): the cache is empty");
    return NULL;
}
