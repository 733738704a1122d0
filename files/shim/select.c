/* SPDX-License-Identifier: Apache-2.0 */
/* select(), pselect(): looked at while connects are under way. */
#undef _FORTIFY_SOURCE
#include "slim.h"

#include <alloca.h>
#include <sys/select.h>

SLIM_DECLARE_REAL(int, select, int, fd_set *, fd_set *, fd_set *, struct timeval *);
SLIM_DECLARE_REAL(int, pselect, int, fd_set *, fd_set *, fd_set *, const struct timespec *, const sigset_t *);

/* Programs use sets larger than fd_set: count in words, up to this many bytes. */
#define SET_BYTES 8192

static size_t set_size(int nfds)
{
	/* the kernel works on whole longs */
	return ((size_t)nfds + 8 * sizeof(long) - 1) / (8 * sizeof(long)) * sizeof(long);
}

static bool has(const fd_set *set, int fd)
{
	return set && ((const unsigned char *)set)[fd / 8] >> fd % 8 & 1;
}

static int take_out(fd_set *set, int fd)
{
	if (!has(set, fd))
		return 0;
	((unsigned char *)set)[fd / 8] &= (unsigned char)~(1 << fd % 8);
	return 1;
}

static int look(int nfds, fd_set *r, fd_set *w, fd_set *e, int ready, bool alone, int64_t wait_us)
{
	int64_t deadline = slim_deadline(alone, wait_us);
	int fd;

	for (int p = 0; (fd = slim_pending_at(p)) != -2; p++)
		if (fd >= 0 && fd < nfds && (has(r, fd) || has(w, fd) || has(e, fd))) {
			enum slim_outcome outcome = slim_resolve(fd, deadline, true);

			if (outcome == SLIM_FELL_BACK || outcome == SLIM_LATER)
				ready -= take_out(r, fd) + take_out(w, fd) + take_out(e, fd);
		}
	return ready;
}

static bool pending(void)
{
	return atomic_load_explicit(&slim_pending, memory_order_relaxed) > 0;
}

static void keep(unsigned char *kept, size_t size, fd_set *const set[3], bool back)
{
	for (int i = 0; i < 3; i++) {
		if (!set[i])
			continue;
		if (back)
			memcpy(set[i], kept + i * size, size);
		else
			memcpy(kept + i * size, set[i], size);
	}
}

/* Do the sets as the caller gave them name one descriptor? */
static bool names_one(const unsigned char *kept, size_t size, fd_set *const set[3])
{
	int count = 0;

	for (size_t at = 0; at < size && count < 2; at++) {
		unsigned int any = 0;

		for (int i = 0; i < 3; i++)
			any |= set[i] ? kept[i * size + at] : 0U;
		count += __builtin_popcount(any);
	}
	return count == 1;
}

SLIM_EXPORT int select(int nfds, fd_set *restrict r, fd_set *restrict w, fd_set *restrict e,
		       struct timeval *restrict timeout)
{
	fd_set *const set[3] = { r, w, e };
	size_t size = nfds > 0 ? set_size(nfds) : 0;
	unsigned char *kept;
	int got;

	if (!pending() || size > SET_BYTES)
		return REAL(select)(nfds, r, w, e, timeout);
	kept = alloca(3 * size + 1); /* threads may have 16 KB of stack in all */
	keep(kept, size, set, false);
	for (;;) {
		got = REAL(select)(nfds, r, w, e, timeout);
		if (got <= 0)
			return got;
		got = look(nfds, r, w, e, got, names_one(kept, size, set),
			   timeout ? timeout->tv_sec * 1000000LL + timeout->tv_usec : -1);
		/* Linux leaves what remains of the time in *timeout. */
		if (got || (timeout && !timeout->tv_sec && !timeout->tv_usec))
			return got;
		keep(kept, size, set, true);
	}
}

SLIM_EXPORT int pselect(int nfds, fd_set *restrict r, fd_set *restrict w, fd_set *restrict e,
			const struct timespec *restrict timeout, const sigset_t *restrict mask)
{
	fd_set *const set[3] = { r, w, e };
	size_t size = nfds > 0 ? set_size(nfds) : 0;
	unsigned char *kept;
	int got;

	if (!pending() || size > SET_BYTES)
		return REAL(pselect)(nfds, r, w, e, timeout, mask);
	kept = alloca(3 * size + 1); /* threads may have 16 KB of stack in all */
	keep(kept, size, set, false);
	for (;;) {
		got = REAL(pselect)(nfds, r, w, e, timeout, mask);
		if (got <= 0)
			return got;
		got = look(nfds, r, w, e, got, names_one(kept, size, set),
			   timeout ? timeout->tv_sec * 1000000LL + timeout->tv_nsec / 1000 : -1);
		if (got || (timeout && !timeout->tv_sec && !timeout->tv_nsec))
			return got;
		keep(kept, size, set, true);
	}
}
