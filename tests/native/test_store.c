/* test_store.c - the whole packed store against a dumb model: an array in LRU order, linear search,
 * its own ledger. After every operation: the same keys, order, values, deadlines, and a check; and
 * what was told of it (told.h), with a ring from birth, one that comes later, or none. */
#include "check.h"
#include "core.h"
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

/* Keys are compared to the last byte, whatever their length; and where all have one hash nothing else tells them. */
static void same_hash(void) {
    uint8_t a[300], b[300], *mine = malloc(64u * GB_WINDOW_BYTES);
    for (uint32_t n = 0; n < 40u; n++)
        for (uint32_t i = 0; i <= n; i++) {
            for (uint32_t k = 0; k < n; k++) a[k] = b[k] = (uint8_t)check_random();
            CHECK(gb_store_same(a, b, n));
            if (i == n) continue;
            b[i] ^= (uint8_t)(1u << check_below(8));
            CHECK(!gb_store_same(a, b, n));
        }
    struct gb_store one;
    const uint64_t seed[2] = {1, 2};
    CHECK(gb_room_format(&one, mine, 64u * GB_WINDOW_BYTES, seed, 1000) == GB_OK);
    memset(a, 'x', sizeof a);
    memset(b, 'y', sizeof b);
    const struct gb_key keys[] = {{a, 0, 0, 9}, {a, 1, 0, 9}, {b, 1, 0, 9}, {a, 1, 1, 9}, {a, 2, 1, 9}, {a, 254, 1, 9}, {a, 255, 1, 9},
                                  {a, 256, 1, 9}, {a, 300, 1, 9}, {a, 300, 2, 9}};
    for (uint32_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        struct gb_put p = {.key = keys[i], .value = a, .value_len = i};
        CHECK(!gb_store_find(&one, &keys[i]));
        CHECK(gb_store_put(&one, &p, 1000) == GB_OK);
        for (uint32_t k = 0; k <= i; k++) {
            gb_ref ref = gb_store_find(&one, &keys[k]);
            CHECK(ref && gb_value_len(mine, ref, gb_entry_at(mine, ref)->word) == k);
        }
        gb_head_enter(&one);
    }
    SOUND(gb_room_check, &one);
    free(mine);
}

/* Room is made of what is due before anybody who is not has to go, though some who are not lie before them in the slot. */
static void dead_first(void) {
    const uint64_t seed[2] = {1, 2}, length = gb_room_smallest() * 8u;
    uint8_t *mine = malloc(length), value[200] = {0};
    struct gb_store one;
    uint64_t now = 1000;
    CHECK(gb_room_format(&one, mine, length, seed, now) == GB_OK);
    const struct gb_counters *c = &one.head->counters;
    for (uint32_t n = 0; now == 1000u; n++) {
        struct gb_put p = {.value = value, .value_len = sizeof value, .due = n % 4u ? 0 : n < 160u ? 229000 : 197000};
        gb_store_key(&one, &p.key, &n, sizeof n, 0);
        gb_head_enter(&one);
        while (gb_store_put(&one, &p, now) == GB_AGAIN) gb_head_enter(&one);
        if (c->evictions >= 50u) now = 200000;
    }
    uint64_t evictions = c->evictions, expirations = c->expirations;
    for (uint32_t n = 1u << 20; n < (1u << 20) + 20u; n++) {
        struct gb_put p = {.value = value, .value_len = sizeof value};
        gb_store_key(&one, &p.key, &n, sizeof n, 0);
        gb_head_enter(&one);
        while (gb_store_put(&one, &p, now) == GB_AGAIN) gb_head_enter(&one);
    }
    CHECK(c->evictions == evictions && c->expirations > expirations);
    free(mine);
}

/* A slot of the wheel that has nearly all, none of them due: whoever wants room moves some of it on, and no more. */
static void bounded(bool counted) {
    const uint64_t seed[2] = {1, 2}, length = gb_room_smallest() * 8u;
    uint8_t *mine = malloc(length), value[8] = {0};
    struct gb_store one;
    uint64_t now = 1000;
    uint32_t worst = 0, n = 0, stop = ~0u;
    CHECK(gb_room_format(&one, mine, length, seed, now) == GB_OK);
    const struct gb_counters *c = &one.head->counters;
    for (; n < stop; n++) { /* the wheel comes to the slot of 32.8 s when they are as many as may be */
        struct gb_put p = {.value = value, .value_len = sizeof value, .due = n < 8u ? 33000 : 40000 + n * 8u};
        gb_store_key(&one, &p.key, &n, sizeof n, 0);
        if (p.due > 65000u) p.due = 65000;
        uint32_t holds = 1;
        gb_head_enter(&one);
        for (; gb_store_put(&one, &p, now) == GB_AGAIN; holds++) gb_head_enter(&one);
        worst = stop == ~0u || holds < worst ? worst : holds;
        if (stop != ~0u || !(counted ? n == 600u : c->evictions > 0)) continue;
        if (counted) one.head->max_entries = one.index.table.root->count;
        now = 33100;
        stop = n + 40u;
    }
    CHECK(c->evictions >= 8u && worst <= 8u); /* 176 holds, were it not bounded */
    free(mine);
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    same_hash();
    dead_first();
    bounded(false);
    bounded(true);
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
