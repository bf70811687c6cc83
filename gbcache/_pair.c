/* _pair.c - parts of a file, taken in turn. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* madvise */
#endif
#include "_pair.h"
#include "lock.h"
#include "pour.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#if defined(__linux__) && !defined(MADV_POPULATE_WRITE)
#define MADV_POPULATE_WRITE 23 /* Linux 5.14; an older one says EINVAL */
#endif
#define PAGE 4096u
#define TURN_LOOKS 200u
#define STEADY 8u                        /* parts in a row that went smoothly make a second thread worth it */
#define WORTH (16u * GB_PAIR_ROOM)       /* and so many bytes that are left */
#define RECORDS_OF_PART (GB_PAIR_ROOM / 16u)

/* Some frames, in the hands of one thread. */
struct part {
    uint8_t *bytes; /* [from, from + used) of the file */
    uint64_t *hash; /* of each record that is to be put */
    uint64_t from, used, turn;
    uint32_t number, frames; /* of its first frame; how many */
    uint32_t records;
    struct gb_pour_sum sum; /* of those to be put */
    gb_ref run;              /* 0: none, or all of it is in the cache */
    uint32_t done;           /* entries of it that are */
    bool smooth;
};
struct gb_pair {
    struct gb_loader *l;
    struct gb_pour how;
    struct gb_lock reading; /* the loader's place, stop, given */
    struct gb_lock putting; /* the image, but for runs being filled; full */
    struct part part[2];
    bool stop;            /* no more parts */
    uint64_t given;       /* parts, ever */
    _Atomic uint64_t turn; /* of the part to be indexed next; who waits for it sleeps by these: */
    pthread_mutex_t order;
    pthread_cond_t turned;
    bool stuck;           /* the part whose turn it is, and all after it, are as if never taken */
    bool full;            /* there was no run for a part: from here on everything goes the plain way */
    uint32_t steady;
    int64_t until;
};

int64_t gb_pair_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* --- a part ---------------------------------------------------------------------------------------------------- */

/* One more frame of the part, if it is a main frame that fits. Only its head is read. */
static bool hop(const struct gb_loader *l, struct part *w) {
    struct gb_load_fault f;
    struct gb_snap_frame x;
    uint64_t at = w->from + w->used;
    if (l->head.index_at - at < GB_LOAD_FRAME || w->used + GB_LOAD_FRAME > GB_PAIR_ROOM) return false;
    if (!gb_load_bytes(l->fd, &x, sizeof x, at, &f)) return false;
    if (!gb_load_frame_right(&l->head, &x, at, w->number + w->frames, &f) || x.kind != GB_SNAP_MAIN) return false;
    if (x.bytes > GB_PAIR_ROOM - GB_LOAD_FRAME - w->used) return false;
    w->used += GB_LOAD_FRAME + x.bytes;
    w->frames++;
    return true;
}

static bool take_part(struct gb_pair *p, struct part *w) {
    struct gb_loader *l = p->l;
    gb_lock_wait(&p->reading);
    w->from = l->frame;
    w->number = l->number;
    w->used = w->frames = 0;
    if (gb_pair_clock() >= p->until) p->stop = true;
    while (!p->stop && hop(l, w)) {}
    if (!w->frames) p->stop = true; /* the end, or the plain way sees what it is */
    l->frame += w->used;
    l->number += w->frames;
    w->turn = p->given;
    p->given += w->frames != 0;
    gb_lock_free(&p->reading);
    return w->frames != 0;
}

