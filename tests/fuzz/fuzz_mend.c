/* fuzz_mend.c - a live image of a killed process whose bytes were changed: mending says why not, or leaves an image
 * that is sound, that can be worked on, and that mending finds nothing to do in. Unchanged it must be mended, and
 * keep every entry. The image lies in memory of exactly its length, so that ASan sees a step beside it. */
#define CHECK_ABORTS
#include "check.h"
#include "core.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct gb_store store;

static void act(uint64_t now) {
    static uint8_t value[20000];
    uint8_t bytes[300];
    uint32_t key = check_below(40), op = check_below(10), len = key % 9u ? 6u : 280u;
    for (uint32_t i = 0; i < len; i++) bytes[i] = (uint8_t)(key + i);
    struct gb_put p = {.value = value, .value_len = check_below(4) ? check_below(300) : check_below(18000),
                       .due = check_below(3) ? 0 : now + 1u + check_below(100000), .idle = check_below(5) ? 0 : 500};
    if (!p.due) p.idle = 0;
    gb_store_key(&store, &p.key, bytes, len, key & 3u);
    gb_head_enter(&store);
    gb_ref ref = gb_store_find(&store, &p.key);
    struct gb_chain_write w;
    enum gb_err err;
    if (op < 2) {
        if (ref) gb_room_remove(&store, ref, GB_CAUSE_DELETE);
    } else if (op < 4) {
        if (ref) gb_store_use(&store, ref, now);
    } else if (gb_store_fits_inline(&p)) {
        while (gb_store_put(&store, &p, now) == GB_AGAIN) gb_head_enter(&store);
    } else {
        while ((err = gb_chain_begin(&store, &w, &p, now)) == GB_AGAIN) gb_head_enter(&store);
        if (err) return;
        while ((err = gb_chain_step(&store, &w, &p, now)) == GB_AGAIN) gb_head_enter(&store);
        while (!err && (err = gb_chain_commit(&store, &w, &p, now)) == GB_AGAIN) {
            gb_head_enter(&store);
            err = GB_OK;
        }
        if (err) gb_chain_abort(&store, &w);
    }
}

/* --- changes --------------------------------------------------------------------------------------------------- */

#define BLOCKS 256u
static struct {
    gb_ref at[BLOCKS], end;
    uint32_t count;
} blocks;

static void note_blocks(void) {
    const struct gb_arena *a = &store.index.arena;
    blocks.count = 0;
    blocks.end = a->root->end;
    for (gb_ref at = a->root->first; at < a->root->end; at += gb_arena_size(a, at))
        if (blocks.count < BLOCKS) blocks.at[blocks.count++] = at;
}
static gb_ref some_block(void) { return blocks.at[check_below(blocks.count)]; }

/* A place that means something, or nearly so. */
static gb_ref some_ref(void) {
    switch (check_below(8)) {
    case 0:
        return blocks.end - 1u + check_below(3);
    case 1:
        return check_below(GB_HEAD_GRANULES + 4u);
    case 2:
        return (gb_ref)check_random();
    case 3:
        return some_block() + check_below(1024);
    case 4:
    case 5:
        return GB_LRU_OF(some_block());
    default:
        return some_block();
    }
}

static uint64_t some_value(uint64_t was) {
    static const uint64_t odd[] = {0, 1, 2, 7, 8, 0xFF, 0x1FFF, 0xFFFFFFFF, (uint64_t)1 << 62, ~(uint64_t)0};
    switch (check_below(5)) {
    case 0:
        return odd[check_below(10)];
    case 1:
        return check_random();
    case 2:
        return was + check_below(17) - 8u;
    case 3:
        return was ^ (uint64_t)1 << check_below(64);
    default:
        return (uint64_t)some_ref() | (uint64_t)some_ref() << 32;
    }
}

/* Of the word, the links, timer and extra words of a block; what a first granule can hold. */
static void spoil_block(uint8_t *image) {
    gb_ref at = some_block();
    uint32_t *words = (uint32_t *)(void *)(image + (uint64_t)at * GB_GRANULE), which = check_below(18);
    if ((uint64_t)at * GB_GRANULE + which * 4u + 4u > (uint64_t)blocks.end * GB_GRANULE) return;
    if (check_below(3) == 0) which = 0;
    if (which) words[which] = check_below(2) ? some_ref() : (uint32_t)some_value(words[which]);
    else if (check_below(2)) words[0] = (words[0] & ~0x1C00u) | check_below(8) << 10; /* another kind */
    else words[0] = check_below(2) ? words[0] ^ 1u << check_below(32) : words[0] + check_below(9) - 4u;
}

/* An intent a killed process might have left, but for its numbers. */
static void spoil_intent(struct gb_head *h) {
    gb_ref to = some_ref(), from = check_below(2) ? to + check_below(600) : some_ref();
    uint32_t size = check_below(2) ? gb_word_granules(gb_entry_at((uint8_t *)h, some_block())->word) : check_below(600);
    h->intent = (struct gb_intent){.op = check_below(6), .from = from, .to = to, .gap = check_below(2) ? to : some_ref(),
                                   .size = size, .done = check_below(2) ? 0 : check_below(size + 2u), .flags = check_below(8),
                                   .idle = check_below(2) ? 0 : (uint32_t)check_random(), .due = h->length, .seq = 5};
    if (check_below(2)) h->intent.due = check_below(2) ? some_value(h->length) : h->length + 8u * check_below(600);
    if (h->intent.op == GB_INTENT_RING && check_below(2)) h->intent.size = GB_TELL_LEAST;
    if (check_below(2)) h->intent.seq = check_random();
}

