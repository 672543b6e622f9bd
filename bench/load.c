/* Load for bench.proxy and bench.soak: an origin, and clients that go to it through a proxy.
 *
 *   load origin ADDRESS PORT
 *     Serves until its standard input ends: echo on PORT, an endless source on PORT+1, a sink on PORT+2.
 *   load MODE PROTOCOL PROXY TARGET COUNT SECONDS WARM BYTES
 *     PROTOCOL is connect, socks5 or direct; PROXY and TARGET are HOST:PORT, PROXY an IPv4 address.
 *     With direct the connection goes to PROXY, whatever TARGET is.
 *     conn   COUNT at a time: connect, handshake, BYTES there and back, close
 *     ping   COUNT tunnels, BYTES there and back on each, again and again
 *     down   COUNT tunnels, read as fast as it comes       up   the same, written
 *     idle   COUNT tunnels that echoed BYTES once; says "begin" when all are up, ends with its input
 *     rate   COUNT new tunnels a second, begun when due, not when the last one has ended
 *
 * After WARM seconds it prints "begin", and at the end one line of JSON. Rates are per second, times in
 * microseconds. A connection that fails is counted, with the first failure's text; outside conn and
 * rate it ends the run with exit code 1.
 *
 * Nothing here copies bulk data: what arrives is discarded in the kernel (MSG_TRUNC), what leaves
 * comes from the page cache (sendfile). Otherwise the load would be what is measured.
 */
#define _GNU_SOURCE
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_HEAD = 2048, MAX_SAMPLES = 1 << 23, TURNS = 8 };
enum { OPENING_AT_ONCE = 128 }; /* idle: no flood of connections, a listener's queue is not measured */

char scratch[CHUNK];
int poll_fd;
static int source_fd;

void die(const char *format, ...) {
  va_list words;
  va_start(words, format);
  fputs("load: ", stderr);
  vfprintf(stderr, format, words);
  fputc('\n', stderr);
  va_end(words);
  exit(1);
}

int checked(int result, const char *what) {
  if (result < 0) die("%s: %s", what, strerror(errno));
  return result;
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

struct sockaddr_in address_of(const char *host, int port) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  if (inet_pton(AF_INET, host, &a.sin_addr) != 1) die("%s is not an IPv4 address", host);
  return a;
}

void watch(int operation, int fd, uint32_t events, void *owner) {
  struct epoll_event e = {.events = events, .data.ptr = owner};
  checked(epoll_ctl(poll_fd, operation, fd, &e), "epoll_ctl");
}

int64_t discard(int fd) {
  int64_t moved = 0;
  for (int turn = 0; turn < TURNS; turn++) {
    ssize_t n = recv(fd, NULL, 4 * CHUNK, MSG_TRUNC);
    if (n > 0) moved += n;
    else if (n < 0 && errno == EAGAIN) return moved;
    else return -1;
  }
  return moved;
}

int64_t pour(int fd) {
  int64_t moved = 0;
  for (int turn = 0; turn < TURNS; turn++) {
    off_t from = 0;
    ssize_t n = sendfile(fd, source_fd, &from, CHUNK);
    if (n > 0) moved += n;
    else if (n < 0 && errno == EAGAIN) return moved;
    else return -1;
  }
  return moved;
}

/* ---- the clients --------------------------------------------------------------------------- */

enum mode { CONN, PING, DOWN, UP, IDLE, RATE, MODES };
static const char *const MODE_NAMES[MODES] = {"conn", "ping", "down", "up", "idle", "rate"};
enum protocol { DIRECT, CONNECT, SOCKS5, PROTOCOLS };
static const char *const PROTOCOL_NAMES[PROTOCOLS] = {"direct", "connect", "socks5"};

enum step { CONNECTING, GREETING, ASKED, ECHOING, STREAMING, RESTING, CLOSED };
struct tunnel {
  int fd;
  enum step step;
  size_t got; /* of the answer or the echo that is awaited */
  uint64_t since;
};

static struct {
  enum mode mode;
  enum protocol protocol;
  struct sockaddr_in to;
  uint8_t request[1024];
  size_t request_size, bytes;
  int count;
} plan;

