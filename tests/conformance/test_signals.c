/* SPDX-License-Identifier: Apache-2.0 */
/* Signals during connect and accept: EINTR without SA_RESTART, going on with it. */
#include "conf.h"
#include <sys/time.h>

static volatile sig_atomic_t hits;

static void handler(int signo)
{
	(void)signo;
	hits++;
}

static void arm(int flags, int ms)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags };
	struct itimerval when = { .it_value.tv_usec = ms * 1000 };

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &when, NULL);
	hits = 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_storage sa;
	socklen_t size;
	uint16_t port = 0;
	uint64_t number;
	int fd;

	conf_init(argc, argv, 40);
	int listener = conf_listen(&port, 8);
	arm(0, 100);
	CHECK_ERRNO(accept(listener, NULL, NULL), EINTR);
	CHECK(hits == 1, "handler ran %d times", (int)hits);
	conf_ok("accept: EINTR");

	unsigned id = 0;
	pid_t pid = conf_fork();
	if (pid == 0) {
		conf_sleep(0.4);
		id = conf_dial_me(1, "id", port, 0);
		conf_all_ok(id, 1);
		conf_leave();
	}
	arm(SA_RESTART, 100);
	fd = conf_accept(listener);
	CHECK(hits == 1, "handler ran %d times", (int)hits);
	conf_recv_all(fd, &number, sizeof(number));
	conf_send_all(fd, &number, sizeof(number));
	close(fd);
	conf_join(pid);
	conf_ok("accept: SA_RESTART goes on");

	size = conf_address(&sa, conf_nobody(3), 80);
	fd = conf_socket(0);
	arm(0, 100);
	CHECK_ERRNO(connect(fd, (struct sockaddr *)&sa, size), EINTR);
	CHECK_ERRNO(connect(fd, (struct sockaddr *)&sa, size), EHOSTUNREACH);
	close(fd);
	conf_ok("connect: EINTR, then it goes on in the background");

	fd = conf_socket(0);
	arm(SA_RESTART, 100);
	double start = conf_now();
	CHECK_ERRNO(connect(fd, (struct sockaddr *)&sa, size), EHOSTUNREACH);
	CHECK(conf_now() - start > 0.2, "connect was cut short");
	close(fd);
	conf_ok("connect: SA_RESTART goes on");

	/* A fast timer all the while: nothing breaks, and each call is its own. */
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };
	struct itimerval fast = { .it_value.tv_usec = 500, .it_interval.tv_usec = 500 }, off = { 0 };
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &fast, NULL);
	for (int i = 0; i < 100; i++) {
		fd = conf_dial(CONF_ECHO);
		conf_names(fd, CONF_ECHO);
		conf_echo(fd, 2000);
		close(fd);
	}
	setitimer(ITIMER_REAL, &off, NULL);
	conf_ok("a hundred connects under a timer (%d signals)", (int)hits);

	/* poll and epoll_wait give EINTR even with SA_RESTART. */
	struct epoll_event e = { .events = EPOLLIN };
	int ep = epoll_create1(0);
	CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, listener, &e) == 0, "ADD");
	arm(SA_RESTART, 50);
	CHECK_ERRNO(epoll_wait(ep, &e, 1, 5000), EINTR);
	struct pollfd p = { .fd = listener, .events = POLLIN };
	arm(SA_RESTART, 50);
	CHECK_ERRNO(poll(&p, 1, 5000), EINTR);
	conf_ok("poll and epoll_wait: EINTR");

	/* The same with a connect pending, when the library looks at them. */
	fd = conf_socket(SOCK_NONBLOCK);
	CHECK_ERRNO(connect(fd, (struct sockaddr *)&sa, size), EINPROGRESS);
	arm(SA_RESTART, 50);
	p = (struct pollfd){ .fd = fd, .events = POLLOUT };
	CHECK_ERRNO(poll(&p, 1, 5000), EINTR);
	arm(SA_RESTART, 50);
	CHECK_ERRNO(epoll_wait(ep, &e, 1, 5000), EINTR);
	start = conf_now();
	CHECK(poll(&p, 1, 100) == 0, "poll with a connect pending");
	CHECK(conf_now() - start > 0.09 && conf_now() - start < 0.5, "100 ms took %.3f s", conf_now() - start);
	close(fd);
	conf_ok("the same with a connect pending");
	return conf_done();
}
