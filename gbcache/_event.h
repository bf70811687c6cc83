/* _event.h - an Event as Python sees it, made from C; and the call of who hears at once.
 *
 * WHAT      Event is a NamedTuple of events.py; here it is filled in without calling it. To be made
 *           outside every lock: it may run the collector.
 *
 * NOT HERE  where events are kept (ring, _queue), who is told (notify.py).
 */
#ifndef GB_EVENT_H
#define GB_EVENT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "ring.h"

#define GB_EVENT_LOST ((uint32_t)GB_EVENTS) /* a kind that readers make */

struct gb_event_names {
    PyTypeObject *type;               /* events.Event */
    PyObject *kind[GB_EVENTS + 1u];   /* events.Kind, in the order of enum gb_event; LOST last */
    PyObject *omitted;                /* events.OMITTED */
};
extern struct gb_event_names gb_event_names;

/* Reads events.py's names. -1 with an exception. */
int gb_event_install(void);
/* Calls `hears()`, whatever becomes of its owner meanwhile. An exception that is set stays; its own is told
 * to sys.unraisablehook; True means: interrupt the program. */
void gb_event_heard(PyObject *hears);
/* Takes over key, value and old; NULL among them: None. NULL with an exception: they are released. */
PyObject *gb_event_make(uint64_t seq, uint32_t kind, PyObject *key, PyObject *value, PyObject *old,
                        double at);
/* `lost`, of `n` events, the last of which had the number `seq`. */
PyObject *gb_event_lost(uint64_t seq, uint64_t n);

#endif
