// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every call on a tagged socket, from every place that it can get to.
 *
 *   router --TAG--> fd --fork--> container: itself, dup, exec, SCM_RIGHTS to a
 *     |                          second container, pidfd_getfd, int 0x80
 *     peer
 *
 * The sweep also runs on an untagged socket, where calls must not be refused,
 * and on a tagged one in the router, which is exempt.
 */
#define _GNU_SOURCE
#include "lib.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../allow.h"

#define IORING_OP_BIND_ 56
#define IORING_OP_LISTEN_ 57

static int refused, passed;

/* Option names tried of each level; all that there are, once. */
static int sweep_names = 80;

/* A call has been made: was it refused, and should it have been? */
static void expect(bool outside, long result, int error, const char *format, long a, long b)
{
	bool denied = result < 0 && error == EPERM;
	char text[96];

	if (denied)
		refused++;
	else
		passed++;
	snprintf(text, sizeof(text), format, a, b);
	check(denied == outside, "%s: %s (result %ld, %s)", text,
	      outside ? "was let through" : "was refused", result,
	      result < 0 ? strerror(error) : "no error");
}

#define EXPECT(outside, call, name) do { \
		errno = 0; \
		long result_ = (call); \
		expect(outside, result_, errno, name, 0, 0); \
	} while (0)

static void sweep_options(int fd, bool outside)
{
	static const int levels[] = { 0, 1, 6, 17, 41, 58, 132, 136, 255, 263, 270, 273, 282, 284 };
	char value[256];
	socklen_t length;
	int name, result;
	size_t i;

	for (i = 0; i < sizeof(levels) / sizeof(*levels); i++)
		for (name = 0; name < sweep_names; name++) {
			if (outside || slim_allow_get(levels[i], name)) {
				length = sizeof(value);
				result = getsockopt(fd, levels[i], name, value, &length);
				expect(outside && !slim_allow_get(levels[i], name), result, errno,
				       "getsockopt(%ld, %ld)", levels[i], name);
			}
			if (outside || slim_allow_set(levels[i], name)) {
				memset(value, 0, sizeof(value));
				result = setsockopt(fd, levels[i], name, value, sizeof(int));
				expect(outside && !slim_allow_set(levels[i], name), result, errno,
				       "setsockopt(%ld, %ld)", levels[i], name);
			}
		}
}

static void sweep_ioctls(int fd, bool outside)
{
	static const unsigned int others[] = {
		1, 2, 0x5460, 0x894c, 0x80086601, 0x80047601, 0xc020660b, 0x80108906, 0x80108907,
		0x40086602, 0x801c581f, 0x541b | 0x80000000,
	};
	static const unsigned int ranges[][2] = { { 0x5400, 0x5480 }, { 0x8900, 0x8a00 },
						  { 0x8b00, 0x8b40 } };
	char value[4096];
	unsigned int cmd;
	size_t i;
	int result;

	for (i = 0; i < sizeof(ranges) / sizeof(*ranges); i++)
		for (cmd = ranges[i][0]; cmd < ranges[i][1]; cmd++) {
			if (!outside && !slim_allow_ioctl(cmd))
				continue;
			memset(value, 0, sizeof(value));
			result = ioctl(fd, cmd, value);
			expect(outside && !slim_allow_ioctl(cmd), result, errno, "ioctl(0x%lx)",
			       cmd, 0);
		}
	for (i = 0; outside && i < sizeof(others) / sizeof(*others); i++) {
		memset(value, 0, sizeof(value));
		result = ioctl(fd, others[i], value);
		expect(true, result, errno, "ioctl(0x%lx)", others[i], 0);
	}
	ioctl(fd, FIONCLEX);
}

static long compat(long number, long a, long b, long c, long d, long e)
{
	long result;

	asm volatile("push %%rbp\n\tint $0x80\n\tpop %%rbp"
		     : "=a"(result)
		     : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
		     : "memory", "r8", "r9", "r10", "r11");
	result = (int)result;
	if (result >= 0)
		return result;
	errno = -result;
	return -1;
}

