/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The escape suite: what can a hostile process do with a Slim host socket?
 *
 *   other container           container under test               its peer
 *   escape receive <---fd---- escape run ----- host socket ----- escape serve
 *                                  |
 *              questions, results  |  (stdin, stdout: JSON lines)
 *                               runner.py ----- canary.py in the host's namespace
 *
 * An attempt is one row of a table (reach.c, learn.c, treat.c, keep.c, sweep.c). It is
 * carried out on a socket that came by one of the variants (variants.c) by one of the
 * identities (identity.c). It counts as succeeded or leaked only for an effect that was
 * seen: a canary in the host's namespace was reached, the bytes that came back hold a
 * fact about the host, the kernel reads back what we changed.
 *
 * On the socket under attack every call is made by number (syscall(2)), which no shim
 * sees. Only obtain() goes through libc: that is how a container gets such a socket.
 */
#ifndef ESCAPE_H
#define ESCAPE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include "uapi.h"

enum outcome { DENIED, SUCCEEDED, LEAKED, NOT_APPLICABLE, BROKEN };
extern const char *const outcome_names[];

/* What an answer of the kernel must not contain; given by the runner. */
struct fact {
	char kind[16]; /* address, interface, mac, netns, secret; device: a name to ask about */
	char text[128];
	unsigned char bytes[64];
	size_t size; /* 0: only the text is looked for */
};
#define MAX_FACTS 64

struct settings {
	struct fact facts[MAX_FACTS];
	int n_facts;
	struct in_addr peer;      /* virtual address of the peer */
	uint16_t peer_port;
	struct in_addr canary;    /* host address of this container's host */
	struct in_addr peer_host; /* host address of the peer's host */
	uint16_t canary_port;
	char secret[64];          /* what the canary says */
	char dealer[108];         /* Unix socket where guest.c deals sockets out, or "" */
	char meet[108];           /* Unix socket of the other container, or "" */
	uint16_t listen_port;     /* first of a thousand host ports to listen on */
	uint16_t accept_port;     /* virtual port of our own listener */
	int static_fd;            /* the static program, opened before identities are taken */
	int argc;                 /* the command line again, for exec */
	char **argv;
};
extern struct settings settings;

struct ring {
	int fd;
	unsigned entries;
	bool sqpoll;
	void *sq, *cq;
	size_t sq_size, cq_size;
	void *sqes;
	unsigned *sq_head, *sq_tail, *sq_mask, *sq_flags, *sq_array;
	unsigned *cq_head, *cq_tail, *cq_mask;
	void *cqes;
	unsigned char supported[E_OP_LAST];
};

struct sqe {
	uint8_t opcode, flags;
	uint16_t ioprio;
	int32_t fd;
	uint64_t off;
	uint64_t addr;
	uint32_t len;
	uint32_t op_flags;
	uint64_t user_data;
	uint16_t buf_index, personality;
	uint32_t file_index;
	uint64_t addr3;
	uint64_t pad;
};

struct attempt;

struct ctx {
	const struct attempt *attempt;
	const char *variant, *identity;
	int fd;             /* the socket, or -1 where only the ring has it */
	struct ring *ring;  /* not NULL: go through this ring */
	int index;          /* the socket's place in the ring's table, or -1 */
	int family;
	int report;         /* SEQPACKET to whoever started us */
	unsigned serial;
	char token[160];    /* what the canary must hear */
	int error;          /* of the first call that was refused */
	bool unavailable;   /* a call could not be made on this kernel by this variant */
	char detail[400];
};

/* Flags of a row. */
#define IP6 1u      /* wants an AF_INET6 socket */
#define ANY 2u      /* a set that returns 0 counts, it cannot be read back */
#define ANSWER 4u   /* a get that answers counts, whatever it says */
#define NONZERO 8u  /* a get that answers with something else than zeros counts */
#define NO_ADMIN 16u /* would harm the host if it succeeded: not for identity admin */

struct attempt {
	const char *name;
	const char *group; /* reach, learn, treat, keep */
	const char *gives; /* what success would give */
	enum outcome (*run)(struct ctx *c);
	long level, option, value;
	unsigned flags;
	const void *data;
	size_t size;
};

