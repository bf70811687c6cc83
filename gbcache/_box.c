/* _box.c - Python objects to bytes and back. */
#include "_box.h"

static bool own(struct gb_box *b, PyObject *bytes) {
    b->owner = bytes;
    if (!bytes) return false;
    b->bytes = (const uint8_t *)PyBytes_AS_STRING(bytes);
    b->len = (size_t)PyBytes_GET_SIZE(bytes);
    return true;
}

static bool box_int(struct gb_box *b, PyObject *number) {
    int overflow;
    long long v = PyLong_AsLongLongAndOverflow(number, &overflow);
    if (overflow) return false;
    b->raw = (uint64_t)v; /* little end first: the one byte order an image knows */
    b->bytes = (const uint8_t *)&b->raw;
    b->len = 8;
    return true;
}

/* Everything that is not exactly str, bytes or a 64-bit int: codec.encode_key knows. */
static bool key_by_codec(struct gb_box *b, PyObject *key) {
    PyObject *pair = PyObject_CallOneArg(gb_door_names.encode_key, key);
    if (!pair) return false;
    b->type = (uint32_t)PyLong_AsUnsignedLong(PyTuple_GET_ITEM(pair, 0));
    bool done = own(b, Py_NewRef(PyTuple_GET_ITEM(pair, 1)));
    Py_DECREF(pair);
    return done;
}

bool gb_box_key_slow(struct gb_box *b, PyObject *key) {
    b->owner = NULL;
    if (PyUnicode_CheckExact(key)) {
        b->type = GB_BOX_KEY_STR;
        return own(b, PyUnicode_AsEncodedString(key, "utf-8", "surrogatepass"));
    }
    if (PyBytes_CheckExact(key)) {
        b->type = GB_BOX_KEY_BYTES;
        return own(b, Py_NewRef(key));
    }
    if (PyLong_CheckExact(key) && box_int(b, key)) {
        b->type = GB_BOX_KEY_INT;
        return true;
    }
    return key_by_codec(b, key);
}

/* Whether Python compares it as its bytes are compared. What lies too deep is encode_key's to refuse. */
static bool is_plain(PyObject *key, int depth) {
    PyTypeObject *t = Py_TYPE(key);
    if (t != &PyTuple_Type)
        return t == &PyUnicode_Type || t == &PyLong_Type || t == &PyBytes_Type || t == &PyFloat_Type ||
               t == &PyBool_Type || key == Py_None;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(key); i++)
        if (!depth || !is_plain(PyTuple_GET_ITEM(key, i), depth - 1)) return false;
    return true;
}

PyObject *gb_box_base(PyObject *key) {
    return is_plain(key, 64) ? Py_NewRef(key) : PyObject_CallOneArg(gb_door_names.base_key, key);
}

static bool value_by_codec(const struct gb_door *d, struct gb_box *b, PyObject *value) {
    if (!d->encode) {
        PyErr_SetString(gb_door_names.closed_error, "the cache was never initialised: a subclass must call super().__init__()");
        return false;
    }
    PyObject *bytes = PyObject_CallOneArg(d->encode, value);
    if (bytes && !PyBytes_CheckExact(bytes)) {
        PyErr_Format(PyExc_TypeError, "the codec's encode returned %.100s, not bytes",
                     Py_TYPE(bytes)->tp_name);
        Py_CLEAR(bytes);
    }
    b->type = GB_BOX_CODEC;
    return own(b, bytes);
}

