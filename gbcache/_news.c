/* _news.c - records out of the ring, Events out of records. */
#include "_news.h"

bool gb_news_open(struct gb_door *d, struct gb_news *n, int64_t since, uint32_t kinds, PyObject *prefix,
                  bool values) {
    struct gb_box b;
    n->filter = (struct gb_ring_filter){.kinds = kinds, .prefix_type = -1, .values = values};
    if (prefix) {
        if (!gb_box_key(&b, prefix)) return false;
        n->prefix = PyBytes_FromStringAndSize((const char *)b.bytes, (Py_ssize_t)b.len);
        n->filter.prefix_type = (int32_t)b.type;
        gb_box_drop(&b);
        if (!n->prefix) return false;
        n->filter.prefix = (const uint8_t *)PyBytes_AS_STRING(n->prefix);
        n->filter.prefix_len = (uint32_t)PyBytes_GET_SIZE(n->prefix);
    }
    if (!gb_door_enter(d)) return false;
    n->none = !d->store.head->ring.granules;
    if (n->none) n->at = (struct gb_ring_cursor){0, 0, 0};
    else if (since < 0) gb_ring_newest(&d->store.ring, &n->at);
    else gb_ring_since(&d->store.ring, &n->at, (uint64_t)since);
    gb_door_leave(d, GB_OP_GET);
    return true;
}

void gb_news_close(struct gb_news *n) {
    PyMem_RawFree(n->buffer);
    n->buffer = NULL;
    n->room = n->used = n->done = 0;
    Py_CLEAR(n->prefix);
}

static bool make_room(struct gb_news *n, size_t room) {
    if (n->room - n->used >= room) return true;
    uint8_t *larger = PyMem_RawRealloc(n->buffer, n->used + room);
    if (!larger) {
        PyErr_NoMemory();
        return false;
    }
    n->buffer = larger;
    n->room = n->used + room;
    return true;
}

/* `lost` events up to `last` are gone; what was fetched before the gap ends at `before`. One gap is kept: of two, what
 * was fetched between them counts as lost with them. */
static void gap(struct gb_news *n, size_t before, uint64_t last, uint64_t lost) {
    if (!n->lost) n->lost_at = before;
    else lost += last - lost - n->lost_last; /* between the two */
    if (before > n->lost_at) memmove(n->buffer + n->lost_at, n->buffer + before, n->used - before);
    n->used -= before - n->lost_at;
    n->lost += lost;
    n->lost_last = last;
}

/* Entered; not where the cache is closed, maybe while this waited: what was left is then in the buffer (`finish`). */
static bool entered(struct gb_door *d) {
    gb_door_hold(d);
    if (d->open) gb_door_begin(d);
    else gb_door_unlock(d);
    return d->open;
}

/* One hold's worth into the buffer; whether there may be more. */
static bool fetch(struct gb_door *d, struct gb_news *n) {
    uint64_t lost = 0, wanted = n->at.wanted;
    bool more = false;
    if (n->none || !entered(d)) return false;
    size_t room = n->room - n->used, before = n->used;
    n->used += gb_ring_pull(&d->store.ring, &n->at, &n->filter, n->buffer + n->used,
                            room < GB_NEWS_BUFFER ? (uint32_t)room : GB_NEWS_BUFFER,
                            &d->store.index.arena.work, GB_STEPS_MAX, &lost, &more);
    gb_door_leave(d, GB_OP_GET);
    if (lost) gap(n, before, wanted + lost - 1u, lost);
    return more;
}

bool gb_news_finish(struct gb_door *d, struct gb_news *n) {
    do {
        if (!make_room(n, GB_NEWS_BUFFER)) return false;
    } while (fetch(d, n));
    return true;
}

static bool holds_some(const struct gb_news *n) { return n->done < n->used || n->lost; }

bool gb_news_pending(struct gb_door *d, const struct gb_news *n) {
    if (holds_some(n)) return true;
    if (n->none || !entered(d)) return holds_some(n); /* another thread may have copied them while this waited */
    bool pending = gb_ring_pending(&d->store.ring, &n->at);
    gb_door_leave(d, GB_OP_GET);
    return pending;
}

static PyObject *key_of(const struct gb_ring_record *e) {
    const char *bytes = (const char *)gb_ring_key(e);
    int64_t whole;
    switch (e->key_type) {
    case GB_BOX_KEY_STR:
        return PyUnicode_DecodeUTF8(bytes, e->key_len, "surrogatepass");
    case GB_BOX_KEY_INT:
        memcpy(&whole, bytes, sizeof whole);
        return PyLong_FromLongLong(whole);
    default:
        return gb_box_key_object(e->key_type, PyBytes_FromStringAndSize(bytes, e->key_len));
    }
}

