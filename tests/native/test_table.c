/* test_table.c - the table against an array of (hash, ref), in an arena that is sometimes full. */
#include "check.h"
#include "core.h"

#define MOST 3000u

struct roots {
    uint64_t nil;
    struct gb_table_root table;
    struct gb_arena_root arena;
};
struct pair {
    uint64_t hash;
    gb_ref ref;
};
static struct gb_arena arena;
static struct gb_table table;
static struct pair pairs[MOST];
static uint32_t pairs_n;
static gb_ref filler[1u << 16];
static uint32_t filler_n;

static void start(gb_ref granules) {
    memset(&arena, 0, sizeof arena);
    table.base = arena.base = aligned_alloc(64, (size_t)granules * GB_GRANULE / 64u * 64u);
    CHECK(arena.base);
    memset(arena.base, 0xA5, (size_t)granules * GB_GRANULE / 64u * 64u);
    arena.root = &((struct roots *)(void *)arena.base)->arena;
    table.root = &((struct roots *)(void *)arena.base)->table;
    table.arena = &arena;
    gb_arena_format(&arena, (gb_ref)((sizeof(struct roots) + 7u) / 8u), granules / 8u * 8u - 1u);
    CHECK(gb_table_format(&table) == GB_OK);
    pairs_n = filler_n = 0;
}

/* The candidates of a hash are those of its bucket that have its tag, each once. */
static void look(uint64_t hash, gb_ref ref) {
    struct gb_probe p;
    uint32_t want = 0, got = 0, found = 0;
    for (uint32_t i = 0; i < pairs_n; i++)
        want += gb_table_bucket_of(&table, (uint32_t)pairs[i].hash) ==
                    gb_table_bucket_of(&table, (uint32_t)hash) &&
                gb_table_tag(pairs[i].hash) == gb_table_tag(hash);
    gb_probe_begin(&table, &p, hash);
    for (gb_ref at; (at = gb_probe_next(&table, &p)); got++) found += at == ref;
    CHECK(got == want);
    CHECK(found == (ref ? 1u : 0u));
}
static void compare(bool all) {
    SOUND(gb_table_check, &table);
    CHECK(table.root->count == pairs_n);
    CHECK(arena.root->ledger[GB_KIND_BUCKETS] ==
          (gb_table_size(&table) + GB_TABLE_CHUNK - 1u) / GB_TABLE_CHUNK * GB_BLOCK_MAX);
    CHECK(gb_table_wants_grow(&table) == (pairs_n * 10u > gb_table_size(&table) * 84u));
    CHECK(gb_table_wants_shrink(&table) == (gb_table_size(&table) > 1u && pairs_n < (gb_table_size(&table) - 1u) * 6u));
    if (all) SOUND(gb_arena_check, &arena);
    for (uint32_t i = 0; i < pairs_n; i++)
        if (all || check_below(pairs_n) < 2u) look(pairs[i].hash, pairs[i].ref);
    look(check_random(), 0);
}

/* Everything look-ups read, as one number; the blocks counted, but for an empty directory. */
static uint64_t picture(void) {
    uint64_t n = 0xCBF29CE484222325u;
    uint32_t size = gb_table_size(&table);
    n = (n ^ table.root->mask ^ ((uint64_t)table.root->split << 32)) * 0x100000001B3u;
    n = (n ^ table.root->count ^ ((uint64_t)arena.root->ledger[GB_KIND_OVERFLOW] << 32)) * 0x100000001B3u;
    n = (n ^ arena.root->ledger[GB_KIND_BUCKETS]) * 0x100000001B3u;
    for (uint32_t i = 0; i < size; i++)
        for (const struct gb_bucket *b = gb_table_bucket(&table, i);;) {
            for (uint32_t k = 0; k < sizeof *b; k++) n = (n ^ ((const uint8_t *)b)[k]) * 0x100000001B3u;
            if (!b->overflow) break;
            b = &((struct gb_overflow *)gb_at(table.base, b->overflow))->bucket;
        }
    return n;
}

