/* arena_check.c - the invariants of arena.h, each by its number. */
#include "arena.h"

static uint32_t *first_word(const struct gb_arena *a, gb_ref ref) { return (uint32_t *)gb_at(a->base, ref); }
static gb_ref list_of(const struct gb_arena *a, uint32_t class) {
    return (gb_ref)((size_t)((uint8_t *)&a->root->heads[class] - a->base) / GB_GRANULE);
}

/* Lists hold what they should, and their bits say so. */
static bool check_lists(const struct gb_arena *a, uint64_t listed, struct gb_fault *f) {
    const struct gb_arena_root *r = a->root;
    uint64_t found = 0;
    for (uint32_t class = 0; class < GB_ARENA_CLASSES; class++) {
        gb_ref head = list_of(a, class);
        uint64_t n = 0;
        if (!gb_list_check(a->base, head, r->end, r->end, &n, f)) return false;
        bool bit = (r->bits[class >> 6] >> (class & 63u)) & 1u;
        if (bit != (n > 0))
            return gb_broken(f, "arena 6: a class's bit says whether its list is empty", class,
                             n > 0, bit);
        gb_ref at = gb_list_at(a->base, head)->next;
        for (; at != head; at = gb_list_at(a->base, at)->next)
            if (gb_arena_class(first_word(a, at - 1u)[1]) != class)
                return gb_broken(f, "arena 4: a free block lies in its class's list", at - 1u,
                                 class, gb_arena_class(first_word(a, at - 1u)[1]));
        found += n;
    }
    if (found != listed)
        return gb_broken(f, "arena 4: every free block of three granules is listed", 0, listed,
                         found);
    return true;
}

bool gb_arena_check(const struct gb_arena *a, struct gb_fault *f) {
    const struct gb_arena_root *r = a->root;
    uint64_t sums[GB_KINDS] = {0}, listed = 0;
    bool prev_free = false, hand_seen = r->hand == r->end;
    gb_ref at = r->first;
    while (at < r->end) {
        uint32_t word = first_word(a, at)[0], size = gb_arena_size(a, at);
        bool is_free = gb_word_kind(word) == GB_KIND_FREE, held = is_free && (word & GB_WORD_HELD);
        if (!is_free && size > GB_BLOCK_MAX)
            return gb_broken(f, "base 2: a block is at most GB_BLOCK_MAX long", at, GB_BLOCK_MAX,
                             size);
        if (!size || size > r->end - at)
            return gb_broken(f, "arena 1: the blocks meet the end exactly", at, r->end, at + size);
        if ((is_free && prev_free) || prev_free != !!(word & GB_WORD_PREV_FREE))
            return gb_broken(f, "arena 2: no two free blocks touch, PREV_FREE is true", at,
                             prev_free, word);
        if (is_free && first_word(a, at + size)[-1] != size)
            return gb_broken(f, "arena 3: the two size words agree", at, size,
                             first_word(a, at + size)[-1]);
        if (held != (is_free && at == r->gap) || (held && at + size != r->hand))
            return gb_broken(f, "arena 7: the gap is one held block that ends at the hand", at,
                             r->gap, r->hand);
        if (is_free && !held && size >= GB_ARENA_LISTED) listed++;
        hand_seen |= at == r->hand;
        sums[gb_word_kind(word)] += size;
        prev_free = is_free;
        at += size;
    }
    if (prev_free != !!(first_word(a, r->end)[0] & GB_WORD_PREV_FREE))
        return gb_broken(f, "arena 1: the blocks meet the end exactly", at, r->end, at);
    if (!hand_seen)
        return gb_broken(f, "arena 7: the hand is a block's start", r->hand, 1, 0);
    sums[GB_KIND_HEAD] = (uint64_t)r->first + 1u;
    for (uint32_t k = 0; k < GB_KINDS; k++)
        if (sums[k] != r->ledger[k])
            return gb_broken(f, "arena 5: the ledger is the sum over the blocks", k, sums[k],
                             r->ledger[k]);
    return check_lists(a, listed, f);
}
