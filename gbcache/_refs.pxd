# _refs.pxd - the object store's C side as Cython sees it: externs only.
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "Python.h":
    ctypedef struct PyObject
    PyObject *PyErr_Occurred()
    int PyErr_CheckSignals() except -1
    int PyGC_Disable()
    int PyGC_Enable()

cdef extern from "_bulk.h":
    ctypedef uint32_t gb_ref
    enum gb_err:
        GB_OK
    struct gb_fault:
        const char *rule
        uint64_t at, want, got
    struct gb_arena_root:
        gb_ref end
        uint32_t ledger[9]
    struct gb_arena:
        gb_arena_root *root
    struct gb_table_root:
        uint32_t count
    struct gb_table:
        gb_table_root *root
    struct gb_wheel_root:
        uint32_t count
    struct gb_wheel:
        gb_wheel_root *root
    struct gb_index:
        gb_arena arena
        gb_table table
        gb_wheel wheel
    struct gb_clock:
        uint64_t ttl
        PyObject *asks
    struct gb_bell:
        pass
    struct gb_bells:
        pass
    struct gb_queue:
        uint64_t last
        uint32_t cursors
        gb_bells bells
    struct gb_queue_cursor:
        uint64_t wanted
        uint32_t kinds
        bint values
        PyObject *prefix
    struct gb_refs_counters:
        uint64_t hits, misses_absent, misses_expired, sets, replaces, deletes, evictions
        uint64_t expirations, rejects, clears, loads, load_errors, stale_hits
    struct gb_refs:
        gb_index index
        gb_clock clock
        gb_refs_counters counters
        bint open, born, keep
        uint32_t kinds, max_entries, max_steps
        uint64_t max_weight, weight, seed
        PyObject *weigh
        PyObject *flights
        gb_queue *queue
    struct gb_refs_aside:
        pass
    struct gb_refs_names_t "gb_refs_names":
        PyObject *budget_error
        PyObject *closed_error
        PyObject *keep
        PyObject *grow
    gb_refs_names_t gb_refs_names
    ctypedef struct gb_quick_store:
        pass
    enum gb_quick_how:
        GB_QUICK_READ, GB_QUICK_PEEK, GB_QUICK_STALE, GB_QUICK_KEPT, GB_QUICK_TAKE
    struct gb_quick_seen:
        uint64_t due, now, weight
        uint32_t idle
    enum: GB_CLOCK_HEAD_START
    enum gb_event:
        GB_EVENT_EXPIRE
    PyObject *gb_clock_seconds

    int gb_clock_start(gb_clock *c, PyObject *asks, PyObject *ttl, PyObject *idle, double jitter,
                       uint64_t seed) except -1
    bint gb_clock_now(gb_clock *c, bint exact, uint64_t *now) except 0
    uint64_t gb_clock_exact(const gb_clock *c)
    uint64_t gb_refs_smallest()
    gb_err gb_refs_format(gb_refs *r, void *base, uint64_t length, uint64_t now)
    void gb_refs_rebase(gb_refs *r, void *base)
    gb_ref gb_refs_top(const gb_refs *r)
    void gb_refs_copy(const gb_refs *r, void *to)
    bint gb_refs_opened(gb_refs *r) except 0
    void gb_refs_begin(gb_refs_aside *aside)
    void gb_refs_release(gb_refs *r, gb_refs_aside *aside)
    void gb_refs_cleared(gb_refs *r, uint64_t count, gb_refs_aside *aside)
    gb_queue *gb_refs_queue(gb_refs *r) except NULL
    int gb_refs_listen(gb_refs *r, uint32_t kinds, bint values, uint64_t room) except -1
    void gb_refs_hush(gb_refs *r)
    int gb_put_fit(gb_refs *r, uint64_t now) except -1
    bint gb_put_expire(gb_refs *r, uint64_t now)
    void gb_bulk_drain(gb_arena *a)
    bint gb_refs_check(const gb_refs *r, gb_fault *f)
    uint64_t gb_queue_bytes(const gb_queue *q)
    bint gb_queue_check(const gb_queue *q, gb_fault *f)
    void gb_queue_hear(gb_queue *q, PyObject *fn)
    object gb_queue_pull(const gb_queue *q, gb_queue_cursor *c, const gb_clock *clock, Py_ssize_t most)
    bint gb_bell_add(gb_bells *bs, gb_bell *b)
    void gb_bell_drop(gb_bells *bs, const gb_bell *b)
    int gb_event_install() except -1
    void gb_arena_grow(gb_arena *a, gb_ref new_end)
    int gb_quick_install(void *type, size_t basic_size) except -1
    PyObject *gb_quick_read(gb_refs *r, PyObject *key, gb_quick_how how)
    object gb_quick_item(PyObject *self, PyObject *key)
    int gb_quick_write(gb_refs *r, PyObject *key, PyObject *value, PyObject *ttl, bint add) except -1
    enum gb_cause:
        GB_CAUSE_DELETE, GB_CAUSE_INVALIDATE
    int gb_quick_remove(gb_refs *r, PyObject *key, gb_cause cause) except -1
    int gb_quick_look(gb_refs *r, PyObject *key, gb_quick_seen *seen) except -1
    int gb_quick_touch(gb_refs *r, PyObject *key, PyObject *ttl) except -1
    object gb_quick_incr(gb_refs *r, PyObject *key, PyObject *delta, PyObject *initial)
    object gb_quick_oldest(gb_refs *r)
    object gb_bulk_snapshot(gb_refs *r, uint64_t **hashes)
    int gb_bulk_walk(gb_refs *r, PyObject *key, uint64_t hash, PyObject **value) except -1
    void gb_args_key_error(PyObject *key) except *
    void gb_args_void_all(PyObject *flights)
    void gb_alone_reborn(PyObject *object)
    bint gb_args_void(PyObject *flights, PyObject *key) except 0
    int gb_quick_land(gb_refs *r, PyObject *key, PyObject *value, PyObject *ttl, PyObject *mark,
                      uint32_t stale, bint over) except -1

cdef extern from "_memo.h":
    int gb_memo_install(PyObject *module, void *store) except -1
    object gb_memo_name(PyObject *key)

cdef extern from "_front.h":
    ctypedef PyObject *(*gb_front_read)(PyObject *near, PyObject *key) noexcept
    const char *GB_FRONT_CAPSULE
