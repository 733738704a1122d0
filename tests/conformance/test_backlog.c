/* SPDX-License-Identifier: Apache-2.0 */
/* Connections wait in the backlog until accepted, more of them than fit one
 * channel; a queue that is full admits no more than it should; data sent while
 * waiting is there. */
#include "conf.h"

int main(int argc, char **argv)
{
	uint16_t port = 0;
	uint64_t number;

	conf_init(argc, argv, 40);
	int listener = conf_listen(&port, 1024);
	unsigned id = conf_dial_me(600, "id", port, 0);
	conf_sleep(0.7);
	for (int i = 0; i < 600; i++) {
		CHECK(conf_wait(listener, POLLIN, 8000), "%d of 600 are missing", 600 - i);
		int fd = conf_accept(listener);
		conf_recv_all(fd, &number, sizeof(number));
		conf_send_all(fd, &number, sizeof(number));
		close(fd);
	}
	conf_nonblock(listener, true);
	CHECK_ERRNO(accept(listener, NULL, NULL), EAGAIN);
	conf_all_ok(id, 600);
	close(listener);
	conf_ok("six hundred wait");

	/* A short backlog loses nobody for good: TCP tries again. */
	port = 0;
	listener = conf_listen(&port, 4);
	id = conf_dial_me(20, "id", port, 0);
	conf_sleep(0.3);
	for (int i = 0; i < 20; i++) {
		CHECK(conf_wait(listener, POLLIN, 8000), "%d of 20 are missing", 20 - i);
		int fd = conf_accept(listener);
		conf_recv_all(fd, &number, sizeof(number));
		conf_send_all(fd, &number, sizeof(number));
		close(fd);
	}
	conf_all_ok(id, 20);
	close(listener);
	conf_ok("short backlog");

	/* Clients that left before accept: the connection is still handed over. */
	port = 0;
	listener = conf_listen(&port, 16);
	id = conf_dial_me(5, "close", port, 0);
	conf_all_ok(id, 5);
	for (int i = 0; i < 5; i++) {
		CHECK(conf_wait(listener, POLLIN, 8000), "a closed connection is not announced");
		int fd = conf_accept(listener);
		conf_expect_eof(fd);
		close(fd);
	}
	conf_ok("closed before accept");
	id = conf_dial_me(5, "rst", port, 0);
	conf_all_ok(id, 5);
	int seen = 0;
	while (seen < 5 && conf_wait(listener, POLLIN, 1000)) {
		int fd = accept(listener, NULL, NULL);
		char byte;

		if (fd < 0) {
			CHECK(errno == ECONNABORTED || errno == EAGAIN, "accept");
			continue;
		}
		while (recv(fd, &byte, 1, 0) > 0)
			;
		close(fd);
		seen++;
	}
	close(listener);
	conf_ok("reset before accept");
	return conf_done();
}
