/* The compiled relay: an epoll set that moves the bytes of settled tunnels by itself.

   The rules are those of relay.py, of which this is the other form; the tests drive both. Nothing
   here parses or decides. Python judges a flow and the ledger acknowledges it before its two sockets
   are attached; how many bytes may pass is said by Python (`allow`), and Python hears when that gets
   short, when the tunnel is over, and of every read where it wants to look first (`watched`).

   Who owns what: a Core belongs to the thread that calls `poll`. In there the interpreter's lock is
   given up and `busy` is set, and whoever else calls meanwhile gets RuntimeError; so nothing is shared.
   A Core holds a reference to each attached Tunnel, a Tunnel one to its Core, until `detach`. The
   sockets are the caller's to close, after `detach`. No Python is called from within the loop. */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <structmember.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    COPY_BYTES = 16 * 1024,  /* as in relay.py: a read that fills this much is bulk, */
    SMALL_SPLICE = 2 * 1024, /* and splices below this are not */
    SPLICE_BYTES = 1024 * 1024,
    TURN_BYTES = 1024 * 1024,
    PIPE_BYTES = 1024 * 1024,
    KEEP = 32, /* idle pipes */
    EVENTS = 512,
    MOST = 1 << 30, /* bytes kept; those that are looked at come in reads of COPY_BYTES */
    NEWS = 1 << 16, /* among epoll's bits: look at the tunnel of this client's descriptor */
};
enum { RUNS, ENDED, RESET };                         /* Tunnel.over */
enum { READABLE = 1, WRITABLE = 2, HANGUP = 4, FAILED = 8 }; /* what is known of a socket, see ends.py */

typedef struct Core Core;

struct way { /* from end[i] to end[1 - i] */
    uint64_t count;  /* bytes the sink's kernel took */
    char *rest;      /* read and not written: `left` bytes from `at` on, the last `unpaid` of them */
    uint32_t at, left, unpaid; /* not yet taken from the reservation */
    uint32_t held, lost;       /* in the pipe; no more than a number any more */
    int pipe[2];
    bool bulk, eof, shut, watched;
};

typedef struct Tunnel {
    PyObject_HEAD
    Core *core; /* NULL while it is not attached */
    struct Tunnel *next, *next_news;
    struct way way[2];
    int fd[2];
    uint8_t known[2];
    uint8_t over;
    bool queued;
    unsigned long long reserved, taken, ask_at;
    double activity; /* seconds of CLOCK_BOOTTIME */
} Tunnel;

struct slot { /* of a descriptor */
    Tunnel *tunnel;
    uint32_t turn, events; /* what Python was told of it, and when */
};

struct Core {
    PyObject_HEAD
    int epoll;
    bool busy;
    uint32_t turn;
    int size, idle;
    struct slot *slots;
    Tunnel *first, *last; /* to be moved in this turn or the next one */
    int pipes[KEEP][2];
    struct epoll_event happened[EVENTS];
    char buffer[COPY_BYTES];
};

static PyTypeObject CoreType, TunnelType;

/* -- moving bytes: without the interpreter's lock */

static uint64_t room(const Tunnel *t) { return t->reserved > t->taken ? t->reserved - t->taken : 0; }
static bool again(void) { return errno == EAGAIN || errno == EWOULDBLOCK; }
static size_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

static bool take_pipe(Core *c, int pipe[2]) {
    if (c->idle) {
        c->idle--;
        memcpy(pipe, c->pipes[c->idle], sizeof c->pipes[0]);
        return true;
    }
    if (pipe2(pipe, O_NONBLOCK | O_CLOEXEC)) { /* out of descriptors: copying needs none */
        pipe[0] = pipe[1] = -1;
        return false;
    }
    fcntl(pipe[1], F_SETPIPE_SZ, PIPE_BYTES); /* past the user's limit 64 KiB work too */
    return true;
}

/* A pipe with bytes in it is nobody else's. */
static void give_pipe(Core *c, struct way *y) {
    if (y->pipe[0] < 0)
        return;
    if (c && !y->held && c->idle < KEEP)
        memcpy(c->pipes[c->idle++], y->pipe, sizeof y->pipe);
    else {
        close(y->pipe[0]);
        close(y->pipe[1]);
    }
    y->pipe[0] = y->pipe[1] = -1;
}

