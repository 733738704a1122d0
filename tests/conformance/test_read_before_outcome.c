/* SPDX-License-Identifier: Apache-2.0 */
/* A reader that never asks how the connect went: it reads until the server, which
 * speaks first, has said all. (Without a look at the outcome a cold connect stays on the
 * overlay, and the server's side waits for its bound before it believes that.) */
#include "conf.h"

int main(int argc, char **argv)
{
	conf_init(argc, argv, 30);
	for (int round = 0; round < 5; round++) {
		unsigned char want[4096], got[4096];
		size_t at = 0;
		double end = conf_now() + 8;
		int fd = conf_dial_nonblock(CONF_SOURCE);

		while (at < CONF_BULK) {
			ssize_t n = read(fd, got, sizeof(got));

			if (n < 0) {
				CHECK(errno == EAGAIN || errno == ENOTCONN, "read");
				CHECK(conf_now() < end, "%zu bytes in 8 s", at);
				conf_sleep(0.0002);
				continue;
			}
			CHECK(n > 0, "end after %zu bytes", at);
			conf_pattern(want, at, (size_t)n);
			CHECK(memcmp(want, got, (size_t)n) == 0, "data differ after %zu bytes", at);
			at += (size_t)n;
		}
		conf_names(fd, CONF_SOURCE);
		close(fd);
	}
	conf_ok("all read, in order");
	return conf_done();
}
