# _disk.pyx - a Disk's inner loops: names and records, reading many, and the check of a file.
# cython: language_level=3, binding=False, boundscheck=False, wraparound=False, freethreading_compatible=True
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.errno cimport EINTR, EIO, ENOSPC, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memset

from hashlib import blake2b
from os import strerror

from .codec import decode_key, encode_key, pack_value, unpack_value
from .errors import ImageError
from .locks import Monitor

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <unistd.h>
    static int gb_datasync(int fd) {
        int done;
        do {
    #if defined(__APPLE__)
            done = fcntl(fd, F_FULLFSYNC);
            if (done && (errno == ENOTSUP || errno == EINVAL || errno == ENOTTY)) done = fsync(fd); /* as files.sync */
    #else
            done = fdatasync(fd);
    #endif
        } while (done && errno == EINTR);
        return done ? errno : 0;
    }
    static int gb_cut(int fd, int64_t at) {
        int done;
        do done = ftruncate(fd, (off_t)at);
        while (done && errno == EINTR);
        return done ? errno : 0;
    }
    """
    int gb_datasync(int fd) nogil
    int gb_cut(int fd, int64_t at) nogil
    Py_ssize_t pwrite(int fd, const void *data, size_t n, int64_t at) nogil

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    char *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    int64_t PyLong_AsLongLongAndOverflow(object number, int *overflow)
    unsigned long PyThread_get_thread_ident()

cdef extern from "_alone.h":
    PyObject *gb_alone_item(PyObject *all, PyObject *key)

cdef extern from "_pages.h" nogil:
    enum: GB_RECORD_NAME, GB_RECORD_LONG, GB_RECORD_HEAD, GB_PAGES_CODEC
    struct gb_digest:
        pass
    struct gb_sum:
        pass
    struct gb_pages_store:
        uint64_t sum, version, applied
        uint64_t seed[2]
        char codec[64]
    struct gb_pages:
        const uint8_t *file
        uint64_t size, entries, at, next, page
        uint8_t *seen
        gb_pages_store store
        const char *rule
    void gb_digest_seed(gb_digest *d, const uint64_t *seed)
    void gb_digest_sum_begin(gb_sum *s, uint64_t about)
    void gb_digest_sum_add(gb_sum *s, const void *data, size_t n)
    uint64_t gb_digest_sum_end(gb_sum *s)
    uint64_t gb_record_sum(const gb_digest *d, const uint8_t *name, size_t n, const uint8_t *record, size_t m)
    size_t gb_record_payload(const gb_digest *d, const uint8_t *name, size_t n, const uint8_t *record, size_t m)
    uint64_t gb_record_deadline(const uint8_t *record)
    bint gb_pages_check(gb_pages *p)
    uint64_t gb_pages_store_sum(const gb_pages_store *s)

NAME_MAX = GB_RECORD_NAME
_UNSET = object()
cdef object UNSET = _UNSET
cdef uint8_t NOTHING = 0


def checksum(const uint8_t[::1] data, uint64_t about):
    """Of a file's piece: another one for any change of one word, and for another `about`."""
    cdef gb_sum s
    gb_digest_sum_begin(&s, about)
    gb_digest_sum_add(&s, &data[0] if data.shape[0] else &NOTHING, <size_t>data.shape[0])
    return gb_digest_sum_end(&s)


def digest_of(data):
    """What stands for a long key in its name."""
    return blake2b(data, digest_size=32).digest()


cdef int write_through(int fd, bytes data, int64_t at, bint sync, int owner, bytes mark) except -1:
    """Writes `data` at `at`, syncs if asked, then writes `mark` to the beginning of `owner`; 0, or an errno, and then
    the mark is not written.

    All of it with the GIL let go once: at each further time a leader would have to wait for its followers.
    """
    cdef const char *from_ = PyBytes_AS_STRING(data)
    cdef const char *marked = PyBytes_AS_STRING(mark)
    cdef Py_ssize_t left = PyBytes_GET_SIZE(data), size = PyBytes_GET_SIZE(mark), done
    cdef int failed = 0
    with nogil:
        while left and not failed:
            done = pwrite(fd, from_, <size_t>left, at)
            if done > 0:
                from_ += done
                at += done
                left -= done
            elif done < 0 and errno != EINTR:
                failed = errno
            elif not done:
                failed = ENOSPC
        if not failed and sync:
            failed = gb_datasync(fd)
        if not failed and pwrite(owner, marked, <size_t>size, 0) != size:
            failed = errno or EIO
    return failed


