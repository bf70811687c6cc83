/* _memo.c - keys of calls, hits and misses. */
#include "_bound.h"
#include <structmember.h>

static PyTypeObject memo_type;
PyTypeObject *gb_memo_store;
static PyObject *mark;           /* between positional and named arguments in a key */
static PyObject *partial;        /* functools.partial */
static PyObject *name_shared, *name_instance;

/* wrapped(*args, **kwargs), and `first` before them if there is one, for Python to call. */
static PyObject *call_on(PyObject *fn, PyObject *first, PyObject *const *args, Py_ssize_t n,
                            PyObject *kwnames) {
    Py_ssize_t named = kwnames ? PyTuple_GET_SIZE(kwnames) : 0, skip = first ? 2 : 1;
    PyObject **all = PyMem_New(PyObject *, (size_t)(skip + n + named));
    if (!all) return PyErr_NoMemory();
    all[0] = fn;
    if (first) all[1] = first;
    for (Py_ssize_t i = 0; i < n + named; i++) all[skip + i] = args[i];
    PyObject *call = PyObject_Vectorcall(partial, all, (size_t)(skip + n), kwnames);
    PyMem_Free(all);
    return call;
}

/* ---- keys ---- */
static bool ignored(const gb_memo *m, Py_ssize_t place, PyObject *name) {
    if (!name) return place < 64 && (m->places >> place & 1u);
    int in = PySet_Contains(m->names, name);
    if (in < 0) PyErr_Clear(); /* a name is a str */
    return in > 0;
}

/* A tuple: the positional arguments; a mark, names and values; the types where they count. `shift` is 1
 * where the instance came before them. */
static PyObject *tuple_key(const gb_memo *m, PyObject *const *args, Py_ssize_t n, PyObject *kwnames,
                           Py_ssize_t shift) {
    Py_ssize_t named = kwnames ? PyTuple_GET_SIZE(kwnames) : 0, at = 0;
    Py_ssize_t size = n + (named ? 1 + 2 * named : 0) + (m->typed ? n + named : 0);
    bool picks = m->names != Py_None;
    PyObject *key = PyTuple_New(size);
    if (!key) return NULL;
    for (Py_ssize_t i = 0; i < n; i++)
        if (!picks || !ignored(m, i + shift, NULL)) PyTuple_SET_ITEM(key, at++, Py_NewRef(args[i]));
    for (Py_ssize_t i = 0, before = at; i < named; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (picks && ignored(m, 0, name)) continue;
        if (at == before) PyTuple_SET_ITEM(key, at++, Py_NewRef(mark));
        PyTuple_SET_ITEM(key, at++, Py_NewRef(name));
        PyTuple_SET_ITEM(key, at++, Py_NewRef(args[n + i]));
    }
    for (Py_ssize_t i = 0; m->typed && i < n + named; i++) {
        if (picks && ignored(m, i + shift, i < n ? NULL : PyTuple_GET_ITEM(kwnames, i - n))) continue;
        PyTuple_SET_ITEM(key, at++, Py_NewRef((PyObject *)Py_TYPE(args[i])));
    }
    if (at < size) (void)_PyTuple_Resize(&key, at);
    return key;
}

/* An int or a str alone is its own key, as in functools. */
static inline PyObject *make_key(const gb_memo *m, PyObject *const *args, Py_ssize_t n, PyObject *kwnames,
                                 Py_ssize_t shift) {
    if (GB_LIKELY(n == 1 && !kwnames && !m->typed && m->names == Py_None) &&
        (PyLong_CheckExact(args[0]) || PyUnicode_CheckExact(args[0])))
        return Py_NewRef(args[0]);
    return tuple_key(m, args, n, kwnames, shift);
}

static PyObject *key_of(const gb_memo *m, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    if (GB_LIKELY(m->key == Py_None)) return make_key(m, args, n, kwnames, 0);
    return PyObject_Vectorcall(m->key, args, (size_t)n, kwnames);
}

