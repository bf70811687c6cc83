/* room.c - the one door out, and the order in which room is made. */
#include "room.h"

static const uint32_t SLIDES_PER_EVICTION = 16; /* a gap that finds no holes asks for new ones */
static const uint32_t WAITS_PER_REMOVAL = 8;    /* of 8 timers each; one slot of the wheel may hold nearly all */

/* Changes with every size a reader of the bytes relies on. */
uint32_t gb_room_layout(void) {
    const uint64_t sizes[] = {GB_GRANULE, GB_WINDOW_BYTES, GB_WHEEL_BITS, GB_WHEEL_LEVELS,
                              GB_DIR_ROOTS, GB_DIR_SHIFT, GB_ARENA_CLASSES, sizeof(struct gb_head),
                              sizeof(struct gb_extra), sizeof(struct gb_counters), GB_KINDS};
    uint64_t n = 0xCBF29CE484222325u; /* FNV-1a */
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) n = (n ^ sizes[i]) * 0x100000001B3u;
    return (uint32_t)(n ^ (n >> 32));
}

void gb_room_rebase(struct gb_store *s, void *base) {
    struct gb_index *ix = &s->index;
    s->base = (uint8_t *)base;
    s->head = (struct gb_head *)base;
    ix->base = ix->arena.base = ix->table.base = ix->wheel.base = s->base;
    ix->root = &s->head->index;
    ix->arena.root = &s->head->arena;
    ix->arena.intent = s->live ? &s->head->intent : NULL;
    ix->table.root = &s->head->table;
    ix->table.arena = &ix->arena;
    ix->wheel.root = &s->head->wheel;
    s->ring.base = s->base;
    s->ring.root = &s->head->ring;
}

static void point(struct gb_store *s, void *base) {
    memset(s, 0, sizeof *s);
    gb_room_rebase(s, base);
}

/* Where the arena ends in an image so long. */
static gb_ref end_of(const struct gb_store *s, uint64_t length) {
    return (gb_ref)(length / GB_GRANULE) - 1u - s->head->ring.granules;
}
gb_ref gb_room_end(const struct gb_store *s) { return end_of(s, s->head->length); }

uint64_t gb_room_smallest(void) {
    uint64_t head = GB_HEAD_GRANULES * GB_GRANULE;
    return ((head + 8u * GB_WINDOW_BYTES) / 4096u + 1u) * 4096u;
}

enum gb_err gb_room_format(struct gb_store *s, void *base, uint64_t length, const uint64_t seed[2],
                           uint64_t now) {
    if (length < gb_room_smallest()) return GB_SMALL;
    if (length / GB_GRANULE > UINT32_MAX) return GB_TOOBIG;
    point(s, base);
    s->mapped = length;
    struct gb_head *h = s->head;
    memset(h, 0, sizeof *h);
    h->version = GB_ROOM_VERSION;
    h->layout = gb_room_layout();
    h->length = length;
    memcpy(h->seed, seed, sizeof h->seed);
    gb_digest_seed(&s->digest, h->seed);
    enum gb_err err = gb_index_format(&s->index, GB_HEAD_GRANULES, end_of(s, length), now);
    h->magic = GB_ROOM_MAGIC;
    return err;
}

enum gb_err gb_room_attach(struct gb_store *s, void *base, uint64_t length) {
    const struct gb_head *h = (const struct gb_head *)base;
    if (length < gb_room_smallest()) return GB_SMALL;
    if (h->magic != GB_ROOM_MAGIC || h->version != GB_ROOM_VERSION ||
        h->layout != gb_room_layout() || h->length > length)
        return GB_BADIMAGE;
    point(s, base);
    s->mapped = length;
    gb_digest_seed(&s->digest, h->seed);
    return GB_OK;
}

enum gb_err gb_room_clear(struct gb_store *s, uint64_t now) {
    if (s->pins || s->keep) return GB_BUSY;
    struct gb_head *h = s->head;
    gb_tell_count(s, GB_EVENT_CLEAR, h->table.count);
    if (s->index.arena.intent) gb_intent_begin(&h->intent, GB_INTENT_CLEAR);
    h->counters.clears++;
    return gb_room_clear_finish(s, now);
}

