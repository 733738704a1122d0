// SPDX-License-Identifier: GPL-2.0-only
/*
 * What revocation does to everybody who holds the socket.
 *
 *   router -- control --> REVOKE
 *   container: readers, writers, poll, epoll, splice, io_uring: asleep on it
 *     +- forked child, second container (SCM_RIGHTS), stopped process,
 *     +- a copy inside a Unix socket, a process that keeps forking
 *
 * Every sleeper must get ECONNABORTED: the end of the stream (0) would look
 * like the end of the data.
 */
#define _GNU_SOURCE
#include "lib.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* Is the descriptor gone, or will it be within the time? */
static bool gone(int fd, double seconds)
{
	double end = now() + seconds;

	while (fcntl(fd, F_GETFD) >= 0) {
		if (now() > end)
			return false;
		usleep(5000);
	}
	return errno == EBADF;
}

struct sleeper {
	const char *name;
	long (*sleep)(int fd);
	int fd;
	pthread_t thread;
	long result;
	int error;
};

static long sleep_recv(int fd)
{
	char byte;

	return recv(fd, &byte, 1, 0);
}

static long sleep_read(int fd)
{
	char bytes[100];

	return read(fd, bytes, sizeof(bytes));
}

static long sleep_waitall(int fd)
{
	char bytes[100];

	return recv(fd, bytes, sizeof(bytes), MSG_WAITALL);
}

static long sleep_splice(int fd)
{
	int ends[2];

	need(!pipe(ends), "pipe");
	return splice(fd, NULL, ends[1], NULL, 100, 0);
}

/* Who wakes when his descriptor has been taken away already hears just that. */
static long sleep_poll(int fd)
{
	struct pollfd poller = { fd, POLLIN, 0 };

	if (poll(&poller, 1, -1) == 1 &&
	    ((poller.revents & (POLLERR | POLLHUP)) == (POLLERR | POLLHUP) ||
	     poller.revents == POLLNVAL)) {
		errno = ECONNABORTED;
		return -1;
	}
	return poller.revents;
}

static long sleep_select(int fd)
{
	fd_set set;

	FD_ZERO(&set);
	FD_SET(fd, &set);
	if (select(fd + 1, &set, NULL, NULL, NULL) == 1 ? FD_ISSET(fd, &set) : errno == EBADF) {
		errno = ECONNABORTED;
		return -1;
	}
	return 1;
}

