/* test_arena.c - the arena against an array that says, for every granule, who owns it. */
#include "check.h"
#include "core.h"

#define MOST_BLOCKS 4096u
#define LONGEST (24u * GB_BLOCK_MAX) /* granules of the largest image here */

struct block {
    gb_ref ref;
    uint32_t size, id;
    enum gb_kind kind;
};
static struct gb_arena arena;
static struct block blocks[MOST_BLOCKS];
static uint32_t blocks_n, last_id, owner[LONGEST];

static struct gb_arena_root *root(void) { return arena.root; }
static uint8_t *payload(const struct block *b) { return (uint8_t *)gb_at(arena.base, b->ref) + 4; }

static void start(gb_ref end) {
    gb_ref head = (gb_ref)(1u + (sizeof(struct gb_arena_root) + GB_GRANULE - 1u) / GB_GRANULE);
    memset(&arena, 0, sizeof arena);
    arena.base = malloc(LONGEST * GB_GRANULE);
    memset(arena.base, 0xA5, LONGEST * GB_GRANULE);
    arena.root = (struct gb_arena_root *)gb_at(arena.base, 1);
    gb_arena_format(&arena, head, end);
    memset(owner, 0, sizeof owner);
    blocks_n = 0;
}

static void own(const struct block *b, uint32_t from, uint32_t to) {
    for (uint32_t i = 0; i < b->size; i++) {
        CHECK(owner[b->ref + i] == from); /* else blocks overlap */
        owner[b->ref + i] = to;
    }
}
static void fill(const struct block *b) {
    uint8_t *p = payload(b);
    for (uint32_t i = 0; i < b->size * GB_GRANULE - 4u; i++) p[i] = (uint8_t)(b->id * 37u + i);
}
static void intact(const struct block *b) {
    const uint8_t *p = payload(b);
    uint32_t bad = 0;
    for (uint32_t i = 0; i < b->size * GB_GRANULE - 4u; i++) bad += p[i] != (uint8_t)(b->id * 37u + i);
    CHECK(!bad);
    CHECK(gb_arena_size(&arena, b->ref) == b->size);
    CHECK(gb_word_kind(*(uint32_t *)gb_at(arena.base, b->ref)) == b->kind);
}

/* The longest free run that is not the gap. */
static uint32_t longest(bool window) {
    uint32_t best = 0, run = 0;
    for (gb_ref at = root()->first; at < root()->end; at++) {
        bool gap = root()->gap && at >= root()->gap && at < root()->hand;
        run = owner[at] || gap ? 0 : run + 1u;
        if (window && (at + 1u) % GB_BLOCK_MAX == 0 && run >= GB_BLOCK_MAX) return GB_BLOCK_MAX;
        if (run > best) best = run;
    }
    return window ? 0 : best;
}
static uint32_t width(uint32_t granules) { /* of the class */
    return granules < GB_ARENA_EXACT ? 1u : 1u << (27u - (uint32_t)__builtin_clz(granules));
}

static void compare(bool all) {
    uint64_t sums[GB_KINDS] = {0};
    uint32_t seen = 0, size;
    SOUND(gb_arena_check, &arena);
    for (uint32_t i = 0; i < blocks_n; i++) {
        sums[blocks[i].kind] += blocks[i].size;
        CHECK(owner[blocks[i].ref] == blocks[i].id);
        if (all || check_below(blocks_n) < 2u) intact(&blocks[i]);
    }
    for (gb_ref at = root()->first; at < root()->end; at += size) {
        size = gb_arena_size(&arena, at);
        bool is_free = gb_word_kind(*(uint32_t *)gb_at(arena.base, at)) == GB_KIND_FREE;
        CHECK(is_free == !owner[at] && owner[at] == owner[at + size - 1u]);
        sums[GB_KIND_FREE] += is_free ? size : 0u;
        seen += !is_free;
    }
    CHECK(seen == blocks_n);
    sums[GB_KIND_HEAD] = root()->first + 1u;
    uint64_t total = 0;
    for (uint32_t k = 0; k < GB_KINDS; k++) {
        CHECK(sums[k] == root()->ledger[k]);
        total += sums[k];
    }
    CHECK(total == root()->end + 1u);
    CHECK(gb_arena_free_granules(&arena) == sums[GB_KIND_FREE]);
}

