/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams without end, for rates.
 *   pour serve IP PORT
 *   pour send IP PORT CONNECTIONS SECONDS
 * The server prints, for each line on its standard input, what all connections
 * have read so far and when.
 */
#include "probe.h"
#include <pthread.h>
#include <stdatomic.h>

#define CHUNK (128 * 1024)

static atomic_ullong total;
static atomic_int foreign;
static uint64_t end_ns;

static void *drain(void *arg)
{
	int fd = (int)(intptr_t)arg;
	char *chunk = malloc(CHUNK);
	ssize_t n;

	if (chunk == NULL)
		fail("malloc");
	if (is_foreign(fd))
		foreign++;
	while ((n = read(fd, chunk, CHUNK)) > 0 || (n < 0 && errno == EINTR))
		if (n > 0)
			total += (unsigned long long)n;
	free(chunk);
	close(fd);
	return NULL;
}

static void *tell(void *arg)
{
	char line[64];

	while (fgets(line, sizeof(line), stdin) != NULL) {
		uint64_t now = now_ns();

		printf("{\"bytes\": %llu, \"ns\": %llu, \"host_path\": %d}\n",
		       (unsigned long long)total, (unsigned long long)now, (int)foreign);
		fflush(stdout);
	}
	exit(0);
	return arg;
}

static int serve(char **argv)
{
	int listener = listen_on(argv[0], argv[1], 64), fd;
	pthread_t thread;

	printf("READY %u\n", local_port(listener));
	fflush(stdout);
	if (pthread_create(&thread, NULL, tell, NULL) != 0)
		fail("pthread_create");
	for (;;) {
		fd = accept(listener, NULL, NULL);
		if (fd < 0)
			continue;
		if (pthread_create(&thread, NULL, drain, (void *)(intptr_t)fd) != 0)
			fail("pthread_create");
		pthread_detach(thread);
	}
}

static void *pour(void *arg)
{
	int fd = (int)(intptr_t)arg;
	char *chunk = calloc(1, CHUNK);

	if (chunk == NULL)
		fail("calloc");
	while (now_ns() < end_ns)
		if (write(fd, chunk, CHUNK) < 0 && errno != EINTR && errno != EAGAIN)
			break;
	free(chunk);
	return NULL;
}

static int send_streams(char **argv)
{
	struct sockaddr_in sa = address_of(argv[0], argv[1]);
	int count = atoi(argv[2]), i, fd = -1, fds[256];
	pthread_t threads[256];
	struct tcp_info info = { 0 };
	socklen_t len = sizeof(info);
	/* A full send buffer must not hold us beyond the end. */
	struct timeval limit = { .tv_usec = 200000 };

	if (count < 1 || count > 256)
		return PROBE_USAGE;
	end_ns = now_ns() + (uint64_t)(atof(argv[3]) * 1e9);
	for (i = 0; i < count; i++) {
		fd = socket(AF_INET, SOCK_STREAM, 0);
		if (fd < 0)
			fail("socket");
		if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
			fail("connect");
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
		fds[i] = fd;
	}
	/* Not before: in a queue that is full a SYN is lost like any other packet. */
	for (i = 0; i < count; i++)
		if (pthread_create(&threads[i], NULL, pour, (void *)(intptr_t)fds[i]) != 0)
			fail("pthread_create");
	for (i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len);
	printf("{\"mss\": %u, \"host_path\": %s}\n", info.tcpi_snd_mss,
	       is_foreign(fd) ? "true" : "false");
	return 0;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc == 4 && strcmp(argv[1], "serve") == 0)
		return serve(argv + 2);
	if (argc == 6 && strcmp(argv[1], "send") == 0)
		return send_streams(argv + 2);
	fprintf(stderr, "usage: pour serve IP PORT | pour send IP PORT CONNECTIONS SECONDS\n");
	return PROBE_USAGE;
}
