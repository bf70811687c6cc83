/* wheel.h - from time to due refs.
 *
 * WHAT      A hierarchical timing wheel (Varghese, Lauck, SOSP 87). Time is a 64-bit count of ms
 *           since the image's epoch; a tick is 8 ms; a timer is due in the first tick that does not
 *           begin before its deadline. A timer lies on the level of the highest group of bits in
 *           which its tick differs from the wheel's own, so all slots ahead are to the right of the
 *           present one and the earliest event is the lowest level's first set bit.
 *           The wheel is pulled: it names one due timer at a time and resumes where it stopped.
 *
 * PICTURE   level 0   [ ][x][ ]...[ ]   64 slots of 8 ms       bitmap 0100..0
 *           level 1   [ ][ ][x]...[ ]   64 slots of 512 ms     bitmap 0010..0
 *           ...        each slot: the head of a list through gb_timer.link
 *           level 6                     64 slots of 17 years
 *
 * INVARIANT 1 a level's bit is set if and only if its slot's list is not empty.
 *           2 a timer's tick differs from the wheel's in its level's group, and in none above;
 *             but for a slot under the wheel's own position, which is being emptied.
 *           3 a deadline kept in 32 bits is within 2^31 ms of the wheel's clock.
 *           4 count is the number of linked timers.
 *
 * COST      link, unlink: one slot. due: one timer a step; each timer moves down at most once a
 *           level, and straight to the level where it belongs.
 *
 * NOT HERE  clocks (now is an argument), entries beyond their timer, what happens to the due.
 */
#ifndef GB_WHEEL_H
#define GB_WHEEL_H

#include "base.h"
#include "list.h"

#define GB_WHEEL_SLOTS (1u << GB_WHEEL_BITS)
#define GB_WHEEL_TICK_SHIFT 3u                         /* 8 ms */
#define GB_WHEEL_TICK_BITS 42u                         /* that a tick has: as many as the levels tell apart */
#define GB_WHEEL_LEVELS ((GB_WHEEL_TICK_BITS + GB_WHEEL_BITS - 1u) / GB_WHEEL_BITS)
#define GB_WHEEL_MAX_MS ((uint64_t)1 << 44)            /* 557 years: no deadline lies further ahead */
#define GB_WHEEL_CLOCK_MS ((uint64_t)1 << 44)          /* the wheel's clock is below: no deadline has more bits */
#define GB_WHEEL_NARROW ((uint64_t)1 << 30)            /* further off than this is kept in 64 bits */

_Static_assert((GB_WHEEL_CLOCK_MS + GB_WHEEL_MAX_MS) >> GB_WHEEL_TICK_SHIFT <= (uint64_t)1 << GB_WHEEL_TICK_BITS,
               "a tick has a level");

struct gb_wheel_root {
    uint64_t tick; /* every timer due before this tick has been named and unlinked */
    uint32_t count;
    uint32_t spare;
    uint64_t bits[GB_WHEEL_LEVELS];
    struct gb_link heads[GB_WHEEL_LEVELS][GB_WHEEL_SLOTS];
};

struct gb_wheel {
    uint8_t *base;
    struct gb_wheel_root *root;
};

void gb_wheel_format(struct gb_wheel *w, uint64_t now);
/* Links the entry's timer, whose deadline is set already. */
void gb_wheel_link(struct gb_wheel *w, gb_ref entry);
void gb_wheel_unlink(struct gb_wheel *w, gb_ref entry);
/* The entry's bytes were copied to `to`; its neighbours still name the old place. */
void gb_wheel_moved(struct gb_wheel *w, gb_ref to);
/* A due entry, still linked, or 0: none is due, or one would have to be moved when `steps_max` is reached (then *more
 * is true). In deadlines' order, tick by tick; `any`: out of it, where one that is due need not be moved first. */
gb_ref gb_wheel_due(struct gb_wheel *w, uint64_t now, struct gb_work *work, uint32_t steps_max, bool any,
                    bool *more);
/* ms when the next due() may find something to do, UINT64_MAX if nothing is linked. */
uint64_t gb_wheel_next(const struct gb_wheel *w);
/* `end`: of the entries. */
bool gb_wheel_check(const struct gb_wheel *w, gb_ref end, struct gb_fault *f);

/* The deadline in full. A narrow one is understood relative to the wheel's clock: it was near when it was
 * linked, and the clock passes no timer that is still linked. */
static inline uint64_t gb_wheel_deadline(const struct gb_wheel *w, gb_ref entry) {
    const struct gb_entry *e = gb_entry_at(w->base, entry);
    const struct gb_timer *t = gb_timer_at(w->base, entry);
    if (GB_UNLIKELY(e->word & GB_WORD_EXTRA)) {
        const struct gb_extra *x = gb_extra_at(w->base, entry, e->word);
        if (x->flags & GB_EXTRA_WIDE) return ((uint64_t)x->due_high << 32) | t->due;
    }
    uint64_t clock = w->root->tick << GB_WHEEL_TICK_SHIFT;
    return clock + (uint64_t)(int64_t)(int32_t)(t->due - (uint32_t)clock);
}
/* Whether a deadline needs GB_EXTRA_WIDE: so far ahead of the wheel's clock, or behind it where a caller's went back. */
static inline bool gb_wheel_wide(const struct gb_wheel *w, uint64_t due) {
    uint64_t clock = w->root->tick << GB_WHEEL_TICK_SHIFT;
    return due + GB_WHEEL_NARROW - clock > 2u * GB_WHEEL_NARROW; /* unsigned: one comparison for both */
}

#endif
