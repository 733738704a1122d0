/* SPDX-License-Identifier: Apache-2.0 */
/* connect(AF_UNSPEC) dissolves a connection; the socket can then be used again. */
#include "conf.h"

#include <sys/epoll.h>

/* Wait for one event; its data. */
static uint64_t event_of(int ep)
{
	struct epoll_event e = { 0 };

	CHECK(epoll_wait(ep, &e, 1, 8000) == 1, "epoll_wait");
	return e.data.u64;
}

/* Its place in an epoll set goes along, as it was last told. */
static void in_epoll(void)
{
	struct sockaddr_storage none = { .ss_family = AF_UNSPEC };
	struct epoll_event e = { .events = EPOLLIN, .data.u64 = 1 };
	int ep = epoll_create1(EPOLL_CLOEXEC), fd = conf_dial(CONF_ECHO);
	char got[4];

	CHECK(ep >= 0 && epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0, "EPOLL_CTL_ADD");
	for (e.data.u64 = 2; e.data.u64 < 5; e.data.u64++) {
		e.events = e.data.u64 % 2 ? EPOLLIN | EPOLLOUT : EPOLLIN;
		CHECK(epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e) == 0, "EPOLL_CTL_MOD");
	}
	CHECK(connect(fd, (struct sockaddr *)&none, sizeof(struct sockaddr_in)) == 0, "connect(AF_UNSPEC)");
	CHECK(event_of(ep) == 4, "a dissolved connection's hang-up"); /* tcp_poll: EPOLLHUP */
	CHECK(conf_connect(fd, CONF_ECHO) == 0, "connect again");
	conf_send_all(fd, "ping", 4);
	CHECK(event_of(ep) == 4, "the new connection's data");
	conf_recv_all(fd, got, 4);
	CHECK(epoll_wait(ep, &e, 1, 30) == 0, "events 0x%x that nobody asked for", e.events);
	CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL) == 0, "EPOLL_CTL_DEL");
	close(fd);
	close(ep);
	conf_ok("stays in its epoll set");
}

int main(int argc, char **argv)
{
	struct sockaddr_storage none = { .ss_family = AF_UNSPEC }, sa;
	socklen_t size = sizeof(sa);
	int fd;

	conf_init(argc, argv, 20);
	fd = conf_dial(CONF_ECHO);
	conf_echo(fd, 3000);
	CHECK(connect(fd, (struct sockaddr *)&none, sizeof(struct sockaddr_in)) == 0, "connect(AF_UNSPEC)");
	CHECK_ERRNO(getpeername(fd, (struct sockaddr *)&sa, &size), ENOTCONN);
	conf_ok("dissolved");
	CHECK(conf_connect(fd, CONF_ECHO) == 0, "connect again");
	conf_path(fd);
	conf_names(fd, CONF_ECHO);
	conf_echo(fd, 3000);
	close(fd);
	conf_ok("connected again");
	in_epoll();
	return conf_done();
}
