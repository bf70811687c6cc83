/* ring.h - a bounded byte log of change events, which readers pull.
 *
 * WHAT      An event is a change of one key (or of every key: a wide one), numbered from 1 on. A
 *           record is an event's header and bytes in the span, which is one run of granules that the
 *           owner hands over; the newest record overwrites the oldest ones. A count is a number of
 *           bytes ever written, fillers too; its place in the span is its distance from the count at
 *           which its lap began. head is the count behind the newest record, tail the one before the
 *           oldest. A cursor is a reader's place, process-local; the event it wants next has a number,
 *           so that a gap tells exactly how many were lost.
 *
 * PICTURE   a record: the header, then key, value and old value, then zeros to the next granule
 *
 *             0     2     4    5    6     7   8     16   24          28        32
 *            +-----+-----+----+----+-----+---+-----+----+-----------+---------+-----+-------+-----+-+
 *            |gran.|klen |kind|key |value|old| seq | at | value len | old len | key | value | old |0|
 *            +-----+-----+----+----+-----+---+-----+----+-----------+---------+-----+-------+-----+-+
 *              key: its type             \___ state * 16 + type     \__ or: count, 64 bit
 *
 *           the span: a record never wraps; where one does not fit the rest, a filler (granules and
 *           kind alone) takes that, and the record comes first in the next lap
 *
 *             0                 head            tail                              length
 *            +--------+--------+- - - - - - - -+--------+--------+--------+------+
 *            |        | newest |   given up    | oldest |        |        |filler|
 *            +--------+--------+- - - - - - - -+--------+--------+--------+------+
 *
 *           A kill: two words say what is there. `last` is where the newest record lies, and that tells
 *           head and the next number; `tail` is where the oldest lies, and that tells the first number.
 *           Each changes by one store, tail before a byte of what it gives up is overwritten, last after
 *           the new record's last byte. So between any two stores all of this holds:
 *
 * INVARIANT 1 the span has GB_RING_LEAST granules or more; born is 1 or more.
 *           2 tail <= last < tail + length; lap, a number of whole lengths, is at most a length above
 *             tail and last less than a length above lap; all are whole granules, below 2^62. In an
 *             empty ring last is GB_RING_NOWHERE, tail and lap are 0.
 *           3 the records from tail on meet last exactly, and the newest ends within tail + length;
 *             none crosses the span's end or is longer than gb_ring_most.
 *           4 a filler ends where the span does, and a record follows it.
 *           5 a record is of a known kind, and as long as its lengths and states say; what is not
 *             there has no length, a wide event has a count alone; the rest of its granules is zero.
 *           6 the records are numbered without a gap; no number is below born or has reached 2^62.
 *
 * COST      begin, commit: the bytes brought (9 ns for a short event, 138 instructions in a full
 *           ring). A step is a window (4 KiB) of bytes begun, written or given up: two for a short
 *           event, GB_RING_STEPS at most. pull: a step is a window of bytes walked over or copied; a
 *           record is at most GB_RING_LONGEST of them.
 *
 * NOT HERE  entries, blocks, what a key means, who is subscribed, whether bytes are too many to be
 *           worth recording, and whether [at, at + granules) lies in the image: the owner knows it.
 */
#ifndef GB_RING_H
#define GB_RING_H

#include "base.h"

/* X(name, help): what may happen to a key. "lost" is made by readers and never recorded. */
#define GB_EVENT_KINDS(X)                                                                          \
    X(SET, "a value was written where there was none")                                             \
    X(REPLACE, "a value was written over an old one")                                              \
    X(TOUCH, "a deadline was set anew, the value is the same")                                     \
    X(DELETE, "an entry was removed by request")                                                   \
    X(EXPIRE, "an entry was removed because it was due")                                           \
    X(EVICT, "an entry was removed to make room")                                                  \
    X(CLEAR, "everything was removed at once; count: how many entries")                            \
    X(REJECT, "a value was refused because it can never fit; the old one stays")                   \
    X(INVALIDATE, "an entry was removed because it changed elsewhere")                             \
    X(RECOVER, "the cache is not what it was before it stopped; count: how many entries are left")
#define GB_EVENT(name, help) GB_EVENT_##name,
enum gb_event { GB_EVENT_KINDS(GB_EVENT) GB_EVENTS };
#undef GB_EVENT
#define GB_EVENTS_ALL ((1u << GB_EVENTS) - 1u)

