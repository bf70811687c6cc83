/* _load.h - a snapshot's bytes, believed only as far as they were looked at.
 *
 * WHAT      Two ways to read a file that anybody may have written. A head tells geometry and counts, and is
 *           checked against the file's real length before anything else is read. A loader reads frames into
 *           its own memory, checks each one's sum and every length, and puts the records into an image (_sealed
 *           is the other way: mapped, to be read only).
 *
 * INVARIANT 1 no length or place from a file is used before it was compared with what is there.
 *           2 no loop is longer than the file.
 *
 * COST      loading: see _pair; a put an entry where that does not go smoothly; 2 MiB beside the image.
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

/* What the readers of frames have in common; each false says in the fault what is wrong. */
#define GB_LOAD_FRAME ((uint64_t)sizeof(struct gb_snap_frame))
bool gb_load_wrong(struct gb_load_fault *f, const char *rule, uint64_t at);
/* No memory: says nothing about the file. */
bool gb_load_short(struct gb_load_fault *f, uint64_t at);
/* Exactly n bytes; the file was long enough when it was opened. */
bool gb_load_bytes(int fd, void *to, uint64_t n, uint64_t at, struct gb_load_fault *f);
/* A frame's head, whose 32 bytes are there; its payload ends before the index. */
bool gb_load_frame_right(const struct gb_snap_head *h, const struct gb_snap_frame *x, uint64_t at, uint32_t number,
                         struct gb_load_fault *f);
bool gb_load_sum_right(const struct gb_snap_head *h, const struct gb_snap_frame *x, const uint8_t *payload);
/* A record, all of it in [at, at + left), as this release could have written it; else the broken rule. */
const char *gb_load_record(const uint8_t *at, uint64_t left, struct gb_snap_record *r);
/* Every record of a frame. */
bool gb_load_records_right(const struct gb_snap_frame *x, const uint8_t *payload, uint64_t at, struct gb_load_fault *f);
static inline uint64_t gb_load_about(const struct gb_snap_head *h) { return h->id[0] ^ h->id[1]; }

bool gb_load_head(int fd, uint64_t length, struct gb_snap_head *h, struct gb_load_fault *f);

struct gb_loader {
    int fd;
    struct gb_snap_head head;
    struct gb_load_fault fault;
    struct gb_store *store; /* NULL: it is gone, and gb_load_end is all that follows */
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
    struct gb_pair *pair; /* who does most of it */
    bool done;
};

/* `head` was checked. False: no memory. */
bool gb_load_begin(struct gb_loader *l, int fd, const struct gb_snap_head *head, struct gb_store *store,
                     uint64_t now, int64_t wall);
/* Some frames more, without the GIL; false: the fault says what is wrong. l->done: it is all there. */
bool gb_load_run(struct gb_loader *l, uint32_t ms);
void gb_load_end(struct gb_loader *l);

#endif
