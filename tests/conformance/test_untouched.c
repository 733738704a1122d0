/* SPDX-License-Identifier: Apache-2.0 */
/* What is not ours stays the kernel's: UDP, Unix, raw, loopback, addresses off
 * the overlay. */
#include "conf.h"
#include <sys/stat.h>
#include <sys/un.h>

static void ours(int fd, const char *what)
{
	uint64_t a = 0, b = 0;
	socklen_t size = sizeof(a);
	int fresh = socket(AF_INET, SOCK_STREAM, 0);

	CHECK(getsockopt(fd, SOL_SOCKET, CONF_SO_NETNS_COOKIE, &a, &size) == 0, "SO_NETNS_COOKIE");
	size = sizeof(b);
	CHECK(getsockopt(fresh, SOL_SOCKET, CONF_SO_NETNS_COOKIE, &b, &size) == 0, "SO_NETNS_COOKIE");
	close(fresh);
	CHECK(a == b, "%s left the namespace", what);
}

static int type_of(int fd)
{
	int type = -1;
	socklen_t size = sizeof(type);

	CHECK(getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0, "SO_TYPE");
	return type;
}

static ino_t inode(int fd)
{
	struct stat st;

	CHECK(fstat(fd, &st) == 0, "fstat");
	return st.st_ino;
}

static void loopback(int family)
{
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	struct sockaddr *sa = family == AF_INET ? (struct sockaddr *)&four : (struct sockaddr *)&six;
	socklen_t size = family == AF_INET ? sizeof(four) : sizeof(six), full = size;
	int listener = socket(family, SOCK_STREAM, 0), fd, c, busy;
	char byte;

	CHECK(bind(listener, sa, size) == 0 && listen(listener, 8) == 0, "listen on loopback");
	CHECK(getsockname(listener, sa, &size) == 0, "getsockname");
	for (int i = 0; i < 4; i++) {
		fd = socket(family, SOCK_STREAM | (i & 1 ? SOCK_NONBLOCK : 0), 0);
		ino_t before = inode(fd);
		busy = connect(fd, sa, full);
		CHECK(busy == 0 || errno == EINPROGRESS, "connect on loopback");
		CHECK(conf_wait(listener, POLLIN, 5000), "not readable");
		c = accept(listener, NULL, NULL);
		CHECK(c >= 0, "accept on loopback");
		CHECK(conf_wait(fd, POLLOUT, 5000) && conf_so_error(fd) == 0, "connect on loopback");
		ours(fd, "a loopback connection");
		ours(c, "an accepted loopback connection");
		CHECK(inode(fd) == before, "a loopback socket was replaced");
		struct sockaddr_storage peer;
		size = sizeof(peer);
		CHECK(getpeername(fd, (struct sockaddr *)&peer, &size) == 0, "getpeername");
		CHECK(peer.ss_family == family, "family");
		conf_send_all(c, "x", 1);
		CHECK(conf_wait(fd, POLLIN, 5000) && recv(fd, &byte, 1, 0) == 1, "data");
		close(fd);
		close(c);
	}
	close(listener);
}