enum gb_err gb_room_clear_finish(struct gb_store *s, uint64_t now) {
    struct gb_head *h = s->head;
    uint64_t epoch = h->index.epoch;
    h->trash = 0;
    h->key_bytes = h->value_bytes = 0;
    s->slides = s->laps = s->waits = s->cut = 0;
    enum gb_err err = gb_index_format(&s->index, GB_HEAD_GRANULES, gb_room_end(s), now);
    h->index.epoch = epoch + 1u;
    gb_intent_end(&h->intent);
    for (uint32_t i = 0; i < GB_INDEX_WALKS; i++) /* a walk under way has come to its end */
        s->index.walk[i].at = gb_index_list(&s->index);
    return err;
}

static uint64_t capacity_to(const struct gb_store *s, gb_ref end) {
    return end - s->index.arena.root->first - 3u * GB_BLOCK_MAX - GB_TABLE_DIR_GRANULES;
}
uint64_t gb_room_capacity(const struct gb_store *s) {
    return capacity_to(s, s->cut ? s->cut : s->index.arena.root->end);
}

static struct gb_pin *pin_of(struct gb_store *s, gb_ref block) {
    for (uint32_t i = 0; s->pins && i < GB_HEAD_PINS; i++)
        if (s->pin[i].used && (s->pin[i].entry == block || s->pin[i].extent == block))
            return &s->pin[i];
    return NULL;
}

bool gb_room_pinned(struct gb_store *s, gb_ref block) { return pin_of(s, block) != NULL; }

void gb_room_drop(struct gb_store *s, gb_ref ref) {
    uint32_t word = gb_entry_at(s->base, ref)->word;
    gb_ref chain = word & GB_WORD_EXTRA ? gb_extra_at(s->base, ref, word)->chain : 0;
    if (chain) {
        gb_extent_at(s->base, chain)->prev = s->head->trash;
        s->head->trash = chain;
    }
    gb_arena_free(&s->index.arena, ref);
}

void gb_room_born_walked(struct gb_store *s, gb_ref ref) {
    if (s->keep) gb_keep_saved(s->keep, ref);
    gb_moment_born(s, ref);
}

void gb_room_release(struct gb_store *s, gb_ref ref) {
    uint32_t word = gb_entry_at(s->base, ref)->word;
    s->head->key_bytes -= gb_key_len(s->base, ref, word);
    s->head->value_bytes -= gb_value_len(s->base, ref, word);
    if (GB_UNLIKELY(s->index.walks != 0)) gb_moment_meet(s, ref);
    if (GB_UNLIKELY(s->keep != NULL) && gb_keep_leaving(s, ref)) return;
    if (GB_UNLIKELY(pin_of(s, ref))) gb_arena_rekind(&s->index.arena, ref, GB_KIND_PENDING);
    else gb_room_drop(s, ref);
}

void gb_room_remove(struct gb_store *s, gb_ref ref, enum gb_cause cause) {
    static const uint8_t kinds[GB_CAUSES] = {[GB_CAUSE_DELETE] = GB_EVENT_DELETE,
                                             [GB_CAUSE_EVICT] = GB_EVENT_EVICT,
                                             [GB_CAUSE_EXPIRE] = GB_EVENT_EXPIRE,
                                             [GB_CAUSE_INVALIDATE] = GB_EVENT_INVALIDATE};
    struct gb_counters *c = &s->head->counters;
    gb_tell(s, (enum gb_event)kinds[cause], ref, 0, ref);
    gb_index_remove(&s->index, ref);
    c->deletes += cause == GB_CAUSE_DELETE || cause == GB_CAUSE_INVALIDATE;
    c->evictions += cause == GB_CAUSE_EVICT;
    c->expirations += cause == GB_CAUSE_EXPIRE;
    s->waits = 0;
    gb_room_release(s, ref);
    if (gb_table_wants_shrink(&s->index.table)) (void)gb_table_shrink(&s->index.table);
}

void gb_room_trash(struct gb_store *s) {
    gb_ref ref = s->head->trash;
    struct gb_extent *x = gb_extent_at(s->base, ref);
    if (x->next) gb_extent_at(s->base, x->next)->prev = x->prev;
    s->head->trash = x->next ? x->next : x->prev;
    gb_arena_free(&s->index.arena, ref);
}

