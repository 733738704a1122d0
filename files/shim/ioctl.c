/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ioctl(): FIONBIO and the queue lengths belong to the socket in use. Questions
 * about interfaces belong to the container, whatever socket they are asked on.
 */
#define ioctl slim_hide_ioctl
#include "slim.h"

#include <linux/sockios.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#undef ioctl

#ifdef __GLIBC__
typedef unsigned long request_t;
#else
typedef int request_t;
#endif
SLIM_EXPORT int ioctl(int fd, request_t request, ...);
SLIM_DECLARE_REAL(int, ioctl, int, request_t, ...);

static bool about_interfaces(unsigned long request)
{
	/* linux/sockios.h: 0x890B (SIOCADDRT) to 0x89ff; the socket's own end at 0x8907 */
	return request >= SIOCADDRT && request <= 0x89ff && request != SIOCOUTQNSD;
}

SLIM_EXPORT int ioctl(int fd, request_t request, ...)
{
	struct slim_slot slot;
	va_list args;
	void *arg;

	va_start(args, request);
	arg = va_arg(args, void *);
	va_end(args);
	if (about_interfaces((unsigned long)request & 0xffffffff) && slim_used(fd) && slim_get(fd, &slot) &&
	    (slot.state == SLIM_CONNECTED || slot.state == SLIM_LISTENER || slot.state == SLIM_PENDING_WARM)) {
		int own = (int)syscall(SYS_socket, slot.family, SOCK_STREAM | SOCK_CLOEXEC, 0);
		int result, error;

		if (own < 0)
			return -1;
		result = REAL(ioctl)(own, request, arg);
		error = errno;
		sys_close(own);
		errno = error;
		return result;
	}
	return REAL(ioctl)(fd, request, arg);
}
