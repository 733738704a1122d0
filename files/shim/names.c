/* SPDX-License-Identifier: Apache-2.0 */
/* getsockname(), getpeername(): virtual addresses for what runs over Slim. */
#include "slim.h"

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
			struct sockaddr_storage real;
			socklen_t size = sizeof(real);

			/* Shut down and gone counts as the kernel says. */
			if (sys_getpeername(fd, (struct sockaddr *)&real, &size) < 0)
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
