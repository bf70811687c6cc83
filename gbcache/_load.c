/* _load.c - frames checked, then records put. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* pread */
#endif
#include "_load.h"
#include "_pair.h"
#include "_types.h"
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#define ROOM ((uint64_t)1 << 20) /* of a loader's buffer: many frames at a time */
#define RECORDS (GB_KEEP_PAYLOAD / 16u) /* a frame has at most: 12 bytes and a key or a value take 16 */

bool gb_load_wrong(struct gb_load_fault *f, const char *rule, uint64_t at) {
    f->rule = rule;
    f->at = at;
    f->error = 0;
    return false;
}

bool gb_load_short(struct gb_load_fault *f, uint64_t at) {
    *f = (struct gb_load_fault){"there is memory", at, ENOMEM};
    return false;
}

/* Exactly n bytes; the file was long enough when it was opened. */
bool gb_load_bytes(int fd, void *to, uint64_t n, uint64_t at, struct gb_load_fault *f) {
    uint8_t *p = (uint8_t *)to;
    while (n) {
        ssize_t got = pread(fd, p, n, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            gb_load_wrong(f, "the file can be read", at);
            f->error = errno;
            return false;
        }
        if (!got) return gb_load_wrong(f, "the file is as long as it was when it was opened", at);
        p += got;
        at += (uint64_t)got;
        n -= (uint64_t)got;
    }
    return true;
}

static bool ascii(const uint8_t *p, uint64_t n) {
    uint64_t high = 0, word;
    for (; n >= 8u; n -= 8u, p += 8) {
        memcpy(&word, p, 8);
        high |= word;
    }
    for (; n; n--, p++) high |= *p;
    return !(high & 0x8080808080808080u);
}

/* Type and length go together: what reads them as an object takes that for granted. The bytes of a text are
 * looked at by the caller, who may not have all of them. */
static bool typed_right(const struct gb_record *r) {
    uint32_t value = (uint32_t)r->types >> 2, key = r->types & 3u;
    if (value > GB_BOX_UTF8 || (key == GB_BOX_KEY_INT && r->key_len != 8u)) return false;
    if (value == GB_BOX_INT || value == GB_BOX_FLOAT) return r->value_len == 8u;
    return value != GB_BOX_CONST || r->value_len == 1u;
}

/* A record, all of it in [at, at + left), as this release could have written it; else the broken rule. */
const char *gb_load_record(const uint8_t *at, uint64_t left, struct gb_snap_record *r) {
    const char *rule = gb_snap_read(at, left, r);
    if (rule) return rule;
    if (!typed_right(&r->head)) return "a value's length is one of its type";
    if (r->head.types >> 2 == GB_BOX_ASCII && !ascii(r->value, r->head.value_len)) return "ASCII text is ASCII";
    return NULL;
}

bool gb_load_head(int fd, uint64_t length, struct gb_snap_head *h, struct gb_load_fault *f) {
    uint8_t page[GB_SNAP_HEAD];
    struct gb_sum sum;
    if (length < GB_SNAP_HEAD) return gb_load_wrong(f, "a snapshot has a head of 4096 bytes", length);
    if (!gb_load_bytes(fd, page, sizeof page, 0, f)) return false;
    memcpy(h, page, sizeof *h);
    if (h->magic != GB_SNAP_MAGIC) return gb_load_wrong(f, "a snapshot begins with GbSnap1 (and a live file, which path= and mode 'r+' open, with GBcache1)", 0);
    if (h->order != 0x01020304u)
        return gb_load_wrong(f, "the file was written by a machine of this byte order", offsetof(struct gb_snap_head, order));
    if (h->version != GB_SNAP_VERSION)
        return gb_load_wrong(f, "the file is of version 1, which this release knows", offsetof(struct gb_snap_head, version));
    gb_digest_sum_begin(&sum, 0);
    gb_digest_sum_add(&sum, h, offsetof(struct gb_snap_head, sum));
    if (gb_digest_sum_end(&sum) != h->sum) return gb_load_wrong(f, "the head's checksum is right", offsetof(struct gb_snap_head, sum));
    for (size_t i = sizeof *h; i < sizeof page; i++)
        if (page[i]) return gb_load_wrong(f, "the rest of the head is zero", i);
    bool lies = h->length == length && h->index_at >= GB_SNAP_HEAD && h->index_at <= length && h->index_at % GB_GRANULE == 0 &&
                h->slots <= length / sizeof(uint32_t) && (length - h->index_at) == h->slots * sizeof(uint32_t) &&
                h->slots > h->entries && h->slots <= UINT32_MAX && h->entries <= (h->index_at - GB_SNAP_HEAD) / 16u &&
                h->frames <= (h->index_at - GB_SNAP_HEAD) / GB_LOAD_FRAME && h->index_at / GB_GRANULE <= UINT32_MAX;
    if (!lies) return gb_load_wrong(f, "lengths and counts of the head are those of the file", offsetof(struct gb_snap_head, entries));
    if (memchr(h->codec, 0, sizeof h->codec) == NULL || h->saved_at < 0 || h->saved_at > 253402300799999 /* the year 9999 ends */ ||
        h->max_entries > UINT32_MAX ||
        h->seq >= (uint64_t)1 << 62)
        return gb_load_wrong(f, "names, times and numbers of the head are possible ones", offsetof(struct gb_snap_head, saved_at));
    return true;
}

