/* kill_stores.c - an operation is killed before each of its stores; what is left of the image must become
 * whole again, and be what it was before the operation or after it.
 *
 * The operation runs on a copy, stops where the countdown ends, and never returns. A new handle mends what
 * it left, and is itself killed now and then. Keys the operation does not name keep their values and their
 * order; its own key has the old value or the new one; nothing deleted comes back. In a full image entries
 * may leave to make room, the least recently used first. */
#include "check.h"
#include "kill.h"
#include <setjmp.h>

#define KEYS 48u
#define LENGTH_MAX (1u << 20)

static uint8_t *image;
static uint64_t image_length;
static long countdown = -1; /* stores still to happen; below 0: all */
static jmp_buf grave;
static unsigned long kills, mended_kills;

static void before_store(const void *at) {
    const uint8_t *p = at;
    if (countdown < 0 || p < image || p >= image + image_length) return;
    if (countdown-- == 0) longjmp(grave, 1);
}
#define HOOKS(X) X(1) X(2) X(4) X(8) X(16)
#define HOOK(n)                                                                                    \
    void __tsan_read##n(void *p);                                                                  \
    void __tsan_write##n(void *p);                                                                 \
    void __tsan_unaligned_read##n(void *p);                                                        \
    void __tsan_unaligned_write##n(void *p);                                                       \
    void __tsan_read##n(void *p) { (void)p; }                                                      \
    void __tsan_write##n(void *p) { before_store(p); }                                             \
    void __tsan_unaligned_read##n(void *p) { (void)p; }                                            \
    void __tsan_unaligned_write##n(void *p) { before_store(p); }
HOOKS(HOOK)
void __tsan_init(void);
void __tsan_func_entry(void *p);
void __tsan_func_exit(void);
void __tsan_read_range(void *p, unsigned long n);
void __tsan_write_range(void *p, unsigned long n);
void __tsan_atomic64_store(volatile void *p, unsigned long v, int order);
void __tsan_atomic_signal_fence(int order);
void __tsan_init(void) {}
void __tsan_func_entry(void *p) { (void)p; }
void __tsan_func_exit(void) {}
void __tsan_read_range(void *p, unsigned long n) { (void)p, (void)n; }
void __tsan_write_range(void *p, unsigned long n) { (void)n, before_store(p); }
void __tsan_atomic_signal_fence(int order) { (void)order; }
void __tsan_atomic64_store(volatile void *p, unsigned long v, int order) {
    (void)order;
    before_store((const void *)(uintptr_t)p);
    *(volatile unsigned long *)p = v;
}
/* The rest the core's locks need. */
unsigned __tsan_atomic32_load(const volatile void *p, int o);
void __tsan_atomic32_store(volatile void *p, unsigned v, int o);
unsigned __tsan_atomic32_exchange(volatile void *p, unsigned v, int o);
unsigned __tsan_atomic32_fetch_add(volatile void *p, unsigned v, int o);
unsigned __tsan_atomic32_fetch_sub(volatile void *p, unsigned v, int o);
int __tsan_atomic32_compare_exchange_strong(volatile void *p, void *e, unsigned v, int o, int f);
unsigned __tsan_atomic32_load(const volatile void *p, int o) { return (void)o, *(const volatile unsigned *)p; }
void __tsan_atomic32_store(volatile void *p, unsigned v, int o) { (void)o, *(volatile unsigned *)p = v; }
unsigned __tsan_atomic32_exchange(volatile void *p, unsigned v, int o) {
    unsigned was = *(volatile unsigned *)p;
    return (void)o, *(volatile unsigned *)p = v, was;
}
unsigned __tsan_atomic32_fetch_add(volatile void *p, unsigned v, int o) {
    return __tsan_atomic32_exchange(p, *(volatile unsigned *)p + v, o);
}
unsigned __tsan_atomic32_fetch_sub(volatile void *p, unsigned v, int o) {
    return __tsan_atomic32_exchange(p, *(volatile unsigned *)p - v, o);
}
int __tsan_atomic32_compare_exchange_strong(volatile void *p, void *e, unsigned v, int o, int f) {
    (void)f;
    if (*(volatile unsigned *)p != *(unsigned *)e) return 0;
    return __tsan_atomic32_store(p, v, o), 1;
}
void *kill_memcpy(void *to, const void *from, size_t n);
void *kill_memmove(void *to, const void *from, size_t n);
void *kill_memset(void *to, int c, size_t n);
void *kill_memcpy(void *to, const void *from, size_t n) { /* killed before it, or half way */
    before_store(to);
    memcpy(to, from, n / 2);
    if (n > 1) before_store(to);
    memcpy((uint8_t *)to + n / 2, (const uint8_t *)from + n / 2, n - n / 2);
    return to;
}
void *kill_memmove(void *to, const void *from, size_t n) {
    before_store(to);
    return memmove(to, from, n);
}
void *kill_memset(void *to, int c, size_t n) {
    before_store(to);
    memset(to, c, n / 2);
    if (n > 1) before_store(to);
    memset((uint8_t *)to + n / 2, c, n - n / 2);
    return to;
}

