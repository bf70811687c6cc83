/* _memo.h - the call of a memoized function, against the C API.
 *
 * WHAT      A memo is callable: it makes a key of its arguments as functools.lru_cache does, looks it
 *           up in an ObjectStore, and only on a miss does Python hear of it: `fill(store, key, call, ttl,
 *           stale)`, or `memo._shared(key, call)` where the results lie in a cache it was given. A bound
 *           memo is a memo and an instance, whose own results lie in a holder in the instance's __dict__,
 *           so that the collector sees them as the instance's.
 *
 * PICTURE   memo(3) -> key 3 -> memo.store -> value
 *           obj.memo(3) -> bound -> obj.__dict__[memo.slot] -> holder.store -> value
 *
 * INVARIANT 1 a holder is used by the very instance it was made for: a copied __dict__ brings along one
 *             that names another.
 *           2 whatever a key's == does, the store that is being looked through stays alive.
 *
 * COST      a hit: a look-up and, but for a single int or str, a tuple.
 *
 * NOT HERE  options, the functools face, what happens on a miss (memoize.py, flight.py).
 */
#ifndef GB_MEMO_H
#define GB_MEMO_H

#include "_once.h"
#include "_quick.h"

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *wrapped, *store; /* the function, and its ObjectStore; None: `_shared` knows */
    PyObject *key;             /* makes a key of the arguments; None: as functools does */
    PyObject *names;           /* a set: arguments the key leaves out; None: it has them all */
    PyObject *slot;            /* a str: what an instance keeps its holder under */
    PyObject *ttl, *stale;     /* as fill takes them */
    PyObject *fill, *ready;    /* flight.fill or afill; makes a value awaitable, or None */
    PyObject *owners;          /* weak references to the classes it lies in; NULL: it lies in none. Set alone */
    PyObject *dict, *weak;
    uint64_t places; /* bits: positions the key leaves out */
    bool typed;
    bool lone; /* a call of one int or str needs no thought */
    bool free;   /* nothing is kept, so that instances share nothing */
} gb_memo;
extern PyTypeObject *gb_memo_store; /* ObjectStore */

/* Makes the types ready and puts Memo and Holder into the module; `store` is ObjectStore. */
int gb_memo_install(PyObject *module, PyTypeObject *store);
/* A new reference to the key, or to a once of it: what the way through a flight uses. */
PyObject *gb_memo_name(PyObject *key);
bool gb_memo_is(PyObject *memo);
/* A call whose results are the instance's own. */
PyObject *gb_memo_on(const gb_memo *m, PyObject *self, PyObject *const *args, Py_ssize_t n,
                     PyObject *kwnames);

#endif
