/* test_wheel.c - the wheel against a list of deadlines: all that is due is named, and nothing early. */
#include "check.h"
#include "core.h"

#define SLOTS 600u /* entries have fixed places; each may be free */
#define ENTRY_GRANULES 10u
#define YEAR ((uint64_t)365 * 24 * 3600 * 1000)

struct timer {
    uint64_t due;
    gb_ref ref; /* 0: none here */
};
static struct gb_wheel wheel;
static struct timer timers[SLOTS];
static uint32_t linked;
static uint64_t now;
static uint64_t all_steps, all_links;

static gb_ref place_of(uint32_t i) {
    gb_ref head = (gb_ref)(1u + (sizeof(struct gb_wheel_root) + 7u) / 8u);
    return head + i * ENTRY_GRANULES;
}
static void start(uint64_t at) {
    size_t bytes = (size_t)place_of(SLOTS) * GB_GRANULE;
    wheel.base = malloc(bytes);
    memset(wheel.base, 0xA5, bytes);
    wheel.root = (struct gb_wheel_root *)gb_at(wheel.base, 1);
    memset(timers, 0, sizeof timers);
    linked = 0;
    now = at;
    all_steps = all_links = 0;
    gb_wheel_format(&wheel, now);
    CHECK(gb_wheel_next(&wheel) == UINT64_MAX);
}
static uint64_t clock_ms(void) { return wheel.root->tick << GB_WHEEL_TICK_SHIFT; }
static uint64_t tick(uint64_t due) { return (due + 7u) / 8u; }

static uint32_t any(bool used) {
    for (uint32_t n = 0, i = check_below(SLOTS); n < SLOTS; n++, i = (i + 1u) % SLOTS)
        if ((timers[i].ref != 0) == used) return i;
    return SLOTS;
}

static bool sound(const struct gb_wheel *w, struct gb_fault *f) { return gb_wheel_check(w, UINT32_MAX, f); }

static void compare(void) {
    uint64_t earliest = UINT64_MAX;
    SOUND(sound, &wheel);
    CHECK(wheel.root->count == linked);
    for (uint32_t i = 0; i < SLOTS; i++) {
        if (!timers[i].ref) continue;
        CHECK(gb_wheel_deadline(&wheel, timers[i].ref) == timers[i].due);
        if (timers[i].due < earliest) earliest = timers[i].due;
    }
    uint64_t next = gb_wheel_next(&wheel);
    CHECK((next == UINT64_MAX) == !linked);
    CHECK(!linked || next <= tick(earliest) * 8u || next == clock_ms()); /* within its tick */
}

/* What an index does: a wide deadline has extra words and says so. */
static void set_due(gb_ref ref, uint64_t due, bool extra) {
    bool wide = gb_wheel_wide(&wheel, due);
    struct gb_entry *e = gb_entry_at(wheel.base, ref);
    e->word = ENTRY_GRANULES | ((uint32_t)GB_KIND_ENTRY << 10) | GB_WORD_TTL |
              (wide || extra ? GB_WORD_EXTRA : 0u);
    gb_timer_at(wheel.base, ref)->due = (uint32_t)due;
    if (!wide && !extra) return;
    struct gb_extra *x = gb_extra_at(wheel.base, ref, e->word);
    memset(x, 0, sizeof *x);
    x->due_high = wide ? (uint32_t)(due >> 32) : 0xDEADu; /* not read unless WIDE */
    x->flags = wide ? GB_EXTRA_WIDE : 0u;
}
static void add(uint64_t due) {
    uint32_t i = any(false);
    if (i == SLOTS) return;
    timers[i] = (struct timer){due, place_of(i)};
    set_due(timers[i].ref, due, check_below(4) == 0);
    gb_wheel_link(&wheel, timers[i].ref);
    linked++;
    all_links++;
}
static void drop(uint32_t i) {
    gb_wheel_unlink(&wheel, timers[i].ref);
    memset(gb_at(wheel.base, timers[i].ref), 0x55, ENTRY_GRANULES * 8u);
    timers[i].ref = 0;
    linked--;
}
static void move(uint32_t i) {
    uint32_t to = any(false);
    if (to == SLOTS) return;
    memcpy(gb_at(wheel.base, place_of(to)), gb_at(wheel.base, timers[i].ref), ENTRY_GRANULES * 8u);
    memset(gb_at(wheel.base, timers[i].ref), 0x55, ENTRY_GRANULES * 8u);
    timers[to] = (struct timer){timers[i].due, place_of(to)};
    timers[i].ref = 0;
    gb_wheel_moved(&wheel, place_of(to));
}

/* 1 ms to 80 years from now, or up to twelve days ago. */
static uint64_t any_deadline(void) {
    uint64_t far = (uint64_t)1 << check_below(42);
    if (check_below(20) == 0) return clock_ms() - check_below(1u << 30);
    if (check_below(30) == 0) return now + 80u * YEAR;
    if (check_below(200) == 0) return GB_WHEEL_MAX_MS - 8u;
    if (check_below(10) == 0) return clock_ms() + GB_WHEEL_NARROW - 2u + check_below(5);
    return now + far + check_random() % far - (check_below(2) ? 1u : 0u);
}

