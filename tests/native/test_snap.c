/* test_snap.c - saves of a moment: whatever goes on meanwhile, each entry of that moment is in exactly one record,
 * with the bytes and times it had; and records make an image again. */
#include "snap_model.h"

/* --- a save ------------------------------------------------------------------------------------------------- */
static void begin(void) {
    mirror();
    memset(&snap, 0, sizeof snap);
    snap.keep.bits = calloc(gb_keep_words(length), sizeof(uint64_t));
    for (uint32_t i = 0; i < GB_KEEP_FRAMES; i++) snap.keep.late[i].to = late_to[i];
    snap.keep.wall = wall = (int64_t)1700000000000 + (int64_t)check_below(1000000);
    front.used = front.records = 0;
    saved_at = (int64_t)now + wall;
    pieced = records_n = moment_n = 0;
    memcpy(moment, model, sizeof moment);
    for (gb_ref at = s->index.root->lru.prev; at != gb_index_list(&s->index); at = gb_list_at(s->base, at)->prev)
        rank[key_at(GB_ENTRY_OF_LRU(at))] = moment_n++;
    gb_head_enter(s);
    CHECK(gb_snap_begin(s, &snap) == GB_OK);
    saving = true;
    static struct gb_snap other;
    CHECK(gb_snap_begin(s, &other) == GB_BUSY && gb_room_clear(s, now) == GB_BUSY);
    left();
}
static enum gb_err save_on(void) {
    bool full = false;
    hold();
    enum gb_err err = gb_snap_step(s, &snap, &front, &full);
    struct gb_fault f;
    CHECK(gb_snap_check(s, &snap, &f));
    left();
    CHECK(front.used <= GB_KEEP_PAYLOAD && (err == GB_OK || err == GB_AGAIN));
    if (!full) return err;
    CHECK(front.used);
    if (snap.payload) {
        CHECK(pieced + front.used <= snap.payload);
        memcpy(piece + pieced, front.to, front.used);
        pieced += front.used;
        if (pieced == snap.payload) {
            take_frame(piece, pieced, 1, GB_SNAP_LONG);
            pieced = snap.payload = 0;
        }
    } else {
        take_frame(front.to, front.used, front.records, GB_SNAP_MAIN);
    }
    memset(front.to, 0xA5, front.used);
    front.used = front.records = 0;
    return err;
}
static void end(void) {
    saving = false; /* from here on its pins are gone */
    gb_snap_end(s, &snap);
    CHECK(!s->keep && !s->index.walks);
    gb_head_enter(s);
    left();
    free(snap.keep.bits);
    while (records_n) free(records[--records_n].bytes);
}
static void all_saved(enum mode mode) {
    struct gb_keep *k = &snap.keep;
    CHECK(!k->failed && !k->left && !k->ghost && !snap.reading && !snap.payload && !front.used);
    if (k->late[k->head % GB_KEEP_FRAMES].used) k->head++;
    while (late_out()) continue;
    CHECK(k->tail == k->head && records_n == moment_n);
    for (uint32_t i = 0; i < keys; i++) CHECK(!moment[i].there); /* nobody is missing */
    int64_t last = -1;
    for (uint32_t i = 0; i < records_n; i++) {
        enum gb_snap_kind kind = records[i].kind;
        if (mode > CALM || kind == GB_SNAP_LATE || (mode == CALM && kind == GB_SNAP_LONG)) continue;
        CHECK((int64_t)rank[records[i].key] > last);
        last = rank[records[i].key];
    }
    n_saves++;
}

/* --- a load ------------------------------------------------------------------------------------------------- */
/* The records as another image: main ones first. `later`: what the wall clock says then. */
static void load(bool larger, int64_t later) {
    static struct gb_store loaded;
    static struct value want[KEYS];
    uint64_t seed[2] = {check_random(), check_random()}, at = 5000u + check_below(1u << 20);
    uint64_t n = larger ? 3u * length + 262144u : gb_room_smallest() + 8u * check_below(2000);
    int64_t from = later > 0 ? saved_at + later : saved_at, there = saved_at + later - (int64_t)at;
    uint8_t *to = malloc(n);
    memset(want, 0, sizeof want);
    CHECK(gb_room_format(&loaded, to, n, seed, at) == GB_OK);
    if (check_below(2)) gb_pour_presize(&loaded, records_n << 2 * check_below(4));
    for (uint32_t i = 0; i < 2u * records_n; i++) {
        const struct record *rec = &records[i % records_n];
        struct gb_snap_record r;
        struct gb_put p;
        if ((rec->kind == GB_SNAP_LATE) != (i >= records_n)) continue;
        CHECK(!gb_snap_read(rec->bytes, rec->n, &r));
        int64_t due = r.times.due - from, hard = r.times.hard ? r.times.hard - from : 0;
        bool over = r.head.timed && (due > 0 ? r.times.hard && hard <= 0 : due + r.times.stale <= 0);
        CHECK(gb_snap_put(&loaded, &r, at, there, saved_at, &p) == !over);
        enum gb_err err = over ? GB_GONE : put_into(&loaded, &p, at);
        CHECK(over || err == GB_OK || (!larger && (err == GB_TOOBIG || err == GB_FULL)));
        if (check_below(8) == 0) SOUND(gb_chain_check, &loaded);
        if (err) continue;
        struct value *v = &want[rec->key];
        *v = moment[rec->key];
        *v = (struct value){v->len, v->tag, r.times.idle, r.times.stale, 0, 0, true, !gb_store_fits_inline(&p), false};
        if (r.head.timed) v->due = due > 0 ? at + (uint64_t)due : at;
        if (r.head.timed && due <= 0) v->stale = (uint32_t)(due + r.times.stale), n_kept++;
        if (hard > 0) v->hard = at + (uint64_t)hard;
    }
    SOUND(gb_chain_check, &loaded);
    CHECK(!larger || !loaded.head->counters.evictions);
    for (uint32_t k = 0, found = 0; k <= keys; k++) {
        gb_ref ref = k < keys ? find(&loaded, k) : 0;
        CHECK(k < keys || found == loaded.index.table.root->count);
        CHECK(k == keys || (ref ? want[k].there : !want[k].there || !larger));
        if (!ref) continue;
        found++;
        times_are(&loaded, ref, &want[k]);
        bytes_are(&loaded, ref, &want[k]);
    }
    free(to);
}

