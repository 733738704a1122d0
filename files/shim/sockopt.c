/* SPDX-License-Identifier: Apache-2.0 */
/* getsockopt(), setsockopt(): listeners answer as listeners; what is set is remembered. */
#include "slim.h"

#include <netinet/tcp.h>

SLIM_EXPORT int getsockopt(int fd, int level, int name, void *restrict value, socklen_t *restrict len)
{
	struct slim_slot slot;

	if (!slim_used(fd) || !slim_get(fd, &slot)) {
		/* What a program asks of a descriptor that it was given (socket activation). */
		if (level != SOL_SOCKET || (name != SO_TYPE && name != SO_DOMAIN && name != SO_PROTOCOL && name != SO_ACCEPTCONN) ||
		    !slim_adopt(fd, &slot))
			return sys_getsockopt(fd, level, name, value, len);
	}
	if (slot.state == SLIM_LISTENER) {
		if (level == SOL_SOCKET && name == SO_COOKIE)
			return sys_getsockopt(fd, level, name, value, len);
		return sys_getsockopt(slot.hidden, level, name, value, len);
	}
	if (level == SOL_SOCKET && name == SO_ERROR && value && len && *len >= sizeof(int)) {
		if (slot.state == SLIM_PENDING_COLD || slot.state == SLIM_PENDING_WARM) {
			if (slim_resolve(fd, slim_now_us() + slim_bound_us(false), false) == SLIM_FELL_BACK) {
				/* The caller was told by other means that it is done: it is not. */
				sys_poll(fd, POLLOUT, 1000000);
				if (!slim_get(fd, &slot))
					slot.state = SLIM_FREE;
			}
		}
		if (slot.state == SLIM_FAILED) {
			int error = slot.error;

			slot.state = SLIM_FRESH;
			slot.cookie = 0;
			slim_put(fd, &slot);
			memcpy(value, &error, sizeof(error));
			*len = sizeof(error);
			return 0;
		}
	}
	if (level == SOL_SOCKET && name == SO_DOMAIN && slot.state == SLIM_CONNECTED && value && len &&
	    *len >= sizeof(int)) {
		int family = slot.family;

		memcpy(value, &family, sizeof(family));
		*len = sizeof(family);
		return 0;
	}
	return sys_getsockopt(fd, level, name, value, len);
}

SLIM_EXPORT int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	struct slim_slot slot;
	int result, alone;

	if (!slim_used(fd) || !slim_get(fd, &slot) || slot.state == SLIM_CONNECTED)
		return sys_setsockopt(fd, level, name, value, len);
	if (slot.state == SLIM_LISTENER) {
		/* The worker must see connections at once; the channel waits as well as the kernel. */
		if (level == IPPROTO_TCP && name == TCP_DEFER_ACCEPT)
			return 0;
		result = sys_setsockopt(slot.hidden, level, name, value, len);
		if (result == 0 && level == SOL_SOCKET && name == SO_RCVTIMEO)
			sys_setsockopt(fd, level, name, value, len);
	} else {
		result = sys_setsockopt(fd, level, name, value, len);
		if (result == 0 && slot.state == SLIM_PENDING_WARM)
			sys_setsockopt(slot.hidden, level, name, value, len);
	}
	if (result == 0) {
		uint64_t bit = slim_option_bit(level, name);

		/* A socket for IPv6 alone has no business with mapped addresses. */
		if (level == IPPROTO_IPV6 && name == IPV6_V6ONLY && len >= sizeof(alone)) {
			memcpy(&alone, value, sizeof(alone));
			if (alone)
				bit = SLIM_OPTION_OVERLAY;
		}

		if (bit & ~slot.options) {
			slot.options |= bit;
			slim_put(fd, &slot);
		}
	}
	return result;
}
