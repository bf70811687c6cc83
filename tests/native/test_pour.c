/* test_pour.c - records poured into one image, and put one by one into another: both must be the same, in bytes,
 * times and order. Several runs are under way at once and laid out of turn, as two threads would; some records are
 * too long, over, or twice there; images are too small, bounded, without a block at the wrong moment. */
#include "check.h"
static unsigned long fail_in; /* allocations until one fails; 0: none does */
static int fails(void) { return fail_in && !--fail_in; }
#define GB_ALLOC_FAILS() fails()
#include "core.h"

#define RECORDS 1500u
#define PARTS 3u
#define WALL 1700000000000
#define SAVED (WALL + 5000)
#define NOW 6000u

static uint8_t bytes[RECORDS * 600u];
static uint64_t spot[RECORDS + 1u]; /* of each, in bytes */
static uint32_t records_n;
static struct gb_store poured, single;
static unsigned long n_runs, n_plain, n_none, n_undone, n_over, n_twice, n_failed;

struct part {
    uint32_t from, n; /* records */
    struct gb_pour_sum sum;
    uint64_t hash[RECORDS];
    gb_ref run;
};

/* --- records ------------------------------------------------------------------------------------------------ */
static struct gb_record_times some_times(void) {
    struct gb_record_times t = {.due = SAVED + (int64_t)check_below(1u << 20) - (1 << 15)};
    if (check_below(8) == 0) t.due = SAVED + ((int64_t)check_below(1u << 20) << 16); /* beyond 2^31 ms */
    if (check_below(4) == 0) t.idle = check_below(1u << 24);
    if (check_below(4) == 0) t.stale = check_below(1u << 16);
    if (t.idle && check_below(2)) t.hard = t.due + check_below(1u << 20);
    return t;
}
static uint64_t make_record(uint8_t *to, uint32_t number, bool twice, bool longer) {
    uint32_t klen = check_below(20) == 0 ? 250u + check_below(20) : 4u + check_below(14), len = check_below(90);
    if (longer && check_below(100) == 0) len = check_below(2u * GB_WINDOW_BYTES);
    uint32_t key = twice && check_below(10) == 0 ? check_below(number + 1u) : number, at = sizeof(struct gb_record);
    bool empty = !number; /* the one entry with neither key nor value */
    if (empty) klen = len = 0;
    struct gb_record r = {.value_len = len, .key_len = (uint16_t)klen, .timed = check_below(3) == 0};
    r.types = (uint8_t)((key & 3u) | (number & 7u) << 2);
    if (key != number) klen = 4u + key % 7u, r.key_len = (uint16_t)klen, r.value_len = len;
    memcpy(to, &r, sizeof r);
    struct gb_record_times t = some_times();
    if (r.timed) memcpy(to + at, &t, sizeof t), at += (uint32_t)sizeof t;
    for (uint32_t i = 0; i < klen; i++) to[at++] = (uint8_t)(key >> 8u * (i & 1u));
    for (uint32_t i = 0; i < len; i++) to[at++] = (uint8_t)(number * 7u + i);
    while (at % GB_GRANULE) to[at++] = 0;
    return at;
}
static void make_records(bool twice, bool longer) {
    records_n = 1u + check_below(RECORDS);
    for (uint32_t i = 0; i < records_n; i++) spot[i + 1u] = spot[i] + make_record(bytes + spot[i], i, twice, longer);
    CHECK(spot[records_n] <= sizeof bytes);
}
static struct gb_snap_record record(uint32_t i) {
    struct gb_snap_record r;
    CHECK(!gb_snap_read(bytes + spot[i], spot[i + 1u] - spot[i], &r) && r.bytes == spot[i + 1u] - spot[i]);
    return r;
}

/* --- both ways ---------------------------------------------------------------------------------------------- */
static void put_one(struct gb_store *s, uint32_t i) {
    struct gb_snap_record r = record(i);
    struct gb_chain_write w;
    struct gb_put p;
    enum gb_err err;
    if (!gb_snap_put(s, &r, NOW, WALL, SAVED, &p)) {
        n_over++;
        return;
    }
    unsigned long failing = fail_in;
    fail_in = 0;
    if (gb_store_fits_inline(&p)) {
        do gb_head_enter(s), err = gb_store_put(s, &p, NOW);
        while (err == GB_AGAIN);
        CHECK(err == GB_OK || err == GB_LONGKEY);
    } else {
        do gb_head_enter(s), err = gb_chain_begin(s, &w, &p, NOW);
        while (err == GB_AGAIN);
        CHECK(!err);
        do gb_head_enter(s), err = gb_chain_step(s, &w, &p, NOW);
        while (err == GB_AGAIN);
        CHECK(!err);
        do gb_head_enter(s), err = gb_chain_commit(s, &w, &p, NOW);
        while (err == GB_AGAIN);
        CHECK(!err);
    }
    fail_in = failing;
}

