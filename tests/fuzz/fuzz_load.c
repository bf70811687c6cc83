/* fuzz_load.c - bytes as a snapshot. They are any bytes (a file, or a frame's records), or a sound file with words
 * changed, or the work of a careless writer; and their sums are mostly made right again, so that the checks behind
 * them are reached. The file is loaded into an image, which must be sound afterwards whatever it was, and opened as a sealed
 * file. Both must come to one verdict, and what was loaded must be what the file holds. ASan watches exact
 * copies: a byte beside the file, the loader's window or the image is seen. */
#define _GNU_SOURCE
#define CHECK_ABORTS
#include "check.h"
#include "core.h"
#include <errno.h>
#include <sanitizer/asan_interface.h>
#include <unistd.h>

/* The file, and what befalls who reads it: pieces, a signal, bytes that change meanwhile. */
static struct {
    const uint8_t *bytes;
    size_t size, piece;
    uint32_t calls, change, fail; /* at which call a byte is another, or the disk fails; 0: never */
} file;

/* The readers' large buffers, kept from run to run: to map them for each would cost more than the run. What was not
 * read into one since it was given out is not to be looked at, and only what changes of that is poisoned anew. */
static struct lent {
    size_t size;
    bool read; /* it is filled by reading alone: [0, open) may be looked at */
    bool given;
    size_t open;
    uint8_t *bytes;
} lent[] = {{.size = 1u << 20, .read = true}, {.size = 1u << 18, .read = true}, {.size = 1u << 18, .read = true},
            {.size = 1u << 17}, {.size = 1u << 17}, {.size = GB_KEEP_PAYLOAD / 16u * sizeof(struct gb_put)}};
#define LENDS (sizeof lent / sizeof *lent)

static void open_to(struct lent *b, size_t end) {
    if (end > b->open) ASAN_UNPOISON_MEMORY_REGION(b->bytes + b->open, end - b->open);
    else ASAN_POISON_MEMORY_REGION(b->bytes + end, b->open - end);
    b->open = end;
}
static struct lent *lent_of(const uint8_t *p) {
    for (uint32_t i = 0; i < LENDS; i++)
        if (lent[i].given && p >= lent[i].bytes && p < lent[i].bytes + lent[i].size) return &lent[i];
    return NULL;
}
static void *fuzz_malloc(size_t n) {
    struct lent *b = lent;
    while (b < lent + LENDS && (b->given || b->size != n)) b++;
    if (b == lent + LENDS) return malloc(n);
    if (!b->bytes) *b = (struct lent){n, b->read, false, n, malloc(n)};
    b->given = true;
    if (b->read) open_to(b, 0);
    return b->bytes;
}
static void fuzz_free(void *p) {
    struct lent *b = lent_of(p);
    if (b) b->given = false;
    else free(p);
}

static ssize_t fuzz_pread(int fd, void *to, size_t n, off_t at) {
    struct lent *b = lent_of(to);
    (void)fd;
    file.calls++;
    if (file.calls == file.fail || (file.piece && file.calls % 3u == 0)) {
        errno = file.calls == file.fail ? EIO : EINTR;
        return -1;
    }
    if ((size_t)at >= file.size) return 0;
    if (n > file.size - (size_t)at) n = file.size - (size_t)at;
    if (file.piece && n > file.piece) n = file.piece;
    if (b && b->read) open_to(b, (size_t)((uint8_t *)to - b->bytes) + n);
    memcpy(to, file.bytes + at, n);
    if (file.change && file.calls == file.change) ((uint8_t *)to)[n / 2u] ^= (uint8_t)(1u + file.calls % 255u);
    return (ssize_t)n;
}
#define pread fuzz_pread
#define malloc fuzz_malloc
#define free fuzz_free
#include "../../gbcache/_load.c"
#include "../../gbcache/_pair.c"
#include "../../gbcache/_sealed.c"
#undef malloc
#undef free

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FILE_MAX ((uint64_t)1 << 19)
#define PLACES 512u
#define WALL 1700000000000

