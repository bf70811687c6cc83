/* test_mend.c - images of killed processes, sound and damaged, mended; and every verdict on a superblock. What a kill in
 * the middle of an operation leaves is kill_stores.c's. */
#include "../fuzz/fuzz_mend.c"

static uint8_t *image;
static uint64_t length;
static const uint64_t BOOT[2] = {5, 6}, OTHER[2] = {7, 8};

static void make(uint32_t acts) {
    const uint64_t seed[2] = {check_random(), 2};
    CHECK(gb_room_format(&store, image, length, seed, 5000) == GB_OK);
    gb_image_state(&store, GB_IMAGE_OPEN, BOOT, 9, 1);
    if (check_below(2))
        while (gb_room_ring(&store, GB_TELL_LEAST) == GB_AGAIN) gb_head_enter(&store);
    for (uint32_t i = 0; i < acts; i++) act(5000u + i);
}

/* Keys in the order of use, as one number. */
static uint64_t order(void) {
    uint64_t n = 1;
    gb_ref head = gb_index_list(&store.index);
    for (gb_ref at = store.index.root->lru.next; at != head; at = gb_list_at(store.base, at)->next) {
        gb_ref ref = GB_ENTRY_OF_LRU(at);
        n = (n ^ gb_entry_at(store.base, ref)->hash ^ gb_store_due(&store, ref)) * 0x100000001B3u;
    }
    return n;
}

static enum gb_err mend(struct gb_fault *f) {
    uint64_t *scratch = calloc(gb_mend_scratch(length), sizeof *scratch);
    CHECK(gb_room_attach(&store, image, length) == GB_OK);
    store.live = true;
    gb_room_rebase(&store, image);
    enum gb_err err = gb_mend(&store, scratch, f);
    free(scratch);
    return err;
}

/* What nobody interrupted is the same afterwards: entries, order, deadlines, counts. */
static void unharmed(uint32_t acts) {
    make(acts);
    uint64_t was = order(), keys = store.head->key_bytes, values = store.head->value_bytes;
    uint32_t count = store.head->table.count, timed = store.head->wheel.count;
    struct gb_fault f = {0};
    CHECK(mend(&f) == GB_OK);
    SOUND(gb_chain_check, &store);
    CHECK(order() == was && store.head->table.count == count && store.head->wheel.count == timed);
    CHECK(store.head->key_bytes == keys && store.head->value_bytes == values);
    for (uint32_t i = 0; i < 40u; i++) act(9000u + i); /* and it goes on */
    SOUND(gb_chain_check, &store);
}

/* Intents that were written down and not yet followed. */
static void intents(void) {
    struct gb_fault f = {0};
    make(60);
    gb_ref timed = 0;
    for (gb_ref at = store.head->arena.first; at < store.head->arena.end; at += gb_arena_size(&store.index.arena, at)) {
        uint32_t word = gb_entry_at(image, at)->word, both = GB_WORD_TTL | GB_WORD_EXTRA;
        if (gb_word_kind(word) == GB_KIND_ENTRY && (word & both) == both) timed = at;
    }
    struct gb_intent *i = &store.head->intent;
    if (timed) {
        *i = (struct gb_intent){.op = GB_INTENT_RETIME, .from = timed, .due = 77777, .hard = 88888, .idle = 5,
                                .flags = gb_extra_at(image, timed, gb_entry_at(image, timed)->word)->flags & ~GB_EXTRA_WIDE};
        CHECK(mend(&f) == GB_OK && gb_store_due(&store, timed) == 77777);
        SOUND(gb_chain_check, &store);
    }
    uint64_t seq = gb_room_seq(&store);
    *i = (struct gb_intent){.op = GB_INTENT_RING, .size = store.head->ring.granules, .due = length, .seq = seq + 1u};
    CHECK(mend(&f) == GB_OK && gb_room_seq(&store) == (store.head->ring.granules ? seq : 0));
    SOUND(gb_chain_check, &store);
    i->op = GB_INTENT_CLEAR;
    CHECK(mend(&f) == GB_OK && store.head->table.count == 0 && i->op == GB_INTENT_NONE);
    SOUND(gb_chain_check, &store);
    const struct gb_intent wrong[] = {{.op = GB_INTENT_SLIDE, .from = 1, .size = 3}, {.op = GB_INTENT_RING, .due = length + 8u},
                                      {.op = GB_INTENT_RETIME, .from = 3}, {.op = GB_INTENT_RING, .due = 8},
                                      {.op = GB_INTENT_SLIDE, .from = GB_HEAD_GRANULES + 1u, .to = GB_HEAD_GRANULES,
                                       .gap = GB_HEAD_GRANULES, .size = 3, .idle = UINT32_MAX - 2u}};
    for (uint32_t n = 0; n < 5u; n++) {
        make(5);
        *i = wrong[n];
        CHECK(mend(&f) == GB_BADIMAGE && strstr(f.rule, n < 4u ? "" : "intent 1"));
    }
}