static uint64_t undelivered(const struct way *y) { return (uint64_t)y->left + y->held + y->lost; }

/* What could not be sent now. -1 without memory: then the tunnel ends, and `lost` says what with it. */
static int keep(struct way *y, const char *data, size_t size) {
    char *rest = size <= MOST ? malloc(y->left + size) : NULL;
    if (!rest) {
        y->lost += size;
        errno = ENOMEM;
        return -1;
    }
    if (y->left)
        memcpy(rest, y->rest + y->at, y->left);
    memcpy(rest + y->left, data, size);
    free(y->rest);
    y->rest = rest;
    y->at = 0;
    y->left += size;
    return 0;
}

/* Bytes written, 0 if the sink takes none now, -1 if it failed. */
static ssize_t put(Tunnel *t, int w, const char *data, size_t size) {
    int to = 1 - w;
    if (!size || !(t->known[to] & WRITABLE))
        return 0;
    ssize_t sent = send(t->fd[to], data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
        if (!again())
            return -1;
        t->known[to] &= ~WRITABLE;
        return 0;
    }
    t->way[w].count += sent;
    return sent;
}

/* Send what was read; what the sink or the reservation does not take now stays. */
static int pass(Tunnel *t, int w, const char *data, size_t size) {
    struct way *y = &t->way[w];
    size_t paid = least(size, y->left ? 0 : room(t));
    t->taken += paid;
    ssize_t sent = put(t, w, data, paid);
    if (sent < 0) {
        y->lost += size;
        return -1;
    }
    if ((size_t)sent == size)
        return 0;
    y->unpaid += size - paid;
    return keep(y, data + sent, size - sent);
}

/* 1 when nothing is kept any more, 0 when something cannot go now, -1 for a failed socket. */
static int flush(Tunnel *t, int w) {
    struct way *y = &t->way[w];
    while (y->left) {
        size_t pay = least(y->unpaid, room(t));
        t->taken += pay;
        y->unpaid -= pay;
        ssize_t sent = put(t, w, y->rest + y->at, y->left - y->unpaid);
        if (sent <= 0)
            return sent;
        y->at += sent;
        y->left -= sent;
    }
    free(y->rest);
    y->rest = NULL;
    y->at = 0;
    return 1;
}

