/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The other side of every conformance program: a thread-per-connection server
 * with one listener per service (conf.h lists them) and, over UDP, orders to
 * dial the program under test. It is an ordinary program too: it runs with or
 * without the shim.
 *
 *   peer ADDRESS PORT      listens on ADDRESS:PORT..PORT+8, orders on PORT+9;
 *                          prints "ready" once all of that stands
 */
#include "conf.h"

#include <pthread.h>
#include <stdarg.h>
#include <sys/prctl.h>

#define DIALS_MAX 1024
#define ORDERS_MAX 256

struct order {
	unsigned id;
	bool done;
	int count, left;
	char mode[16];
	struct in_addr ip;
	uint16_t port;
	int argument;
	struct conf_result result;
	pthread_mutex_t lock;
};

struct dial {
	struct order *order;
	int index;
};

static struct order *table[ORDERS_MAX];
static unsigned table_next;
static struct in_addr own;

static void *service_thread(void *argument);

static void say(int fd, const char *text)
{
	size_t size = strlen(text);

	while (size > 0) {
		ssize_t n = send(fd, text, size, MSG_NOSIGNAL);

		if (n <= 0)
			return;
		text += n;
		size -= (size_t)n;
	}
}

static void reset(int fd)
{
	struct linger now = { .l_onoff = 1, .l_linger = 0 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
}

static bool send_bytes(int fd, const unsigned char *data, size_t size)
{
	while (size > 0) {
		ssize_t n = send(fd, data, size, MSG_NOSIGNAL);

		if (n <= 0)
			return false;
		data += n;
		size -= (size_t)n;
	}
	return true;
}

static bool send_bulk(int fd)
{
	unsigned char block[16384];

	for (size_t at = 0; at < CONF_BULK; at += sizeof(block)) {
		conf_pattern(block, at, sizeof(block));
		if (!send_bytes(fd, block, sizeof(block)))
			return false;
	}
	return true;
}

/* Read exactly the bulk; false on the first wrong byte, end or error. */
static bool recv_bulk(int fd)
{
	unsigned char want[16384], got[16384];
	size_t at = 0;

	while (at < CONF_BULK) {
		size_t room = CONF_BULK - at < sizeof(got) ? CONF_BULK - at : sizeof(got);
		ssize_t n = recv(fd, got, room, 0);

		if (n <= 0)
			return false;
		conf_pattern(want, at, (size_t)n);
		if (memcmp(want, got, (size_t)n) != 0)
			return false;
		at += (size_t)n;
	}
	return true;
}

static void echo(int fd)
{
	char block[16384];
	ssize_t n;

	while ((n = recv(fd, block, sizeof(block), 0)) > 0)
		if (!send_bytes(fd, (unsigned char *)block, (size_t)n))
			return;
}

static void banner(int fd)
{
	struct sockaddr_storage peer, local;
	socklen_t size = sizeof(peer);
	char text[200], a[INET6_ADDRSTRLEN], b[INET6_ADDRSTRLEN];

	if (getpeername(fd, (struct sockaddr *)&peer, &size) < 0)
		return;
	size = sizeof(local);
	if (getsockname(fd, (struct sockaddr *)&local, &size) < 0)
		return;
	inet_ntop(AF_INET, &((struct sockaddr_in *)&peer)->sin_addr, a, sizeof(a));
	inet_ntop(AF_INET, &((struct sockaddr_in *)&local)->sin_addr, b, sizeof(b));
	snprintf(text, sizeof(text), "%s %u %s %u\n", a, conf_port_of(&peer), b, conf_port_of(&local));
	say(fd, text);
	echo(fd);
}

static void sink(int fd)
{
	char block[16384], text[80];
	uint64_t hash = CONF_HASH0;
	size_t sum = 0;
	ssize_t n;

	while ((n = recv(fd, block, sizeof(block), 0)) > 0) {
		hash = conf_hash(hash, block, (size_t)n);
		sum += (size_t)n;
	}
	snprintf(text, sizeof(text), "%zu %016llx\n", sum, (unsigned long long)hash);
	say(fd, text);
}

static void *connection_thread(void *argument)
{
	int service = (int)((uintptr_t)argument & 0xff);
	int fd = (int)((uintptr_t)argument >> 8);
	char byte;

	switch (service) {
	case CONF_ECHO:
		echo(fd);
		break;
	case CONF_BANNER:
		banner(fd);
		break;
	case CONF_SINK:
		sink(fd);
		break;
	case CONF_SOURCE:
		if (send_bulk(fd)) {
			shutdown(fd, SHUT_WR);
			while (recv(fd, &byte, 1, 0) > 0)
				;
		}
		break;
	case CONF_SAY_RESET:
		if (recv(fd, &byte, 1, 0) >= 0)
			reset(fd);
		break;
	case CONF_RESET:
		reset(fd);
		break;
	default: /* CONF_FIN */
		break;
	}
	close(fd);
	return NULL;
}

static void start(void *(*function)(void *), void *argument)
{
	pthread_attr_t attr;
	pthread_t thread;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 256 * 1024);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	errno = pthread_create(&thread, &attr, function, argument);
	if (errno)
		perror("peer: pthread_create");
	pthread_attr_destroy(&attr);
}

