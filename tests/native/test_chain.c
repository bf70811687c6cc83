/* test_chain.c - long values: writers, readers, and what happens to their entries meanwhile. */
#include "check.h"
#include "core.h"
#include "long.h"
#include "chain_full.h"

static uint32_t any_len(void) {
    uint32_t all = (uint32_t)gb_room_capacity(s) * 8u;
    switch (check_below(8)) {
    case 0: return check_below(200);
    case 1: return all + check_below(all);
    case 2: return all - all / 8u + check_below(all / 8u);
    case 3: return all / 2u - check_below(200);
    default: return check_below(all / 3u);
    }
}
static void step(uint32_t who) {
    uint32_t what = check_below(100), k = check_below(KEYS), i = check_below(who);
    if (what < 30) {
        if (writers[i].used) write_step(&writers[i]);
        else if (writing() < who) (void)write_begin(k, any_len(), check_below(5) == 0);
    } else if (what < 55) {
        if (readers[i].used) read_step(&readers[i]);
        else if (reading() < who) (void)read_open(k);
    } else if (what < 70) put_small(k);
    else if (what < 76) drop(k);
    else if (what < 82) retime(k);
    else if (what < 85) now += check_random() % ((uint64_t)1 << check_below(30));
    else if (what < 88) tidy();
    else if (what < 91 && readers[i].used) read_close(&readers[i]);
    else if (what < 93 && writers[i].used) write_abort(&writers[i]);
    else if (what < 95) {
        bool pins = s->pins != 0;
        told_enter(&told, now);
        CHECK(gb_room_clear(s, now) == (pins ? GB_BUSY : GB_OK));
        told_leave(&told, GB_OP_REMOVE);
        if (!pins) memset(model, 0, sizeof model);
    } else if (what < 96) orphans();
    else if (what < 98) listen();
}
static void run(uint64_t bytes, uint32_t steps, uint32_t who, bool colliding) {
    if (check_below(3)) start_told(bytes, colliding, told_size());
    else start(bytes, colliding);
    for (uint32_t i = 0; i < steps; i++) {
        told_op(&told);
        step(who);
        compare();
    }
    close_all();
    compare();
    for (uint32_t k = 0; k < KEYS; k++) drop(k);
    tidy();
    compare();
    CHECK(s->head->arena.ledger[GB_KIND_EXTENT] == 0 && s->head->arena.ledger[GB_KIND_ENTRY] == 0);
    free(image);
}

