/* SPDX-License-Identifier: Apache-2.0 */
/* An address that does not answer: a non-blocking connect returns EINPROGRESS at
 * once and then the overlay's own outcome; SO_SNDTIMEO bounds a blocking one. With
 * CONF_DROPS, a port of the peer's whose SYNs somebody drops, only that is tried.
 *
 * "At once" is judged without the machine: the work by the thread's own CPU time,
 * the waiting by the clock less the time that the thread had no CPU. What is left is
 * the worker's answer, for which 20 ms are the bound (reply_us); it is the worker that
 * may be starved, so the bound is not drawn any closer. */
#include "conf.h"

#define ROUNDS 11
#define REPLY_S 0.020
#define SLACK_S 0.025
#define WORK_S 0.001

/* Seconds that this thread has waited for a CPU. */
static double queued(void)
{
	unsigned long long ran, waited = 0;
	FILE *file = fopen("/proc/thread-self/schedstat", "re");

	CHECK(file && fscanf(file, "%llu %llu", &ran, &waited) == 2, "schedstat");
	fclose(file);
	return (double)waited / 1e9;
}

static int order(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void promptly(const struct sockaddr_storage *sa, socklen_t size)
{
	double work[ROUNDS], away[ROUNDS];

	for (int i = 0; i < ROUNDS; i++) {
		int fd = conf_socket(SOCK_NONBLOCK);
		double waited = queued(), cpu = conf_cpu(), start = conf_now();

		CHECK_ERRNO(connect(fd, (const struct sockaddr *)sa, size), EINPROGRESS);
		away[i] = conf_now() - start;
		work[i] = conf_cpu() - cpu;
		away[i] -= queued() - waited;
		CHECK(!conf_wait(fd, POLLOUT, 5), "writable");
		close(fd);
	}
	qsort(work, ROUNDS, sizeof(work[0]), order);
	qsort(away, ROUNDS, sizeof(away[0]), order);
	CHECK(away[ROUNDS - 1] < REPLY_S + SLACK_S, "EINPROGRESS took %.3f ms", away[ROUNDS - 1] * 1e3);
	CHECK(work[ROUNDS / 2] < WORK_S, "EINPROGRESS took %.3f ms of CPU", work[ROUNDS / 2] * 1e3);
	conf_ok("EINPROGRESS after %.0f us, %.0f us of CPU", away[ROUNDS / 2] * 1e6, work[ROUNDS / 2] * 1e6);
}

static void bounded(const struct sockaddr_storage *sa, socklen_t size)
{
	struct timeval wait = { .tv_usec = 300000 };
	double waited = queued(), start = conf_now(), took;
	int fd = conf_socket(0);

	CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait)) == 0, "SO_SNDTIMEO");
	CHECK_ERRNO(connect(fd, (const struct sockaddr *)sa, size), EINPROGRESS);
	took = conf_now() - start;
	CHECK(took > 0.25 && took - (queued() - waited) < 1.5, "SO_SNDTIMEO of 0.3 s took %.3f s", took);
	close(fd);
	conf_ok("SO_SNDTIMEO");
}

int main(int argc, char **argv)
{
	const char *drops = getenv("CONF_DROPS");
	struct sockaddr_storage sa;
	socklen_t size;
	int fd;

	conf_init(argc, argv, 40);
	/* What a program does once, its first greeting, is not what a connect takes. */
	close(conf_dial(CONF_ECHO));
	size = drops ? conf_address(&sa, conf.peer, (uint16_t)atoi(drops)) : conf_address(&sa, conf_nobody(1), 80);
	promptly(&sa, size);
	bounded(&sa, size);
	if (drops)
		return conf_done();

	/* The overlay gives no answer to ARP: no route to the host in 1 to 4 s. */
	fd = conf_socket(SOCK_NONBLOCK);
	CHECK_ERRNO(connect(fd, (struct sockaddr *)&sa, size), EINPROGRESS);
	CHECK(conf_wait(fd, POLLOUT, 15000), "no outcome within 15 s");
	CHECK(conf_so_error(fd) == EHOSTUNREACH, "SO_ERROR");
	close(fd);
	fd = conf_socket(0);
	CHECK_ERRNO(connect(fd, (struct sockaddr *)&sa, size), EHOSTUNREACH);
	close(fd);
	conf_ok("EHOSTUNREACH");

	/* A listener whose backlog is full answers nothing either. */
	int held[4];
	for (int i = 0; i < 4; i++)
		held[i] = conf_dial_nonblock(CONF_SILENT);
	conf_sleep(0.05);
	for (int i = 0; i < 4; i++)
		close(held[i]);
	fd = conf_dial(CONF_ECHO);
	conf_echo(fd, 1000);
	close(fd);
	conf_ok("another connect is not held up");
	return conf_done();
}
