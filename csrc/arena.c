/* arena.c - segregated lists with immediate coalescing, and the gap that compacts. */
#include "arena.h"

#define LISTED GB_ARENA_LISTED
#define END_MARK (1u | ((uint32_t)GB_KIND_PENDING << 10)) /* stands at `end`: never free */
#define LOOKS 8u  /* members of a request's own class that are looked at */

static inline uint32_t *word_at(const struct gb_arena *a, gb_ref ref) {
    return (uint32_t *)gb_at(a->base, ref);
}
static inline gb_ref class_head(const struct gb_arena *a, uint32_t class) {
    return (gb_ref)((size_t)((uint8_t *)&a->root->heads[class] - a->base) / GB_GRANULE);
}

uint32_t gb_arena_class(uint32_t granules) {
    if (granules < GB_ARENA_EXACT) return granules;
    uint32_t top = 31u - (uint32_t)__builtin_clz(granules); /* 5.. */
    uint32_t class = GB_ARENA_EXACT + (top - 5u) * 16u + ((granules >> (top - 4u)) & 15u);
    return class < GB_ARENA_CLASSES ? class : GB_ARENA_CLASSES - 1u;
}

/* The first class at or above `class` with a member, or GB_ARENA_CLASSES. */
static uint32_t class_from(const struct gb_arena_root *r, uint32_t class) {
    for (uint32_t w = class >> 6; w < 2; w++) {
        uint64_t bits = r->bits[w];
        if (w == class >> 6) bits &= ~(uint64_t)0 << (class & 63u);
        if (bits) return w * 64u + (uint32_t)__builtin_ctzll(bits);
    }
    return GB_ARENA_CLASSES;
}

static void class_in(struct gb_arena *a, gb_ref ref, uint32_t granules) {
    if (granules < LISTED) return;
    uint32_t class = gb_arena_class(granules);
    gb_list_link(a->base, class_head(a, class), ref + 1u);
    a->root->bits[class >> 6] |= (uint64_t)1 << (class & 63u);
}

static void class_out(struct gb_arena *a, gb_ref ref, uint32_t granules) {
    if (granules < LISTED) return;
    uint32_t class = gb_arena_class(granules);
    gb_list_unlink(a->base, ref + 1u);
    if (gb_list_empty(a->base, class_head(a, class)))
        a->root->bits[class >> 6] &= ~((uint64_t)1 << (class & 63u));
}

/* Writes a free block's three words; its neighbours are the caller's. The first two are one store: it is
 * the point at which what was there before is no more, be it used blocks or a longer free one. */
static void write_free(struct gb_arena *a, gb_ref ref, uint32_t granules, uint32_t flags) {
    typedef uint64_t __attribute__((may_alias)) pair;
    uint64_t word = ((uint64_t)GB_KIND_FREE << 10) | flags, size = granules;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint64_t both = word | size << 32;
#else
    uint64_t both = word << 32 | size;
#endif
    GB_ORDER();
    __atomic_store_n((pair *)gb_at(a->base, ref), both, __ATOMIC_RELAXED);
    GB_ORDER();
    word_at(a, ref + granules)[-1] = granules;
}

/* The block behind [.., next) learns whether a free one lies before it. */
static void tell_next(struct gb_arena *a, gb_ref next, bool is_free) {
    uint32_t *w = word_at(a, next);
    *w = is_free ? *w | GB_WORD_PREV_FREE : *w & ~GB_WORD_PREV_FREE;
}

void gb_arena_format(struct gb_arena *a, uint32_t head_granules, uint32_t end) {
    struct gb_arena_root *r = a->root;
    memset(r, 0, sizeof *r);
    for (uint32_t i = 0; i < GB_ARENA_CLASSES; i++) gb_list_format(a->base, class_head(a, i));
    r->first = r->hand = head_granules;
    r->end = end;
    r->ledger[GB_KIND_HEAD] = head_granules + 1u;
    r->ledger[GB_KIND_FREE] = end - head_granules;
    write_free(a, r->first, end - head_granules, 0);
    word_at(a, end)[0] = END_MARK | GB_WORD_PREV_FREE;
    class_in(a, r->first, end - head_granules);
}

