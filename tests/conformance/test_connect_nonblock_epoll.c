/* SPDX-License-Identifier: Apache-2.0 */
/* Non-blocking connect watched by epoll: level, edge, one-shot; registered
 * before and after connect; in two epolls; nested; epoll_pwait(2). */
#include "conf.h"
#ifdef __GLIBC__
#if __GLIBC_PREREQ(2, 35)
#define HAVE_EPOLL_PWAIT2
#endif
#endif
#include <sys/syscall.h>

static int ep_new(void)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);

	CHECK(ep >= 0, "epoll_create1");
	return ep;
}

static void add(int ep, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event e = { .events = events, .data.u64 = data };

	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0, "EPOLL_CTL_ADD 0x%x", events);
}

/* One event with this data; its bits. */
static uint32_t one(int ep, uint64_t data)
{
	struct epoll_event e[4] = { 0 };
	int r = epoll_wait(ep, e, 4, 8000);

	CHECK(r == 1, "epoll_wait says %d", r);
	CHECK(e[0].data.u64 == data, "event carries 0x%llx", (unsigned long long)e[0].data.u64);
	return e[0].events;
}

static void quiet(int ep, const char *when)
{
	struct epoll_event e = { 0 };
	int r = epoll_wait(ep, &e, 1, 30);

	CHECK(r == 0, "%s: event 0x%x with data 0x%llx", when, e.events, (unsigned long long)e.data.u64);
}

static void done(int fd)
{
	CHECK(conf_so_error(fd) == 0, "SO_ERROR");
	conf_path(fd);
	conf_names(fd, CONF_ECHO);
}

static void level(void)
{
	int ep = ep_new(), fd = conf_dial_nonblock(CONF_ECHO);
	struct epoll_event e = { .events = EPOLLIN, .data.u64 = 7 };

	add(ep, fd, EPOLLIN | EPOLLOUT, 0x1122334455667788ull);
	CHECK(one(ep, 0x1122334455667788ull) == EPOLLOUT, "not just EPOLLOUT");
	done(fd);
	CHECK(one(ep, 0x1122334455667788ull) == EPOLLOUT, "level-triggered: no second EPOLLOUT");
	CHECK(epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e) == 0, "EPOLL_CTL_MOD");
	quiet(ep, "after MOD to EPOLLIN");
	conf_send_all(fd, "ping", 4);
	CHECK(one(ep, 7) == EPOLLIN, "no EPOLLIN");
	char got[4];
	conf_recv_all(fd, got, 4);
	CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL) == 0, "EPOLL_CTL_DEL");
	CHECK_ERRNO(epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL), ENOENT);
	conf_send_all(fd, "ping", 4);
	CHECK(conf_wait(fd, POLLIN, 8000), "no data");
	quiet(ep, "after DEL");
	close(fd);
	close(ep);
	conf_ok("level-triggered");
}

static void edge(void)
{
	int ep = ep_new(), fd = conf_dial_nonblock(CONF_ECHO);
	char got[4];

	add(ep, fd, EPOLLIN | EPOLLOUT | EPOLLET | EPOLLRDHUP, 42);
	CHECK(one(ep, 42) & EPOLLOUT, "no EPOLLOUT edge");
	done(fd);
	/* At most one repeated edge is the kernel's right; then silence. */
	struct epoll_event e;
	epoll_wait(ep, &e, 1, 30);
	quiet(ep, "edge-triggered, nothing new");
	conf_send_all(fd, "ping", 4);
	CHECK(one(ep, 42) & EPOLLIN, "no EPOLLIN edge");
	conf_recv_all(fd, got, 4);
	conf_send_all(fd, "ping", 4);
	CHECK(one(ep, 42) & EPOLLIN, "no second EPOLLIN edge");
	conf_recv_all(fd, got, 4);
	CHECK(shutdown(fd, SHUT_WR) == 0, "shutdown");
	double end = conf_now() + 5;
	uint32_t seen = 0;
	while (!(seen & EPOLLRDHUP) && conf_now() < end)
		seen |= one(ep, 42);
	CHECK(seen & EPOLLRDHUP, "no EPOLLRDHUP");
	close(fd);
	quiet(ep, "after close");
	close(ep);
	conf_ok("edge-triggered");
}