static int drain(Tunnel *t, int w) {
    struct way *y = &t->way[w];
    int to = 1 - w;
    while (y->held) {
        if (!(t->known[to] & WRITABLE))
            return 0;
        ssize_t sent = splice(y->pipe[0], NULL, t->fd[to], NULL, y->held, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        if (sent < 0) {
            if (!again())
                return -1;
            t->known[to] &= ~WRITABLE;
            return 0;
        }
        y->held -= sent;
        y->count += sent;
    }
    return 1;
}

/* At most `size` bytes of end `w` into the buffer: their number, 0 at the end or if there are none now. */
static ssize_t get(Tunnel *t, int w, char *buffer, size_t size) {
    ssize_t got = recv(t->fd[w], buffer, size, MSG_DONTWAIT);
    if (got < 0) {
        if (!again())
            return -1;
        t->known[w] &= ~READABLE;
        t->known[w] &= ~HANGUP; /* the next one is a new edge */
        return 0;
    }
    if ((size_t)got < size && !(t->known[w] & HANGUP))
        t->known[w] &= ~READABLE; /* drained: the next byte is a new edge */
    if (!got)
        t->way[w].eof = true;
    return got;
}

static ssize_t copy(Core *c, Tunnel *t, int w) {
    ssize_t got = get(t, w, c->buffer, least(COPY_BYTES, room(t)));
    if (got <= 0)
        return got;
    t->way[w].bulk = got == COPY_BYTES;
    return pass(t, w, c->buffer, got) ? -1 : got;
}

static ssize_t fill(Core *c, Tunnel *t, int w) {
    struct way *y = &t->way[w];
    if (y->pipe[0] < 0 && !take_pipe(c, y->pipe))
        return copy(c, t, w);
    ssize_t got = splice(t->fd[w], NULL, y->pipe[1], NULL, least(SPLICE_BYTES, room(t)),
                         SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
    if (got < 0) {
        if (!again()) /* the pipe is empty, so EAGAIN names the source */
            return -1;
        t->known[w] &= ~READABLE;
        return 0;
    }
    if (!got)
        y->eof = true;
    y->bulk = got >= SMALL_SPLICE;
    y->held = got;
    t->taken += got;
    return got;
}

/* 1 when only the budget stopped it, 0 when nothing can be moved now, -1 for a failed socket. */
static int pump(Core *c, Tunnel *t, int w) {
    struct way *y = &t->way[w];
    for (int64_t budget = TURN_BYTES;;) {
        int done = flush(t, w);
        if (done > 0)
            done = drain(t, w);
        if (done <= 0)
            return done;
        if (y->eof) {
            give_pipe(c, y);
            if (!y->shut && shutdown(t->fd[1 - w], SHUT_WR))
                return -1;
            y->shut = true; /* only now: a reset peer gets no FIN, and the kernel counts none */
            return 0;
        }
        if (y->watched || !(t->known[w] & READABLE) || !room(t)) {
            give_pipe(c, y);
            return 0;
        }
        if (budget <= 0)
            return 1;
        ssize_t got = y->bulk ? fill(c, t, w) : copy(c, t, w);
        if (got < 0)
            return -1;
        budget -= got;
    }
}

/* After an error event: whether the error was still there to be taken. */
static bool failed(Tunnel *t, int end) {
    int error = 0;
    socklen_t size = sizeof error;
    if (!(t->known[end] & FAILED))
        return false;
    t->known[end] &= ~FAILED;
    return getsockopt(t->fd[end], SOL_SOCKET, SO_ERROR, &error, &size) || error;
}

static void queue(Core *c, Tunnel *t) {
    if (t->queued)
        return;
    t->queued = true;
    t->next = NULL;
    *(c->first ? &c->last->next : &c->first) = t;
    c->last = t;
}

/* Whether there is something for Python to read this way, or what it sent has just gone. */
static bool wanted(const Tunnel *t, int w, bool waited) {
    const struct way *y = &t->way[w];
    return y->watched && !y->left && !y->held && (waited || (t->known[w] & READABLE && !y->eof && room(t)));
}

/* Move what can be moved; true when Python is to look at it. */
static bool move(Core *c, Tunnel *t) {
    bool waited[2] = {t->way[0].left, t->way[1].left};
    if (t->over == RUNS) {
        int up = pump(c, t, 0), down = up < 0 ? 0 : pump(c, t, 1);
        if (up < 0 || down < 0)
            t->over = RESET;
        else if (t->way[0].shut && t->way[1].shut)
            t->over = ENDED;
        /* What came before a reset has been moved by now, unless Python is to read it. */
        else if ((!t->way[0].watched && failed(t, 0)) || (!t->way[1].watched && failed(t, 1)))
            t->over = RESET;
        else if (up || down)
            queue(c, t);
    }
    return t->over != RUNS || t->taken >= t->ask_at || wanted(t, 0, waited[0]) || wanted(t, 1, waited[1]);
}

static void note(Tunnel *t, int end, uint32_t events) {
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        t->known[end] |= READABLE;
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        t->known[end] |= HANGUP;
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
        t->known[end] |= WRITABLE;
    if (events & EPOLLERR)
        t->known[end] |= FAILED;
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_BOOTTIME, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

/* One wait. `happened` keeps the *others events that are not the tunnels'. -1 when the wait failed. */
static int turn(Core *c, double until, int limit, int *others, Tunnel **news) {
    double left = c->first ? 0 : until - now();
    int wait = left <= 0 ? 0 : left > 86400 ? 86400000 : (int)ceil(left * 1e3);
    int count = epoll_wait(c->epoll, c->happened, limit, wait);
    if (count < 0)
        return -1;
    double at = now();
    for (int i = 0; i < count; i++) {
        struct epoll_event event = c->happened[i];
        int fd = event.data.fd;
        Tunnel *t = fd < c->size ? c->slots[fd].tunnel : NULL;
        if (t) {
            note(t, t->fd[1] == fd, event.events);
            t->activity = at;
            queue(c, t);
        } else {
            if (fd < c->size) {
                c->slots[fd].turn = c->turn;
                c->slots[fd].events = event.events;
            }
            c->happened[(*others)++] = event;
        }
    }
    Tunnel *next = c->first;
    c->first = c->last = NULL;
    for (Tunnel *t; (t = next);) {
        next = t->next;
        t->queued = false;
        if (move(c, t)) {
            t->next_news = *news;
            *news = t;
        }
    }
    return 0;
}

/* -- for Python */

static bool usable(Core *c) {
    if (c && c->epoll >= 0 && !c->busy)
        return true;
    PyErr_SetString(PyExc_RuntimeError, !c ? "not attached" : c->busy ? "poll is running" : "closed");
    return false;
}

static bool has_room_for(Core *c, int fd) {
    if (fd < c->size)
        return true;
    int size = fd < 64 ? 128 : fd * 2;
    struct slot *slots = realloc(c->slots, size * sizeof *slots);
    if (!slots) {
        PyErr_NoMemory();
        return false;
    }
    memset(slots + c->size, 0, (size - c->size) * sizeof *slots);
    c->slots = slots;
    c->size = size;
    return true;
}

static PyObject *control(Core *c, int what, PyObject *args) {
    int fd;
    unsigned events = 0;
    if (!PyArg_ParseTuple(args, "i|I", &fd, &events) || !usable(c))
        return NULL;
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (fd >= 0 && fd < c->size && c->slots[fd].tunnel && what != EPOLL_CTL_MOD)
        return PyErr_Format(PyExc_RuntimeError, "descriptor %d is a tunnel's", fd);
    if (epoll_ctl(c->epoll, what, fd, &event))
        return PyErr_SetFromErrno(PyExc_OSError);
    if (!has_room_for(c, fd)) {
        epoll_ctl(c->epoll, EPOLL_CTL_DEL, fd, &event);
        return NULL;
    }
    c->slots[fd].turn = 0; /* what was said of another socket of this number */
    Py_RETURN_NONE;
}

static PyObject *core_register(Core *c, PyObject *args) { return control(c, EPOLL_CTL_ADD, args); }
static PyObject *core_modify(Core *c, PyObject *args) { return control(c, EPOLL_CTL_MOD, args); }
static PyObject *core_unregister(Core *c, PyObject *args) { return control(c, EPOLL_CTL_DEL, args); }

static PyObject *core_poll(Core *c, PyObject *args) {
    double timeout;
    int limit, others = 0, error = 0;
    Tunnel *news = NULL;
    if (!PyArg_ParseTuple(args, "di", &timeout, &limit) || !usable(c))
        return NULL;
    limit = limit < 1 || limit > EVENTS ? EVENTS : limit;
    c->turn = c->turn == UINT32_MAX ? 1 : c->turn + 1;
    c->busy = true;
    Py_BEGIN_ALLOW_THREADS
    double until = timeout < 0 ? INFINITY : now() + timeout;
    do {
        if (turn(c, until, limit, &others, &news))
            error = errno;
    } while (!error && !others && !news && now() < until);
    Py_END_ALLOW_THREADS
    c->busy = false;
    if (error && (error != EINTR || PyErr_CheckSignals())) {
        errno = error;
        return PyErr_Occurred() ? NULL : PyErr_SetFromErrno(PyExc_OSError);
    }
    PyObject *found = PyList_New(0);
    for (int i = 0; found && (i < others || news); i++) {
        int fd = i < others ? c->happened[i].data.fd : news->fd[0];
        unsigned events = i < others ? c->happened[i].events : NEWS;
        if (i >= others)
            news = news->next_news;
        PyObject *pair = Py_BuildValue("iI", fd, events);
        if (!pair || PyList_Append(found, pair))
            Py_CLEAR(found);
        Py_XDECREF(pair);
    }
    return found;
}

static void detach(Tunnel *t) {
    Core *c = t->core;
    if (!c)
        return;
    for (Tunnel **at = &c->first, *last = NULL; t->queued && *at; last = *at, at = &(*at)->next)
        if (*at == t) {
            *at = t->next;
            c->last = c->last == t ? last : c->last;
            break;
        }
    for (int i = 0; i < 2; i++) {
        struct way *y = &t->way[i];
        c->slots[t->fd[i]].tunnel = NULL;
        y->lost += y->left; /* from here on only a number */
        free(y->rest);
        y->rest = NULL;
        y->left = y->at = y->unpaid = 0;
        give_pipe(c, y);
    }
    t->core = NULL;
    t->queued = false;
    Py_DECREF(c);
    Py_DECREF(t);
}

static PyObject *core_close(Core *c, PyObject *unused) {
    if (c->epoll < 0)
        Py_RETURN_NONE;
    if (!usable(c))
        return NULL;
    for (int fd = 0; fd < c->size; fd++)
        if (c->slots[fd].tunnel)
            detach(c->slots[fd].tunnel);
    while (c->idle) {
        c->idle--;
        close(c->pipes[c->idle][0]);
        close(c->pipes[c->idle][1]);
    }
    close(c->epoll);
    c->epoll = -1;
    Py_RETURN_NONE;
}

static PyObject *core_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    Core *c = (Core *)type->tp_alloc(type, 0);
    if (c && (c->epoll = epoll_create1(EPOLL_CLOEXEC)) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_CLEAR(c);
    }
    return (PyObject *)c;
}

static void core_free(Core *c) { /* no tunnel is attached: those hold a reference */
    Py_XDECREF(core_close(c, NULL));
    free(c->slots);
    Py_TYPE(c)->tp_free((PyObject *)c);
}

static PyMethodDef core_methods[] = {
    {"register", (PyCFunction)core_register, METH_VARARGS, "As select.epoll's."},
    {"modify", (PyCFunction)core_modify, METH_VARARGS, "As select.epoll's."},
    {"unregister", (PyCFunction)core_unregister, METH_VARARGS, "As select.epoll's."},
    {"poll", (PyCFunction)core_poll, METH_VARARGS, "Move what tunnels have until something else happens."},
    {"close", (PyCFunction)core_close, METH_NOARGS, "Let go of everything."},
    {NULL},
};
static PyMemberDef core_members[] = {
    {"idle_pipes", T_INT, offsetof(Core, idle), READONLY, "Pipes kept for the next bulk."},
    {NULL},
};

static PyObject *tunnel_attach(Tunnel *t, PyObject *args) {
    Core *c;
    int fd[2], known[2];
    if (!PyArg_ParseTuple(args, "O!iiii", &CoreType, &c, &fd[0], &known[0], &fd[1], &known[1]) || !usable(c))
        return NULL;
    if (t->core || t->over != RUNS || fd[0] == fd[1])
        return PyErr_Format(PyExc_RuntimeError, "cannot be attached");
    for (int i = 0; i < 2; i++)
        if (fd[i] < 0 || fd[i] >= c->size || c->slots[fd[i]].tunnel)
            return PyErr_Format(PyExc_RuntimeError, "descriptor %d is not registered, or a tunnel's", fd[i]);
    for (int i = 0; i < 2; i++) {
        t->fd[i] = fd[i];
        t->known[i] = known[i] & (READABLE | WRITABLE | HANGUP);
        c->slots[fd[i]].tunnel = t;
        if (c->slots[fd[i]].turn == c->turn) /* said in this turn, and perhaps not heard yet */
            note(t, i, c->slots[fd[i]].events);
    }
    t->activity = now();
    t->core = (Core *)Py_NewRef(c);
    Py_INCREF(t);
    Py_RETURN_NONE;
}

static PyObject *tunnel_detach(Tunnel *t, PyObject *unused) {
    if (t->core && !usable(t->core))
        return NULL;
    detach(t);
    return PyLong_FromLong(t->known[0]);
}

static PyObject *tunnel_allow(Tunnel *t, PyObject *args) {
    unsigned long long reserved, ask_at;
    if (!PyArg_ParseTuple(args, "KK", &reserved, &ask_at) || !usable(t->core))
        return NULL;
    t->ask_at = ask_at;
    if (reserved > t->reserved) {
        t->reserved = reserved;
        queue(t->core, t);
    }
    Py_RETURN_NONE;
}

static PyObject *tunnel_queue(Tunnel *t, PyObject *unused) {
    if (!usable(t->core))
        return NULL;
    queue(t->core, t);
    Py_RETURN_NONE;
}

static bool valid(int w) {
    if (w == 0 || w == 1)
        return true;
    PyErr_SetString(PyExc_ValueError, "a way is 0 or 1");
    return false;
}

static PyObject *tunnel_watched(Tunnel *t, PyObject *args) {
    int w, wanted;
    if (!PyArg_ParseTuple(args, "ip", &w, &wanted) || !valid(w))
        return NULL;
    t->way[w].watched = wanted;
    Py_RETURN_NONE;
}

static PyObject *tunnel_read(Tunnel *t, PyObject *args) {
    int w;
    if (!PyArg_ParseTuple(args, "i", &w) || !valid(w) || !usable(t->core))
        return NULL;
    struct way *y = &t->way[w];
    if (y->left || y->held || y->eof || !(t->known[w] & READABLE) || !room(t))
        Py_RETURN_NONE;
    ssize_t got = get(t, w, t->core->buffer, least(COPY_BYTES, room(t)));
    if (got < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (!got && !y->eof)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize(t->core->buffer, got);
}

static PyObject *tunnel_send(Tunnel *t, PyObject *args) {
    int w;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "iy*", &w, &data))
        return NULL;
    int code = -2;
    if (valid(w) && usable(t->core))
        code = pass(t, w, data.buf, data.len);
    PyBuffer_Release(&data);
    return !code ? Py_NewRef(Py_None) : code == -1 ? PyErr_SetFromErrno(PyExc_OSError) : NULL;
}

static PyObject *tunnel_failed(Tunnel *t, PyObject *unused) {
    return PyBool_FromLong(failed(t, 0) || failed(t, 1));
}

static PyObject *tunnel_counts(Tunnel *t, PyObject *unused) {
    return Py_BuildValue("KK", (unsigned long long)t->way[0].count, (unsigned long long)t->way[1].count);
}

static PyObject *tunnel_undelivered(Tunnel *t, PyObject *args) {
    int w;
    if (!PyArg_ParseTuple(args, "i", &w) || !valid(w))
        return NULL;
    return PyLong_FromUnsignedLongLong(undelivered(&t->way[w]));
}

static PyObject *tunnel_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    Tunnel *t = (Tunnel *)type->tp_alloc(type, 0);
    for (int i = 0; t && i < 2; i++)
        t->fd[i] = t->way[i].pipe[0] = t->way[i].pipe[1] = -1;
    return (PyObject *)t;
}

