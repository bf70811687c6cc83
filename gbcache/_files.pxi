# _files.pxi - part of _packed.pyx: an image going to a file, and coming from one.

cdef object text_of(const gb_load_fault *fault, path):
    """The exception for what is wrong with a file."""
    if fault.error == ENOMEM:
        return MemoryError()
    if fault.error:
        return OSError(fault.error, f"{os.strerror(fault.error)} (at byte {fault.at})", path)
    return ImageError(path, fault.at, fault.rule.decode())


cdef dict head_of(const gb_snap_head *h):
    return dict(
        version=h.version, id=(<const unsigned char *>h.id)[:16], saved_at=h.saved_at / 1000.0, max_bytes=h.max_bytes,
        max_entries=h.max_entries or None, entries=h.entries, frames=h.frames, length=h.length, seq=h.seq,
        codec=(<const char *>h.codec).decode("ascii", "replace"),
        counters=h.counters,
    )


def read_head(int fd, uint64_t length, path):
    """What the head of a snapshot says, checked against the file's length; ImageError, OSError."""
    cdef gb_snap_head head
    cdef gb_load_fault fault
    if not gb_load_head(fd, length, &head, &fault):
        raise text_of(&fault, path)
    return head_of(&head)


def judge(map, boot, uint64_t file_id, uint64_t length):
    """Of a live file's mapping, or its first bytes, and its length: "clean", "killed", or "lost", and why."""
    cdef gb_fault fault
    cdef const unsigned char[:] view = map
    cdef const unsigned char[:] bytes16 = boot
    cdef uint64_t words[2]
    memcpy(words, &bytes16[0], 16)
    cdef uint64_t judged = length if <size_t>view.shape[0] >= sizeof(gb_head) else <uint64_t>view.shape[0]
    cdef gb_image_verdict verdict = gb_image_judge(&view[0], judged, words, file_id, &fault)
    if verdict == GB_IMAGE_LOST:
        return "lost", f"{fault.rule.decode()} (want {fault.want:#x}, got {fault.got:#x})"
    return ("clean", "") if verdict == GB_IMAGE_CLEAN else ("killed", "")


FILE_ID_AT = <size_t>&(<gb_head *>NULL).file_id
"""Where a live file says which file it is."""


def live_head(map):
    """What a live file's superblock says: bytes that nobody checked yet."""
    cdef const unsigned char[:] view = map
    cdef const gb_head *h = <const gb_head *>&view[0]
    if <size_t>view.shape[0] < sizeof(gb_head):
        return None
    return dict(owner=h.owner, length=h.length, max_bytes=h.max_bytes, max_entries=h.max_entries or None,
                file_id=h.file_id, entries=h.table.count, codec=bytes((<const char *>h.codec)[:64]).split(b"\0")[0].decode("ascii", "replace"))


cdef class Saver:
    """One save of a store into an open file. `run` until it says True, `finish`, `end`."""

    cdef PackedImage store
    cdef gb_saver *saver

    def __cinit__(self, PackedImage store not None, int fd, *, uint64_t max_bytes, int64_t at, id, bytes codec):
        cdef gb_save_words words
        cdef const unsigned char[:] bytes16 = id
        memcpy(words.id, &bytes16[0], 16)
        words.max_bytes, words.codec = max_bytes, codec
        words.wall = at - <int64_t>gb_clock_date_exact(&store.door.clock)
        self.store = store
        self.saver = gb_save_begin(&store.door, fd, &words)

    cdef int _going(self) except -1:
        if self.saver == NULL:
            raise ValueError("the save was ended")
        return 0

    def run(self, uint32_t ms):
        """Works for about so long, the GIL released; whether it is done."""
        cdef bint done
        self._going()
        with nogil:
            done = gb_save_run(self.saver, ms)
        return done

    def finish(self):
        """Writes what makes it a file; OSError, ClosedError, RuntimeError where the save failed."""
        cdef bint good
        self._going()
        with nogil:
            good = gb_save_finish(self.saver)
        if good:
            return
        if self.saver.error:
            raise OSError(self.saver.error, os.strerror(self.saver.error))
        if self.saver.closed:
            raise ClosedError("the cache was closed while it was being saved")
        raise RuntimeError("the save lost track of what changed meanwhile: save again")

    @property
    def written(self):
        """Bytes so far."""
        self._going()
        return gb_save_bytes(self.saver)

    def end(self):
        if self.saver != NULL:
            gb_save_end(self.saver)
            self.saver = NULL

    def __dealloc__(self):
        if self.saver != NULL:
            gb_save_end(self.saver)


def load(PackedImage store not None, int fd, uint64_t length, path, int64_t at, progress):
    """Puts what a snapshot holds into `store`, which nobody else uses yet; how many were dropped."""
    cdef gb_snap_head head
    cdef gb_load_fault fault
    cdef gb_loader loader
    cdef gb_door *d = &store.door
    cdef bint good = True
    cdef uint64_t moves
    if not gb_load_head(fd, length, &head, &fault):
        raise text_of(&fault, path)
    gb_door_fill_begin(d, &loader, fd, &head, at)
    try:
        while good and not loader.done:
            good = gb_door_fill(d, &loader, 50)
            PyErr_CheckSignals()
            if progress is not None and good:
                progress(min(loader.frame, length), length)
            if not gb_door_is_open(d):  # a signal's handler, or progress, closed it
                raise ClosedError("the cache was closed while it was being filled")
        if not good:
            raise text_of(&loader.fault, path)
    finally:
        gb_door_fill_end(d, &loader)
    gb_door_hold(d)
    if d.open:
        moves = d.store.head.counters.moves
        d.store.head.counters = head.counters
        d.store.head.counters.moves += moves
        if d.store.head.seq < head.seq:
            d.store.head.seq = head.seq
    gb_door_unlock(d)
    return loader.dropped