/* ---- scripted ---- */
static void pins_run_out(void) {
    start(gb_room_smallest() * 2u, false);
    commit(write_all(0, 3000));
    for (uint32_t i = 0; i < GB_HEAD_PINS; i++) CHECK(read_open(0));
    CHECK(s->pins == GB_HEAD_PINS);
    struct gb_chain_read r;
    struct gb_key key = key_of(0);
    CHECK(gb_chain_open(s, &r, gb_store_find(s, &key)) == GB_BUSY);
    uint32_t before = gb_arena_free_granules(&s->index.arena);
    CHECK(!write_begin(1, 3000, false));
    CHECK(busy && gb_arena_free_granules(&s->index.arena) == before);
    CHECK(gb_room_clear(s, now) == GB_BUSY);
    compare();
    drop(0); /* dead, and still read by sixteen */
    for (uint32_t i = 0; i < GB_HEAD_PINS; i++) {
        CHECK(s->head->arena.ledger[GB_KIND_PENDING] > 0);
        while (readers[i].used) read_step(&readers[i]);
        compare();
    }
    CHECK(s->head->arena.ledger[GB_KIND_PENDING] == 0);
    CHECK(s->head->trash != 0);
    tidy();
    CHECK(s->head->trash == 0 && s->head->arena.ledger[GB_KIND_EXTENT] == 0);
    free(image);
}
/* Dead values that are still read hold all the room: every allocation fails, and nothing is lost. */
static void no_room(void) {
    start(gb_room_smallest() * 2u, false);
    uint32_t all = (uint32_t)gb_room_capacity(s) * 8u, i = 0;
    commit(write_all(0, all - all / 16u));
    CHECK(read_open(0));
    drop(0);
    compare();
    CHECK(!write_all(1, all / 2u)); /* step: GB_FULL */
    tidy();
    compare();
    static uint8_t value[64];
    gb_ref filler[4096]; /* what is left is taken by hand, so that begin and put fail too */
    for (uint32_t size = GB_BLOCK_MAX; size; size--) {
        gb_ref ref;
        while (i < 4096u && (ref = gb_arena_alloc(&s->index.arena, size, GB_KIND_RING))) filler[i++] = ref;
    }
    struct gb_put p = {.value = value, .value_len = 64, .key = key_of(2)};
    struct gb_chain_write w;
    enum gb_err err;
    HOLDS(err, GB_OP_SET, gb_store_put(s, &p, now));
    CHECK(err == GB_FULL);
    HOLDS(err, GB_OP_LONG, gb_chain_begin(s, &w, &p, now));
    CHECK(err == GB_FULL && s->pins == 1 && s->writing == 0);
    while (i) gb_arena_free(&s->index.arena, filler[--i]);
    compare();
    while (readers[0].used) read_step(&readers[0]);
    commit(write_all(1, all - all / 16u)); /* and now there is room again */
    compare();
    free(image);
}
/* The commit of a key whose bucket is full and whose overflow bucket finds no block. */
static void commit_full(void) {
    start(gb_room_smallest() * 2u, true);
    gb_ref filler[4096];
    uint32_t i = 0;
    for (uint32_t k = 0; k < GB_TABLE_SLOTS; k++) put_small(k);
    struct writer *w = write_all(20, 100);
    compare();
    for (uint32_t size = GB_BLOCK_MAX; size; size--) {
        gb_ref ref;
        while (i < 4096u && (ref = gb_arena_alloc(&s->index.arena, size, GB_KIND_RING))) filler[i++] = ref;
    }
    for (uint32_t k = 0; k < 4u; k++) { /* the hold has no step left for room, wherever it notices */
        gb_head_enter(s);
        s->index.arena.work.steps = gb_room_last(s) + 1u - k;
        CHECK(gb_chain_commit(s, &w->w, &w->p, now) == GB_AGAIN);
    }
    commit(w); /* evicts for it */
    while (i) gb_arena_free(&s->index.arena, filler[--i]);
    compare();
    free(image);
}
static void refusals(void) {
    start(gb_room_smallest() * 2u, false);
    static uint8_t key[GB_KEY_MAX + 1u];
    struct gb_put p = {.value = key, .value_len = 1};
    struct gb_chain_write w;
    gb_store_key(s, &p.key, key, GB_KEY_MAX + 1u, 0);
    CHECK(gb_chain_begin(s, &w, &p, now) == GB_LONGKEY && gb_store_put(s, &p, now) == GB_LONGKEY);
    gb_store_key(s, &p.key, key, GB_KEY_MAX, 0);
    p.value_len = GB_CHAIN_VALUE_MAX + 1u;
    CHECK(gb_chain_begin(s, &w, &p, now) == GB_TOOBIG && s->head->counters.rejects == 1);
    CHECK(gb_room_format(s, image, gb_room_smallest() - 1u, s->head->seed, now) == GB_SMALL);
    CHECK(gb_room_format(s, image, ((uint64_t)1 << 35) + 8u, s->head->seed, now) == GB_TOOBIG);
    CHECK(gb_room_attach(s, image, gb_room_smallest() - 1u) == GB_SMALL);
    CHECK(gb_room_attach(s, image, length - 8u) == GB_BADIMAGE);
    CHECK(gb_room_shrink(s, gb_room_smallest() - 1u) == GB_SMALL);
    CHECK(gb_room_shrink(s, length) == GB_OK);
    p = (struct gb_put){.value = key, .value_len = 10, .due = now + 10u, .stale = 100000, .add = true, .key = key_of(5)};
    CHECK(gb_store_put(s, &p, now) == GB_OK);
    p.value_len = 3000;
    CHECK(gb_chain_begin(s, &w, &p, now) == GB_EXISTS); /* it is there, and then only kept */
    CHECK(gb_chain_begin(s, &w, &p, now + 10u) == GB_OK);
    gb_chain_abort(s, &w);
    gb_room_remove(s, gb_store_find(s, &p.key), GB_CAUSE_DELETE);
    gb_head_enter(s);
    put_small(3);
    commit(write_all(4, 3000));
    compare();
    free(image);
}
/* A pin above the cut is in a shrink's way. */
static void shrink_busy(void) {
    start(gb_room_smallest() * 4u, false);
    uint32_t all = (uint32_t)gb_room_capacity(s) * 8u;
    commit(write_all(0, all / 2u));
    commit(write_all(1, all / 3u));
    CHECK(read_open(1));
    enum gb_err err;
    HOLDS(err, GB_OP_RESIZE, gb_room_shrink(s, gb_room_smallest()));
    CHECK(err == GB_BUSY);
    compare();
    while (readers[0].used) read_step(&readers[0]);
    HOLDS(err, GB_OP_RESIZE, gb_room_shrink(s, gb_room_smallest()));
    CHECK(err == GB_OK);
    length = gb_room_smallest();
    compare();
    put_small(2);
    compare();
    free(image);
}

