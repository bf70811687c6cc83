/* test_ring.c - the ring against an array of all events ever: what is there is what happened, what is
 * not is counted, and a kill at any instruction leaves a ring that says so. */
#include "check.h"
#include "core.h"
#include "ring_model.h"

#if defined(__x86_64__) && defined(__linux__)
#include <signal.h>
#define STEPPED 1
#else
#define STEPPED 0
#endif

static struct gb_ring_record plain(uint32_t key_len, uint32_t value_len) {
    struct gb_ring_record e = {0};
    e.kind = GB_EVENT_SET;
    e.key_len = (uint16_t)key_len;
    e.value_len = value_len;
    e.value = value_len ? gb_ring_tag(GB_RING_HELD, 3) : 0u;
    return e;
}

static void run(gb_ref granules, uint64_t seq, uint32_t steps, gb_ref granules_most) {
    struct twin t;
    twin_start(&t, granules, seq, seq + steps);
    for (uint32_t n = 0; n < steps; n++) twin_step(&t, granules_most);
    twin_stop(&t);
}

/* Every small span, filled to every place with records of one length, then one of each other. */
static void sweep(void) {
    for (gb_ref granules = GB_RING_LEAST; granules < GB_RING_LEAST + 22u; granules++) {
        uint32_t most = granules / 4u * 8u - (uint32_t)sizeof(struct gb_ring_record);
        for (uint32_t a = 0; a <= most; a += 8u)
            for (uint32_t b = 0; b <= most; b += 8u)
                for (uint32_t before = 0; before < 2u * granules / 4u; before++) {
                    struct twin t;
                    twin_start(&t, granules, 1, 2u * granules);
                    for (uint32_t n = 0; n < before; n++) CHECK(twin_put(&t, plain(a, 0), false));
                    CHECK(twin_put(&t, plain(b, 0), true));
                    CHECK(twin_put(&t, plain(a, 0), false));
                    twin_compare(&t);
                    whole(&t.ring, t.past, t.first, t.next);
                    twin_stop(&t);
                }
        CHECK(!most || most >= 8u);
    }
}

/* The longest there are, after fillers as long as can be: no begin takes more than its steps. */
static void longest(void) {
    struct twin t;
    uint32_t most_steps = 0, header = (uint32_t)sizeof(struct gb_ring_record);
    gb_ref granules = GB_RING_RECORD_MAX / GB_GRANULE * 4u;
    for (gb_ref more = 0; more < 24u; more++) {
        twin_start(&t, granules + more, 1, 400);
        CHECK(gb_ring_most(&t.ring) == GB_RING_RECORD_MAX);
        for (uint32_t n = 0; n < 60; n++) {
            uint32_t length = GB_RING_RECORD_MAX - header - 8u * (n % 3u) * more;
            CHECK(twin_put(&t, plain(40, length - 40u), false));
            CHECK(twin_put(&t, plain(check_below(200), 0), false));
            CHECK(!twin_put(&t, plain(40, GB_RING_RECORD_MAX - header - 39u), false));
            twin_compare(&t);
            any_pull(&t);
        }
        if (t.most_steps > most_steps) most_steps = t.most_steps;
        twin_stop(&t);
    }
    printf("steps of a begin: %u of %u\n", most_steps, GB_RING_STEPS);
}