static enum gb_kind any_kind(void) { return (enum gb_kind)(1u + check_below(7)); }

static void took(gb_ref ref, uint32_t size, enum gb_kind kind) {
    CHECK(blocks_n < MOST_BLOCKS && ref >= root()->first && ref + size <= root()->end);
    struct block b = {ref, size, ++last_id, kind};
    CHECK(gb_arena_size(&arena, ref) == size);
    own(&b, 0, b.id);
    fill(&b);
    blocks[blocks_n++] = b;
}
static void gone(uint32_t i) {
    own(&blocks[i], blocks[i].id, 0);
    blocks[i] = blocks[--blocks_n];
}
static void drop(uint32_t i) {
    gb_arena_free(&arena, blocks[i].ref);
    gone(i);
}

static void alloc(uint32_t most) {
    uint32_t size = 1u + check_below(check_below(4) ? most / 8u + 1u : most), free_run = longest(false);
    enum gb_kind kind = any_kind();
    gb_ref ref = gb_arena_alloc(&arena, size, kind);
    if (ref) took(ref, size, kind);
    else CHECK(free_run < 3u || free_run < size + (size < GB_ARENA_EXACT ? 0u : width(size)));
}
static void alloc_between(void) {
    uint32_t least = 1u + check_below(GB_BLOCK_MAX), most = least + check_below(GB_BLOCK_MAX - least + 1u);
    uint32_t free_run = longest(false);
    enum gb_kind kind = any_kind();
    gb_ref ref = gb_arena_alloc_between(&arena, least, most, kind);
    if (!ref) {
        CHECK(free_run < least + width(least) + 2u);
        return;
    }
    uint32_t size = gb_arena_size(&arena, ref);
    CHECK(size >= least && size <= most);
    CHECK(size == most || size + width(free_run) > free_run); /* the largest class */
    took(ref, size, kind);
}
static void alloc_window(void) {
    uint32_t large = 0, size;
    for (gb_ref at = root()->first; at < root()->end; at += size) {
        size = gb_arena_size(&arena, at);
        large += !owner[at] && size >= GB_BLOCK_MAX;
    }
    bool there = longest(true) != 0;
    gb_ref ref = gb_arena_alloc_window(&arena, GB_KIND_BUCKETS);
    CHECK(!ref || there);
    CHECK(ref || !there || large > 16u); /* it looks at sixteen */
    if (!ref) return;
    CHECK(ref % GB_BLOCK_MAX == 0);
    took(ref, GB_BLOCK_MAX, GB_KIND_BUCKETS);
}

static uint32_t block_at(gb_ref ref) {
    for (uint32_t i = 0; i < blocks_n; i++)
        if (blocks[i].ref == ref) return i;
    CHECK(!"a block's start");
    return 0;
}

static bool slide(uint32_t i, gb_ref limit) {
    static struct gb_intent live; /* as a live file slides: a piece no longer than the gap at a time */
    struct block *b = &blocks[i];
    bool aligned = b->size == GB_BLOCK_MAX && check_below(2);
    gb_ref to = root()->gap, got;
    if (to && aligned) to = (to + GB_BLOCK_MAX - 1u) / GB_BLOCK_MAX * GB_BLOCK_MAX;
    bool may = to && to < b->ref && to + b->size <= limit;
    uint32_t moves = root()->moves;
    arena.intent = check_below(2) ? &live : NULL;
    got = gb_arena_gap_slide(&arena, aligned, limit);
    arena.intent = NULL;
    CHECK(got == (may ? to : 0u));
    CHECK(root()->moves == moves + (may ? 1u : 0u));
    if (!may) return false;
    own(b, b->id, 0);
    b->ref = to;
    own(b, 0, b->id);
    intact(b);
    return true;
}
/* To a hole elsewhere. */
static bool move(uint32_t i) {
    struct block b = blocks[i];
    gb_ref to = gb_arena_alloc(&arena, b.size, b.kind);
    if (!to) return false;
    uint32_t flag = *(uint32_t *)gb_at(arena.base, to) & GB_WORD_PREV_FREE;
    memcpy((uint8_t *)gb_at(arena.base, to) + 4, payload(&b), b.size * GB_GRANULE - 4u);
    CHECK((*(uint32_t *)gb_at(arena.base, to) & GB_WORD_PREV_FREE) == flag);
    took(to, b.size, b.kind);
    fill(&blocks[blocks_n - 1u]);
    drop(i);
    return true;
}

