/* table.c - growth and shrinkage one bucket at a time. */
#include "table.h"

#define DIR_MASK ((1u << GB_DIR_SHIFT) - 1u)
#define ALL_SLOTS ((1u << GB_TABLE_SLOTS) - 1u)

static struct gb_overflow *overflow_at(const struct gb_table *t, gb_ref ref) {
    return (struct gb_overflow *)gb_at(t->base, ref);
}
static struct gb_directory *directory_at(const struct gb_table *t, gb_ref ref) {
    return (struct gb_directory *)gb_at(t->base, ref);
}
static uint32_t filled(const struct gb_bucket *b) { return ALL_SLOTS & ~gb_table_match(b, 0); }

/* A chain under construction or destruction: its last bucket, and the block that is in, if any. */
struct tail {
    struct gb_bucket *bucket, *before;
    gb_ref block;
};
static struct tail tail_of(const struct gb_table *t, uint32_t number) {
    struct tail at = {gb_table_bucket(t, number), NULL, 0};
    t->arena->work.steps++;
    while (at.bucket->overflow) {
        at.before = at.bucket;
        at.block = at.bucket->overflow;
        at.bucket = &overflow_at(t, at.block)->bucket;
        t->arena->work.steps++;
    }
    return at;
}

static gb_ref new_overflow(struct gb_table *t, uint32_t owner) {
    gb_ref ref = gb_arena_alloc(t->arena, GB_TABLE_OVERFLOW_GRANULES, GB_KIND_OVERFLOW);
    if (!ref) return 0;
    struct gb_overflow *o = overflow_at(t, ref);
    o->owner = owner;
    memset(&o->bucket, 0, sizeof o->bucket);
    return ref;
}

void gb_table_directory_again(struct gb_table *t, gb_ref at, uint32_t number) {
    directory_at(t, at)->number = number;
    memset(directory_at(t, at)->chunk, 0, sizeof directory_at(t, at)->chunk);
    t->root->dirs[number] = at;
}

void gb_table_chunk_again(struct gb_table *t, gb_ref at, uint32_t number) {
    struct gb_chunk *chunk = (struct gb_chunk *)gb_at(t->base, at);
    chunk->number = number;
    memset(chunk->spare, 0, sizeof chunk->spare);
    memset(chunk->bucket, 0, sizeof chunk->bucket);
    directory_at(t, t->root->dirs[number >> GB_DIR_SHIFT])->chunk[number & DIR_MASK] = at;
}

void gb_table_size_again(struct gb_table *t, uint32_t buckets) {
    struct gb_table_root *r = t->root;
    r->mask = (1u << (31u - (uint32_t)__builtin_clz(buckets))) - 1u;
    r->split = buckets - r->mask - 1u;
}

/* Makes sure the directory names a chunk for bucket `number`; only ever called for the next one. */
static enum gb_err chunk_ready(struct gb_table *t, uint32_t number, bool *window) {
    uint32_t c = number / GB_TABLE_CHUNK, d = c >> GB_DIR_SHIFT;
    *window = false;
    if (number % GB_TABLE_CHUNK) return GB_OK;
    if (d >= GB_DIR_ROOTS) return GB_TOOBIG;
    if (!t->root->dirs[d]) {
        gb_ref dir = gb_arena_alloc(t->arena, GB_TABLE_DIR_GRANULES, GB_KIND_DIRECTORY);
        if (!dir) return GB_FULL;
        gb_table_directory_again(t, dir, d);
    }
    gb_ref ref = gb_arena_alloc_window(t->arena, GB_KIND_BUCKETS);
    if (!ref) {
        *window = true;
        return GB_FULL; /* an empty directory may stay: the next try finds it */
    }
    gb_table_chunk_again(t, ref, c);
    return GB_OK;
}

/* Bucket `number` was the first of its chunk and is needed no more. */
static void chunk_drop(struct gb_table *t, uint32_t number) {
    uint32_t c = number / GB_TABLE_CHUNK;
    gb_ref *root = &t->root->dirs[c >> GB_DIR_SHIFT];
    if (number % GB_TABLE_CHUNK) return;
    gb_arena_free(t->arena, directory_at(t, *root)->chunk[c & DIR_MASK]);
    directory_at(t, *root)->chunk[c & DIR_MASK] = 0;
    if (c & DIR_MASK) return;
    gb_arena_free(t->arena, *root);
    *root = 0;
}

enum gb_err gb_table_format(struct gb_table *t) {
    bool window;
    memset(t->root, 0, sizeof *t->root);
    return chunk_ready(t, 0, &window);
}

