/* clock.c - loaded before libc: the clocks say what they are told to say, by calls (ctypes.CDLL(None)).
 *
 *   clock_shift(real, mono)   nanoseconds added to the wall clocks, and to all that count from the boot
 *   clock_stop(stopped)       they stand still (what was added still counts), or go on from there
 *
 * The coarse clocks are up to 4 ms behind, in steps, as the kernel's are. Clocks of CPU time are left alone. What waits
 * until a moment is told of a clock that was asked before: the moment is moved to where it really is, so that
 * nothing waits for ten years that was to wait for a second.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/time.h>
#include <time.h>

#define SECOND 1000000000ll
#define STEP 4000000ll

static _Atomic int64_t added[2];            /* to wall clocks, to the others */
static _Atomic int64_t stood[2], stopped_at[2]; /* time that passed while they stood; when they stopped, 0: they go */

#define REAL(type, name, ...)                                                                                \
    static type (*real)(__VA_ARGS__);                                                                        \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int64_t ns_of(const struct timespec *t) { return t->tv_sec * SECOND + t->tv_nsec; }
static struct timespec spec_of(int64_t ns) {
    struct timespec t = {ns / SECOND, ns % SECOND};
    if (t.tv_nsec < 0) t.tv_nsec += SECOND, t.tv_sec--;
    return t;
}
static int is_wall(clockid_t id) { return id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE || id == CLOCK_TAI; }
static int is_coarse(clockid_t id) { return id == CLOCK_REALTIME_COARSE || id == CLOCK_MONOTONIC_COARSE; }
static int is_ours(clockid_t id) {
    return is_wall(id) || id == CLOCK_MONOTONIC || id == CLOCK_MONOTONIC_RAW || id == CLOCK_MONOTONIC_COARSE ||
           id == CLOCK_BOOTTIME;
}

static int64_t real_now(clockid_t id) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    struct timespec t = {0, 0};
    if (is_coarse(id)) id = id == CLOCK_REALTIME_COARSE ? CLOCK_REALTIME : CLOCK_MONOTONIC;
    real(id, &t);
    return ns_of(&t);
}
static int64_t said_now(clockid_t id) {
    int which = !is_wall(id);
    int64_t now = real_now(id), still = atomic_load(&stopped_at[which]);
    int64_t said = (still ? still : now - atomic_load(&stood[which])) + atomic_load(&added[which]);
    return is_coarse(id) ? said - said % STEP : said;
}

void clock_shift(int64_t wall, int64_t mono) {
    atomic_store(&added[0], wall);
    atomic_store(&added[1], mono);
}
void clock_stop(int stop) {
    static const clockid_t clocks[2] = {CLOCK_REALTIME, CLOCK_MONOTONIC};
    for (int which = 0; which < 2; which++) {
        int64_t now = real_now(clocks[which]), still = atomic_load(&stopped_at[which]);
        if (stop && !still) atomic_store(&stopped_at[which], now - atomic_load(&stood[which]));
        if (stop || !still) continue;
        atomic_store(&stood[which], now - still);
        atomic_store(&stopped_at[which], 0);
    }
}

/* --- what asks ------------------------------------------------------------------------------------------------- */

int clock_gettime(clockid_t id, struct timespec *to) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    if (!is_ours(id)) return real(id, to);
    *to = spec_of(said_now(id));
    return 0;
}
int gettimeofday(struct timeval *restrict to, void *restrict zone) {
    struct timespec t = spec_of(said_now(CLOCK_REALTIME));
    (void)zone;
    *to = (struct timeval){t.tv_sec, t.tv_nsec / 1000};
    return 0;
}
time_t time(time_t *to) {
    time_t now = spec_of(said_now(CLOCK_REALTIME)).tv_sec;
    if (to) *to = now;
    return now;
}

/* --- what waits until a moment --------------------------------------------------------------------------------- */

static struct timespec moment(clockid_t id, const struct timespec *said) {
    return spec_of(real_now(id) + (ns_of(said) - said_now(id)));
}
int clock_nanosleep(clockid_t id, int flags, const struct timespec *want, struct timespec *left) {
    REAL(int, "clock_nanosleep", clockid_t, int, const struct timespec *, struct timespec *);
    if (!(flags & TIMER_ABSTIME) || !is_ours(id)) return real(id, flags, want, left);
    struct timespec at = moment(id, want);
    return real(id, flags, &at, left);
}
int sem_clockwait(sem_t *s, clockid_t id, const struct timespec *until) {
    REAL(int, "sem_clockwait", sem_t *, clockid_t, const struct timespec *);
    struct timespec at = moment(id, until);
    return real(s, id, &at);
}
int sem_timedwait(sem_t *restrict s, const struct timespec *restrict until) {
    REAL(int, "sem_timedwait", sem_t *, const struct timespec *);
    struct timespec at = moment(CLOCK_REALTIME, until);
    return real(s, &at);
}
int pthread_cond_timedwait(pthread_cond_t *restrict c, pthread_mutex_t *restrict m, const struct timespec *restrict until) {
    REAL(int, "pthread_cond_timedwait", pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    /* Which clock a condition goes by cannot be asked: the one that the moment is nearer to. */
    int64_t wall = ns_of(until) - said_now(CLOCK_REALTIME), mono = ns_of(until) - said_now(CLOCK_MONOTONIC);
    int64_t far_wall = wall < 0 ? -wall : wall, far_mono = mono < 0 ? -mono : mono;
    struct timespec at = moment(far_wall < far_mono ? CLOCK_REALTIME : CLOCK_MONOTONIC, until);
    return real(c, m, &at);
}
