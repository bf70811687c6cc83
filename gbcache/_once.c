/* _once.c - a key that remembers its hash. */
#include "_once.h"

PyObject *gb_once_new(PyObject *key, Py_hash_t hash) {
    gb_once *o = PyObject_GC_New(gb_once, &gb_once_type);
    if (!o) return NULL;
    o->hash = hash;
    o->key = Py_NewRef(key);
    PyObject_GC_Track(o);
    return (PyObject *)o;
}
static int once_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(((gb_once *)self)->key);
    return 0;
}
static void once_dealloc(PyObject *self) {
    PyObject_GC_UnTrack(self);
    Py_DECREF(((gb_once *)self)->key);
    PyObject_GC_Del(self);
}
static Py_hash_t once_hash(PyObject *self) { return ((gb_once *)self)->hash; }
static PyObject *once_compare(PyObject *a, PyObject *b, int op) {
    if (op != Py_EQ && op != Py_NE) Py_RETURN_NOTIMPLEMENTED;
    PyObject *x = gb_once_inner(a), *y = gb_once_inner(b);
    if (x == y) return PyBool_FromLong(op == Py_EQ); /* as a dict has it: a NaN is itself */
    return PyObject_RichCompare(x, y, op);
}
PyTypeObject gb_once_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "gbcache._object.Once",
    .tp_basicsize = sizeof(gb_once),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_traverse = once_traverse,
    .tp_dealloc = once_dealloc,
    .tp_hash = once_hash,
    .tp_richcompare = once_compare,
};