def append(engine, journal, bytes frame, end, seq, waits, dict changes, bint sync, int owner, bytes mark,
           list group):
    """Writes a frame behind the journal's last and the owner's mark, and has the engine, and the `group`, know of it.

    In one step, for here no signal's handler runs: a frame that is marked as acknowledged is never taken away, nor is
    its number used again. The numbers come ready made, as afterwards there may be no memory for them; if `changes`
    then cannot be put among the others, they are `owed`. Raises OSError; then the journal is as it was, or `doubtful`:
    no later sync can make up for one that failed, for the kernel tells of a page that could not be written once, and
    forgets it.
    """
    cdef int fd = journal.fd
    cdef int64_t at = journal.size
    cdef int failed = write_through(fd, frame, at, sync, owner, mark)
    if failed:
        if gb_cut(fd, at) or sync:
            journal.doubtful = True
        raise OSError(failed, strerror(failed))
    journal.size, engine.seq, engine.active_size, engine.owed = end, seq, waits, changes
    if sync and engine.synced >= engine._frozen_seq:  # else an older journal has what is not synced
        engine.synced = seq
    for request in group:
        request.told = True
    pay(engine)


def pay(engine):
    """Puts what is owed among what waits."""
    cdef dict owed = engine.owed
    if owed is not None:
        (<dict?>engine.layers[0]).update(owed)
        engine.owed = None


def sync_journal(journal):
    """When it returns, all frames are on disk; if it raises OSError, the journal is `doubtful`: here too nothing can
    come between the two."""
    cdef int fd = journal.fd, failed
    with nogil:
        failed = gb_datasync(fd)
    if failed:
        journal.doubtful = True
        raise OSError(failed, strerror(failed))


def store_record(bytes seed, uint64_t applied, bytes codec):
    """The store's own record."""
    cdef gb_pages_store s
    memset(&s, 0, sizeof(s))
    s.version = 1
    s.applied = applied
    memcpy(s.seed, PyBytes_AS_STRING(seed), 16)
    memcpy(s.codec, PyBytes_AS_STRING(codec), <size_t>min(len(codec), GB_PAGES_CODEC - 1))
    s.sum = gb_pages_store_sum(&s)
    return PyBytes_FromStringAndSize(<char *>&s, sizeof(s))


