/* test_index.c - table, recency list and wheel together, against an array in LRU order. Each entry
 * bears a stamp, renewed when it becomes most recently used: the list is sorted by it, and a walk
 * must yield, every time, the entry with the next greater stamp. */
#include "check.h"
#include "core.h"

#define MOST 500u

struct roots {
    uint64_t nil;
    struct gb_index_root index;
    struct gb_wheel_root wheel;
    struct gb_table_root table;
    struct gb_arena_root arena;
};
struct item {
    gb_ref ref;
    uint64_t hash, due, stamp; /* due 0: no timer */
};
struct walk {
    bool used;
    uint64_t last; /* stamp it yielded last */
    uint64_t seen; /* the clock of stamps when it did: what is newer it may miss */
};
static struct gb_index ix;
static struct item items[MOST]; /* most recently used last */
static uint32_t items_n;
static uint64_t stamps, now;
static struct walk walks[GB_INDEX_WALKS];

static void start(gb_ref granules) {
    size_t bytes = (size_t)granules * GB_GRANULE / 64u * 64u;
    memset(&ix, 0, sizeof ix);
    ix.base = aligned_alloc(64, bytes);
    memset(ix.base, 0xA5, bytes);
    struct roots *r = (struct roots *)(void *)ix.base;
    ix.root = &r->index;
    ix.root->epoch = 0;
    ix.arena.base = ix.table.base = ix.wheel.base = ix.base;
    ix.arena.root = &r->arena;
    ix.table.root = &r->table;
    ix.table.arena = &ix.arena;
    ix.wheel.root = &r->wheel;
    now = ((uint64_t)1 << 34) + 12345u;
    items_n = 0;
    memset(walks, 0, sizeof walks);
    gb_ref head = (gb_ref)((sizeof(struct roots) + 7u) / 8u);
    CHECK(gb_index_format(&ix, head, (gb_ref)(bytes / 8u) - 1u, now) == GB_OK);
    CHECK(gb_index_victim(&ix) == 0);
}

static void compare(void) {
    SOUND(gb_index_check, &ix);
    CHECK(ix.table.root->count == items_n);
    CHECK(gb_index_victim(&ix) == (items_n ? items[0].ref : 0u));
    gb_ref at = ix.root->lru.prev;
    for (uint32_t i = 0; i < items_n; i++, at = gb_list_at(ix.base, at)->prev) {
        CHECK(at == GB_LRU_OF(items[i].ref));
        CHECK(i == 0 || items[i].stamp > items[i - 1u].stamp);
        if (items[i].due) CHECK(gb_wheel_deadline(&ix.wheel, items[i].ref) == items[i].due);
        if (items[i].due) CHECK(gb_index_due(&ix, items[i].ref, now) == (items[i].due <= now));
    }
    CHECK(at == gb_index_list(&ix));
    if (!items_n) return;
    const struct item *x = &items[check_below(items_n)]; /* found by its hash, once */
    struct gb_probe p;
    uint32_t found = 0;
    gb_probe_begin(&ix.table, &p, x->hash);
    for (gb_ref ref; (ref = gb_probe_next(&ix.table, &p));) found += ref == x->ref;
    CHECK(found == 1);
}

static gb_ref entry(uint64_t due, bool extra) {
    bool wide = due && gb_wheel_wide(&ix.wheel, due);
    uint32_t word = (due ? GB_WORD_TTL : 0u) | (extra || wide ? GB_WORD_EXTRA : 0u);
    gb_ref ref = gb_arena_alloc(&ix.arena, (gb_header_bytes(word) + 7u) / 8u + check_below(6), GB_KIND_ENTRY);
    if (!ref) return 0;
    gb_entry_at(ix.base, ref)->word |= word;
    if (due) gb_timer_at(ix.base, ref)->due = (uint32_t)due;
    if (word & GB_WORD_EXTRA) {
        struct gb_extra *x = gb_extra_at(ix.base, ref, word);
        memset(x, 0, sizeof *x);
        x->due_high = (uint32_t)(due >> 32);
        x->flags = wide ? GB_EXTRA_WIDE : 0u;
    }
    return ref;
}
static uint64_t any_due(void) {
    if (check_below(2)) return 0;
    return now + 1u + check_random() % ((uint64_t)1 << check_below(41));
}
/* To the end of the array, as most recently used. */
static void renew(uint32_t i) {
    struct item x = items[i];
    memmove(&items[i], &items[i + 1u], (items_n - i - 1u) * sizeof x);
    x.stamp = ++stamps;
    items[items_n - 1u] = x;
}
static void forget(uint32_t i) {
    memmove(&items[i], &items[i + 1u], (items_n - i - 1u) * sizeof *items);
    items_n--;
}