/* --- the model: what each key has, and the order of use ---------------------------------------------------- */
struct value {
    uint32_t len, tag; /* tag 0: absent */
    uint64_t due;
};
struct model {
    struct value v[KEYS];
    uint32_t order[KEYS], n; /* most recently used last */
};
enum op { PUT, LONG, DELETE, USE, TOUCH, CLEAR, EXPIRE, GROW, SHRINK, SLIDE, OPS };
struct action {
    enum op op;
    uint32_t key;
    struct value to;
    uint64_t now, length;
};
static struct gb_store store;
static struct model model;
static uint64_t now_ms;
static uint32_t tags;
static uint8_t bytes[1u << 17], seen[1u << 17], saved[LENGTH_MAX];

static void fill(const struct value *v) {
    for (uint32_t i = 0; i < v->len; i++) bytes[i] = (uint8_t)(v->tag * 31u + i * 7u + (i >> 8));
}
static uint32_t key_bytes(uint32_t key, uint8_t *out) {
    uint32_t len = key % 11u == 0 ? 260u : 4u + key % 9u;
    for (uint32_t i = 0; i < len; i++) out[i] = (uint8_t)(key * 3u + i);
    return len;
}
static void key_of(struct gb_key *k, uint32_t key, uint8_t *out) {
    gb_store_key(&store, k, out, key_bytes(key, out), key & 3u);
}

static void order_out(struct model *m, uint32_t key) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->n; i++)
        if (m->order[i] != key) m->order[n++] = m->order[i];
    m->n = n;
}
static void order_last(struct model *m, uint32_t key) {
    order_out(m, key);
    m->order[m->n++] = key;
}
static void forget(struct model *m, uint32_t key) {
    m->v[key] = (struct value){0};
    order_out(m, key);
}

