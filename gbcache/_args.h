/* _args.h - what the METH_FASTCALL methods of both stores share.
 *
 * WHAT      Arguments by position and by name, the pairs of set_many, a KeyError, and how a
 *           change of a key voids the flight that is loading it.
 *
 * NOT HERE  what the methods do (_hot, _quick).
 */
#ifndef GB_ARGS_H
#define GB_ARGS_H

#include "_alone.h"

#include <stdbool.h>

#define GB_ARGS_LIKELY(x) __builtin_expect(!!(x), 1)
#define GB_ARGS_FAST(name, function, text)                                                         \
    {#name, (PyCFunction)(void (*)(void))function, METH_FASTCALL | METH_KEYWORDS, text}

/* Fills `out` (all NULL) from positional and keyword arguments; the first `least` must be given. */
bool gb_args_take(const char *verb, const char *const *names, int least, int most,
                  PyObject *const *args, Py_ssize_t n, PyObject *kwnames, PyObject **out);
/* `get`'s (key, default=None): the fast way in for what is given by position. */
static inline bool gb_args_get(PyObject *const *args, Py_ssize_t n, PyObject *kwnames, PyObject **out) {
    static const char *const names[] = {"key", "default"};
    if (GB_ARGS_LIKELY(!kwnames && (n == 1 || n == 2))) {
        out[0] = args[0];
        out[1] = n == 2 ? args[1] : NULL;
        return true;
    }
    return gb_args_take("get", names, 1, 2, args, n, kwnames, out);
}
/* A list of the items of a mapping, or of an iterable. */
PyObject *gb_args_pairs(PyObject *items);
/* A new tuple of two; ValueError naming the place if item `i` is none. */
PyObject *gb_args_pair(PyObject *pairs, Py_ssize_t i);
/* `flights` has the flights under way (_board.pxi). Each is a bytearray of one: a 1 in it says that its key was
 * changed while the value was being loaded, so that the loaded one is not to be stored. So is a flight of another
 * key with the same hash: nobody's == is asked. To be called before the change, alone with whose flights they are;
 * false with an exception of the key's own, whose __hash__ is asked first. */
bool gb_args_void_slow(PyObject *flights, PyObject *key);
static inline bool gb_args_void(PyObject *flights, PyObject *key) {
    return GB_ARGS_LIKELY(!flights || !PyDict_GET_SIZE(flights)) || gb_args_void_slow(flights, key);
}
void gb_args_void_all(PyObject *flights);
static inline bool gb_args_is_void(const char *byte) { return GB_LOAD(*byte) != 0; }
/* The flight's byte; NULL with a TypeError if it is none. */
const char *gb_args_mark(PyObject *flight);
/* KeyError(key): a tuple as a key is one argument, not many. */
void gb_args_key_error(PyObject *key);
/* Puts the methods into the type's dict. -1 with an exception. */
int gb_args_install(PyTypeObject *type, PyMethodDef *methods);
#endif
