/* SPDX-License-Identifier: Apache-2.0 */
/* connect(AF_UNSPEC) dissolves a connection; the socket can then be used again. */
#include "conf.h"

int main(int argc, char **argv)
{
	struct sockaddr_storage none = { .ss_family = AF_UNSPEC }, sa;
	socklen_t size = sizeof(sa);
	int fd;

	conf_init(argc, argv, 20);
	fd = conf_dial(CONF_ECHO);
	conf_echo(fd, 3000);
	CHECK(connect(fd, (struct sockaddr *)&none, sizeof(struct sockaddr_in)) == 0, "connect(AF_UNSPEC)");
	CHECK_ERRNO(getpeername(fd, (struct sockaddr *)&sa, &size), ENOTCONN);
	conf_ok("dissolved");
	CHECK(conf_connect(fd, CONF_ECHO) == 0, "connect again");
	conf_path(fd);
	conf_names(fd, CONF_ECHO);
	conf_echo(fd, 3000);
	close(fd);
	conf_ok("connected again");
	return conf_done();
}