void gb_table_presize(struct gb_table *t, uint32_t buckets) {
    struct gb_table_root *r = t->root;
    uint32_t size = gb_table_size(t);
    bool window;
    if (r->count) return;
    while (size < buckets && !chunk_ready(t, size, &window)) {
        uint32_t left = GB_TABLE_CHUNK - size % GB_TABLE_CHUNK; /* of the chunk, all of it empty */
        size += left < buckets - size ? left : buckets - size;
    }
    gb_table_size_again(t, size);
}

static void put_slot(struct gb_bucket *b, uint32_t slot, uint8_t tag, gb_ref ref) {
    b->ref[slot] = ref;
    b->tag[slot] = tag;
}

enum gb_err gb_table_insert(struct gb_table *t, uint64_t hash, gb_ref ref) {
    uint32_t number = gb_table_bucket_of(t, (uint32_t)hash);
    struct tail at = tail_of(t, number);
    uint32_t empty = gb_table_match(at.bucket, 0);
    if (!empty) {
        gb_ref block = new_overflow(t, number);
        if (!block) return GB_FULL;
        at.bucket->overflow = block;
        at.bucket = &overflow_at(t, block)->bucket;
        empty = ALL_SLOTS;
    }
    put_slot(at.bucket, (uint32_t)__builtin_ctz(empty), gb_table_tag(hash), ref);
    t->root->count++;
    return GB_OK;
}

static struct gb_bucket *slot_of(const struct gb_table *t, uint32_t hash, gb_ref ref,
                                 uint32_t *slot) {
    struct gb_bucket *b = gb_table_bucket(t, gb_table_bucket_of(t, hash));
    for (;;) {
        t->arena->work.steps++;
        for (uint32_t i = 0; i < GB_TABLE_SLOTS; i++)
            if (b->ref[i] == ref) {
                *slot = i;
                return b;
            }
        GB_ASSERT(b->overflow);
        if (!b->overflow) return NULL; /* one way: only in a broken image */
        b = &overflow_at(t, b->overflow)->bucket;
    }
}

/* Frees the last bucket of a chain, an overflow bucket, when it has no slot left. */
static void trim(struct gb_table *t, struct tail *at) {
    if (!filled(at->bucket)) {
        at->before->overflow = 0;
        gb_arena_free(t->arena, at->block);
    }
}

void gb_table_remove(struct gb_table *t, uint32_t hash, gb_ref ref) {
    uint32_t slot = 0;
    struct gb_bucket *b = slot_of(t, hash, ref, &slot);
    if (!b) return; /* one way: only in a broken image */
    t->root->count--;
    if (GB_LIKELY(!b->overflow)) { /* it is the last: only an overflow bucket may need freeing */
        put_slot(b, slot, 0, 0);
        struct gb_bucket *first = gb_table_bucket(t, gb_table_bucket_of(t, hash));
        if (b == first || filled(b)) return;
        struct tail at = tail_of(t, gb_table_bucket_of(t, hash));
        trim(t, &at);
        return;
    }
    struct tail at = tail_of(t, gb_table_bucket_of(t, hash)); /* fill the hole from the last one */
    uint32_t from = (uint32_t)__builtin_ctz(filled(at.bucket));
    put_slot(b, slot, at.bucket->tag[from], at.bucket->ref[from]);
    put_slot(at.bucket, from, 0, 0);
    trim(t, &at);
}

void gb_table_replace(struct gb_table *t, uint32_t hash, gb_ref from, gb_ref to) {
    uint32_t slot = 0;
    struct gb_bucket *b = slot_of(t, hash, from, &slot);
    if (b) b->ref[slot] = to; /* one way: only in a broken image */
}

bool gb_table_wants_grow(const struct gb_table *t) {
    return (uint64_t)t->root->count * 20u > (uint64_t)gb_table_size(t) * GB_TABLE_SLOTS * 14u;
}
bool gb_table_wants_shrink(const struct gb_table *t) {
    uint32_t size = gb_table_size(t);
    return size > 1u && (uint64_t)t->root->count * 2u < (uint64_t)(size - 1u) * GB_TABLE_SLOTS;
}

/* How many of a chain's entries have `bit` set in their hash. */
static uint32_t count_bit(const struct gb_table *t, const struct gb_bucket *b, uint32_t bit) {
    uint32_t n = 0;
    for (;;) {
        for (uint32_t left = filled(b); left; left &= left - 1u) {
            n += (gb_entry_at(t->base, b->ref[__builtin_ctz(left)])->hash & bit) != 0;
            t->arena->work.steps++;
        }
        if (!b->overflow) return n;
        b = &overflow_at(t, b->overflow)->bucket;
    }
}