static void *service_thread(void *argument)
{
	int service = (int)((uintptr_t)argument & 0xff);
	int listener = (int)((uintptr_t)argument >> 8);

	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0) {
			if (errno == EINTR || errno == ECONNABORTED)
				continue;
			perror("peer: accept");
			conf_sleep(0.05);
			continue;
		}
		start(connection_thread, (void *)((uintptr_t)fd << 8 | (uintptr_t)service));
	}
	return NULL;
}

/* One connection of an order; true when it went as its mode says. */
static bool dial_one(struct order *order, int index, struct conf_result *out, char *why, size_t why_size)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr = order->ip, .sin_port = htons(order->port) };
	struct timeval patience = { .tv_sec = 8 };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	unsigned char a[4096], b[4096];
	bool good = false;
	const char *mode = order->mode;

	if (fd < 0) {
		snprintf(why, why_size, "socket: %s", strerror(errno));
		return false;
	}
	if (strcmp(mode, "mute") == 0 && order->argument > 0) {
		patience.tv_sec = order->argument / 1000;
		patience.tv_usec = order->argument % 1000 * 1000;
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (strcmp(mode, "from") == 0) {
		struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr = own,
					  .sin_port = htons((uint16_t)order->argument) };

		if (bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0) {
			snprintf(why, why_size, "bind: %s", strerror(errno));
			goto out;
		}
	}
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0) {
		if (errno == ECONNREFUSED)
			out->refused++;
		else if (errno == ECONNRESET)
			out->reset++;
		snprintf(why, why_size, "connect: %s", strerror(errno));
		goto out;
	}
	if (strcmp(mode, "echo") == 0) {
		size_t got = 0;
		ssize_t n = 0;

		conf_pattern(a, (size_t)index, sizeof(a));
		if (!send_bytes(fd, a, sizeof(a)))
			goto failed;
		while (got < sizeof(b) && (n = recv(fd, b + got, sizeof(b) - got, 0)) > 0)
			got += (size_t)n;
		good = got == sizeof(b) && memcmp(a, b, sizeof(a)) == 0;
	} else if (strcmp(mode, "id") == 0) {
		uint64_t id = (uint64_t)order->id << 32 | (uint64_t)index, back = 0;

		if (!send_bytes(fd, (unsigned char *)&id, sizeof(id)) ||
		    recv(fd, &back, sizeof(back), MSG_WAITALL) != sizeof(back))
			goto failed;
		good = id == back && recv(fd, a, 1, 0) == 0;
		if (!good)
			snprintf(why, why_size, "sent %llx, got %llx", (unsigned long long)id,
				 (unsigned long long)back);
	} else if (strcmp(mode, "name") == 0 || strcmp(mode, "from") == 0) {
		struct sockaddr_in local, peer;
		socklen_t size = sizeof(local);
		char l[INET_ADDRSTRLEN], p[INET_ADDRSTRLEN], text[100];

		if (getsockname(fd, (struct sockaddr *)&local, &size) < 0)
			goto failed;
		size = sizeof(peer);
		if (getpeername(fd, (struct sockaddr *)&peer, &size) < 0)
			goto failed;
		inet_ntop(AF_INET, &local.sin_addr, l, sizeof(l));
		inet_ntop(AF_INET, &peer.sin_addr, p, sizeof(p));
		snprintf(text, sizeof(text), "%s %u %s %u\n", l, ntohs(local.sin_port), p, ntohs(peer.sin_port));
		say(fd, text);
		good = recv(fd, a, 1, 0) == 0;
	} else if (strcmp(mode, "first") == 0) {
		good = recv_bulk(fd) && send_bulk(fd) && recv(fd, a, 1, 0) == 0;
	} else if (strcmp(mode, "talk") == 0) {
		good = send_bulk(fd) && shutdown(fd, SHUT_WR) == 0 && recv_bulk(fd) && recv(fd, a, 1, 0) == 0;
	} else if (strcmp(mode, "mute") == 0) {
		ssize_t n = recv(fd, a, 1, 0);

		good = true;
		if (n == 0)
			out->eof++;
		else if (n < 0 && errno == ECONNRESET)
			out->reset++;
		else if (n < 0 && errno == EAGAIN)
			out->timeout++;
		else
			good = false;
	} else if (strcmp(mode, "rst") == 0) {
		good = send_bytes(fd, (const unsigned char *)"x", 1);
		reset(fd);
	} else if (strcmp(mode, "close") == 0) {
		good = true;
	} else {
		snprintf(why, why_size, "no mode called %s", mode);
		goto out;
	}
failed:
	if (!good && !*why)
		snprintf(why, why_size, "%s: %s", mode, strerror(errno));
