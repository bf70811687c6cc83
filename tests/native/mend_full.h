/* mend_full.h - full images that are mended: what their table needs must be room they have. For test_mend.c, whose
 * image, lay and mended these are. */
#ifndef MEND_FULL_H
#define MEND_FULL_H

static void blank(uint64_t bytes) {
    const uint64_t seed[2] = {1, 2};
    length = bytes;
    CHECK(gb_room_format(&store, image, length, seed, 5000) == GB_OK);
    gb_image_state(&store, GB_IMAGE_OPEN, BOOT, 9, 1);
}
/* The next key whose hash, as far as `mask` goes, is `want`. */
static uint32_t key_like(uint32_t key, uint32_t mask, uint32_t want) {
    struct gb_key k;
    do gb_store_key(&store, &k, (key++, &key), sizeof key, 1);
    while (((uint32_t)k.hash & mask) != want);
    return key;
}
static gb_ref found(uint32_t key) {
    struct gb_key k;
    gb_store_key(&store, &k, &key, sizeof key, 1);
    return gb_store_find(&store, &k);
}
/* An entry that is so long; nobody has to leave for it. */
static void put_granules(uint32_t key, uint32_t granules) {
    struct gb_put p = {.value = image, .value_len = granules * GB_GRANULE - 20u};
    gb_store_key(&store, &p.key, &key, sizeof key, 1);
    gb_head_enter(&store);
    CHECK(gb_store_put(&store, &p, 5000) == GB_OK && !store.head->counters.evictions);
}
static gb_ref drop(uint32_t key) {
    gb_ref ref = found(key);
    gb_room_remove(&store, ref, GB_CAUSE_DELETE);
    return ref;
}
/* The first free block of at least `least` granules, or 0. */
static uint32_t hole(uint32_t least) {
    for (gb_ref at = store.head->arena.first, size; at < store.head->arena.end; at += size) {
        size = gb_arena_size(&store.index.arena, at);
        if (gb_word_kind(gb_entry_at(image, at)->word) == GB_KIND_FREE && size >= least) return size;
    }
    return 0;
}
/* Holes, each one granule shorter than a directory, and nothing longer: the directory has no place but its own. */
static void directory_stays(void) {
    uint32_t size = GB_TABLE_DIR_GRANULES - 1u, n = 0;
    if (size < GB_ARENA_EXACT) return; /* tiny: no other length is in its class */
    blank(gb_room_smallest() + 2u * GB_WINDOW_BYTES);
    put_granules(1000000, hole(3));
    while (hole(size)) put_granules(n++, size);
    uint32_t left = n + 1u;
    for (uint32_t i = 0; i < n - 1u; i += 2u, left--) drop(i);
    CHECK(n - left >= 7u && !hole(size + 1u)); /* eight holes: that many are looked at */
    mended(left);
}
/* 15 entries fill an image to the last granule but a few, 13 of them in what was one bucket before the table's size
 * was 3: there is no overflow bucket, and no room for one. The keys' hashes end in `even` and `odd`. */
static void fill_three(const uint32_t *key, uint32_t small) {
    uint32_t n;
    blank(gb_room_smallest());
    put_granules(key[13], hole(3));
    for (n = 0; n < 16u; n++) put_granules(small + n, 3);
    CHECK(gb_table_size(&store.index.table) == 3);
    uint32_t tail = hole(GB_BLOCK_MAX), each = tail / 13u;
    for (n = 0; n < 13u; n++) {
        for (uint32_t i = 0; n == 8u && i < 12u; i++) drop(small + i);
        put_granules(key[n], n == 12u ? tail - 12u * each : each);
    }
    for (n = 12; n < 16u; n++) drop(small + n);
    put_granules(key[14], hole(3));
    CHECK(gb_table_size(&store.index.table) == 3 && store.head->table.count == 15 && !hole(3));
    CHECK(!store.head->arena.ledger[GB_KIND_OVERFLOW]);
    SOUND(gb_chain_check, &store);
}
static void fewer_buckets(void) {
    uint32_t key[15], small = 1u << 30;
    blank(gb_room_smallest());
    for (uint32_t n = 0, last = 0; n < 15u; n++) {
        uint32_t odd = n >= 13u, ends = odd ? 1u : n < 7u ? 0u : 2u;
        key[n] = last = key_like(last, odd ? 1u : 3u, ends);
    }
    fill_three(key, small);
    mended(15);
}
/* An image that is full but for three granules, where a put has made its entry and not put it into the table: its
 * bucket has `others`, and no room. It was never told, so it is the one that goes, wherever it lies. */
