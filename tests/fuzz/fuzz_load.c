/* fuzz_load.c - bytes as a snapshot: any bytes, or a sound one whose words were changed and whose sums were then
 * made right again. It is loaded into an image, which must be sound afterwards whatever it was, and opened
 * as a sealed file, where look-ups and a walk must stay within it (ASan watches an exact copy). */
#define _GNU_SOURCE
#define CHECK_ABORTS
#include "check.h"
#include "gb.c"
#include <unistd.h>

static const uint8_t *file_bytes;
static size_t file_size;
static ssize_t fuzz_pread(int fd, void *to, size_t n, off_t at) {
    (void)fd;
    if ((size_t)at >= file_size) return 0;
    if (n > file_size - (size_t)at) n = file_size - (size_t)at;
    memcpy(to, file_bytes + at, n);
    return (ssize_t)n;
}
#define pread fuzz_pread
#include "../../gbcache/_load.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FILE_MAX (1u << 17)
static uint8_t sound[FILE_MAX], forged[FILE_MAX], image[1u << 18];
static size_t sound_size;

static void put_one(struct gb_store *s, uint32_t key, uint32_t len, uint32_t type, uint64_t due) {
    static uint8_t value[20000];
    uint8_t bytes[8] = {'k', (uint8_t)key, 'e', 'y', (uint8_t)(key >> 3), 0, 0, 1};
    for (uint32_t i = 0; i < len; i++) value[i] = (uint8_t)(i % 120u);
    struct gb_put p = {.value = value, .value_len = len, .value_type = type, .due = due};
    gb_store_key(s, &p.key, bytes, 8, key & 3u);
    struct gb_chain_write w;
    gb_head_enter(s);
    if (gb_store_fits_inline(&p)) {
        while (gb_store_put(s, &p, 1000) == GB_AGAIN) gb_head_enter(s);
        return;
    }
    while (gb_chain_begin(s, &w, &p, 1000) == GB_AGAIN) gb_head_enter(s);
    while (gb_chain_step(s, &w, &p, 1000) == GB_AGAIN) gb_head_enter(s);
    while (gb_chain_commit(s, &w, &p, 1000) == GB_AGAIN) gb_head_enter(s);
}

static uint64_t slot_of_hash(uint32_t hash, uint64_t slots) { return (uint64_t)hash * slots >> 32; }

/* Puts the sums of a file right, as far as its lengths lead to somewhere. */
static void seal(uint8_t *file, size_t size) {
    struct gb_snap_head h;
    if (size < GB_SNAP_HEAD) return;
    memcpy(&h, file, sizeof h);
    uint64_t id = h.id[0] ^ h.id[1], end = h.index_at < size ? h.index_at : size;
    struct gb_sum sum;
    for (uint64_t at = GB_SNAP_HEAD; at + 32u <= end;) {
        struct gb_snap_frame x;
        memcpy(&x, file + at, sizeof x);
        if (x.bytes > end - at - 32u) break;
        gb_digest_sum_begin(&sum, id);
        gb_digest_sum_add(&sum, &x, offsetof(struct gb_snap_frame, sum));
        gb_digest_sum_add(&sum, file + at + 32u, x.bytes);
        x.sum = gb_digest_sum_end(&sum);
        memcpy(file + at, &x, sizeof x);
        at += 32u + x.bytes;
    }
    if (h.index_at <= size) {
        gb_digest_sum_begin(&sum, id);
        gb_digest_sum_add(&sum, file + h.index_at, size - h.index_at);
        h.index_sum = gb_digest_sum_end(&sum);
    }
    gb_digest_sum_begin(&sum, 0);
    gb_digest_sum_add(&sum, &h, offsetof(struct gb_snap_head, sum));
    h.sum = gb_digest_sum_end(&sum);
    memcpy(file, &h, sizeof h);
}

