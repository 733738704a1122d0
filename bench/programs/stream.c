/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One stream of a fixed number of bytes, and the CPU time that it costs.
 *   stream serve IP PORT
 *   stream send IP PORT BYTES
 * The server answers with the number of bytes that it read; both ends print
 * their own CPU time between connect (accept) and that answer.
 */
#include "probe.h"

#define CHUNK (128 * 1024)

static char chunk[CHUNK];

static void serve_one(int fd)
{
	double cpu = cpu_seconds();
	uint64_t total = 0;
	int error = 0;

	for (;;) {
		ssize_t n = read(fd, chunk, CHUNK);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			error = errno;
		if (n <= 0)
			break;
		total += (uint64_t)n;
	}
	write_all(fd, &total, sizeof(total));
	printf("{\"bytes\": %llu, \"cpu_s\": %.6f, \"error\": %d, \"host_path\": %s}\n",
	       (unsigned long long)total, cpu_seconds() - cpu, error,
	       is_foreign(fd) ? "true" : "false");
	fflush(stdout);
	close(fd);
}

static int serve(char **argv)
{
	int listener = listen_on(argv[0], argv[1], 16), fd;

	printf("READY %u\n", local_port(listener));
	fflush(stdout);
	while ((fd = accept_or_end(listener)) >= 0)
		serve_one(fd);
	return 0;
}

static int send_bytes(char **argv)
{
	struct sockaddr_in sa = address_of(argv[0], argv[1]);
	uint64_t want = strtoull(argv[2], NULL, 10), left = want, got = 0, t0, t1;
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	double cpu0, cpu1, busy0, busy1;
	char cc[16] = "";
	socklen_t cc_len = sizeof(cc) - 1;
	struct tcp_info info = { 0 };
	socklen_t info_len = sizeof(info);

	if (fd < 0)
		fail("socket");
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		fail("connect");
	memset(chunk, 's', CHUNK);
	busy0 = machine_busy_seconds();
	cpu0 = cpu_seconds();
	t0 = now_ns();
	while (left > 0) {
		size_t n = left < CHUNK ? (size_t)left : CHUNK;

		if (write_all(fd, chunk, n) < 0)
			fail("write");
		left -= n;
	}
	if (shutdown(fd, SHUT_WR) < 0)
		fail("shutdown");
	if (read_all(fd, &got, sizeof(got)) < 0)
		fail("read of the server's count");
	t1 = now_ns();
	cpu1 = cpu_seconds();
	busy1 = machine_busy_seconds();
	/* Both may be refused on a guarded socket; the figures do not need them. */
	getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, cc, &cc_len);
	getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &info_len);
	printf("{\"bytes\": %llu, \"received\": %llu, \"seconds\": %.9f, \"cpu_s\": %.6f, "
	       "\"machine_s\": %.3f, \"congestion\": \"%s\", \"mss\": %u, \"host_path\": %s}\n",
	       (unsigned long long)want, (unsigned long long)got, (double)(t1 - t0) / 1e9,
	       cpu1 - cpu0, busy1 - busy0, cc, info.tcpi_snd_mss, is_foreign(fd) ? "true" : "false");
	return got == want ? 0 : PROBE_FAILED;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc == 4 && strcmp(argv[1], "serve") == 0)
		return serve(argv + 2);
	if (argc == 5 && strcmp(argv[1], "send") == 0) {
		alarm(300);
		return send_bytes(argv + 2);
	}
	fprintf(stderr, "usage: stream serve IP PORT | stream send IP PORT BYTES\n");
	return PROBE_USAGE;
}