/* Cuts [at, at + granules) out of the free block `ref`, which is out of its list already. What is
 * left before and behind becomes free blocks of their own. A rest of one or two granules behind is
 * in no list, but is found again when a neighbour is freed. */
static gb_ref carve(struct gb_arena *a, gb_ref ref, gb_ref at, uint32_t granules,
                    enum gb_kind kind) {
    uint32_t size = word_at(a, ref)[1], before = at - ref, behind = size - before - granules;
    uint32_t prev = before ? GB_WORD_PREV_FREE : 0u;
    if (behind) { /* from behind: nothing of it is seen until the front gets shorter */
        write_free(a, at + granules, behind, 0);
        class_in(a, at + granules, behind);
    } else {
        tell_next(a, at + granules, false);
    }
    GB_ORDER();
    word_at(a, at)[0] = granules | ((uint32_t)kind << 10) | prev;
    GB_ORDER(); /* where nothing is before it, its second word was the free block's size */
    if (before) {
        write_free(a, ref, before, word_at(a, ref)[0] & GB_WORD_PREV_FREE);
        class_in(a, ref, before);
    }
    a->root->ledger[GB_KIND_FREE] -= granules;
    a->root->ledger[kind] += granules;
    a->work.steps++;
    return at;
}

/* The class to cut a small block from: its own, else one whose rest can serve the same request again
 * (near fits leave slivers: 1 byte an entry of 40), else whatever fits. */
static uint32_t class_fitting(const struct gb_arena_root *r, uint32_t class, uint32_t granules) {
    bool own = granules >= GB_ARENA_EXACT || (r->bits[0] >> class & 1u);
    uint32_t found = class_from(r, own ? class : gb_arena_class(2u * granules));
    return found < GB_ARENA_CLASSES ? found : class_from(r, class);
}

gb_ref gb_arena_alloc(struct gb_arena *a, uint32_t granules, enum gb_kind kind) {
    struct gb_arena_root *r = a->root;
    uint32_t class = gb_arena_class(granules);
    if (GB_ALLOC_FAILS()) return 0;
    if (granules >= GB_ARENA_EXACT) { /* a class spans several sizes: look for one that fits */
        gb_ref head = class_head(a, class), at = gb_list_at(a->base, head)->next;
        for (uint32_t n = 0; at != head && n < LOOKS; n++, at = gb_list_at(a->base, at)->next) {
            uint32_t size = word_at(a, at - 1u)[1];
            if (size < granules) continue;
            class_out(a, at - 1u, size);
            return carve(a, at - 1u, at - 1u, granules, kind);
        }
        class++;
    }
    class = class_fitting(r, class, granules);
    if (class >= GB_ARENA_CLASSES) return 0;
    gb_ref ref = gb_list_at(a->base, class_head(a, class))->next - 1u;
    class_out(a, ref, word_at(a, ref)[1]);
    return carve(a, ref, ref, granules, kind);
}

gb_ref gb_arena_alloc_between(struct gb_arena *a, uint32_t least, uint32_t most,
                              enum gb_kind kind) {
    gb_ref ref = gb_arena_alloc(a, most, kind);
    if (ref || least >= most || GB_ALLOC_FAILS()) return ref;
    uint32_t floor = gb_arena_class(least) + 1u;
    for (uint32_t w = 2; w-- > 0;) { /* the highest class with a member */
        uint64_t bits = a->root->bits[w];
        if (!bits) continue;
        uint32_t class = w * 64u + 63u - (uint32_t)__builtin_clzll(bits);
        if (class < floor) return 0;
        ref = gb_list_at(a->base, class_head(a, class))->next - 1u;
        uint32_t size = word_at(a, ref)[1];
        class_out(a, ref, size);
        return carve(a, ref, ref, size < most ? size : most, kind);
    }
    return 0;
}

