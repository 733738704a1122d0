/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reach something else than the one peer. In the host's namespace a canary listens on
 * the host's address and on loopback, says a secret to whoever writes it a line, and
 * connects to where it is asked to. An attempt has reached the host if it got the secret.
 */
#include "escape.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>

static struct in_addr loopback(void)
{
	struct in_addr ip = { htonl(INADDR_LOOPBACK) };
	return ip;
}

static struct in_addr anywhere(void)
{
	struct in_addr ip = { htonl(INADDR_ANY) };
	return ip;
}

static enum outcome connect_to(struct ctx *c, struct in_addr ip, uint16_t port)
{
	struct sockaddr_storage sa;
	socklen_t size = host_address(c, &sa, ip, port);
	long result = c_connect(c, &sa, size);

	if (noted(c, "connect", result) < 0)
		return denied(c);
	return talk(c);
}

static enum outcome dissolve_connect(struct ctx *c)
{
	noted(c, "connect(AF_UNSPEC)", c_dissolve(c));
	return connect_to(c, settings.canary, settings.canary_port);
}

static enum outcome connect_loopback(struct ctx *c)
{
	noted(c, "connect(AF_UNSPEC)", c_dissolve(c));
	return connect_to(c, loopback(), settings.canary_port);
}

static enum outcome connect_zero(struct ctx *c)
{
	noted(c, "connect(AF_UNSPEC)", c_dissolve(c));
	return connect_to(c, anywhere(), settings.canary_port);
}

static enum outcome connect_six(struct ctx *c)
{
	struct sockaddr_in6 sa = { .sin6_family = AF_INET6, .sin6_port = htons(settings.canary_port) };
	struct {
		long sec, usec;
	} bound = { 0, 150000 };
	long result;

	/* Linux may send this SYN nowhere (a socket that was IPv4-mapped): no long wait. */
	c_setsockopt(c, SOL_SOCKET, SO_SNDTIMEO, &bound, sizeof(bound));
	sa.sin6_addr.s6_addr[15] = 1;
	noted(c, "connect(AF_UNSPEC)", c_dissolve(c));
	result = c_connect(c, &sa, sizeof(sa));
	if (noted(c, "connect ::1", result) < 0)
		return denied(c);
	return talk(c);
}

/* An AF_INET address on an AF_INET6 socket and the reverse. */
static enum outcome connect_other_family(struct ctx *c)
{
	struct ctx other = *c;
	struct sockaddr_storage sa;
	socklen_t size;

	other.family = c->family == AF_INET ? AF_INET6 : AF_INET;
	size = host_address(&other, &sa, settings.canary, settings.canary_port);
	noted(c, "connect(AF_UNSPEC)", c_dissolve(c));
	if (noted(c, "connect", c_connect(c, &sa, size)) < 0)
		return denied(c);
	return talk(c);
}

static enum outcome connect_again(struct ctx *c)
{
	return connect_to(c, settings.canary, settings.canary_port);
}

static enum outcome connect_short(struct ctx *c)
{
	/* Two bytes are the family alone: enough for AF_UNSPEC, should a check want more. */
	uint16_t family = AF_UNSPEC;

	noted(c, "connect(AF_UNSPEC, 2 bytes)", c_connect(c, &family, sizeof(family)));
	return connect_to(c, settings.canary, settings.canary_port);
}

static enum outcome ended_then_connect(struct ctx *c, const char *order, bool half)
{
	char byte[64];

	c_write(c, order, strlen(order));
	c_read(c, byte, sizeof(byte)); /* the end or the reset */
	if (half && c->fd >= 0)
		raw(SYS_shutdown, c->fd, SHUT_RDWR);
	return connect_to(c, settings.canary, settings.canary_port);
}

static enum outcome connect_after_reset(struct ctx *c)
{
	return ended_then_connect(c, "\1RESET", false);
}

static enum outcome connect_after_close(struct ctx *c)
{
	return ended_then_connect(c, "\1CLOSE", true);
}

