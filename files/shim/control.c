/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The connection to the worker: a few kept SEQPACKET sockets, each used by one
 * caller at a time, so that threads, signal handlers and forked children never
 * wait for each other.
 */
#include "slim.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

#define DEFAULT_PATH "/run/slim/shim/router.sock"
#define CONTROLS 8 /* the worker is one thread: more would only wait elsewhere */
#define GREET_US 250000 /* a router that starts may take this long to greet */
#define RETRY_US 200000 /* between looks for a router that is not there */
#define CLAIM_US 100000 /* for a message that is not answered */
#define HUNG_US 200000 /* a worker that is silent for so long is hung: */
#define BARRED_REST_US 10000000 /* between looks of a process that secure mode does not serve */
#define HUNG_REST_US 2000000 /* the overlay serves, and is asked for nothing, for this long */
#define BOUND_MAX_US 1000000 /* whatever the worker says */
#define STALE 64 /* late answers that are skipped before we give up */

struct control {
	_Atomic int busy;
	int fd;
	pid_t owner;
	uint64_t cookie;
};

static struct control controls[CONTROLS] = { [0 ... CONTROLS - 1] = { .fd = -1 } };
static _Atomic uint32_t next_seq;
static int door = -1; /* a copy of a connection, inherited by forked children */
static uint64_t door_cookie;
static _Atomic int64_t not_before_us;
static _Atomic int64_t hung_until_us;
static _Atomic int silent_us; /* waited in vain since the last answer */
static _Atomic uint32_t released; /* counts releases while somebody waits */
static _Atomic int waiting;
static _Atomic uint32_t uncounted; /* overlay connections that the worker does not know of */

/* What WELCOME said. Written whole before `welcomed` is set. */
static _Atomic int welcomed;
static _Atomic bool secure; /* once said it stays: sockets may be tagged from then on */
static _Atomic bool barred; /* the last greeting was answered: not you */
static struct slim_prefix prefixes[SLIM_MAX_PREFIXES];
static unsigned int nprefixes;
static uint8_t vip[16];
static uint32_t swap_us = 5000, blocking_swap_us = 10000, reply_us = 20000;

void slim_message(struct slim_msg *msg, uint8_t type)
{
	memset(msg, 0, sizeof(*msg));
	msg->magic = SLIM_MAGIC;
	msg->version = SLIM_VERSION;
	msg->type = type;
	msg->seq = atomic_fetch_add(&next_seq, 1);
}

static int send_message(int fd, const struct slim_msg *msg, const int *fds, int nfds)
{
	struct iovec iov = { (void *)msg, sizeof(*msg) };
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(3 * sizeof(int))];
	} control;
	struct msghdr out = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nfds) {
		memset(&control, 0, sizeof(control));
		out.msg_control = control.room;
		out.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(&control.head), fds, nfds * sizeof(int));
	}
	return sys_sendmsg(fd, &out, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof(*msg) ? 0 : -1;
}

/* Receive one record and at most one descriptor; its length, or -1. */
static ssize_t receive(int fd, void *buffer, size_t size, int *rfd)
{
	struct iovec iov = { buffer, size };
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(4 * sizeof(int))];
	} control;
	struct msghdr in = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.room,
		.msg_controllen = sizeof(control.room),
	};
	ssize_t got = sys_recvmsg(fd, &in, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	*rfd = -1;
	if (got < 0)
		return -1;
	for (struct cmsghdr *head = CMSG_FIRSTHDR(&in); head; head = CMSG_NXTHDR(&in, head)) {
		int count, found;

		if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
			continue;
		count = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		for (int i = 0; i < count; i++) {
			memcpy(&found, CMSG_DATA(head) + i * sizeof(int), sizeof(found));
			if (*rfd < 0)
				*rfd = found;
			else
				sys_close(found);
		}
	}
	return got;
}

static uint32_t bounded(uint32_t bound_us)
{
	return bound_us < BOUND_MAX_US ? bound_us : BOUND_MAX_US;
}

/* A wait in vain. A worker that adds up too many of them is left alone for a while. */
static void note_silence(int waited_us)
{
	if (atomic_fetch_add(&silent_us, waited_us) + waited_us >= HUNG_US) {
		atomic_store(&silent_us, HUNG_US); /* the next vain wait is enough */
		atomic_store(&hung_until_us, slim_now_us() + HUNG_REST_US);
	}
}

/* What greet() says: */
#define GREETED 0
#define TURNED_AWAY (-1) /* an error, a wrong answer, nobody */
#define MUTE (-2) /* it is there, and says nothing */

/*
 * A router that starts may take its time to greet. Who has been greeted before waits no
 * longer than his call may take: it may be the call of an event loop, and a worker that
 * has hung would hold it up with each new connection.
 */
