/* _save.c - the saver's loop, and every byte it writes. */
#include "_save.h"
#include <errno.h>
#include <sched.h>
#include <unistd.h>

bool gb_save_all(int fd, const void *bytes, size_t n, uint64_t at) {
    const uint8_t *p = (const uint8_t *)bytes;
    while (n) {
        ssize_t wrote = pwrite(fd, p, n, (off_t)at);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0) return false;
        if (!wrote) {
            errno = ENOSPC;
            return false;
        }
        p += wrote;
        at += (uint64_t)wrote;
        n -= (size_t)wrote;
    }
    return true;
}

static void fail(struct gb_saver *v, int error) {
    gb_lock_wait(&v->filing);
    if (!v->error) GB_STORE(v->error, error ? error : EIO);
    gb_lock_free(&v->filing);
}

/* Under `filing`. */
static void index_record(struct gb_saver *v, uint32_t hash, uint64_t at) {
    uint64_t slot = (uint64_t)hash * v->slots >> 32;
    while (v->index[slot]) slot = slot + 1u == v->slots ? 0 : slot + 1u;
    v->index[slot] = (uint32_t)(at / GB_GRANULE);
}

/* Where each record of a frame lies. Fetched ahead: a slot is a cold line. */
static void index_frame(struct gb_saver *v, const struct gb_keep_frame *f, uint64_t at) {
    enum { GROUP = 16 };
    uint32_t hash[GROUP], used = 0;
    uint64_t place[GROUP];
    for (uint32_t left = f->records; left;) {
        uint32_t n = 0;
        for (; n < GROUP && n < left; n++) {
            struct gb_record r;
            memcpy(&r, f->to + used, sizeof r);
            hash[n] = r.hash;
            place[n] = at + used;
            __builtin_prefetch(&v->index[(uint64_t)r.hash * v->slots >> 32], 1);
            uint64_t size = sizeof r + (r.timed ? sizeof(struct gb_record_times) : 0u) + r.key_len + (uint64_t)r.value_len;
            used += (uint32_t)((size + GB_GRANULE - 1u) / GB_GRANULE * GB_GRANULE);
        }
        gb_lock_wait(&v->filing);
        for (uint32_t i = 0; i < n; i++) index_record(v, hash[i], place[i]);
        gb_lock_free(&v->filing);
        left -= n;
    }
}

/* A frame's place, taken under the door's lock (and `filing` within it). */
struct place {
    uint64_t at;
    uint32_t number;
};
static struct place place_of(struct gb_saver *v, uint64_t payload) {
    struct place p = {v->end, v->number++};
    GB_STORE(v->end, v->end + sizeof(struct gb_snap_frame) + payload);
    if (v->end >= GB_SNAP_REACH) fail(v, EFBIG); /* the index would name other places */
    return p;
}

static uint64_t about(const struct gb_saver *v) { return v->head.id[0] ^ v->head.id[1]; }

/* Head and payload in one call: the head lies right before the payload. */
static void write_frame(struct gb_saver *v, const struct gb_keep_frame *f, enum gb_snap_kind kind, struct place p) {
    struct gb_snap_frame *head = (struct gb_snap_frame *)(void *)(f->to - sizeof *head);
    struct gb_sum sum;
    *head = (struct gb_snap_frame){GB_SNAP_FRAME, kind, f->used, f->records, p.number, 0};
    gb_digest_sum_begin(&sum, about(v));
    gb_digest_sum_add(&sum, head, offsetof(struct gb_snap_frame, sum));
    gb_digest_sum_add(&sum, f->to, f->used);
    head->sum = gb_digest_sum_end(&sum);
    if (GB_LOAD(v->error)) return;
    index_frame(v, f, p.at + sizeof *head);
    if (!gb_save_all(v->fd, head, sizeof *head + f->used, p.at)) fail(v, errno);
}

/* A piece of a long frame; its head is written with the last one. */
static void write_long(struct gb_saver *v, const struct gb_keep_frame *f) {
    struct gb_snap_frame *head = &v->long_head;
    uint64_t done = head->bytes - v->long_left;
    if (!done) {
        struct gb_record r;
        memcpy(&r, f->to, sizeof r);
        gb_lock_wait(&v->filing);
        index_record(v, r.hash, v->long_at + sizeof *head);
        gb_lock_free(&v->filing);
        gb_digest_sum_begin(&v->long_sum, about(v));
        gb_digest_sum_add(&v->long_sum, head, offsetof(struct gb_snap_frame, sum));
    }
    gb_digest_sum_add(&v->long_sum, f->to, f->used);
    if (!GB_LOAD(v->error) && !gb_save_all(v->fd, f->to, f->used, v->long_at + sizeof *head + done)) fail(v, errno);
    v->long_left -= f->used;
    if (v->long_left) return;
    head->sum = gb_digest_sum_end(&v->long_sum);
    if (!GB_LOAD(v->error) && !gb_save_all(v->fd, head, sizeof *head, v->long_at)) fail(v, errno);
}

