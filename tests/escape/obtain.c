/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a container gets a host socket: connect() to its peer, or accept() of a
 * connection that its peer makes. Both go through libc, so that the shim serves them.
 */
#include "escape.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>

#define TRIES 25
#define BOUND_MS 3000

static int listener = -1; /* the container's own */
static int orders = -1;   /* a connection on which the peer takes orders */

uint64_t cookie_of(int fd)
{
	uint64_t cookie = 0;
	socklen_t size = sizeof(cookie);

	raw(SYS_getsockopt, fd, SOL_SOCKET, E_SO_COOKIE, &cookie, &size);
	return cookie;
}

uint64_t netns_cookie(int fd)
{
	uint64_t cookie = 0;
	socklen_t size = sizeof(cookie);

	if (raw(SYS_getsockopt, fd, SOL_SOCKET, E_SO_NETNS_COOKIE, &cookie, &size) < 0)
		return 0;
	return cookie;
}

/* Does the socket live in another network namespace than ours? */
static bool is_slim(int fd)
{
	int own = (int)raw(SYS_socket, AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	uint64_t ours = netns_cookie(own), its = netns_cookie(fd);

	raw(SYS_close, own);
	return ours && its && ours != its;
}

static socklen_t peer_address(int family, struct sockaddr_storage *out, struct in_addr ip,
			      uint16_t port)
{
	struct ctx c = { .family = family };

	return host_address(&c, out, ip, port);
}

static int dial(int family)
{
	struct sockaddr_storage sa;
	socklen_t size = peer_address(family, &sa, settings.peer, settings.peer_port);
	int fd = socket(family, SOCK_STREAM, 0);

	if (fd >= 0 && connect(fd, (struct sockaddr *)&sa, size) < 0) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

static int take(void)
{
	char order[32];
	int size = snprintf(order, sizeof(order), "DIAL %u\n", settings.accept_port);
	struct pollfd p = { .fd = listener, .events = POLLIN };

	if (raw(SYS_write, orders, order, (size_t)size) != size)
		return -1;
	if (poll(&p, 1, BOUND_MS) <= 0) {
		errno = ETIMEDOUT;
		return -1;
	}
	return accept(listener, NULL, NULL);
}

/* From guest.c, which does what router and shim do. */
static int dealt(int family, int origin)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	char text[32], byte, control[CMSG_SPACE(sizeof(int))];
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part,
				  .msg_iovlen = 1,
				  .msg_control = control,
				  .msg_controllen = sizeof(control) };
	struct cmsghdr *head;
	int other = (int)raw(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), fd = -1;

	strcpy(sa.sun_path, settings.dealer);
	snprintf(text, sizeof(text), "%d %d", family, origin);
	errno = EPROTO;
	if (connect(other, (struct sockaddr *)&sa, sizeof(sa)) == 0 &&
	    send(other, text, strlen(text), MSG_NOSIGNAL) > 0 && recvmsg(other, &message, 0) > 0) {
		head = CMSG_FIRSTHDR(&message);
		if (head && head->cmsg_type == SCM_RIGHTS)
			memcpy(&fd, CMSG_DATA(head), sizeof(int));
	}
	raw(SYS_close, other);
	return fd;
}

bool obtain_prepare(char *why, size_t size)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(settings.accept_port) };
	int one = 1;

	if (settings.dealer[0])
		return true;
	orders = dial(AF_INET);
	if (orders < 0 || raw(SYS_write, orders, "O", 1) != 1) {
		snprintf(why, size, "no connection to the peer: %s", strerror(errno));
		return false;
	}
	listener = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(listener, 64) < 0) {
		snprintf(why, size, "no listener on port %u: %s", settings.accept_port, strerror(errno));
		return false;
	}
	return true;
}

/* A host socket over which the peer has echoed a byte; -1 and why not. */
int obtain(int family, int origin, char *why, size_t size)
{
	/* Only what goes nowhere takes so long. */
	struct timeval patience = { 2, 0 }, bound = { 0, 500000 };

	for (int turn = 0; turn < TRIES; turn++) {
		int fd = settings.dealer[0] ? dealt(family, origin) : origin ? take() : dial(family);
		char byte = 0;

		if (fd < 0) {
			snprintf(why, size, "%s: %s", origin ? "accept" : "connect", strerror(errno));
			continue;
		}
		raw(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
		raw(SYS_setsockopt, fd, SOL_SOCKET, SO_SNDTIMEO, &bound, sizeof(bound));
		if (raw(SYS_write, fd, "Ex", 2) == 2 && raw(SYS_read, fd, &byte, 1) == 1 &&
		    byte == 'x' && is_slim(fd))
			return fd;
		/* A cold connect may stay on the overlay; the lease is there for the next. */
		snprintf(why, size, "no host socket: connections stay on the overlay");
		close(fd);
		struct timespec pause = { 0, 2000000L * (turn + 1) };

		nanosleep(&pause, NULL);
	}
	return -1;
}