static int greet(int fd, int wait_us)
{
	char raw[sizeof(struct slim_msg) + SLIM_MAX_PREFIXES * sizeof(struct slim_prefix)];
	struct slim_msg msg;
	ssize_t got;
	int extra;

	slim_message(&msg, SLIM_HELLO);
	msg.value = SLIM_VERSION;
	if (send_message(fd, &msg, NULL, 0) < 0)
		return TURNED_AWAY;
	if (wait_us > GREET_US || !atomic_load(&welcomed))
		wait_us = GREET_US;
	if (wait_us < 0)
		wait_us = 0;
	if (sys_poll(fd, POLLIN, wait_us) <= 0) {
		note_silence(wait_us);
		return MUTE;
	}
	got = receive(fd, raw, sizeof(raw), &extra);
	if (extra >= 0)
		sys_close(extra);
	if (got < (ssize_t)sizeof(msg))
		return TURNED_AWAY;
	memcpy(&msg, raw, sizeof(msg));
	if (msg.magic == SLIM_MAGIC && msg.type == SLIM_ERROR && msg.error == EPERM)
		atomic_store(&barred, true);
	if (msg.magic != SLIM_MAGIC || msg.version != SLIM_VERSION || msg.type != SLIM_WELCOME ||
	    msg.count > SLIM_MAX_PREFIXES || got != (ssize_t)(sizeof(msg) + msg.count * sizeof(struct slim_prefix)))
		return TURNED_AWAY;
	if (msg.flags & SLIM_F_SECURE)
		atomic_store(&secure, true);
	if (!atomic_load(&welcomed)) {
		memcpy(prefixes, raw + sizeof(msg), msg.count * sizeof(struct slim_prefix));
		nprefixes = msg.count;
		memcpy(vip, msg.local, sizeof(vip));
		swap_us = bounded((uint32_t)msg.value);
		blocking_swap_us = bounded((uint32_t)(msg.value >> 32));
		reply_us = bounded(msg.error);
		atomic_store(&welcomed, 1);
	}
	return GREETED;
}

/*
 * A new connection through one that we have, our own or our parent's: the only
 * way for a process in a chroot, and the short one for every forked child. JOIN
 * has no answer, so that it may be sent on a connection that others use.
 */