static void gap(void) {
    enum gb_gap want = check_below(8) ? (enum gb_gap)check_below(2) : GB_GAP_TAIL;
    for (uint32_t n = check_below(40); n; n--) {
        gb_ref ref = gb_arena_gap_next(&arena, want);
        CHECK(ref == 0 || ref == root()->hand);
        if (!ref) {
            if (want == GB_GAP_TAIL) CHECK(root()->hand == root()->end);
            if (want == GB_GAP_BLOCK) CHECK(longest(false) >= GB_BLOCK_MAX);
            if (want == GB_GAP_WINDOW) CHECK(longest(true));
            return;
        }
        uint32_t i = block_at(ref), what = check_below(8);
        if (what < 3 && move(i)) continue;
        if (what < 7 && slide(i, root()->end)) {
            compare(false);
            continue;
        }
        if (want == GB_GAP_TAIL && check_below(3)) drop(block_at(ref));
        else gb_arena_gap_skip(&arena);
    }
}

/* As a shrink does: the hand goes up to the cut, then the gap from there to the end. */
static void shrink(gb_ref cut) {
    gb_arena_gap_rewind(&arena);
    CHECK(root()->hand == root()->first && !root()->gap);
    CHECK(!gb_arena_shrink(&arena, cut));
    while (!gb_arena_shrink(&arena, cut)) {
        compare(false);
        if (!root()->gap && root()->hand + gb_arena_size(&arena, root()->hand) <= cut) {
            gb_arena_gap_skip(&arena);
            continue;
        }
        gb_ref ref = gb_arena_gap_next(&arena, GB_GAP_TAIL);
        if (!ref) continue;
        if (check_below(4) == 0 && move(block_at(ref))) continue;
        if (!slide(block_at(ref), cut)) drop(block_at(ref));
    }
    CHECK(root()->end == cut && !root()->gap);
}

static void step(uint32_t most) {
    uint32_t what = check_below(100), end = root()->end;
    if (what < 40) alloc(most);
    else if (what < 44) alloc_between();
    else if (what < 47) alloc_window();
    else if (what < 82 && blocks_n) drop(check_below(blocks_n));
    else if (what < 87 && blocks_n) {
        struct block *b = &blocks[check_below(blocks_n)];
        b->kind = any_kind();
        gb_arena_rekind(&arena, b->ref, b->kind);
    } else if (what < 96) gap();
    else if (what < 97) gb_arena_gap_rewind(&arena);
    else if (what < 98 && end + 9u < LONGEST) gb_arena_grow(&arena, end + 1u + check_below(LONGEST - end - 2u));
    else if (what < 99 && end > 4u * GB_BLOCK_MAX)
        shrink(end - 1u - check_below(end - 3u * GB_BLOCK_MAX));
}

static void run(gb_ref end, uint32_t steps, uint32_t most) {
    start(end);
    compare(true);
    for (uint32_t i = 0; i < steps; i++) {
        step(most);
        compare(i % 64u == 0);
    }
    CHECK(blocks_n > 0);
    while (blocks_n) drop(check_below(blocks_n));
    compare(true);
    gb_arena_gap_rewind(&arena); /* nothing left: one free block */
    CHECK(gb_arena_size(&arena, root()->first) == root()->end - root()->first);
    free(arena.base);
}

/* Each invariant, broken by hand, is named by the check. */
#define BROKEN(text)                                                                               \
    do {                                                                                           \
        struct gb_fault f_ = {0};                                                                  \
        CHECK(!gb_arena_check(&arena, &f_));                                                       \
        CHECK(f_.rule && !strncmp(f_.rule, text, strlen(text)));                                   \
    } while (0)