/* --- whole lives -------------------------------------------------------------------------------------------- */
static void start(uint64_t n, uint32_t of, uint32_t max_entries) {
    uint64_t seed[2] = {check_random(), check_random()};
    length = n;
    keys = of;
    long_most = (uint32_t)(n / 3u < 200000u ? n / 3u : 200000u);
    now = 1000000;
    memset(model, 0, sizeof model);
    memset(moment, 0, sizeof moment);
    image = malloc(length);
    memset(image, 0xA5, length);
    CHECK(gb_room_format(s, image, length, seed, now) == GB_OK);
    s->head->max_entries = max_entries;
}
static void stop(void) {
    for (uint32_t i = 0; i < READERS; i++)
        if (readers[i].used) read_close(&readers[i]);
    if (writer.used) gb_chain_abort(s, &writer.w), write_over();
    CHECK(!s->pins && !s->head->arena.ledger[GB_KIND_PENDING]);
    SOUND(gb_chain_check, s);
    free(image);
}
static void save(enum mode mode, bool whole, uint32_t between) {
    uint32_t steps = 0, most;
    uint64_t long_bytes = 0;
    begin();
    for (uint32_t k = 0; k < keys; k++) long_bytes += moment[k].there && moment[k].chain ? moment[k].len + 1000u : 0u;
    most = 64u + 8u * moment_n + (uint32_t)(long_bytes / 5000u);
    if (!whole) most = check_below(most);
    for (enum gb_err err = GB_AGAIN; err; steps++) {
        for (uint32_t i = check_below(between + 1u); i; i--) operate(mode);
        if (!whole && steps >= most) break;
        CHECK(steps < most); /* it ends, whatever they do */
        err = save_on();
        whole |= err == GB_OK;
    }
    if (whole) {
        all_saved(mode);
        load(true, (int64_t)check_below(2000) - 1000);
        load(false, 0);
    }
    end();
}
static void run(uint64_t n, uint32_t of, uint32_t ops, uint32_t max_entries) {
    start(n, of, max_entries);
    for (uint32_t round = 0; round < 6; round++) {
        for (uint32_t i = 0; i < ops; i++) operate(MIXED);
        for (uint32_t i = 0; i < READERS && check_below(2); i++) /* else some are dead, and read on, at the moment */
            if (readers[i].used) read_close(&readers[i]);
        save((enum mode)check_below(MODES), check_below(4) != 0, 1u + check_below(6));
        mirror();
    }
    stop();
}
/* What the checks are there to see; and a save that is given up while dead long values wait for it. */
static void ghosts(void) {
    struct gb_fault f = {0};
    uint32_t k = 0;
    start(400000u, 20, 0);
    for (uint32_t i = 0; i < 600u || writer.used; i++) write_on();
    while (s->head->trash) gb_room_trash(s);
    begin();
    CHECK(gb_snap_check(s, &snap, &f) && gb_keep_check(s, &f));
    snap.most = 0;
    CHECK(!gb_snap_check(s, &snap, &f) && strstr(f.rule, "snap 2"));
    snap.most = GB_SNAP_ENTRIES + 1u;
    CHECK(!gb_snap_check(s, &snap, &f) && strstr(f.rule, "snap 2"));
    snap.most = GB_SNAP_ENTRIES;
    while (!model[k].there) k++;
    gb_ref ref = find(s, k);
    gb_keep_moved(&snap.keep, ref, ref + 2u); /* the next bit: it is to be saved where it lies now */
    CHECK(gb_keep_unsaved(&snap.keep, ref + 2u));
    snap.reading = ref;
    CHECK(!gb_snap_check(s, &snap, &f) && strstr(f.rule, "snap 1"));
    uint32_t pin;
    CHECK(gb_room_pin(s, ref, false, &pin) == GB_OK && pin == snap.read.pin);
    CHECK(!gb_snap_check(s, &snap, &f) && strstr(f.rule, "snap 1"));
    gb_room_unpin(s, pin);
    snap.reading = 0;
    snap.keep.ghost = ref;
    CHECK(!gb_keep_check(s, &f) && strstr(f.rule, "keep 2"));
    snap.keep.ghost = 0;
    snap.keep.left++;
    CHECK(!gb_keep_check(s, &f) && strstr(f.rule, "keep 1"));
    snap.keep.failed = true; /* it counts no more then */
    CHECK(gb_keep_check(s, &f));
    snap.keep.failed = false;
    snap.keep.left--;
    struct gb_chain_read last;
    CHECK(gb_chain_open(s, &last, ref) == GB_OK);
    hold();
    gb_room_remove(s, ref, GB_CAUSE_DELETE);
    model[k].there = false;
    gb_chain_close(s, &last); /* the last reader out: the save has still to copy it */
    CHECK(gb_keep_check(s, &f) && gb_room_check(s, &f));
    CHECK(snap.keep.ghost == ref && gb_room_make(s, now, false) == GB_FULL); /* its room is what comes next */
    for (uint32_t more = 0; k < keys; k++) {
        if (!model[k].there || more++ == 2u) continue;
        gb_room_remove(s, find(s, k), GB_CAUSE_DELETE);
        model[k].there = false;
    }
    left();
    end();
    CHECK(!s->head->arena.ledger[GB_KIND_PENDING]);
    stop();
}
/* Everything is used again and again, so that the walk finds what it has saved before in its way: a save ends. */
static void stirred(void) {
    uint32_t steps = 0;
    quick = true;
    start(400000u, 1200, 0);
    for (uint32_t k = 0; k < keys; k++) put_short(k, 20);
    begin();
    do {
        for (uint32_t k = 0; k < keys; k++)
            if (model[k].there) use(k);
        CHECK(steps++ < 200u);
    } while (save_on());
    end();
    stop();
    quick = false;
}
/* All of a large image leaves at once, and more late frames are filled than there are. */
static void storm(bool crowded) {
    quick = true;
    start(6u << 20, KEYS, 0);
    for (uint32_t k = 0; k < keys; k++) put_short(k, 800u + check_below(80));
    begin();
    for (uint32_t i = 0; i < 4; i++) (void)save_on();
    saving = crowded; /* or nobody looks whether it is */
    for (uint32_t k = 0; k < keys; k++) {
        if (crowded) hold();
        else gb_head_enter(s);
        gb_room_remove(s, find(s, k), GB_CAUSE_DELETE);
    }
    saving = true;
    mirror();
    CHECK(snap.keep.failed == !crowded);
    for (uint32_t i = 0; crowded && save_on(); i++) CHECK(i < 10u);
    if (crowded) all_saved(CALM);
    end();
    stop();
    quick = false;
}

