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

/* How far all timers are from level 0: one that is moved comes nearer, by a level or more. */
static uint64_t heights(const struct gb_store *s) {
    uint64_t sum = 0;
    for (uint32_t l = 1; l < GB_WHEEL_LEVELS; l++)
        for (uint32_t slot = 0; slot < GB_WHEEL_SLOTS; slot++) {
            gb_ref head = (gb_ref)((size_t)((uint8_t *)&s->head->wheel.heads[l][slot] - s->base) / GB_GRANULE);
            for (gb_ref at = gb_list_at(s->base, head)->next; at != head; at = gb_list_at(s->base, at)->next) sum += l;
        }
    return sum;
}

/* The same where scattered holes become room: nobody leaves while blocks are moved, and the bound is one for all of it. */
static void bounded_scattered(void) {
    const uint64_t seed[2] = {1, 2}, length = gb_room_smallest() * 8u;
    uint8_t *mine = malloc(length), value[GB_WINDOW_BYTES] = {0};
    struct gb_store one;
    CHECK(gb_room_format(&one, mine, length, seed, 1000) == GB_OK);
    const struct gb_counters *c = &one.head->counters;
    for (uint32_t n = 0; !c->evictions; n++) {
        struct gb_put p = {.value = value, .value_len = 8, .due = 40000 + n * 8u};
        if (p.due > 65000u) p.due = 65000;
        gb_store_key(&one, &p.key, &n, sizeof n, 0);
        gb_head_enter(&one);
        while (gb_store_put(&one, &p, 1000) == GB_AGAIN) gb_head_enter(&one);
    }
    gb_ref at = one.index.root->lru.next, list = gb_index_list(&one.index);
    for (uint32_t i = 0; at != list; i++) {
        gb_ref ref = GB_ENTRY_OF_LRU(at);
        at = gb_list_at(mine, at)->next;
        if (i % 8u == 0) gb_room_remove(&one, ref, GB_CAUSE_DELETE);
    }
    for (uint32_t n = ~0u; c->moves <= 8u; n--) { /* the first may find a hole that is large enough */
        uint64_t before = heights(&one), gone = c->evictions + c->expirations;
        struct gb_put p = {.value = value, .value_len = GB_WINDOW_BYTES - 120u};
        gb_store_key(&one, &p.key, &n, sizeof n, 0);
        gb_head_enter(&one);
        while (gb_store_put(&one, &p, 33100) == GB_AGAIN) gb_head_enter(&one);
        gone = c->evictions + c->expirations - gone;
        CHECK(n > ~0u - 100u && before - heights(&one) <= 64u * GB_WHEEL_LEVELS * (1u + gone));
    }
    free(mine);
}

/* With small entries, until one had to go. */
static void fill_up(struct gb_store *one) {
    uint8_t value[8] = {0};
    for (uint32_t n = 0; !one->head->counters.evictions; n++) {
        struct gb_put p = {.value = value, .value_len = 8};
        gb_store_key(one, &p.key, &n, sizeof n, 0);
        gb_head_enter(one);
        while (gb_store_put(one, &p, 1000) == GB_AGAIN) gb_head_enter(one);
    }
}

/* A shrink and a ring that is made room for, by turns: one is first, and both come to their end. */
static void two_cuts(void) {
    const uint64_t seed[2] = {1, 2}, length = gb_room_smallest() * 12u;
    uint8_t *mine = malloc(length);
    struct gb_store one;
    CHECK(gb_room_format(&one, mine, length, seed, 1000) == GB_OK);
    fill_up(&one);
    enum gb_err shrunk = GB_AGAIN, ring = GB_AGAIN;
    for (uint32_t turns = 0; shrunk || ring; turns++) {
        CHECK(turns < 20000u);
        gb_head_enter(&one);
        if (shrunk) shrunk = gb_room_shrink(&one, length / 2u);
        gb_head_enter(&one);
        if (ring) ring = gb_room_ring(&one, GB_TELL_LEAST);
        CHECK((!shrunk || shrunk == GB_AGAIN || shrunk == GB_BUSY) && (!ring || ring == GB_AGAIN || ring == GB_BUSY));
    }
    CHECK(one.head->length == length / 2u && one.head->ring.granules == GB_TELL_LEAST);
    SOUND(gb_store_check, &one);
    free(mine);
}