/* The key of a call of an instance's: a key function sees the instance too. */
static PyObject *key_on(const gb_memo *m, PyObject *self, PyObject *const *args, Py_ssize_t n,
                        PyObject *kwnames) {
    if (m->key == Py_None) return make_key(m, args, n, kwnames, 1);
    PyObject *call = call_on(m->key, self, args, n, kwnames);
    PyObject *key = call ? PyObject_CallNoArgs(call) : NULL;
    Py_XDECREF(call);
    return key;
}

/* ---- calls ---- */
static bool is_plain(PyObject *key) {
    return PyLong_CheckExact(key) || PyUnicode_CheckExact(key) || Py_TYPE(key) == &gb_once_type;
}

PyObject *gb_memo_name(PyObject *key) {
    if (is_plain(key)) return Py_NewRef(key);
    Py_hash_t hash = PyObject_Hash(key);
    return hash == -1 ? NULL : gb_once_new(key, hash);
}

/* Steals the key. `first` may be NULL: the instance of a bound call. */
static PyObject *missed(const gb_memo *m, PyObject *store, PyObject *key, Py_hash_t hash, PyObject *first,
                        PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    PyObject *call = call_on(m->wrapped, first, args, n, kwnames), *value = NULL, *name = NULL;
    if (call && store == Py_None) {
        PyObject *const all[] = {(PyObject *)m, key, call};
        value = PyObject_VectorcallMethod(name_shared, all, 3, NULL);
    } else if (call) {
        name = is_plain(key) ? Py_NewRef(key) : gb_once_new(key, hash);
        PyObject *const all[] = {store, name, call, m->ttl, m->stale};
        if (name) value = PyObject_Vectorcall(m->fill, all, 5, NULL);
    }
    Py_XDECREF(name);
    Py_XDECREF(call);
    Py_DECREF(key);
    return value;
}

static PyObject *through(const gb_memo *m, PyObject *store, PyObject *first, PyObject *const *args,
                         Py_ssize_t n, PyObject *kwnames, PyObject *key) {
    struct gb_refs *r = &((gb_quick_store *)store)->refs;
    Py_hash_t hash = PyObject_Hash(key);
    PyObject *value = NULL;
    Py_INCREF(store); /* == may let go of the last of everything else */
    if (GB_LIKELY(hash != -1)) value = gb_quick_read_hashed(r, key, gb_refs_mix(r, hash));
    if (GB_UNLIKELY(!value && !PyErr_Occurred())) {
        value = missed(m, store, key, hash, first, args, n, kwnames);
    } else {
        Py_DECREF(key);
        if (GB_UNLIKELY(m->ready != Py_None) && value) {
            PyObject *awaitable = PyObject_CallOneArg(m->ready, value);
            Py_SETREF(value, awaitable);
        }
    }
    Py_DECREF(store);
    return value;
}

/* An instance that can have no holder is part of the key, as in functools. Steals the key without it. */
static PyObject *kept_by_results(const gb_memo *m, PyObject *self, PyObject *const *args, Py_ssize_t n,
                                 PyObject *kwnames, PyObject *key) {
    PyObject *whole = PyTuple_Pack(2, self, key);
    Py_DECREF(key);
    return whole ? through(m, m->store, self, args, n, kwnames, whole) : NULL;
}

PyObject *gb_memo_on(const gb_memo *m, PyObject *self, PyObject *const *args, Py_ssize_t n,
                     PyObject *kwnames) {
    PyObject *value = NULL, *key = key_on(m, self, args, n, kwnames);
    if (!key) return NULL;
    if (m->store == Py_None) {
        if (m->key != Py_None || m->free) return missed(m, Py_None, key, 0, self, args, n, kwnames);
        PyErr_Format(PyExc_TypeError, "%R is a method, and its results would lie in a cache that all "
                     "instances share: give memoize a key= that tells them apart", m);
        Py_DECREF(key);
        return NULL;
    }
    PyObject *holder = (PyObject *)gb_bound_held(m, self);
    if (!holder && !PyErr_Occurred()) {
        PyObject *const all[] = {(PyObject *)(void *)m, self};
        holder = PyObject_VectorcallMethod(name_instance, all, 2, NULL);
    }
    if (holder == Py_None) value = kept_by_results(m, self, args, n, kwnames, key);
    else if (holder) value = through(m, ((gb_holder *)holder)->store, self, args, n, kwnames, key);
    else Py_DECREF(key);
    Py_XDECREF(holder);
    return value;
}