/* An extent that says it holds more than it is long: all the lengths agree, and it is not believed. */
static void overlong(void) {
    struct gb_fault f = {0};
    for (uint32_t acts = 20;; acts += 20u) {
        make(acts);
        for (gb_ref at = store.head->arena.first; at < store.head->arena.end; at += gb_arena_size(&store.index.arena, at)) {
            uint32_t word = gb_entry_at(image, at)->word;
            if (gb_word_kind(word) != GB_KIND_ENTRY || !gb_store_is_chain(&store, at, word)) continue;
            struct gb_extra *x = gb_extra_at(image, at, word);
            if (!x->chain) continue;
            struct gb_extent *e = gb_extent_at(image, x->chain);
            uint32_t more = gb_word_granules(e->word) * GB_GRANULE - (uint32_t)sizeof *e - e->used + 8u;
            e->used += more;
            x->val_len += more;
            CHECK(mend(&f) == GB_BADIMAGE && strstr(f.rule, "mend 2"));
            return;
        }
    }
}

/* --- made by hand ------------------------------------------------------------------------------------------- */
static void fill_block(gb_ref ref, uint32_t key, uint32_t len, bool chain) {
    static uint8_t value[2u * GB_WINDOW_BYTES];
    struct gb_put p = {.value = value, .value_len = len};
    gb_store_key(&store, &p.key, &key, sizeof key, 1);
    gb_arena_rekind(&store.index.arena, ref, GB_KIND_PENDING);
    gb_store_fill(&store, ref, &p, chain);
    gb_arena_rekind(&store.index.arena, ref, GB_KIND_ENTRY);
}
/* An entry that is nowhere but in its block; false: there is no block. */
static bool lay(uint32_t key, uint32_t len, bool chain) {
    struct gb_put p = {.value_len = len, .key = {NULL, sizeof key, 1, 0}};
    gb_ref ref = gb_arena_alloc(&store.index.arena, gb_store_granules(&store, &p, chain), GB_KIND_PENDING);
    if (ref) fill_block(ref, key, len, chain);
    return ref != 0;
}
static uint32_t lay_full(uint32_t key, uint32_t len) {
    for (; len; len = len == 1u ? 0u : len > 8u ? len - 8u : 1u)
        while (lay(key, len, false)) key++;
    return key;
}
static void mended(uint32_t entries) {
    struct gb_fault f = {0};
    CHECK(mend(&f) == GB_OK && store.head->table.count == entries);
    SOUND(gb_chain_check, &store);
}
static void refused(const char *rule) {
    struct gb_fault f = {0};
    enum gb_err err = mend(&f);
    if (!err || !strstr(f.rule, rule)) printf("want %s, got %d: %s\n", rule, err, f.rule);
    CHECK(err == GB_BADIMAGE && strstr(f.rule, rule));
}

/* A table of several chunks; of fewer than its entries would like; and no room for what it needs. */
static void tables(void) {
    const char *rule = "mend 1: there is room for a table";
    uint32_t n;
    make(0);
    for (n = 0; n < 2000u; n++) {
        struct gb_put p = {.value = image, .value_len = 1};
        gb_store_key(&store, &p.key, &n, sizeof n, 1);
        do gb_head_enter(&store);
        while (gb_store_put(&store, &p, 5000) == GB_AGAIN);
    }
    CHECK(gb_table_size(&store.index.table) > 2u * GB_TABLE_CHUNK);
    mended(store.head->table.count);
    make(0);
    for (n = 0; n < 1500u; n++) CHECK(lay(n, 1, false));
    mended(1500);
    make(0);
    CHECK(lay_full(0, 1) > GB_TABLE_CHUNK * GB_TABLE_SLOTS);
    refused(rule);
    make(0);
    n = lay_full(0, 3u * GB_WINDOW_BYTES / 4u);
    fill_block(store.head->table.dirs[0], n, GB_TABLE_DIR_GRANULES * GB_GRANULE - 20u, false);
    refused(rule);
    make(0);
    gb_ref chunk = ((struct gb_directory *)gb_at(image, store.head->table.dirs[0]))->chunk[0];
    n = lay_full(0, 3u * GB_WINDOW_BYTES / 4u);
    fill_block(chunk, n, GB_WINDOW_BYTES - 20u, false);
    refused(rule);
}
#include "mend_full.h"

