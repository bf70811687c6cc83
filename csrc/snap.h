/* snap.h - an image as a stream of records, and a stream of records as an image.
 *
 * WHAT      A snapshot is of one moment, written without stopping anybody. `begin` fixes the moment; `step`
 *           is called again and again, under the lock each time, and appends records to a frame, from the
 *           least to the most recently used; what left before its turn is in the late frames (keep). A
 *           record names no other, so nothing in a file can lead anywhere: reading one checks lengths.
 *
 * PICTURE   0        4096                                                             index_at
 *           +--------+-------+-------+-- - --+------------------+-------+- - -+-------+-------+
 *           | header | frame | frame | late  | long: one value  | frame |     | late  | index |
 *           +--------+-------+-------+-- - --+------------------+-------+- - -+-------+-------+
 *           frame: head of 32 bytes, payload of up to 65,504 (long: as long as it must be), a multiple of 8
 *           index: u32 slots, linear probing from hash * slots >> 32; a record's place / 8; 0: empty
 *
 * INVARIANT 1 a long value under way is pinned, and its entry counts as saved.
 *           2 a hold saves GB_SNAP_ENTRIES at most, so that it stays within its steps.
 *           Of the file: each entry of the moment is in exactly one record; a record does not cross its
 *           frame's end; what is behind it to the next granule is zero; frames end within GB_SNAP_REACH.
 *
 * COST      step: at most GB_SNAP_ENTRIES entries, or a slice of a long value. put: as a put.
 *
 * NOT HERE  files, threads, time: the binding's. What a damaged file is called: the binding's.
 */
#ifndef GB_SNAP_H
#define GB_SNAP_H

#include "chain.h"

#define GB_SNAP_MAGIC 0x0A3170616E536247u  /* "GbSnap1\n" */
#define GB_SNAP_FRAME 0x72466247u          /* "GbFr" */
#define GB_SNAP_VERSION 1u
#define GB_SNAP_HEAD 4096u
#define GB_SNAP_ENTRIES 16u
#define GB_SNAP_REACH (((uint64_t)1 << 32) * GB_GRANULE) /* bytes, to which the index can tell places: frames end there */

enum gb_snap_kind { GB_SNAP_MAIN, GB_SNAP_LATE, GB_SNAP_LONG, GB_SNAP_KINDS };
struct gb_snap_frame {
    uint32_t magic, kind;
    uint64_t bytes;           /* of payload */
    uint32_t records, number; /* number: frames before it in the file */
    uint64_t sum;             /* over the 24 bytes above and the payload, begun with the file's id */
};
struct gb_snap_head {
    uint64_t magic;
    uint32_t version, order;  /* order: 0x01020304 as the writer stores it */
    uint64_t id[2];           /* drawn for each file */
    uint64_t seed[2];         /* of the hash the index goes by */
    int64_t saved_at;         /* the moment, ms of the wall clock */
    uint64_t max_bytes, max_entries;
    uint64_t entries, frames;
    uint64_t index_at, slots; /* the index ends the file */
    uint64_t length;          /* of the file */
    uint64_t index_sum;
    uint64_t seq;             /* the last event's number */
    uint64_t counted;         /* how many counters follow */
    struct gb_counters counters;
    char codec[64];           /* the name values were encoded under, zeros behind it */
    uint64_t sum;             /* over all above; the rest of the 4096 bytes is zero */
};
_Static_assert(GB_CHAIN_SLICE + GB_GRANULE <= GB_KEEP_PAYLOAD, "a slice fits a frame");
_Static_assert(sizeof(struct gb_snap_frame) == 32, "a frame's head is 32 bytes");
_Static_assert(sizeof(struct gb_snap_head) <= GB_SNAP_HEAD, "the head fits its page");

/* A save, beside what keep knows of it. */
struct gb_snap {
    struct gb_keep keep;
    uint32_t walk, steps, count; /* count: entries at the moment */
    uint32_t most;               /* entries a hold, GB_SNAP_ENTRIES or fewer: others may be waiting */
    struct gb_chain_read read;   /* of a long value under way */
    gb_ref reading;              /* its entry; 0: none */
    bool was_ghost;
    uint64_t payload, pad;       /* of a long frame: all of it, and the zeros at its end */
};

/* The moment. `bits` (gb_index_places of zeros) and the late frames' memory are set already, and `wall`. GB_BUSY:
 * another save, or too many walks. */
enum gb_err gb_snap_begin(struct gb_store *s, struct gb_snap *p);
/* Appends to `f`. GB_AGAIN: call again, after writing `f` if it is *full. GB_OK: everything is saved (the late
 * frames are still to be written). A long value begins in an empty frame: p->payload is its whole length then, and
 * every frame until that many bytes were appended is a piece of it. GB_BUSY: too many long reads, later. */
enum gb_err gb_snap_step(struct gb_store *s, struct gb_snap *p, struct gb_keep_frame *f, bool *full);
/* The save is over, well or not. */
void gb_snap_end(struct gb_store *s, struct gb_snap *p);

bool gb_snap_check(const struct gb_store *s, const struct gb_snap *p, struct gb_fault *f);

/* A record that lies in [at, end): where its parts are, or a sentence about what is wrong with it. */
struct gb_snap_record {
    struct gb_record head;
    struct gb_record_times times;
    const uint8_t *key, *value;
    uint64_t bytes; /* all of it */
};
const char *gb_snap_parse(const uint8_t *at, uint64_t left, struct gb_snap_record *r); /* the end is not looked at */
const char *gb_snap_read(const uint8_t *at, uint64_t left, struct gb_snap_record *r);
/* The put that makes an entry of it again: `now` in the image's ms, `wall` as in keep, `saved` the file's moment.
 * A deadline is what is left of it, and never more than was left at that moment. False: its time is over. */
bool gb_snap_put(const struct gb_store *s, const struct gb_snap_record *r, uint64_t now, int64_t wall,
                 int64_t saved, struct gb_put *p);
/* The same, but for the key's hash, which stays 0. */
bool gb_snap_times(const struct gb_snap_record *r, uint64_t now, int64_t wall, int64_t saved, struct gb_put *p);

#endif
