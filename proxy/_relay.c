/* The compiled relay: moves the bytes of settled tunnels by itself, within one wait of the loop.

   The rules are those of relay.py, of which this is the other form; the tests drive both. Nothing
   here parses, decides or looks at bytes. Python judges a flow and the ledger acknowledges it before
   its two sockets are attached; Python says how many bytes may pass (`allow`), and hears when that
   gets short and when the tunnel is over.

   A Core belongs to the thread that calls `poll`. In there the interpreter's lock is given up and `busy`
   is set, and whoever else calls meanwhile gets RuntimeError; so nothing is shared, and no Python is called.
   A Core holds a reference to each attached Tunnel, a Tunnel one to its Core, until `detach`. The sockets
   and the epoll set are the caller's to close, after that. */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
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
    SPLICE = SPLICE_F_NONBLOCK | SPLICE_F_MOVE,
    NEWS = 1 << 16, /* among epoll's bits: look at the tunnel of this client's descriptor */
};
enum { RUNS, ENDED, RESET };                         /* Tunnel.over */
enum { READABLE = 1, WRITABLE = 2, HANGUP = 4, FAILED = 8 }; /* what is known of a socket, see ends.py */
typedef struct Core Core;
struct way { /* from end[i] to end[1 - i] */
    uint64_t count;  /* bytes the sink's kernel took */
    char *rest;      /* read and not written: `left` bytes from `at` on */
    uint32_t at, left, held, lost; /* held in the pipe; lost: no more than a number any more */
    int pipe[2];
    bool bulk, eof, shut;
};

typedef struct Tunnel {
    PyObject_HEAD
    Core *core; /* NULL while it is not attached */
    struct Tunnel *next;
    struct way way[2];
    int fd[2];
    uint8_t known[2];
    uint8_t over;
    bool queued;
    unsigned long long reserved, taken, ask_at;
    double activity; /* seconds of CLOCK_BOOTTIME */
} Tunnel;

struct Core {
    PyObject_HEAD
    int epoll;
    bool busy;
    int size, idle, attached, told; /* `told`: how much of `happened` Python is told this time */
    Tunnel **slots; /* by descriptor, below `size` */
    Tunnel *first, *last; /* to be moved in this turn or the next one */
    int pipes[KEEP][2];
    struct epoll_event happened[2 * EVENTS];
    char buffer[COPY_BYTES];
};

static PyTypeObject CoreType;

/* -- moving bytes: without the interpreter's lock */

static uint64_t room(const Tunnel *t) { return t->reserved > t->taken ? t->reserved - t->taken : 0; }
static bool again(void) { return errno == EAGAIN || errno == EWOULDBLOCK; }
static size_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

static bool has_pipe(Core *c, struct way *y) {
    if (y->pipe[0] < 0 && c->idle)
        memcpy(y->pipe, c->pipes[--c->idle], sizeof y->pipe);
    else if (y->pipe[0] < 0 && !pipe2(y->pipe, O_NONBLOCK | O_CLOEXEC))
        fcntl(y->pipe[1], F_SETPIPE_SZ, PIPE_BYTES); /* past the user's limit 64 KiB work too */
    return y->pipe[0] >= 0; /* if not, for lack of descriptors: copying needs none */
}

/* A pipe with bytes in it is nobody else's. */
static void give_pipe(Core *c, struct way *y) {
    if (y->pipe[0] < 0)
        return;
    if (!y->held && c->idle < KEEP)
        memcpy(c->pipes[c->idle++], y->pipe, sizeof y->pipe);
    else {
        close(y->pipe[0]);
        close(y->pipe[1]);
    }
    y->pipe[0] = y->pipe[1] = -1;
}

/* What is not written yet becomes the tunnel's own. -1 without memory: then it ends with that `lost`. */
static int keep(struct way *y, const char *data, size_t size) {
    y->rest = malloc(size);
    y->at = 0;
    y->left = y->rest ? size : 0;
    y->lost += size - y->left;
    return y->rest ? memcpy(y->rest, data, size), 0 : -1;
}