/* A part is counted and gets its run; false: it is to be put. */
static bool begin_part(struct part *w, uint32_t from, uint32_t n) {
    const struct gb_pour how = {&poured, NOW, WALL, SAVED};
    uint64_t size = spot[from + n] - spot[from];
    w->from = from;
    w->n = n;
    w->sum = (struct gb_pour_sum){0};
    w->run = 0;
    if (!gb_pour_count(&how, bytes + spot[from], size, n, &w->sum, w->hash)) {
        n_plain++;
        return false;
    }
    CHECK(w->sum.entries <= n);
    if (!w->sum.entries) return true;
    w->run = gb_pour_run(&poured, &w->sum);
    if (!w->run) n_none++;
    return w->run != 0;
}
static void lay_part(const struct part *w) {
    const struct gb_pour how = {&poured, NOW, WALL, SAVED};
    const uint64_t *hash = w->hash;
    uint32_t half = w->n / 2u, mid = w->from + half, end = w->from + w->n; /* as if it were two frames */
    if (!w->run) return;
    gb_ref to = gb_pour_lay(&how, bytes + spot[w->from], spot[mid] - spot[w->from], half, &hash, w->run);
    to = gb_pour_lay(&how, bytes + spot[mid], spot[end] - spot[mid], w->n - half, &hash, to);
    CHECK(to == w->run + w->sum.granules && hash == w->hash + w->sum.entries);
    n_runs++;
}

static void laid_right(struct part *w) {
    struct gb_fault f;
    if (!w->run) return;
    struct gb_entry *e = gb_entry_at(poured.base, w->run);
    const struct gb_entry was = *e;
    CHECK(gb_pour_check(&poured, w->run, &w->sum, w->hash, &f));
#define WRONG(change, back, says)                                                                  \
    change;                                                                                        \
    CHECK(!gb_pour_check(&poured, w->run, &w->sum, w->hash, &f) && strstr(f.rule, says));          \
    back
    WRONG(w->sum.granules++, w->sum.granules--, "pour 1");
    WRONG(w->sum.entries++, w->sum.entries--, "pour 1"); /* the run is at its end before */
    WRONG(e->word ^= (uint32_t)(GB_KIND_ENTRY ^ GB_KIND_EXTENT) << 10, *e = was, "pour 1");
    WRONG(e->word &= ~1023u, *e = was, "pour 1");
    WRONG(w->hash[0] ^= (uint64_t)1 << 40, w->hash[0] ^= (uint64_t)1 << 40, "pour 2");
    WRONG(e->hash++, *e = was, "pour 2");
}
/* What cannot be read, and a key that only another build could hold, is not counted: the file is refused, or it is put. */
static void uncounted(void) {
    const uint64_t seed[2] = {1, 2}, length = gb_room_smallest();
    static uint8_t at[2u * GB_RECORD_KEY_MAX];
    uint8_t *a = malloc(length);
    uint64_t hash[1];
    CHECK(gb_room_format(&poured, a, length, seed, NOW) == GB_OK);
    const struct gb_pour how = {&poured, NOW, WALL, SAVED};
    struct gb_pour_sum sum = {0};
    struct gb_record h = {.key_len = 5};
    memcpy(at, &h, sizeof h);
    CHECK(!gb_pour_count(&how, at, 16, 1, &sum, hash) && gb_pour_count(&how, at, 24, 1, &sum, hash) && sum.entries == 1u);
    h.key_len = GB_RECORD_KEY_MAX;
    memcpy(at, &h, sizeof h);
    CHECK(gb_pour_count(&how, at, sizeof at, 1, &sum, hash) == (GB_RECORD_KEY_MAX <= GB_KEY_MAX));
    free(a);
}

