/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many connections at once to one server, without a thread each.
 *
 *   flood ADDRESS PORT COUNT WIDTH      COUNT connections, at most WIDTH open; each
 *                                       sends a number of its own and expects the
 *                                       same back and the end of data
 *   flood ADDRESS PORT COUNT WIDTH wait as above, but prints "connected N" once
 *                                       all COUNT handshakes are done (COUNT <=
 *                                       WIDTH) before it waits for the answers
 *   flood ADDRESS PORT COUNT WIDTH open the same, and then just waits for the end:
 *                                       for servers that die
 *
 * SIGUSR1: no more than have begun.
 *
 * Last line: "done ok=N wrong=N reset=N eof=N refused=N other=N path-slim=N ms=N
 * lost-slim=N begun=N", lost-slim being those of reset and eof that were on the host path.
 */
#include "conf.h"
#include <sys/resource.h>

struct link {
	int fd;
	uint64_t id, got;
	size_t sent, had;
	bool up, slim;
};

static struct {
	int ok, wrong, reset, eof, refused, other, slim, lost_slim;
} sum;

static volatile sig_atomic_t enough;

static void on_enough(int signal)
{
	(void)signal;
	enough = 1;
}

static uint64_t own_cookie(void)
{
	uint64_t cookie = 0;
	socklen_t size = sizeof(cookie);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	getsockopt(fd, SOL_SOCKET, CONF_SO_NETNS_COOKIE, &cookie, &size);
	close(fd);
	return cookie;
}

static void end(struct link *l, int error)
{
	if (error == ECONNRESET) {
		sum.reset++;
		sum.lost_slim += l->slim;
	} else if (error == ECONNREFUSED) {
		sum.refused++;
	} else if (error > 0) {
		sum.other++;
	}
	if (error > 0 && error != ECONNRESET && error != ECONNREFUSED)
		fprintf(stderr, "flood: %s\n", strerror(error));
	close(l->fd);
	l->fd = -1;
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	struct rlimit limit;
	int count, width, begun = 0, open = 0, up = 0, ep;
	bool wait_all, only_open, told = false;
	struct link *links;
	struct epoll_event events[256];
	uint64_t ours = own_cookie();
	double start = conf_now();

	if (argc < 5 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1) {
		fprintf(stderr, "usage: flood ADDRESS PORT COUNT WIDTH [wait|open]\n");
		return 2;
	}
	to.sin_port = htons((uint16_t)atoi(argv[2]));
	count = atoi(argv[3]);
	width = atoi(argv[4]);
	only_open = argc > 5 && strcmp(argv[5], "open") == 0;
	wait_all = only_open || (argc > 5 && strcmp(argv[5], "wait") == 0);
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGUSR1, on_enough);
	conf_deadline(120);
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	links = calloc((size_t)width, sizeof(*links));
	ep = epoll_create1(EPOLL_CLOEXEC);
	if (!links || ep < 0) {
		perror("flood");
		return 1;
	}
	for (int i = 0; i < width; i++)
		links[i].fd = -1;

	while (begun < count || open > 0) {
		if (enough)
			count = begun;
		for (int i = 0; i < width && begun < count; i++) {
			struct link *l = &links[i];
			struct epoll_event e = { .events = EPOLLOUT, .data.u32 = (uint32_t)i };

			if (l->fd >= 0)
				continue;
			memset(l, 0, sizeof(*l));
			l->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
			l->id = (uint64_t)getpid() << 32 | (uint64_t)++begun;
			if (l->fd < 0) {
				perror("flood: socket");
				return 1;
			}
			if (connect(l->fd, (struct sockaddr *)&to, sizeof(to)) < 0 && errno != EINPROGRESS) {
				end(l, errno);
				continue;
			}
			if (epoll_ctl(ep, EPOLL_CTL_ADD, l->fd, &e) < 0) {
				perror("flood: epoll_ctl");
				return 1;
			}
			open++;
		}
		int n = epoll_wait(ep, events, 256, 20000);
		if (n == 0) {
			fprintf(stderr, "flood: nothing happened for 20 s, %d open, %d up\n", open, up);
			sum.other += open;
			break;
		}
		for (int i = 0; i < n; i++) {
			struct link *l = &links[events[i].data.u32];
			struct epoll_event e = { .events = EPOLLIN, .data = events[i].data };
			ssize_t r;

			if (l->fd < 0)
				continue;
			if (!l->up) {
				int error = 0;
				uint64_t its = ours;
				socklen_t size = sizeof(error);

				getsockopt(l->fd, SOL_SOCKET, SO_ERROR, &error, &size);
				if (error) {
					end(l, error);
					open--;
					continue;
				}
				l->up = true;
				up++;
				size = sizeof(its);
				getsockopt(l->fd, SOL_SOCKET, CONF_SO_NETNS_COOKIE, &its, &size);
				l->slim = its != ours;
				sum.slim += l->slim;
				if (!only_open && send(l->fd, &l->id, sizeof(l->id), MSG_NOSIGNAL) != sizeof(l->id)) {
					end(l, errno);
					open--;
					continue;
				}
				if (epoll_ctl(ep, EPOLL_CTL_MOD, l->fd, &e) < 0)
					perror("flood: EPOLL_CTL_MOD");
				continue;
			}
			if (l->had < sizeof(l->got)) {
				r = recv(l->fd, (char *)&l->got + l->had, sizeof(l->got) - l->had, 0);
				if (r > 0) {
					l->had += (size_t)r;
					continue;
				}
			} else {
				char stray;

				r = recv(l->fd, &stray, 1, 0);
				if (r > 0)
					l->got = 0; /* a stray byte is a wrong answer */
			}
			if (r < 0 && errno == EAGAIN)
				continue;
			if (r < 0) {
				end(l, errno);
			} else {
				if (l->had < sizeof(l->got)) {
					sum.eof++;
					sum.lost_slim += l->slim;
				} else if (l->got == l->id)
					sum.ok++;
				else
					sum.wrong++;
				end(l, 0);
			}
			open--;
		}
		if (wait_all && !told && up == count) {
			told = true;
			printf("connected %d\n", up);
		}
	}
	printf("done ok=%d wrong=%d reset=%d eof=%d refused=%d other=%d path-slim=%d ms=%.0f lost-slim=%d begun=%d\n",
	       sum.ok, sum.wrong, sum.reset, sum.eof, sum.refused, sum.other, sum.slim,
	       (conf_now() - start) * 1e3, sum.lost_slim, begun);
	return sum.wrong || sum.other ? 1 : 0;
}
