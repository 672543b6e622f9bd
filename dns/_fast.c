/* Answers datagrams whose reply is remembered: what `exeat.dns.batch.Batch.serve` does, in C.
 *
 * Nothing in here reads a DNS message. The octets of a query behind its id are looked up in the
 * client's own table, and what is found there goes back as it is, behind the id; every other datagram is
 * handed to Python. Optional: without it the Python class does the same. The interpreter's lock is held
 * throughout, so the buffers may be static.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

enum { SLOTS = 16, SIZE = 4096, ID = 2, FIELDS = 3 };

static unsigned char octets[SLOTS][SIZE];
static struct sockaddr_in6 names[SLOTS]; /* the larger one of both families */
static struct iovec parts[SLOTS], replies[SLOTS][2];
static struct mmsghdr in[SLOTS], out[SLOTS];

/* Where the datagram in `slot` came from, as the socket module says it; a new reference. */
static PyObject *peer_of(int slot)
{
	char text[INET6_ADDRSTRLEN] = "";
	if (names[slot].sin6_family == AF_INET6) {
		const struct sockaddr_in6 *six = &names[slot];
		inet_ntop(AF_INET6, &six->sin6_addr, text, sizeof text);
		return Py_BuildValue("(sHkk)", text, ntohs(six->sin6_port),
				     (unsigned long)ntohl(six->sin6_flowinfo), (unsigned long)six->sin6_scope_id);
	}
	const struct sockaddr_in *four = (const struct sockaddr_in *)&names[slot];
	inet_ntop(AF_INET, &four->sin_addr, text, sizeof text);
	return Py_BuildValue("(sH)", text, ntohs(four->sin_port));
}

/* What `table` has for these octets; borrowed, NULL if nothing or (with an exception) on failure. */
static PyObject *find(PyObject *table, const void *data, Py_ssize_t size)
{
	PyObject *key = PyBytes_FromStringAndSize(data, size);
	if (key == NULL)
		return NULL;
	PyObject *found = PyDict_GetItemWithError(table, key);
	Py_DECREF(key);
	return found;
}

/* The table of whoever sent what is in `slot`: `peers` has them by packed address. */
static PyObject *table_of(PyObject *peers, int slot)
{
	if (names[slot].sin6_family == AF_INET6)
		return find(peers, &names[slot].sin6_addr, sizeof names[slot].sin6_addr);
	return find(peers, &((const struct sockaddr_in *)&names[slot])->sin_addr, sizeof(struct in_addr));
}

/* The remembered reply to the datagram in `slot`, if it is good at `now`; borrowed. */
static PyObject *entry_of(PyObject *table, int slot, double now)
{
	Py_ssize_t size = in[slot].msg_len;
	if (size <= ID)
		return NULL;
	PyObject *entry = find(table, octets[slot] + ID, size - ID);
	if (entry == NULL)
		return NULL;
	if (!PyTuple_Check(entry) || PyTuple_GET_SIZE(entry) != FIELDS || !PyBytes_Check(PyTuple_GET_ITEM(entry, 0))
	    || !PyFloat_Check(PyTuple_GET_ITEM(entry, 1))) {
		PyErr_SetString(PyExc_TypeError, "a remembered reply is (bytes, float, object)");
		return NULL;
	}
	return now < PyFloat_AS_DOUBLE(PyTuple_GET_ITEM(entry, 1)) ? entry : NULL;
}

/* Queue the reply of `entry` to the datagram in `slot`; `entry` must live until it is sent. */
static void queue(PyObject *entry, int slot, int at)
{
	PyObject *tail = PyTuple_GET_ITEM(entry, 0);
	replies[at][0] = (struct iovec){octets[slot], ID};
	replies[at][1] = (struct iovec){PyBytes_AS_STRING(tail), (size_t)PyBytes_GET_SIZE(tail)};
	out[at].msg_hdr = (struct msghdr){
		.msg_name = &names[slot], .msg_namelen = in[slot].msg_hdr.msg_namelen, .msg_iov = replies[at], .msg_iovlen = 2};
}

/* What cannot be sent is dropped: its client will ask again. */
static void flush(int fd, int count)
{
	for (int sent = 0; sent < count;) {
		int done = sendmmsg(fd, out + sent, (unsigned)(count - sent), MSG_DONTWAIT);
		sent += done > 0 ? done : 1;
	}
}

static int add_miss(PyObject *misses, int slot)
{
	PyObject *peer = peer_of(slot);
	PyObject *miss = peer == NULL ? NULL : Py_BuildValue("(y#N)", octets[slot], (Py_ssize_t)in[slot].msg_len, peer);
	int bad = miss == NULL || PyList_Append(misses, miss) < 0;
	Py_XDECREF(miss);
	return bad ? -1 : 0;
}

static int receive(int fd)
{
	for (int i = 0; i < SLOTS; i++) {
		parts[i] = (struct iovec){octets[i], SIZE};
		in[i].msg_hdr = (struct msghdr){
			.msg_name = &names[i], .msg_namelen = sizeof names[i], .msg_iov = &parts[i], .msg_iovlen = 1};
	}
	int count = recvmmsg(fd, in, SLOTS, MSG_DONTWAIT, NULL);
	return count > 0 ? count : 0;
}

PyDoc_STRVAR(serve_doc, "serve(fd, table, peers, now) -> (misses, hits): see exeat.dns.batch.Batch.serve");

static PyObject *serve(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	(void)module;
	if (count != 4 || (args[1] != Py_None && !PyDict_Check(args[1])) || !PyDict_Check(args[2])) {
		PyErr_SetString(PyExc_TypeError, "serve(fd: int, table: dict | None, peers: dict, now: float)");
		return NULL;
	}
	int fd = (int)PyLong_AsLong(args[0]);
	double now = PyFloat_AsDouble(args[3]);
	if (PyErr_Occurred())
		return NULL;
	PyObject *misses = PyList_New(0), *hits = PyList_New(0), *kept[SLOTS];
	int queued = 0, failed = misses == NULL || hits == NULL;
	int received = failed ? 0 : receive(fd);
	for (int slot = 0; slot < received && !failed; slot++) {
		PyObject *table = args[1] != Py_None ? args[1] : table_of(args[2], slot);
		PyObject *entry = table != NULL && PyDict_Check(table) ? entry_of(table, slot, now) : NULL;
		if (entry != NULL) {
			Py_INCREF(entry);
			queue(entry, slot, queued);
			kept[queued++] = entry;
			failed = PyList_Append(hits, PyTuple_GET_ITEM(entry, 2)) < 0;
		} else {
			failed = PyErr_Occurred() != NULL || add_miss(misses, slot) < 0;
		}
	}
	if (!failed) /* else nothing of it is counted, so nothing of it is answered */
		flush(fd, queued);
	while (queued > 0)
		Py_DECREF(kept[--queued]);
	if (failed) {
		Py_XDECREF(misses);
		Py_XDECREF(hits);
		return NULL;
	}
	return Py_BuildValue("(NN)", misses, hits);
}

static PyMethodDef methods[] = {
	{"serve", (PyCFunction)(void (*)(void))serve, METH_FASTCALL, serve_doc},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "exeat.dns._fast", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__fast(void)
{
	return PyModule_Create(&definition);
}