/* A new reference to `owners`, which another thread may be setting. */
static PyObject *owners_of(const gb_memo *m) {
    GB_ALONE(m);
    return Py_XNewRef(m->owners);
}

/* Whether a call's first argument is the instance: the memo lies in a class of it. */
static bool owns(const gb_memo *m, PyObject *first) {
    PyObject *owners = owners_of(m);
    bool is = false;
    for (Py_ssize_t i = 0; owners && !is && i < PyTuple_GET_SIZE(owners); i++) {
        PyObject *owner = gb_bound_referent(PyTuple_GET_ITEM(owners, i));
        is = owner && PyType_Check(owner) && PyType_IsSubtype(Py_TYPE(first), (PyTypeObject *)owner);
        Py_XDECREF(owner);
    }
    Py_XDECREF(owners);
    return is;
}

/* The call that is meant to be fastest: one int or str, which is its own key. NULL, without an exception,
 * where it is another one, or a miss: the long way tells. */
static inline PyObject *lone_hit(const gb_memo *m, PyObject *key) {
    Py_hash_t hash = -1;
    if (PyLong_CheckExact(key)) hash = PyLong_Type.tp_hash(key);
    else if (PyUnicode_CheckExact(key)) hash = gb_alone_text_hash(key);
    if (GB_UNLIKELY(hash == -1)) return NULL;
    struct gb_refs *r = &((gb_quick_store *)m->store)->refs;
    return gb_quick_hit(r, key, gb_refs_mix(r, hash));
}

static PyObject *memo_call(PyObject *self, PyObject *const *args, size_t flagged, PyObject *kwnames) {
    const gb_memo *m = (gb_memo *)self;
    Py_ssize_t n = PyVectorcall_NARGS(flagged);
    if (GB_LIKELY(GB_LOAD(m->lone) && n == 1 && !kwnames)) {
        PyObject *value = lone_hit(m, args[0]);
        if (GB_LIKELY(value != NULL)) return value;
    }
    if (GB_UNLIKELY(GB_LOAD(m->owners) != NULL) && n && owns(m, args[0])) /* Class.method(instance, ...) */
        return gb_memo_on(m, args[0], args + 1, n - 1, kwnames);
    PyObject *key = key_of(m, args, n, kwnames);
    if (GB_UNLIKELY(!key)) return NULL;
    if (GB_LIKELY(m->store != Py_None)) return through(m, m->store, NULL, args, n, kwnames, key);
    return missed(m, Py_None, key, 0, NULL, args, n, kwnames);
}

/* Takes over `owners`, unless they are others than `before` by now. */
static bool swap_owners(gb_memo *m, PyObject *before, PyObject *owners) {
    GB_ALONE(m);
    bool swaps = m->owners == before;
    GB_STORE(m->lone, false);
    if (swaps) GB_STORE(m->owners, owners);
    Py_XDECREF(swaps ? before : owners);
    return swaps;
}

/* It lies in `class` too, beside those that are there still. */
static bool add_owner(gb_memo *m, PyObject *class) {
    for (bool swaps = false; !swaps;) { /* what is made here may run anything */
        PyObject *before = owners_of(m), *ref = PyWeakref_NewRef(class, NULL), *all = ref ? PyList_New(0) : NULL;
        bool fine = all != NULL;
        for (Py_ssize_t i = 0; fine && before && i < PyTuple_GET_SIZE(before); i++) {
            PyObject *weak = PyTuple_GET_ITEM(before, i), *owner = gb_bound_referent(weak);
            if (owner && owner != class) fine = !PyList_Append(all, weak);
            Py_XDECREF(owner);
        }
        fine = fine && !PyList_Append(all, ref);
        PyObject *owners = fine ? PyList_AsTuple(all) : NULL;
        swaps = owners && swap_owners(m, before, owners);
        Py_XDECREF(all);
        Py_XDECREF(ref);
        Py_XDECREF(before);
        if (!owners) return false;
    }
    return true;
}

