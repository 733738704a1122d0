// SPDX-License-Identifier: Apache-2.0
/*
 * A switch with a delay line: slimlab-delay DELAY_US PORT PORT...
 *
 *     node1 eth0 --- port1 [ AF_PACKET ]      [ AF_PACKET ] port2 --- eth0 node2
 *                               \__ queue, DELAY_US __/
 *
 * Every frame that arrives on a port leaves, DELAY_US microseconds later, from the
 * port where its destination was last seen, or from all others. Kernels of small
 * machines have no netem. The last part of a wait is spent polling, because a
 * timer's wake-up of an idle CPU alone can take longer than the precision that we
 * want (50 us). The queue is bounded: a full one drops, as a switch does.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MAX_PORTS 64
#define FRAME 2048       /* MTU 1500 with headers, rounded up */
#define QUEUE 16384      /* frames under way: 32 MiB, 200 ms at 1 Gbit/s */
#define TABLE 4096       /* learned addresses */
#define SPIN_NS 150000   /* poll instead of sleeping when this near */
#define BURST 64         /* frames taken from one port in a row */

struct frame {
	uint64_t due;
	uint16_t length;
	uint16_t from;
	unsigned char bytes[FRAME];
};

struct learned {
	unsigned char mac[ETH_ALEN];
	int16_t port; /* -1: free */
};

static struct frame *queue;
static unsigned int head, count;
static struct learned table[TABLE];
static int ports[MAX_PORTS];
static int nports;

static uint64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static struct learned *slot(const unsigned char *mac)
{
	unsigned int hash = 2166136261u; /* FNV-1a */

	for (int i = 0; i < ETH_ALEN; i++)
		hash = (hash ^ mac[i]) * 16777619u;
	/* Two addresses of one slot push each other out; frames are flooded then. */
	return &table[hash % TABLE];
}

static void deliver(const struct frame *frame)
{
	const struct learned *to = slot(frame->bytes);

	if (!(frame->bytes[0] & 1) && to->port >= 0 &&
	    !memcmp(to->mac, frame->bytes, ETH_ALEN)) {
		if (to->port != frame->from)
			(void)!send(ports[to->port], frame->bytes, frame->length, MSG_DONTWAIT);
		return;
	}
	for (int i = 0; i < nports; i++)
		if (i != frame->from)
			(void)!send(ports[i], frame->bytes, frame->length, MSG_DONTWAIT);
}

static void take(int port, uint64_t delay)
{
	for (int i = 0; i < BURST; i++) {
		unsigned char spill[FRAME];
		struct frame *frame = count < QUEUE ? &queue[(head + count) % QUEUE] : NULL;
		unsigned char *bytes = frame ? frame->bytes : spill;
		struct sockaddr_ll from;
		socklen_t length = sizeof(from);
		ssize_t got = recvfrom(ports[port], bytes, FRAME, MSG_DONTWAIT | MSG_TRUNC,
				       (struct sockaddr *)&from, &length);

		if (got < 0)
			return;
		/* Our own sends come back as outgoing packets where the kernel does not
		 * know PACKET_IGNORE_OUTGOING. */
		if (got < ETH_HLEN || got > FRAME || from.sll_pkttype == PACKET_OUTGOING)
			continue;
		struct learned *source = slot(bytes + ETH_ALEN);

		memcpy(source->mac, bytes + ETH_ALEN, ETH_ALEN);
		source->port = (int16_t)port;
		if (!frame)
			continue;
		frame->due = now_ns() + delay;
		frame->length = (uint16_t)got;
		frame->from = (uint16_t)port;
		count++;
	}
}

static int open_port(const char *name)
{
	struct sockaddr_ll address = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ETH_P_ALL),
		.sll_ifindex = (int)if_nametoindex(name),
	};
	struct packet_mreq promiscuous = {
		.mr_ifindex = address.sll_ifindex,
		.mr_type = PACKET_MR_PROMISC,
	};
	int one = 1, size = 8 << 20;
	/* Protocol 0 until bind: no frames of other devices in between. */
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);

	if (!address.sll_ifindex || fd < 0)
		return -1;
	setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one));
	setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	if (setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promiscuous, sizeof(promiscuous)) ||
	    bind(fd, (struct sockaddr *)&address, sizeof(address)))
		return -1;
	return fd;
}

int main(int argc, char **argv)
{
	struct pollfd wait[MAX_PORTS + 1];
	uint64_t delay;
	int timer;

	if (argc < 3 || argc - 2 > MAX_PORTS) {
		fprintf(stderr, "usage: slimlab-delay DELAY_US PORT...\n");
		return 2;
	}
	delay = (uint64_t)(strtod(argv[1], NULL) * 1000);
	queue = calloc(QUEUE, sizeof(*queue));
	timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	if (!queue || timer < 0) {
		perror("slimlab-delay");
		return 1;
	}
	for (int i = 0; i < TABLE; i++)
		table[i].port = -1;
	for (nports = 0; nports < argc - 2; nports++) {
		ports[nports] = open_port(argv[nports + 2]);
		if (ports[nports] < 0) {
			fprintf(stderr, "slimlab-delay: %s: %s\n", argv[nports + 2], strerror(errno));
			return 1;
		}
		wait[nports] = (struct pollfd){.fd = ports[nports], .events = POLLIN};
	}
	wait[nports] = (struct pollfd){.fd = timer, .events = POLLIN};
	/* Lateness here would be taken for the network's. */
	(void)!setpriority(PRIO_PROCESS, 0, -15);
	puts("relaying");
	fflush(stdout);
	for (;;) {
		int block = -1;

		if (count) {
			uint64_t now = now_ns(), due = queue[head].due;

			block = 0;
			if (due > now + SPIN_NS) {
				uint64_t at = due - SPIN_NS;
				struct itimerspec when = {
					.it_value = {
						.tv_sec = (time_t)(at / 1000000000u),
						.tv_nsec = (long)(at % 1000000000u),
					},
				};

				/* Setting it again also clears an expiry not yet read. */
				timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
				block = -1;
			}
		}
		if (poll(wait, (nfds_t)nports + 1, block) > 0) {
			for (int i = 0; i < nports; i++)
				if (wait[i].revents)
					take(i, delay);
			if (wait[nports].revents) {
				uint64_t expired;

				(void)!read(timer, &expired, sizeof(expired));
			}
		}
		for (uint64_t now = now_ns(); count && queue[head].due <= now; count--) {
			deliver(&queue[head]);
			head = (head + 1) % QUEUE;
		}
	}
}