/* Two entries of a key, neither on the list; long ones of no bytes; and more than an operation can leave. */
static void twins(void) {
    for (uint32_t chain = 0; chain < 2u; chain++) {
        make(0);
        for (uint32_t n = 0; n < 3u; n++) CHECK(lay(7, 0, chain) && lay(8, chain ? 0 : 30, chain));
        mended(2);
    }
    make(0);
    for (uint32_t n = 0; n < 10u; n++) CHECK(lay(7, 10, false));
    refused("mend 4");
}
/* A long value whose chain the one entry has and the other has lost, whichever comes first. */
static void handed_on(bool first) {
    struct gb_put p = {.value = image, .value_len = 9000, .key = {(const uint8_t *)"k", 1, 1, 9}};
    struct gb_chain_write w;
    make(0);
    gb_store_key(&store, &p.key, "k", 1, 1);
    gb_head_enter(&store);
    CHECK(!gb_chain_begin(&store, &w, &p, 5000) && !gb_chain_step(&store, &w, &p, 5000));
    CHECK(!gb_chain_commit(&store, &w, &p, 5000));
    gb_ref a = gb_store_find(&store, &p.key), b;
    uint32_t size = gb_word_granules(gb_entry_at(image, a)->word);
    CHECK((b = gb_arena_alloc(&store.index.arena, size, GB_KIND_PENDING)) > a);
    memcpy(&gb_entry_at(image, b)->hash, &gb_entry_at(image, a)->hash, size * GB_GRANULE - 4u);
    gb_entry_at(image, b)->word |= gb_entry_at(image, a)->word & ~((uint32_t)GB_WORD_PREV_FREE | 7u << 10 | 1023u);
    gb_arena_rekind(&store.index.arena, b, GB_KIND_ENTRY);
    gb_extra_at(image, first ? b : a, gb_entry_at(image, a)->word)->chain = 0;
    mended(1);
    CHECK(gb_store_find(&store, &p.key) == (first ? a : b));
}
/* An entry whose key is longer than its first word can say, and that has no other. */
static void no_length(void) {
    make(0);
    CHECK(lay(7, 300, false));
    for (gb_ref at = store.head->arena.first; at < store.head->arena.end; at += gb_arena_size(&store.index.arena, at))
        if (gb_word_kind(gb_entry_at(image, at)->word) == GB_KIND_ENTRY) gb_entry_at(image, at)->word |= GB_KLEN_LONG << 17;
    refused("mend 2: an entry is whole");
}
/* A slide of an extent that names an entry without a chain, or no entry at all: nobody is told, and its chain is lost. */
static void slid_off(bool chunk) {
    for (gb_ref gap = 0, plain = 0, from = 0; !from; gap = plain = 0) {
        make(60);
        for (gb_ref at = store.head->arena.first; at < store.head->arena.end; at += gb_arena_size(&store.index.arena, at)) {
            uint32_t word = gb_entry_at(image, at)->word;
            if (gb_word_kind(word) == GB_KIND_ENTRY && !(word & GB_WORD_EXTRA)) plain = at;
            bool first = gb_word_kind(word) == GB_KIND_EXTENT &&
                         gb_word_kind(gb_entry_at(image, gb_extent_at(image, at)->prev)->word) == GB_KIND_ENTRY;
            if (first && gap && plain) from = at;
            if (from) break;
            gap = gb_word_kind(word) == GB_KIND_FREE ? at : 0;
        }
        if (!from) continue;
        store.head->intent = (struct gb_intent){.op = GB_INTENT_SLIDE, .from = from, .to = gap, .gap = gap,
                                                .size = gb_word_granules(gb_entry_at(image, from)->word)};
        gb_extent_at(image, from)->prev = chunk ? store.head->table.dirs[0] : plain;
        refused("mend 2");
    }
}
/* The last entry used slides into the place of one that was deleted: the list's head names its new place. */
static void slid_first(void) {
    struct gb_put p = {.value = image, .value_len = 50};
    gb_ref at[3];
    uint32_t n = 0;
    make(0);
    for (; n < 3u; n++) {
        gb_store_key(&store, &p.key, &n, sizeof n, 1);
        CHECK(gb_store_put(&store, &p, 5000) == GB_OK);
        at[n] = gb_store_find(&store, &p.key);
    }
    CHECK(at[1] < at[2] && store.index.root->lru.next == GB_LRU_OF(at[2]));
    gb_room_remove(&store, at[1], GB_CAUSE_DELETE);
    store.head->intent = (struct gb_intent){.op = GB_INTENT_SLIDE, .from = at[2], .to = at[1], .gap = at[1],
                                            .size = gb_word_granules(gb_entry_at(image, at[2])->word)};
    mended(2);
    n = 2;
    CHECK(store.index.root->lru.next == GB_LRU_OF(at[1]) && gb_store_find(&store, &p.key) == at[1]);
}
/* A block slides down, and the free one behind it joins the gap: it is of one granule, so that its own size is the word
 * in which the gap's is told. Killed then, or before anything was copied, or as that is finished; `next` is as long as
 * what the block slid over, or longer. */
