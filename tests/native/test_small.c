/* test_small.c - the small rooms: list, digest, lock. */
#include "check.h"
#include "core.h"
#include <time.h>

/* ---- list ---- */
#define LINKS 64u

static void list_random(uint32_t steps) {
    static uint64_t image[2u * LINKS + 1u];
    uint8_t *base = (uint8_t *)image;
    gb_ref order[LINKS], head = 1u;
    uint32_t n = 0;
    bool in[2u * LINKS + 1u] = {false};
    memset(image, 0xA5, sizeof image);
    gb_list_format(base, head);
    CHECK(gb_list_empty(base, head));
    for (uint32_t i = 0; i < steps; i++) {
        uint32_t what = check_below(5), k = n ? check_below(n) : 0;
        gb_ref fresh = 2u + check_below(2u * LINKS - 1u);
        if (what < 2 && n < LINKS && !in[fresh]) { /* behind the head, or a member */
            uint32_t at = n ? check_below(n + 1u) : 0;
            gb_list_link(base, at ? order[at - 1u] : head, fresh);
            memmove(&order[at + 1u], &order[at], (n - at) * sizeof *order);
            order[at] = fresh;
            in[fresh] = true;
            n++;
        } else if (what < 4 && n) {
            gb_list_unlink(base, order[k]);
            in[order[k]] = false;
            memmove(&order[k], &order[k + 1u], (n - k - 1u) * sizeof *order);
            n--;
        } else if (n && !in[fresh]) {
            *gb_list_at(base, fresh) = *gb_list_at(base, order[k]);
            memset(gb_list_at(base, order[k]), 0x55, sizeof(struct gb_link));
            gb_list_moved(base, fresh);
            in[order[k]] = false;
            in[order[k] = fresh] = true;
        }
        struct gb_fault f = {0};
        uint64_t count = 0;
        CHECK(gb_list_check(base, head, UINT32_MAX, n, &count, &f) && count == n);
        CHECK(gb_list_empty(base, head) == !n);
        gb_ref at = gb_list_at(base, head)->next, back = gb_list_at(base, head)->prev;
        for (k = 0; k < n; k++, at = gb_list_at(base, at)->next) CHECK(at == order[k]);
        CHECK(at == head);
        for (k = n; k-- > 0; back = gb_list_at(base, back)->prev) CHECK(back == order[k]);
        CHECK(back == head);
        if (n < 2) continue;
        CHECK(!gb_list_check(base, head, UINT32_MAX, n - 1u, &count, &f) && strstr(f.rule, "list 2"));
        gb_list_at(base, order[n / 2u])->prev ^= 1u;
        CHECK(!gb_list_check(base, head, UINT32_MAX, n, &count, &f) && strstr(f.rule, "list 1"));
        gb_list_at(base, order[n / 2u])->prev ^= 1u;
    }
}

/* ---- digest ---- */
#define BUCKETS 1024u
#define KEYS 200000u