/* A frame's head, whose 32 bytes are there; its payload ends before the index. */
bool gb_load_frame_right(const struct gb_snap_head *h, const struct gb_snap_frame *x, uint64_t at, uint32_t number,
                       struct gb_load_fault *f) {
    if (x->magic != GB_SNAP_FRAME || x->kind >= GB_SNAP_KINDS || x->number != number || !x->bytes ||
        x->bytes % GB_GRANULE)
        return gb_load_wrong(f, "a frame is of a known kind, and in its turn", at);
    if (x->bytes > h->index_at - at - GB_LOAD_FRAME || (x->kind != GB_SNAP_LONG && x->bytes > GB_KEEP_PAYLOAD))
        return gb_load_wrong(f, "a frame ends before the index", at);
    if (x->kind == GB_SNAP_LONG ? x->records != 1u : x->records > x->bytes / 16u || !x->records)
        return gb_load_wrong(f, "a frame has as many records as it says", at);
    return true;
}

bool gb_load_sum_right(const struct gb_snap_head *h, const struct gb_snap_frame *x, const uint8_t *payload) {
    struct gb_sum sum;
    gb_digest_sum_begin(&sum, gb_load_about(h));
    gb_digest_sum_add(&sum, x, offsetof(struct gb_snap_frame, sum));
    gb_digest_sum_add(&sum, payload, x->bytes);
    return gb_digest_sum_end(&sum) == x->sum;
}

bool gb_load_records_right(const struct gb_snap_frame *x, const uint8_t *payload, uint64_t at,
                           struct gb_load_fault *f) {
    uint64_t used = 0;
    for (uint32_t i = 0; i < x->records; i++) {
        struct gb_snap_record r;
        const char *rule = gb_load_record(payload + used, x->bytes - used, &r);
        if (rule) return gb_load_wrong(f, rule, at + GB_LOAD_FRAME + used);
        used += r.bytes;
    }
    return used == x->bytes || gb_load_wrong(f, "a frame has as many records as it says", at + GB_LOAD_FRAME + used);
}

/* --- loading --------------------------------------------------------------------------------------------------- */

bool gb_load_begin(struct gb_loader *l, int fd, const struct gb_snap_head *head, struct gb_store *store,
                     uint64_t now, int64_t wall) {
    *l = (struct gb_loader){.fd = fd, .head = *head, .store = store, .now = now, .wall = wall, .frame = GB_SNAP_HEAD};
    l->buffer = malloc(ROOM);
    l->puts = malloc(RECORDS * sizeof *l->puts);
    l->pair = l->buffer && l->puts ? gb_pair_begin(l) : NULL;
    if (!l->pair) gb_load_end(l);
    return l->pair != NULL;
}

void gb_load_end(struct gb_loader *l) {
    free(l->buffer);
    free(l->puts);
    free(l->late);
    gb_pair_end(l->pair);
    l->pair = NULL;
    l->buffer = NULL;
    l->puts = NULL;
    l->late = NULL;
}

/* Bytes [at, at + n) of the file, in the buffer; NULL with a fault. */
static const uint8_t *window(struct gb_loader *l, uint64_t at, uint64_t n) {
    if (at >= l->at && at + n <= l->at + l->used) return l->buffer + (at - l->at);
    uint64_t most = l->head.index_at - at;
    l->used = 0;
    if (!gb_load_bytes(l->fd, l->buffer, most < ROOM ? most : ROOM, at, &l->fault)) return NULL;
    l->at = at;
    l->used = most < ROOM ? most : ROOM;
    return l->buffer;
}

/* A put that needs no lock, however long the value: the bytes may come in pieces (value of `p` moves along). */
static bool put_short(struct gb_loader *l, const struct gb_put *p) {
    enum gb_err err;
    do {
        gb_head_enter(l->store);
        err = gb_store_put(l->store, p, l->now);
    } while (err == GB_AGAIN);
    return !err;
}

