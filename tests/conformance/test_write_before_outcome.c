/* SPDX-License-Identifier: Apache-2.0 */
/* Data written on a non-blocking socket as soon as the kernel takes them, with no
 * look at SO_ERROR, poll or getpeername before: they must all arrive. */
#include "conf.h"

int main(int argc, char **argv)
{
	conf_init(argc, argv, 30);
	for (int round = 0; round < 20; round++) {
		unsigned char block[4096];
		size_t at = 0;
		double end = conf_now() + 8;
		int fd = conf_dial_nonblock(CONF_SINK);

		while (at < 65536) {
			conf_pattern(block, at, sizeof(block));
			ssize_t n = write(fd, block, sizeof(block));

			if (n < 0) {
				CHECK(errno == EAGAIN || errno == ENOTCONN, "write");
				CHECK(conf_now() < end, "never writable");
				conf_sleep(0.0002);
				continue;
			}
			at += (size_t)n;
		}
		/* Only now ask, as some programs do for logging. */
		conf_names(fd, CONF_SINK);
		CHECK(conf_so_error(fd) == 0, "SO_ERROR");
		conf_nonblock(fd, false);
		CHECK(shutdown(fd, SHUT_WR) == 0, "shutdown");
		conf_expect_sunk(fd, 65536);
		conf_expect_eof(fd);
		close(fd);
	}
	conf_ok("nothing lost, nothing doubled");
	return conf_done();
}
