// SPDX-License-Identifier: Apache-2.0
/*
 * Times calls on sockets: cost CLIENT_FD SERVER_FD, the ends of one TCP
 * connection. Prints "name nanoseconds" for one round each. In a guest that
 * counts instructions (icount) the clock is the count, and repeats.
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { WARM_UP = 200, ROUNDS = 2000 };

static char buffer[16384];
static int client, server;
static size_t size;

static void transfer(int from, int to)
{
	size_t got = 0;

	if (send(from, buffer, size, 0) != (ssize_t)size)
		exit(1);
	while (got < size) {
		ssize_t more = recv(to, buffer, size - got, 0);

		if (more <= 0)
			exit(1);
		got += more;
	}
}

static void round_trip(void)
{
	transfer(client, server);
	transfer(server, client);
}

static void set_option(void)
{
	int on = 1;

	setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

static void get_option(void)
{
	int error;
	socklen_t length = sizeof(error);

	getsockopt(client, SOL_SOCKET, SO_ERROR, &error, &length);
}

static void queue_length(void)
{
	int length;

	ioctl(client, FIONREAD, &length);
}

static void name(void)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);

	getsockname(client, (struct sockaddr *)&address, &length);
}

static void measure(const char *what, void (*one)(void))
{
	struct timespec start, end;

	for (int i = 0; i < WARM_UP; i++)
		one();
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (int i = 0; i < ROUNDS; i++)
		one();
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%s %ld\n", what,
	       ((end.tv_sec - start.tv_sec) * 1000000000L + end.tv_nsec - start.tv_nsec) / ROUNDS);
}

int main(int count, char **words)
{
	if (count != 3)
		return 2;
	client = atoi(words[1]);
	server = atoi(words[2]);
	size = 1;
	measure("round_trip_1", round_trip);
	size = sizeof(buffer);
	measure("round_trip_16384", round_trip);
	measure("setsockopt", set_option);
	measure("getsockopt", get_option);
	measure("ioctl", queue_length);
	measure("getsockname", name);
	return 0;
}