/* Our line travels in the SYN, or right after it. */
static enum outcome fastopen_with(struct ctx *c, bool dissolve, bool many)
{
	struct sockaddr_storage sa;
	socklen_t size = host_address(c, &sa, settings.canary, settings.canary_port);
	char line[200];
	size_t length = (size_t)snprintf(line, sizeof(line), "%s\n", c->token);
	long result;

	if (dissolve)
		noted(c, "connect(AF_UNSPEC)", c_dissolve(c));
	if (many) {
		struct iovec part = { line, length };
		struct mmsghdr two[2] = { { .msg_hdr = { .msg_iov = &part, .msg_iovlen = 1 } } };

		two[0].msg_hdr.msg_name = &sa;
		two[0].msg_hdr.msg_namelen = size;
		if (!c_needs_fd(c))
			return denied(c);
		result = raw(SYS_sendmmsg, c->fd, two, 1, MSG_FASTOPEN | MSG_NOSIGNAL);
	} else {
		result = c_sendto(c, line, length, MSG_FASTOPEN, &sa, size);
	}
	if (noted(c, "send(MSG_FASTOPEN)", result) < 0)
		return denied(c);
	return talk(c);
}

static enum outcome fastopen(struct ctx *c)
{
	return fastopen_with(c, true, false);
}

static enum outcome fastopen_again(struct ctx *c)
{
	return fastopen_with(c, false, false);
}

static enum outcome fastopen_many(struct ctx *c)
{
	return fastopen_with(c, true, true);
}

static enum outcome fastopen_after_reset(struct ctx *c)
{
	char byte[16];

	c_write(c, "\1RESET", 6);
	c_read(c, byte, sizeof(byte));
	return fastopen_with(c, false, false);
}

static enum outcome fastopen_connect(struct ctx *c)
{
	int one = 1;

	noted(c, "connect(AF_UNSPEC)", c_dissolve(c));
	noted(c, "TCP_FASTOPEN_CONNECT",
	      c_setsockopt(c, IPPROTO_TCP, E_TCP_FASTOPEN_CONNECT, &one, sizeof(one)));
	return connect_to(c, settings.canary, settings.canary_port);
}

/* Linux ignores the address on a connected socket; nobody must rely on that. */
static enum outcome send_with_address(struct ctx *c)
{
	struct sockaddr_storage sa;
	socklen_t size = host_address(c, &sa, settings.canary, settings.canary_port);
	long result = c_sendto(c, "x\n", 2, 0, &sa, size);

	if (noted(c, "sendto", result) < 0)
		return denied(c);
	return talk(c);
}

static enum outcome send_dissolved(struct ctx *c)
{
	noted(c, "connect(AF_UNSPEC)", c_dissolve(c));
	return send_with_address(c);
}

/* Listen on the host and have somebody on the host connect to us. */
static enum outcome listen_at(struct ctx *c, struct in_addr ip, bool dissolve, uint16_t port)
{
	struct sockaddr_storage sa;
	socklen_t size = host_address(c, &sa, ip, port);
	struct in_addr knock = ip.s_addr ? ip : settings.canary;
	char data[64];
	long result;

	if (dissolve)
		noted(c, "connect(AF_UNSPEC)", c_dissolve(c));
	result = c_bind(c, &sa, size);
	/* Other runs of the suite listen, too. */
	for (int i = 0; i < 50 && result == -EADDRINUSE; i++) {
		size = host_address(c, &sa, ip, ++port);
		result = c_bind(c, &sa, size);
	}
	if (noted(c, "bind", result) < 0)
		return denied(c);
	if (noted(c, "listen", c_listen(c)) < 0)
		return denied(c);
	if (!ask(c, "dial %s %u", inet_ntoa(knock), port)) {
		say(c, "nobody could connect");
		return denied(c);
	}
	result = c_accept(c);
	if (noted(c, "accept", result) < 0)
		return denied(c);
	long got = wait_for((int)result, POLLIN, 1000) ? raw(SYS_read, result, data, sizeof(data)) : -1;