static void insert(uint64_t hash) {
    uint64_t due = any_due(), epoch = ix.root->epoch;
    gb_ref ref = items_n < MOST ? entry(due, check_below(4) == 0) : 0;
    if (!ref) return;
    enum gb_err err = gb_index_insert(&ix, hash, ref);
    CHECK(err == GB_OK || err == GB_FULL);
    CHECK(ix.root->epoch == epoch + (err ? 0u : 1u));
    if (err) gb_arena_free(&ix.arena, ref);
    else items[items_n++] = (struct item){ref, hash, due, ++stamps};
}
static void remove_at(uint32_t i) {
    gb_index_remove(&ix, items[i].ref);
    gb_arena_free(&ix.arena, items[i].ref);
    forget(i);
}
static void replace(uint32_t i) {
    uint64_t due = any_due();
    bool use = check_below(2);
    gb_ref to = entry(due, false), from = items[i].ref;
    if (!to) return;
    gb_entry_at(ix.base, to)->hash = (uint32_t)items[i].hash;
    gb_index_replace(&ix, from, to, use);
    gb_arena_free(&ix.arena, from);
    items[i].ref = to;
    items[i].due = due;
    if (use) renew(i);
}
static void retime(uint32_t i) {
    uint64_t due = any_due();
    if (!items[i].due || !due) return;
    bool wide = gb_wheel_wide(&ix.wheel, due);
    bool extra = gb_entry_at(ix.base, items[i].ref)->word & GB_WORD_EXTRA;
    CHECK(extra || !gb_index_retime(&ix, items[i].ref, due, 0, 5)); /* it has no words to say it */
    uint64_t hard = extra ? check_random() >> check_below(40) : 0;
    bool done = gb_index_retime(&ix, items[i].ref, due, hard, extra ? 7 : 0);
    CHECK(done == (extra || !wide));
    if (extra) {
        const struct gb_extra *x = gb_extra_at(ix.base, items[i].ref, gb_entry_at(ix.base, items[i].ref)->word);
        CHECK(x->idle == 7 && x->hard_low == (uint32_t)hard && x->hard_high == (uint32_t)(hard >> 32));
    }
    if (done) items[i].due = due;
}
static void move(uint32_t i) {
    gb_ref from = items[i].ref;
    uint32_t word = gb_entry_at(ix.base, from)->word, size = gb_word_granules(word);
    gb_ref to = gb_arena_alloc(&ix.arena, size, GB_KIND_ENTRY);
    if (!to) return;
    uint32_t flag = gb_entry_at(ix.base, to)->word & GB_WORD_PREV_FREE;
    memcpy(gb_at(ix.base, to), gb_at(ix.base, from), size * 8u);
    gb_entry_at(ix.base, to)->word = (word & ~GB_WORD_PREV_FREE) | flag;
    gb_index_moved(&ix, from, to);
    gb_arena_free(&ix.arena, from);
    items[i].ref = to;
}
static void expire(void) {
    now += check_random() % ((uint64_t)1 << check_below(36));
    for (bool more = true; more;) {
        gb_ref ref = gb_wheel_due(&ix.wheel, now, &ix.arena.work, ix.arena.work.steps + 4u, check_below(2), &more);
        if (!ref) continue;
        more = true;
        uint32_t i = 0;
        while (i < items_n && items[i].ref != ref) i++;
        CHECK(i < items_n && items[i].due && items[i].due <= now);
        remove_at(i);
    }
    for (uint32_t i = 0; i < items_n; i++) CHECK(!items[i].due || items[i].due + 8u > now);
}

static void walk_step(uint32_t id) {
    struct walk *w = &walks[id];
    gb_ref ref = gb_index_walk_next(&ix, id);
    for (uint32_t i = 0; i < items_n; i++) {
        if (items[i].stamp <= w->last) continue;
        if (!ref) { /* at its end: all that is left came later */
            CHECK(items[i].stamp > w->seen);
            return;
        }
        CHECK(items[i].ref == ref);
        *w = (struct walk){true, items[i].stamp, stamps};
        return;
    }
    CHECK(!ref);
}
static void walk(void) {
    uint32_t id = check_below(GB_INDEX_WALKS), n;
    if (!walks[id].used) {
        bool room = ix.walks < GB_INDEX_WALKS;
        CHECK(gb_index_walk_begin(&ix, &n) == room);
        if (room) {
            CHECK(n < GB_INDEX_WALKS && !walks[n].used);
            walks[n] = (struct walk){true, 0, stamps};
        }
    } else if (check_below(20)) {
        for (n = check_below(12); n; n--) walk_step(id);
    } else {
        if (check_below(2)) /* to the end, at once: everything once */
            for (n = 0; n <= items_n; n++) walk_step(id);
        gb_index_walk_end(&ix, id);
        walks[id].used = false;
    }
    for (n = 0, id = 0; id < GB_INDEX_WALKS; id++) n += walks[id].used;
    CHECK(n == ix.walks);
}

