/* SPDX-License-Identifier: Apache-2.0 */
/* Non-blocking connect watched by select and pselect. */
#include "conf.h"
#include <sys/select.h>

static void with(bool use_pselect)
{
	int fd = conf_dial_nonblock(CONF_ECHO);
	struct timeval tv = { .tv_sec = 8 };
	struct timespec ts = { .tv_sec = 8 };
	fd_set rd, wr, ex;
	int r;

	FD_ZERO(&rd);
	FD_ZERO(&wr);
	FD_ZERO(&ex);
	FD_SET(fd, &rd);
	FD_SET(fd, &wr);
	FD_SET(fd, &ex);
	r = use_pselect ? pselect(fd + 1, &rd, &wr, &ex, &ts, NULL) : select(fd + 1, &rd, &wr, &ex, &tv);
	CHECK(r == 1, "select says %d", r);
	CHECK(FD_ISSET(fd, &wr), "not writable");
	CHECK(!FD_ISSET(fd, &rd), "readable without data");
	CHECK(!FD_ISSET(fd, &ex), "exceptional");
	CHECK(conf_so_error(fd) == 0, "SO_ERROR");
	conf_path(fd);
	conf_names(fd, CONF_ECHO);
	conf_echo(fd, 100000);
	FD_ZERO(&rd);
	FD_SET(fd, &rd);
	tv = (struct timeval){ .tv_usec = 30000 };
	CHECK(select(fd + 1, &rd, NULL, NULL, &tv) == 0, "select found a quiet socket readable");
	close(fd);
}

int main(int argc, char **argv)
{
	conf_init(argc, argv, 30);
	for (int i = 0; i < 5; i++) {
		with(false);
		with(true);
	}
	conf_ok("select and pselect");

	int fd = conf_dial_nonblock(CONF_CLOSED);
	struct timeval tv = { .tv_sec = 8 };
	fd_set rd, wr;
	FD_ZERO(&rd);
	FD_ZERO(&wr);
	FD_SET(fd, &rd);
	FD_SET(fd, &wr);
	CHECK(select(fd + 1, &rd, &wr, NULL, &tv) == 2, "a refused connect is readable and writable");
	CHECK(conf_so_error(fd) == ECONNREFUSED, "SO_ERROR");
	close(fd);
	conf_ok("refused");
	return conf_done();
}
