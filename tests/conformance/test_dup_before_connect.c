/* SPDX-License-Identifier: Apache-2.0 */
/* Copies made before connect are the same connection afterwards. */
#include "conf.h"

static int copy(int fd, int how)
{
	int to = -1;

	switch (how) {
	case 0:
		to = dup(fd);
		break;
	case 1:
		to = dup2(fd, 201);
		break;
	case 2:
		to = dup3(fd, 202, O_CLOEXEC);
		break;
	case 3:
		to = fcntl(fd, F_DUPFD, 150);
		break;
	default:
		to = fcntl(fd, F_DUPFD_CLOEXEC, 160);
		break;
	}
	CHECK(to >= 0, "copy, way %d", how);
	return to;
}

static void same_file(int a, int b)
{
	unsigned long long x = 1, y = 2;
	socklen_t size = sizeof(x);

#ifdef SO_COOKIE
	CHECK(getsockopt(a, SOL_SOCKET, SO_COOKIE, &x, &size) == 0, "SO_COOKIE");
	CHECK(getsockopt(b, SOL_SOCKET, SO_COOKIE, &y, &size) == 0, "SO_COOKIE");
	CHECK(x == y, "the copy is another socket");
#endif
}

int main(int argc, char **argv)
{
	char got[4];

	conf_init(argc, argv, 30);
	for (int nonblock = 0; nonblock < 2; nonblock++) {
		for (int how = 0; how < 5; how++) {
			int fd = conf_socket(nonblock ? SOCK_NONBLOCK : 0), other = copy(fd, how), r;
			/* Connect through the copy in every other case. */
			int first = how & 1 ? other : fd, second = how & 1 ? fd : other;

			r = conf_connect(first, CONF_ECHO);
			CHECK(r == 0 || (nonblock && errno == EINPROGRESS), "connect");
			CHECK(conf_wait(second, POLLOUT, 8000), "the copy never becomes writable");
			CHECK(conf_so_error(first) == 0, "SO_ERROR");
			conf_path(first);
			conf_path(second);
			same_file(first, second);
			conf_names(first, CONF_ECHO);
			conf_names(second, CONF_ECHO);
			conf_send_all(first, "ping", 4);
			conf_recv_all(second, got, 4);
			close(first);
			conf_names(second, CONF_ECHO);
			conf_echo(second, 3000);
			CHECK(shutdown(second, SHUT_WR) == 0, "shutdown");
			conf_expect_eof(second);
			close(second);
		}
		conf_ok("%s", nonblock ? "non-blocking" : "blocking");
	}
	/* A copy closed before connect does no harm. */
	int fd = conf_socket(0), other = dup(fd);
	close(other);
	CHECK(conf_connect(fd, CONF_ECHO) == 0, "connect");
	conf_path(fd);
	conf_names(fd, CONF_ECHO);
	close(fd);
	conf_ok("copy closed before connect");

	/* The original closed; its number reused for something else. */
	fd = conf_socket(0);
	other = dup(fd);
	close(fd);
	int file = open("/dev/null", O_RDWR);
	CHECK(file == fd, "descriptor numbers are reused");
	CHECK(conf_connect(other, CONF_ECHO) == 0, "connect");
	conf_path(other);
	conf_echo(other, 3000);
	CHECK(write(file, "x", 1) == 1, "the file under the old number");
	struct sockaddr_storage sa;
	CHECK_ERRNO(getsockname(file, (struct sockaddr *)&sa, &(socklen_t){ sizeof(sa) }), ENOTSOCK);
	close(file);
	close(other);
	conf_ok("original's number reused");
	return conf_done();
}
