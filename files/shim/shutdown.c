/* SPDX-License-Identifier: Apache-2.0 */
/* shutdown(): of a listener it ends listening, for every holder. */
#include "slim.h"

#include <sys/syscall.h>
#include <unistd.h>

SLIM_EXPORT int shutdown(int fd, int how)
{
	struct slim_slot slot;

	if (slim_used(fd) && slim_get(fd, &slot) && slot.state == SLIM_LISTENER) {
		long result = syscall(SYS_shutdown, slot.hidden, how);
		int error = errno;

		if (result == 0 && how != SHUT_WR)
			syscall(SYS_shutdown, fd, SHUT_RDWR);
		errno = error;
		return (int)result;
	}
	return (int)syscall(SYS_shutdown, fd, how);
}
