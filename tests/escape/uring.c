/* SPDX-License-Identifier: Apache-2.0 */
/* io_uring without a library: one entry at a time, its completion waited for. */
#include "escape.h"

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <time.h>

#define WAIT_MS 2000

static void *offset(void *base, uint32_t by)
{
	return (char *)base + by;
}

struct ring *ring_new(unsigned flags)
{
	struct io_uring_params p = { .flags = flags, .sq_thread_idle = 50 };
	struct ring *r = calloc(1, sizeof(*r));
	struct io_uring_probe *probe;
	size_t size = sizeof(*probe) + 256 * sizeof(struct io_uring_probe_op);

	if (!r)
		return NULL;
	r->fd = (int)raw(SYS_io_uring_setup, 8, &p);
	if (r->fd < 0)
		goto failed;
	r->entries = p.sq_entries;
	r->sqpoll = flags & E_SETUP_SQPOLL;
	r->sq_size = p.sq_off.array + p.sq_entries * sizeof(unsigned);
	r->cq_size = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
	r->sq = mmap(NULL, r->sq_size, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQ_RING);
	r->cq = mmap(NULL, r->cq_size, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_CQ_RING);
	r->sqes = mmap(NULL, p.sq_entries * sizeof(struct sqe), PROT_READ | PROT_WRITE, MAP_SHARED,
		       r->fd, IORING_OFF_SQES);
	if (r->sq == MAP_FAILED || r->cq == MAP_FAILED || r->sqes == MAP_FAILED)
		goto failed;
	r->sq_head = offset(r->sq, p.sq_off.head);
	r->sq_tail = offset(r->sq, p.sq_off.tail);
	r->sq_mask = offset(r->sq, p.sq_off.ring_mask);
	r->sq_flags = offset(r->sq, p.sq_off.flags);
	r->sq_array = offset(r->sq, p.sq_off.array);
	r->cq_head = offset(r->cq, p.cq_off.head);
	r->cq_tail = offset(r->cq, p.cq_off.tail);
	r->cq_mask = offset(r->cq, p.cq_off.ring_mask);
	r->cqes = offset(r->cq, p.cq_off.cqes);
	probe = calloc(1, size);
	if (probe && raw(SYS_io_uring_register, r->fd, IORING_REGISTER_PROBE, probe, 256) >= 0)
		for (unsigned i = 0; i < probe->ops_len && i < E_OP_LAST; i++)
			r->supported[probe->ops[i].op % E_OP_LAST] =
				!!(probe->ops[i].flags & IO_URING_OP_SUPPORTED);
	free(probe);
	return r;
failed:
	free(r);
	return NULL;
}

bool ring_has(const struct ring *r, unsigned opcode)
{
	return opcode < E_OP_LAST && r->supported[opcode];
}

long ring_register(struct ring *r, const int *fds, unsigned count)
{
	return raw(SYS_io_uring_register, r->fd, IORING_REGISTER_FILES, fds, count);
}

/* The result of one entry; -ETIME if there is none within the bound. */
long ring_do(struct ring *r, struct sqe *s)
{
	static uint64_t number;
	struct __kernel_timespec bound = { WAIT_MS / 1000, (WAIT_MS % 1000) * 1000000L };
	struct io_uring_getevents_arg more = { .ts = (uintptr_t)&bound };
	unsigned tail = *r->sq_tail, submit = 1;
	long done;

	if (!ring_has(r, s->opcode))
		return -EOPNOTSUPP;
	s->user_data = ++number;
	memcpy((struct sqe *)r->sqes + (tail & *r->sq_mask), s, sizeof(*s));
	r->sq_array[tail & *r->sq_mask] = tail & *r->sq_mask;
	__atomic_store_n(r->sq_tail, tail + 1, __ATOMIC_RELEASE);
	for (;;) {
		unsigned head = *r->cq_head;

		done = raw(SYS_io_uring_enter, r->fd, submit, 1,
			   IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG |
				   (r->sqpoll ? IORING_ENTER_SQ_WAKEUP : 0),
			   &more, sizeof(more));
		submit = 0;
		while (head != __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE)) {
			struct io_uring_cqe *c = (struct io_uring_cqe *)r->cqes + (head & *r->cq_mask);
			bool ours = c->user_data == number && !(c->flags & (1u << 3)); /* F_NOTIF */
			long result = c->res;

			__atomic_store_n(r->cq_head, ++head, __ATOMIC_RELEASE);
			if (ours)
				return result;
		}
		if (done < 0 && done != -EINTR)
			return done;
	}
}

struct ring *need_ring(struct ctx *c)
{
	if (!c->ring) {
		c->ring = ring_new(0);
		c->index = -1;
	}
	return c->ring;
}

long ring_run(struct ctx *c, struct sqe *s)
{
	if (c->index >= 0) {
		s->fd = c->index;
		s->flags |= E_SQE_FIXED_FILE;
	} else {
		s->fd = c->fd;
	}
	return ring_do(c->ring, s);
}