gb_ref gb_arena_alloc_window(struct gb_arena *a, enum gb_kind kind) {
    uint32_t class = class_from(a->root, gb_arena_class(GB_BLOCK_MAX)), looks = 0;
    if (GB_ALLOC_FAILS()) return 0;
    while (class < GB_ARENA_CLASSES) {
        gb_ref head = class_head(a, class), at = gb_list_at(a->base, head)->next;
        for (; at != head && looks < 2u * LOOKS; looks++, at = gb_list_at(a->base, at)->next) {
            gb_ref ref = at - 1u;
            uint32_t size = word_at(a, ref)[1];
            gb_ref aligned = (ref + GB_BLOCK_MAX - 1u) & ~(GB_BLOCK_MAX - 1u);
            if (aligned - ref + GB_BLOCK_MAX > size) continue;
            class_out(a, ref, size);
            return carve(a, ref, aligned, GB_BLOCK_MAX, kind);
        }
        class = class_from(a->root, class + 1u);
    }
    return 0;
}

gb_ref gb_arena_alloc_run(struct gb_arena *a, uint32_t granules, uint32_t beside, enum gb_kind kind) {
    gb_ref head = class_head(a, GB_ARENA_CLASSES - 1u), at = gb_list_at(a->base, head)->next;
    if (GB_ALLOC_FAILS()) return 0;
    for (uint32_t n = 0; at != head && n < LOOKS; n++, at = gb_list_at(a->base, at)->next) {
        uint32_t size = word_at(a, at - 1u)[1];
        if (size < granules || size - granules < beside) continue;
        class_out(a, at - 1u, size);
        return carve(a, at - 1u, at - 1u, granules, kind);
    }
    return 0;
}

/* Frees [ref, ref + size): joins free neighbours; joins the gap if a neighbour is the gap. */
static void release(struct gb_arena *a, gb_ref ref, uint32_t size, uint32_t prev_free) {
    struct gb_arena_root *r = a->root;
    gb_ref start = ref, behind = ref + size;
    bool held = false;
    uint32_t flags = 0;
    if (prev_free) {
        uint32_t before = word_at(a, ref)[-1];
        start = ref - before;
        flags = word_at(a, start)[0] & GB_WORD_PREV_FREE;
        if (start == r->gap) held = true;
        else class_out(a, start, before);
        size += before;
    }
    if (gb_word_kind(word_at(a, behind)[0]) == GB_KIND_FREE) {
        uint32_t more = word_at(a, behind)[1];
        if (behind == r->gap) held = true;
        else class_out(a, behind, more);
        size += more;
    }
    write_free(a, start, size, flags | (held ? GB_WORD_HELD : 0u));
    if (behind - ref > 2u) GB_POISON(word_at(a, ref + 1u), (size_t)(behind - ref - 2u) * GB_GRANULE);
    if (held) r->gap = start;
    else class_in(a, start, size);
    /* The hand must stay on a block's start, and the gap must end there. */
    if (held || (r->hand > start && r->hand < start + size))
        r->hand = held ? start + size : start;
    tell_next(a, start + size, true);
}

void gb_arena_free(struct gb_arena *a, gb_ref ref) {
    uint32_t word = word_at(a, ref)[0], size = gb_word_granules(word);
    GB_ASSERT(gb_word_kind(word) != GB_KIND_FREE);
    a->root->ledger[gb_word_kind(word)] -= size;
    a->root->ledger[GB_KIND_FREE] += size;
    a->work.steps++;
    release(a, ref, size, word & GB_WORD_PREV_FREE);
}

void gb_arena_rekind(struct gb_arena *a, gb_ref ref, enum gb_kind kind) {
    uint32_t *w = word_at(a, ref), size = gb_word_granules(*w);
    a->root->ledger[gb_word_kind(*w)] -= size;
    a->root->ledger[kind] += size;
    GB_ORDER(); /* all its bytes are there before it is what it becomes */
    *w = (*w & ~(7u << 10)) | ((uint32_t)kind << 10);
    GB_ORDER();
}

