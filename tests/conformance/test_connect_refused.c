/* SPDX-License-Identifier: Apache-2.0 */
/* A closed port refuses as on the overlay, blocking and not, at once. */
#include "conf.h"

int main(int argc, char **argv)
{
	conf_init(argc, argv, 20);
	for (int i = 0; i < 10; i++) {
		int fd = conf_socket(0);
		double start = conf_now();

		CHECK_ERRNO(conf_connect(fd, CONF_CLOSED), ECONNREFUSED);
		CHECK(conf_now() - start < 1, "a refusal took %.3f s", conf_now() - start);
		close(fd);
		fd = conf_dial_nonblock(CONF_CLOSED);
		CHECK(conf_wait(fd, POLLOUT, 2000), "no event");
		CHECK(conf_so_error(fd) == ECONNREFUSED, "SO_ERROR");
		close(fd);
	}
	conf_ok("refused");
	/* A port that stops listening: refused, though it was fine before. */
	uint16_t port = 0;
	int listener = conf_listen(&port, 4);
	unsigned id = conf_dial_me(1, "name", port, 0);
	struct sockaddr_storage sa;
	int fd = accept(listener, (struct sockaddr *)&sa, &(socklen_t){ sizeof(sa) });
	CHECK(fd >= 0, "accept");
	conf_expect_name(fd, &sa, port);
	close(fd);
	conf_all_ok(id, 1);
	close(listener);
	conf_refused_soon(port);
	conf_ok("listener gone");
	return conf_done();
}
