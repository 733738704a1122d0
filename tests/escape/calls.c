/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls on the socket under attack, by number. Where the variant holds it in a ring's
 * table of files, they go through the ring as far as the kernel has the operation, else
 * to the descriptor that the ring gave back; if there is neither, "unavailable".
 */
#include "escape.h"

#include <poll.h>
#include <time.h>

long raw6(long number, long a, long b, long c, long d, long e, long f)
{
	long result = syscall(number, a, b, c, d, e, f);

	return result < 0 ? -errno : result;
}

bool c_needs_fd(struct ctx *c)
{
	if (c->fd >= 0)
		return true;
	c->unavailable = true;
	return false;
}

/* Should this operation go through the ring? */
static bool by_ring(struct ctx *c, unsigned opcode)
{
	return c->ring && c->index >= 0 && ring_has(c->ring, opcode);
}

long c_connect(struct ctx *c, const void *address, socklen_t size)
{
	if (by_ring(c, E_OP_CONNECT)) {
		struct sqe s = { .opcode = E_OP_CONNECT, .addr = (uintptr_t)address, .off = size };

		return ring_run(c, &s);
	}
	return c_needs_fd(c) ? raw(SYS_connect, c->fd, address, size) : -ENOSYS;
}

long c_dissolve(struct ctx *c)
{
	struct sockaddr_storage sa = { .ss_family = AF_UNSPEC };

	return c_connect(c, &sa, sizeof(struct sockaddr_in));
}

long c_bind(struct ctx *c, const void *address, socklen_t size)
{
	if (by_ring(c, E_OP_BIND)) {
		struct sqe s = { .opcode = E_OP_BIND, .addr = (uintptr_t)address, .off = size };

		return ring_run(c, &s);
	}
	return c_needs_fd(c) ? raw(SYS_bind, c->fd, address, size) : -ENOSYS;
}

long c_listen(struct ctx *c)
{
	if (by_ring(c, E_OP_LISTEN)) {
		struct sqe s = { .opcode = E_OP_LISTEN, .len = 4 };

		return ring_run(c, &s);
	}
	return c_needs_fd(c) ? raw(SYS_listen, c->fd, 4) : -ENOSYS;
}

long c_accept(struct ctx *c)
{
	if (by_ring(c, E_OP_ACCEPT)) {
		struct sqe s = { .opcode = E_OP_ACCEPT };

		return ring_run(c, &s);
	}
	if (!c_needs_fd(c))
		return -ENOSYS;
	/* SO_RCVTIMEO, which obtain() set, bounds it. */
	return raw(SYS_accept4, c->fd, 0, 0, 0);
}

long c_getsockname(struct ctx *c, void *out, socklen_t *size)
{
	return c_needs_fd(c) ? raw(SYS_getsockname, c->fd, out, size) : -ENOSYS;
}

long c_getpeername(struct ctx *c, void *out, socklen_t *size)
{
	return c_needs_fd(c) ? raw(SYS_getpeername, c->fd, out, size) : -ENOSYS;
}

/* io_uring_cmd_sock(): level and option in addr, length in file_index, value in addr3. */
static struct sqe option_entry(unsigned command, long level, long option, const void *value,
			       socklen_t size)
{
	struct sqe s = {
		.opcode = E_OP_URING_CMD,
		.off = command,
		.addr = (uint64_t)(uint32_t)level | (uint64_t)(uint32_t)option << 32,
		.file_index = size,
		.addr3 = (uintptr_t)value,
	};
	return s;
}

long c_getsockopt(struct ctx *c, long level, long option, void *out, socklen_t *size)
{
	/* The ring's command knows SOL_SOCKET only. */
	if (by_ring(c, E_OP_URING_CMD) && level == SOL_SOCKET) {
		struct sqe s = option_entry(E_CMD_GETSOCKOPT, level, option, out, *size);
		long result = ring_run(c, &s);

		if (result >= 0)
			*size = (socklen_t)result;
		if (result != -EOPNOTSUPP)
			return result < 0 ? result : 0;
	}
	return c_needs_fd(c) ? raw(SYS_getsockopt, c->fd, level, option, out, size) : -ENOSYS;
}

