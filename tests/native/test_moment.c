/* test_moment.c - walks of a moment: whatever goes on meanwhile, each entry of that moment is noted once, and those in
 * their turn in the order they had. */
#include "snap_model.h"

#define WALKS 3u
static struct walk {
    struct gb_moment m;
    uint64_t hashes[KEYS]; /* of the moment, least recently used first */
    uint32_t n;
    bool used;
} walks[WALKS];
static unsigned long n_walks, n_used, n_grown;

static void begin(struct walk *w) {
    uint8_t kb[320];
    uint32_t count = s->index.table.root->count;
    w->n = 0;
    for (gb_ref at = s->index.root->lru.prev; at != gb_index_list(&s->index); at = gb_list_at(s->base, at)->prev)
        w->hashes[w->n++] = key_of(s, key_at(GB_ENTRY_OF_LRU(at)), kb).hash;
    w->m = (struct gb_moment){.most = count + check_below(3), .words = gb_index_places(s->head->length)};
    w->m.hashes = malloc((w->m.most + 1u) * sizeof(uint64_t)); /* never none */
    w->m.bits = calloc(w->m.words, sizeof(uint64_t));
    struct gb_moment small = w->m;
    hold();
    small.words--;
    CHECK(gb_moment_begin(s, &small) == GB_SMALL && s->index.walks == (uint32_t)(walks[0].used + walks[1].used + walks[2].used));
    small = w->m;
    small.most = count ? count - 1u : 0u;
    CHECK(!count || gb_moment_begin(s, &small) == GB_SMALL);
    CHECK(gb_moment_begin(s, &w->m) == GB_OK && w->m.left == count);
    w->used = true;
    left();
}
static int by_size(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}
static void end(struct walk *w, bool whole) {
    uint32_t at = 0;
    for (uint32_t i = 0; i < w->m.n; i++, at++) /* in their turn: each behind the one before */
        while (at < w->n && w->hashes[at] != w->m.hashes[i]) at++;
    CHECK(at <= w->n);
    n_used += w->m.used;
    gb_moment_end(s, &w->m);
    size_t n = gb_moment_hashes(&w->m);
    if (whole) {
        CHECK(n == w->n && !w->m.left);
        qsort(w->hashes, n, sizeof(uint64_t), by_size);
        qsort(w->m.hashes, n, sizeof(uint64_t), by_size);
        CHECK(!n || !memcmp(w->hashes, w->m.hashes, n * sizeof(uint64_t)));
        n_walks++;
    }
    free(w->m.hashes);
    free(w->m.bits);
    w->used = false;
}
/* One hold of it. */
static void walk_on(struct walk *w) {
    enum gb_err err = GB_AGAIN;
    hold();
    for (uint32_t i = 0; i < 32u && err == GB_AGAIN; i++) err = gb_moment_step(s, &w->m);
    left();
    if (err == GB_OK) end(w, true);
}
static void compare(void) {
    struct gb_fault f = {0};
    for (uint32_t i = 0; i < WALKS; i++)
        if (walks[i].used) CHECK(gb_moment_check(s, &walks[i].m, &f));
}