/* A file being made: records are noted, for the index, and so that changes find their heads. */
struct writer {
    uint8_t *to;
    uint64_t at;
    uint32_t records, frames;
    uint64_t place[PLACES], frame[64]; /* of records, of frames' heads */
    uint32_t hash[PLACES];
};
static struct writer sound, forged;
static uint8_t sound_bytes[1u << 16], forged_bytes[FILE_MAX], payload[FILE_MAX];
static uint64_t sound_size;
static struct gb_digest digest;

/* True once in n, and never when the input is used up. */
static bool rarely(uint32_t n) { return check_below(n) == n - 1u; }

static const uint64_t odd[] = {0, 1, 2, 7, 8, 16, 31, 32, 0xFF, 0xFFFF, 0xFFFFFFFF, 3996, 1u << 30,
                               (1u << 30) + 1u, (uint64_t)1 << 62, (uint64_t)1 << 63, ~(uint64_t)0};
static uint64_t odd_one(void) { return odd[check_below(sizeof odd / sizeof *odd)]; }

static void key_of(uint32_t key, uint8_t bytes[8]) {
    const uint8_t is[8] = {'k', (uint8_t)key, 'e', 'y', (uint8_t)(key >> 3), 0, 0, 1};
    memcpy(bytes, is, 8);
}

static void frame_out(struct writer *w, enum gb_snap_kind kind, const uint8_t *bytes, uint64_t used, uint32_t records) {
    struct gb_snap_frame x = {GB_SNAP_FRAME, kind, used, records, w->frames, 0};
    w->frame[w->frames++ % 64u] = w->at;
    memcpy(w->to + w->at, &x, sizeof x);
    memcpy(w->to + w->at + GB_LOAD_FRAME, bytes, used);
    w->at += GB_LOAD_FRAME + used;
}
static void note(struct writer *w, uint64_t place, uint32_t hash) {
    if (w->records < PLACES) {
        w->place[w->records] = place;
        w->hash[w->records] = hash;
    }
    w->records++;
}

/* The index, of so many slots more than there are records, and the head; the length. */
static uint64_t index_out(struct writer *w, struct gb_snap_head *h, uint64_t spare) {
    uint32_t *index = (uint32_t *)(void *)(w->to + w->at);
    h->slots = w->records + spare;
    memset(index, 0, h->slots * sizeof *index);
    for (uint32_t i = 0; i < w->records && i < PLACES; i++) {
        uint64_t slot = (uint64_t)w->hash[i] * h->slots >> 32;
        while (index[slot]) slot = (slot + 1u) % h->slots;
        index[slot] = (uint32_t)(w->place[i] / GB_GRANULE);
    }
    h->entries = w->records;
    h->frames = w->frames;
    h->index_at = w->at;
    h->length = w->at + h->slots * sizeof *index;
    memset(w->to, 0, GB_SNAP_HEAD);
    memcpy(w->to, h, sizeof *h);
    return h->length;
}

static struct gb_snap_head head_of_file(void) {
    return (struct gb_snap_head){.magic = GB_SNAP_MAGIC, .version = GB_SNAP_VERSION, .order = 0x01020304u, .id = {1, 2},
                                 .seed = {7, 9}, .saved_at = WALL + 1000, .max_bytes = 1u << 18, .counted = 14,
                                 .codec = "typed"};
}