long c_setsockopt(struct ctx *c, long level, long option, const void *in, socklen_t size)
{
	if (by_ring(c, E_OP_URING_CMD)) {
		struct sqe s = option_entry(E_CMD_SETSOCKOPT, level, option, in, size);
		long result = ring_run(c, &s);

		if (result != -EOPNOTSUPP)
			return result;
	}
	return c_needs_fd(c) ? raw(SYS_setsockopt, c->fd, level, option, in, size) : -ENOSYS;
}

long c_ioctl(struct ctx *c, unsigned long command, void *argument)
{
	return c_needs_fd(c) ? raw(SYS_ioctl, c->fd, command, argument) : -ENOSYS;
}

long c_sendmsg(struct ctx *c, struct msghdr *message, unsigned flags)
{
	flags |= MSG_NOSIGNAL;
	if (by_ring(c, E_OP_SENDMSG)) {
		struct sqe s = { .opcode = E_OP_SENDMSG,
				 .addr = (uintptr_t)message,
				 .len = 1,
				 .op_flags = flags };

		return ring_run(c, &s);
	}
	return c_needs_fd(c) ? raw(SYS_sendmsg, c->fd, message, flags) : -ENOSYS;
}

long c_sendto(struct ctx *c, const void *data, size_t size, unsigned flags, const void *address,
	      socklen_t length)
{
	if (c->ring && c->index >= 0) {
		struct iovec part = { (void *)(uintptr_t)data, size };
		struct msghdr message = { .msg_name = (void *)(uintptr_t)address,
					  .msg_namelen = length,
					  .msg_iov = &part,
					  .msg_iovlen = 1 };

		return c_sendmsg(c, &message, flags);
	}
	return c_needs_fd(c) ?
		       raw(SYS_sendto, c->fd, data, size, flags | MSG_NOSIGNAL, address, length) :
		       -ENOSYS;
}

long c_recvmsg(struct ctx *c, struct msghdr *message, unsigned flags)
{
	if (by_ring(c, E_OP_RECVMSG)) {
		struct sqe s = { .opcode = E_OP_RECVMSG,
				 .addr = (uintptr_t)message,
				 .len = 1,
				 .op_flags = flags };

		return ring_run(c, &s);
	}
	return c_needs_fd(c) ? raw(SYS_recvmsg, c->fd, message, flags) : -ENOSYS;
}

long c_write(struct ctx *c, const void *data, size_t size)
{
	if (by_ring(c, E_OP_WRITE)) {
		struct sqe s = { .opcode = E_OP_WRITE,
				 .addr = (uintptr_t)data,
				 .len = (uint32_t)size,
				 .off = UINT64_MAX };

		return ring_run(c, &s);
	}
	return c_needs_fd(c) ? raw(SYS_write, c->fd, data, size) : -ENOSYS;
}

long c_read(struct ctx *c, void *data, size_t size)
{
	if (by_ring(c, E_OP_READ)) {
		struct sqe s = { .opcode = E_OP_READ,
				 .addr = (uintptr_t)data,
				 .len = (uint32_t)size,
				 .off = UINT64_MAX };

		return ring_run(c, &s);
	}
	return c_needs_fd(c) ? raw(SYS_read, c->fd, data, size) : -ENOSYS;
}

int wait_for(int fd, short events, int ms)
{
	struct pollfd p = { .fd = fd, .events = events };
	struct timespec left = { ms / 1000, (long)(ms % 1000) * 1000000 };

	return raw(SYS_ppoll, &p, 1, &left, 0, 8) > 0 ? p.revents : 0;
}

socklen_t host_address(struct ctx *c, struct sockaddr_storage *out, struct in_addr ip, uint16_t port)
{
	memset(out, 0, sizeof(*out));
	if (c->family == AF_INET6) {
		struct sockaddr_in6 *six = (struct sockaddr_in6 *)out;

		six->sin6_family = AF_INET6;
		six->sin6_port = htons(port);
		six->sin6_addr.s6_addr[10] = six->sin6_addr.s6_addr[11] = 0xff;
		memcpy(six->sin6_addr.s6_addr + 12, &ip, 4);
		return sizeof(*six);
	}
	struct sockaddr_in *four = (struct sockaddr_in *)out;

	four->sin_family = AF_INET;
	four->sin_port = htons(port);
	four->sin_addr = ip;
	return sizeof(*four);
}
