/* test_rules.c - what no operation of ours leaves, made by hand: each check says which of its rules was broken. And
 * holds that have nothing left to give, or no step left to give it: they say so, and all is as it was. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <sys/mman.h>
#include "check.h"
#include "core.h"
#include "long.h"

static uint8_t *sound;
static struct gb_store handle;
static struct gb_snap snap;

static void remember(void) {
    sound = malloc(length);
    memcpy(sound, image, length);
    handle = *s;
}
/* The check names that rule; then all is as it was remembered. */
static void broken(const char *rule) {
    struct gb_fault f = {0};
    CHECK(!gb_chain_check(s, &f) && f.rule);
    if (strncmp(f.rule, rule, strlen(rule))) printf("want %s, got %s\n", rule, f.rule);
    CHECK(!strncmp(f.rule, rule, strlen(rule)));
    memcpy(image, sound, length);
    *s = handle;
    SOUND(gb_chain_check, s);
}
static void done(void) {
    free(sound);
    free(image);
}
static gb_ref entry_of(uint32_t k) {
    struct gb_key key = key_of(k);
    return gb_store_find(s, &key);
}
static struct gb_extra *extra_of(gb_ref ref) { return gb_extra_at(image, ref, gb_entry_at(image, ref)->word); }

/* A save that has begun: everything that is there is to be saved. */
static void save_begin(void) {
    static uint8_t late[GB_KEEP_PAYLOAD]; /* nobody reads them */
    memset(&snap, 0, sizeof snap);
    for (uint32_t i = 0; i < GB_KEEP_FRAMES; i++) snap.keep.late[i].to = late;
    snap.keep.bits = calloc(gb_index_places(length), sizeof(uint64_t));
    CHECK(gb_snap_begin(s, &snap) == GB_OK);
}
static void save_end(void) {
    gb_snap_end(s, &snap);
    free(snap.keep.bits);
}

/* --- rules -------------------------------------------------------------------------------------------------- */
static void nobodys(void) {
    start(gb_room_smallest() * 2u, false);
    put_small(0);
    remember();
    CHECK(gb_arena_alloc(&s->index.arena, 8, GB_KIND_ENTRY));
    broken("room 6");
    s->head->table.dirs[0] = 0;
    broken("table");
    done();
}
/* In the trash, and in a chain, what only looks like an extent: of no length, in a circle, beyond the end. */
static void no_extents(void) {
    start(gb_room_smallest() * 4u, false);
    struct gb_head *h = s->head;
    commit(write_all(0, 9000));
    gb_ref fake = h->arena.end - 4u; /* in the free block at the end */
    remember();
    for (uint32_t granules = 0; granules < 2u; granules++) {
        *gb_extent_at(image, fake) = (struct gb_extent){.word = granules | GB_KIND_EXTENT << 10, .next = fake};
        h->trash = fake;
        broken("room 2");
    }
    *gb_extent_at(image, fake) = (struct gb_extent){.word = 100u | GB_KIND_EXTENT << 10, .prev = entry_of(0)};
    extra_of(entry_of(0))->chain = fake;
    broken("room 3");
    done();
}
/* Chains of entries no look-up finds: one being written, one that is dead and has to be saved. */
static void unseen_chains(void) {
    start(gb_room_smallest() * 8u, false);
    commit(write_all(0, 9000));
    struct writer *w = write_all(1, 9000);
    remember();
    gb_extent_at(image, extra_of(s->pin[w->w.pin].entry)->chain)->prev++;
    broken("room 3");
    write_abort(w);
    free(sound);
    gb_ref ref = entry_of(0);
    save_begin();
    gb_head_enter(s);
    gb_room_remove(s, ref, GB_CAUSE_DELETE);
    CHECK(snap.keep.ghost == ref);
    SOUND(gb_chain_check, s);
    struct gb_extent *x = gb_extent_at(image, extra_of(ref)->chain);
    struct gb_fault f = {0};
    x->prev++;
    CHECK(!gb_chain_check(s, &f) && !strncmp(f.rule, "room 3", 6));
    x->prev--;
    snap.keep.left++;
    CHECK(!gb_chain_check(s, &f) && !strncmp(f.rule, "keep 1", 6));
    snap.keep.left--;
    SOUND(gb_chain_check, s);
    save_end();
    free(image);
}
/* On the list, and in no slot that counts; at a place where no header fits; longer than what is left of the arena. */
static void no_entries(void) {
    start(gb_room_smallest() * 2u, false);
    put_len(0, 40);
    put_len(1, 40);
    gb_ref a = entry_of(0), b = entry_of(1), list = gb_index_list(&s->index), end = s->head->arena.end;
    struct gb_bucket *bucket = gb_table_bucket(&s->index.table, 0);
    remember();
    for (uint32_t i = 0; i < GB_TABLE_SLOTS; i++)
        if (bucket->ref[i] == a) bucket->tag[i] = 0;
    s->head->table.count--;
    gb_list_unlink(image, GB_LRU_OF(b));
    broken("index 2");
    gb_ref fake = end - 3u;
    gb_entry_at(image, fake)->word = GB_WORD_EXTRA | GB_KIND_ENTRY << 10;
    gb_list_unlink(image, GB_LRU_OF(a));
    gb_list_link(image, list, GB_LRU_OF(fake));
    broken("index 2");
    fake = end - 4u;
    *gb_entry_at(image, fake) = *gb_entry_at(image, a);
    gb_table_replace(&s->index.table, gb_entry_at(image, a)->hash, a, fake);
    gb_list_unlink(image, GB_LRU_OF(a));
    gb_list_link(image, list, GB_LRU_OF(fake));
    broken("store 2");
    done();
}

