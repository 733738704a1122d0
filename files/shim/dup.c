/* SPDX-License-Identifier: Apache-2.0 */
/* dup(), dup2(), dup3(): a copy is the same socket, and knows it. */
#include "slim.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

void slim_dupped(int from, int to);

/* `to` has become a copy of `from`. */
void slim_dupped(int from, int to)
{
	struct slim_slot slot;
	int saved = errno;

	if (slim_foreign_process())
		return;
	if (slim_used(to))
		slim_release(to, false);
	if (!slim_used(from) || !slim_get(from, &slot))
		return;
	slot.flags |= SLIM_S_DUPPED;
	if (slot.state == SLIM_FRESH || slot.state == SLIM_CONNECTED || slot.state == SLIM_PENDING_COLD)
		slot.cookie = slim_cookie(from);
	slim_put(from, &slot);
	slot.nregs = 0; /* epoll sets go by descriptor */
	if (slot.state == SLIM_LISTENER || (slot.state == SLIM_CONNECTED && slot.hidden >= 0))
		slot.hidden = slim_hide(slot.hidden);
	else if (slot.state == SLIM_PENDING_WARM || slot.state == SLIM_RESOLVING)
		slot.hidden = -1, slot.state = SLIM_CONNECTED; /* its names are right; the original looks after the rest */
	else if (slot.state == SLIM_PENDING_COLD)
		slot.state = SLIM_FRESH;
	if (slot.state != SLIM_LISTENER || slot.hidden >= 0) /* else: no room; the worker is asked who it is */
		slim_put(to, &slot);
	errno = saved;
}

static int onto(int from, int to, int flags, bool two)
{
	int result;

	if (slim_hidden(to) && !slim_foreign_process())
		slim_move_hidden(to);
	if (slim_hidden(from)) {
		errno = EBADF;
		return -1;
	}
	if (two && from == to)
		return sys_fcntl(from, F_GETFL, 0) < 0 ? -1 : to;
	result = sys_dup3(from, to, flags);
	if (result >= 0 && (slim_used(from) || slim_used(to))) {
		struct slim_slot old;
		bool listener = slim_peek(to, &old) && old.state == SLIM_LISTENER;

		slim_dupped(from, to);
		if (listener && !slim_foreign_process())
			slim_sync(SLIM_SYNC_US);
	}
	return result;
}

SLIM_EXPORT int dup(int fd)
{
	int copy = (int)syscall(SYS_dup, fd);

	if (copy >= 0 && (slim_used(fd) || slim_used(copy)))
		slim_dupped(fd, copy);
	return copy;
}

SLIM_EXPORT int dup2(int from, int to)
{
	return onto(from, to, 0, true);
}

SLIM_EXPORT int dup3(int from, int to, int flags)
{
	return onto(from, to, flags, false);
}
