/* digest.h - from bytes to numbers.
 *
 * WHAT      The keyed hash of the table. The seed lies in the image (fresh for each, so collisions
 *           cannot be prepared beforehand); the key schedule made from it lies in the process.
 *
 * PICTURE   bytes -> 16-byte pieces (a, b) -> sum of (a + k[i]) * (b + k[i+1]) over 128 bits
 *                 -> ((lo + k) * (hi + k')) folded -> 64 bits
 *                                                     low 32: bucket, kept in the entry
 *                                                     top 8: tag
 *
 * INVARIANT 1 equal seed, type and bytes give equal hashes; the length and type are part of it.
 *           2 two different strings of up to 256 bytes collide before the fold for at most 2 in 2^64
 *             schedules (NH is 2^-64-almost-universal: Black, Halevi, Krawczyk, Krovetz, Rogaway,
 *             "UMAC", CRYPTO 99); longer strings chain one such sum for every 256 bytes.
 *           3 a checksum differs for any two strings that differ in one word of eight bytes: each word
 *             changes its lane, every step is a bijection. It is no protection against an author.
 *
 * COST      about 3 ns for up to 16 bytes, one 64x64 multiplication for every 16 bytes after that.
 *
 * NOT HERE  tables, images, secrets' origin: the seed is an argument.
 */
#ifndef GB_DIGEST_H
#define GB_DIGEST_H

#include "base.h"

#define GB_DIGEST_KEYS 36u
struct gb_digest {
    uint64_t key[GB_DIGEST_KEYS];
};

void gb_digest_seed(struct gb_digest *d, const uint64_t seed[2]);
uint64_t gb_digest_long(const struct gb_digest *d, const uint8_t *p, size_t n, uint32_t type);
bool gb_digest_check(const struct gb_digest *d, const uint64_t seed[2], struct gb_fault *f);

static inline uint64_t gb_digest_read8(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}
static inline uint64_t gb_digest_read4(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

__extension__ typedef unsigned __int128 gb_digest_wide;

static inline uint64_t gb_digest_fold(const struct gb_digest *d, gb_digest_wide sum) {
    gb_digest_wide m = (gb_digest_wide)((uint64_t)sum + d->key[32]) *
                       (gb_digest_wide)((uint64_t)(sum >> 64) + d->key[33]);
    uint64_t h = (uint64_t)m ^ (uint64_t)(m >> 64);
    h ^= h >> 29; /* the fold's low bits are its best; lend them to the tag */
    h *= 0x9E3779B97F4A7C15u;
    return h ^ (h >> 32);
}

/* The hash of `n` bytes of a key of kind `type`. Overlapping reads make (a, b) injective for a
 * given n, and n is added in. */
static inline uint64_t gb_digest(const struct gb_digest *d, const uint8_t *p, size_t n,
                                 uint32_t type) {
    uint64_t a, b;
    if (GB_UNLIKELY(n > 16)) return gb_digest_long(d, p, n, type);
    if (n >= 8) {
        a = gb_digest_read8(p);
        b = gb_digest_read8(p + n - 8);
    } else if (n >= 4) {
        a = gb_digest_read4(p);
        b = gb_digest_read4(p + n - 4);
    } else if (n) {
        a = ((uint64_t)p[0] << 16) | ((uint64_t)p[n >> 1] << 8) | p[n - 1];
        b = 0;
    } else {
        a = b = 0;
    }
    gb_digest_wide sum = (gb_digest_wide)(a + d->key[0]) * (gb_digest_wide)(b + d->key[1]);
    return gb_digest_fold(d, sum + (gb_digest_wide)((n << 2) | type) * d->key[34]);
}

/* A checksum of bytes that come in pieces, for files: four lanes of words, folded at the end. */
struct gb_sum {
    uint64_t lane[4];
    uint64_t length;
    uint8_t rest[32]; /* bytes of a group of 32 that is not full */
};
void gb_digest_sum_begin(struct gb_sum *s, uint64_t about);
void gb_digest_sum_add(struct gb_sum *s, const void *bytes, size_t n);
uint64_t gb_digest_sum_end(struct gb_sum *s);

#endif
