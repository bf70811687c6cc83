/* test_snap.c - saves of a moment: whatever goes on meanwhile, each entry of that moment is in exactly one record,
 * with the bytes and times it had; and records make an image again. */
#include "check.h"
#include "gb.c"

#define KEYS 5000u
#define READERS 5u
#define RECORDS 8192u
struct value {
    uint32_t len, tag, idle, stale;
    uint64_t due, hard;
    bool there, chain, touched;
};
struct record {
    uint8_t *bytes;
    uint64_t n;
    enum gb_snap_kind kind;
    uint32_t key;
};
static struct gb_store store, *s = &store;
static struct gb_snap snap;
static uint8_t *image, *bytes, *piece;
static uint64_t now, length, pieced;
static uint32_t keys, long_most, tags;
static struct value model[KEYS], moment[KEYS]; /* the moment's is struck out by its record */
static uint32_t rank[KEYS], moment_n, records_n;
static struct record records[RECORDS];
static struct gb_keep_frame front;
static uint8_t *late_to[GB_KEEP_FRAMES];
static int64_t wall, saved_at;
static bool saving, quick; /* quick: an image too large to be checked at each step */
static unsigned long n_kind[GB_SNAP_KINDS], n_ghosts, n_crowded, n_full, n_kept, n_saves;

static struct writer {
    struct gb_chain_write w;
    struct gb_put p;
    uint8_t *value, key[320];
    uint32_t k;
    struct value v;
    bool used;
} writer;
static struct reader {
    struct gb_chain_read r;
    struct value v;
    uint8_t *to;
    bool used;
} readers[READERS];
static uint8_t byte_of(uint32_t tag, uint32_t i) { return (uint8_t)(tag * 31u + i * 7u + (i >> 8) * 3u + (i >> 15)); }
static void fill(uint8_t *to, const struct value *v) {
    for (uint32_t i = 0; i < v->len; i++) to[i] = byte_of(v->tag, i);
}
static bool same(const uint8_t *at, const struct value *v) {
    uint32_t bad = 0;
    for (uint32_t i = 0; i < v->len; i++) bad += at[i] != byte_of(v->tag, i);
    return !bad;
}
static uint32_t key_bytes(uint32_t k, uint8_t *out) {
    uint32_t len = k % 17u == 0 ? 250u + k % 40u : 4u + k % 13u;
    for (uint32_t i = 0; i < len; i++) out[i] = (uint8_t)(k >> (8u * (i & 1u)));
    return len;
}
static struct gb_key key_of(const struct gb_store *t, uint32_t k, uint8_t *out) {
    struct gb_key key;
    gb_store_key(t, &key, out, key_bytes(k, out), k & 3u);
    return key;
}
static uint32_t number_of(const uint8_t *p, uint32_t len, uint32_t type) {
    uint8_t own[320];
    uint32_t k = len < 4u ? KEYS : p[0] | (uint32_t)p[1] << 8;
    CHECK(k < keys && key_bytes(k, own) == len && !memcmp(own, p, len) && type == (k & 3u));
    return k;
}
static uint32_t key_at(gb_ref ref) {
    uint32_t word = gb_entry_at(s->base, ref)->word;
    return number_of(gb_store_key_at(s, ref, word), gb_key_len(s->base, ref, word), gb_word_ktype(word));
}
static gb_ref find(const struct gb_store *t, uint32_t k) {
    uint8_t kb[320];
    struct gb_key key = key_of(t, k, kb);
    return gb_store_find(t, &key);
}

/* --- records ------------------------------------------------------------------------------------------------ */
/* Strikes the record's entry out of the moment. */
static void take_record(const uint8_t *at, const struct gb_snap_record *r, enum gb_snap_kind kind) {
    uint32_t k = number_of(r->key, r->head.key_len, r->head.types & 3u);
    struct value *v = &moment[k];
    CHECK(v->there); /* it existed, and no other record has it */
    CHECK(r->head.value_len == v->len && same(r->value, v) && r->head.types >> 2 == (v->tag & 7u));
    CHECK(v->chain == (kind == GB_SNAP_LONG));
    uint8_t kb[320];
    CHECK(r->head.hash == (uint32_t)key_of(s, k, kb).hash);
    if (!v->chain || !v->touched) {
        CHECK(r->head.timed == (v->due != 0));
        CHECK(r->times.due == (v->due ? (int64_t)v->due + wall : 0));
        CHECK(r->times.hard == (v->hard ? (int64_t)v->hard + wall : 0));
        CHECK(r->times.idle == v->idle && r->times.stale == v->stale);
    }
    v->there = false;
    CHECK(records_n < RECORDS);
    struct record *to = &records[records_n++];
    *to = (struct record){malloc(r->bytes), r->bytes, kind, k};
    memcpy(to->bytes, at, r->bytes);
}
static void take_frame(const uint8_t *at, uint64_t used, uint32_t n, enum gb_snap_kind kind) {
    CHECK(used && n && used % GB_GRANULE == 0 && (kind == GB_SNAP_LONG || used <= GB_KEEP_PAYLOAD));
    for (; n; n--) {
        struct gb_snap_record r;
        CHECK(!gb_snap_read(at, used, &r));
        take_record(at, &r, kind);
        at += r.bytes;
        used -= r.bytes;
        n_kind[kind]++;
    }
    CHECK(!used);
}
static bool late_out(void) {
    struct gb_keep_frame *f = gb_keep_take(&snap.keep), *g = check_below(2) ? NULL : gb_keep_take(&snap.keep);
    if (!f) return false;
    take_frame(f->to, f->used, f->records, GB_SNAP_LATE);
    if (g) take_frame(g->to, g->used, g->records, GB_SNAP_LATE);
    if (g) gb_keep_give(&snap.keep, g); /* the other way round: two threads write */
    gb_keep_give(&snap.keep, f);
    return true;
}