static PyObject *memo_get(PyObject *self, PyObject *instance, PyObject *type) {
    (void)type;
    gb_memo *m = (gb_memo *)self;
    if (!instance || instance == Py_None) return Py_NewRef(self);
    if (!owns(m, instance) && !add_owner(m, (PyObject *)Py_TYPE(instance))) return NULL; /* put into its class later */
    return gb_bound_new(self, instance);
}

bool gb_memo_is(PyObject *memo) { return PyObject_TypeCheck(memo, &memo_type); }

/* ---- the type ---- */
static int memo_traverse(PyObject *self, visitproc visit, void *arg) {
    gb_memo *m = (gb_memo *)self;
    PyObject *all[] = {m->wrapped, m->store, m->key, m->names, m->slot, m->ttl, m->stale, m->fill, m->ready,
                       m->owners, m->dict};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) Py_VISIT(all[i]);
    return 0;
}
static int memo_clear(PyObject *self) {
    gb_memo *m = (gb_memo *)self;
    Py_CLEAR(m->dict); /* what a call needs stays: it may be called while a cycle is taken apart */
    return 0;
}
static void memo_dealloc(PyObject *self) {
    gb_memo *m = (gb_memo *)self;
    PyObject_GC_UnTrack(self);
    if (m->weak) PyObject_ClearWeakRefs(self);
    PyObject *all[] = {m->wrapped, m->store, m->key, m->names, m->slot, m->ttl, m->stale, m->fill, m->ready,
                       m->owners, m->dict};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) Py_XDECREF(all[i]);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *memo_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"wrapped", "store", "key", "places", "names", "slot", "ttl",
                            "stale",   "typed", "fill", "ready", "free",  NULL};
    PyObject *wrapped, *store, *key, *ignore, *slot, *ttl, *stale, *fill, *ready;
    unsigned long long places;
    int typed, free_;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOKOUOOpOOp:Memo", names, &wrapped, &store, &key,
                                     &places, &ignore, &slot, &ttl, &stale, &typed, &fill, &ready,
                                     &free_))
        return NULL;
    if (store != Py_None && !PyObject_TypeCheck(store, gb_memo_store)) {
        PyErr_Format(PyExc_TypeError, "store=%R is not an ObjectStore", store);
        return NULL;
    }
    gb_memo *m = (gb_memo *)type->tp_alloc(type, 0);
    if (!m) return NULL;
    m->call = memo_call;
    m->wrapped = Py_NewRef(wrapped);
    m->store = Py_NewRef(store);
    m->key = Py_NewRef(key);
    m->places = places;
    m->names = Py_NewRef(ignore);
    m->slot = Py_NewRef(slot);
    m->ttl = Py_NewRef(ttl);
    m->stale = Py_NewRef(stale);
    m->fill = Py_NewRef(fill);
    m->ready = Py_NewRef(ready);
    m->typed = typed;
    m->lone = store != Py_None && key == Py_None && ignore == Py_None && ready == Py_None && !typed;
    m->free = free_;
    return (PyObject *)m;
}

/* Python would call a subclass through its slot before 3.12: twice as slow. */
static PyObject *memo_quicken(PyObject *none, PyObject *type) {
    (void)none;
    if (PyType_Check(type) && PyType_IsSubtype((PyTypeObject *)type, &memo_type))
        ((PyTypeObject *)type)->tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL;
    Py_RETURN_NONE;
}

