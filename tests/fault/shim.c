/* shim.c - loaded before libc: has one call under a directory fail, or records all that is written there.
 *
 * It does nothing until it is told to, by calls (ctypes.CDLL(None)), so that one process tries every turn:
 *
 *   shim_root(path)              what is watched; nothing else is touched, and nothing else is counted
 *   shim_arm(name, n, error, how)   the n-th call of `name` from here on does what `how` says; "" counts all
 *   shim_calls()                 how many calls of that name there were so far
 *   shim_disarm()                the same, and no more fail
 *   shim_log(path)               what is written from here on is recorded there; NULL: no longer
 *   shim_mark(text)              a line of its own in the record
 *   shim_memory(n, how)          the n-th thing our own objects ask of the system's memory fails: malloc, calloc,
 *                                realloc; mmap, mremap, pthread_create, whoever asks
 *   shim_memory_end()            how many there were
 *   shim_crashes()               SIGSEGV, SIGABRT and SIGALRM write the C frames to stderr first
 *
 * how: 0 it fails with `error`; 1 it fails, and so do all after it; 2 it does half of what it was asked to.
 * A `close` that fails has closed, as Linux does it. A record is a line: call, inode, path, other path, two numbers,
 * bytes in hex. Stores into a mapping are no calls: before each line come, as "page" lines, the pages of watched shared
 * mappings that changed since the last one.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096u
#define MAPS 8
enum { FAIL, FAIL_ON, HALF };

static char root[4096], armed[32];
static int turn, error_no, how, calls, is_armed;
static FILE *out;
static pthread_mutex_t writing = PTHREAD_MUTEX_INITIALIZER; /* a line at a time, whichever thread's */
static struct map {
    unsigned long long inode;
    unsigned char *at, *seen;
    size_t bytes;
} maps[MAPS];

#define REAL(type, name, ...)                                                                                \
    static type (*real)(__VA_ARGS__);                                                                        \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* --- what is watched, and what fails --------------------------------------------------------------------------- */

static int ours_path(const char *path) {
    size_t n = strlen(root);
    return n && path && !strncmp(path, root, n) && (path[n] == '/' || !path[n]);
}
static const char *name_of(int fd) {
    static __thread char name[4096], link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int kept = errno;
    ssize_t n = readlink(link, name, sizeof name - 1);
    errno = kept;
    name[n > 0 ? n : 0] = 0;
    return name;
}
static int ours(int fd) { return *root && (is_armed || out) && fd > 2 && ours_path(name_of(fd)); }

/* Of a call that is watched: whether it is to fail (or to do half), with errno set. */
static int fails(const char *name) {
    if (!is_armed || (*armed && strcmp(armed, name))) return 0;
    calls++;
    if (!*armed || (calls != turn && !(how == FAIL_ON && calls > turn))) return 0;
    errno = error_no;
    return 1;
}

void shim_root(const char *path) { snprintf(root, sizeof root, "%s", path); }
void shim_arm(const char *name, int n, int error, int what) {
    snprintf(armed, sizeof armed, "%s", name);
    turn = n, error_no = error, how = what, calls = 0, is_armed = 1;
}
int shim_calls(void) { return calls; }
int shim_disarm(void) {
    is_armed = 0;
    return calls;
}

/* --- memory ---------------------------------------------------------------------------------------------------- */

static struct { uintptr_t from, to; } objects[64];
static int objects_n, memory_turn, memory_how, memory_calls, memory_on;

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);