/* --- holds, and what must be true after each ---------------------------------------------------------------- */
static void hold(void) {
    while (saving && gb_keep_crowded(&snap.keep) && late_out()) n_crowded++;
    gb_head_enter(s);
    s->now = now;
}
/* What is true after each hold. */
static void left(void) {
    uint32_t ghosts = 0, pins = (uint32_t)writer.used + (saving && snap.reading ? 1u : 0u);
    CHECK(gb_head_steps(s) <= GB_STEPS_MAX && (!s->keep || s->keep == &snap.keep));
    for (gb_ref g = saving ? snap.keep.ghost : 0; g; g = gb_entry_at(s->base, g)->lru.next, ghosts++)
        CHECK(gb_word_kind(gb_entry_at(s->base, g)->word) == GB_KIND_PENDING && gb_keep_is_ghost(s, g));
    for (uint32_t i = 0; i < READERS; i++) pins += readers[i].used;
    CHECK(s->pins == pins + ghosts);
    n_ghosts += ghosts;
    if (!quick || check_below(200) == 0) SOUND(gb_chain_check, s);
}
/* The same of the image that is loaded, whose handle is another. */
static enum gb_err put_into(struct gb_store *t, const struct gb_put *p, uint64_t at) {
    struct gb_chain_write w = {0};
    enum gb_err err;
    uint32_t holds = 0;
    int part = 0;
    bool inside = gb_store_fits_inline(p);
    do {
        if (t == s) hold();
        else gb_head_enter(t);
        err = inside ? gb_store_put(t, p, at) : part == 0 ? gb_chain_begin(t, &w, p, at)
            : part == 1 ? gb_chain_step(t, &w, p, at) : gb_chain_commit(t, &w, p, at);
        CHECK(gb_head_steps(t) <= GB_STEPS_MAX && ++holds < 200000u);
        if (!err && !inside && part++ < 2) err = GB_AGAIN;
    } while (err == GB_AGAIN);
    if (err && part) gb_chain_abort(t, &w);
    return err;
}
static void times_are(const struct gb_store *t, gb_ref ref, const struct value *v) {
    uint32_t word = gb_entry_at(t->base, ref)->word;
    CHECK(gb_value_len(t->base, ref, word) == v->len && gb_word_vtype(word) == (v->tag & 7u));
    CHECK(gb_store_due(t, ref) == v->due && gb_stale_at(t->base, ref, word) == v->stale);
    CHECK(gb_store_is_chain(t, ref, word) == v->chain);
    if (!(word & GB_WORD_EXTRA)) CHECK(!v->idle && !v->hard);
    else CHECK(gb_extra_at(t->base, ref, word)->idle == v->idle &&
               ((uint64_t)gb_extra_at(t->base, ref, word)->hard_high << 32 |
                gb_extra_at(t->base, ref, word)->hard_low) == v->hard);
}
static void bytes_are(const struct gb_store *t, gb_ref ref, const struct value *v) {
    uint32_t word = gb_entry_at(t->base, ref)->word, done = 0;
    if (!gb_store_is_chain(t, ref, word)) {
        CHECK(same(gb_store_value_at(t, ref, word), v));
        return;
    }
    for (gb_ref at = gb_extra_at(t->base, ref, word)->chain; at; at = gb_extent_at(t->base, at)->next) {
        memcpy(bytes + done, gb_extent_at(t->base, at) + 1, gb_extent_at(t->base, at)->used);
        done += gb_extent_at(t->base, at)->used;
    }
    CHECK(done == v->len && same(bytes, v));
}
/* Who is not there any more left to make room, or was due; nobody comes back, and all is as it should be. */
static void mirror(void) {
    static bool present[KEYS];
    memset(present, 0, sizeof present);
    for (gb_ref at = s->index.root->lru.prev; at != gb_index_list(&s->index); at = gb_list_at(s->base, at)->prev) {
        gb_ref ref = GB_ENTRY_OF_LRU(at);
        uint32_t k = key_at(ref);
        CHECK(model[k].there && !present[k]);
        present[k] = true;
        times_are(s, ref, &model[k]);
        if (check_below(16) == 0) bytes_are(s, ref, &model[k]);
    }
    for (uint32_t k = 0; k < keys; k++) model[k].there = present[k];
}

