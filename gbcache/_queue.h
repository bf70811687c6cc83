/* _queue.h - what an ObjectStore remembers of its changes, for those who want to be told.
 *
 * WHAT      A record is a change: its kind and time, and references of its own to key, value and old value.
 *           It lies in one of `room` slots, which are there before the first is recorded; the newest takes
 *           the slot of the oldest. Records are numbered from 1 without a gap, so a cursor, which knows the
 *           number it wants next, knows how many it missed. The queue belongs to its store, which holds it
 *           as long as it has cursors, also when the store is closed.
 *
 * PICTURE   slots     0     1     2     3     4     5          room 6, kept 6, last 9
 *                  +-----+-----+-----+-----+-----+-----+
 *                  |  7  |  8  |  9  |  4  |  5  |  6  |
 *                  +-----+-----+-----+-----+-----+-----+
 *                                       ^ next: 10 will lie here
 *
 * INVARIANT 1 the newest `kept` records, up to number `last`, are in the slots before `next`; every other
 *             slot holds nothing.
 *           2 what records refer to is shown to the collector by the store, each reference once, but for
 *             records of nothing that could be part of a cycle.
 *
 * COST      push: a slot; nothing is allocated, no Python code runs. pull: a record looked at, an Event made.
 *           Slots are 32 bytes each.
 *
 * NOT HERE  when something is recorded (_refs, _put), who is subscribed (notify.py).
 */
#ifndef GB_QUEUE_H
#define GB_QUEUE_H

#include "_clock.h" /* first: Python.h chooses what the system headers declare */

#include "_bell.h"
#include "_event.h"

struct gb_queue_record {
    PyObject *key, *value; /* NULL: there is none, or nobody asked */
    union {
        PyObject *old;
        uint64_t count; /* of a wide one */
    };
    uint64_t when; /* ms << 8 | GB_QUEUE_SEEN | kind */
};
struct gb_queue {
    struct gb_queue_record *all; /* NULL: nobody has listened yet */
    uint64_t room, next, kept, last;
    uint32_t cursors;
    bool values;    /* records hold values and old ones */
    PyObject *hear; /* called after what was recorded; NULL: nobody */
    struct gb_bells bells;
};
struct gb_queue_cursor {
    uint64_t wanted;  /* number of the first event not yet delivered, passed over or told lost */
    uint32_t kinds;   /* a bit for each gb_event */
    bool values;
    PyObject *prefix; /* borrowed; an exact str or bytes, NULL: any key */
};
#define GB_QUEUE_SEEN 128u /* it holds what the collector has to see */
#define GB_QUEUE_GONE 3u /* references that a record holds, at most */

/* Without slots. NULL with an exception. */
struct gb_queue *gb_queue_new(void);
/* Gives it slots, once. -1 with an exception. */
int gb_queue_open(struct gb_queue *q, uint64_t room);
/* Lets go of everything; it is sound at every moment of that. Cursors will be told what they lost. */
void gb_queue_empty(struct gb_queue *q);
void gb_queue_free(struct gb_queue *q);
/* A new record, with references of its own; runs nothing. `gone`: what the overwritten one held, to be
 * released (or NULL). The count of a wide event is the caller's to write. */
void gb_queue_push(struct gb_queue *q, uint32_t kind, uint64_t at, PyObject *key, PyObject *value,
                   PyObject *old, PyObject *gone[GB_QUEUE_GONE]);
/* Rings the bells and calls who hears; a pending exception stays. The queue may be gone afterwards. */
void gb_queue_tell(struct gb_queue *q);
/* NULL: nobody. May run anything. */
void gb_queue_hear(struct gb_queue *q, PyObject *fn);
/* A list of `most` Events at most; a `lost` is always its first. NULL with an exception: nothing was
 * delivered. May run anything between two records; whoever calls holds the store. */
PyObject *gb_queue_pull(const struct gb_queue *q, struct gb_queue_cursor *c, const struct gb_clock *clock,
                        Py_ssize_t most);
int gb_queue_traverse(const struct gb_queue *q, visitproc visit, void *arg);
uint64_t gb_queue_bytes(const struct gb_queue *q);
bool gb_queue_check(const struct gb_queue *q, struct gb_fault *f);
/* The last record, if any was pushed. */
static inline struct gb_queue_record *gb_queue_newest(struct gb_queue *q) {
    return &q->all[(q->next ? q->next : q->room) - 1u];
}
/* Number of the oldest record there is, or of the next. */
static inline uint64_t gb_queue_first(const struct gb_queue *q) { return q->last - q->kept + 1u; }

#endif
