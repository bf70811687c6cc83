# _image.pxi - part of _packed.pyx: an image's life, but for the verbs on it.


@cython.no_gc_clear  # the buffer must outlive everything that may still read it
cdef class PackedImage:
    """An image in a writable buffer: how it is opened, looked after, listened to, resized, closed."""

    cdef gb_door door  # first: _hot.c knows it lies there
    cdef Py_buffer view
    cdef object map, clock, encode, decode, hears, scratch
    cdef dict flights
    cdef object __weakref__

    def __cinit__(self, *args, **kwargs):
        if <char *>&self.door - <char *><void *>self != sizeof(gb_hot_store) - sizeof(gb_door):
            raise SystemError("PackedImage does not begin with its door")
        gb_lock_init(&self.door.lock)

    def _attach(self, map, *, seed, clock, ttl, idle, double jitter, uint32_t max_entries, codec,
                dict flights, housekeeping, how="new", boot=None, uint64_t file_id=0,
                uint64_t max_bytes=0, codec_name=b""):
        """Formats an image in `map` (a writable buffer, page-aligned) and opens the door.

        `how`: "clean" and "mend" take the image that is there, a live file's, the second after a kill;
        then False, and a rule in `_fault`, if it cannot be mended. `boot`: 16 bytes, of a live file.
        """
        cdef uint64_t words[2]
        cdef gb_door *d = &self.door
        cdef const unsigned char[:] bytes16 = seed
        if d.born:
            raise RuntimeError("the cache was initialised already: __init__ may run once")
        memcpy(words, &bytes16[0], 16)
        self.clock, self.encode, self.decode = clock, codec.encode, codec.decode
        d.encode, d.decode = <PyObject *>self.encode, <PyObject *>self.decode
        self.flights, d.flights = flights, <PyObject *>flights
        gb_clock_start(&d.clock, NULL if clock is None else <PyObject *>self.clock, <PyObject *>ttl,
                       <PyObject *>idle, jitter, words[0])
        self._hold_buffer(map)
        try:
            return take(self, map, words, how, boot, file_id, max_entries, max_bytes, codec_name, housekeeping)
        except BaseException:
            PyBuffer_Release(&self.view)  # it would keep the mapping, and a live file's lock, for ever
            raise

    def _hold_buffer(self, map):
        PyObject_GetBuffer(map, &self.view, PyBUF_WRITABLE)
        if <size_t>self.view.buf % 4096:
            PyBuffer_Release(&self.view)
            raise ValueError("the image's buffer does not begin on a page")

    def __dealloc__(self):
        if self.door.open:
            self.door.open = False
            PyBuffer_Release(&self.view)
        gb_bell_free(&self.door.bells)

    def close(self):
        """Gives the image's memory back. Closing twice is allowed; any other use raises ClosedError.

        Waits for long copies under way in other threads.
        """
        cdef gb_door *d = &self.door
        gb_door_hold(d)
        cdef bint was = gb_door_shut(d)
        cdef gb_saver *own = d.saver if d.saver != NULL and gb_save_by(d.saver, PyThread_get_thread_ident()) else NULL
        gb_door_unlock(d)
        if not was: return
        if own != NULL: gb_save_leave(own)  # called back by it: it could not come to its end
        late = None
        while d.outsiders:
            try:
                gb_door_rest()
            except BaseException as error:  # a signal's handler raised: once it is closed
                late = error if late is None else late
        try:
            self._let_go()
        finally:
            if late is not None:
                raise late

    def _let_go(self):
        """Shut, and nobody is within."""
        cdef gb_door *d = &self.door
        if self.map is None: return  # a signal's handler forked: this is the child, which let go of it
        try:
            if d.store.live:
                gb_chain_orphans(&d.store)  # nobody will: a file that is closed is opened without a walk
                self._seal()
        finally:
            PyBuffer_Release(&self.view)
            map, self.map = self.map, None
            map.close()

    @property
    def closed(self):
        """Whether the cache is closed (or was never initialised)."""
        return not gb_door_is_open(&self.door)

    @property
    def _unmapped(self):
        """Whether nothing is mapped any more: who closes a cache that another is closing comes before that."""
        return self.map is None

    def check(self):
        """Walks the whole image and compares every invariant; AssertionError names the broken one.

        Cost: in proportion to the entries, in one lock hold: for tests and for doubts.
        """
        cdef gb_fault fault
        cdef gb_door *d = &self.door
        gb_door_enter(d)
        cdef bint sound = gb_chain_check(&d.store, &fault)
        gb_door_unlock(d)  # a check's steps are nobody's worst case
        if not sound:
            raise AssertionError(f"{fault.rule.decode()}: at {fault.at}, want {fault.want}, "
                                 f"got {fault.got}")

    def _work(self, uint32_t slices):
        """The housekeeper's door: some slices of due entries; True if more is waiting."""
        cdef gb_door *d = &self.door
        if not gb_door_is_open(d) or d.clock.asks != NULL:
            return False
        cdef bint more = gb_door_work(d, gb_clock_exact(&d.clock), 1 if gb_door_heard(d) else slices)
        gb_door_inform(d)
        return more

    @cython.critical_section
    def _flight(self, key):
        """The flight of the key, or None."""
        key = gb_box_base(<PyObject *>key)
        return flight_of(last_of(self.flights, hash(key)), key, None)

    @cython.critical_section
    def _board(self, key, mine, over):
        """The flight of the key: the one that is there; `mine`, if there is none, or `over`."""
        return board(self.flights, gb_box_base(<PyObject *>key), mine, over)

    def _void(self, key):
        """The key is changed: what a flight under way loads is not to be stored."""
        return gb_hot_void(&self.door, <PyObject *>key)

    def _leave(self, flight, bint loaded, bint failed):
        """Takes a flight off the list, if it is on it."""
        cdef gb_door *d = &self.door
        with cython.critical_section(self):
            leave(self.flights, flight)
        gb_door_hold(d)
        if d.open:
            d.store.head.counters.loads += loaded
            d.store.head.counters.load_errors += failed
        gb_door_unlock(d)

    def _ring(self, room):
        """Makes a ring of `room` bytes, unless there is one; in slices, as it may have to wait for others."""
        cdef gb_door *d = &self.door
        cdef gb_err err = GB_AGAIN
        granules = max(room // 8, <int>GB_TELL_LEAST)
        cdef gb_ref asked = min(granules, <uint32_t>0xffffffff)  # beyond any image
        try:
            while err:
                gb_door_enter(d)
                err = GB_OK if d.store.head.ring.granules else gb_room_ring(&d.store, asked)
                if err == GB_AGAIN: d.cutter = PyThread_get_thread_ident()
                gb_door_leave(d, GB_OP_RESIZE)
                if err == GB_BUSY:
                    gb_door_await(d)
                elif err == GB_SMALL:
                    raise ValueError(f"events: a ring of {granules * 8} bytes does not fit this cache: give it "
                                     f"max_bytes={gb_room_smallest() + granules * 8} or more, or a smaller ring")
                elif err and err != GB_AGAIN:
                    gb_door_raise(d, err, NULL)
                if err: PyErr_CheckSignals()
        except BaseException:
            leave_cut(d)
            raise

    def _listen(self, uint32_t kinds, bint values, room):
        """Has events of these kinds (bits) recorded, 0: none; the first time makes a ring of `room` bytes."""
        cdef gb_door *d = &self.door
        if kinds:
            self._ring(room)
        gb_door_enter(d)
        d.store.listens, d.store.values = kinds, values
        gb_door_leave(d, GB_OP_RESIZE)
        gb_door_inform(d)

    def _cursor(self, since, uint32_t kinds, prefix, bint values):
        """A PackedCursor on what comes (`since` None), or on what is kept with a higher number."""
        cdef PackedCursor cursor = PackedCursor(self)
        gb_news_open(&self.door, &cursor.news, -1 if since is None else since, kinds,
                     NULL if prefix is None else <PyObject *>prefix, values)
        return cursor

    def _seq(self):
        """The number of the last event recorded; 0: none was."""
        cdef gb_door *d = &self.door
        gb_door_enter(d)
        cdef uint64_t seq = gb_room_seq(&d.store)
        gb_door_leave(d, GB_OP_GET)
        return seq

    def _bells(self, size_t bell, bint add):
        """Registers a bell, by its address, or lets go of it."""
        cdef gb_door *d = &self.door
        cdef bint done = True
        gb_door_hold(d)  # also where it is closed: the housekeeper may be at its last round
        if add:
            done = gb_bell_add(&d.bells, <gb_bell *>bell)
        else:
            gb_bell_drop(&d.bells, <gb_bell *>bell)
        gb_door_unlock(d)
        if not done:
            raise MemoryError

    @cython.critical_section
    def _hear(self, fn):
        """Has `fn()` called after each operation that told something, by the thread that did it."""
        before = self.hears  # until nobody finds it any more
        gb_door_hear(&self.door, NULL if fn is None else <PyObject *>fn)
        self.hears = fn

    def _eager(self):
        """Whether somebody is to be told of what expires."""
        cdef gb_door *d = &self.door
        gb_door_hold(d)
        cdef bint eager = (d.store.listens & 1 << GB_EVENT_EXPIRE) != 0
        gb_door_unlock(d)
        return eager

    def _timed(self):
        """Whether any entry has a TTL."""
        cdef gb_door *d = &self.door
        gb_door_hold(d)
        cdef bint timed = d.open and d.store.head.wheel.count > 0
        gb_door_unlock(d)
        return timed

    def _figures(self):
        """Everything that is counted: (counters, ledger in bytes, sizes, max_steps)."""
        cdef gb_door *d = &self.door
        cdef gb_counters c
        cdef uint32_t ledger[9]
        cdef uint32_t steps[7]
        cdef uint32_t count, timed, most, ring
        cdef uint64_t keys, values, length
        gb_door_enter(d)
        c = d.store.head.counters
        memcpy(ledger, d.store.head.arena.ledger, sizeof(ledger))
        memcpy(steps, d.store.max_steps, sizeof(steps))
        keys, values = d.store.head.key_bytes, d.store.head.value_bytes
        length, count, ring = d.store.head.length, d.store.head.table.count, d.store.head.ring.granules
        timed, most = d.store.head.wheel.count, d.store.head.max_entries
        gb_door_leave(d, GB_OP_GET)
        counters = dict(hits=c.hits, misses_absent=c.misses_absent,
                        misses_expired=c.misses_expired, sets=c.sets, replaces=c.replaces,
                        deletes=c.deletes, evictions=c.evictions, expirations=c.expirations,
                        rejects=c.rejects, clears=c.clears, moves=c.moves, loads=c.loads,
                        load_errors=c.load_errors, stale_hits=c.stale_hits)
        parts = {name: <uint64_t>ledger[i] * 8 for i, name in enumerate(KINDS)}
        parts["ring"] = <uint64_t>ring * 8
        parts["head"] += length - sum(parts.values())  # less than a granule, if any
        sizes = dict(entries=count, timed=timed, key_bytes=keys, value_bytes=values,
                     total=length, max_entries=most)
        return counters, parts, sizes, {op: steps[i] for i, op in enumerate(OPS)}

    def _busy(self):
        """Whether others may wait for this thread: it is called back from the midst of what it does here."""
        return bool(gb_door_busy(&self.door))

    def _idle(self):
        """RuntimeError where it is so: asked by who is about to wait for those others."""
        gb_door_idle(&self.door)

    def _shrink(self, uint64_t length):
        """Empties all above `length`, in slices; the mapping is as long as before. ValueError where its ring does not fit."""
        cdef gb_door *d = &self.door
        cdef gb_err err = GB_AGAIN
        cdef uint64_t ring = 0
        try:
            while err:
                gb_door_enter(d)
                err = gb_room_shrink(&d.store, length)
                if err == GB_AGAIN: d.cutter = PyThread_get_thread_ident()
                ring = <uint64_t>d.store.head.ring.granules * 8
                gb_door_leave(d, GB_OP_RESIZE)
                gb_door_inform(d)
                if err == GB_BUSY:
                    gb_door_await(d)
                elif err == GB_SMALL:  # its first reader came just now
                    raise too_small(length, ring)
                elif err and err != GB_AGAIN:
                    gb_door_raise(d, err, NULL)
                if err: PyErr_CheckSignals()
        except BaseException:
            leave_cut(d)
            raise

    def _remap(self, uint64_t length, fresh=None):
        """Makes the mapping, in place or as a copy into `fresh`, as long as an image that fits already."""
        try:
            self._remap_alone(length, fresh)
        except OSError as error:
            raise refused(error, length) from error

    def _remap_alone(self, uint64_t length, fresh):
        """No Python code may run meanwhile: the collector rests, and mmap.resize is called as it is."""
        cdef gb_door *d = &self.door
        cdef Py_buffer other
        cdef bint collects
        size = int(length)
        gb_door_enter(d)
        old = self.map  # within: a close takes it away
        collects = PyGC_Disable()
        try:
            if length < d.store.head.length:
                raise SystemError(f"an image of {d.store.head.length} bytes does not fit {length}")
            if d.saver != NULL:  # its bits are as many as the image has places
                raise SystemError("an image that is being saved is not mapped anew")
            if fresh is None:
                PyBuffer_Release(&self.view)
                try:
                    old.resize(size)
                finally:
                    PyObject_GetBuffer(old, &self.view, PyBUF_WRITABLE)
            else:
                PyObject_GetBuffer(fresh, &other, PyBUF_WRITABLE)
                memcpy(other.buf, self.view.buf, min(<size_t>self.view.len, <size_t>other.len))
                PyBuffer_Release(&self.view)
                self.view, self.map = other, fresh
            gb_room_rebase(&d.store, self.view.buf)
            d.store.mapped = self.view.len
            if length > d.store.head.length:
                gb_room_grow(&d.store, length)
        finally:
            gb_room_rebase(&d.store, self.view.buf)
            gb_door_leave(d, GB_OP_RESIZE)
            if collects:
                PyGC_Enable()
        if fresh is not None:
            old.close()

    def _limit(self, uint32_t max_entries):
        """Sets max_entries; evicts down to it, in slices. It comes down with what there is: it holds whenever anybody
        looks, or a kill comes, and who writes meanwhile evicts no more than ever."""
        cdef gb_door *d = &self.door
        cdef bint over = True
        cdef uint64_t now = 0
        gb_clock_now(&d.clock, False, &now)  # events have a time
        while over:
            gb_door_enter(d)
            over = max_entries and d.store.head.table.count > max_entries
            if over:
                gb_room_remove(&d.store, gb_index_victim(&d.store.index), GB_CAUSE_EVICT)
            d.store.head.max_entries = d.store.head.table.count if over else max_entries
            gb_door_leave(d, GB_OP_REMOVE)
            gb_door_inform(d)

    def _fork_before(self):
        gb_door_fork_before(&self.door)

    def _fork_parent(self):
        gb_door_fork_parent(&self.door)

    def _fork_child(self):
        """Again, it does nothing more. One that was not held, as the fork went past `_before` or cut it short, is closed
        where another thread was within, for that is not here to go on: as a live file is, whose one writer is the parent."""
        cdef gb_door *d = &self.door
        cdef bint whole = gb_door_mine(d) or gb_lock_try(&d.lock)
        gb_alone_reborn(<PyObject *>self)
        if not whole or d.store.live:
            gb_door_shut(d)
        gb_door_fork_child(d)
        if d.open or self.map is None: return
        d.forked = d.store.live
        PyBuffer_Release(&self.view)
        map, self.map = self.map, None
        map.close()

    # --- live files ----------------------------------------------------------------------------

    def _fault(self):
        """Why the last `_attach` returned False: rule, place, wanted, found."""
        return self.scratch

    def _opened(self, boot):
        """The file is filled: from here on a killed process leaves it to be mended."""
        gb_door_enter(&self.door)
        cdef uint64_t file_id = self.door.store.head.file_id
        gb_door_unlock(&self.door)  # what follows makes objects
        go_live(self, GB_IMAGE_OPEN, boot, file_id)

    def _keeps(self):
        """Whether the housekeeper is to be told, and was not yet."""
        keeps, self.door.keep = self.door.keep, False
        return keeps

    def _asked(self, max_bytes=None):
        """The budget as it was asked for; sets it."""
        cdef gb_door *d = &self.door
        gb_door_enter(d)
        if max_bytes is not None:
            d.store.head.max_bytes = max_bytes
        cdef uint64_t asked = d.store.head.max_bytes
        gb_door_leave(d, GB_OP_RESIZE)
        return asked

    def _seal(self):
        """All on disk, then the state that says so."""
        cdef gb_head *h = self.door.store.head
        self.map.flush()
        h.closed_at = gb_clock_exact(&self.door.clock)
        h.clock_base = int(time() * 1000) - h.closed_at
        gb_image_seal(&self.door.store)
        self.map.flush(0, 4096 * (sizeof(gb_head) // 4096 + 1))

    def _after_checkpoint(self):
        """Numbers of events that were given since the checkpoint are not given again."""
        gb_door_enter(&self.door)
        self.door.store.head.seq += 1 << 32
        gb_door_unlock(&self.door)

    def _tell_recovered(self):
        """The event that the cache is not what it was before it stopped."""
        cdef gb_door *d = &self.door
        gb_door_enter(d)
        gb_tell_count(&d.store, GB_EVENT_RECOVER, d.store.head.table.count)
        gb_door_leave(d, GB_OP_SET)
        gb_door_inform(d)


def too_small(length, ring):
    """What to raise where an image so long has no room beside its ring."""
    return ValueError(f"max_bytes={length!r} is too small: with its ring of events, {ring} bytes, the smallest that "
                      f"works is {gb_room_smallest() + ring}")


cdef int leave_cut(gb_door *d) except -1:
    """A shrink, or a ring that was being made room for, is left half done."""
    gb_door_hold(d)
    if d.open:
        gb_room_shrink(&d.store, d.store.head.length)
    gb_door_unlock(d)
    return 0


cdef bint take(PackedImage self, map, uint64_t *words, how, boot, uint64_t file_id, uint32_t max_entries,
               uint64_t max_bytes, codec_name, housekeeping) except -1:
    """The buffer becomes the cache's image; False: as `_attach`, and it was let go."""
    cdef gb_door *d = &self.door
    cdef gb_err err
    if how == "new":
        err = gb_room_format(&d.store, self.view.buf, self.view.len, words, GB_CLOCK_HEAD_START)
    else:
        err = adopt(self, how == "mend", boot)
    if err:
        if how == "new":
            gb_door_raise(d, err, NULL)
        PyBuffer_Release(&self.view)
        return False
    if how == "new":
        d.store.head.max_bytes, d.store.head.max_entries = max_bytes, max_entries
        memcpy(d.store.head.codec, <const char *>codec_name, min(<size_t>len(codec_name), <size_t>63))
    if boot is not None:
        go_live(self, GB_IMAGE_LOADING if how == "new" else GB_IMAGE_OPEN, boot, file_id)
    self.map = map
    d.keep = housekeeping
    d.born = d.open = True
    return True


cdef gb_err adopt(PackedImage self, bint mend, boot) except *:
    """Takes the image in the buffer; time goes on from where it was."""
    cdef gb_door *d = &self.door
    cdef gb_fault fault
    cdef uint64_t[:] scratch
    cdef const unsigned char[:] bytes16 = boot
    cdef gb_err err = gb_room_attach(&d.store, self.view.buf, self.view.len)
    cdef gb_head *h = d.store.head
    if err:
        self.scratch = ("the image is as long as its superblock says", 0, (<gb_head *>self.view.buf).length,
                        self.view.len)
        return err
    if mend:
        d.store.live = True
        gb_room_rebase(&d.store, self.view.buf)
        self.scratch = array("Q", bytes(8 * gb_mend_scratch(self.view.len)))
        scratch = self.scratch
        with nogil:
            err = gb_mend(&d.store, &scratch[0], &fault)
        self.scratch = None
        if err:
            self.scratch = (fault.rule.decode(), fault.at, fault.want, fault.got)
            return err
    now = int(d.clock.wall * 1000) - <int64_t>h.clock_base
    if memcmp(h.boot_id, &bytes16[0], 16) == 0:  # the same run of the machine: its clock went on, but for a suspend
        now = max(now, (d.clock.zero_ns - h.zero_ns) // 1000000 + GB_CLOCK_HEAD_START)
    now = max(now, h.closed_at, h.wheel.tick << 3, GB_CLOCK_HEAD_START)
    d.clock.zero_ns -= (now - GB_CLOCK_HEAD_START) * 1000000
    d.clock.wall -= (now - GB_CLOCK_HEAD_START) / 1000.0
    return GB_OK


cdef void go_live(PackedImage self, gb_image_state state, boot, uint64_t file_id) except *:
    """Says in the superblock who has it, since when, and in which run of the machine."""
    cdef uint64_t words[2]
    cdef const unsigned char[:] bytes16 = boot
    cdef gb_door *d = &self.door
    memcpy(words, &bytes16[0], 16)
    d.store.head.zero_ns = d.clock.zero_ns
    d.store.head.clock_base = int(d.clock.wall * 1000) - GB_CLOCK_HEAD_START
    gb_image_state_set(&d.store, state, words, file_id, getpid())
