/* SPDX-License-Identifier: Apache-2.0 */
/* dup, dup2, dup3, F_DUPFD and F_DUPFD_CLOEXEC of a connected socket. */
#include "conf.h"

static void both(int fd, int copy, bool cloexec)
{
	char got[4];

	CHECK(copy >= 0, "copy");
	CHECK(!!(fcntl(copy, F_GETFD) & FD_CLOEXEC) == cloexec, "FD_CLOEXEC of the copy");
	conf_names(fd, CONF_ECHO);
	conf_names(copy, CONF_ECHO);
	conf_send_all(fd, "ping", 4);
	conf_recv_all(copy, got, 4);
	close(copy);
	conf_names(fd, CONF_ECHO);
	conf_echo(fd, 3000);
}

int main(int argc, char **argv)
{
	conf_init(argc, argv, 20);
	int fd = conf_dial(CONF_ECHO);
	both(fd, dup(fd), false);
	both(fd, dup2(fd, 200), false);
	both(fd, dup3(fd, 200, O_CLOEXEC), true);
	both(fd, dup3(fd, 200, 0), false);
	both(fd, fcntl(fd, F_DUPFD, 100), false);
	both(fd, fcntl(fd, F_DUPFD_CLOEXEC, 100), true);
	CHECK(dup2(fd, fd) == fd, "dup2 onto itself");
	conf_names(fd, CONF_ECHO);
	CHECK_ERRNO(dup3(fd, fd, 0), EINVAL);
	CHECK_ERRNO(dup2(-1, 200), EBADF);
	CHECK_ERRNO(dup2(fd, -1), EBADF);
	conf_names(fd, CONF_ECHO);
	int low = dup(fd);
	close(fd);
	conf_names(low, CONF_ECHO);
	conf_echo(low, 3000);
	close(low);
	conf_ok("copies");

	/* Over stdin, as inetd does. */
	fd = conf_dial(CONF_ECHO);
	int keep = dup(0);
	CHECK(dup2(fd, 0) == 0, "dup2 to 0");
	close(fd);
	conf_names(0, CONF_ECHO);
	CHECK(write(0, "ping", 4) == 4, "write");
	char got[4];
	CHECK(read(0, got, 4) > 0, "read");
	if (keep >= 0)
		dup2(keep, 0);
	else
		close(0);
	conf_ok("over stdin");
	return conf_done();
}