static void slid_beside(uint32_t next, uint32_t kill) {
    struct gb_arena *a = &store.index.arena;
    blank(length);
    put_granules(0, hole(3));
    put_granules(1, 20);
    put_granules(2, 34);
    put_granules(3, next);
    drop(2);
    put_granules(2, 33);
    gb_ref from = found(2), behind = found(3);
    CHECK(from + 34u == behind && gb_arena_size(a, behind - 1u) == 1u && from == found(1) + 20u);
    drop(1);
    uint8_t *was = malloc(length);
    memcpy(was, image, length);
    gb_arena_gap_rewind(a);
    while (gb_arena_gap_next(a, GB_GAP_BLOCK) != from) gb_arena_gap_skip(a);
    CHECK(gb_arena_gap_slide(a, false, a->root->end) == from - 20u && a->root->hand == behind);
    struct gb_intent i = store.head->intent;
    CHECK(i.op == GB_INTENT_SLIDE && i.done == i.size && i.from == from && i.idle == 1u);
    if (kill == 1u) {
        memcpy(image, was, length);
        i.done = 0;
        store.head->intent = i;
    }
    if (kill == 2u) gb_arena_slide_finish(a);
    free(was);
    mended(3);
    CHECK(found(0) && found(2) == from - 20u && found(3) == behind);
}
/* A clock so late that a deadline it allows has no level: refused, and one a tick before is not. */
static void late_clock(void) {
    struct gb_put p = {.value = image, .value_len = 1, .due = 5000u + ((uint64_t)1 << 40)};
    make(0);
    gb_store_key(&store, &p.key, "k", 1, 1);
    gb_head_enter(&store);
    CHECK(gb_store_put(&store, &p, 5000) == GB_OK);
    gb_ref ref = gb_store_find(&store, &p.key);
    struct gb_extra *x = gb_extra_at(image, ref, gb_entry_at(image, ref)->word);
    const uint64_t ticks[] = {((uint64_t)1 << 50) - 1u, GB_WHEEL_CLOCK_MS >> GB_WHEEL_TICK_SHIFT, ~(uint64_t)0,
                              (GB_WHEEL_CLOCK_MS >> GB_WHEEL_TICK_SHIFT) - 1u};
    for (uint32_t n = 0; n < 4u; n++) {
        uint64_t due = (ticks[n] << GB_WHEEL_TICK_SHIFT) + (n < 3u ? 64u : GB_WHEEL_MAX_MS);
        store.head->wheel.tick = ticks[n];
        x->due_high = (uint32_t)(due >> 32);
        gb_timer_at(image, ref)->due = (uint32_t)due;
        if (n < 3u) refused("mend 2: the clock");
        else mended(1);
    }
    CHECK(gb_store_due(&store, ref) == GB_WHEEL_CLOCK_MS - 8u + GB_WHEEL_MAX_MS);
}
/* Lengths and intents that no image has. */
static void frames(void) {
    struct gb_fault f = {0};
    make(5);
    store.head->intent = (struct gb_intent){.op = GB_INTENT_RING, .size = GB_TELL_LEAST, .due = length};
    refused("mend 1: an intent");
    for (uint32_t clears = 0; clears < 2u; clears++) {
        make(5);
        store.head->intent.op = clears ? GB_INTENT_CLEAR : GB_INTENT_NONE;
        store.mapped = length - 8u;
        CHECK(gb_mend(&store, NULL, &f) == GB_BADIMAGE && strstr(f.rule, "mend 1: length"));
        store.head->length = gb_room_smallest() - 8u;
        refused("mend 1: length");
    }
}
/* A live image that is cleared, and made shorter and longer, with its ring. */
static void lived(void) {
    make(100);
    CHECK(store.live && gb_room_clear(&store, 5200) == GB_OK && !store.head->table.count);
    for (uint32_t i = 0; i < 100u; i++) act(5200u + i);
    do gb_head_enter(&store);
    while (gb_room_shrink(&store, length - 65536u) == GB_AGAIN);
    CHECK(store.head->length == length - 65536u);
    SOUND(gb_chain_check, &store);
    gb_room_grow(&store, length);
    SOUND(gb_chain_check, &store);
    CHECK(store.head->intent.op == GB_INTENT_NONE);
    mended(store.head->table.count);
}

