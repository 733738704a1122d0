/* SPDX-License-Identifier: Apache-2.0 */
/* close, dup2, getpeername and write from a signal handler are async-signal-safe
 * or used as such: interrupting the library must not deadlock it. */
#include "conf.h"
#include <sys/time.h>

static int victim = -1;
static volatile sig_atomic_t hits;

static void handler(int signo)
{
	struct sockaddr_storage sa;
	socklen_t size = sizeof(sa);
	int saved = errno;

	(void)signo;
	hits++;
	getpeername(victim, (struct sockaddr *)&sa, &size);
	size = sizeof(sa);
	getsockname(victim, (struct sockaddr *)&sa, &size);
	int copy = dup(victim);
	close(copy);
	errno = saved;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };
	struct itimerval fast = { .it_value.tv_usec = 300, .it_interval.tv_usec = 300 }, off = { 0 };

	conf_init(argc, argv, 30);
	victim = conf_dial(CONF_ECHO);
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &fast, NULL);
	for (int i = 0; i < 300; i++) {
		int fd = i & 1 ? conf_dial(CONF_ECHO) : conf_dial_nonblock(CONF_ECHO);

		CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "connect");
		int copy = dup(fd);
		CHECK(copy >= 0, "dup");
		close(fd);
		conf_names(copy, CONF_ECHO);
		close(copy);
	}
	setitimer(ITIMER_REAL, &off, NULL);
	conf_names(victim, CONF_ECHO);
	conf_echo(victim, 3000);
	conf_ok("three hundred connects, %d signals", (int)hits);
	return conf_done();
}
