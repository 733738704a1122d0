/* SPDX-License-Identifier: Apache-2.0 */
/* poll(), ppoll() and their fortified forms: looked at while connects are under way. */
#undef _FORTIFY_SOURCE
#include "slim.h"

#include <stdlib.h>

SLIM_DECLARE_REAL(int, poll, struct pollfd *, nfds_t, int);
SLIM_DECLARE_REAL(int, ppoll, struct pollfd *, nfds_t, const struct timespec *, const sigset_t *);

static bool pending(void)
{
	return atomic_load_explicit(&slim_pending, memory_order_relaxed) > 0;
}

static int look(struct pollfd *fds, nfds_t count, int ready, int64_t wait_us)
{
	int64_t deadline = slim_deadline(count == 1, wait_us);

	for (nfds_t i = 0; i < count; i++) {
		struct slim_slot slot;

		if (!fds[i].revents || fds[i].fd < 0 || !slim_peek(fds[i].fd, &slot))
			continue;
		if (slot.state == SLIM_PENDING_COLD || slot.state == SLIM_PENDING_WARM) {
			enum slim_outcome outcome = slim_resolve(fds[i].fd, deadline, true);

			if (outcome == SLIM_FELL_BACK || outcome == SLIM_LATER) {
				fds[i].revents = 0;
				ready--;
			}
		}
	}
	return ready;
}

SLIM_EXPORT int poll(struct pollfd *fds, nfds_t count, int timeout)
{
	int64_t start = pending() && timeout > 0 ? slim_now_us() : 0;
	int wait = timeout;

	for (;;) {
		int got = REAL(poll)(fds, count, wait);

		if (got <= 0 || !pending())
			return got;
		got = look(fds, count, got, wait < 0 ? -1 : wait * 1000LL);
		if (start) {
			int64_t left = timeout - (slim_now_us() - start) / 1000;

			wait = left > 0 ? (int)left : 0;
		}
		if (got || !wait)
			return got;
	}
}

SLIM_EXPORT int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
	for (;;) {
		int got = REAL(ppoll)(fds, count, timeout, mask);

		if (got <= 0 || !pending())
			return got;
		got = look(fds, count, got, timeout ? timeout->tv_sec * 1000000LL + timeout->tv_nsec / 1000 : -1);
		if (got || (timeout && !timeout->tv_sec && !timeout->tv_nsec))
			return got;
	}
}

#ifdef __GLIBC__
int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t room);
int __ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask, size_t room);

SLIM_EXPORT int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t room)
{
	if (room / sizeof(*fds) < count)
		abort(); /* as glibc's own check does */
	return poll(fds, count, timeout);
}

SLIM_EXPORT int __ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask,
			    size_t room)
{
	if (room / sizeof(*fds) < count)
		abort();
	return ppoll(fds, count, timeout, mask);
}
#endif