/* A right sum over a head that cannot be. */
#define REFUSED(place, value, says)                                                                \
    do {                                                                                           \
        struct gb_head was_ = *store.head;                                                         \
        store.head->place = (value);                                                               \
        gb_image_seal(&store);                                                                     \
        CHECK(gb_image_judge(image, length, BOOT, 9, &f) == GB_IMAGE_LOST && strstr(f.rule, says)); \
        *store.head = was_;                                                                        \
    } while (0)
static void roots(void) {
    struct gb_fault f = {0};
    gb_ref end = store.head->arena.end;
    REFUSED(length, length - 4u, "image 1");
    REFUSED(length, gb_room_smallest() - 8u, "image 1");
    REFUSED(arena.first, GB_HEAD_GRANULES + 1u, "image 2");
    REFUSED(arena.hand, end + 1u, "image 2");
    REFUSED(arena.gap, end, "image 2");
    REFUSED(index.lru.next, end, "image 2");
    REFUSED(index.lru.prev, end, "image 2");
    REFUSED(trash, end, "image 2");
    REFUSED(table.dirs[GB_DIR_ROOTS - 1u], end, "image 2");
    REFUSED(table.mask, 2, "image 2"); /* no power of two, less one */
    REFUSED(table.split, store.head->table.mask + 1u, "image 2");
    REFUSED(table.mask, UINT32_MAX, "image 2"); /* more than its directories name, and than 32 bits */
    if (!store.head->ring.granules) return;
    REFUSED(ring.at, end + 2u, "image 2");
    store.head->arena.end = end + store.head->ring.granules - 1u; /* a ring that is too short, at its place */
    store.head->ring.at = end + store.head->ring.granules;
    REFUSED(ring.granules, 1u, "image 2");
}

static void attached(void) {
    struct gb_store other;
    CHECK(gb_room_attach(&other, image, gb_room_smallest() - 1u) == GB_SMALL);
    CHECK(gb_room_attach(&other, image, length - 8u) == GB_BADIMAGE);
    const uint64_t words[] = {offsetof(struct gb_head, magic), offsetof(struct gb_head, version), offsetof(struct gb_head, layout)};
    for (uint32_t n = 0; n < 3u; n++) {
        image[words[n]] ^= 1u;
        CHECK(gb_room_attach(&other, image, length) == GB_BADIMAGE);
        image[words[n]] ^= 1u;
    }
    CHECK(gb_room_attach(&other, image, length) == GB_OK);
}

