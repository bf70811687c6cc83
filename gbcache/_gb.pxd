# _gb.pxd - the C side as Cython sees it: externs only.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int64_t

cdef extern from "_hot.h" nogil:
    ctypedef uint32_t gb_ref
    enum: GB_OPS
    enum: GB_KINDS
    enum: GB_KEY_MAX
    enum: GB_WINDOW_BYTES
    enum: GB_STEPS_MAX
    enum: GB_DEBUG
    enum: GB_TELL_LEAST
    enum: GB_WORD_TTL
    enum: GB_WORD_EXTRA
    enum gb_err:
        GB_OK, GB_AGAIN, GB_FULL, GB_TOOBIG, GB_LONGKEY, GB_EXISTS, GB_BUSY, GB_GONE, GB_SMALL, GB_BADIMAGE
    enum gb_cause:
        GB_CAUSE_DELETE, GB_CAUSE_EVICT, GB_CAUSE_EXPIRE, GB_CAUSE_INVALIDATE
    enum gb_event:
        GB_EVENT_EXPIRE, GB_EVENT_RECOVER
    enum gb_op:
        GB_OP_GET, GB_OP_SET, GB_OP_LONG, GB_OP_REMOVE, GB_OP_EXPIRE, GB_OP_WALK, GB_OP_RESIZE
    enum gb_kind:
        GB_KIND_FREE, GB_KIND_ENTRY, GB_KIND_EXTENT, GB_KIND_BUCKETS, GB_KIND_OVERFLOW
        GB_KIND_DIRECTORY, GB_KIND_RING, GB_KIND_PENDING, GB_KIND_HEAD
    struct gb_counters:
        uint64_t hits, misses_absent, misses_expired, sets, replaces, deletes
        uint64_t evictions, expirations, rejects, clears, moves, loads, load_errors, stale_hits
    struct gb_table_root:
        uint32_t count
    struct gb_wheel_root:
        uint32_t count
        uint64_t tick
    struct gb_arena_root:
        uint32_t ledger[9]
    struct gb_ring_root:
        uint32_t granules
    struct gb_ring:
        pass
    struct gb_head:
        uint64_t length, key_bytes, value_bytes, seq, owner, closed_at, clock_base, max_bytes, file_id
        uint32_t max_entries
        uint64_t boot_id[2]
        int64_t zero_ns
        char codec[64]
        gb_ring_root ring
        gb_counters counters
        gb_table_root table
        gb_wheel_root wheel
        gb_arena_root arena
    struct gb_digest:
        pass
    struct gb_wheel:
        pass
    struct gb_index:
        uint32_t stirs
        gb_wheel wheel
    struct gb_entry:
        uint32_t word, hash
    struct gb_extra:
        uint32_t idle, hard_low, hard_high
    struct gb_store:
        uint8_t *base
        gb_head *head
        gb_index index
        gb_digest digest
        uint32_t pins, listens
        uint32_t max_steps[7]
        gb_ring ring
        uint64_t mapped
        bint values, live
    struct gb_key:
        const uint8_t *bytes
        uint32_t len, type
        uint64_t hash
    struct gb_put:
        gb_key key
        const uint8_t *value
        uint32_t value_len, value_type, idle
        uint64_t due, hard
        bint add
    struct gb_fault:
        const char *rule
        uint64_t at, want, got
    struct gb_lock:
        pass

    gb_err gb_room_format(gb_store *s, void *base, uint64_t length, const uint64_t *seed, uint64_t now)
    gb_err gb_room_attach(gb_store *s, void *base, uint64_t length)
    uint64_t gb_room_seq(const gb_store *s)
    void gb_tell_count(gb_store *s, gb_event kind, uint64_t count)
    gb_err gb_room_clear(gb_store *s, uint64_t now)
    void gb_room_rebase(gb_store *s, void *base)
    uint64_t gb_room_smallest()
    gb_err gb_room_shrink(gb_store *s, uint64_t length)
    void gb_room_grow(gb_store *s, uint64_t length)
    gb_err gb_room_ring(gb_store *s, gb_ref granules)
    uint64_t gb_ring_next(const gb_ring *r)
    void gb_room_remove(gb_store *s, gb_ref ref, gb_cause cause)
    bint gb_chain_check(const gb_store *s, gb_fault *f)
    void gb_chain_orphans(gb_store *s)
    gb_ref gb_index_victim(const gb_index *ix)
    bint gb_index_walk_begin(gb_index *ix, uint32_t *id)
    gb_ref gb_index_walk_next(gb_index *ix, uint32_t id)
    void gb_index_walk_end(gb_index *ix, uint32_t id)
    gb_ref gb_store_find(const gb_store *s, const gb_key *k)
    gb_ref gb_store_live(gb_store *s, const gb_key *k, uint64_t now)
    gb_err gb_store_retime(gb_store *s, gb_ref ref, uint64_t due, uint64_t hard, uint32_t idle, uint64_t now)
    gb_err gb_store_put(gb_store *s, const gb_put *p, uint64_t now)
    uint64_t gb_store_due(const gb_store *s, gb_ref ref)
    const uint8_t *gb_store_key_at(const gb_store *s, gb_ref ref, uint32_t word)
    const uint8_t *gb_store_value_at(const gb_store *s, gb_ref ref, uint32_t word)
    uint32_t gb_key_len(uint8_t *base, gb_ref ref, uint32_t word)
    uint32_t gb_value_len(uint8_t *base, gb_ref ref, uint32_t word)
    uint32_t gb_word_granules(uint32_t word)
    uint32_t gb_word_ktype(uint32_t word)
    uint32_t gb_word_vtype(uint32_t word)
    gb_entry *gb_entry_at(uint8_t *base, gb_ref ref)
    gb_extra *gb_extra_at(uint8_t *base, gb_ref ref, uint32_t word)
    uint64_t gb_digest_of "gb_digest"(const gb_digest *d, const uint8_t *p, size_t n, uint32_t type)
    void gb_lock_init(gb_lock *l)
    void gb_lock_wait(gb_lock *l)
    void gb_lock_free(gb_lock *l)
    bint gb_lock_try(gb_lock *l)

