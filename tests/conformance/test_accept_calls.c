/* SPDX-License-Identifier: Apache-2.0 */
/* accept and accept4: names, null addresses, short buffers, flags, errors. */
#include "conf.h"

static void finish(int fd)
{
	CHECK(shutdown(fd, SHUT_WR) == 0, "shutdown");
	close(fd);
}

int main(int argc, char **argv)
{
	struct sockaddr_storage sa;
	uint16_t port = 0;
	socklen_t size;
	int fd;

	conf_init(argc, argv, 30);
	int listener = conf_listen(&port, 64);
	for (int i = 0; i < 3; i++) {
		unsigned id = conf_dial_me(4, "name", port, 0);
		for (int k = 0; k < 4; k++) {
			size = sizeof(sa);
			fd = k & 1 ? accept4(listener, (struct sockaddr *)&sa, &size, 0) :
				     accept(listener, (struct sockaddr *)&sa, &size);
			CHECK(fd >= 0, "accept");
			conf_path(fd);
			CHECK(size == (conf.family == AF_INET ? sizeof(struct sockaddr_in) :
							       sizeof(struct sockaddr_in6)),
			      "accept gives length %u", size);
			conf_expect_name(fd, &sa, port);
			struct sockaddr_storage again;
			size = sizeof(again);
			CHECK(getpeername(fd, (struct sockaddr *)&again, &size) == 0, "getpeername");
			CHECK(conf_same(&again, conf.peer, conf_port_of(&sa)), "accept says %s, getpeername %s",
			      conf_text(&sa), conf_text(&again));
			size = sizeof(again);
			CHECK(getsockname(fd, (struct sockaddr *)&again, &size) == 0, "getsockname");
			CHECK(conf_same(&again, conf.self, port), "getsockname says %s", conf_text(&again));
			finish(fd);
		}
		conf_all_ok(id, 4);
	}
	conf_ok("names");

	unsigned id = conf_dial_me(2, "name", port, 0);
	char line[200];
	fd = accept(listener, NULL, NULL);
	CHECK(fd >= 0, "accept(fd, NULL, NULL)");
	conf_line(fd, line, sizeof(line));
	finish(fd);
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	CHECK(fd >= 0, "accept4(fd, NULL, NULL)");
	conf_line(fd, line, sizeof(line));
	finish(fd);
	conf_all_ok(id, 2);
	conf_ok("null address");

	id = conf_dial_me(1, "name", port, 0);
	memset(&sa, 0x5a, sizeof(sa));
	size = 4;
	fd = accept(listener, (struct sockaddr *)&sa, &size);
	CHECK(fd >= 0, "accept with a short buffer");
	CHECK(size > 4, "true length %u", size);
	CHECK(((unsigned char *)&sa)[4] == 0x5a, "more was written than there was room for");
	conf_line(fd, line, sizeof(line));
	finish(fd);
	conf_all_ok(id, 1);
	conf_ok("short buffer");

	for (int flags = 0; flags < 4; flags++) {
		int want = (flags & 1 ? SOCK_NONBLOCK : 0) | (flags & 2 ? SOCK_CLOEXEC : 0);

		id = conf_dial_me(1, "name", port, 0);
		fd = accept4(listener, NULL, NULL, want);
		CHECK(fd >= 0, "accept4");
		CHECK(!!(fcntl(fd, F_GETFL) & O_NONBLOCK) == !!(flags & 1), "O_NONBLOCK with flags %d", flags);
		CHECK(!!(fcntl(fd, F_GETFD) & FD_CLOEXEC) == !!(flags & 2), "FD_CLOEXEC with flags %d", flags);
		conf_line(fd, line, sizeof(line));
		finish(fd);
		conf_all_ok(id, 1);
	}
#ifdef __GLIBC__ /* musl 1.2.3 takes the kernel's EINVAL for an old kernel and accepts */
	CHECK_ERRNO(accept4(listener, NULL, NULL, 0x40000000), EINVAL);
#endif
	conf_ok("flags");

	/* The listener's own flags are not inherited on Linux. */
	conf_nonblock(listener, true);
	CHECK(fcntl(listener, F_SETFD, FD_CLOEXEC) == 0, "F_SETFD");
	CHECK_ERRNO(accept(listener, NULL, NULL), EAGAIN);
	id = conf_dial_me(1, "name", port, 0);
	CHECK(conf_wait(listener, POLLIN, 8000), "not readable");
	fd = accept(listener, NULL, NULL);
	CHECK(fd >= 0, "accept");
	CHECK(!(fcntl(fd, F_GETFL) & O_NONBLOCK), "O_NONBLOCK was inherited");
	CHECK(!(fcntl(fd, F_GETFD) & FD_CLOEXEC), "FD_CLOEXEC was inherited");
	conf_line(fd, line, sizeof(line));
	finish(fd);
	conf_all_ok(id, 1);
	CHECK_ERRNO(accept(listener, NULL, NULL), EAGAIN);
	conf_ok("listener's flags");

	fd = conf_socket(0);
	CHECK_ERRNO(accept(fd, NULL, NULL), EINVAL);
	close(fd);
	CHECK_ERRNO(accept(fd, NULL, NULL), EBADF);
	CHECK_ERRNO(accept(STDOUT_FILENO, NULL, NULL), ENOTSOCK);
	fd = conf_dial(CONF_ECHO);
	CHECK_ERRNO(accept(fd, NULL, NULL), EINVAL);
	close(fd);
	conf_ok("errors");

	/* The lowest free number, as always. */
	conf_nonblock(listener, false);
	int hole = open("/dev/null", O_RDONLY);
	int above = open("/dev/null", O_RDONLY);
	close(hole);
	id = conf_dial_me(1, "name", port, 0);
	fd = accept(listener, NULL, NULL);
	CHECK(fd == hole, "accept gave %d, the lowest free number was %d", fd, hole);
	conf_line(fd, line, sizeof(line));
	finish(fd);
	close(above);
	conf_all_ok(id, 1);
	conf_ok("lowest number");
	return conf_done();
}
