/* SPDX-License-Identifier: Apache-2.0 */
/* An address that does not answer: a non-blocking connect returns EINPROGRESS in
 * under a millisecond and then the overlay's own outcome; SO_SNDTIMEO bounds a
 * blocking one. */
#include "conf.h"

int main(int argc, char **argv)
{
	struct sockaddr_storage sa;
	struct timeval wait = { .tv_usec = 300000 };
	double best = 1, start, took;
	socklen_t size;
	int fd;

	conf_init(argc, argv, 40);
	size = conf_address(&sa, conf_nobody(1), 80);
	for (int i = 0; i < 10; i++) {
		fd = conf_socket(SOCK_NONBLOCK);
		start = conf_now();
		CHECK_ERRNO(connect(fd, (struct sockaddr *)&sa, size), EINPROGRESS);
		took = conf_now() - start;
		best = took < best ? took : best;
		CHECK(took < 0.1, "EINPROGRESS took %.3f ms", took * 1e3);
		CHECK(!conf_wait(fd, POLLOUT, 5), "writable");
		close(fd);
	}
	CHECK(best < 0.001, "EINPROGRESS took %.3f ms at best", best * 1e3);
	conf_ok("EINPROGRESS after %.0f us", best * 1e6);

	fd = conf_socket(0);
	CHECK(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait)) == 0, "SO_SNDTIMEO");
	start = conf_now();
	CHECK_ERRNO(connect(fd, (struct sockaddr *)&sa, size), EINPROGRESS);
	took = conf_now() - start;
	CHECK(took > 0.25 && took < 1.5, "SO_SNDTIMEO of 0.3 s took %.3f s", took);
	close(fd);
	conf_ok("SO_SNDTIMEO");

	/* The overlay gives no answer to ARP: no route to the host in 1 to 4 s. */
	fd = conf_socket(SOCK_NONBLOCK);
	CHECK_ERRNO(connect(fd, (struct sockaddr *)&sa, size), EINPROGRESS);
	CHECK(conf_wait(fd, POLLOUT, 15000), "no outcome within 15 s");
	CHECK(conf_so_error(fd) == EHOSTUNREACH, "SO_ERROR");
	close(fd);
	fd = conf_socket(0);
	CHECK_ERRNO(connect(fd, (struct sockaddr *)&sa, size), EHOSTUNREACH);
	close(fd);
	conf_ok("EHOSTUNREACH");

	/* A listener whose backlog is full answers nothing either. */
	int held[4];
	for (int i = 0; i < 4; i++)
		held[i] = conf_dial_nonblock(CONF_SILENT);
	conf_sleep(0.05);
	for (int i = 0; i < 4; i++)
		close(held[i]);
	fd = conf_dial(CONF_ECHO);
	conf_echo(fd, 1000);
	close(fd);
	conf_ok("another connect is not held up");
	return conf_done();
}
