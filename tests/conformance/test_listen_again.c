/* SPDX-License-Identifier: Apache-2.0 */
/* listen twice, without bind, on a connection; bind conflicts; rebinding at once
 * after close; SO_REUSEPORT. */
#include "conf.h"

/* The clients close first, so that our port stays free. */
static void serve_passive(int listener, uint16_t port)
{
	unsigned id = conf_dial_me(2, "echo", port, 0);
	char block[4096];

	for (int i = 0; i < 2; i++) {
		int fd = conf_accept(listener);

		conf_recv_all(fd, block, sizeof(block));
		conf_send_all(fd, block, sizeof(block));
		conf_expect_eof(fd);
		close(fd);
	}
	conf_all_ok(id, 2);
}

int main(int argc, char **argv)
{
	struct sockaddr_storage sa;
	socklen_t size;
	uint16_t port = 0;
	int one = 1, fd;

	conf_init(argc, argv, 40);
	int listener = conf_listen(&port, 1);
	CHECK(listen(listener, 64) == 0, "listen again");
	serve_passive(listener, port);
	CHECK(listen(listener, 2) == 0, "listen a third time");
	serve_passive(listener, port);
	conf_ok("listen twice");

	int other = conf_socket(0);
	size = conf_address(&sa, conf.self, port);
	CHECK_ERRNO(bind(other, (struct sockaddr *)&sa, size), EADDRINUSE);
	close(other);
	close(listener);
	conf_ok("in use while it lives");

	/* Ten generations on one port, without SO_REUSEADDR. */
	for (int i = 0; i < 10; i++) {
		listener = conf_listen(&port, 16);
		serve_passive(listener, port);
		close(listener);
	}
	conf_ok("rebound at once after close");

	struct in_addr any = { 0 };
	fd = conf_socket(0);
	CHECK(listen(fd, 8) == 0, "listen without bind");
	size = sizeof(sa);
	CHECK(getsockname(fd, (struct sockaddr *)&sa, &size) == 0, "getsockname");
	CHECK(conf_same(&sa, any, conf_port_of(&sa)) && conf_port_of(&sa), "name %s", conf_text(&sa));
	serve_passive(fd, conf_port_of(&sa));
	close(fd);
	conf_ok("without bind");

	fd = conf_dial(CONF_ECHO);
	CHECK_ERRNO(listen(fd, 8), EINVAL);
	conf_echo(fd, 1000);
	close(fd);
	CHECK_ERRNO(listen(fd, 8), EBADF);
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	CHECK_ERRNO(listen(fd, 8), EOPNOTSUPP);
	close(fd);
	conf_ok("errors");

	/* On the any-address, reached by the vip. */
	port = 0;
	fd = conf_socket(0);
	size = conf_address(&sa, any, 0);
	CHECK(bind(fd, (struct sockaddr *)&sa, size) == 0, "bind to any");
	CHECK(listen(fd, 8) == 0, "listen");
	size = sizeof(sa);
	CHECK(getsockname(fd, (struct sockaddr *)&sa, &size) == 0, "getsockname");
	port = conf_port_of(&sa);
	unsigned id = conf_dial_me(1, "name", port, 0);
	size = sizeof(sa);
	int c = accept(fd, (struct sockaddr *)&sa, &size);
	CHECK(c >= 0, "accept");
	conf_path(c);
	conf_expect_name(c, &sa, port);
	size = sizeof(sa);
	CHECK(getsockname(c, (struct sockaddr *)&sa, &size) == 0, "getsockname");
	CHECK(conf_same(&sa, conf.self, port), "an accepted socket's name is %s", conf_text(&sa));
	close(c);
	conf_all_ok(id, 1);
	close(fd);
	conf_ok("any-address");

	/* Two listeners share a port by SO_REUSEPORT: each connection is served once. */
	port = 0;
	int pair[2];
	for (int i = 0; i < 2; i++) {
		pair[i] = conf_socket(0);
		CHECK(setsockopt(pair[i], SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) == 0, "SO_REUSEPORT");
		size = conf_address(&sa, conf.self, port);
		CHECK(bind(pair[i], (struct sockaddr *)&sa, size) == 0, "bind %d", i);
		size = sizeof(sa);
		CHECK(getsockname(pair[i], (struct sockaddr *)&sa, &size) == 0, "getsockname");
		port = conf_port_of(&sa);
		CHECK(listen(pair[i], 64) == 0, "listen %d", i);
		conf_nonblock(pair[i], true);
	}
	id = conf_dial_me(30, "id", port, 0);
	for (int left = 30; left > 0;) {
		struct pollfd p[2] = { { .fd = pair[0], .events = POLLIN }, { .fd = pair[1], .events = POLLIN } };

		CHECK(poll(p, 2, 8000) > 0, "%d connections are missing", left);
		for (int i = 0; i < 2; i++) {
			uint64_t number;

			fd = accept(pair[i], NULL, NULL);
			if (fd < 0)
				continue;
			conf_path(fd);
			conf_recv_all(fd, &number, sizeof(number));
			conf_send_all(fd, &number, sizeof(number));
			close(fd);
			left--;
		}
	}
	conf_all_ok(id, 30);
	/* One leaves: the other serves all. */
	close(pair[0]);
	conf_sleep(0.05);
	conf_nonblock(pair[1], false);
	for (int i = 0; i < 5; i++)
		serve_passive(pair[1], port);
	close(pair[1]);
	conf_ok("SO_REUSEPORT");
	return conf_done();
}
