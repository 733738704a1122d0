// SPDX-License-Identifier: Apache-2.0
/*
 * What Python cannot do on a socket: io_uring and the 32-bit system calls.
 *
 *   lowlevel uring FD        every operation, by descriptor
 *   lowlevel fixed FD        the same through a registered file
 *   lowlevel compat FD       int 0x80
 *   lowlevel wait FD         one pending recv; answers when it ends
 *
 * Prints "name result" lines: a negative result is an errno. The caller judges.
 * Build: static and not position independent, so that pointers fit 32 bits.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* uapi/linux/io_uring.h of 6.11; older headers lack them. */
enum { OP_BIND = 56, OP_LISTEN = 57 };

static struct {
	int fd;
	unsigned int *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
} ring;

static char buffer[4096];

static void ring_open(void)
{
	struct io_uring_params params = { 0 };
	char *sq, *cq;

	ring.fd = syscall(SYS_io_uring_setup, 8, &params);
	if (ring.fd < 0) {
		printf("io_uring_setup %d\n", -errno);
		exit(0);
	}
	sq = mmap(NULL, params.sq_off.array + params.sq_entries * sizeof(int),
		  PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQ_RING);
	cq = mmap(NULL, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe),
		  PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_CQ_RING);
	ring.sqes = mmap(NULL, params.sq_entries * sizeof(struct io_uring_sqe),
			 PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || ring.sqes == MAP_FAILED) {
		perror("mmap");
		exit(2);
	}
	ring.sq_tail = (void *)(sq + params.sq_off.tail);
	ring.sq_mask = (void *)(sq + params.sq_off.ring_mask);
	ring.sq_array = (void *)(sq + params.sq_off.array);
	ring.cq_head = (void *)(cq + params.cq_off.head);
	ring.cq_tail = (void *)(cq + params.cq_off.tail);
	ring.cq_mask = (void *)(cq + params.cq_off.ring_mask);
	ring.cqes = (void *)(cq + params.cq_off.cqes);
}

/* One request; its result. */
static int ring_run(const struct io_uring_sqe *request)
{
	unsigned int tail = *ring.sq_tail, slot = tail & *ring.sq_mask, head = *ring.cq_head;
	int result;

	ring.sqes[slot] = *request;
	ring.sq_array[slot] = slot;
	__atomic_store_n(ring.sq_tail, tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return -errno;
	if (__atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE) == head)
		return -ETIME;
	result = ring.cqes[head & *ring.cq_mask].res;
	/* A zero-copy send that went through notifies once more. */
	if (ring.cqes[head++ & *ring.cq_mask].flags & IORING_CQE_F_MORE) {
		__atomic_store_n(ring.cq_head, head, __ATOMIC_RELEASE);
		syscall(SYS_io_uring_enter, ring.fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
		head++;
	}
	__atomic_store_n(ring.cq_head, head, __ATOMIC_RELEASE);
	return result;
}

static void uring(int fd, int flags)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	struct sockaddr unspec = { .sa_family = AF_UNSPEC };
	struct iovec vector = { "x", 1 };
	struct msghdr named = { .msg_name = &address, .msg_namelen = sizeof(address),
				.msg_iov = &vector, .msg_iovlen = 1 };
	socklen_t length = sizeof(address);
	int on = 1;
	struct {
		const char *name;
		struct io_uring_sqe request;
	} list[] = {
		{ "CONNECT", { .opcode = IORING_OP_CONNECT, .addr = (unsigned long)&unspec,
			       .off = sizeof(unspec) } },
		{ "ACCEPT", { .opcode = IORING_OP_ACCEPT, .addr = (unsigned long)buffer,
			      .addr2 = (unsigned long)&length } },
		{ "SENDMSG", { .opcode = IORING_OP_SENDMSG, .addr = (unsigned long)&named,
			       .msg_flags = MSG_DONTWAIT } },
		{ "SEND_FASTOPEN", { .opcode = IORING_OP_SEND, .addr = (unsigned long)"x",
				     .len = 1, .msg_flags = MSG_FASTOPEN } },
		{ "SEND_ZC", { .opcode = 47, .addr = (unsigned long)"x", .len = 1 } },
		{ "RECV_ERRQUEUE", { .opcode = IORING_OP_RECV, .addr = (unsigned long)buffer,
				     .len = 64, .msg_flags = MSG_ERRQUEUE | MSG_DONTWAIT } },
		{ "BIND", { .opcode = OP_BIND, .addr = (unsigned long)&address,
			    .addr2 = sizeof(address) } },
		{ "LISTEN", { .opcode = OP_LISTEN, .len = 1 } },
		/* SOCKET_URING_OP_SIOCINQ, GETSOCKOPT SO_PEERNAME, SETSOCKOPT SO_MARK, unknown */
		{ "CMD_SIOCINQ", { .opcode = 46, .off = 0 } },
		{ "CMD_GETSOCKOPT", { .opcode = 46, .off = 2, .addr = 1 | 28ull << 32,
				      .addr3 = (unsigned long)buffer, .splice_fd_in = 64 } },
		{ "CMD_SETSOCKOPT", { .opcode = 46, .off = 3, .addr = 1 | 36ull << 32,
				      .addr3 = (unsigned long)&on, .splice_fd_in = 4 } },
		{ "CMD_UNKNOWN", { .opcode = 46, .off = 4 } },
		{ "SEND", { .opcode = IORING_OP_SEND, .addr = (unsigned long)"x", .len = 1,
			    .msg_flags = MSG_DONTWAIT } },
		{ "RECV", { .opcode = IORING_OP_RECV, .addr = (unsigned long)buffer, .len = 64,
			    .msg_flags = MSG_DONTWAIT } },
	};

	for (unsigned int i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
		list[i].request.fd = fd;
		list[i].request.flags = flags;
		printf("%s %d\n", list[i].name, ring_run(&list[i].request));
	}
}

