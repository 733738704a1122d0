/* SPDX-License-Identifier: Apache-2.0 */
/* SO_ERROR is the answer of this very connect: 0 while in progress or done, the
 * error once after a failure. */
#include "conf.h"

int main(int argc, char **argv)
{
	conf_init(argc, argv, 20);
	int fd = conf_socket(0);
	CHECK(conf_so_error(fd) == 0, "fresh socket");
	close(fd);

	fd = conf_dial_nonblock(CONF_ECHO);
	/* Spin on SO_ERROR alone: some programs do, instead of polling. */
	double end = conf_now() + 5;
	struct sockaddr_storage sa;
	socklen_t size = sizeof(sa);
	while (getpeername(fd, (struct sockaddr *)&sa, &size) < 0 && conf_now() < end) {
		CHECK(conf_so_error(fd) == 0, "SO_ERROR while connecting");
		size = sizeof(sa);
	}
	CHECK(conf_now() < end, "never connected");
	conf_path(fd);
	conf_names(fd, CONF_ECHO);
	CHECK(conf_so_error(fd) == 0, "SO_ERROR when connected");
	conf_echo(fd, 3000);
	close(fd);
	conf_ok("success");

	fd = conf_dial_nonblock(CONF_CLOSED);
	CHECK(conf_wait(fd, POLLOUT, 8000), "no event");
	CHECK(conf_so_error(fd) == ECONNREFUSED, "first SO_ERROR");
	CHECK(conf_so_error(fd) == 0, "second SO_ERROR");
	close(fd);
	conf_ok("refused, non-blocking");

	fd = conf_socket(0);
	CHECK_ERRNO(conf_connect(fd, CONF_CLOSED), ECONNREFUSED);
	CHECK(conf_so_error(fd) == 0, "connect already gave the error away");
	close(fd);
	conf_ok("refused, blocking");

	fd = conf_dial(CONF_RESET);
	CHECK(conf_wait(fd, POLLIN, 8000), "no reset came");
	CHECK(conf_so_error(fd) == ECONNRESET, "SO_ERROR after the peer's reset");
	close(fd);
	conf_ok("reset after connecting");
	return conf_done();
}