/* Where the code of our objects lies now: what /proc says of files of a directory "gbcache". */
static void find_objects(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[4400], mode[8];
    unsigned long from, to;
    for (objects_n = 0; maps && objects_n < 64 && fgets(line, sizeof line, maps);)
        if (sscanf(line, "%lx-%lx %7s", &from, &to, mode) == 3 && strchr(mode, 'x') && strstr(line, "/gbcache/"))
            objects[objects_n].from = from, objects[objects_n++].to = to;
    if (maps) fclose(maps);
}
void shim_memory(int n, int what) {
    find_objects();
    memory_turn = n, memory_how = what, memory_calls = 0, memory_on = 1;
}
int shim_memory_end(void) {
    memory_on = 0;
    return memory_calls;
}
static int short_of(void) {
    int n = __atomic_add_fetch(&memory_calls, 1, __ATOMIC_RELAXED);
    if (n != memory_turn && !(memory_how == FAIL_ON && n > memory_turn)) return 0;
    errno = ENOMEM;
    return 1;
}
static int short_for(const void *caller) {
    if (!memory_on) return 0;
    for (int i = 0; i < objects_n; i++)
        if ((uintptr_t)caller >= objects[i].from && (uintptr_t)caller < objects[i].to) return short_of();
    return 0;
}
void *malloc(size_t n) { return short_for(__builtin_return_address(0)) ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t of) { return short_for(__builtin_return_address(0)) ? NULL : __libc_calloc(n, of); }
void *realloc(void *p, size_t n) { return short_for(__builtin_return_address(0)) ? NULL : __libc_realloc(p, n); }
int pthread_create(pthread_t *thread, const pthread_attr_t *with, void *(*run)(void *), void *arg) {
    REAL(int, "pthread_create", pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    return memory_on && short_of() ? EAGAIN : real(thread, with, run, arg);
}

static void crashed(int number) {
    void *frames[40];
    backtrace_symbols_fd(frames, backtrace(frames, 40), 2);
    signal(number, SIG_DFL);
    raise(number);
}
void shim_crashes(void) {
    void *first[1];
    backtrace(first, 1); /* loads what it needs now */
    signal(SIGSEGV, crashed), signal(SIGABRT, crashed), signal(SIGALRM, crashed);
}

/* --- what is recorded ------------------------------------------------------------------------------------------ */

static void hex(const unsigned char *p, size_t n) {
    static const char digit[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) putc(digit[p[i] >> 4], out), putc(digit[p[i] & 15], out);
}
static void changed_pages(void) {
    for (struct map *m = maps; m < maps + MAPS; m++)
        for (size_t at = 0; m->at && at < m->bytes; at += PAGE) {
            size_t n = m->bytes - at < PAGE ? m->bytes - at : PAGE;
            if (!memcmp(m->at + at, m->seen + at, n)) continue;
            memcpy(m->seen + at, m->at + at, n);
            fprintf(out, "page %llu - - %zu 0 ", m->inode, at);
            hex(m->seen + at, n);
            putc('\n', out);
        }
}
static unsigned long long inode_of(int fd) {
    REAL(int, "fstat64", int, struct stat64 *);
    struct stat64 found;
    return real(fd, &found) ? 0 : found.st_ino;
}
static unsigned long long inode_at(const char *path) {
    struct stat64 found;
    return lstat64(path, &found) ? 0 : found.st_ino;
}
static void note(const char *what, unsigned long long inode, const char *path, const char *other, long long a,
                 long long b, const void *p, size_t n) {
    if (!out) return;
    int kept = errno;
    pthread_mutex_lock(&writing);
    changed_pages();
    fprintf(out, "%s %llu %s %s %lld %lld ", what, inode, path, other, a, b);
    hex(p, n);
    putc('\n', out);
    fflush(out);
    pthread_mutex_unlock(&writing);
    errno = kept;
}
static void note_fd(const char *what, int fd, long long a, const void *p, size_t n) {
    if (out) note(what, inode_of(fd), name_of(fd), "-", a, 0, p, n);
}
/* What was written through a descriptor that syncs each write (O_DSYNC) is on disk with it. */
static void note_write(int fd, long long at, const void *p, size_t n) {
    note_fd("pwrite", fd, at, p, n);
    if (out && fcntl(fd, F_GETFL) & O_DSYNC) note("msync", inode_of(fd), name_of(fd), "-", at, (long long)n, NULL, 0);
}
void shim_log(const char *path) {
    if (out) changed_pages(), fclose(out);
    out = path ? fopen(path, "w") : NULL;
}
void shim_mark(const char *text) { note("mark", 0, text, "-", 0, 0, NULL, 0); }

static void map_begin(int fd, void *at, size_t bytes) {
    struct map *m = maps;
    while (m < maps + MAPS && m->at) m++;
    if (m == maps + MAPS) abort();
    m->inode = inode_of(fd);
    m->at = at, m->bytes = bytes, m->seen = malloc(bytes);
    memcpy(m->seen, at, bytes);
}
static void map_end(void *at) {
    for (struct map *m = maps; m < maps + MAPS; m++)
        if (m->at && m->at == at) {
            if (out) changed_pages();
            free(m->seen);
            m->at = NULL;
        }
}
static struct map *map_of(const void *p) {
    for (struct map *m = maps; m < maps + MAPS; m++)
        if (m->at && (const unsigned char *)p >= m->at && (const unsigned char *)p < m->at + m->bytes) return m;
    return NULL;
}

/* --- the calls ------------------------------------------------------------------------------------------------- */

static ssize_t write_at(int fd, const void *p, size_t n, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    if (!ours(fd)) return real(fd, p, n, at);
    if (fails("pwrite")) {
        if (how != HALF) return -1;
        n = n > 1 ? n / 2 : n;
    }
    ssize_t done = real(fd, p, n, at);
    if (done > 0) note_write(fd, at, p, (size_t)done);
    return done;
}
ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at) { return write_at(fd, p, n, at); }
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) { return write_at(fd, p, n, at); }
ssize_t write(int fd, const void *p, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (!ours(fd)) return real(fd, p, n);
    if (fails("write")) {
        if (how != HALF) return -1;
        n = n > 1 ? n / 2 : n;
    }
    long long at = lseek64(fd, 0, SEEK_CUR);
    ssize_t done = real(fd, p, n);
    if (done > 0) note_write(fd, at, p, (size_t)done);
    return done;
}
ssize_t writev(int fd, const struct iovec *parts, int count) { /* as LMDB writes a run of pages */
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    if (!ours(fd)) return real(fd, parts, count);
    if (fails("writev")) {
        if (how != HALF) return -1;
        count = count > 1 ? count / 2 : count;
    }
    long long at = lseek64(fd, 0, SEEK_CUR);
    ssize_t done = real(fd, parts, count), left = done;
    for (int i = 0; i < count && left > 0; i++) {
        size_t n = (size_t)left < parts[i].iov_len ? (size_t)left : parts[i].iov_len;
        note_write(fd, at, parts[i].iov_base, n);
        at += (long long)n, left -= (ssize_t)n;
    }
    return done;
}
static ssize_t read_at(int fd, void *p, size_t n, off64_t at) {
    REAL(ssize_t, "pread64", int, void *, size_t, off64_t);
    if (ours(fd) && fails("pread")) {
        if (how != HALF) return -1;
        n = n > 1 ? n / 2 : n;
    }
    return real(fd, p, n, at);
}
ssize_t pread64(int fd, void *p, size_t n, off64_t at) { return read_at(fd, p, n, at); }
ssize_t pread(int fd, void *p, size_t n, off_t at) { return read_at(fd, p, n, at); }
ssize_t read(int fd, void *p, size_t n) {
    REAL(ssize_t, "read", int, void *, size_t);
    if (ours(fd) && fails("read")) {
        if (how != HALF) return -1;
        n = n > 1 ? n / 2 : n;
    }
    return real(fd, p, n);
}

