/* SPDX-License-Identifier: Apache-2.0 */
/* getsockname(), getpeername(): virtual addresses for what runs over Slim. */
#include "slim.h"

#include <netinet/tcp.h>

static bool known(int fd, struct slim_slot *slot)
{
	return (slim_used(fd) && slim_get(fd, slot) && slot->state != SLIM_FRESH) || slim_adopt(fd, slot);
}

static int give(const uint8_t addr[16], uint16_t port, int family, struct sockaddr *out, socklen_t *len)
{
	if (!out || !len) {
		errno = EFAULT;
		return -1;
	}
	if ((int)*len < 0) {
		errno = EINVAL;
		return -1;
	}
	slim_to_sockaddr(addr, port, family, out, len);
	return 0;
}

/* Has it a peer, as inet_getname (net/ipv4/af_inet.c) sees it? */
static bool has_peer(int fd)
{
	struct sockaddr_storage real;
	char info[256];
	socklen_t len = sizeof(real);

	if (!slim_secure())
		return sys_getpeername(fd, (struct sockaddr *)&real, &len) == 0;
	/* A tagged socket does not tell the name, but its state, which is the first byte. */
	len = sizeof(info);
	if (sys_getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &len) < 0)
		return false;
	if (info[0] == TCP_CLOSE || info[0] == TCP_SYN_SENT) {
		errno = ENOTCONN;
		return false;
	}
	return true;
}

SLIM_EXPORT int getsockname(int fd, SLIM_ADDR addr, socklen_t *restrict len)
{
	struct sockaddr *out = SLIM_ADDR_OF(addr);
	struct slim_slot slot;

	if (known(fd, &slot)) {
		/* (a warm one whose outcome another thread looks at has an overlay socket beside it) */
		if (slot.state == SLIM_CONNECTED || slot.state == SLIM_PENDING_WARM ||
		    (slot.state == SLIM_RESOLVING && slot.hidden >= 0) || (slot.state == SLIM_LISTENER && slot.hidden < 0))
			return give(slot.local, slot.lport, slot.family, out, len);
		if (slot.state == SLIM_LISTENER)
			return sys_getsockname(slot.hidden, out, len);
	}
	return sys_getsockname(fd, out, len);
}

SLIM_EXPORT int getpeername(int fd, SLIM_ADDR addr, socklen_t *restrict len)
{
	struct sockaddr *out = SLIM_ADDR_OF(addr);
	struct slim_slot slot;

	if (known(fd, &slot)) {
		if (slot.state == SLIM_PENDING_COLD || slot.state == SLIM_PENDING_WARM) {
			enum slim_outcome outcome = slim_resolve(fd, slim_now_us() + slim_bound_us(false), false);

			if (outcome != SLIM_DONE) {
				errno = ENOTCONN;
				return -1;
			}
			if (!slim_get(fd, &slot))
				return sys_getpeername(fd, out, len);
		}
		if (slot.state == SLIM_CONNECTED) {
			/* Shut down and gone counts as the kernel says. */
			if (!has_peer(fd))
				return -1;
			return give(slot.peer, slot.pport, slot.family, out, len);
		}
		if (slot.state == SLIM_LISTENER) {
			errno = ENOTCONN;
			return -1;
		}
	}
	return sys_getpeername(fd, out, len);
}