static long sleep_epoll(int fd)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	int set = epoll_create1(0), count;

	need(!epoll_ctl(set, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
	do {
		count = epoll_wait(set, &event, 1, 10000);
	} while (count < 0 && errno == EINTR);
	if (count == 1 && (event.events & EPOLLERR) && (event.events & EPOLLHUP)) {
		errno = ECONNABORTED;
		return -1;
	}
	return count == 1 ? (long)event.events : 0;
}

static long sleep_write(int fd)
{
	static char block[65536];
	long result;

	do {
		result = send(fd, block, sizeof(block), MSG_NOSIGNAL);
	} while (result > 0);
	return result;
}

static void *sleeper_run(void *data)
{
	struct sleeper *sleeper = data;

	sleeper->result = sleeper->sleep(sleeper->fd);
	sleeper->error = errno;
	return NULL;
}

/* fds: readers', the writers', and one to be read through io_uring. */
static int run_sleepers(void *data)
{
	const int *fds = data;
	struct sleeper sleepers[] = {
		{ .name = "recv 1", .sleep = sleep_recv }, { .name = "recv 2", .sleep = sleep_recv },
		{ .name = "recv 3", .sleep = sleep_recv }, { .name = "read", .sleep = sleep_read },
		{ .name = "recv(MSG_WAITALL)", .sleep = sleep_waitall },
		{ .name = "splice", .sleep = sleep_splice }, { .name = "poll", .sleep = sleep_poll },
		{ .name = "select", .sleep = sleep_select }, { .name = "epoll", .sleep = sleep_epoll },
		{ .name = "send 1", .sleep = sleep_write }, { .name = "send 2", .sleep = sleep_write },
	};
	int count = sizeof(sleepers) / sizeof(*sleepers), i, result;
	char byte;

	for (i = 0; i < count; i++) {
		sleepers[i].fd = fds[sleepers[i].sleep == sleep_write];
		need(!pthread_create(&sleepers[i].thread, NULL, sleeper_run, &sleepers[i]),
		     "pthread_create");
	}
	result = uring_start(IORING_OP_RECV, fds[2], &byte, 1, true);
	if (!result) {
		close(fds[2]);	/* the ring's own reference is all that is left */
		result = uring_wait();
		check(result == -ECONNABORTED, "io_uring recv: %d", result);
	}
	for (i = 0; i < count; i++) {
		pthread_join(sleepers[i].thread, NULL);
		check(sleepers[i].result < 0 && sleepers[i].error == ECONNABORTED,
		      "%s: %ld, %s", sleepers[i].name, sleepers[i].result,
		      strerror(sleepers[i].error));
	}
	for (i = 0; i < 2; i++)
		check(gone(fds[i], 5), "descriptor %d is still there", i);
	return failures;
}

static int run_reader(void *data)
{
	int fd = *(int *)data;
	long result = sleep_recv(fd);

	check(result < 0 && errno == ECONNABORTED, "reader: %ld, %s", result, strerror(errno));
	check(gone(fd, 5), "the reader's descriptor is still there");
	return failures;
}

static int run_receiver(void *data)
{
	int fd = receive_fd(*(int *)data);

	return run_reader(&fd);
}

static void check_reset(int peer)
{
	char block[4096];
	ssize_t got;

	do {
		got = recv(peer, block, sizeof(block), 0);
	} while (got > 0);
	check(got < 0 && errno == ECONNRESET, "the peer got %zd, %s", got, strerror(errno));
}

static void test_sleepers(int kind)
{
	struct pair pairs[3];
	uint64_t cookies[4];
	int fds[3], channel[2], i;
	pid_t pids[3];

	for (i = 0; i < 3; i++) {
		pairs[i] = pair_tagged(kind);
		fds[i] = pairs[i].fd;
		cookies[i] = pairs[i].cookie;
	}
	cookies[3] = 0x7fffffffffff;	/* nobody's */
	need(!socketpair(AF_UNIX, SOCK_STREAM, 0, channel), "socketpair");
	pids[0] = container_start(run_sleepers, fds, false);
	pids[1] = container_start(run_reader, &fds[0], true);
	pids[2] = container_start(run_receiver, &channel[1], false);
	send_fd(channel[0], fds[0]);
	for (i = 0; i < 3; i++)
		close(fds[i]);
	check(wait_asleep(pids[0], 12) && wait_asleep(pids[1], 1) && wait_asleep(pids[2], 1),
	      "the sleepers do not sleep");
	check(control_revoke(cookies, 4) == 4 * (ssize_t)sizeof(struct record), "revoke");
	for (i = 0; i < 3; i++)
		check(!finish(pids[i]), "process %d of kind %d", i, kind);
	for (i = 0; i < 3; i++) {
		check_reset(pairs[i].peer);
		close(pairs[i].peer);
	}
	close(channel[0]);
	close(channel[1]);
	/* The epoll set's stays for a while. */
	check(stat_wait("tags", 0, 15), "tags: %ld", stat_read("tags"));
}

/*
 * An event loop that is busy while it loses its descriptor: it must be told,
 * however late, and then not for long, for the number is another file's soon.
 */
static int run_watched(void *data)
{
	struct epoll_event event = { .events = EPOLLIN };
	int fd = *(int *)data, set = epoll_create1(0);
	double seen;

	need(!epoll_ctl(set, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
	raise(SIGSTOP);
	check(gone(fd, 10), "the descriptor is still there");
	/* Ten times as long as it stays once it has been seen. */
	usleep(1000000);
	event.events = 0;
	check(epoll_wait(set, &event, 1, 0) == 1, "epoll_wait: nothing");
	check((event.events & EPOLLERR) && (event.events & EPOLLHUP), "epoll_wait: %x", event.events);
	need(fcntl(0, F_DUPFD, fd) == fd, "the same number again");
	seen = now();
	while (epoll_wait(set, &event, 1, 0) == 1 && now() < seen + 10)
		usleep(10000);
	printf("revoked: an event without a descriptor for %.0f ms after it was seen\n",
	       1000 * (now() - seen));
	check(now() - seen < 2, "reported for %.1f s", now() - seen);
	return failures;
}

/* A second set hears of it too, after the first has looked. */
static int run_watched_twice(void *data)
{
	struct epoll_event event = { .events = EPOLLIN };
	int fd = *(int *)data, sets[2], i;

	for (i = 0; i < 2; i++) {
		sets[i] = epoll_create1(0);
		need(!epoll_ctl(sets[i], EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
	}
	raise(SIGSTOP);
	check(gone(fd, 10), "the descriptor is still there");
	for (i = 0; i < 2; i++) {
		check(epoll_wait(sets[i], &event, 1, 0) == 1, "set %d: nothing", i);
		usleep(1000000);
	}
	return failures;
}

static void test_watched(int (*run)(void *data))
{
	struct pair pair = pair_tagged(PAIR_V4);
	long before = stat_read("leftovers_total");
	pid_t pid = container_start(run, &pair.fd, false);
	int status;

	close(pair.fd);
	need(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status), "watching");
	kill(pid, SIGCONT);
	check(control_revoke(&pair.cookie, 1) == sizeof(struct record), "revoke");
	check(stat_read("leftovers_total") == before, "a watched socket is a leftover");
	check(stat_read("held") == 0, "held: %ld", stat_read("held"));
	check_reset(pair.peer);
	check(!finish(pid), "watched");
	check(stat_wait("tags", 0, 15), "tags: %ld", stat_read("tags"));
	close(pair.peer);
}

/* Every call on a revoked socket that is still held. */
static int run_dead(void *data)
{
	int channel = *(int *)data, fd, i, value;
	struct pollfd poller = { .events = POLLIN };
	socklen_t length;
	char byte;

	check(receive_fd(channel) >= 0, "the go-ahead");
	fd = receive_fd(channel);
	check(fd >= 0, "received: %s", strerror(errno));
	for (i = 0; i < 3; i++) {
		check(recv(fd, &byte, 1, 0) < 0 && errno == ECONNABORTED, "recv: %s", strerror(errno));
		check(write(fd, "x", 1) < 0 && errno == ECONNABORTED, "write: %s", strerror(errno));
		check(shutdown(fd, SHUT_RDWR) < 0 && errno == ECONNABORTED, "shutdown: %s",
		      strerror(errno));
		poller.fd = fd;
		check(poll(&poller, 1, 0) == 1 && (poller.revents & POLLERR) &&
		      (poller.revents & POLLHUP), "poll: %x", poller.revents);
		length = sizeof(value);
		check(!getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &length) && value == ECONNABORTED,
		      "SO_ERROR: %s", strerror(value));
		value = 1;
		check(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, 4) < 0 && errno == ECONNABORTED,
		      "SO_KEEPALIVE: %s", strerror(errno));
		check(setsockopt(fd, 6, 1, &value, 4) < 0 && errno == ECONNABORTED, "TCP_NODELAY: %s",
		      strerror(errno));
		check(connect(fd, &(struct sockaddr){ AF_UNSPEC, "" }, 16) < 0 &&
		      errno == ECONNABORTED, "connect(AF_UNSPEC): %s", strerror(errno));
		length = sizeof(struct sockaddr);
		check(getpeername(fd, &(struct sockaddr){ 0, "" }, &length) < 0 && errno == EPERM,
		      "getpeername: %s", strerror(errno));
	}
	return failures;
}

static void test_queued(void)
{
	struct pair pair = pair_tagged(PAIR_V4);
	long before = stat_read("leftovers_total");
	int channel[2], error;
	pid_t pid;

	need(!socketpair(AF_UNIX, SOCK_DGRAM, 0, channel), "socketpair");
	pid = container_start(run_dead, &channel[1], false);
	error = dup(0);
	/* The first message waits for the revocation; see below. */
	need(!send_fd(channel[1], pair.fd), "send");
	close(pair.fd);
	check(control_revoke(&pair.cookie, 1) == sizeof(struct record), "revoke");
	check(stat_read("leftovers_total") == before + 1, "a queued copy is no leftover");
	check_reset(pair.peer);
	/* It lay in our own queue; now let the container have it. */
	pair.fd = receive_fd(channel[0]);
	need(!send_fd(channel[0], error) && !send_fd(channel[0], pair.fd), "send");
	check(control_one(OP_TAG, pair.fd, pair.cookie) == -EALREADY, "tagging a revoked socket: %d", control_one(OP_TAG, pair.fd, pair.cookie));
	close(pair.fd);
	check(!finish(pid), "a queued copy");
	close(channel[0]);
	close(channel[1]);
	close(pair.peer);
	close(error);
	check(stat_wait("tags", 0, 5), "tags: %ld", stat_read("tags"));
}

static int run_stopped(void *data)
{
	int fd = *(int *)data;

	raise(SIGSTOP);
	check(fcntl(fd, F_GETFD) < 0 && errno == EBADF, "the stopped task still has it");
	return failures;
}

/* The same, whether the router has a copy too or not. */
static void test_stopped(bool keep)
{
	struct pair pair = pair_tagged(PAIR_V4);
	pid_t pid = container_start(run_stopped, &pair.fd, false);
	long before = stat_read("leftovers_total");
	double start;
	int status;

	if (!keep)
		close(pair.fd);
	need(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status), "stopped");
	start = now();
	check(control_revoke(&pair.cookie, 1) == sizeof(struct record), "revoke");
	printf("revoked: with a stopped holder in %.0f ms\n", 1000 * (now() - start));
	check(now() - start < 3, "a stopped task held the revocation up");
	check_reset(pair.peer);
	check(stat_read("held") == 1, "held: %ld", stat_read("held"));
	check(stat_read("leftovers_total") == before + 1, "a stopped task's copy is no leftover");
	kill(pid, SIGCONT);
	check(!finish(pid), "the stopped task");
	if (keep)
		close(pair.fd);
	check(stat_wait("tags", 0, 5), "tags: %ld", stat_read("tags"));
	close(pair.peer);
}

static int run_forker(void *data)
{
	int fd = *(int *)data, alive = 0;
	double end = now() + 20;

	while (now() < end && fcntl(fd, F_GETFD) >= 0) {
		if (alive == 40) {
			wait(NULL);
			alive--;
		}
		if (!fork()) {
			/* Outlives the walk, unless its copy is taken. */
			exit(!gone(fd, 30));
		}
		alive++;
		if (alive > 4)
			usleep(500);
	}
	while (alive--) {
		int status;

		wait(&status);
		check(WIFEXITED(status) && !WEXITSTATUS(status), "a child kept its copy");
	}
	return failures;
}

static void test_forks(bool keep)
{
	struct pair pair = pair_tagged(PAIR_V4);
	pid_t pids[2];
	int i;

	for (i = 0; i < 2; i++)
		pids[i] = container_start(run_forker, &pair.fd, false);
	if (!keep)
		close(pair.fd);
	usleep(200000);
	check(control_revoke(&pair.cookie, 1) == sizeof(struct record), "revoke");
	for (i = 0; i < 2; i++)
		check(!finish(pids[i]), "forks");
	check_reset(pair.peer);
	if (keep)
		close(pair.fd);
	check(stat_wait("tags", 0, 5), "tags: %ld", stat_read("tags"));
	close(pair.peer);
}

#define MANY 1000

static int run_many(void *data)
{
	const int *fds = data;
	int i;

	for (i = 0; i < MANY; i++)
		need(dup(fds[i]) >= 0, "dup");
	raise(SIGSTOP);
	for (i = 0; i < MANY; i++)
		check(gone(fds[i], 10), "descriptor %d", i);
	return failures;
}

static void test_many(void)
{
	static struct pair pairs[MANY];
	static uint64_t cookies[MANY];
	static int fds[MANY];
	double start, spent;
	pid_t pids[2];
	int i, status;

	for (i = 0; i < MANY; i++) {
		pairs[i] = pair_tagged(PAIR_V4);
		fds[i] = pairs[i].fd;
		cookies[i] = pairs[i].cookie;
	}
	for (i = 0; i < 2; i++) {
		pids[i] = container_start(run_many, fds, false);
		need(waitpid(pids[i], &status, WUNTRACED) == pids[i] && WIFSTOPPED(status), "ready");
		kill(pids[i], SIGCONT);
	}
	for (i = 0; i < MANY; i++)
		close(fds[i]);
	start = now();
	check(control_revoke(cookies, MANY) == MANY * (ssize_t)sizeof(struct record), "revoke");
	spent = now() - start;
	printf("revoked: %d connections, 4 copies each, in one write: %.0f ms\n", MANY, 1000 * spent);
	check(stat_read("held") == 0, "held: %ld", stat_read("held"));
	for (i = 0; i < MANY; i++) {
		check_reset(pairs[i].peer);
		close(pairs[i].peer);
	}
	for (i = 0; i < 2; i++)
		check(!finish(pids[i]), "many");
	check(stat_wait("tags", 0, 10), "tags: %ld", stat_read("tags"));
}

static void *run_locked(void *data)
{
	long *all = data;

	all[2] = send(all[0], (void *)all[1], 4096, MSG_NOSIGNAL);
	all[3] = errno;
	return NULL;
}

/*
 * A thread sends from memory that nobody brings: it sleeps with the socket's
 * lock held. Others must be revoked all the same.
 */
static void test_locked(void)
{
	struct pair stuck = pair_tagged(PAIR_V4), other = pair_tagged(PAIR_V4);
	int fault = syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_zeropage zero;
	uint64_t cookies[2] = { stuck.cookie, other.cookie };
	struct uffd_msg message;
	pthread_t thread;
	double start;
	long all[4];
	char byte;
	void *page;

	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	range.range.start = (uintptr_t)page;
	range.range.len = 4096;
	need(fault >= 0 && !ioctl(fault, UFFDIO_API, &api) &&
	     !ioctl(fault, UFFDIO_REGISTER, &range), "userfaultfd");
	all[0] = stuck.fd;
	all[1] = (long)page;
	need(!pthread_create(&thread, NULL, run_locked, all), "pthread_create");
	need(read(fault, &message, sizeof(message)) == sizeof(message), "fault");
	start = now();
	check(control_revoke(cookies, 2) == 2 * sizeof(struct record), "revoke");
	printf("revoked: with a holder of the lock in %.0f ms\n", 1000 * (now() - start));
	check(now() - start < 3, "a locked socket held the revocation up");
	check(recv(other.fd, &byte, 1, 0) < 0 && errno == ECONNABORTED, "the other: %s",
	      strerror(errno));
	zero = (struct uffdio_zeropage){ .range = range.range };
	need(!ioctl(fault, UFFDIO_ZEROPAGE, &zero), "zeropage");
	pthread_join(thread, NULL);
	check_reset(stuck.peer);
	check_reset(other.peer);
	close(fault);
	munmap(page, 4096);
	pair_close(&stuck);
	pair_close(&other);
	check(stat_wait("tags", 0, 5), "tags: %ld", stat_read("tags"));
}

#define STUCK 600	/* more than a kernel of 6.1 has workers for one queue */

/* As before, by more than there are workers: they must not use them up. */
static void test_many_locked(void)
{
	int fault = syscall(SYS_userfaultfd, O_CLOEXEC), i;
	static struct pair stuck[STUCK];
	static uint64_t cookies[STUCK];
	static pthread_t threads[STUCK];
	static long all[STUCK][4];
	struct timeval limit = { .tv_sec = 10 };
	struct pair other = pair_tagged(PAIR_V4);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_zeropage zero;
	struct uffd_msg message;
	pthread_attr_t small;
	double start;
	void *page;

	page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	range.range.start = (uintptr_t)page;
	range.range.len = 4096;
	need(fault >= 0 && !ioctl(fault, UFFDIO_API, &api) &&
	     !ioctl(fault, UFFDIO_REGISTER, &range), "userfaultfd");
	need(!pthread_attr_init(&small) && !pthread_attr_setstacksize(&small, 65536), "attr");
	for (i = 0; i < STUCK; i++) {
		stuck[i] = pair_tagged(PAIR_V4);
		cookies[i] = stuck[i].cookie;
		all[i][0] = stuck[i].fd;
		all[i][1] = (long)page;
		need(!pthread_create(&threads[i], &small, run_locked, all[i]), "pthread_create");
		need(read(fault, &message, sizeof(message)) == sizeof(message), "fault");
	}
	start = now();
	check(control_revoke(cookies, STUCK) == STUCK * (ssize_t)sizeof(struct record), "revoke");
	printf("revoked: %d holders of their locks in %.0f ms\n", STUCK, 1000 * (now() - start));
	check(control_revoke(&other.cookie, 1) == sizeof(struct record), "revoke");
	setsockopt(other.peer, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	check_reset(other.peer);
	zero = (struct uffdio_zeropage){ .range = range.range };
	need(!ioctl(fault, UFFDIO_ZEROPAGE, &zero), "zeropage");
	for (i = 0; i < STUCK; i++) {
		pthread_join(threads[i], NULL);
		check(all[i][2] < 0 && all[i][3] == ECONNABORTED, "send %d: %s", i,
		      strerror(all[i][3]));
		/* Before the abort, it may be. */
		close(stuck[i].fd);
		check_reset(stuck[i].peer);
		close(stuck[i].peer);
	}
	close(fault);
	munmap(page, 4096);
	pair_close(&other);
	check(stat_wait("tags", 0, 10), "tags: %ld", stat_read("tags"));
}

static int run_connecting(void *data)
{
	int fd = *(int *)data, value = -1;
	struct pollfd poller = { fd, POLLOUT, 0 };
	socklen_t length = sizeof(value);

	check(!getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &length) && !value, "SO_ERROR: %d", value);
	check(connect(fd, &(struct sockaddr){ AF_UNSPEC, "" }, 16) < 0 && errno == EPERM,
	      "connect(AF_UNSPEC): %s", strerror(errno));
	check(sleep_poll(poller.fd) < 0 && errno == ECONNABORTED, "poll");
	check(gone(fd, 5), "the descriptor is still there");
	return failures;
}

/* As the router hands it over: the handshake is still under way. */
static void test_connecting(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(9),
				       .sin_addr.s_addr = htonl(0xc0000201) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	uint64_t cookie = cookie_of(fd);
	pid_t pid;

	/* Nobody answers there. */
	need(!system("ip route replace 192.0.2.0/24 dev lo"), "route");
	check(connect(fd, (void *)&address, sizeof(address)) < 0 && errno == EINPROGRESS,
	      "connect: %s", strerror(errno));
	check(!control_one(OP_TAG, fd, cookie), "tag");
	pid = container_start(run_connecting, &fd, false);
	close(fd);
	check(wait_asleep(pid, 1), "poll does not wait");
	check(control_revoke(&cookie, 1) == sizeof(struct record), "revoke");
	check(!finish(pid), "connecting");
	check(stat_wait("tags", 0, 5), "tags: %ld", stat_read("tags"));
}

/* The writer's own copies are left to it, dead. */
static void test_own(void)
{
	struct pair pair = pair_tagged(PAIR_V6);
	long before = stat_read("leftovers_total");
	char byte;

	check(control_revoke(&pair.cookie, 1) == sizeof(struct record), "revoke");
	check(recv(pair.fd, &byte, 1, 0) < 0 && errno == ECONNABORTED, "own: %s", strerror(errno));
	check(stat_read("leftovers_total") == before, "the writer's own copy is a leftover");
	check(control_revoke(&pair.cookie, 1) == sizeof(struct record), "revoke again");
	check(control_one(OP_REVOKE, -1, 12345678901) == -ENOENT, "revoke of nobody's");
	pair_close(&pair);
	check(stat_wait("tags", 0, 5), "tags: %ld", stat_read("tags"));
}

int main_revoked(int argc, char **argv)
{
	struct rlimit limit = { 8192, 8192 };
	int kind, keep;

	(void)argc;
	(void)argv;
	need(!setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
	for (kind = PAIR_V4; kind <= PAIR_MAPPED; kind++)
		test_sleepers(kind);
	test_connecting();
	test_watched(run_watched);
	test_watched(run_watched_twice);
	test_queued();
	for (keep = 0; keep < 2; keep++) {
		test_stopped(keep);
		test_forks(keep);
	}
	test_locked();
	test_many_locked();
	test_own();
	test_many();
	return failures;
}
