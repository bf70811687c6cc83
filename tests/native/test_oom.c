/* test_oom.c - the arena has no block, at every allocation of a stream: once, 3 times, 60 times on end
 * (for ever is no state an arena can be in: once all is evicted and moved aside, a block is free). What
 * was written stays or is evicted whole, the image is sound after it, and it recovers. */
#include "check.h"
static unsigned long asked, fail_at, fail_many;
static int fails(void) {
    unsigned long n = asked++;
    return n >= fail_at && n - fail_at < fail_many;
}
#define GB_ALLOC_FAILS() fails()
#include "gb.c" /* a core of its own */
#include "long.h"

#define STEPS 160u

static void step(void) {
    uint32_t what = check_below(100), k = check_below(KEYS), i = check_below(3);
    uint32_t all = (uint32_t)gb_room_capacity(s) * 8u;
    if (what < 40) put_small(k);
    else if (what < 65) {
        if (writers[i].used) write_step(&writers[i]);
        else (void)write_begin(k, check_below(all / 3u), check_below(5) == 0);
    } else if (what < 80) {
        if (readers[i].used) read_step(&readers[i]);
        else (void)read_open(k);
    } else if (what < 84) drop(k);
    else if (what < 94) retime(k);
    else if (what < 97) now += 1u << check_below(24);
    else if (what < 99) listen();
    else tidy();
}
/* The stream of one seed; the allocations of [at, at + many) fail. Returns how many there were. */
static unsigned long play(uint64_t seed, uint64_t bytes, unsigned long at, unsigned long many) {
    check_state = seed;
    fail_many = 0;
    if (seed % 2u) start_told(bytes, true, told_size());
    else start(bytes, false);
    asked = 0;
    fail_at = at;
    fail_many = many;
    starved = many > 0;
    for (uint32_t i = 0; i < STEPS; i++) {
        unsigned long before = asked;
        told_op(&told);
        step();
        bool failed = asked > at && before < at + many; /* what is wrong stays so: later each 4th will do */
        if (failed || (asked >= at && i % 4u == 0)) compare();
    }
    unsigned long n = asked;
    fail_many = 0; /* there is room again: all is as it ever was */
    starved = false;
    close_all();
    compare();
    for (uint32_t k = 0; k < KEYS; k++) put_small(k);
    commit(write_all(0, (uint32_t)gb_room_capacity(s) * 4u));
    compare();
    CHECK(model[0].there);
    free(image);
    return n;
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    uint64_t seed = check_random() & ~(uint64_t)1;
    unsigned long places = 0;
    for (uint64_t variant = 0; variant < 2; variant++) { /* without a ring at first, and with one */
        uint64_t bytes = gb_room_smallest() * (1u + 3u * variant);
        unsigned long n = play(seed + variant, bytes, 0, 0);
        for (unsigned long at = 0; at < n; at++) {
            (void)play(seed + variant, bytes, at, 1);
            (void)play(seed + variant, bytes, at, 3);
            if (at % 4u == 0) (void)play(seed + variant, bytes, at, 60);
        }
        places += n;
    }
    CHECK(places > 200);
    start(gb_room_smallest(), false);
    fail_at = asked;
    fail_many = 2;
    CHECK(!gb_arena_alloc_window(&s->index.arena, GB_KIND_BUCKETS));
    CHECK(!gb_arena_alloc_run(&s->index.arena, 10, 0, GB_KIND_ENTRY));
    fail_many = 0;
    CHECK(gb_arena_alloc_window(&s->index.arena, GB_KIND_BUCKETS));
    free(image);
    printf("%lu allocations\n", places);
    return check_done();
}
