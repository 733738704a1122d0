/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The peer: an honest program behind the shim. The first byte of a connection says what
 * it is for: E echo, O orders ("DIAL port": connect back to the caller and echo there).
 * In an echoed stream "\1RESET" and "\1CLOSE" end the connection that way.
 */
#include "escape.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/stat.h>

#define FDS 4096

static struct peer_connection {
	char kind; /* 0 nothing said yet */
	char line[64];
	unsigned used;
	struct in_addr from;
} *table;

static int set;

static void watch(int fd, uint32_t events)
{
	struct epoll_event e = { .events = events, .data.fd = fd };

	if (fd >= FDS) {
		close(fd);
		return;
	}
	memset(&table[fd], 0, sizeof(table[fd]));
	epoll_ctl(set, EPOLL_CTL_ADD, fd, &e);
}

static struct in_addr who(int fd)
{
	struct sockaddr_storage sa;
	socklen_t size = sizeof(sa);
	struct in_addr ip = { 0 };

	if (getpeername(fd, (struct sockaddr *)&sa, &size) == 0) {
		if (sa.ss_family == AF_INET)
			ip = ((struct sockaddr_in *)&sa)->sin_addr;
		else
			memcpy(&ip, ((struct sockaddr_in6 *)&sa)->sin6_addr.s6_addr + 12, 4);
	}
	return ip;
}

static void dial_back(struct in_addr to, uint16_t port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = to };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return;
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 && errno != EINPROGRESS)
		close(fd);
	else
		watch(fd, EPOLLIN | EPOLLOUT);
}

/* As any client of a non-blocking connect: look at the outcome, then wait for data. */
static void connected(int fd)
{
	struct epoll_event e = { .events = EPOLLIN, .data.fd = fd };
	int error = 0;
	socklen_t size = sizeof(error);

	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 || error)
		close(fd);
	else
		epoll_ctl(set, EPOLL_CTL_MOD, fd, &e);
}

static void finish(int fd, bool reset)
{
	struct linger now = { 1, 0 };

	if (reset)
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close(fd);
}

static void order(struct peer_connection *p, int fd, const char *data, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		if (data[i] != '\n') {
			if (p->used < sizeof(p->line) - 1)
				p->line[p->used++] = data[i];
			continue;
		}
		p->line[p->used] = 0;
		p->used = 0;
		if (strncmp(p->line, "DIAL ", 5) == 0)
			dial_back(p->from, (uint16_t)atoi(p->line + 5));
	}
	(void)fd;
}

static void heard(int fd)
{
	char data[8192];
	struct peer_connection *p = &table[fd];
	ssize_t got = read(fd, data, sizeof(data));
	const char *rest = data;

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0) {
		finish(fd, false);
		return;
	}
	if (!p->kind) {
		p->kind = *rest++;
		got--;
		if (p->kind == 'O')
			p->from = who(fd);
	}
	if (p->kind == 'O') {
		order(p, fd, rest, (size_t)got);
	} else if (p->kind != 'E') {
		finish(fd, true);
	} else if (memmem(rest, (size_t)got, "\1RESET", 6)) {
		finish(fd, true);
	} else if (memmem(rest, (size_t)got, "\1CLOSE", 6)) {
		finish(fd, false);
	} else if (got && write(fd, rest, (size_t)got) < 0 && errno != EAGAIN) {
		finish(fd, false);
	}
}

/* Whoever holds the other end of our standard input wants us as long as that. */
bool led(void)
{
	struct stat status;

	return fstat(0, &status) == 0 && (S_ISFIFO(status.st_mode) || S_ISSOCK(status.st_mode));
}

void serve(void)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_port = htons(settings.peer_port),
				  .sin_addr = settings.peer };
	int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	struct epoll_event events[64];

	signal(SIGPIPE, SIG_IGN);
	table = calloc(FDS, sizeof(*table));
	set = epoll_create1(EPOLL_CLOEXEC);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (!table || bind(listener, (struct sockaddr *)&sa, sizeof(sa)) < 0 ||
	    listen(listener, 256) < 0) {
		perror("escape serve: listen");
		exit(1);
	}
	watch(listener, EPOLLIN);
	if (led())
		watch(0, EPOLLIN);
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(set, events, 64, -1);

		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;

			if (fd == 0)
				exit(0);
			if (fd != listener) {
				if (events[i].events & EPOLLOUT)
					connected(fd);
				else
					heard(fd);
				continue;
			}
			while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
				watch(fd, EPOLLIN);
		}
	}
}
