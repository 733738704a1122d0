/* SPDX-License-Identifier: Apache-2.0 */
/* What a second connect() on the same socket gives. */
#include "conf.h"

int main(int argc, char **argv)
{
	struct sockaddr_storage sa;
	socklen_t size;
	int fd, r;

	conf_init(argc, argv, 20);
	fd = conf_dial(CONF_ECHO);
	CHECK_ERRNO(conf_connect(fd, CONF_ECHO), EISCONN);
	CHECK_ERRNO(conf_connect(fd, CONF_SINK), EISCONN);
	conf_echo(fd, 3000);
	close(fd);
	conf_ok("connected: EISCONN");

	/* Linux: the first call after completion may say 0, later ones EISCONN. */
	fd = conf_dial_nonblock(CONF_ECHO);
	double end = conf_now() + 5;
	do {
		r = conf_connect(fd, CONF_ECHO);
		CHECK(r == 0 || errno == EALREADY || errno == EISCONN, "second connect");
	} while (r < 0 && errno == EALREADY && conf_now() < end);
	CHECK(conf_now() < end, "EALREADY for ever");
	conf_path(fd);
	conf_names(fd, CONF_ECHO);
	CHECK_ERRNO(conf_connect(fd, CONF_ECHO), EISCONN);
	conf_echo(fd, 3000);
	close(fd);
	conf_ok("connect until it is done");

	fd = conf_dial_nonblock(CONF_ECHO);
	CHECK(conf_wait(fd, POLLOUT, 8000), "not writable");
	r = conf_connect(fd, CONF_ECHO);
	CHECK(r == 0 || errno == EISCONN, "connect as the completion check");
	CHECK_ERRNO(conf_connect(fd, CONF_ECHO), EISCONN);
	conf_names(fd, CONF_ECHO);
	close(fd);
	conf_ok("connect as the completion check");

	size = conf_address(&sa, conf_nobody(2), 80);
	fd = conf_socket(SOCK_NONBLOCK);
	CHECK_ERRNO(connect(fd, (struct sockaddr *)&sa, size), EINPROGRESS);
	CHECK_ERRNO(connect(fd, (struct sockaddr *)&sa, size), EALREADY);
	close(fd);
	conf_ok("in progress: EALREADY");

	/* A refused socket can be used again. */
	fd = conf_socket(0);
	CHECK_ERRNO(conf_connect(fd, CONF_CLOSED), ECONNREFUSED);
	CHECK_ERRNO(conf_connect(fd, CONF_CLOSED), ECONNREFUSED);
	CHECK(conf_connect(fd, CONF_ECHO) == 0, "connect after a refusal");
	conf_path(fd);
	conf_names(fd, CONF_ECHO);
	conf_echo(fd, 3000);
	close(fd);
	conf_ok("again after a refusal");

	fd = conf_listen(&(uint16_t){ 0 }, 4);
	CHECK_ERRNO(conf_connect(fd, CONF_ECHO), EISCONN);
	close(fd);
	conf_ok("connect on a listener: EISCONN");
	return conf_done();
}