/* The 32-bit system calls, which have entries of their own. */
static void sweep_compat(int fd)
{
	char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	struct sockaddr_in *address = (struct sockaddr_in *)low;
	int *length = (int *)(low + 2048);
	unsigned int cmd;
	long at = (long)low;

	need(low != MAP_FAILED, "mmap");
	if (compat(20, 0, 0, 0, 0, 0) != getpid()) {
		printf("no 32-bit system calls here\n");
		return;
	}
	*length = 128;
	EXPECT(true, compat(367, fd, at, at + 2048, 0, 0), "32-bit getsockname");
	EXPECT(true, compat(368, fd, at, at + 2048, 0, 0), "32-bit getpeername");
	address->sin_family = AF_UNSPEC;
	EXPECT(true, compat(362, fd, at, 16, 0, 0), "32-bit connect");
	EXPECT(true, compat(361, fd, at, 16, 0, 0), "32-bit bind");
	EXPECT(true, compat(363, fd, 1, 0, 0, 0), "32-bit listen");
	EXPECT(true, compat(364, fd, 0, 0, 0, 0), "32-bit accept4");
	EXPECT(true, compat(366, fd, 1, 36, at, 4), "32-bit setsockopt");
	EXPECT(true, compat(365, fd, 1, 28, at, at + 2048), "32-bit getsockopt");
	for (cmd = 0x8900; cmd < 0x89ff; cmd++) {
		if (slim_allow_ioctl(cmd))
			continue;
		memset(low, 0, 2048);
		expect(true, compat(54, fd, cmd, at, 0, 0), errno, "32-bit ioctl(0x%lx)", cmd, 0);
	}
	munmap(low, 4096);
}

static void sweep_send(int fd, bool outside)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(1),
				       .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	char control[64] = "", byte = 'x';
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_name = &address, .msg_namelen = sizeof(address),
				  .msg_iov = &data, .msg_iovlen = 1 };
	struct cmsghdr *head = (struct cmsghdr *)control;
	struct mmsghdr many = { .msg_hdr = message };

	if (!outside)
		return;
	EXPECT(true, sendto(fd, &byte, 1, 0, (void *)&address, sizeof(address)), "sendto(address)");
	EXPECT(true, send(fd, &byte, 1, MSG_FASTOPEN), "send(MSG_FASTOPEN)");
	EXPECT(true, sendto(fd, &byte, 1, MSG_FASTOPEN, (void *)&address, sizeof(address)),
	       "sendto(MSG_FASTOPEN, address)");
	EXPECT(true, send(fd, &byte, 1, MSG_ZEROCOPY), "send(MSG_ZEROCOPY)");
	EXPECT(true, sendmsg(fd, &message, 0), "sendmsg(address)");
	EXPECT(true, sendmmsg(fd, &many, 1, 0), "sendmmsg(address)");
	message.msg_name = NULL;
	message.msg_namelen = 0;
	head->cmsg_len = CMSG_LEN(sizeof(int));
	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = 36;	/* SO_MARK */
	message.msg_control = control;
	message.msg_controllen = CMSG_SPACE(sizeof(int));
	EXPECT(true, sendmsg(fd, &message, 0), "sendmsg(control)");
	message.msg_controllen = sizeof(control);
	EXPECT(true, recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT), "recvmsg(MSG_ERRQUEUE)");
	EXPECT(true, recv(fd, &byte, 1, MSG_ERRQUEUE | MSG_DONTWAIT), "recv(MSG_ERRQUEUE)");
}

static void expect_uring(const char *name, int result)
{
	expect(true, result, -result, name, 0, 0);
}

/* An operation that older kernels do not have (EINVAL, EOPNOTSUPP). */
static void expect_uring_new(const char *name, int result)
{
	if (result != -EINVAL && result != -EOPNOTSUPP)
		expect_uring(name, result);
}

static void sweep_uring(int fd)
{
	struct sockaddr_in address = { .sin_family = AF_UNSPEC };
	int probe = uring_one(IORING_OP_NOP, fd, NULL, 0, 0, 0, false), value = 1, fixed;
	struct iovec data = { &value, 1 };
	struct msghdr message = { .msg_name = &address, .msg_namelen = sizeof(address),
				  .msg_iov = &data, .msg_iovlen = 1 };

	if (probe) {
		printf("no io_uring here: %s\n", strerror(-probe));
		return;
	}
	for (fixed = 0; fixed < 2; fixed++) {
		expect_uring("io_uring connect", uring_one(IORING_OP_CONNECT, fd, &address, 0,
							   sizeof(address), 0, fixed));
		expect_uring("io_uring accept", uring_one(IORING_OP_ACCEPT, fd, NULL, 0, 0, 0, fixed));
		expect_uring_new("io_uring bind", uring_one(IORING_OP_BIND_, fd, &address, 0,
							sizeof(address), 0, fixed));
		expect_uring_new("io_uring listen", uring_one(IORING_OP_LISTEN_, fd, NULL, 1, 0, 0, fixed));
		expect_uring("io_uring sendmsg(address)", uring_one(IORING_OP_SENDMSG, fd, &message, 1,
								    0, 0, fixed));
		expect_uring("io_uring send(MSG_FASTOPEN)", uring_one(IORING_OP_SEND, fd, &value, 1, 0,
								      MSG_FASTOPEN, fixed));
		expect_uring("io_uring send_zc", uring_one(47, fd, &value, 1, 0, 0, fixed));
		expect_uring("io_uring recv(MSG_ERRQUEUE)", uring_one(IORING_OP_RECV, fd, &value, 1, 0,
								      MSG_ERRQUEUE | MSG_DONTWAIT, fixed));
	}
	expect_uring_new("io_uring setsockopt", uring_socket_command(fd, 3, SOL_SOCKET, 36, &value, 4));
	expect_uring_new("io_uring getsockopt", uring_socket_command(fd, 2, SOL_SOCKET, 25, &value, 4));
}

