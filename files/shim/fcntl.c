/* SPDX-License-Identifier: Apache-2.0 */
/* fcntl(): F_DUPFD and F_DUPFD_CLOEXEC make copies; the rest is the kernel's. */
#define fcntl slim_hide_fcntl
#define fcntl64 slim_hide_fcntl64
#include "slim.h"

#include <fcntl.h>
#undef fcntl
#undef fcntl64
#include <stdarg.h>

void slim_dupped(int from, int to);
SLIM_EXPORT int fcntl(int fd, int cmd, ...);
SLIM_EXPORT int fcntl64(int fd, int cmd, ...);

SLIM_DECLARE_REAL(int, fcntl, int, int, ...);

static int control(int fd, int cmd, void *arg)
{
	/* glibc's fcntl is a cancellation point for F_SETLKW: leave that to it. */
	int result = REAL(fcntl)(fd, cmd, arg);

	if (result >= 0 && (cmd == F_DUPFD || cmd == F_DUPFD_CLOEXEC) && (slim_used(fd) || slim_used(result)))
		slim_dupped(fd, result);
	return result;
}

SLIM_EXPORT int fcntl(int fd, int cmd, ...)
{
	va_list args;
	void *arg;

	va_start(args, cmd);
	arg = va_arg(args, void *);
	va_end(args);
	return control(fd, cmd, arg);
}

SLIM_EXPORT int fcntl64(int fd, int cmd, ...)
{
	va_list args;
	void *arg;

	va_start(args, cmd);
	arg = va_arg(args, void *);
	va_end(args);
	return control(fd, cmd, arg);
}
