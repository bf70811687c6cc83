/* lock.c - the waiting half of the lock (after Drepper, "Futexes are tricky", 2011: state 2 means
 * that the one who frees must wake). */
#include "lock.h"

#define SPINS 200u

void gb_lock_init(struct gb_lock *l) {
    atomic_init(&l->word, 0u);
    atomic_init(&l->waiting, 0u);
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->freed, NULL);
}

static inline void rest(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

void gb_lock_wait(struct gb_lock *l) {
    for (uint32_t i = 0; i < SPINS; i++) {
        if (gb_lock_try(l)) return;
        rest();
    }
    atomic_fetch_add(&l->waiting, 1u);
    pthread_mutex_lock(&l->mutex);
    while (atomic_exchange_explicit(&l->word, 2u, memory_order_acquire) != 0u)
        pthread_cond_wait(&l->freed, &l->mutex);
    pthread_mutex_unlock(&l->mutex);
    atomic_fetch_sub(&l->waiting, 1u);
}

bool gb_lock_after_you(struct gb_lock *l) {
    uint32_t i = 0;
    if (!gb_lock_wanted(l)) return false;
    while (gb_lock_wanted(l) && i++ < 4u * SPINS) rest();
    return true;
}

void gb_lock_wake(struct gb_lock *l) {
    pthread_mutex_lock(&l->mutex); /* so that no one is between his look and his sleep */
    pthread_cond_signal(&l->freed);
    pthread_mutex_unlock(&l->mutex);
}

void gb_lock_reborn(struct gb_lock *l) { gb_lock_init(l); }

bool gb_lock_check(struct gb_lock *l, struct gb_fault *f) {
    uint32_t word = atomic_load(&l->word);
    if (word > 2u) return gb_broken(f, "lock 1: the word is 0, 1 or 2", 0, 2, word);
    return true;
}