/* What is promised to a write under way is not shrunk away. */
static void shrink_promised(void) {
    start(gb_room_smallest() * 6u, false);
    struct writer *w = write_begin(0, (uint32_t)gb_room_capacity(s) * 4u, false);
    enum gb_err err;
    HOLDS(err, GB_OP_RESIZE, gb_room_shrink(s, gb_room_smallest()));
    CHECK(w && err == GB_BUSY);
    compare();
    write_abort(w);
    HOLDS(err, GB_OP_RESIZE, gb_room_shrink(s, gb_room_smallest()));
    CHECK(err == GB_OK);
    free(image);
}
/* A shrink that is given up half way leaves an image as good as any. */
static void shrink_left(uint32_t how) {
    start(gb_room_smallest() * 6u, false);
    uint32_t all = (uint32_t)gb_room_capacity(s) * 8u;
    for (uint32_t k = 0; k < KEYS; k++) commit(write_all(k, all / 40u));
    for (uint32_t i = 0; i < 3; i++) {
        gb_head_enter(s);
        CHECK(gb_room_shrink(s, gb_room_smallest()) == GB_AGAIN);
    }
    if (how == 0) orphans();
    else if (how == 1) CHECK(gb_room_shrink(s, length) == GB_OK);
    else CHECK(gb_room_clear(s, now) == GB_OK);
    if (how == 2) memset(model, 0, sizeof model);
    commit(write_all(0, all - all / 10u)); /* HOLDS: comes to an end */
    compare();
    free(image);
}
/* Scattered room: many small extents in a slice, and still no more steps than a hold has. */
static void many_extents(void) {
    start(gb_room_smallest() * 12u, false);
    gb_ref keep[512];
    uint32_t n = 0;
    const uint32_t size = GB_BLOCK_MAX / 4u + 10u;
    for (gb_ref at; n < 512u && (at = gb_arena_alloc(&s->index.arena, size, GB_KIND_RING)); n++)
        keep[n] = at;
    for (uint32_t i = 0; i < n; i += 2u) gb_arena_free(&s->index.arena, keep[i]);
    struct writer *w = write_all(0, 30u * GB_WINDOW_BYTES);
    CHECK(w && s->max_steps[GB_OP_LONG] <= GB_STEPS_MAX);
    for (uint32_t i = 1; i < n; i += 2u) gb_arena_free(&s->index.arena, keep[i]);
    compare();
    commit(w);
    compare();
    free(image);
}
/* Each invariant, broken by hand, is named by the check. */
#define SPOIL(type, place, value, text)                                                            \
    do {                                                                                           \
        struct gb_fault fault_ = {0};                                                              \
        type *p_ = (place), old_ = *p_;                                                            \
        *p_ = (value);                                                                             \
        CHECK(!gb_chain_check(s, &fault_));                                                        \
        CHECK(fault_.rule && !strncmp(fault_.rule, text, strlen(text)));                           \
        *p_ = old_;                                                                                \
        SOUND(gb_chain_check, s);                                                                  \
    } while (0)
