/* threads.c - the core under four threads, a saver beside them, and a load by two, for ThreadSanitizer to watch.
 *
 * threads SEED ROUNDS store                  four threads write, read and remove under the lock, a fifth saves
 * threads SEED ROUNDS load FILE ENTRIES      a snapshot poured into large and small images (_pair.c has two threads)
 * threads SEED ROUNDS damaged FILE ENTRIES   the same of one that must be refused
 */
#define _GNU_SOURCE /* MAP_ANONYMOUS */
#include "check.h"
#include "gb.c"
#include "_load.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

/* CHECK, which counts, is for one thread. */
#define SURE(c) ((c) ? (void)0 : (printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #c), check_fail()))
#define THREADS 4u
#define KEYS 4000u
#define NOW 1000u

static struct gb_store store, *s = &store;
static struct gb_lock lock;
static struct gb_snap snap;
static bool saving; /* under the lock, as all that follows */
static uint64_t counted, late_frames, saved_records;
static unsigned long rounds;

static uint32_t draw(uint64_t *state) { /* each thread's own */
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (uint32_t)((*state * 2685821657736338717u) >> 33);
}
static uint8_t byte_of(uint32_t key, uint32_t i) { return (uint8_t)(key * 31u + i); }

/* --- the saver -------------------------------------------------------------------------------------------------- */
/* All of a frame's bytes, without the lock, as if they were written to a file. */
static uint64_t written(const struct gb_keep_frame *f) {
    struct gb_sum sum;
    gb_digest_sum_begin(&sum, 0);
    gb_digest_sum_add(&sum, f->to, f->used);
    return gb_digest_sum_end(&sum);
}
static bool late_out(void) { /* holding the lock; gives it back meanwhile */
    struct gb_keep_frame *f = gb_keep_take(&snap.keep);
    if (!f) return false;
    late_frames++;
    saved_records += f->records;
    gb_lock_free(&lock);
    SURE(written(f) != 1u);
    gb_lock_wait(&lock);
    gb_keep_give(&snap.keep, f);
    return true;
}
static void hold(void) {
    gb_lock_wait(&lock);
    while (saving && gb_keep_crowded(&snap.keep))
        if (!late_out()) { /* another thread writes all of them */
            gb_lock_free(&lock);
            sched_yield();
            gb_lock_wait(&lock);
        }
    gb_head_enter(s);
    s->now = NOW;
}
static void leave(void) {
    gb_head_leave(s, GB_OP_SET);
    gb_lock_free(&lock);
}
static void begin_save(void) {
    uint8_t *late[GB_KEEP_FRAMES];
    hold();
    for (uint32_t i = 0; i < GB_KEEP_FRAMES; i++) late[i] = snap.keep.late[i].to;
    memset(&snap, 0, sizeof snap);
    for (uint32_t i = 0; i < GB_KEEP_FRAMES; i++) snap.keep.late[i].to = late[i];
    snap.keep.bits = calloc(gb_index_places(s->head->length), sizeof(uint64_t));
    saved_records = 0;
    SURE(gb_snap_begin(s, &snap) == GB_OK);
    saving = true;
    leave();
}
static void end_save(struct gb_keep_frame *front) {
    hold();
    struct gb_keep *k = &snap.keep;
    if (k->late[k->head % GB_KEEP_FRAMES].used) k->head++;
    while (late_out()) {}
    SURE(!k->failed && saved_records + front->records == snap.count);
    gb_head_enter(s);
    gb_snap_end(s, &snap);
    saving = false;
    free(k->bits);
    leave();
}
static void *saver(void *none) {
    struct gb_keep_frame front = {.to = malloc(GB_KEEP_PAYLOAD)};
    for (unsigned long i = 0; i < rounds / 2000u + 2u; i++) {
        enum gb_err err = GB_AGAIN;
        begin_save();
        front.used = front.records = 0;
        while (err != GB_OK) {
            bool full = false;
            hold();
            while (late_out()) gb_head_enter(s);
            err = gb_snap_step(s, &snap, &front, &full);
            if (full) saved_records += front.records;
            leave();
            (void)gb_lock_after_you(&lock);
            if (!full) continue;
            SURE(written(&front) != 1u);
            front.used = front.records = 0;
        }
        end_save(&front);
    }
    free(front.to);
    return none;
}

