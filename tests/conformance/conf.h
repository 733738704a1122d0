/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every conformance program shares: deadlines, checks, addresses, and the
 * orders that it gives to its peer.
 *
 *      program (this side)                        peer (peer.c)
 *      vip SELF  ----- TCP, the thing under test ----  vip PEER
 *                ----- UDP PORT+9, orders ------------
 *
 * A program is run as `PROGRAM PEER PORT`. It judges only what POSIX and Linux
 * promise: it must pass on a plain network first (the oracle) and then
 * identically with the shim on either side or both. With CONF_FAMILY=6 in its
 * environment it opens AF_INET6 sockets and uses IPv4-mapped addresses.
 */
#ifndef CONF_H
#define CONF_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* asm-generic/socket.h; older libc headers lack it. */
#define CONF_SO_NETNS_COOKIE 71

/* The peer's services, as offsets from its base port (see peer.c). */
enum conf_service {
	CONF_ECHO = 0,   /* sends back what it gets */
	CONF_BANNER = 1, /* says "peer-ip peer-port own-ip own-port\n", then echoes */
	CONF_SINK = 2,   /* reads to the end, then says "bytes hash\n" and closes */
	CONF_SOURCE = 3, /* sends CONF_BULK bytes and shuts its half down */
	CONF_RESET = 4,  /* accepts and resets */
	CONF_SILENT = 5, /* listens, backlog 1, never accepts */
	CONF_CLOSED = 6, /* nobody listens here */
	CONF_SAY_RESET = 7, /* reads one byte, then resets */
	CONF_FIN = 8,    /* accepts and closes */
	CONF_ORDERS = 9, /* UDP: orders */
};

#define CONF_BULK (1u << 20)

struct conf {
	const char *program;
	struct in_addr peer;
	struct in_addr self; /* our address towards the peer */
	uint16_t port;       /* the peer's base port, host order */
	int family;          /* AF_INET, or AF_INET6 with mapped addresses */
};
extern struct conf conf;

/* What the peer reports of an order (see conf_result). */
struct conf_result {
	int ok, fail, eof, reset, timeout, refused;
	char text[256]; /* first failure, or what the mode reports */
};

/* Parse the command line and start the watchdog of `seconds`. */
void conf_init(int argc, char **argv, unsigned seconds);
/* The watchdog again: a child does not inherit its parent's timer. */
void conf_deadline(unsigned seconds);
/* Print the summary; the value to return from main. */
int conf_done(void);
/* Print "not ok" with place and errno, and exit 1. */
void conf_fail(const char *file, int line, int error, const char *format, ...)
	__attribute__((noreturn, format(printf, 4, 5)));
void conf_ok(const char *format, ...) __attribute__((format(printf, 1, 2)));
void conf_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* errno is not touched before the condition: conditions look at it. */
#define CHECK(cond, ...)                                                   \
	do {                                                                   \
		if (!(cond))                                                       \
			conf_fail(__FILE__, __LINE__, errno, __VA_ARGS__);             \
	} while (0)

/* The call must fail with exactly this errno. */
#define CHECK_ERRNO(call, want)                                            \
	do {                                                                   \
		errno = 0;                                                         \
		long conf_r_ = (long)(call);                                       \
		int conf_e_ = errno;                                               \
		if (conf_r_ != -1 || conf_e_ != (want))                            \
			conf_fail(__FILE__, __LINE__, conf_e_,                         \
				  "%s: got %ld, wanted -1 and %s", #call, conf_r_,        \
				  strerror(want));                                        \
	} while (0)

double conf_now(void);             /* seconds, monotonic */
void conf_sleep(double seconds);
double conf_cpu(void);             /* CPU seconds of this process */

/* Addresses in the family of this run. */
socklen_t conf_address(struct sockaddr_storage *out, struct in_addr ip, uint16_t port);
bool conf_same(const struct sockaddr_storage *sa, struct in_addr ip, uint16_t port);
uint16_t conf_port_of(const struct sockaddr_storage *sa);
const char *conf_text(const struct sockaddr_storage *sa);
/*
 * An address of the overlay that nobody has: PEER with .250.WHICH at its end. A program
 * that needs the neighbour's state to itself takes a WHICH of its own: the kernel gives
 * up on an address 3 s after the first ARP request, whoever sent that.
 */