/* --- nothing to give ---------------------------------------------------------------------------------------- */
static gb_ref filler[8192];
static uint32_t fillers;
/* Whatever is free is taken by hand. */
static void plug(void) {
    for (uint32_t size = GB_BLOCK_MAX; size > 2u; size--) {
        gb_ref ref;
        while (fillers < 8192u && (ref = gb_arena_alloc(&s->index.arena, size, GB_KIND_RING))) filler[fillers++] = ref;
    }
}
static void unplug(void) {
    while (fillers) gb_arena_free(&s->index.arena, filler[--fillers]);
}
/* A save whose dead long value has to be copied before anybody else may go, and a long write under way. */
static struct writer *waiting(void) {
    struct writer *w = write_all(20, 100);
    save_begin();
    snap.keep.ghost = 1;
    CHECK(w && gb_room_make(s, now, false) == GB_FULL);
    return w;
}
static void waited(struct writer *w) {
    snap.keep.ghost = 0;
    save_end();
    gb_head_enter(s);
    commit(w);
    unplug();
    compare();
}
static void out_of_steps(void) {
    gb_head_enter(s);
    s->index.arena.work.steps = gb_room_last(s) + 1u;
}
static void empty(void) {
    start(gb_room_smallest() * 2u, false);
    save_begin();
    CHECK(gb_room_make(s, now, false) == GB_OK); /* the gap takes a step */
    snap.keep.ghost = 1;
    CHECK(gb_room_make(s, now, false) == GB_FULL);
    snap.keep.ghost = 0;
    save_end();
    free(image);
}
/* A clock that went back: nobody is due, and the oldest goes. */
static void backwards(void) {
    start(gb_room_smallest() * 2u, false);
    struct gb_put p = {.value = image, .value_len = 4, .due = now + 5000u, .key = key_of(0)};
    CHECK(gb_store_put(s, &p, now) == GB_OK);
    while (s->head->counters.evictions == 0) CHECK(gb_room_make(s, now - 500000u, false) == GB_OK);
    CHECK(!entry_of(0) && !s->head->counters.expirations);
    put_small(1);
    gb_room_remove(s, entry_of(1), GB_CAUSE_INVALIDATE);
    CHECK(s->head->counters.deletes == 1);
    free(image);
}
/* A clock that went back by more than a narrow deadline can say: what is given now is due when it was said, whether it
 * is new or was there. */
