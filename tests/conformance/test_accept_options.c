/* SPDX-License-Identifier: Apache-2.0 */
/* What a listener's descriptor answers, and what its connections inherit. */
#include "conf.h"

static int get(int fd, int level, int name)
{
	int value = -1;
	socklen_t size = sizeof(value);

	CHECK(getsockopt(fd, level, name, &value, &size) == 0, "getsockopt %d %d", level, name);
	return value;
}

static void set(int fd, int level, int name, int value)
{
	CHECK(setsockopt(fd, level, name, &value, sizeof(value)) == 0, "setsockopt %d %d", level, name);
	int got = get(fd, level, name);
	CHECK(got == value || (level == SOL_SOCKET && got == 2 * value), "option %d %d: set %d, got %d", level, name,
	      value, got);
}

static void kind(int fd, int listening)
{
	CHECK(get(fd, SOL_SOCKET, SO_TYPE) == SOCK_STREAM, "SO_TYPE %d", get(fd, SOL_SOCKET, SO_TYPE));
	CHECK(get(fd, SOL_SOCKET, SO_DOMAIN) == conf.family, "SO_DOMAIN %d", get(fd, SOL_SOCKET, SO_DOMAIN));
	CHECK(get(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP, "SO_PROTOCOL %d", get(fd, SOL_SOCKET, SO_PROTOCOL));
	CHECK(get(fd, SOL_SOCKET, SO_ACCEPTCONN) == listening, "SO_ACCEPTCONN %d", get(fd, SOL_SOCKET, SO_ACCEPTCONN));
	CHECK(get(fd, SOL_SOCKET, SO_ERROR) == 0, "SO_ERROR");
}

static int take(int listener, uint16_t port)
{
	unsigned id = conf_dial_me(1, "id", port, 0);
	int fd = conf_accept(listener);
	uint64_t number;

	conf_recv_all(fd, &number, sizeof(number));
	conf_send_all(fd, &number, sizeof(number));
	shutdown(fd, SHUT_WR);
	conf_all_ok(id, 1);
	return fd;
}

int main(int argc, char **argv)
{
	struct sockaddr_storage sa;
	struct tcp_info info;
	socklen_t size = sizeof(info);
	uint16_t port = 0;
	int fd;

	conf_init(argc, argv, 30);
	int listener = conf_bound(&port, 0);
	kind(listener, 0);
	set(listener, SOL_SOCKET, SO_KEEPALIVE, 1);
	set(listener, IPPROTO_TCP, TCP_NODELAY, 1);
	set(listener, IPPROTO_TCP, TCP_KEEPIDLE, 66);
	set(listener, SOL_SOCKET, SO_RCVBUF, 150000);
	CHECK(listen(listener, 16) == 0, "listen");
	kind(listener, 1);
	CHECK(getsockopt(listener, IPPROTO_TCP, TCP_INFO, &info, &size) == 0, "TCP_INFO");
	CHECK(info.tcpi_state == TCP_LISTEN, "TCP_INFO says state %u", info.tcpi_state);
	CHECK_ERRNO(getpeername(listener, (struct sockaddr *)&sa, &(socklen_t){ sizeof(sa) }), ENOTCONN);
	conf_ok("a listener says that it is one");

	fd = take(listener, port);
	kind(fd, 0);
	CHECK(get(fd, SOL_SOCKET, SO_KEEPALIVE) == 1, "SO_KEEPALIVE is not inherited");
	CHECK(get(fd, IPPROTO_TCP, TCP_NODELAY) == 1, "TCP_NODELAY is not inherited");
	CHECK(get(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 66, "TCP_KEEPIDLE is not inherited");
	CHECK(get(fd, SOL_SOCKET, SO_RCVBUF) == 300000, "SO_RCVBUF is not inherited: %d", get(fd, SOL_SOCKET, SO_RCVBUF));
	struct linger linger = { 1, 1 };
	size = sizeof(linger);
	CHECK(getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &size) == 0, "SO_LINGER");
	CHECK(!linger.l_onoff, "an accepted socket begins with SO_LINGER on");
	size = sizeof(info);
	CHECK(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0, "TCP_INFO");
	close(fd);
	conf_ok("set before listen, inherited");

	/* Set on the listening socket. */
	set(listener, IPPROTO_TCP, TCP_KEEPCNT, 4);
	set(listener, IPPROTO_TCP, TCP_USER_TIMEOUT, 7000);
	set(listener, SOL_SOCKET, SO_KEEPALIVE, 0);
	linger = (struct linger){ 1, 7 };
	CHECK(setsockopt(listener, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)) == 0, "SO_LINGER");
	fd = take(listener, port);
	CHECK(get(fd, IPPROTO_TCP, TCP_KEEPCNT) == 4, "TCP_KEEPCNT is not inherited");
	CHECK(get(fd, IPPROTO_TCP, TCP_USER_TIMEOUT) == 7000, "TCP_USER_TIMEOUT is not inherited");
	CHECK(get(fd, SOL_SOCKET, SO_KEEPALIVE) == 0, "SO_KEEPALIVE off is not inherited");
	size = sizeof(linger);
	CHECK(getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &size) == 0, "SO_LINGER");
	CHECK(linger.l_onoff && linger.l_linger == 7, "SO_LINGER is not inherited: %d %d", linger.l_onoff, linger.l_linger);
	close(fd);
	conf_ok("set after listen, inherited");

	int on = 1;
	CHECK(setsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &on, sizeof(on)) == 0, "TCP_DEFER_ACCEPT");
	fd = take(listener, port);
	close(fd);
	close(listener);
	conf_ok("TCP_DEFER_ACCEPT");

	int queue = 16;
	port = 0;
	listener = conf_bound(&port, 0);
	CHECK(setsockopt(listener, IPPROTO_TCP, TCP_FASTOPEN, &queue, sizeof(queue)) == 0, "TCP_FASTOPEN");
	CHECK(listen(listener, 16) == 0, "listen");
	close(take(listener, port));
	close(listener);
	conf_ok("TCP_FASTOPEN on a listener");
	return conf_done();
}
