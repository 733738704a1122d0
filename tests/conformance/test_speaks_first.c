/* SPDX-License-Identifier: Apache-2.0 */
/* One megabyte each way, whoever speaks first, in both directions: intact, no
 * stray byte, no hang. */
#include "conf.h"

int main(int argc, char **argv)
{
	uint16_t port = 0;
	int fd;

	conf_init(argc, argv, 60);
	for (int round = 0; round < 3; round++) {
		fd = conf_dial(CONF_SOURCE);
		conf_recv_pattern(fd, CONF_BULK);
		conf_send_pattern(fd, CONF_BULK);
		CHECK(shutdown(fd, SHUT_WR) == 0, "shutdown");
		conf_expect_eof(fd);
		close(fd);
	}
	conf_ok("we connect, the server speaks first");

	for (int round = 0; round < 3; round++) {
		fd = conf_dial(CONF_SINK);
		conf_send_pattern(fd, CONF_BULK);
		CHECK(shutdown(fd, SHUT_WR) == 0, "shutdown");
		conf_expect_sunk(fd, CONF_BULK);
		conf_expect_eof(fd);
		close(fd);
		fd = conf_dial(CONF_ECHO);
		conf_echo(fd, CONF_BULK);
		close(fd);
	}
	conf_ok("we connect and speak first");

	int listener = conf_listen(&port, 16);
	for (int round = 0; round < 3; round++) {
		unsigned id = conf_dial_me(2, "first", port, 0);
		for (int i = 0; i < 2; i++) {
			fd = conf_accept(listener);
			conf_send_pattern(fd, CONF_BULK);
			conf_recv_pattern(fd, CONF_BULK);
			CHECK(shutdown(fd, SHUT_WR) == 0, "shutdown");
			conf_expect_eof(fd);
			close(fd);
		}
		conf_all_ok(id, 2);
	}
	conf_ok("we accept and speak first");

	for (int round = 0; round < 3; round++) {
		unsigned id = conf_dial_me(2, "talk", port, 0);
		for (int i = 0; i < 2; i++) {
			fd = conf_accept(listener);
			conf_recv_pattern(fd, CONF_BULK);
			conf_expect_eof(fd);
			conf_send_pattern(fd, CONF_BULK);
			close(fd);
		}
		conf_all_ok(id, 2);
	}
	conf_ok("we accept, the client speaks first");

	/* A non-blocking writer that starts the moment connect has returned. */
	for (int round = 0; round < 5; round++) {
		fd = conf_dial_nonblock(CONF_SINK);
		double end = conf_now() + 8;
		ssize_t n;
		do
			n = send(fd, "", 0, MSG_NOSIGNAL);
		while (n < 0 && (errno == EAGAIN || errno == ENOTCONN) && conf_now() < end);
		CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "connect");
		conf_path(fd);
		conf_send_pattern(fd, CONF_BULK);
		CHECK(shutdown(fd, SHUT_WR) == 0, "shutdown");
		conf_expect_sunk(fd, CONF_BULK);
		close(fd);
	}
	conf_ok("write before the outcome was asked for");
	return conf_done();
}