/* Lengths that no sum of 32 bits holds, and the bounds of a filter. */
static void edges(void) {
    struct twin t;
    struct gb_work work = {0};
    twin_start(&t, 1000, 1, 100);
    struct gb_ring_record e = plain(UINT16_MAX, UINT32_MAX);
    CHECK(!gb_ring_begin(&t.ring, &e, &work));
    e.old = gb_ring_tag(GB_RING_HELD, 0);
    e.old_len = UINT32_MAX;
    e.key_len = 34; /* wraps to a short one in 32 bits */
    CHECK(!gb_ring_begin(&t.ring, &e, &work) && work.steps == 0);
    CHECK(twin_put(&t, plain(3, 8), false));
    struct gb_ring_filter f = {GB_EVENTS_ALL & ~(1u << GB_EVENT_SET), 0, NULL, -1, true};
    struct gb_ring_cursor c;
    uint64_t lost, to[GB_RING_RECORD_MAX / 8u];
    bool more;
    gb_ring_since(&t.ring, &c, 0);
    work.steps = 7; /* all spent already */
    CHECK(!gb_ring_pull(&t.ring, &c, &f, (uint8_t *)to, sizeof to, &work, 6, &lost, &more) && more);
    CHECK(work.steps == 7 && !lost && gb_ring_pending(&t.ring, &c));
    CHECK(!gb_ring_pull(&t.ring, &c, &f, (uint8_t *)to, sizeof to, &work, 8, &lost, &more) && !more);
    CHECK(work.steps == 8 && !gb_ring_pending(&t.ring, &c)); /* not asked for, and passed over */
    gb_ring_since(&t.ring, &c, 1); /* nothing kept is wanted, so nothing is walked over */
    CHECK(!gb_ring_pull(&t.ring, &c, &f, (uint8_t *)to, sizeof to, &work, 8, &lost, &more) && !more);
    f.kinds = UINT32_MAX;
    f.prefix_type = 0;
    gb_ring_since(&t.ring, &c, 0); /* every key of a type, without a prefix's bytes */
    CHECK(gb_ring_pull(&t.ring, &c, &f, (uint8_t *)to, sizeof to, &work, 9, &lost, &more) == 48u);
    twin_stop(&t);
}

/* --- a kill between any two instructions: the trap flag makes a signal of each --- */

#if STEPPED
static struct twin *volatile stepped;
static volatile unsigned long instants;
static volatile bool seen_after;
static struct gb_work step_work;

static void set_trap(bool on) { /* below the red zone; popf has its effect one instruction later */
    if (on)
        __asm__ volatile("lea -128(%%rsp), %%rsp\n\tpushfq\n\torq $0x100, (%%rsp)\n\tpopfq\n\t"
                         "lea 128(%%rsp), %%rsp" ::: "memory", "cc");
    else
        __asm__ volatile("lea -128(%%rsp), %%rsp\n\tpushfq\n\tandq $~0x100, (%%rsp)\n\tpopfq\n\t"
                         "lea 128(%%rsp), %%rsp" ::: "memory", "cc");
}
/* Runs without the flag: the kernel clears it for a handler. */
static void instant(int signal_number) {
    (void)signal_number;
    const struct gb_ring *r = &stepped->ring;
    uint64_t first = gb_ring_first(r), next = gb_ring_next(r);
    instants++;
    SOUND(gb_ring_check, r);
    CHECK(next == stepped->next || next == stepped->next + 1u);
    CHECK(!seen_after || next == stepped->next + 1u); /* nothing goes back */
    seen_after = next == stepped->next + 1u;
    CHECK(first <= stepped->first); /* the model has given up already */
    whole(r, stepped->past, first, next);
}
/* Without a call that could go through the loader, but for the two looked at. */
static void put_stepped(struct twin *t, const struct gb_ring_record *e) {
    uint32_t n = held(e);
    const uint8_t *from = t->past[t->next].bytes;
    set_trap(true);
    uint8_t *to = gb_ring_begin(&t->ring, e, &step_work);
    for (uint32_t i = 0; i < n; i++) to[i] = from[i];
    gb_ring_commit(&t->ring);
    set_trap(false);
}
static void killed(gb_ref granules, uint32_t events) {
    struct twin t;
    struct sigaction act;
    memset(&act, 0, sizeof act);
    act.sa_handler = instant;
    CHECK(!sigaction(SIGTRAP, &act, NULL));
    twin_start(&t, granules, 1, events + 1u);
    stepped = &t;
    instants = 0;
    seen_after = false;
    set_trap(true);
    set_trap(false);
    if (!instants) events = 0; /* an emulator that knows no trap flag */
    while (t.next <= events) {
        struct gb_ring_record e = plain(check_below(12), check_below(2) * check_below(20));
        if (check_below(8) == 0) e = (struct gb_ring_record){.kind = GB_EVENT_CLEAR, .count = 3};
        uint32_t size = rounded((uint32_t)sizeof(struct gb_ring_record) + held(&e));
        if (size > gb_ring_most(&t.ring)) continue;
        model_put(&t, &e, size);
        seen_after = false;
        put_stepped(&t, &e);
        t.next++;
        CHECK(seen_after);
        twin_compare(&t);
    }
    printf("%lu instants of %u events\n", instants, events);
    CHECK(instants >= 100u * events);
    twin_stop(&t);
}
#else
static void killed(gb_ref granules, uint32_t events) {
    (void)granules;
    printf("%u events: no trap flag here, so no kill at every instruction\n", events);
}
#endif

