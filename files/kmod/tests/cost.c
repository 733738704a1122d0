// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the module costs. In a guest with icount the clock counts instructions,
 * so that these times are instructions and repeat; only their ratios matter.
 *
 * cost KIND: prints "KIND CALL nanoseconds" for each call, KIND being without
 * (module not loaded), untagged or tagged. One process holds both ends, and
 * both are tagged, as between two hosts: a round is write + read there and back.
 */
#define _GNU_SOURCE
#include "lib.h"

#include <sys/ioctl.h>

/* The best of many batches: what else the guest does meanwhile is left out. */
#define BATCHES 40
#define BATCH 100

static double best(void (*call)(struct pair *pair), struct pair *pair, int batch)
{
	double least = 1e9, start, spent;
	int turn, i;

	for (turn = 0; turn < BATCHES; turn++) {
		start = now();
		for (i = 0; i < batch; i++)
			call(pair);
		spent = (now() - start) / batch;
		if (spent < least)
			least = spent;
	}
	return 1e9 * least;
}

static void round_trip(struct pair *pair)
{
	char bytes[64] = "";

	need(write(pair->fd, bytes, 64) == 64 && read(pair->peer, bytes, 64) == 64 &&
	     write(pair->peer, bytes, 64) == 64 && read(pair->fd, bytes, 64) == 64, "round");
}

static void option_set(struct pair *pair)
{
	int value = 1;

	need(!setsockopt(pair->fd, 6, 1, &value, sizeof(value)), "setsockopt");
}

static void option_get(struct pair *pair)
{
	socklen_t length = sizeof(int);
	int value;

	need(!getsockopt(pair->fd, SOL_SOCKET, SO_TYPE, &value, &length), "getsockopt");
}

static void queue(struct pair *pair)
{
	int value;

	ioctl(pair->fd, FIONREAD, &value);
}

static int control = -1;

/* A connection's whole life; the router keeps its control file open. */
static void connection(struct pair *unused)
{
	struct pair pair = pair_make(PAIR_V4);
	struct record record[2] = {
		record_make(OP_TAG, pair.fd, pair.cookie),
		record_make(OP_TAG, pair.peer, cookie_of(pair.peer)),
	};

	(void)unused;
	if (control >= 0)
		need(write(control, record, sizeof(record)) == sizeof(record), "tag");
	pair_close(&pair);
}

int main_cost(int argc, char **argv)
{
	const char *kind = argc > 2 ? argv[2] : "untagged";
	bool tagged = !strcmp(kind, "tagged");
	struct pair pair = tagged ? pair_tagged(PAIR_V4) : pair_make(PAIR_V4), other = pair;
	int ends[2];

	need(!pipe(ends), "pipe");
	other.fd = ends[0];
	if (tagged) {
		control = control_open();
		need(!control_one(OP_TAG, pair.peer, cookie_of(pair.peer)), "tag");
	}
	printf("cost %s round %.0f\n", kind, best(round_trip, &pair, BATCH));
	printf("cost %s setsockopt %.0f\n", kind, best(option_set, &pair, BATCH));
	printf("cost %s getsockopt %.0f\n", kind, best(option_get, &pair, BATCH));
	printf("cost %s ioctl %.0f\n", kind, best(queue, &pair, BATCH));
	printf("cost %s ioctl-pipe %.0f\n", kind, best(queue, &other, BATCH));
	printf("cost %s connect %.0f\n", kind, best(connection, NULL, BATCH / 10));
	return 0;
}
