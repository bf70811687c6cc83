/* keep.h - what a save under way still needs of entries that go or change.
 *
 * WHAT      A save is of one moment. From then on every entry is saved once: by the walker (snap), or, if
 *           it is removed, replaced or given other times before the walker came to it, by whoever does
 *           that, who appends its record to a late frame. A bit for each place where an entry can begin
 *           says "saved, or younger than the moment"; so an image does not grow while it is saved. A long
 *           value is not copied in one hold: its dead entry becomes a ghost, charged and pending, until the
 *           walker has copied it.
 *
 * PICTURE   a record: lengths, what it is, perhaps times, and bytes; no reference to anything
 *
 *             0         4    8       10    11     12                                  12 or 36
 *            +---------+----+-------+-----+------+------+------+------+-------+------+-----+-------+-+
 *            |value len|hash|key len|types|timed?|due 8 |hard 8|idle 4|stale 4|      | key | value |0|
 *            +---------+----+-------+-----+------+------+------+------+-------+------+-----+-------+-+
 *                          types: key's + 4 * value's       \__ if timed; due, hard: ms of the wall clock,
 *                                                                0: none                    to the next 8
 *
 *           late frames, a ring:   [written][being written][full][full][filling][free][free]
 *                                   tail     taken ->                   head
 *
 * INVARIANT 1 left is the number of entries (ghosts too) whose bit is not set, and which existed at the moment.
 *           2 a ghost is pending, and its bit is not set.
 *
 * COST      nothing but a test while nobody saves; else a bit, and once for an entry its own bytes.
 *
 * NOT HERE  the walk over those that stay, frames' headers, files (snap, and the binding).
 */
#ifndef GB_KEEP_H
#define GB_KEEP_H

#include "head.h"

#define GB_KEEP_PAYLOAD (65536u - 32u) /* of a frame, whose header is 32 bytes */
#define GB_KEEP_FRAMES 64u
#define GB_KEEP_RESERVE 7u /* free frames before a hold: 64 records of a block fill five, and end in part of two */
#define GB_RECORD_KEY_MAX 3996u /* of a file, whatever this build's own bound is */

struct gb_record {
    uint32_t value_len, hash;
    uint16_t key_len;
    uint8_t types, timed;
};
struct gb_record_times {
    int64_t due, hard; /* ms of the wall clock; 0: none */
    uint32_t idle, stale;
};
_Static_assert(sizeof(struct gb_record) == 12, "a record's head is 12 bytes");
_Static_assert(sizeof(struct gb_record_times) == 24, "its times are 24");

struct gb_keep_frame {
    uint8_t *to; /* GB_KEEP_PAYLOAD bytes */
    uint32_t used, records;
    bool written;
};
struct gb_keep {
    uint64_t *bits; /* of places: gb_index_places, zero at first */
    int64_t wall;   /* what to add to the image's ms for those of the wall clock */
    uint32_t left;
    gb_ref ghost;   /* linked through lru.next */
    bool eager;     /* who uses an unsaved entry saves it first, so that the walk comes to its end */
    bool failed;    /* there was no late frame: the save is void */
    uint32_t head, taken, tail;
    struct gb_keep_frame late[GB_KEEP_FRAMES];
};

static inline bool gb_keep_unsaved(const struct gb_keep *k, gb_ref ref) { return !gb_index_marked(k->bits, ref); }
/* Not saved after all: another entry has taken its place that is to be saved in its stead. */
static inline void gb_keep_again(struct gb_keep *k, gb_ref ref) { gb_index_unmark(k->bits, ref); }
static inline void gb_keep_saved(struct gb_keep *k, gb_ref ref) { gb_index_mark(k->bits, ref); }
/* Bytes the entry's record takes, all in all. */
uint64_t gb_keep_size(const struct gb_store *s, gb_ref ref);
/* Its head, times and key (and the value, if it lies in the block); the bytes written, in whole granules if so. */
uint32_t gb_keep_record(const struct gb_store *s, gb_ref ref, uint8_t *to);

/* An entry is about to go: true if it has become a ghost, whose block is not to be freed. */
bool gb_keep_leaving(struct gb_store *s, gb_ref ref);
/* An entry that stays is about to get other times, or (eager) to be used; a long value is not copied for that. */
void gb_keep_changing(struct gb_store *s, gb_ref ref);
void gb_keep_moved(struct gb_keep *k, gb_ref from, gb_ref to);
static inline bool gb_keep_is_ghost(const struct gb_store *s, gb_ref ref) {
    return s->keep && gb_keep_unsaved(s->keep, ref) &&
           gb_word_kind(gb_entry_at(s->base, ref)->word) == GB_KIND_PENDING;
}
bool gb_keep_check(const struct gb_store *s, struct gb_fault *f);
/* Whether a hold might not find late frames enough: somebody is to write one out first. */
static inline bool gb_keep_crowded(const struct gb_keep *k) {
    return GB_KEEP_FRAMES - (k->head - k->tail) < GB_KEEP_RESERVE;
}
/* Under the lock: the next full frame, to be written without it and given back; NULL: there is none. */
struct gb_keep_frame *gb_keep_take(struct gb_keep *k);
void gb_keep_give(struct gb_keep *k, struct gb_keep_frame *f);

#endif
