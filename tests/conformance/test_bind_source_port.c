/* SPDX-License-Identifier: Apache-2.0 */
/* bind, then connect: the peer sees the port that was bound. */
#include "conf.h"

static void seen_as(int fd, uint16_t port)
{
	char text[200] = "", want[100], a[INET_ADDRSTRLEN];

	inet_ntop(AF_INET, &conf.self, a, sizeof(a));
	snprintf(want, sizeof(want), "%s %u ", a, port);
	for (size_t i = 0; i + 1 < sizeof(text); i++) {
		conf_recv_all(fd, text + i, 1);
		if (text[i] == '\n')
			break;
	}
	CHECK(strncmp(text, want, strlen(want)) == 0, "peer sees %s, wanted %s", text, want);
}

int main(int argc, char **argv)
{
	struct in_addr any = { 0 };
	struct sockaddr_storage sa;
	uint16_t base = (uint16_t)(21000 + getpid() % 5000);
	socklen_t size;
	int one = 1;

	conf_init(argc, argv, 20);
	for (int i = 0; i < 4; i++) {
		uint16_t port = (uint16_t)(base + i);
		int fd = conf_socket(i & 2 ? SOCK_NONBLOCK : 0), r;

		size = conf_address(&sa, i & 1 ? any : conf.self, port);
		CHECK(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) == 0, "SO_REUSEADDR");
		CHECK(bind(fd, (struct sockaddr *)&sa, size) == 0, "bind to %s", conf_text(&sa));
		r = conf_connect(fd, CONF_BANNER);
		CHECK(r == 0 || errno == EINPROGRESS, "connect");
		CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "connect");
		conf_path(fd);
		conf_nonblock(fd, false);
		size = sizeof(sa);
		CHECK(getsockname(fd, (struct sockaddr *)&sa, &size) == 0, "getsockname");
		CHECK(conf_same(&sa, conf.self, port), "getsockname says %s, wanted port %u", conf_text(&sa), port);
		seen_as(fd, port);
		conf_echo(fd, 3000);
		/* The port is taken while we live. */
		if (!(i & 1)) {
			int other = conf_socket(0);

			size = conf_address(&sa, conf.self, port);
			CHECK_ERRNO(bind(other, (struct sockaddr *)&sa, size), EADDRINUSE);
			close(other);
		}
		close(fd);
	}
	conf_ok("explicit port");

	uint16_t port = 0;
	int fd = conf_bound(&port, 0);
	CHECK(conf_connect(fd, CONF_BANNER) == 0, "connect");
	conf_path(fd);
	seen_as(fd, port);
	conf_names(fd, CONF_BANNER);
	close(fd);
	conf_ok("bound to the vip, port chosen by the kernel");

	fd = conf_socket(0);
	CHECK(setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one)) == 0, "IP_BIND_ADDRESS_NO_PORT");
	size = conf_address(&sa, conf.self, 0);
	CHECK(bind(fd, (struct sockaddr *)&sa, size) == 0, "bind");
	CHECK(conf_connect(fd, CONF_BANNER) == 0, "connect");
	conf_path(fd);
	size = sizeof(sa);
	CHECK(getsockname(fd, (struct sockaddr *)&sa, &size) == 0, "getsockname");
	seen_as(fd, conf_port_of(&sa));
	close(fd);
	conf_ok("IP_BIND_ADDRESS_NO_PORT");

	fd = conf_socket(0);
	struct in_addr foreign = conf.peer;
	size = conf_address(&sa, foreign, 0);
	CHECK_ERRNO(bind(fd, (struct sockaddr *)&sa, size), EADDRNOTAVAIL);
	close(fd);
	port = 0;
	fd = conf_bound(&port, 0);
	size = conf_address(&sa, conf.self, 0);
	CHECK_ERRNO(bind(fd, (struct sockaddr *)&sa, size), EINVAL);
	close(fd);
	conf_ok("bind's own errors");
	return conf_done();
}