/* Whatever is free is taken by hand. */
static uint32_t plug(gb_ref *filler, uint32_t n, uint32_t most) {
    gb_ref ref;
    for (uint32_t size = GB_BLOCK_MAX; size > 2; size--)
        while (n < most && (ref = gb_arena_alloc(&s->index.arena, size, GB_KIND_RING))) filler[n++] = ref;
    return n;
}
/* A begin that evicts two small entries and a long one for its block, and then the key's old value, which is
 * long too: two values in sixteen extents each are told, where the ring gives up as much and a filler. */
static void told_twice(gb_ref ring) {
    const uint32_t size = GB_BLOCK_MAX / 4u + GB_BLOCK_MAX / 64u;
    static gb_ref filler[8192];
    uint32_t n = 0;
    start_told(gb_room_smallest() * 24u, false, ring);
    while (n < 4096u && (filler[n] = gb_arena_alloc(&s->index.arena, size, GB_KIND_RING))) n++;
    for (uint32_t i = 0; i < 300u && i < n; i += 2u) gb_arena_free(&s->index.arena, filler[i]);
    for (uint32_t k = 0; k < 21; k++) {
        if (k % 3u < 2u) put_len(k, 10);
        else commit(write_all(k, GB_TELL_VALUE_MAX - check_below(30)));
    }
    n = plug(filler, n, 8192u);
    for (uint32_t k = 5; k < 20; k += 9u) {
        struct writer *w = write_begin(k, GB_TELL_VALUE_MAX, false);
        n = plug(filler, n, 8192u);
        if (w) write_abort(w);
        compare(); /* a hold has 64 steps */
    }
    free(image);
}

/* The ring lies behind the arena's end, and goes along with it; one image has one. */
static void ring_moves(void) {
    uint64_t small = gb_room_smallest(), more = GB_TELL_LEAST * GB_GRANULE;
    enum gb_err err;
    start(small + more, false);
    for (uint32_t k = 0; k < KEYS; k++) put_small(k);
    CHECK(told_open(&told, GB_TELL_LEAST + 1u, now) == GB_SMALL); /* would leave too little */
    CHECK(told_open(&told, GB_TELL_LEAST - 1u, now) == GB_SMALL);
    CHECK(told_open(&told, GB_TELL_LEAST, now) == GB_OK && told_open(&told, GB_TELL_LEAST, now) == GB_EXISTS);
    CHECK(told_open(&told, UINT32_MAX, now) == GB_SMALL);
    s->listens = GB_EVENTS_ALL;
    s->values = true;
    for (uint32_t i = 0; i < 300; i++) { /* every shift of the tail, in both directions */
        told_op(&told);
        put_small(check_below(KEYS));
        compare();
        uint64_t to = small + more + 8u * check_below(2000);
        struct gb_ring_root was = s->head->ring;
        if (to > length) image = realloc(image, to);
        gb_room_rebase(s, image);
        if (to > length) gb_room_grow(s, to);
        else HOLDS(err, GB_OP_RESIZE, gb_room_shrink(s, to));
        length = to;
        compare();
        CHECK(s->head->length == to && s->head->ring.granules == was.granules);
        CHECK(s->head->ring.at == to / GB_GRANULE - was.granules && s->head->ring.tail <= s->head->ring.last);
    }
    CHECK(gb_room_shrink(s, small + more - 8u) == GB_SMALL && s->head->length == length);
    SPOIL(gb_ref, &s->head->ring.at, s->head->ring.at - 1u, "room 5");
    SPOIL(gb_ref, &s->head->ring.granules, s->head->ring.granules - 1u, "room 5");
    SPOIL(uint64_t, &s->head->ring.last, s->head->ring.last + 1u, "ring 2");
    free(image);
}
/* A pin in the way of the ring, and what was promised to a write: it does not come, then it does. */
static void ring_busy(void) {
    start(gb_room_smallest() * 4u, false);
    uint32_t all = (uint32_t)gb_room_capacity(s) * 8u;
    gb_ref granules = (gb_ref)(gb_room_smallest() / GB_GRANULE) * 2u;
    commit(write_all(0, all / 2u));
    commit(write_all(1, all / 3u));
    CHECK(read_open(1) && read_open(0));
    CHECK(told_open(&told, granules, now) == GB_BUSY && !told_ring(&told));
    compare();
    close_all();
    struct writer *w = write_begin(2, all * 3u / 4u, false);
    CHECK(w && told_open(&told, granules, now) == GB_BUSY);
    compare();
    write_abort(w);
    CHECK(told_open(&told, granules, now) == GB_OK);
    compare();
    free(image);
}
/* The most a hold may have to tell: values in as many extents as there can be, in a ring where such
 * records and fillers are given up, by every way an entry can go. */
