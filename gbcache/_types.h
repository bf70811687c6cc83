/* _types.h - what the type bits of keys and values mean, in images and files.
 *
 * WHAT      A key's type is two bits, a value's three; _box.h draws them. What they mean is part of the
 *           format: numbers are never given to something else.
 *
 * NOT HERE  Python objects (_box): files are read without them.
 */
#ifndef GB_TYPES_H
#define GB_TYPES_H

enum gb_box_value_type {
    GB_BOX_BYTES, GB_BOX_ASCII, GB_BOX_INT, GB_BOX_FLOAT, GB_BOX_CONST, GB_BOX_CODEC, GB_BOX_UTF8
};
enum gb_box_key_type { GB_BOX_KEY_STR, GB_BOX_KEY_BYTES, GB_BOX_KEY_INT, GB_BOX_KEY_OTHER };

#endif