/* Puts the sums of a file right, as far as its lengths lead to somewhere. */
static void seal(uint8_t *bytes, uint64_t size) {
    struct gb_snap_head h;
    struct gb_sum sum;
    if (size < GB_SNAP_HEAD) return;
    memcpy(&h, bytes, sizeof h);
    uint64_t end = h.index_at < size ? h.index_at : size;
    for (uint64_t at = GB_SNAP_HEAD; at + GB_LOAD_FRAME <= end;) {
        struct gb_snap_frame x;
        memcpy(&x, bytes + at, sizeof x);
        if (x.bytes > end - at - GB_LOAD_FRAME) break;
        gb_digest_sum_begin(&sum, gb_load_about(&h));
        gb_digest_sum_add(&sum, &x, offsetof(struct gb_snap_frame, sum));
        gb_digest_sum_add(&sum, bytes + at + GB_LOAD_FRAME, x.bytes);
        x.sum = gb_digest_sum_end(&sum);
        memcpy(bytes + at, &x, sizeof x);
        at += GB_LOAD_FRAME + x.bytes;
    }
    if (h.index_at <= size) {
        gb_digest_sum_begin(&sum, gb_load_about(&h));
        gb_digest_sum_add(&sum, bytes + h.index_at, size - h.index_at);
        h.index_sum = gb_digest_sum_end(&sum);
    }
    gb_digest_sum_begin(&sum, 0);
    gb_digest_sum_add(&sum, &h, offsetof(struct gb_snap_head, sum));
    h.sum = gb_digest_sum_end(&sum);
    memcpy(bytes, &h, sizeof h);
}

/* --- a sound file: what the core's own saver gives ------------------------------------------------------------- */