static bool chain_begin(struct gb_loader *l, struct gb_chain_write *w, const struct gb_put *p) {
    enum gb_err err;
    do {
        gb_head_enter(l->store);
        err = gb_chain_begin(l->store, w, p, l->now);
    } while (err == GB_AGAIN);
    return !err;
}

static bool chain_end(struct gb_loader *l, struct gb_chain_write *w, const struct gb_put *p) {
    enum gb_err err;
    do {
        gb_head_enter(l->store);
        err = gb_chain_commit(l->store, w, p, l->now);
    } while (err == GB_AGAIN);
    if (err) gb_chain_abort(l->store, w);
    return !err;
}

/* Appends value bytes [w->done, w->done + n), which lie at `bytes`. */
static bool chain_on(struct gb_loader *l, struct gb_chain_write *w, const struct gb_put *p, const uint8_t *bytes,
                     uint32_t n) {
    struct gb_put piece = *p;
    piece.value = bytes - w->done; /* step reads at value + done */
    piece.value_len = w->done + n;
    enum gb_err err = GB_AGAIN;
    while (err == GB_AGAIN) {
        gb_head_enter(l->store);
        err = gb_chain_step(l->store, w, &piece, l->now);
    }
    return !err;
}

static bool put_any(struct gb_loader *l, const struct gb_put *p) {
    struct gb_chain_write w;
    if (gb_store_fits_inline(p)) return put_short(l, p);
    if (!chain_begin(l, &w, p)) return false;
    if (chain_on(l, &w, p, p->value, p->value_len)) return chain_end(l, &w, p);
    gb_chain_abort(l->store, &w);
    return false;
}

/* All records of a payload that was checked: looked at first, then put, their buckets fetched ahead. */
static bool put_frame(struct gb_loader *l, const struct gb_snap_frame *x, const uint8_t *payload, uint64_t at) {
    struct gb_put *puts = l->puts;
    const struct gb_table *t = &l->store->index.table;
    uint64_t used = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < x->records; i++) {
        struct gb_snap_record r;
        const char *rule = gb_load_record(payload + used, x->bytes - used, &r);
        if (rule) return gb_load_wrong(&l->fault, rule, at + GB_LOAD_FRAME + used);
        used += r.bytes;
        if (gb_snap_put(l->store, &r, l->now, l->wall, l->head.saved_at, &puts[n])) n++;
        else l->dropped++;
    }
    if (used != x->bytes) return gb_load_wrong(&l->fault, "a frame has as many records as it says", at + GB_LOAD_FRAME + used);
    for (uint32_t i = 0; i < n; i++) {
        if (i + 8u < n)
            __builtin_prefetch(gb_table_bucket(t, gb_table_bucket_of(t, (uint32_t)puts[i + 8u].key.hash)), 1);
        if (!put_any(l, &puts[i])) l->dropped++;
    }
    l->records += x->records;
    return true;
}

/* A long value, in pieces: its entry is made at the end, if the sum is right. */
static bool put_long(struct gb_loader *l, const struct gb_snap_frame *x, uint64_t at) {
    struct gb_snap_record r;
    struct gb_chain_write w;
    struct gb_put p;
    struct gb_sum sum;
    uint64_t first = x->bytes < 65536u ? x->bytes : 65536u, done = 0;
    const uint8_t *bytes = window(l, at + GB_LOAD_FRAME, first);
    if (!bytes) return false;
    const char *rule = gb_snap_parse(bytes, x->bytes, &r); /* head, times and key are there, all at once */
    if (!rule && !typed_right(&r.head)) rule = "a value's length is one of its type";
    if (rule || r.bytes != x->bytes) return gb_load_wrong(&l->fault, rule ? rule : "a frame has as many records as it says", at + GB_LOAD_FRAME);
    uint8_t key[GB_RECORD_KEY_MAX];
    memcpy(key, r.key, r.head.key_len);
    uint64_t skip = (uint64_t)(r.value - bytes), end = skip + r.head.value_len;
    bool take = gb_snap_put(l->store, &r, l->now, l->wall, l->head.saved_at, &p);
    p.key.bytes = key;
    bool inside = take && gb_store_fits_inline(&p) && first == x->bytes;
    bool text = true, zero = true, begun = take && !inside && chain_begin(l, &w, &p), filling = begun;
    gb_digest_sum_begin(&sum, gb_load_about(&l->head));
    gb_digest_sum_add(&sum, x, offsetof(struct gb_snap_frame, sum));
    while (done < x->bytes) {
        uint64_t n = x->bytes - done < 65536u ? x->bytes - done : 65536u;
        bytes = window(l, at + GB_LOAD_FRAME + done, n);
        if (!bytes) break;
        gb_digest_sum_add(&sum, bytes, n);
        uint64_t from = done > skip ? done : skip, to = done + n < end ? done + n : end;
        if (from < to && r.head.types >> 2 == GB_BOX_ASCII) text &= ascii(bytes + (from - done), to - from);
        if (filling && from < to) filling = chain_on(l, &w, &p, bytes + (from - done), (uint32_t)(to - from));
        for (uint64_t i = done > end ? done : end; i < done + n; i++) zero &= !bytes[i - done];
        done += n;
    }
    bool right = bytes && text && zero && gb_digest_sum_end(&sum) == x->sum;
    bool made = right && inside;
    if (made) {
        p.value = bytes + skip;
        made = put_any(l, &p);
    }
    if (begun && right && filling) made = chain_end(l, &w, &p);
    else if (begun) gb_chain_abort(l->store, &w);
    l->dropped += right && !made;
    l->records++;
    if (bytes && !text) return gb_load_wrong(&l->fault, "ASCII text is ASCII", at);
    if (bytes && !zero) return gb_load_wrong(&l->fault, "the rest of a record is zero", at);
    return right || (bytes && gb_load_wrong(&l->fault, "a frame's checksum is right", at));
}