/* --- what is broken is named, and never believed --- */

#define BROKEN(text)                                                                               \
    do {                                                                                           \
        struct gb_fault fault_ = {0};                                                              \
        CHECK(!gb_ring_check(&t.ring, &fault_));                                                   \
        CHECK(fault_.rule && !strncmp(fault_.rule, text, strlen(text)));                           \
    } while (0)
#define PLANT(place, value, text)                                                                  \
    do {                                                                                           \
        __typeof__(place) was_ = (place);                                                          \
        (place) = (value);                                                                         \
        BROKEN(text);                                                                              \
        (place) = was_;                                                                            \
        SOUND(gb_ring_check, &t.ring);                                                             \
    } while (0)

static struct gb_ring_record *record_at(const struct twin *t, uint64_t seq) {
    uint64_t place = t->past[seq].start % span_bytes(t);
    return (struct gb_ring_record *)(void *)(t->ring.base + t->at * GB_GRANULE + place);
}
static void faults_of_root(void) {
    struct twin t;
    twin_start(&t, 101, 5, 200);
    struct gb_ring_root *root = t.ring.root;
    PLANT(root->tail, 8, "ring 2"); /* while it is empty */
    PLANT(root->lap, 808, "ring 2");
    PLANT(root->born, 0, "ring 1");
    PLANT(root->born, (uint64_t)1 << 62, "ring 1");
    while (t.next < 65u) CHECK(twin_put(&t, plain(12, 30), false));
    uint64_t length = span_bytes(&t);
    CHECK(root->lap > length && root->tail < root->lap);
    PLANT(root->granules, GB_RING_LEAST - 1u, "ring 1");
    PLANT(root->granules, 0, "ring 1");
    PLANT(root->last, root->tail - 8u, "ring 2");
    PLANT(root->last, root->tail + length, "ring 2");
    PLANT(root->last, root->last + 1u, "ring 2");
    PLANT(root->last, (uint64_t)1 << 62, "ring 2");
    PLANT(root->last, root->last + 8u, "ring 3");
    PLANT(root->tail, root->last - length, "ring 2");
    PLANT(root->tail, root->tail + 4u, "ring 2");
    PLANT(root->lap, root->lap + length, "ring 2");
    PLANT(root->lap, root->lap - length, "ring 2");
    PLANT(root->lap, root->lap + 8u, "ring 2");
    PLANT(root->lap, (uint64_t)0 - length, "ring 2");
    PLANT(root->born, t.first + 1u, "ring 6");
    PLANT(root->last, GB_RING_NOWHERE, "ring 2");
    twin_stop(&t);
}
static void faults_of_records(uint32_t filler_bytes) {
    struct twin t;
    struct gb_ring_record wide = {.kind = GB_EVENT_RECOVER, .count = 9};
    twin_start(&t, 128, 1, 2000);
    while (t.past[t.next - 1u].start - t.past[t.next - 1u].from != filler_bytes)
        CHECK(twin_put(&t, plain(12, check_below(90)), false));
    uint64_t from = t.past[t.next - 1u].from;
    struct gb_ring_record *filler = gb_ring_in(&t.ring, from % span_bytes(&t));
    CHECK(filler->granules == filler_bytes / 8u && filler->kind == 255u);
    filler->key_len = filler->key_type = filler->value = filler->old = 0; /* nobody reads them */
    PLANT(filler->granules, (uint16_t)(filler->granules + 1u), "ring 3");
    PLANT(filler->granules, (uint16_t)(filler->granules - 1u), filler_bytes > 8u ? "ring 4" : "ring 3");
    PLANT(filler->kind, GB_EVENT_SET, "ring 5"); /* a header would end behind the span */
    PLANT(t.ring.root->last, from, "ring 4");    /* the filler is the newest there is */
    CHECK(twin_put(&t, wide, false));
    CHECK(twin_put(&t, plain(12, 30), false));
    struct gb_ring_record *e = record_at(&t, t.next - 1u), *w = record_at(&t, t.next - 2u);
    PLANT(w->granules, 0, "ring 3");
    PLANT(w->granules, UINT16_MAX, "ring 3");
    PLANT(w->granules, 3, "ring 5");
    PLANT(w->key_len, 1, "ring 5");
    PLANT(w->old, 0x10, "ring 5");
    PLANT(w->kind, 255, "ring 4");
    PLANT(e->granules, (uint16_t)(e->granules - 1u), "ring 5");
    PLANT(e->kind, GB_EVENTS, "ring 5");
    PLANT(e->key_type, 4, "ring 5");
    PLANT(e->value, 0x03, "ring 5"); /* of 30 bytes, and there is none */
    PLANT(e->value, 0x23, "ring 5"); /* of 30 bytes, and they are not here */
    PLANT(e->value, 0x18, "ring 5");
    PLANT(e->value, 0x53, "ring 5");
    PLANT(e->old_len, 1, "ring 5");
    PLANT(e->key_len, UINT16_MAX, "ring 5");
    PLANT(e->key_len, 20, "ring 5");
    PLANT(e->value_len, UINT32_MAX - 11u, "ring 5");
    PLANT(e->seq, e->seq + 1u, "ring 6");
    PLANT(w->seq, (uint64_t)1 << 62, "ring 6");
    PLANT(((uint8_t *)e)[gb_ring_size(e) - 1u], 1, "ring 5");
    uint8_t bytes[256];
    memcpy(bytes, e + 1, gb_ring_size(e) - sizeof *e);
    memset(e + 1, 0, gb_ring_size(e) - sizeof *e); /* so that what a shorter one leaves over is zero */
    PLANT(e->key_len, 0, "ring 5");
    memcpy(e + 1, bytes, gb_ring_size(e) - sizeof *e);
    twin_stop(&t);
}
/* In itself sound, and longer by a granule than any begin would have made it. */
static void lengthened(struct twin *t) {
    struct gb_ring_record *e = record_at(t, t->next - 1u);
    struct gb_fault fault = {0};
    e->granules++;
    e->key_len = (uint16_t)(e->key_len + 8u);
    CHECK(!gb_ring_check(&t->ring, &fault) && !strncmp(fault.rule, "ring 3", 6));
    e->granules--;
    e->key_len = (uint16_t)(e->key_len - 8u);
    SOUND(gb_ring_check, &t->ring);
}
static void faults_of_length(void) {
    struct twin t;
    twin_start(&t, 128, 1, 40);
    CHECK(twin_put(&t, plain(128 * 2 - 32, 0), false));
    CHECK(gb_ring_size(record_at(&t, 1)) == gb_ring_most(&t.ring));
    lengthened(&t); /* than a quarter */
    PLANT(record_at(&t, 1)->seq, (uint64_t)1 << 62, "ring 6");
    for (uint32_t n = 0; n < 3; n++) CHECK(twin_put(&t, plain(128 * 2 - 32, 0), false));
    for (uint32_t n = 0; n < 16; n++) CHECK(twin_put(&t, plain(32, 0), false));
    CHECK(t.head == 2u * span_bytes(&t) && t.ring.root->tail == span_bytes(&t));
    lengthened(&t); /* into the oldest one, and over the span's end */
    CHECK(twin_put(&t, plain(32, 0), false));
    lengthened(&t); /* into the oldest one */
    twin_stop(&t);
}
/* A record that ends where the span does, with room behind it in the next lap: one more granule. */
static void fault_of_crossing(void) {
    struct twin t;
    twin_start(&t, 128, 1, 40);
    for (uint32_t n = 0; n < 3; n++) CHECK(twin_put(&t, plain(128 * 2 - 32, 0), false));
    for (uint32_t n = 0; n < 4; n++) CHECK(twin_put(&t, plain(32, 0), false));
    struct gb_work work = {0};
    struct gb_ring_record e = plain(64, 0);
    CHECK(t.head == span_bytes(&t) && gb_ring_begin(&t.ring, &e, &work)); /* the first is given up */
    t.first = gb_ring_first(&t.ring);
    lengthened(&t);
    twin_stop(&t);
}
/* A kill between the two stores of a commit that begins a lap; and then a record the old one has room for. */
static void fault_of_lap(void) {
    struct twin t;
    twin_start(&t, 128, 1, 100);
    for (uint32_t bytes = 0; bytes < 3u; bytes++) {
        struct gb_work work = {0};
        struct gb_ring_record e = plain(128u * 2u - 32u, 0);
        while (span_bytes(&t) - t.head % span_bytes(&t) > 72u) CHECK(twin_put(&t, plain(8u * bytes, 0), false));
        CHECK(t.head % span_bytes(&t) != 0 && gb_ring_begin(&t.ring, &e, &work));
        t.first = gb_ring_first(&t.ring);
        CHECK(t.ring.root->begun == t.ring.root->lap + span_bytes(&t));
        t.ring.root->lap = t.ring.root->begun;
        for (uint32_t n = 0; n < 20u; n++) {
            twin_compare(&t);
            whole(&t.ring, t.past, t.first, t.next);
            CHECK(twin_put(&t, plain(n, 0), true));
        }
    }
    twin_stop(&t);
}

