/* _door.c - the lock protocol, long values, and the one function that raises. */
#include "_door.h"
#include "_args.h"
#include "_event.h"
#include "_load.h"
#include "_save.h"

#include <unistd.h>

struct gb_door_names gb_door_names;

static const uint32_t SPINS = 400; /* about 2 us, before the GIL is given away */

/* Holding the lock: before a hold that may need late frames. */
static inline void make_way(struct gb_door *d) {
    if (GB_UNLIKELY(d->saver != NULL) && gb_keep_crowded(&d->saver->snap.keep)) gb_save_help(d->saver);
}

/* Within a fork. In the child, before it came to our hook: a live file is the parent's, who writes to it too. */
static void disown(struct gb_door *d) {
    if (!d->open || !d->store.live || d->store.head->owner == (uint64_t)getpid()) return;
    d->forked = true;
    gb_door_shut(d);
}

void gb_door_wait(struct gb_door *d) {
    if (gb_door_mine(d)) {
        disown(d);
        return;
    }
    while (gb_door_locks(d)) {
        bool mine = gb_lock_try(&d->lock);
        if (!mine) {
            gb_lock_want(&d->lock); /* who works in slices lets us in between two */
            for (uint32_t i = 0; i < SPINS && !mine; i++) mine = gb_lock_try(&d->lock);
            gb_lock_wanted_no_more(&d->lock);
        }
        if (mine) {
            make_way(d);
            return;
        }
        Py_BEGIN_ALLOW_THREADS /* nobody waits for the GIL while holding the lock */
            gb_lock_wait(&d->lock);
            gb_lock_free(&d->lock);
        Py_END_ALLOW_THREADS
    }
}

void gb_door_closed(struct gb_door *d) {
    gb_door_unlock(d);
    PyErr_SetString(gb_door_names.closed_error,
                    d->forked ? "the cache is a live file, and the parent process has it: open another one here"
                    : d->born ? "the cache is closed"
                            : "the cache was never initialised: a subclass must call "
                              "super().__init__()");
}

void gb_door_told(struct gb_door *d) {
    d->store.told = false;
    if (gb_door_heard(d)) GB_STORE(d->inform, true);
    gb_bell_ring_all(&d->bells);
}

/* A new reference: another thread may be setting it. */
static PyObject *hears_of(struct gb_door *d) {
    GB_ALONE(gb_door_owner(d));
    return Py_XNewRef(d->hears);
}

void gb_door_inform_slow(struct gb_door *d) {
    GB_STORE(d->inform, false);
    PyObject *hears = hears_of(d);
    if (hears) gb_event_heard(hears);
    Py_XDECREF(hears);
}

PyThreadState *gb_door_out(struct gb_door *d) {
#ifdef Py_GIL_DISABLED
    (void)d; /* gb_door_stay counted it */
#else
    atomic_fetch_add(&d->outsiders, 1u);
#endif
    return PyEval_SaveThread();
}

void gb_door_back(struct gb_door *d, PyThreadState *state) {
    PyEval_RestoreThread(state);
    atomic_fetch_sub(&d->outsiders, 1u);
}

bool gb_door_rest(void) {
    const struct timespec nap = {0, 50000};
    Py_BEGIN_ALLOW_THREADS
        nanosleep(&nap, NULL);
    Py_END_ALLOW_THREADS
    return PyErr_CheckSignals() == 0;
}

/* Holding the lock: whether others may wait for this thread to go on. */
static bool own_work(const struct gb_door *d) {
    unsigned long me = PyThread_get_thread_ident();
    if (d->saver && gb_save_by(d->saver, me)) return true;
    if (d->store.cut && d->cutter == me) return true;
    for (uint32_t i = 0; d->store.pins && i < GB_HEAD_PINS; i++)
        if (d->store.pin[i].used && d->store.pin[i].by == me) return true;
    return false;
}

static bool waits_for_itself(void) {
    PyErr_SetString(PyExc_RuntimeError, "the cache would wait for this thread itself: called by a subscriber, a signal's handler or "
                    "progress= in the midst of a long write, a save, a resize or the first watch, do it when that has ended");
    return false;
}

bool gb_door_busy(struct gb_door *d) {
    gb_door_hold(d);
    bool own = d->open && own_work(d);
    gb_door_unlock(d);
    return own;
}

bool gb_door_idle(struct gb_door *d) { return !gb_door_busy(d) || waits_for_itself(); }

bool gb_door_yield(struct gb_door *d) {
    if (!gb_door_mine(d)) return gb_door_rest();
    PyErr_SetString(PyExc_RuntimeError, "the cache would wait for threads that cannot go on within a fork: do it in a hook "
                    "that is registered after gbcache was imported");
    return false;
}

bool gb_door_await(struct gb_door *d) {
    gb_door_hold(d);
    bool others = d->saver && !gb_save_by(d->saver, PyThread_get_thread_ident());
    gb_door_unlock(d); /* while another saves, to wait may help: asked again after it */
    return others || !gb_door_busy(d) ? gb_door_yield(d) : waits_for_itself();
}