static void sweep_data(int fd)
{
	char buffer[16] = "";
	struct pollfd poller = { fd, POLLOUT, 0 };
	struct iovec data = { buffer, 4 };
	int pipe_fd[2], file, copy;

	check(write(fd, "1234", 4) == 4, "write: %s", strerror(errno));
	check(send(fd, "12", 2, MSG_NOSIGNAL | MSG_DONTWAIT) == 2, "send: %s", strerror(errno));
	check(writev(fd, &data, 1) == 4, "writev: %s", strerror(errno));
	check(send(fd, "!", 1, MSG_OOB) == 1, "send(MSG_OOB): %s", strerror(errno));
	check(poll(&poller, 1, 0) == 1 && poller.revents == POLLOUT, "poll: %x", poller.revents);
	file = open("/proc/self/exe", O_RDONLY);
	check(sendfile(fd, file, NULL, 100) == 100, "sendfile: %s", strerror(errno));
	need(!pipe(pipe_fd), "pipe");
	check(write(pipe_fd[1], "abc", 3) == 3 && splice(pipe_fd[0], NULL, fd, NULL, 3, 0) == 3,
	      "splice out: %s", strerror(errno));
	check(recv(fd, buffer, 2, MSG_PEEK | MSG_DONTWAIT) == 2, "recv(MSG_PEEK): %s", strerror(errno));
	check(read(fd, buffer, 2) == 2, "read: %s", strerror(errno));
	check(splice(fd, NULL, pipe_fd[1], NULL, 2, 0) == 2, "splice in: %s", strerror(errno));
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 50);
	check(copy >= 50, "F_DUPFD: %s", strerror(errno));
	check(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL)) == 0, "F_SETFL: %s", strerror(errno));
	close(copy);
	close(file);
	close(pipe_fd[0]);
	close(pipe_fd[1]);
}

int sweep(int fd, bool outside)
{
	struct sockaddr_storage address = { .ss_family = AF_UNSPEC };
	socklen_t length = sizeof(address);
	int before = failures;
	char path[32];

	if (!quiet)
		sweep_data(fd);
	/* To nobody: whether it may be tried at all is the question. */
	EXPECT(outside, fchown(fd, -1, -1), "fchown");
	EXPECT(outside, fchownat(fd, "", -1, -1, AT_EMPTY_PATH), "fchownat");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	EXPECT(outside, chown(path, -1, -1), "chown");
	EXPECT(outside, getsockname(fd, (void *)&address, &length), "getsockname");
	length = sizeof(address);
	EXPECT(outside, getpeername(fd, (void *)&address, &length), "getpeername");
	if (outside) {
		address.ss_family = AF_UNSPEC;
		EXPECT(true, connect(fd, (void *)&address, sizeof(address)), "connect(AF_UNSPEC)");
		address.ss_family = AF_INET;
		EXPECT(true, connect(fd, (void *)&address, sizeof(address)), "connect");
		EXPECT(true, bind(fd, (void *)&address, sizeof(address)), "bind");
		EXPECT(true, accept(fd, NULL, NULL), "accept");
		EXPECT(true, accept4(fd, NULL, NULL, SOCK_CLOEXEC), "accept4");
		EXPECT(true, mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0,
		       "mmap");
		EXPECT(true, listen(fd, 1), "listen");
		/* Without a tag it listens now, and accept would wait. */
		if (!quiet) {
			sweep_uring(fd);
			sweep_compat(fd);
		}
	}
	sweep_send(fd, outside);
	sweep_ioctls(fd, outside);
	sweep_options(fd, outside);
	return status_of(failures - before);
}

static int run_direct(void *data)
{
	return sweep(*(int *)data, true);
}