static PyObject *value_of(const struct gb_door *d, uint8_t tag, const uint8_t *bytes, uint32_t len) {
    if (gb_ring_state(tag) == GB_RING_OMITTED) return Py_NewRef(gb_event_names.omitted);
    if (!bytes) return Py_NewRef(Py_None);
    return gb_box_finish(d, gb_ring_type(tag), gb_box_raw(gb_ring_type(tag), bytes, len));
}

static PyObject *event_of(const struct gb_door *d, const struct gb_ring_record *e) {
    double at = gb_clock_at(&d->clock, e->at);
    if (gb_ring_wide(e->kind)) {
        PyObject *count = PyLong_FromUnsignedLongLong(e->count);
        return count ? gb_event_make(e->seq, e->kind, NULL, count, NULL, at) : NULL;
    }
    PyObject *key = key_of(e), *value = NULL, *old = NULL;
    if (key) value = value_of(d, e->value, gb_ring_value(e), e->value_len);
    if (value) old = value_of(d, e->old, gb_ring_old(e), e->old_len);
    if (old) return gb_event_make(e->seq, e->kind, key, value, old, at);
    Py_XDECREF(key);
    Py_XDECREF(value);
    return NULL;
}

/* How many of the records fetched, at most `most`, and where the last ends. */
static Py_ssize_t some_of(const struct gb_news *n, Py_ssize_t most, size_t *end) {
    Py_ssize_t count = 0;
    size_t until = n->lost && n->lost_at > n->done ? n->lost_at : n->used; /* what is before a gap is told first */
    for (*end = n->done; *end < until && count < most; count++)
        *end += gb_ring_size(gb_ring_record_at(n->buffer + *end));
    return count;
}

/* Hands over [done, end): the buffer itself, where that is all of it. */
static bool hand_over(struct gb_news *n, struct gb_batch *b, size_t end, Py_ssize_t records) {
    size_t length = end - n->done;
    bool leads = n->lost && n->lost_at == n->done;
    b->place = PyMem_RawMalloc((size_t)records * sizeof *b->place + 1u);
    bool whole = n->buffer && n->done == 0 && end == n->used;
    b->bytes = whole ? n->buffer : PyMem_RawMalloc(length + 1u);
    if (!b->place || !b->bytes) {
        if (whole) b->bytes = NULL;
        gb_news_drop(b);
        PyErr_NoMemory();
        return false;
    }
    if (!whole && length) memcpy(b->bytes, n->buffer + n->done, length);
    n->done = end;
    if (whole) {
        n->buffer = NULL;
        n->room = n->used = n->done = n->lost_at = 0;
    }
    for (size_t at = 0, i = 0; at < length; i++) {
        b->place[i] = (uint32_t)at;
        at += gb_ring_size(gb_ring_record_at(b->bytes + at));
    }
    b->count = records;
    if (leads) {
        b->lost = n->lost;
        b->lost_last = n->lost_last;
        b->count++;
        n->lost = 0;
    }
    return true;
}

bool gb_news_take(struct gb_door *d, struct gb_news *n, Py_ssize_t most, struct gb_batch *b) {
    size_t end;
    memset(b, 0, sizeof *b);
    while (!holds_some(n)) {
        if (!gb_door_is_open(d)) return true;
        n->done = n->used = n->lost_at = 0;
        if (!make_room(n, GB_NEWS_BUFFER)) return false;
        bool more = fetch(d, n);
        if (!holds_some(n) && !more) return true;
    }
    Py_ssize_t records = some_of(n, most - (n->lost && n->lost_at == n->done), &end);
    return hand_over(n, b, end, records);
}

void gb_news_drop(struct gb_batch *b) {
    PyMem_RawFree(b->bytes);
    PyMem_RawFree(b->place);
    memset(b, 0, sizeof *b);
}

static const struct gb_ring_record *record(const struct gb_batch *b, Py_ssize_t i) {
    return gb_ring_record_at(b->bytes + b->place[i - (b->lost != 0)]);
}

PyObject *gb_news_event(const struct gb_door *d, const struct gb_batch *b, Py_ssize_t i) {
    return b->lost && !i ? gb_event_lost(b->lost_last, b->lost) : event_of(d, record(b, i));
}

PyObject *gb_news_key(const struct gb_batch *b, Py_ssize_t i) {
    if ((b->lost && !i) || gb_ring_wide(record(b, i)->kind)) return Py_NewRef(Py_None);
    return key_of(record(b, i));
}
