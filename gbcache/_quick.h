/* _quick.h - ObjectStore's methods that are called a million times a second, against the C API.
 *
 * WHAT      get, set, add, get_many, set_many, delete_many with METH_FASTCALL, and what the slots and
 *           the rare verbs of _object.pyx need. Every step that may run Python code (hash, ==, clock,
 *           ttl, weigh, a destructor) lies outside the changes to the index.
 *
 *           Each is alone with its store, but for those that say that their caller is.
 *
 * NOT HERE  the structure (_refs), rare verbs (_object.pyx).
 */
#ifndef GB_QUICK_H
#define GB_QUICK_H

#include "_args.h"
#include "_put.h"

typedef struct {
    PyObject_HEAD
    struct gb_refs refs; /* ObjectStore's first field: gb_quick_install checks that it is */
} gb_quick_store;

static inline PyObject *gb_quick_self(struct gb_refs *r) {
    return (PyObject *)(void *)((char *)r - offsetof(gb_quick_store, refs));
}

enum gb_quick_how {
    GB_QUICK_READ, /* counts as use, and in the stats */
    GB_QUICK_PEEK, /* leaves no trace */
    GB_QUICK_STALE, /* counts as use; also past the deadline, while the value is kept */
    GB_QUICK_KEPT, /* the same, and leaves no trace */
    GB_QUICK_TOUCH, /* no read: it is not counted as one */
    GB_QUICK_TAKE   /* removes it too */
};
/* What is known of an entry; `due` 0: never. */
struct gb_quick_seen {
    uint64_t due, now, weight;
    uint32_t idle;
};

/* Puts the methods into the type, and shows the collector what the entries hold. -1: exception. */
int gb_quick_install(PyTypeObject *type, size_t basic_size);
/* A new reference; NULL with an exception, or without one for a miss. */
PyObject *gb_quick_read_in(struct gb_refs *r, PyObject *key, enum gb_quick_how how); /* is alone already */
static inline PyObject *gb_quick_read(struct gb_refs *r, PyObject *key, enum gb_quick_how how) {
    GB_ALONE(gb_quick_self(r));
    return gb_quick_read_in(r, key, how);
}
/* A read of a key whose mixed hash is known. */
PyObject *gb_quick_read_hashed(struct gb_refs *r, PyObject *key, uint64_t hash);
/* A hit that runs no Python code: by identity, or by an equal int or str. Else NULL, and nothing has
 * happened: the long way tells. */
PyObject *gb_quick_hit(struct gb_refs *r, PyObject *key, uint64_t hash);
/* cache[key]: a miss asks the type's __missing__, then raises KeyError. */
PyObject *gb_quick_item(PyObject *self, PyObject *key);
/* 1 written, 0 there already (add), -1 exception. `ttl` NULL: the cache's own. */
int gb_quick_write(struct gb_refs *r, PyObject *key, PyObject *value, PyObject *ttl, bool add);
/* The end of a flight: 1 written, 0 voided by `mark`, -1 exception. `stale`: ms. `over`: also over
 * what is there; without it a later write stays. */
int gb_quick_land(struct gb_refs *r, PyObject *key, PyObject *value, PyObject *ttl, PyObject *mark,
                  uint32_t stale, bool over);
/* 1 removed, 0 was not there, -1 exception. */
int gb_quick_remove(struct gb_refs *r, PyObject *key, enum gb_cause cause);
/* 1 there, 0 not, -1 exception. No use, no stats. */
int gb_quick_look(struct gb_refs *r, PyObject *key, struct gb_quick_seen *seen);
int gb_quick_touch(struct gb_refs *r, PyObject *key, PyObject *ttl);
/* The sum, a new reference; NULL with an exception. */
PyObject *gb_quick_incr(struct gb_refs *r, PyObject *key, PyObject *delta, PyObject *initial);
/* The least recently used that is not due, taken out, as a tuple; KeyError if there is none. */
PyObject *gb_quick_oldest(struct gb_refs *r);

#endif
