/* lock.h - a small process-local lock.
 *
 * WHAT      One word, a mutex and a condition behind it for those who must wait. The only file of
 *           the core that speaks to the OS; never part of an image.
 *
 * PICTURE   word: 0 free | 1 held | 2 held, and someone may wait
 *
 * INVARIANT 1 the word is 0, 1 or 2; whoever finds it 0 and sets it holds the lock.
 *
 * COST      uncontended: one exchange to take, one to free. Contended: a short spin, then sleep.
 *
 * NOT HERE  fairness beyond gb_lock_wanted, recursion, Python's GIL (the binding's business).
 */
#ifndef GB_LOCK_H
#define GB_LOCK_H

#include "base.h"
#include <pthread.h>
#include <stdatomic.h>

struct gb_lock {
    _Atomic uint32_t word;
    _Atomic uint32_t waiting;
    pthread_mutex_t mutex;
    pthread_cond_t freed;
};

void gb_lock_init(struct gb_lock *l);
void gb_lock_wait(struct gb_lock *l); /* blocks until it holds the lock */
/* Who is about to try again and again says so, and takes it back. */
static inline void gb_lock_want(struct gb_lock *l) { atomic_fetch_add_explicit(&l->waiting, 1u, memory_order_relaxed); }
static inline void gb_lock_wanted_no_more(struct gb_lock *l) {
    atomic_fetch_sub_explicit(&l->waiting, 1u, memory_order_relaxed);
}
/* Lets those go first who want it, for some microseconds at most. */
bool gb_lock_after_you(struct gb_lock *l);
void gb_lock_wake(struct gb_lock *l); /* the slow half of gb_lock_free */
/* In a forked child, by the thread that held the lock across the fork: nobody waits any more. */
void gb_lock_reborn(struct gb_lock *l);
bool gb_lock_check(struct gb_lock *l, struct gb_fault *f);

static inline bool gb_lock_try(struct gb_lock *l) {
    uint32_t zero = 0;
    return atomic_compare_exchange_strong_explicit(&l->word, &zero, 1u, memory_order_acquire,
                                                   memory_order_relaxed);
}
static inline void gb_lock_free(struct gb_lock *l) {
    if (GB_UNLIKELY(atomic_exchange_explicit(&l->word, 0u, memory_order_release) == 2u))
        gb_lock_wake(l);
}
/* Whether somebody waits: a holder of many slices lets him in between two. */
static inline bool gb_lock_wanted(struct gb_lock *l) {
    return atomic_load_explicit(&l->waiting, memory_order_relaxed) != 0;
}

#endif