static void far_backwards(void) {
    start(gb_room_smallest() * 2u, false);
    uint64_t then = now;
    put_small(1);
    struct gb_put p = {.value = image, .value_len = 4, .due = now + ((uint64_t)1 << 40), .key = key_of(0)};
    CHECK(gb_store_put(s, &p, now) == GB_OK);
    now += (uint64_t)1 << 32;
    gb_head_enter(s);
    CHECK(!gb_room_work(s, now) && (s->head->wheel.tick << GB_WHEEL_TICK_SHIFT) > then + ((uint64_t)1 << 31));
    now = then;
    p.due = then + 10000u, p.key = key_of(2);
    CHECK(gb_store_put(s, &p, now) == GB_OK && gb_store_due(s, entry_of(2)) == then + 10000u);
    while (gb_store_retime(s, entry_of(1), then + 10000u, 0, 0, now) == GB_AGAIN) gb_head_enter(s);
    CHECK(gb_store_due(s, entry_of(1)) == then + 10000u);
    SOUND(gb_chain_check, s);
    free(image);
}
/* Of a full bucket, where an overflow bucket finds no block: a put, then a commit. */
static void full_bucket(void) {
    start(gb_room_smallest() * 2u, true);
    for (uint32_t k = 0; k < GB_TABLE_SLOTS; k++) put_small(k);
    gb_ref block = gb_arena_alloc(&s->index.arena, 5, GB_KIND_RING);
    struct writer *w = waiting();
    plug();
    CHECK(gb_store_retime(s, entry_of(3), now + 5000u, 0, 0, now) == GB_FULL); /* it would need a larger block */
    gb_arena_free(&s->index.arena, block);
    uint32_t before = gb_arena_free_granules(&s->index.arena);
    static uint8_t ten[10];
    struct gb_put p = {.value = ten, .value_len = 10, .key = key_of(13)};
    out_of_steps();
    CHECK(gb_store_put(s, &p, now) == GB_AGAIN && gb_arena_free_granules(&s->index.arena) == before);
    gb_head_enter(s);
    CHECK(gb_store_put(s, &p, now) == GB_FULL && gb_arena_free_granules(&s->index.arena) == before);
    CHECK(gb_chain_commit(s, &w->w, &w->p, now) == GB_FULL && !entry_of(20));
    waited(w);
    free(image);
}
/* More are there than may be, all at once, and no step left to see them out: a commit, then a put. */
static void bounded(void) {
    start(gb_room_smallest() * 2u, false);
    for (uint32_t k = 0; k < 6u; k++) put_small(k);
    struct writer *w = write_all(20, 100);
    s->head->max_entries = 3;
    out_of_steps();
    CHECK(gb_chain_commit(s, &w->w, &w->p, now) == GB_AGAIN && s->head->table.count == 5u);
    struct gb_put p = {.value = sound, .key = key_of(7)};
    out_of_steps();
    CHECK(gb_store_put(s, &p, now) == GB_AGAIN && s->head->table.count == 4u);
    commit(w);
    compare();
    free(image);
}
/* The table wants a window, and there is none to be had for a moment. */
static void no_window(void) {
    const uint32_t four = 4u; /* granules: header 2, key 1, value 1 */
    static gb_ref place[GB_TABLE_CHUNK * GB_TABLE_SLOTS];
    uint32_t n = 0;
    uint8_t name[8] = {0};
    start(gb_room_smallest() + 64u * GB_WINDOW_BYTES, false);
    struct writer *w = waiting();
    for (uint32_t i = 0; i < GB_TABLE_CHUNK * GB_TABLE_SLOTS; i++)
        place[i] = gb_arena_alloc(&s->index.arena, four, GB_KIND_RING);
    static gb_ref spill[GB_TABLE_CHUNK];
    for (uint32_t i = 0; i < GB_TABLE_CHUNK; i++)
        spill[i] = gb_arena_alloc(&s->index.arena, GB_TABLE_OVERFLOW_GRANULES, GB_KIND_RING);
    plug();
    for (uint32_t i = 0; i < GB_TABLE_CHUNK; i++) gb_arena_free(&s->index.arena, spill[i]);
    for (; !gb_table_wants_grow(&s->index.table); n++) {
        struct gb_put p = {.value = name, .value_len = 8};
        memcpy(name, &n, sizeof n);
        gb_store_key(s, &p.key, name, 8, 1);
        gb_arena_free(&s->index.arena, place[n]);
        gb_head_enter(s);
        CHECK(gb_store_put(s, &p, now) == GB_OK);
    }
    CHECK(gb_table_size(&s->index.table) == GB_TABLE_CHUNK);
    snap.keep.ghost = 0;
    save_end();
    uint64_t evictions = s->head->counters.evictions;
    gb_head_enter(s);
    gb_room_tend(s, now); /* now somebody can go, but that is no window yet */
    CHECK(s->head->counters.evictions > evictions && gb_table_size(&s->index.table) == GB_TABLE_CHUNK);
    unplug();
    SOUND(gb_arena_check, &s->index.arena);
    while (n < GB_TABLE_CHUNK * GB_TABLE_SLOTS) gb_arena_free(&s->index.arena, place[n++]);
    write_abort(w);
    SOUND(gb_chain_check, s);
    free(image);
}
/* A shrink where nobody is left to go: a table for many, a value that is dead and read, a block of nobody's. */
static void shrunk_empty(void) {
    enum gb_err err;
    start(gb_room_smallest() * 6u, false);
    gb_pour_presize(s, 1u << 20);
    CHECK(gb_table_size(&s->index.table) > GB_TABLE_CHUNK);
    HOLDS(err, GB_OP_RESIZE, gb_room_shrink(s, gb_room_smallest()));
    CHECK(err == GB_OK);
    length = gb_room_smallest();
    compare();
    free(image);
    start(gb_room_smallest() * 6u, false);
    commit(write_all(0, (uint32_t)gb_room_capacity(s) * 7u));
    CHECK(read_open(0));
    drop(0);
    HOLDS(err, GB_OP_RESIZE, gb_room_shrink(s, gb_room_smallest()));
    CHECK(err == GB_BUSY);
    compare();
    close_all();
    tidy();
    gb_arena_gap_rewind(&s->index.arena); /* what it had gathered is anybody's */
    plug();
    HOLDS(err, GB_OP_RESIZE, gb_room_shrink(s, gb_room_smallest()));
    CHECK(err == GB_FULL);
    unplug();
    compare();
    free(image);
}
/* A table for many has taken all there is, and nobody is there who could go: it gives back what a value needs, a short
 * one or as long a one as the image can have. */