struct in_addr conf_nobody(uint8_t which);

int conf_socket(int flags);        /* a stream socket; flags as in socket(2)'s type */
int conf_connect(int fd, enum conf_service service);
int conf_dial(enum conf_service service);      /* blocking, checked */
int conf_dial_nonblock(enum conf_service service); /* in progress or done */
int conf_listen(uint16_t *port, int backlog);  /* bound to SELF, listening */
int conf_bound(uint16_t *port, int flags);     /* bound to SELF, not listening */
int conf_accept(int listener);     /* blocking accept, checked, path noted */
int conf_so_error(int fd);
void conf_nonblock(int fd, bool on);
bool conf_wait(int fd, short events, int ms);  /* poll */

/* Both names of a connected socket must be virtual: SELF and PEER:port. */
void conf_names(int fd, enum conf_service service);
/* Count the path of a connected socket: host (slim) or overlay. */
bool conf_path(int fd);

/* Data. Pattern bytes depend on their offset, so loss and doubling show. */
void conf_send_all(int fd, const void *data, size_t size);
void conf_recv_all(int fd, void *data, size_t size);
void conf_echo(int fd, size_t size);           /* round trip through an echo */
void conf_pattern(unsigned char *out, size_t offset, size_t size);
void conf_send_pattern(int fd, size_t size);
void conf_recv_pattern(int fd, size_t size);
void conf_expect_eof(int fd);
void conf_line(int fd, char *out, size_t size); /* up to a newline, which goes */
/* Read what a `name` or `from` dial says: it must fit `peer`, as accept named
 * it, and SELF:port. */
void conf_expect_name(int fd, const struct sockaddr_storage *peer, uint16_t port);
uint64_t conf_hash(uint64_t hash, const void *data, size_t size); /* FNV-1a */
#define CONF_HASH0 14695981039346656037ull
/* Read what SINK says and compare it with `size` pattern bytes. */
void conf_expect_sunk(int fd, size_t size);

/*
 * Orders to the peer: `dial N MODE ADDRESS PORT [ARG]`. N connections at once.
 *   echo   send 4 KiB, expect it back, close
 *   id     send an 8-byte number of its own, expect the same back and the end
 *   name   send "own-ip own-port peer-ip peer-port\n", wait for the end
 *   from   the same from source port ARG
 *   first  server speaks first: read CONF_BULK, send CONF_BULK, wait for the end
 *   talk   client speaks first: send CONF_BULK, shut down, read CONF_BULK
 *   mute   connect, then wait (ARG ms, default 8000) for the end or a reset
 *   rst    connect, send a byte, reset
 *   close  connect and close
 */
/* Order `n` connections of `mode` to our own SELF:port. */
unsigned conf_dial_me(int n, const char *mode, uint16_t port, int argument);
unsigned conf_order(const char *format, ...) __attribute__((format(printf, 1, 2)));
struct conf_result conf_result(unsigned id, double seconds);
/* Order + result where all `n` must be ok. */
void conf_all_ok(unsigned id, int n);

/*
 * Nobody listens on our port any more: dials are refused, and none is served. A peer
 * may learn of it a moment later (after a process that ended, or when the machine is
 * too busy for close() to wait for it); a dial in between may be reset, as one that is
 * queued when a server dies.
 */
void conf_refused_soon(uint16_t port);

/* Children: conf_child() returns true in the child, which ends by conf_leave(). */
pid_t conf_fork(void);
void conf_leave(void) __attribute__((noreturn));
void conf_join(pid_t pid);         /* must have exited 0 */

/* A descriptor over a Unix socket. */
void conf_send_fd(int unix_fd, int fd);
int conf_recv_fd(int unix_fd);

#endif
