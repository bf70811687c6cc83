/* _front.c - a hit, or a question. */
#include "_front.h"
#include "_box.h"

static PyObject *missed; /* the method's name */

/* What is in memory lies under base values (pending.plain), whatever a subclass's hash and == say. What is no key of a
 * Cache's is the far side's affair. */
static PyObject *read_plain(const gb_front *f, PyObject *key) {
    if (!(PyUnicode_Check(key) || PyBytes_Check(key) || PyLong_Check(key) || PyFloat_Check(key) || PyTuple_Check(key)))
        return f->read(f->near, key);
    PyObject *base = gb_box_base(key);
    PyObject *value = base ? f->read(f->near, base) : NULL;
    Py_XDECREF(base);
    return value;
}

PyObject *gb_front_find(PyObject *self, PyObject *key, PyObject *absent) {
    gb_front *f = (gb_front *)self;
    if (GB_ARGS_LIKELY(GB_LOAD(f->trusted))) {
        PyObject *value = GB_ARGS_LIKELY(PyUnicode_CheckExact(key)) ? f->read(f->near, key) : read_plain(f, key);
        if (GB_ARGS_LIKELY(value != NULL) || PyErr_Occurred()) return value;
    }
    return PyObject_CallMethodObjArgs(self, missed, key, absent, NULL);
}

static PyObject *front_get(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    PyObject *a[2] = {NULL, NULL};
    if (!gb_args_get(args, n, kwnames, a)) return NULL;
    return gb_front_find(self, a[0], a[1] ? a[1] : Py_None);
}

static PyMethodDef methods[] = {
    GB_ARGS_FAST(get, front_get,
                 "get(key, default=None)\n--\n\n"
                 "The value of `key`, from memory or from the far side; `default` if it is in neither.\n\n"
                 "One flight per key: of all threads that miss it, one asks the far side. FarError where that\n"
                 "fails. Cost of a hit: the near side's, and 2 to 5 ns."),
    {NULL, NULL, 0, NULL},
};

int gb_front_install(PyTypeObject *type, size_t size) {
    if (size != sizeof(gb_front)) {
        PyErr_SetString(PyExc_SystemError, "Front is not laid out as _front.h has it");
        return -1;
    }
    missed = PyUnicode_InternFromString("_missed");
    return missed ? gb_args_install(type, methods) : -1;
}