/* Appends `need` overflow buckets to an empty chain beforehand, or none at all. */
static bool lengthen(struct gb_table *t, uint32_t number, uint32_t need) {
    struct gb_bucket *first = gb_table_bucket(t, number);
    for (; need; need--) {
        gb_ref block = new_overflow(t, number);
        if (!block) {
            while (first->overflow) {
                block = first->overflow;
                first->overflow = overflow_at(t, block)->bucket.overflow;
                gb_arena_free(t->arena, block);
            }
            return false;
        }
        overflow_at(t, block)->bucket.overflow = first->overflow;
        first->overflow = block;
    }
    return true;
}

static struct gb_bucket *with_room(const struct gb_table *t, struct gb_bucket *b) {
    while (!gb_table_match(b, 0)) b = &overflow_at(t, b->overflow)->bucket;
    return b;
}

enum gb_err gb_table_grow(struct gb_table *t, bool *window) {
    struct gb_table_root *r = t->root;
    uint32_t number = r->split, fresh = gb_table_size(t), bit = r->mask + 1u;
    enum gb_err err = chunk_ready(t, fresh, window);
    if (err) return err;
    struct gb_bucket *low = gb_table_bucket(t, number), *high = gb_table_bucket(t, fresh);
    uint32_t moving = count_bit(t, low, bit);
    uint32_t need = moving > GB_TABLE_SLOTS ? (moving - 1u) / GB_TABLE_SLOTS : 0u;
    if (!lengthen(t, fresh, need)) {
        chunk_drop(t, fresh);
        return GB_FULL;
    }
    struct gb_bucket *to = low; /* the low half closes ranks behind the reader */
    for (struct gb_bucket *from = low;;) {
        for (uint32_t left = filled(from); left; left &= left - 1u) {
            uint32_t slot = (uint32_t)__builtin_ctz(left);
            uint8_t tag = from->tag[slot];
            gb_ref ref = from->ref[slot];
            put_slot(from, slot, 0, 0);
            struct gb_bucket *into;
            if (gb_entry_at(t->base, ref)->hash & bit) into = high = with_room(t, high);
            else into = to = with_room(t, to);
            put_slot(into, (uint32_t)__builtin_ctz(gb_table_match(into, 0)), tag, ref);
        }
        if (!from->overflow) break;
        from = &overflow_at(t, from->overflow)->bucket;
    }
    while (to->overflow) { /* what the low half no longer needs */
        gb_ref block = to->overflow;
        to->overflow = overflow_at(t, block)->bucket.overflow;
        gb_arena_free(t->arena, block);
    }
    t->arena->work.steps += 2u;
    if (++r->split > r->mask) {
        r->mask = 2u * r->mask + 1u;
        r->split = 0;
    }
    return GB_OK;
}

enum gb_err gb_table_shrink(struct gb_table *t) {
    struct gb_table_root *r = t->root;
    uint32_t last = gb_table_size(t) - 1u;
    uint32_t mask = r->split ? r->mask : r->mask >> 1, into = last & mask;
    struct gb_bucket *from = gb_table_bucket(t, last);
    /* Only a chainless bucket is merged, so that at most one overflow bucket is needed: at half
     * fill nearly all are; the odd one waits for the next removal. */
    struct tail at = tail_of(t, into);
    if (from->overflow) return GB_FULL;
    uint32_t have = (uint32_t)__builtin_popcount(filled(from));
    uint32_t room = (uint32_t)__builtin_popcount(gb_table_match(at.bucket, 0));
    if (have > room) {
        gb_ref block = new_overflow(t, into);
        if (!block) return GB_FULL;
        at.bucket->overflow = block;
    }
    for (uint32_t left = filled(from); left; left &= left - 1u) {
        uint32_t slot = (uint32_t)__builtin_ctz(left);
        at.bucket = with_room(t, at.bucket);
        uint32_t empty = gb_table_match(at.bucket, 0);
        put_slot(at.bucket, (uint32_t)__builtin_ctz(empty), from->tag[slot], from->ref[slot]);
        put_slot(from, slot, 0, 0);
    }
    t->arena->work.steps += 2u;
    r->split = r->split ? r->split - 1u : mask; /* round back: mask + 1 buckets unsplit, less one */
    r->mask = mask;
    chunk_drop(t, last);
    return GB_OK;
}

