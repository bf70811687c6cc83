/* _clock.c - clocks, TTL arguments, jitter. */
#include "_clock.h"

PyObject *gb_clock_seconds;

int gb_clock_start(struct gb_clock *c, PyObject *asks, PyObject *ttl, PyObject *idle, double jitter,
                   uint64_t seed) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    c->zero_ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    clock_gettime(CLOCK_REALTIME, &t);
    c->wall = (double)t.tv_sec + (double)t.tv_nsec / 1e9;
    c->jitter = jitter;
    c->dice = seed | 1u;
    if (!gb_clock_ttl(ttl, &c->ttl) || !gb_clock_ttl(idle, &c->idle)) return -1;
    if (!asks) return 0;
    PyObject *said = PyObject_CallNoArgs(asks);
    if (!said) return -1;
    c->zero = PyFloat_AsDouble(said);
    Py_DECREF(said);
    if (PyErr_Occurred()) return -1;
    c->asks = asks;
    c->last = GB_CLOCK_HEAD_START;
    return 0;
}

bool gb_clock_ask(struct gb_clock *c, uint64_t *now) {
    PyObject *said = PyObject_CallNoArgs(c->asks);
    if (!said) return false;
    double seconds = PyFloat_AsDouble(said);
    double ms = (seconds - c->zero) * 1000.0 + 0.0005; /* so that 0.3 s is 300 ms */
    bool sane = ms < (double)GB_CLOCK_MOST; /* and not NaN */
    if (!sane && !PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "clock returned %R: not a time in seconds", said);
    Py_DECREF(said);
    if (PyErr_Occurred()) return false;
    *now = (ms > 0.0 ? (uint64_t)ms : 0u) + GB_CLOCK_HEAD_START;
    GB_STORE(c->last, *now);
    return true;
}

struct gb_life gb_clock_life(struct gb_clock *c, uint64_t now, uint64_t ttl) {
    struct gb_life life = {0, 0, 0, 0};
    if (ttl && c->jitter > 0.0) { /* xorshift64*; shortened, never longer than given */
        uint64_t dice = GB_LOAD(c->dice); /* of two threads at once both get the same roll */
        dice ^= dice >> 12;
        dice ^= dice << 25;
        dice ^= dice >> 27;
        GB_STORE(c->dice, dice);
        double roll = (double)((dice * 2685821657736338717u) >> 11) * 0x1p-53;
        uint64_t off = (uint64_t)((double)ttl * c->jitter * roll);
        ttl = off < ttl ? ttl - off : 1u;
    }
    life.due = ttl ? now + ttl : 0u;
    if (!c->idle) return life;
    life.idle = (uint32_t)c->idle;
    life.hard = life.due;
    if (!life.due || now + c->idle < life.due) life.due = now + c->idle;
    return life;
}

bool gb_clock_ttl(PyObject *ttl, uint64_t *ms) {
    double seconds;
    *ms = 0;
    if (ttl == Py_None) return true;
    if (PyFloat_CheckExact(ttl)) {
        seconds = PyFloat_AS_DOUBLE(ttl);
    } else if (PyLong_CheckExact(ttl)) {
        seconds = PyLong_AsDouble(ttl);
        if (seconds == -1.0 && PyErr_Occurred()) PyErr_Clear(), seconds = -1.0;
    } else {
        seconds = -1.0;
    }
    if (!(seconds > 0.0 && seconds <= 3155760000.0)) { /* a timedelta, or worth an error */
        PyObject *said = PyObject_CallOneArg(gb_clock_seconds, ttl);
        if (!said) return false;
        seconds = PyFloat_AsDouble(said);
        Py_DECREF(said);
        if (seconds == -1.0 && PyErr_Occurred()) return false;
    }
    *ms = (uint64_t)(seconds * 1000.0 + 0.0005);
    if (!*ms) *ms = 1;
    return true;
}
