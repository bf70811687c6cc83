/* index.c - table, list and wheel in agreement. */
#include "index.h"

enum gb_err gb_index_format(struct gb_index *ix, uint32_t head_granules, gb_ref end,
                            uint64_t now) {
    gb_arena_format(&ix->arena, head_granules, end);
    gb_list_format(ix->base, gb_index_list(ix));
    gb_wheel_format(&ix->wheel, now);
    for (uint32_t i = 0; i < GB_INDEX_WALKS; i++) /* a walk under way ends at the head */
        ix->walk[i].at = gb_index_list(ix);
    return gb_table_format(&ix->table);
}

static bool has_timer(const struct gb_index *ix, gb_ref ref) {
    return gb_entry_at(ix->base, ref)->word & GB_WORD_TTL;
}

static void order_front(struct gb_index *ix, gb_ref ref) {
    gb_list_link(ix->base, gb_index_list(ix), GB_LRU_OF(ref));
}

/* A walk that was about to visit this link visits its neighbour instead. */
static void walks_leave(struct gb_index *ix, gb_ref link) {
    for (uint32_t i = 0; i < GB_INDEX_WALKS; i++)
        if (ix->walk[i].used && ix->walk[i].at == link)
            ix->walk[i].at = gb_list_at(ix->base, link)->prev;
}
void gb_index_walk_stir(struct gb_index *ix, gb_ref link) {
    walks_leave(ix, link);
    ix->stirs++;
}

static void order_out(struct gb_index *ix, gb_ref ref) {
    if (GB_UNLIKELY(ix->walks)) walks_leave(ix, GB_LRU_OF(ref));
    gb_list_unlink(ix->base, GB_LRU_OF(ref));
}

enum gb_err gb_index_insert(struct gb_index *ix, uint64_t hash, gb_ref ref) {
    gb_entry_at(ix->base, ref)->hash = (uint32_t)hash;
    enum gb_err err = gb_table_insert(&ix->table, hash, ref);
    if (err) return err;
    order_front(ix, ref);
    if (has_timer(ix, ref)) gb_wheel_link(&ix->wheel, ref);
    ix->root->epoch++;
    return GB_OK;
}

void gb_index_remove(struct gb_index *ix, gb_ref ref) {
    gb_table_remove(&ix->table, gb_entry_at(ix->base, ref)->hash, ref);
    order_out(ix, ref);
    if (has_timer(ix, ref)) gb_wheel_unlink(&ix->wheel, ref);
    ix->root->epoch++;
    ix->arena.work.steps++;
}

void gb_index_replace(struct gb_index *ix, gb_ref from, gb_ref to, bool use) {
    gb_table_replace(&ix->table, gb_entry_at(ix->base, from)->hash, from, to);
    if (use) order_front(ix, to);
    else gb_list_link(ix->base, gb_list_at(ix->base, GB_LRU_OF(from))->prev, GB_LRU_OF(to));
    order_out(ix, from);
    if (has_timer(ix, from)) gb_wheel_unlink(&ix->wheel, from);
    if (has_timer(ix, to)) gb_wheel_link(&ix->wheel, to);
    ix->root->epoch++;
    ix->arena.work.steps += 2u;
}

void gb_index_retime_finish(struct gb_index *ix, const struct gb_intent *i) {
    struct gb_extra *x = gb_extra_at(ix->base, i->from, gb_entry_at(ix->base, i->from)->word);
    gb_timer_at(ix->base, i->from)->due = (uint32_t)i->due;
    x->due_high = (uint32_t)(i->due >> 32);
    x->flags = i->flags;
    x->idle = i->idle;
    x->hard_low = (uint32_t)i->hard;
    x->hard_high = (uint32_t)(i->hard >> 32);
}

/* All its words at once: a kill between two of them would make other times of them. */
static void retime_extra(struct gb_index *ix, gb_ref ref, uint64_t due, uint64_t hard, uint32_t idle) {
    uint32_t was = gb_extra_at(ix->base, ref, gb_entry_at(ix->base, ref)->word)->flags;
    uint32_t flags = gb_wheel_wide(&ix->wheel, due) ? was | GB_EXTRA_WIDE : was & ~GB_EXTRA_WIDE;
    struct gb_intent own = {0}, *i = ix->arena.intent ? ix->arena.intent : &own;
    i->from = ref;
    i->flags = flags;
    i->due = due;
    i->hard = hard;
    i->idle = idle;
    gb_intent_begin(i, GB_INTENT_RETIME);
    gb_index_retime_finish(ix, i);
    gb_intent_end(i);
}