static void table_of_all(bool some) {
    start(gb_room_smallest() * 6u, false);
    gb_table_presize(&s->index.table, UINT32_MAX);
    uint32_t all = gb_table_size(&s->index.table);
    CHECK(!gb_arena_alloc_window(&s->index.arena, GB_KIND_PENDING));
    for (uint32_t k = 0; some && k < 9u; k++) put_len(k, GB_WINDOW_BYTES - 100u);
    compare();
    struct writer *w = write_all(9, (uint32_t)gb_room_capacity(s) * 7u);
    CHECK(w);
    commit(w);
    CHECK(entry_of(9) && gb_table_size(&s->index.table) < all);
    compare();
    free(image);
}
/* While a shrink is under way nobody else moves blocks: room is made by eviction, and less of it is promised. */
static void shrinking(void) {
    start(gb_room_smallest() * 6u, false);
    uint64_t capacity = gb_room_capacity(s);
    for (uint32_t k = 0; k < KEYS; k++) commit(write_all(k, (uint32_t)capacity * 8u / 80u));
    gb_head_enter(s);
    CHECK(gb_room_shrink(s, gb_room_smallest()) == GB_AGAIN && gb_room_capacity(s) < capacity);
    while (s->head->trash) gb_room_trash(s);
    uint64_t evictions = s->head->counters.evictions;
    CHECK(gb_room_make(s, now, false) == GB_OK && s->head->counters.evictions == evictions + 1u);
    CHECK(gb_room_shrink(s, length) == GB_OK && gb_room_capacity(s) == capacity);
    compare();
    free(image);
}

