/* SPDX-License-Identifier: Apache-2.0 */
/* getsockopt(), setsockopt(): listeners answer as listeners; what is set is remembered. */
#include "slim.h"

#include <netinet/tcp.h>
#include <sys/syscall.h>
#include <unistd.h>

/* --- secure mode: a tagged host socket refuses what is not on files/kmod/allow.h -- */
#define SO_PEERNAME_ 28 /* include/uapi/asm-generic/socket.h */

/* A socket of the container's own, which answers as the overlay's would. */
static int fresh_socket(const struct slim_slot *slot)
{
	return (int)syscall(SYS_socket, slot->family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
}

static int done_with(int fresh, int result)
{
	int error = errno;

	sys_close(fresh);
	errno = error;
	return result;
}

/* An int as ip_sockglue.c gives it: one byte to whoever has room for one. */
static int give_int(int32_t number, int level, void *value, socklen_t *len)
{
	uint8_t byte = (uint8_t)number;

	if ((int)*len < 0) {
		errno = EINVAL;
		return -1;
	}
	if (level == IPPROTO_IP && *len > 0 && *len < sizeof(number) && number >= 0 && number <= 255) {
		memcpy(value, &byte, 1);
		*len = 1;
		return 0;
	}
	if (*len > sizeof(number))
		*len = sizeof(number);
	memcpy(value, &number, *len);
	return 0;
}

static int secure_get(int fd, const struct slim_slot *slot, int level, int name, void *value, socklen_t *len)
{
	int at = slim_told(level, name), result, fresh;

	if (at >= 0 && slot->told_set & 1 << at && value && len)
		return give_int(slot->told[at], level, value, len);
	if (at < 0) {
		result = sys_getsockopt(fd, level, name, value, len);
		if (result == 0 || errno != EPERM)
			return result;
	}
	fresh = fresh_socket(slot);
	if (fresh < 0) {
		errno = EPERM;
		return -1;
	}
	return done_with(fresh, sys_getsockopt(fresh, level, name, value, len));
}

static void remember(int from, struct slim_slot *slot, int level, int name)
{
	int at = slim_told(level, name), saved = errno;
	socklen_t len = sizeof(slot->told[0]);

	if (at >= 0 && sys_getsockopt(from, level, name, &slot->told[at], &len) == 0)
		slot->told_set |= (uint8_t)(1 << at);
	errno = saved;
}

/* Answer as the overlay would, and do nothing: it is a hint, and the site's to give. */
static int secure_set(int fd, struct slim_slot *slot, int level, int name, const void *value, socklen_t len)
{
	int fresh = fresh_socket(slot), result;

	if (fresh < 0) {
		errno = EPERM;
		return -1;
	}
	result = sys_setsockopt(fresh, level, name, value, len);
	if (result == 0) {
		remember(fresh, slot, level, name);
		if (level == IPPROTO_IP && name == IP_TOS) /* ip(7): it sets the priority */
			remember(fresh, slot, SOL_SOCKET, SO_PRIORITY);
		slim_put(fd, slot);
	}
	return done_with(fresh, result);
}

/* Is it a host socket that we have put under fd? */
static bool tagged(const struct slim_slot *slot)
{
	return slim_secure() && slot->state == SLIM_CONNECTED;
}

SLIM_EXPORT int getsockopt(int fd, int level, int name, void *restrict value, socklen_t *restrict len)
{
	struct slim_slot slot;

	if (!slim_used(fd) || !slim_get(fd, &slot)) {
		/* What a program asks of a descriptor that it was given (socket activation). */
		if (level != SOL_SOCKET ||
		    (name != SO_TYPE && name != SO_DOMAIN && name != SO_PROTOCOL && name != SO_ACCEPTCONN) ||
		    !slim_adopt(fd, &slot)) {
			int result = sys_getsockopt(fd, level, name, value, len);

			if (result == 0 || errno != EPERM || !slim_adopt(fd, &slot))
				return result;
		}
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
	if (slot.state == SLIM_CONNECTED && level == SOL_SOCKET && name == SO_PEERNAME_ && value && len) {
		slim_to_sockaddr(slot.peer, slot.pport, slot.family, value, len);
		return 0;
	}
	if (tagged(&slot))
		return secure_get(fd, &slot, level, name, value, len);
	if (slim_secure() && slot.state == SLIM_PENDING_WARM && slot.hidden >= 0 && slim_harmless(level, name))
		return sys_getsockopt(slot.hidden, level, name, value, len);
	return sys_getsockopt(fd, level, name, value, len);
}

SLIM_EXPORT int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	struct slim_slot slot;
	int result, alone;

	if (!slim_used(fd) || !slim_get(fd, &slot)) {
		result = sys_setsockopt(fd, level, name, value, len);
		/* A tagged socket that came by exec or SCM_RIGHTS? */
		if (result == 0 || errno != EPERM || !slim_harmless(level, name) || !slim_adopt(fd, &slot) ||
		    !tagged(&slot))
			return result;
	}
	if (slot.state == SLIM_CONNECTED)
		return tagged(&slot) && slim_harmless(level, name) ?
			       secure_set(fd, &slot, level, name, value, len) :
			       sys_setsockopt(fd, level, name, value, len);
	if (slot.state == SLIM_LISTENER) {
		/* The worker must see connections at once; the channel waits as well as the kernel. */
		if (level == IPPROTO_TCP && name == TCP_DEFER_ACCEPT)
			return 0;
		result = sys_setsockopt(slot.hidden, level, name, value, len);
		if (result == 0 && level == SOL_SOCKET && name == SO_RCVTIMEO)
			sys_setsockopt(fd, level, name, value, len);
	} else if (slim_secure() && slot.state == SLIM_PENDING_WARM && slim_harmless(level, name)) {
		result = sys_setsockopt(slot.hidden, level, name, value, len);
		if (result == 0) {
			remember(slot.hidden, &slot, level, name);
			slim_put(fd, &slot);
		}
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