/* 1 when nothing is left to write, 0 when the sink takes no more now, -1 if it failed. */
static int deliver(Core *c, Tunnel *t, int w) {
    struct way *y = &t->way[w];
    int to = t->fd[1 - w];
    while (y->left || y->held) {
        if (!(t->known[1 - w] & WRITABLE))
            return 0;
        ssize_t sent = y->left ? send(to, y->rest + y->at, y->left, MSG_NOSIGNAL | MSG_DONTWAIT)
                               : splice(y->pipe[0], NULL, to, NULL, y->held, SPLICE);
        if (sent < 0 && !again())
            return -1;
        if (sent < 0)
            t->known[1 - w] &= ~WRITABLE;
        else if (y->left) {
            y->at += sent;
            y->left -= sent;
        } else
            y->held -= sent;
        y->count += sent < 0 ? 0 : sent;
    }
    if (y->rest != c->buffer)
        free(y->rest);
    y->rest = NULL;
    return 1;
}

/* Bytes that were read, 0 at the end or if there are none now, -1 for a failed socket. */
static ssize_t take(Core *c, Tunnel *t, int w) {
    struct way *y = &t->way[w];
    bool bulk = y->bulk && has_pipe(c, y); /* it is empty, so EAGAIN names the source */
    size_t most = least(bulk ? SPLICE_BYTES : COPY_BYTES, room(t));
    ssize_t got = bulk ? splice(t->fd[w], NULL, y->pipe[1], NULL, most, SPLICE)
                       : recv(t->fd[w], c->buffer, most, MSG_DONTWAIT);
    if (got < 0 && !again())
        return -1;
    if (got < 0)
        t->known[w] &= ~HANGUP; /* the next one is a new edge */
    if (got < 0 || (!bulk && (size_t)got < most && !(t->known[w] & HANGUP)))
        t->known[w] &= ~READABLE; /* drained: the next byte is a new edge */
    if (got < 0)
        return 0;
    y->eof = !got;
    y->bulk = got >= (bulk ? SMALL_SPLICE : COPY_BYTES);
    t->taken += got;
    if (bulk) {
        y->held = got;
        return got;
    }
    y->rest = c->buffer;
    y->at = 0;
    y->left = got;
    int done = deliver(c, t, w); /* and what is left must leave the buffer, which is the others', too */
    return done > 0 || (!keep(y, y->rest + y->at, y->left) && !done) ? got : -1;
}

