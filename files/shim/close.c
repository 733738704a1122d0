/* SPDX-License-Identifier: Apache-2.0 */
/* close(), close_range(), closefrom(): ours stay, slots end with their descriptor. */
#include "slim.h"

#include <limits.h>
#include <sys/syscall.h>
#include <unistd.h>

void slim_release(int fd, bool closing)
{
	struct slim_slot slot;
	int saved = errno;

	if (!slim_peek(fd, &slot))
		return;
	if (slot.state == SLIM_PENDING_COLD || slot.state == SLIM_PENDING_WARM || slot.state == SLIM_RESOLVING)
		slim_pending_drop(fd);
	if (slot.state == SLIM_PENDING_COLD && closing) {
		struct slim_msg msg;

		slim_message(&msg, SLIM_CANCEL);
		msg.value = slot.attempt;
		slim_tell(&msg);
	}
	/*
	 * The worker's copy of a socket that it has just handed over may live a
	 * moment longer than ours, and with it the place in an epoll set.
	 */
	for (int i = 0; closing && i < slot.nregs; i++)
		sys_epoll_ctl(slot.regs[i].epfd, EPOLL_CTL_DEL, fd, NULL);
	slim_clear(fd);
	if (slot.hidden >= 0 && slot.state != SLIM_FRESH && slot.state != SLIM_PENDING_COLD)
		slim_unhide(slot.hidden);
	errno = saved;
}

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#define RANGE_CLOEXEC 4 /* CLOSE_RANGE_CLOEXEC, linux/close_range.h */

SLIM_DECLARE_REAL(int, close, int);

static void forget(int fd)
{
	if (slim_used(fd) && !slim_foreign_process())
		slim_release(fd, true);
}

SLIM_EXPORT int close(int fd)
{
	struct slim_slot slot;

	if (slim_hidden(fd) && !slim_foreign_process()) {
		errno = EBADF; /* the program does not know it: it never opened it */
		return -1;
	}
	if (!slim_used(fd))
		return REAL(close)(fd);
	if (slim_peek(fd, &slot) && slot.state == SLIM_LISTENER && !slim_foreign_process()) {
		int hidden = slot.hidden, result;

		/*
		 * The slot first: the number is anybody's once it is closed. Then the channel,
		 * so that the worker sees its end before we let the listener go.
		 */
		slot.hidden = -1;
		slim_put(fd, &slot);
		slim_release(fd, true);
		result = sys_close(fd);
		slim_unhide(hidden);
		slim_sync(SLIM_SYNC_US);
		return result;
	}
	forget(fd);
	return REAL(close)(fd);
}

static int close_between(unsigned int first, unsigned int last, unsigned int flags)
{
	return (int)syscall(SYS_close_range, first, last, flags);
}

SLIM_EXPORT int close_range(unsigned int first, unsigned int last, int flags)
{
	unsigned int start = first, top = (unsigned int)slim_highest();
	struct slim_slot slot;
	bool listeners = false;
	int result = 0;

	if (flags & RANGE_CLOEXEC || first > last || slim_foreign_process())
		return close_between(first, last, (unsigned int)flags);
	for (unsigned int fd = first; fd <= last && fd <= top; fd++) {
		listeners |= slim_peek((int)fd, &slot) && slot.state == SLIM_LISTENER;
		forget((int)fd);
	}
	for (unsigned int fd = first; fd <= last && fd < 65536; fd++) {
		if (!slim_hidden((int)fd))
			continue;
		if (fd > start && (result = close_between(start, fd - 1, (unsigned int)flags)) < 0)
			return result;
		start = fd + 1;
	}
	if (start <= last)
		result = close_between(start, last, (unsigned int)flags);
	if (listeners)
		slim_sync(SLIM_SYNC_US);
	return result;
}

SLIM_EXPORT void closefrom(int lowest)
{
	if (close_range(lowest < 0 ? 0 : (unsigned int)lowest, UINT_MAX, 0) == 0)
		return;
	for (int fd = lowest < 0 ? 0 : lowest; fd < 65536; fd++) /* before Linux 5.9 */
		close(fd);
}