static void oneshot(void)
{
	int ep = ep_new(), fd = conf_dial_nonblock(CONF_ECHO);
	struct epoll_event e = { .events = EPOLLIN | EPOLLONESHOT, .data.u64 = 9 };

	add(ep, fd, EPOLLOUT | EPOLLONESHOT, 8);
	CHECK(one(ep, 8) == EPOLLOUT, "no EPOLLOUT");
	quiet(ep, "one-shot spent");
	done(fd);
	quiet(ep, "one-shot spent, after SO_ERROR");
	conf_send_all(fd, "ping", 4);
	CHECK(conf_wait(fd, POLLIN, 8000), "no data");
	quiet(ep, "one-shot not re-armed");
	CHECK(epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e) == 0, "EPOLL_CTL_MOD");
	CHECK(one(ep, 9) == EPOLLIN, "no EPOLLIN after re-arming");
	quiet(ep, "one-shot spent again");
	close(fd);
	close(ep);
	conf_ok("one-shot");
}

static void before_connect(void)
{
	/* libuv, asyncio and others register first. An unconnected socket
	 * reports EPOLLHUP; that must not stick once connect has begun. */
	for (int i = 0; i < 4; i++) {
		int ep = ep_new(), fd = conf_socket(SOCK_NONBLOCK);
		uint32_t mode = i & 1 ? EPOLLET : 0;
		uint32_t got;
		int r;

		add(ep, fd, EPOLLOUT | EPOLLIN | mode, 5);
		r = conf_connect(fd, CONF_ECHO);
		CHECK(r == 0 || errno == EINPROGRESS, "connect");
		double end = conf_now() + 8;
		do
			got = one(ep, 5);
		while ((got & EPOLLHUP) && conf_now() < end);
		CHECK(got == EPOLLOUT, "events 0x%x", got);
		done(fd);
		conf_echo(fd, 5000);
		close(fd);
		close(ep);
	}
	conf_ok("registered before connect");
}

static void two_epolls(void)
{
	int a = ep_new(), b = ep_new(), fd = conf_dial_nonblock(CONF_ECHO);
	char got[4];

	add(a, fd, EPOLLIN | EPOLLOUT | EPOLLET, 1);
	add(b, fd, EPOLLIN, 2);
	CHECK(one(a, 1) & EPOLLOUT, "no EPOLLOUT in the first");
	done(fd);
	quiet(b, "second epoll waits for EPOLLIN");
	conf_send_all(fd, "ping", 4);
	CHECK(one(b, 2) == EPOLLIN, "no EPOLLIN in the second");
	double end = conf_now() + 5;
	uint32_t seen = 0;
	while (!(seen & EPOLLIN) && conf_now() < end)
		seen |= one(a, 1);
	CHECK(seen & EPOLLIN, "no EPOLLIN in the first");
	conf_recv_all(fd, got, 4);
	close(fd);
	quiet(a, "first, closed");
	quiet(b, "second, closed");
	close(a);
	close(b);
	conf_ok("two epolls");
}

static void nested(void)
{
	int inner = ep_new(), outer = ep_new(), fd = conf_dial_nonblock(CONF_ECHO);

	add(inner, fd, EPOLLOUT, 3);
	add(outer, inner, EPOLLIN, 4);
	CHECK(one(outer, 4) == EPOLLIN, "outer sees no event");
	CHECK(one(inner, 3) == EPOLLOUT, "inner sees no event");
	done(fd);
	conf_echo(fd, 3000);
	close(fd);
	close(inner);
	close(outer);

	/* poll on an epoll descriptor, as GLib and others do. */
	inner = ep_new();
	fd = conf_dial_nonblock(CONF_ECHO);
	add(inner, fd, EPOLLOUT, 3);
	CHECK(conf_wait(inner, POLLIN, 8000), "poll on the epoll descriptor");
	CHECK(one(inner, 3) == EPOLLOUT, "inner sees no event");
	done(fd);
	close(fd);
	close(inner);
	conf_ok("nested");
}