/* --- operations -------------------------------------------------------------------------------------------- */
static void hold(void) {
    gb_head_enter(&store);
    store.now = now_ms;
}
static bool put_long(const struct gb_put *p) {
    struct gb_chain_write w;
    enum gb_err err;
    do hold();
    while ((err = gb_chain_begin(&store, &w, p, now_ms)) == GB_AGAIN);
    if (err) return false;
    do hold();
    while ((err = gb_chain_step(&store, &w, p, now_ms)) == GB_AGAIN);
    while (!err || err == GB_AGAIN) {
        hold();
        err = gb_chain_commit(&store, &w, p, now_ms);
        if (!err) return true;
    }
    gb_chain_abort(&store, &w);
    return false;
}
static bool put_short(const struct gb_put *p) {
    enum gb_err err;
    do hold();
    while ((err = gb_store_put(&store, p, now_ms)) == GB_AGAIN);
    return !err;
}
/* The gap goes on as where every hole is too short for the block at the hand: a full image, in which it slides. */
static void slide(void) {
    store.slides = 0; /* else somebody would have to leave */
    kill_alloc_fails = true;
    for (uint32_t n = 0; n < 12u; n++) {
        hold();
        (void)gb_room_make(&store, now_ms, true);
    }
    kill_alloc_fails = false;
}
/* False: refused, and all is as it was. */
static bool act(const struct action *a) {
    uint8_t kb[512];
    struct gb_put p = {.value = bytes, .value_len = a->to.len, .due = a->to.due};
    key_of(&p.key, a->key, kb);
    hold();
    gb_ref ref = gb_store_find(&store, &p.key);
    if (a->op == PUT || a->op == LONG) fill(&a->to);
    if (a->op == PUT || a->op == LONG) return gb_store_fits_inline(&p) ? put_short(&p) : put_long(&p);
    if (a->op == DELETE && ref) gb_room_remove(&store, ref, GB_CAUSE_DELETE);
    else if (a->op == USE && ref) kill_use(&store, ref, now_ms);
    else if (a->op == TOUCH && ref)
        while (ref && gb_store_retime(&store, ref, a->to.due, 0, 0, now_ms) == GB_AGAIN) {
            hold();
            ref = gb_store_find(&store, &p.key);
        }
    else if (a->op == SLIDE) slide();
    else if (a->op == CLEAR) (void)gb_room_clear(&store, now_ms);
    else if (a->op == EXPIRE)
        while (gb_room_work(&store, now_ms)) hold();
    else if (a->op == GROW && a->length > store.head->length) gb_room_grow(&store, a->length);
    else if (a->op == SHRINK && a->length < store.head->length)
        while (gb_room_shrink(&store, a->length) == GB_AGAIN) hold();
    return true;
}

/* What the operation makes of the model, if it comes to its end (evictions aside). */
static void expect(struct model *m, const struct action *a) {
    bool there = m->v[a->key].tag != 0;
    if (a->op == PUT || a->op == LONG) {
        m->v[a->key] = a->to;
        order_last(m, a->key);
    } else if (a->op == DELETE) {
        forget(m, a->key);
    } else if (a->op == USE && there) {
        order_last(m, a->key);
    } else if (a->op == TOUCH && there) {
        m->v[a->key].due = a->to.due;
        order_last(m, a->key);
    } else if (a->op == CLEAR) {
        memset(m, 0, sizeof *m);
    }
}

/* --- comparison -------------------------------------------------------------------------------------------- */
static bool has(uint32_t key, struct value *v) {
    uint8_t kb[512];
    struct gb_key k;
    key_of(&k, key, kb);
    gb_ref ref = gb_store_find(&store, &k);
    if (!ref) return false;
    uint32_t word = gb_entry_at(store.base, ref)->word;
    v->len = gb_value_len(store.base, ref, word);
    v->due = gb_store_due(&store, ref);
    if (gb_store_is_chain(&store, ref, word)) {
        struct gb_chain_read r;
        CHECK(gb_chain_open(&store, &r, ref) == GB_OK);
        do hold();
        while (gb_chain_copy(&store, &r, seen) == GB_AGAIN);
        gb_chain_close(&store, &r);
    } else {
        memcpy(seen, gb_store_value_at(&store, ref, word), v->len);
    }
    return true;
}
static bool is(const struct value *want, const struct value *got) {
    if (!want->tag || want->len != got->len || want->due != got->due) return false;
    fill(want);
    return !memcmp(seen, bytes, got->len);
}
static uint32_t number_of(gb_ref ref) { /* the model's key of an entry */
    uint32_t word = gb_entry_at(store.base, ref)->word, len = gb_key_len(store.base, ref, word);
    for (uint32_t k = 0; k < KEYS; k++) {
        uint8_t kb[512];
        if (key_bytes(k, kb) == len && !memcmp(kb, gb_store_key_at(&store, ref, word), len) &&
            gb_word_ktype(word) == (k & 3u))
            return k;
    }
    CHECK(!"an entry of a key that never was");
    return 0;
}

/* Every key has what it had before or what it has after; the others' order is as it was. Entries that left to
 * make room are struck from the model. `killed`: the operation did not return. */