void gb_table_moved(struct gb_table *t, gb_ref from, gb_ref to) {
    const uint32_t *word = (const uint32_t *)gb_at(t->base, to);
    uint32_t number = word[1]; /* owner, or number: invariant 5 */
    if (gb_word_kind(word[0]) == GB_KIND_DIRECTORY) {
        t->root->dirs[number] = to;
    } else if (gb_word_kind(word[0]) == GB_KIND_BUCKETS) {
        directory_at(t, t->root->dirs[number >> GB_DIR_SHIFT])->chunk[number & DIR_MASK] = to;
    } else {
        struct gb_bucket *b = gb_table_bucket(t, number);
        while (b->overflow != from && b->overflow) /* one way: it has no end only in a broken image */
            b = &overflow_at(t, b->overflow)->bucket;
        GB_ASSERT(b->overflow == from);
        b->overflow = to;
    }
}

/* Whether `size` bytes at `ref`, which is not 0, end within the arena. */
static bool within(const struct gb_table *t, gb_ref ref, size_t size) {
    gb_ref end = t->arena->root->end;
    return ref < end && size <= (uint64_t)(end - ref) * GB_GRANULE;
}

static bool check_chain(const struct gb_table *t, uint32_t number, uint64_t *count,
                        struct gb_fault *f) {
    const struct gb_bucket *b = gb_table_bucket(t, number);
    for (bool first = true;; first = false) {
        uint32_t full = filled(b);
        if ((b->overflow && full != ALL_SLOTS) || (!first && !full))
            return gb_broken(f, "table 2: only the last bucket of a chain has empty slots", number,
                             ALL_SLOTS, full);
        *count += (uint64_t)__builtin_popcount(full);
        for (uint32_t left = full; left; left &= left - 1u) {
            gb_ref ref = b->ref[__builtin_ctz(left)];
            const struct gb_entry *e = gb_entry_at(t->base, ref);
            if (!gb_entry_lies(t->base, ref, t->arena->root->end))
                return gb_broken(f, "table 1: an entry is in its hash's bucket", ref, t->arena->root->end, number);
            if (gb_word_kind(e->word) != GB_KIND_ENTRY || gb_table_bucket_of(t, e->hash) != number)
                return gb_broken(f, "table 1: an entry is in its hash's bucket", ref, number,
                                 gb_table_bucket_of(t, e->hash));
        }
        if (!b->overflow) return true;
        if (*count > t->root->count)
            return gb_broken(f, "table 3: count is the number of filled slots", number, t->root->count, *count);
        if (!within(t, b->overflow, sizeof(struct gb_overflow)) || overflow_at(t, b->overflow)->owner != number)
            return gb_broken(f, "table 5: an overflow bucket names its chain", b->overflow, number, 0);
        b = &overflow_at(t, b->overflow)->bucket;
    }
}

bool gb_table_check(const struct gb_table *t, struct gb_fault *f) {
    uint32_t size = gb_table_size(t), chunks = (size + GB_TABLE_CHUNK - 1u) / GB_TABLE_CHUNK;
    uint64_t count = 0, seen = 0;
    if (!gb_table_sized(t->root))
        return gb_broken(f, "table 6: there are as many buckets as a table can have", t->root->split, GB_TABLE_MOST, size);
    for (uint32_t d = 0; d < GB_DIR_ROOTS; d++) {
        gb_ref dir = t->root->dirs[d];
        if (!dir) continue;
        if (!within(t, dir, sizeof(struct gb_directory)) || directory_at(t, dir)->number != d)
            return gb_broken(f, "table 5: a directory names its place", dir, d, 0);
        for (uint32_t i = 0; i <= DIR_MASK; i++) {
            gb_ref chunk = directory_at(t, dir)->chunk[i];
            if (!chunk) continue;
            uint32_t number = (d << GB_DIR_SHIFT) + i;
            const struct gb_chunk *c = (const struct gb_chunk *)gb_at(t->base, chunk);
            if (!within(t, chunk, sizeof *c) || c->number != number)
                return gb_broken(f, "table 5: a chunk names its place", chunk, number, 0);
            if (number >= chunks)
                return gb_broken(f, "table 4: chunks are as many as the buckets need", chunk, chunks, number);
            seen++;
        }
    }
    if (seen != chunks)
        return gb_broken(f, "table 4: chunks are as many as the buckets need", 0, chunks, seen);
    for (uint32_t b = 0; b < size; b++)
        if (!check_chain(t, b, &count, f)) return false;
    if (count != t->root->count)
        return gb_broken(f, "table 3: count is the number of filled slots", 0, t->root->count,
                         count);
    return true;
}
