/* fuzz_store.c - bytes as a stream of operations on the store and its dumb twin: put, long put, get,
 * delete, touch, advance, work, relocate, resize, clear, open a ring, listen, read it. They are
 * compared after every operation, and what the ring tells of it (told.h). */
#define CHECK_ABORTS
#include "check.h"
#include "core.h"
#include "model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define STEPS 2000u

/* The comparison samples values; its dice must not eat the input. */
static void compare(struct twin *t) {
    const uint8_t *bytes = check_bytes;
    check_bytes = NULL;
    twin_compare(t);
    check_bytes = bytes;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const uint32_t most[] = {40, 200, 600, 3000, 20000, 60000};
    static const uint32_t limits[] = {0, 0, 5, 100};
    struct twin t;
    if (size < 4) return 0;
    check_state = 88172645463325252u;
    check_bytes = data;
    check_bytes_end = data + size;
    uint64_t length = gb_room_smallest() + GB_GRANULE * (uint64_t)check_below(1u << 14);
    uint32_t limit = limits[check_below(4)], value_most = most[check_below(6)];
    twin_start(&t, length, limit, check_below(2) ? told_size() : 0);
    for (uint32_t i = 0; i < STEPS && check_bytes < check_bytes_end; i++) {
        twin_step(&t, value_most);
        compare(&t);
    }
    for (uint32_t op = 0; op < GB_OPS; op++) CHECK(t.store.max_steps[op] <= GB_STEPS_MAX);
    twin_stop(&t);
    check_bytes = NULL;
    return 0;
}
