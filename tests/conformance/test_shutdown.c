/* SPDX-License-Identifier: Apache-2.0 */
/* shutdown of each half, half-close with data in flight, reset by SO_LINGER. */
#include "conf.h"

int main(int argc, char **argv)
{
	char byte;
	int fd;

	conf_init(argc, argv, 30);
	fd = conf_dial(CONF_SINK);
	conf_send_pattern(fd, CONF_BULK);
	CHECK(shutdown(fd, SHUT_WR) == 0, "SHUT_WR");
	CHECK_ERRNO(send(fd, "x", 1, MSG_NOSIGNAL), EPIPE);
	conf_expect_sunk(fd, CONF_BULK);
	conf_expect_eof(fd);
	close(fd);
	conf_ok("half-close: all data counted by the peer, answer read");

	fd = conf_dial(CONF_SOURCE);
	conf_recv_pattern(fd, CONF_BULK);
	conf_expect_eof(fd);
	conf_send_all(fd, "still open", 10);
	close(fd);
	conf_ok("the peer's half-close");

	fd = conf_dial(CONF_ECHO);
	CHECK(shutdown(fd, SHUT_RD) == 0, "SHUT_RD");
	CHECK(recv(fd, &byte, 1, 0) == 0, "recv after SHUT_RD");
	conf_send_all(fd, "x", 1);
	close(fd);
	fd = conf_dial(CONF_ECHO);
	CHECK(shutdown(fd, SHUT_RDWR) == 0, "SHUT_RDWR");
	CHECK(recv(fd, &byte, 1, 0) == 0, "recv");
	struct pollfd p = { .fd = fd, .events = POLLIN };
	CHECK(poll(&p, 1, 5000) == 1 && (p.revents & POLLIN), "revents 0x%x", p.revents);
	CHECK_ERRNO(shutdown(fd, 77), EINVAL);
	close(fd);
	conf_ok("SHUT_RD and SHUT_RDWR");

	fd = conf_socket(0);
	CHECK_ERRNO(shutdown(fd, SHUT_RDWR), ENOTCONN);
	CHECK_ERRNO(send(fd, "x", 1, MSG_NOSIGNAL), EPIPE);
	close(fd);
	fd = conf_socket(0);
	CHECK_ERRNO(recv(fd, &byte, 1, 0), ENOTCONN);
	close(fd);
	conf_ok("unconnected");

	/* We reset: the peer's recv says ECONNRESET. */
	struct linger now = { 1, 0 };
	uint16_t port = 0;
	int listener = conf_listen(&port, 8);
	unsigned id = conf_dial_me(3, "mute", port, 5000);
	pid_t pid = conf_fork();
	/* (a dial that is reset before it has looked may come again: docs/conformance.md) */
	while (pid == 0) {
		fd = conf_accept(listener);
		CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)) == 0, "SO_LINGER");
		close(fd);
	}
	struct conf_result r = conf_result(id, 10);
	CHECK(r.reset == 3, "peer saw reset=%d eof=%d", r.reset, r.eof);
	CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid, "waitpid");
	conf_ok("we reset an accepted connection");

	id = conf_dial_me(3, "rst", port, 0);
	for (int i = 0; i < 3; i++) {
		ssize_t n;

		fd = conf_accept(listener);
		while ((n = recv(fd, &byte, 1, 0)) > 0)
			;
		CHECK(n == -1 && errno == ECONNRESET, "recv after the peer's reset: %zd", n);
		close(fd);
	}
	conf_result(id, 10);
	close(listener);
	conf_ok("the peer resets");

	/* shutdown while connecting non-blocking. */
	fd = conf_dial_nonblock(CONF_ECHO);
	int s = shutdown(fd, SHUT_RDWR);
	CHECK(s == 0 || errno == ENOTCONN, "shutdown in progress");
	close(fd);
	fd = conf_dial(CONF_ECHO);
	conf_echo(fd, 1000);
	close(fd);
	conf_ok("shutdown while connecting");
	return conf_done();
}