static bool note_late(struct gb_loader *l, uint64_t at) {
    if (l->lates == l->late_room) {
        uint64_t room = l->late_room ? 2u * l->late_room : 64u;
        uint64_t *more = realloc(l->late, room * sizeof *more);
        if (!more) return gb_load_short(&l->fault, at);
        l->late = more;
        l->late_room = room;
    }
    l->late[l->lates++] = at;
    return true;
}

/* The frame at `at`; *next: where it ends. In the first round late ones are checked and noted, in the second put. */
static bool one_frame(struct gb_loader *l, uint64_t at, bool second, uint64_t *next) {
    struct gb_snap_frame x;
    if (l->head.index_at - at < GB_LOAD_FRAME) return gb_load_wrong(&l->fault, "the frames meet the index", at);
    const uint8_t *bytes = window(l, at, GB_LOAD_FRAME);
    if (!bytes) return false;
    memcpy(&x, bytes, sizeof x);
    if (!gb_load_frame_right(&l->head, &x, at, second ? x.number : l->number, &l->fault)) return false;
    *next = at + GB_LOAD_FRAME + x.bytes;
    if (x.kind == GB_SNAP_LONG) return put_long(l, &x, at);
    bytes = window(l, at, GB_LOAD_FRAME + x.bytes);
    if (!bytes) return false;
    if (!gb_load_sum_right(&l->head, &x, bytes + GB_LOAD_FRAME)) return gb_load_wrong(&l->fault, "a frame's checksum is right", at);
    if (x.kind == GB_SNAP_LATE && !second) return note_late(l, at);
    return put_frame(l, &x, bytes + GB_LOAD_FRAME, at);
}

/* The index is not used, but a file that has a wrong one is damaged. */
static bool index_right(struct gb_loader *l) {
    struct gb_sum sum;
    gb_digest_sum_begin(&sum, gb_load_about(&l->head));
    for (uint64_t at = l->head.index_at; at < l->head.length;) {
        uint64_t n = l->head.length - at < ROOM ? l->head.length - at : ROOM;
        l->used = 0;
        if (!gb_load_bytes(l->fd, l->buffer, n, at, &l->fault)) return false;
        gb_digest_sum_add(&sum, l->buffer, n);
        at += n;
    }
    return gb_digest_sum_end(&sum) == l->head.index_sum || gb_load_wrong(&l->fault, "the index's checksum is right", l->head.index_at);
}

static bool load_on(struct gb_loader *l) {
    uint64_t next;
    if (l->frame < l->head.index_at) {
        if (!one_frame(l, l->frame, false, &next)) return false;
        l->frame = next;
        l->number++;
        return true;
    }
    if (l->late_next < l->lates) return one_frame(l, l->late[l->late_next++], true, &next);
    if (l->number != l->head.frames || l->records != l->head.entries)
        return gb_load_wrong(&l->fault, "frames and entries are as many as the head says", l->head.index_at);
    l->done = true;
    return index_right(l);
}

bool gb_load_run(struct gb_loader *l, uint32_t ms) {
    int64_t until = gb_pair_clock() + (int64_t)ms * 1000000;
    do {
        gb_pair_run(l, until);
        if (!l->done && !load_on(l)) return false;
    } while (!l->done && gb_pair_clock() < until);
    gb_head_enter(l->store);
    return true;
}