/* One 32-bit system call; ebx, ecx and so on. */
static int call32(int number, long a, long b, long c, long d, long e)
{
	int result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
			 : "memory", "r8", "r9", "r10", "r11");
	return result;
}

static void compat(int fd)
{
	static int length = sizeof(buffer), on = 1;
	static struct sockaddr unspec = { .sa_family = AF_UNSPEC };
	static struct {
		unsigned int name;
		int name_length;
		unsigned int vector, vectors, control, control_length;
		int flags;
	} message;
	static struct {
		unsigned int base, length;
	} vector;
	static char name[16] = { AF_INET };
	long at = (long)buffer;

	vector.base = (long)"x";
	vector.length = 1;
	message.name = (long)name;
	message.name_length = sizeof(name);
	message.vector = (long)&vector;
	message.vectors = 1;
	/* arch/x86/entry/syscalls/syscall_32.tbl */
	printf("ioctl_SIOCGIFCONF %d\n", call32(54, fd, 0x8912, at, 0, 0));
	printf("ioctl_SIOCGIFNAME %d\n", call32(54, fd, 0x8910, at, 0, 0));
	printf("ioctl_FIONREAD %d\n", call32(54, fd, 0x541b, at, 0, 0));
	printf("connect %d\n", call32(362, fd, (long)&unspec, sizeof(unspec), 0, 0));
	printf("listen %d\n", call32(363, fd, 1, 0, 0, 0));
	printf("getsockopt_PEERNAME %d\n", call32(365, fd, 1, 28, at, (long)&length));
	printf("setsockopt_MARK %d\n", call32(366, fd, 1, 36, (long)&on, sizeof(on)));
	printf("setsockopt_NODELAY %d\n", call32(366, fd, 6, 1, (long)&on, sizeof(on)));
	printf("getsockname %d\n", call32(367, fd, at, (long)&length, 0, 0));
	printf("getpeername %d\n", call32(368, fd, at, (long)&length, 0, 0));
	printf("sendmsg_name %d\n", call32(370, fd, (long)&message, 0x40, 0, 0));
}

int main(int count, char **words)
{
	int fd;

	if (count != 3)
		return 2;
	fd = atoi(words[2]);
	if (!strcmp(words[1], "compat")) {
		compat(fd);
		return 0;
	}
	ring_open();
	if (!strcmp(words[1], "wait")) {
		struct io_uring_sqe request = { .opcode = IORING_OP_RECV, .fd = fd,
						.addr = (unsigned long)buffer, .len = 64 };

		printf("RECV %d\n", ring_run(&request));
		return 0;
	}
	if (!strcmp(words[1], "fixed")) {
		if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_FILES, &fd, 1)) {
			perror("IORING_REGISTER_FILES");
			return 2;
		}
		close(fd);
		uring(0, IOSQE_FIXED_FILE);
		return 0;
	}
	uring(fd, 0);
	return 0;
}