/* --- odd ones ----------------------------------------------------------------------------------------------- */
/* A long value of no bytes at all; and a use while somebody walks. */
static void no_bytes(void) {
    start(gb_room_smallest() * 2u, false);
    commit(write_all(0, 0));
    gb_head_enter(s);
    gb_ref ref = entry_of(0);
    CHECK(gb_store_is_chain(s, ref, gb_entry_at(image, ref)->word) && !extra_of(ref)->chain);
    CHECK(gb_store_retime(s, ref, now + 5000u, 0, 0, now) == GB_OK && gb_store_due(s, entry_of(0)) == now + 5000u);
    compare();
    put_small(1);
    uint32_t walk;
    CHECK(gb_index_walk_begin(&s->index, &walk));
    gb_store_use(s, entry_of(0), now);
    CHECK(s->index.root->lru.next == GB_LRU_OF(entry_of(0)));
    gb_index_walk_end(&s->index, walk);
    compare();
    free(image);
}
/* No key, no value, neither. */
static void nothing(void) {
    start(gb_room_smallest() * 2u, false);
    for (uint32_t klen = 0; klen < 2u; klen++)
        for (uint32_t len = 0; len < 2u; len++) {
            struct gb_put p = {.value = image, .value_len = len};
            gb_store_key(s, &p.key, "k", klen, 2);
            CHECK(gb_store_put(s, &p, now) == GB_OK);
            gb_ref ref = gb_store_find(s, &p.key);
            CHECK(ref && gb_value_len(image, ref, gb_entry_at(image, ref)->word) == len);
            SOUND(gb_chain_check, s);
        }
    CHECK(s->head->table.count == 2u);
    free(image);
}
/* What is past its deadline and kept is as good as gone to who would add. */
static void added_over_stale(void) {
    start(gb_room_smallest() * 2u, false);
    static uint8_t value[3000];
    struct gb_chain_write w;
    struct gb_put p = {.value = value, .value_len = 9, .due = now + 10u, .stale = 1u << 30, .key = key_of(5)};
    CHECK(gb_store_put(s, &p, now) == GB_OK);
    p = (struct gb_put){.value = value, .value_len = sizeof value, .add = true, .key = key_of(5)};
    CHECK(gb_chain_begin(s, &w, &p, now + 10u) == GB_OK && gb_chain_step(s, &w, &p, now + 10u) == GB_OK);
    CHECK(gb_chain_commit(s, &w, &p, now) == GB_EXISTS && gb_chain_commit(s, &w, &p, now + 10u) == GB_OK);
    CHECK(!gb_store_due(s, entry_of(5)) && s->head->table.count == 1u);
    SOUND(gb_chain_check, s);
    free(image);
}
/* An image that could hold more than a value may be. Its pages are never touched. */
static void too_long(void) {
    const uint64_t seed[2] = {1, 2}, bytes = (uint64_t)GB_CHAIN_VALUE_MAX + (GB_CHAIN_VALUE_MAX >> 2);
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct gb_store large;
    struct gb_put p = {.key = {(const uint8_t *)"k", 1, 0, 9}};
    struct gb_chain_write w;
    CHECK(at != MAP_FAILED && gb_room_format(&large, at, bytes, seed, 1000) == GB_OK);
    p.value_len = GB_CHAIN_VALUE_MAX;
    CHECK(gb_chain_begin(&large, &w, &p, 1000) == GB_OK);
    gb_chain_abort(&large, &w);
    p.value_len++;
    CHECK(gb_chain_begin(&large, &w, &p, 1000) == GB_TOOBIG && large.head->counters.rejects == 1);
    munmap(at, bytes);
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    nobodys();
    no_extents();
    unseen_chains();
    no_entries();
    empty();
    backwards();
    far_backwards();
    full_bucket();
    bounded();
    no_window();
    shrunk_empty();
    table_of_all(false);
    table_of_all(true);
    shrinking();
    no_bytes();
    nothing();
    added_over_stale();
    too_long();
    return check_done();
}