static void variants(void)
{
	int ep = ep_new(), fd = conf_dial_nonblock(CONF_ECHO);
	struct epoll_event e = { 0 };
	sigset_t mask;

	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	add(ep, fd, EPOLLOUT, 6);
	CHECK(epoll_pwait(ep, &e, 1, 8000, &mask) == 1, "epoll_pwait");
	CHECK(e.events == EPOLLOUT && e.data.u64 == 6, "epoll_pwait: event 0x%x", e.events);
	done(fd);
	close(fd);
#ifdef HAVE_EPOLL_PWAIT2
	struct timespec limit = { .tv_sec = 8 };
	fd = conf_dial_nonblock(CONF_ECHO);
	add(ep, fd, EPOLLOUT, 6);
	CHECK(epoll_pwait2(ep, &e, 1, &limit, NULL) == 1, "epoll_pwait2");
	CHECK(e.events == EPOLLOUT, "epoll_pwait2: event 0x%x", e.events);
	done(fd);
	close(fd);
#endif
	close(ep);
	conf_ok("epoll_pwait and epoll_pwait2");
}

static void refused(void)
{
	int ep = ep_new(), fd = conf_dial_nonblock(CONF_CLOSED);
	uint32_t got;

	add(ep, fd, EPOLLIN | EPOLLOUT, 1);
	got = one(ep, 1);
	CHECK((got & (EPOLLERR | EPOLLHUP)) == (EPOLLERR | EPOLLHUP), "events 0x%x", got);
	CHECK(conf_so_error(fd) == ECONNREFUSED, "SO_ERROR");
	close(fd);
	quiet(ep, "after close");
	close(ep);
	conf_ok("refused");
}

static void exclusive(void)
{
	int a = ep_new(), b = ep_new(), fd = conf_dial_nonblock(CONF_ECHO);
	struct epoll_event e = { .events = EPOLLIN | EPOLLEXCLUSIVE };

	add(a, fd, EPOLLOUT | EPOLLEXCLUSIVE, 1);
	add(b, fd, EPOLLOUT | EPOLLEXCLUSIVE, 2);
	CHECK(one(a, 1) == EPOLLOUT, "no EPOLLOUT");
	done(fd);
	CHECK_ERRNO(epoll_ctl(a, EPOLL_CTL_MOD, fd, &e), EINVAL);
	CHECK(one(b, 2) == EPOLLOUT, "no EPOLLOUT in the second");
	conf_echo(fd, 3000);
	close(fd);
	close(a);
	close(b);
	conf_ok("EPOLLEXCLUSIVE");
}

static void dup_in_epoll(void)
{
	/* The registration belongs to the open file; a dup keeps it alive. */
	int ep = ep_new(), fd = conf_dial_nonblock(CONF_ECHO), copy = dup(fd);

	add(ep, fd, EPOLLOUT, 1);
	add(ep, copy, EPOLLOUT, 2);
	struct epoll_event e[4];
	double end = conf_now() + 8;
	int n;
	do
		n = epoll_wait(ep, e, 4, 1000);
	while (n < 2 && conf_now() < end);
	CHECK(n == 2, "events for the descriptor and its copy: %d", n);
	done(fd);
	conf_names(copy, CONF_ECHO);
	CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL) == 0, "DEL");
	close(fd);
	CHECK(one(ep, 2) == EPOLLOUT, "the copy's registration");
	CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, copy, NULL) == 0, "DEL of the copy");
	quiet(ep, "both deleted");
	conf_echo(copy, 3000);
	close(copy);
	close(ep);
	conf_ok("descriptor and copy in one epoll");
}

int main(int argc, char **argv)
{
	conf_init(argc, argv, 40);
	level();
	edge();
	oneshot();
	before_connect();
	two_epolls();
	nested();
	variants();
	refused();
	exclusive();
	dup_in_epoll();
	return conf_done();
}