static int run_dup(void *data)
{
	return sweep(dup(*(int *)data), true);
}

static int run_fork(void *data)
{
	pid_t pid = fork();

	if (!pid)
		exit(sweep(*(int *)data, true));
	return finish(pid);
}

static int run_exec(void *data)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", *(int *)data);
	execl("/proc/self/exe", "slimtest", "sweep", text, NULL);
	return 99;
}

static int run_passed(void *data)
{
	int channel[2];
	pid_t pid;

	need(!socketpair(AF_UNIX, SOCK_STREAM, 0, channel), "socketpair");
	pid = fork();
	if (!pid) {
		close(*(int *)data);
		exit(unshare(CLONE_NEWUSER | CLONE_NEWNET) || sweep(receive_fd(channel[1]), true));
	}
	check(!send_fd(channel[0], *(int *)data), "SCM_RIGHTS: %s", strerror(errno));
	return finish(pid) + failures;
}

static int run_pidfd(void *data)
{
	int pidfd = syscall(SYS_pidfd_open, getpid(), 0);
	int fd = syscall(SYS_pidfd_getfd, pidfd, *(int *)data, 0);

	check(fd >= 0, "pidfd_getfd: %s", strerror(errno));
	return sweep(fd, true);
}

static const struct {
	const char *name;
	int (*run)(void *data);
} ways[] = {
	{ "itself", run_direct }, { "dup", run_dup }, { "fork", run_fork }, { "exec", run_exec },
	{ "SCM_RIGHTS", run_passed }, { "pidfd_getfd", run_pidfd },
};

int main_sweep(int argc, char **argv)
{
	return argc == 3 ? sweep(atoi(argv[2]), true) : 2;
}

/* A kernel thread's question, by worker/worker.c; 0 or -errno. */
static int worker_ask(int fd)
{
	char text[16];
	int file = open("/sys/module/worker/parameters/fd", O_WRONLY);
	int length = snprintf(text, sizeof(text), "%d", fd), error = 0;

	need(file >= 0, "worker");
	if (write(file, text, length) != length)
		error = -errno;
	close(file);
	return error;
}

/* Enough for sweep_data() to read. */
static void feed(int peer)
{
	need(write(peer, "abcdefgh", 8) == 8, "feed");
}

int main_calls(int argc, char **argv)
{
	static const char *const kinds[] = { "AF_INET", "AF_INET6", "mapped" };
	struct pair pair;
	size_t i;
	int kind, root;

	(void)argc;
	(void)argv;
	for (kind = PAIR_V4; kind <= PAIR_MAPPED; kind++) {
		for (root = 0; root < 2; root++)
			for (i = 0; i < sizeof(ways) / sizeof(*ways); i++) {
				/* The ways on one family, the families on one way. */
				if (kind != PAIR_V4 && i)
					continue;
				sweep_names = i || root ? 80 : 256;
				pair = pair_tagged(kind);
				feed(pair.peer);
				check(!finish(container_start(ways[i].run, &pair.fd, root)),
				      "%s by %s as %s", kinds[kind], ways[i].name,
				      root ? "root" : "nobody");
				pair_close(&pair);
			}
		/* The router is exempt. */
		pair = pair_tagged(kind);
		feed(pair.peer);
		check(!sweep(pair.fd, false), "%s in the router", kinds[kind]);
		check(setsockopt(pair.fd, 6, 31, "tls", 3) < 0 && errno == EPERM,
		      "TCP_ULP in the router: %s", strerror(errno));
		check(listen(pair.fd, 1) < 0 && errno == EPERM, "listen in the router: %s",
		      strerror(errno));
		/* A kernel thread is not the router, though it lives where the router does. */
		check(worker_ask(pair.fd) == -EPERM, "getsockname by a kernel thread: %d",
		      worker_ask(pair.fd));
		check(!worker_ask(pair.peer), "getsockname by a kernel thread, untagged: %d",
		      worker_ask(pair.peer));
		pair_close(&pair);
	}
	/* The suite itself: without a tag the same calls go through. */
	quiet = true;
	pair = pair_make(PAIR_V4);
	feed(pair.peer);
	root = finish(container_start(run_direct, &pair.fd, false));
	quiet = false;
	check(root > 50 && root <= 250,
	      "an untagged socket is refused too: the sweep proves nothing");
	pair_close(&pair);
	check(stat_wait("tags", 0, 5), "tags: %ld", stat_read("tags"));
	printf("calls: %ld refused in all\n", stat_read("denied_total"));
	return failures;
}