static int cut(int fd, off64_t n) {
    REAL(int, "ftruncate64", int, off64_t);
    if (!ours(fd)) return real(fd, n);
    if (fails("ftruncate")) return -1;
    note_fd("ftruncate", fd, n, NULL, 0);
    return real(fd, n);
}
int ftruncate64(int fd, off64_t n) { return cut(fd, n); }
int ftruncate(int fd, off_t n) { return cut(fd, n); }
static int reserve(int fd, off64_t at, off64_t n) { /* its error is what it returns */
    REAL(int, "posix_fallocate64", int, off64_t, off64_t);
    if (!ours(fd)) return real(fd, at, n);
    if (fails("fallocate")) return error_no;
    note_fd("fallocate", fd, at + n, NULL, 0);
    return real(fd, at, n);
}
int posix_fallocate64(int fd, off64_t at, off64_t n) { return reserve(fd, at, n); }
int posix_fallocate(int fd, off_t at, off_t n) { return reserve(fd, at, n); }
static int allocate(int fd, int mode, off64_t at, off64_t n) {
    REAL(int, "fallocate64", int, int, off64_t, off64_t);
    if (!ours(fd)) return real(fd, mode, at, n);
    if (fails("fallocate")) return -1;
    note_fd("fallocate", fd, at + n, NULL, 0);
    return real(fd, mode, at, n);
}
int fallocate64(int fd, int mode, off64_t at, off64_t n) { return allocate(fd, mode, at, n); }
int fallocate(int fd, int mode, off_t at, off_t n) { return allocate(fd, mode, at, n); }

