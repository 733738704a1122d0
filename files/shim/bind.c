/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bind(): a server that restarts may find its port held by the worker, which
 * has not looked at the old one's end yet. Ask it to, then try again.
 */
#include "slim.h"

#include <sys/syscall.h>
#include <unistd.h>

#define SYNC_US 250000
#define TRIES 3

static bool is_tcp(int fd)
{
	int protocol = 0, saved = errno;
	socklen_t size = sizeof(protocol);

	sys_getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size);
	errno = saved;
	return protocol == IPPROTO_TCP;
}

SLIM_EXPORT int bind(int fd, SLIM_CONST_ADDR addr, socklen_t len)
{
	const struct sockaddr *name = SLIM_ADDR_OF(addr);
	struct slim_slot slot;
	uint8_t raw[16];
	uint16_t port;
	long result = syscall(SYS_bind, fd, name, len);

	for (int i = 0; i < TRIES && result < 0 && errno == EADDRINUSE; i++) {
		if (!slim_from_sockaddr(name, len, raw, &port) || slim_is_loopback(raw) || !is_tcp(fd) || !slim_ready())
			break;
		if (!slim_sync(SYNC_US)) {
			errno = EADDRINUSE;
			break;
		}
		result = syscall(SYS_bind, fd, name, len);
	}
	/* Bound already; the host does not know our addresses, and a tagged socket says nothing. */
	if (result < 0 && (errno == EPERM || errno == EADDRNOTAVAIL) && slim_used(fd) && slim_get(fd, &slot) &&
	    slot.state == SLIM_CONNECTED)
		errno = EINVAL;
	if (result == 0 && slim_used(fd) && slim_peek(fd, &slot) && slot.state == SLIM_FRESH) {
		slot.flags |= SLIM_S_BOUND;
		slim_put(fd, &slot);
	}
	return (int)result;
}