/* Up to PARTS at once; where it does not go on, all of them are undone, and one part is put. */
static void pour_all(void) {
    static struct part part[PARTS];
    for (uint32_t at = 0; at < records_n;) {
        uint32_t begun = 0, next = at, plain_to = 0;
        for (; begun < PARTS && next < records_n && !plain_to; begun++) {
            uint32_t n = 1u + check_below(records_n - next < 200u ? records_n - next : 200u);
            if (begin_part(&part[begun], next, n)) next += n;
            else plain_to = next + n, begun--; /* not one that has begun */
        }
        for (uint32_t i = begun; i-- > 0;) lay_part(&part[i]); /* the last first */
        for (uint32_t i = 0; i < begun; i++) laid_right(&part[i]);
        uint32_t i = 0, done = 0;
        for (; i < begun; i++) {
            const struct part *w = &part[i];
            if (check_below(4) == 0) fail_in = 1u + check_below(20);
            done = w->run ? gb_pour_index(&poured, w->run, w->sum.entries, w->hash) : 0;
            n_failed += fail_in == 0 && done < w->sum.entries;
            fail_in = 0;
            CHECK(done <= w->sum.entries && (!w->run || !gb_head_steps(&poured)));
            if (done < w->sum.entries) break;
            at += w->n;
        }
        for (uint32_t k = i; k < begun; k++, done = 0) {
            if (part[k].run) gb_pour_undo(&poured, part[k].run, part[k].sum.entries, done);
            n_undone++;
        }
        SOUND(gb_chain_check, &poured);
        uint32_t until = i < begun ? at + part[i].n : plain_to;
        for (; at < until; at++) put_one(&poured, at);
        SOUND(gb_chain_check, &poured);
    }
}

/* --- what must be the same ---------------------------------------------------------------------------------- */
static void same_entry(gb_ref a, gb_ref b) {
    uint8_t *pa = poured.base, *pb = single.base;
    uint32_t wa = gb_entry_at(pa, a)->word, wb = gb_entry_at(pb, b)->word;
    CHECK(((wa ^ wb) & ~GB_WORD_PREV_FREE) == 0 && gb_entry_at(pa, a)->hash == gb_entry_at(pb, b)->hash);
    CHECK(gb_key_len(pa, a, wa) == gb_key_len(pb, b, wb) && gb_value_len(pa, a, wa) == gb_value_len(pb, b, wb));
    CHECK(gb_store_due(&poured, a) == gb_store_due(&single, b) && gb_stale_at(pa, a, wa) == gb_stale_at(pb, b, wb));
    uint32_t inside = gb_key_len(pa, a, wa) + (gb_store_is_chain(&poured, a, wa) ? 0u : gb_value_len(pa, a, wa));
    CHECK(!memcmp(gb_store_key_at(&poured, a, wa), gb_store_key_at(&single, b, wb), inside));
    if (!(wa & GB_WORD_EXTRA)) return;
    struct gb_extra xa = *gb_extra_at(pa, a, wa), xb = *gb_extra_at(pb, b, wb);
    xa.chain = xb.chain = 0;
    CHECK(!memcmp(&xa, &xb, sizeof xa));
}
static void same_images(void) {
    gb_ref ha = gb_index_list(&poured.index), hb = gb_index_list(&single.index);
    gb_ref a = poured.index.root->lru.next, b = single.index.root->lru.next;
    for (; a != ha && b != hb; a = gb_list_at(poured.base, a)->next, b = gb_list_at(single.base, b)->next)
        same_entry(GB_ENTRY_OF_LRU(a), GB_ENTRY_OF_LRU(b));
    CHECK(a == ha && b == hb && poured.head->table.count == single.head->table.count);
    CHECK(poured.head->key_bytes == single.head->key_bytes && poured.head->value_bytes == single.head->value_bytes);
}

/* An image less than what is poured: whoever is there is the newest, in order. */
static void newest_are_there(void) {
    gb_ref head = gb_index_list(&poured.index), at = poured.index.root->lru.next;
    for (uint32_t i = records_n; i-- > 0 && at != head;) {
        struct gb_snap_record r = record(i);
        struct gb_put p;
        if (!gb_snap_put(&poured, &r, NOW, WALL, SAVED, &p) || p.key.len > GB_KEY_MAX) continue;
        if (gb_store_find(&poured, &p.key) != GB_ENTRY_OF_LRU(at)) continue; /* evicted because it was due, or too large */
        at = gb_list_at(poured.base, at)->next;
    }
    CHECK(at == head);
}

