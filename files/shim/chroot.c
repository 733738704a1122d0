/* SPDX-License-Identifier: Apache-2.0 */
/* chroot(): the worker is out of sight afterwards: meet it before (control.c, join). */
#include "slim.h"

#include <sys/syscall.h>
#include <unistd.h>

SLIM_EXPORT int chroot(const char *path)
{
	slim_ready();
	return (int)syscall(SYS_chroot, path);
}
