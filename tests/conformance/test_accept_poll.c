/* SPDX-License-Identifier: Apache-2.0 */
/* A listener watched by poll, ppoll, select, pselect. */
#include "conf.h"
#include <sys/select.h>

static void take(int listener)
{
	char block[4096];
	int fd = conf_accept(listener);

	conf_recv_all(fd, block, sizeof(block));
	conf_send_all(fd, block, sizeof(block));
	close(fd);
}

int main(int argc, char **argv)
{
	uint16_t port = 0;

	conf_init(argc, argv, 30);
	int listener = conf_listen(&port, 64);
	struct pollfd p = { .fd = listener, .events = POLLIN | POLLOUT };
	CHECK(poll(&p, 1, 30) == 0, "revents 0x%x of a quiet listener", p.revents);
	for (int way = 0; way < 4; way++) {
		unsigned id = conf_dial_me(3, "echo", port, 0);
		struct timespec ts = { .tv_sec = 8 };
		struct timeval tv = { .tv_sec = 8 };
		fd_set rd, wr;

		for (int i = 0; i < 3; i++) {
			FD_ZERO(&rd);
			FD_ZERO(&wr);
			FD_SET(listener, &rd);
			FD_SET(listener, &wr);
			p.events = POLLIN | POLLOUT;
			p.revents = 0;
			ts = (struct timespec){ .tv_sec = 8 };
			tv = (struct timeval){ .tv_sec = 8 };
			switch (way) {
			case 0:
				CHECK(poll(&p, 1, 8000) == 1, "poll");
				CHECK(p.revents == POLLIN, "revents 0x%x", p.revents);
				break;
			case 1:
				CHECK(ppoll(&p, 1, &ts, NULL) == 1, "ppoll");
				CHECK(p.revents == POLLIN, "revents 0x%x", p.revents);
				break;
			case 2:
				CHECK(select(listener + 1, &rd, &wr, NULL, &tv) == 1, "select");
				CHECK(FD_ISSET(listener, &rd) && !FD_ISSET(listener, &wr), "sets");
				break;
			default:
				CHECK(pselect(listener + 1, &rd, &wr, NULL, &ts, NULL) == 1, "pselect");
				CHECK(FD_ISSET(listener, &rd) && !FD_ISSET(listener, &wr), "sets");
				break;
			}
			take(listener);
		}
		conf_all_ok(id, 3);
	}
	p.events = POLLIN;
	CHECK(poll(&p, 1, 30) == 0, "readable with nothing to accept");
	CHECK(conf_so_error(listener) == 0, "SO_ERROR of a listener");
	conf_ok("readable only when a connection waits");
	close(listener);
	return conf_done();
}
