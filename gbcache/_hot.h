/* _hot.h - the methods that are called a million times a second, against the C API.
 *
 * WHAT      get, set, add, get_many, set_many, delete_many with METH_FASTCALL, and what the slots of
 *           `cache[key]` need. Cython's wrapper of a method with a default costs 16 ns a call, one of
 *           these 10. They are put into PackedStore's dict when the module is made.
 *
 * NOT HERE  rare verbs (_packed.pyx), conversions (_box), the lock (_door).
 */
#ifndef GB_HOT_H
#define GB_HOT_H

#include "_args.h"
#include "_box.h"

typedef struct gb_door_store gb_hot_store;

enum gb_hot_how {
    GB_HOT_READ, /* counts as use, and in the stats */
    GB_HOT_PEEK, /* leaves no trace */
    GB_HOT_STALE, /* counts as use; also past the deadline, while the value is kept */
    GB_HOT_KEPT,  /* the same, and leaves no trace */
    GB_HOT_TAKE  /* removes it too */
};

/* Brings the lines that moving an entry to the front will write; they are apart from its own. */
GB_FETCHES void gb_hot_prefetch(const struct gb_store *s, gb_ref ref) {
    const struct gb_link *l = &gb_entry_at(s->base, ref)->lru;
    __builtin_prefetch(gb_list_at(s->base, l->prev), 1);
    __builtin_prefetch(gb_list_at(s->base, l->next), 1);
}

/* Entered: what a hit changes. */
static inline void gb_hot_after(struct gb_door *d, gb_ref ref, uint64_t now, enum gb_hot_how how) {
    struct gb_store *s = &d->store;
    if (how == GB_HOT_PEEK || how == GB_HOT_KEPT) return;
    if (how == GB_HOT_STALE) {
        gb_index_use(&s->index, ref); /* its deadline does not slide */
        s->head->counters.stale_hits++;
        return;
    }
    s->head->counters.hits++;
    if (how == GB_HOT_READ) gb_store_use(s, ref, now);
    else gb_room_remove(s, ref, GB_CAUSE_DELETE);
}

/* -1 with an exception. */
int gb_hot_install(PyTypeObject *type, size_t basic_size);
/* A new reference; NULL with an exception, or without one for a miss. */
PyObject *gb_hot_read(struct gb_door *d, PyObject *key, enum gb_hot_how how);
/* cache[key]: a miss asks the type's __missing__, then raises KeyError. */
PyObject *gb_hot_item(PyObject *self, PyObject *key);
/* 1 written, 0 there already (add), -1 exception. `ttl` NULL: the cache's own. */
int gb_hot_write(struct gb_door *d, PyObject *key, PyObject *value, PyObject *ttl, bool add);
/* The end of a flight: 1 written, 0 voided by `mark`, -1 exception. `stale`: ms. `over`: also over
 * what is there; without it a later write stays. */
int gb_hot_land(struct gb_door *d, PyObject *key, PyObject *value, PyObject *ttl, PyObject *mark,
                uint32_t stale, bool over);
/* 1 removed, 0 was not there, -1 exception. */
int gb_hot_remove(struct gb_door *d, PyObject *key, enum gb_cause cause);
/* 1 there, 0 not, -1 exception. No use, no stats. */
int gb_hot_has(struct gb_door *d, PyObject *key);
/* gb_args_void, alone with the store. */
bool gb_hot_void_slow(struct gb_door *d, PyObject *key);
static inline bool gb_hot_void(struct gb_door *d, PyObject *key) {
    return GB_LIKELY(!d->flights || !PyDict_GET_SIZE(d->flights)) || gb_hot_void_slow(d, key);
}
/* Fills in the deadline of a write at `now` with a TTL of `ttl` ms. */
void gb_hot_times(struct gb_door *d, struct gb_put *p, uint64_t now, uint64_t ttl);
/* After a write with a deadline: the first one calls the housekeeper. -1 with an exception. */
int gb_hot_timed_first(struct gb_door *d);
static inline int gb_hot_timed(struct gb_door *d) {
    return GB_LIKELY(!GB_LOAD(d->keep)) ? 0 : gb_hot_timed_first(d);
}
#endif