void gb_door_raise(struct gb_door *d, enum gb_err err, const struct gb_put *p) {
    gb_door_hold(d);
    unsigned long long length = d->open ? d->store.head->length : 0;
    gb_door_unlock(d);
    switch (err) {
    case GB_LONGKEY:
        PyErr_Format(gb_door_names.key_length_error,
                     "the key is %u bytes long, and a key may have %u: store a digest of it instead",
                     p->key.len, GB_KEY_MAX);
        break;
    case GB_TOOBIG:
        PyErr_Format(gb_door_names.budget_error,
                     "a value of %u bytes can never fit max_bytes=%llu; the old value, if any, is "
                     "kept. Give the cache more bytes, or split the value",
                     p->value_len, length);
        break;
    case GB_FULL:
        PyErr_Format(gb_door_names.budget_error,
                     "nothing is left to evict from max_bytes=%llu, and %u bytes of key and %u of "
                     "value do not fit", length, p ? p->key.len : 0u, p ? p->value_len : 0u);
        break;
    default:
        PyErr_Format(PyExc_SystemError, "gbcache: unexpected core error %d", (int)err);
    }
}

/* Holding the lock: full only because of what is pinned for a moment is busy. */
static enum gb_err waits(const struct gb_door *d, enum gb_err err) {
    return err == GB_FULL && d->store.pins ? GB_BUSY : err;
}

/* One long write's step or commit, entered by whoever calls. */
static enum gb_err write_on(struct gb_door *d, struct gb_chain_write *w, const struct gb_put *p,
                            uint64_t now, bool commit) {
    gb_door_begin(d);
    enum gb_err err = commit ? gb_chain_commit(&d->store, w, p, now)
                             : gb_chain_step(&d->store, w, p, now);
    if (err == GB_FULL || err == GB_EXISTS) gb_chain_abort(&d->store, w);
    err = waits(d, err);
    gb_head_leave(&d->store, GB_OP_LONG);
    return err;
}

/* All the bytes, in slices under the lock, the GIL released. */
static enum gb_err write_out(struct gb_door *d, struct gb_chain_write *w, const struct gb_put *p,
                             uint64_t now) {
    enum gb_err err;
    PyThreadState *state = gb_door_out(d);
    do {
        gb_lock_wait(&d->lock);
        make_way(d);
        err = write_on(d, w, p, now, false);
        if (GB_UNLIKELY(d->store.told)) gb_door_told(d);
        gb_lock_free(&d->lock);
    } while (err == GB_AGAIN);
    gb_door_back(d, state);
    return err;
}

static enum gb_err write_in(struct gb_door *d, struct gb_chain_write *w, const struct gb_put *p,
                            uint64_t now, bool commit, const char *mark, uint32_t forks) {
    enum gb_err err;
    do {
        if (!gb_door_enter(d)) return GB_GONE;
        if (GB_UNLIKELY(d->forks != forks)) { /* by a subscriber: its block was given up here */
            gb_door_unlock(d);
            PyErr_SetString(PyExc_RuntimeError, "forked in the midst of this write: it goes on in the parent alone");
            return GB_GONE;
        }
        if (commit && mark && gb_args_is_void(mark)) {
            err = GB_EXISTS;
            gb_chain_abort(&d->store, w);
        } else {
            err = write_on(d, w, p, now, commit);
        }
        if (GB_UNLIKELY(d->store.told)) gb_door_told(d);
        gb_door_unlock(d);
        if (err == GB_AGAIN) gb_door_inform(d);
    } while (err == GB_AGAIN);
    return err;
}

static enum gb_err put_long(struct gb_door *d, const struct gb_put *p, uint64_t now,
                            const char *mark) {
    struct gb_chain_write w;
    enum gb_err err = GB_AGAIN;
    uint32_t forks = 0;
    bool far = gb_door_far(d, p->value_len) && !gb_door_heard(d);
    while (err == GB_AGAIN || err == GB_BUSY) {
        if (err == GB_BUSY && !gb_door_await(d)) return GB_GONE;
        if (!gb_door_enter(d)) return GB_GONE;
        err = waits(d, gb_chain_begin(&d->store, &w, p, now));
        if (!err) {
            d->store.pin[w.pin].by = PyThread_get_thread_ident();
            forks = d->forks;
        }
        if (!err && far) gb_door_stay(d);
        gb_door_leave(d, GB_OP_LONG);
        if (err == GB_AGAIN) gb_door_inform(d);
    }
    if (err) return err;
    err = far ? write_out(d, &w, p, now) : write_in(d, &w, p, now, false, NULL, forks);
    return err ? err : write_in(d, &w, p, now, true, mark, forks);
}

static enum gb_err put_short(struct gb_door *d, const struct gb_put *p, uint64_t now,
                             const char *mark) {
    enum gb_err err;
    do {
        if (!gb_door_enter(d)) return GB_GONE;
        err = mark && gb_args_is_void(mark) ? GB_EXISTS : waits(d, gb_store_put(&d->store, p, now));
        gb_door_leave(d, GB_OP_SET);
        if (err == GB_AGAIN) gb_door_inform(d); /* or the ring could be overrun by one put */
    } while (err == GB_AGAIN);
    return err;
}

