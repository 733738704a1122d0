/* SPDX-License-Identifier: Apache-2.0 */
/* close ends the connection at once; descriptors do not leak; a closed number
 * has no name. */
#include "conf.h"
#include <dirent.h>

static int open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	CHECK(d, "opendir");
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

int main(int argc, char **argv)
{
	uint16_t port = 0;
	char byte;

	conf_init(argc, argv, 30);
	/* First use may open what is kept for good. */
	int listener = conf_listen(&port, 64);
	unsigned id = conf_dial_me(1, "mute", port, 3000);
	close(conf_accept(listener));
	conf_result(id, 10);
	close(conf_dial(CONF_ECHO));
	int before = open_fds();

	for (int i = 0; i < 100; i++) {
		int fd = i & 1 ? conf_dial(CONF_ECHO) : conf_dial_nonblock(CONF_ECHO);

		if (!(i & 1) && i % 4)
			CHECK(conf_wait(fd, POLLOUT, 8000) && conf_so_error(fd) == 0, "connect");
		if (i % 3 == 0)
			CHECK(shutdown(fd, SHUT_RDWR) == 0 || errno == ENOTCONN, "shutdown");
		CHECK(close(fd) == 0, "close");
		CHECK_ERRNO(close(fd), EBADF);
		fd = conf_socket(0);
		CHECK_ERRNO(conf_connect(fd, CONF_CLOSED), ECONNREFUSED);
		close(fd);
	}
	conf_sleep(0.05);
	CHECK(open_fds() <= before, "%d descriptors open, %d before", open_fds(), before);
	conf_ok("a hundred connects leak nothing");

	for (int round = 0; round < 5; round++) {
		id = conf_dial_me(10, "mute", port, 5000);
		for (int i = 0; i < 10; i++)
			close(conf_accept(listener));
		struct conf_result r = conf_result(id, 10);
		CHECK(r.eof == 10, "peer saw eof=%d reset=%d timeout=%d fail=%d %s", r.eof, r.reset, r.timeout, r.fail,
		      r.text);
	}
	CHECK(open_fds() <= before, "%d descriptors open, %d before", open_fds(), before);
	conf_ok("fifty accepts leak nothing, and close is seen at once");

	/* The peer closes. */
	int fd = conf_dial(CONF_FIN);
	conf_expect_eof(fd);
	close(fd);
	fd = conf_dial(CONF_SAY_RESET);
	conf_send_all(fd, "x", 1);
	CHECK(conf_wait(fd, POLLIN, 8000), "no reset");
	CHECK_ERRNO(recv(fd, &byte, 1, 0), ECONNRESET);
	close(fd);
	conf_ok("the peer's close and reset");

	for (int i = 0; i < 5; i++) {
		uint16_t p = 0;
		int l = conf_listen(&p, 8);

		close(l);
	}
	CHECK(open_fds() <= before, "%d descriptors open, %d before", open_fds(), before);
	close(listener);
	CHECK(open_fds() < before, "closing the listener freed nothing");
	conf_ok("listeners leak nothing");
	return conf_done();
}