/* --- records nobody wrote ----------------------------------------------------------------------------------- */
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
            enum gb_err err = put_into(s, &p, now);
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
    check_start(argc, argv);
    bytes = malloc(1u << 20);
    piece = malloc(1u << 20);
    front.to = malloc(GB_KEEP_PAYLOAD); /* each exactly as long as it may be filled */
    for (uint32_t i = 0; i < GB_KEEP_FRAMES; i++) late_to[i] = malloc(GB_KEEP_PAYLOAD);
    uint64_t small = gb_room_smallest();
    ghosts();
    stirred();
    start(small + 65536u, 10, 0);
    hostile(false, 5, 30);
    hostile(true, 3, 0);
    hostile(true, 250, 401);
    hostile(false, 1, 2);
    stop();
    long_keys();
    for (uint32_t round = 0; round < 3; round++) {
        run(small, 200, 150, 0);
        run(small + 8u * check_below(8000), 300, 200, 0);
        run(small + 65536u, 150, 200, 60);
        run(400000u, 250, 400, 0);
    }
    run(1500000u, 400, 600, 0);
    storm(true);
    storm(false);
    printf("%lu saves, %lu main %lu late %lu long, %lu ghosts, %lu crowded %lu full %lu kept\n", n_saves,
           n_kind[GB_SNAP_MAIN], n_kind[GB_SNAP_LATE], n_kind[GB_SNAP_LONG], n_ghosts, n_crowded, n_full, n_kept);
    CHECK(n_saves > 20 && n_kind[GB_SNAP_MAIN] > 500 && n_kind[GB_SNAP_LATE] > 500 && n_kind[GB_SNAP_LONG] > 20 &&
          n_ghosts > 20 && n_crowded && n_kept);
    for (uint32_t i = 0; i < GB_KEEP_FRAMES; i++) free(late_to[i]);
    free(front.to);
    free(piece);
    free(bytes);
    return check_done();
}