/* Leaves no block free that could be allocated; empty() gives it all back. */
static void stuff(void) {
    for (uint32_t size = GB_BLOCK_MAX; size; size--) {
        gb_ref ref;
        /* nines apart from each other, so that each can be given back alone */
        while ((ref = gb_arena_alloc(&arena, size > 9u ? 9u : size, GB_KIND_EXTENT))) filler[filler_n++] = ref;
        if (size > 9u) size = 9u;
    }
}
static void empty(void) {
    while (filler_n) gb_arena_free(&arena, filler[--filler_n]);
}
/* Gives back `n` blocks of nine granules that do not touch. */
static void spare(uint32_t n) {
    for (uint32_t i = 0; n && i + 1u < filler_n; i += 2u) {
        if (gb_arena_size(&arena, filler[i]) != GB_TABLE_OVERFLOW_GRANULES) continue;
        uint32_t word = *(uint32_t *)gb_at(arena.base, filler[i]);
        gb_ref behind = filler[i] + GB_TABLE_OVERFLOW_GRANULES;
        if ((word & GB_WORD_PREV_FREE) || gb_word_kind(*(uint32_t *)gb_at(arena.base, behind)) == GB_KIND_FREE)
            continue;
        gb_arena_free(&arena, filler[i]);
        filler[i] = filler[--filler_n];
        n--;
    }
    CHECK(n == 0);
}

static gb_ref entry_for(uint64_t hash) {
    gb_ref ref = gb_arena_alloc(&arena, 3, GB_KIND_ENTRY);
    if (ref) gb_entry_at(arena.base, ref)->hash = (uint32_t)hash;
    return ref;
}
static enum gb_err insert(uint64_t hash) {
    gb_ref ref = entry_for(hash);
    if (!ref || pairs_n == MOST) {
        if (ref) gb_arena_free(&arena, ref);
        return GB_TOOBIG;
    }
    uint64_t before = picture();
    enum gb_err err = gb_table_insert(&table, hash, ref);
    if (!err) pairs[pairs_n++] = (struct pair){hash, ref};
    else gb_arena_free(&arena, ref);
    CHECK(!err || (err == GB_FULL && picture() == before));
    return err;
}
static void remove_at(uint32_t i) {
    gb_table_remove(&table, (uint32_t)pairs[i].hash, pairs[i].ref);
    gb_arena_free(&arena, pairs[i].ref);
    pairs[i] = pairs[--pairs_n];
}
static enum gb_err grow(void) {
    bool window = true;
    uint64_t before = picture();
    uint32_t size = gb_table_size(&table);
    enum gb_err err = gb_table_grow(&table, &window);
    CHECK(gb_table_size(&table) == size + (err ? 0u : 1u));
    CHECK(!err || picture() == before);
    CHECK(!window || err == GB_FULL);
    return err;
}
static enum gb_err shrink(void) {
    uint64_t before = picture();
    uint32_t size = gb_table_size(&table);
    enum gb_err err = gb_table_shrink(&table);
    CHECK(gb_table_size(&table) == size - (err ? 0u : 1u));
    CHECK(!err || (err == GB_FULL && picture() == before));
    return err;
}

/* Moves one block of the table elsewhere, whichever `skip` names. */
static void move(uint32_t skip) {
    for (gb_ref at = arena.root->first; at < arena.root->end; at += gb_arena_size(&arena, at)) {
        uint32_t word = *(uint32_t *)gb_at(arena.base, at), size = gb_word_granules(word);
        enum gb_kind kind = gb_word_kind(word);
        if (kind != GB_KIND_BUCKETS && kind != GB_KIND_OVERFLOW && kind != GB_KIND_DIRECTORY) continue;
        if (skip--) continue;
        gb_ref to = kind == GB_KIND_BUCKETS ? gb_arena_alloc_window(&arena, kind)
                                            : gb_arena_alloc(&arena, size, kind);
        if (!to) return;
        memcpy((uint8_t *)gb_at(arena.base, to) + 4, (uint8_t *)gb_at(arena.base, at) + 4, size * 8u - 4u);
        gb_table_moved(&table, at, to);
        gb_arena_free(&arena, at);
        return;
    }
}

static uint64_t hash_of(uint32_t how) {
    uint64_t hash = check_random();
    if (how == 1) hash &= ~(uint64_t)0xFFFFF; /* one bucket */
    if (how == 2) hash = 0x00ABCDEF12345678u; /* one hash, whose top byte is 0 */
    if (how == 3) hash = (hash & 0xFF) << 56 | (hash & 7u);
    if (how == 4) hash |= 0xFFFF;
    return hash;
}