static void tunnel_free(Tunnel *t) { Py_TYPE(t)->tp_free((PyObject *)t); } /* detached: it owns nothing */

static PyMethodDef tunnel_methods[] = {
    {"attach", (PyCFunction)tunnel_attach, METH_VARARGS, "Have a Core move the bytes of two sockets."},
    {"detach", (PyCFunction)tunnel_detach, METH_NOARGS, "No byte moves from here on."},
    {"allow", (PyCFunction)tunnel_allow, METH_VARARGS, "Bytes of both ways, and from which on to say so."},
    {"queue", (PyCFunction)tunnel_queue, METH_NOARGS, "Look at it in the next turn."},
    {"watched", (PyCFunction)tunnel_watched, METH_VARARGS, "Whether Python reads this way."},
    {"read", (PyCFunction)tunnel_read, METH_VARARGS, "Bytes, b'' at the end, None: nothing now."},
    {"send", (PyCFunction)tunnel_send, METH_VARARGS, "Bytes that may pass this way."},
    {"failed", (PyCFunction)tunnel_failed, METH_NOARGS, "Whether an error event still holds an error."},
    {"counts", (PyCFunction)tunnel_counts, METH_NOARGS, "Bytes delivered, out and in."},
    {"undelivered", (PyCFunction)tunnel_undelivered, METH_VARARGS, "Bytes read and not written."},
    {NULL},
};
static PyMemberDef tunnel_members[] = {
    {"taken", T_ULONGLONG, offsetof(Tunnel, taken), READONLY, "Bytes of the reservation."},
    {"activity", T_DOUBLE, offsetof(Tunnel, activity), READONLY, "Time of the last event."},
    {"up_ended", T_BOOL, offsetof(Tunnel, way[0].eof), READONLY, "The client has said its last,"},
    {"up_told", T_BOOL, offsetof(Tunnel, way[0].shut), READONLY, "and the upstream was told so."},
    {"down_ended", T_BOOL, offsetof(Tunnel, way[1].eof), READONLY, "The same of the upstream."},
    {"down_told", T_BOOL, offsetof(Tunnel, way[1].shut), READONLY, NULL},
    {"over", T_UBYTE, offsetof(Tunnel, over), READONLY, "0: it runs, 1: both ends ended, 2: one failed."},
    {NULL},
};

