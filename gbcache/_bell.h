/* _bell.h - how a reader that sleeps hears of news.
 *
 * WHAT      A bell is a file descriptor (an eventfd, or a pipe's end that does not block) and whether its
 *           owner wants to hear: a reader arms it, looks once more, and sleeps on the descriptor. Whoever
 *           makes news rings every armed bell of the cache: one write for each sleep, none while a reader
 *           is awake. Ringing runs no Python code, so it may happen anywhere, after the lock.
 *
 * INVARIANT 1 a reader that armed its bell before it looked for the last time is rung for all that came
 *             after that look.
 *
 * NOT HERE  who sleeps how (notify.py), what the news is (ring, _queue).
 */
#ifndef GB_BELL_H
#define GB_BELL_H

#include <Python.h> /* first: it chooses what the system headers declare */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <unistd.h>

struct gb_bell {
    _Atomic bool armed;
    int fd;
};
struct gb_bells {
    uint32_t n, room; /* as many as there are descriptors, at most */
    struct gb_bell **all;
};

static inline void gb_bell_ring(struct gb_bell *b) {
    const uint64_t one = 1;
    /* A reader arms, then looks under the lock: whoever changes after that look sees it armed. */
    if (!atomic_load_explicit(&b->armed, memory_order_relaxed) || !atomic_exchange(&b->armed, false)) return;
    ssize_t n = write(b->fd, &one, sizeof one); /* full: it has been rung already */
    (void)n;
}
static inline void gb_bell_ring_all(const struct gb_bells *bs) {
    for (uint32_t i = 0; i < bs->n; i++) gb_bell_ring(bs->all[i]);
}
/* False: no memory, and nothing has changed. As drop: under the lock under which they are rung. */
static inline bool gb_bell_add(struct gb_bells *bs, struct gb_bell *b) {
    if (bs->n == bs->room) {
        uint32_t room = bs->room ? 2u * bs->room : 8u;
        struct gb_bell **all = PyMem_RawRealloc(bs->all, room * sizeof(struct gb_bell *));
        if (!all) return false;
        bs->all = all;
        bs->room = room;
    }
    bs->all[bs->n++] = b;
    return true;
}
static inline void gb_bell_drop(struct gb_bells *bs, const struct gb_bell *b) {
    for (uint32_t i = 0; i < bs->n; i++)
        if (bs->all[i] == b) bs->all[i--] = bs->all[--bs->n];
}
static inline void gb_bell_free(struct gb_bells *bs) { PyMem_RawFree(bs->all); }

#endif
