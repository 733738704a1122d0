/* SPDX-License-Identifier: Apache-2.0 */
/* Many connections held at once, each with its own name and data. */
#include "conf.h"

#define COUNT 300

int main(int argc, char **argv)
{
	static int fds[COUNT];
	static uint16_t ports[COUNT];

	conf_init(argc, argv, 40);
	for (int i = 0; i < COUNT; i++) {
		struct sockaddr_storage sa;
		socklen_t size = sizeof(sa);

		fds[i] = conf_dial(i & 1 ? CONF_ECHO : CONF_BANNER);
		CHECK(getsockname(fds[i], (struct sockaddr *)&sa, &size) == 0, "getsockname");
		ports[i] = conf_port_of(&sa);
		if (!(i & 1)) {
			char line[200], want[200], a[INET_ADDRSTRLEN];

			inet_ntop(AF_INET, &conf.self, a, sizeof(a));
			snprintf(want, sizeof(want), "%s %u ", a, ports[i]);
			conf_line(fds[i], line, sizeof(line));
			CHECK(strncmp(line, want, strlen(want)) == 0, "peer says '%s', wanted '%s'", line, want);
		}
	}
	for (int i = 0; i < COUNT; i++)
		for (int k = i + 2; k < COUNT; k += 2)
			CHECK(ports[i] != ports[k], "connections %d and %d to one service share port %u", i, k, ports[i]);
	conf_ok("%d connections, names all different", COUNT);
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < COUNT; i++)
			conf_send_all(fds[i], &i, sizeof(i));
		for (int i = COUNT - 1; i >= 0; i--) {
			int got = -1;

			conf_recv_all(fds[i], &got, sizeof(got));
			CHECK(got == i, "connection %d carries the data of %d", i, got);
		}
	}
	for (int i = 0; i < COUNT; i++)
		close(fds[i]);
	conf_ok("data");
	return conf_done();
}