static PyTypeObject CoreType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "exeat.proxy._relay.Core",
    .tp_basicsize = sizeof(Core),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = core_new,
    .tp_dealloc = (destructor)core_free,
    .tp_methods = core_methods,
    .tp_members = core_members,
};
static PyTypeObject TunnelType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "exeat.proxy._relay.Tunnel",
    .tp_basicsize = sizeof(Tunnel),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = tunnel_new,
    .tp_dealloc = (destructor)tunnel_free,
    .tp_methods = tunnel_methods,
    .tp_members = tunnel_members,
};
/* -- one call in place of several, for what every flow does */

static PyObject *accept_one(PyObject *module, PyObject *args) {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_storage room;
    } peer;
    socklen_t size = sizeof peer;
    char text[INET6_ADDRSTRLEN] = "";
    int listener;
    if (!PyArg_ParseTuple(args, "i", &listener))
        return NULL;
    peer.any.sa_family = AF_UNSPEC;
    int fd = accept4(listener, &peer.any, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 && (again() || errno == ECONNABORTED || errno == EINTR))
        Py_RETURN_NONE;
    if (fd < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    bool old = peer.any.sa_family == AF_INET, new = peer.any.sa_family == AF_INET6;
    if (old || new)
        inet_ntop(peer.any.sa_family, old ? (void *)&peer.v4.sin_addr : (void *)&peer.v6.sin6_addr, text, sizeof text);
    PyObject *found = Py_BuildValue("i(si)", fd, text, old ? ntohs(peer.v4.sin_port) : new ? ntohs(peer.v6.sin6_port) : 0);
    if (!found)
        close(fd);
    return found;
}