/* Reads all of it, and looks at all of it, as if its frames' heads had not been seen yet. */
static bool look(const struct gb_pair *p, struct part *w) {
    const struct gb_loader *l = p->l;
    struct gb_load_fault f;
    struct gb_snap_frame x;
    w->sum = (struct gb_pour_sum){0};
    w->records = w->done = 0;
    w->run = 0;
    if (!gb_load_bytes(l->fd, w->bytes, w->used, w->from, &f)) return false;
    uint64_t at = 0;
    for (uint32_t i = 0; i < w->frames; i++, at += GB_LOAD_FRAME + x.bytes) {
        const uint8_t *payload = w->bytes + at + GB_LOAD_FRAME;
        if (w->used - at < GB_LOAD_FRAME) return false;
        memcpy(&x, w->bytes + at, sizeof x);
        if (!gb_load_frame_right(&l->head, &x, w->from + at, w->number + i, &f) || x.kind != GB_SNAP_MAIN) return false;
        if (x.bytes > w->used - at - GB_LOAD_FRAME || !gb_load_sum_right(&l->head, &x, payload)) return false;
        if (!gb_load_records_right(&x, payload, w->from + at, &f)) return false;
        if (!gb_pour_count(&p->how, payload, x.bytes, x.records, &w->sum, w->hash + w->sum.entries)) return false;
        w->records += x.records;
    }
    return at == w->used;
}

/* Huge pages while much is poured: zeros by the 2 MiB take a third off a load, and all of them are about to be filled.
 * Not for the cache in use, whose sets would wait for them. The whole mapping, so that it stays one. */
static void huge(const struct gb_loader *l, bool yes) {
#ifdef MADV_HUGEPAGE
    const struct gb_store *s = l->store;
    if (!s || s->live || l->head.index_at <= WORTH) return;
    (void)madvise(s->base, s->head->length, yes ? MADV_HUGEPAGE : MADV_NOHUGEPAGE); /* no more than a help */
#else
    (void)l, (void)yes;
#endif
}

/* The run's pages, all at once: a fault for each takes a third longer. */
static void populate(const struct gb_store *s, const struct part *w) {
#ifdef MADV_POPULATE_WRITE
    uint64_t from = (uint64_t)w->run * GB_GRANULE / PAGE, end = (uint64_t)(w->run + w->sum.granules) * GB_GRANULE / PAGE;
    if (!s->live) (void)madvise(s->base + from * PAGE, (end - from) * PAGE, MADV_POPULATE_WRITE); /* no more than a help */
#else
    (void)s, (void)w;
#endif
}

/* A run of the image for it. */
static bool room_for(struct gb_pair *p, struct part *w) {
    if (!w->sum.entries) return true;
    gb_lock_wait(&p->putting);
    w->run = gb_pour_run(p->l->store, &w->sum);
    if (!w->run) p->full = true;
    gb_lock_free(&p->putting);
    if (w->run) populate(p->l->store, w);
    return w->run != 0;
}

static void lay_down(const struct gb_pair *p, const struct part *w) {
    const uint8_t *at = w->bytes, *end = w->bytes + w->used;
    const uint64_t *hash = w->hash;
    struct gb_snap_frame x;
    gb_ref to = w->run;
    for (; at < end && to; at += x.bytes) {
        memcpy(&x, at, sizeof x);
        at += GB_LOAD_FRAME;
        to = gb_pour_lay(&p->how, at, x.bytes, x.records, &hash, to);
    }
}

/* Whether all parts before it are indexed; false: one of them never will be. */
static bool my_turn(struct gb_pair *p, const struct part *w) {
    for (uint32_t looks = 0; looks < TURN_LOOKS; looks++) /* most often the other is about to be done */
        if (atomic_load(&p->turn) == w->turn) return true;
    pthread_mutex_lock(&p->order);
    while (atomic_load(&p->turn) != w->turn && !p->stuck) pthread_cond_wait(&p->turned, &p->order);
    pthread_mutex_unlock(&p->order);
    return atomic_load(&p->turn) == w->turn;
}

/* The part whose turn it was is done, or (stuck) never will be. */
static void next_turn(struct gb_pair *p, bool stuck) {
    pthread_mutex_lock(&p->order);
    p->stuck = stuck;
    if (!stuck) atomic_fetch_add(&p->turn, 1u);
    pthread_cond_signal(&p->turned);
    pthread_mutex_unlock(&p->order);
}