/* Tells everyone who named `from` that the block is at `to`; its bytes are there already. */
static void moved(struct gb_store *s, gb_ref from, gb_ref to) {
    uint32_t word = gb_entry_at(s->base, to)->word;
    enum gb_kind kind = gb_word_kind(word);
    s->head->counters.moves++;
    s->index.arena.work.steps++;
    if (kind == GB_KIND_ENTRY) {
        gb_index_moved(&s->index, from, to);
        if (s->keep) gb_keep_moved(s->keep, from, to);
        if (s->index.walks) gb_moment_moved(s, from, to);
        gb_ref chain = word & GB_WORD_EXTRA ? gb_extra_at(s->base, to, word)->chain : 0;
        if (chain) gb_extent_at(s->base, chain)->prev = to;
    } else if (kind == GB_KIND_EXTENT) {
        struct gb_extent *x = gb_extent_at(s->base, to);
        uint32_t before = gb_entry_at(s->base, x->prev)->word;
        if (gb_word_kind(before) == GB_KIND_EXTENT) gb_extent_at(s->base, x->prev)->next = to;
        else gb_extra_at(s->base, x->prev, before)->chain = to;
        if (x->next) gb_extent_at(s->base, x->next)->prev = to;
    } else {
        gb_table_moved(&s->index.table, from, to);
    }
}

static bool movable(struct gb_store *s, gb_ref ref, enum gb_gap want) {
    enum gb_kind kind = gb_word_kind(gb_entry_at(s->base, ref)->word);
    if (kind == GB_KIND_PENDING || kind == GB_KIND_RING) return false;
    if (kind == GB_KIND_BUCKETS) return want == GB_GAP_TAIL; /* it fills a window as it is */
    return !pin_of(s, ref);
}

enum step { STEP_DONE, STEP_MOVED, STEP_SLID, STEP_STUCK };

/* One step of the gap: the block at the hand moves to a hole elsewhere, else down to the gap's
 * start, else the gap begins anew behind it. */
static enum step gap_step(struct gb_store *s, enum gb_gap want) {
    struct gb_arena *a = &s->index.arena;
    gb_ref from = gb_arena_gap_next(a, want), to = 0;
    if (!from) return STEP_DONE;
    if (movable(s, from, want)) {
        uint32_t word = gb_entry_at(s->base, from)->word, size = gb_word_granules(word);
        enum gb_kind kind = gb_word_kind(word);
        to = kind == GB_KIND_BUCKETS ? gb_arena_alloc_window(a, GB_KIND_PENDING)
                                     : gb_arena_alloc(a, size, GB_KIND_PENDING);
        if (to) { /* all but the kind, and that last: half a block is none */
            const uint32_t mine = GB_WORD_PREV_FREE | 7u << 10;
            uint32_t *w = &gb_entry_at(s->base, to)->word;
            memcpy(w + 1, &gb_entry_at(s->base, from)->hash, (size_t)size * GB_GRANULE - sizeof *w);
            *w = (word & ~mine) | (*w & mine);
            gb_arena_rekind(a, to, kind);
            moved(s, from, to);
            gb_arena_free(a, from);
            return STEP_MOVED;
        }
        to = gb_arena_gap_slide(a, kind == GB_KIND_BUCKETS, s->cut ? s->cut : a->root->end);
        if (to) {
            moved(s, from, to);
            gb_intent_end(&s->head->intent);
            return STEP_SLID;
        }
    }
    if (want != GB_GAP_TAIL) gb_arena_gap_skip(a);
    return STEP_STUCK;
}

/* Free granules above which compaction is tried before anything is evicted. */
static uint32_t enough(const struct gb_store *s) {
    const struct gb_arena_root *r = s->index.arena.root;
    uint32_t total = r->end - r->first, share = total / 64u;
    return share > 3u * GB_BLOCK_MAX ? share : 3u * GB_BLOCK_MAX;
}

static void shrink_leave(struct gb_store *s) {
    if (s->cut) gb_arena_gap_rewind(&s->index.arena);
    s->cut = 0;
}

static bool is_long(const struct gb_store *s, gb_ref entry) {
    uint32_t word = gb_entry_at(s->base, entry)->word;
    return (word & GB_WORD_EXTRA) && (gb_extra_at(s->base, entry, word)->flags & GB_EXTRA_CHAIN);
}

