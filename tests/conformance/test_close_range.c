/* SPDX-License-Identifier: Apache-2.0 */
/* close_range over connections, and daemons that close everything and go on. */
#include "conf.h"
#include <sys/syscall.h>
#ifdef __GLIBC__
#if __GLIBC_PREREQ(2, 34)
#define HAVE_CLOSE_RANGE /* and closefrom */
#endif
#endif

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif

static int range(unsigned first, unsigned last, int flags)
{
#ifdef HAVE_CLOSE_RANGE
	return close_range(first, last, flags);
#else
	return (int)syscall(SYS_close_range, first, last, flags);
#endif
}

static void works(const char *when)
{
	uint16_t port = 0;
	int fd = conf_dial(CONF_ECHO), listener;

	conf_names(fd, CONF_ECHO);
	conf_echo(fd, 3000);
	close(fd);
	listener = conf_listen(&port, 8);
	unsigned id = conf_dial_me(1, "echo", port, 0);
	char block[4096];
	fd = conf_accept(listener);
	conf_recv_all(fd, block, sizeof(block));
	conf_send_all(fd, block, sizeof(block));
	conf_all_ok(id, 1);
	close(fd);
	close(listener);
	conf_ok("%s", when);
}

int main(int argc, char **argv)
{
	conf_init(argc, argv, 30);
	int a = conf_dial(CONF_ECHO), b = conf_dial(CONF_SINK), c = conf_dial(CONF_ECHO);
	CHECK(a < b && b < c, "numbers ascend");
	CHECK(range((unsigned)b, (unsigned)b, 0) == 0, "close_range");
	CHECK_ERRNO(fcntl(b, F_GETFD), EBADF);
	conf_names(a, CONF_ECHO);
	conf_names(c, CONF_ECHO);
	CHECK(range((unsigned)a, (unsigned)a, (int)CLOSE_RANGE_CLOEXEC) == 0, "CLOSE_RANGE_CLOEXEC");
	CHECK(fcntl(a, F_GETFD) & FD_CLOEXEC, "FD_CLOEXEC");
	conf_names(a, CONF_ECHO);
	conf_echo(a, 3000);
	CHECK_ERRNO(range(5, 4, 0), EINVAL);
	close(a);
	close(c);
	conf_ok("part of the table");

	int before = conf_dial(CONF_ECHO);
	CHECK(range(3, ~0u, 0) == 0, "close_range(3, max)");
	CHECK_ERRNO(fcntl(before, F_GETFD), EBADF);
	pid_t pid = conf_fork(); /* a child makes its own socket for orders */
	if (pid == 0) {
		works("connect and listen after close_range(3, max)");
		conf_leave();
	}
	conf_join(pid);

	pid = conf_fork();
	if (pid == 0) {
		conf_dial(CONF_ECHO);
		conf_listen(&(uint16_t){ 0 }, 4);
		for (int fd = 3; fd < 20000; fd++)
			close(fd);
		works("connect and listen after closing 3..20000 one by one");
		conf_leave();
	}
	conf_join(pid);

#ifdef HAVE_CLOSE_RANGE
	pid = conf_fork();
	if (pid == 0) {
		conf_dial(CONF_ECHO);
		closefrom(3);
		works("connect and listen after closefrom(3)");
		conf_leave();
	}
	conf_join(pid);
#endif

	/* As daemons do: fork, setsid, close all, connect. */
	pid = conf_fork();
	if (pid == 0) {
		setsid();
		pid_t grandchild = conf_fork();
		if (grandchild == 0) {
			long max = sysconf(_SC_OPEN_MAX);
			for (long fd = 3; fd < max && fd < 65536; fd++)
				close((int)fd);
			works("in a daemon");
			conf_leave();
		}
		conf_join(grandchild);
		conf_leave();
	}
	conf_join(pid);
	/* Reclaiming low numbers: 0, 1, 2 of our own are still there. */
	CHECK(fcntl(1, F_GETFD) >= 0, "stdout");
	return conf_done();
}
