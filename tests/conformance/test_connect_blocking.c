/* SPDX-License-Identifier: Apache-2.0 */
/* Blocking connect: names, data both ways, end of data. */
#include "conf.h"

int main(int argc, char **argv)
{
	struct sockaddr_storage sa;
	socklen_t size = sizeof(sa);
	int fd, was;

	conf_init(argc, argv, 20);
	fd = conf_socket(0);
	was = fd;
	CHECK(getsockname(fd, (struct sockaddr *)&sa, &size) == 0, "getsockname before connect");
	CHECK(conf_same(&sa, (struct in_addr){ 0 }, 0), "an unbound socket is called %s", conf_text(&sa));
	size = sizeof(sa);
	CHECK_ERRNO(getpeername(fd, (struct sockaddr *)&sa, &size), ENOTCONN);
	CHECK(conf_connect(fd, CONF_ECHO) == 0, "connect");
	CHECK(fd == was, "the descriptor moved");
	conf_path(fd);
	conf_names(fd, CONF_ECHO);
	conf_echo(fd, 100000);
	CHECK(shutdown(fd, SHUT_WR) == 0, "shutdown");
	conf_expect_eof(fd);
	close(fd);
	conf_ok("names and data");

	/* Again, warm by now. */
	for (int i = 0; i < 20; i++) {
		fd = conf_dial(CONF_ECHO);
		conf_names(fd, CONF_ECHO);
		conf_echo(fd, 5000);
		close(fd);
	}
	conf_ok("twenty more");
	return conf_done();
}
