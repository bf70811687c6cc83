/* _box.h - between Python objects and the bytes of keys and values.
 *
 * WHAT      A box holds a key or a value as bytes: borrowed from the object where it is bytes already
 *           (bytes, ASCII str), in `raw` where it is small, else owned by `owner`. A raw value is
 *           what is copied out under the lock; finishing it (UTF-8, codec) may run Python and waits
 *           until the door is left.
 *
 * PICTURE   value types (3 bits of an entry's first word)
 *             0 bytes   1 str, ASCII   2 int, 8 bytes   3 float, 8 bytes
 *             4 None False True, 1 byte   5 by codec   6 str, UTF-8   7 free
 *           key types (2 bits): 0 str   1 bytes   2 int, 8 bytes   3 codec.encode_key's others
 *
 * NOT HERE  locks, images: the door's.
 */
#ifndef GB_BOX_H
#define GB_BOX_H

#include "_door.h"
#include "_types.h"

/* What a key's entry is known by, as an object (a new one, or a new reference): of an int, str ... or tuple that has an
 * equality of its own, which flights would go by, the plain one. NULL with an exception, as gb_box_key. */
PyObject *gb_box_base(PyObject *key);

struct gb_box {
    PyObject *owner; /* keeps borrowed bytes alive; NULL if the caller's object does */
    uint64_t raw;
    const uint8_t *bytes;
    size_t len;
    uint32_t type;
};

bool gb_box_key_slow(struct gb_box *b, PyObject *key);
bool gb_box_value(const struct gb_door *d, struct gb_box *b, PyObject *value);
static inline void gb_box_drop(struct gb_box *b) { Py_XDECREF(b->owner); }

static inline bool gb_box_ascii(struct gb_box *b, PyObject *text) {
    if (!PyUnicode_IS_COMPACT_ASCII(text)) return false;
    b->bytes = (const uint8_t *)PyUnicode_DATA(text);
    b->len = (size_t)PyUnicode_GET_LENGTH(text);
    return true;
}
/* False with an exception: TypeError, ValueError (NaN). `b` needs dropping only on success. */
static inline bool gb_box_key(struct gb_box *b, PyObject *key) {
    b->owner = NULL;
    if (GB_LIKELY(PyUnicode_CheckExact(key)) && GB_LIKELY(gb_box_ascii(b, key))) {
        b->type = GB_BOX_KEY_STR;
        return true;
    }
    return gb_box_key_slow(b, key);
}
/* The key as the core knows it, hashed; false where it is longer than 32 bits can say. */
static inline bool gb_box_core_key(const struct gb_door *d, const struct gb_box *b, struct gb_key *k) {
    gb_store_key(&d->store, k, b->bytes, b->len > GB_KEY_MAX ? 0u : (uint32_t)b->len, b->type);
    if (GB_LIKELY(b->len <= GB_KEY_MAX)) return true;
    k->len = b->len > UINT32_MAX ? UINT32_MAX : (uint32_t)b->len; /* for the error's text */
    return false;
}

/* Under the lock: an object of the raw bytes, NULL if memory ran out. */
PyObject *gb_box_raw(uint32_t type, const uint8_t *bytes, uint32_t len);
/* Makes room for a long value; *to is where its bytes go. */
PyObject *gb_box_raw_long(uint32_t type, uint32_t len, uint8_t **to);
PyObject *gb_box_finish_slow(const struct gb_door *d, uint32_t type, PyObject *raw);
/* After the lock: what the caller gets; takes over `raw`. */
static inline PyObject *gb_box_finish(const struct gb_door *d, uint32_t type, PyObject *raw) {
    if (GB_LIKELY(type != GB_BOX_CODEC && type != GB_BOX_UTF8)) return raw;
    return gb_box_finish_slow(d, type, raw);
}
/* The key of a type and its bytes (a bytes object, which it takes over), after the lock. */
PyObject *gb_box_key_object(uint32_t type, PyObject *raw);

#endif