bool gb_index_retime(struct gb_index *ix, gb_ref ref, uint64_t due, uint64_t hard, uint32_t idle) {
    struct gb_entry *e = gb_entry_at(ix->base, ref);
    bool extra = e->word & GB_WORD_EXTRA;
    if (!extra && (idle || gb_wheel_wide(&ix->wheel, due))) return false;
    gb_wheel_unlink(&ix->wheel, ref);
    if (extra) retime_extra(ix, ref, due, hard, idle);
    else gb_timer_at(ix->base, ref)->due = (uint32_t)due;
    gb_wheel_link(&ix->wheel, ref);
    ix->arena.work.steps++;
    return true;
}

void gb_index_moved(struct gb_index *ix, gb_ref from, gb_ref to) {
    gb_table_replace(&ix->table, gb_entry_at(ix->base, to)->hash, from, to);
    gb_list_moved(ix->base, GB_LRU_OF(to));
    if (has_timer(ix, to)) gb_wheel_moved(&ix->wheel, to);
    for (uint32_t i = 0; ix->walks && i < GB_INDEX_WALKS; i++)
        if (ix->walk[i].used && ix->walk[i].at == GB_LRU_OF(from)) ix->walk[i].at = GB_LRU_OF(to);
}

bool gb_index_walk_begin(struct gb_index *ix, uint32_t *id) {
    for (uint32_t i = 0; i < GB_INDEX_WALKS; i++) {
        if (ix->walk[i].used) continue;
        ix->walk[i] = (struct gb_walk){ix->root->lru.prev, true, NULL};
        ix->walks++;
        *id = i;
        return true;
    }
    return false;
}

gb_ref gb_index_walk_next(struct gb_index *ix, uint32_t id) {
    gb_ref at = ix->walk[id].at;
    if (at == gb_index_list(ix)) return 0;
    ix->walk[id].at = gb_list_at(ix->base, at)->prev;
    ix->arena.work.steps++;
    return GB_ENTRY_OF_LRU(at);
}

void gb_index_walk_end(struct gb_index *ix, uint32_t id) {
    ix->walk[id].used = false;
    ix->walks--;
}

bool gb_index_check(const struct gb_index *ix, struct gb_fault *f) {
    uint64_t listed = 0, timed = 0, count = ix->table.root->count;
    if (!gb_arena_check(&ix->arena, f) || !gb_table_check(&ix->table, f) ||
        !gb_wheel_check(&ix->wheel, ix->arena.root->end, f) ||
        !gb_list_check(ix->base, gb_index_list(ix), ix->arena.root->end, count, &listed, f))
        return false;
    if (listed != count)
        return gb_broken(f, "index 1: the list's length is the table's count", 0, count, listed);
    gb_ref head = gb_index_list(ix), at = ix->root->lru.next;
    for (; at != head; at = gb_list_at(ix->base, at)->next) {
        gb_ref ref = GB_ENTRY_OF_LRU(at);
        if (!gb_entry_lies(ix->base, ref, ix->arena.root->end))
            return gb_broken(f, "index 2: a listed entry is found by its hash", ref, ix->arena.root->end, at);
        uint32_t bucket = gb_table_bucket_of(&ix->table, gb_entry_at(ix->base, ref)->hash);
        const struct gb_bucket *b = gb_table_bucket(&ix->table, bucket);
        bool found = false;
        for (; !found; b = &((struct gb_overflow *)gb_at(ix->base, b->overflow))->bucket) {
            for (uint32_t i = 0; i < GB_TABLE_SLOTS; i++) found |= b->ref[i] == ref && b->tag[i];
            if (!b->overflow) break;
        }
        if (!found)
            return gb_broken(f, "index 2: a listed entry is found by its hash", ref, 1, 0);
        timed += has_timer(ix, ref);
    }
    if (timed != ix->wheel.root->count)
        return gb_broken(f, "index 3: the wheel counts the entries with a TTL", 0, timed,
                         ix->wheel.root->count);
    return true;
}
