/* test_records.c - records nobody wrote: what cannot be is refused, each by what is wrong with it; what can be is put,
 * and the image stays sound. Each lies in memory of exactly its length, so that ASan sees a step beside it. */
#include "check.h"
#include "core.h"

static struct gb_store store, *s = &store;
static const uint64_t now = 1000000;
static const int64_t wall = 1700000000000, saved_at = 1700001000000;

static const char *read_copy(const uint8_t *from, uint64_t n) { /* exactly so many bytes */
    struct gb_snap_record r;
    uint8_t *at = malloc(n ? n : 1u), *end_of = at + n;
    if (n) memcpy(at, from, n);
    const char *wrong = gb_snap_read(n ? at : end_of + 1, n, &r);
    if (!wrong) {
        struct gb_put p;
        CHECK(r.bytes <= n && r.key >= at + 12 && r.value == r.key + r.head.key_len);
        CHECK(r.value + r.head.value_len <= end_of && r.bytes % GB_GRANULE == 0);
        (void)gb_snap_put(s, &r, now, wall, saved_at, &p);
        if (gb_store_fits_inline(&p) && p.key.len <= GB_KEY_MAX && p.due <= now + GB_WHEEL_MAX_MS) {
            enum gb_err err;
            do gb_head_enter(s), err = gb_store_put(s, &p, now);
            while (err == GB_AGAIN);
            CHECK(err == GB_OK);
            if (check_below(16) == 0) SOUND(gb_chain_check, s);
        }
    }
    free(at);
    return wrong;
}
static void hostile(bool timed, uint32_t klen, uint32_t vlen) {
    static uint8_t at[8192];
    struct gb_record h = {.value_len = vlen, .hash = 7, .key_len = (uint16_t)klen, .types = 5, .timed = timed}, o = h;
    struct gb_record_times t = {.due = saved_at + 1000, .stale = 5, .idle = 9};
    uint32_t used = 12u + (timed ? 24u : 0u) + klen + vlen, n = (used + 7u) / 8u * 8u;
    memset(at, 'x', used);
    memset(at + used, 0, sizeof at - used);
    memcpy(at, &h, sizeof h);
    if (timed) memcpy(at + 12, &t, sizeof t);
    CHECK(!read_copy(at, n) && !read_copy(at, n + 8u));
    for (uint32_t i = 0; i < n; i++) CHECK(read_copy(at, i));
    for (uint32_t i = used; i < n; at[i++] = 0) {
        at[i] = (uint8_t)(1u + check_below(255));
        CHECK(read_copy(at, n));
    }
    for (uint32_t i = 0; i < 65536u; i += i < 300u ? 1u : 1u + check_below(40)) {
        uint32_t len = i < 300u ? vlen + i - 150u : check_below(4) ? (uint32_t)check_random() : check_below(70000);
        o.types = (uint8_t)i;
        memcpy(at, &o, sizeof o);
        CHECK(!read_copy(at, n) == (o.types < 32u));
        o = h;
        o.timed = (uint8_t)i;
        memcpy(at, &o, sizeof o);
        CHECK(read_copy(at, n) || o.timed <= 1u);
        o = h;
        o.key_len = (uint16_t)i;
        memcpy(at, &o, sizeof o);
        CHECK(read_copy(at, n) || i + used - klen <= n);
        o = h;
        o.value_len = len;
        memcpy(at, &o, sizeof o);
        CHECK(read_copy(at, n) || len <= vlen + 7u);
        o = h;
    }
    memcpy(at, &h, sizeof h);
    for (uint32_t i = 0; timed && i < 500u; i++) { /* times of any kind */
        int64_t edge[] = {INT64_MIN, INT64_MAX, 0, -1, saved_at, (int64_t)check_random()};
        t = (struct gb_record_times){edge[check_below(6)], edge[check_below(6)], 7, 0u - check_below(3)};
        memcpy(at + 12, &t, sizeof t);
        CHECK(!read_copy(at, n));
    }
    struct gb_snap_record last = {.head = {.timed = 1}, .times = {.due = INT64_MAX, .stale = 7}};
    struct gb_put p; /* kept for a while beyond the end of time */
    CHECK(!gb_snap_times(&last, now, wall, INT64_MAX, &p));
    for (uint32_t i = 0; i < 1000u; i++) { /* bytes of any kind */
        for (uint32_t b = 0; b < 64u; b++) at[b] = check_below(3) ? 0u : (uint8_t)check_random();
        (void)read_copy(at, check_below(64));
    }
}

/* A key as long as its record says, and longer than a key of any build. */
static void long_keys(void) {
    static uint8_t at[2u * GB_RECORD_KEY_MAX];
    struct gb_snap_record r;
    for (uint32_t more = 0; more < 2u; more++) {
        struct gb_record h = {.hash = 7, .key_len = (uint16_t)(GB_RECORD_KEY_MAX + more), .types = 1};
        memcpy(at, &h, sizeof h);
        const char *wrong = gb_snap_read(at, sizeof at, &r);
        CHECK(more ? wrong && strstr(wrong, "lengths") : !wrong);
    }
}

int main(int argc, char **argv) {
    const uint64_t seed[2] = {1, 2}, length = gb_room_smallest() + 65536u;
    uint8_t *image = malloc(length);
    check_start(argc, argv);
    CHECK(gb_room_format(s, image, length, seed, now) == GB_OK);
    hostile(false, 5, 30);
    hostile(true, 3, 0);
    hostile(true, 250, 401);
    hostile(false, 1, 2);
    long_keys();
    free(image);
    return check_done();
}