static void put_one(struct gb_store *s, uint32_t key, uint32_t len, uint32_t type, uint64_t due) {
    static uint8_t value[20000];
    uint8_t bytes[8];
    key_of(key, bytes);
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

static void saved_out(struct writer *w, enum gb_snap_kind kind, const struct gb_keep_frame *f) {
    struct gb_snap_record r;
    for (uint64_t used = 0; used < f->used; used += r.bytes) {
        CHECK(!gb_snap_read(f->to + used, f->used - used, &r));
        note(w, w->at + GB_LOAD_FRAME + used, r.head.hash);
    }
    frame_out(w, kind, f->to, f->used, f->records);
}

static void make_sound(void) {
    static uint8_t image[1u << 18];
    static uint64_t bits[(1u << 18) / GB_GRANULE / 128u + 1u];
    static struct gb_snap snap;
    struct gb_store s;
    const uint64_t seed[2] = {7, 9};
    CHECK(gb_room_format(&s, image, sizeof image, seed, 1000) == GB_OK);
    for (uint32_t i = 0; i < 40u; i++) /* each seventh an integer, the others bytes and text */
        put_one(&s, i, i % 7u == 2u ? 8u : i * 3u, i % 7u == 2u ? 2u : i & 1u, i % 5u ? 0 : 900000);
    put_one(&s, 41, 9000, 0, 0);
    snap.keep.bits = bits;
    snap.keep.wall = WALL;
    for (uint32_t i = 0; i < GB_KEEP_FRAMES; i++) snap.keep.late[i].to = forged_bytes; /* one is filled */
    struct gb_snap_head h = head_of_file();
    sound = (struct writer){.to = sound_bytes, .at = GB_SNAP_HEAD};
    digest = s.digest;
    CHECK(gb_snap_begin(&s, &snap) == GB_OK);
    put_one(&s, 3, 5, 0, 0); /* replaced: its old value is late */
    struct gb_keep_frame f = {.to = payload};
    for (bool full = false, more = true; more;) {
        gb_head_enter(&s);
        more = gb_snap_step(&s, &snap, &f, &full) == GB_AGAIN;
        if (!full) continue;
        saved_out(&sound, snap.payload ? GB_SNAP_LONG : GB_SNAP_MAIN, &f);
        f.used = f.records = 0;
        snap.payload = 0;
    }
    CHECK(snap.keep.late[0].used && !f.used);
    saved_out(&sound, GB_SNAP_LATE, &snap.keep.late[0]);
    gb_snap_end(&s, &snap);
    sound_size = index_out(&sound, &h, 23);
    seal(sound_bytes, sound_size);
}

/* --- a careless writer's --------------------------------------------------------------------------------------- */

/* One record, mostly right; the bytes it takes. */
static uint64_t careless_record(uint8_t *to, bool is_long, uint32_t *hash) {
    static const uint32_t of_type[] = {0, 0, 8, 8, 1, 0, 0, 3};
    uint32_t key = check_below(48), type = is_long ? check_below(2) : check_below(7), klen = key % 11u ? 8u : 300u;
    uint32_t len = of_type[type] ? of_type[type] : check_below(is_long ? 9000u : 200u);
    if (is_long && rarely(24)) len = 60000u + check_below(1u << 14);
    if (rarely(24)) len = check_below(2) ? check_below(3000) : (uint32_t)odd_one();
    if (rarely(32)) klen = check_below(4100);
    struct gb_record r = {.value_len = len, .key_len = (uint16_t)klen, .types = (uint8_t)((key & 1u) | type << 2)};
    struct gb_record_times t = {.due = WALL + 1000 + (int64_t)check_below(1u << 20) - (1 << 18)};
    r.timed = check_below(4) == 3u;
    if (rarely(4)) t.hard = t.due + (int64_t)check_below(5000) - 2000;
    if (rarely(4)) t.stale = check_below(1u << 30);
    if (rarely(4)) t.idle = check_below(1u << 30);
    if (rarely(8)) t.due = (int64_t)odd_one();
    if (rarely(8)) t.hard = (int64_t)odd_one();
    if (rarely(32)) r.types = (uint8_t)check_below(256);
    if (rarely(64)) r.timed = (uint8_t)check_below(256);
    uint64_t at = sizeof r, left = len < (1u << 18) ? len : 64u;
    if (r.timed) memcpy(to + at, &t, sizeof t);
    if (r.timed) at += sizeof t;
    memset(to + at, 'a', klen);
    if (klen >= 8u) key_of(key, to + at);
    r.hash = (uint32_t)gb_digest(&digest, to + at, klen, r.types & 3u);
    if (rarely(32)) r.hash = (uint32_t)check_random();
    memset(to + at + klen, (int)key, left);
    if (left && rarely(32)) to[at + klen + check_below((uint32_t)left)] = (uint8_t)check_below(256);
    memcpy(to, &r, sizeof r);
    *hash = r.hash;
    for (at += klen + left; at % GB_GRANULE; at++) to[at] = rarely(128);
    return at;
}

static void careless_frame(struct writer *w) {
    bool is_long = check_below(4) == 3u;
    uint64_t used = 0;
    uint32_t n = 0, hash, most = is_long && !rarely(16) ? 1u : 1u + check_below(24);
    enum gb_snap_kind kind = is_long ? GB_SNAP_LONG : check_below(3) ? GB_SNAP_MAIN : GB_SNAP_LATE;
    if (rarely(32)) kind = (enum gb_snap_kind)check_below(4);
    for (; n < most && used < 60000u; n++) {
        uint64_t at = w->at + GB_LOAD_FRAME + used;
        used += careless_record(payload + used, is_long, &hash);
        note(w, at, hash);
    }
    frame_out(w, kind, payload, used, rarely(48) ? n + check_below(3) - 1u : n);
}

static uint64_t make_careless(void) {
    struct gb_snap_head h = head_of_file();
    forged = (struct writer){.to = forged_bytes, .at = GB_SNAP_HEAD};
    for (uint32_t n = 1u + check_below(rarely(8) ? 60u : 5u); n && forged.at < FILE_MAX / 2u - 70000u; n--) careless_frame(&forged);
    uint64_t length = index_out(&forged, &h, 1u + check_below(40));
    uint32_t *index = (uint32_t *)(void *)(forged_bytes + h.index_at);
    while (rarely(4)) /* a full index, words that lead nowhere, or into the midst of a record */
        for (uint32_t i = check_below((uint32_t)h.slots), n = 1u + check_below((uint32_t)h.slots); n; n--, i++)
            index[i % h.slots] = check_below(2) ? (uint32_t)(h.index_at / 8u) - check_below(12) : (uint32_t)odd_one();
    return length;
}

/* --- changes --------------------------------------------------------------------------------------------------- */

static uint64_t some_place(const struct writer *w, uint64_t size) {
    uint32_t records = w->records < PLACES ? w->records : PLACES, frames = w->frames < 64u ? w->frames : 64u;
    switch (check_below(4)) {
    case 0:
        return check_below((uint32_t)size);
    case 1:
        return check_below(sizeof(struct gb_snap_head));
    case 2:
        return frames ? w->frame[check_below(frames)] + check_below(32) : 0;
    default:
        return records ? w->place[check_below(records)] + check_below(40) : 0;
    }
}

static void mutate(const struct writer *w, uint64_t size) {
    for (uint32_t n = 1u + check_below(6); n; n--) {
        static const size_t widths[] = {1, 2, 4, 8};
        uint64_t place = some_place(w, size), value = 0;
        size_t width = widths[check_below(4)];
        if (check_below(3)) place -= place % width;
        if (place + width > size) continue;
        memcpy(&value, forged_bytes + place, width);
        uint32_t how = check_below(4);
        if (how < 2u) value += (uint64_t)check_below(33) * (how ? 1u : 8u) - 16u;
        else value = how == 2u ? odd_one() : check_random();
        memcpy(forged_bytes + place, &value, width);
    }
}

/* The input as it is: as the whole file, or as the records of one frame, whose sums are right. */
static uint64_t make_any(const uint8_t *data, uint64_t size) {
    struct gb_snap_head h = head_of_file();
    uint64_t used = (size - 1u) / GB_GRANULE * GB_GRANULE;
    if (size > FILE_MAX / 2u || !used || data[0] & 1u) {
        if (size > FILE_MAX) size = FILE_MAX;
        memcpy(forged_bytes, data, size);
        return size;
    }
    forged = (struct writer){.to = forged_bytes, .at = GB_SNAP_HEAD};
    frame_out(&forged, (enum gb_snap_kind)(data[0] >> 1 & 3u), data + 1, used, 1u + (data[0] >> 3));
    for (uint32_t n = 1u + (data[0] >> 3); n; n--) note(&forged, GB_SNAP_HEAD + GB_LOAD_FRAME, 0);
    uint64_t length = index_out(&forged, &h, 3);
    seal(forged_bytes, length);
    return length;
}

/* What the input makes: in `forged_bytes`; its length. */
static uint64_t make_file(const uint8_t *data, size_t size) {
    uint32_t mode = data[0] % 8u;
    uint64_t length = mode ? sound_size : size - 1u;
    check_bytes = data + 1;
    check_bytes_end = data + size;
    if (!mode) {
        length = make_any(data + 1, size - 1u);
        check_bytes = check_bytes_end;
    } else if (mode > 4u) {
        length = make_careless();
        if (rarely(8)) mutate(&forged, length);
        if (!rarely(16)) seal(forged_bytes, length);
    } else {
        memcpy(forged_bytes, sound_bytes, length);
        if (mode == 1u) length = 1u + check_below((uint32_t)sound_size);
        if (mode == 1u || check_below(64)) mutate(&sound, length);
        if (mode > 2u) seal(forged_bytes, length);
    }
    file.piece = check_below(8) == 7u ? 1u + check_below(5000) : 0;
    file.change = check_below(8) == 7u ? 2u + check_below(12) : 0;
    file.fail = check_below(16) == 15u ? 1u + check_below(12) : 0;
    check_bytes = NULL;
    return length;
}

/* --- what is done with it -------------------------------------------------------------------------------------- */

/* Whether some record of the sealed file is this entry. */
static bool holds(const struct gb_sealed *z, const uint8_t *key, uint32_t klen, uint32_t types, const uint8_t *value,
                  uint32_t len) {
    struct gb_snap_record r;
    for (uint64_t frame = 0, at = 0; gb_sealed_next(z, &frame, &at, &r);)
        if (r.head.key_len == klen && r.head.value_len == len && r.head.types == types && !memcmp(r.key, key, klen) &&
            !memcmp(r.value, value, len))
            return true;
    return false;
}

/* All entries can be read; if the file is sealed, they are in it. */
static void use_loaded(struct gb_store *s, const struct gb_sealed *z) {
    static uint8_t out[FILE_MAX];
    gb_ref head = gb_index_list(&s->index), next;
    for (gb_ref at = s->index.root->lru.next; at != head; at = next) {
        gb_ref ref = GB_ENTRY_OF_LRU(at);
        struct gb_chain_read r;
        uint32_t word = gb_entry_at(s->base, ref)->word, len = gb_value_len(s->base, ref, word);
        next = gb_list_at(s->base, at)->next;
        CHECK(len <= FILE_MAX);
        if (!gb_store_is_chain(s, ref, word)) {
            memcpy(out, gb_store_value_at(s, ref, word), len);
        } else {
            CHECK(gb_chain_open(s, &r, ref) == GB_OK);
            for (gb_head_enter(s); gb_chain_copy(s, &r, out) == GB_AGAIN;) gb_head_enter(s);
            gb_chain_close(s, &r);
        }
        if (z) CHECK(holds(z, gb_store_key_at(s, ref, word), gb_key_len(s->base, ref, word),
                           gb_word_ktype(word) | gb_word_vtype(word) << 2, out, len));
    }
}

static void use_sealed(const struct gb_sealed *z) {
    struct gb_snap_record r;
    uint64_t frame = 0, at = 0, n = 0;
    while (gb_sealed_next(z, &frame, &at, &r)) n++;
    CHECK(n == z->head.entries);
    for (uint32_t i = (uint32_t)z->head.index_sum % 7u; i < 50u; i += 7u) { /* other ones for another file */
        uint8_t bytes[8];
        key_of(i, bytes);
        struct gb_key k = {.bytes = bytes, .len = 8, .type = i & 3u, .hash = gb_digest(&z->digest, bytes, 8, i & 3u)};
        if (gb_sealed_find(z, &k, WALL + 1000, &r)) CHECK(holds(z, bytes, 8, r.head.types, r.value, r.head.value_len));
    }
}

/* Whether the whole image is checked after this file: it costs more than all else, so one in CHECKED is. Which ones
 * depends on the file alone: a kept input always finds the same. */
#ifndef CHECKED
#define CHECKED 8u
#endif
static bool deeply(const uint8_t *bytes, uint64_t size) {
    struct gb_sum sum;
    gb_digest_sum_begin(&sum, size);
    gb_digest_sum_add(&sum, bytes + GB_SNAP_HEAD, size - GB_SNAP_HEAD);
    return gb_digest_sum_end(&sum) % CHECKED == 0;
}

static void load(uint8_t *exact, const struct gb_snap_head *h) {
    static struct gb_load_fault fault;
    static uint8_t *image;
    const uint64_t length = gb_room_smallest() + 65536u, seed[2] = {3, 4};
    struct gb_store s;
    struct gb_loader l;
    struct gb_sealed z;
    if (!image) image = malloc(length);
    bool good = gb_sealed_check(&z, exact, h, &fault);
    CHECK(gb_room_format(&s, image, length, seed, 1000) == GB_OK);
    CHECK(gb_load_begin(&l, 0, h, &s, 1000, WALL));
    bool loaded = true, steady = !file.change && !file.fail;
    while (loaded && !l.done) loaded = gb_load_run(&l, 50);
    CHECK(loaded || l.fault.rule); /* all of it, or a reason */
    if (steady) CHECK(loaded == good);
    gb_load_end(&l);
    bool deep = deeply(exact, h->length);
    if (deep) SOUND(gb_chain_check, &s);
    use_loaded(&s, good && loaded && steady ? &z : NULL);
    if (deep) SOUND(gb_chain_check, &s);
    if (good) use_sealed(&z);
    gb_sealed_end(&z);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct gb_load_fault fault = {0};
    struct gb_snap_head h;
    if (!sound_size) make_sound();
    if (size < 2) return 0;
    uint64_t length = make_file(data, size);
    uint8_t *exact = malloc(length ? length : 1u);
    memcpy(exact, forged_bytes, length);
    file.bytes = exact;
    file.size = length;
    file.calls = 0;
    if (gb_load_head(0, length, &h, &fault)) load(exact, &h);
    else CHECK(fault.rule);
    free(exact);
    return 0;
}
