/* moment.c - what walks of one moment have noted. */
#include "moment.h"

static bool unnoted(const struct gb_moment *m, gb_ref ref) {
    return ref >> 7 < m->words && !gb_index_marked(m->bits, ref);
}
static void note_hash(const struct gb_store *s, struct gb_moment *m, gb_ref ref, bool turn) {
    uint32_t word = gb_entry_at(s->base, ref)->word;
    const uint8_t *key = (const uint8_t *)gb_at(s->base, ref) + gb_header_bytes(word);
    uint64_t hash = gb_digest(&s->digest, key, gb_key_len(s->base, ref, word), gb_word_ktype(word));
    m->hashes[turn ? m->n++ : m->most - ++m->used] = hash;
    if (ref >> 7 < m->words) gb_index_mark(m->bits, ref);
    m->left--;
}
/* The next moment that is walked, from number *i on. */
static struct gb_moment *moment_from(const struct gb_store *s, uint32_t *i) {
    const struct gb_walk *walk = s->index.walk;
    while (*i < GB_INDEX_WALKS && !(walk[*i].used && walk[*i].moment)) ++*i;
    return *i < GB_INDEX_WALKS ? walk[(*i)++].moment : NULL;
}

enum gb_err gb_moment_begin(struct gb_store *s, struct gb_moment *m) {
    uint32_t count = s->index.table.root->count;
    if (count > m->most || gb_index_places(s->head->length) > m->words) return GB_SMALL;
    if (!gb_index_walk_begin(&s->index, &m->walk)) return GB_BUSY;
    s->index.walk[m->walk].moment = m;
    m->left = count;
    m->n = m->used = 0;
    return GB_OK;
}

enum gb_err gb_moment_step(struct gb_store *s, struct gb_moment *m) {
    gb_ref ref = m->left ? gb_index_walk_next(&s->index, m->walk) : 0;
    if (!ref) return GB_OK;
    if (unnoted(m, ref)) note_hash(s, m, ref, true);
    return GB_AGAIN;
}

void gb_moment_end(struct gb_store *s, struct gb_moment *m) { gb_index_walk_end(&s->index, m->walk); }

size_t gb_moment_hashes(struct gb_moment *m) {
    uint64_t *last = m->hashes + m->most - m->used;
    for (size_t i = 0, j = m->used; i + 1u < j; i++) {
        uint64_t hash = last[i];
        last[i] = last[--j];
        last[j] = hash;
    }
    memmove(m->hashes + m->n, last, m->used * sizeof *last);
    return m->n + m->used;
}

void gb_moment_meet(struct gb_store *s, gb_ref ref) {
    uint32_t i = 0;
    for (struct gb_moment *m; (m = moment_from(s, &i));)
        if (unnoted(m, ref)) note_hash(s, m, ref, false);
}

void gb_moment_born(struct gb_store *s, gb_ref ref) {
    uint32_t i = 0;
    for (struct gb_moment *m; (m = moment_from(s, &i));)
        if (unnoted(m, ref)) gb_index_mark(m->bits, ref);
}

void gb_moment_moved(struct gb_store *s, gb_ref from, gb_ref to) {
    uint32_t i = 0;
    for (struct gb_moment *m; (m = moment_from(s, &i));) {
        bool was = unnoted(m, from);
        if (was && to >> 7 < m->words) gb_index_unmark(m->bits, to);
        else if (was) note_hash(s, m, to, true);
        else if (unnoted(m, to)) gb_index_mark(m->bits, to);
    }
}

bool gb_moment_check(const struct gb_store *s, const struct gb_moment *m, struct gb_fault *f) {
    uint64_t left = 0;
    gb_ref head = gb_index_list(&s->index), at = s->index.root->lru.next;
    for (; at != head; at = gb_list_at(s->base, at)->next) left += unnoted(m, GB_ENTRY_OF_LRU(at));
    if (left != m->left) return gb_broken(f, "moment 1: left is what is indexed and not noted", 0, left, m->left);
    return m->n + m->used + left <= m->most ||
           gb_broken(f, "moment 2: there is room for all that is left", 0, m->most, m->n + m->used + left);
}