static void compare(const struct model *before, const struct model *after, const struct action *a, bool killed) {
    uint32_t lost = 0;
    for (uint32_t k = 0; k < KEYS; k++) {
        struct value got;
        bool there = has(k, &got), own = k == a->key || a->op == CLEAR || a->op == EXPIRE;
        bool old = (killed || a->op == EXPIRE) && own && there && is(&before->v[k], &got);
        if (there && !old && !is(&after->v[k], &got)) {
            printf("op %d on key %u, key %u: len %u due %llu, had %u/%llu, to have %u/%llu, killed %d\n", a->op, a->key,
                   k, got.len, (unsigned long long)got.due, before->v[k].len, (unsigned long long)before->v[k].due,
                   after->v[k].len, (unsigned long long)after->v[k].due, killed);
            CHECK(!"a key has a value it never had, or comes back");
        }
        bool dead = before->v[k].due && before->v[k].due <= now_ms; /* any operation may give it up */
        if (!there && after->v[k].tag && !(killed && own && !before->v[k].tag) && !dead) lost++;
    }
    CHECK(!lost || store.head->length < LENGTH_MAX / 2u); /* room enough: nobody has to leave */
    gb_ref head = gb_index_list(&store.index);
    const uint32_t *order = after->order;
    uint32_t i = 0, n = after->n;
    bool stray = false;
    for (gb_ref at = store.index.root->lru.prev; at != head; at = gb_list_at(store.base, at)->prev) {
        uint32_t k = number_of(GB_ENTRY_OF_LRU(at));
        if (k == a->key || a->op == EXPIRE || a->op == CLEAR) continue;
        uint32_t was = i;
        while (i < n && order[i] != k) i++; /* those before it left */
        if (i < n) continue;
        CHECK(killed && !stray); /* one may have been leaving: off the list, not freed yet */
        stray = true;
        i = was;
    }
}
/* The model follows what the store has. */
static void follow(struct model *m) {
    memset(m->order, 0, sizeof m->order);
    m->n = 0;
    gb_ref head = gb_index_list(&store.index);
    for (gb_ref at = store.index.root->lru.prev; at != head; at = gb_list_at(store.base, at)->prev)
        m->order[m->n++] = number_of(GB_ENTRY_OF_LRU(at));
    for (uint32_t k = 0; k < KEYS; k++) {
        bool there = false;
        for (uint32_t i = 0; i < m->n; i++) there |= m->order[i] == k;
        if (!there) m->v[k] = (struct value){0};
    }
}

/* --- kills ------------------------------------------------------------------------------------------------- */
static uint64_t scratch[LENGTH_MAX / 8u / 64u + 1u];
#ifndef KILL_MENDS
#define KILL_MENDS gb_mend
#endif
enum gb_err KILL_MENDS(struct gb_store *s, uint64_t *bits, struct gb_fault *f); /* coverage.py counts in one of its own */

static void reborn(void) {
    CHECK(gb_room_attach(&store, image, image_length) == GB_OK);
    store.live = true;
    gb_room_rebase(&store, image);
}
static void mend(void) {
    struct gb_fault f = {0};
    if (check_below(4) == 0) { /* the mending is killed as well, and begins again */
        reborn();
        memset(scratch, 0, sizeof scratch);
        countdown = (long)check_below(800);
        if (!setjmp(grave)) (void)gb_mend(&store, scratch, &f);
        else mended_kills++;
        countdown = -1;
    }
    reborn();
    memset(scratch, 0, sizeof scratch);
    enum gb_err err = KILL_MENDS(&store, scratch, &f);
    if (err) printf("%s at %llu want %llu got %llu\n", f.rule, (unsigned long long)f.at, (unsigned long long)f.want,
                    (unsigned long long)f.got);
    CHECK(err == GB_OK);
    SOUND(gb_chain_check, &store);
}

static void again(const struct gb_store *handle) {
    memcpy(image, saved, image_length);
    store = *handle;
}