	if (got > 0 && memmem(data, (size_t)got, settings.secret, strlen(settings.secret)))
		return succeeded(c, "a program of the host connected to our port %u", port);
	say(c, "the canary did not come");
	return denied(c);
}

static uint16_t own_port(struct ctx *c)
{
	return (uint16_t)(settings.listen_port + (c->serial * 7919u) % 1000);
}

static enum outcome bind_listen_any(struct ctx *c)
{
	return listen_at(c, anywhere(), true, own_port(c));
}

static enum outcome bind_listen_host(struct ctx *c)
{
	return listen_at(c, settings.canary, true, own_port(c));
}

static enum outcome bind_listen_loopback(struct ctx *c)
{
	return listen_at(c, loopback(), true, own_port(c));
}

static enum outcome bind_connected(struct ctx *c)
{
	return listen_at(c, anywhere(), false, own_port(c));
}

static enum outcome bind_privileged(struct ctx *c)
{
	/* A port that the host reserves for itself. */
	return listen_at(c, anywhere(), true, (uint16_t)(600 + c->serial % 400));
}

static enum outcome listen_autobind(struct ctx *c)
{
	struct sockaddr_storage sa = { 0 };
	socklen_t size = sizeof(sa);
	long result;
	char data[64];
	uint16_t port;

	noted(c, "connect(AF_UNSPEC)", c_dissolve(c));
	if (noted(c, "listen", c_listen(c)) < 0)
		return denied(c);
	if (noted(c, "getsockname", c_getsockname(c, &sa, &size)) < 0)
		return denied(c);
	port = ntohs(((struct sockaddr_in *)&sa)->sin_port);
	if (!ask(c, "dial %s %u", inet_ntoa(settings.canary), port))
		return denied(c);
	result = c_accept(c);
	if (noted(c, "accept", result) < 0)
		return denied(c);
	long got = wait_for((int)result, POLLIN, 1000) ? raw(SYS_read, result, data, sizeof(data)) : -1;

	if (got > 0 && memmem(data, (size_t)got, settings.secret, strlen(settings.secret)))
		return succeeded(c, "a program of the host connected to port %u", port);
	return denied(c);
}

static enum outcome listen_connected(struct ctx *c)
{
	long result = c_listen(c);

	if (result == 0)
		return succeeded(c, "listen returned 0");
	return denied_by(c, "listen", result);
}

static enum outcome accept_connected(struct ctx *c)
{
	long result = c_accept(c);

	if (result >= 0)
		return succeeded(c, "accept gave a descriptor");
	return denied_by(c, "accept", result);
}

/* Take an address that the host does not have. */
static enum outcome bind_foreign(struct ctx *c, long option)
{
	struct in_addr stranger;
	struct sockaddr_storage sa;
	socklen_t size;
	int one = 1;

	inet_pton(AF_INET, "203.0.113.77", &stranger);
	size = host_address(c, &sa, stranger, own_port(c));
	noted(c, "connect(AF_UNSPEC)", c_dissolve(c));
	noted(c, "setsockopt", c_setsockopt(c, IPPROTO_IP, option, &one, sizeof(one)));
	if (noted(c, "bind", c_bind(c, &sa, size)) < 0)
		return denied(c);
	return succeeded(c, "bound to 203.0.113.77 in the host's namespace");
}

static enum outcome freebind(struct ctx *c)
{
	return bind_foreign(c, E_IP_FREEBIND);
}

static enum outcome transparent_bind(struct ctx *c)
{
	return bind_foreign(c, E_IP_TRANSPARENT);
}

/* Forge an established connection with a source of our choice. */
static enum outcome repair_connect(struct ctx *c)
{
	int one = 1, off = -1;
	struct sockaddr_storage sa;
	socklen_t size = host_address(c, &sa, settings.canary, settings.canary_port);

	noted(c, "connect(AF_UNSPEC)", c_dissolve(c));
	if (noted(c, "TCP_REPAIR", c_setsockopt(c, IPPROTO_TCP, E_TCP_REPAIR, &one, sizeof(one))) < 0)
		return denied(c);
	if (noted(c, "connect", c_connect(c, &sa, size)) < 0)
		return denied(c);
	c_setsockopt(c, IPPROTO_TCP, E_TCP_REPAIR, &off, sizeof(off));
	return succeeded(c, "a connection to the canary without a handshake");
}

