/* wheel.c - levels by differing bits, so nothing wraps and the next event is one bit scan away. */
#include "wheel.h"

#define SLOT_MASK ((uint64_t)GB_WHEEL_SLOTS - 1u)

static gb_ref slot_head(const struct gb_wheel *w, uint32_t level, uint32_t slot) {
    return (gb_ref)((size_t)((uint8_t *)&w->root->heads[level][slot] - w->base) / GB_GRANULE);
}
static uint64_t tick_of(uint64_t deadline) { /* rounded up: never early */
    return (deadline + (1u << GB_WHEEL_TICK_SHIFT) - 1u) >> GB_WHEEL_TICK_SHIFT;
}
static uint32_t slot_at(uint64_t tick, uint32_t level) {
    return (uint32_t)((tick >> (level * GB_WHEEL_BITS)) & SLOT_MASK);
}
static uint32_t level_of(uint64_t clock, uint64_t tick) {
    uint64_t differ = (clock ^ tick) | 1u;
    return (63u - (uint32_t)__builtin_clzll(differ)) / GB_WHEEL_BITS;
}

void gb_wheel_format(struct gb_wheel *w, uint64_t now) {
    w->root->tick = now >> GB_WHEEL_TICK_SHIFT; /* never another, not even for a moment: deadlines are told by it */
    w->root->count = w->root->spare = 0;
    memset(w->root->bits, 0, sizeof w->root->bits);
    for (uint32_t l = 0; l < GB_WHEEL_LEVELS; l++)
        for (uint32_t s = 0; s < GB_WHEEL_SLOTS; s++) gb_list_format(w->base, slot_head(w, l, s));
}

static void place(struct gb_wheel *w, gb_ref entry, uint64_t deadline) {
    uint64_t tick = tick_of(deadline), clock = w->root->tick;
    if (tick < clock) tick = clock;
    uint32_t level = level_of(clock, tick), slot = slot_at(tick, level);
    GB_ASSERT(level < GB_WHEEL_LEVELS);
    gb_list_link(w->base, gb_list_at(w->base, slot_head(w, level, slot))->prev, GB_WHEEL_OF(entry));
    w->root->bits[level] |= (uint64_t)1 << slot;
}

void gb_wheel_link(struct gb_wheel *w, gb_ref entry) {
    place(w, entry, gb_wheel_deadline(w, entry));
    w->root->count++;
}

/* A list that falls empty leaves its head alone with itself: the head tells which bit to clear. */
static void take(struct gb_wheel *w, gb_ref entry) {
    gb_ref prev = gb_list_at(w->base, GB_WHEEL_OF(entry))->prev;
    gb_list_unlink(w->base, GB_WHEEL_OF(entry));
    if (!gb_list_empty(w->base, prev)) return;
    uint32_t n = prev - slot_head(w, 0, 0);
    w->root->bits[n / GB_WHEEL_SLOTS] &= ~((uint64_t)1 << (n % GB_WHEEL_SLOTS));
}

void gb_wheel_unlink(struct gb_wheel *w, gb_ref entry) {
    take(w, entry);
    w->root->count--;
}

void gb_wheel_moved(struct gb_wheel *w, gb_ref to) { gb_list_moved(w->base, GB_WHEEL_OF(to)); }

/* The tick at which something happens next, on which level; false if nothing is linked. What lies
 * under the wheel's own position on a level above 0 is being emptied, so it happens now. */
static bool next_event(const struct gb_wheel *w, uint64_t *tick, uint32_t *level) {
    uint64_t clock = w->root->tick;
    for (uint32_t l = GB_WHEEL_LEVELS; l-- > 0;)
        if ((w->root->bits[l] >> slot_at(clock, l)) & 1u) {
            *tick = clock;
            *level = l;
            return true;
        }
    for (uint32_t l = 0; l < GB_WHEEL_LEVELS; l++) {
        if (!w->root->bits[l]) continue; /* all set bits are ahead: the first is the earliest */
        uint32_t slot = (uint32_t)__builtin_ctzll(w->root->bits[l]), shift = l * GB_WHEEL_BITS;
        *tick = (((clock >> shift) & ~SLOT_MASK) | slot) << shift;
        *level = l;
        return true;
    }
    return false;
}