cdef extern from "image.h" nogil:
    enum gb_image_state:
        GB_IMAGE_PRIVATE, GB_IMAGE_LOADING, GB_IMAGE_OPEN
    enum gb_image_verdict:
        GB_IMAGE_CLEAN, GB_IMAGE_KILLED, GB_IMAGE_LOST
    gb_image_verdict gb_image_judge(const void *base, uint64_t mapped, const uint64_t *boot, uint64_t file_id, gb_fault *f)
    void gb_image_state_set "gb_image_state"(gb_store *s, gb_image_state state, const uint64_t *boot, uint64_t file_id, uint64_t owner)
    void gb_image_seal(gb_store *s)
    size_t gb_mend_scratch(uint64_t length)
    gb_err gb_mend(gb_store *s, uint64_t *scratch, gb_fault *f)
    struct gb_record:
        uint32_t value_len, hash
        uint16_t key_len
        uint8_t types, timed
    struct gb_record_times:
        int64_t due, hard
        uint32_t idle, stale
    struct gb_snap_record:
        gb_record head
        gb_record_times times
        const uint8_t *key
        const uint8_t *value
        uint64_t bytes
    struct gb_snap_head:
        uint32_t version
        uint64_t id[2]
        int64_t saved_at
        uint64_t max_bytes, max_entries, entries, frames, index_at, slots, length, seq, counted
        gb_counters counters
        char codec[64]

cdef extern from "_load.h" nogil:
    struct gb_load_fault:
        const char *rule
        uint64_t at
        int error
    bint gb_load_head(int fd, uint64_t length, gb_snap_head *h, gb_load_fault *f)
    struct gb_loader:
        gb_load_fault fault
        uint64_t frame, records, dropped
        bint done

cdef extern from "_sealed.h" nogil:
    struct gb_sealed:
        gb_digest digest
        gb_snap_head head
    bint gb_sealed_check(gb_sealed *s, const uint8_t *map, const gb_snap_head *head, gb_load_fault *f)
    void gb_sealed_end(gb_sealed *s)
    bint gb_sealed_find(const gb_sealed *s, const gb_key *k, int64_t now, gb_snap_record *r)
    bint gb_sealed_live(const gb_snap_record *r, int64_t now)
    bint gb_sealed_next(const gb_sealed *s, uint64_t *frame, uint64_t *at, gb_snap_record *r)