int fsync(int fd) {
    REAL(int, "fsync", int);
    if (!ours(fd)) return real(fd);
    if (fails("fsync")) return -1;
    note_fd("fsync", fd, 0, NULL, 0);
    return real(fd);
}
int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    if (!ours(fd)) return real(fd);
    if (fails("fdatasync")) return -1;
    note_fd("fsync", fd, 0, NULL, 0);
    return real(fd);
}
int fchmod(int fd, mode_t mode) {
    REAL(int, "fchmod", int, mode_t);
    return ours(fd) && fails("fchmod") ? -1 : real(fd, mode);
}
int flock(int fd, int operation) {
    REAL(int, "flock", int, int);
    return ours(fd) && fails("flock") ? -1 : real(fd, operation);
}
int fstat64(int fd, struct stat64 *to) {
    REAL(int, "fstat64", int, struct stat64 *);
    return ours(fd) && fails("fstat") ? -1 : real(fd, to);
}
int fstat(int fd, struct stat *to) {
    REAL(int, "fstat", int, struct stat *);
    return ours(fd) && fails("fstat") ? -1 : real(fd, to);
}
int close(int fd) {
    REAL(int, "close", int);
    int fail = ours(fd) && fails("close");
    int done = real(fd);
    if (fail) errno = error_no;
    return fail ? -1 : done;
}
int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    if (!ours_path(to)) return real(from, to);
    if (fails("rename")) return -1;
    note("rename", inode_at(from), from, to, 0, 0, NULL, 0);
    return real(from, to);
}
int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    if (!ours_path(to)) return real(from, to);
    if (fails("link")) return -1;
    int done = real(from, to);
    if (!done) note("link", inode_at(from), from, to, 0, 0, NULL, 0);
    return done;
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
    REAL(int, "linkat", int, const char *, int, const char *, int);
    if (!ours_path(to)) return real(a, from, b, to, flags);
    if (fails("link")) return -1;
    int done = real(a, from, b, to, flags);
    if (!done) note("link", inode_at(from), from, to, 0, 0, NULL, 0);
    return done;
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    if (!ours_path(path)) return real(path);
    if (fails("unlink")) return -1;
    note("unlink", inode_at(path), path, "-", 0, 0, NULL, 0);
    return real(path);
}

/* A file that was not there is recorded as "create", one that is emptied as "ftruncate". */
static int open_at(int dir, const char *path, int flags, mode_t mode) {
    REAL(int, "openat64", int, const char *, int, ...);
    if (!ours_path(path)) return real(dir, path, flags, mode);
    if (fails("open")) return -1;
    struct stat64 there;
    int fresh = flags & O_CREAT && lstat64(path, &there);
    int fd = real(dir, path, flags, mode);
    if (fd >= 0 && fresh) note("create", inode_at(path), path, "-", 0, 0, NULL, 0);
    else if (fd >= 0 && flags & O_TRUNC) note("ftruncate", inode_at(path), path, "-", 0, 0, NULL, 0);
    return fd;
}
#define OPENS()                 \
    va_list list;                                                                                            \
    va_start(list, flags);                                                                                   \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;                                  \
    va_end(list)
int open64(const char *path, int flags, ...) {
    OPENS();
    return open_at(AT_FDCWD, path, flags, mode);
}
int open(const char *path, int flags, ...) {
    OPENS();
    return open_at(AT_FDCWD, path, flags, mode);
}
int openat64(int dir, const char *path, int flags, ...) {
    OPENS();
    return open_at(dir, path, flags, mode);
}
int openat(int dir, const char *path, int flags, ...) {
    OPENS();
    return open_at(dir, path, flags, mode);
}

static void *map_file(void *want, size_t n, int prot, int flags, int fd, off64_t at) {
    REAL(void *, "mmap64", void *, size_t, int, int, int, off64_t);
    int watched = fd >= 0 && ours(fd);
    if (memory_on && short_of()) return MAP_FAILED;
    if (watched && fails("mmap")) return MAP_FAILED;
    void *to = real(want, n, prot, flags, fd, at);
    if (watched && out && to != MAP_FAILED && flags & MAP_SHARED && prot & PROT_WRITE) map_begin(fd, to, n);
    return to;
}
void *mmap64(void *want, size_t n, int prot, int flags, int fd, off64_t at) { return map_file(want, n, prot, flags, fd, at); }
void *mmap(void *want, size_t n, int prot, int flags, int fd, off_t at) { return map_file(want, n, prot, flags, fd, at); }
int munmap(void *p, size_t n) {
    REAL(int, "munmap", void *, size_t);
    map_end(p);
    return real(p, n);
}
void *mremap(void *p, size_t old, size_t n, int flags, ...) { /* as mmap.resize calls it */
    REAL(void *, "mremap", void *, size_t, size_t, int, ...);
    if (memory_on && short_of()) return MAP_FAILED;
    struct map *m = map_of(p);
    void *to = real(p, old, n, flags);
    if (m && to != MAP_FAILED) {
        m->seen = realloc(m->seen, n);
        if (n > old) memcpy(m->seen + old, (unsigned char *)to + old, n - old);
        m->at = to, m->bytes = n;
    }
    return to;
}
/* Which mapping it is of is not looked for while nothing is recorded: only files are flushed. */
int msync(void *p, size_t n, int flags) {
    REAL(int, "msync", void *, size_t, int);
    if (fails("msync")) return -1;
    struct map *m = out ? map_of(p) : NULL;
    if (m) note("msync", m->inode, "-", "-", (unsigned char *)p - m->at, (long long)n, NULL, 0);
    return real(p, n, flags);
}