bool gb_door_put(struct gb_door *d, struct gb_put *p, uint64_t now, const char *mark,
                 enum gb_err *err) {
    for (;;) {
        *err = gb_store_fits_inline(p) ? put_short(d, p, now, mark) : put_long(d, p, now, mark);
        if (GB_LIKELY(*err == GB_OK || *err == GB_EXISTS)) return true;
        if (*err == GB_GONE) return false; /* closed meanwhile, or a signal: the exception is set */
        /* Full though all was given up: long reads or writes hold the rest for a moment. */
        if (*err != GB_BUSY) break;
        if (!gb_door_await(d)) return false;
    }
    gb_door_raise(d, *err, p);
    return false;
}

bool gb_door_copy(struct gb_door *d, struct gb_chain_read *r, uint8_t *to) {
    enum gb_err err = GB_AGAIN;
    if (!gb_door_far(d, r->left)) {
        while (err == GB_AGAIN) {
            if (!gb_door_enter(d)) return false;
            err = gb_chain_copy(&d->store, r, to);
            if (!err) gb_chain_close(&d->store, r);
            gb_door_leave(d, GB_OP_GET);
        }
        return true;
    }
    PyThreadState *state = gb_door_out(d);
    while (err == GB_AGAIN) {
        gb_lock_wait(&d->lock);
        gb_head_enter(&d->store);
        err = gb_chain_copy(&d->store, r, to);
        if (!err) gb_chain_close(&d->store, r);
        gb_head_leave(&d->store, GB_OP_GET);
        gb_lock_free(&d->lock);
    }
    gb_door_back(d, state);
    return true;
}

/* Holding the lock: a slice of due entries; true if more waits. */
static bool work_on(struct gb_door *d, uint64_t now) {
    bool more = d->open;
    if (more) {
        gb_door_begin(d);
        more = gb_room_work(&d->store, now);
        gb_head_leave(&d->store, GB_OP_EXPIRE);
    }
    if (GB_UNLIKELY(d->store.told)) gb_door_told(d);
    return more;
}

bool gb_door_work(struct gb_door *d, uint64_t now, uint32_t slices) {
    bool more = true;
    if (gb_door_mine(d)) { /* within a fork: nobody could be let in */
        while (more && slices--) more = work_on(d, now);
        return more;
    }
    gb_door_stay(d);
    PyThreadState *state = gb_door_out(d);
    for (uint32_t i = 0; more && i < slices; i++) {
        gb_lock_wait(&d->lock);
        make_way(d);
        more = work_on(d, now);
        gb_lock_free(&d->lock);
        if (gb_lock_wanted(&d->lock)) sched_yield();
    }
    gb_door_back(d, state);
    return more;
}

int gb_door_fill_begin(struct gb_door *d, struct gb_loader *l, int fd, const struct gb_snap_head *head, int64_t at) {
    uint64_t now = gb_clock_date_exact(&d->clock);
    gb_door_hold(d);
    if (!d->open) {
        gb_door_closed(d);
        return -1;
    }
    bool begun = gb_load_begin(l, fd, head, &d->store, now, at - (int64_t)now);
    gb_door_unlock(d);
    if (!begun) PyErr_NoMemory();
    return begun ? 0 : -1;
}

bool gb_door_fill(struct gb_door *d, struct gb_loader *l, uint32_t ms) {
    bool good = true;
    gb_door_stay(d);
    PyThreadState *state = gb_door_out(d);
    gb_lock_wait(&d->lock);
    if (d->open) good = gb_load_run(l, ms);
    gb_lock_free(&d->lock);
    gb_door_back(d, state);
    return good;
}

void gb_door_fill_end(struct gb_door *d, struct gb_loader *l) {
    gb_door_hold(d);
    if (!d->open) l->store = NULL;
    gb_load_end(l);
    gb_door_unlock(d);
}

void gb_door_fork_before(struct gb_door *d) {
    if (gb_door_mine(d)) return; /* a fork within the making ready for another */
    atomic_fetch_add(&d->outsiders, 1u); /* from here on everyone else must take the lock */
    gb_door_wait(d);
    atomic_store(&d->forker, PyThread_get_thread_ident());
}

void gb_door_fork_parent(struct gb_door *d) {
    if (!gb_door_mine(d)) return;
    atomic_store(&d->forker, 0ul);
    gb_lock_free(&d->lock);
    atomic_fetch_sub(&d->outsiders, 1u);
}

/* The other threads are not here: what they were reading or writing is nobody's now. A live file's pages are the
 * parent's as well: nothing in them is touched. */
void gb_door_fork_child(struct gb_door *d) {
    gb_lock_reborn(&d->lock);
    atomic_store(&d->forker, 0ul);
    atomic_store(&d->outsiders, 0u);
    d->forks++;
    bool own = d->open && !d->store.live;
    if (d->saver) { /* nobody is here to go on with it */
        if (own) gb_snap_end(&d->store, &d->saver->snap);
        d->saver->door = NULL;
        d->saver = NULL;
    }
    if (own) gb_chain_orphans(&d->store);
}
