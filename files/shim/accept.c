/* SPDX-License-Identifier: Apache-2.0 */
/* accept(), accept4(): one message from the accept channel is one connection. */
#include "slim.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

SLIM_DECLARE_REAL(int, accept, int, struct sockaddr *, socklen_t *);
SLIM_DECLARE_REAL(int, accept4, int, struct sockaddr *, socklen_t *, int);
SLIM_DECLARE_REAL(ssize_t, recvmsg, int, struct msghdr *, int);

static void fill(int fd, const struct slim_msg *msg, const struct slim_slot *listener, struct sockaddr *addr,
		 socklen_t *len, int flags)
{
	static const struct linger off;
	struct slim_slot slot;
	uint64_t options = listener->options;

	memset(&slot, 0, sizeof(slot));
	/* Queued connections are set to be reset if nobody comes for them. */
	sys_setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof(off));
	/* What came over the overlay has inherited them, all but the one that we set. */
	if (msg->flags & SLIM_F_OVERLAY)
		options &= slim_option_bit(SOL_SOCKET, SO_LINGER);
	if (options)
		slim_carry_options(listener->hidden, fd, &slot, options);
	if (flags & SOCK_NONBLOCK)
		sys_fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK);
	if (msg->flags & SLIM_F_OVERLAY) {
		slim_release(fd, false);
	} else {
		slot.state = SLIM_CONNECTED;
		slot.family = listener->family;
		slot.hidden = -1;
		slot.cookie = msg->cookie;
		slot.lport = msg->lport;
		slot.pport = msg->pport;
		memcpy(slot.local, msg->local, 16);
		memcpy(slot.peer, msg->peer, 16);
		slim_put(fd, &slot);
	}
	if (addr && len)
		slim_to_sockaddr(msg->peer, msg->pport, listener->family, addr, len);
}

/* A new descriptor, -1 with errno, or -2: the channel has ended. */
static int from_channel(int fd, const struct slim_slot *listener, struct sockaddr *addr, socklen_t *len, int flags)
{
	struct slim_msg msg;
	struct iovec iov = { &msg, sizeof(msg) };
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct msghdr in = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.room };
	int fresh;
	ssize_t got;

	do {
		/* Without a free descriptor the message would be lost: look first. */
		fresh = sys_fcntl(fd, F_DUPFD_CLOEXEC, 0);
		if (fresh < 0) {
			if (errno == EINVAL)
				errno = EMFILE;
			return -1;
		}
		sys_close(fresh);
		in.msg_controllen = CMSG_LEN(sizeof(int)); /* one descriptor, not what padding has room for */
		in.msg_flags = 0;
		got = REAL(recvmsg)(fd, &in, flags & SOCK_CLOEXEC ? MSG_CMSG_CLOEXEC : 0);
		/*
		 * A worker that dies leaves our filler unread, which resets the pair. The kernel
		 * says so once, and then gives what the worker had delivered before: its clients
		 * have been told that they are connected.
		 */
		if (got < 0 && errno == ECONNRESET) {
			fresh = -1;
			continue;
		}
		if (got == 0)
			return -2;
		if (got < 0)
			return -1;
		if (in.msg_flags & MSG_CTRUNC && in.msg_controllen < sizeof(struct cmsghdr)) {
			/* Another thread took the last one: the kernel has reset the connection. */
			errno = EMFILE;
			return -1;
		}
		fresh = -1;
		if (in.msg_controllen >= CMSG_LEN(sizeof(int)) && control.head.cmsg_level == SOL_SOCKET &&
		    control.head.cmsg_type == SCM_RIGHTS)
			memcpy(&fresh, CMSG_DATA(&control.head), sizeof(fresh));
		if (fresh >= 0 && (got != (ssize_t)sizeof(msg) || msg.magic != SLIM_MAGIC ||
				   msg.version != SLIM_VERSION || msg.type != SLIM_ACCEPTED)) {
			sys_close(fresh);
			fresh = -1;
		}
	} while (fresh < 0);
	fill(fresh, &msg, listener, addr, len, flags);
	return fresh;
}

/*
 * The overlay's listener has given us a connection that no worker knows of. One that is
 * there again takes the listener, and looks for what it has not been asked about.
 */
static void unasked(int fd, const struct slim_slot *slot)
{
	slim_uncounted();
	if (slim_ready() && slim_now_us() >= slot->retry_us)
		slim_attach(fd, (int)slot->attempt, true);
}

static int accept_any(int fd, struct sockaddr *addr, socklen_t *len, int flags, bool old)
{
	struct slim_slot slot;
	int got;

	for (;;) {
		bool known = slim_used(fd) && slim_get(fd, &slot);

		if (known && slot.state == SLIM_RESOLVING && slot.hidden >= 0) {
			sys_poll(-1, 0, 1000); /* another thread is changing its channel */
			continue;
		}
		if (known && slot.state == SLIM_PLAIN_LISTENER && slim_now_us() >= slot.retry_us &&
		    !slim_foreign_process() && slim_attach(fd, (int)slot.attempt, true))
			continue;
		if (!known || slot.state != SLIM_LISTENER) {
			got = old ? REAL(accept)(fd, addr, len) : REAL(accept4)(fd, addr, len, flags);
			if (got >= 0) {
				slim_release(got, false);
				if (known && slot.state == SLIM_PLAIN_LISTENER)
					unasked(fd, &slot);
			} else if (known && slot.state == SLIM_CONNECTED && errno == EPERM) {
				errno = EINVAL; /* it does not listen; the tag has it its own way */
			}
			/* A channel that came by exec or SCM_RIGHTS is not in the table. */
			if (got < 0 && !known && (errno == EINVAL || errno == EOPNOTSUPP) && slim_adopt(fd, &slot) &&
			    slot.state == SLIM_LISTENER)
				continue;
			return got;
		}
		if (flags & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)) {
			errno = EINVAL;
			return -1;
		}
		if (addr && !len) {
			errno = EFAULT;
			return -1;
		}
		if (addr && (int)*len < 0) {
			errno = EINVAL;
			return -1;
		}
		got = from_channel(fd, &slot, addr, len, flags);
		if (got != -2)
			return got;
		/* Of several threads that see the end of it, one looks after it. */
		if (!slim_claim(fd, SLIM_LISTENER, SLIM_RESOLVING))
			continue;
		int listening = 0;
		socklen_t size = sizeof(listening);

		if (sys_getsockopt(slot.hidden, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0 || !listening) {
			slim_claim(fd, SLIM_RESOLVING, SLIM_LISTENER);
			errno = EINVAL; /* shut down */
			return -1;
		}
		slim_listener_lost(fd, &slot);
	}
}

SLIM_EXPORT int accept(int fd, SLIM_ADDR addr, socklen_t *restrict len)
{
	return accept_any(fd, SLIM_ADDR_OF(addr), len, 0, true);
}

SLIM_EXPORT int accept4(int fd, SLIM_ADDR addr, socklen_t *restrict len, int flags)
{
	return accept_any(fd, SLIM_ADDR_OF(addr), len, flags, false);
}
