/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Time of a request and its answer on one established connection.
 *   roundtrip serve IP PORT SIZE
 *   roundtrip ask IP PORT SIZE COUNT
 * The first tenth of the rounds is not counted. The answer is compared with
 * the request: wrong bytes end the program with an error.
 */
#include "probe.h"
#include <netinet/tcp.h>

#define MAX_SIZE 65536

static char request[MAX_SIZE], answer[MAX_SIZE];

static size_t size_of(const char *text)
{
	size_t size = strtoul(text, NULL, 10);

	if (size < 8 || size > MAX_SIZE) {
		fprintf(stderr, "%s: the size must be 8 to %d bytes\n", text, MAX_SIZE);
		exit(PROBE_USAGE);
	}
	return size;
}

static void no_delay(int fd)
{
	int one = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0)
		fail("TCP_NODELAY");
}

static int serve(char **argv)
{
	int listener = listen_on(argv[0], argv[1], 16), fd;
	size_t size = size_of(argv[2]);

	printf("READY %u\n", local_port(listener));
	fflush(stdout);
	while ((fd = accept_or_end(listener)) >= 0) {
		no_delay(fd);
		while (read_all(fd, answer, size) == 0 && write_all(fd, answer, size) == 0)
			continue;
		close(fd);
	}
	return 0;
}

static int ask(char **argv)
{
	struct sockaddr_in sa = address_of(argv[0], argv[1]);
	size_t size = size_of(argv[2]), count = strtoul(argv[3], NULL, 10), warm = count / 10;
	uint64_t *times = calloc(count, sizeof(*times));
	int fd = socket(AF_INET, SOCK_STREAM, 0), host_path;
	double cpu;

	if (fd < 0 || times == NULL)
		fail("socket");
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		fail("connect");
	no_delay(fd);
	cpu = cpu_seconds();
	for (size_t i = 0; i < warm + count; i++) {
		uint64_t t0 = now_ns();

		memcpy(request, &i, sizeof(i));
		if (write_all(fd, request, size) < 0 || read_all(fd, answer, size) < 0)
			fail("exchange");
		if (i >= warm)
			times[i - warm] = now_ns() - t0;
		if (memcmp(request, answer, size) != 0) {
			fprintf(stderr, "round %zu: the answer is not the request\n", i);
			return PROBE_FAILED;
		}
	}
	cpu = cpu_seconds() - cpu;
	host_path = is_foreign(fd);
	qsort(times, count, sizeof(*times), compare_u64);
	printf("{\"count\": %zu, \"size\": %zu, \"min_us\": %.3f, \"p50_us\": %.3f, \"p99_us\": %.3f, "
	       "\"cpu_s\": %.6f, \"host_path\": %s}\n",
	       count, size, percentile_us(times, count, 0), percentile_us(times, count, 50),
	       percentile_us(times, count, 99), cpu, host_path ? "true" : "false");
	return 0;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc == 5 && strcmp(argv[1], "serve") == 0)
		return serve(argv + 2);
	if (argc == 6 && strcmp(argv[1], "ask") == 0) {
		alarm(120);
		return ask(argv + 2);
	}
	fprintf(stderr, "usage: roundtrip serve IP PORT SIZE | roundtrip ask IP PORT SIZE COUNT\n");
	return PROBE_USAGE;
}
