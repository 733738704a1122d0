/* SPDX-License-Identifier: Apache-2.0 */
/* select with a descriptor near the top of fd_set; poll and epoll far above it. */
#include "conf.h"
#include <sys/resource.h>
#include <sys/select.h>

int main(int argc, char **argv)
{
	struct rlimit limit;

	conf_init(argc, argv, 20);
	getrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_cur < 8192 && limit.rlim_max >= 8192) {
		limit.rlim_cur = 8192;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	static const int numbers[] = { 63, 64, 512, 1000, 1023 };
	for (int i = 0; i < 5; i++) {
		int low = conf_socket(SOCK_NONBLOCK), fd = numbers[i];
		fd_set wr;
		struct timeval tv = { .tv_sec = 8 };

		CHECK(dup2(low, fd) == fd, "dup2 to %d", fd);
		close(low);
		int r = conf_connect(fd, CONF_ECHO);
		CHECK(r == 0 || errno == EINPROGRESS, "connect");
		FD_ZERO(&wr);
		FD_SET(fd, &wr);
		CHECK(select(fd + 1, NULL, &wr, NULL, &tv) == 1 && FD_ISSET(fd, &wr), "select on %d", fd);
		CHECK(conf_so_error(fd) == 0, "SO_ERROR");
		conf_path(fd);
		conf_names(fd, CONF_ECHO);
		conf_echo(fd, 3000);
		close(fd);
	}
	conf_ok("up to 1023");
	if (limit.rlim_cur >= 8000) {
		int low = conf_socket(SOCK_NONBLOCK), fd = 7000;

		CHECK(dup2(low, fd) == fd, "dup2");
		close(low);
		int r = conf_connect(fd, CONF_ECHO);
		CHECK(r == 0 || errno == EINPROGRESS, "connect");
		CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "poll on %d", fd);
		conf_path(fd);
		conf_names(fd, CONF_ECHO);
		conf_echo(fd, 3000);
		/* select over low numbers while a high one is pending. */
		struct timeval tv = { .tv_usec = 10000 };
		int other = conf_dial_nonblock(CONF_ECHO);
		CHECK(dup2(other, fd) == fd, "dup2");
		close(other);
		CHECK(select(0, NULL, NULL, NULL, &tv) == 0, "select as a sleep");
		CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "poll on %d", fd);
		close(fd);
		conf_ok("poll at 7000");
	}
	return conf_done();
}