static void told_scattered(bool limited) {
    static const uint32_t most[] = {GB_TELL_VALUE_MAX, GB_TELL_VALUE_MAX, GB_WINDOW_BYTES,
                                    2u * GB_WINDOW_BYTES, 4000u};
    start_told(gb_room_smallest() * 24u, false, 20u * GB_BLOCK_MAX + check_below(8u * GB_BLOCK_MAX));
    gb_ref keep[1024];
    uint32_t n = 0;
    const uint32_t size = GB_BLOCK_MAX / 4u + GB_BLOCK_MAX / 64u;
    for (gb_ref at; n < 1024u && (at = gb_arena_alloc(&s->index.arena, size, GB_KIND_RING)); n++) keep[n] = at;
    for (uint32_t i = 0; i < n; i += 2u) gb_arena_free(&s->index.arena, keep[i]);
    if (limited) s->head->max_entries = KEYS / 2u;
    for (uint32_t i = 0; i < 600; i++) {
        uint32_t k = check_below(KEYS);
        told_op(&told);
        if (check_below(4) == 0) put_len(k, check_below(GB_WINDOW_BYTES / 4u - 80u));
        else if (check_below(12) == 0) now += 1u << check_below(30);
        else {
            struct writer *w = write_begin(k, most[check_below(5)] - check_below(200), false);
            while (w && w->used) write_step(w);
        }
        compare();
    }
    free(image);
}