/* The caller's own namespace changes: that must make no difference. */
static enum outcome connect_new_namespace(struct ctx *c)
{
	if (unshare(CLONE_NEWNET) < 0)
		return not_applicable(c, "unshare(CLONE_NEWNET): %s", strerror(errno));
	return dissolve_connect(c);
}

static void *in_thread(void *argument)
{
	struct ctx *c = argument;

	return (void *)(intptr_t)dissolve_connect(c);
}

static enum outcome connect_thread(struct ctx *c)
{
	pthread_t thread;
	void *result;

	if (pthread_create(&thread, NULL, in_thread, c) != 0)
		return not_applicable(c, "no thread");
	pthread_join(thread, &result);
	return (enum outcome)(intptr_t)result;
}

/* One thread asks for something harmless while the other dissolves: no window. */
static volatile bool racing;

static void *harmless(void *argument)
{
	struct ctx *c = argument;
	int one = 1;

	while (racing) {
		socklen_t size = sizeof(one);

		raw(SYS_setsockopt, c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		raw(SYS_getsockopt, c->fd, SOL_SOCKET, SO_ERROR, &one, &size);
	}
	return NULL;
}

static enum outcome connect_race(struct ctx *c)
{
	pthread_t thread;
	enum outcome outcome = DENIED;

	if (!c_needs_fd(c))
		return denied(c);
	racing = true;
	if (pthread_create(&thread, NULL, harmless, c) != 0)
		return not_applicable(c, "no thread");
	for (int i = 0; i < 200; i++) {
		if (c_dissolve(c) == 0) {
			outcome = connect_to(c, settings.canary, settings.canary_port);
			break;
		}
	}
	racing = false;
	pthread_join(thread, NULL);
	if (outcome == DENIED && !c->detail[0])
		return denied_by(c, "connect(AF_UNSPEC), 200 times", c_dissolve(c));
	return outcome;
}

/* io_uring, entry by entry; on the descriptor where the variant has no fixed file. */
static enum outcome ring_connect(struct ctx *c, unsigned setup, unsigned flags)
{
	struct sockaddr_storage sa, none = { .ss_family = AF_UNSPEC };
	socklen_t size = host_address(c, &sa, settings.canary, settings.canary_port);
	struct sqe first = { .opcode = E_OP_CONNECT,
			     .flags = (uint8_t)flags,
			     .addr = (uintptr_t)&none,
			     .off = sizeof(struct sockaddr_in) };
	struct sqe second = { .opcode = E_OP_CONNECT,
			      .flags = (uint8_t)flags,
			      .addr = (uintptr_t)&sa,
			      .off = size };

	if (setup) {
		if (!c_needs_fd(c))
			return denied(c);
		c->ring = ring_new(setup);
		c->index = -1;
	}
	if (!need_ring(c))
		return not_applicable(c, "io_uring: %s", strerror(errno));
	noted(c, "OP_CONNECT(AF_UNSPEC)", ring_run(c, &first));
	if (noted(c, "OP_CONNECT", ring_run(c, &second)) < 0)
		return denied(c);
	return talk(c);
}

static enum outcome uring_connect(struct ctx *c)
{
	return ring_connect(c, 0, 0);
}

static enum outcome uring_async_connect(struct ctx *c)
{
	return ring_connect(c, 0, E_SQE_ASYNC);
}

static enum outcome uring_sqpoll_connect(struct ctx *c)
{
	return ring_connect(c, E_SETUP_SQPOLL, 0);
}

static enum outcome uring_listen(struct ctx *c)
{
	struct sockaddr_storage sa;
	socklen_t size = host_address(c, &sa, anywhere(), own_port(c));
	struct sqe b = { .opcode = E_OP_BIND, .addr = (uintptr_t)&sa, .off = size };
	struct sqe l = { .opcode = E_OP_LISTEN, .len = 4 };
	struct sqe a = { .opcode = E_OP_ACCEPT };
	char data[64];
	long result;

	if (!need_ring(c))
		return not_applicable(c, "io_uring: %s", strerror(errno));
	if (!ring_has(c->ring, E_OP_BIND))
		return not_applicable(c, "no IORING_OP_BIND before Linux 6.11");
	noted(c, "connect(AF_UNSPEC)", c_dissolve(c));
	if (noted(c, "OP_BIND", ring_run(c, &b)) < 0 || noted(c, "OP_LISTEN", ring_run(c, &l)) < 0)
		return denied(c);
	if (!ask(c, "dial %s %u", inet_ntoa(settings.canary), own_port(c)))
		return denied(c);
	result = ring_run(c, &a);
	if (noted(c, "OP_ACCEPT", result) < 0)
		return denied(c);
	long got = wait_for((int)result, POLLIN, 1000) ? raw(SYS_read, result, data, sizeof(data)) : -1;

	if (got > 0 && memmem(data, (size_t)got, settings.secret, strlen(settings.secret)))
		return succeeded(c, "a program of the host connected to us");
	return denied(c);
}

static enum outcome uring_accept(struct ctx *c)
{
	struct sqe a = { .opcode = E_OP_ACCEPT };
	long result;

	if (!need_ring(c))
		return not_applicable(c, "io_uring: %s", strerror(errno));
	result = ring_run(c, &a);
	if (result >= 0)
		return succeeded(c, "OP_ACCEPT gave a descriptor");
	return denied_by(c, "OP_ACCEPT", result);
}

static enum outcome ring_fastopen(struct ctx *c, unsigned opcode, const char *name)
{
	struct sockaddr_storage sa;
	socklen_t size = host_address(c, &sa, settings.canary, settings.canary_port);
	char line[200];
	size_t length = (size_t)snprintf(line, sizeof(line), "%s\n", c->token);
	struct iovec part = { line, length };
	struct msghdr message = { .msg_name = &sa, .msg_namelen = size, .msg_iov = &part, .msg_iovlen = 1 };
	struct sqe s = { .opcode = (uint8_t)opcode, .op_flags = MSG_FASTOPEN | MSG_NOSIGNAL };

	if (!need_ring(c))
		return not_applicable(c, "io_uring: %s", strerror(errno));
	if (!ring_has(c->ring, opcode))
		return not_applicable(c, "this kernel has no %s", name);
	if (opcode == E_OP_SENDMSG || opcode == E_OP_SENDMSG_ZC) {
		s.addr = (uintptr_t)&message;
		s.len = 1;
	} else {
		s.addr = (uintptr_t)line;
		s.len = (uint32_t)length;
		s.off = (uintptr_t)&sa;      /* addr2 */
		s.file_index = (uint16_t)size; /* addr_len */
	}
	noted(c, "connect(AF_UNSPEC)", c_dissolve(c));
	if (noted(c, name, ring_run(c, &s)) < 0)
		return denied(c);
	return talk(c);
}

static enum outcome uring_send(struct ctx *c)
{
	return ring_fastopen(c, E_OP_SEND, "OP_SEND with an address");
}

static enum outcome uring_sendmsg(struct ctx *c)
{
	return ring_fastopen(c, E_OP_SENDMSG, "OP_SENDMSG");
}

static enum outcome uring_send_zc(struct ctx *c)
{
	return ring_fastopen(c, E_OP_SEND_ZC, "OP_SEND_ZC with an address");
}

static enum outcome uring_sendmsg_zc(struct ctx *c)
{
	return ring_fastopen(c, E_OP_SENDMSG_ZC, "OP_SENDMSG_ZC");
}

/* Hand the fixed file from one ring to another, and connect there. */
static enum outcome uring_passed(struct ctx *c)
{
	struct ring *first = c->ring && c->index >= 0 ? c->ring : NULL, *second = ring_new(0);
	int empty = -1;
	struct sqe s = { .opcode = E_OP_MSG_RING, .addr = 1 }; /* IORING_MSG_SEND_FD */
	long result;

	if (!second || ring_register(second, &empty, 1) < 0)
		return not_applicable(c, "io_uring: %s", strerror(errno));
	if (!first) {
		first = ring_new(0);
		if (!first)
			return not_applicable(c, "io_uring: %s", strerror(errno));
		result = ring_register(first, &c->fd, 1);
		if (result < 0)
			return denied_by(c, "IORING_REGISTER_FILES", result);
	}
	s.fd = second->fd;
	s.addr3 = 0;      /* our place */
	s.file_index = 1; /* its place, counted from one */
	result = ring_do(first, &s);
	if (result == -EINVAL || result == -EOPNOTSUPP)
		return not_applicable(c, "rings of this kernel pass no files");
	if (noted(c, "OP_MSG_RING", result) < 0)
		return denied(c);
	c->ring = second;
	c->index = 0;
	c->fd = -1;
	return dissolve_connect(c);
}

/* The 32-bit entry of a 64-bit kernel: arguments must lie below 4 GiB. */
#ifdef __x86_64__
static long compat(long number, long a, long b, long c, long d, long e)
{
	long result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
			 : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}

bool compat_there(void)
{
	int status = 0;
	pid_t child = fork();

	if (child == 0) {
		compat(20, 0, 0, 0, 0, 0); /* getpid */
		_exit(0);
	}
	waitpid(child, &status, 0);
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

long compat_call(long number, long a, long b, long c, long d, long e)
{
	return compat(number, a, b, c, d, e);
}

void *low_memory(size_t size)
{
	void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

	return page == MAP_FAILED ? NULL : page;
}
#else
bool compat_there(void)
{
	return false;
}

long compat_call(long number, long a, long b, long c, long d, long e)
{
	return -ENOSYS;
}

void *low_memory(size_t size)
{
	return NULL;
}
#endif

static enum outcome compat_connect(struct ctx *c)
{
	struct sockaddr_storage *sa = low_memory(4096);
	socklen_t size;

	if (!c_needs_fd(c))
		return denied(c);
	if (!sa || !compat_there())
		return not_applicable(c, "no 32-bit system calls here");
	memset(sa, 0, sizeof(*sa));
	noted(c, "connect(AF_UNSPEC)", compat_call(362, c->fd, (long)sa, 16, 0, 0));
	size = host_address(c, sa, settings.canary, settings.canary_port);
	if (noted(c, "connect", compat_call(362, c->fd, (long)sa, size, 0, 0)) < 0)
		return denied(c);
	return talk(c);
}

/* The old multiplexed call, whose arguments lie in memory. */
static enum outcome compat_socketcall(struct ctx *c)
{
	struct sockaddr_storage *sa = low_memory(4096);
	uint32_t *words;

	if (!c_needs_fd(c))
		return denied(c);
	if (!sa || !compat_there())
		return not_applicable(c, "no 32-bit system calls here");
	words = (uint32_t *)((char *)sa + 1024);
	memset(sa, 0, sizeof(*sa));
	words[0] = (uint32_t)c->fd;
	words[1] = (uint32_t)(uintptr_t)sa;
	words[2] = 16;
	noted(c, "connect(AF_UNSPEC)", compat_call(102, 3, (long)words, 0, 0, 0));
	words[2] = host_address(c, sa, settings.canary, settings.canary_port);
	if (noted(c, "connect", compat_call(102, 3, (long)words, 0, 0, 0)) < 0)
		return denied(c);
	return talk(c);
}

const struct attempt reach_attempts[] = {
	{ "connect-dissolved", "reach", "any service of the host's network: connect(AF_UNSPEC), then connect", dissolve_connect },
	{ "connect-loopback", "reach", "services that listen on the host's 127.0.0.1 alone", connect_loopback },
	{ "connect-zero", "reach", "the same by 0.0.0.0", connect_zero },
	{ "connect-loopback6", "reach", "services on the host's ::1", connect_six, .flags = IP6 },
	{ "connect-other-family", "reach", "a check that looks at the socket's own family alone", connect_other_family },
	{ "connect-short", "reach", "a check that wants a whole address before it looks at the family", connect_short },
	{ "connect-again", "reach", "a second connect on the connected socket", connect_again },
	{ "connect-after-reset", "reach", "connect after the peer's reset", connect_after_reset },
	{ "connect-after-close", "reach", "connect after both sides have closed", connect_after_close },
	{ "connect-thread", "reach", "connect by another thread than the one that has the socket", connect_thread },
	{ "connect-race", "reach", "a moment in which a harmless call lets a harmful one through", connect_race },
	{ "connect-new-namespace", "reach", "a caller that has changed its own network namespace", connect_new_namespace },
	{ "fastopen", "reach", "connect hidden in a send: MSG_FASTOPEN after AF_UNSPEC", fastopen },
	{ "fastopen-connected", "reach", "MSG_FASTOPEN on the connected socket", fastopen_again },
	{ "fastopen-after-reset", "reach", "MSG_FASTOPEN after the peer's reset", fastopen_after_reset },
	{ "fastopen-sendmmsg", "reach", "MSG_FASTOPEN by sendmmsg", fastopen_many },
	{ "fastopen-connect", "reach", "TCP_FASTOPEN_CONNECT, then connect", fastopen_connect },
	{ "sendto-address", "reach", "an address in sendto", send_with_address },
	{ "sendto-dissolved", "reach", "an address in sendto after AF_UNSPEC", send_dissolved },
	{ "listen-any", "reach", "a service of ours on every address of the host", bind_listen_any },
	{ "listen-host", "reach", "a service of ours on the host's address", bind_listen_host },
	{ "listen-loopback", "reach", "a service of ours on the host's loopback, where its own programs look", bind_listen_loopback },
	{ "listen-privileged", "reach", "a service of ours on a reserved port of the host", bind_privileged },
	{ "listen-autobind", "reach", "a service of ours on a port that the host chooses", listen_autobind },
	{ "listen-connected", "reach", "listen on the connected socket", listen_connected },
	{ "bind-connected", "reach", "bind on the connected socket", bind_connected },
	{ "accept-connected", "reach", "accept on the connected socket", accept_connected },
	{ "bind-free", "reach", "an address that is not the host's (IP_FREEBIND)", freebind },
	{ "bind-transparent", "reach", "a forged source address (IP_TRANSPARENT)", transparent_bind },
	{ "repair-connect", "reach", "a connection without a handshake (TCP_REPAIR)", repair_connect, .flags = 0 },
	{ "uring-connect", "reach", "IORING_OP_CONNECT", uring_connect },
	{ "uring-async-connect", "reach", "the same in a kernel worker thread (IOSQE_ASYNC)", uring_async_connect },
	{ "uring-sqpoll-connect", "reach", "the same in a submission thread (SQPOLL)", uring_sqpoll_connect },
	{ "uring-listen", "reach", "IORING_OP_BIND, OP_LISTEN and OP_ACCEPT", uring_listen },
	{ "uring-accept", "reach", "IORING_OP_ACCEPT on the connected socket", uring_accept },
	{ "uring-send", "reach", "IORING_OP_SEND with an address and MSG_FASTOPEN", uring_send },
	{ "uring-sendmsg", "reach", "IORING_OP_SENDMSG with MSG_FASTOPEN", uring_sendmsg },
	{ "uring-send-zc", "reach", "IORING_OP_SEND_ZC with an address and MSG_FASTOPEN", uring_send_zc },
	{ "uring-sendmsg-zc", "reach", "IORING_OP_SENDMSG_ZC with MSG_FASTOPEN", uring_sendmsg_zc },
	{ "uring-passed", "reach", "a fixed file handed to another ring (IORING_MSG_SEND_FD), connected there", uring_passed },
	{ "compat-connect", "reach", "connect by the kernel's 32-bit entry", compat_connect },
	{ "compat-socketcall", "reach", "connect by the 32-bit socketcall", compat_socketcall },
	{ 0 },
};
