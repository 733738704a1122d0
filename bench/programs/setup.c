/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Setting connections up.
 *   setup serve IP LISTENERS            one epoll loop over so many listeners
 *   setup connect IP PORT COUNT         one after the other, the first eighth discarded
 *   setup rate IP PORT CLIENTS SECONDS COUNT   as many as go, COUNT 0: until the time is over
 *   setup cold poll|block IP PORT [PORT ...]   one connect to each port, none used before
 * One connection: socket, connect, one byte there, the same byte back, close by
 * reset. A connect that fails, a lost or a wrong byte is an error and counted.
 */
#include "probe.h"
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define MAX_CLIENTS 256
#define MAX_ERRORS 100 /* a client gives up here: the run has failed anyhow */

/* ---- server ---- */

#define SLOTS 65536

static unsigned char is_listener[SLOTS];

static void watch(int epoll, int fd)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.fd = fd };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &ev) < 0)
		fail("epoll_ctl");
}

static int serve(const char *ip, int listeners)
{
	unsigned long long accepted = 0, host_path = 0;
	struct epoll_event events[64];
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	char byte[64];

	if (epoll < 0)
		fail("epoll_create1");
	printf("READY");
	for (int i = 0; i < listeners; i++) {
		int fd = listen_on(ip, "0", 4096);

		if (fd >= SLOTS || fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
			fail("listener");
		is_listener[fd] = 1;
		watch(epoll, fd);
		printf(" %u", local_port(fd));
	}
	printf("\n");
	fflush(stdout);
	watch(epoll, 0);
	for (;;) {
		int n = epoll_wait(epoll, events, 64, -1);

		if (n < 0 && errno != EINTR)
			fail("epoll_wait");
		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd, conn;
			ssize_t got;

			if (fd == 0) {
				if (read(0, byte, sizeof(byte)) > 0)
					continue;
				printf("{\"accepted\": %llu, \"host_path\": %llu}\n", accepted, host_path);
				return 0;
			}
			if (fd < SLOTS && is_listener[fd]) {
				while ((conn = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
					accepted++;
					host_path += (unsigned)is_foreign(conn);
					watch(epoll, conn);
				}
				if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
					fail("accept4");
				continue;
			}
			got = read(fd, byte, sizeof(byte));
			if (got < 0 && errno == EAGAIN)
				continue;
			if (got <= 0 || write(fd, byte, (size_t)got) != got)
				close(fd);
		}
	}
}

/* ---- clients ---- */

struct attempt {
	uint64_t connect_ns; /* connect() alone */
	uint64_t total_ns;   /* socket() until the byte is back */
	int host_path;
	const char *failed;  /* the step that failed, or NULL */
	int error;
};

static int connect_polled(int fd, const struct sockaddr_in *sa)
{
	struct pollfd p = { .fd = fd, .events = POLLOUT };
	int error = 0;
	socklen_t len = sizeof(error);

	if (connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) == 0)
		return 0;
	if (errno != EINPROGRESS)
		return -1;
	if (poll(&p, 1, 10000) != 1) {
		errno = ETIMEDOUT;
		return -1;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
		return -1;
	errno = error;
	return error ? -1 : fcntl(fd, F_SETFL, 0);
}

static struct attempt try_once(const struct sockaddr_in *sa, int polled, unsigned char mark)
{
	struct attempt a = { 0 };
	unsigned char back = (unsigned char)~mark;
	uint64_t t0 = now_ns(), t1;
	int fd = socket(AF_INET, SOCK_STREAM | (polled ? SOCK_NONBLOCK : 0), 0), rc;

	if (fd < 0) {
		a.failed = "socket";
		a.error = errno;
		return a;
	}
	t1 = now_ns();
	rc = polled ? connect_polled(fd, sa) : connect(fd, (const struct sockaddr *)sa, sizeof(*sa));
	a.connect_ns = now_ns() - t1;
	if (rc < 0) {
		a.failed = "connect";
	} else if (write_all(fd, &mark, 1) < 0 || read_all(fd, &back, 1) < 0) {
		a.failed = "exchange";
	} else if (back != mark) {
		a.failed = "wrong byte";
		errno = EPROTO;
	}
	a.error = a.failed ? errno : 0;
	a.total_ns = now_ns() - t0;
	a.host_path = a.failed == NULL && is_foreign(fd);
	close_reset(fd);
	return a;
}

static void complain(const struct attempt *a, unsigned long i)
{
	fprintf(stderr, "connection %lu: %s: %s\n", i, a->failed, strerror(a->error));
}

static void print_times(const char *name, uint64_t *ns, size_t n)
{
	qsort(ns, n, sizeof(*ns), compare_u64);
	printf("\"%s_min_us\": %.3f, \"%s_p50_us\": %.3f, \"%s_p99_us\": %.3f, \"%s_max_us\": %.3f, ", name,
	       percentile_us(ns, n, 0), name, percentile_us(ns, n, 50), name, percentile_us(ns, n, 99),
	       name, percentile_us(ns, n, 100));
}

static int sequence(const char *ip, char **ports, size_t nports, size_t count, size_t warm, int polled)
{
	uint64_t *connects = calloc(count, sizeof(uint64_t)), *totals = calloc(count, sizeof(uint64_t));
	size_t good = 0, host_path = 0, errors = 0;
	double busy = machine_busy_seconds();

	if (connects == NULL || totals == NULL)
		fail("calloc");
	for (size_t i = 0; i < warm + count && errors < MAX_ERRORS; i++) {
		struct sockaddr_in sa = address_of(ip, ports[i % nports]);
		struct attempt a = try_once(&sa, polled, (unsigned char)i);

		if (a.failed) {
			errors++;
			complain(&a, i);
		} else if (i >= warm) {
			connects[good] = a.connect_ns;
			totals[good++] = a.total_ns;
			host_path += (size_t)a.host_path;
		}
	}
	printf("{");
	print_times("connect", connects, good);
	print_times("byte", totals, good);
	printf("\"count\": %zu, \"host_path\": %zu, \"errors\": %zu, \"machine_s\": %.3f}\n", good,
	       host_path, errors, machine_busy_seconds() - busy);
	return errors ? PROBE_FAILED : 0;
}

struct tally {
	unsigned long good, host_path, errors;
	uint64_t end_ns;
};

static void client(const struct sockaddr_in *sa, int start, double seconds, unsigned long count,
		   struct tally *t)
{
	uint64_t limit;
	char byte;

	alarm((unsigned)seconds + 30);
	if (read(start, &byte, 1) != 0) /* the parent closes its end: all begin at once */
		_exit(PROBE_FAILED);
	limit = now_ns() + (uint64_t)(seconds * 1e9);
	for (unsigned long i = 0; (count == 0 || i < count) && t->errors < MAX_ERRORS; i++) {
		struct attempt a = try_once(sa, 0, (unsigned char)i);

		if (a.failed) {
			if (t->errors++ < 3)
				complain(&a, i);
		} else {
			t->good++;
			t->host_path += (unsigned)a.host_path;
		}
		t->end_ns = now_ns();
		if (t->end_ns >= limit)
			break;
	}
	_exit(0);
}

static int rate(char **argv)
{
	struct sockaddr_in sa = address_of(argv[0], argv[1]);
	int clients = atoi(argv[2]), start[2], status;
	double seconds = atof(argv[3]), busy;
	unsigned long count = strtoul(argv[4], NULL, 10), hung = 0;
	struct tally sum = { 0 }, *tallies;
	uint64_t t0;

	if (clients < 1 || clients > MAX_CLIENTS) {
		fprintf(stderr, "%d clients: must be 1 to %d\n", clients, MAX_CLIENTS);
		return PROBE_USAGE;
	}
	tallies = mmap(NULL, sizeof(*tallies) * MAX_CLIENTS, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (tallies == MAP_FAILED || pipe(start) < 0)
		fail("mmap");
	/* Not counted: brings a lease and, in each child, its own connection to the router. */
	for (int i = 0; i < 20; i++)
		try_once(&sa, 0, (unsigned char)i);
	fflush(NULL);
	for (int i = 0; i < clients; i++) {
		pid_t pid = fork();

		if (pid < 0)
			fail("fork");
		if (pid == 0) {
			close(start[1]);
			client(&sa, start[0], seconds, count ? (count + (unsigned)clients - 1) / (unsigned)clients : 0,
			       &tallies[i]);
		}
	}
	busy = machine_busy_seconds();
	t0 = now_ns();
	close(start[1]);
	while (wait(&status) > 0)
		hung += !WIFEXITED(status);
	busy = machine_busy_seconds() - busy;
	for (int i = 0; i < clients; i++) {
		sum.good += tallies[i].good;
		sum.host_path += tallies[i].host_path;
		sum.errors += tallies[i].errors;
		if (tallies[i].end_ns > sum.end_ns)
			sum.end_ns = tallies[i].end_ns;
	}
	printf("{\"clients\": %d, \"good\": %lu, \"host_path\": %lu, \"errors\": %lu, \"hung\": %lu, "
	       "\"seconds\": %.6f, \"machine_s\": %.3f}\n",
	       clients, sum.good, sum.host_path, sum.errors, hung,
	       sum.end_ns > t0 ? (double)(sum.end_ns - t0) / 1e9 : 0.0, busy);
	return sum.errors || hung ? PROBE_FAILED : 0;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc == 4 && strcmp(argv[1], "serve") == 0)
		return serve(argv[2], atoi(argv[3]));
	if (argc == 5 && strcmp(argv[1], "connect") == 0) {
		size_t count = strtoul(argv[4], NULL, 10);

		alarm(120);
		return sequence(argv[2], argv + 3, 1, count, count / 8 + 1, 0);
	}
	if (argc == 7 && strcmp(argv[1], "rate") == 0)
		return rate(argv + 2);
	if (argc >= 5 && strcmp(argv[1], "cold") == 0) {
		alarm(120);
		return sequence(argv[3], argv + 4, (size_t)argc - 4, (size_t)argc - 4, 0,
				strcmp(argv[2], "poll") == 0);
	}
	fprintf(stderr, "usage: setup serve IP LISTENERS | setup connect IP PORT COUNT |\n"
			"  setup rate IP PORT CLIENTS SECONDS COUNT | setup cold poll|block IP PORT...\n");
	return PROBE_USAGE;
}
