/* _news.h - a reader of PackedStore's events.
 *
 * WHAT      A news is a cursor into the image's ring, a filter, and the records it has copied out but not
 *           handed over yet: from then on nobody can overwrite them, nor does it matter that the cache is
 *           closed. A batch is some of them, handed over: bytes until somebody looks at one, which then
 *           becomes an Event.
 *
 * INVARIANT 1 what was overwritten before it was copied out is told, once, as a `lost` with its count.
 *
 * COST      take: one hold for 64 KiB of records, or 64 windows walked over: 10 ns an event. An Event: 100 ns.
 *
 * NOT HERE  who is told, in which thread (notify.py); what the records are (ring).
 */
#ifndef GB_NEWS_H
#define GB_NEWS_H

#include "_box.h"
#include "_event.h"

#define GB_NEWS_BUFFER 65536u

struct gb_news {
    struct gb_ring_cursor at;
    struct gb_ring_filter filter;
    PyObject *prefix; /* bytes: what filter.prefix points into */
    uint8_t *buffer;
    size_t room, used, done; /* of the buffer; [done, used) is still to be handed over */
    bool none; /* there was no ring: nothing was recorded that it could tell of */
    uint64_t lost, lost_last; /* how many, the number of the last; told where they were: */
    size_t lost_at;           /* behind what was fetched before them, which ends here */
};

struct gb_batch {
    uint8_t *bytes;
    uint32_t *place;          /* of each record in `bytes` */
    Py_ssize_t count;         /* of Events; the first is a `lost` if some were */
    uint64_t lost, lost_last; /* how many, the number of the last */
};

/* A cursor on what comes (`since` < 0), or on what is kept with a higher number than that; `prefix` may be
 * NULL. False with an exception. */
bool gb_news_open(struct gb_door *d, struct gb_news *n, int64_t since, uint32_t kinds, PyObject *prefix,
                  bool values);
/* Some of the next, at most `most`; `count` 0 if there is no news. False with an exception. */
bool gb_news_take(struct gb_door *d, struct gb_news *n, Py_ssize_t most, struct gb_batch *b);
/* The Event at a place, or its key (None of one that has none). NULL with an exception. */
PyObject *gb_news_event(const struct gb_door *d, const struct gb_batch *b, Py_ssize_t i);
PyObject *gb_news_key(const struct gb_batch *b, Py_ssize_t i);
void gb_news_drop(struct gb_batch *b);
/* Copies out all there is: the cache is about to be closed. */
bool gb_news_finish(struct gb_door *d, struct gb_news *n);
/* Whether a pull would find something to look at. */
bool gb_news_pending(struct gb_door *d, const struct gb_news *n);
void gb_news_close(struct gb_news *n);

#endif
