/* SPDX-License-Identifier: Apache-2.0 */
/* getsockname and getpeername before, during and after connect; what the peer
 * calls us is what we call ourselves; short buffers and bad pointers. */
#include "conf.h"

static void compare(int fd)
{
	char line[200], mine[200], a[INET_ADDRSTRLEN], b[INET_ADDRSTRLEN];
	struct sockaddr_storage sa;
	socklen_t size = sizeof(sa);

	conf_names(fd, CONF_BANNER);
	CHECK(getsockname(fd, (struct sockaddr *)&sa, &size) == 0, "getsockname");
	inet_ntop(AF_INET, &conf.self, a, sizeof(a));
	inet_ntop(AF_INET, &conf.peer, b, sizeof(b));
	snprintf(mine, sizeof(mine), "%s %u %s %u", a, conf_port_of(&sa), b, conf.port + CONF_BANNER);
	conf_line(fd, line, sizeof(line));
	CHECK(strcmp(line, mine) == 0, "peer says '%s', we say '%s'", line, mine);
	conf_echo(fd, 5000);
}

int main(int argc, char **argv)
{
	struct sockaddr_storage sa, guard;
	socklen_t size;
	int fd;

	conf_init(argc, argv, 20);
	for (int i = 0; i < 5; i++) {
		fd = conf_dial(CONF_BANNER);
		compare(fd);
		close(fd);
	}
	conf_ok("both ends agree, blocking");

	for (int i = 0; i < 5; i++) {
		fd = conf_dial_nonblock(CONF_BANNER);
		/* The local name exists as soon as connect has returned. */
		size = sizeof(sa);
		CHECK(getsockname(fd, (struct sockaddr *)&sa, &size) == 0, "getsockname");
		CHECK(conf_same(&sa, conf.self, conf_port_of(&sa)) && conf_port_of(&sa), "in progress: %s",
		      conf_text(&sa));
		uint16_t early = conf_port_of(&sa);
		CHECK(conf_wait(fd, POLLOUT, 8000), "not writable");
		CHECK(conf_so_error(fd) == 0, "SO_ERROR");
		conf_path(fd);
		size = sizeof(sa);
		CHECK(getsockname(fd, (struct sockaddr *)&sa, &size) == 0, "getsockname");
		CHECK(conf_port_of(&sa) == early, "the port changed from %u to %u", early, conf_port_of(&sa));
		compare(fd);
		close(fd);
	}
	conf_ok("both ends agree, non-blocking; the early name stays");

	fd = conf_dial(CONF_ECHO);
	memset(&guard, 0x5a, sizeof(guard));
	size = 4;
	CHECK(getpeername(fd, (struct sockaddr *)&guard, &size) == 0, "short buffer");
	CHECK(size == (conf.family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6)),
	      "true length: %u", size);
	CHECK(((unsigned char *)&guard)[4] == 0x5a, "more was written than there was room for");
	size = 0;
	CHECK(getsockname(fd, (struct sockaddr *)&guard, &size) == 0, "no room at all");
	CHECK(size > 0, "true length: %u", size);
	size = (socklen_t)-1;
	CHECK_ERRNO(getsockname(fd, (struct sockaddr *)&guard, &size), EINVAL);
	CHECK_ERRNO(getsockname(-1, (struct sockaddr *)&guard, &size), EBADF);
	close(fd);
	CHECK_ERRNO(getpeername(fd, (struct sockaddr *)&guard, &size), EBADF);
	CHECK_ERRNO(getpeername(STDOUT_FILENO, (struct sockaddr *)&guard, &size), ENOTSOCK);
	conf_ok("short buffers and bad descriptors");

	/* After the peer has reset, Linux knows no peer name any more. */
	fd = conf_dial(CONF_RESET);
	CHECK(conf_wait(fd, POLLIN, 8000), "no reset");
	char byte;
	CHECK_ERRNO(recv(fd, &byte, 1, 0), ECONNRESET);
	size = sizeof(sa);
	CHECK_ERRNO(getpeername(fd, (struct sockaddr *)&sa, &size), ENOTCONN);
	size = sizeof(sa);
	CHECK(getsockname(fd, (struct sockaddr *)&sa, &size) == 0, "getsockname after a reset");
	close(fd);
	conf_ok("after a reset");
	return conf_done();
}
