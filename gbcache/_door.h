/* _door.h - the process's door to one image: lock, clock, and who may be inside.
 *
 * WHAT      `struct gb_door` is what a cache owns outside its image: the core's handle, the lock, the
 *           clock, the defaults of its writes. An operation enters, works at most GB_STEPS_MAX steps,
 *           leaves. An outsider is a thread that works on the image without the GIL: the housekeeper,
 *           a long copy.
 *
 * INVARIANT 1 `outsiders` changes only with the GIL held. While it is 0 the GIL itself is the lock,
 *             and an operation that holds the GIL throughout pays no atomic instruction.
 *           2 nobody waits for the GIL while holding the lock.
 *           3 between enter and leave nothing runs that could run Python code: objects are made
 *             there, never released, called or compared.
 *           On a free-threaded interpreter there is no GIL: every operation takes the lock.
 *
 * NOT HERE  what a key or a value is (_box), the methods people call (_hot, _packed).
 */
#ifndef GB_DOOR_H
#define GB_DOOR_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "chain.h"
#include "lock.h"
#include <time.h>

struct gb_door {
    struct gb_store store;
    struct gb_lock lock;
    _Atomic uint32_t outsiders;
    _Atomic unsigned long forker; /* the thread that holds the lock across a fork, 0 if none */
    bool open;
    bool keep; /* the housekeeper is to be told of the first TTL */
    bool born; /* was ever open: tells "closed" from "never initialised" */
    uint64_t ttl, idle; /* ms a write is given where it says nothing; 0: none */
    double jitter;      /* the largest share of a TTL that is taken off at random */
    uint64_t dice;
    int64_t zero_ns;    /* the monotonic clock at the image's time 0 */
    double zero;        /* the custom clock's */
    PyObject *clock;    /* NULL: the monotonic clock */
    PyObject *encode, *decode;
    PyObject *memory; /* the mapping, NULL if closed */
};

/* Set once, when the module is made: the exceptions, and the Python halves of rare conversions. */
struct gb_door_names {
    PyObject *budget_error, *closed_error, *seconds, *encode_key, *decode_key, *keep;
};
extern struct gb_door_names gb_door_names;

/* Image time 0 lies a second before the cache was made, so that 0 can mean "no deadline". */
#define GB_DOOR_HEAD_START 1000
#define GB_DOOR_COARSE_MS 20u /* the coarse clock is at most two of its ticks behind */

static inline uint64_t gb_door_monotonic(const struct gb_door *d, clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    int64_t ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec - d->zero_ns;
    return (uint64_t)(ns / 1000000 + GB_DOOR_HEAD_START); /* the coarse clock may lag behind 0 */
}
static inline void gb_door_start(struct gb_door *d) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    d->zero_ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
static inline uint64_t gb_door_exact(const struct gb_door *d) {
    return gb_door_monotonic(d, CLOCK_MONOTONIC);
}
static inline uint64_t gb_door_coarse(const struct gb_door *d) {
#ifdef CLOCK_MONOTONIC_COARSE
    return gb_door_monotonic(d, CLOCK_MONOTONIC_COARSE);
#else
    return gb_door_exact(d);
#endif
}
/* Before the lock: a custom clock is Python code. false: an exception is set. */
bool gb_door_ask(struct gb_door *d, uint64_t *now);
/* The time for an operation that begins: `exact` where a deadline depends on it. */
static inline bool gb_door_now(struct gb_door *d, bool exact, uint64_t *now) {
    if (GB_UNLIKELY(d->clock != NULL)) return gb_door_ask(d, now);
    *now = exact ? gb_door_exact(d) : gb_door_coarse(d);
    return true;
}
/* Whether the entry is due. `*now` is 0 if no clock was read yet; the coarse clock decides unless it
 * is within its own error of the deadline (4 ns against 24). */
static inline bool gb_door_due(const struct gb_door *d, gb_ref ref, uint64_t *now) {
    if (GB_LIKELY(!(gb_entry_at(d->store.base, ref)->word & GB_WORD_TTL))) return false;
    uint64_t due = gb_wheel_deadline(&d->store.index.wheel, ref);
    if (!*now) {
        *now = gb_door_coarse(d);
        if (due <= *now) return true;
        bool slides = gb_entry_at(d->store.base, ref)->word & GB_WORD_EXTRA; /* may: idle */
        if (slides || due <= *now + GB_DOOR_COARSE_MS) *now = gb_door_exact(d);
    }
    return due <= *now;
}

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
    gb_room_enter(&d->store);
    return true;
}
static inline void gb_door_leave(struct gb_door *d, enum gb_op op) {
    gb_room_leave(&d->store, op);
    gb_door_unlock(d);
}

/* Becomes an outsider and drops the GIL; comes back. Between the two: slices under gb_lock_wait. */
PyThreadState *gb_door_out(struct gb_door *d);
void gb_door_back(struct gb_door *d, PyThreadState *state);
/* Lets other threads go on; false if a signal handler raised. */
bool gb_door_rest(void);

/* The one place where an error code becomes an exception. */
void gb_door_raise(struct gb_door *d, enum gb_err err, const struct gb_put *p);

/* Puts, however long the value: false with an exception, or *err is GB_OK or GB_EXISTS. */
bool gb_door_put(struct gb_door *d, struct gb_put *p, uint64_t now, enum gb_err *err);
/* Copies a value that was opened, then closes it; not entered. */
bool gb_door_copy(struct gb_door *d, struct gb_chain_read *r, uint8_t *to);
/* Due entries, trash: in slices without the GIL, at most `slices` of them. True if more waits. */
bool gb_door_work(struct gb_door *d, uint64_t now, uint32_t slices);

void gb_door_fork_before(struct gb_door *d);
void gb_door_fork_parent(struct gb_door *d);
void gb_door_fork_child(struct gb_door *d);
#endif
