/* room.h - the one door out, and where room comes from.
 *
 * WHAT      Room for a block is made one unit at a time, in this order: an extent from the trash; an
 *           entry that is due; if enough is free but scattered, one step of the gap; else the least
 *           recently used entry goes; where there is none, a bucket of a table that is too large. A pin
 *           keeps a block where it is while a long value is read or written in slices; an entry that dies
 *           while pinned stays charged until it is unpinned.
 *           The ring of events, if there is one, is what lies behind the arena's end: it is cut off the
 *           arena as a shrink cuts off the image's tail, and stays.
 *
 * PICTURE   0      first                                     end      ring.at                length
 *           +------+--------+------+-------+--- - - ---+-----+--------+----------------------+
 *           | head | blocks: entries, extents, buckets, free | mark   | ring (or nothing)    |
 *           +------+--------+------+-------+--- - - ---+-----+--------+----------------------+
 *           trash:  chain head --prev--> chain head --prev--> 0     each head --next--> extents
 *
 * INVARIANT 1 key_bytes and value_bytes are the sums over the indexed entries.
 *           2 every extent is in one indexed entry's chain, a pending entry's, or the trash.
 *           3 a chain's extents hold its value's length, each names the one before.
 *           4 every pending block is pinned, or a save's ghost.
 *           5 magic, version, layout and length are those of this build and mapping; the arena ends where
 *             the ring begins, the ring where the image ends.
 *           6 every entry's block is in the recency list: none is nobody's.
 *
 * COST      gb_room_make: one unit, at most GB_ROOM_UNIT steps. remove: one bucket, two links.
 *
 * NOT HERE  keys' bytes, look-ups, put and get (store), values longer than a block (chain), files.
 */
#ifndef GB_ROOM_H
#define GB_ROOM_H

#include "keep.h"
#include "moment.h"
#include "tell.h"

#define GB_ROOM_MAGIC 0x3165686361634247u /* "GBcache1", little end first */
#define GB_ROOM_VERSION 1u
#define GB_ROOM_UNIT 24u /* steps one unit of room may take */
/* The steps after which a hold makes no more room: a unit, and an event of it, must still fit. */
static inline uint32_t gb_room_last(const struct gb_store *s) {
    uint32_t event = !GB_HEAD_LISTENS(s) ? 0u : s->values ? GB_TELL_STEPS : GB_TELL_SHORT;
    return GB_STEPS_MAX - GB_ROOM_UNIT - event;
}

enum gb_err gb_room_format(struct gb_store *s, void *base, uint64_t length, const uint64_t seed[2],
                           uint64_t now);
enum gb_err gb_room_attach(struct gb_store *s, void *base, uint64_t length);
/* The image, handle and all, was mapped elsewhere. */
void gb_room_rebase(struct gb_store *s, void *base);
/* Back to an empty image of the same seed, counters and bounds. GB_BUSY while anything is pinned, or saved. */
enum gb_err gb_room_clear(struct gb_store *s, uint64_t now);
/* Where the arena is to end. */
gb_ref gb_room_end(const struct gb_store *s);
/* A number made of every size the bytes depend on. */
uint32_t gb_room_layout(void);
/* What a clear does once its intent is written. */
enum gb_err gb_room_clear_finish(struct gb_store *s, uint64_t now);
/* The smallest image, in bytes. */
uint64_t gb_room_smallest(void);
/* Granules one value could have if nothing else were there (and a shrink under way had ended). */
uint64_t gb_room_capacity(const struct gb_store *s);

/* The one door out: unlinks, accounts, counts, frees (or leaves to the pin). */
void gb_room_remove(struct gb_store *s, gb_ref ref, enum gb_cause cause);
/* The half of it that a replace needs: the entry is out of the index already. */
void gb_room_release(struct gb_store *s, gb_ref ref);
void gb_room_born_walked(struct gb_store *s, gb_ref ref); /* younger than the moments of those who walk, and save */
/* Accounts a birth. */
static inline void gb_room_born(struct gb_store *s, gb_ref ref) {
    uint32_t word = gb_entry_at(s->base, ref)->word;
    s->head->key_bytes += gb_key_len(s->base, ref, word);
    s->head->value_bytes += gb_value_len(s->base, ref, word);
    if (GB_UNLIKELY(s->index.walks != 0)) gb_room_born_walked(s, ref);
}
/* Frees one extent of the trash, which must not be empty. */
void gb_room_trash(struct gb_store *s);
/* Frees a block no index knows, and sends its chain to the trash. */
void gb_room_drop(struct gb_store *s, gb_ref ref);

/* Brings what evicting the next victim will touch (it is the coldest there is: four misses, one after
 * the other, 100 ns), so that the next put of a full image finds it. Worth nothing in one that is not. */
GB_FETCHES void gb_room_foresee(const struct gb_store *s) {
    gb_ref victim = gb_index_victim(&s->index); /* there is one: what was put */
    const struct gb_entry *e = gb_entry_at(s->base, victim);
    const struct gb_table *t = &s->index.table;
    __builtin_prefetch(gb_table_bucket(t, gb_table_bucket_of(t, e->hash)), 1);
    __builtin_prefetch(gb_at(s->base, victim + gb_word_granules(e->word)), 1); /* to coalesce */
    __builtin_prefetch(gb_list_at(s->base, e->lru.prev), 1); /* and who comes after */
}

/* One unit of room. GB_OK: try the allocation again; GB_FULL: nothing is left to give. */
enum gb_err gb_room_make(struct gb_store *s, uint64_t now, bool window);
/* Who is due, as the dead go before the living; or 0. *wait: the wheel came a step forward, and may name one next;
 * not for ever: between two removals 64 timers are moved at most, and then a living entry goes though a dead one may
 * be there. */
gb_ref gb_room_due(struct gb_store *s, uint64_t now, bool *wait);
/* Keeps the table near its mean fill, if the hold has steps left for it. */
void gb_room_widen(struct gb_store *s, uint64_t now);
static inline void gb_room_tend(struct gb_store *s, uint64_t now) {
    if (GB_UNLIKELY(gb_table_wants_grow(&s->index.table))) gb_room_widen(s, now);
}
/* Housekeeping without a caller: due entries, trash. True if more is waiting. */
bool gb_room_work(struct gb_store *s, uint64_t now);

/* Cuts a ring of so many granules (GB_TELL_LEAST or more) off the arena, as a shrink does: GB_AGAIN until
 * done, GB_BUSY as there, GB_SMALL if less than the smallest image would be left. Once. */
enum gb_err gb_room_ring(struct gb_store *s, gb_ref granules);
/* The number of the last event recorded, in whatever ring. */
uint64_t gb_room_seq(const struct gb_store *s);
/* Gives up all above `length` bytes in slices: GB_AGAIN until done, and until then nobody else moves
 * blocks. GB_BUSY if a pinned block is in the way, if more is promised to long writes than would be left, or while a
 * ring or another length is being made room for: all is as it was but for what was evicted. A `length` that is the
 * image's own leaves a shrink
 * half done. Growing takes one call, after the image was mapped longer, and not while it is saved. */
enum gb_err gb_room_shrink(struct gb_store *s, uint64_t length);
void gb_room_grow(struct gb_store *s, uint64_t length);

enum gb_err gb_room_pin(struct gb_store *s, gb_ref entry, bool writing, uint32_t *id);
void gb_room_unpin(struct gb_store *s, uint32_t id);
bool gb_room_pinned(struct gb_store *s, gb_ref block);
bool gb_room_check(const struct gb_store *s, struct gb_fault *f);

#endif