gb_ref gb_room_due(struct gb_store *s, uint64_t now, bool *wait) {
    struct gb_index *ix = &s->index;
    uint32_t moves = s->waits < WAITS_PER_REMOVAL ? 8u : 0u;
    gb_ref due = 0;
    *wait = false;
    if (ix->wheel.root->count && (now >> GB_WHEEL_TICK_SHIFT) >= ix->wheel.root->tick)
        due = gb_wheel_due(&ix->wheel, now, &ix->arena.work, gb_head_steps(s) + moves, true, wait);
    *wait = *wait && moves;
    s->waits += *wait;
    return due;
}

enum gb_err gb_room_make(struct gb_store *s, uint64_t now, bool window) {
    struct gb_index *ix = &s->index;
    if (s->head->trash) {
        gb_room_trash(s);
        return GB_OK;
    }
    bool wait, ghost = s->keep && s->keep->ghost;
    gb_ref due = gb_room_due(s, now, &wait), victim = gb_index_victim(ix);
    if (wait) return GB_OK;
    if (GB_UNLIKELY(ghost) && (due ? is_long(s, due) : !victim || s->writing || is_long(s, victim)))
        return GB_FULL; /* for a moment: a ghost's room is what comes next */
    if (due) {
        gb_room_remove(s, due, GB_CAUSE_EXPIRE);
        return GB_OK;
    }
    if (!victim) {
        shrink_leave(s); /* it has the gap, and its caller may be waiting for us */
        /* The table is empty, and may have been made for many: no removal will shrink it any more. */
        if (gb_table_wants_shrink(&ix->table)) return gb_table_shrink(&ix->table);
    }
    bool scattered = !s->cut && gb_arena_free_granules(&ix->arena) >= enough(s);
    if (victim && !(scattered && s->slides < SLIDES_PER_EVICTION)) {
        s->slides = 0;
        gb_room_remove(s, victim, GB_CAUSE_EVICT);
        return GB_OK;
    }
    gb_ref hand = ix->arena.root->hand;
    enum step step = gap_step(s, window ? GB_GAP_WINDOW : GB_GAP_BLOCK);
    s->slides += step == STEP_SLID || step == STEP_STUCK;
    s->laps = step == STEP_DONE || victim ? 0u : s->laps + (ix->arena.root->hand < hand);
    if (s->laps <= 2u) return GB_OK;
    s->laps = 0; /* the next who wants room, less of it maybe, begins anew */
    return GB_FULL;
}

void gb_room_widen(struct gb_store *s, uint64_t now) {
    bool window = false;
    while (gb_head_steps(s) + 8u <= gb_room_last(s)) { /* a split reads every hash of a chain */
        if (gb_table_grow(&s->index.table, &window) != GB_FULL) return;
        if (gb_room_make(s, now, window) != GB_OK) return;
    }
}

bool gb_room_work(struct gb_store *s, uint64_t now) {
    struct gb_index *ix = &s->index;
    bool more = false;
    while (gb_head_steps(s) <= gb_room_last(s)) {
        gb_ref ref = 0;
        if (ix->wheel.root->count)
            ref = gb_wheel_due(&ix->wheel, now, &ix->arena.work, gb_room_last(s), false, &more);
        if (ref) gb_room_remove(s, ref, GB_CAUSE_EXPIRE);
        else if (more) return true;
        else if (s->head->trash) gb_room_trash(s);
        else return false;
    }
    return true;
}

/* The ring to where it ends with an image so long. Its bytes are moved in one go: 0.2 ms a MiB. */
static void move_ring(struct gb_store *s, uint64_t length) {
    struct gb_ring_root *r = &s->head->ring;
    gb_ref to = (gb_ref)(length / GB_GRANULE) - r->granules;
    if (s->index.arena.intent) { /* half a ring is none: it begins anew then, with the next number */
        struct gb_intent *i = s->index.arena.intent;
        i->size = r->granules;
        i->due = length;
        i->seq = r->granules ? gb_ring_next(&s->ring) : 1u;
        gb_intent_begin(i, GB_INTENT_RING);
    }
    if (r->granules) memmove(gb_at(s->base, to), gb_at(s->base, r->at), (size_t)r->granules * GB_GRANULE);
    if (r->granules) r->at = to;
    s->head->length = length;
    gb_intent_end(&s->head->intent);
}