/* Whether the value's or old value's bytes are in the record. Its length is told in any case. */
enum gb_ring_state {
    GB_RING_NONE,    /* there is no such value */
    GB_RING_HELD,    /* the bytes follow */
    GB_RING_UNASKED, /* nobody wanted them */
    GB_RING_OMITTED, /* too many to record */
    GB_RING_STATES
};

#define GB_RING_LEAST 16u  /* granules: a quarter holds a bare header */
#define GB_RING_LONGEST 3u /* windows: a key, a value and an old one */
#define GB_RING_RECORD_MAX (GB_RING_LONGEST * GB_WINDOW_BYTES)
#define GB_RING_STEPS (4u * GB_RING_LONGEST) /* of one begin: a quarter written, the rest given up */

/* An event, as it is recorded and read. The writer leaves granules and seq to the ring. */
struct gb_ring_record {
    uint16_t granules;  /* of the record */
    uint16_t key_len;
    uint8_t kind;       /* enum gb_event */
    uint8_t key_type;   /* 0..3 */
    uint8_t value, old; /* gb_ring_tag; 0: there is none */
    uint64_t seq;
    uint64_t at; /* ms */
    union {
        struct {
            uint32_t value_len, old_len; /* true ones, whether the bytes are held or not */
        };
        uint64_t count; /* of a wide event, which has no key, value or old value */
    };
};
struct gb_ring_root {
    gb_ref at, granules; /* the span */
    uint64_t born;       /* number of the first event since the format: tells this ring's cursors */
    uint64_t lap;        /* a count that lies at the span's start, so that no place needs a division */
    uint64_t tail;       /* where the oldest record begins, or a filler before it */
    uint64_t last;       /* where the newest record begins: the commit point */
    uint64_t begun;      /* where the one being written begins: nothing reads it but its commit */
};
#define GB_RING_NOWHERE UINT64_MAX
_Static_assert(sizeof(struct gb_ring_record) == 32, "an event costs 32 bytes beyond its own");
_Static_assert(offsetof(struct gb_ring_record, count) == 24, "the count lies over the two lengths");
_Static_assert(sizeof(struct gb_ring_root) == 48, "the root is 48 bytes");
_Static_assert(GB_EVENTS < 32, "a filter has a bit for each kind");
_Static_assert(GB_RING_RECORD_MAX < 1u << 16, "key_len and granules have sixteen bits");
_Static_assert(offsetof(struct gb_ring_record, seq) == GB_GRANULE, "a filler is a granule at least");
_Static_assert(GB_RING_LEAST / 4u * GB_GRANULE >= sizeof(struct gb_ring_record), "a header fits");

struct gb_ring {
    uint8_t *base;
    struct gb_ring_root *root;
};

/* Valid for a ring of any format, if each format was given a number no lower than all before. */
struct gb_ring_cursor {
    uint64_t pos;    /* where to look */
    uint64_t wanted; /* number of the first event not yet delivered, passed over or told lost */
    uint64_t born;   /* of the ring pos belongs to */
};
struct gb_ring_filter {
    uint32_t kinds; /* a bit for each gb_event */
    uint32_t prefix_len;
    const uint8_t *prefix;
    int32_t prefix_type; /* of the key; -1: any key */
    bool values;         /* or without the bytes of values */
};

/* An empty ring; its first event will be number `seq`, 1 or more. Nothing of the span is read or
 * written. If there was a ring before, `seq` is its gb_ring_next: cursors then tell what was lost. */
void gb_ring_format(struct gb_ring *r, gb_ref at, gb_ref granules, uint64_t seq);
/* Makes room and returns where the held bytes go: key, value, old value, one after the other. NULL, and
 * nothing changed, if the record is longer than gb_ring_most. The event is not there before the commit;
 * another begin in place of the commit drops it. */
uint8_t *gb_ring_begin(struct gb_ring *r, const struct gb_ring_record *e, struct gb_work *work);
void gb_ring_commit(struct gb_ring *r);