/* Takes what is due, `budget` steps a call; stops early if told to. True if nothing more is due. */
static bool drain(uint32_t budget, uint32_t calls) {
    uint64_t before = clock_ms();
    bool more = true;
    while (more && calls--) {
        struct gb_work work = {0};
        gb_ref ref = gb_wheel_due(&wheel, now, &work, budget, check_below(2), &more);
        CHECK(work.steps <= budget);
        CHECK(!(ref && more) && !(more && work.steps < budget));
        all_steps += work.steps;
        CHECK(clock_ms() >= before && clock_ms() <= (now > before ? now : before));
        before = clock_ms();
        if (!ref) continue;
        more = true;
        for (uint32_t i = 0; i < SLOTS; i++) {
            if (timers[i].ref != ref) continue;
            CHECK(timers[i].due <= now); /* never early */
            drop(i);
            ref = 0;
            break;
        }
        CHECK(!ref); /* a linked one */
    }
    if (more) return false;
    uint64_t next = gb_wheel_next(&wheel);
    for (uint32_t i = 0; i < SLOTS; i++) /* none left that is due: at most one tick late */
        CHECK(!timers[i].ref || tick(timers[i].due) > now / 8u);
    CHECK(next > now - now % 8u);
    return true;
}

static void run(uint64_t at, uint32_t steps, uint32_t most) {
    start(at);
    for (uint32_t n = 0; n < steps; n++) {
        uint32_t what = check_below(100);
        if (what < 50) {
            if (linked < most) add(any_deadline());
        } else if (what < 62) {
            if (linked) drop(any(true));
        } else if (what < 72) {
            if (linked) move(any(true));
        } else if (what < 84) {
            now += check_random() % ((uint64_t)1 << check_below(check_below(20) ? 28 : 41));
            if (now > GB_WHEEL_MAX_MS / 2u) now = GB_WHEEL_MAX_MS / 2u;
            (void)drain(1u + check_below(40), check_below(3) ? UINT32_MAX : check_below(6));
        } else if (what < 86) { /* exactly there, and one ms before */
            uint64_t next = gb_wheel_next(&wheel);
            if (next != UINT64_MAX && next > now && next < now + 80u * YEAR) {
                now = next - 1u;
                CHECK(drain(1000000, UINT32_MAX));
                now = next;
                (void)drain(1, 1);
            }
        } else {
            (void)drain(1, check_below(4) ? check_below(20) : UINT32_MAX);
        }
        compare();
    }
    while (linked) { /* from event to event all go, each no earlier than due */
        uint64_t next = gb_wheel_next(&wheel);
        if (next > now) now = next;
        CHECK(drain(1, UINT32_MAX));
    }
    CHECK(gb_wheel_next(&wheel) == UINT64_MAX);
    CHECK(all_steps <= all_links * GB_WHEEL_LEVELS); /* a timer moves down once a level at most */
    compare();
    free(wheel.base);
}

/* In deadline's order, tick by tick, where all were linked beforehand. */
static void ordered(void) {
    start(123456789);
    for (uint32_t i = 0; i < 500; i++) add(now + 1u + check_random() % ((uint64_t)1 << (3u + i % 37u)));
    uint64_t last = 0;
    for (uint64_t far = 1; linked; far *= 2u) {
        now += far;
        for (bool more = true; more;) {
            struct gb_work work = {0};
            gb_ref ref = gb_wheel_due(&wheel, now, &work, 1, false, &more);
            if (!ref) continue;
            more = true;
            uint64_t due = gb_wheel_deadline(&wheel, ref);
            CHECK(due <= now && tick(due) >= last);
            CHECK(clock_ms() == tick(due) * 8u);
            last = tick(due);
            for (uint32_t i = 0; i < SLOTS; i++)
                if (timers[i].ref == ref) drop(i);
        }
        compare();
    }
    free(wheel.base);
}

/* Each invariant, broken by hand, is named by the check. */
#define BROKEN(text)                                                                               \
    do {                                                                                           \
        struct gb_fault fault_ = {0};                                                              \
        CHECK(!sound(&wheel, &fault_));                                                   \
        CHECK(fault_.rule && !strncmp(fault_.rule, text, strlen(text)));                           \
    } while (0)
static void faults(void) {
    start(8000);
    add(now + 24);
    gb_ref ref = 0;
    for (uint32_t i = 0; i < SLOTS; i++) ref = timers[i].ref ? timers[i].ref : ref;
    compare();
    wheel.root->bits[0] ^= 2u;
    BROKEN("wheel 1");
    wheel.root->bits[0] ^= 2u;
    set_due(ref, now + 100000, false);
    BROKEN("wheel 2");
    set_due(ref, now + 24, false);
    wheel.root->count = 2;
    BROKEN("wheel 4");
    wheel.root->count = 1;
    struct gb_link *l = gb_list_at(wheel.base, GB_WHEEL_OF(ref));
    l->prev ^= 1u;
    BROKEN("list 1");
    l->prev ^= 1u;
    wheel.root->count = 0; /* the list is longer than there are timers */
    BROKEN("list 2");
    wheel.root->count = 1;
    gb_entry_at(wheel.base, ref)->word ^= GB_WORD_TTL;
    BROKEN("wheel 2");
    gb_entry_at(wheel.base, ref)->word ^= GB_WORD_TTL;
    struct gb_fault f = {0};
    CHECK(!gb_wheel_check(&wheel, GB_WHEEL_OF(ref) + 1u, &f) && strstr(f.rule, "wheel 2")); /* half of it is outside */
    compare();
    free(wheel.base);
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    faults();
    for (uint32_t round = 0; round < 4; round++) {
        ordered();
        run((uint64_t)1 << 33, 6000, 20);
        run(((uint64_t)1 << 32) * 7u - 300u, 4000, SLOTS / 2u);
        run(((uint64_t)1 << 40) - 5u, 3000, SLOTS);
    }
    return check_done();
}
