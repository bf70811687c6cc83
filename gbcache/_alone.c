/* _alone.c - a section that is paused, and what a fork leaves of one. */
#include "_alone.h"

#include <stdbool.h>
#include <stddef.h>

#ifdef Py_GIL_DISABLED
void gb_alone_reborn(PyObject *object) {
    const PyMutex *own = &object->ob_mutex;
    bool ours = false; /* forked within it: by a key's ==, say */
    uintptr_t at = PyThreadState_Get()->critical_section;
    while (at > 3u) { /* two bits: let go of for now; of two objects */
        const PyCriticalSection2 *c = (const PyCriticalSection2 *)(at & ~(uintptr_t)3u);
        bool is = c->_cs_base._cs_mutex == own || ((at & 2u) && c->_cs_mutex2 == own);
        ours = ours || (is && !(at & 1u));
        at = c->_cs_base._cs_prev;
    }
    object->ob_mutex._bits = ours; /* nobody waits */
}

struct gb_alone_section *gb_alone_pause(void) {
    uintptr_t at = PyThreadState_Get()->critical_section;
    if (!at || (at & 3u)) return NULL;
    PyCriticalSection *section = (PyCriticalSection *)at;
    PyCriticalSection_End(section);
    return (struct gb_alone_section *)section;
}

void gb_alone_again(struct gb_alone_section *paused) {
    PyCriticalSection *section = (PyCriticalSection *)paused;
    if (!section) return;
    char *object = (char *)section->_cs_mutex - offsetof(PyObject, ob_mutex);
    PyCriticalSection_Begin(section, (PyObject *)(void *)object);
}
#endif
