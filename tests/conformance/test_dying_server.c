/* SPDX-License-Identifier: Apache-2.0 */
/* A server that dies with connections queued: its clients see a reset, not a
 * silent end; so do they when it closes the listener. */
#include "conf.h"

int main(int argc, char **argv)
{
	conf_init(argc, argv, 40);
	for (int way = 0; way < 2; way++) {
		for (int round = 0; round < 3; round++) {
			uint16_t port = 0;
			int pipes[2];

			CHECK(pipe(pipes) == 0, "pipe");
			pid_t pid = conf_fork();
			if (pid == 0) {
				int listener = conf_listen(&port, 64);

				CHECK(write(pipes[1], &port, sizeof(port)) == sizeof(port), "write");
				conf_sleep(0.5);
				if (way == 0)
					kill(getpid(), SIGKILL);
				close(listener);
				conf_sleep(1.5);
				conf_leave();
			}
			CHECK(read(pipes[0], &port, sizeof(port)) == sizeof(port), "server did not start");
			unsigned id = conf_dial_me(8, "mute", port, 6000);
			struct conf_result r = conf_result(id, 15);
			CHECK(r.reset == 8, "peer saw reset=%d eof=%d timeout=%d refused=%d ok=%d %s", r.reset, r.eof, r.timeout,
			      r.refused, r.ok, r.text);
			waitpid(pid, NULL, 0);
			close(pipes[0]);
			close(pipes[1]);
		}
		conf_ok("%s", way == 0 ? "killed" : "listener closed");
	}

	/* Connections that were accepted end as the kernel ends them: FIN. */
	int pipes[2];
	uint16_t port = 0;
	CHECK(pipe(pipes) == 0, "pipe");
	pid_t pid = conf_fork();
	if (pid == 0) {
		int listener = conf_listen(&port, 64);

		CHECK(write(pipes[1], &port, sizeof(port)) == sizeof(port), "write");
		for (int i = 0; i < 4; i++)
			conf_accept(listener);
		kill(getpid(), SIGKILL);
	}
	CHECK(read(pipes[0], &port, sizeof(port)) == sizeof(port), "server did not start");
	unsigned id = conf_dial_me(4, "mute", port, 6000);
	struct conf_result r = conf_result(id, 15);
	CHECK(r.eof == 4, "peer saw eof=%d reset=%d timeout=%d", r.eof, r.reset, r.timeout);
	waitpid(pid, NULL, 0);
	conf_ok("accepted connections of a killed server end");
	return conf_done();
}