out:
	close(fd);
	return good;
}

static void *dial_thread(void *argument)
{
	struct dial dial = *(struct dial *)argument;
	struct order *order = dial.order;
	struct conf_result mine = { 0 };
	char why[200] = "";
	bool good;

	free(argument);
	good = dial_one(order, dial.index, &mine, why, sizeof(why));
	pthread_mutex_lock(&order->lock);
	*(good ? &order->result.ok : &order->result.fail) += 1;
	order->result.eof += mine.eof;
	order->result.reset += mine.reset;
	order->result.timeout += mine.timeout;
	order->result.refused += mine.refused;
	if (!good && !order->result.text[0])
		snprintf(order->result.text, sizeof(order->result.text), "%s", why);
	if (--order->left == 0)
		order->done = true;
	pthread_mutex_unlock(&order->lock);
	return NULL;
}

static struct order *find(unsigned id)
{
	for (int i = 0; i < ORDERS_MAX; i++)
		if (table[i] && table[i]->id == id)
			return table[i];
	return NULL;
}

/* A new order; the oldest finished one gives up its place. */
static struct order *begin(unsigned id, const char *text)
{
	struct order *order = calloc(1, sizeof(*order));
	char ip[64];
	unsigned port;

	if (!order)
		return NULL;
	order->id = id;
	if (sscanf(text, "dial %d %15s %63s %u %d", &order->count, order->mode, ip, &port, &order->argument) < 4 ||
	    order->count < 1 || order->count > DIALS_MAX || inet_pton(AF_INET, ip, &order->ip) != 1) {
		free(order);
		return NULL;
	}
	order->port = (uint16_t)port;
	order->left = order->count;
	pthread_mutex_init(&order->lock, NULL);
	/* An old order is leaked on purpose: its threads may still look at it. */
	table[table_next++ % ORDERS_MAX] = order;
	for (int i = 0; i < order->count; i++) {
		struct dial *dial = malloc(sizeof(*dial));

		if (!dial)
			return NULL;
		dial->order = order;
		dial->index = i;
		start(dial_thread, dial);
	}
	return order;
}

static void serve_orders(int fd)
{
	char text[300], answer[600];

	for (;;) {
		struct sockaddr_storage from;
		socklen_t size = sizeof(from);
		ssize_t n = recvfrom(fd, text, sizeof(text) - 1, 0, (struct sockaddr *)&from, &size);
		struct order *order;
		unsigned id;
		int skip = 0;

		if (n < 0)
			continue;
		text[n] = 0;
		if (sscanf(text, "%u %n", &id, &skip) != 1)
			continue;
		order = find(id);
		if (!order && strncmp(text + skip, "dial", 4) == 0)
			order = begin(id, text + skip);
		if (!order) {
			snprintf(answer, sizeof(answer), "%u refused", id);
		} else {
			struct conf_result *r = &order->result;

			pthread_mutex_lock(&order->lock);
			if (strncmp(text + skip, "dial", 4) == 0)
				snprintf(answer, sizeof(answer), "%u started", id);
			else if (!order->done)
				snprintf(answer, sizeof(answer), "%u busy", id);
			else
				snprintf(answer, sizeof(answer),
					 "%u done ok=%d fail=%d eof=%d reset=%d timeout=%d refused=%d %s", id,
					 r->ok, r->fail, r->eof, r->reset, r->timeout, r->refused,
					 r->text[0] ? r->text : "-");
			pthread_mutex_unlock(&order->lock);
		}
		sendto(fd, answer, strlen(answer), 0, (struct sockaddr *)&from, size);
	}
}

int main(int argc, char **argv)
{
	int one = 1, udp, port;

	if (argc != 3 || inet_pton(AF_INET, argv[1], &own) != 1) {
		fprintf(stderr, "usage: peer ADDRESS PORT\n");
		return 2;
	}
	/* Whoever started us may be killed: do not outlive it. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	port = atoi(argv[2]);
	for (int service = CONF_ECHO; service <= CONF_FIN; service++) {
		struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr = own,
					  .sin_port = htons((uint16_t)(port + service)) };
		int fd;

		if (service == CONF_CLOSED)
			continue;
		fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0 ||
		    listen(fd, service == CONF_SILENT ? 1 : 1024) < 0) {
			fprintf(stderr, "peer: %s:%d: %s\n", argv[1], port + service, strerror(errno));
			return 1;
		}
		if (service != CONF_SILENT)
			start(service_thread, (void *)((uintptr_t)fd << 8 | (uintptr_t)service));
	}
	udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr = own,
				  .sin_port = htons((uint16_t)(port + CONF_ORDERS)) };
	if (udp < 0 || bind(udp, (struct sockaddr *)&at, sizeof(at)) < 0) {
		perror("peer: orders");
		return 1;
	}
	printf("ready\n");
	fflush(stdout);
	serve_orders(udp);
	return 0;
}