/* As if the part had never been taken: its frames are the first to be read again. */
static void untake(struct gb_pair *p, struct part *w) {
    gb_lock_wait(&p->reading);
    p->stop = true;
    p->l->frame = w->from;
    p->l->number = w->number;
    gb_lock_free(&p->reading);
    p->steady = 0;
    next_turn(p, true);
}

/* What is in the part is in the cache; or the plain way is to put it, once what is left of it is undone. */
static bool index_part(struct gb_pair *p, struct part *w) {
    struct gb_loader *l = p->l;
    if (!my_turn(p, w)) return false;
    bool told = l->records + w->records <= l->head.entries; /* else the head lies, and the table is too small for it */
    if (w->run && told) {
        gb_lock_wait(&p->putting);
        w->done = gb_pour_index(l->store, w->run, w->sum.entries, w->hash);
        gb_lock_free(&p->putting);
    }
    if (!w->smooth || !told || w->done < w->sum.entries) {
        untake(p, w);
        return false;
    }
    l->records += w->records;
    l->dropped += w->records - w->sum.entries;
    p->steady++;
    w->run = 0;
    next_turn(p, false);
    return true;
}

static bool do_part(struct gb_pair *p, struct part *w) {
    if (!take_part(p, w)) return false;
    w->smooth = look(p, w) && room_for(p, w);
    if (w->smooth) lay_down(p, w);
    return index_part(p, w);
}

/* --- the two of them ------------------------------------------------------------------------------------------- */

static void *second(void *of) {
    struct gb_pair *p = (struct gb_pair *)of;
    while (do_part(p, &p->part[1])) {}
    return NULL;
}

/* No signal is delivered to a thread that knows no Python. False: the system has none for us, and one does it all. */
static bool start(struct gb_pair *p, pthread_t *thread) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = !pthread_create(thread, NULL, second, p);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

static bool worth_two(const struct gb_pair *p) {
    const struct gb_loader *l = p->l;
    return p->steady >= STEADY && l->frame < l->head.index_at && l->head.index_at - l->frame > WORTH;
}

void gb_pair_run(struct gb_loader *l, int64_t until) {
    struct gb_pair *p = l->pair;
    pthread_t thread;
    bool two = false, tried = false;
    if (p->full) return;
    p->until = until;
    p->stop = false;
    p->given = p->turn;
    p->stuck = false;
    do {
        if (!tried && worth_two(p)) tried = true, two = start(p, &thread);
    } while (do_part(p, &p->part[0]));
    if (two) pthread_join(thread, NULL);
    for (uint32_t i = 0; i < 2u; i++) {
        struct part *w = &p->part[i];
        if (w->run) gb_pour_undo(l->store, w->run, w->sum.entries, w->done);
        w->run = 0;
    }
}

struct gb_pair *gb_pair_begin(struct gb_loader *l) {
    struct gb_pair *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->l = l;
    p->how = (struct gb_pour){l->store, l->now, l->wall, l->head.saved_at};
    gb_lock_init(&p->reading);
    gb_lock_init(&p->putting);
    pthread_mutex_init(&p->order, NULL);
    pthread_cond_init(&p->turned, NULL);
    for (uint32_t i = 0; i < 2u; i++) {
        p->part[i].bytes = malloc(GB_PAIR_ROOM);
        p->part[i].hash = malloc(RECORDS_OF_PART * sizeof(uint64_t));
        if (p->part[i].bytes && p->part[i].hash) continue;
        gb_pair_end(p);
        return NULL;
    }
    huge(l, true);
    gb_pour_presize(l->store, l->head.entries);
    return p;
}

void gb_pair_end(struct gb_pair *p) {
    for (uint32_t i = 0; p && i < 2u; i++) {
        free(p->part[i].bytes);
        free(p->part[i].hash);
    }
    if (!p) return;
    huge(p->l, false);
    pthread_cond_destroy(&p->turned);
    pthread_mutex_destroy(&p->order);
    free(p);
}
