/* _door.h - the process's door to one image: lock, clock, and who may be inside.
 *
 * WHAT      `struct gb_door` is what a cache owns outside its image: the core's handle, the lock, the
 *           clock. An operation enters, works at most GB_STEPS_MAX steps,
 *           leaves. An outsider is a thread that works on the image without the GIL: the housekeeper,
 *           a long copy.
 *
 * INVARIANT 1 `outsiders` changes only with the GIL held. While it is 0 the GIL itself is the lock,
 *             and an operation that holds the GIL throughout pays no atomic instruction.
 *           2 nobody waits for the GIL while holding the lock.
 *           3 between enter and leave nothing runs that could run Python code: objects are made
 *             there, never released, called or compared.
 *           On a free-threaded interpreter there is no GIL: every operation takes the lock, and what
 *           goes on from outside after a hold is counted an outsider before that hold ends.
 *
 * NOT HERE  what a key or a value is (_box), what time it is (_clock), the methods people call (_hot, _packed).
 */
#ifndef GB_DOOR_H
#define GB_DOOR_H

#include "_clock.h"
#include "_alone.h"
#include "_bell.h"
#include "chain.h"
#include "lock.h"

struct gb_loader;
struct gb_snap_head;

struct gb_door {
    struct gb_store store;
    struct gb_lock lock;
    _Atomic uint32_t outsiders;
    _Atomic unsigned long forker; /* the thread that holds the lock across a fork, 0 if none */
    bool open;
    bool keep; /* the housekeeper is to be told of the first TTL */
    bool forked; /* the image is a live file, and the parent's */
    uint32_t forks; /* of which this process is the child: what was under way is the parent's */
    bool born; /* was ever open: tells "closed" from "never initialised" */
    struct gb_clock clock;
    PyObject *encode, *decode;
    PyObject *flights; /* of flights under way: _args.h */
    struct gb_bells bells; /* of readers that may sleep */
    PyObject *hears;       /* to be called after an operation that told something; NULL: nobody */
    bool inform;           /* it is to be called */
    struct gb_saver *saver; /* of a save under way; under the lock */
    unsigned long cutter;   /* the thread that works at store.cut, while there is one; under the lock */
};

struct gb_door_store { /* what every store begins with: gb_hot_install checks it */
    PyObject_HEAD
    struct gb_door door;
};
static inline PyObject *gb_door_owner(struct gb_door *d) {
    return (PyObject *)(void *)((char *)d - offsetof(struct gb_door_store, door));
}

/* Set once, when the module is made: the exceptions, and the Python halves of rare conversions. */
struct gb_door_names {
    PyObject *budget_error, *closed_error, *key_length_error, *encode_key, *decode_key, *base_key, *keep;
};
extern struct gb_door_names gb_door_names;

/* The slow way in: others are inside without the GIL, or there is none. */
void gb_door_wait(struct gb_door *d);
/* Sets ClosedError and gives the lock back. */
void gb_door_closed(struct gb_door *d);
static inline bool gb_door_mine(struct gb_door *d) {
    unsigned long who = atomic_load_explicit(&d->forker, memory_order_relaxed);
    return GB_UNLIKELY(who != 0) && who == PyThread_get_thread_ident();
}
static inline bool gb_door_locks(struct gb_door *d) {
#ifdef Py_GIL_DISABLED
    (void)d;
    return true;
#else
    return GB_UNLIKELY(atomic_load_explicit(&d->outsiders, memory_order_relaxed) != 0);
#endif
}
/* Rings the bells: something was recorded. Not inline: its loop shall cost nothing where nobody listens. */
__attribute__((noinline)) void gb_door_told(struct gb_door *d);
/* Calls who hears at once (inline delivery). With the GIL, outside, at an operation's end. */
void gb_door_inform_slow(struct gb_door *d);
static inline void gb_door_inform(struct gb_door *d) {
    if (GB_UNLIKELY(GB_LOAD(d->inform))) gb_door_inform_slow(d);
}
/* `hears` NULL: nobody; borrowed from the owner, alone with whom it is set. */
static inline void gb_door_hear(struct gb_door *d, PyObject *hears) { GB_STORE(d->hears, hears); }
/* Whether there is who hears at once. */
static inline bool gb_door_heard(const struct gb_door *d) { return GB_LOAD(d->hears) != NULL; }
/* A hold begins; the lock is held. */
static inline void gb_door_begin(struct gb_door *d) {
    gb_head_enter(&d->store);
    if (GB_UNLIKELY(GB_HEAD_LISTENS(&d->store) != 0)) d->store.now = gb_clock_date(&d->clock);
}
static inline void gb_door_unlock(struct gb_door *d) {
    if (gb_door_locks(d) && !gb_door_mine(d)) gb_lock_free(&d->lock);
}
/* False: the cache is closed, and ClosedError is set. */
static inline bool gb_door_enter(struct gb_door *d) {
    if (gb_door_locks(d)) gb_door_wait(d);
    if (GB_UNLIKELY(!d->open)) {
        gb_door_closed(d);
        return false;
    }
    gb_door_begin(d);
    return true;
}
static inline void gb_door_leave(struct gb_door *d, enum gb_op op) {
    gb_head_leave(&d->store, op);
    if (GB_UNLIKELY(GB_HEAD_TOLD(&d->store))) gb_door_told(d);
    gb_door_unlock(d);
}