/* Gives the gap to the lists. The hand stays where it is, on the block behind. */
static void gap_close(struct gb_arena *a) {
    struct gb_arena_root *r = a->root;
    if (r->gap) {
        uint32_t *w = word_at(a, r->gap);
        w[0] &= ~GB_WORD_HELD;
        class_in(a, r->gap, w[1]);
        r->gap = 0;
    }
    if (r->hand >= r->end) r->hand = r->first;
}

static bool gap_enough(const struct gb_arena_root *r, enum gb_gap want) {
    if (!r->gap) return false;
    gb_ref from = r->gap;
    if (want == GB_GAP_WINDOW) from = (from + GB_BLOCK_MAX - 1u) & ~(GB_BLOCK_MAX - 1u);
    return want != GB_GAP_TAIL && from + GB_BLOCK_MAX <= r->hand;
}

gb_ref gb_arena_gap_next(struct gb_arena *a, enum gb_gap want) {
    struct gb_arena_root *r = a->root;
    a->work.steps++;
    for (;;) {
        if (gap_enough(r, want)) {
            gap_close(a);
            return 0;
        }
        if (r->hand >= r->end) {
            if (want == GB_GAP_TAIL) return 0;
            gap_close(a); /* around: the hand is at the first block again */
        }
        uint32_t *w = word_at(a, r->hand);
        if (gb_word_kind(w[0]) != GB_KIND_FREE) return r->hand;
        /* Only where a gap begins: inside one, release() has joined what is free behind. */
        GB_ASSERT(!r->gap);
        class_out(a, r->hand, w[1]);
        w[0] |= GB_WORD_HELD;
        r->gap = r->hand;
        r->hand += w[1];
    }
}

static void slide_bytes(struct gb_arena *a, gb_ref from, gb_ref to, uint32_t size, uint32_t behind) {
    struct gb_intent *i = a->intent;
    if (!i) {
        memmove(gb_at(a->base, to), gb_at(a->base, from), (size_t)size * GB_GRANULE);
        return;
    }
    *i = (struct gb_intent){.from = from, .to = to, .gap = a->root->gap, .size = size, .idle = behind};
    gb_intent_begin(i, GB_INTENT_SLIDE);
    gb_intent_slide(i, a->base);
}

void gb_arena_slide_finish(struct gb_arena *a) {
    struct gb_intent *i = a->intent;
    gb_intent_slide(i, a->base);
    if (i->to > i->gap) write_free(a, i->gap, i->to - i->gap, 0);
    /* What was free behind is in it, as it may be already: the last word of a gap that has joined a granule is what
     * that one told its size by, and a walk that came upon it would pass over who follows. */
    write_free(a, i->to + i->size, i->from - i->to + i->idle, 0);
}

gb_ref gb_arena_gap_slide(struct gb_arena *a, bool aligned, gb_ref limit) {
    struct gb_arena_root *r = a->root;
    gb_ref from = r->hand, to = r->gap;
    if (!to) return 0;
    uint32_t left = 0, before = word_at(a, to)[0] & GB_WORD_PREV_FREE;
    uint32_t size = gb_word_granules(word_at(a, from)[0]);
    if (aligned) left = (GB_BLOCK_MAX - to % GB_BLOCK_MAX) % GB_BLOCK_MAX;
    if (to + left >= from || to + left + size > limit) return 0;
    gb_ref behind = from + size;
    uint32_t more = gb_word_kind(word_at(a, behind)[0]) == GB_KIND_FREE ? word_at(a, behind)[1] : 0u;
    slide_bytes(a, from, to + left, size, more);
    if (left) { /* what lies before the aligned place goes to the lists */
        write_free(a, to, left, before);
        class_in(a, to, left);
        before = GB_WORD_PREV_FREE;
        to += left;
    }
    word_at(a, to)[0] = (word_at(a, to)[0] & ~GB_WORD_PREV_FREE) | before;
    r->gap = to + size;
    r->hand = behind + more;
    if (more) class_out(a, behind, more);
    write_free(a, r->gap, r->hand - r->gap, GB_WORD_HELD);
    tell_next(a, r->hand, true);
    r->moves++;
    a->work.steps++;
    return to;
}