int main(int argc, char **argv)
{
	struct sockaddr_in sin = { .sin_family = AF_INET };
	char buffer[600];

	conf_init(argc, argv, 30);
	/* UDP: connected and not; the peer's order service answers. */
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	ino_t before = inode(fd);
	sin.sin_addr = conf.peer;
	sin.sin_port = htons((uint16_t)(conf.port + CONF_ORDERS));
	CHECK(connect(fd, (struct sockaddr *)&sin, sizeof(sin)) == 0, "UDP connect");
	CHECK(inode(fd) == before, "a UDP socket was replaced");
	ours(fd, "UDP");
	CHECK(type_of(fd) == SOCK_DGRAM, "SO_TYPE");
	for (int i = 0; i < 20; i++) {
		CHECK(send(fd, "1 poll", 6, 0) == 6, "send");
		if (conf_wait(fd, POLLIN, 300))
			break;
	}
	CHECK(recv(fd, buffer, sizeof(buffer), 0) > 0, "no answer over UDP");
	struct sockaddr_in again;
	socklen_t size = sizeof(again);
	CHECK(getpeername(fd, (struct sockaddr *)&again, &size) == 0, "getpeername");
	CHECK(again.sin_addr.s_addr == conf.peer.s_addr && again.sin_port == sin.sin_port, "UDP peer name");
	close(fd);
	conf_ok("UDP");

	/* SOCK_RAW is 3, whose bits contain SOCK_STREAM's. */
	fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
	if (fd >= 0) {
		before = inode(fd);
		sin.sin_port = 0;
		CHECK(connect(fd, (struct sockaddr *)&sin, sizeof(sin)) == 0, "raw connect");
		CHECK(inode(fd) == before, "a raw socket was replaced");
		ours(fd, "a raw socket");
		CHECK(type_of(fd) == SOCK_RAW, "SO_TYPE");
		close(fd);
		conf_ok("raw");
	} else {
		conf_note("raw sockets need CAP_NET_RAW: skipped");
	}

	int pair[2];
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0, "socketpair");
	CHECK(write(pair[0], "x", 1) == 1 && read(pair[1], buffer, 1) == 1, "SEQPACKET");
	close(pair[0]);
	close(pair[1]);
	for (int type = SOCK_STREAM; type <= SOCK_SEQPACKET; type++) {
		struct sockaddr_un un = { .sun_family = AF_UNIX }, name;
		socklen_t length;
		int listener, c;

		if (type == SOCK_DGRAM || type == SOCK_RAW || type == 4)
			continue;
		length = (socklen_t)(sizeof(sa_family_t) + 1 +
				     (size_t)snprintf(un.sun_path + 1, sizeof(un.sun_path) - 1, "conf-%d-%d", (int)getpid(), type));
		listener = socket(AF_UNIX, type, 0);
		CHECK(bind(listener, (struct sockaddr *)&un, length) == 0 && listen(listener, 4) == 0, "Unix listen");
		fd = socket(AF_UNIX, type, 0);
		CHECK(connect(fd, (struct sockaddr *)&un, length) == 0, "Unix connect");
		size = sizeof(name);
		c = accept(listener, (struct sockaddr *)&name, &size);
		CHECK(c >= 0, "Unix accept");
		CHECK(name.sun_family == AF_UNIX, "Unix accept's family is %d", name.sun_family);
		size = sizeof(name);
		CHECK(getpeername(fd, (struct sockaddr *)&name, &size) == 0 && name.sun_family == AF_UNIX && size == length,
		      "Unix getpeername");
		CHECK(write(fd, "x", 1) == 1 && read(c, buffer, 1) == 1, "Unix data");
		close(fd);
		close(c);
		close(listener);
	}
	conf_ok("Unix");

	loopback(AF_INET);
	conf_ok("loopback");
	loopback(AF_INET6);
	conf_ok("IPv6 loopback");

	/* An address that is no overlay's: the kernel's own verdict. */
	inet_pton(AF_INET, "192.0.2.77", &sin.sin_addr);
	sin.sin_port = htons(9);
	fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	before = inode(fd);
	int r = connect(fd, (struct sockaddr *)&sin, sizeof(sin));
	CHECK(r == -1 && (errno == ENETUNREACH || errno == EINPROGRESS || errno == EHOSTUNREACH || errno == ECONNREFUSED),
	      "off the overlay: %d", r);
	CHECK(inode(fd) == before, "a socket to an address off the overlay was replaced");
	ours(fd, "a connection off the overlay");
	close(fd);
	conf_ok("off the overlay");

	/* Our own address: stays on this side. */
	uint16_t port = 0;
	int listener = conf_listen(&port, 4);
	struct sockaddr_storage sa;
	size = conf_address(&sa, conf.self, port);
	fd = conf_socket(0);
	CHECK(connect(fd, (struct sockaddr *)&sa, size) == 0, "connect to ourselves");
	int c = accept(listener, NULL, NULL);
	CHECK(c >= 0, "accept");
	size = sizeof(sa);
	CHECK(getpeername(fd, (struct sockaddr *)&sa, &size) == 0, "getpeername");
	CHECK(conf_same(&sa, conf.self, port), "peer %s", conf_text(&sa));
	conf_send_all(c, "x", 1);
	CHECK(recv(fd, buffer, 1, 0) == 1, "data");
	close(c);
	close(fd);
	close(listener);
	conf_ok("our own address");

	/* Bad calls keep their errors. */
	fd = conf_socket(0);
	CHECK_ERRNO(connect(fd, (struct sockaddr *)&sin, 3), EINVAL);
	CHECK_ERRNO(connect(-1, (struct sockaddr *)&sin, sizeof(sin)), EBADF);
	CHECK_ERRNO(connect(STDOUT_FILENO, (struct sockaddr *)&sin, sizeof(sin)), ENOTSOCK);
	CHECK_ERRNO(connect(fd, (struct sockaddr *)16, sizeof(sin)), EFAULT);
	close(fd);
	conf_ok("bad calls");
	return conf_done();
}
