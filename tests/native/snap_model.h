/* snap_model.h - a store in use while it is saved, and its dumb twin: what each key has now, and what it had at the
 * moment of the save, which is struck out by its record. After each hold all structures are checked; what a record
 * says is compared with the moment, once. Files that include it are programs of their own. */
#ifndef SNAP_MODEL_H
#define SNAP_MODEL_H

#include "check.h"
#include "core.h"

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
static uint8_t *image, *bytes;
static uint64_t now, length;
static uint32_t keys, long_most, tags;
static struct value model[KEYS], moment[KEYS]; /* the moment's is struck out by its record */
static uint32_t records_n;
static struct record records[RECORDS];
static int64_t wall;
static bool saving, quick; /* quick: an image too large to be checked at each step */
static unsigned long n_kind[GB_SNAP_KINDS], n_ghosts, n_crowded, n_full;

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

/* --- whole lives ----------------------------------------------------- */
static void start(uint64_t n, uint32_t of, uint32_t max_entries) {
    uint64_t seed[2] = {check_random(), check_random()};
    length = n;
    keys = of;
    long_most = (uint32_t)(n / 3u < 200000u ? n / 3u : 200000u);
    now = 1000000;
    memset(model, 0, sizeof model);
    memset(moment, 0, sizeof moment);
    image = malloc(2u * length); /* it may grow */
    memset(image, 0xA5, 2u * length);
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

#endif
