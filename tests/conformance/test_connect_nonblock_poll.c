/* SPDX-License-Identifier: Apache-2.0 */
/* Non-blocking connect watched by poll and ppoll. */
#include "conf.h"

static void with(bool use_ppoll, short events)
{
	int fd = conf_dial_nonblock(CONF_ECHO);
	struct pollfd p[2] = { { .fd = -1, .events = POLLIN }, { .fd = fd, .events = events } };
	struct timespec limit = { .tv_sec = 8 };
	int r = use_ppoll ? ppoll(p, 2, &limit, NULL) : poll(p, 2, 8000);

	CHECK(r == 1, "poll says %d", r);
	CHECK(p[1].revents == POLLOUT, "revents 0x%x", p[1].revents);
	CHECK(p[0].revents == 0, "a negative descriptor got events");
	CHECK(conf_so_error(fd) == 0, "SO_ERROR");
	conf_path(fd);
	conf_names(fd, CONF_ECHO);
	CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK, "O_NONBLOCK was lost");
	conf_echo(fd, 100000);
	/* Nothing to read now: poll must wait, then time out. */
	p[1].events = POLLIN;
	double start = conf_now();
	CHECK(poll(p + 1, 1, 50) == 0, "poll found revents 0x%x on a quiet socket", p[1].revents);
	CHECK(conf_now() - start > 0.045, "poll's time-out came early");
	close(fd);
}

int main(int argc, char **argv)
{
	conf_init(argc, argv, 30);
	for (int i = 0; i < 5; i++) {
		with(false, POLLOUT);
		with(true, POLLOUT);
		with(false, POLLIN | POLLOUT);
	}
	conf_ok("poll and ppoll");

	/* poll first, without ever asking SO_ERROR: writing is enough. */
	int fd = conf_dial_nonblock(CONF_ECHO);
	CHECK(conf_wait(fd, POLLOUT, 8000), "not writable");
	conf_echo(fd, 5000);
	close(fd);
	conf_ok("no SO_ERROR asked");

	/* Refused: POLLERR and POLLHUP beside POLLOUT, then SO_ERROR once. */
	fd = conf_dial_nonblock(CONF_CLOSED);
	struct pollfd p = { .fd = fd, .events = POLLOUT };
	CHECK(poll(&p, 1, 8000) == 1, "no event for a refused connect");
	CHECK((p.revents & (POLLOUT | POLLERR | POLLHUP)) == (POLLOUT | POLLERR | POLLHUP),
	      "revents 0x%x of a refused connect", p.revents);
	CHECK(conf_so_error(fd) == ECONNREFUSED, "SO_ERROR of a refused connect");
	CHECK(conf_so_error(fd) == 0, "SO_ERROR was not cleared by reading it");
	close(fd);
	conf_ok("refused");

	/* Many at once in one set. */
	struct pollfd many[32];
	int open = 32;
	for (int i = 0; i < 32; i++) {
		many[i].fd = conf_dial_nonblock(CONF_ECHO);
		many[i].events = POLLOUT;
	}
	while (open > 0) {
		int r = poll(many, 32, 8000);

		CHECK(r > 0, "%d of 32 connects are missing", open);
		for (int i = 0; i < 32; i++) {
			if (many[i].fd < 0 || !many[i].revents)
				continue;
			CHECK(conf_so_error(many[i].fd) == 0, "SO_ERROR");
			conf_path(many[i].fd);
			conf_names(many[i].fd, CONF_ECHO);
			conf_echo(many[i].fd, 3000);
			close(many[i].fd);
			many[i].fd = -1;
			open--;
		}
	}
	conf_ok("thirty-two at once");
	return conf_done();
}