static PyObject *dial(PyObject *module, PyObject *args) {
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    const char *packed;
    Py_ssize_t size;
    int port, one = 1;
    if (!PyArg_ParseTuple(args, "y#i", &packed, &size, &port))
        return NULL;
    if ((size != 4 && size != 16) || port < 0 || port > 65535)
        return PyErr_Format(PyExc_ValueError, "no address and port");
    memcpy(size == 4 ? (void *)&v4.sin_addr : (void *)&v6.sin6_addr, packed, size);
    v4.sin_port = v6.sin6_port = htons(port);
    int fd = socket(size == 4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return PyLong_FromLong(-errno);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, size == 4 ? (void *)&v4 : (void *)&v6, size == 4 ? sizeof v4 : sizeof v6) && errno != EINPROGRESS) {
        int error = errno;
        close(fd);
        return PyLong_FromLong(-error);
    }
    return PyLong_FromLong(fd);
}

static PyMethodDef functions[] = {
    {"accept", accept_one, METH_VARARGS, "A descriptor and (address, port) of its peer; None: nobody waits."},
    {"dial", dial, METH_VARARGS, "A descriptor that connects to a packed address, or minus an error number."},
    {NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_relay", "The compiled relay.", -1, functions};

PyMODINIT_FUNC PyInit__relay(void) {
    PyObject *made = PyModule_Create(&module);
    if (!made || PyModule_AddType(made, &CoreType) || PyModule_AddType(made, &TunnelType)
        || PyModule_AddIntConstant(made, "NEWS", NEWS)) {
        Py_CLEAR(made);
    }
    return made;
}