static uint64_t seed_of(struct gb_digest *d) {
    uint64_t seed[2] = {check_random(), check_random()};
    gb_digest_seed(d, seed);
    return seed[0];
}
/* Chi-square over 1024 buckets: 1023 degrees of freedom, so 1023 +- 45 (one sigma). */
static void even(const uint32_t *counts, uint32_t buckets) {
    double mean = (double)KEYS / buckets, chi = 0;
    for (uint32_t i = 0; i < buckets; i++) chi += (counts[i] - mean) * (counts[i] - mean) / mean;
    double free_ones = buckets - 1.0, gap = chi - free_ones;
    CHECK(gap * gap < 49.0 * 2.0 * free_ones); /* seven sigma, either way */
}
static void digest_spread(const struct gb_digest *d, bool text, uint32_t pitch) {
    static uint32_t low[BUCKETS], tags[256], high[BUCKETS];
    memset(low, 0, sizeof low);
    memset(tags, 0, sizeof tags);
    memset(high, 0, sizeof high);
    for (uint32_t i = 0; i < KEYS; i++) {
        uint8_t key[32];
        uint64_t number = (uint64_t)i * pitch;
        size_t n = 8;
        if (text) n = (size_t)snprintf((char *)key, sizeof key, "user:%07llu:name", (unsigned long long)number);
        else memcpy(key, &number, 8);
        uint64_t h = gb_digest(d, key, n, text ? 1u : 0u);
        low[h % BUCKETS]++;
        high[(h >> 20) % BUCKETS]++;
        tags[h >> 56]++;
    }
    even(low, BUCKETS);
    even(high, BUCKETS);
    even(tags, 256);
}
static void digest_equal(void) {
    struct gb_digest a, b, other;
    uint64_t seed[2] = {check_random(), check_random()}, more[2] = {seed[0], seed[1] ^ 1u};
    struct gb_fault f = {0};
    gb_digest_seed(&a, seed);
    gb_digest_seed(&b, seed);
    gb_digest_seed(&other, more);
    CHECK(!memcmp(&a, &b, sizeof a) && memcmp(&a, &other, sizeof a));
    CHECK(gb_digest_check(&a, seed, &f) && !gb_digest_check(&other, seed, &f));
    CHECK(strstr(f.rule, "digest 1"));
    uint8_t text[1001], moved[1016];
    for (uint32_t i = 0; i < sizeof text; i++) text[i] = (uint8_t)check_random();
    uint64_t before = 0;
    for (uint32_t n = 0; n <= 1000; n++) {
        uint32_t shift = check_below(15);
        uint8_t *exact = malloc(n ? n : 1u); /* no byte behind the last is read */
        memcpy(exact, text, n);
        memcpy(moved + shift, text, n);
        uint64_t h = gb_digest(&a, exact, n, 2);
        CHECK(h == gb_digest(&b, moved + shift, n, 2)); /* wherever the bytes lie */
        CHECK(h != gb_digest(&other, exact, n, 2));
        for (uint32_t type = 0; type < 4; type++) CHECK((h == gb_digest(&a, exact, n, type)) == (type == 2));
        CHECK(h != before); /* a prefix differs */
        before = h;
        for (uint32_t bit = 0; bit < 8u * n; bit += n > 64u ? 1u + check_below(40) : 1u) {
            exact[bit / 8u] ^= (uint8_t)(1u << (bit % 8u));
            CHECK(h != gb_digest(&a, exact, n, 2));
            exact[bit / 8u] ^= (uint8_t)(1u << (bit % 8u));
        }
        free(exact);
    }
    uint8_t zeros[1000] = {0}; /* lengths alone tell them apart */
    for (uint32_t n = 0; n < 1000; n++) CHECK(gb_digest(&a, zeros, n, 0) != gb_digest(&a, zeros, n + (n < 999), 0) || n == 999);
}
/* A sum is of the bytes, however they come in pieces; and of how many there are. */
static void digest_sums(void) {
    uint8_t text[200], zeros[200] = {0};
    struct gb_sum whole, pieces;
    uint64_t before = 0;
    for (uint32_t i = 0; i < sizeof text; i++) text[i] = (uint8_t)check_random();
    for (uint32_t n = 0; n <= sizeof text; n++) {
        gb_digest_sum_begin(&whole, 7);
        gb_digest_sum_begin(&pieces, 7);
        gb_digest_sum_add(&whole, text, n);
        for (uint32_t at = 0, k; at < n; at += k) {
            k = 1u + check_below(40);
            if (k > n - at) k = n - at;
            gb_digest_sum_add(&pieces, text + at, k);
        }
        CHECK(gb_digest_sum_end(&whole) == gb_digest_sum_end(&pieces));
        gb_digest_sum_begin(&whole, 7);
        gb_digest_sum_add(&whole, zeros, n);
        uint64_t sum = gb_digest_sum_end(&whole);
        CHECK(sum != before);
        before = sum;
    }
}
/* One flipped bit of the input flips half the bits of the hash. */
static void digest_avalanche(const struct gb_digest *d, uint32_t n) {
    uint8_t key[300];
    uint64_t flips = 0, tries = 0;
    for (uint32_t i = 0; i < 4000; i++, tries++) {
        for (uint32_t k = 0; k < n; k++) key[k] = (uint8_t)check_random();
        uint64_t h = gb_digest(d, key, n, 0);
        key[check_below(n)] ^= (uint8_t)(1u << check_below(8));
        flips += (uint64_t)__builtin_popcountll(h ^ gb_digest(d, key, n, 0));
    }
    CHECK(flips > tries * 31u && flips < tries * 33u);
}

/* ---- lock ---- */
#define TURNS 200000u

static struct gb_lock lock;
static uint64_t counter, wakes;