static void verdicts(void) {
    const uint64_t none[2] = {0, 0}, half[2] = {BOOT[0], OTHER[1]};
    struct gb_fault f = {0};
    make(20);
    CHECK(gb_image_judge(image, length, BOOT, 9, &f) == GB_IMAGE_KILLED);
    CHECK(gb_image_judge(image, length, OTHER, 9, &f) == GB_IMAGE_LOST && strstr(f.rule, "image 4"));
    CHECK(gb_image_judge(image, length, BOOT, 8, &f) == GB_IMAGE_LOST && strstr(f.rule, "copy"));
    CHECK(gb_image_judge(image, length - 8u, BOOT, 9, &f) == GB_IMAGE_LOST && strstr(f.rule, "image 1")); /* cut short */
    CHECK(gb_image_judge(image, length - 8u, BOOT, 8, &f) == GB_IMAGE_LOST && strstr(f.rule, "copy"));
    CHECK(gb_image_judge(image, 100, BOOT, 9, &f) == GB_IMAGE_LOST && strstr(f.rule, "image 1"));
    CHECK(gb_image_judge(image, length, half, 9, &f) == GB_IMAGE_LOST && strstr(f.rule, "image 4"));
    CHECK(gb_image_judge(image, 7, BOOT, 9, &f) == GB_IMAGE_LOST && strstr(f.rule, "image 3"));
    gb_image_state(&store, GB_IMAGE_OPEN, none, 9, 1); /* where boots cannot be told apart */
    CHECK(gb_image_judge(image, length, none, 9, &f) == GB_IMAGE_LOST && strstr(f.rule, "image 4"));
    gb_image_state(&store, GB_IMAGE_PRIVATE, none, 0, 0);
    CHECK(!store.live && !store.index.arena.intent); /* nobody will ask */
    gb_image_state(&store, GB_IMAGE_OPEN, BOOT, 9, 1);
    attached();
    gb_image_seal(&store);
    CHECK(gb_image_judge(image, length, OTHER, 8, &f) == GB_IMAGE_CLEAN);
    struct gb_head sound = *store.head;
    roots();
    *store.head = sound;
    uint64_t sizes[] = {offsetof(struct gb_head, magic), offsetof(struct gb_head, version), offsetof(struct gb_head, layout),
                        offsetof(struct gb_head, key_bytes), offsetof(struct gb_head, counters), offsetof(struct gb_head, table),
                        offsetof(struct gb_head, arena), offsetof(struct gb_head, checksum), sizeof(struct gb_head) - 8u};
    for (uint32_t n = 0; n < sizeof sizes / sizeof *sizes; n++) {
        image[sizes[n]] ^= 1u;
        CHECK(gb_image_judge(image, length, BOOT, 9, &f) == GB_IMAGE_LOST);
        image[sizes[n]] ^= 1u;
    }
    store.head->arena.end++; /* a right sum over roots that lie nowhere */
    gb_image_seal(&store);
    CHECK(gb_image_judge(image, length, BOOT, 9, &f) == GB_IMAGE_LOST && strstr(f.rule, "image 2"));
    store.head->arena.end--;
    store.head->length += 8u;
    gb_image_seal(&store);
    CHECK(gb_image_judge(image, length, BOOT, 9, &f) == GB_IMAGE_LOST && strstr(f.rule, "image 1"));
    store.head->length -= 8u;
    gb_image_state(&store, GB_IMAGE_LOADING, BOOT, 9, 1);
    CHECK(gb_image_judge(image, length, BOOT, 9, &f) == GB_IMAGE_LOST && strstr(f.rule, "image 4"));
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    length = gb_room_smallest() + (1u << 17);
    image = malloc(length);
    for (uint32_t round = 0; round < 60; round++) {
        unharmed(check_below(300));
        if (round % 4u == 0) intents();
        if (round % 10u == 0) verdicts();
        if (round % 10u == 1) overlong();
        if (round % 10u == 2) lived();
    }
    tables();
    full_images();
    twins();
    handed_on(false);
    handed_on(true);
    no_length();
    slid_off(false);
    slid_off(true);
    slid_first();
    for (uint32_t n = 0; n < 6u; n++) slid_beside(n % 2u ? 20 : 60, n / 2u);
    late_clock();
    frames();
    free(image);
    for (uint32_t round = 0; round < 12000; round++) { /* any bytes changed: fuzz_mend.c, from dice */
        static uint8_t input[700];
        size_t size = 30u + check_below(670);
        for (size_t i = 0; i < size; i++) input[i] = (uint8_t)check_random();
        LLVMFuzzerTestOneInput(input, size);
    }
    return check_done();
}
