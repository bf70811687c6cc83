/* _front.h - how the front of a `Tiered` reads its near side, whichever it is.
 *
 * WHAT      A function of the store's, handed over in a capsule where the store is another module's: one
 *           call, no look-up of a method, no arguments to be packed.
 *
 * COST      A read through the front takes 5 to 8 ns more than the store's own method.
 *
 * NOT HERE  what is done on a miss (readthrough.py).
 */
#ifndef GB_FRONT_H
#define GB_FRONT_H

/* A read that counts as use: a new reference; NULL with an exception, or without one for a miss. */
typedef PyObject *(*gb_front_read)(PyObject *near, PyObject *key);
#define GB_FRONT_CAPSULE "gbcache._object.FRONT"

#endif