void gb_arena_gap_skip(struct gb_arena *a) {
    struct gb_arena_root *r = a->root;
    gap_close(a);
    r->hand += gb_arena_size(a, r->hand);
    if (r->hand >= r->end) r->hand = r->first;
    a->work.steps++;
}

void gb_arena_gap_rewind(struct gb_arena *a) {
    gap_close(a);
    a->root->hand = a->root->first;
}

void gb_arena_grow(struct gb_arena *a, gb_ref new_end) {
    struct gb_arena_root *r = a->root;
    gb_ref at = r->end;
    gap_close(a);
    uint32_t prev_free = word_at(a, at)[0] & GB_WORD_PREV_FREE;
    word_at(a, new_end)[0] = END_MARK;
    write_free(a, at, new_end - at, prev_free);
    GB_ORDER();
    r->end = new_end;
    r->ledger[GB_KIND_FREE] += new_end - at; /* the old end mark's granule goes, a new one comes */
    release(a, at, new_end - at, prev_free);
}

void gb_arena_stretch(struct gb_arena *a, gb_ref new_end) {
    gb_ref at = a->root->end;
    word_at(a, new_end)[0] = END_MARK;
    write_free(a, at, new_end - at, 0);
    GB_ORDER();
    a->root->end = new_end;
}

bool gb_arena_shrink(struct gb_arena *a, gb_ref new_end) {
    struct gb_arena_root *r = a->root;
    if (!r->gap || r->hand != r->end || r->gap > new_end || new_end <= r->first) return false;
    gb_ref at = r->gap;
    uint32_t prev_free = word_at(a, at)[0] & GB_WORD_PREV_FREE, left = new_end - at;
    r->ledger[GB_KIND_FREE] -= r->end - new_end;
    r->end = new_end; /* a kill here leaves a free block that reaches beyond it: it is cut then */
    GB_ORDER();
    word_at(a, new_end)[0] = END_MARK | (left ? GB_WORD_PREV_FREE : 0u);
    r->gap = 0;
    r->hand = r->first;
    if (left) {
        write_free(a, at, left, prev_free);
        class_in(a, at, left);
    }
    return true;
}

void gb_arena_again_begin(struct gb_arena *a, gb_ref first, gb_ref end) {
    struct gb_arena_root *r = a->root;
    memset(r->ledger, 0, sizeof r->ledger);
    memset(r->bits, 0, sizeof r->bits);
    for (uint32_t i = 0; i < GB_ARENA_CLASSES; i++) gb_list_format(a->base, class_head(a, i));
    r->first = first;
    r->end = end;
    r->hand = first; /* of the walk: where a free run began, if it is not the block's own start */
    r->gap = 0;
    r->ledger[GB_KIND_HEAD] = first + 1u;
}

/* The free run before `at`, if there is one, becomes a block. */
static void again_close(struct gb_arena *a, gb_ref at) {
    struct gb_arena_root *r = a->root;
    uint32_t size = at - r->hand;
    if (size) {
        write_free(a, r->hand, size, 0);
        class_in(a, r->hand, size);
        r->ledger[GB_KIND_FREE] += size;
    }
    tell_next(a, at, size != 0);
}

void gb_arena_again_keep(struct gb_arena *a, gb_ref ref) {
    uint32_t word = word_at(a, ref)[0], size = gb_word_granules(word);
    again_close(a, ref);
    a->root->ledger[gb_word_kind(word)] += size;
    a->root->hand = ref + size;
}

/* Joined to the run at once, by the run's own first store: the walk over blocks is true all the time. */
void gb_arena_again_free(struct gb_arena *a, gb_ref ref, uint32_t granules) {
    write_free(a, a->root->hand, ref + granules - a->root->hand, 0);
}

void gb_arena_again_end(struct gb_arena *a) {
    struct gb_arena_root *r = a->root;
    word_at(a, r->end)[0] = END_MARK;
    again_close(a, r->end);
    r->hand = r->first;
}