static void step(const struct action *a, uint32_t stride, bool listens) {
    static struct gb_store handle;
    struct model after = model;
    expect(&after, a);
    memcpy(saved, image, image_length);
    handle = store;
    for (volatile long at = (long)check_below(stride); ; at += 1 + (long)check_below(stride)) {
        volatile bool done = false;
        countdown = at;
        if (!setjmp(grave)) {
            (void)act(a);
            done = true;
        }
        countdown = -1;
        kill_alloc_fails = false;
        if (done) break;
        kills++;
        if (getenv("KILL_TRACE")) printf("op %d key %u at %ld intent %u\n", a->op, a->key, at, store.head->intent.op), fflush(stdout);
        mend();
        compare(&model, &after, a, true);
        again(&handle);
    }
    again(&handle);
    if (!act(a)) after = model;
    SOUND(gb_chain_check, &store);
    compare(&model, &after, a, false);
    model = after;
    follow(&model);
    store.listens = listens ? GB_EVENTS_ALL : 0u;
}

static struct action choose(uint64_t length, uint32_t value_least, uint32_t value_most) {
    struct action a = {.op = PUT, .key = check_below(KEYS)};
    uint32_t die = check_below(100);
    a.op = die < 5 ? SLIDE : die < 45 ? PUT : die < 55 ? LONG : die < 65 ? DELETE : die < 77 ? USE : die < 90 ? TOUCH
         : die < 91 ? CLEAR : die < 95 ? EXPIRE : die < 98 ? SHRINK : GROW;
    a.to = (struct value){value_least + check_below(value_most - value_least), ++tags, 0};
    if (a.op == LONG) a.to.len = 5000u + check_below(20000);
    if (check_below(3) == 0) a.to.due = now_ms + 1u + (check_below(4) ? check_below(5000) : check_random() % ((uint64_t)1 << 33));
    now_ms += check_below(200);
    a.now = now_ms;
    if (a.to.due && a.to.due <= now_ms) a.to.due = now_ms + 1u;
    a.length = a.op == GROW ? length : length - (length / 4u + 4096u) / 4096u * 4096u;
    if (a.length < gb_room_smallest() + 4u * GB_TELL_LEAST) a.length = length;
    return a;
}

static void run(uint64_t length, uint32_t steps, uint32_t value_least, uint32_t value_most, uint32_t stride, bool listens) {
    uint64_t seed[2] = {check_random(), check_random()};
    memset(&model, 0, sizeof model);
    now_ms = 100000;
    image_length = length;
    CHECK(gb_room_format(&store, image, length, seed, now_ms) == GB_OK);
    store.live = true;
    gb_room_rebase(&store, image);
    if (listens) {
        while (gb_room_ring(&store, GB_TELL_LEAST) == GB_AGAIN) hold();
        store.listens = GB_EVENTS_ALL;
    }
    for (uint32_t i = 0; i < steps; i++) {
        struct action a = choose(length, value_least, value_most);
        step(&a, stride, listens);
    }
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    uint32_t more = argc > 2 ? (uint32_t)atoi(argv[2]) : 1u;
    image = malloc(LENGTH_MAX);
    uint64_t small = gb_room_smallest() + (uint64_t)GB_TELL_LEAST * GB_GRANULE;
    for (uint32_t round = 0; round < more; round++) {
        run(LENGTH_MAX, 60, 0, 300, 30, false);
        run(LENGTH_MAX, 60, 0, 6000, 30, true);
        run(small, 150, 0, 600, 12, false);
        run(small + 8192u, 150, 0, 200, 12, true);
        run(small + 32768u, 150, 0, 4000, 12, false);
        run(small + 65536u, 100, 0, 2000, 1, true);
        run(LENGTH_MAX, 150, 240, 300, 3, false); /* lengths that are alike: holes of a granule, and slides beside them */
    }
    printf("%lu kills, %lu of a mending\n", kills, mended_kills);
    CHECK(kills > 3000 && mended_kills > 200);
    free(image);
    return check_done();
}