#define SPOIL(place, value, text)                                                                  \
    do {                                                                                           \
        uint32_t *p_ = (place), old_ = *p_;                                                        \
        *p_ = (value);                                                                             \
        BROKEN(text);                                                                              \
        *p_ = old_;                                                                                \
        SOUND(gb_arena_check, &arena);                                                             \
    } while (0)
/* An empty arena gives itself up to a place that is one, and no further. */
static void shrunk(void) {
    start(6u * GB_BLOCK_MAX);
    gb_ref first = root()->first;
    CHECK(!gb_arena_shrink(&arena, first + 9u)); /* there is no gap yet */
    CHECK(gb_arena_gap_next(&arena, GB_GAP_TAIL) == 0 && root()->gap == first);
    CHECK(!gb_arena_shrink(&arena, first) && !gb_arena_shrink(&arena, first - 1u));
    SPOIL(&root()->hand, first, "arena 7");
    CHECK(gb_arena_shrink(&arena, first + 9u) && root()->end == first + 9u);
    SOUND(gb_arena_check, &arena);
    free(arena.base);
    start(6u * GB_BLOCK_MAX);
    CHECK(gb_arena_alloc(&arena, 5, GB_KIND_ENTRY) == first);
    gb_arena_gap_skip(&arena);
    CHECK(gb_arena_gap_next(&arena, GB_GAP_TAIL) == 0 && root()->gap == first + 5u);
    CHECK(!gb_arena_shrink(&arena, first + 4u)); /* what lies before the gap is somebody's */
    SOUND(gb_arena_check, &arena);
    free(arena.base);
}
/* A slide to an aligned place, finished after a kill: what is before it and behind it is free. */
static void slid(void) {
    static struct gb_intent intent;
    start(6u * GB_BLOCK_MAX);
    gb_ref gap = gb_arena_alloc(&arena, 40, GB_KIND_ENTRY), from = gb_arena_alloc(&arena, 10, GB_KIND_ENTRY);
    CHECK(from == gap + 40u && gb_arena_alloc(&arena, 3, GB_KIND_ENTRY) == from + 10u);
    gb_arena_free(&arena, gap);
    uint32_t word = *(uint32_t *)gb_at(arena.base, from);
    intent = (struct gb_intent){.op = GB_INTENT_SLIDE, .from = from, .to = gap + 6u, .gap = gap, .size = 10};
    arena.intent = &intent;
    gb_arena_slide_finish(&arena);
    const uint32_t *before = gb_at(arena.base, gap), *behind = gb_at(arena.base, gap + 16u);
    CHECK(gb_word_kind(before[0]) == GB_KIND_FREE && before[1] == 6u);
    CHECK(*(uint32_t *)gb_at(arena.base, gap + 6u) == word);
    CHECK(gb_word_kind(behind[0]) == GB_KIND_FREE && gap + 16u + behind[1] == from + 10u);
    free(arena.base);
}
/* Work is bounded: of the holes of one class only so many are looked at. */
static void looks(void) {
    gb_ref hole[40];
    uint32_t n = 0, span = GB_BLOCK_MAX >= 512u ? 2u : 1u; /* two blocks: a hole of the last class, where windows are large */
    for (uint32_t blocks_of = 1; blocks_of <= span; blocks_of++, n = 0) {
        start(LONGEST - 1u);
        while (n < 18u) {
            gb_ref ref = gb_arena_alloc(&arena, GB_BLOCK_MAX, GB_KIND_ENTRY);
            CHECK(ref);
            if (blocks_of == 2u) CHECK(gb_arena_alloc(&arena, GB_BLOCK_MAX, GB_KIND_ENTRY) == ref + GB_BLOCK_MAX);
            if (ref % GB_BLOCK_MAX || blocks_of == 2u) hole[n++] = ref;
            CHECK(gb_arena_alloc(&arena, 3, GB_KIND_ENTRY));
            if (blocks_of == 2u && n == 9u) break;
        }
        while (gb_arena_alloc(&arena, GB_BLOCK_MAX, GB_KIND_ENTRY)) {}
        for (uint32_t size = GB_BLOCK_MAX - 1u; size; size--)
            while (gb_arena_alloc(&arena, size, GB_KIND_ENTRY)) {}
        for (uint32_t i = 0; i < n; i++) {
            if (blocks_of == 2u) gb_arena_free(&arena, hole[i] + GB_BLOCK_MAX);
            gb_arena_free(&arena, hole[i]);
        }
        SOUND(gb_arena_check, &arena);
        if (blocks_of == 1u) CHECK(!gb_arena_alloc_window(&arena, GB_KIND_BUCKETS));
        else CHECK(!gb_arena_alloc_run(&arena, 2u * GB_BLOCK_MAX + 1u, 0, GB_KIND_ENTRY));
        if (blocks_of == 2u) { /* the bytes beside a run are the run's too */
            CHECK(!gb_arena_alloc_run(&arena, 2u * GB_BLOCK_MAX - 3u, 4, GB_KIND_ENTRY));
            SOUND(gb_arena_check, &arena);
            CHECK(gb_arena_alloc_run(&arena, 2u * GB_BLOCK_MAX - 4u, 4, GB_KIND_ENTRY));
        }
        free(arena.base);
    }
}
static void faults(void) {
    start(6u * GB_BLOCK_MAX);
    gb_ref a = gb_arena_alloc(&arena, 10, GB_KIND_ENTRY), b = gb_arena_alloc(&arena, 10, GB_KIND_ENTRY);
    gb_ref c = gb_arena_alloc(&arena, 10, GB_KIND_ENTRY), d = gb_arena_alloc(&arena, 10, GB_KIND_ENTRY);
    CHECK(a && b && c && d);
    gb_arena_free(&arena, b);
    uint32_t *wa = gb_at(arena.base, a), *wb = gb_at(arena.base, b), *wc = gb_at(arena.base, c);
    SPOIL(&wc[0], wc[0] & ~1023u, "arena 1");
    SPOIL(gb_at(arena.base, root()->end), 0u, "arena 1");
    SPOIL(&wc[0], wc[0] & ~GB_WORD_PREV_FREE, "arena 2");
    SPOIL(&wa[0], wa[0] | GB_WORD_PREV_FREE, "arena 2");
    SPOIL(&wc[-1], 9u, "arena 3");
    SPOIL(&wb[0], wb[0] | GB_WORD_HELD, "arena 7");
    SPOIL(&root()->hand, b + 1u, "arena 7");
    SPOIL(&root()->ledger[GB_KIND_ENTRY], 7u, "arena 5");
    SPOIL(&root()->ledger[GB_KIND_HEAD], 7u, "arena 5");
    SPOIL(&wb[2], a + 1u, "list 1");
    SPOIL((uint32_t *)(void *)&root()->bits[0], 0u, "arena 6");
    SPOIL((uint32_t *)(void *)&root()->bits[0], (uint32_t)root()->bits[0] | 1u << 20, "arena 6"); /* of an empty class */
    struct gb_link l = *(struct gb_link *)(void *)&wb[2];
    gb_list_unlink(arena.base, b + 1u);
    root()->bits[0] &= ~((uint64_t)1 << 10);
    BROKEN("arena 4");
    gb_list_link(arena.base, l.prev + 2u, b + 1u); /* two classes on: exact ones lie side by side */
    root()->bits[0] |= (uint64_t)1 << 12;
    BROKEN("arena 4");
    free(arena.base);
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    shrunk();
    looks();
    slid();
    faults();
    for (uint32_t round = 0; round < 3; round++) {
        run(5u * GB_BLOCK_MAX, 4000, 12);
        run(8u * GB_BLOCK_MAX, 3000, GB_BLOCK_MAX);
        run(6u * GB_BLOCK_MAX + 7u, 3000, 60);
        run(3u * GB_BLOCK_MAX + 1u, 3000, GB_BLOCK_MAX / 3u);
    }
    return check_done();
}