extern const struct attempt reach_attempts[], learn_attempts[], treat_attempts[],
	keep_attempts[], sweep_attempts[];
const struct attempt *find_attempt(const char *name);

/* calls.c: each returns what the kernel does, or -errno. */
long raw6(long number, long a, long b, long c, long d, long e, long f);
#define RAW_(n, a, b, c, d, e, f, ...) \
	raw6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define raw(...) RAW_(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)
long c_connect(struct ctx *c, const void *address, socklen_t size);
long c_dissolve(struct ctx *c); /* connect(AF_UNSPEC) */
long c_bind(struct ctx *c, const void *address, socklen_t size);
long c_listen(struct ctx *c);
long c_accept(struct ctx *c);
long c_getsockname(struct ctx *c, void *out, socklen_t *size);
long c_getpeername(struct ctx *c, void *out, socklen_t *size);
long c_getsockopt(struct ctx *c, long level, long option, void *out, socklen_t *size);
long c_setsockopt(struct ctx *c, long level, long option, const void *in, socklen_t size);
long c_ioctl(struct ctx *c, unsigned long command, void *argument);
long c_sendmsg(struct ctx *c, struct msghdr *message, unsigned flags);
long c_sendto(struct ctx *c, const void *data, size_t size, unsigned flags, const void *address,
	      socklen_t length);
long c_recvmsg(struct ctx *c, struct msghdr *message, unsigned flags);
long c_write(struct ctx *c, const void *data, size_t size);
long c_read(struct ctx *c, void *data, size_t size);
bool c_needs_fd(struct ctx *c); /* false, and "unavailable", if there is none */
int wait_for(int fd, short events, int ms);
socklen_t host_address(struct ctx *c, struct sockaddr_storage *out, struct in_addr ip, uint16_t port);

/* reach.c: system calls by the 32-bit entry; memory that it can address */
bool compat_there(void);
long compat_call(long number, long a, long b, long c, long d, long e);
void *low_memory(size_t size);

/* uring.c */
struct ring *ring_new(unsigned flags);
long ring_register(struct ring *r, const int *fds, unsigned count);
long ring_do(struct ring *r, struct sqe *s);
long ring_run(struct ctx *c, struct sqe *s); /* on the socket under attack */
bool ring_has(const struct ring *r, unsigned opcode);
struct ring *need_ring(struct ctx *c); /* the variant's ring or a new one */

/* judge.c */
long noted(struct ctx *c, const char *what, long result);
void say(struct ctx *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
enum outcome denied(struct ctx *c);
enum outcome denied_by(struct ctx *c, const char *what, long result);
enum outcome succeeded(struct ctx *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
enum outcome leaked(struct ctx *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
enum outcome not_applicable(struct ctx *c, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
enum outcome broken(struct ctx *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
const struct fact *scan(const void *data, size_t size);
enum outcome scanned(struct ctx *c, const char *what, const void *data, size_t size);
enum outcome talk(struct ctx *c); /* is it the canary at the other end? */
bool ping(struct ctx *c, int ms); /* is it our own peer at the other end? */
bool ask(struct ctx *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
void report(struct ctx *c, enum outcome outcome);

/* variants.c, identity.c, obtain.c, serve.c, main.c */
struct variant {
	const char *name;
	const char *what;
	void (*run)(struct ctx *c);
	int origin; /* 0 connect, 1 accept */
	bool mapped;
};
extern const struct variant variants[];
void run_attempt(struct ctx *c);
void finish_inherited(struct ctx *c);
void receive(void) __attribute__((noreturn));
bool become(const char *identity, char *why, size_t size);
extern const char *const identities[];
bool obtain_prepare(char *why, size_t size); /* before identities are taken: listener, orders */
int obtain(int family, int origin, char *why, size_t size);
void serve(void) __attribute__((noreturn));
bool led(void); /* does somebody hold our standard input? */
int guest(const char *chosen, const char *variants_chosen, const char *attempts, bool secure);
uint64_t cookie_of(int fd);
uint64_t netns_cookie(int fd);

#endif