void gb_save_help(struct gb_saver *v) {
    struct gb_door *d = v->door;
    while (d->saver == v && gb_keep_crowded(&v->snap.keep)) {
        struct gb_keep_frame *f = gb_keep_take(&v->snap.keep);
        struct place p = f ? place_of(v, f->used) : (struct place){0};
        v->helping++;
        gb_lock_free(&d->lock);
        if (f) write_frame(v, f, GB_SNAP_LATE, p);
        else sched_yield(); /* others are writing all of them */
        gb_lock_wait(&d->lock);
        if (f) gb_keep_give(&v->snap.keep, f);
        v->helping--;
    }
}

static bool late_out(struct gb_saver *v) { /* holding the lock; gives it back meanwhile */
    struct gb_keep_frame *f = gb_keep_take(&v->snap.keep);
    if (!f) return false;
    struct place p = place_of(v, f->used);
    gb_lock_free(&v->door->lock);
    write_frame(v, f, GB_SNAP_LATE, p);
    gb_lock_wait(&v->door->lock);
    gb_keep_give(&v->snap.keep, f);
    return true;
}

/* One hold, and what it gave to write. GB_OK: all is saved. */
static enum gb_err save_on(struct gb_saver *v) {
    struct gb_door *d = v->door;
    struct gb_snap *p = &v->snap;
    bool full = false;
    struct place at = {0};
    gb_lock_wait(&d->lock);
    while (d->open && late_out(v)) {}
    if (!d->open) v->closed = true;
    if (v->closed || GB_LOAD(v->error) || p->keep.failed) {
        gb_lock_free(&d->lock);
        return GB_GONE;
    }
    gb_head_enter(&d->store);
    enum gb_err err = gb_snap_step(&d->store, p, &v->main, &full);
    gb_head_leave(&d->store, GB_OP_WALK);
    bool piece = p->payload != 0;
    if (piece && !v->long_left) {
        at = place_of(v, p->payload);
        v->long_at = at.at;
        v->long_left = p->payload;
        v->long_head = (struct gb_snap_frame){GB_SNAP_FRAME, GB_SNAP_LONG, p->payload, 1, at.number, 0};
    } else if (full && !piece) {
        at = place_of(v, v->main.used);
    }
    gb_lock_free(&d->lock);
    if (full) {
        if (piece) write_long(v, &v->main);
        else write_frame(v, &v->main, GB_SNAP_MAIN, at);
        v->main.used = v->main.records = 0;
        if (piece && !v->long_left) p->payload = 0;
    }
    return err;
}

/* The late frame being filled is the last. */
static void last_late(struct gb_saver *v) {
    struct gb_keep *k = &v->snap.keep;
    gb_lock_wait(&v->door->lock);
    if (k->late[k->head % GB_KEEP_FRAMES].used) k->head++;
    while (late_out(v)) {}
    gb_lock_free(&v->door->lock);
}

static int64_t ms_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

bool gb_save_run(struct gb_saver *v, uint32_t ms) {
    const struct timespec nap = {0, 50000};
    int64_t until = ms_now() + ms;
    if (!v->door) { /* left by this thread, or by a fork, between two turns */
        v->closed = v->done = true;
        return true;
    }
    for (uint32_t i = 1;; i++) {
        enum gb_err err = save_on(v);
        if (err == GB_OK) last_late(v);
        if (err == GB_OK || err == GB_GONE) {
            v->done = true;
            return true;
        }
        if (err == GB_BUSY) nanosleep(&nap, NULL);
        v->snap.most = gb_lock_after_you(&v->door->lock) ? 4u : v->snap.most < GB_SNAP_ENTRIES ? v->snap.most + 1u : GB_SNAP_ENTRIES;
        if (!(i & 63u) && ms_now() >= until) return false;
    }
}

bool gb_save_finish(struct gb_saver *v) {
    struct gb_snap_head *h = &v->head;
    struct gb_sum sum;
    uint8_t page[GB_SNAP_HEAD] = {0};
    if (GB_LOAD(v->error) || v->closed || v->snap.keep.failed) return false;
    h->frames = v->number;
    h->index_at = v->end;
    h->slots = v->slots;
    h->length = v->end + v->slots * sizeof *v->index;
    gb_digest_sum_begin(&sum, about(v));
    gb_digest_sum_add(&sum, v->index, v->slots * sizeof *v->index);
    h->index_sum = gb_digest_sum_end(&sum);
    gb_digest_sum_begin(&sum, 0);
    gb_digest_sum_add(&sum, h, offsetof(struct gb_snap_head, sum));
    h->sum = gb_digest_sum_end(&sum);
    memcpy(page, h, sizeof *h);
    if (!gb_save_all(v->fd, v->index, v->slots * sizeof *v->index, h->index_at) ||
        !gb_save_all(v->fd, page, sizeof page, 0)) {
        fail(v, errno);
        return false;
    }
    return true;
}

