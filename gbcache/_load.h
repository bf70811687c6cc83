/* _load.h - a snapshot's bytes, believed only as far as they were looked at.
 *
 * WHAT      Three ways to read a file that anybody may have written. A head tells geometry and counts, and is
 *           checked against the file's real length before anything else is read. A loader reads frames into
 *           its own memory, checks each one's sum and every length, and puts the records into an image. A
 *           sealed file is mapped to be read only: all its frames are checked once, and from then on every
 *           reference of its index is checked again each time it is used.
 *
 * INVARIANT 1 no length or place from a file is used before it was compared with what is there.
 *           2 no loop is longer than the file.
 *
 * COST      loading: a put an entry; 1.1 MiB beside the image. A sealed look-up: two or three cold lines.
 *
 * NOT HERE  opening files and what kind they are (snapshot.py), Python objects (_box, _packed).
 */
#ifndef GB_LOAD_H
#define GB_LOAD_H

#include "snap.h"

/* What is wrong with a file: where, and the sentence that is broken. `error`: errno, if it could not be read. */
struct gb_load_fault {
    const char *rule;
    uint64_t at;
    int error;
};

bool gb_load_head(int fd, uint64_t length, struct gb_snap_head *h, struct gb_load_fault *f);

struct gb_loader {
    int fd;
    struct gb_snap_head head;
    struct gb_load_fault fault;
    struct gb_store *store;
    uint64_t now;
    int64_t wall;
    uint8_t *buffer; /* of `room` bytes; [at, at + used) of the file lies in it */
    struct gb_put *puts; /* of one frame */
    uint64_t at, used;
    uint64_t frame; /* where the next one begins */
    uint32_t number;
    uint64_t records, dropped; /* dropped: over, or too long for this cache */
    uint64_t *late;            /* places of late frames, for the second round */
    uint64_t lates, late_room, late_next;
    bool done;
};

/* `head` was checked. False: no memory. */
bool gb_load_begin(struct gb_loader *l, int fd, const struct gb_snap_head *head, struct gb_store *store,
                     uint64_t now, int64_t wall);
/* Some frames more, without the GIL; false: the fault says what is wrong. l->done: it is all there. */
bool gb_load_run(struct gb_loader *l, uint32_t ms);
void gb_load_end(struct gb_loader *l);

struct gb_sealed {
    const uint8_t *map;
    struct gb_snap_head head;
    struct gb_digest digest;
    uint64_t *frames; /* places, in the order of use: late ones last */
    uint64_t count;
};
/* Checks all of it, without the GIL; the frames' places are kept. */
bool gb_load_sealed_check(struct gb_sealed *s, const uint8_t *map, const struct gb_snap_head *head,
                     struct gb_load_fault *f);
void gb_load_sealed_end(struct gb_sealed *s);
/* The record of a key whose hash is of s->digest, and whose time is not over at `now` (ms of the wall clock). */
bool gb_load_sealed_find(const struct gb_sealed *s, const struct gb_key *k, int64_t now, struct gb_snap_record *r);
bool gb_load_sealed_live(const struct gb_snap_record *r, int64_t now);
/* Goes through the records: *frame and *at begin at 0. False at the end. */
bool gb_load_sealed_next(const struct gb_sealed *s, uint64_t *frame, uint64_t *at, struct gb_snap_record *r);

#endif