cdef extern from "_save.h":
    struct gb_saver:
        int error
        bint closed, done
    struct gb_save_words:
        uint64_t max_bytes
        int64_t wall
        uint64_t id[2]
        const char *codec
    gb_saver *gb_save_begin(gb_door *d, int fd, const gb_save_words *words) except NULL
    bint gb_save_run(gb_saver *v, uint32_t ms) noexcept nogil
    bint gb_save_finish(gb_saver *v) noexcept nogil
    void gb_save_end(gb_saver *v)
    bint gb_save_by(const gb_saver *v, unsigned long thread)
    void gb_save_leave(gb_saver *v)
    uint64_t gb_save_bytes(const gb_saver *v)

cdef extern from "_bell.h":
    struct gb_bell:
        bint armed
        int fd
    struct gb_bells:
        uint32_t n
    bint gb_bell_add(gb_bells *bs, gb_bell *b)
    void gb_bell_drop(gb_bells *bs, const gb_bell *b)
    void gb_bell_free(gb_bells *bs)

cdef extern from "_event.h":
    int gb_event_install() except -1

cdef extern from "_clock.h":
    ctypedef struct PyObject
    enum: GB_CLOCK_HEAD_START
    struct gb_clock:
        uint64_t ttl
        PyObject *asks
        int64_t zero_ns
        double wall
    PyObject *gb_clock_seconds
    int gb_clock_start(gb_clock *c, PyObject *asks, PyObject *ttl, PyObject *idle, double jitter,
                       uint64_t seed) except -1
    uint64_t gb_clock_date_exact(const gb_clock *c)
    uint64_t gb_clock_exact(const gb_clock *c)
    bint gb_clock_now(gb_clock *c, bint exact, uint64_t *now) except 0

cdef extern from "_hot.h":
    struct PyThreadState:
        pass
    struct gb_door:
        gb_store store
        gb_lock lock
        uint32_t outsiders
        bint open, born, keep, forked
        gb_saver *saver
        unsigned long cutter
        gb_bells bells
        PyObject *hears
        gb_clock clock
        PyObject *encode
        PyObject *decode
        PyObject *flights
    struct gb_door_names_t "gb_door_names":
        PyObject *budget_error
        PyObject *closed_error
        PyObject *key_length_error
        PyObject *encode_key
        PyObject *decode_key
        PyObject *base_key
        PyObject *keep
    gb_door_names_t gb_door_names
    enum gb_hot_how:
        GB_HOT_READ, GB_HOT_PEEK, GB_HOT_STALE, GB_HOT_KEPT, GB_HOT_TAKE
    enum: GB_BOX_INT
    struct gb_box:
        const uint8_t *bytes
        size_t len
        uint32_t type
    ctypedef struct gb_hot_store:
        pass

    bint gb_door_enter(gb_door *d) except 0
    void gb_door_inform(gb_door *d)
    void gb_door_leave(gb_door *d, gb_op op)
    void gb_door_wait(gb_door *d)
    void gb_door_unlock(gb_door *d)
    bint gb_door_mine(gb_door *d)
    bint gb_door_yield(gb_door *d) except 0
    bint gb_door_rest() except 0
    int gb_door_fill_begin(gb_door *d, gb_loader *l, int fd, const gb_snap_head *head, int64_t at) except -1
    bint gb_door_fill(gb_door *d, gb_loader *l, uint32_t ms)
    void gb_door_fill_end(gb_door *d, gb_loader *l)
    bint gb_door_await(gb_door *d) except 0
    bint gb_door_busy(gb_door *d)
    bint gb_door_idle(gb_door *d) except 0
    void gb_door_hold(gb_door *d)
    bint gb_door_is_open(const gb_door *d)
    bint gb_door_shut(gb_door *d)
    void gb_door_hear(gb_door *d, PyObject *hears)
    bint gb_door_heard(const gb_door *d)
    bint gb_door_work(gb_door *d, uint64_t now, uint32_t slices)
    void gb_door_raise(gb_door *d, gb_err err, const gb_put *p) except *
    void gb_door_fork_before(gb_door *d)
    void gb_door_fork_parent(gb_door *d)
    void gb_door_fork_child(gb_door *d)
    bint gb_box_key(gb_box *b, PyObject *key) except 0
    bint gb_box_core_key(const gb_door *d, const gb_box *b, gb_key *k)
    void gb_box_drop(gb_box *b)
    object gb_box_base(PyObject *key)
    object gb_box_key_object(uint32_t type, PyObject *raw)
    object gb_box_finish(const gb_door *d, uint32_t type, PyObject *raw)
    PyObject *gb_box_raw(uint32_t type, const uint8_t *bytes, uint32_t n)
    int gb_hot_install(void *type, size_t basic_size) except -1
    PyObject *gb_hot_read(gb_door *d, PyObject *key, gb_hot_how how)
    object gb_hot_item(PyObject *self, PyObject *key)
    int gb_hot_write(gb_door *d, PyObject *key, PyObject *value, PyObject *ttl, bint add) except -1
    int gb_hot_land(gb_door *d, PyObject *key, PyObject *value, PyObject *ttl, PyObject *mark,
                    uint32_t stale, bint over) except -1
    int gb_hot_timed(gb_door *d) except -1
    bint gb_hot_void(gb_door *d, PyObject *key) except 0
    int gb_hot_remove(gb_door *d, PyObject *key, gb_cause cause) except -1
    int gb_hot_has(gb_door *d, PyObject *key) except -1
    void gb_hot_times(gb_door *d, gb_put *p, uint64_t now, uint64_t ttl) noexcept nogil

