/* _pages.c - the walk. LMDB's format, version 1 (0.9): all numbers are the machine's own, 64 bits. */
#include "_pages.h"

enum { HEAD = 16, NODE = 8, BRANCH = 1, LEAF = 2, OVERFLOW = 4, META = 8, DEPTH = 32 };
enum { BIG = 1, SUB = 2 };
enum { PAGE_LEAST = 256, PAGE_MOST = 32768 };
enum { D_FLAGS, D_BRANCH, D_LEAF, D_OVERFLOW, D_ENTRIES, D_ROOT }; /* words of a tree's head */
#define MAGIC 0xBEEFC0DEu
#define NONE UINT64_MAX

static uint64_t u64(const uint8_t *p) { return gb_digest_read8(p); }
static uint64_t u32(const uint8_t *p) { return gb_digest_read4(p); }
static uint32_t u16(const uint8_t *p) {
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}

static bool bad(struct gb_pages *p, const uint8_t *where, const char *rule) {
    if (!p->rule) p->rule = rule, p->at = (uint64_t)(where - p->file);
    return false;
}

struct key {
    const uint8_t *at;
    size_t n;
};

/* One tree being walked: what its head says is counted along. */
struct tree {
    const uint64_t *says;
    bool (*node)(struct gb_pages *, struct key, const uint8_t *, uint64_t);
    bool numbers; /* keys are 8-byte numbers, not text */
    uint32_t flags; /* that a node may have, besides BIG */
    struct key last, bound;
    uint64_t branches, leaves, overflows, entries;
};

static int order(const struct tree *t, struct key a, struct key b) {
    if (t->numbers) {
        uint64_t x = u64(a.at), y = u64(b.at);
        return x < y ? -1 : x > y;
    }
    int c = memcmp(a.at, b.at, a.n < b.n ? a.n : b.n);
    return c ? c : a.n < b.n ? -1 : a.n > b.n;
}

/* A page of ours, for the first time. */
static bool take(struct gb_pages *p, uint64_t page, uint64_t many, const uint8_t *from) {
    if (page < 2 || many > p->next || page > p->next - many)
        return bad(p, from, "a page is one of the file's");
    for (; many; many--, page++) {
        if (p->seen[page / 8] >> (page % 8) & 1)
            return bad(p, from, "a page is used once, or free");
        p->seen[page / 8] |= (uint8_t)(1u << (page % 8));
    }
    return true;
}

static bool is_there(const struct gb_pages *p, uint64_t page, uint64_t many) {
    uint64_t all = p->size / p->page;
    return page <= all && many <= all - page;
}

/* The nodes lie side by side from `upper` to the page's end, each named by one offset. */
static bool packed(struct gb_pages *p, const uint8_t *page, uint32_t n, bool leaf) {
    uint8_t starts[PAGE_MOST / 2 / 8] = {0};
    uint32_t upper = u16(page + 14), size = (uint32_t)p->page;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = u16(page + HEAD + 2 * i);
        if (at & 1 || at < upper || at + NODE > size)
            return bad(p, page + HEAD + 2 * i, "a node lies within its page");
        starts[at / 16] |= (uint8_t)(1u << (at / 2 % 8));
    }
    uint32_t at = upper, count = 0;
    for (; at + NODE <= size && starts[at / 16] >> (at / 2 % 8) & 1; count++) {
        const uint8_t *node = page + at;
        uint32_t length = NODE + u16(node + 6);
        if (leaf) {
            uint64_t data = u16(node + 4) & BIG ? 8 : u32(node);
            if (data > size) return bad(p, node, "a node lies within its page");
            length += (uint32_t)data;
        }
        at += (length + 1u) & ~1u;
    }
    if (at != size || count != n) return bad(p, page, "a page's nodes lie side by side");
    return true;
}

static bool leaf_nodes(struct gb_pages *p, struct tree *t, const uint8_t *page, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *node = page + u16(page + HEAD + 2 * i), *data;
        struct key key = {node + NODE, u16(node + 6)};
        uint64_t length = u32(node);
        uint32_t flags = u16(node + 4);
        if (!key.n || (t->numbers && key.n != 8)) return bad(p, node, "a key has its length");
        if (t->bound.at && order(t, t->bound, key) > 0)
            return bad(p, node, "a key is not before its branch");
        if (t->last.at && order(t, t->last, key) >= 0)
            return bad(p, node, "keys are in their order");
        t->bound.at = NULL, t->last = key, data = key.at + key.n;
        if (flags == BIG) {
            uint64_t first = u64(data), many = (HEAD - 1 + length) / p->page + 1;
            if (first < 2 || !is_there(p, first, many)) return bad(p, node, "a long value is in the file");
            const uint8_t *head = p->file + first * p->page;
            uint64_t has = u32(head + 12);
            if (u64(head) != first || u16(head + 10) != OVERFLOW || has < many)
                return bad(p, head, "a long value's page is one");
            if (!take(p, first, has, node)) return false;
            t->overflows += has;
            data = head + HEAD;
        } else if (flags & ~t->flags) {
            return bad(p, node, "a node's flags are known");
        }
        t->entries++;
        if (!t->node(p, key, data, length)) return false;
    }
    return true;
}

