/* What the two halves of the load generator share: origin.c and load.c. */
#ifndef EXEAT_BENCH_LOAD_H
#define EXEAT_BENCH_LOAD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <netinet/in.h>
#include <stdint.h>
#include <sys/types.h>

enum { CHUNK = 1 << 20, EVENTS = 512 };

extern char scratch[CHUNK];
extern int poll_fd; /* the one epoll instance */

/* Ends the program with a line on standard error. */
__attribute__((noreturn, format(printf, 1, 2))) void die(const char *format, ...);
int checked(int result, const char *what);
struct sockaddr_in address_of(const char *host, int port);
void watch(int operation, int fd, uint32_t events, void *owner);

/* One turn of bulk in either direction: bytes moved, -1 when the connection has ended. */
int64_t discard(int fd);
int64_t pour(int fd);

/* Serves until standard input ends. */
int origin(const char *host, int port);

#endif
