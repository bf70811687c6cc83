/* tell.h - what is told of a change, and how it gets into the ring.
 *
 * WHAT      Every change is told once, in the hold that makes it, where somebody listens to its kind. A
 *           key's bytes go along; those of values only if asked for, and only up to GB_TELL_VALUE_MAX:
 *           a longer one is OMITTED, and so is the old value where both do not fit one record. While
 *           nobody listens nothing is written, and a change pays one test.
 *
 * PICTURE   room.remove, store.admit, store.retime, room.clear, chain.begin
 *                   \______ gb_tell(kind, entry, value, old) ______/
 *                                       |
 *                              ring: begin, bytes, commit
 *
 * INVARIANT 1 an event is recorded in the hold that makes the change, before the lock is given back.
 *           2 the half of a replace that removes, and a clear's entries, tell nothing of their own.
 *
 * COST      one test while nobody listens. Else the bytes, at most GB_TELL_STEPS steps.
 *
 * NOT HERE  who is told (the binding), where the ring lies (room).
 */
#ifndef GB_TELL_H
#define GB_TELL_H

#include "head.h"

#define GB_TELL_VALUE_MAX (2u * GB_WINDOW_BYTES - 64u)
#define GB_TELL_STEPS 24u /* a record written, three times as much given up, the extents of its values */
#define GB_TELL_SHORT 6u  /* the same where no values are recorded */
/* The smallest ring: any key's event fits a quarter of it. */
#define GB_TELL_LEAST (4u * (GB_BLOCK_MAX + 4u))

/* `entry` has the key; `value` and `old` are entries whose values are the new one and the one that goes;
 * 0: there is none. Where it is recorded decides s->listens. */
void gb_tell_entry(struct gb_store *s, enum gb_event kind, gb_ref entry, gb_ref value, gb_ref old);
/* An event of a key that has no entry. */
void gb_tell_key(struct gb_store *s, enum gb_event kind, const void *bytes, uint32_t len, uint32_t type);
void gb_tell_count(struct gb_store *s, enum gb_event kind, uint64_t count);

static inline void gb_tell(struct gb_store *s, enum gb_event kind, gb_ref entry, gb_ref value,
                           gb_ref old) {
    if (GB_UNLIKELY(GB_HEAD_LISTENS(s) & 1u << kind)) gb_tell_entry(s, kind, entry, value, old);
}

#endif