/* In, also where it is closed; out by gb_door_unlock. */
static inline void gb_door_hold(struct gb_door *d) {
    if (gb_door_locks(d)) gb_door_wait(d);
}
/* Asked without being in; what it says may be over at once. */
static inline bool gb_door_is_open(const struct gb_door *d) { return GB_LOAD(d->open); }
/* Held: nobody enters any more. Whether it was open. */
static inline bool gb_door_shut(struct gb_door *d) {
    bool was = d->open;
    GB_STORE(d->open, false);
    return was;
}
/* Entered, and about to leave: says that gb_door_out follows, so that the image stays until gb_door_back. */
static inline void gb_door_stay(struct gb_door *d) {
#ifdef Py_GIL_DISABLED
    atomic_fetch_add(&d->outsiders, 1u);
#else
    (void)d;
#endif
}
/* Becomes an outsider and drops the GIL; comes back. Between the two: slices under gb_lock_wait. */
PyThreadState *gb_door_out(struct gb_door *d);
void gb_door_back(struct gb_door *d, PyThreadState *state);
/* Lets other threads go on; false if a signal handler raised. */
bool gb_door_rest(void);
/* The same for threads that are in this cache; false, with a RuntimeError, where they cannot: this one forks. */
bool gb_door_yield(struct gb_door *d);
/* The same for what GB_BUSY says has to wait; false, with a RuntimeError, where it would be for this thread itself. */
bool gb_door_await(struct gb_door *d);
/* Whether others may wait for this thread: it was called back from the midst of its own long write, save, or making of
 * room for a smaller image or a ring. */
bool gb_door_busy(struct gb_door *d);
/* False, with that RuntimeError, where it is so: who is about to wait for those others. */
bool gb_door_idle(struct gb_door *d);

/* The one place where an error code becomes an exception. */
void gb_door_raise(struct gb_door *d, enum gb_err err, const struct gb_put *p);

/* Puts, however long the value: false with an exception, or *err is GB_OK or GB_EXISTS, which is also
 * said where `mark` (may be NULL) is set when the value would be made visible. */
bool gb_door_put(struct gb_door *d, struct gb_put *p, uint64_t now, const char *mark,
                 enum gb_err *err);
/* gb_load_begin of what is `at` ms by the wall clock; -1 with an exception. */
int gb_door_fill_begin(struct gb_door *d, struct gb_loader *l, int fd, const struct gb_snap_head *head, int64_t at);
/* gb_load_run in a hold of its own, without the GIL: meanwhile nobody takes the image away, and no process forks. */
bool gb_door_fill(struct gb_door *d, struct gb_loader *l, uint32_t ms);
/* gb_load_end, also where the cache was closed. */
void gb_door_fill_end(struct gb_door *d, struct gb_loader *l);

/* Whether so long a value is copied out without the GIL. */
static inline bool gb_door_far(struct gb_door *d, uint32_t len) {
    return len > GB_CHAIN_SLICE && !gb_door_mine(d);
}
/* Copies a value that was opened, then closes it; not entered. gb_door_stay was said, if it is far. */
bool gb_door_copy(struct gb_door *d, struct gb_chain_read *r, uint8_t *to);
/* Due entries, trash: in slices without the GIL, at most `slices` of them. True if more waits. */
bool gb_door_work(struct gb_door *d, uint64_t now, uint32_t slices);

void gb_door_fork_before(struct gb_door *d);
void gb_door_fork_parent(struct gb_door *d);
void gb_door_fork_child(struct gb_door *d);
#endif
