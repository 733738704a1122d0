/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listen(): the overlay listener goes to the worker, an accept channel comes
 * under the application's descriptor. A hidden copy of the overlay listener
 * stays with us: it answers for the listener, and takes its place back if the
 * channel ends for good.
 */
#include "slim.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#define ASK_US 1000000
#define AGAIN_US 1000000 /* a listener without a channel asks this often */

static bool tcp_listener(int fd, uint8_t addr[16], uint16_t *port, int *family)
{
	struct sockaddr_storage name;
	int protocol = 0, listening = 0;
	socklen_t len = sizeof(protocol);

	if (sys_getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &len) < 0 || protocol != IPPROTO_TCP)
		return false;
	len = sizeof(listening);
	if (sys_getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) < 0 || !listening)
		return false;
	len = sizeof(name);
	if (sys_getsockname(fd, (struct sockaddr *)&name, &len) < 0)
		return false;
	*family = name.ss_family;
	return slim_from_sockaddr((struct sockaddr *)&name, len, addr, port);
}

/*
 * A listener is never writable, a fresh channel is: a loop that asks for both
 * would spin. Our end gets the smallest send buffer there is, and one message,
 * which the worker never reads, that fills it (unix_writable, net/unix/af_unix.c).
 */
static void deaden(int channel)
{
	static char filler[2048];
	struct iovec iov = { filler, sizeof(filler) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	int least = 1;

	sys_setsockopt(channel, SOL_SOCKET, SO_SNDBUF, &least, sizeof(least));
	sys_sendmsg(channel, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/*
 * Give `listener` (under fd, or hidden beside it) to the worker and put a
 * channel under fd. False: nothing has changed.
 */
static bool attach(int fd, int listener, struct slim_slot *slot, int backlog, bool recover)
{
	struct slim_msg ask, reply;
	int pair[2], fds[3], shared = -1, hidden, flags;
	struct timeval limit;
	socklen_t len = sizeof(limit);
	uint64_t was = slim_cookie(fd);

	if (syscall(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return false;
	/* Before the worker makes its copy of the listener, the same file, non-blocking. */
	flags = sys_fcntl(fd, F_GETFL, 0);
	deaden(pair[0]);
	slim_message(&ask, SLIM_LISTEN);
	memcpy(ask.local, slot->local, 16);
	ask.lport = slot->lport;
	ask.family = slot->family;
	ask.value = backlog < 0 || backlog > 65535 ? 65535 : (uint64_t)backlog;
	ask.cookie = slim_cookie(pair[0]);
	ask.flags = recover ? SLIM_F_RECOVER : 0;
	fds[0] = listener;
	fds[1] = pair[1];
	fds[2] = pair[0];
	if (slim_ask(&ask, fds, recover ? 3 : 2, (uint8_t[SLIM_ANSWERS]){ SLIM_LISTENING }, &reply, &shared,
		     ASK_US) < 0) {
		sys_close(pair[0]);
		sys_close(pair[1]);
		goto as_it_was;
	}
	sys_close(pair[1]);
	if (shared >= 0) { /* another process of ours was first: the same channel */
		sys_close(pair[0]);
		pair[0] = shared;
	}
	hidden = listener == fd ? slim_hide(fd) : listener;
	if (hidden < 0) {
		sys_close(pair[0]); /* the worker sees the end of it */
		goto as_it_was;
	}
	if (flags & O_NONBLOCK)
		sys_fcntl(pair[0], F_SETFL, flags);
	if (sys_getsockopt(hidden, SOL_SOCKET, SO_RCVTIMEO, &limit, &len) == 0 && (limit.tv_sec || limit.tv_usec))
		sys_setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, len);
	slot->state = SLIM_LISTENER;
	slot->hidden = hidden;
	slot->cookie = slim_cookie(pair[0]);
	if (slim_replace(fd, pair[0], slot, was) < 0) {
		slim_unhide(hidden);
		return true; /* closed by another thread meanwhile */
	}
	slim_put(fd, slot);
	return true;
as_it_was:
	/* The worker has made the listener, the same file, non-blocking. */
	if (listener == fd)
		sys_fcntl(fd, F_SETFL, flags);
	return false;
}

bool slim_attach(int fd, int backlog, bool recover)
{
	struct slim_slot slot;
	int family, saved = errno;
	bool done;

	if (!slim_peek(fd, &slot))
		memset(&slot, 0, sizeof(slot));
	if (!tcp_listener(fd, slot.local, &slot.lport, &family) || slim_is_loopback(slot.local) ||
	    slim_stays(slot.options) ||
	    (!slim_is_any(slot.local) && slim_ready() && !slim_on_overlay(slot.local))) {
		errno = saved;
		return false;
	}
	slot.family = (uint16_t)family;
	slot.hidden = -1;
	done = slim_ready() && !slim_stays(slot.options) && attach(fd, fd, &slot, backlog, recover);
	if (!done) {
		slot.state = SLIM_PLAIN_LISTENER;
		slot.cookie = slim_cookie(fd);
		slot.error = 0;
		slot.attempt = (uint64_t)backlog;
		slot.retry_us = slim_now_us() + AGAIN_US;
		slim_put(fd, &slot);
	}
	errno = saved;
	return done;
}

/* The channel has ended: a new worker, or the overlay listener itself. */
void slim_listener_lost(int fd, struct slim_slot *slot)
{
	int hidden = slot->hidden;
	uint64_t was = slot->cookie;

	if (slim_ready() && attach(fd, hidden, slot, 4096, true))
		return;
	sys_fcntl(hidden, F_SETFL, sys_fcntl(fd, F_GETFL, 0));
	slot->state = SLIM_PLAIN_LISTENER;
	slot->cookie = slim_cookie(hidden);
	slot->hidden = -1;
	slot->attempt = 4096;
	slot->retry_us = slim_now_us() + AGAIN_US;
	if (slim_replace(fd, hidden, slot, was) == 0)
		slim_put(fd, slot);
}

/*
 * A socket that this process has inherited (exec) or been sent (SCM_RIGHTS):
 * the worker knows whose it is. Only sockets that can be ours are asked about:
 * a SEQPACKET socket without a name, or one of another network namespace.
 */
bool slim_adopt(int fd, struct slim_slot *out)
{
	struct slim_msg ask, reply;
	int type = 0, domain = 0, given = -1, saved = errno;
	socklen_t len = sizeof(domain);
	uint64_t netns = 0;

	/* (not getsockname: a tagged socket does not tell it) */
	if (sys_getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0)
		goto no;
	if (domain == AF_UNIX) {
		len = sizeof(type);
		if (sys_getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_SEQPACKET)
			goto no;
		if (!slim_ready())
			goto no;
	} else if (domain == AF_INET || domain == AF_INET6) {
		/* Most sockets are the container's own: they are done with here. */
		len = sizeof(netns);
		if (sys_getsockopt(fd, SOL_SOCKET, 71 /* SO_NETNS_COOKIE */, &netns, &len) < 0 ||
		    netns == slim_own_netns() || !slim_ready())
			goto no;
	} else {
		goto no;
	}
	slim_message(&ask, SLIM_WHO);
	ask.cookie = slim_cookie(fd);
	if (slim_ask(&ask, NULL, 0, (uint8_t[SLIM_ANSWERS]){ SLIM_NAMES }, &reply, &given, ASK_US) < 0)
		goto no;
	if (reply.error) {
		if (given >= 0)
			sys_close(given);
		goto no;
	}
	memset(out, 0, sizeof(*out));
	out->cookie = ask.cookie;
	out->hidden = -1;
	memcpy(out->local, reply.local, 16);
	memcpy(out->peer, reply.peer, 16);
	out->lport = reply.lport;
	out->pport = reply.pport;
	if (reply.flags & SLIM_F_LISTENER) {
		int family = 0;

		len = sizeof(family);
		sys_getsockopt(given, SOL_SOCKET, SO_DOMAIN, &family, &len);
		out->family = (uint16_t)family;
		out->state = SLIM_LISTENER;
		out->hidden = given >= 0 ? slim_hide(given) : -1;
		if (given >= 0)
			sys_close(given);
		if (out->hidden < 0)
			goto no;
	} else {
		if (given >= 0)
			sys_close(given);
		/* an accepted host socket's own family need not be the listener's */
		out->family = reply.family ? reply.family : (uint16_t)domain;
		out->state = SLIM_CONNECTED;
	}
	slim_put(fd, out);
	errno = saved;
	return true;
no:
	errno = saved;
	return false;
}

SLIM_EXPORT int listen(int fd, int backlog)
{
	struct slim_slot slot;

	if (slim_get(fd, &slot) && slot.state == SLIM_LISTENER) {
		int listening = 0;
		socklen_t len = sizeof(listening);

		/*
		 * After shutdown(): a worker that has not let go of it yet would take what
		 * comes for the channel that has ended, and reset it.
		 */
		if (sys_getsockopt(slot.hidden, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) == 0 && !listening &&
		    !slim_foreign_process())
			slim_sync(ASK_US);
		return (int)syscall(SYS_listen, slot.hidden, backlog);
	}
	if (syscall(SYS_listen, fd, backlog) < 0) {
		if (errno == EPERM && slim_used(fd) && slim_get(fd, &slot) && slot.state == SLIM_CONNECTED)
			errno = EINVAL; /* connected; a tagged socket says it its own way */
		return -1;
	}
	if (!slim_foreign_process())
		slim_attach(fd, backlog, false);
	return 0;
}
