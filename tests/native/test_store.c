/* test_store.c - the whole packed store against a dumb model: an array in LRU order, linear search,
 * its own ledger. After every operation: the same keys, order, values, deadlines, and a check; and
 * what was told of it (told.h), with a ring from birth, one that comes later, or none. */
#include "check.h"
#include "gb.c"
#include "model.h"

static uint32_t steps_most;
static void run(uint64_t length, uint32_t steps, uint32_t max_entries, uint32_t value_most) {
    struct twin t;
    twin_start(&t, length, max_entries, check_below(3) ? told_size() : 0);
    for (uint32_t i = 0; i < steps; i++) {
        twin_step(&t, value_most);
        twin_compare(&t);
    }
    for (uint32_t op = 0; op < GB_OPS; op++) {
        if (t.store.max_steps[op] > GB_STEPS_MAX) printf("op %u: %u steps\n", op, t.store.max_steps[op]);
        if (t.store.max_steps[op] > steps_most) steps_most = t.store.max_steps[op];
        CHECK(t.store.max_steps[op] <= GB_STEPS_MAX);
    }
    twin_stop(&t);
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    uint64_t small = gb_room_smallest();
    for (uint32_t round = 0; round < 6; round++) {
        run(small, 3000, 0, 40);
        run(small, 3000, 0, 3000);
        run(small, 3000, 5, 200);
        run(small * 4, 3000, 0, 30);
        run(small * 4, 3000, 0, 20000);
        run(small * 3, 3000, 100, 600);
    }
    printf("%lu events, %lu lost, %u steps at most\n", told_events, told_lost, steps_most);
    CHECK(told_events > 10000 && told_lost > 500);
    return check_done();
}
