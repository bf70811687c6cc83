/* _queue.c - recording changes, and reading them as Events. */
#include "_queue.h"
#include "_alone.h"

#define YIELD 16u /* slices in which nothing passed, before other threads may run */

struct gb_queue *gb_queue_new(void) {
    struct gb_queue *q = PyMem_RawCalloc(1, sizeof *q);
    if (!q) PyErr_NoMemory();
    return q;
}

int gb_queue_open(struct gb_queue *q, uint64_t room) {
    if (q->all) return 0;
    if (!room) {
        PyErr_SetString(PyExc_ValueError, "room for 0 events is none");
        return -1;
    }
    if (room <= SIZE_MAX / sizeof *q->all) q->all = PyMem_RawCalloc((size_t)room, sizeof *q->all);
    if (!q->all) {
        PyErr_NoMemory();
        return -1;
    }
    q->room = room;
    return 0;
}

uint64_t gb_queue_bytes(const struct gb_queue *q) {
    return q->all ? sizeof *q + q->room * sizeof *q->all + q->bells.room * sizeof *q->bells.all : 0u;
}

static uint32_t kind_of(const struct gb_queue_record *e) { return (uint32_t)(e->when & 127u); }
/* Whether the collector has to see it. */
static bool seen(PyObject *o) { return o && PyType_IS_GC(Py_TYPE(o)); }
static PyObject *old_of(const struct gb_queue_record *e) {
    return gb_ring_wide(kind_of(e)) ? NULL : e->old;
}
static uint64_t slot_of(const struct gb_queue *q, uint64_t seq) {
    uint64_t back = q->last - seq + 1u;
    return q->next >= back ? q->next - back : q->next + q->room - back;
}

void gb_queue_push(struct gb_queue *q, uint32_t kind, uint64_t at, PyObject *key, PyObject *value,
                   PyObject *old, PyObject *gone[GB_QUEUE_GONE]) {
    struct gb_queue_record *e = &q->all[q->next];
    /* The key that goes eight records on: nobody may have touched it for long (35 ns a record, 14 so). */
    if (q->room - q->next > 8u) __builtin_prefetch(e[8].key, 1);
    if (++q->next == q->room) q->next = 0;
    if (q->kept < q->room) q->kept++;
    q->last++;
    gone[0] = e->key;
    gone[1] = e->value;
    gone[2] = old_of(e);
    e->key = Py_XNewRef(key);
    e->value = q->values ? Py_XNewRef(value) : NULL;
    e->old = q->values ? Py_XNewRef(old) : NULL;
    e->when = at << 8 | kind;
    if (seen(key) || seen(e->value) || seen(e->old)) e->when |= GB_QUEUE_SEEN;
}

void gb_queue_empty(struct gb_queue *q) {
    uint64_t kept = q->kept;
    q->kept = 0;
    q->bells.n = 0;
    gb_queue_hear(q, NULL);
    for (uint64_t seq = q->last; kept; kept--, seq--) {
        struct gb_queue_record *e = &q->all[slot_of(q, seq)], was = *e;
        memset(e, 0, sizeof *e);
        Py_XDECREF(was.key);
        Py_XDECREF(was.value);
        Py_XDECREF(old_of(&was));
    }
}

void gb_queue_free(struct gb_queue *q) {
    gb_queue_empty(q);
    gb_bell_free(&q->bells);
    PyMem_RawFree(q->all);
    PyMem_RawFree(q);
}

int gb_queue_traverse(const struct gb_queue *q, visitproc visit, void *arg) {
    Py_VISIT(q->hear);
    uint64_t at = q->next;
    for (uint64_t i = 0; i < q->kept; i++) {
        at = (at ? at : q->room) - 1u;
        const struct gb_queue_record *e = &q->all[at];
        if (!(e->when & GB_QUEUE_SEEN)) continue; /* or each collection would bring every key */
        PyObject *old = old_of(e);
        Py_VISIT(e->key);
        Py_VISIT(e->value);
        Py_VISIT(old);
    }
    return 0;
}

bool gb_queue_check(const struct gb_queue *q, struct gb_fault *f) {
    static const struct gb_queue_record nothing;
    uint64_t at = q->next;
    if (q->kept > q->room || q->kept > q->last || (q->room && q->next >= q->room))
        return gb_broken(f, "queue 1: the newest are in the slots before next", q->next, q->room, q->kept);
    for (uint64_t back = 1; back <= q->room; back++) {
        at = (at ? at : q->room) - 1u;
        const struct gb_queue_record *e = &q->all[at];
        bool wide = gb_ring_wide(kind_of(e)), empty = !memcmp(e, &nothing, sizeof nothing);
        bool sound = kind_of(e) < GB_EVENTS && (wide ? !e->key && !e->value : e->key != NULL);
        if (back <= q->kept ? !sound : !empty)
            return gb_broken(f, "queue 1: the newest are in the slots before next", at, q->kept, back);
    }
    return true;
}