static void faults(void) {
    start(gb_room_smallest() * 4u, false);
    struct gb_head *h = s->head;
    uint32_t pin;
    put_small(0);
    commit(write_all(1, 20000));
    commit(write_all(2, 9000));
    drop(2);
    CHECK(h->trash);
    struct gb_key key = key_of(1);
    gb_ref ref = gb_store_find(s, &key), chain;
    struct gb_extra *x = gb_extra_at(image, ref, gb_entry_at(image, ref)->word);
    chain = x->chain;
    struct gb_extent *first = gb_extent_at(image, chain);
    SPOIL(uint64_t, &h->magic, 0, "room 5");
    SPOIL(uint32_t, &h->layout, 0, "room 5");
    SPOIL(uint64_t, &h->length, h->length - 8u, "room 5");
    SPOIL(uint64_t, &h->key_bytes, 1, "room 1");
    SPOIL(uint64_t, &h->value_bytes, 1, "room 1");
    SPOIL(gb_ref, &h->trash, ref, "room 2");
    SPOIL(gb_ref, &h->trash, 0, "room 2");
    SPOIL(gb_ref, &first->prev, chain, "room 3");
    SPOIL(uint32_t, &first->used, 1, "room 3");
    struct gb_key small = key_of(0);
    SPOIL(gb_ref, &x->chain, h->arena.end - 1u, "room 3");
    SPOIL(gb_ref, &x->chain, gb_store_find(s, &small), "room 3");
    SPOIL(gb_ref, &h->trash, h->arena.end - 1u, "room 2");
    SPOIL(uint32_t, &h->version, 0, "room 5");
    uint32_t *payload = (uint32_t *)(void *)(first + 1), bytes_there = *payload; /* an extent of no length, in a value */
    *payload = (uint32_t)GB_KIND_EXTENT << 10;
    SPOIL(gb_ref, &x->chain, chain + 2u, "room 3");
    SPOIL(gb_ref, &h->trash, chain + 2u, "room 2");
    *payload = bytes_there;
    SPOIL(uint32_t, &h->max_entries, 1, "store 1");
    SPOIL(uint64_t, &s->writing, gb_room_capacity(s) + 1u, "chain 1");
    SPOIL(uint32_t, &h->table.count, 1, "table 3");
    uint8_t *bytes = (uint8_t *)gb_at(image, ref) + gb_header_bytes(gb_entry_at(image, ref)->word);
    SPOIL(uint8_t, bytes, (uint8_t)(*bytes + 1u), "store 2");
    struct gb_entry *e = gb_entry_at(image, ref);
    uint64_t keys = h->key_bytes; /* a key said to be longer than its block */
    h->key_bytes += 200u - 8u;
    e->word = (e->word & ~(255u << 17)) | (200u << 17);
    struct gb_fault f = {0};
    CHECK(!gb_chain_check(s, &f) && !strncmp(f.rule, "store 2", 7));
    h->key_bytes--; /* a byte of a key counted as a value's */
    h->value_bytes++;
    CHECK(!gb_chain_check(s, &f) && !strncmp(f.rule, "room 1", 6));
    h->value_bytes--;
    e->word = (e->word & ~(255u << 17)) | (8u << 17);
    h->key_bytes = keys;
    CHECK(gb_room_pin(s, ref, true, &pin) == GB_OK);
    gb_ref loose = gb_arena_alloc(&s->index.arena, 4, GB_KIND_PENDING);
    CHECK(!gb_chain_check(s, &f) && !strncmp(f.rule, "room 4", 6));
    gb_arena_free(&s->index.arena, loose);
    gb_room_unpin(s, pin);
    SOUND(gb_chain_check, s);
    free(image);
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    uint64_t small = gb_room_smallest();
    faults();
    pins_run_out();
    no_room();
    commit_full();
    refusals();
    shrink_busy();
    shrink_promised();
    for (uint32_t how = 0; how < 3; how++) shrink_left(how);
    many_extents();
    full_images();
    ring_moves();
    ring_busy();
    for (uint32_t i = 0; i < 16; i++) told_scattered(i % 2u != 0);
    for (uint32_t i = 0; i < 32; i++) told_twice(20u * GB_BLOCK_MAX + i * GB_BLOCK_MAX / 8u);
    for (uint32_t round = 0; round < 2; round++) {
        run(small, 2500, 2, false);
        run(small * 2u, 2500, 3, true);
        run(small * 4u, 2000, 6, false);
        run(small * 12u, 1000, 3, round != 0);
        run(small, 1500, GB_HEAD_PINS, true);
    }
    CHECK(commits > 50 && long_reads > 50 && busy > 5);
    printf("%lu commits, %lu reads, %lu full, %lu busy\n", commits, long_reads, fulls, busy);
    CHECK(told_events > 3000);
    printf("%lu events, %lu lost\n", told_events, told_lost);
    return check_done();
}
