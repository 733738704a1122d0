// SPDX-License-Identifier: GPL-2.0-only
/* io_uring without a library: one operation at a time. */
#define _GNU_SOURCE
#include "lib.h"

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>

/* Newer than the headers of the oldest build host. */
#define COMMAND_GETSOCKOPT 2
#define COMMAND_SETSOCKOPT 3

static struct {
	int fd;
	void *queues;
	size_t size;
	struct io_uring_sqe *entries;
	struct io_uring_params params;
} ring = { .fd = -1 };

static void ring_close(void)
{
	if (ring.fd < 0)
		return;
	munmap(ring.queues, ring.size);
	munmap(ring.entries, 4 * sizeof(*ring.entries));
	close(ring.fd);
	ring.fd = -1;
}

static int ring_open(void)
{
	ring_close();
	memset(&ring.params, 0, sizeof(ring.params));
	ring.fd = syscall(SYS_io_uring_setup, 4, &ring.params);
	if (ring.fd < 0)
		return -errno;
	ring.size = ring.params.cq_off.cqes + ring.params.cq_entries * sizeof(struct io_uring_cqe);
	if (ring.size < ring.params.sq_off.array + 16)
		ring.size = ring.params.sq_off.array + 16;
	ring.queues = mmap(NULL, ring.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			   ring.fd, IORING_OFF_SQ_RING);
	ring.entries = mmap(NULL, 4 * sizeof(*ring.entries), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQES);
	need(ring.queues != MAP_FAILED && ring.entries != MAP_FAILED, "io_uring mmap");
	return 0;
}

static int ring_submit(const struct io_uring_sqe *entry, unsigned int wait)
{
	char *base = ring.queues;
	unsigned int *tail = (unsigned int *)(base + ring.params.sq_off.tail);
	unsigned int *array = (unsigned int *)(base + ring.params.sq_off.array);

	ring.entries[0] = *entry;
	array[*tail & 3] = 0;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	return syscall(SYS_io_uring_enter, ring.fd, 1, wait, wait ? IORING_ENTER_GETEVENTS : 0,
		       NULL, 0) == 1 ? 0 : -errno;
}

int uring_wait(void)
{
	char *base = ring.queues;
	unsigned int *head = (unsigned int *)(base + ring.params.cq_off.head);
	unsigned int *tail = (unsigned int *)(base + ring.params.cq_off.tail);
	struct io_uring_cqe *events = (struct io_uring_cqe *)(base + ring.params.cq_off.cqes);
	unsigned int mask = *(unsigned int *)(base + ring.params.cq_off.ring_mask);
	int result;

	while (__atomic_load_n(tail, __ATOMIC_ACQUIRE) == *head)
		if (syscall(SYS_io_uring_enter, ring.fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0 &&
		    errno != EINTR)
			return -errno;
	result = events[*head & mask].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return result;
}

static int ring_prepare(struct io_uring_sqe *entry, int fd, bool fixed)
{
	int error = ring_open();

	if (error)
		return error;
	entry->fd = fd;
	if (fixed) {
		if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_FILES, &fd, 1) < 0)
			return -errno;
		entry->fd = 0;
		entry->flags = IOSQE_FIXED_FILE;
	}
	return 0;
}

int uring_one(int opcode, int fd, const void *address, uint32_t length, uint64_t offset,
	      uint32_t flags, bool fixed)
{
	struct io_uring_sqe entry = { .opcode = opcode, .addr = (uintptr_t)address,
				      .len = length, .off = offset, .msg_flags = flags };
	int result = ring_prepare(&entry, fd, fixed);

	if (!result)
		result = ring_submit(&entry, 1);
	if (!result)
		result = uring_wait();
	ring_close();
	return result;
}

int uring_start(int opcode, int fd, void *address, uint32_t length, bool fixed)
{
	struct io_uring_sqe entry = { .opcode = opcode, .addr = (uintptr_t)address,
				      .len = length };
	int result = ring_prepare(&entry, fd, fixed);

	return result ? result : ring_submit(&entry, 0);
}

/* IORING_OP_URING_CMD with SOCKET_URING_OP_{GET,SET}SOCKOPT, since 6.7. */
int uring_socket_command(int fd, uint32_t command, int level, int name, void *value, int length)
{
	struct io_uring_sqe entry = { .opcode = 46 };
	uint32_t *words = (uint32_t *)&entry;
	int result = ring_prepare(&entry, fd, false);

	entry.off = command;		/* cmd_op */
	words[4] = level;		/* in the place of addr */
	words[5] = name;
	words[11] = length;		/* optlen, in the place of splice_fd_in */
	entry.addr3 = (uintptr_t)value;	/* optval */
	if (!result)
		result = ring_submit(&entry, 1);
	if (!result)
		result = uring_wait();
	ring_close();
	return result;
}