static void run(gb_ref granules, uint32_t steps, bool colliding) {
    start(granules);
    for (uint32_t i = 0; i < steps; i++) {
        uint32_t what = check_below(100);
        bool window;
        if (what < 30) insert(colliding ? check_random() << 32 | 5u : check_random());
        else if (what < 32) expire();
        else if (what < 74 && !items_n) continue;
        else if (what < 46) remove_at(check_below(items_n));
        else if (what < 58) {
            uint32_t k = check_below(3) ? check_below(items_n) : items_n - 1u, before = ix.stirs;
            gb_index_use(&ix, items[k].ref);
            CHECK(ix.stirs - before == (ix.walks && k + 1u < items_n ? 1u : 0u));
            if (k + 1u < items_n) renew(k);
        } else if (what < 64) replace(check_below(items_n));
        else if (what < 69) retime(check_below(items_n));
        else if (what < 74) move(check_below(items_n));
        else if (what < 94) walk();
        else if (gb_table_wants_grow(&ix.table)) (void)gb_table_grow(&ix.table, &window);
        else if (gb_table_wants_shrink(&ix.table)) (void)gb_table_shrink(&ix.table);
        compare();
    }
    uint32_t id; /* all walks there can be, and not one more */
    while (gb_index_walk_begin(&ix, &id)) walks[id] = (struct walk){true, 0, stamps};
    CHECK(ix.walks == GB_INDEX_WALKS);
    while (items_n) {
        walk_step(check_below(GB_INDEX_WALKS));
        remove_at(check_below(items_n));
        compare();
    }
    for (id = 0; id < GB_INDEX_WALKS; id++) {
        walk_step(id);
        gb_index_walk_end(&ix, id);
    }
    CHECK(ix.walks == 0 && gb_index_victim(&ix) == 0);
    CHECK(gb_wheel_next(&ix.wheel) == UINT64_MAX);
    free(ix.base);
}

#define BROKEN(text)                                                                               \
    do {                                                                                           \
        struct gb_fault fault_ = {0};                                                              \
        CHECK(!gb_index_check(&ix, &fault_));                                                      \
        CHECK(fault_.rule && !strncmp(fault_.rule, text, strlen(text)));                           \
    } while (0)
static void faults(void) {
    start(16u * GB_BLOCK_MAX);
    while (items_n < 20) insert(check_random() << 32 | 5u);
    compare();
    gb_ref ref = items[3].ref;
    gb_list_unlink(ix.base, GB_LRU_OF(ref));
    BROKEN("index 1");
    gb_list_link(ix.base, gb_index_list(&ix), GB_LRU_OF(items[4].ref)); /* one twice, one missing */
    gb_list_at(ix.base, ix.root->lru.prev)->next = gb_index_list(&ix);
    BROKEN("list 1");
    free(ix.base);
    start(16u * GB_BLOCK_MAX);
    while (items_n < 20) insert(check_random() << 32 | 5u);
    gb_ref other = entry(0, false); /* listed in the place of one the table knows */
    gb_entry_at(ix.base, other)->hash = 5u;
    gb_list_link(ix.base, gb_index_list(&ix), GB_LRU_OF(other));
    gb_list_unlink(ix.base, GB_LRU_OF(items[7].ref));
    BROKEN("index 2");
    gb_list_link(ix.base, gb_index_list(&ix), GB_LRU_OF(items[7].ref));
    gb_list_unlink(ix.base, GB_LRU_OF(other));
    uint32_t i = 0;
    while (!items[i].due) i++;
    gb_wheel_unlink(&ix.wheel, items[i].ref);
    BROKEN("index 3");
    free(ix.base);
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    faults();
    for (uint32_t round = 0; round < 3; round++) {
        run(16u * GB_BLOCK_MAX, 3000, false);
        run(16u * GB_BLOCK_MAX, 1500, true);
        run(6u * GB_BLOCK_MAX, 3000, false);
        run(64u * GB_BLOCK_MAX, 3000, false);
    }
    return check_done();
}