cdef extern from "_front.h":
    ctypedef PyObject *(*gb_front_read)(PyObject *near, PyObject *key) noexcept
    const char *GB_FRONT_CAPSULE
    ctypedef struct gb_front:
        pass
    object gb_front_find(PyObject *self, PyObject *key, PyObject *absent)
    int gb_front_install(void *type, size_t size) except -1
    void gb_front_trust(PyObject *self, bint trusted)
    bint gb_front_trusts(PyObject *self)

cdef extern from "_args.h":
    void gb_args_key_error(PyObject *key) except *
    void gb_args_void_all(PyObject *flights)
    void gb_alone_reborn(PyObject *object)
    bint gb_args_void(PyObject *flights, PyObject *key) except 0

cdef extern from "_verbs.h":
    struct gb_verbs_seen:
        uint64_t due, now, idle
        uint32_t key_bytes, value_bytes
    int gb_verbs_look(gb_door *d, PyObject *key, gb_verbs_seen *seen) except -1
    int gb_verbs_touch(gb_door *d, PyObject *key, PyObject *ttl) except -1
    int gb_verbs_incr(gb_door *d, PyObject *key, long long delta, long long initial,
                      long long *total) except -1
    object gb_verbs_oldest(gb_door *d)

cdef extern from "_walk.h":
    bint gb_walk_snapshot(gb_door *d, uint64_t **hashes, size_t *n) except 0
    int gb_walk_next(gb_door *d, uint64_t hash, bint want_value, PyObject **key, PyObject **value) except -1

cdef extern from "_news.h":
    struct gb_news:
        size_t used, done
    bint gb_news_open(gb_door *d, gb_news *n, int64_t since, uint32_t kinds, PyObject *prefix, bint values) except 0
    struct gb_batch:
        Py_ssize_t count
    bint gb_news_take(gb_door *d, gb_news *n, Py_ssize_t most, gb_batch *b) except 0
    object gb_news_event(const gb_door *d, const gb_batch *b, Py_ssize_t i)
    object gb_news_key(const gb_batch *b, Py_ssize_t i)
    void gb_news_drop(gb_batch *b)
    bint gb_news_finish(gb_door *d, gb_news *n) except 0
    bint gb_news_pending(gb_door *d, const gb_news *n)
    void gb_news_close(gb_news *n)