static void run(gb_ref granules, uint32_t steps, uint32_t how, uint32_t most) {
    start(granules);
    for (uint32_t i = 0; i < steps; i++) {
        uint32_t what = check_below(100), kind = how ? how : check_below(12) ? 0 : 1;
        if (what < 45 && pairs_n < most) (void)insert(hash_of(kind));
        else if (what < 70 && pairs_n) remove_at(check_below(pairs_n));
        else if (what < 76 && pairs_n) {
            struct pair *p = &pairs[check_below(pairs_n)];
            gb_ref to = entry_for(p->hash);
            if (!to) continue;
            gb_table_replace(&table, (uint32_t)p->hash, p->ref, to);
            gb_arena_free(&arena, p->ref);
            p->ref = to;
        } else if (what < 84) {
            if (gb_table_wants_grow(&table) || check_below(4) == 0) (void)grow();
        } else if (what < 92) {
            if (gb_table_size(&table) > 1u && (gb_table_wants_shrink(&table) || check_below(4) == 0)) (void)shrink();
        } else if (what < 97) {
            move(check_below(6));
        } else if (what < 98) {
            stuff();
            if (check_below(2)) spare(check_below(3));
        } else {
            empty();
        }
        compare(i % 64u == 0);
    }
    empty();
    while (pairs_n) remove_at(check_below(pairs_n));
    while (gb_table_size(&table) > 1u) CHECK(shrink() == GB_OK);
    compare(true);
    CHECK(arena.root->ledger[GB_KIND_OVERFLOW] == 0);
    free(arena.base);
}

/* Every allocation of a split, a merge and an insertion fails once, then succeeds. */
static void scarce(void) {
    start(40u * GB_BLOCK_MAX);
    for (uint32_t i = 0; i < 61; i++) CHECK(insert((check_random() << 32) | 0xFFFFFFFFu) == GB_OK);
    CHECK(grow() == GB_OK); /* 61 go to bucket 1 with five overflow buckets, none stays */
    CHECK(grow() == GB_OK); /* 2 -> 3 buckets; the next moves all 61 from 1 to 3 */
    for (uint32_t have = 0; have <= 5; have++) {
        stuff();
        spare(have);
        CHECK(grow() == (have == 5 ? GB_OK : GB_FULL));
        compare(true);
        empty();
    }
    CHECK(shrink() == GB_FULL); /* a bucket with a chain is not merged */
    while (pairs_n > 20) remove_at(check_below(pairs_n));
    CHECK(shrink() == GB_FULL);
    while (pairs_n > 12) remove_at(check_below(pairs_n));
    for (uint32_t i = 0; i < 5; i++) CHECK(insert((check_random() << 32) | 1u) == GB_OK);
    stuff();
    CHECK(gb_table_size(&table) == 4 && shrink() == GB_FULL); /* 12 into 1, where 5 lie */
    spare(1);
    CHECK(shrink() == GB_OK);
    compare(true);
    empty();
    gb_ref ref[40];
    for (uint32_t i = 0; i < 40; i++) ref[i] = entry_for(1);
    stuff();
    for (uint32_t i = 0, full = 0; i < 40; i++) {
        uint64_t before = picture();
        while (gb_table_insert(&table, 1, ref[i]) != GB_OK) {
            CHECK(picture() == before && full++ < 8u);
            spare(1);
        }
        pairs[pairs_n++] = (struct pair){1, ref[i]};
        CHECK(picture() != before);
        compare(true);
    }
    empty();
    compare(true);
    free(arena.base);
}

