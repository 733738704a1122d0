// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the module costs. In a guest with icount the clock counts instructions,
 * so that these times are instructions and repeat; only their ratios matter.
 *
 * cost KIND: prints "KIND CALL nanoseconds" for each call, KIND being without
 * (module not loaded), untagged or tagged. One process holds both ends: a
 * round is write + read there and back.
 */
#define _GNU_SOURCE
#include "lib.h"

#include <sys/ioctl.h>

#define ROUNDS 3000

static double round_trip(struct pair *pair)
{
	char bytes[64] = "";
	double start;
	int i;

	for (i = -ROUNDS / 10, start = 0; i < ROUNDS; i++) {
		if (!i)
			start = now();
		need(write(pair->fd, bytes, 64) == 64 && read(pair->peer, bytes, 64) == 64 &&
		     write(pair->peer, bytes, 64) == 64 && read(pair->fd, bytes, 64) == 64, "round");
	}
	return (now() - start) / ROUNDS;
}

static double option(struct pair *pair, bool set)
{
	int value = 1, i;
	socklen_t length;
	double start;

	for (i = -ROUNDS / 10, start = 0; i < ROUNDS; i++) {
		if (!i)
			start = now();
		length = sizeof(value);
		need(set ? !setsockopt(pair->fd, 6, 1, &value, sizeof(value)) :
			   !getsockopt(pair->fd, SOL_SOCKET, SO_TYPE, &value, &length), "option");
	}
	return (now() - start) / ROUNDS;
}

static double queue(int fd)
{
	int value, i;
	double start;

	for (i = -ROUNDS / 10, start = 0; i < ROUNDS; i++) {
		if (!i)
			start = now();
		ioctl(fd, FIONREAD, &value);
	}
	return (now() - start) / ROUNDS;
}

static double connect_close(bool tag)
{
	struct pair pair;
	double start;
	int i;

	for (i = -20, start = 0; i < 300; i++) {
		if (!i)
			start = now();
		pair = pair_make(PAIR_V4);
		if (tag)
			control_one(OP_TAG, pair.fd, pair.cookie);
		pair_close(&pair);
	}
	return (now() - start) / 300;
}

int main_cost(int argc, char **argv)
{
	const char *kind = argc > 2 ? argv[2] : "untagged";
	bool tagged = !strcmp(kind, "tagged");
	struct pair pair = tagged ? pair_tagged(PAIR_V4) : pair_make(PAIR_V4);
	int ends[2];

	need(!pipe(ends), "pipe");
	printf("cost %s round %.0f\n", kind, 1e9 * round_trip(&pair));
	printf("cost %s setsockopt %.0f\n", kind, 1e9 * option(&pair, true));
	printf("cost %s getsockopt %.0f\n", kind, 1e9 * option(&pair, false));
	printf("cost %s ioctl %.0f\n", kind, 1e9 * queue(pair.fd));
	printf("cost %s ioctl-pipe %.0f\n", kind, 1e9 * queue(ends[0]));
	printf("cost %s connect %.0f\n", kind, 1e9 * connect_close(tagged));
	return 0;
}
