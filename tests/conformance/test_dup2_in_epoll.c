/* SPDX-License-Identifier: Apache-2.0 */
/* dup2 onto a descriptor that is in an epoll set, and numbers that are reused:
 * no event may come for what is gone. */
#include "conf.h"

int main(int argc, char **argv)
{
	struct epoll_event e = { .events = EPOLLIN | EPOLLOUT, .data.u64 = 1 };

	conf_init(argc, argv, 20);
	int ep = epoll_create1(0);
	int fd = conf_dial_nonblock(CONF_ECHO);
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0, "ADD");
	CHECK(epoll_wait(ep, &e, 1, 8000) == 1, "no event");
	CHECK(conf_so_error(fd) == 0, "SO_ERROR");
	conf_path(fd);
	close(fd);
	CHECK(epoll_wait(ep, &e, 1, 30) == 0, "event 0x%x for a closed descriptor", e.events);

	/* The same number again: it must be possible to register it. */
	int again = conf_dial_nonblock(CONF_ECHO);
	CHECK(again == fd, "number not reused: %d, %d", fd, again);
	e = (struct epoll_event){ .events = EPOLLOUT, .data.u64 = 2 };
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, again, &e) == 0, "ADD under a reused number");
	CHECK(epoll_wait(ep, &e, 1, 8000) == 1 && e.data.u64 == 2, "event of the new registration");
	CHECK(conf_so_error(again) == 0, "SO_ERROR");
	conf_echo(again, 3000);
	CHECK_ERRNO(epoll_ctl(ep, EPOLL_CTL_ADD, again, &e), EEXIST);
	close(again);
	conf_ok("reused number");

	/* Closed while the connect is in progress. */
	for (int i = 0; i < 20; i++) {
		fd = conf_dial_nonblock(CONF_ECHO);
		e = (struct epoll_event){ .events = EPOLLOUT, .data.u64 = 3 };
		CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0, "ADD");
		close(fd);
	}
	CHECK(epoll_wait(ep, &e, 1, 50) == 0, "event 0x%x for a connect given up", e.events);
	conf_ok("closed while in progress");

	/* Edge-triggered loop over many connections, numbers reused all the time. */
	for (int i = 0; i < 100; i++) {
		fd = conf_dial_nonblock(CONF_ECHO);
		e = (struct epoll_event){ .events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u64 = 1000u + (unsigned)i };
		CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0, "ADD, round %d", i);
		CHECK(epoll_wait(ep, &e, 1, 8000) == 1, "no event in round %d", i);
		CHECK(e.data.u64 == 1000u + (unsigned)i, "stale event %llu in round %d", (unsigned long long)e.data.u64, i);
		CHECK(conf_so_error(fd) == 0, "SO_ERROR");
		conf_path(fd);
		conf_echo(fd, 100);
		close(fd);
	}
	conf_ok("a hundred rounds");
	return conf_done();
}
