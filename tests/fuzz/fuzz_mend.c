/* fuzz_mend.c - a live image of a killed process whose bytes were changed: mending says why not, or leaves an image
 * that is sound. The image lies in memory of exactly its length, so that ASan sees a step beside it. */
#define CHECK_ABORTS
#include "check.h"
#include "gb.c"

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

/* Changes of the head's roots and intent, of blocks' words and links, or anywhere. */
static void mutate(uint8_t *image, uint64_t length) {
    static const uint64_t odd[] = {0, 1, 2, 7, 8, 0xFF, 0x1FFF, 0xFFFFFFFF, (uint64_t)1 << 62, ~(uint64_t)0};
    for (uint32_t n = check_below(6); n; n--) {
        uint64_t place = check_below(3) ? check_below((uint32_t)length) : check_below(3) ? 344u + check_below(112) : check_below(9208);
        static const size_t widths[] = {1, 4, 4, 8};
        size_t width = widths[check_below(4)];
        uint64_t value = check_below(2) ? odd[check_below(10)] : check_below(2) ? check_random() : check_below((uint32_t)(length / 8u));
        if (check_below(4)) place -= place % width;
        if (place + width <= length) memcpy(image + place, &value, width);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint64_t boot[2] = {5, 6}, seed[2] = {1, 2};
    if (size < 8) return 0;
    check_bytes = data;
    check_bytes_end = data + size;
    uint64_t length = gb_room_smallest() + 8u * check_below(4000), now = 5000;
    uint8_t *image = malloc(length);
    CHECK(gb_room_format(&store, image, length, seed, now) == GB_OK);
    gb_image_state(&store, GB_IMAGE_OPEN, boot, 9, 1);
    if (check_below(2))
        while (gb_room_ring(&store, GB_TELL_LEAST) == GB_AGAIN) gb_head_enter(&store);
    if (store.head->ring.granules) store.listens = GB_EVENTS_ALL;
    for (uint32_t n = check_below(60); n; n--) act(now += check_below(50));
    mutate(image, length);
    check_bytes = NULL;
    struct gb_fault f = {0};
    if (gb_image_judge(image, length, boot, 9, &f) == GB_IMAGE_KILLED && gb_room_attach(&store, image, length) == GB_OK) {
        store.live = true;
        gb_room_rebase(&store, image);
        uint64_t *scratch = calloc(gb_mend_scratch(length), sizeof *scratch);
        if (gb_mend(&store, scratch, &f) == GB_OK) SOUND(gb_chain_check, &store);
        free(scratch);
    }
    free(image);
    return 0;
}
