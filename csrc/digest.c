/* digest.c - the long path of the keyed hash, and its key schedule. */
#include "digest.h"

/* splitmix64 (Steele, Lea, Flood, OOPSLA 2014): spreads the seed over the schedule. */
static uint64_t spread(uint64_t *x) {
    uint64_t z = (*x += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

void gb_digest_seed(struct gb_digest *d, const uint64_t seed[2]) {
    uint64_t x = seed[0], y = seed[1] ^ 0xD1B54A32D192ED03u;
    for (uint32_t i = 0; i < GB_DIGEST_KEYS; i++) d->key[i] = spread(&x) ^ (spread(&y) << 1);
    d->key[34] |= 1u; /* multiplies the length: odd keeps it injective */
}

uint64_t gb_digest_long(const struct gb_digest *d, const uint8_t *p, size_t n, uint32_t type) {
    gb_digest_wide sum = (gb_digest_wide)((n << 2) | type) * d->key[34];
    size_t left = n;
    while (left > 16) {
        size_t pieces = (left - 1) / 16; /* whole ones before the last, which may overlap back */
        if (pieces > 15) pieces = 15;
        for (size_t i = 0; i < pieces; i++, p += 16)
            sum += (gb_digest_wide)(gb_digest_read8(p) + d->key[2 * i]) *
                   (gb_digest_wide)(gb_digest_read8(p + 8) + d->key[2 * i + 1]);
        left -= pieces * 16;
        if (left > 16) /* one 240-byte sum is done: chain it into the next */
            sum = (gb_digest_wide)gb_digest_fold(d, sum) * d->key[35];
    }
    p -= 16 - left;
    sum += (gb_digest_wide)(gb_digest_read8(p) + d->key[30]) *
           (gb_digest_wide)(gb_digest_read8(p + 8) + d->key[31]);
    return gb_digest_fold(d, sum);
}

bool gb_digest_check(const struct gb_digest *d, const uint64_t seed[2], struct gb_fault *f) {
    struct gb_digest again;
    gb_digest_seed(&again, seed);
    for (uint32_t i = 0; i < GB_DIGEST_KEYS; i++)
        if (again.key[i] != d->key[i])
            return gb_broken(f, "digest 1: the schedule follows from the seed", i, again.key[i],
                             d->key[i]);
    if (!(d->key[34] & 1u))
        return gb_broken(f, "digest 2: the length's multiplier is odd", 34, 1, 0);
    return true;
}
