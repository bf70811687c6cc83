/* list.h - a circular doubly linked list of refs threaded through entries.
 *
 * WHAT      A node is a `gb_link` on a granule of the image; a list is a link of its own, the head,
 *           whose next is the front. Refs name links, not entries: whoever threads a list knows how
 *           far its link lies inside its entry.
 *
 * PICTURE     head <-> front <-> ... <-> back <-> head      an empty list: the head names itself
 *
 * INVARIANT 1 for every link l: next(l).prev == l and prev(l).next == l.
 *           2 following next from the head comes back to the head: also between any two stores of
 *             link, unlink and moved, so that a killed process leaves the list readable forward.
 *
 * COST      every verb touches at most two neighbours.
 *
 * NOT HERE  entries, order, deadlines, counts.
 */
#ifndef GB_LIST_H
#define GB_LIST_H

#include "base.h"

static inline struct gb_link *gb_list_at(uint8_t *base, gb_ref link) {
    return (struct gb_link *)gb_at(base, link);
}

static inline void gb_list_format(uint8_t *base, gb_ref head) {
    struct gb_link *h = gb_list_at(base, head);
    h->prev = head;
    h->next = head;
}

static inline bool gb_list_empty(uint8_t *base, gb_ref head) {
    return gb_list_at(base, head)->next == head;
}

/* Puts `link` right behind `where` (a head, or a member). */
static inline void gb_list_link(uint8_t *base, gb_ref where, gb_ref link) {
    struct gb_link *w = gb_list_at(base, where), *l = gb_list_at(base, link);
    gb_ref after = w->next;
    l->prev = where;
    l->next = after;
    GB_ORDER();
    w->next = link;
    GB_ORDER();
    gb_list_at(base, after)->prev = link;
}

static inline void gb_list_unlink(uint8_t *base, gb_ref link) {
    struct gb_link *l = gb_list_at(base, link);
    gb_list_at(base, l->prev)->next = l->next;
    GB_ORDER();
    gb_list_at(base, l->next)->prev = l->prev;
#if GB_DEBUG >= 1
    l->prev = l->next = 0; /* a second unlink would trap on the head's own granule */
#endif
}

/* A member was copied to `to`, links and all: make the neighbours name the new place. */
static inline void gb_list_moved(uint8_t *base, gb_ref to) {
    struct gb_link *l = gb_list_at(base, to);
    gb_list_at(base, l->prev)->next = to;
    GB_ORDER();
    gb_list_at(base, l->next)->prev = to;
}

/* Walks the whole list; in a broken image `end` bounds the refs and `limit` their number. Deep checks only. */
static inline bool gb_list_check(uint8_t *base, gb_ref head, gb_ref end, uint64_t limit, uint64_t *count,
                                 struct gb_fault *f) {
    gb_ref at = head;
    for (uint64_t n = 0; n <= limit; n++) {
        gb_ref next = gb_list_at(base, at)->next;
        if (!next || next >= end)
            return gb_broken(f, "list 1: next(l).prev == l", at, at, next);
        if (gb_list_at(base, next)->prev != at)
            return gb_broken(f, "list 1: next(l).prev == l", at, at, gb_list_at(base, next)->prev);
        at = next;
        if (at == head) {
            *count = n;
            return true;
        }
    }
    return gb_broken(f, "list 2: following next comes back to the head", head, limit, limit + 1);
}

#endif
