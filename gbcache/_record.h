/* _record.h - the bytes of one entry in a Disk.
 *
 * WHAT      A name (what LMDB has as its key) is a key's type, one byte, then its bytes; or, beyond
 *           GB_RECORD_NAME bytes, type | GB_RECORD_LONG, a digest of 32 bytes and two bytes that
 *           tell keys of equal digest apart. Then the key itself stands in the record.
 *
 * PICTURE   sum 8 | deadline 8, ms since 1970, 0: none | [key length 4 | key] | payload
 *
 * COST      the sum: a few ns and one multiplication for every 16 bytes.
 *
 * NOT HERE  what a payload means (codec.py), which records there are.
 */
#ifndef GB_RECORD_H
#define GB_RECORD_H

#include "digest.h"

#define GB_RECORD_NAME 503u /* an index entry is 8 bytes more, and LMDB's keys end at 511 */
#define GB_RECORD_LONG 0x80u
#define GB_RECORD_HEAD 16u
#define GB_RECORD_SPIN 0x9E3779B97F4A7C15u

/* Of name and record together: a record under another name has another sum. */
static inline uint64_t gb_record_sum(const struct gb_digest *d, const uint8_t *name, size_t n,
                                     const uint8_t *record, size_t m) {
    return gb_digest(d, name, n, 0) * GB_RECORD_SPIN + gb_digest(d, record + 8, m - 8u, 1);
}

static inline uint64_t gb_record_deadline(const uint8_t *record) {
    return gb_digest_read8(record + 8);
}

/* Where the payload begins; 0 if the record is none of that name. */
static inline size_t gb_record_payload(const struct gb_digest *d, const uint8_t *name, size_t n,
                                       const uint8_t *record, size_t m) {
    size_t at = GB_RECORD_HEAD;
    if (!n || m <= at || gb_digest_read8(record) != gb_record_sum(d, name, n, record, m)) return 0;
    if (name[0] & GB_RECORD_LONG) {
        if (m < at + 4u) return 0;
        at += 4u + (size_t)gb_digest_read4(record + at);
    }
    return at < m ? at : 0;
}

#endif