void gb_room_grow(struct gb_store *s, uint64_t length) {
    GB_ASSERT(!s->keep); /* its bits are as many as the image had places */
    shrink_leave(s); /* a cut below the old end is none of the new one's */
    move_ring(s, length);
    gb_arena_grow(&s->index.arena, end_of(s, length));
}

/* The block at the hand found no place below the cut: give something up. */
static enum gb_err shrink_stuck(struct gb_store *s) {
    gb_ref hand = s->index.arena.root->hand; /* a block stands there, or nothing would be stuck */
    if (s->pins && !movable(s, hand, GB_GAP_TAIL))
        return GB_BUSY; /* read, written or a ghost: it goes by itself, nobody has to leave for it */
    gb_ref victim = gb_index_victim(&s->index);
    if (victim) gb_room_remove(s, victim, GB_CAUSE_EVICT);
    else if (gb_table_wants_shrink(&s->index.table)) return gb_table_shrink(&s->index.table);
    else return s->pins ? GB_BUSY : GB_FULL;
    return GB_OK;
}

/* Empties all above `end`: the hand walks up to it, then the gap grows from there to the arena's end. */
static enum gb_err cut_to(struct gb_store *s, gb_ref end) {
    struct gb_arena *a = &s->index.arena;
    const struct gb_arena_root *r = a->root;
    if (s->writing > capacity_to(s, end) || (s->cut && s->cut != end)) return GB_BUSY; /* promised; another's turn */
    if (!s->cut) gb_arena_gap_rewind(a);
    s->cut = end;
    enum gb_err err = GB_OK;
    while (!err && gb_head_steps(s) <= gb_room_last(s)) {
        if (gb_arena_shrink(a, s->cut)) {
            s->cut = 0;
            return GB_OK;
        }
        if (s->head->trash) gb_room_trash(s);
        else if (!r->gap && r->hand + gb_arena_size(a, r->hand) <= s->cut) gb_arena_gap_skip(a);
        else if (gap_step(s, GB_GAP_TAIL) == STEP_STUCK) err = shrink_stuck(s);
    }
    if (err) s->cut = 0;
    return err ? err : GB_AGAIN;
}

enum gb_err gb_room_shrink(struct gb_store *s, uint64_t length) {
    gb_ref ring = s->head->ring.granules;
    if (length < gb_room_smallest() + (uint64_t)ring * GB_GRANULE) return GB_SMALL;
    if (end_of(s, length) >= s->index.arena.root->end) {
        shrink_leave(s);
        return GB_OK;
    }
    enum gb_err err = cut_to(s, end_of(s, length));
    if (!err) move_ring(s, length);
    return err;
}

enum gb_err gb_room_ring(struct gb_store *s, gb_ref granules) {
    struct gb_head *h = s->head;
    if (h->length < gb_room_smallest() + (uint64_t)granules * GB_GRANULE) return GB_SMALL;
    if (h->ring.granules) return GB_EXISTS;
    if (granules < GB_TELL_LEAST) return GB_SMALL;
    enum gb_err err = cut_to(s, h->arena.end - granules);
    if (!err) gb_ring_format(&s->ring, h->arena.end + 1u, granules, h->seq + 1u);
    return err;
}

uint64_t gb_room_seq(const struct gb_store *s) {
    return s->head->ring.granules ? gb_ring_next(&s->ring) - 1u : s->head->seq;
}

enum gb_err gb_room_pin(struct gb_store *s, gb_ref entry, bool writing, uint32_t *id) {
    for (uint32_t i = 0; i < GB_HEAD_PINS; i++) {
        if (s->pin[i].used) continue;
        s->pin[i] = (struct gb_pin){.entry = entry, .used = true, .writing = writing};
        s->pins++;
        *id = i;
        return GB_OK;
    }
    return GB_BUSY;
}

void gb_room_unpin(struct gb_store *s, uint32_t id) {
    gb_ref entry = s->pin[id].entry;
    bool writing = s->pin[id].writing;
    s->pin[id].used = false;
    s->pins--;
    bool dead = gb_word_kind(gb_entry_at(s->base, entry)->word) == GB_KIND_PENDING;
    if (dead && !writing && !pin_of(s, entry) && !gb_keep_is_ghost(s, entry)) gb_room_drop(s, entry); /* the last reader out */
}