/* A cursor on what comes from now on; or on the events with a number above `seq`. */
void gb_ring_newest(const struct gb_ring *r, struct gb_ring_cursor *c);
void gb_ring_since(const struct gb_ring *r, struct gb_ring_cursor *c, uint64_t seq);
/* Copies records that pass the filter to `to` (aligned to 8), in order and whole, and returns the
 * bytes copied. Ends at the head, at the first record that does not fit what is left of `room`, or
 * before work->steps would exceed `steps_max`. The caller's duty: `room` of GB_RING_RECORD_MAX and
 * GB_RING_LONGEST steps to go, or a long record is never passed. *lost: events that were overwritten
 * before this cursor came to them, asked for or not, each told once. *more: not all was looked at.
 * A wide event concerns every key, so it passes every prefix. */
uint32_t gb_ring_pull(const struct gb_ring *r, struct gb_ring_cursor *c,
                      const struct gb_ring_filter *f, uint8_t *to, uint32_t room,
                      struct gb_work *work, uint32_t steps_max, uint64_t *lost, bool *more);
/* Any bytes may stand in the root and the span, but at and granules must lie in the image. */
bool gb_ring_check(const struct gb_ring *r, struct gb_fault *f);

/* Number of the oldest event kept, or of the next. */
uint64_t gb_ring_first(const struct gb_ring *r);

static inline uint64_t gb_ring_length(const struct gb_ring *r) {
    return (uint64_t)r->root->granules * GB_GRANULE;
}
/* The place of a count that is in the lap, or in the one before. */
static inline uint64_t gb_ring_spot(const struct gb_ring *r, uint64_t count) {
    uint64_t lap = r->root->lap;
    return count >= lap ? count - lap : count + gb_ring_length(r) - lap;
}
static inline struct gb_ring_record *gb_ring_in(const struct gb_ring *r, uint64_t spot) {
    return (struct gb_ring_record *)(void *)((uint8_t *)gb_at(r->base, r->root->at) + spot);
}
/* The number the next event gets. */
static inline uint64_t gb_ring_next(const struct gb_ring *r) {
    uint64_t last = r->root->last;
    return last == GB_RING_NOWHERE ? r->root->born : gb_ring_in(r, gb_ring_spot(r, last))->seq + 1u;
}
/* Whether a pull may have something to tell. */
static inline bool gb_ring_pending(const struct gb_ring *r, const struct gb_ring_cursor *c) {
    return c->wanted < gb_ring_next(r);
}
/* The longest record, in bytes. */
static inline uint32_t gb_ring_most(const struct gb_ring *r) {
    uint64_t quarter = (uint64_t)(r->root->granules / 4u) * GB_GRANULE;
    return quarter < GB_RING_RECORD_MAX ? (uint32_t)quarter : GB_RING_RECORD_MAX;
}
static inline bool gb_ring_wide(uint32_t kind) {
    return kind == GB_EVENT_CLEAR || kind == GB_EVENT_RECOVER;
}
/* For e->value or e->old: a value's type (0..7), and where its bytes are. */
static inline uint8_t gb_ring_tag(enum gb_ring_state state, uint32_t type) {
    return (uint8_t)((uint32_t)state << 4 | type);
}

/* Reading what was pulled: the next record is gb_ring_size further on. */
static inline const struct gb_ring_record *gb_ring_record_at(const uint8_t *to) {
    return (const struct gb_ring_record *)(const void *)to;
}
static inline uint32_t gb_ring_size(const struct gb_ring_record *e) {
    return e->granules * GB_GRANULE;
}
static inline uint32_t gb_ring_type(uint8_t tag) { return tag & 15u; } /* of e->value or e->old */
static inline enum gb_ring_state gb_ring_state(uint8_t tag) {
    return (enum gb_ring_state)(tag >> 4);
}
static inline const uint8_t *gb_ring_key(const struct gb_ring_record *e) {
    return (const uint8_t *)e + sizeof *e;
}
/* NULL unless the state is HELD, so that nobody reads what is not there. */
static inline const uint8_t *gb_ring_value(const struct gb_ring_record *e) {
    return gb_ring_state(e->value) == GB_RING_HELD ? gb_ring_key(e) + e->key_len : NULL;
}
static inline const uint8_t *gb_ring_old(const struct gb_ring_record *e) {
    uint32_t before = gb_ring_state(e->value) == GB_RING_HELD ? e->value_len : 0u;
    return gb_ring_state(e->old) == GB_RING_HELD ? gb_ring_key(e) + e->key_len + before : NULL;
}

#endif