static void newcomer_goes(uint32_t others, bool first) {
    uint32_t key[2u * GB_TABLE_SLOTS + 1u], odd = 0, n = 0;
    blank(gb_room_smallest());
    for (uint32_t last = 0; n <= others; n++) key[n] = last = key_like(last, 0xFFu, 0);
    uint32_t place = odd = key_like(0, 1, 1);
    if (first) put_granules(place, 3);
    for (n = 0; n < others; n++) put_granules(key[n], 3);
    if (!first) put_granules(place, 3);
    for (uint32_t size; (size = hole(3)) != 0;)
        put_granules(odd = key_like(odd, 1, 1), size < GB_BLOCK_MAX ? size : GB_BLOCK_MAX);
    gb_ref at = drop(place);
    CHECK(lay(key[others], 4, false) && gb_word_kind(gb_entry_at(image, at)->word) == GB_KIND_ENTRY && !hole(3));
    CHECK(first == (at < found(key[0])) && gb_table_size(&store.index.table) > 1u);
    mended(store.head->table.count);
    for (n = 0; n < others; n++) CHECK(found(key[n]));
    CHECK(!found(key[others]));
}
/* The same where it found room, and it was the last: what is missing is another bucket's, whose entry lies behind it. */
static void newcomer_elsewhere_goes(void) {
    uint32_t of[2][GB_TABLE_SLOTS + 1u], odd = 0, n;
    blank(gb_room_smallest());
    for (uint32_t i = 0; i < 2u; i++)
        for (uint32_t last = n = 0; n <= GB_TABLE_SLOTS; n++) of[i][n] = last = key_like(last, 0xFFu, 2u * i);
    uint32_t place = odd = key_like(0, 1, 1);
    put_granules(place, 3);
    for (n = 0; n < GB_TABLE_SLOTS; n++) put_granules(of[0][n], 3);
    for (n = 0; n <= GB_TABLE_SLOTS; n++) put_granules(of[1][n], 3);
    for (uint32_t size; (size = hole(3)) != 0;)
        put_granules(odd = key_like(odd, 1, 1), size < GB_BLOCK_MAX ? size : GB_BLOCK_MAX);
    drop(place);
    CHECK(lay(of[0][GB_TABLE_SLOTS], 4, false) && !hole(3) && gb_table_size(&store.index.table) > 2u);
    mended(store.head->table.count);
    for (n = 0; n <= GB_TABLE_SLOTS; n++) CHECK(found(of[1][n]) && !found(of[0][n]) == (n == GB_TABLE_SLOTS));
}
/* The same where nobody is new, as an entry lies where the bucket's other block was: somebody goes. `more`: a put that
 * found no room either, or one that has room, and whose room is none for a bucket. */
static void nobody_new(uint32_t more) {
    uint32_t key = 0, odd = 0, others = 0;
    blank(gb_room_smallest());
    for (uint32_t n = 0; n <= GB_TABLE_SLOTS; n++) put_granules(key = key_like(key, 0xFFu, 0), 3);
    for (uint32_t n = 0; n < GB_TABLE_SLOTS; n++) put_granules(others = key_like(others, 0xFFu, 2), 3);
    uint32_t place = odd = key_like(0, 1, 1);
    put_granules(place, 3);
    for (uint32_t size; (size = hole(3)) != 0;)
        put_granules(odd = key_like(odd, 1, 1), size < GB_BLOCK_MAX ? size : GB_BLOCK_MAX);
    gb_ref block = gb_table_bucket(&store.index.table, 0)->overflow;
    fill_block(block, odd = key_like(odd, 1, 1), GB_TABLE_OVERFLOW_GRANULES * GB_GRANULE - 20u, false);
    gb_list_link(image, gb_index_list(&store.index), GB_LRU_OF(block));
    uint32_t there = store.head->table.count + 1u;
    if (more) {
        drop(place);
        CHECK(lay(more == 1u ? key_like(others, 0xFFu, 2) : key_like(odd, 1, 1), 4, false));
    }
    mended(there - 1u - (more != 0));
}
/* Chunks and directories that no table had: more than the root has places for, or the directories. */
static void of_a_table(uint32_t chunks, uint32_t dirs, uint32_t kept) {
    uint8_t *was = image;
    uint64_t bytes = gb_room_smallest() + (chunks + 1u) * GB_WINDOW_BYTES + dirs * GB_TABLE_DIR_GRANULES * GB_GRANULE;
    image = malloc(bytes);
    blank(bytes);
    CHECK(gb_arena_alloc(&store.index.arena, GB_TABLE_DIR_GRANULES - 1u, GB_KIND_DIRECTORY)); /* is none */
    for (uint32_t n = 1; n < dirs; n++)
        CHECK(gb_arena_alloc(&store.index.arena, GB_TABLE_DIR_GRANULES, GB_KIND_DIRECTORY));
    for (uint32_t n = 1; n < chunks; n++) CHECK(gb_arena_alloc_window(&store.index.arena, GB_KIND_BUCKETS));
    mended(0);
    CHECK(gb_table_size(&store.index.table) == kept * GB_TABLE_CHUNK);
    free(image);
    image = was;
}
static void full_images(void) {
    uint64_t was = length;
    uint32_t each = 1u << GB_DIR_SHIFT, all = GB_DIR_ROOTS < 100u ? each * GB_DIR_ROOTS : 2u * each;
    directory_stays();
    fewer_buckets();
    for (uint32_t n = 0; n < 4u; n++) newcomer_goes((1u + n / 2u) * GB_TABLE_SLOTS, n % 2u != 0);
    newcomer_elsewhere_goes();
    for (uint32_t n = 0; n < 3u; n++) nobody_new(n);
    of_a_table(each + 2u, 1, each);
    of_a_table(all + 1u, GB_DIR_ROOTS + 1u, GB_DIR_ROOTS < 100u ? all : all + 1u);
    length = was;
}
#endif