static PyObject *memo_key(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    const gb_memo *m = (gb_memo *)self;
    if (!n || !owns(m, args[0])) return key_of(m, args, n, kwnames);
    return key_on(m, args[0], args + 1, n - 1, kwnames);
}
static PyObject *memo_held(PyObject *self, PyObject *instance) {
    gb_holder *held = gb_bound_held((gb_memo *)self, instance);
    if (!held && PyErr_Occurred()) return NULL;
    return held ? (PyObject *)held : Py_NewRef(Py_None);
}
static PyObject *memo_owns(PyObject *self, PyObject *instance) {
    return PyBool_FromLong(owns((gb_memo *)self, instance));
}
static PyObject *memo_set_name(PyObject *self, PyObject *args) {
    gb_memo *m = (gb_memo *)self;
    PyObject *owner, *name;
    if (!PyArg_ParseTuple(args, "OO:__set_name__", &owner, &name)) return NULL;
    if (!add_owner(m, owner)) return NULL;
    Py_RETURN_NONE;
}
static PyMethodDef memo_methods[] = {
    {"__set_name__", memo_set_name, METH_VARARGS, NULL},
    GB_ARGS_FAST(_key, memo_key, "The key of a call."),
    {"_held", memo_held, METH_O, "The holder in the instance's __dict__, or None."},
    {"_dict", gb_bound_dict, METH_O, "The instance's __dict__, whatever its class calls by that name; or None."},
    {"_owns", memo_owns, METH_O, "Whether it lies in a class of this instance."},
    {"_quicken", memo_quicken, METH_O | METH_STATIC, "Has instances of a subclass called directly."},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef memo_members[] = {
    {"__dictoffset__", T_PYSSIZET, offsetof(gb_memo, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(gb_memo, weak), READONLY, NULL},
    {"_store", T_OBJECT, offsetof(gb_memo, store), READONLY, NULL},
    {"_slot", T_OBJECT, offsetof(gb_memo, slot), READONLY, NULL},
    {"_given_key", T_OBJECT, offsetof(gb_memo, key), READONLY, NULL},
    {"_stale_ms", T_OBJECT, offsetof(gb_memo, stale), READONLY, NULL},
    {"_fill", T_OBJECT, offsetof(gb_memo, fill), READONLY, NULL},
    {"_ready", T_OBJECT, offsetof(gb_memo, ready), READONLY, NULL},
    {"_typed", T_BOOL, offsetof(gb_memo, typed), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef memo_getset[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyTypeObject memo_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "gbcache._object.Memo",
    .tp_basicsize = sizeof(gb_memo),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_vectorcall_offset = offsetof(gb_memo, call),
    .tp_call = PyVectorcall_Call,
    .tp_new = memo_new,
    .tp_traverse = memo_traverse,
    .tp_clear = memo_clear,
    .tp_dealloc = memo_dealloc,
    .tp_descr_get = memo_get,
    .tp_methods = memo_methods,
    .tp_members = memo_members,
    .tp_getset = memo_getset,
    .tp_dictoffset = offsetof(gb_memo, dict),
    .tp_weaklistoffset = offsetof(gb_memo, weak),
};

int gb_memo_install(PyObject *module, PyTypeObject *store) {
    gb_memo_store = store;
    mark = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type);
    PyObject *functools = PyImport_ImportModule("functools");
    partial = functools ? PyObject_GetAttrString(functools, "partial") : NULL;
    Py_XDECREF(functools);
    name_shared = PyUnicode_InternFromString("_shared");
    name_instance = PyUnicode_InternFromString("_instance");
    if (!mark || !partial || !name_shared || !name_instance) return -1;
    if (PyType_Ready(&gb_once_type) || PyType_Ready(&memo_type) || PyType_Ready(&gb_bound_type) ||
        PyType_Ready(&gb_holder_type))
        return -1;
    if (PyModule_AddObjectRef(module, "MARK", mark)) return -1;
    if (PyModule_AddObjectRef(module, "Memo", (PyObject *)&memo_type)) return -1;
    return PyModule_AddObjectRef(module, "Holder", (PyObject *)&gb_holder_type);
}
