/* test_snap.c - saves of a moment: whatever goes on meanwhile, each entry of that moment is in exactly one record,
 * with the bytes and times it had; and records make an image again. */
#include "snap_model.h"

static uint8_t *piece, *late_to[GB_KEEP_FRAMES];
static uint64_t pieced;
static uint32_t rank[KEYS], moment_n;
static struct gb_keep_frame front;
static int64_t saved_at;
static unsigned long n_kept, n_saves;

/* --- a save ------------------------------------------------------------------------------------------------- */
static void begin(void) {
    mirror();
    memset(&snap, 0, sizeof snap);
    snap.keep.bits = calloc(gb_index_places(length), sizeof(uint64_t));
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
static void put_plain(uint32_t k, uint64_t due, uint32_t idle) {
    uint8_t kb[320];
    struct value v = {.len = 30, .tag = ++tags};
    struct gb_put p = {.value = bytes, .value_len = 30, .value_type = tags & 7u, .due = due, .idle = idle};
    p.key = key_of(s, k, kb);
    fill(bytes, &v);
    CHECK(put_into(s, &p, now) == GB_OK);
    model[k] = value_of(&p, tags, false);
}
static void put_long(uint32_t k, uint32_t len, uint64_t due) {
    uint8_t kb[320];
    struct value v = {.len = len, .tag = ++tags};
    struct gb_put p = {.value = bytes, .value_len = len, .value_type = tags & 7u, .due = due};
    p.key = key_of(s, k, kb);
    fill(bytes, &v);
    CHECK(put_into(s, &p, now) == GB_OK);
    model[k] = value_of(&p, tags, true);
}
static void gone(uint32_t k) {
    hold();
    gb_room_remove(s, find(s, k), GB_CAUSE_DELETE);
    model[k].there = false;
}
/* Long values that are all due while they are saved: who wants room waits for the first, and does not end them all. */
static void due_at_once(void) {
    start(400000u, 20, 0);
    for (uint32_t k = 0; k < 20u; k++) put_long(k, 9000, now + 500u);
    begin();
    now += 1000u;
    hold();
    for (uint32_t i = 0; i < 5u; i++) CHECK(gb_room_make(s, now, false) == (i ? GB_FULL : GB_OK));
    CHECK(snap.keep.ghost && s->pins == 1u && s->head->counters.expirations == 1u);
    for (uint32_t k = 0; k < 20u; k++) model[k].there = find(s, k) != 0;
    mirror();
    while (save_on() == GB_AGAIN) continue;
    all_saved(CALM);
    CHECK(gb_room_make(s, now, false) == GB_OK); /* and goes on */
    end();
    stop();
}
/* A long value dies while there are records in the frame: it has to wait for the next one. */
static void half_a_frame(void) {
    start(400000u, 60, 0);
    put_plain(1, 0, 0);
    for (uint32_t k = 2; k < 50u; k++) put_plain(k, now + 700u, 700); /* with extra words, and yet in one block */
    put_long(50, 9000, 0);
    begin();
    CHECK(save_on() == GB_AGAIN && front.used);
    gone(50);
    for (uint32_t k = 1; k < 3u; k++) {
        CHECK(gb_index_victim(&s->index) == find(s, k));
        hold();
        CHECK(gb_room_make(s, now, false) == GB_OK); /* whoever goes next is short, and need not wait for it */
        mirror();
        if (model[k].there) gone(k);
    }
    for (uint32_t steps = 0; save_on(); steps++) CHECK(steps < 50u);
    all_saved(MIXED);
    end();
    stop();
}
/* The last bytes of a long value take the last steps of a hold: it is closed in the next. */
static void last_step(void) {
    uint32_t extents = 0;
    bool full;
    start(400000u, 20, 0);
    put_long(1, 9000, 0);
    begin();
    CHECK(save_on() == GB_AGAIN && snap.reading);
    gb_ref ref = find(s, 1), at = gb_extra_at(image, ref, gb_entry_at(image, ref)->word)->chain;
    for (; at; at = gb_extent_at(image, at)->next) extents++;
    s->index.arena.work.steps = GB_STEPS_MAX - extents;
    CHECK(gb_snap_step(s, &snap, &front, &full) == GB_AGAIN && !full && !snap.read.left && snap.reading);
    for (uint32_t steps = 0; save_on(); steps++) CHECK(steps < 5u);
    all_saved(CALM);
    end();
    stop();
}
/* Blocks move while they are saved: those to come, and those that are done, stay what they are. */
static void moved_aside(void) {
    start(400000u, 1500, 0);
    quick = true;
    for (uint32_t k = 0; k < keys; k++) put_short(k, 150);
    for (uint32_t k = 0; k < keys; k += 2u)
        if (find(s, k)) gone(k);
    quick = false;
    mirror();
    begin();
    uint64_t moves = s->head->counters.moves;
    while (save_on()) {
        hold();
        CHECK(gb_room_make(s, now, true) == GB_OK);
        left();
    }
    CHECK(s->head->counters.moves > moves + 20u);
    all_saved(MIXED);
    end();
    stop();
}
/* Where the walk has to come to its end, a long value with a new deadline, in another block, stays where it was. */
static void stays(void) {
    start(400000u, 20, 0);
    put_long(1, 9000, 0);
    put_short(2, 20);
    begin();
    snap.keep.eager = true;
    hold();
    CHECK(gb_store_retime(s, find(s, 1), now + 50000u, 0, 0, now) == GB_OK);
    CHECK(s->index.root->lru.next == GB_LRU_OF(find(s, 2)));
    model[1].due = now + 50000u;
    moment[1].touched = true;
    for (uint32_t steps = 0; save_on(); steps++) CHECK(steps < 9u);
    all_saved(MIXED);
    end();
    stop();
}
/* Frames are filled until a record does not fit. */
static void full_frames(void) {
    quick = true;
    start(2u << 20, 1500, 0);
    for (uint32_t k = 0; k < keys; k++) put_short(k, 400u + check_below(400));
    save(CALM, true, 0);
    stop();
    quick = false;
}
/* No walk to be had, no pin; and given up in the middle of a long value, while one that died is read. */
static void given_up(void) {
    struct gb_chain_read r[GB_HEAD_PINS];
    uint32_t walk[GB_INDEX_WALKS];
    bool full;
    start(400000u, 20, 0);
    for (uint32_t k = 0; k < 3u; k++) put_long(k, 30000, 0);
    for (uint32_t i = 0; i < GB_INDEX_WALKS; i++) CHECK(gb_index_walk_begin(&s->index, &walk[i]));
    CHECK(gb_snap_begin(s, &snap) == GB_BUSY && !s->keep);
    for (uint32_t i = 0; i < GB_INDEX_WALKS; i++) gb_index_walk_end(&s->index, walk[i]);
    begin();
    gb_ref dead = find(s, 2);
    for (uint32_t i = 0; i < GB_HEAD_PINS; i++) CHECK(gb_chain_open(s, &r[i], dead) == GB_OK);
    CHECK(gb_snap_step(s, &snap, &front, &full) == GB_BUSY && !full);
    for (uint32_t i = 1; i < GB_HEAD_PINS; i++) gb_chain_close(s, &r[i]);
    hold();
    CHECK(gb_snap_step(s, &snap, &front, &full) == GB_AGAIN && snap.reading);
    gone(2);
    CHECK(snap.keep.ghost == dead);
    saving = false;
    for (uint32_t i = 0; i < 2u; i++) gb_snap_end(s, &snap); /* a second time nothing happens */
    CHECK(s->pins == 1u && gb_word_kind(gb_entry_at(s->base, dead)->word) == GB_KIND_PENDING);
    gb_chain_close(s, &r[0]); /* the last one out */
    front.used = front.records = 0;
    end();
    CHECK(gb_room_clear(s, now) == GB_OK); /* no pin and no save: not busy */
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

int main(int argc, char **argv) {
    check_start(argc, argv);
    bytes = malloc(1u << 20);
    piece = malloc(1u << 20);
    front.to = malloc(GB_KEEP_PAYLOAD); /* each exactly as long as it may be filled */
    for (uint32_t i = 0; i < GB_KEEP_FRAMES; i++) late_to[i] = malloc(GB_KEEP_PAYLOAD);
    uint64_t small = gb_room_smallest();
    ghosts();
    due_at_once();
    half_a_frame();
    last_step();
    moved_aside();
    stays();
    full_frames();
    given_up();
    stirred();
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
