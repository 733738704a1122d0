/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the measuring programs share: clock, addresses, the path of a socket and
 * the rule by which a server ends (its standard input is closed).
 * Every client prints one JSON object on one line; every server prints
 * "READY port [port ...]" once it listens and one JSON object per result.
 */
#ifndef BENCH_PROBE_H
#define BENCH_PROBE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71 /* include/uapi/asm-generic/socket.h, Linux 5.14 */
#endif

#define PROBE_USAGE 2
#define PROBE_FAILED 1

static inline void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(PROBE_FAILED);
}

static inline uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* User and system time of this process, in seconds. */
static inline double cpu_seconds(void)
{
	struct rusage ru;

	getrusage(RUSAGE_SELF, &ru);
	return (double)ru.ru_utime.tv_sec + (double)ru.ru_stime.tv_sec +
	       ((double)ru.ru_utime.tv_usec + (double)ru.ru_stime.tv_usec) / 1e6;
}

/*
 * Busy time of the whole machine in seconds: everything in the first line of
 * /proc/stat but idle and iowait (proc(5)). It comes in ticks of 10 ms, and it
 * includes whatever else runs: a cross check of the figures, not a figure.
 */
static inline double machine_busy_seconds(void)
{
	unsigned long long v[8] = { 0 };
	FILE *f = fopen("/proc/stat", "re");
	double busy = 0.0;

	if (f == NULL)
		return 0.0;
	if (fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &v[0], &v[1], &v[2], &v[3],
		   &v[4], &v[5], &v[6], &v[7]) == 8)
		busy = (double)(v[0] + v[1] + v[2] + v[5] + v[6] + v[7]) /
		       (double)sysconf(_SC_CLK_TCK);
	fclose(f);
	return busy;
}

static inline struct sockaddr_in address_of(const char *ip, const char *port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET };

	if (inet_pton(AF_INET, ip, &sa.sin_addr) != 1) {
		fprintf(stderr, "%s: not an IPv4 address\n", ip);
		exit(PROBE_USAGE);
	}
	sa.sin_port = htons((uint16_t)atoi(port));
	return sa;
}

static inline uint16_t local_port(int fd)
{
	struct sockaddr_in sa = { 0 };
	socklen_t len = sizeof(sa);

	if (getsockname(fd, (struct sockaddr *)&sa, &len) < 0)
		fail("getsockname");
	return ntohs(sa.sin_port);
}

/* Namespace of a socket, asked past any interposed library. 0: the kernel would not say. */
static inline uint64_t netns_cookie(int fd)
{
	uint64_t cookie = 0;
	socklen_t len = sizeof(cookie);

	if (syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &len) < 0)
		return 0;
	return cookie;
}

static inline uint64_t own_netns_cookie(void)
{
	static uint64_t cookie;

	if (cookie == 0) {
		int fd = (int)syscall(SYS_socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

		if (fd >= 0) {
			cookie = netns_cookie(fd);
			syscall(SYS_close, fd);
		}
	}
	return cookie;
}

/* A socket of another namespace than our own is the host's: the bytes go past the overlay. */
static inline int is_foreign(int fd)
{
	uint64_t cookie = netns_cookie(fd);

	return cookie != 0 && cookie != own_netns_cookie();
}

static inline int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Nearest-rank percentile of a sorted array, in microseconds. */
static inline double percentile_us(const uint64_t *sorted_ns, size_t n, double p)
{
	size_t rank;

	if (n == 0)
		return 0.0;
	rank = (size_t)(p / 100.0 * (double)n + 0.999999);
	if (rank < 1)
		rank = 1;
	if (rank > n)
		rank = n;
	return (double)sorted_ns[rank - 1] / 1e3;
}

static inline int read_all(int fd, void *buffer, size_t want)
{
	size_t have = 0;

	while (have < want) {
		ssize_t n = read(fd, (char *)buffer + have, want - have);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			if (n == 0)
				errno = ECONNRESET;
			return -1;
		}
		have += (size_t)n;
	}
	return 0;
}

static inline int write_all(int fd, const void *buffer, size_t want)
{
	size_t done = 0;

	while (done < want) {
		ssize_t n = write(fd, (const char *)buffer + done, want - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		done += (size_t)n;
	}
	return 0;
}

/* Close by RST: no TIME_WAIT, so the number of connects is not bounded by ports. */
static inline void close_reset(int fd)
{
	struct linger now = { .l_onoff = 1, .l_linger = 0 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	close(fd);
}

static inline int listen_on(const char *ip, const char *port, int backlog)
{
	struct sockaddr_in sa = address_of(ip, port);
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		fail("socket");
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0)
		fail("setsockopt");
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		fail("bind");
	if (listen(fd, backlog) < 0)
		fail("listen");
	return fd;
}

/* Wait for a connection. -1: standard input was closed, the server is to end. */
static inline int accept_or_end(int listener)
{
	struct pollfd p[2] = { { .fd = listener, .events = POLLIN }, { .fd = 0, .events = POLLIN } };
	char byte;

	for (;;) {
		int fd;

		if (poll(p, 2, -1) < 0) {
			if (errno == EINTR)
				continue;
			fail("poll");
		}
		if (p[1].revents && read(0, &byte, 1) <= 0)
			return -1;
		if (!p[0].revents)
			continue;
		fd = accept(listener, NULL, NULL);
		if (fd >= 0)
			return fd;
		if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
			fail("accept");
	}
}

#endif
