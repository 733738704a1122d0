/* SPDX-License-Identifier: Apache-2.0 */
/* AF_INET6 sockets with IPv4-mapped addresses, as JVM, nginx and Redis use. */
#include "conf.h"

int main(int argc, char **argv)
{
	struct sockaddr_storage sa;
	socklen_t size;
	int one = 1, fd, value;

	conf_init(argc, argv, 20);
	conf.family = AF_INET6;
	fd = conf_dial(CONF_ECHO);
	conf_names(fd, CONF_ECHO);
	conf_echo(fd, 100000);
	size = sizeof(value);
	CHECK(getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &value, &size) == 0, "SO_DOMAIN");
	CHECK(value == AF_INET6, "SO_DOMAIN is %d", value);
	close(fd);
	conf_ok("blocking");

	fd = conf_dial_nonblock(CONF_ECHO);
	CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "connect");
	conf_path(fd);
	conf_names(fd, CONF_ECHO);
	close(fd);
	conf_ok("non-blocking");

	/* An IPv4 address structure on an AF_INET6 socket. */
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_addr = conf.peer, .sin_port = htons(conf.port) };
	fd = conf_socket(0);
	int r = connect(fd, (struct sockaddr *)&four, sizeof(four));
	int e = errno;
	CHECK(r == -1 && (e == EAFNOSUPPORT || e == EINVAL), "AF_INET address on AF_INET6 socket: %d, %s", r,
	      strerror(e));
	close(fd);
	conf_ok("wrong address family");

	fd = conf_socket(0);
	CHECK(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one)) == 0, "IPV6_V6ONLY");
	CHECK_ERRNO(conf_connect(fd, CONF_ECHO), ENETUNREACH);
	close(fd);
	conf_ok("IPV6_V6ONLY");

	/* A real IPv6 address whose last four bytes look like the peer. */
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(conf.port) };
	six.sin6_addr.s6_addr[0] = 0x20;
	six.sin6_addr.s6_addr[1] = 0x01;
	six.sin6_addr.s6_addr[2] = 0x0d;
	six.sin6_addr.s6_addr[3] = 0xb8;
	memcpy(&six.sin6_addr.s6_addr[12], &conf.peer, 4);
	fd = conf_socket(SOCK_NONBLOCK);
	r = connect(fd, (struct sockaddr *)&six, sizeof(six));
	e = errno;
	CHECK(r == -1 && (e == ENETUNREACH || e == EINPROGRESS || e == EADDRNOTAVAIL || e == EHOSTUNREACH),
	      "2001:db8::PEER: %d, %s", r, strerror(e));
	CHECK(!conf_wait(fd, POLLOUT, 50) || conf_so_error(fd) != 0 || getpeername(fd, (struct sockaddr *)&sa, &(socklen_t){ sizeof(sa) }) != 0,
	      "an IPv6 address was taken for the peer's IPv4 address");
	close(fd);
	conf_ok("a true IPv6 address is not mapped");

	/* A dual-stack listener on the any-address sees mapped peers. */
	struct in_addr any = { 0 };
	size = conf_address(&sa, any, 0);
	fd = conf_socket(0);
	CHECK(bind(fd, (struct sockaddr *)&sa, size) == 0, "bind to ::");
	CHECK(listen(fd, 16) == 0, "listen");
	size = sizeof(sa);
	CHECK(getsockname(fd, (struct sockaddr *)&sa, &size) == 0, "getsockname");
	CHECK(conf_same(&sa, any, conf_port_of(&sa)), "listener on :: is called %s", conf_text(&sa));
	uint16_t port = conf_port_of(&sa);
	unsigned id = conf_dial_me(1, "name", port, 0);
	size = sizeof(sa);
	int c = accept(fd, (struct sockaddr *)&sa, &size);
	CHECK(c >= 0, "accept");
	conf_path(c);
	CHECK(size == sizeof(struct sockaddr_in6), "accept gives length %u", size);
	CHECK(conf_same(&sa, conf.peer, conf_port_of(&sa)), "accept says %s", conf_text(&sa));
	conf_expect_name(c, &sa, port);
	size = sizeof(sa);
	CHECK(getsockname(c, (struct sockaddr *)&sa, &size) == 0, "getsockname");
	CHECK(conf_same(&sa, conf.self, port), "accepted socket's name is %s", conf_text(&sa));
	close(c);
	conf_all_ok(id, 1);
	close(fd);
	conf_ok("listener on ::");
	return conf_done();
}
