/* SPDX-License-Identifier: Apache-2.0 */
/* SO_RCVTIMEO bounds a blocking accept. */
#include "conf.h"

int main(int argc, char **argv)
{
	struct timeval wait = { .tv_usec = 200000 }, none = { 0 }, back;
	socklen_t size = sizeof(back);
	uint16_t port = 0;

	conf_init(argc, argv, 20);
	for (int late = 0; late < 2; late++) {
		port = 0;
		int listener = conf_bound(&port, 0);
		if (!late)
			CHECK(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) == 0, "SO_RCVTIMEO");
		CHECK(listen(listener, 8) == 0, "listen");
		if (late)
			CHECK(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) == 0, "SO_RCVTIMEO");
		CHECK(getsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &back, &size) == 0, "SO_RCVTIMEO");
		CHECK(back.tv_sec == 0 && back.tv_usec >= 200000, "SO_RCVTIMEO reads %ld us", (long)back.tv_usec);
		double start = conf_now();
		CHECK_ERRNO(accept(listener, NULL, NULL), EAGAIN);
		double took = conf_now() - start;
		CHECK(took > 0.15 && took < 1.5, "0.2 s took %.3f s", took);
		unsigned id = conf_dial_me(1, "id", port, 0);
		CHECK(conf_wait(listener, POLLIN, 5000), "not readable");
		int fd = conf_accept(listener);
		uint64_t number;
		/* The timeout is the listener's; on Linux its connections inherit it. */
		size = sizeof(back);
		CHECK(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &back, &size) == 0, "SO_RCVTIMEO");
		CHECK(back.tv_usec >= 200000, "not inherited: %ld us", (long)back.tv_usec);
		conf_recv_all(fd, &number, sizeof(number));
		conf_send_all(fd, &number, sizeof(number));
		close(fd);
		conf_all_ok(id, 1);
		CHECK(setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof(none)) == 0, "SO_RCVTIMEO off");
		close(listener);
		conf_ok("set %s listen", late ? "after" : "before");
	}
	return conf_done();
}