static void nap(void) {
    struct timespec t = {0, 100000};
    nanosleep(&t, NULL);
}
static void *worker(void *arg) {
    for (uint32_t i = 0; i < TURNS; i++) {
        if (!gb_lock_try(&lock)) gb_lock_wait(&lock);
        counter++; /* not atomic: the lock must see to it */
        if ((i & 1023u) == 0 && gb_lock_wanted(&lock)) wakes++;
        if ((i & 4095u) == 0) nap(); /* so that the others fall asleep */
        gb_lock_free(&lock);
    }
    return arg;
}
static void *waiter(void *arg) {
    gb_lock_wait(&lock);
    counter++;
    gb_lock_free(&lock);
    return arg;
}
static void *leaver(void *arg) {
    nap();
    gb_lock_wanted_no_more(&lock);
    return arg;
}
static void lock_threads(void) {
    pthread_t thread[4];
    struct gb_fault f = {0};
    gb_lock_init(&lock);
    CHECK(gb_lock_check(&lock, &f) && !gb_lock_wanted(&lock));
    for (uint32_t i = 0; i < 4; i++) CHECK(!pthread_create(&thread[i], NULL, worker, NULL));
    for (uint32_t i = 0; i < 4; i++) CHECK(!pthread_join(thread[i], NULL));
    CHECK(counter == 4u * TURNS);
    CHECK(atomic_load(&lock.word) == 0 && !gb_lock_wanted(&lock));
    CHECK(gb_lock_check(&lock, &f));
}
/* A holder sees that somebody waits, and the sleeper wakes when he frees. */
static void lock_wanted(void) {
    pthread_t thread[3];
    CHECK(gb_lock_try(&lock) && !gb_lock_try(&lock));
    CHECK(!gb_lock_wanted(&lock));
    counter = 0;
    for (uint32_t i = 0; i < 3; i++) CHECK(!pthread_create(&thread[i], NULL, waiter, NULL));
    for (uint32_t i = 0; i < 100000 && atomic_load(&lock.waiting) < 3; i++) nap();
    CHECK(gb_lock_wanted(&lock));
    CHECK(counter == 0);
    nap();
    gb_lock_free(&lock);
    for (uint32_t i = 0; i < 3; i++) CHECK(!pthread_join(thread[i], NULL));
    CHECK(counter == 3 && !gb_lock_wanted(&lock));
    CHECK(!gb_lock_after_you(&lock)); /* nobody is there */
    gb_lock_want(&lock);
    CHECK(gb_lock_after_you(&lock)); /* and who wants it and does not come is not waited for */
    CHECK(!pthread_create(&thread[0], NULL, leaver, NULL));
    while (gb_lock_after_you(&lock)) continue; /* nor who goes elsewhere while he is waited for */
    CHECK(!pthread_join(thread[0], NULL) && !gb_lock_wanted(&lock));
    gb_lock_wait(&lock); /* free: it is there at once */
    CHECK(!gb_lock_try(&lock));
    gb_lock_free(&lock);
}
/* A child of fork finds the lock as its parent's other threads left it. */
static void lock_reborn(void) {
    struct gb_fault f = {0};
    CHECK(gb_lock_try(&lock));
    atomic_store(&lock.waiting, 2u);
    atomic_store(&lock.word, 2u);
    gb_lock_reborn(&lock);
    CHECK(!gb_lock_wanted(&lock) && gb_lock_check(&lock, &f));
    CHECK(gb_lock_try(&lock));
    gb_lock_free(&lock);
    atomic_store(&lock.word, 3u);
    CHECK(!gb_lock_check(&lock, &f) && strstr(f.rule, "lock 1"));
    gb_lock_init(&lock);
}

int main(int argc, char **argv) {
    check_start(argc, argv);
    struct gb_digest d;
    list_random(20000);
    for (uint32_t round = 0; round < 3; round++) {
        digest_equal();
        digest_sums();
        uint64_t first = seed_of(&d);
        CHECK(first != seed_of(&d));
        digest_spread(&d, false, 1);
        digest_spread(&d, false, 4096);
        digest_spread(&d, true, 1);
        for (uint32_t n = 1; n < 300; n += 1u + n / 3u) digest_avalanche(&d, n);
    }
    struct gb_fault f = {0};
    uint64_t seed[2] = {1, 2};
    gb_digest_seed(&d, seed);
    d.key[34] ^= 1u;
    CHECK(!gb_digest_check(&d, seed, &f));
    lock_threads();
    lock_wanted();
    lock_reborn();
    return check_done();
}