static struct {
  uint64_t failed, done, moved;
  uint32_t *took; /* nanoseconds */
  size_t samples;
  int up; /* tunnels that are established now, in the modes that keep them */
  bool measuring;
  char first_failure[160];
} seen;

static void fail(struct tunnel *t, const char *what, int error) {
  if (seen.failed++ == 0)
    snprintf(seen.first_failure, sizeof seen.first_failure, "%s: %s", what, error ? strerror(error) : "end");
  if (plan.mode != CONN && plan.mode != RATE) die("%s", seen.first_failure);
  close(t->fd);
  t->step = CLOSED;
}

static void sample(uint64_t took) {
  if (!seen.measuring) return;
  seen.done++;
  if (seen.samples < MAX_SAMPLES) seen.took[seen.samples++] = took > UINT32_MAX ? UINT32_MAX : (uint32_t)took;
}

static void begin(struct tunnel *t) {
  int one = 1;
  t->fd = checked(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
  setsockopt(t->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  t->step = CONNECTING;
  t->got = 0;
  t->since = now_ns();
  if (connect(t->fd, (struct sockaddr *)&plan.to, sizeof plan.to) < 0 && errno != EINPROGRESS)
    fail(t, "connect", errno);
  else watch(EPOLL_CTL_ADD, t->fd, EPOLLOUT, t);
}

static void say(struct tunnel *t, const void *data, size_t size, enum step next) {
  ssize_t n = send(t->fd, data, size, MSG_NOSIGNAL);
  if (n != (ssize_t)size) {
    fail(t, "send", n < 0 ? errno : EAGAIN);
    return;
  }
  t->got = 0;
  t->step = next;
}

static void established(struct tunnel *t) {
  bool bulk = plan.mode == DOWN || plan.mode == UP;
  if (plan.mode == UP) watch(EPOLL_CTL_MOD, t->fd, EPOLLOUT, t);
  if (plan.mode == PING) t->since = now_ns();
  if (bulk || plan.mode == PING) seen.up++;
  if (bulk) t->step = STREAMING;
  else say(t, scratch, plan.bytes, ECHOING);
}

static void connected(struct tunnel *t) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(t->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error) {
    fail(t, "connect", error);
    return;
  }
  watch(EPOLL_CTL_MOD, t->fd, EPOLLIN, t);
  if (plan.protocol == DIRECT) established(t);
  else if (plan.protocol == CONNECT) say(t, plan.request, plan.request_size, ASKED);
  else say(t, "\x05\x01\x00", 3, GREETING); /* RFC 1928 section 3: one method, none */
}

/* How long the answer in `data` is, 0 while that cannot be said, -1 when it is a refusal. */
static int answer_size(const char *data, size_t size) {
  if (plan.protocol == CONNECT) {
    if (size >= 12 && memcmp(data + 8, " 200", 4) != 0) return -1;
    const char *end = memmem(data, size, "\r\n\r\n", 4);
    return end ? (int)(end - data) + 4 : 0;
  }
  if (size < 5) return 0; /* RFC 1928 section 6 */
  if (data[1] != 0) return -1;
  int whole = data[3] == 1 ? 10 : data[3] == 4 ? 22 : 7 + (uint8_t)data[4];
  return size >= (size_t)whole ? whole : 0;
}

/* The answer is looked at first and then taken, to the byte: what follows it belongs to the tunnel. */
static void answered(struct tunnel *t) {
  char head[MAX_HEAD];
  ssize_t n = recv(t->fd, head, sizeof head, MSG_PEEK);
  if (n <= 0) {
    if (n == 0 || errno != EAGAIN) fail(t, "no answer", n ? errno : 0);
    return;
  }
  int size = t->step == GREETING ? (n < 2 ? 0 : head[1] == 0 ? 2 : -1) : answer_size(head, (size_t)n);
  if (size < 0) {
    fail(t, "refused", EACCES);
    return;
  }
  if (size == 0 || recv(t->fd, head, (size_t)size, 0) != size) return;
  if (t->step == GREETING) say(t, plan.request, plan.request_size, ASKED);
  else established(t);
}

static void echoed(struct tunnel *t) {
  ssize_t n = recv(t->fd, scratch, plan.bytes - t->got, 0);
  if (n <= 0) {
    if (n == 0 || errno != EAGAIN) fail(t, "no echo", n ? errno : 0);
    return;
  }
  t->got += (size_t)n;
  if (t->got < plan.bytes) return;
  uint64_t now = now_ns();
  if (plan.mode == IDLE) {
    t->step = RESTING;
    seen.up++;
    return;
  }
  sample(now - t->since);
  if (plan.mode == PING) {
    t->since = now;
    say(t, scratch, plan.bytes, ECHOING);
    return;
  }
  close(t->fd);
  t->step = CLOSED;
  if (plan.mode == CONN) begin(t);
}

static void turn(struct tunnel *t) {
  int64_t moved;
  switch (t->step) {
  case CONNECTING: connected(t); break;
  case GREETING:
  case ASKED: answered(t); break;
  case ECHOING: echoed(t); break;
  case STREAMING:
    moved = plan.mode == UP ? pour(t->fd) : discard(t->fd);
    if (moved < 0) fail(t, "the stream ended", errno);
    else seen.moved += (uint64_t)moved;
    break;
  case RESTING: fail(t, "an idle tunnel was ended", 0); break;
  case CLOSED: break;
  }
}

/* A turn of the event loop; false when standard input has ended. */
static bool turns(int wait_ms) {
  struct epoll_event events[EVENTS];
  int count = epoll_wait(poll_fd, events, EVENTS, wait_ms);
  for (int n = 0; n < count; n++) {
    if (events[n].data.ptr == NULL) return false;
    turn(events[n].data.ptr);
  }
  return true;
}

static void say_begin(void) {
  seen.moved = seen.done = 0;
  seen.samples = 0;
  seen.measuring = true;
  puts("begin");
  fflush(stdout);
}

static int by_size(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

static double quantile_us(double share) {
  if (seen.samples == 0) return 0;
  return seen.took[(size_t)(share * (double)(seen.samples - 1))] / 1e3;
}

static void report(double seconds) {
  for (char *c = seen.first_failure; *c; c++)
    if (*c < ' ' || *c == '"' || *c == '\\') *c = ' ';
  qsort(seen.took, seen.samples, sizeof *seen.took, by_size);
  printf("{\"seconds\": %.4f, \"rate\": %.2f, \"GBps\": %.5f, \"p50_us\": %.1f, \"p99_us\": %.1f, "
         "\"done\": %lu, \"up\": %d, \"failed\": %lu, \"first_failure\": \"%s\"}\n",
         seconds, (double)seen.done / seconds, (double)seen.moved / seconds / 1e9, quantile_us(0.5),
         quantile_us(0.99), (unsigned long)seen.done, seen.up, (unsigned long)seen.failed,
         seen.first_failure);
}

/* idle: a few at a time, until all are up. The others at once: there COUNT is what is measured. */
static void open_all(struct tunnel *tunnels, uint64_t until) {
  int limit = plan.mode == IDLE ? OPENING_AT_ONCE : plan.count, started = 0;
  while (started < plan.count || (plan.mode != CONN && seen.up < plan.count)) {
    while (started < plan.count && (plan.mode == CONN || started - seen.up < limit)) begin(&tunnels[started++]);
    if (plan.mode == CONN) return;
    turns(100);
    if (now_ns() > until) die("only %d of %d tunnels came up in time", seen.up, plan.count);
  }
}

static void restart_failed(struct tunnel *tunnels) {
  static uint64_t known;
  if (seen.failed == known) return;
  known = seen.failed;
  for (int n = 0; n < plan.count; n++)
    if (tunnels[n].step == CLOSED) begin(&tunnels[n]);
}

static void run_until(struct tunnel *tunnels, uint64_t end) {
  while (now_ns() < end) {
    turns(10);
    if (plan.mode == CONN) restart_failed(tunnels);
  }
}

/* Open loop: `count` a second are begun whether or not the earlier ones have ended. */
static void run_rate(double seconds) {
  uint64_t total = (uint64_t)(plan.count * seconds), begun = 0, start = now_ns();
  struct tunnel *tunnels = calloc(total + 1, sizeof *tunnels);
  while (seen.done + seen.failed < total) {
    uint64_t since = now_ns() - start;
    while (begun < total && (double)begun < (double)since * plan.count / 1e9) begin(&tunnels[begun++]);
    turns(1);
    if ((double)since / 1e9 > seconds + 30) die("%lu tunnels never ended", (unsigned long)(begun - seen.done - seen.failed));
  }
}

static int known(const char *const *names, int count, const char *name) {
  for (int n = 0; n < count; n++)
    if (strcmp(names[n], name) == 0) return n;
  die("%s is not known", name);
  return -1;
}

static int split(char *place) {
  char *colon = strrchr(place, ':');
  if (colon == NULL) die("%s is not HOST:PORT", place);
  *colon = 0;
  return atoi(colon + 1);
}

static void prepare_request(char *target) {
  if (plan.protocol == CONNECT) {
    plan.request_size = (size_t)snprintf((char *)plan.request, sizeof plan.request,
                                         "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target);
    return;
  }
  int port = split(target);
  struct in_addr ip;
  uint8_t *p = plan.request;
  memcpy(p, "\x05\x01\x00", 3); /* RFC 1928 section 4 */
  p += 3;
  if (inet_pton(AF_INET, target, &ip) == 1) {
    *p++ = 1;
    memcpy(p, &ip, 4);
    p += 4;
  } else {
    size_t size = strlen(target);
    if (size > 255) die("%s is too long", target);
    *p++ = 3;
    *p++ = (uint8_t)size;
    memcpy(p, target, size);
    p += size;
  }
  *p++ = (uint8_t)(port >> 8);
  *p++ = (uint8_t)port;
  plan.request_size = (size_t)(p - plan.request);
}

static int client(char **words) {
  plan.mode = (enum mode)known(MODE_NAMES, MODES, words[0]);
  plan.protocol = (enum protocol)known(PROTOCOL_NAMES, PROTOCOLS, words[1]);
  int port = split(words[2]);
  plan.to = address_of(words[2], port);
  prepare_request(words[3]);
  plan.count = atoi(words[4]);
  double seconds = atof(words[5]), warm = atof(words[6]);
  plan.bytes = (size_t)atol(words[7]);
  if (plan.count < 1 || plan.bytes < 1 || plan.bytes > sizeof scratch) die("bad COUNT or BYTES");
  struct tunnel *tunnels = calloc((size_t)plan.count, sizeof *tunnels);
  seen.took = malloc(MAX_SAMPLES * sizeof *seen.took);
  uint64_t start = now_ns();
  if (plan.mode == RATE) {
    say_begin();
    start = now_ns();
    run_rate(seconds);
  } else {
    open_all(tunnels, start + 120000000000u);
    run_until(tunnels, now_ns() + (uint64_t)(warm * 1e9));
    say_begin();
    start = now_ns();
    if (plan.mode == IDLE) {
      watch(EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, NULL);
      while (turns(-1)) {}
    } else run_until(tunnels, start + (uint64_t)(seconds * 1e9));
  }
  report((double)(now_ns() - start) / 1e9);
  return 0;
}

int main(int count, char **words) {
  signal(SIGPIPE, SIG_IGN);
  poll_fd = checked(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
  source_fd = checked(memfd_create("source", MFD_CLOEXEC), "memfd_create");
  for (size_t n = 0; n < sizeof scratch; n++) scratch[n] = (char)(n * 2654435761u >> 13);
  if (write(source_fd, scratch, sizeof scratch) != sizeof scratch) die("write: %s", strerror(errno));
  if (count == 4 && strcmp(words[1], "origin") == 0) return origin(words[2], atoi(words[3]));
  if (count == 9) return client(words + 1);
  die("usage: load origin ADDRESS PORT | load MODE PROTOCOL PROXY TARGET COUNT SECONDS WARM BYTES");
}