static bool walk(struct gb_pages *p, struct tree *t, uint64_t number, uint64_t deep, const uint8_t *from) {
    if (!take(p, number, 1, from)) return false;
    if (!is_there(p, number, 1)) return bad(p, from, "a page in use is in the file");
    const uint8_t *page = p->file + number * p->page;
    uint32_t flags = u16(page + 10), lower = u16(page + 12), upper = u16(page + 14);
    if (u64(page) != number) return bad(p, page, "a page has its own number");
    if (lower < HEAD || lower & 1 || lower > upper || upper > p->page)
        return bad(p, page, "a page's bounds are in their order");
    uint32_t n = (lower - HEAD) / 2;
    if (flags != (deep ? BRANCH : LEAF)) return bad(p, page, "a page is of its kind, all leaves as deep");
    if (!n || !packed(p, page, n, flags == LEAF)) return bad(p, page, "a page has nodes");
    if (flags == LEAF) return t->leaves++, leaf_nodes(p, t, page, n);
    t->branches++;
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *node = page + u16(page + HEAD + 2 * i);
        struct key key = {node + NODE, u16(node + 6)};
        if (i) {
            if (!key.n || (t->numbers && key.n != 8)) return bad(p, node, "a key has its length");
            if (order(t, t->last, key) >= 0) return bad(p, node, "a branch is behind the one before");
            t->bound = key;
        }
        uint64_t child = u32(node) | (uint64_t)u16(node + 4) << 32;
        if (!walk(p, t, child, deep - 1, node)) return false;
    }
    return true;
}

/* What a tree's head says, against what is there. */
static bool whole(struct gb_pages *p, struct tree *t, const uint8_t *from) {
    const uint64_t *s = t->says;
    uint64_t depth = s[D_FLAGS] >> 48;
    if (s[D_ROOT] == NONE) {
        if (depth || s[D_BRANCH] | s[D_LEAF] | s[D_OVERFLOW] | s[D_ENTRIES])
            return bad(p, from, "a tree without pages has no entries");
        return true;
    }
    if (!depth || depth > DEPTH) return bad(p, from, "a tree's depth is possible");
    if (!walk(p, t, s[D_ROOT], depth - 1, from)) return false;
    if (t->branches != s[D_BRANCH] || t->leaves != s[D_LEAF] || t->overflows != s[D_OVERFLOW])
        return bad(p, from, "a tree has the pages it says");
    if (t->entries != s[D_ENTRIES]) return bad(p, from, "a tree has the entries it says");
    return true;
}

/* --- the four trees: what a node of each is ---------------------------------------------------- */

static bool free_node(struct gb_pages *p, struct key key, const uint8_t *data, uint64_t n) {
    uint64_t count = n >= 8 ? u64(data) : 0, before = NONE;
    if (n < 8 || n / 8 - 1 < count || n % 8 || u64(key.at) > p->txn)
        return bad(p, key.at, "a list of free pages is one");
    for (uint64_t i = 1; i <= count; i++) {
        uint64_t page = u64(data + 8 * i);
        if (page >= before) return bad(p, data, "free pages are in their order");
        if (!take(p, before = page, 1, data)) return false;
    }
    return true;
}

static bool main_node(struct gb_pages *p, struct key key, const uint8_t *data, uint64_t n) {
    const uint8_t *node = key.at - NODE;
    if (key.n == 7 && !memcmp(key.at, "gbcache", 7) && n == sizeof p->store && !u16(node + 4)) {
        memcpy(&p->store, data, sizeof p->store);
        if (p->store.sum != gb_pages_store_sum(&p->store) || p->store.version != 1)
            return bad(p, data, "the store's own record has its checksum");
        gb_digest_seed(&p->digest, p->store.seed);
        return true;
    }
    if (n == sizeof p->root_due && u16(node + 4) == SUB) {
        uint64_t *root = key.n == 7 && !memcmp(key.at, "entries", 7) ? p->root_entries
                         : key.n == 3 && !memcmp(key.at, "due", 3)   ? p->root_due
                                                                     : NULL;
        if (root) memcpy(root, data, sizeof p->root_due);
        if (root && !(root[D_FLAGS] & 0xffffffffffff)) return true;
    }
    return bad(p, node, "this is a store of GbCache's");
}