static void run(uint64_t n, uint32_t of, uint32_t ops, bool grows) {
    start(n, of, 0);
    for (uint32_t i = 0; i < ops; i++) {
        struct walk *w = &walks[check_below(WALKS)];
        uint32_t die = check_below(100);
        operate(check_below(10) ? MIXED : USED);
        if (die < 10 && !w->used) begin(w);
        else if (die < 40 && w->used) walk_on(w);
        else if (die < 41 && w->used) end(w, false);
        else if (die < 42 && grows && i > ops / 2u && s->head->length == length) {
            hold();
            gb_room_grow(s, 2u * length);
            left();
            n_grown++;
        }
        compare();
    }
    for (uint32_t i = 0; i < WALKS; i++)
        while (walks[i].used) walk_on(&walks[i]);
    stop();
}
/* Whoever uses them again and again does not keep it from its end. */
static void used_again(void) {
    uint32_t steps = 0;
    start(400000u, 300, 0);
    for (uint32_t k = 0; k < keys; k++) put_short(k, 20);
    begin(&walks[0]);
    for (; walks[0].used; steps++) {
        for (uint32_t i = 0; i < 100u; i++) use(check_below(keys));
        walk_on(&walks[0]);
        CHECK(steps < 20u);
    }
    stop();
}
/* Cleared in the midst of it, and filled again: it ends, and none of the new ones is noted. */
static void cleared(void) {
    start(400000u, 200, 0);
    for (uint32_t k = 0; k < keys; k++) put_short(k, 20);
    begin(&walks[0]);
    hold();
    for (uint32_t i = 0; i < 5u; i++) CHECK(gb_moment_step(s, &walks[0].m) == GB_AGAIN);
    CHECK(gb_room_clear(s, now) == GB_OK);
    mirror();
    for (uint32_t k = 0; k < keys; k++) put_short(k, 20), use(k);
    CHECK(gb_moment_step(s, &walks[0].m) == GB_OK && walks[0].m.n + walks[0].m.used == 5u);
    end(&walks[0], false);
    mirror();
    stop();
}
/* Where entries that are moved come to lie, which were noted or not: by the bits, for nothing is moved. */
static void places(void) {
    start(400000u, 10, 0);
    put_short(1, 20);
    put_short(2, 20);
    begin(&walks[0]);
    struct gb_moment *m = &walks[0].m;
    uint32_t plain; /* a walk as a save's, which is of no moment */
    CHECK(gb_index_walk_begin(&s->index, &plain));
    hold();
    gb_room_grow(s, 2u * length);
    gb_ref from = find(s, 1), within = (gb_ref)(length / GB_GRANULE) - 1024u, beyond = within + 2048u;
    memcpy(gb_at(s->base, beyond), gb_at(s->base, from), 128); /* in the midst of a free block */
    gb_moment_moved(s, from, beyond); /* noted there and then */
    CHECK(m->left == 1u && m->n == 1u);
    for (uint32_t i = 0; i < 2u; i++) gb_moment_moved(s, beyond, within); /* and stays so */
    CHECK(gb_index_marked(m->bits, within) && m->n == 1u);
    gb_moment_moved(s, find(s, 2), within); /* one that was not */
    CHECK(!gb_index_marked(m->bits, within) && m->left == 1u && m->n == 1u);
    gb_moment_meet(s, find(s, 2));
    CHECK(!m->left && m->used == 1u);
    gb_index_walk_end(&s->index, plain);
    end(&walks[0], true);
    stop();
}
/* A long value that is touched while a save hurries gets another block in its place, and is noted already. */
static void in_its_place(void) {
    start(400000u, 10, 0);
    put_short(1, 20);
    begin(&walks[0]);
    struct gb_moment *m = &walks[0].m;
    gb_ref from = find(s, 1), to = gb_arena_alloc(&s->index.arena, gb_word_granules(gb_entry_at(s->base, from)->word),
                                                  GB_KIND_ENTRY);
    gb_entry_at(s->base, to)->hash = gb_entry_at(s->base, from)->hash;
    gb_moment_meet(s, from);
    gb_index_replace(&s->index, from, to, false);
    gb_moment_born(s, to);
    m->left++; /* or it would be at its end */
    CHECK(gb_moment_step(s, m) == GB_AGAIN && m->n == 0 && m->used == 1u);
    m->left--;
    gb_moment_end(s, m);
    free(m->hashes);
    free(m->bits);
    walks[0].used = false;
    free(image);
}
/* As many as there can be; and what the checks are there to see. */
static void faults(void) {
    struct gb_fault f = {0};
    struct gb_moment many[GB_INDEX_WALKS + 1u];
    start(400000u, 10, 0);
    put_short(1, 20);
    for (uint32_t i = 0; i <= GB_INDEX_WALKS; i++) {
        many[i] = (struct gb_moment){.most = 2, .words = gb_index_places(length)};
        many[i].hashes = malloc(2u * sizeof(uint64_t));
        many[i].bits = calloc(many[i].words, sizeof(uint64_t));
        CHECK(gb_moment_begin(s, &many[i]) == (i < GB_INDEX_WALKS ? GB_OK : GB_BUSY));
    }
    many[0].left++;
    CHECK(!gb_moment_check(s, &many[0], &f) && strstr(f.rule, "moment 1"));
    many[0].left--;
    many[0].most = 0;
    CHECK(!gb_moment_check(s, &many[0], &f) && strstr(f.rule, "moment 2"));
    many[0].most = 2;
    use(1);
    for (uint32_t i = 0; i <= GB_INDEX_WALKS; i++) {
        if (i < GB_INDEX_WALKS) CHECK(gb_moment_step(s, &many[i]) == GB_OK || many[i].n == 1u);
        if (i < GB_INDEX_WALKS) gb_moment_end(s, &many[i]);
        free(many[i].hashes);
        free(many[i].bits);
    }
    stop();
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    bytes = malloc(1u << 20);
    uint64_t small = gb_room_smallest();
    faults();
    used_again();
    cleared();
    places();
    in_its_place();
    for (uint32_t round = 0; round < 3; round++) {
        run(small, 200, 1500, false);
        run(small + 65536u, 300, 1500, true);
        run(400000u, 250, 2000, true);
    }
    printf("%lu walks to their end, %lu entries used before their turn, %lu images grown\n", n_walks, n_used, n_grown);
    CHECK(n_walks > 30 && n_used > 300 && n_grown > 2);
    free(bytes);
    return check_done();
}
