/* fuzz_ring.c - bytes as a stream of operations on the ring and its dumb twin; or as what stands in a
 * span that was read from somewhere: what passes its check can be pulled and written on. */
#define CHECK_ABORTS
#include "check.h"
#include "core.h"
#include "ring_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define STEPS 1500u

static void operations(gb_ref granules) {
    struct twin t;
    twin_start(&t, granules, 1u + check_below(3), STEPS + 4u);
    for (uint32_t i = 0; i < STEPS && check_bytes < check_bytes_end; i++)
        twin_step(&t, 2u * granules);
    twin_stop(&t);
}

static void judge(struct gb_ring *r) {
    struct gb_fault fault = {0};
    if (gb_ring_check(r, &fault)) use_it(r);
    else CHECK(fault.rule);
}

/* A ring that was one, with some words of root and span written over: all but where the span lies. */
static void spoilt(gb_ref granules) {
    struct twin t;
    twin_start(&t, granules, 1, 60);
    for (uint32_t n = check_below(60); n; n--) (void)twin_put(&t, any_event(&t), false);
    uint32_t root = offsetof(struct gb_ring_root, born), bytes = sizeof *t.ring.root - root;
    while (check_bytes < check_bytes_end) {
        uint32_t at = check_below(bytes + (uint32_t)span_bytes(&t));
        uint8_t *place = at < bytes ? (uint8_t *)t.ring.root + root + at
                                    : t.ring.base + t.at * GB_GRANULE + (at - bytes);
        if (check_below(2)) *place = (uint8_t)(*place + check_below(256));
        else *place ^= (uint8_t)(1u << check_below(8));
        struct gb_ring copy = twin_copy(&t);
        judge(&copy);
        twin_drop(&copy);
    }
    twin_free(&t);
}

/* One record of a writer that is careless: mostly as it should be. */
static void careless(struct gb_ring_record *to, uint64_t seq, uint32_t left) {
    struct gb_ring_record e = {.seq = seq, .kind = (uint8_t)check_below(GB_EVENTS + 1u)};
    e.key_len = (uint16_t)check_below(20);
    e.value = gb_ring_tag(check_below(GB_RING_STATES), check_below(8));
    e.old = gb_ring_tag(check_below(GB_RING_STATES), check_below(8));
    if (e.value >> 4 || !check_below(8)) e.value_len = check_below(12);
    if (e.old >> 4 || !check_below(8)) e.old_len = check_below(12);
    if (e.kind == GB_EVENTS) e.kind = check_below(4) ? 0u : 255u;
    if (gb_ring_wide(e.kind) && check_below(4)) e.key_len = e.value = e.old = 0;
    e.granules = (uint16_t)(rounded(32u + held(&e)) / 8u + (check_below(16) ? 0u : check_below(4)));
    if (e.kind == 255u || e.granules > left) {
        to->kind = 255u;
        to->granules = (uint16_t)left;
        return;
    }
    memset(to, 0, e.granules * 8u);
    *to = e;
}

/* A ring no begin has made: from any place on, until about the span is full. */
static void foreign(gb_ref granules) {
    struct twin t;
    memset(&t, 0, sizeof t);
    twin_image(&t, 0, granules);
    gb_ring_format(&t.ring, 0, granules, 1u + check_below(3));
    struct gb_ring_root *root = t.ring.root;
    uint64_t length = span_bytes(&t), head = check_below(granules) * 8u, seq = root->born;
    root->tail = head;
    for (uint32_t most = check_below(granules / 4u + 1u); most; most--) {
        struct gb_ring_record *to = gb_ring_in(&t.ring, head % length);
        careless(to, seq, (uint32_t)(length - head % length) / 8u);
        if (head + gb_ring_size(to) - root->tail > length) break;
        root->last = head;
        head += gb_ring_size(to);
        seq += to->kind != 255u || !check_below(16);
    }
    root->lap = head - head % length;
    if (!check_below(8)) root->last += 8u * check_below(3);
    if (!check_below(8)) root->lap += length * check_below(2);
    judge(&t.ring);
    twin_drop(&t.ring);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 8) return 0;
    check_state = 88172645463325252u;
    check_bytes = data;
    check_bytes_end = data + size;
    uint32_t what = check_below(8);
    gb_ref granules = GB_RING_LEAST + (gb_ref)check_below(what % 2u ? 40u : 3000u);
    if (what < 4) operations(granules);
    else if (what < 6) spoilt(granules);
    else foreign(granules);
    check_bytes = NULL;
    return 0;
}
