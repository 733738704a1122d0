/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sendto(), sendmsg(), sendmmsg(): only MSG_FASTOPEN, which is a connect, is
 * looked at. The overlay's own fast open would bypass us; connect, then send.
 */
#include "slim.h"

#include <fcntl.h>
#include <sys/uio.h>

SLIM_DECLARE_REAL(ssize_t, sendto, int, const void *, size_t, int, const struct sockaddr *, socklen_t);
SLIM_DECLARE_REAL(ssize_t, sendmsg, int, const struct msghdr *, int);
#ifdef __GLIBC__
typedef int mmsg_flags_t;
#else
typedef unsigned int mmsg_flags_t;
#endif
SLIM_DECLARE_REAL(int, sendmmsg, int, struct mmsghdr *, unsigned int, mmsg_flags_t);

static bool opens(const struct sockaddr *addr, socklen_t len)
{
	uint8_t raw[16];
	uint16_t port;
	int saved = errno;
	bool ours = slim_from_sockaddr(addr, len, raw, &port) && !slim_is_loopback(raw) &&
		    slim_covers(raw);

	errno = saved;
	return ours;
}

/* On a connected TCP socket an address means nothing; on a tagged one it is refused. */
static bool connected(int fd)
{
	struct slim_slot slot;

	return slim_used(fd) && slim_secure() && slim_get(fd, &slot) && slot.state == SLIM_CONNECTED;
}

SLIM_EXPORT ssize_t sendto(int fd, const void *data, size_t size, int flags, SLIM_CONST_ADDR addr, socklen_t len)
{
	const struct sockaddr *to = SLIM_ADDR_OF(addr);

	if (flags & MSG_FASTOPEN && opens(to, len)) {
		if (slim_connect(fd, to, len) < 0)
			return -1;
		return REAL(sendto)(fd, data, size, flags & ~MSG_FASTOPEN, NULL, 0);
	}
	if (to && connected(fd))
		return REAL(sendto)(fd, data, size, flags, NULL, 0);
	return REAL(sendto)(fd, data, size, flags, to, len);
}

SLIM_EXPORT ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
{
	if (flags & MSG_FASTOPEN && msg && opens(msg->msg_name, msg->msg_namelen)) {
		struct msghdr rest = *msg;

		if (slim_connect(fd, msg->msg_name, msg->msg_namelen) < 0)
			return -1;
		rest.msg_name = NULL;
		rest.msg_namelen = 0;
		return REAL(sendmsg)(fd, &rest, flags & ~MSG_FASTOPEN);
	}
	if (msg && msg->msg_name && connected(fd)) {
		struct msghdr rest = *msg;

		rest.msg_name = NULL;
		rest.msg_namelen = 0;
		return REAL(sendmsg)(fd, &rest, flags);
	}
	return REAL(sendmsg)(fd, msg, flags);
}

SLIM_EXPORT int sendmmsg(int fd, struct mmsghdr *vector, unsigned int count, mmsg_flags_t flags)
{
	if ((int)flags & MSG_FASTOPEN && vector && count &&
	    opens(vector[0].msg_hdr.msg_name, vector[0].msg_hdr.msg_namelen)) {
		ssize_t sent = sendmsg(fd, &vector[0].msg_hdr, (int)flags);

		if (sent < 0)
			return -1;
		vector[0].msg_len = (unsigned int)sent;
		return 1;
	}
	return REAL(sendmmsg)(fd, vector, count, flags);
}