/* 1 when only the budget stopped it, 0 when nothing can be moved now, -1 for a failed socket. */
static int pump(Core *c, Tunnel *t, int w) {
    struct way *y = &t->way[w];
    for (int64_t budget = TURN_BYTES;;) {
        int done = deliver(c, t, w);
        if (done <= 0)
            return done;
        bool stop = y->eof || !(t->known[w] & READABLE) || !room(t);
        if (stop)
            give_pipe(c, y);
        if (y->eof && !y->shut && shutdown(t->fd[1 - w], SHUT_WR))
            return -1;
        y->shut = y->eof; /* only now: a reset peer gets no FIN, and the kernel counts none */
        if (stop)
            return 0;
        if (budget <= 0)
            return 1;
        ssize_t got = take(c, t, w);
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

/* Move what can be moved; true when Python is to look at it. */
static bool move(Core *c, Tunnel *t) {
    if (t->over == RUNS) {
        int up = pump(c, t, 0), down = up < 0 ? 0 : pump(c, t, 1);
        if (up < 0 || down < 0)
            t->over = RESET;
        else if (t->way[0].shut && t->way[1].shut)
            t->over = ENDED;
        else if (failed(t, 0) || failed(t, 1)) /* what came before a reset has been moved by now */
            t->over = RESET;
        else if (up || down)
            queue(c, t);
    }
    return t->over != RUNS || t->taken >= t->ask_at;
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

/* One wait. `happened` keeps what is to be told. -1 when the wait failed. */
static int turn(Core *c, double until, int limit) {
    double left = c->first ? 0 : until - now();
    int wait = left <= 0 ? 0 : left > 86400 ? 86400000 : (int)ceil(left * 1e3);
    int count = epoll_wait(c->epoll, c->happened, limit, wait);
    if (count < 0)
        return -1;
    double at = now();
    for (int i = 0; i < count; i++) {
        struct epoll_event event = c->happened[i];
        int fd = event.data.fd;
        Tunnel *t = fd < c->size ? c->slots[fd] : NULL;
        if (t) {
            note(t, t->fd[1] == fd, event.events);
            t->activity = at;
            queue(c, t);
        } else
            c->happened[c->told++] = event;
    }
    Tunnel *next = c->first;
    c->first = c->last = NULL;
    for (Tunnel *t; (t = next);) {
        next = t->next;
        t->queued = false;
        if (!move(c, t))
            continue;
        if (c->told < 2 * EVENTS)
            c->happened[c->told++] = (struct epoll_event){.events = NEWS, .data.fd = t->fd[0]};
        else
            queue(c, t); /* Python hears of it next time */
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
    int size = fd < c->size ? c->size : fd * 2 + 64;
    Tunnel **slots = size == c->size ? c->slots : realloc(c->slots, size * sizeof *slots);
    if (!slots)
        return false;
    memset(slots + c->size, 0, (size - c->size) * sizeof *slots);
    c->slots = slots;
    c->size = size;
    return true;
}

static PyObject *core_poll(Core *c, PyObject *args) {
    double timeout;
    int limit, error;
    if (!PyArg_ParseTuple(args, "di", &timeout, &limit) || !usable(c))
        return NULL;
    c->told = 0;
    c->busy = true;
    Py_BEGIN_ALLOW_THREADS
    double until = timeout < 0 ? INFINITY : now() + timeout;
    do {
        error = turn(c, until, limit < 1 || limit > EVENTS ? EVENTS : limit);
    } while (!error && !c->told && now() < until);
    Py_END_ALLOW_THREADS
    c->busy = false;
    if (error && (errno != EINTR || PyErr_CheckSignals()))
        return PyErr_Occurred() ? NULL : PyErr_SetFromErrno(PyExc_OSError);
    PyObject *found = PyList_New(c->told);
    for (int i = 0; found && i < c->told; i++) {
        PyObject *pair = Py_BuildValue("iI", c->happened[i].data.fd, (unsigned)c->happened[i].events);
        if (pair)
            PyList_SET_ITEM(found, i, pair);
        else
            Py_CLEAR(found);
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
        c->slots[t->fd[i]] = NULL;
        y->lost += y->left; /* from here on only a number */
        free(y->rest);
        y->rest = NULL;
        y->left = 0;
        give_pipe(c, y);
    }
    t->core = NULL;
    t->queued = false;
    c->attached--;
    Py_DECREF(c);
    Py_DECREF(t);
}

static PyObject *core_close(Core *c, PyObject *unused) {
    if (c->epoll < 0)
        Py_RETURN_NONE;
    if (!usable(c))
        return NULL;
    for (int fd = 0; fd < c->size; fd++)
        if (c->slots[fd])
            detach(c->slots[fd]);
    for (; c->idle; c->idle--)
        close(c->pipes[c->idle - 1][0]), close(c->pipes[c->idle - 1][1]);
    c->epoll = -1;
    Py_RETURN_NONE;
}

static PyObject *core_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    int epoll;
    if (!PyArg_ParseTuple(args, "i", &epoll))
        return NULL;
    Core *c = (Core *)type->tp_alloc(type, 0);
    if (c)
        c->epoll = epoll;
    return (PyObject *)c;
}

static void core_free(Core *c) { /* no tunnel is attached: those hold a reference */
    Py_XDECREF(core_close(c, NULL));
    free(c->slots);
    Py_TYPE(c)->tp_free((PyObject *)c);
}

static PyMethodDef core_methods[] = {
    {"poll", (PyCFunction)core_poll, METH_VARARGS, "Move what tunnels have until something else happens."},
    {"close", (PyCFunction)core_close, METH_NOARGS, "Let go of everything."},
    {NULL},
};
static PyMemberDef core_members[] = {
    {"attached", T_INT, offsetof(Core, attached), READONLY, "Tunnels."},
    {"idle_pipes", T_INT, offsetof(Core, idle), READONLY, "Pipes kept for the next bulk."},
    {NULL},
};

static PyObject *tunnel_attach(Tunnel *t, PyObject *args) {
    Core *c;
    int fd[2], known[2];
    unsigned long long reserved, ask_at;
    const char *first;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "O!iiiiKKy#", &CoreType, &c, &fd[0], &known[0], &fd[1], &known[1],
                          &reserved, &ask_at, &first, &size) || !usable(c))
        return NULL;
    if (t->core || t->over != RUNS || fd[0] == fd[1] || (size_t)size > reserved)
        return PyErr_Format(PyExc_RuntimeError, "cannot be attached");
    for (int i = 0; i < 2; i++) {
        if (fcntl(fd[i], F_GETFD) < 0)
            return PyErr_SetFromErrno(PyExc_OSError);
        if (!has_room_for(c, fd[i]))
            return PyErr_NoMemory();
        if (c->slots[fd[i]])
            return PyErr_Format(PyExc_RuntimeError, "descriptor %d is a tunnel's", fd[i]);
    }
    if (size && keep(&t->way[0], first, size))
        return PyErr_NoMemory();
    t->reserved = reserved;
    t->ask_at = ask_at;
    t->taken = size;
    for (int i = 0; i < 2; i++) {
        t->fd[i] = fd[i];
        t->known[i] = known[i] & (READABLE | WRITABLE | HANGUP);
        t->way[i].pipe[0] = t->way[i].pipe[1] = -1;
        c->slots[fd[i]] = t;
        for (int j = 0; j < c->told; j++) /* said in this turn, and perhaps not heard yet */
            if (c->happened[j].data.fd == fd[i])
                note(t, i, c->happened[j].events);
    }
    t->activity = now();
    t->core = (Core *)Py_NewRef(c);
    c->attached++;
    queue(c, (Tunnel *)Py_NewRef(t));
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

static PyObject *tunnel_books(Tunnel *t, PyObject *unused) {
    struct way *up = &t->way[0], *down = &t->way[1];
    return Py_BuildValue("KKKK", up->count, down->count, (uint64_t)up->left + up->held + up->lost,
                         (uint64_t)down->left + down->held + down->lost);
}

static PyMethodDef tunnel_methods[] = {
    {"attach", (PyCFunction)tunnel_attach, METH_VARARGS, "Have a Core move the bytes of two sockets."},
    {"detach", (PyCFunction)tunnel_detach, METH_NOARGS, "No byte moves from here on."},
    {"allow", (PyCFunction)tunnel_allow, METH_VARARGS, "Bytes of both ways, and from which on to say so."},
    {"books", (PyCFunction)tunnel_books, METH_NOARGS, "Bytes delivered, out and in; read and not written."},
    {NULL},
};
static PyMemberDef tunnel_members[] = {
    {"taken", T_ULONGLONG, offsetof(Tunnel, taken), READONLY, "Bytes of the reservation."},
    {"activity", T_DOUBLE, offsetof(Tunnel, activity), READONLY, "Time of the last event."},
    {"up_ended", T_BOOL, offsetof(Tunnel, way[0].eof), READONLY, "The client has said its last,"},
    {"up_told", T_BOOL, offsetof(Tunnel, way[0].shut), READONLY, "and the upstream was told so."},
    {"down_ended", T_BOOL, offsetof(Tunnel, way[1].eof), READONLY, "The same"},
    {"down_told", T_BOOL, offsetof(Tunnel, way[1].shut), READONLY, "of the upstream."},
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
    .tp_new = PyType_GenericNew,
    .tp_methods = tunnel_methods,
    .tp_members = tunnel_members,
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_relay", "The compiled relay.", -1, NULL};

PyMODINIT_FUNC PyInit__relay(void) {
    PyObject *made = PyModule_Create(&module);
    if (!made || PyModule_AddType(made, &CoreType) || PyModule_AddType(made, &TunnelType)
        || PyModule_AddIntConstant(made, "NEWS", NEWS)) {
        Py_CLEAR(made);
    }
    return made;
}
