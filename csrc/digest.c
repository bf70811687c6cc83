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

#define ODD 0x9E3779B97F4A7C15u
static inline uint64_t lane_step(uint64_t lane, uint64_t word) { /* a bijection of either */
    lane = (lane ^ word) * ODD;
    return lane << 31 | lane >> 33;
}

void gb_digest_sum_begin(struct gb_sum *s, uint64_t about) {
    uint64_t x = about;
    for (uint32_t i = 0; i < 4u; i++) s->lane[i] = spread(&x);
    s->length = 0;
}

static void sum_groups(struct gb_sum *s, const uint8_t *p, size_t groups) {
    uint64_t a = s->lane[0], b = s->lane[1], c = s->lane[2], d = s->lane[3];
    for (; groups; groups--, p += 32) {
        a = lane_step(a, gb_digest_read8(p));
        b = lane_step(b, gb_digest_read8(p + 8));
        c = lane_step(c, gb_digest_read8(p + 16));
        d = lane_step(d, gb_digest_read8(p + 24));
    }
    s->lane[0] = a, s->lane[1] = b, s->lane[2] = c, s->lane[3] = d;
}

void gb_digest_sum_add(struct gb_sum *s, const void *bytes, size_t n) {
    const uint8_t *p = (const uint8_t *)bytes;
    size_t have = s->length % 32u;
    s->length += n;
    if (have) {
        size_t take = n < 32u - have ? n : 32u - have;
        memcpy(s->rest + have, p, take);
        p += take;
        n -= take;
        if (have + take < 32u) return;
        sum_groups(s, s->rest, 1);
    }
    sum_groups(s, p, n / 32u);
    memcpy(s->rest, p + n / 32u * 32u, n % 32u);
}

uint64_t gb_digest_sum_end(struct gb_sum *s) {
    size_t have = s->length % 32u;
    if (have) {
        memset(s->rest + have, 0, 32u - have);
        sum_groups(s, s->rest, 1);
    }
    uint64_t h = s->length;
    for (uint32_t i = 0; i < 4u; i++) h = (lane_step(h, s->lane[i]) ^ h >> 32) * ODD;
    return h ^ h >> 29;
}

bool gb_digest_check(const struct gb_digest *d, const uint64_t seed[2], struct gb_fault *f) {
    struct gb_digest again;
    gb_digest_seed(&again, seed);
    for (uint32_t i = 0; i < GB_DIGEST_KEYS; i++)
        if (again.key[i] != d->key[i])
            return gb_broken(f, "digest 1: the schedule follows from the seed", i, again.key[i],
                             d->key[i]);
    if (!(d->key[34] & 1u)) /* one way: it is equal to one that was made odd */
        return gb_broken(f, "digest 2: the length's multiplier is odd", 34, 1, 0); /* unreachable: as above */
    for (uint32_t bit = 0; bit < 64u; bit++) { /* one word of the schedule, one bit of it changed */
        uint64_t sums[2], word = again.key[bit % GB_DIGEST_KEYS];
        for (uint32_t i = 0; i < 2u; i++, word ^= (uint64_t)1 << bit) {
            struct gb_sum sum;
            gb_digest_sum_begin(&sum, seed[0]);
            gb_digest_sum_add(&sum, d->key, sizeof d->key / 2u);
            gb_digest_sum_add(&sum, &word, sizeof word);
            sums[i] = gb_digest_sum_end(&sum);
        }
        if (sums[0] == sums[1]) /* one way: only another function had such a sum */
            return gb_broken(f, "digest 3: one bit makes another sum", bit, 0, 0); /* unreachable: as above */
    }
    return true;
}
