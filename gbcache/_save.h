/* _save.h - a snapshot written to a file while the cache goes on.
 *
 * WHAT      A saver is one save: the moment (snap), the frames being filled, the index of the file, the
 *           place in it. It runs without the GIL, in the thread that calls it, a hold of the lock at a time.
 *           Where late frames are nearly all full, who comes to the door writes one out himself.
 *
 * PICTURE   lock: step, take a place in the file -> without it: sum, pwrite, into the index -> lock: ...
 *
 * INVARIANT 1 while a saver lives the door counts an outsider, so that everyone takes the lock.
 *           2 places in the file are given out under the lock, late frames' in the order they were filled.
 *           3 an error is kept, once, and the save comes to its end as quickly as it can.
 *
 * COST      memory: 4 MiB of frames, 5.4 bytes an entry for the index, 1/128 of the image for bits.
 *
 * NOT HERE  opening, syncing and renaming files (snapshot.py), reading them (_load).
 */
#ifndef GB_SAVE_H
#define GB_SAVE_H

#include "_door.h"
#include "snap.h"

struct gb_saver {
    struct gb_snap snap;
    struct gb_door *door;
    int fd;
    int error;         /* errno of the first call that failed; 0: none */
    unsigned long by;  /* the thread that works at it */
    bool closed, done; /* closed: by its owner, meanwhile */
    struct gb_keep_frame main;
    uint8_t *frames; /* of main and the late ones, touched beforehand */
    uint32_t *index;
    uint64_t slots;
    uint64_t end; /* of what was given out of the file */
    uint32_t number;
    uint64_t long_at, long_left; /* of a long frame: its place, and how much is to come */
    struct gb_snap_frame long_head;
    struct gb_sum long_sum;
    struct gb_snap_head head;
    struct gb_lock filing; /* the index, and `error` */
    uint32_t helping;      /* threads that write late frames; under the door's lock */
};

/* What the file says of the cache beside what the image says. */
struct gb_save_words {
    uint64_t max_bytes;
    int64_t wall; /* of the image's ms 0 */
    uint64_t id[2];
    const char *codec;
};

/* Fixes the moment. With the GIL. NULL with an exception: MemoryError, RuntimeError (another save), ClosedError. */
struct gb_saver *gb_save_begin(struct gb_door *d, int fd, const struct gb_save_words *words);
/* Works for about `ms`, without the GIL; true: it is done, well or not. */
bool gb_save_run(struct gb_saver *v, uint32_t ms);
/* Index and head: what makes a file of it. False: v->error. Without the GIL, after run. */
bool gb_save_finish(struct gb_saver *v);
/* Whether this thread is in the midst of it, called back. */
bool gb_save_by(const struct gb_saver *v, unsigned long thread);
/* The cache is closed by the thread that saves it: run says it is done then, and finish that it is closed. */
void gb_save_leave(struct gb_saver *v);
/* With the GIL; in a forked child (`orphan`) too, where no other thread is. */
void gb_save_end(struct gb_saver *v);
/* Of the door, holding the lock, which it gives back and takes again: late frames are nearly all full. */
void gb_save_help(struct gb_saver *v);
uint64_t gb_save_bytes(const struct gb_saver *v);
/* Writes all of it, however often it takes. False: errno says why. */
bool gb_save_all(int fd, const void *bytes, size_t n, uint64_t at);

#endif
