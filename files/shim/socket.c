/* SPDX-License-Identifier: Apache-2.0 */
/* socket(): remember new TCP sockets, forget what stood in their slot. */
#include "slim.h"

#include <sys/syscall.h>
#include <unistd.h>

SLIM_EXPORT int socket(int domain, int type, int protocol)
{
	int fd = (int)syscall(SYS_socket, domain, type, protocol);
	/* node passes SOCK_NONBLOCK and SOCK_CLOEXEC in the type: mask, compare whole. */
	int kind = type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd < 0 || slim_foreign_process())
		return fd;
	if ((domain == AF_INET || domain == AF_INET6) && kind == SOCK_STREAM &&
	    (protocol == 0 || protocol == IPPROTO_TCP)) {
		struct slim_slot slot;

		if (slim_used(fd))
			slim_release(fd, false);
		memset(&slot, 0, sizeof(slot));
		slot.state = SLIM_FRESH;
		slot.hidden = -1;
		slot.family = (uint16_t)domain;
		slot.generation = atomic_load(&slim_generation);
		slim_put(fd, &slot);
	} else if (slim_used(fd)) {
		slim_release(fd, false);
	}
	return fd;
}
