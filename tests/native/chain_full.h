/* chain_full.h - values as long as are taken at all, in images that are full of something else. For test_chain.c. */
#ifndef CHAIN_FULL_H
#define CHAIN_FULL_H

#define LONG_HOLDS(err, call)                                                                      \
    do {                                                                                           \
        gb_head_enter(s);                                                                          \
        err = call;                                                                                \
        gb_head_leave(s, GB_OP_LONG);                                                              \
        CHECK(s->max_steps[GB_OP_LONG] <= GB_STEPS_MAX);                                           \
    } while (err == GB_AGAIN)

/* The error of begin; once a value is taken, nothing is in its way. */
static enum gb_err write_whole(const uint8_t *value, uint32_t len) {
    struct gb_put p = {.value = value, .value_len = len, .key = key_of(0)};
    struct gb_chain_write w;
    enum gb_err begun, err;
    LONG_HOLDS(begun, gb_chain_begin(s, &w, &p, now));
    if (begun) return begun;
    LONG_HOLDS(err, gb_chain_step(s, &w, &p, now));
    if (err) printf("%u bytes of %llu: %u written, %llu promised\n", len, (unsigned long long)gb_room_capacity(s) * 8u,
                    w.done, (unsigned long long)w.promised);
    CHECK(!err);
    LONG_HOLDS(err, gb_chain_commit(s, &w, &p, now));
    CHECK(!err && s->writing == 0);
    return begun;
}
static uint32_t length_of_0(void) {
    struct gb_key key = key_of(0);
    gb_ref ref = gb_store_find(s, &key);
    CHECK(ref);
    return gb_value_len(image, ref, gb_entry_at(image, ref)->word);
}
/* Entries of `least` to `most` granules, until twenty had to leave. */
static void fill_up(const uint8_t *value, uint32_t least, uint32_t most) {
    static uint32_t n;
    enum gb_err err;
    for (uint64_t was = s->head->counters.evictions; s->head->counters.evictions < was + 20u; n++) {
        struct gb_put p = {.value = value, .value_len = (least + check_below(most - least + 1u)) * GB_GRANULE - 20u};
        gb_store_key(s, &p.key, &n, sizeof n, 1);
        do gb_head_enter(s);
        while ((err = gb_store_put(s, &p, now)) == GB_AGAIN);
        CHECK(!err);
    }
}
/* Ten lengths, of all to what lacks a `share` of it. An extent has a header, and what leaves may leave holes that are
 * just long enough to be one. So a value may take more room than in an empty image: it is refused at once, and the old
 * value kept, or it is written. */
static void nearly_all(uint32_t least, uint32_t most, uint32_t images, uint32_t share) {
    start(gb_room_smallest() * images, false);
    uint32_t all = (uint32_t)gb_room_capacity(s) * GB_GRANULE, taken = 0;
    uint8_t *value = malloc(all);
    memset(value, 7, all);
    for (uint32_t len = all; len > all - all / share; len -= all / share / 10u + check_below(60)) {
        CHECK(!write_whole(value, 3000));
        fill_up(value, least, most);
        CHECK(!write_whole(value, 3001));
        enum gb_err err = write_whole(value, len);
        CHECK(err == (taken ? GB_OK : err) && (!err || err == GB_TOOBIG)); /* shorter ones are, too */
        CHECK(length_of_0() == (err ? 3001u : len));
        if (!taken && !err) taken = len;
        SOUND(gb_chain_check, s);
    }
    CHECK(taken > all - all / 12u);
    free(value);
    free(image);
}
static void full_images(void) {
    const uint32_t edge = GB_BLOCK_MAX / 4u + GB_BLOCK_MAX / 64u + 2u;
    for (uint32_t images = 1; images <= 16u; images *= 4u) {
        nearly_all(edge, edge, images, 11);
        nearly_all(edge, edge + GB_BLOCK_MAX / 36u, images, 11);
        nearly_all(GB_BLOCK_MAX / 2u, GB_BLOCK_MAX / 2u, images, 11);
        nearly_all(3, GB_BLOCK_MAX - 4u, images, 11);
    }
    nearly_all(edge, edge, 64, 30);
}
#endif
