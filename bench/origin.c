/* The origin of the load: echo on PORT, an endless source on PORT+1, a sink on PORT+2 (see load.c). */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum service { ECHO, SOURCE, SINK, SERVICES };
struct peer {
  int fd;
  enum service service;
  bool listens;
};

static bool serve(const struct peer *p) {
  if (p->service == SOURCE) return pour(p->fd) >= 0;
  if (p->service == SINK) return discard(p->fd) >= 0;
  ssize_t n = recv(p->fd, scratch, sizeof scratch, 0);
  if (n < 0) return errno == EAGAIN;
  /* The clients wait for each answer before they write again: it always fits the buffer. */
  return n > 0 && send(p->fd, scratch, (size_t)n, MSG_NOSIGNAL) == n;
}

static void take_in(const struct peer *listener) {
  int fd, one = 1;
  while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct peer *p = malloc(sizeof *p);
    *p = (struct peer){fd, listener->service, false};
    watch(EPOLL_CTL_ADD, fd, listener->service == SOURCE ? EPOLLOUT : EPOLLIN, p);
  }
  if (errno != EAGAIN && errno != ECONNABORTED) die("accept: %s", strerror(errno));
}

int origin(const char *host, int port) {
  struct peer listeners[SERVICES];
  for (int n = 0; n < SERVICES; n++) {
    struct sockaddr_in a = address_of(host, port + n);
    int one = 1, fd = checked(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    checked(bind(fd, (struct sockaddr *)&a, sizeof a), "bind");
    checked(listen(fd, 16384), "listen");
    listeners[n] = (struct peer){fd, (enum service)n, true};
    watch(EPOLL_CTL_ADD, fd, EPOLLIN, &listeners[n]);
  }
  watch(EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, NULL);
  puts("begin");
  fflush(stdout);
  for (;;) {
    struct epoll_event events[EVENTS];
    int count = epoll_wait(poll_fd, events, EVENTS, -1);
    for (int n = 0; n < count; n++) {
      struct peer *p = events[n].data.ptr;
      if (p == NULL) return 0;
      if (p->listens) take_in(p);
      else if (!serve(p)) {
        close(p->fd);
        free(p);
      }
    }
  }
}
