/* SPDX-License-Identifier: Apache-2.0 */
/* The send buffer is full before the program asks how its non-blocking connect went:
 * connected and not writable, which poll does not tell from a connect under way. */
#include "conf.h"

int main(int argc, char **argv)
{
	conf_init(argc, argv, 30);
	for (int round = 0; round < 3; round++) {
		/* The server reads nothing before it has said all, which nobody here reads. */
		int fd = conf_dial_nonblock(CONF_SOURCE), refusals = 0;
		double end = conf_now() + 8;
		char block[4096] = "";
		size_t sent = 0;

		while (!sent || refusals < 50) {
			ssize_t n = write(fd, block, sizeof(block));

			if (n >= 0) {
				sent += (size_t)n;
				refusals = 0;
				continue;
			}
			CHECK(errno == EAGAIN || errno == ENOTCONN, "write");
			CHECK(conf_now() < end, "never full: %zu bytes", sent);
			refusals++;
			conf_sleep(0.001);
		}
		conf_names(fd, CONF_SOURCE);
		CHECK(conf_so_error(fd) == 0, "SO_ERROR");
		CHECK(!conf_wait(fd, POLLOUT, 0), "writable, though full");
		conf_nonblock(fd, false);
		conf_recv_pattern(fd, CONF_BULK);
		conf_expect_eof(fd);
		close(fd);
	}
	conf_ok("connected, full or not");
	return conf_done();
}
