/* driver.c - a main for the fuzz target where there is no libFuzzer: random inputs, and mutations of
 * earlier ones. An input is saved before it runs, so that a crash leaves it behind.
 *
 *     driver [--seconds N | --runs N] [--seed S] [--case FILE]      runs
 *     driver FILE...                                     replays */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MOST 4096u
#define POOL 64u

struct input {
    size_t size;
    uint8_t bytes[MOST];
};
static struct input pool[POOL], now;
static uint64_t state;

static uint64_t next(void) { /* splitmix64 */
    uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
static size_t below(size_t n) { return (size_t)(next() >> 1) % n; }

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void fresh(struct input *in) {
    in->size = 16u + below(below(4) ? 400u : MOST - 16u);
    for (size_t i = 0; i < in->size; i++) in->bytes[i] = (uint8_t)next();
}

/* A few small changes: bytes, a run copied within, a piece of another input, a cut. */
static void mutate(struct input *in) {
    const struct input *other = &pool[below(POOL)];
    for (size_t n = 1u + below(8); n; n--) {
        size_t at = below(in->size), run = 1u + below(64), from = below(in->size);
        switch (below(5)) {
        case 0:
            in->bytes[at] = (uint8_t)next();
            break;
        case 1:
            in->bytes[at] ^= (uint8_t)(1u << below(8));
            break;
        case 2: /* again: the same operations once more */
            if (at + run <= in->size && from + run <= in->size)
                memmove(in->bytes + at, in->bytes + from, run);
            break;
        case 3:
            if (at + run <= MOST && run <= other->size) {
                memcpy(in->bytes + at, other->bytes + below(other->size - run + 1u), run);
                if (at + run > in->size) in->size = at + run;
            }
            break;
        default:
            if (at + run < in->size && in->size - run >= 16u) {
                memmove(in->bytes + at, in->bytes + at + run, in->size - at - run);
                in->size -= run;
            }
        }
    }
}

static int replay(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        return 2;
    }
    now.size = fread(now.bytes, 1, MOST, f);
    fclose(f);
    printf("replay %s: %zu bytes\n", path, now.size);
    fflush(stdout);
    LLVMFuzzerTestOneInput(now.bytes, now.size);
    return 0;
}

static int save(const char *path) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(now.bytes, 1, now.size, f) != now.size || fclose(f)) {
        perror(path);
        return 2;
    }
    return 0;
}

int main(int argc, char **argv) {
    double limit = 60, start = seconds();
    const char *path = "case.bin";
    unsigned long runs = 0, most = 0;
    int files = 0;
    uint64_t seed = 1;
    for (int i = 1; i < argc; i++) {
        if (i + 1 < argc && !strcmp(argv[i], "--seconds")) limit = strtod(argv[++i], NULL);
        else if (i + 1 < argc && !strcmp(argv[i], "--runs")) most = strtoul(argv[++i], NULL, 10);
        else if (i + 1 < argc && !strcmp(argv[i], "--seed")) seed = strtoull(argv[++i], NULL, 10);
        else if (i + 1 < argc && !strcmp(argv[i], "--case")) path = argv[++i];
        else if (++files && replay(argv[i])) return 2;
    }
    if (files) return 0;
    state = seed;
    printf("seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    for (uint32_t i = 0; i < POOL; i++) fresh(&pool[i]);
    for (; most ? runs < most : seconds() - start < limit; runs++) {
        size_t slot = below(POOL);
        now = pool[slot];
        if (below(4)) mutate(&now);
        else fresh(&now);
        if (save(path)) return 2;
        LLVMFuzzerTestOneInput(now.bytes, now.size);
        if (below(3) == 0) pool[slot] = now;
    }
    remove(path);
    printf("%lu runs, %.0f runs/s\n", runs, (double)runs / (seconds() - start));
    return 0;
}