static int join(int wait_us)
{
	struct slim_msg msg;
	int pair[2], outcome;

	if (door < 0 || slim_cookie(door) != door_cookie ||
	    syscall(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return TURNED_AWAY;
	slim_message(&msg, SLIM_JOIN);
	outcome = send_message(door, &msg, &pair[1], 1) == 0 ? GREETED : TURNED_AWAY;
	sys_close(pair[1]);
	if (outcome == GREETED)
		outcome = greet(pair[0], wait_us);
	if (outcome == GREETED)
		return pair[0];
	sys_close(pair[0]);
	return outcome;
}

static _Atomic int door_busy;

/* fd becomes the door, unless another thread is at it. */
static bool keep_door(int fd)
{
	int idle = 0;
	bool kept;

	if (!atomic_compare_exchange_strong(&door_busy, &idle, 1))
		return false;
	if (door >= 0 && slim_cookie(door) == door_cookie)
		slim_unhide(door);
	door_cookie = slim_cookie(fd);
	door = slim_hide(fd);
	kept = door >= 0;
	atomic_store(&door_busy, 0);
	return kept;
}

static char socket_path[sizeof(((struct sockaddr_un *)0)->sun_path)];

/*
 * Read once, while there is one thread: getenv() does not go with setenv(). Not for
 * setuid programs: whoever starts one must not choose the router that serves it.
 */
__attribute__((constructor)) static void read_path(void)
{
	static bool done;
	const char *path;

	if (done)
		return;
	done = true;
	path = secure_getenv("SLIM_SOCKET");
	if (path && strlen(path) < sizeof(socket_path))
		memcpy(socket_path, path, strlen(path));
}

static int dial_path(int wait_us)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct timeval limit = { 0, 200000 };
	int fd;

	read_path(); /* another library's constructor may run before ours */
	memcpy(addr.sun_path, socket_path[0] ? socket_path : DEFAULT_PATH,
	       socket_path[0] ? sizeof(socket_path) : sizeof(DEFAULT_PATH));
	fd = (int)syscall(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	sys_setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (sys_connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || greet(fd, wait_us) != GREETED) {
		sys_close(fd);
		return -1;
	}
	return fd;
}

static int dial(int wait_us)
{
	int fd = join(wait_us), hidden;

	if (fd == MUTE) /* the path leads to the same worker */
		return -1;
	if (fd < 0) {
		fd = dial_path(wait_us);
		if (fd < 0)
			return -1;
		/*
		 * The door is for JOIN alone. Were it a copy of this connection too, closing
		 * this one would not show: see slim_ask, on late answers.
		 */
		if (keep_door(fd)) {
			int own = join(wait_us);

			if (own >= 0) {
				sys_close(fd);
				fd = own;
			}
		}
	}
	hidden = slim_hide(fd);
	sys_close(fd);
	return hidden;
}

/* Is what we kept still there? Programs close descriptors that they do not know. */
static bool kept(struct control *control)
{
	return control->fd >= 0 && control->owner == sys_getpid() && slim_cookie(control->fd) == control->cookie;
}

static void let_go(struct control *control)
{
	if (kept(control))
		slim_unhide(control->fd);
	control->fd = -1;
}

static void unclaim(struct control *control)
{
	atomic_store(&control->busy, 0);
	if (atomic_load(&waiting)) {
		atomic_fetch_add(&released, 1);
		sys_wake(&released);
	}
}

static void report_uncounted(int fd)
{
	uint32_t count = atomic_exchange(&uncounted, 0);
	struct slim_msg msg;

	if (!count)
		return;
	slim_message(&msg, SLIM_CANCEL);
	msg.count = count > 65535 ? 65535 : (uint16_t)count;
	send_message(fd, &msg, NULL, 0);
}

/*
 * A connection to the worker for this caller alone, waiting up to wait_us where
 * all are in use. (A signal handler that interrupts a holder waits in vain, and
 * takes the overlay.)
 */
static struct control *claim(int wait_us)
{
	int64_t end = slim_now_us() + wait_us, start, now;
	struct control *found = NULL;

	while (!found) {
		uint32_t seen = atomic_load(&released);

		for (int i = 0; i < CONTROLS && !found; i++) {
			int idle = 0;

			if (atomic_compare_exchange_strong(&controls[i].busy, &idle, 1))
				found = &controls[i];
		}
		if (!found) {
			int64_t left = end - slim_now_us();

			if (left <= 0)
				return NULL;
			atomic_fetch_add(&waiting, 1);
			sys_wait(&released, seen, left);
			atomic_fetch_sub(&waiting, 1);
		}
	}
	if (kept(found)) {
		report_uncounted(found->fd);
		return found;
	}
	found->fd = -1;
	start = slim_now_us();
	if (start >= atomic_load(&not_before_us)) {
		found->fd = dial((int)(end - start));
		if (found->fd >= 0) {
			found->owner = sys_getpid();
			found->cookie = slim_cookie(found->fd);
			report_uncounted(found->fd);
			return found;
		}
		/* One that takes the connection and does not greet holds up whoever asks. */
		now = slim_now_us();
		atomic_store(&not_before_us, now + (atomic_exchange(&barred, false) ? BARRED_REST_US :
						    now - start < GREET_US / 2      ? RETRY_US :
										      HUNG_REST_US));
	}
	unclaim(found);
	return NULL;
}

/* One that is there and idle; never a new one. */
static struct control *claim_kept(void)
{
	for (int i = 0; i < CONTROLS; i++) {
		int idle = 0;

		if (!atomic_compare_exchange_strong(&controls[i].busy, &idle, 1))
			continue;
		if (kept(&controls[i]))
			return &controls[i];
		unclaim(&controls[i]);
	}
	return NULL;
}

bool slim_control_fd(int fd)
{
	for (int i = 0; i < CONTROLS; i++)
		if (controls[i].fd == fd)
			return true;
	return fd == door;
}

bool slim_secure(void)
{
	return atomic_load_explicit(&secure, memory_order_relaxed);
}

bool slim_ready(void)
{
	struct control *control;
	int saved = errno;

	if (slim_foreign_process() || slim_now_us() < atomic_load(&hung_until_us))
		return false;
	control = claim(CLAIM_US);
	if (control)
		unclaim(control);
	errno = saved;
	return control != NULL;
}

int slim_ask(struct slim_msg *msg, const int *fds, int nfds, const uint8_t types[SLIM_ANSWERS],
	     struct slim_msg *reply, int *rfd, int timeout_us)
{
	int64_t end = slim_now_us() + timeout_us; /* of everything: an event loop may be waiting */

	*rfd = -1;
	if (slim_foreign_process() || slim_now_us() < atomic_load(&hung_until_us)) {
		errno = ECONNREFUSED;
		return -1;
	}
	/* A kept connection may have died with its router: try a new one once. */
	for (int attempt = 0; attempt < 2; attempt++) {
		struct control *control = claim((int)(end - slim_now_us()));

		if (!control)
			break;
		if (send_message(control->fd, msg, fds, nfds) < 0)
			goto gone;
		for (int i = 0; i < STALE; i++) {
			int64_t left = end - slim_now_us();
			ssize_t got;

			if (left <= 0 || sys_poll(control->fd, POLLIN, (int)left) <= 0) {
				note_silence(timeout_us);
				/* Closing it tells the worker that nobody takes the late answer. */
				let_go(control);
				unclaim(control);
				errno = ETIMEDOUT;
				return -1;
			}
			got = receive(control->fd, reply, sizeof(*reply), rfd);
			if (got == 0 || (got < 0 && errno != EAGAIN))
				goto gone;
			if (got == (ssize_t)sizeof(*reply) && reply->magic == SLIM_MAGIC &&
			    reply->version == SLIM_VERSION && reply->seq == msg->seq) {
				unclaim(control);
				atomic_store(&silent_us, 0);
				if (reply->type && memchr(types, reply->type, SLIM_ANSWERS))
					return 0;
				if (*rfd >= 0)
					sys_close(*rfd);
				*rfd = -1;
				errno = reply->type == SLIM_ERROR && reply->error ? (int)reply->error : EPROTO;
				return -1;
			}
			if (*rfd >= 0) /* a late answer to an earlier question */
				sys_close(*rfd);
			*rfd = -1;
		}
gone:
		if (*rfd >= 0)
			sys_close(*rfd);
		*rfd = -1;
		let_go(control);
		unclaim(control);
	}
	errno = ECONNREFUSED;
	return -1;
}

/*
 * What is not answered is not worth waiting for a greeting of a worker that has just been
 * silent: it learns from the connection that we closed.
 */
void slim_tell(struct slim_msg *msg)
{
	struct control *control;
	int saved = errno;

	if (!slim_foreign_process() && (control = atomic_load(&silent_us) ? claim_kept() : claim(CLAIM_US))) {
		if (send_message(control->fd, msg, NULL, 0) < 0)
			let_go(control);
		unclaim(control);
	}
	errno = saved;
}

/* The worker counts for us, once there is one again. */
void slim_uncounted(void)
{
	atomic_fetch_add(&uncounted, 1);
}

bool slim_sync(int timeout_us)
{
	struct slim_msg ask, reply;
	int extra, saved = errno;
	bool done;

	slim_message(&ask, SLIM_SYNC);
	done = slim_ask(&ask, NULL, 0, (uint8_t[SLIM_ANSWERS]){ SLIM_SYNCED }, &reply, &extra, timeout_us) == 0;
	if (done && extra >= 0)
		sys_close(extra);
	errno = saved;
	return done;
}

/* The parent's connections are not ours; other threads' claims died with them. */
void slim_control_fork_child(void)
{
	for (int i = 0; i < CONTROLS; i++) {
		if (controls[i].fd >= 0 && slim_cookie(controls[i].fd) == controls[i].cookie)
			slim_unhide(controls[i].fd);
		controls[i].fd = -1;
		atomic_store(&controls[i].busy, 0);
	}
	atomic_store(&waiting, 0);
	atomic_store(&door_busy, 0);
}

bool slim_on_overlay(const uint8_t addr[16])
{
	if (!atomic_load(&welcomed))
		return false;
	for (unsigned int i = 0; i < nprefixes; i++) {
		unsigned int bits = prefixes[i].bits > 128 ? 128 : prefixes[i].bits;
		unsigned int bytes = bits / 8, rest = bits % 8;

		if (memcmp(addr, prefixes[i].addr, bytes) == 0 &&
		    (!rest || ((addr[bytes] ^ prefixes[i].addr[bytes]) >> (8 - rest)) == 0))
			return true;
	}
	return false;
}

bool slim_covers(const uint8_t addr[16])
{
	/* Once it is known what the overlay is, the rest costs no look for a router. */
	return (atomic_load(&welcomed) || slim_ready()) && slim_on_overlay(addr);
}

const uint8_t *slim_vip(void)
{
	return vip;
}

/* Of the network namespace that we are in; 0: not known. */
uint64_t slim_own_netns(void)
{
	static _Atomic uint64_t known;
	uint64_t cookie = atomic_load(&known);
	socklen_t len = sizeof(cookie);
	int fd;

	if (!cookie && (fd = (int)syscall(SYS_socket, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)) >= 0) {
		if (sys_getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &len) < 0)
			cookie = 0;
		sys_close(fd);
		atomic_store(&known, cookie);
	}
	return cookie;
}

int slim_bound_us(bool blocking)
{
	return (int)(blocking ? blocking_swap_us : swap_us);
}

int slim_reply_us(void)
{
	return (int)reply_us;
}
