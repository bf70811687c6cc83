/* _alone.h - what the GIL gives, on an interpreter that has none.
 *
 * WHAT      GB_ALONE(object): from here to the end of the block no other thread is in a block that is alone
 *           with the same object. As the GIL is, it is let go of where Python code is run that waits, and
 *           where the thread waits for another lock (PEP 703's critical section): what is true after a
 *           call of Python's may have to be looked at again. Unlike the GIL, it may be let go of by what frees
 *           a reference, even one that is not the last, and by an operation on a dict that others use.
 *           GB_LOAD, GB_STORE: a flag, a number or a pointer that is read without being alone.
 *
 * COST      with the GIL: nothing, GB_LOAD and GB_STORE are plain moves. Without: an exchange in, one out.
 *           A block within another of the same object works, but parks the thread: 5 us, so there is none
 *           on a way that is often gone.
 *
 * NOT HERE  the door's lock (_door.h), which outsiders take too.
 */
#ifndef GB_ALONE_H
#define GB_ALONE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

struct gb_alone_section; /* one that is paused */

#ifdef Py_GIL_DISABLED
#define GB_ALONE(object)                                                                           \
    PyCriticalSection gb_alone __attribute__((cleanup(PyCriticalSection_End)));                    \
    PyCriticalSection_Begin(&gb_alone, (PyObject *)(void *)(object))
/* In a forked child: a thread that is not here may have been given the object's section just before. */
void gb_alone_reborn(PyObject *object);
/* Lets go of the innermost section while Python code runs that may take as long as it likes, or come back to the
 * object; to be given to gb_alone_again. NULL: the thread is in none, or it is let go of already. */
struct gb_alone_section *gb_alone_pause(void);
void gb_alone_again(struct gb_alone_section *section);
#else
static inline struct gb_alone_section *gb_alone_pause(void) { return NULL; }
static inline void gb_alone_again(struct gb_alone_section *section) { (void)section; }
#define GB_ALONE(object) (void)0
static inline void gb_alone_reborn(PyObject *object) { (void)object; }
#endif

#define GB_LOAD(place) __atomic_load_n(&(place), __ATOMIC_RELAXED)
#define GB_STORE(place, value) __atomic_store_n(&(place), (value), __ATOMIC_RELAXED)

/* A new reference to a dict's value, NULL if there is none; an exception of the key's own may be set. */
static inline PyObject *gb_alone_item(PyObject *dict, PyObject *key) {
    PyObject *value = NULL;
#if PY_VERSION_HEX >= 0x030D0000
    (void)PyDict_GetItemRef(dict, key, &value);
#else
    value = Py_XNewRef(PyDict_GetItemWithError(dict, key));
#endif
    return value;
}

/* The hash a str remembers; -1: none yet. */
static inline Py_hash_t gb_alone_text_hash(PyObject *text) {
    return GB_LOAD(((PyASCIIObject *)(void *)text)->hash);
}

#endif