/* --- operations --------------------------------------------------------------------------------------------- */
static void times_for(struct gb_put *p) {
    if (check_below(3) == 0) p->due = now + 1u + check_below(check_below(3) ? 900u : 4000000u);
    if (check_below(40) == 0) p->due = now + ((uint64_t)1 << 31) + check_below(1u << 30);
    if (check_below(8) == 0) {
        p->idle = 1u + check_below(900);
        p->due = now + p->idle;
        if (check_below(2)) p->hard = p->due + check_below(2000);
    }
    if (p->due && check_below(6) == 0) p->stale = 1u + check_below(check_below(4) ? 900u : 1u << 31);
}
static struct value value_of(const struct gb_put *p, uint32_t tag, bool chain) {
    return (struct value){p->value_len, tag, p->idle, p->stale, p->due, p->hard, true, chain, false};
}
static void put_short(uint32_t k, uint32_t len) {
    uint8_t kb[320];
    struct value v = {.len = len, .tag = ++tags};
    struct gb_put p = {.value = bytes, .value_len = len, .value_type = tags & 7u, .add = check_below(8) == 0};
    times_for(&p);
    p.key = key_of(s, k, kb);
    if (!gb_store_fits_inline(&p)) p.value_len = v.len = len = GB_WINDOW_BYTES - 68u - p.key.len;
    fill(bytes, &v);
    enum gb_err err = put_into(s, &p, now);
    n_full += err == GB_FULL;
    CHECK(err == GB_OK || (err == GB_EXISTS && p.add) || (err == GB_FULL && s->pins));
    if (!err) model[k] = value_of(&p, tags, false);
    left();
}
static void write_over(void) {
    free(writer.value);
    writer.used = false;
}
/* Begins a long value, or goes on with the one under way: one hold. */
static void write_on(void) {
    struct writer *w = &writer;
    enum gb_err err;
    hold();
    if (!w->used) {
        *w = (struct writer){.k = check_below(keys), .v = {.len = 1100u + check_below(long_most), .tag = ++tags}};
        if (check_below(4) == 0) w->v.len = 65536u - 64u + check_below(128); /* about a slice, and a frame */
        w->value = malloc(w->v.len);
        fill(w->value, &w->v);
        w->p = (struct gb_put){.value = w->value, .value_len = w->v.len, .value_type = tags & 7u};
        times_for(&w->p);
        w->p.key = key_of(s, w->k, w->key);
        while ((err = gb_chain_begin(s, &w->w, &w->p, now)) == GB_AGAIN) hold();
        w->used = err == GB_OK;
        if (err) free(w->value);
        CHECK(err == GB_OK || err == GB_TOOBIG || err == GB_BUSY || (err == GB_FULL && s->pins));
    } else if (check_below(60) == 0) {
        gb_chain_abort(s, &w->w);
        write_over();
    } else {
        bool all = w->w.done == w->p.value_len;
        err = all ? gb_chain_commit(s, &w->w, &w->p, now) : gb_chain_step(s, &w->w, &w->p, now);
        CHECK(err == GB_OK || err == GB_AGAIN || (err == GB_FULL && s->pins > 1u) || (all && err == GB_FULL));
        n_full += err == GB_FULL;
        if (err == GB_FULL) gb_chain_abort(s, &w->w);
        if (all && !err) model[w->k] = value_of(&w->p, w->v.tag, true);
        if (err == GB_FULL || (all && !err)) write_over();
    }
    left();
}
static void read_close(struct reader *r) {
    gb_chain_close(s, &r->r);
    free(r->to);
    r->used = false;
}
static void read_on(uint32_t k) {
    struct reader *r = &readers[check_below(READERS)];
    hold();
    if (r->used) {
        enum gb_err err = gb_chain_copy(s, &r->r, r->to);
        if (err == GB_OK) CHECK(same(r->to, &r->v));
        CHECK(gb_head_steps(s) <= GB_STEPS_MAX);
        hold();
        if (err == GB_OK || check_below(6) == 0) read_close(r);
    } else {
        gb_ref ref = 0; /* any long one, from k on */
        for (uint32_t i = 0; !ref && i < keys; i++, k = (k + 1u) % keys)
            if (model[k].there && model[k].chain && (ref = find(s, k)) != 0) break;
        if (ref && gb_chain_open(s, &r->r, ref) == GB_OK) {
            r->v = model[k];
            r->to = malloc(r->v.len);
            r->used = true;
        }
    }
    left();
}
static void use(uint32_t k) {
    struct value *v = &model[k];
    hold();
    gb_ref ref = find(s, k);
    if (ref && !gb_store_is_past(s, ref, now)) {
        gb_store_use(s, ref, now);
        if (v->due && v->idle) {
            v->due = v->hard && v->hard < now + v->idle ? v->hard : now + v->idle;
            moment[k].touched = true;
        }
    }
    left();
}
static void touch(uint32_t k) {
    struct gb_put p = {0};
    enum gb_err err = GB_AGAIN;
    times_for(&p);
    for (uint32_t n = 0; err == GB_AGAIN; n++) {
        hold();
        gb_ref ref = find(s, k);
        err = ref ? gb_store_retime(s, ref, p.due, p.hard, p.idle, now) : GB_GONE;
        CHECK(n < 100000u && (err != GB_FULL || s->pins) && (err != GB_BUSY || (ref && gb_room_pinned(s, ref))));
        left();
    }
    if (err) return;
    struct value *v = &model[k];
    *v = (struct value){v->len, v->tag, p.idle, v->due && p.due ? v->stale : 0u, p.due, p.hard, true, v->chain, false};
    moment[k].touched = true;
}
static void drop(uint32_t k) {
    hold();
    gb_ref ref = find(s, k);
    if (ref) gb_room_remove(s, ref, GB_CAUSE_DELETE);
    left();
}
static void work(void) {
    now += check_below(check_below(10) ? 60u : 3000u);
    for (bool more = true; more;) {
        hold();
        more = gb_room_work(s, now);
        left();
    }
}
enum mode { QUIET, CALM, MIXED, USED, MODES };
static void operate(enum mode mode) {
    uint32_t die = check_below(100), k = check_below(keys);
    if (mode == QUIET) return;
    if (mode == CALM && die >= 60u && die < 85u) die -= 60u; /* no uses, no touches */
    if (die < 35) put_short(k, check_below(check_below(3) ? 60u : 880u));
    else if (die < 50) write_on();
    else if (die < 60) drop(k);
    else if (die < 75) use(k);
    else if (die < 85) touch(k);
    else if (die < 95) read_on(k);
    else work();
    for (uint32_t i = 0; mode == USED && i < keys; i++) { /* as many uses as there are entries */
        uint32_t u = check_below(keys);
        if (model[u].there && i % 8u == 0 && check_below(2)) touch(u);
        else if (model[u].there) use(u);
        if (quick || i > 60u) break;
    }
    if (!quick || check_below(100) == 0) mirror();
}

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
    hold();
    gb_room_remove(s, ref, GB_CAUSE_DELETE);
    model[k].there = false;
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
/* The image grows while it is saved: what lies in the new part is younger than the moment. */
static void grown(void) {
    uint32_t above = 0;
    start(200000u, 300, 0);
    for (uint32_t i = 0; i < 500u; i++) operate(MIXED);
    begin();
    for (uint32_t i = 0; i < 3u; i++) (void)save_on();
    gb_ref old_end = (gb_ref)(length / GB_GRANULE);
    image = realloc(image, length += 65536u);
    gb_room_rebase(s, image);
    s->mapped = length;
    hold();
    gb_room_grow(s, length);
    left();
    for (uint32_t k = 0; k < 150u; k++) put_short(k, 300);
    for (enum gb_err err = GB_AGAIN; err; err = save_on())
        for (uint32_t i = 0; i < 20u; i++) operate(MIXED);
    for (gb_ref at = s->index.root->lru.next; at != gb_index_list(&s->index); at = gb_list_at(s->base, at)->next)
        above += at >= old_end;
    CHECK(above > 20u);
    all_saved(MIXED);
    end();
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

int main(int argc, char **argv) {
    check_start(argc, argv);
    bytes = malloc(1u << 20);
    piece = malloc(1u << 20);
    front.to = malloc(GB_KEEP_PAYLOAD); /* each exactly as long as it may be filled */
    for (uint32_t i = 0; i < GB_KEEP_FRAMES; i++) late_to[i] = malloc(GB_KEEP_PAYLOAD);
    uint64_t small = gb_room_smallest();
    ghosts();
    grown();
    stirred();
    start(small + 65536u, 10, 0);
    hostile(false, 5, 30);
    hostile(true, 3, 0);
    hostile(true, 250, 401);
    hostile(false, 1, 2);
    stop();
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