/* The second directory, and in the tiny build the end of the last one. */
static void far(void) {
    uint32_t buckets = GB_TABLE_CHUNK << GB_DIR_SHIFT, all = buckets * GB_DIR_ROOTS;
    bool tiny = all < 10000u, window;
    start((tiny ? GB_DIR_ROOTS + 8u : 1u) * (GB_BLOCK_MAX << GB_DIR_SHIFT) + 64u * GB_BLOCK_MAX);
    for (uint32_t i = 0; i < 100; i++) CHECK(insert(check_random()) == GB_OK);
    while (gb_table_size(&table) < buckets) CHECK(gb_table_grow(&table, &window) == GB_OK);
    compare(true);
    stuff();
    CHECK(gb_table_grow(&table, &window) == GB_FULL && !window); /* no directory */
    compare(true);
    uint32_t had = arena.root->ledger[GB_KIND_DIRECTORY];
    empty();
    gb_ref hole = gb_arena_alloc(&arena, GB_TABLE_DIR_GRANULES, GB_KIND_EXTENT);
    stuff();
    gb_arena_free(&arena, hole);
    CHECK(gb_table_grow(&table, &window) == GB_FULL && window); /* a directory, no window */
    CHECK(arena.root->ledger[GB_KIND_DIRECTORY] == had + GB_TABLE_DIR_GRANULES);
    compare(true);
    empty();
    CHECK(grow() == GB_OK);
    CHECK(arena.root->ledger[GB_KIND_DIRECTORY] == had + GB_TABLE_DIR_GRANULES);
    for (uint32_t i = 0; i < 8; i++) move(i);
    compare(true);
    if (tiny) {
        while (gb_table_size(&table) < all) CHECK(gb_table_grow(&table, &window) == GB_OK);
        CHECK(gb_table_grow(&table, &window) == GB_TOOBIG);
        compare(true);
    }
    while (gb_table_size(&table) > 1u)
        if (gb_table_shrink(&table)) remove_at(0); /* a bucket with a chain waits */
    compare(true);
    CHECK(arena.root->ledger[GB_KIND_DIRECTORY] == GB_TABLE_DIR_GRANULES);
    free(arena.base);
}

/* Each invariant, broken by hand, is named by the check. */
#define SPOIL(place, value, text)                                                                  \
    do {                                                                                           \
        struct gb_fault fault_ = {0};                                                              \
        uint32_t *p_ = (uint32_t *)(void *)(place), old_ = *p_;                                    \
        *p_ = (value);                                                                             \
        CHECK(!gb_table_check(&table, &fault_));                                                       \
        CHECK(fault_.rule && !strncmp(fault_.rule, text, strlen(text)));                                   \
        *p_ = old_;                                                                                \
        SOUND(gb_table_check, &table);                                                             \
    } while (0)
static void faults(void) {
    start(40u * GB_BLOCK_MAX);
    for (uint32_t i = 0; i < 13; i++) CHECK(insert((check_random() << 32) | 3u) == GB_OK);
    CHECK(grow() == GB_OK);
    struct gb_bucket *b = gb_table_bucket(&table, 1);
    struct gb_directory *d = gb_at(table.base, table.root->dirs[0]);
    struct gb_overflow *o = gb_at(table.base, b->overflow);
    SPOIL(&gb_entry_at(table.base, b->ref[3])->hash, 2u, "table 1");
    SPOIL(&gb_entry_at(table.base, b->ref[3])->word, 3u | (uint32_t)GB_KIND_EXTENT << 10, "table 1");
    SPOIL(&b->tag[0], 0u, "table 2");
    SPOIL(&o->bucket.tag[0], 0u, "table 2");
    SPOIL(&table.root->count, 7u, "table 3");
    SPOIL(&d->chunk[1], d->chunk[0], "table 5");
    SPOIL(&((struct gb_chunk *)gb_at(table.base, d->chunk[0]))->number, 1u, "table 5");
    SPOIL(&d->chunk[0], 0u, "table 4");
    SPOIL(&d->number, 2u, "table 5");
    SPOIL(&o->owner, 0u, "table 5");
    SPOIL(&table.root->dirs[0], arena.root->end, "table 5");
    SPOIL(&table.root->dirs[0], arena.root->end - 1u, "table 5");
    SPOIL(&d->chunk[0], arena.root->end, "table 5");
    SPOIL(&b->overflow, arena.root->end - 1u, "table 5");
    gb_ref more = gb_arena_alloc_window(&arena, GB_KIND_BUCKETS); /* a chunk too many */
    ((struct gb_chunk *)gb_at(table.base, more))->number = 1u;
    SPOIL(&d->chunk[1], more, "table 4");
    gb_arena_free(&arena, more);
    free(arena.base);
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    faults();
    scarce();
    far();
    for (uint32_t how = 0; how < 5; how++) {
        run(40u * GB_BLOCK_MAX, 2500, how, 400);
        run(14u * GB_BLOCK_MAX, 2500, how, 300);
    }
    run(160u * GB_BLOCK_MAX, 2500, 0, MOST);
    return check_done();
}
