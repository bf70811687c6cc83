/* shim.c - loaded before libc: records what is written under one directory, or makes one call of it fail.
 *
 * SHIM_ROOT    the directory; other files are left alone.
 * SHIM_LOG     records go there: one line a call, bytes in hex.
 * SHIM_FAIL    "function:n:errno": the n-th call of it (from 1) fails; errno "short": it does half, "eintr": EINTR once.
 * SHIM_COUNT   where to write, at exit, how many calls of SHIM_FAIL's function there were.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *root, *fail_name;
static int fail_at, fail_errno, fail_short, calls, inside;
static FILE *out;

__attribute__((constructor)) static void begin(void) {
    root = getenv("SHIM_ROOT");
    const char *fail = getenv("SHIM_FAIL"), *path = getenv("SHIM_LOG");
    static char name[64], how[64];
    if (fail && sscanf(fail, "%63[^:]:%d:%63s", name, &fail_at, how) == 3) {
        fail_name = name;
        fail_short = !strcmp(how, "short");
        fail_errno = !strcmp(how, "eintr") ? EINTR : atoi(how);
    }
    if (path) out = fopen(path, "w");
}
__attribute__((destructor)) static void end(void) {
    const char *path = getenv("SHIM_COUNT");
    FILE *f = path ? fopen(path, "w") : NULL;
    if (f) fprintf(f, "%d", calls), fclose(f);
    if (out) fclose(out);
}

static int ours_path(const char *path) { return root && path && !strncmp(path, root, strlen(root)); }
static const char *name_of(int fd) {
    static char name[4096], link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, name, sizeof name - 1);
    name[n > 0 ? n : 0] = 0;
    return name;
}
static int ours(int fd) { return !inside && ours_path(name_of(fd)); }
/* Whether this call is the one to fail; errno is set then. */
static int fails(const char *name) {
    if (!fail_name || strcmp(fail_name, name) || ++calls != fail_at) return 0;
    errno = fail_errno;
    return 1;
}
static void note(const char *what, int fd, const char *more) {
    if (out) fprintf(out, "%s %s %s\n", what, name_of(fd), more), fflush(out);
}
#define REAL(type, name, ...)                                                                      \
    static type (*real)(__VA_ARGS__);                                                              \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    if (!ours(fd)) return real(fd, p, n, at);
    if (fails("pwrite")) {
        if (!fail_short) return -1;
        n = n > 1 ? n / 2 : n;
    }
    ssize_t done = real(fd, p, n, at);
    if (out && done > 0) {
        fprintf(out, "pwrite %s %lld ", name_of(fd), (long long)at);
        for (ssize_t i = 0; i < done; i++) fprintf(out, "%02x", ((const unsigned char *)p)[i]);
        fprintf(out, "\n"), fflush(out);
    }
    return done;
}
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) { return pwrite64(fd, p, n, at); }
ssize_t pread64(int fd, void *p, size_t n, off64_t at) {
    REAL(ssize_t, "pread64", int, void *, size_t, off64_t);
    if (ours(fd) && fails("pread")) {
        if (!fail_short) return -1;
        n = n > 1 ? n / 2 : n;
    }
    return real(fd, p, n, at);
}
ssize_t pread(int fd, void *p, size_t n, off_t at) { return pread64(fd, p, n, at); }
int ftruncate64(int fd, off64_t n) {
    REAL(int, "ftruncate64", int, off64_t);
    char more[32];
    if (!ours(fd)) return real(fd, n);
    if (fails("ftruncate")) return -1;
    snprintf(more, sizeof more, "%lld", (long long)n);
    note("ftruncate", fd, more);
    return real(fd, n);
}
int ftruncate(int fd, off_t n) { return ftruncate64(fd, n); }
int posix_fallocate64(int fd, off64_t at, off64_t n) {
    REAL(int, "posix_fallocate64", int, off64_t, off64_t);
    if (ours(fd) && fails("posix_fallocate")) return fail_errno;
    return real(fd, at, n);
}
int posix_fallocate(int fd, off_t at, off_t n) { return posix_fallocate64(fd, at, n); }
int fsync(int fd) {
    REAL(int, "fsync", int);
    if (!ours(fd)) return real(fd);
    if (fails("fsync")) return -1;
    note("fsync", fd, "");
    return real(fd);
}
int fchmod(int fd, mode_t mode) {
    REAL(int, "fchmod", int, mode_t);
    return ours(fd) && fails("fchmod") ? -1 : real(fd, mode);
}
int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    if (!ours_path(to)) return real(from, to);
    if (fails("rename")) return -1;
    if (out) fprintf(out, "rename %s %s\n", from, to), fflush(out);
    return real(from, to);
}
int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    return ours_path(to) && fails("link") ? -1 : real(from, to);
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    if (!ours_path(path)) return real(path);
    if (fails("unlink")) return -1;
    if (out) fprintf(out, "unlink %s\n", path), fflush(out);
    return real(path);
}
int open64(const char *path, int flags, ...) {
    REAL(int, "open64", const char *, int, ...);
    va_list list;
    va_start(list, flags);
    mode_t mode = flags & O_CREAT ? va_arg(list, mode_t) : 0;
    va_end(list);
    if (ours_path(path) && fails("open")) return -1;
    return real(path, flags, mode);
}
int msync(void *p, size_t n, int flags) {
    REAL(int, "msync", void *, size_t, int);
    return fails("msync") ? -1 : real(p, n, flags);
}