def check_file(const uint8_t[::1] file, path):
    """(seed, applied, codec, entries) of a sound data file; ImageError for any other."""
    cdef gb_pages p
    cdef bint sound
    memset(&p, 0, sizeof(p))
    if not file.shape[0]:
        raise ImageError(path, 0, "it is as long as LMDB's two heads")
    p.file = &file[0]
    p.size = <uint64_t>file.shape[0]
    p.seen = <uint8_t *>calloc(p.size // 256 // 8 + 1, 1)
    if not p.seen:
        raise MemoryError
    with nogil:
        sound = gb_pages_check(&p)
    free(p.seen)
    if not sound:
        raise ImageError(path, p.at, p.rule.decode())
    return PyBytes_FromStringAndSize(<char *>p.store.seed, 16), p.store.applied, p.store.codec, p.entries


include "_gate.pxi"


cdef class Records:
    """Keys and values as names and records, by one store's seed and codec."""

    cdef gb_digest digest
    cdef object path, codec, digest_of

    def __init__(self, bytes seed, codec, path, long_digest):
        cdef uint64_t words[2]
        memcpy(words, PyBytes_AS_STRING(seed), 16)
        gb_digest_seed(&self.digest, words)
        self.codec, self.path, self.digest_of = codec, path, long_digest

    cpdef bytes name(self, key):
        """The name of a key; of a long one the first it may have."""
        cdef int overflow = 0
        cdef int64_t number
        cdef Py_ssize_t n
        cdef bytes made
        if type(key) is str and PyUnicode_IS_COMPACT_ASCII(key):
            n = PyUnicode_GET_LENGTH(key)
            if n < GB_RECORD_NAME:
                made = PyBytes_FromStringAndSize(NULL, n + 1)
                PyBytes_AS_STRING(made)[0] = 0
                memcpy(PyBytes_AS_STRING(made) + 1, PyUnicode_DATA(key), <size_t>n)
                return made
        elif type(key) is int:
            number = PyLong_AsLongLongAndOverflow(key, &overflow)
            if not overflow:
                made = PyBytes_FromStringAndSize(NULL, 9)
                PyBytes_AS_STRING(made)[0] = 2
                memcpy(PyBytes_AS_STRING(made) + 1, &number, 8)
                return made
        kind, data = encode_key(key)
        if len(data) < GB_RECORD_NAME:
            return bytes((kind,)) + data
        return bytes((GB_RECORD_LONG | kind,)) + self.digest_of(data) + b"\0\0"

    def seal(self, bytes name, bytes rest):
        """A record: its sum, then `rest`."""
        cdef Py_ssize_t n = PyBytes_GET_SIZE(rest)
        cdef bytes made = PyBytes_FromStringAndSize(NULL, n + 8)
        cdef uint8_t *at = <uint8_t *>PyBytes_AS_STRING(made)
        cdef uint64_t total
        memcpy(at + 8, PyBytes_AS_STRING(rest), <size_t>n)
        total = gb_record_sum(&self.digest, <uint8_t *>PyBytes_AS_STRING(name), <size_t>PyBytes_GET_SIZE(name),
                            at, <size_t>n + 8)
        memcpy(at, &total, 8)
        return made

    def pack(self, key, value, uint64_t deadline):
        """(name, record) of an entry. Raises what `encode_key` and `pack_value` do."""
        cdef bytes name = self.name(key)
        cdef bytes head = PyBytes_FromStringAndSize(<char *>&deadline, 8)
        if PyBytes_AS_STRING(name)[0] & GB_RECORD_LONG:
            data = encode_key(key)[1]
            head = head + len(data).to_bytes(4, "little") + data
        return name, self.seal(name, head + pack_value(self.codec, value))

    cdef size_t _payload(self, bytes name, const uint8_t *record, Py_ssize_t n) except 0:
        cdef size_t at = gb_record_payload(&self.digest, <uint8_t *>PyBytes_AS_STRING(name),
                                           <size_t>PyBytes_GET_SIZE(name), record, <size_t>n)
        if not at:
            raise ImageError(self.path, None, f"the record of {name[:60]!r} has its checksum: it was damaged")
        return at

    cdef int _list(self, bytes name, const uint8_t *record, Py_ssize_t n, uint64_t now, list keys) except -1:
        """Adds the key of a sound record that is not over."""
        cdef size_t at = self._payload(name, record, n)
        cdef uint64_t deadline = gb_record_deadline(record)
        if 0 < deadline <= now:
            return 0
        if PyBytes_AS_STRING(name)[0] & GB_RECORD_LONG:
            record += GB_RECORD_HEAD + 4
            keys.append(decode_key(name[0] & 3, PyBytes_FromStringAndSize(<char *>record, at - GB_RECORD_HEAD - 4)))
        else:
            keys.append(decode_key(name[0], name[1:]))
        return 0

    def page(self, tuple layers, uint64_t now, Py_ssize_t count, items):
        """The keys of up to `count` items, (name, record) of LMDB's own bytes, or what waits in its place; and the last
        name, None if there were fewer. Nothing that is not ours is called: the caller's transaction is open."""
        cdef list keys = []
        cdef Py_buffer held
        cdef bytes name = None
        for at, record in items:
            name = bytes(at)
            count -= 1
            for layer in layers:
                waits = (<dict?>layer).get(name, UNSET)
                if waits is not UNSET:
                    record = waits
                    break
            if record is not None:
                PyObject_GetBuffer(record, &held, PyBUF_SIMPLE)
                try:
                    self._list(name, <uint8_t *>held.buf, held.len, now, keys)
                finally:
                    PyBuffer_Release(&held)
        return keys, None if count else name

    def long_key(self, bytes name, const uint8_t[::1] record):
        """The bytes of the key of a sound record with a long one."""
        return bytes(record[GB_RECORD_HEAD + 4:self._payload(name, &record[0], record.shape[0])])

    def payload(self, bytes name, const uint8_t[::1] record):
        """The bytes of a sound record's value: what `pack_value` made."""
        return bytes(record[self._payload(name, &record[0], record.shape[0]):])

    def until(self, bytes name, const uint8_t[::1] record, uint64_t deadline):
        """A sound record with another deadline."""
        self._payload(name, &record[0], record.shape[0])
        return self.seal(name, PyBytes_FromStringAndSize(<char *>&deadline, 8) + bytes(record[GB_RECORD_HEAD:]))

    cdef bint _is_key(self, key, bytes name, const uint8_t *record, size_t begins) except -1:
        """Whether a record with a long key is of this one."""
        cdef bytes data = encode_key(key)[1]
        cdef size_t n = begins - GB_RECORD_HEAD - 4
        return <size_t>PyBytes_GET_SIZE(data) == n and not memcmp(PyBytes_AS_STRING(data),
                                                                  record + GB_RECORD_HEAD + 4, n)

    cdef object _taken(self, key, bytes name, const uint8_t *at, Py_ssize_t n, uint64_t now):
        """What `_take` puts in a record's place."""
        cdef size_t begins = self._payload(name, at, n)
        cdef uint64_t deadline = gb_record_deadline(at)
        cdef object left = None
        if PyBytes_AS_STRING(name)[0] & GB_RECORD_LONG and not self._is_key(key, name, at, begins):
            return UNSET
        if deadline:
            if deadline <= now:
                return None
            left = <double>(deadline - now) / 1000.0
        at += begins
        n -= <Py_ssize_t>begins
        if at[0] == c"b":
            return PyBytes_FromStringAndSize(<char *>at + 1, n - 1), left
        if at[0] == c"s":
            return PyUnicode_DecodeUTF8(<char *>at + 1, n - 1, "surrogatepass"), left
        return [PyBytes_FromStringAndSize(<char *>at, n), left]

    cdef int _take(self, tuple keys, list names, list records, uint64_t now, get) except -1:
        """In place of each of `records` (of what `get(name)` returns, where that is UNSET): (value, seconds left); a
        list, of the value's bytes, where Python has to decode them; None, where it is absent or over; or UNSET, of
        another key of the same digest. The bytes may be LMDB's own: the caller's transaction is open.
        """
        cdef Py_ssize_t i, n = len(keys)
        cdef Py_buffer held
        cdef bytes name
        if len(names) != n or len(records) != n:
            raise ValueError("as many names and records as keys")
        for i in range(n):
            name, record = names[i], records[i]
            if record is UNSET:
                record = get(name)
            if record is not None:
                PyObject_GetBuffer(record, &held, PyBUF_SIMPLE)
                try:
                    record = self._taken(keys[i], name, <uint8_t *>held.buf, held.len, now)
                finally:
                    PyBuffer_Release(&held)
            records[i] = record
        return 0

    cdef list _hand_out(self, tuple keys, list taken, dict found):
        """Puts into `found` what `_take` took; returns the places of long keys that share their digest with another, or
        None. Here what is not ours is called, a codec or a key's ``__hash__``: no transaction is open.
        """
        cdef Py_ssize_t i = -1
        cdef list others = None
        for one in taken:
            i += 1
            if type(one) is tuple:
                found[keys[i]] = one
            elif one is UNSET:
                others = (others or []) + [i]
            elif one is not None:
                found[keys[i]] = (unpack_value(self.codec, (<list>one)[0]), (<list>one)[1])
        return others

    def read(self, tuple keys, list names, list records, uint64_t now, dict found):
        """Adds to `found` what is in `records`, which are used up, and not over."""
        self._take(keys, names, records, now, None)
        return self._hand_out(keys, records, found)

    def fetch(self, tuple keys, list names, tuple layers, Gate gate, begin, uint64_t now, dict found):
        """`read` of what is in memory or in LMDB: within the gate, in a transaction of its own, ``begin()``."""
        cdef list held = pending(names, layers[0], layers[1])  # before the transaction: see engine.py
        cdef Py_ssize_t seat = gate.enter()
        try:
            txn = begin()
            try:
                self._take(keys, names, held, now, txn.get)
            finally:
                txn.abort()
        finally:
            gate.leave(seat)
        return self._hand_out(keys, held, found)

    def names(self, tuple keys):
        """Their names."""
        cdef list made = []
        for key in keys:
            made.append(self.name(key))
        return made


cdef list pending(list names, dict active, dict frozen):
    """For each name what waits to be written: a record, None where it is to go, UNSET where nothing waits."""
    cdef list held = []
    cdef PyObject *there
    for name in names:
        there = gb_alone_item(<PyObject *>active, <PyObject *>name)  # a writer may take it out meanwhile
        if there is NULL:
            there = gb_alone_item(<PyObject *>frozen, <PyObject *>name)
        held.append(UNSET if there is NULL else <object>there)
        if there is not NULL:
            Py_DECREF(<object>there)
    return held


def deadline_of(const uint8_t[::1] record):
    """Milliseconds since 1970; 0: none."""
    return gb_record_deadline(&record[0])
