/* SPDX-License-Identifier: Apache-2.0 */
/* A listener in epoll: level, edge, one-shot, exclusive; registered before bind,
 * before listen, and after; in two epolls. */
#include "conf.h"

static void take(int fd)
{
	char block[4096];

	CHECK(fd >= 0, "accept");
	conf_path(fd);
	conf_nonblock(fd, false);
	conf_recv_all(fd, block, sizeof(block));
	conf_send_all(fd, block, sizeof(block));
	close(fd);
}

static void watch(int ep, int fd, uint32_t events)
{
	struct epoll_event e = { .events = events, .data.u64 = 0xfeed00000000ull + (unsigned)fd };

	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0, "ADD 0x%x", events);
}

/* Serve n connections from a loop over `ep`. */
static void loop(int ep, int listener, int n, bool drain)
{
	while (n > 0) {
		struct epoll_event e = { 0 };
		int r = epoll_wait(ep, &e, 1, 8000), fd;

		CHECK(r == 1, "%d connections are missing", n);
		CHECK(e.data.u64 == 0xfeed00000000ull + (unsigned)listener, "data 0x%llx", (unsigned long long)e.data.u64);
		/* A socket that did not listen yet may have said EPOLLHUP. */
		if (!(e.events & EPOLLIN))
			continue;
		CHECK(e.events == EPOLLIN, "events 0x%x", e.events);
		do {
			fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
			if (fd < 0) {
				CHECK(errno == EAGAIN, "accept4");
				break;
			}
			take(fd);
			n--;
		} while (drain);
	}
}

int main(int argc, char **argv)
{
	static const uint32_t modes[] = { 0, EPOLLET, EPOLLEXCLUSIVE, EPOLLEXCLUSIVE | EPOLLET };
	static const char *when[] = { "after listen", "before listen", "before bind" };

	conf_init(argc, argv, 40);
	for (int at = 0; at < 3; at++) {
		for (size_t m = 0; m < 4; m++) {
			struct sockaddr_storage sa;
			socklen_t size = conf_address(&sa, conf.self, 0);
			int ep = epoll_create1(0), listener = conf_socket(SOCK_NONBLOCK);
			struct epoll_event e;

			if (at == 2)
				watch(ep, listener, EPOLLIN | modes[m]);
			CHECK(bind(listener, (struct sockaddr *)&sa, size) == 0, "bind");
			if (at == 1)
				watch(ep, listener, EPOLLIN | modes[m]);
			CHECK(listen(listener, 32) == 0, "listen");
			if (at == 0)
				watch(ep, listener, EPOLLIN | modes[m]);
			size = sizeof(sa);
			CHECK(getsockname(listener, (struct sockaddr *)&sa, &size) == 0, "getsockname");
			if (at == 0)
				CHECK(epoll_wait(ep, &e, 1, 20) == 0, "event 0x%x of a quiet listener", e.events);
			for (int round = 0; round < 2; round++) {
				unsigned id = conf_dial_me(5, "echo", conf_port_of(&sa), 0);

				loop(ep, listener, 5, modes[m] & EPOLLET);
				conf_all_ok(id, 5);
			}
			CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, listener, NULL) == 0, "DEL, registered %s", when[at]);
			unsigned id = conf_dial_me(1, "echo", conf_port_of(&sa), 0);
			CHECK(conf_wait(listener, POLLIN, 8000), "not readable");
			CHECK(epoll_wait(ep, &e, 1, 20) == 0, "event after DEL");
			take(accept(listener, NULL, NULL));
			conf_all_ok(id, 1);
			close(listener);
			close(ep);
		}
		conf_ok("registered %s", when[at]);
	}

	uint16_t port = 0;
	int listener = conf_listen(&port, 32), a = epoll_create1(0), b = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLIN | EPOLLONESHOT, .data.u64 = 1 };
	conf_nonblock(listener, true);
	CHECK(epoll_ctl(a, EPOLL_CTL_ADD, listener, &e) == 0, "ADD");
	e = (struct epoll_event){ .events = EPOLLIN, .data.u64 = 2 };
	CHECK(epoll_ctl(b, EPOLL_CTL_ADD, listener, &e) == 0, "ADD to the second");
	unsigned id = conf_dial_me(1, "echo", port, 0);
	CHECK(epoll_wait(a, &e, 1, 8000) == 1 && e.data.u64 == 1, "first");
	CHECK(epoll_wait(a, &e, 1, 20) == 0, "one-shot is spent");
	CHECK(epoll_wait(b, &e, 1, 8000) == 1 && e.data.u64 == 2, "second");
	take(accept(listener, NULL, NULL));
	conf_all_ok(id, 1);
	CHECK(epoll_wait(b, &e, 1, 20) == 0, "still readable after accept");
	id = conf_dial_me(1, "echo", port, 0);
	CHECK(epoll_wait(b, &e, 1, 8000) == 1, "second again");
	CHECK(epoll_wait(a, &e, 1, 20) == 0, "one-shot was not re-armed");
	e = (struct epoll_event){ .events = EPOLLIN | EPOLLONESHOT, .data.u64 = 3 };
	CHECK(epoll_ctl(a, EPOLL_CTL_MOD, listener, &e) == 0, "MOD");
	CHECK(epoll_wait(a, &e, 1, 8000) == 1 && e.data.u64 == 3, "re-armed");
	take(accept(listener, NULL, NULL));
	conf_all_ok(id, 1);
	close(listener);
	CHECK(epoll_wait(a, &e, 1, 20) == 0 && epoll_wait(b, &e, 1, 20) == 0, "event after close");
	conf_ok("two epolls, one-shot");
	return conf_done();
}