/* Any bit of the root and the span: what passes can be read, and written on. */
static void flips(gb_ref granules) {
    struct twin t;
    twin_start(&t, granules, 1, 100);
    while (t.next < 60u) (void)twin_put(&t, any_event(&t), false);
    uint32_t root_bytes = (uint32_t)sizeof *t.ring.root, found = 0, passed = 0;
    for (uint32_t bit = 8u * (uint32_t)offsetof(struct gb_ring_root, born);
         bit < 8u * (root_bytes + (uint32_t)span_bytes(&t)); bit++) {
        struct gb_ring copy = twin_copy(&t);
        struct gb_fault fault = {0};
        uint32_t byte = bit / 8u, at = byte - root_bytes + t.at * GB_GRANULE;
        (byte < root_bytes ? (uint8_t *)copy.root + byte : copy.base + at)[0] ^= (uint8_t)(1u << bit % 8u);
        if (gb_ring_check(&copy, &fault)) {
            passed++;
            use_it(&copy);
        } else {
            found++;
            CHECK(fault.rule);
        }
        twin_drop(&copy);
    }
    printf("%u flipped bits told, %u harmless\n", found, passed);
    CHECK(found > passed / 4u);
    twin_stop(&t);
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    faults_of_root();
    faults_of_length();
    fault_of_crossing();
    fault_of_lap();
    edges();
    longest();
    sweep();
    for (uint32_t round = 0; round < 6; round++) {
        faults_of_records(8u * (1u + round % 3u));
        flips(GB_RING_LEAST + check_below(60));
        if (round < 3u) killed(GB_RING_LEAST + check_below(24), 40);
        run(GB_RING_LEAST, 1, 3000, GB_RING_LEAST);
        run(300, 1000, 6000, 600);
        run(GB_WINDOW_BYTES, 1, 2500, 3u * GB_WINDOW_BYTES);
    }
    return check_done();
}