static bool entry_node(struct gb_pages *p, struct key key, const uint8_t *data, uint64_t n) {
    uint8_t due[8 + GB_RECORD_NAME];
    if (key.n > GB_RECORD_NAME || !gb_record_payload(&p->digest, key.at, key.n, data, n))
        return bad(p, data, "a record has its checksum");
    uint64_t deadline = gb_record_deadline(data);
    p->entries++;
    if (!deadline) return true;
    for (uint32_t i = 0; i < 8; i++) due[i] = (uint8_t)(deadline >> (56 - 8 * i));
    memcpy(due + 8, key.at, key.n);
    p->timed++, p->timed_sum += gb_digest(&p->digest, due, key.n + 8, 2);
    return true;
}

static bool due_node(struct gb_pages *p, struct key key, const uint8_t *data, uint64_t n) {
    if (key.n < 9 || n) return bad(p, data, "a deadline names an entry");
    p->due++, p->due_sum += gb_digest(&p->digest, key.at, key.n, 2);
    return true;
}

/* --- the heads --------------------------------------------------------------------------------- */

static bool head(struct gb_pages *p, const uint8_t *at, uint64_t number) {
    const uint8_t *m = at + HEAD;
    if (u64(at) != number || u16(at + 10) != META) return bad(p, at, "it begins with LMDB's two heads");
    if (u32(m) != MAGIC || u32(m + 4) != 1) return bad(p, m, "it is LMDB's, of format 1");
    if (u32(m + 24) != p->page || (u64(m + 24) >> 32 & 0x7f) != 8 || (u64(m + 72) & 0xffffffffffff))
        return bad(p, m + 24, "LMDB's head has its flags");
    return true;
}

static bool heads(struct gb_pages *p) {
    if (p->size < 2 * PAGE_LEAST) return bad(p, p->file, "it is as long as LMDB's two heads");
    p->page = u32(p->file + HEAD + 24);
    if (p->page < PAGE_LEAST || p->page > PAGE_MOST || p->page & (p->page - 1) || p->size < 2 * p->page)
        return bad(p, p->file + HEAD + 24, "its page size is possible");
    const uint8_t *m[2] = {p->file, p->file + p->page};
    if (!head(p, m[0], 0) || !head(p, m[1], 1)) return false;
    uint64_t txn[2] = {u64(m[0] + HEAD + 128), u64(m[1] + HEAD + 128)};
    uint32_t newer = txn[0] < txn[1];
    if (txn[newer] % 2 != newer || (txn[newer] && txn[newer] - txn[1 - newer] != 1))
        return bad(p, m[newer] + HEAD + 128, "the two heads are of one transaction and the next");
    const uint8_t *h = m[newer] + HEAD;
    p->txn = txn[newer];
    p->next = u64(h + 120) + 1;
    memcpy(p->root_free, h + 24, sizeof p->root_free);
    memcpy(p->root_main, h + 72, sizeof p->root_main);
    if (p->next < 2 || p->next > p->size / p->page)
        return bad(p, h + 120, "it is as long as it says: it was not cut off");
    if (u64(h + 16) / p->page < p->next) return bad(p, h + 16, "its map has room for it");
    return true;
}

bool gb_pages_check(struct gb_pages *p) {
    if (!heads(p)) return false;
    struct tree frees = {.says = p->root_free, .node = free_node, .numbers = true};
    struct tree mains = {.says = p->root_main, .node = main_node, .flags = SUB};
    struct tree entries = {.says = p->root_entries, .node = entry_node};
    struct tree dues = {.says = p->root_due, .node = due_node};
    memset(p->root_entries, 0xff, sizeof p->root_entries);
    memset(p->root_due, 0xff, sizeof p->root_due);
    if (!whole(p, &frees, p->file) || !whole(p, &mains, p->file)) return false;
    if (mains.entries != 3 || !p->store.version) return bad(p, p->file, "this is a store of GbCache's");
    if (!whole(p, &entries, p->file) || !whole(p, &dues, p->file)) return false;
    if (p->due != p->timed || p->due_sum != p->timed_sum)
        return bad(p, p->file, "the deadlines are those of the entries");
    return true;
}

uint64_t gb_pages_store_sum(const struct gb_pages_store *s) {
    struct gb_sum sum;
    gb_digest_sum_begin(&sum, s->version);
    gb_digest_sum_add(&sum, (const uint8_t *)s + 8, sizeof *s - 8);
    return gb_digest_sum_end(&sum);
}
