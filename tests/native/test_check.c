/* test_check.c - closed images, damaged anywhere, under a right sum: whatever is in them, a check ends, reads nothing
 * outside, and says what is wrong if a structure is. */
#include "../fuzz/fuzz_mend.c"

static uint8_t *image, *sound;
static uint64_t length;
static const uint64_t BOOT[2] = {5, 6};

static void make(uint32_t acts) {
    const uint64_t seed[2] = {check_random(), 2};
    CHECK(gb_room_format(&store, image, length, seed, 5000) == GB_OK);
    gb_image_state(&store, GB_IMAGE_OPEN, BOOT, 9, 1);
    if (check_below(2))
        while (gb_room_ring(&store, GB_TELL_LEAST) == GB_AGAIN) gb_head_enter(&store);
    for (uint32_t i = 0; i < acts; i++) act(5000u + i);
    gb_image_seal(&store);
    memcpy(sound, image, length);
}

/* A word that could be a ref, a size, or the first of a block. */
static uint32_t any_word(void) {
    uint32_t end = (uint32_t)(length / GB_GRANULE), *words = (uint32_t *)(void *)image;
    switch (check_below(6)) {
    case 0: return 0;
    case 1: return (uint32_t)check_random();
    case 2: return end - check_below(4);
    case 3: return words[check_below((uint32_t)(length / 4u))];
    default: return check_below(end);
    }
}

static void damage(bool head) {
    uint32_t *words = (uint32_t *)(void *)image, first = head ? 0u : (uint32_t)sizeof(struct gb_head) / 4u;
    for (uint32_t n = 1u + check_below(4); n; n--) words[first + check_below((uint32_t)(length / 4u) - first)] = any_word();
}

/* Refs of the structures themselves: by far the most of the bytes are keys and values. */
static void damage_links(void) {
    struct gb_arena *a = &store.index.arena;
    uint32_t which = check_below(40), k = 0;
    for (gb_ref at = a->root->first; at < a->root->end; at += gb_arena_size(a, at)) {
        enum gb_kind kind = gb_word_kind(gb_entry_at(image, at)->word);
        if (kind == GB_KIND_FREE || k++ != which) continue;
        uint32_t words = kind == GB_KIND_ENTRY ? gb_header_bytes(gb_entry_at(image, at)->word) / 4u
                         : kind == GB_KIND_EXTENT ? 4u : gb_arena_size(a, at) * 2u;
        ((uint32_t *)gb_at(image, at))[check_below(words)] = any_word();
        return;
    }
}

/* Each line of the ledger is compared, whatever the blocks are. */
static void ledger(void) {
    struct gb_fault f;
    uint32_t *line = store.index.arena.root->ledger;
    SOUND(gb_arena_check, &store.index.arena);
    for (uint32_t k = 0; k < GB_KINDS; k++) {
        line[k]++;
        CHECK(!gb_arena_check(&store.index.arena, &f) && strstr(f.rule, "arena 5"));
        line[k]--;
    }
}

/* Sizes so long that they wrap: of the table, and of a free block that leads back to where the image begins. */
static void wrapped(void) {
    struct gb_fault f = {0};
    struct gb_arena *a = &store.index.arena;
    struct gb_table_root *t = store.index.table.root, was = *t;
    const uint32_t sizes[][2] = {{UINT32_MAX, 1}, {UINT32_MAX, UINT32_MAX}, {UINT32_MAX >> 1, 0}, {2, 0}, {1, 2}};
    for (uint32_t n = 0; n < 5u; n++) {
        t->mask = sizes[n][0];
        t->split = sizes[n][1];
        CHECK(!gb_table_check(&store.index.table, &f) && strstr(f.rule, "table 6"));
    }
    *t = was;
    gb_ref at = a->root->first;
    while (gb_word_kind(gb_entry_at(image, at)->word) != GB_KIND_FREE) at += gb_arena_size(a, at);
    uint32_t *words = (uint32_t *)gb_at(image, at), size = words[1];
    words[1] = 0u - at;
    CHECK(!gb_arena_check(a, &f) && strstr(f.rule, "arena 1"));
    words[1] = size;
    SOUND(gb_chain_check, &store);
}

int main(int argc, char **argv) {
    struct gb_fault f = {0};
    uint32_t clean = 0, found = 0;
    check_start(argc, argv);
    length = gb_room_smallest() + (1u << 16);
    image = calloc(1, length); /* as the system gives it: a damaged word leads anywhere */
    sound = calloc(1, length);
    for (uint32_t round = 0; round < 6000; round++) {
        if (round % 40u == 0) make(check_below(300));
        memcpy(image, sound, length);
        bool head = round % 3u == 0;
        if (round % 3u == 1u) damage_links();
        else damage(head);
        if (head) gb_image_seal(&store);
        store.head->state = GB_IMAGE_CLOSED;
        if (gb_image_judge(image, length, BOOT, 9, &f) != GB_IMAGE_CLEAN) continue;
        clean++;
        if (gb_room_attach(&store, image, length) != GB_OK) continue;
        found += !gb_chain_check(&store, &f);
    }
    CHECK(clean > 3000u && found > 1000u);
    memcpy(image, sound, length);
    CHECK(gb_room_attach(&store, image, length) == GB_OK);
    SOUND(gb_chain_check, &store);
    ledger();
    wrapped();
    free(image);
    free(sound);
    return check_done();
}