gb_ref gb_wheel_due(struct gb_wheel *w, uint64_t now, struct gb_work *work, uint32_t steps_max, bool any,
                    bool *more) {
    uint64_t target = now >> GB_WHEEL_TICK_SHIFT, tick;
    uint32_t level;
    *more = false;
    for (;;) {
        if (!next_event(w, &tick, &level) || tick > target) {
            if (w->root->tick < target) w->root->tick = target;
            return 0;
        }
        w->root->tick = tick;
        gb_ref head = slot_head(w, level, slot_at(tick, level));
        gb_ref entry = GB_ENTRY_OF_WHEEL(gb_list_at(w->base, head)->next);
        if (level == 0) return entry;
        uint64_t deadline = gb_wheel_deadline(w, entry);
        if (any && tick_of(deadline) <= target) return entry;
        if (work->steps >= steps_max) {
            *more = true;
            return 0;
        }
        work->steps++;
        take(w, entry);
        place(w, entry, deadline);
    }
}

uint64_t gb_wheel_next(const struct gb_wheel *w) {
    uint64_t tick;
    uint32_t level;
    return next_event(w, &tick, &level) ? tick << GB_WHEEL_TICK_SHIFT : UINT64_MAX;
}

static bool check_slot(const struct gb_wheel *w, gb_ref end, uint32_t level, uint32_t slot, uint64_t *count,
                       struct gb_fault *f) {
    gb_ref head = slot_head(w, level, slot);
    uint64_t n = 0, clock = w->root->tick;
    if (!gb_list_check(w->base, head, end, w->root->count, &n, f)) return false;
    bool bit = (w->root->bits[level] >> slot) & 1u;
    if (bit != (n > 0))
        return gb_broken(f, "wheel 1: a bit says whether its slot is empty", level * 100 + slot,
                         n > 0, bit);
    gb_ref at = gb_list_at(w->base, head)->next;
    for (; at != head; at = gb_list_at(w->base, at)->next) {
        gb_ref entry = GB_ENTRY_OF_WHEEL(at);
        if (at < 3u || /* one way: the superblock's first words are no links */
            !gb_entry_lies(w->base, entry, end) || !(gb_entry_at(w->base, entry)->word & GB_WORD_TTL))
            return gb_broken(f, "wheel 2: a timer is an entry's", entry, end, at);
        uint64_t deadline = gb_wheel_deadline(w, entry), tick = tick_of(deadline);
        if (tick < clock) tick = clock;
        bool emptying = slot_at(clock, level) == slot;
        if (!emptying && (level_of(clock, tick) != level || slot_at(tick, level) != slot))
            return gb_broken(f, "wheel 2: a timer lies on the level where its tick differs", entry,
                             level, level_of(clock, tick));
        uint64_t ms = clock << GB_WHEEL_TICK_SHIFT;
        const struct gb_entry *e = gb_entry_at(w->base, entry);
        bool far = deadline > ms + (1u << 31) || deadline + (1u << 31) < ms;
        if (!(e->word & GB_WORD_EXTRA) && far) /* one way: 32 bits cannot say it */
            return gb_broken(f, "wheel 3: a narrow deadline is near the clock", entry, ms, 0); /* unreachable: as above */
    }
    *count += n;
    return true;
}

bool gb_wheel_check(const struct gb_wheel *w, gb_ref end, struct gb_fault *f) {
    uint64_t count = 0;
    for (uint32_t l = 0; l < GB_WHEEL_LEVELS; l++)
        for (uint32_t s = 0; s < GB_WHEEL_SLOTS; s++)
            if (!check_slot(w, end, l, s, &count, f)) return false;
    if (count != w->root->count)
        return gb_broken(f, "wheel 4: count is the number of linked timers", 0, w->root->count,
                         count);
    return true;
}
