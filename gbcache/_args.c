/* _args.c - arguments of the hand-written methods. */
#include "_args.h"

bool gb_args_take(const char *verb, const char *const *names, int least, int most,
                  PyObject *const *args, Py_ssize_t n, PyObject *kwnames, PyObject **out) {
    Py_ssize_t named = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    if (n > most) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %d arguments, %zd given", verb, most, n);
        return false;
    }
    for (Py_ssize_t i = 0; i < n; i++) out[i] = args[i];
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        int at = 0;
        while (at < most && PyUnicode_CompareWithASCIIString(name, names[at])) at++;
        if (at == most || out[at]) {
            PyErr_Format(PyExc_TypeError, "%s() got %s argument %R", verb,
                         at == most ? "an unexpected keyword" : "two values for", name);
            return false;
        }
        out[at] = args[n + i];
    }
    for (int i = 0; i < least; i++) {
        if (out[i]) continue;
        PyErr_Format(PyExc_TypeError, "%s() is missing the argument '%s'", verb, names[i]);
        return false;
    }
    return true;
}

PyObject *gb_args_pairs(PyObject *items) {
    if (PyDict_CheckExact(items)) return PyDict_Items(items);
    if (!PyMapping_Check(items)) return PySequence_List(items);
    PyObject *method = PyObject_GetAttrString(items, "items"); /* HasAttr would take any error for a no */
    if (!method && !PyErr_ExceptionMatches(PyExc_AttributeError)) return NULL;
    if (!method) {
        PyErr_Clear();
        return PySequence_List(items);
    }
    PyObject *view = PyObject_CallNoArgs(method), *pairs = view ? PySequence_List(view) : NULL;
    Py_DECREF(method);
    Py_XDECREF(view);
    return pairs;
}

PyObject *gb_args_pair(PyObject *pairs, Py_ssize_t i) {
    PyObject *pair = PySequence_Tuple(PyList_GET_ITEM(pairs, i));
    if (pair && PyTuple_GET_SIZE(pair) != 2) {
        PyErr_Format(PyExc_ValueError, "set_many: item %zd has %zd parts, not a key and a value", i,
                     PyTuple_GET_SIZE(pair));
        Py_CLEAR(pair);
    }
    return pair;
}

static PyObject *next_name; /* "next" */

/* The flight and those behind it; takes over the reference. */
static void mark(PyObject *flight) {
    while (flight && flight != Py_None) {
        GB_STORE(PyByteArray_AS_STRING(flight)[0], 1);
        PyObject *next = PyObject_GetAttr(flight, next_name);
        Py_DECREF(flight);
        flight = next;
    }
    Py_XDECREF(flight);
}

bool gb_args_void_slow(PyObject *flights, PyObject *key) {
    Py_hash_t hash = PyObject_Hash(key);
    if (hash == -1) return false;
    PyObject *place = PyLong_FromSsize_t(hash);
    if (!place) { /* for want of memory, where the change itself may need none */
        PyErr_Clear();
        gb_args_void_all(flights);
        return true;
    }
    mark(gb_alone_item(flights, place));
    Py_DECREF(place);
    return true;
}

void gb_args_void_all(PyObject *flights) {
    PyObject *place, *flight;
    Py_ssize_t at = 0;
    while (flights && PyDict_Next(flights, &at, &place, &flight)) mark(Py_NewRef(flight));
}

const char *gb_args_mark(PyObject *flight) {
    if (PyByteArray_Check(flight) && PyByteArray_GET_SIZE(flight) == 1)
        return PyByteArray_AS_STRING(flight);
    PyErr_SetString(PyExc_TypeError, "a flight is a bytearray of one");
    return NULL;
}

void gb_args_key_error(PyObject *key) {
    PyObject *args = PyTuple_Pack(1, key);
    if (args) PyErr_SetObject(PyExc_KeyError, args);
    Py_XDECREF(args);
}

int gb_args_install(PyTypeObject *type, PyMethodDef *methods) {
    if (!next_name && !(next_name = PyUnicode_InternFromString("next"))) return -1;
    for (PyMethodDef *m = methods; m->ml_name; m++) {
        PyObject *descriptor = PyDescr_NewMethod(type, m);
        int failed = !descriptor || PyDict_SetItemString(type->tp_dict, m->ml_name, descriptor);
        Py_XDECREF(descriptor);
        if (failed) return -1;
    }
    PyType_Modified(type);
    return 0;
}
