/* _bound.c - a memoized method of one instance, and where its results lie. */
#include "_bound.h"
#include <structmember.h>

PyObject *gb_bound_referent(PyObject *weak) {
    PyObject *found = NULL;
#if PY_VERSION_HEX >= 0x030D0000
    (void)PyWeakref_GetRef(weak, &found);
#else
    found = PyWeakref_GET_OBJECT(weak);
    found = found == Py_None ? NULL : Py_NewRef(found);
#endif
    return found;
}

static bool is_of(const gb_holder *held, PyObject *self) {
    if (!PyWeakref_Check(held->owner)) return false; /* an empty one, that came along with a copy */
    PyObject *referent = gb_bound_referent(held->owner);
    Py_XDECREF(referent); /* the caller holds the instance */
    return referent == self;
}

/* A new reference to the dict a holder can lie in. NULL, without an exception: there is none. */
static inline PyObject *dict_of(PyObject *self) {
    if (PyType_Check(self) || !Py_TYPE(self)->tp_dictoffset) return NULL;
    PyObject *dict = PyObject_GenericGetDict(self, NULL);
    if (!dict) PyErr_Clear();
    else if (!PyDict_CheckExact(dict)) Py_CLEAR(dict);
    return dict;
}

PyObject *gb_bound_dict(PyObject *memo, PyObject *self) {
    (void)memo;
    PyObject *dict = dict_of(self);
    return dict ? dict : Py_NewRef(Py_None);
}

gb_holder *gb_bound_held(const gb_memo *m, PyObject *self) {
    PyObject *dict = dict_of(self);
    if (!dict) return NULL;
    PyObject *held = gb_alone_item(dict, m->slot);
    Py_DECREF(dict); /* the instance holds it */
    if (held && (Py_TYPE(held) != &gb_holder_type || !is_of((gb_holder *)held, self))) Py_CLEAR(held);
    return (gb_holder *)held;
}

/* ---- bound memo ---- */
static PyObject *bound_call(PyObject *self, PyObject *const *args, size_t flagged, PyObject *kwnames) {
    const gb_bound *b = (gb_bound *)self;
    return gb_memo_on((gb_memo *)b->memo, b->self, args, PyVectorcall_NARGS(flagged), kwnames);
}

PyObject *gb_bound_new(PyObject *memo, PyObject *self) {
    gb_bound *b = PyObject_GC_New(gb_bound, &gb_bound_type);
    if (!b) return NULL;
    b->call = bound_call;
    b->memo = Py_NewRef(memo);
    b->self = Py_NewRef(self);
    PyObject_GC_Track(b);
    return (PyObject *)b;
}