/* The image grows while a ring is cut off its end: it is cut off the new one, and whoever shrinks has his turn. */
static void cut_and_grown(void) {
    const uint64_t seed[2] = {1, 2}, length = gb_room_smallest() * 12u, longer = length + 3u * GB_WINDOW_BYTES;
    uint8_t *mine = malloc(longer);
    struct gb_store one;
    CHECK(gb_room_format(&one, mine, length, seed, 1000) == GB_OK);
    fill_up(&one);
    gb_head_enter(&one);
    CHECK(gb_room_ring(&one, GB_TELL_LEAST) == GB_AGAIN && one.cut);
    one.mapped = longer;
    gb_room_grow(&one, longer);
    CHECK(!one.cut);
    SOUND(gb_store_check, &one);
    enum gb_err ring = GB_AGAIN, shrunk = GB_AGAIN;
    for (uint32_t turns = 0; ring && turns < 20000u; turns++) {
        gb_head_enter(&one);
        CHECK(!(ring = gb_room_ring(&one, GB_TELL_LEAST)) || ring == GB_AGAIN);
    }
    for (uint32_t turns = 0; shrunk && turns < 20000u; turns++) {
        gb_head_enter(&one);
        CHECK(!(shrunk = gb_room_shrink(&one, length / 2u)) || shrunk == GB_AGAIN);
    }
    CHECK(!ring && !shrunk && one.head->ring.granules == GB_TELL_LEAST && one.head->length == length / 2u);
    SOUND(gb_store_check, &one);
    free(mine);
}

/* While room is made the wheel comes forward, and a deadline that took more words to say takes fewer: a block is as
 * long as what is written into it, though nothing went and nothing moved meanwhile. */
static void sized_once(uint32_t key_len) {
    const uint64_t seed[2] = {1, 2}, length = gb_room_smallest() * 8u, start = 1000, later = 601000;
    uint8_t *mine = malloc(length), value[GB_WINDOW_BYTES] = {0};
    struct gb_store one;
    CHECK(gb_room_format(&one, mine, length, seed, start) == GB_OK);
    const struct gb_arena_root *r = &one.head->arena;
    uint32_t n = 0, timed = ~0u;
    while (!one.head->counters.evictions) {
        struct gb_put p = {.value = value, .value_len = 200};
        gb_store_key(&one, &p.key, &n, sizeof n, 0);
        gb_head_enter(&one);
        while (gb_store_put(&one, &p, start) == GB_AGAIN) gb_head_enter(&one);
        n++;
    }
    for (uint32_t i = 0; i < n; i += 5) { /* not so many that the table shrinks */
        struct gb_key k;
        gb_store_key(&one, &k, &i, sizeof i, 0);
        gb_ref ref = gb_store_find(&one, &k);
        if (ref) gb_room_remove(&one, ref, GB_CAUSE_DELETE);
    }
    struct gb_put far = {.value = value, .value_len = 8, .due = start + GB_WHEEL_NARROW / 2u};
    gb_store_key(&one, &far.key, &timed, sizeof timed, 0);
    CHECK(gb_store_put(&one, &far, start) == GB_OK); /* or the wheel would not be asked */
    while (!r->gap || r->hand - r->gap < GB_BLOCK_MAX) { /* a gap that was begun for a window is left as it is */
        gb_head_enter(&one);
        CHECK(gb_room_make(&one, start, true) == GB_OK);
    }
    struct gb_put p = {.value = value, .value_len = GB_WINDOW_BYTES - 120u,
                       .due = later + GB_WHEEL_NARROW - start};
    gb_store_key(&one, &p.key, "a key of its own", key_len, 0);
    uint64_t changes = one.index.root->epoch + one.head->counters.moves;
    gb_head_enter(&one);
    CHECK(gb_wheel_wide(&one.index.wheel, p.due));
    CHECK(gb_store_put(&one, &p, later) == GB_OK);
    CHECK(!gb_wheel_wide(&one.index.wheel, p.due));
    CHECK(one.index.root->epoch + one.head->counters.moves == changes + 1u);
    gb_ref ref = gb_store_find(&one, &p.key);
    CHECK(ref && gb_value_len(mine, ref, gb_entry_at(mine, ref)->word) == p.value_len);
    SOUND(gb_store_check, &one);
    free(mine);
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    same_hash();
    sized_once(8);
    sized_once(5);
    dead_first();
    bounded(false);
    bounded(true);
    bounded_scattered();
    two_cuts();
    cut_and_grown();
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
