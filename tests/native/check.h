/* check.h - the harness of the native tests: one process a test, the seed printed and settable. */
#ifndef CHECK_H
#define CHECK_H
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t check_state = 88172645463325252u;
static unsigned long check_count;

/* A fuzz target makes the choices from its input, and wants a failure to abort (CHECK_ABORTS). */
static const uint8_t *check_bytes, *check_bytes_end;

static inline void check_fail(void) {
    fflush(stdout);
#ifdef CHECK_ABORTS
    abort();
#else
    exit(1);
#endif
}

/* Fails the process and says where, and with which seed it happens again. */
#define CHECK(c)                                                                                   \
    do {                                                                                           \
        check_count++;                                                                             \
        if (!(c)) {                                                                                \
            printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #c);                                 \
            check_fail();                                                                          \
        }                                                                                          \
    } while (0)

/* After every step: the structure's own invariants, each reported by its sentence. */
#define SOUND(check, structure)                                                                    \
    do {                                                                                           \
        struct gb_fault f_ = {0};                                                                  \
        check_count++;                                                                             \
        if (!check(structure, &f_)) {                                                              \
            printf("%s:%d: broken: %s (at %llu, want %llu, got %llu)\n", __FILE__, __LINE__,       \
                   f_.rule, (unsigned long long)f_.at, (unsigned long long)f_.want,                \
                   (unsigned long long)f_.got);                                                    \
            check_fail();                                                                          \
        }                                                                                          \
    } while (0)

/* The next `n` bytes of the input as one number; zeros once it is used up. */
static inline uint64_t check_take(uint32_t n) {
    uint64_t v = 0;
    for (; n; n--) v = (v << 8) | (check_bytes < check_bytes_end ? *check_bytes++ : 0u);
    return v;
}
static inline uint64_t check_random(void) { /* xorshift64* */
    if (check_bytes) return check_take(8);
    check_state ^= check_state >> 12;
    check_state ^= check_state << 25;
    check_state ^= check_state >> 27;
    return check_state * 2685821657736338717u;
}
static inline uint32_t check_below(uint32_t n) {
    if (check_bytes) return (uint32_t)check_take(n <= 256u ? 1u : n <= 65536u ? 2u : 4u) % n;
    return (uint32_t)(check_random() >> 33) % n;
}

static inline void check_start(int argc, char **argv) {
    if (argc > 1) check_state ^= strtoull(argv[1], NULL, 10) * 0x9E3779B97F4A7C15u;
    printf("seed %s\n", argc > 1 ? argv[1] : "0");
}
static inline int check_done(void) {
    printf("%lu checks\n", check_count);
    return 0;
}
#endif
