/* _verbs.h - the compound verbs: each one entry looked at, or changed, in one hold.
 *
 * WHAT      look (ttl, entry), touch, incr, and the oldest key (popitem).
 *
 * NOT HERE  the verbs that read or write a whole value (_hot).
 */
#ifndef GB_VERBS_H
#define GB_VERBS_H

#include "_hot.h"

struct gb_verbs_seen {
    uint64_t due, now, idle; /* ms; due and idle 0 for none */
    uint32_t key_bytes, value_bytes;
};

/* -1 with KeyError where the key is absent or due. No use, no stats. */
int gb_verbs_look(struct gb_door *d, PyObject *key, struct gb_verbs_seen *seen);
/* 1 touched, 0 absent, -1 exception. `ttl` NULL: the cache's own. */
int gb_verbs_touch(struct gb_door *d, PyObject *key, PyObject *ttl);
/* -1 with TypeError (no int), OverflowError, BudgetError; the value is then as it was. */
int gb_verbs_incr(struct gb_door *d, PyObject *key, long long delta, long long initial,
                  long long *total);
/* The key of the least recently used entry; KeyError if there is none. */
PyObject *gb_verbs_oldest(struct gb_door *d);
#endif