bool gb_box_value(const struct gb_door *d, struct gb_box *b, PyObject *value) {
    b->owner = NULL;
    if (PyBytes_CheckExact(value)) {
        b->type = GB_BOX_BYTES;
        b->bytes = (const uint8_t *)PyBytes_AS_STRING(value);
        b->len = (size_t)PyBytes_GET_SIZE(value);
        return true;
    }
    if (PyUnicode_CheckExact(value)) {
        b->type = GB_BOX_ASCII;
        if (gb_box_ascii(b, value)) return true;
        b->type = GB_BOX_UTF8;
        return own(b, PyUnicode_AsEncodedString(value, "utf-8", "surrogatepass"));
    }
    if (PyLong_CheckExact(value) && box_int(b, value)) {
        b->type = GB_BOX_INT;
        return true;
    }
    if (PyFloat_CheckExact(value)) {
        double v = PyFloat_AS_DOUBLE(value);
        memcpy(&b->raw, &v, sizeof v);
        b->type = GB_BOX_FLOAT;
        b->bytes = (const uint8_t *)&b->raw;
        b->len = 8;
        return true;
    }
    if (value == Py_None || value == Py_False || value == Py_True) {
        b->raw = value == Py_None ? 0u : value == Py_False ? 1u : 2u;
        b->type = GB_BOX_CONST;
        b->bytes = (const uint8_t *)&b->raw;
        b->len = 1;
        return true;
    }
    return value_by_codec(d, b, value);
}

PyObject *gb_box_raw(uint32_t type, const uint8_t *bytes, uint32_t len) {
    PyObject *text;
    int64_t whole;
    double real;
    switch (type) {
    case GB_BOX_ASCII:
        text = PyUnicode_New((Py_ssize_t)len, 127);
        if (text) memcpy(PyUnicode_DATA(text), bytes, len);
        return text;
    case GB_BOX_INT:
        memcpy(&whole, bytes, sizeof whole);
        return PyLong_FromLongLong(whole);
    case GB_BOX_FLOAT:
        memcpy(&real, bytes, sizeof real);
        return PyFloat_FromDouble(real);
    case GB_BOX_CONST:
        return Py_NewRef(!*bytes ? Py_None : *bytes == 1 ? Py_False : Py_True);
    default:
        return PyBytes_FromStringAndSize((const char *)bytes, (Py_ssize_t)len);
    }
}

PyObject *gb_box_raw_long(uint32_t type, uint32_t len, uint8_t **to) {
    PyObject *raw = type == GB_BOX_ASCII ? PyUnicode_New((Py_ssize_t)len, 127)
                                         : PyBytes_FromStringAndSize(NULL, (Py_ssize_t)len);
    if (raw)
        *to = type == GB_BOX_ASCII ? (uint8_t *)PyUnicode_DATA(raw)
                                   : (uint8_t *)PyBytes_AS_STRING(raw);
    return raw;
}

static PyObject *text_of(PyObject *raw) {
    PyObject *text = PyUnicode_DecodeUTF8(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw),
                                          "surrogatepass");
    Py_DECREF(raw);
    return text;
}

PyObject *gb_box_finish_slow(const struct gb_door *d, uint32_t type, PyObject *raw) {
    if (!raw) return NULL;
    if (type == GB_BOX_UTF8) return text_of(raw);
    PyObject *decode = Py_XNewRef(d->decode); /* close() may drop it meanwhile */
    PyObject *value = NULL;
    if (decode) value = PyObject_CallOneArg(decode, raw);
    else PyErr_SetString(gb_door_names.closed_error, "the cache was closed during a read");
    Py_XDECREF(decode);
    Py_DECREF(raw);
    return value;
}

PyObject *gb_box_key_object(uint32_t type, PyObject *raw) {
    if (!raw) return NULL;
    if (type == GB_BOX_KEY_STR) return text_of(raw);
    if (type == GB_BOX_KEY_BYTES) return raw;
    if (type == GB_BOX_KEY_INT) {
        PyObject *whole = gb_box_raw(GB_BOX_INT, (const uint8_t *)PyBytes_AS_STRING(raw), 8);
        Py_DECREF(raw);
        return whole;
    }
    PyObject *kind = PyLong_FromUnsignedLong(type), *key = NULL;
    if (kind) key = PyObject_CallFunctionObjArgs(gb_door_names.decode_key, kind, raw, NULL);
    Py_XDECREF(kind);
    Py_DECREF(raw);
    return key;
}
