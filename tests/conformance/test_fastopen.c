/* SPDX-License-Identifier: Apache-2.0 */
/* Data with the connect: sendto, sendmsg and sendmmsg with MSG_FASTOPEN, and
 * TCP_FASTOPEN_CONNECT. */
#include "conf.h"

#ifndef TCP_FASTOPEN_CONNECT
#define TCP_FASTOPEN_CONNECT 30
#endif

static void rest(int fd, ssize_t sent, const char *text)
{
	char got[32] = "";
	size_t size = strlen(text);

	CHECK(sent >= 0 && sent <= (ssize_t)size, "%zd bytes sent", sent);
	conf_path(fd);
	conf_names(fd, CONF_ECHO);
	conf_nonblock(fd, false);
	conf_send_all(fd, text + sent, size - (size_t)sent);
	conf_recv_all(fd, got, size);
	CHECK(memcmp(got, text, size) == 0, "got %s", got);
	conf_echo(fd, 5000);
	CHECK(shutdown(fd, SHUT_WR) == 0, "shutdown");
	conf_expect_eof(fd);
	close(fd);
}

int main(int argc, char **argv)
{
	static char text[] = "first words";
	struct sockaddr_storage sa;
	struct iovec iov = { text, sizeof(text) - 1 };
	struct mmsghdr mm = { .msg_hdr = { .msg_name = &sa, .msg_iov = &iov, .msg_iovlen = 1 } };
	ssize_t n;
	int fd, one = 1;

	conf_init(argc, argv, 30);
	socklen_t size = conf_address(&sa, conf.peer, conf.port);
	mm.msg_hdr.msg_namelen = size;
	for (int round = 0; round < 3; round++) {
		fd = conf_socket(0);
		n = sendto(fd, text, sizeof(text) - 1, MSG_FASTOPEN | MSG_NOSIGNAL, (struct sockaddr *)&sa, size);
		CHECK(n == sizeof(text) - 1, "sendto says %zd", n);
		rest(fd, n, text);

		fd = conf_socket(0);
		n = sendmsg(fd, &mm.msg_hdr, MSG_FASTOPEN | MSG_NOSIGNAL);
		CHECK(n == sizeof(text) - 1, "sendmsg says %zd", n);
		rest(fd, n, text);

		fd = conf_socket(0);
		CHECK(sendmmsg(fd, &mm, 1, MSG_FASTOPEN | MSG_NOSIGNAL) == 1, "sendmmsg");
		CHECK(mm.msg_len == sizeof(text) - 1, "sendmmsg says %u", mm.msg_len);
		rest(fd, mm.msg_len, text);
	}
	conf_ok("blocking");

	for (int round = 0; round < 3; round++) {
		fd = conf_socket(SOCK_NONBLOCK);
		n = sendto(fd, text, sizeof(text) - 1, MSG_FASTOPEN | MSG_NOSIGNAL, (struct sockaddr *)&sa, size);
		CHECK(n == sizeof(text) - 1 || (n == -1 && errno == EINPROGRESS), "sendto says %zd", n);
		CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "connect");
		rest(fd, n < 0 ? 0 : n, text);
	}
	conf_ok("non-blocking");

	fd = conf_socket(0);
	if (setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &one, sizeof(one)) == 0) {
		CHECK(conf_connect(fd, CONF_ECHO) == 0, "connect");
		n = send(fd, text, sizeof(text) - 1, MSG_NOSIGNAL);
		CHECK(n > 0, "send");
		rest(fd, n, text);
		conf_ok("TCP_FASTOPEN_CONNECT");
	} else {
		close(fd);
	}

	fd = conf_socket(0);
	size = conf_address(&sa, conf.peer, (uint16_t)(conf.port + CONF_CLOSED));
	CHECK_ERRNO(sendto(fd, text, 5, MSG_FASTOPEN | MSG_NOSIGNAL, (struct sockaddr *)&sa, size), ECONNREFUSED);
	close(fd);
	conf_ok("refused");

	/* sendto with an address but no flag is not a connect. */
	fd = conf_socket(0);
	CHECK_ERRNO(sendto(fd, text, 5, MSG_NOSIGNAL, (struct sockaddr *)&sa, size), EPIPE);
	close(fd);
	fd = conf_dial(CONF_ECHO);
	CHECK(sendto(fd, text, sizeof(text) - 1, MSG_NOSIGNAL, (struct sockaddr *)&sa, size) == sizeof(text) - 1,
	      "an address on a connected stream is ignored");
	char got[32];
	conf_recv_all(fd, got, sizeof(text) - 1);
	close(fd);
	conf_ok("without the flag");
	return conf_done();
}
