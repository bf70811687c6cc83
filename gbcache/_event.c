/* _event.c - Events made from C. */
#include "_event.h"

struct gb_event_names gb_event_names;

#define NAME(name, help) #name,
static const char *const kinds[] = {GB_EVENT_KINDS(NAME) "LOST"};
#undef NAME

int gb_event_install(void) {
    struct gb_event_names *n = &gb_event_names;
    PyObject *module = PyImport_ImportModule("gbcache.events");
    PyObject *kind = module ? PyObject_GetAttrString(module, "Kind") : NULL;
    bool fine = kind != NULL;
    for (uint32_t i = 0; fine && i <= GB_EVENTS; i++) {
        n->kind[i] = PyObject_GetAttrString(kind, kinds[i]);
        fine = n->kind[i] != NULL;
    }
    if (fine) n->omitted = PyObject_GetAttrString(module, "OMITTED");
    if (fine) n->type = (PyTypeObject *)PyObject_GetAttrString(module, "Event");
    Py_XDECREF(kind);
    Py_XDECREF(module);
    if (!fine || !n->omitted || !n->type) return -1;
    if (PyType_IsSubtype(n->type, &PyTuple_Type)) return 0;
    PyErr_SetString(PyExc_SystemError, "gbcache.events.Event is not a tuple");
    return -1;
}

PyObject *gb_event_make(uint64_t seq, uint32_t kind, PyObject *key, PyObject *value, PyObject *old,
                        double at) {
    PyObject *number = PyLong_FromUnsignedLongLong(seq), *when = PyFloat_FromDouble(at);
    PyTypeObject *type = gb_event_names.type;
    PyObject *event = number && when ? type->tp_alloc(type, 6) : NULL;
    if (!event) {
        PyObject *all[] = {number, when, key, value, old};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) Py_XDECREF(all[i]);
        return NULL;
    }
    PyTuple_SET_ITEM(event, 0, number);
    PyTuple_SET_ITEM(event, 1, Py_NewRef(gb_event_names.kind[kind]));
    PyTuple_SET_ITEM(event, 2, key ? key : Py_NewRef(Py_None));
    PyTuple_SET_ITEM(event, 3, value ? value : Py_NewRef(Py_None));
    PyTuple_SET_ITEM(event, 4, old ? old : Py_NewRef(Py_None));
    PyTuple_SET_ITEM(event, 5, when);
    return event;
}

PyObject *gb_event_lost(uint64_t seq, uint64_t n) {
    PyObject *count = PyLong_FromUnsignedLongLong(n);
    return count ? gb_event_make(seq, GB_EVENT_LOST, NULL, count, NULL, 0.0) : NULL;
}

void gb_event_heard(PyObject *hears) {
    PyObject *type, *value, *trace;
    Py_INCREF(hears);
    PyErr_Fetch(&type, &value, &trace); /* the operation's own */
    PyObject *none = PyObject_CallNoArgs(hears);
    bool interrupted = none == Py_True; /* in a subscriber, and meant for the program */
    if (!none) PyErr_WriteUnraisable(hears);
    Py_XDECREF(none);
    Py_DECREF(hears);
    PyErr_Restore(type, value, trace);
    if (interrupted) PyErr_SetInterrupt();
}