@cython.no_gc_clear
cdef class SealedImage:
    """A snapshot mapped read-only, all of it checked; look-ups write nothing."""

    cdef gb_door door  # only for its codec
    cdef gb_sealed sealed
    cdef Py_buffer view
    cdef object map, decode
    cdef bint open
    cdef int64_t wall, running  # ms when it was opened: of its deadlines' clock, and of the one that does not jump

    cdef int64_t _now(self):
        """By the wall clock as it was when this was opened, but for one that is behind the file's own moment."""
        return self.wall + monotonic_ns() // 1000000 - self.running

    def _attach(self, int fd, map, path, codec):
        cdef gb_snap_head head
        cdef gb_load_fault fault
        cdef int64_t wall
        cdef bint good
        self.decode = codec.decode
        self.door.decode = <PyObject *>self.decode
        self.running = monotonic_ns() // 1000000
        wall = time_ns() // 1000000
        PyObject_GetBuffer(map, &self.view, 0)
        good = gb_load_head(fd, self.view.len, &head, &fault)
        if good:
            with nogil:
                good = gb_sealed_check(&self.sealed, <const uint8_t *>self.view.buf, &head, &fault)
            if not good:
                gb_sealed_end(&self.sealed)
        if not good:
            PyBuffer_Release(&self.view)
            raise text_of(&fault, path)
        self.map, self.open = map, True  # nothing is made from here on: memory may be short
        self.wall = wall if wall > <int64_t>head.saved_at else <int64_t>head.saved_at

    def __dealloc__(self):
        if self.open:
            gb_sealed_end(&self.sealed)
            PyBuffer_Release(&self.view)

    cdef void _ready(self) except *:
        if not self.open:
            raise ClosedError("the snapshot is closed")

    cdef bint _find(self, key, gb_snap_record *r) except -1:
        cdef gb_box box
        cdef gb_key k
        gb_box_key(&box, <PyObject *>key)
        try:
            self._ready()
            if box.len > GB_KEY_MAX:
                return False
            k.bytes, k.len, k.type = box.bytes, box.len, box.type
            k.hash = gb_digest_of(&self.sealed.digest, k.bytes, k.len, k.type)
            return gb_sealed_find(&self.sealed, &k, self._now(), r)
        finally:
            gb_box_drop(&box)

    cdef object _value(self, const gb_snap_record *r):
        self._ready()  # to let go of a key may let a thread in that closes this
        cdef uint32_t kind = r.head.types >> 2
        return gb_box_finish(&self.door, kind, gb_box_raw(kind, r.value, r.head.value_len))

    cdef object _key(self, const gb_snap_record *r):
        raw = PyBytes_FromStringAndSize(<const char *>r.key, r.head.key_len)
        Py_INCREF(raw)
        return gb_box_key_object(r.head.types & 3, <PyObject *>raw)

    @cython.critical_section
    def __getitem__(self, key):
        cdef gb_snap_record r
        if not self._find(key, &r):
            raise KeyError(key)
        return self._value(&r)

    @cython.critical_section
    def get(self, key, default=None):
        """The value of `key`, or `default`. Cost: two or three cold cache lines, and the value's bytes."""
        cdef gb_snap_record r
        return self._value(&r) if self._find(key, &r) else default

    @cython.critical_section
    def __contains__(self, key):
        cdef gb_snap_record r
        return self._find(key, &r)

    @cython.critical_section
    def __len__(self):
        self._ready()
        return self.sealed.head.entries

    @cython.critical_section
    def ttl(self, key):
        """Seconds until `key` expires, None if it never does. KeyError if it is absent."""
        cdef gb_snap_record r
        if not self._find(key, &r):
            raise KeyError(key)
        return (r.times.due - self._now()) / 1000.0 if r.head.timed else None

    def _pairs(self, int what):
        """Keys (0), values (1), pairs (2), or entries (3: key, value, deadline as time.time() has it)."""
        cdef uint64_t frame = 0, at = 0
        cdef int64_t now = self._now()
        cdef tuple one
        while True:
            one = self._pair(what, &frame, &at, now)
            if one is None:
                return
            yield one if what >= 2 else one[0]

    @cython.critical_section
    cdef tuple _pair(self, int what, uint64_t *frame, uint64_t *at, int64_t now):
        """The next one that lives; None at the end."""
        cdef gb_snap_record r
        self._ready()
        while gb_sealed_next(&self.sealed, frame, at, &r):
            if not gb_sealed_live(&r, now):
                continue
            if what == 0:
                return (self._key(&r),)
            if what == 1:
                return (self._value(&r),)
            key = self._key(&r)
            value = self._value(&r)
            return (key, value) if what == 2 else (key, value, r.times.due / 1000.0 if r.head.timed else None)
        return None

    @cython.critical_section
    def _head(self):
        self._ready()
        return head_of(&self.sealed.head)

    @property
    def closed(self):
        return not self.open

    def close(self):
        """Gives the mapping back. Closing twice is allowed; any other use raises ClosedError."""
        map = self._let_go()
        if map is not None:
            map.close()

    @cython.critical_section
    cdef object _let_go(self):
        if not self.open:
            return None
        self.open = False
        gb_sealed_end(&self.sealed)
        PyBuffer_Release(&self.view)
        map, self.map = self.map, None
        return map
