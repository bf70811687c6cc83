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

/* Fails the process and says where, and with which seed it happens again. */
#define CHECK(c)                                                                                   \
    do {                                                                                           \
        check_count++;                                                                             \
        if (!(c)) {                                                                                \
            printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #c);                                 \
            exit(1);                                                                               \
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
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static inline uint64_t check_random(void) { /* xorshift64* */
    check_state ^= check_state >> 12;
    check_state ^= check_state << 25;
    check_state ^= check_state >> 27;
    return check_state * 2685821657736338717u;
}
static inline uint32_t check_below(uint32_t n) { return (uint32_t)(check_random() >> 33) % n; }

static inline void check_start(int argc, char **argv) {
    if (argc > 1) check_state ^= strtoull(argv[1], NULL, 10) * 0x9E3779B97F4A7C15u;
    printf("seed %s\n", argc > 1 ? argv[1] : "0");
}
static inline int check_done(void) {
    printf("%lu checks\n", check_count);
    return 0;
}
#endif