uint64_t gb_save_bytes(const struct gb_saver *v) { return GB_LOAD(v->end); }

static void forget(struct gb_saver *v) {
    PyMem_RawFree(v->snap.keep.bits);
    PyMem_RawFree(v->frames);
    PyMem_RawFree(v->index);
    PyMem_RawFree(v);
}

bool gb_save_by(const struct gb_saver *v, unsigned long thread) { return v->by == thread; }

void gb_save_leave(struct gb_saver *v) {
    struct gb_door *d = v->door;
    bool mine = gb_door_mine(d);
    for (bool alone = false; !alone;) {
        if (!mine) gb_lock_wait(&d->lock);
        alone = !v->helping;
        if (alone) gb_snap_end(&d->store, &v->snap); /* where it is closed, too: the image is there until we have left */
        if (alone) d->saver = NULL;
        if (!mine) gb_lock_free(&d->lock);
        if (!alone) sched_yield();
    }
    v->door = NULL;
    atomic_fetch_sub(&d->outsiders, 1u);
}

void gb_save_end(struct gb_saver *v) {
    if (v->door) gb_save_leave(v); /* else it was left, or is the parent's of this process */
    forget(v);
}

/* Memory, all of it touched but the index and the bits, which are as the entries come. */
static struct gb_saver *make(struct gb_door *d, uint64_t length, uint64_t entries) {
    const size_t frame = sizeof(struct gb_snap_frame) + GB_KEEP_PAYLOAD;
    struct gb_saver *v = PyMem_RawCalloc(1, sizeof *v);
    if (!v) return NULL;
    v->door = d;
    v->slots = entries + entries / 3u + 16u;
    v->index = PyMem_RawCalloc(v->slots, sizeof *v->index);
    v->snap.keep.bits = PyMem_RawCalloc(gb_index_places(length), sizeof(uint64_t));
    v->frames = PyMem_RawMalloc((GB_KEEP_FRAMES + 1u) * frame);
    if (!v->index || !v->frames || !v->snap.keep.bits) {
        forget(v);
        return NULL;
    }
    memset(v->frames, 0, (GB_KEEP_FRAMES + 1u) * frame);
    for (uint32_t i = 0; i < GB_KEEP_FRAMES; i++)
        v->snap.keep.late[i].to = v->frames + i * frame + sizeof(struct gb_snap_frame);
    v->main.to = v->frames + GB_KEEP_FRAMES * frame + sizeof(struct gb_snap_frame);
    gb_lock_init(&v->filing);
    v->end = GB_SNAP_HEAD;
    return v;
}

static void describe(struct gb_saver *v, const struct gb_save_words *w, int64_t now) {
    const struct gb_head *h = v->door->store.head;
    struct gb_snap_head *to = &v->head;
    *to = (struct gb_snap_head){.magic = GB_SNAP_MAGIC, .version = GB_SNAP_VERSION, .order = 0x01020304u,
                                .id = {w->id[0], w->id[1]}, .seed = {h->seed[0], h->seed[1]},
                                .saved_at = now + w->wall, .max_bytes = w->max_bytes,
                                .max_entries = h->max_entries, .entries = h->table.count,
                                .seq = gb_room_seq(&v->door->store),
                                .counted = sizeof h->counters / sizeof(uint64_t), .counters = h->counters};
    strncpy(to->codec, w->codec, sizeof to->codec - 1u);
}

struct gb_saver *gb_save_begin(struct gb_door *d, int fd, const struct gb_save_words *w) {
    enum gb_err err = GB_GONE;
    if (gb_door_mine(d)) { /* helpers and savers would wait for the lock */
        (void)gb_door_yield(d);
        return NULL;
    }
    if (!gb_door_enter(d)) return NULL;
    uint64_t entries = d->store.head->table.count + 4096u, length = d->store.head->length;
    gb_door_leave(d, GB_OP_WALK);
    struct gb_saver *v = make(d, length, entries);
    if (!v) return (struct gb_saver *)(void *)PyErr_NoMemory();
    v->fd = fd;
    v->by = PyThread_get_thread_ident();
    v->snap.keep.wall = w->wall;
    uint64_t now = gb_clock_date_exact(&d->clock);
    atomic_fetch_add(&d->outsiders, 1u); /* from here on everyone takes the lock */
    if (gb_door_enter(d)) {
        bool same = d->store.head->table.count <= entries && d->store.head->length == length;
        if (same) err = gb_snap_begin(&d->store, &v->snap);
        if (!err) {
            d->saver = v;
            describe(v, w, (int64_t)now);
        }
        gb_door_leave(d, GB_OP_WALK);
        if (!err) return v;
        PyErr_SetString(PyExc_RuntimeError, same ? "the cache is being saved already (or many iterations begin at once): "
                        "wait for the other save" : "the cache changed its size meanwhile: save it again");
    }
    atomic_fetch_sub(&d->outsiders, 1u);
    forget(v);
    return NULL;
}
