/* SPDX-License-Identifier: Apache-2.0 */
/* Out of descriptors: accept says EMFILE, the connection waits, and is accepted
 * intact once a descriptor is free. */
#include "conf.h"
#include <sys/resource.h>

int main(int argc, char **argv)
{
	struct rlimit limit = { 64, 64 };
	uint16_t port = 0;
	int fill[64], n = 0;
	uint64_t number;

	conf_init(argc, argv, 30);
	int listener = conf_listen(&port, 16);
	close(conf_dial(CONF_ECHO)); /* whatever is opened once is open now */
	unsigned warm = conf_dial_me(1, "id", port, 0);
	int fd = conf_accept(listener);
	conf_recv_all(fd, &number, sizeof(number));
	conf_send_all(fd, &number, sizeof(number));
	close(fd);
	conf_all_ok(warm, 1);
	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0, "RLIMIT_NOFILE");

	for (int round = 0; round < 3; round++) {
		unsigned id = conf_dial_me(3, "id", port, 0);
		CHECK(conf_wait(listener, POLLIN, 8000), "not readable");
		for (n = 0; n < 64; n++) {
			fill[n] = open("/dev/null", O_RDONLY);
			if (fill[n] < 0)
				break;
		}
		CHECK(n > 0 && n < 64, "filled %d", n);
		for (int i = 0; i < 5; i++)
			CHECK_ERRNO(accept(listener, NULL, NULL), EMFILE);
		CHECK(conf_wait(listener, POLLIN, 100), "the waiting connection is no longer announced");
		CHECK_ERRNO(socket(conf.family, SOCK_STREAM, 0), EMFILE);
		close(fill[--n]);
		for (int i = 0; i < 3; i++) {
			fd = accept(listener, NULL, NULL);
			CHECK(fd >= 0, "accept after a descriptor was freed, connection %d", i);
			conf_recv_all(fd, &number, sizeof(number));
			conf_send_all(fd, &number, sizeof(number));
			close(fd);
		}
		while (n > 0)
			close(fill[--n]);
		conf_all_ok(id, 3);
	}
	conf_ok("EMFILE, and nothing lost");

	/* connect needs no descriptor of the application's. */
	fd = conf_socket(0);
	for (n = 0; n < 64; n++) {
		fill[n] = open("/dev/null", O_RDONLY);
		if (fill[n] < 0)
			break;
	}
	CHECK(conf_connect(fd, CONF_ECHO) == 0, "connect without a free descriptor");
	conf_names(fd, CONF_ECHO);
	conf_echo(fd, 3000);
	while (n > 0)
		close(fill[--n]);
	close(fd);
	conf_ok("connect with a full table");
	return conf_done();
}
