/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SlimSocket's insides: the table of sockets by file descriptor, the connection
 * to the worker, and what the intercepted calls share.
 *
 * Rules that hold in every file: nothing here allocates with malloc or takes a
 * lock that a signal handler, a fork or a vfork child could meet; our own work
 * is done with plain system calls (sys_*), so that it never meets our own
 * interceptions and needs no symbol newer than GLIBC_2.17.
 */
#ifndef SLIM_H
#define SLIM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>

#include "wire.h"

#define SLIM_EXPORT __attribute__((visibility("default")))

/* glibc declares socket addresses as transparent unions under _GNU_SOURCE. */
#ifdef __GLIBC__
#define SLIM_ADDR __SOCKADDR_ARG
#define SLIM_CONST_ADDR __CONST_SOCKADDR_ARG
#define SLIM_ADDR_OF(arg) ((arg).__sockaddr__)
#else
#define SLIM_ADDR struct sockaddr *restrict
#define SLIM_CONST_ADDR const struct sockaddr *
#define SLIM_ADDR_OF(arg) (arg)
#endif

/* --- libc.c: the calls below us ------------------------------------------ */
void *slim_real(const char *name, _Atomic(void *) *cache);

/* REAL(poll) is the next definition of poll, looked up once. */
#define SLIM_DECLARE_REAL(ret, name, ...)                                      \
	typedef ret (*slim_##name##_t)(__VA_ARGS__);                           \
	static _Atomic(void *) slim_##name##_cache
#define REAL(name) ((slim_##name##_t)slim_real(#name, &slim_##name##_cache))

void sys_wait(_Atomic uint32_t *word, uint32_t seen, int64_t timeout_us);
void sys_wake(_Atomic uint32_t *word);
int sys_close(int fd);
int sys_dup3(int fd, int to, int flags);
int sys_fcntl(int fd, int cmd, long arg);
int sys_getsockopt(int fd, int level, int name, void *value, socklen_t *len);
int sys_setsockopt(int fd, int level, int name, const void *value, socklen_t len);
int sys_getsockname(int fd, struct sockaddr *addr, socklen_t *len);
int sys_getpeername(int fd, struct sockaddr *addr, socklen_t *len);
int sys_connect(int fd, const struct sockaddr *addr, socklen_t len);
int sys_poll(int fd, short events, int timeout_us);
ssize_t sys_sendmsg(int fd, const struct msghdr *msg, int flags);
ssize_t sys_recvmsg(int fd, struct msghdr *msg, int flags);
int sys_epoll_ctl(int epfd, int op, int fd, struct epoll_event *event);
pid_t sys_getpid(void);
int64_t slim_now_us(void);

/* --- registry.c: what we know of a file descriptor ------------------------ */
enum slim_state {
	SLIM_FREE = 0,
	SLIM_FRESH,	/* a TCP socket that is not connected yet */
	SLIM_PENDING_COLD, /* overlay connect under way, attempt at the worker */
	SLIM_PENDING_WARM, /* host connection's handshake under way */
	SLIM_RESOLVING, /* one thread is looking at a pending one */
	SLIM_FAILED,	/* the overlay connect after a failed warm one failed at once */
	SLIM_CONNECTED, /* a host connection */
	SLIM_LISTENER,	/* an accept channel */
	SLIM_PLAIN_LISTENER, /* an overlay listener without a channel */
};

#define SLIM_S_BOUND 1	/* bind() was called */
#define SLIM_S_DUPPED 2 /* there are other descriptors of the same socket */
#define SLIM_S_MODIFIED 4 /* regs name the sets; what they were last told, the kernel knows */
#define SLIM_REGS 4
#define SLIM_TOLD 8 /* options that secure mode answers from here (carry.c) */

struct slim_reg {
	int epfd;
	uint32_t events;
	uint64_t data;
};

struct slim_slot {
	_Atomic uint32_t seq; /* odd while somebody writes */
	uint8_t state;
	uint8_t flags;
	uint8_t nregs;
	uint8_t error;
	uint16_t family; /* as the application opened it */
	uint16_t lport;
	uint16_t pport;
	uint16_t protocol;
	uint32_t generation; /* of fork(), when the socket was opened */
	int hidden; /* the overlay's socket, kept beside the one in use */
	uint64_t cookie; /* SO_COOKIE of the socket under the descriptor */
	uint64_t attempt; /* the worker's number for a cold connect */
	uint64_t options; /* bits of carry.c's table: options that were set */
	int32_t told[SLIM_TOLD]; /* secure mode: what was set of the options that the kernel refuses */
	uint8_t told_set; /* which of them */
	uint8_t local[16];
	uint8_t peer[16];
	int64_t retry_us; /* next time that a plain listener asks for a channel */
	struct slim_reg regs[SLIM_REGS];
};

extern _Atomic uint32_t slim_generation;
bool slim_used(int fd);
bool slim_get(int fd, struct slim_slot *out); /* only if still the same socket */
bool slim_peek(int fd, struct slim_slot *out); /* without asking the kernel */
void slim_put(int fd, const struct slim_slot *in);
void slim_clear(int fd);
bool slim_claim(int fd, uint8_t from, uint8_t to); /* state change by one thread */
int slim_highest(void);
bool slim_foreign_process(void); /* a vfork child: the table is its parent's */
void slim_registry_fork_child(void);
uint64_t slim_cookie(int fd);

int slim_hide(int fd); /* a protected copy, out of the application's way */
void slim_unhide(int fd); /* close one */
bool slim_hidden(int fd);
int slim_move_hidden(int fd); /* make room at this number */

/* --- control.c: the worker ------------------------------------------------- */
bool slim_ready(void); /* a worker answers; tried again now and then */
bool slim_on_overlay(const uint8_t addr[16]);
bool slim_covers(const uint8_t addr[16]); /* the same, asking a worker if none has been met */
const uint8_t *slim_vip(void);
uint64_t slim_own_netns(void);
int slim_bound_us(bool blocking);
int slim_reply_us(void);
#define SLIM_ANSWERS 4
/* Ask and wait for an answer of one of these types; 0, or -1 with errno. A descriptor in it goes to *rfd. */
int slim_ask(struct slim_msg *msg, const int *fds, int nfds, const uint8_t types[SLIM_ANSWERS],
	     struct slim_msg *reply, int *rfd, int timeout_us);
void slim_tell(struct slim_msg *msg); /* no answer expected */
void slim_uncounted(void); /* a connection took the overlay without an answer */
#define SLIM_SYNC_US 50000 /* what closing a listener may take */
bool slim_sync(int timeout_us); /* the worker has seen all that came before */
void slim_message(struct slim_msg *msg, uint8_t type);
void slim_control_fork_child(void);
bool slim_control_fd(int fd);
bool slim_secure(void); /* host sockets are tagged: the kernel refuses most options */

/* --- address.c --------------------------------------------------------------- */
bool slim_from_sockaddr(const struct sockaddr *addr, socklen_t len, uint8_t out[16], uint16_t *port);
void slim_to_sockaddr(const uint8_t addr[16], uint16_t port, int family, struct sockaddr *out, socklen_t *len);
socklen_t slim_make_sockaddr(const uint8_t addr[16], uint16_t port, int family, struct sockaddr_storage *out);
bool slim_is_loopback(const uint8_t addr[16]);
bool slim_is_any(const uint8_t addr[16]);

/* --- carry.c: options and descriptors, from one socket to its successor ------ */
uint64_t slim_option_bit(int level, int name); /* 0: none of our business */
#define SLIM_OPTION_OVERLAY (1ULL << 63) /* makes sense on the overlay only */
bool slim_stays(uint64_t options); /* such a connection must stay on the overlay */
bool slim_harmless(int level, int name); /* secure mode: the kernel refuses it, and nobody minds */
int slim_told(int level, int name); /* index in slot.told, or -1 */
/* To a host socket; what it must not be given is remembered in slot.told. */
void slim_carry_options(int from, int to, struct slim_slot *slot, uint64_t options);
int slim_replace(int fd, int with, struct slim_slot *slot, uint64_t was); /* keep flags, epoll sets, copies */
void slim_saw_epoll(int epfd);

/* --- pending.c: connects that are under way ---------------------------------- */
enum slim_outcome {
	SLIM_NOT_YET, /* the connect is under way */
	SLIM_DONE,
	SLIM_FELL_BACK, /* a warm one failed, the overlay's is under way */
	SLIM_LATER, /* complete on the overlay, and no time left to look further */
};
extern _Atomic int slim_pending;
bool slim_pending_add(int fd);
void slim_pending_drop(int fd);
int slim_pending_at(int index); /* fd or -1 */
#define SLIM_PENDING_MAX 1024
enum slim_outcome slim_resolve(int fd, int64_t deadline_us, bool spare);
int64_t slim_deadline(bool alone, int64_t wait_us);
bool slim_reset_after_handshake(int fd); /* an error is pending, and it came later */
int slim_keep_port(int fd, const struct slim_slot *slot);
bool slim_swap(int fd, struct slim_slot *slot, int bound_us);
void slim_pending_fork_child(void);

/* --- close.c ------------------------------------------------------------------- */
void slim_release(int fd, bool closing); /* drop what a slot owns, then clear it */

/* --- listen.c ------------------------------------------------------------------ */
bool slim_attach(int fd, int backlog, bool recover);
bool slim_adopt(int fd, struct slim_slot *out); /* ask the worker who this is */
void slim_listener_lost(int fd, struct slim_slot *slot);

/* --- connect.c ------------------------------------------------------------------ */
int slim_connect(int fd, const struct sockaddr *addr, socklen_t len);

/* --- exec.c ------------------------------------------------------------------ */
void slim_exec_init(void);

#endif
