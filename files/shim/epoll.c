/* SPDX-License-Identifier: Apache-2.0 */
/*
 * epoll: remember where unconnected sockets are registered (a swap has to put
 * the successor there), and look at what epoll_wait returns while connects are
 * under way.
 */
#include "slim.h"

#include <alloca.h>
#include <sys/syscall.h>
#include <unistd.h>

SLIM_DECLARE_REAL(int, epoll_wait, int, struct epoll_event *, int, int);
SLIM_DECLARE_REAL(int, epoll_pwait, int, struct epoll_event *, int, int, const sigset_t *);
SLIM_DECLARE_REAL(int, epoll_pwait2, int, struct epoll_event *, int, const struct timespec *, const sigset_t *);

SLIM_EXPORT int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
	int result = sys_epoll_ctl(epfd, op, fd, event);
	struct slim_slot slot;
	int at;

	if (result < 0 || !slim_used(fd) || !slim_peek(fd, &slot))
		return result;
	for (at = 0; at < slot.nregs && slot.regs[at].epfd != epfd; at++)
		;
	/*
	 * Some programs change what they wait for with every message. A host
	 * connection is hardly ever replaced: its changes are not followed.
	 */
	if (op == EPOLL_CTL_MOD && at < slot.nregs && slot.flags & SLIM_S_MODIFIED)
		return result;
	if (slim_foreign_process())
		return result;
	slim_saw_epoll(epfd);
	if (op == EPOLL_CTL_MOD && slot.state == SLIM_CONNECTED)
		slot.flags |= SLIM_S_MODIFIED;
	if (op == EPOLL_CTL_DEL) {
		if (at < slot.nregs) {
			slot.regs[at] = slot.regs[--slot.nregs];
			slim_put(fd, &slot);
		}
	} else if (event && at < SLIM_REGS) {
		slot.regs[at].epfd = epfd;
		slot.regs[at].events = event->events;
		slot.regs[at].data = event->data.u64;
		if (at == slot.nregs)
			slot.nregs++;
		slim_put(fd, &slot);
	}
	return result;
}

/*
 * Which pending descriptor an event speaks of, by the event's data: made anew
 * for each call that has events, so that a thousand of both stay cheap.
 */
#define INDEX_SIZE (2 * SLIM_PENDING_MAX)
_Static_assert((INDEX_SIZE & (INDEX_SIZE - 1)) == 0, "a power of two");

struct entry {
	uint64_t data;
	int fd; /* + 1; 0 is empty */
};

static unsigned int place_of(uint64_t data)
{
	return (unsigned int)(data * 0x9E3779B97F4A7C15ULL >> 40);
}

static void note(struct entry *index, unsigned int size, uint64_t data, int fd)
{
	unsigned int at = place_of(data) & (size - 1);

	for (unsigned int tries = 0; tries < size; tries++, at = (at + 1) & (size - 1))
		if (!index[at].fd) {
			index[at].data = data;
			index[at].fd = fd + 1;
			return;
		}
}

static void make_index(struct entry *index, unsigned int size, int epfd)
{
	int fd;

	memset(index, 0, size * sizeof(*index));
	for (int p = 0; (fd = slim_pending_at(p)) != -2; p++) {
		struct slim_slot slot;

		if (fd < 0 || !slim_peek(fd, &slot))
			continue;
		for (int i = 0; i < slot.nregs; i++)
			if (slot.regs[i].epfd == epfd)
				note(index, size, slot.regs[i].data, fd);
		if (!slot.nregs) /* registered out of our sight: most programs use the number */
			note(index, size, (uint64_t)fd, fd);
	}
}

/* False: the event must not be seen; it comes again. */
static bool settled(int epfd, int fd, int64_t deadline)
{
	struct slim_slot slot;
	bool late = slim_now_us() >= deadline;

	if (!slim_peek(fd, &slot))
		return true;
	switch (late && slot.state == SLIM_PENDING_COLD ? SLIM_LATER : slim_resolve(fd, deadline, true)) {
	case SLIM_FELL_BACK:
		return false;
	case SLIM_LATER:
		/* An edge or a single shot would not come again by itself. */
		for (int i = 0; i < slot.nregs; i++) {
			struct epoll_event event = { .events = slot.regs[i].events, .data.u64 = slot.regs[i].data };

			if (slot.regs[i].epfd == epfd && event.events & (EPOLLET | EPOLLONESHOT))
				sys_epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &event);
		}
		return false;
	default:
		return true;
	}
}

/* Settle the pending connects among the events; how many events are left. */
static int look(int epfd, struct epoll_event *events, int count)
{
	int64_t deadline = slim_deadline(false, 0);
	struct entry *index;
	unsigned int size = 8;
	int kept = 0;

	slim_saw_epoll(epfd);
	/* As large as needed: threads may have 16 KB of stack in all. */
	while (size < INDEX_SIZE && size < 4 * (unsigned int)atomic_load(&slim_pending))
		size *= 2;
	index = alloca(size * sizeof(*index));
	make_index(index, size, epfd);
	for (int i = 0; i < count; i++) {
		uint64_t data = events[i].data.u64;
		unsigned int at = place_of(data) & (size - 1);
		bool keep = true;

		for (unsigned int tries = 0; index[at].fd && tries < size; tries++, at = (at + 1) & (size - 1))
			if (index[at].data == data)
				keep = settled(epfd, index[at].fd - 1, deadline) && keep;
		if (keep)
			events[kept++] = events[i];
	}
	return kept;
}

/* Milliseconds left of a time-out that began at start_us (0: not noted). */
static int left_ms(int timeout, int64_t start_us)
{
	int64_t left;

	if (timeout <= 0 || !start_us)
		return timeout;
	left = timeout - (slim_now_us() - start_us) / 1000;
	return left > 0 ? (int)left : 0;
}

static bool pending(void)
{
	return atomic_load_explicit(&slim_pending, memory_order_relaxed) > 0;
}

SLIM_EXPORT int epoll_wait(int epfd, struct epoll_event *events, int max, int timeout)
{
	int64_t start = pending() && timeout > 0 ? slim_now_us() : 0;
	int wait = timeout;

	for (;;) {
		int got = REAL(epoll_wait)(epfd, events, max, wait);

		if (got <= 0 || !pending())
			return got;
		got = look(epfd, events, got);
		wait = left_ms(timeout, start);
		if (got || !wait)
			return got;
	}
}

SLIM_EXPORT int epoll_pwait(int epfd, struct epoll_event *events, int max, int timeout, const sigset_t *mask)
{
	int64_t start = pending() && timeout > 0 ? slim_now_us() : 0;
	int wait = timeout;

	for (;;) {
		int got = REAL(epoll_pwait)(epfd, events, max, wait, mask);

		if (got <= 0 || !pending())
			return got;
		got = look(epfd, events, got);
		wait = left_ms(timeout, start);
		if (got || !wait)
			return got;
	}
}

int epoll_pwait2(int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
		 const sigset_t *mask);

SLIM_EXPORT int epoll_pwait2(int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
			     const sigset_t *mask)
{
	for (;;) {
		int got;

		if (!REAL(epoll_pwait2)) { /* glibc before 2.35 */
			errno = ENOSYS;
			return -1;
		}
		got = REAL(epoll_pwait2)(epfd, events, max, timeout, mask);
		if (got <= 0 || !pending())
			return got;
		got = look(epfd, events, got);
		if (got || (timeout && !timeout->tv_sec && !timeout->tv_nsec))
			return got;
	}
}