/* A sound file, written as the binding does: main frames, a long one, and one late. */
static void make_sound(void) {
    static uint8_t payload[GB_KEEP_PAYLOAD];
    static struct gb_snap snap;
    struct gb_store s;
    const uint64_t seed[2] = {7, 9};
    CHECK(gb_room_format(&s, image, sizeof image, seed, 1000) == GB_OK);
    for (uint32_t i = 0; i < 40u; i++) put_one(&s, i, i % 7u == 2u ? 8u : i * 3u, i % 7u == 2u ? 2u : i & 1u, i % 5u ? 0 : 900000);
    put_one(&s, 41, 9000, 0, 0);
    snap.keep.bits = calloc(gb_keep_words(sizeof image), sizeof(uint64_t));
    snap.keep.wall = 1700000000000;
    for (uint32_t i = 0; i < GB_KEEP_FRAMES; i++) snap.keep.late[i].to = malloc(GB_KEEP_PAYLOAD);
    struct gb_snap_head h = {.magic = GB_SNAP_MAGIC, .version = 1, .order = 0x01020304u, .id = {1, 2}, .seed = {7, 9},
                             .saved_at = 1700000001000, .max_bytes = sizeof image, .entries = s.head->table.count,
                             .counted = 14, .slots = 64, .codec = "typed"};
    CHECK(gb_snap_begin(&s, &snap) == GB_OK);
    put_one(&s, 3, 5, 0, 0); /* replaced: its old value is late */
    struct gb_keep_frame f = {.to = payload};
    static uint32_t index[64];
    uint32_t number = 0;
    uint64_t at = GB_SNAP_HEAD;
    for (bool full = false, more = true; more;) {
        gb_head_enter(&s);
        more = gb_snap_step(&s, &snap, &f, &full) == GB_AGAIN;
        if (!more && snap.keep.late[0].used && !f.used) f = snap.keep.late[0];
        if (!full && !(!more && f.used)) continue;
        enum gb_snap_kind kind = snap.payload ? GB_SNAP_LONG : GB_SNAP_MAIN;
        struct gb_snap_frame x = {GB_SNAP_FRAME, kind, f.used, f.records, number++, 0};
        memcpy(sound + at, &x, sizeof x);
        memcpy(sound + at + 32u, f.to, f.used);
        for (uint64_t used = 0; used < f.used;) {
            struct gb_snap_record r;
            CHECK(!gb_snap_read(f.to + used, f.used - used, &r));
            uint64_t slot = slot_of_hash(r.head.hash, h.slots);
            while (index[slot]) slot = (slot + 1u) % h.slots;
            index[slot] = (uint32_t)((at + 32u + used) / 8u);
            used += r.bytes;
        }
        at += 32u + f.used;
        f = (struct gb_keep_frame){.to = payload};
        snap.payload = 0;
    }
    struct gb_keep_frame *late = &snap.keep.late[0];
    struct gb_snap_frame x = {GB_SNAP_FRAME, GB_SNAP_LATE, late->used, late->records, number++, 0};
    CHECK(late->used);
    memcpy(sound + at, &x, sizeof x);
    memcpy(sound + at + 32u, late->to, late->used);
    at += 32u + late->used;
    gb_snap_end(&s, &snap);
    h.frames = number;
    h.index_at = at;
    h.length = sound_size = at + h.slots * sizeof *index;
    memcpy(sound + at, index, h.slots * sizeof *index);
    memcpy(sound, &h, sizeof h);
    seal(sound, sound_size);
}

static void mutate(size_t size) {
    static const uint64_t odd[] = {0, 1, 7, 8, 31, 32, 0xFF, 0xFFFF, 0xFFFFFFFF, 1u << 30, (uint64_t)1 << 62, ~(uint64_t)0};
    for (uint32_t n = 1u + check_below(6); n; n--) {
        size_t place = check_below(4) == 0 ? check_below(320) : check_below((uint32_t)size);
        uint64_t value = check_below(2) ? odd[check_below(12)] : check_random();
        static const size_t widths[] = {1, 2, 4, 8};
        size_t width = widths[check_below(4)];
        if (check_below(3) == 0) place -= place % width;
        if (place + width <= size) memcpy(forged + place, &value, width);
    }
}

static void use_loaded(struct gb_store *s) {
    gb_ref head = gb_index_list(&s->index);
    static uint8_t out[FILE_MAX];
    for (gb_ref at = s->index.root->lru.next; at != head; at = gb_list_at(s->base, at)->next) {
        gb_ref ref = GB_ENTRY_OF_LRU(at);
        uint32_t word = gb_entry_at(s->base, ref)->word, len = gb_value_len(s->base, ref, word);
        CHECK(len <= FILE_MAX);
        if (!gb_store_is_chain(s, ref, word)) memcpy(out, gb_store_value_at(s, ref, word), len);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct gb_load_fault fault;
    struct gb_snap_head h;
    if (!sound_size) make_sound();
    if (size < 2) return 0;
    bool raw = data[0] % 8u == 0;
    check_bytes = data + 1;
    check_bytes_end = data + size;
    size_t length = raw ? size - 1u : sound_size;
    if (raw) memcpy(forged, data + 1, length < FILE_MAX ? length : FILE_MAX);
    else memcpy(forged, sound, length);
    if (!raw) {
        if (data[0] % 8u == 1u) length = check_below((uint32_t)sound_size + 1u);
        mutate(length ? length : 1u);
        if (data[0] % 8u > 2u) seal(forged, length);
    }
    check_bytes = NULL;
    uint8_t *exact = malloc(length ? length : 1u);
    memcpy(exact, forged, length);
    file_bytes = exact;
    file_size = length;
    if (gb_load_head(0, length, &h, &fault)) {
        struct gb_store s;
        struct gb_loader l;
        struct gb_sealed z;
        const uint64_t seed[2] = {3, 4};
        CHECK(gb_room_format(&s, image, gb_room_smallest() + 65536u, seed, 1000) == GB_OK);
        CHECK(gb_load_begin(&l, 0, &h, &s, 1000, 1700000000000));
        while (!l.done && gb_load_run(&l, 1000)) {}
        gb_load_end(&l);
        SOUND(gb_chain_check, &s);
        use_loaded(&s);
        if (gb_load_sealed_check(&z, exact, &h, &fault)) {
            struct gb_snap_record r;
            uint64_t frame = 0, at = 0, n = 0;
            while (gb_load_sealed_next(&z, &frame, &at, &r)) n++;
            CHECK(n == h.entries);
            for (uint32_t i = 0; i < 50u; i++) {
                uint8_t bytes[8] = {'k', (uint8_t)i, 'e', 'y', (uint8_t)(i >> 3), 0, 0, 1};
                struct gb_key k = {.bytes = bytes, .len = 8, .type = i & 3u, .hash = gb_digest(&z.digest, bytes, 8, i & 3u)};
                (void)gb_load_sealed_find(&z, &k, 1700000001000, &r);
            }
        }
        gb_load_sealed_end(&z);
    }
    free(exact);
    return 0;
}