static int bound_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(((gb_bound *)self)->memo);
    Py_VISIT(((gb_bound *)self)->self);
    return 0;
}
static void bound_dealloc(PyObject *self) {
    PyObject_GC_UnTrack(self);
    Py_DECREF(((gb_bound *)self)->memo);
    Py_DECREF(((gb_bound *)self)->self);
    PyObject_GC_Del(self);
}
/* Everything else is the memo's affair: it is told the instance. */
static PyObject *bound_getattro(PyObject *self, PyObject *name) {
    gb_bound *b = (gb_bound *)self;
    PyObject *found = PyObject_GenericGetAttr(self, name);
    if (found || !PyErr_ExceptionMatches(PyExc_AttributeError)) return found;
    PyErr_Clear();
    return PyObject_CallMethod(b->memo, "_of", "OO", b->self, name);
}
static PyObject *bound_repr(PyObject *self) {
    gb_bound *b = (gb_bound *)self;
    return PyUnicode_FromFormat("<bound %R of %R>", b->memo, b->self);
}
static PyObject *bound_compare(PyObject *a, PyObject *b, int op) {
    if ((op != Py_EQ && op != Py_NE) || Py_TYPE(a) != Py_TYPE(b)) Py_RETURN_NOTIMPLEMENTED;
    bool same = ((gb_bound *)a)->memo == ((gb_bound *)b)->memo &&
                ((gb_bound *)a)->self == ((gb_bound *)b)->self;
    return PyBool_FromLong(same == (op == Py_EQ));
}
static Py_hash_t bound_hash(PyObject *self) {
    size_t a = (size_t)((gb_bound *)self)->memo >> 4, b = (size_t)((gb_bound *)self)->self >> 4;
    Py_hash_t h = (Py_hash_t)(a * 1000003u ^ b);
    return h == -1 ? -2 : h;
}
static PyObject *bound_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *memo, *self;
    (void)type;
    if (kwargs || !PyArg_ParseTuple(args, "OO:BoundMemo", &memo, &self)) return NULL;
    if (gb_memo_is(memo)) return gb_bound_new(memo, self);
    PyErr_Format(PyExc_TypeError, "BoundMemo: %R is not a memoized function", memo);
    return NULL;
}
/* As a bound method: what `self.name` is where it is unpickled. */
static PyObject *bound_reduce(PyObject *self, PyObject *protocol) {
    gb_bound *b = (gb_bound *)self;
    (void)protocol;
    PyObject *name = PyObject_GetAttrString(b->memo, "__name__"), *how = NULL, *from = NULL;
    if (name) from = PyImport_ImportModule("builtins");
    PyObject *getattr = from ? PyObject_GetAttrString(from, "getattr") : NULL;
    if (getattr) how = Py_BuildValue("O(OO)", getattr, b->self, name);
    Py_XDECREF(getattr);
    Py_XDECREF(from);
    Py_XDECREF(name);
    return how;
}
static PyObject *bound_doc(PyObject *self, void *none) {
    (void)none;
    return PyObject_GetAttrString(((gb_bound *)self)->memo, "__doc__");
}
static PyMethodDef bound_methods[] = {
    {"__reduce_ex__", bound_reduce, METH_O, "As getattr(instance, name)."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef bound_getset[] = {
    {"__doc__", bound_doc, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMemberDef bound_members[] = {
    {"__func__", T_OBJECT, offsetof(gb_bound, memo), READONLY, NULL},
    {"__self__", T_OBJECT, offsetof(gb_bound, self), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
PyTypeObject gb_bound_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "gbcache._object.BoundMemo",
    .tp_basicsize = sizeof(gb_bound),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_vectorcall_offset = offsetof(gb_bound, call),
    .tp_call = PyVectorcall_Call,
    .tp_traverse = bound_traverse,
    .tp_dealloc = bound_dealloc,
    .tp_getattro = bound_getattro,
    .tp_repr = bound_repr,
    .tp_richcompare = bound_compare,
    .tp_hash = bound_hash,
    .tp_members = bound_members,
    .tp_methods = bound_methods,
    .tp_getset = bound_getset,
    .tp_new = bound_new,
};

/* ---- holder ---- */
static PyObject *holder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *store = Py_None, *owner = Py_None;
    if (kwargs || !PyArg_ParseTuple(args, "|OO:Holder", &store, &owner)) return NULL;
    if (store != Py_None && !PyObject_TypeCheck(store, gb_memo_store)) {
        PyErr_Format(PyExc_TypeError, "store=%R is not an ObjectStore", store);
        return NULL;
    }
    gb_holder *h = (gb_holder *)type->tp_alloc(type, 0);
    if (!h) return NULL;
    h->store = Py_NewRef(store);
    h->owner = owner == Py_None ? PyLong_FromLong(0) : Py_NewRef(owner);
    if (!h->owner) Py_CLEAR(h);
    return (PyObject *)h;
}
static int holder_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(((gb_holder *)self)->store);
    Py_VISIT(((gb_holder *)self)->owner);
    return 0;
}
static void holder_dealloc(PyObject *self) {
    PyObject_GC_UnTrack(self);
    if (((gb_holder *)self)->weak) PyObject_ClearWeakRefs(self);
    Py_XDECREF(((gb_holder *)self)->store);
    Py_XDECREF(((gb_holder *)self)->owner);
    Py_TYPE(self)->tp_free(self);
}
/* A copied or pickled instance takes along an empty one, which names no instance. */
static PyObject *holder_reduce(PyObject *self, PyObject *protocol) {
    (void)protocol;
    return Py_BuildValue("O()", (PyObject *)Py_TYPE(self));
}
static PyMethodDef holder_methods[] = {
    {"__reduce_ex__", holder_reduce, METH_O, "Results are not copied with their instance."},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef holder_members[] = {
    {"store", T_OBJECT, offsetof(gb_holder, store), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
PyTypeObject gb_holder_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "gbcache._object.Holder",
    .tp_doc = "An instance's own results of one memoized method.",
    .tp_basicsize = sizeof(gb_holder),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = holder_new,
    .tp_traverse = holder_traverse,
    .tp_dealloc = holder_dealloc,
    .tp_methods = holder_methods,
    .tp_members = holder_members,
    .tp_weaklistoffset = offsetof(gb_holder, weak),
};
