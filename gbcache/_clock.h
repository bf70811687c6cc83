/* _clock.h - what time it is, and how long what is written now will live.
 *
 * WHAT      Times are ms of an image's own clock, whose 0 lies a second before the cache was made, so
 *           that 0 can mean "no deadline". A custom clock is Python code: it is asked before any lock.
 *           A life is a deadline, where there is an idle time the deadline no use may pass, and how long
 *           the value is kept beyond its deadline for those who ask for it (stale).
 *
 * COST      coarse: 4 ns, at most two of its ticks of 4 ms behind. exact: 24 ns.
 *
 * NOT HERE  the wheel that keeps deadlines (csrc), what expiring means.
 */
#ifndef GB_CLOCK_H
#define GB_CLOCK_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_alone.h"
#include "index.h"
#include <time.h>

struct gb_clock {
    int64_t zero_ns; /* the monotonic clock at time 0 */
    double zero;     /* the custom clock's */
    double wall;     /* what time.time() said at time 0 */
    uint64_t last;   /* what the custom clock said last */
    PyObject *asks;  /* the custom clock, NULL for the monotonic one */
    uint64_t ttl, idle; /* ms a write is given where it says nothing; 0: none */
    double jitter;      /* the largest share of a TTL that is taken off at random */
    uint64_t dice;
};
struct gb_life {
    uint64_t due, hard; /* 0: none */
    uint32_t idle, stale;
};
extern PyObject *gb_clock_seconds; /* units.seconds_of; set when the module is made */

#define GB_CLOCK_HEAD_START 1000
#define GB_CLOCK_MOST ((uint64_t)1 << 43) /* ms, 278 years: with the longest TTL still below what a wheel can tell */
#define GB_CLOCK_COARSE_MS 20u /* more than the coarse clock can be behind */

static inline uint64_t gb_clock_monotonic(const struct gb_clock *c, clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    int64_t ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec - c->zero_ns;
    int64_t ms = ns / 1000000 + GB_CLOCK_HEAD_START; /* the coarse clock may lag behind 0 */
    return GB_LIKELY(ms > 0) ? (uint64_t)ms : 1u;     /* and a restored machine's clock be where it was long before */
}
static inline uint64_t gb_clock_exact(const struct gb_clock *c) {
    return gb_clock_monotonic(c, CLOCK_MONOTONIC);
}
static inline uint64_t gb_clock_coarse(const struct gb_clock *c) {
#ifdef CLOCK_MONOTONIC_COARSE
    return gb_clock_monotonic(c, CLOCK_MONOTONIC_COARSE);
#else
    return gb_clock_exact(c);
#endif
}
/* Sets time 0 and reads the options: `asks` (borrowed) may be NULL, ttl and idle None. -1: exception. */
int gb_clock_start(struct gb_clock *c, PyObject *asks, PyObject *ttl, PyObject *idle, double jitter,
                   uint64_t seed);
/* Asks the custom clock. False: an exception is set. */
bool gb_clock_ask(struct gb_clock *c, uint64_t *now);
/* The time for an operation that begins: `exact` where a deadline depends on it. */
static inline bool gb_clock_now(struct gb_clock *c, bool exact, uint64_t *now) {
    if (GB_UNLIKELY(c->asks != NULL)) return gb_clock_ask(c, now);
    *now = exact ? gb_clock_exact(c) : gb_clock_coarse(c);
    return true;
}
/* The time of an event: no Python code runs. */
static inline uint64_t gb_clock_date(const struct gb_clock *c) {
    return c->asks ? GB_LOAD(c->last) : gb_clock_coarse(c);
}
static inline uint64_t gb_clock_date_exact(const struct gb_clock *c) {
    return c->asks ? GB_LOAD(c->last) : gb_clock_exact(c);
}
/* A time in seconds, as time.time() (or the custom clock) has it. */
static inline double gb_clock_at(const struct gb_clock *c, uint64_t ms) {
    return (c->asks ? c->zero : c->wall) + ((double)ms - GB_CLOCK_HEAD_START) / 1000.0;
}
/* Whether the entry is past its deadline. `*now` is 0 if no clock was read yet; the coarse clock decides unless it
 * is within its own error of the deadline. */
static inline bool gb_clock_due(const struct gb_clock *c, const struct gb_index *ix, gb_ref ref,
                                uint64_t *now) {
    uint32_t word = gb_entry_at(ix->base, ref)->word;
    if (GB_LIKELY(!(word & GB_WORD_TTL))) return false;
    uint64_t due = gb_index_deadline(ix, ref);
    if (!*now) {
        *now = gb_clock_coarse(c);
        if (due <= *now) return true;
        bool slides = word & GB_WORD_EXTRA; /* may: idle */
        if (slides || due <= *now + GB_CLOCK_COARSE_MS) *now = gb_clock_exact(c);
    }
    return due <= *now;
}
/* What a write at `now` with a TTL of `ttl` ms (0: none) gets. */
struct gb_life gb_clock_life(struct gb_clock *c, uint64_t now, uint64_t ttl);
/* A ttl argument in ms: 0 for None. False with TypeError or ValueError. */
bool gb_clock_ttl(PyObject *ttl, uint64_t *ms);
#endif