static void spoil_head(uint8_t *image) { /* but for the heads of lists, which are made again */
    static const struct {
        size_t at, bytes;
    } parts[] = {{0, offsetof(struct gb_head, counters)},
                 {offsetof(struct gb_head, intent), sizeof(struct gb_intent)},
                 {offsetof(struct gb_head, ring), sizeof(struct gb_ring_root)},
                 {offsetof(struct gb_head, index), sizeof(struct gb_index_root)},
                 {offsetof(struct gb_head, wheel), offsetof(struct gb_wheel_root, heads)},
                 {offsetof(struct gb_head, table), 64},
                 {offsetof(struct gb_head, arena), offsetof(struct gb_arena_root, heads)},
                 {0, sizeof(struct gb_head)}};
    uint32_t part = check_below(8);
    size_t place = parts[part].at + (check_below((uint32_t)parts[part].bytes) & ~(size_t)3), width = check_below(2) ? 4 : 8;
    uint64_t value = 0;
    memcpy(&value, image + place, width);
    value = some_value(value);
    if (place + width <= sizeof(struct gb_head)) memcpy(image + place, &value, width);
}

static void mutate(uint8_t *image, uint64_t length, uint32_t n) {
    for (; n; n--) {
        uint64_t place = check_below((uint32_t)length);
        switch (check_below(8)) {
        case 0:
            image[place] = (uint8_t)check_below(256);
            break;
        case 1:
            spoil_intent((struct gb_head *)(void *)image);
            break;
        case 2:
            spoil_head(image);
            break;
        case 3:
            if (store.head->ring.granules) image[length - 1u - place % ((uint64_t)blocks.end * 8u)] = (uint8_t)check_below(256);
            break;
        default:
            spoil_block(image);
        }
    }
}

/* --- mending --------------------------------------------------------------------------------------------------- */

static enum gb_err mend_image(uint8_t *image, uint64_t mapped, struct gb_fault *f) {
    memset(&store, 0, sizeof store);
    if (gb_room_attach(&store, image, mapped)) return GB_BADIMAGE;
    store.live = true;
    gb_room_rebase(&store, image);
    uint64_t *scratch = calloc(gb_mend_scratch(mapped), sizeof *scratch);
    enum gb_err err = gb_mend(&store, scratch, f);
    free(scratch);
    return err;
}

/* As a cache is used that was opened: every entry is found, others come and go; killed again, nothing is lost. */
static void use_mended(uint8_t *image, uint64_t mapped, uint64_t now) {
    struct gb_fault f = {0};
    uint32_t found = 0;
    gb_ref head = gb_index_list(&store.index);
    for (gb_ref at = store.index.root->lru.next; at != head; at = gb_list_at(store.base, at)->next, found++) {
        gb_ref ref = GB_ENTRY_OF_LRU(at);
        uint32_t word = gb_entry_at(store.base, ref)->word;
        struct gb_key k;
        gb_store_key(&store, &k, gb_store_key_at(&store, ref, word), gb_key_len(store.base, ref, word), gb_word_ktype(word));
        CHECK(gb_store_find(&store, &k) == ref);
    }
    CHECK(found == store.head->table.count);
    uint64_t tick = store.head->wheel.tick << GB_WHEEL_TICK_SHIFT;
    if (tick > now && tick < (uint64_t)1 << 60) now = tick;
    if (tick < (uint64_t)1 << 60)
        for (uint32_t n = check_below(20); n; n--) act(now += check_below(50));
    SOUND(gb_chain_check, &store);
    uint32_t entries = store.head->table.count;
    CHECK(mend_image(image, mapped, &f) == GB_OK);
    CHECK(store.head->table.count == entries);
    SOUND(gb_chain_check, &store);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint64_t boot[2] = {5, 6}, seed[2] = {1, 2};
    if (size < 8) return 0;
    check_bytes = data;
    check_bytes_end = data + size;
    uint64_t length = gb_room_smallest() + 8u * check_below(4000), now = 5000;
    uint64_t mapped = length + (check_below(4) ? 0 : 8u * check_below(3000)); /* as after a shrink */
    uint8_t *image = malloc(mapped);
    memset(image, 0, mapped);
    CHECK(gb_room_format(&store, image, length, seed, now) == GB_OK);
    gb_image_state(&store, GB_IMAGE_OPEN, boot, 9, 1);
    if (check_below(2))
        while (gb_room_ring(&store, GB_TELL_LEAST) == GB_AGAIN) gb_head_enter(&store);
    if (store.head->ring.granules) store.listens = GB_EVENTS_ALL;
    for (uint32_t n = check_below(60); n; n--) act(now += check_below(50));
    uint32_t changes = check_below(6), entries = store.head->table.count;
    note_blocks();
    mutate(image, length, changes);
    struct gb_fault f = {0};
    if (gb_image_judge(image, mapped, boot, 9, &f) == GB_IMAGE_KILLED) {
        enum gb_err err = mend_image(image, mapped, &f);
        if (!changes) CHECK(err == GB_OK && store.head->table.count == entries);
        if (!err) store.head->max_entries = 0; /* nobody can know that it was another: the next puts would keep it */
        if (!err) SOUND(gb_chain_check, &store);
        if (!err) use_mended(image, mapped, now);
    } else {
        CHECK(changes && f.rule);
    }
    check_bytes = NULL;
    free(image);
    return 0;
}