static void one(bool twice, bool longer, uint64_t length, uint32_t bound) {
    uint64_t seed[2] = {check_random(), check_random()}, large = 4u * sizeof bytes;
    uint8_t *a = malloc(length ? length : large), *b = malloc(large);
    make_records(twice, longer);
    CHECK(gb_room_format(&poured, a, length ? length : large, seed, NOW) == GB_OK);
    CHECK(gb_room_format(&single, b, large, seed, NOW) == GB_OK);
    poured.head->max_entries = single.head->max_entries = bound;
    if (check_below(4)) gb_pour_presize(&poured, check_below(4) ? records_n : check_below(4u * RECORDS));
    SOUND(gb_chain_check, &poured);
    pour_all();
    for (uint32_t i = 0; i < records_n; i++) put_one(&single, i);
    n_twice += single.head->counters.replaces;
    if (length) newest_are_there();
    else same_images();
    free(a);
    free(b);
}

/* A table made for so many is as one that grew, and takes no more than there is. */
static void presized(void) {
    const uint64_t seed[2] = {1, 2}, length = gb_room_smallest() + 64u * GB_WINDOW_BYTES;
    uint8_t *a = malloc(length);
    for (uint64_t n = 0; n < (uint64_t)1 << 40; n = n * 3u + 1u) {
        CHECK(gb_room_format(&poured, a, length, seed, NOW) == GB_OK);
        gb_pour_presize(&poured, n);
        SOUND(gb_chain_check, &poured);
        CHECK(n > 3000u || !gb_table_wants_grow(&poured.index.table));
        CHECK(gb_table_size(&poured.index.table) <= 74u * GB_TABLE_CHUNK);
        const uint32_t *ledger = poured.head->arena.ledger; /* as many as there is room for, with entries as short as any */
        CHECK(ledger[GB_KIND_BUCKETS] <= ledger[GB_KIND_FREE] / 3u + GB_BLOCK_MAX);
    }
    CHECK(gb_room_format(&poured, a, length, seed, NOW) == GB_OK);
    struct gb_put p = {.key = {a, 3, 0, 9}};
    CHECK(gb_store_put(&poured, &p, NOW) == GB_OK);
    gb_pour_presize(&poured, 3000); /* one that is in use is left as it is */
    CHECK(gb_table_size(&poured.index.table) == 1u);
    free(a);
}

/* No run is given where somebody would have to be told of each entry. */
static void quiet(void) {
    const uint64_t seed[2] = {1, 2}, length = gb_room_smallest() + 64u * GB_WINDOW_BYTES;
    const struct gb_pour_sum sum = {.granules = 30, .entries = 3};
    uint8_t *a = malloc(length);
    struct gb_keep keep = {0};
    uint32_t walk;
    CHECK(gb_room_format(&poured, a, length, seed, NOW) == GB_OK);
    CHECK(gb_index_walk_begin(&poured.index, &walk) && !gb_pour_run(&poured, &sum));
    gb_index_walk_end(&poured.index, walk);
    poured.keep = &keep;
    CHECK(!gb_pour_run(&poured, &sum));
    poured.keep = NULL;
    poured.listens = 1u;
    CHECK(!gb_pour_run(&poured, &sum));
    poured.listens = 0;
    poured.head->max_entries = 2;
    CHECK(!gb_pour_run(&poured, &sum));
    poured.head->max_entries = 3;
    CHECK(gb_pour_run(&poured, &sum));
    free(a);
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    presized();
    quiet();
    uncounted();
    for (uint32_t i = 0; i < 60u; i++) {
        one(false, false, 0, 0);
        one(i & 1u, i & 2u, 0, 0);
        one(i & 1u, i & 2u, 0, 1u + check_below(RECORDS));
        one(false, i & 1u, gb_room_smallest() + 8u * check_below(20000), 0);
    }
    printf("%lu runs, %lu to be put, %lu without a run, %lu undone, %lu over, %lu twice, %lu failed\n", n_runs, n_plain,
           n_none, n_undone, n_over, n_twice, n_failed);
    CHECK(n_runs && n_plain && n_none && n_undone && n_over && n_twice && n_failed);
    return check_done();
}
