/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A prefork server for load tests: each connection sends eight bytes, gets the
 * same eight bytes back and the end of data. Runs until it is killed.
 *
 *   idserver ADDRESS PORT CHILDREN block|poll|epoll|exclusive [BACKLOG [hold]]
 *
 * Prints "ready PID" when it listens. With `hold` it accepts nothing before it gets
 * SIGUSR1. Children end with their parent.
 */
#include "conf.h"
#include <sys/prctl.h>

static volatile sig_atomic_t go;

static void start(int signo)
{
	(void)signo;
	go = 1;
}

static void serve(int fd)
{
	uint64_t id;
	size_t had = 0;

	while (had < sizeof(id)) {
		ssize_t n = recv(fd, (char *)&id + had, sizeof(id) - had, 0);

		if (n <= 0)
			break;
		had += (size_t)n;
	}
	if (had == sizeof(id))
		send(fd, &id, sizeof(id), MSG_NOSIGNAL);
	close(fd);
}

static void loop(int listener, const char *way)
{
	bool block = strcmp(way, "block") == 0, use_poll = strcmp(way, "poll") == 0;
	int ep = -1;

	if (!block && !use_poll) {
		struct epoll_event e = { .events = EPOLLIN };

		if (strcmp(way, "exclusive") == 0)
			e.events |= EPOLLEXCLUSIVE;
		ep = epoll_create1(EPOLL_CLOEXEC);
		if (epoll_ctl(ep, EPOLL_CTL_ADD, listener, &e) < 0) {
			perror("idserver: epoll_ctl");
			_exit(1);
		}
	}
	for (;;) {
		struct pollfd p = { .fd = listener, .events = POLLIN };
		struct epoll_event e;
		int fd;

		if (use_poll)
			poll(&p, 1, -1);
		else if (!block)
			epoll_wait(ep, &e, 1, -1);
		fd = accept(listener, NULL, NULL);
		if (fd >= 0)
			serve(fd);
		else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
			perror("idserver: accept");
			_exit(1);
		}
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in at = { .sin_family = AF_INET };
	int one = 1, listener, children;
	sigset_t mask, old;

	if (argc < 5 || inet_pton(AF_INET, argv[1], &at.sin_addr) != 1) {
		fprintf(stderr, "usage: idserver ADDRESS PORT CHILDREN block|poll|epoll|exclusive [BACKLOG [hold]]\n");
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGUSR1, start);
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	sigprocmask(SIG_BLOCK, &mask, &old);
	at.sin_port = htons((uint16_t)atoi(argv[2]));
	children = atoi(argv[3]);
	listener = socket(AF_INET, SOCK_STREAM | (strcmp(argv[4], "block") ? SOCK_NONBLOCK : 0), 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&at, sizeof(at)) < 0 ||
	    listen(listener, argc > 5 ? atoi(argv[5]) : 4096) < 0) {
		perror("idserver");
		return 1;
	}
	printf("ready %d\n", (int)getpid());
	fflush(stdout);
	if (argc > 6)
		while (!go)
			sigsuspend(&old);
	for (int i = 1; i < children; i++) {
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			loop(listener, argv[4]);
		}
	}
	loop(listener, argv[4]);
	return 0;
}
