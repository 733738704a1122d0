/* SPDX-License-Identifier: Apache-2.0 */
/* A server is killed and started again on its port at once, many times. */
#include "conf.h"

int main(int argc, char **argv)
{
	uint16_t port = 0;
	int one = 1;

	conf_init(argc, argv, 40);
	close(conf_bound(&port, 0));
	for (int round = 0; round < 10; round++) {
		int pipes[2];
		char byte;

		CHECK(pipe(pipes) == 0, "pipe");
		pid_t pid = conf_fork();
		if (pid == 0) {
			struct sockaddr_storage sa;
			socklen_t size = conf_address(&sa, conf.self, port);
			int listener = conf_socket(0);
			uint64_t number;

			CHECK(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) == 0, "SO_REUSEADDR");
			CHECK(bind(listener, (struct sockaddr *)&sa, size) == 0, "bind in round %d", round);
			CHECK(listen(listener, 32) == 0, "listen");
			CHECK(write(pipes[1], "r", 1) == 1, "write");
			for (;;) {
				int fd = conf_accept(listener);

				/* A late mute client of the last generation says nothing. */
				if (recv(fd, &number, sizeof(number), MSG_WAITALL) == sizeof(number))
					conf_send_all(fd, &number, sizeof(number));
				close(fd);
			}
		}
		close(pipes[1]);
		CHECK(read(pipes[0], &byte, 1) == 1, "server of round %d did not start", round);
		close(pipes[0]);
		if (!(round & 1))
			conf_all_ok(conf_dial_me(5, "id", port, 0), 5);
		else
			conf_dial_me(2, "mute", port, 1000); /* the kill meets them queued or open */
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	conf_ok("ten generations");
	conf_refused_soon(port);
	conf_ok("then refused");
	return conf_done();
}