void gb_queue_hear(struct gb_queue *q, PyObject *fn) {
    PyObject *before = q->hear;
    q->hear = Py_XNewRef(fn);
    Py_XDECREF(before);
}

void gb_queue_tell(struct gb_queue *q) {
    gb_bell_ring_all(&q->bells);
    if (!q->hear) return;
    PyObject *hear = Py_NewRef(q->hear); /* another thread may set it now */
    struct gb_alone_section *paused = gb_alone_pause();
    gb_event_heard(hear);
    gb_alone_again(paused);
    Py_DECREF(hear);
}

/* ---- reading ---- */
/* Whether a key begins with an exact str or bytes: exact ones of the same type alone can. */
static bool begins(PyObject *key, PyObject *prefix) {
    if (Py_TYPE(key) != Py_TYPE(prefix)) return false;
    if (PyBytes_CheckExact(key))
        return PyBytes_GET_SIZE(key) >= PyBytes_GET_SIZE(prefix) &&
               !memcmp(PyBytes_AS_STRING(key), PyBytes_AS_STRING(prefix),
                       (size_t)PyBytes_GET_SIZE(prefix));
    Py_ssize_t n = PyUnicode_GET_LENGTH(prefix);
    if (PyUnicode_GET_LENGTH(key) < n) return false;
    const void *in = PyUnicode_DATA(key), *want = PyUnicode_DATA(prefix);
    if (PyUnicode_KIND(key) == PyUnicode_KIND(prefix))
        return !memcmp(in, want, (size_t)n * PyUnicode_KIND(prefix));
    for (Py_ssize_t i = 0; i < n; i++)
        if (PyUnicode_READ(PyUnicode_KIND(key), in, i) !=
            PyUnicode_READ(PyUnicode_KIND(prefix), want, i))
            return false;
    return true;
}

static bool passes(const struct gb_queue_cursor *c, const struct gb_queue_record *e) {
    if (!(c->kinds >> kind_of(e) & 1u)) return false;
    return !c->prefix || gb_ring_wide(kind_of(e)) || begins(e->key, c->prefix);
}

/* The cursor goes on to behind the first record that passes, or behind a slice of them. The number of that
 * record, with references of its own; 0: none did. Runs nothing. */
static uint64_t look(const struct gb_queue *q, struct gb_queue_cursor *c, struct gb_queue_record *found) {
    uint64_t at = slot_of(q, c->wanted);
    for (uint32_t i = 0; i < GB_STEPS_MAX && c->wanted <= q->last; i++) {
        const struct gb_queue_record *e = &q->all[at];
        if (++at == q->room) at = 0;
        c->wanted++;
        if (!passes(c, e)) continue;
        *found = *e;
        Py_XINCREF(found->key);
        if (!c->values) found->value = NULL;
        if (!c->values && !gb_ring_wide(kind_of(e))) found->old = NULL;
        Py_XINCREF(found->value);
        Py_XINCREF(old_of(found));
        return c->wanted - 1u;
    }
    return 0;
}

/* Takes over the references of `e`. */
static PyObject *event_of(const struct gb_queue_record *e, uint64_t seq, const struct gb_clock *clock) {
    double at = gb_clock_at(clock, e->when >> 8);
    if (!gb_ring_wide(kind_of(e))) return gb_event_make(seq, kind_of(e), e->key, e->value, e->old, at);
    PyObject *count = PyLong_FromUnsignedLongLong(e->count);
    return count ? gb_event_make(seq, kind_of(e), NULL, count, NULL, at) : NULL;
}

/* Appends a new reference; false with an exception. */
static bool append(PyObject *list, PyObject *event) {
    bool fine = event && PyList_Append(list, event) == 0;
    Py_XDECREF(event);
    return fine;
}

PyObject *gb_queue_pull(const struct gb_queue *q, struct gb_queue_cursor *c, const struct gb_clock *clock,
                        Py_ssize_t most) {
    PyObject *list = PyList_New(0);
    uint32_t in_vain = 0;
    while (list && PyList_GET_SIZE(list) < most && c->wanted <= q->last) {
        uint64_t from = c->wanted, ahead = gb_queue_first(q);
        PyObject *event;
        if (GB_UNLIKELY(from < ahead)) {
            if (PyList_GET_SIZE(list)) break; /* the next list begins with it */
            c->wanted = ahead;
            event = gb_event_lost(ahead - 1u, ahead - from);
        } else {
            struct gb_queue_record e;
            from = look(q, c, &e);
            if (!from) {
                if (++in_vain % YIELD) continue;
                Py_BEGIN_ALLOW_THREADS
                Py_END_ALLOW_THREADS
                continue;
            }
            ahead = from + 1u;
            event = event_of(&e, from, clock);
        }
        if (append(list, event)) continue;
        if (c->wanted == ahead) c->wanted = from; /* it is there for the next pull */
        if (PyList_GET_SIZE(list)) PyErr_Clear();
        else Py_CLEAR(list);
        break;
    }
    return list;
}