/* --- writers and readers ---------------------------------------------------------------------------------------- */
static void look_at(const struct gb_key *key, uint32_t k) {
    gb_ref ref = gb_store_live(s, key, NOW);
    if (!ref) return;
    uint32_t word = gb_entry_at(s->base, ref)->word, n = gb_value_len(s->base, ref, word);
    for (uint32_t i = 0; i < n; i++) SURE(gb_store_value_at(s, ref, word)[i] == byte_of(k, i));
    gb_store_use(s, ref, NOW);
}
static void *worker(void *of) {
    uint64_t state = *(uint64_t *)of;
    uint8_t value[400];
    for (unsigned long i = 0; i < rounds; i++) {
        uint32_t k = draw(&state) % KEYS, what = draw(&state) % 10u;
        struct gb_put p = {.value = value, .value_len = draw(&state) % 400u};
        for (uint32_t b = 0; b < p.value_len; b++) value[b] = byte_of(k, b);
        gb_store_key(s, &p.key, &k, sizeof k, 1u);
        enum gb_err err = GB_AGAIN;
        if (what == 9u) gb_lock_want(&lock); /* as one who tries again and again */
        while (err == GB_AGAIN) {
            hold();
            err = GB_OK;
            counted++;
            if (what < 5u) err = gb_store_put(s, &p, NOW);
            else if (what < 9u) look_at(&p.key, k);
            else if (gb_store_find(s, &p.key)) gb_room_remove(s, gb_store_find(s, &p.key), GB_CAUSE_DELETE);
            leave();
            if (err == GB_FULL && what < 5u) sched_yield(), err = GB_AGAIN; /* what is pinned for a moment */
        }
        if (what == 9u) gb_lock_wanted_no_more(&lock);
    }
    return NULL;
}

static uint8_t *image_of(uint64_t length) {
    uint8_t *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    SURE(at != MAP_FAILED);
    return at;
}
static void test_store(void) {
    static const uint64_t seed[2] = {3, 4};
    pthread_t threads[THREADS + 1u];
    uint64_t states[THREADS];
    gb_lock_init(&lock);
    for (uint32_t i = 0; i < GB_KEEP_FRAMES; i++) snap.keep.late[i].to = malloc(GB_KEEP_PAYLOAD);
    SURE(gb_room_format(s, image_of(600000u), 600000u, seed, NOW) == GB_OK);
    for (uint32_t i = 0; i < THREADS; i++) {
        states[i] = check_random() | 1u;
        SURE(!pthread_create(&threads[i], NULL, worker, &states[i]));
    }
    SURE(!pthread_create(&threads[THREADS], NULL, saver, NULL));
    for (uint32_t i = 0; i <= THREADS; i++) SURE(!pthread_join(threads[i], NULL));
    SOUND(gb_chain_check, s);
    SURE(counted >= THREADS * rounds && late_frames);
    printf("%llu holds, %llu late frames\n", (unsigned long long)counted, (unsigned long long)late_frames);
}

/* --- a load ----------------------------------------------------------------------------------------------------- */
/* Whether all of it came, and how many there are then. */
static bool load(const char *path, uint64_t length, uint64_t *entries) {
    static const uint64_t seed[2] = {5, 6};
    struct gb_loader l;
    struct gb_snap_head head;
    struct gb_load_fault fault;
    int fd = open(path, O_RDONLY);
    uint64_t size = (uint64_t)lseek(fd, 0, SEEK_END);
    SURE(fd >= 0 && gb_load_head(fd, size, &head, &fault));
    if (!length) length = size * 2u;
    uint8_t *image = image_of(length);
    SURE(gb_room_format(s, image, length, seed, NOW) == GB_OK);
    SURE(gb_load_begin(&l, fd, &head, s, NOW, head.saved_at - NOW));
    bool good = true;
    while (good && !l.done) good = gb_load_run(&l, 5u + check_below(40));
    *entries = s->head->table.count;
    SURE(good || l.fault.rule);
    gb_load_end(&l);
    SOUND(gb_chain_check, s);
    close(fd);
    munmap(image, length);
    return good;
}
static void test_load(const char *path, uint64_t entries, bool damaged) {
    uint64_t there, loads = 0;
    for (unsigned long i = 0; i < rounds; i++, loads++) {
        bool good = load(path, i % 3u == 2u ? gb_room_smallest() + check_below(8u << 20) : 0, &there);
        SURE(good == !damaged && there <= entries && (i % 3u == 2u || damaged || there == entries));
    }
    printf("%llu loads, %s\n", (unsigned long long)loads, damaged ? "each refused" : "all there");
}

int main(int argc, char **argv) {
    check_start(2, argv);
    SURE(argc >= 4);
    rounds = strtoul(argv[2], NULL, 10);
    if (!strcmp(argv[3], "store")) test_store();
    else SURE(argc == 6), test_load(argv[4], strtoull(argv[5], NULL, 10), !strcmp(argv[3], "damaged"));
    return 0;
}
